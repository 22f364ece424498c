//! `patchwright tasks filter`.

use std::process::ExitCode;

use patchwright_tasks::filter::{
    Filter, FilterRecipe, FilterSummary, Finding, Funnel, Sample, Selection,
    filter as filter_tasks, parse_date, read_ids,
};
use patchwright_tasks::import::{BadKind, Format, TaskReader};
use patchwright_tasks::pool::Fingerprints;
use patchwright_tasks::validate::report::read_report;
use patchwright_train::recipe::Recipe;
use serde::Serialize;

use super::import::tell;
use super::meter::Meter;
use crate::args::FilterArgs;
use crate::error::CliError;
use crate::numbers::count;
use crate::{output, signals, table};

/// `tasks filter`.
pub fn filter(args: &FilterArgs) -> Result<ExitCode, CliError> {
    if args.sample == Some(0) {
        return Err(CliError::usage("--sample must be above 0"));
    }
    let rules = rules(args)?;
    let cancel = signals::cancel_token(|| output::note("Stopping; nothing is written."))?;
    let reader = TaskReader::open(&args.inputs, Format::Auto).map_err(CliError::usage)?;
    if let Some(id) = &args.explain {
        return explain(reader, &rules, id, args.json);
    }
    let sample = args.sample.map(|num| Sample { num, seed: args.seed });
    let mut meter = Meter::to_stderr();
    let summary =
        filter_tasks(reader, &rules, sample, args.out.as_deref(), |done, total, funnel| {
            meter.update(done, total, || {
                format!("{} of {} rows kept", funnel.num_kept, funnel.num_in)
            });
            !cancel.is_cancelled()
        })?;
    drop(meter);
    if cancel.is_cancelled() {
        return Err(CliError::Interrupted);
    }
    tell(&summary.problems, summary.num_bad);
    if args.json {
        output::json(&summary)?;
    } else {
        output::data(&page(&summary.funnel))?;
    }
    finish(args, &summary)
}

fn finish(args: &FilterArgs, summary: &FilterSummary) -> Result<ExitCode, CliError> {
    if let Some(first) = summary.missing_ids.first() {
        let num = summary.missing_ids.len();
        return Err(CliError::failed(format!(
            "{num} ids of the list are not in the set, such as {first}: nothing is written"
        )));
    }
    if let Some(path) = &args.write_ids {
        let text = summary.ids.join("\n") + "\n";
        std::fs::write(path, text)
            .map_err(|error| CliError::failed(format!("writing {}: {error}", path.display())))?;
    }
    if let Some(out) = &args.out {
        let num = count(summary.num_written as f64);
        output::note(format!("{num} rows written to {}", out.display()));
    }
    Ok(if summary.num_bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rules(args: &FilterArgs) -> Result<Filter, CliError> {
    let recipe = if args.no_rules {
        FilterRecipe::none()
    } else {
        Recipe::load(&args.recipe, &args.overrides).map_err(CliError::usage)?.filter
    };
    let day = |text: &Option<String>, flag: &str| match text {
        None => Ok(None),
        Some(text) if text.len() < 10 => {
            Err(CliError::usage(format!("{flag}: {text:?} is no day such as 2025-05-01")))
        }
        Some(text) => {
            parse_date(text).map(Some).map_err(|e| CliError::usage(format!("{flag}: {e}")))
        }
    };
    for month in &args.months {
        if month.len() != 7 || parse_date(month).is_err() {
            return Err(CliError::usage(format!("--month: {month:?} is no month such as 2025-05")));
        }
    }
    let selection = Selection {
        ids: args.ids.as_deref().map(read_ids).transpose().map_err(CliError::usage)?,
        repos: args.repos.clone(),
        languages: args.languages.clone(),
        created_from: day(&args.created_from, "--created-from")?,
        created_before: day(&args.created_before, "--created-before")?,
        months: args.months.clone(),
    };
    let verdicts = args.validation.as_deref().map(read_report).transpose();
    let filter = Filter::new(recipe, selection, verdicts.map_err(CliError::usage)?)
        .map_err(|error| CliError::usage(format!("filter.{error}")))?;
    if args.away_from.is_empty() {
        return Ok(filter);
    }
    let mut fingerprints = Fingerprints::default();
    for item in TaskReader::open(&args.away_from, Format::Auto).map_err(CliError::usage)? {
        match item {
            Ok(instance) => fingerprints.add(&instance),
            Err(bad) if bad.kind == BadKind::Duplicate => {}
            // A row that cannot be read could be one that is kept.
            Err(bad) => return Err(CliError::usage(format!("--away-from: {bad}"))),
        }
    }
    Ok(filter.away_from(fingerprints))
}

#[derive(Serialize)]
struct Explanation<'a> {
    instance_id: &'a str,
    kept: bool,
    dropped_by: Option<&'static str>,
    findings: Vec<Finding>,
}

fn explain(
    reader: TaskReader,
    rules: &Filter,
    id: &str,
    as_json: bool,
) -> Result<ExitCode, CliError> {
    for instance in reader.flatten() {
        if instance.instance_id != id {
            continue;
        }
        let findings = rules.judge(&instance);
        let dropped_by = findings.iter().find(|finding| finding.drops).map(|f| f.rule);
        if as_json {
            let kept = dropped_by.is_none();
            output::json(&Explanation { instance_id: id, kept, dropped_by, findings })?;
            return Ok(ExitCode::SUCCESS);
        }
        let verdict = match dropped_by {
            Some(rule) => format!("{id} is dropped by {rule}\n\n"),
            None => format!("{id} is kept\n\n"),
        };
        let rows = findings.into_iter().map(|finding| {
            let verdict = if finding.drops { "drops" } else { "keeps" };
            vec![finding.rule.to_owned(), verdict.to_owned(), finding.text]
        });
        output::data(&(verdict + &table::table(&["Rule", "", "Found"], &[], rows)))?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::usage(format!("there is no instance {id:?} that can be read in the inputs")))
}

fn page(funnel: &Funnel) -> String {
    let number = |num: usize| count(num as f64);
    let mut left = funnel.num_in;
    let mut rows = vec![vec!["(in)".to_owned(), String::new(), number(left)]];
    for rule in &funnel.rules {
        left -= rule.num_dropped;
        rows.push(vec![
            rule.rule.to_owned(),
            number(rule.num_dropped),
            number(left),
            number(rule.num_alone),
            number(rule.num_only),
        ]);
    }
    table::table(&["Rule", "Dropped", "Left", "Alone", "Only"], &[1, 2, 3, 4], rows)
}

#[cfg(test)]
mod tests {
    use patchwright_tasks::filter::{Funnel, RuleCount};

    #[test]
    fn a_funnel_says_what_is_left() {
        let rule = |rule, num_dropped, num_alone, num_only| RuleCount {
            rule,
            num_dropped,
            num_alone,
            num_only,
        };
        let funnel = Funnel {
            num_in: 21_336,
            rules: vec![rule("modified_files", 2_000, 3_100, 1_200), rule("llm_score", 0, 9, 0)],
            num_kept: 19_336,
        };
        let text = super::page(&funnel);
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["(in)", "21,336"]);
        assert_eq!(words[2], ["modified_files", "2,000", "19,336", "3,100", "1,200"]);
        assert_eq!(words[3], ["llm_score", "0", "19,336", "9", "0"]);
    }
}
