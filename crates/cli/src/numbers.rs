//! Numbers as people read them.

use std::time::Duration;

use patchwright_train::metrics::MeanSem;

/// `412`, `14,210`.
pub fn count(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if value < 0.0 && digits != "0" {
        grouped.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `4.2 s`, `1 min 12 s`, `2 h 05 min`.
pub fn duration(duration: Duration) -> String {
    let tenths = (duration.as_secs_f64() * 10.0).round() / 10.0;
    if tenths < 60.0 {
        return format!("{tenths:.1} s");
    }
    let seconds = duration.as_secs_f64().round() as u64;
    if seconds < 3600 {
        return format!("{} min {:02} s", seconds / 60, seconds % 60);
    }
    format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60)
}

/// An estimate, without digits that it does not have: `40 s`, `6 min`, `2 h 10 min`.
pub fn about(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 90 {
        return format!("{} s", (seconds.max(1)).div_ceil(5) * 5);
    }
    let minutes = (seconds + 30) / 60;
    if minutes < 60 {
        return format!("{minutes} min");
    }
    format!("{} h {:02} min", minutes / 60, minutes % 60)
}

/// A part of one as `34 %`.
pub fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// A part of one as `34.2 %`.
pub fn percent_fine(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// Mean and standard error of parts of one as `27.6 ± 0.7 %`.
pub fn mean_sem(value: MeanSem) -> String {
    format!("{:.1} ± {:.1} %", value.mean * 100.0, value.sem * 100.0)
}

/// Three significant digits, for values of any size.
pub fn significant(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else {
        let decimals = (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
        format!("{value:.decimals$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        let cases = [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.4, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(count(value), text);
        }
        assert_eq!(count(-0.2), "0");
        assert_eq!(count(-1234.0), "-1,234");
        assert_eq!(count(f64::NAN), "-");
    }

    #[test]
    fn durations_carry_over() {
        let cases =
            [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.99, "1 min 00 s"), (72.0, "1 min 12 s")];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!(duration(Duration::from_secs(3599)), "59 min 59 s");
        assert_eq!(duration(Duration::from_mins(125)), "2 h 05 min");
    }

    #[test]
    fn estimates_are_round() {
        let cases = [(0, "5 s"), (42, "45 s"), (89, "90 s"), (90, "2 min"), (7810, "2 h 10 min")];
        for (seconds, text) in cases {
            assert_eq!(about(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn digits_are_significant() {
        let cases =
            [(0.0, "0"), (1.234, "1.23"), (123.4, "123"), (2e-7, "2.0e-7"), (0.05, "0.0500")];
        for (value, text) in cases {
            assert_eq!(significant(value), text);
        }
    }
}
