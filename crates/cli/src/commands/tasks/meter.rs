//! How far the reading of a task set is: a bar on a terminal, else a line every few seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// Least time between two lines where there is no terminal.
const QUIET: Duration = Duration::from_secs(5);

/// Progress in bytes of input.
pub struct Meter {
    /// `None` where there is no terminal.
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Meter {
    /// On standard error.
    pub fn to_stderr() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = ProgressBar::with_draw_target(Some(0), target);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {msg}")
            {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, last: Instant::now() }
    }

    /// So many bytes of all are read; `what` is said with it.
    pub fn update(&mut self, done: u64, total: u64, what: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(what());
        } else if self.last.elapsed() >= QUIET {
            self.last = Instant::now();
            let percent = done.saturating_mul(100) / total.max(1);
            output::note(format!("{percent}% read: {}", what()));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
