//! `patchwright gateway`: episodes for agents that run anywhere. The desk of the gateway gives away
//! the runs of a task set, one episode each, grades what comes back, and keeps every rollout.
//!
//! ```text
//!  runs ──► lease ──► open ──► submit, or time is up ──► grade ──► rollouts.jsonl.zst
//!   ▲                                                      │
//!   ╰── once or as told, after a failure of the infrastructure (the agent's own is one)
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use patchwright_core::{FailureClass, PolicyVersion, Rollout, derive_seed};
use patchwright_serve::ModelText;
use patchwright_serve::gateway::{
    DeskError, Episode, EpisodeLimits, EpisodeReport, EpisodeStatus, Gateway, Lease, LeaseRequest,
    MODEL,
};
use sha2::{Digest, Sha256};

use crate::agent_environment::AgentEnvironment;
use crate::environment::{RolloutSpec, Task};
use crate::episodes::{End, Episodes, told};
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RolloutFinished, RunEvent};
use crate::images::runs_in_image;

mod archive;
mod desk;
mod store;
mod tally;

use store::Store;
pub use tally::GatewayCounts;
use tally::Tally;

/// Name of the stage in seeds and progress.
pub const STAGE: &str = "gateway";

/// Reports of finished episodes that are kept for clients that ask again.
const MAX_FINISHED: usize = 4096;

/// What a desk gives away, and its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct DeskPlan {
    /// Independent runs over the tasks.
    pub num_runs: usize,
    /// Episodes at most, retries aside; `None`: every run of every task.
    pub max_episodes: Option<usize>,
    /// Episodes that are open at once.
    pub max_open: usize,
    /// From the lease of an episode to its submission.
    pub episode_timeout: Duration,
    /// How often a run whose infrastructure or agent failed is given away again.
    pub num_retries: usize,
    /// Seed of the samples.
    pub seed: u64,
    /// The weights that serve.
    pub policy_version: PolicyVersion,
    /// Calls of an episode at most.
    pub max_turns: usize,
    /// Tokens of a prompt with its completion at most.
    pub context_tokens: usize,
    /// Sampling temperature.
    pub temperature: f32,
}

/// A run of a task, to be given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Job {
    task: usize,
    run: u32,
    num_failures: usize,
}

/// An episode that was given away.
struct Leased {
    job: Job,
    spec: RolloutSpec,
    key: [u8; 32],
    has_sandbox: bool,
    deadline: Instant,
    /// `None` while it is being graded.
    episode: Option<Episode>,
}

/// What is known of an episode that has ended.
struct Ended {
    key: [u8; 32],
    report: EpisodeReport,
}

#[derive(Default)]
struct Books {
    waiting: VecDeque<Job>,
    /// Leases that are being made.
    num_opening: usize,
    open: BTreeMap<u64, Leased>,
    ended: BTreeMap<u64, Ended>,
    tally: Tally,
    next_id: u64,
    /// Why the desk cannot go on.
    broken: Option<String>,
}

/// Gives the runs of a task set away.
pub struct TaskDesk {
    episodes: Episodes,
    tasks: Vec<Arc<Task>>,
    plan: DeskPlan,
    observer: Arc<dyn Observer>,
    cancel: CancelToken,
    books: Mutex<Books>,
    store: Mutex<Store>,
    is_closed: AtomicBool,
    next_session: AtomicU64,
}

