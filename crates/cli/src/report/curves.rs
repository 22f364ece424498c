//! Which charts the report has, and what each of them means.

use patchwright_train::metrics::IterationMetrics;

use super::charts::{Chart, Series, Span, Unit};
use super::run::Run;

/// A chart with its words.
pub struct Figure {
    /// The heading.
    pub title: &'static str,
    /// What is drawn.
    pub caption: &'static str,
    /// The accent-coloured and the grey line's names, where there are two.
    pub legend: Option<(&'static str, &'static str)>,
    /// The `<svg>` element.
    pub svg: String,
}

/// Pass@1 of each policy with its standard error, held-out in colour, transfer in grey.
pub fn pass_at_1(run: &Run) -> Option<Figure> {
    let mut policies: Vec<String> = Vec::new();
    for result in &run.evaluations {
        if !policies.contains(&result.policy) {
            policies.push(result.policy.clone());
        }
    }
    let series = |set: &str, shift: f64, muted: bool| {
        let of_set = run.evaluations.iter().filter(|e| e.task_set == set);
        let (points, errors) = of_set
            .filter_map(|e| {
                let x = policies.iter().position(|p| *p == e.policy)? as f64 + 1.0 + shift;
                Some(((x, e.pass_at_1.mean), e.pass_at_1.sem))
            })
            .unzip();
        Series { points, errors, muted }
    };
    let lines = vec![series("transfer", 0.05, true), series("held-out", -0.05, false)];
    let both = lines.iter().all(|line| !line.points.is_empty());
    let chart = Chart {
        label: "Pass@1 of each policy with its standard error".into(),
        series: lines,
        unit: Unit::Percent,
        categories: policies,
        size: (420.0, 250.0),
        spans: Vec::new(),
        from_zero: true,
    };
    Some(Figure {
        title: "Pass@1",
        caption: "Mean over runs; bars are ± 1 standard error of the mean.",
        legend: both.then_some(("held-out", "transfer")),
        svg: chart.svg()?,
    })
}

type Value = fn(&IterationMetrics) -> f64;

/// One line over the RL iterations, or two.
struct Plan {
    title: &'static str,
    caption: &'static str,
    unit: Unit,
    from_zero: bool,
    value: Value,
    second: Option<(Value, (&'static str, &'static str))>,
}

fn groups(m: &IterationMetrics, num: usize) -> f64 {
    if m.funnel.num_groups == 0 { f64::NAN } else { num as f64 / m.funnel.num_groups as f64 }
}

const PLANS: [Plan; 9] = [
    Plan {
        title: "Solve rate",
        caption: "Part of graded training rollouts whose hidden tests pass.",
        unit: Unit::Percent,
        from_zero: true,
        value: |m| m.solve_rate,
        second: None,
    },
    Plan {
        title: "Reward",
        caption: "Mean final reward, penalties included.",
        unit: Unit::Plain,
        from_zero: false,
        value: |m| m.reward_mean,
        second: None,
    },
    Plan {
        title: "Turns",
        caption: "Mean turns of a rollout.",
        unit: Unit::Plain,
        from_zero: true,
        value: |m| m.num_turns_mean,
        second: None,
    },
    Plan {
        title: "Entropy",
        caption: "Mean of −log p of sampled tokens, in nats.",
        unit: Unit::Plain,
        from_zero: true,
        value: |m| m.entropy,
        second: None,
    },
    Plan {
        title: "Groups without advantage",
        caption: "Part of groups that teach nothing and are dropped.",
        unit: Unit::Percent,
        from_zero: true,
        value: |m| groups(m, m.funnel.num_groups_all_failed),
        second: Some((
            |m| groups(m, m.funnel.num_groups_all_solved),
            ("none solved", "all solved"),
        )),
    },
    Plan {
        title: "Gradient norm",
        caption: "Global L2 norm before the clip, mean over steps.",
        unit: Unit::Plain,
        from_zero: true,
        value: |m| m.grad_norm,
        second: None,
    },
    Plan {
        title: "Clipped tokens",
        caption: "Part of action tokens whose gradient the ratio clip cut.",
        unit: Unit::Percent,
        from_zero: true,
        value: |m| m.clipped_fraction,
        second: None,
    },
    Plan {
        title: "Format errors",
        caption: "Part of turns without exactly one valid command.",
        unit: Unit::Percent,
        from_zero: true,
        value: |m| m.format_error_rate,
        second: None,
    },
    Plan {
        title: "Sampler and trainer",
        caption: "Largest difference of a token's log-probability under the same weights.",
        unit: Unit::Plain,
        from_zero: true,
        value: |m| f64::from(m.logprob_difference_max),
        second: None,
    },
];

/// The learning curves over all RL iterations; none where there was no RL.
pub fn learning(run: &Run) -> Vec<Figure> {
    let iterations: Vec<&IterationMetrics> =
        run.iterations.iter().filter(|m| m.stage != "rft").collect();
    let mut spans: Vec<Span> = Vec::new();
    for (index, metrics) in iterations.iter().enumerate() {
        let x = index as f64 + 1.0;
        match spans.last_mut() {
            Some(span) if span.name == metrics.stage => span.end = x,
            _ => spans.push(Span { start: x, end: x, name: metrics.stage.clone() }),
        }
    }
    let figure = |plan: &Plan| {
        let line = |value: Value, muted: bool| Series {
            points: iterations
                .iter()
                .enumerate()
                .map(|(i, m)| (i as f64 + 1.0, value(m)))
                .collect(),
            errors: Vec::new(),
            muted,
        };
        let mut series: Vec<Series> =
            plan.second.iter().map(|(value, _)| line(*value, true)).collect();
        series.push(line(plan.value, false));
        let chart = Chart {
            label: format!("{} by iteration", plan.title),
            series,
            unit: plan.unit,
            categories: Vec::new(),
            size: (290.0, 160.0),
            spans: spans.clone(),
            from_zero: plan.from_zero,
        };
        let legend = plan.second.as_ref().map(|(_, names)| *names);
        Some(Figure { title: plan.title, caption: plan.caption, legend, svg: chart.svg()? })
    };
    PLANS.iter().filter_map(figure).collect()
}
