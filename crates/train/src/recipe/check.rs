//! Refuses recipes that contradict themselves or that this program cannot honour.

use super::{Recipe, RecipeError, RlStageRecipe, TaskSetRecipe, TaskSource};

/// MiB that a sandbox keeps of its memory for its own processes, beside what is written to its
/// disk (which is held in memory too).
const SANDBOX_BESIDE_DISK_MIB: u64 = patchwright_sandbox::BESIDE_DISK >> 20;

impl Recipe {
    /// Checks ranges and combinations. [`Recipe::load`] has done it already.
    ///
    /// # Errors
    /// [`RecipeError::Refused`] with the key and what to do.
    pub fn check(&self) -> Result<(), RecipeError> {
        let check = Check { name: &self.run.name };
        check.that(
            !self.run.name.is_empty() && !self.run.name.contains(['/', '\0']),
            "run.name",
            "must be a file name",
        )?;
        self.check_engines(&check)?;
        self.check_tasks(&check)?;
        self.check_agent_and_eval(&check)?;
        self.check_rft(&check)?;
        for (index, stage) in self.rl.iter().enumerate() {
            self.check_stage(&check, index, stage)?;
        }
        self.check_bounds(&check)
    }

    fn check_tasks(&self, check: &Check) -> Result<(), RecipeError> {
        let sets: [(&str, &TaskSetRecipe); 3] = [
            ("train", &self.tasks.train),
            ("held-out", &self.tasks.held_out),
            ("transfer", &self.tasks.transfer),
        ];
        for (name, set) in sets {
            let key = |field: &str| format!("tasks.{name}.{field}");
            check.that(
                (set.source == TaskSource::File) != set.path.is_empty(),
                &key("path"),
                "is needed for source = \"file\", and only for it",
            )?;
            check.that(
                set.source != TaskSource::Generated || set.num_instances > 0,
                &key("num_instances"),
                "must be above 0 for source = \"generated\"",
            )?;
            check.positive(set.instances_per_repo, &key("instances_per_repo"))?;
        }
        check.that(
            self.tasks.keep_away.iter().all(|path| !path.trim().is_empty()),
            "tasks.keep_away",
            "must list files or directories",
        )?;
        check.that(
            (0.0..=0.5).contains(&self.tasks.impossible_share),
            "tasks.impossible_share",
            "must be between 0 and 0.5",
        )?;
        if let Err(reason) = self.filter.check() {
            let (key, reason) = reason.split_once(": ").unwrap_or(("", &reason));
            return check.that(false, &format!("filter.{key}"), reason);
        }
        check.that(
            !self.trains() || self.tasks.train.source != TaskSource::None,
            "tasks.train.source",
            "training needs a train set",
        )
    }

    fn check_agent_and_eval(&self, check: &Check) -> Result<(), RecipeError> {
        check.that(
            (self.agent.temperature - 1.0).abs() < f32::EPSILON,
            "agent.temperature",
            "training assumes samples of the full distribution: only 1.0 is allowed \
             (eval.temperature is free)",
        )?;
        check.that(!self.agent.profile.is_empty(), "agent.profile", "must not be empty")?;
        check.positive(self.agent.max_tokens_per_turn, "agent.max_tokens_per_turn")?;
        check.positive(self.agent.max_format_errors, "agent.max_format_errors")?;
        check.that(
            self.agent.command_timeout_seconds > 0,
            "agent.command_timeout_seconds",
            "must be above 0",
        )?;
        check.positive(self.eval.num_runs, "eval.num_runs")?;
        check.positive(self.eval.num_runs_transfer, "eval.num_runs_transfer")?;
        check.that(
            (1..=self.eval.num_runs.min(self.eval.num_runs_transfer)).contains(&self.eval.pass_k),
            "eval.pass_k",
            "must be between 1 and the number of runs of every set",
        )?;
        check.positive(self.eval.max_turns, "eval.max_turns")?;
        check.positive(self.eval.context_tokens, "eval.context_tokens")?;
        check.that(
            self.eval.temperature.is_finite() && self.eval.temperature >= 0.0,
            "eval.temperature",
            "must be 0 or above",
        )
    }