impl TaskDesk {
    /// A desk over `tasks` whose rollouts are kept in the file `kept`; runs that have a grade there
    /// are not given away again.
    ///
    /// # Errors
    /// [`TrainError`] when the file cannot be read or written, or is of other tasks.
    pub fn open(
        inner: AgentEnvironment,
        text: Arc<ModelText>,
        gateway: Gateway,
        tasks: Vec<Arc<Task>>,
        plan: DeskPlan,
        kept: &Path,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, TrainError> {
        let by_id: HashMap<&str, usize> =
            tasks.iter().enumerate().map(|(n, t)| (t.instance.instance_id.as_str(), n)).collect();
        let mut tally = Tally::default();
        let mut foreign = None;
        let store = Store::open(kept, |rollout| match by_id.get(rollout.instance_id.as_str()) {
            Some(task) => tally.add(*task, &rollout),
            None => foreign = Some(rollout.instance_id),
        })?;
        if let Some(aside) = &store.cut_off {
            let said = format!(
                "{}: the last rollout was cut off, as by a crash; it is in {} and its run is given \
                 away again",
                kept.display(),
                aside.display()
            );
            observer.event(&RunEvent::Notice(said));
        }
        if let Some(instance_id) = foreign {
            let reason = format!("has rollouts of {instance_id}, which is not in the task set");
            return Err(TrainError::setup(kept.display().to_string(), reason));
        }
        let jobs = (0..plan.num_runs).flat_map(|run| {
            (0..tasks.len()).map(move |task| Job { task, run: run as u32, num_failures: 0 })
        });
        let most = plan.max_episodes.unwrap_or(usize::MAX);
        let waiting = jobs.take(most).filter(|job| !tally.is_graded(job.task, job.run)).collect();
        let books =
            Books { waiting, next_id: tally.num_episodes() as u64, tally, ..Books::default() };
        Ok(Self {
            episodes: Episodes { inner, text, gateway },
            tasks,
            plan,
            observer,
            cancel: CancelToken::new(),
            books: Mutex::new(books),
            store: Mutex::new(store),
            is_closed: AtomicBool::new(false),
            next_session: AtomicU64::new(1),
        })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs that are still to be given away or are in hands.
    pub fn num_left(&self) -> usize {
        let books = self.books();
        books.waiting.len() + books.num_opening + books.open.len()
    }

    /// Runs that have no grade.
    pub fn num_ungraded(&self) -> usize {
        let num_runs = self.plan.num_runs * self.tasks.len();
        let wanted = num_runs.min(self.plan.max_episodes.unwrap_or(usize::MAX));
        wanted.saturating_sub(self.books().tally.num_graded())
    }

    /// Episodes that are in hands.
    pub fn num_open(&self) -> usize {
        let books = self.books();
        books.num_opening + books.open.len()
    }

    /// Why the desk cannot go on, if it cannot: its file cannot be written.
    pub fn broken(&self) -> Option<String> {
        self.books().broken.clone()
    }

    /// Gives nothing away any more.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Ends the episodes whose time is up; call it now and then. What they left is graded where a
    /// limit of the episode had ended it, else they are failures of their agents.
    pub fn expire(&self) {
        let now = Instant::now();
        let late: Vec<u64> = {
            let books = self.books();
            let is_late = |leased: &Leased| leased.episode.is_some() && leased.deadline <= now;
            books.open.iter().filter(|(_, leased)| is_late(leased)).map(|(id, _)| *id).collect()
        };
        for id in late {
            let taken = self.books().open.get_mut(&id).and_then(|leased| leased.episode.take());
            if let Some(episode) = taken {
                let seconds = self.plan.episode_timeout.as_secs();
                let reason = format!("nothing was submitted within {seconds} s");
                // The failure to keep it is in the books.
                let _ = self.end(id, episode, End::Failed(reason));
            }
        }
    }

    /// Lets go of episodes that are still open: neither graded nor kept, they are given away again
    /// by a desk that goes on.
    pub fn abandon(&self) {
        self.close();
        self.cancel.cancel();
        let mut books = self.books();
        let open = std::mem::take(&mut books.open);
        drop(books);
        drop(open);
    }

    /// The numbers so far, as an evaluation under the name `policy`.
    pub fn result(
        &self,
        policy: &str,
        task_set: &str,
        pass_k: usize,
        wall_seconds: f64,
    ) -> (crate::metrics::EvaluationResult, GatewayCounts) {
        let books = self.books();
        let mut result = books.tally.result(self.tasks.len(), self.plan.num_runs, pass_k);
        policy.clone_into(&mut result.policy);
        task_set.clone_into(&mut result.task_set);
        // As far as the episodes reach.
        let most = self.plan.max_episodes.unwrap_or(usize::MAX);
        result.num_tasks = self.tasks.len().min(most);
        result.num_runs = self.plan.num_runs.min(most.div_ceil(self.tasks.len().max(1)));
        result.policy_version = self.plan.policy_version;
        result.wall_seconds = wall_seconds;
        (result, books.tally.counts())
    }

    fn spec(&self, job: Job) -> RolloutSpec {
        let plan = &self.plan;
        let names = [STAGE, &self.tasks[job.task].instance.instance_id, &job.run.to_string()];
        RolloutSpec {
            sibling: job.run,
            session: self.next_session.fetch_add(1, Ordering::Relaxed),
            seed: derive_seed(plan.seed, &names),
            policy_version: plan.policy_version,
            max_turns: plan.max_turns,
            context_tokens: plan.context_tokens,
            temperature: plan.temperature,
            demonstration: false,
        }
    }

    /// The next run to give away.
    fn take_job(&self) -> Result<Job, DeskError> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(DeskError::Closing);
        }
        let mut books = self.books();
        let num_open = books.open.len() + books.num_opening;
        if books.broken.is_some() || (books.waiting.is_empty() && num_open == 0) {
            return Err(DeskError::NothingLeft);
        }
        if num_open >= self.plan.max_open {
            return Err(DeskError::Busy(format!("{num_open} episodes are open")));
        }
        let waits = "all that is left is in other hands, and may come back";
        let job = books.waiting.pop_front().ok_or_else(|| DeskError::Busy(waits.to_owned()))?;
        books.num_opening += 1;
        Ok(job)
    }

