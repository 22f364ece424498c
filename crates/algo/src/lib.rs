//! The algorithms of training and measuring, as pure functions: no I/O, no engine, no clock.
//!
//! From rollouts to gradient: [`reward`] and its [`length_penalty`] → [`advantage`] →
//! [`filter`] (which groups teach something) → [`batch`] (optimizer steps) → an objective,
//! [`dapo::Dapo`] or [`supervised::CrossEntropy`], at a learning rate of [`schedule`].
//! [`pass_at_k`] measures the result.

pub mod advantage;
pub mod batch;
pub mod dapo;
pub mod filter;
pub mod length_penalty;
pub mod pass_at_k;
pub mod reward;
pub mod schedule;
pub mod supervised;

#[cfg(test)]
mod testing;
