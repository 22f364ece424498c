//! How a pull goes: one line on a terminal, sober lines elsewhere. On standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use patchwright_images::{Progress, PullEvent};
use patchwright_train::events::CancelToken;

use crate::output;

/// Shows what a pull tells.
pub struct PullProgress {
    /// Where there is a terminal.
    bar: Option<ProgressBar>,
    cancel: OnceLock<&'static CancelToken>,
}

impl PullProgress {
    /// Live when standard error is a terminal, else lines.
    pub fn to_stderr() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            let style = "{wide_msg} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, cancel: OnceLock::new() }
    }

    /// Lets a signal stop the pull.
    pub fn stop_with(&self, token: &'static CancelToken) {
        let _ = self.cancel.set(token);
    }

    /// Says something above the live line.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(line)),
            None => output::note(line),
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for PullProgress {
    fn event(&self, event: &PullEvent) {
        match event {
            PullEvent::Resolved { reference, num_layers, num_missing, missing_bytes } => {
                let size = indicatif::DecimalBytes(*missing_bytes);
                let line = match num_missing {
                    0 => format!("{reference}: all {num_layers} layers are here"),
                    _ => format!("{reference}: {num_missing} of {num_layers} layers, {size}"),
                };
                if let Some(bar) = &self.bar {
                    bar.reset();
                    bar.set_length(*missing_bytes);
                    bar.set_message(line);
                } else {
                    self.say(&line);
                }
            }
            PullEvent::Received { bytes } => {
                if let Some(bar) = &self.bar {
                    bar.inc(*bytes);
                }
            }
            PullEvent::Waiting { layer } => {
                let hex = layer.hex();
                self.say(&format!("waiting for another process that makes layer {}", &hex[..12]));
            }
            PullEvent::Retry { reason, after } => {
                let after = after.max(&Duration::from_millis(100)).as_secs_f64();
                self.say(&format!("{reason}; once more in {after:.1} s"));
            }
            _ => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.get().is_some_and(|token| token.is_cancelled())
    }
}
