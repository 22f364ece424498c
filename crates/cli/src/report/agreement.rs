//! How far sampler and trainer were apart, stage by stage.

use patchwright_train::metrics::IterationMetrics;

use super::run::Run;
use crate::numbers::{count, percent_fine};

/// A stage's row.
#[derive(Debug, PartialEq, Eq)]
pub struct AgreementRow {
    pub stage: String,
    pub tokens: String,
    pub abs_mean: String,
    pub mean: String,
    pub kl: String,
    pub outside: String,
    pub max: String,
}

/// A row for each stage in which tokens were compared.
pub fn rows(run: &Run) -> Vec<AgreementRow> {
    let stages = run.stages.iter().map(|stage| &stage.name);
    stages
        .filter_map(|stage| {
            let of_stage: Vec<&IterationMetrics> =
                run.iterations.iter().filter(|m| m.stage == *stage).collect();
            AgreementRow::new(stage, &of_stage)
        })
        .collect()
}

impl AgreementRow {
    /// Means over all tokens of the iterations; none where no token was compared.
    fn new(stage: &str, iterations: &[&IterationMetrics]) -> Option<Self> {
        let num_tokens: usize = iterations.iter().map(|m| m.agreement.num_tokens).sum();
        let mean = |value: fn(&IterationMetrics) -> f64| {
            let sum: f64 =
                iterations.iter().map(|m| value(m) * m.agreement.num_tokens as f64).sum();
            sum / num_tokens as f64
        };
        let max = iterations.iter().map(|m| m.logprob_difference_max).fold(0.0, f32::max);
        (num_tokens > 0).then(|| Self {
            stage: stage.to_owned(),
            tokens: count(num_tokens as f64),
            abs_mean: small(mean(|m| m.agreement.difference_abs_mean)),
            mean: small(mean(|m| m.agreement.difference_mean)),
            kl: small(mean(|m| m.agreement.kl)),
            outside: percent_fine(mean(|m| m.agreement.fraction_outside)),
            max: small(f64::from(max)),
        })
    }
}

/// `0`, `3.1e-6`.
fn small(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") }
}

#[cfg(test)]
mod tests {
    use patchwright_train::agreement::Agreement;

    use super::*;

    #[test]
    fn means_are_over_tokens_and_the_largest_over_iterations() {
        let iteration = |num_tokens, difference_abs_mean, logprob_difference_max| {
            let agreement = Agreement { num_tokens, difference_abs_mean, ..Agreement::default() };
            IterationMetrics { logprob_difference_max, agreement, ..IterationMetrics::default() }
        };
        let (few, many) = (iteration(10, 4e-6, 0.5), iteration(30, 0.0, 0.25));
        let row = AgreementRow::new("rl-1", &[&few, &many]).unwrap();
        assert_eq!((&row.tokens[..], &row.abs_mean[..]), ("40", "1.0e-6"));
        assert_eq!((&row.max[..], &row.kl[..], &row.outside[..]), ("5.0e-1", "0", "0.0 %"));
        assert_eq!(AgreementRow::new("rl-1", &[&iteration(0, 1.0, 1.0)]), None);
    }
}
