//! HTTP as every client of this crate speaks it: blocking, pooled, bounded, with classed failures.
//!
//! [`HttpClient`] makes one try of a request; [`retried`] tries again by a [`RetryPolicy`] what
//! [`FailureKind::is_passing`] says may go better. No answer is longer than its bound, no try longer
//! than its timeout, no token is ever printed.

mod client;
mod failure;
mod interrupt;
mod outage;
mod retry;

pub use client::{Answer, BearerToken, Call, HttpClient, HttpOptions};
pub use failure::{FailureKind, HttpFailure};
pub use interrupt::Interrupt;
pub use outage::Listener;
pub(crate) use outage::{Outage, back, down};
pub use retry::{RetryBudget, RetryPolicy, retried};