    fn check_rft(&self, check: &Check) -> Result<(), RecipeError> {
        let rft = &self.rft;
        check.positive(rft.rollouts_per_task, "rft.rollouts_per_task")?;
        check.positive(rft.max_turns, "rft.max_turns")?;
        check.positive(rft.context_tokens, "rft.context_tokens")?;
        check.positive(rft.epochs, "rft.epochs")?;
        check.positive(rft.batch_size, "rft.batch_size")?;
        check.adam(
            "rft",
            rft.lr,
            rft.weight_decay,
            rft.beta1,
            rft.beta2,
            rft.adam_eps,
            rft.grad_clip,
        )
    }

    fn check_stage(
        &self,
        check: &Check,
        index: usize,
        stage: &RlStageRecipe,
    ) -> Result<(), RecipeError> {
        let key = |field: &str| format!("rl.{index}.{field}");
        let taken = ["base", "rft"].contains(&stage.name.as_str())
            || self.rl[..index].iter().any(|earlier| earlier.name == stage.name);
        let plain = stage.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        check.that(
            plain && !stage.name.is_empty() && !taken,
            &key("name"),
            "must be letters, digits and dashes, and no other stage's",
        )?;
        check.positive(stage.iterations, &key("iterations"))?;
        check.positive(stage.problems_per_iteration, &key("problems_per_iteration"))?;
        check.that(
            stage.group_size >= 2,
            &key("group_size"),
            "must be at least 2: an advantage compares siblings",
        )?;
        check.positive(stage.max_turns, &key("max_turns"))?;
        check.that(
            stage.length_threshold <= stage.max_turns,
            &key("length_threshold"),
            "must not be above max_turns (equal turns the penalty off)",
        )?;
        check.positive(stage.context_tokens, &key("context_tokens"))?;
        for (field, value) in [
            ("format_error_penalty", stage.format_error_penalty),
            ("no_submission_penalty", stage.no_submission_penalty),
        ] {
            check.that(value.is_finite() && value >= 0.0, &key(field), "must be 0 or above")?;
        }
        check.that(
            stage.advantage_delta.is_finite() && stage.advantage_delta > 0.0,
            &key("advantage_delta"),
            "must be above 0",
        )?;
        check_stage_training(check, index, stage)
    }

    fn check_bounds(&self, check: &Check) -> Result<(), RecipeError> {
        let bounds = &self.sandbox;
        check.that(bounds.memory_mib > 0, "sandbox.memory_mib", "must be above 0")?;
        check.that(bounds.num_processes > 0, "sandbox.num_processes", "must be above 0")?;
        check.that(bounds.cpu_seconds > 0, "sandbox.cpu_seconds", "must be above 0")?;
        check.positive(bounds.output_kib, "sandbox.output_kib")?;
        check.that(bounds.disk_mib > 0, "sandbox.disk_mib", "must be above 0")?;
        check.that(
            bounds.disk_mib.saturating_add(SANDBOX_BESIDE_DISK_MIB) <= bounds.memory_mib,
            "sandbox.disk_mib",
            &format!(
                "must be at least {SANDBOX_BESIDE_DISK_MIB} below sandbox.memory_mib ({}): what is \
                 written is held in memory; lower it, or raise sandbox.memory_mib",
                bounds.memory_mib
            ),
        )?;
        let infra = &self.infrastructure;
        check.that(
            (1..=4096).contains(&infra.num_workers),
            "infrastructure.num_workers",
            "must be between 1 and 4096",
        )?;
        check.that(
            infra.grade_timeout_seconds > 0,
            "infrastructure.grade_timeout_seconds",
            "must be above 0",
        )?;
        check.that(infra.num_retries <= 10, "infrastructure.num_retries", "must be at most 10")?;
        check.that(
            (0.0..=1.0).contains(&infra.max_failed_fraction),
            "infrastructure.max_failed_fraction",
            "must be between 0 and 1",
        )?;
        check.that(
            infra.max_logprob_difference > 0.0 && infra.max_logprob_difference.is_finite(),
            "infrastructure.max_logprob_difference",
            "must be above 0",
        )?;
        check.positive(infra.checkpoint_every, "infrastructure.checkpoint_every")
    }
}

