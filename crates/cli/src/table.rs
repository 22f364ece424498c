//! Tables on standard output.

use comfy_table::{CellAlignment, Table, presets};
use patchwright_train::metrics::EvaluationResult;

use crate::numbers::{mean_sem, percent_fine};

/// A plain table: columns of text to the left, numbers to the right, two spaces between.
pub fn table(
    header: &[&str],
    right: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The table that a run ends with: each policy on each set, sets one after the other.
pub fn evaluations(results: &[EvaluationResult]) -> String {
    let mut sets: Vec<&str> = Vec::new();
    for result in results {
        if !sets.contains(&result.task_set.as_str()) {
            sets.push(&result.task_set);
        }
    }
    let rows = sets.iter().flat_map(|set| results.iter().filter(|r| r.task_set == **set)).map(row);
    let k = match results.first().map(|r| r.pass_k) {
        // Pass@1 has a column already.
        Some(1) if results.iter().all(|r| r.pass_k == 1) => None,
        Some(k) if results.iter().all(|r| r.pass_k == k) => Some(format!("Pass@{k}")),
        _ => Some("Pass@k".to_owned()),
    };
    let mut header = vec!["Task set", "Policy", "Pass@1", "Turns", "Tasks", "Runs"];
    let mut right = vec![2, 3, 4, 5];
    if let Some(k) = &k {
        header.insert(3, k);
        right.push(6);
    }
    let rows = rows.map(|mut row| {
        if k.is_none() {
            row.remove(3);
        }
        row
    });
    table(&header, &right, rows)
}

fn row(e: &EvaluationResult) -> Vec<String> {
    // One run has no standard error: absent is not zero.
    let pass_at_1 =
        if e.num_runs > 1 { mean_sem(e.pass_at_1) } else { percent_fine(e.pass_at_1.mean) };
    vec![
        e.task_set.clone(),
        e.policy.clone(),
        pass_at_1,
        percent_fine(e.pass_at_10),
        format!("{:.1}", e.mean_turns),
        e.num_tasks.to_string(),
        e.num_runs.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use crate::progress::testing::evaluation;

    /// Of one run nothing is known but Pass@1.
    #[test]
    fn one_run_has_one_column() {
        let mut result = evaluation("base", "held-out", 0.1);
        (result.num_runs, result.pass_k) = (1, 1);
        let text = super::evaluations(&[result]);
        assert_eq!(text.matches("Pass@").count(), 1, "{text}");
        assert!(!text.contains('±'), "{text}");
    }

    #[test]
    fn evaluations_are_grouped_by_set() {
        let results: Vec<_> = ["base", "rft", "rl-1", "rl-2"]
            .iter()
            .zip([0.061, 0.104, 0.27, 0.352])
            .flat_map(|(policy, mean)| {
                [evaluation(policy, "held-out", mean), evaluation(policy, "transfer", mean / 4.0)]
            })
            .collect();
        insta::assert_snapshot!(super::evaluations(&results));
    }
}
