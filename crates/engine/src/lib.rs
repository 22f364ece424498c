//! The embedded policy on the CPU: transformer, sampler, trainer, checkpoints.
