//! What a grade costs, and what its layers add.
//!
//! ```text
//! patchwright tasks generate --num 40 --out tasks.jsonl
//! cargo run --release -p patchwright-agent --example grading -- tasks.jsonl
//! ```
//!
//! Grades of the gold patch and of a patch that solves nothing, two at a time, in turns with
//! different layers so that a busy machine weighs on all alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use patchwright_agent::grade::Defences;
use patchwright_agent::{Grader, GraderOptions};
use patchwright_core::{
    RepoSource, Sandbox, SandboxError, SandboxProvider, SandboxSpec, TaskInstance,
};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};

const ROUNDS: usize = 4;
const NOTHING: &str = "--- /dev/null\n+++ b/notes.txt\n@@ -0,0 +1 @@\n+x\n";

/// Counts the sandboxes that it makes.
struct Counting(NativeSandboxes, AtomicUsize);

impl SandboxProvider for Counting {
    fn create(&self, spec: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.create(spec)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: grading TASKS.jsonl")?;
    let tasks: Vec<TaskInstance> = std::fs::read_to_string(path)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let sandboxes = NativeSandboxes::new(NativeOptions::default())?;
    let provider = Arc::new(Counting(sandboxes, AtomicUsize::new(0)));
    let layers = [
        ("one process", Defences { supervisor: false, twins: false, ..Defences::default() }),
        ("supervisor", Defences { twins: false, ..Defences::default() }),
        ("all", Defences::default()),
    ];
    let graders = layers.map(|(name, defences)| {
        let grader = Grader::new(provider.clone(), GraderOptions::default());
        (name, grader.with_defences(defences))
    });
    let mut seconds = [[Duration::ZERO; 2]; 3];
    let mut num_sandboxes = 0;
    for round in 0..=ROUNDS {
        for (which, (_, grader)) in graders.iter().enumerate() {
            for (solved, seconds) in [false, true].into_iter().zip(&mut seconds[which]) {
                provider.1.store(0, Ordering::Relaxed);
                let took = grade_all(grader, &tasks, solved);
                // In the end: of the last layers, solved.
                num_sandboxes = provider.1.load(Ordering::Relaxed);
                // The first round warms up.
                *seconds += if round == 0 { Duration::ZERO } else { took };
            }
        }
    }
    let num_grades = (tasks.len() * ROUNDS) as f64;
    for ((name, _), [unsolved, solved]) in graders.iter().zip(seconds) {
        let ms = |took: Duration| took.as_secs_f64() * 1e3 / num_grades;
        println!(
            "{name:12} unsolved {:6.2} ms, solved {:6.2} ms a grade",
            ms(unsolved),
            ms(solved)
        );
    }
    println!("{num_sandboxes} sandboxes for the last {} solved grades", tasks.len());
    Ok(())
}

fn grade_all(grader: &Grader, tasks: &[TaskInstance], solved: bool) -> Duration {
    let start = Instant::now();
    let (first, second) = tasks.split_at(tasks.len() / 2);
    std::thread::scope(|scope| {
        for half in [first, second] {
            scope.spawn(move || {
                for task in half {
                    let repo = RepoSource::Files(Arc::new(task.files.clone()));
                    let patch = if solved { &task.patch } else { NOTHING };
                    let grade = grader.grade(task, &repo, patch).expect("a grade");
                    assert_eq!(grade.solved, solved, "{}: {grade:?}", task.instance_id);
                }
            });
        }
    });
    start.elapsed()
}
