//! Shows how a run goes: live on a terminal, in sober lines elsewhere. All of it on standard error.

mod lines;
mod state;
#[cfg(test)]
pub mod testing;

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use patchwright_train::events::{Observer, RunEvent, Speaker};
use state::RunState;

/// Least time between two status lines where there is no terminal.
const QUIET: Duration = Duration::from_secs(5);
/// How often the live display is drawn anew at most.
const REFRESH: Duration = Duration::from_millis(100);

/// Watches a run for people.
pub struct Progress {
    started: Instant,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    state: RunState,
    show: Show,
    last_status: Option<Duration>,
}

/// Where progress goes.
enum Show {
    /// A bar that is drawn over and over, with lasting lines above it.
    Live(ProgressBar),
    /// Lines only.
    Lines(Box<dyn FnMut(&str) + Send>),
}

impl Progress {
    /// Live when standard error is a terminal, else lines.
    pub fn to_stderr() -> Self {
        let show = if std::io::stderr().is_terminal() {
            Show::Live(bar())
        } else {
            Show::Lines(Box::new(|line| anstream::eprintln!("{line}")))
        };
        Self::new(show)
    }

    fn new(show: Show) -> Self {
        let inner = Inner { state: RunState::default(), show, last_status: None };
        Self { started: Instant::now(), inner: Arc::new(Mutex::new(inner)) }
    }

    /// A panic elsewhere must not take the display down.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something above the live display.
    pub fn say(&self, line: &str) {
        self.lock().say(line);
    }

    /// Whether a run has begun, so that there is something to go on with.
    pub fn has_run(&self) -> bool {
        self.lock().state.has_run
    }

    /// Takes the live display away; what lasts stays.
    pub fn finish(&self) {
        if let Show::Live(bar) = &self.lock().show {
            bar.finish_and_clear();
        }
    }

    /// An event that happened `now` after the start.
    fn event_at(&self, event: &RunEvent, now: Duration) {
        let mut inner = self.lock();
        inner.state.apply(event, now);
        for line in lines::lasting(event) {
            inner.say(&line);
        }
        inner.show_status(event, now);
    }
}

impl Observer for Progress {
    fn event(&self, event: &RunEvent) {
        self.event_at(event, self.started.elapsed());
    }

    fn speaker(&self) -> Speaker {
        let inner = Arc::clone(&self.inner);
        Arc::new(move |line| inner.lock().unwrap_or_else(PoisonError::into_inner).say(line))
    }
}

impl Inner {
    fn say(&mut self, line: &str) {
        match &mut self.show {
            Show::Live(bar) => bar.suspend(|| anstream::eprintln!("{line}")),
            Show::Lines(print) => print(line),
        }
    }

    fn show_status(&mut self, event: &RunEvent, now: Duration) {
        let Some(current) = &self.state.current else {
            if let Show::Live(bar) = &self.show {
                bar.set_style(style(false));
                bar.set_message("preparing");
            }
            return;
        };
        let preparing = current.batch.num_rollouts == 0 && current.work.is_none();
        let wait = match &self.show {
            Show::Live(_) => REFRESH,
            Show::Lines(_) => QUIET,
        };
        let due = self.last_status.is_none_or(|last| now.saturating_sub(last) >= wait);
        let begins = matches!(event, RunEvent::StageStarted { .. });
        let place = lines::place(current);
        match &mut self.show {
            Show::Live(bar) if due || begins => {
                bar.set_style(style(true));
                let (done, of) = match &current.work {
                    Some(work) => (work.num_done, work.num_wanted),
                    None => (current.batch.num_finished, current.batch.num_rollouts),
                };
                bar.set_length(of.max(1) as u64);
                bar.set_position(done as u64);
                bar.set_prefix(place);
                let left = lines::time_left(&self.state, now).unwrap_or_default();
                bar.set_message(format!("{left}\n  {}", lines::status(current)));
            }
            Show::Lines(print) if due && !preparing => {
                let left = lines::time_left(&self.state, now);
                let left = left.map(|left| format!(", {left}")).unwrap_or_default();
                print(&format!("{place:<10} {}{left}", lines::status(current)));
            }
            Show::Live(_) | Show::Lines(_) => return,
        }
        self.last_status = Some(now);
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
    bar.set_style(style(false));
    bar.set_message("preparing");
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// How the live display looks: with a bar during a stage.
fn style(with_bar: bool) -> ProgressStyle {
    let colored = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let template = match (with_bar, colored) {
        (true, true) => "{spinner:.green} {prefix:.bold} {bar:24.green/dim} {msg}",
        (true, false) => "{spinner} {prefix} {bar:24} {msg}",
        (false, true) => "{spinner:.green} {msg}",
        (false, false) => "{spinner} {msg}",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use patchwright_train::events::{RunEvent, StageKind};

    use super::testing::{evaluation, finished, iteration, plan};
    use super::{Progress, Show};

    /// What a log of a run looks like: one status line in five seconds, one line an iteration.
    #[test]
    fn lines_without_a_terminal() {
        let log = Arc::new(Mutex::new(Vec::<String>::new()));
        let sink = Arc::clone(&log);
        let show = Show::Lines(Box::new(move |line| sink.lock().unwrap().push(line.to_owned())));
        let progress = Progress::new(show);
        let stages = vec![
            plan("eval-base", StageKind::Evaluation, 40, 1),
            plan("rl-1", StageKind::Rl, 60, 2),
        ];
        let at = Duration::from_millis;
        let (dir, recipe) = ("runs/x-0".into(), "x".to_owned());
        progress.event_at(
            &RunEvent::RunStarted { dir, recipe, seed: 0, stages: stages.clone() },
            at(0),
        );
        let mut now = 0;
        for stage in &stages {
            let plan = stage.clone();
            progress.event_at(&RunEvent::StageStarted { plan, first_iteration: 0 }, at(now));
            for i in 0..stage.num_iterations {
                let num_rollouts = stage.num_rollouts / stage.num_iterations;
                let stage_name = stage.name.clone();
                progress.event_at(
                    &RunEvent::RolloutsStarted { stage: stage_name, iteration: i, num_rollouts },
                    at(now),
                );
                for n in 0..num_rollouts {
                    now += 300;
                    let solved = if n == 3 { None } else { Some(n % 4 == 0) };
                    progress.event_at(&finished(&stage.name, i, solved), at(now));
                }
                if stage.kind == StageKind::Rl {
                    progress.event_at(
                        &RunEvent::OptimizerStep {
                            stage: stage.name.clone(),
                            iteration: i,
                            step: 0,
                            num_steps: 2,
                            num_tokens: 1000,
                        },
                        at(now),
                    );
                    progress.event_at(&RunEvent::IterationFinished(iteration("rl-1", i)), at(now));
                } else {
                    let result = evaluation("base", "held-out", 0.061);
                    progress.event_at(&RunEvent::EvaluationFinished(result), at(now));
                }
            }
            let (stage, wall_seconds) = (stage.name.clone(), 12.0);
            progress.event_at(&RunEvent::StageFinished { stage, wall_seconds }, at(now));
        }
        progress.event_at(&RunEvent::RunFinished { wall_seconds: 30.0 }, at(now));
        insta::assert_snapshot!(log.lock().unwrap().join("\n"));
    }
}
