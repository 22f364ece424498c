//! JSON text cut into rows: by lines, or by the brackets of an array's elements.

use std::io::{BufRead, Read};

use super::{Raw, Trouble};
use crate::rows::MAX_ROW_BYTES;

/// One row a line. Its numbers are those of the lines.
pub(super) struct Lines<R> {
    input: R,
    line: usize,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: 0, ended: false }
    }

    /// Reads past the end of a line that is too long.
    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                self.input.consume(end + 1);
                return Ok(());
            }
            let all = buffer.len();
            self.input.consume(all);
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = (usize, Result<Raw, Trouble>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let mut bytes = Vec::new();
            let read = self.input.by_ref().take(MAX_ROW_BYTES + 1).read_until(b'\n', &mut bytes);
            self.line += 1;
            let too_long = bytes.len() as u64 > MAX_ROW_BYTES;
            let read = match read {
                Ok(_) if too_long && bytes.last() != Some(&b'\n') => self.skip_line().map(|()| 1),
                read => read,
            };
            match read {
                Err(error) => {
                    self.ended = true;
                    return Some((self.line, Err(Trouble::fatal(error.to_string()))));
                }
                Ok(0) => self.ended = true,
                Ok(_) if too_long => return Some((self.line, Err(Trouble::row(too_long_text())))),
                Ok(_) => {
                    let start = if self.line == 1 { without_mark(&bytes) } else { &bytes };
                    if !start.trim_ascii().is_empty() {
                        return Some((self.line, Ok(Raw::Json(start.to_vec()))));
                    }
                }
            }
        }
        None
    }
}

fn too_long_text() -> String {
    format!("the row is longer than {MAX_ROW_BYTES} bytes")
}

/// Some programs begin UTF-8 text with a byte order mark.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The elements of an array, or values one after the other, numbered from 1. Only strings and
/// brackets are looked at, so that an element that is no JSON inside does not end the file.
pub(super) struct Values<R> {
    input: R,
    row: usize,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    InArray,
    Plain,
    End,
}

impl<R: BufRead> Values<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, row: 0, place: Place::Start }
    }

    fn peek(&mut self) -> std::io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    /// The text of the next value; `None` at the end.
    fn value(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        let io = |error: std::io::Error| Trouble::fatal(error.to_string());
        if self.place == Place::Start && self.input.fill_buf().map_err(io)?.starts_with(b"\xef\xbb")
        {
            self.input.consume(3);
        }
        loop {
            match self.peek().map_err(io)? {
                None if self.place == Place::InArray => {
                    return Err(Trouble::fatal("the array does not end: the file is cut off"));
                }
                None => return Ok(None),
                Some(byte) if byte.is_ascii_whitespace() => self.input.consume(1),
                Some(b'[') if self.place == Place::Start => {
                    self.input.consume(1);
                    self.place = Place::InArray;
                }
                Some(b',') if self.place == Place::InArray => self.input.consume(1),
                Some(b']') if self.place == Place::InArray => return Ok(None),
                Some(_) => break,
            }
        }
        if self.place == Place::Start {
            self.place = Place::Plain;
        }
        let mut scan = Scan::default();
        let mut value = Vec::new();
        loop {
            let buffer = self.input.fill_buf().map_err(io)?;
            if buffer.is_empty() {
                return if scan.depth > 0 || scan.in_string || self.place == Place::InArray {
                    Err(Trouble::fatal("the row does not end: the file is cut off"))
                } else {
                    Ok(Some(value))
                };
            }
            let end = buffer.iter().position(|byte| scan.ends_before(*byte));
            let taken = end.unwrap_or(buffer.len());
            // The rest of a row that is too long is read past, not kept.
            if value.len() as u64 <= MAX_ROW_BYTES {
                value.extend_from_slice(&buffer[..taken]);
            }
            self.input.consume(taken);
            if end.is_some() {
                return Ok(Some(value));
            }
        }
    }
}

impl<R: BufRead> Iterator for Values<R> {
    type Item = (usize, Result<Raw, Trouble>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.place == Place::End {
            return None;
        }
        self.row += 1;
        let row = match self.value() {
            Ok(None) => {
                self.place = Place::End;
                return None;
            }
            Ok(Some(value)) if value.len() as u64 > MAX_ROW_BYTES => {
                Err(Trouble::row(too_long_text()))
            }
            Ok(Some(value)) => Ok(Raw::Json(value)),
            Err(trouble) => {
                self.place = Place::End;
                Err(trouble)
            }
        };
        Some((self.row, row))
    }
}

/// Where in a value the scan is.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "the state of a scanner of four bits")]
struct Scan {
    begun: bool,
    closed: bool,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Takes the next byte, unless the value ended before it.
    fn ends_before(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        if self.closed {
            return true;
        }
        match byte {
            b'{' | b'[' => {
                if self.begun && self.depth == 0 {
                    return true;
                }
                self.depth += 1;
            }
            b'}' | b']' if self.depth == 0 => {
                // A closing bracket where a value should be is a value of its own: it is refused
                // as such, and the scan moves on.
                if self.begun || byte == b']' {
                    return self.begun;
                }
                self.closed = true;
            }
            b'}' | b']' => {
                self.depth -= 1;
                self.closed = self.depth == 0;
            }
            b'"' => self.in_string = true,
            b',' if self.depth == 0 => return self.begun,
            byte if byte.is_ascii_whitespace() && self.depth == 0 => return true,
            _ => {}
        }
        self.begun = true;
        false
    }
}