/// The part of a stage that is about learning, pool and staleness.
fn check_stage_training(
    check: &Check,
    index: usize,
    stage: &RlStageRecipe,
) -> Result<(), RecipeError> {
    let key = |field: &str| format!("rl.{index}.{field}");
    check.that((0.0..1.0).contains(&stage.clip_low), &key("clip_low"), "must be in [0, 1)")?;
    check.that(
        stage.clip_high.is_finite() && stage.clip_high >= 0.0,
        &key("clip_high"),
        "must be 0 or above",
    )?;
    check.positive(stage.batch_size, &key("batch_size"))?;
    check.positive(stage.epochs, &key("epochs"))?;
    check.that(
        (1..=stage.max_optimizer_steps).contains(&stage.min_optimizer_steps),
        &key("min_optimizer_steps"),
        "must be between 1 and max_optimizer_steps",
    )?;
    check.that(
        (0.0..=1.0).contains(&stage.pool_max_success_rate),
        &key("pool_max_success_rate"),
        "must be between 0 and 1",
    )?;
    check.that(
        stage.max_staleness < stage.iterations,
        &key("max_staleness"),
        "must be below iterations",
    )?;
    check.that(
        stage.max_staleness == 0 || stage.num_resample_rounds == 0,
        &key("num_resample_rounds"),
        "can only be used with max_staleness = 0",
    )?;
    check.adam(
        &format!("rl.{index}"),
        stage.lr,
        stage.weight_decay,
        stage.beta1,
        stage.beta2,
        stage.adam_eps,
        stage.grad_clip,
    )
}

/// The recipe's name, for errors.
pub(super) struct Check<'a> {
    name: &'a str,
}

