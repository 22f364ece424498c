//! The programs: pretraining, RFT, RL, evaluation; rollout engine, journal, resume.
