//! New weights from a trainer to the servers that sample for it.
//!
//! ```text
//! publish ─► save to a new directory ─► per replica: pause, reload, cache reset, version, resume
//!                                          ╰─► checksum, then a known prompt: trainer = replica?
//! ```
//!
//! A directory is written once and never changed, so a server cannot read half of a version. A
//! replica that fails anywhere is fenced; it takes part again from the next version on. One that
//! went down and comes back is given the current weights before it serves. The cache of a replica
//! cannot hold anything of earlier weights: it is emptied, or (for adapters, each under a name of
//! its own) keyed by the name.

mod head;
mod load;
mod trainer;

use std::path::PathBuf;
use std::time::Duration;

pub use head::write_output_head;
pub use load::LoadAs;
pub use trainer::{Listener, SyncedTrainer, Writer};

/// How weights are brought over.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// A directory that trainer and servers see under the same path.
    pub dir: PathBuf,
    /// Whole weights, or an adapter.
    pub load_as: LoadAs,
    /// Bound of the wait for requests in flight.
    pub drain: Duration,
    /// Bound of each step at a server.
    pub load_timeout: Duration,
    /// Tokens whose log-probabilities trainer and every replica must agree on after each update; at
    /// least two.
    pub probe: Vec<u32>,
    /// Largest difference of such a log-probability.
    pub max_difference: f32,
}

/// What bringing one version over came to.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncReport {
    /// The version.
    pub policy_version: patchwright_core::PolicyVersion,
    /// Where it was written.
    pub dir: PathBuf,
    /// Seconds that writing it took.
    pub save_seconds: f64,
    /// Seconds from the first pause until all replicas had answered.
    pub load_seconds: f64,
    /// Each replica: its URL and either the largest difference to the trainer's log-probabilities of
    /// the probe, or why it is fenced. Replicas that drain are left out.
    pub replicas: Vec<(String, Result<f32, String>)>,
}

impl SyncReport {
    /// In one line.
    pub fn summary(&self) -> String {
        let of = |(url, result): &(String, Result<f32, String>)| match result {
            Ok(difference) => format!("{url} agrees within {difference:.1e}"),
            Err(reason) => format!("{url} is fenced: {reason}"),
        };
        let replicas: Vec<String> = self.replicas.iter().map(of).collect();
        format!(
            "weights of version {} brought over in {:.2} s (written in {:.2} s): {}",
            self.policy_version,
            self.load_seconds,
            self.save_seconds,
            replicas.join("; ")
        )
    }
}