    fn begin(&self, job: Job, request: LeaseRequest) -> Result<Lease, DeskError> {
        let task = &self.tasks[job.task];
        let spec = self.spec(job);
        let begun = self.episodes.begin(task, &spec, request.sandbox, &self.cancel);
        let mut books = self.books();
        books.num_opening -= 1;
        let episode = match begun {
            Ok(episode) => episode,
            Err(error) => {
                drop(books);
                let reason = error.to_string();
                let class = FailureClass::Sandbox;
                let failed = crate::environment::failed_rollout(task, &spec, class, reason.clone());
                self.keep(job, failed)?;
                return Err(DeskError::Failed(format!("sandbox: {reason}")));
            }
        };
        books.next_id += 1;
        let id = books.next_id;
        let lease = self.describe(id, task, &spec, episode.key(), request);
        let leased = Leased {
            job,
            spec,
            key: digest(episode.key()),
            has_sandbox: request.sandbox,
            deadline: Instant::now() + self.plan.episode_timeout,
            episode: Some(episode),
        };
        books.open.insert(id, leased);
        Ok(lease)
    }

    fn describe(
        &self,
        id: u64,
        task: &Task,
        spec: &RolloutSpec,
        key: &str,
        request: LeaseRequest,
    ) -> Lease {
        let agent = &self.episodes.inner.agent;
        let own = |what: &str| format!("/episodes/{id}/{what}");
        let mut paths: BTreeMap<String, String> =
            [("openai", "/v1".to_owned()), ("submit", own("submit"))]
                .map(|(name, path)| (name.to_owned(), path))
                .into();
        if !runs_in_image(&task.instance) {
            paths.insert("repository".to_owned(), own("repository"));
        }
        if request.sandbox {
            paths.insert("exec".to_owned(), "/episode/exec".to_owned());
        }
        Lease {
            id: id.to_string(),
            key: key.to_owned(),
            model: MODEL.to_owned(),
            paths,
            task: told(task),
            workdir: agent.workdir.clone(),
            limits: EpisodeLimits {
                max_turns: spec.max_turns,
                max_turn_tokens: agent.max_turn_tokens,
                context_tokens: spec.context_tokens.min(self.episodes.inner.sampler.max_context()),
                episode_seconds: self.plan.episode_timeout.as_secs_f64(),
                command_seconds: Duration::from_secs(agent.command_timeout_seconds).as_secs_f64(),
            },
        }
    }

