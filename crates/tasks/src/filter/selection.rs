//! Selection by id, date, repository and language.

use std::collections::BTreeSet;
use std::path::Path;

use patchwright_core::{TaskError, TaskInstance};
use serde_json::Value;

use super::Finding;
use crate::pool::repo_name;
use crate::rows::io;

/// Which rows are looked at; an empty part selects all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only these instances.
    pub ids: Option<BTreeSet<String>>,
    /// Only these repositories, `org/name`; upper and lower case are one.
    pub repos: Vec<String>,
    /// Only these languages (`language` of SWE-rebench V2); a row without the field is Python.
    pub languages: Vec<String>,
    /// `created_at` on this day or later, `2025-05-01`.
    pub created_from: Option<String>,
    /// `created_at` before this day.
    pub created_before: Option<String>,
    /// `created_at` in one of these months, `2025-05`.
    pub months: Vec<String>,
}

impl Selection {
    pub(super) fn judge(&self, instance: &TaskInstance) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |rule, keeps: bool, text| {
            findings.push(Finding { rule, drops: !keeps, text });
        };
        if let Some(ids) = &self.ids {
            let there = ids.contains(&instance.instance_id);
            let text = format!("{} in the list of ids", if there { "is" } else { "is not" });
            add("ids", there, text);
        }
        if !self.repos.is_empty() {
            let repo = repo_name(&instance.repo);
            let there = self.repos.iter().any(|wanted| repo_name(wanted) == repo);
            add("repo", there, format!("repository {}", instance.repo));
        }
        if !self.languages.is_empty() {
            let language = instance.extra.get("language").and_then(Value::as_str);
            let language = language.unwrap_or("python");
            let there = self.languages.iter().any(|wanted| wanted.eq_ignore_ascii_case(language));
            add("language", there, format!("language {language}"));
        }
        if self.created_from.is_some() || self.created_before.is_some() || !self.months.is_empty() {
            let day = instance.created_at.get(..10).unwrap_or_default();
            let known = parse_date(day).is_ok();
            let there = known
                && self.created_from.as_deref().is_none_or(|from| day >= from)
                && self.created_before.as_deref().is_none_or(|before| day < before)
                && (self.months.is_empty() || self.months.iter().any(|month| day[..7] == **month));
            let text = if known { format!("created {day}") } else { "no created_at".to_owned() };
            add("created", there, text);
        }
        findings
    }
}

/// Checks a day, `2025-05-01`, or a month, `2025-05`.
///
/// # Errors
/// What would be right.
pub fn parse_date(text: &str) -> Result<String, String> {
    let expected = || format!("{text:?} is no date such as 2025-05-01 or, for a month, 2025-05");
    let mut parts = text.split('-');
    let mut part = |digits: usize, range: std::ops::RangeInclusive<u32>| {
        let part = parts.next()?;
        let number: u32 = part.parse().ok()?;
        (part.len() == digits
            && part.bytes().all(|b| b.is_ascii_digit())
            && range.contains(&number))
        .then_some(())
    };
    part(4, 0..=9999).ok_or_else(expected)?;
    part(2, 1..=12).ok_or_else(expected)?;
    if text.len() > 7 {
        part(2, 1..=31).ok_or_else(expected)?;
    }
    if parts.next().is_some() || text.len() > 10 {
        return Err(expected());
    }
    Ok(text.to_owned())
}

/// Longest list of ids that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a list of ids: one a line (`#` begins a comment), a JSON list of texts, or JSON lines with
/// an `instance_id` each, such as a task set itself.
///
/// # Errors
/// [`TaskError::Io`], also for a list without ids, [`TaskError::Row`] for a line that has none.
pub fn read_ids(path: &Path) -> Result<BTreeSet<String>, TaskError> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| io("opening", path, e))?;
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|e| io("reading", path, e))?;
    let row = |line: usize, reason: &str| TaskError::Row {
        path: path.display().to_string(),
        line,
        reason: reason.to_owned(),
    };
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(&text).map_err(|_| row(1, "not a JSON list of instance_ids"));
    }
    let mut ids = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('{') {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            let id = value["instance_id"].as_str();
            let id = id.ok_or_else(|| row(index + 1, "a JSON row without instance_id"))?;
            ids.insert(id.to_owned());
        } else if !line.is_empty() && !line.starts_with('#') {
            ids.insert(line.to_owned());
        }
    }
    if ids.is_empty() {
        return Err(row(1, "no instance_id in it"));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::{parse_date, read_ids};

    #[test]
    fn dates_are_days_or_months() {
        for good in ["2025-05", "2025-05-31", "0001-01-01"] {
            assert_eq!(parse_date(good).as_deref(), Ok(good));
        }
        for bad in
            ["", "2025", "2025-5", "2025-13", "2025-05-32", "2025-05-1", "May 2025", "2025-05-01T"]
        {
            assert!(parse_date(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_come_in_three_forms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let ids = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_ids(&path).map(|ids| ids.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(ids("# a set\nb\n\n a \n").unwrap(), ["a", "b"]);
        assert_eq!(ids("[\"b\", \"a\"]").unwrap(), ["a", "b"]);
        assert_eq!(ids("{\"instance_id\":\"a\",\"x\":1}\n").unwrap(), ["a"]);
        assert!(ids("a\n{\"x\":1}\n").unwrap_err().to_string().contains("ids:2: "));
        assert!(ids("# none\n").is_err());
        assert!(ids("[1]").is_err());
    }
}
