//! Trajectories, samples and predictions in the formats of others, out and in.
