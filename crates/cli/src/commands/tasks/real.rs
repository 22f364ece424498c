//! What the commands on real tasks share: where things are kept, sandboxes, progress.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use patchwright_core::SandboxLimits;
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_tasks::environment::Watch;
use patchwright_tasks::validate::suite::SuiteLimits;
use patchwright_train::events::CancelToken;

use crate::args::RealArgs;
use crate::error::CliError;
use crate::{output, signals};

/// Least time between two lines of progress where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

/// `--cache`, or the place of the user's.
pub fn cache_dir(args: &RealArgs) -> Result<PathBuf, CliError> {
    if let Some(dir) = &args.cache {
        return std::path::absolute(dir)
            .map_err(|error| CliError::usage(format!("--cache {}: {error}", dir.display())));
    }
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| {
        CliError::usage("there is no home directory to keep things in; name one with --cache DIR")
    })?;
    Ok(cache.join("patchwright").join("real"))
}

/// Bounds of one run of a task's tests.
pub fn limits(args: &RealArgs) -> SuiteLimits {
    let defaults = SuiteLimits::default();
    let sandbox = SandboxLimits { cpu_seconds: args.timeout.max(1), ..defaults.sandbox };
    SuiteLimits { timeout: Duration::from_secs(args.timeout.max(1)), sandbox }
}

/// Sandboxes, enough for `--jobs`.
pub fn provider(args: &RealArgs) -> Result<Arc<NativeSandboxes>, CliError> {
    if args.jobs == 0 {
        return Err(CliError::usage("--jobs must be above 0"));
    }
    let max_sandboxes = 2 * args.jobs + 8;
    let options = NativeOptions { max_sandboxes, ..NativeOptions::default() };
    Ok(Arc::new(NativeSandboxes::new(options)?))
}

/// Progress on standard error: live on a terminal, in sober lines elsewhere.
pub struct Display {
    inner: Arc<Mutex<Inner>>,
    cancel: &'static CancelToken,
}

struct Inner {
    bar: Option<ProgressBar>,
    last: Option<Instant>,
}

impl Display {
    /// Starts the display, and lets signals stop the work.
    pub fn start() -> Result<Self, CliError> {
        let live = std::io::stderr().is_terminal();
        let bar = live.then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        let inner = Arc::new(Mutex::new(Inner { bar, last: None }));
        let cancel = {
            let inner = Arc::clone(&inner);
            signals::cancel_token(move || {
                say(&inner, "Stopping; what is finished is kept. Once more stops at once.");
            })?
        };
        Ok(Self { inner, cancel })
    }

    /// Takes the live display away. An error when the work was interrupted.
    pub fn finish(&self) -> Result<(), CliError> {
        if let Some(bar) = &lock(&self.inner).bar {
            bar.finish_and_clear();
        }
        if self.is_stopped() { Err(CliError::Interrupted) } else { Ok(()) }
    }
}

/// A panic elsewhere must not take the display down.
fn lock(inner: &Mutex<Inner>) -> std::sync::MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(inner: &Mutex<Inner>, line: &str) {
    match &lock(inner).bar {
        Some(bar) => bar.println(line),
        None => output::note(line),
    }
}

impl Watch for Display {
    fn say(&self, line: &str) {
        say(&self.inner, line);
    }

    fn progress(&self, done: usize, total: usize, doing: &str) {
        let mut inner = lock(&self.inner);
        if let Some(bar) = &inner.bar {
            bar.set_length(total as u64);
            bar.set_position(done.min(total) as u64);
            bar.set_message(doing.to_owned());
        } else if inner.last.is_none_or(|last| last.elapsed() >= QUIET) {
            inner.last = Some(Instant::now());
            output::note(format!("{done} of {total}  {doing}").trim_end());
        }
    }

    fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
