//! What is made uniform of a row. Everything that is not named here is kept as it was.
//!
//! | field | accepted | becomes |
//! |---|---|---|
//! | `FAIL_TO_PASS`, `PASS_TO_PASS` | list; JSON list in a string (SWE-bench); null | list |
//! | `patch`, `test_patch`, `base_commit` | text; null | text |
//! | `version` | text; number | text |
//! | `created_at` | text; seconds, milli-, micro- or nanoseconds of the Unix epoch | ISO 8601 |
//! | `install_config`, `meta` | object; JSON object in a string (SWE-rebench V2); null | object |
//! | `install_config.test_cmd` | text; list of commands (V2) | text, a command a line; the list is kept as `test_cmds` |
//! | `install_config.log_parser` | `parse_log_pytest` and its variants (SWE-rebench) | `pytest`; the name is kept as `log_parser_of_source` |

use patchwright_core::TaskInstance;
use serde_json::{Map, Value};

use super::Raw;
use crate::rows;

/// Makes an instance of a row.
///
/// # Errors
/// What is wrong, beginning with the field where there is one.
pub(super) fn instance(raw: Raw) -> Result<TaskInstance, String> {
    let mut instance = read(raw)?;
    let config = &mut instance.install_config;
    if config.log_parser.starts_with("parse_log_pytest") {
        let name = std::mem::replace(&mut config.log_parser, "pytest".to_owned());
        config.extra.insert("log_parser_of_source".to_owned(), Value::String(name));
    }
    Ok(instance)
}

fn read(raw: Raw) -> Result<TaskInstance, String> {
    let value = match raw {
        Raw::Instance(instance) => return Ok(*instance),
        Raw::Value(value) => value,
        Raw::Json(bytes) => {
            // Most rows need no mending, and are read at twice the speed without.
            if let Ok(instance) = rows::parse(&bytes)
                && !has_json_text(&instance)
            {
                return Ok(instance);
            }
            let mut json = serde_json::Deserializer::from_slice(&bytes);
            let value = serde_path_to_error::deserialize(&mut json)
                .map_err(|error| rows::describe(&error))?;
            json.end().map_err(|error| format!("more than one JSON value in the row: {error}"))?;
            value
        }
    };
    let Value::Object(mut row) = value else {
        return Err("a row is a JSON object with instance_id, repo and so on".to_owned());
    };
    mend(&mut row);
    let instance: TaskInstance = serde_path_to_error::deserialize(Value::Object(row))
        .map_err(|error| rows::describe(&error))?;
    rows::check(&instance)?;
    Ok(instance)
}

fn has_json_text(instance: &TaskInstance) -> bool {
    instance.extra.get("meta").is_some_and(Value::is_string)
}

fn mend(row: &mut Map<String, Value>) {
    for field in ["FAIL_TO_PASS", "PASS_TO_PASS"] {
        if let Some(value @ Value::Null) = row.get_mut(field) {
            *value = Value::Array(Vec::new());
        }
    }
    for field in ["patch", "test_patch", "base_commit"] {
        if row.get(field).is_some_and(Value::is_null) {
            row.remove(field);
        }
    }
    for field in ["install_config", "meta"] {
        if let Some(value) = row.get_mut(field)
            && let Some(text) = value.as_str()
            && let Ok(inner @ (Value::Object(_) | Value::Null)) = serde_json::from_str(text)
        {
            *value = inner;
        }
    }
    if let Some(value @ Value::Number(_)) = row.get_mut("version") {
        *value = Value::String(value.to_string());
    }
    if let Some(value) = row.get_mut("created_at")
        && let Some(time) = value.as_f64()
    {
        *value = Value::String(iso_8601(seconds(time)));
    }
    if let Some(Value::Object(config)) = row.get_mut("install_config") {
        mend_test_cmd(config);
    }
}

fn mend_test_cmd(config: &mut Map<String, Value>) {
    let Some(Value::Array(commands)) = config.get("test_cmd") else { return };
    let texts: Option<Vec<&str>> = commands.iter().map(Value::as_str).collect();
    let Some(texts) = texts else { return };
    let text = Value::String(texts.join("\n"));
    if let Some(commands) = config.insert("test_cmd".to_owned(), text) {
        config.insert("test_cmds".to_owned(), commands);
    }
}

/// Seconds of a time whose unit its size tells: none of these is before 1973 or after 5138.
fn seconds(time: f64) -> i64 {
    let divisor = match time.abs() {
        t if t < 1e11 => 1.0,
        t if t < 1e14 => 1e3,
        t if t < 1e17 => 1e6,
        _ => 1e9,
    };
    (time / divisor).floor() as i64
}

/// Seconds of the Unix epoch as `2025-05-31T23:59:59Z`, by the proleptic Gregorian calendar
/// (Howard Hinnant's `civil_from_days`). Years outside 0 to 9999 become those.
pub(super) fn iso_8601(seconds: i64) -> String {
    let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::{iso_8601, seconds};

    #[test]
    fn times_are_iso() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso_8601(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(iso_8601(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(iso_8601(1_748_736_000), "2025-06-01T00:00:00Z");
        assert_eq!(iso_8601(-1), "1969-12-31T23:59:59Z");
        assert_eq!(&iso_8601(i64::MIN)[..5], "0000-");
        assert_eq!(&iso_8601(i64::MAX)[..5], "9999-");
        for unit in [1.0, 1e3, 1e6, 1e9] {
            assert_eq!(seconds(1_748_736_000.0 * unit), 1_748_736_000);
        }
    }
}