impl Check<'_> {
    pub(super) fn that(&self, holds: bool, key: &str, reason: &str) -> Result<(), RecipeError> {
        if holds {
            return Ok(());
        }
        Err(RecipeError::Refused {
            name: self.name.to_owned(),
            key: key.to_owned(),
            reason: reason.to_owned(),
        })
    }

    pub(super) fn positive(&self, value: usize, key: &str) -> Result<(), RecipeError> {
        self.that(value > 0, key, "must be above 0")
    }

    pub(super) fn url(&self, key: &str, url: &str) -> Result<(), RecipeError> {
        let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        self.that(
            host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace)),
            key,
            &format!("{url:?} is no base URL: write http://HOST:PORT or https://HOST"),
        )
    }

    #[expect(clippy::too_many_arguments, reason = "the hyperparameters of one optimizer")]
    fn adam(
        &self,
        section: &str,
        lr: f32,
        weight_decay: f32,
        beta1: f32,
        beta2: f32,
        eps: f32,
        grad_clip: f32,
    ) -> Result<(), RecipeError> {
        let key = |field: &str| format!("{section}.{field}");
        self.that(lr.is_finite() && lr > 0.0, &key("lr"), "must be above 0")?;
        let decays = weight_decay.is_finite() && weight_decay >= 0.0;
        self.that(decays, &key("weight_decay"), "must be 0 or above")?;
        self.that((0.0..1.0).contains(&beta1), &key("beta1"), "must be in [0, 1)")?;
        self.that((0.0..1.0).contains(&beta2), &key("beta2"), "must be in [0, 1)")?;
        self.that(eps.is_finite() && eps > 0.0, &key("adam_eps"), "must be above 0")?;
        let clips = grad_clip.is_finite() && grad_clip >= 0.0;
        self.that(clips, &key("grad_clip"), "must be 0 or above")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recipe;

    /// Each of these is refused, and the error names the key.
    #[test]
    fn contradictions_are_refused() {
        for text in [
            "agent.temperature=0.7",
            "run.name=\"a/b\"",
            "tasks.train.path=\"x\"",
            "tasks.train.source=\"file\"",
            "tasks.train.source=\"none\"",
            "eval.pass_k=11",
            "rl.0.group_size=1",
            "rl.0.length_threshold=1000",
            "rl.0.clip_low=1.0",
            "rl.0.lr=0.0",
            "rl.1.name=\"rl-1\"",
            "rl.0.min_optimizer_steps=100",
            "rl.0.max_staleness=1000",
            "rft.batch_size=0",
            "rft.beta2=1.0",
            "infrastructure.num_workers=0",
            "infrastructure.max_failed_fraction=1.5",
            "sandbox.memory_mib=0",
            "sandbox.memory_mib=47",
            "sandbox.disk_mib=481",
        ] {
            let error = Recipe::load("embedded", &[text.to_owned()]).expect_err(text).to_string();
            let section = text.split('.').next().unwrap();
            assert!(error.contains(section), "{text}: {error}");
        }
    }

    /// A sandbox's disk is part of its memory, to the last MiB.
    #[test]
    fn a_disk_must_fit_into_the_memory() {
        let sets = |memory: u64, disk: u64| {
            [format!("sandbox.memory_mib={memory}"), format!("sandbox.disk_mib={disk}")]
        };
        Recipe::load("embedded", &sets(96, 64)).unwrap();
        let error = Recipe::load("embedded", &sets(95, 64)).unwrap_err().to_string();
        for part in ["sandbox.disk_mib", "32 below sandbox.memory_mib (95)"] {
            assert!(error.contains(part), "{error}");
        }
    }

    /// The numbers of the reference, section by section of the paper (arXiv 2508.03501).
    #[test]
    fn the_reference_recipe_has_the_references_numbers() {
        let recipe = Recipe::load("swe-rebench", &[]).unwrap();
        let rft = &recipe.rft;
        assert_eq!((rft.rollouts_per_task, rft.epochs, rft.batch_size), (10, 1, 64));
        assert_eq!((rft.context_tokens, rft.warmup_steps), (65_536, 10));
        assert_eq!((rft.lr, rft.weight_decay), (5e-6, 0.1));
        assert!(rft.one_shot_demonstration && rft.mask_format_errors);
        let stages: Vec<_> = recipe
            .rl
            .iter()
            .map(|s| (s.context_tokens, s.max_turns, s.length_threshold, s.problems_per_iteration))
            .collect();
        assert_eq!(stages, [(65_536, 40, 10, 300), (131_072, 80, 10, 100)]);
        let losses: Vec<_> =
            recipe.rl.iter().map(|s| (s.batch_size, s.clip_low, s.clip_high)).collect();
        assert_eq!(losses, [(128, 0.2, 0.3), (256, 0.2, 0.26)]);
        for stage in &recipe.rl {
            assert_eq!((stage.group_size, stage.epochs), (10, 1));
            assert_eq!((stage.lr, stage.weight_decay, stage.grad_clip), (1e-6, 0.1, 1.0));
            assert_eq!((stage.beta1, stage.beta2, stage.adam_eps), (0.9, 0.999, 1e-8));
            assert_eq!((stage.min_optimizer_steps, stage.max_optimizer_steps), (2, 8));
            assert_eq!(stage.length_penalty_on, super::super::PenaltyOn::All);
        }
        assert!(!recipe.rl[0].refresh_pool && recipe.rl[1].refresh_pool);
        assert!((recipe.rl[1].pool_max_success_rate - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(recipe.eval.num_runs, 10);
    }
}