    /// Grades what an episode left and enters it into the books. Blocks.
    fn end(&self, id: u64, episode: Episode, end: End) -> Result<EpisodeReport, DeskError> {
        let known = {
            let books = self.books();
            books.open.get(&id).map(|leased| (leased.job, leased.spec, leased.key))
        };
        let (job, spec, key) = known.ok_or(DeskError::Key)?;
        let task = &self.tasks[job.task];
        let rollout = self.episodes.conclude(task, &spec, episode.finish(), end);
        if self.cancel.is_cancelled() {
            return Err(DeskError::Failed("the gateway is stopping".to_owned()));
        }
        let report = report(id, &rollout);
        let kept = self.keep(job, rollout);
        let mut books = self.books();
        books.open.remove(&id);
        books.ended.insert(id, Ended { key, report: report.clone() });
        while books.ended.len() > MAX_FINISHED {
            books.ended.pop_first();
        }
        kept.map(|()| report)
    }

    /// Writes a rollout down, and gives its run away again if it may.
    fn keep(&self, job: Job, mut rollout: Rollout) -> Result<(), DeskError> {
        rollout.attempt = self.books().tally.num_attempts(job.task, job.run);
        let rollout = &rollout;
        let written = {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            store.append(rollout)
        };
        let mut books = self.books();
        if let Err(error) = written {
            let reason = error.to_string();
            books.broken.get_or_insert_with(|| reason.clone());
            return Err(DeskError::Failed(reason));
        }
        books.tally.add(job.task, rollout);
        if rollout.solved.is_none() && job.num_failures < self.plan.num_retries {
            books.waiting.push_back(Job { num_failures: job.num_failures + 1, ..job });
        }
        drop(books);
        let told = RolloutFinished::of(STAGE, 0, rollout);
        self.observer.event(&RunEvent::RolloutFinished(told));
        Ok(())
    }

    /// Whether a key is of an episode of this desk, or was lately.
    pub fn knows(&self, key: &str) -> bool {
        let key = digest(key);
        let books = self.books();
        books.open.values().any(|leased| leased.key == key)
            || books.ended.values().any(|ended| ended.key == key)
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn report(id: u64, rollout: &Rollout) -> EpisodeReport {
    let failure = rollout.failure.map(|class| {
        let class = serde_json::to_value(class).unwrap_or_default();
        let class = class.as_str().unwrap_or_default().to_owned();
        match &rollout.failure_detail {
            Some(detail) => format!("{class}: {detail}"),
            None => class,
        }
    });
    EpisodeReport {
        id: id.to_string(),
        status: EpisodeStatus::Finished,
        solved: rollout.solved,
        reward: rollout.solved.map(|solved| if solved { 1.0 } else { 0.0 }),
        failure,
    }
}

impl Books {
    /// An episode as it stands, for whoever has its key.
    fn report(&self, id: u64, key: &str) -> Result<EpisodeReport, DeskError> {
        let key = digest(key);
        if let Some(ended) = self.ended.get(&id).filter(|ended| ended.key == key) {
            return Ok(ended.report.clone());
        }
        let leased = self.open.get(&id).filter(|leased| leased.key == key).ok_or(DeskError::Key)?;
        let status = match leased.episode {
            Some(_) => EpisodeStatus::Open,
            None => EpisodeStatus::Grading,
        };
        let id = id.to_string();
        Ok(EpisodeReport { id, status, solved: None, reward: None, failure: None })
    }
}
