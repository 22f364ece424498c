//! Paths in diffs: git's quoting, and what is refused.

use std::fmt::Write as _;

/// Quotes as git does (`core.quotePath`): only names with quotes, backslashes, control or non-ASCII
/// bytes.
pub(super) fn quote(path: &str) -> String {
    let plain = |b: u8| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\';
    if path.bytes().all(plain) {
        return path.to_owned();
    }
    let mut out = String::from("\"");
    for byte in path.bytes() {
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b'\r' => out.push_str("\\r"),
            b if plain(b) => out.push(char::from(b)),
            b => _ = write!(out, "\\{b:03o}"),
        }
    }
    out.push('"');
    out
}

/// Reads one name that starts with a quote; gives it and what stands behind the closing quote.
/// `None` when the quoting is broken or the bytes are not UTF-8.
pub(super) fn unquote(text: &str) -> Option<(String, &str)> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 1;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some((String::from_utf8(out).ok()?, text.get(at + 1..)?)),
            b'\\' => {
                let escaped = *bytes.get(at + 1)?;
                at += 2;
                out.push(match escaped {
                    b'a' => 7,
                    b'b' => 8,
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'v' => 11,
                    b'f' => 12,
                    b'r' => b'\r',
                    b'"' | b'\\' => escaped,
                    b'0'..=b'3' => {
                        let digits = bytes.get(at - 1..at + 2)?;
                        at += 2;
                        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?
                    }
                    _ => return None,
                });
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
}

/// Why a path may not be touched, or `None` when it may.
pub(super) fn refusal(path: &str) -> Option<&'static str> {
    if path.is_empty() || path.contains('\0') {
        return Some("the path is empty or holds a NUL byte");
    }
    if path.starts_with('/') {
        return Some("the path is absolute; paths are relative to the repository");
    }
    for part in path.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return Some("the path has an empty, `.` or `..` part");
        }
        if part.eq_ignore_ascii_case(".git") {
            return Some("the path leads into `.git`");
        }
    }
    None
}
