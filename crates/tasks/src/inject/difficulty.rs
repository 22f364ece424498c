//! An estimate of how hard a task with injected bugs is, from what is known without a model.
//!
//! `score = 0.15 files + 0.15 hunks + 0.20 signal + 0.30 locality + 0.20 distance`, each part and
//! the score between 0 (easy) and 1:
//! - `files = 1 - 1 / F` and `hunks = 1 - 1 / H` of the gold patch's files and hunks;
//! - `signal = 1 / sqrt(T)` of the failing tests: few of them say little about where the bug is;
//! - `locality`: of the failures that were shown, the mean of 0 when the traceback names a line of
//!   the bug (within three lines), 0.5 when it names its file, and 1 when it names neither;
//! - `distance = min(1, log10(L) / 4)` of the lines that the failing test that runs the fewest of
//!   them runs: how much there is to look at.
//!
//! The weights are a guess, made to spread real packages over the range; the parts are in the row,
//! so that they can be fitted to a model's solve rates.

use serde::{Deserialize, Serialize};

/// What the estimate is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Difficulty {
    /// The estimate, 0 (easy) to 1.
    pub score: f64,
    /// Files of the gold patch.
    pub num_files: usize,
    /// Its hunks.
    pub num_hunks: usize,
    /// Tests that fail.
    pub num_failing: usize,
    /// Mean locality of the shown failures.
    pub locality: f64,
    /// Lines of the package that the narrowest failing test runs.
    pub num_lines: usize,
}

/// A place of a bug: path from the repository's root, and line from 1.
pub type Place<'a> = (&'a str, usize);

/// Estimates the difficulty. `failures` are the traceback places (`path:line`) of each failure.
pub fn estimate(
    bugs: &[Place<'_>],
    num_files: usize,
    num_failing: usize,
    failures: &[Vec<String>],
    num_lines: usize,
) -> Difficulty {
    let localities: Vec<f64> = failures.iter().map(|places| locality(bugs, places)).collect();
    let locality = if localities.is_empty() {
        1.0
    } else {
        localities.iter().sum::<f64>() / localities.len() as f64
    };
    let num_hunks = bugs.len().max(1);
    let num_files = num_files.max(1);
    let score = 0.15 * (1.0 - 1.0 / num_files as f64)
        + 0.15 * (1.0 - 1.0 / num_hunks as f64)
        + 0.20 / (num_failing.max(1) as f64).sqrt()
        + 0.30 * locality
        + 0.20 * ((num_lines.max(1) as f64).log10() / 4.0).min(1.0);
    let rounded = |x: f64| (x * 1000.0).round() / 1000.0;
    let (score, locality) = (rounded(score), rounded(locality));
    Difficulty { score, num_files, num_hunks, num_failing, locality, num_lines }
}

fn locality(bugs: &[Place<'_>], places: &[String]) -> f64 {
    let mut best: f64 = 1.0;
    for place in places {
        let Some((path, line)) = place.rsplit_once(':') else { continue };
        let Ok(line) = line.parse::<usize>() else { continue };
        for (bug, at) in bugs {
            if path == *bug || path.ends_with(&format!("/{bug}")) {
                best = best.min(if line.abs_diff(*at) <= 3 { 0.0 } else { 0.5 });
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::estimate;

    #[test]
    fn harder_is_higher() {
        let names = |place: &str| vec![vec!["t.py:3".to_owned(), place.to_owned()]];
        let easy = estimate(&[("p/a.py", 10)], 1, 40, &names("/testbed/p/a.py:12"), 10);
        assert_eq!((easy.locality, easy.num_hunks), (0.0, 1));
        let file = estimate(&[("p/a.py", 10)], 1, 40, &names("p/a.py:90"), 10);
        let neither = estimate(&[("p/a.py", 10)], 1, 40, &names("p/b.py:10"), 10);
        let few = estimate(&[("p/a.py", 10)], 1, 1, &names("p/b.py:10"), 10);
        let far = estimate(&[("p/a.py", 10)], 1, 1, &names("p/b.py:10"), 1_000);
        let two = estimate(&[("p/a.py", 10), ("p/b.py", 90)], 2, 1, &names("p/c.py:1"), 10_000);
        let scores = [&easy, &file, &neither, &few, &far, &two].map(|d| d.score);
        assert!(scores.windows(2).all(|pair| pair[0] < pair[1]), "{scores:?}");
        assert!(two.score <= 1.0 && easy.score >= 0.0);
    }
}
