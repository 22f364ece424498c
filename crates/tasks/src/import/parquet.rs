//! Rows of a Parquet file as JSON values, decoded page by page: what is in memory is a page of
//! each column, whatever the size of the row groups.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::basic::Compression;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::normalise::iso_8601;
use super::{Raw, Trouble};

/// Values that are decoded of a column at once.
const BATCH: usize = 128;

/// The rows of one file, numbered from 1.
pub(super) struct Rows {
    /// `None` once they are at their end.
    iter: Option<RowIter<'static>>,
    /// The last row that was given.
    row: usize,
    total: u64,
    num_bytes: u64,
    bytes: Arc<AtomicU64>,
}

impl Rows {
    /// Reads the file's footer.
    pub(super) fn open(file: File, bytes: Arc<AtomicU64>) -> Result<Self, String> {
        let num_bytes = file.metadata().map_err(|e| e.to_string())?.len();
        let reader = guarded(|| SerializedFileReader::new(file))?
            .map_err(|error| format!("not a Parquet file that can be read: {error}"))?;
        let total = num_rows(&reader, num_bytes)?;
        for column in reader.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
            check_compression(column.compression())?;
        }
        let rows = guarded(|| RowIter::from_file_into(Box::new(reader)).with_batch_size(BATCH))?;
        Ok(Self { iter: Some(rows), row: 0, total, num_bytes, bytes })
    }
}

fn check_compression(compression: Compression) -> Result<(), String> {
    match compression {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => Ok(()),
        other => Err(format!(
            "it is compressed with {other}; write it again with Snappy or Zstandard, such as by \
             pyarrow.parquet.write_table(table, path, compression=\"zstd\")"
        )),
    }
}

/// The number of rows that the footer states, if it can be true: a name alone takes a byte a row.
fn num_rows(reader: &SerializedFileReader<File>, num_bytes: u64) -> Result<u64, String> {
    let mut num_rows = 0_u64;
    for group in reader.metadata().row_groups() {
        let rows = u64::try_from(group.num_rows()).map_err(|_| "a row group of negative size")?;
        num_rows = num_rows.saturating_add(rows);
    }
    if num_rows > num_bytes {
        return Err(format!("the footer states {num_rows} rows in {num_bytes} bytes"));
    }
    Ok(num_rows)
}

/// The decoder panics on some files that are broken; the panic is one more error.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("the decoder gave up");
        format!("the file is broken: {text}")
    })
}

impl Iterator for Rows {
    type Item = (usize, Result<Raw, Trouble>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.row as u64 >= self.total {
            self.iter = None;
        }
        let rows = self.iter.as_mut()?;
        let next = guarded(|| rows.next());
        self.row += 1;
        let part = u128::from(self.num_bytes) * self.row as u128 / u128::from(self.total.max(1));
        self.bytes.store(part as u64, Ordering::Relaxed);
        let trouble = match next {
            Ok(Some(Ok(row))) => return Some((self.row, object(row).map_err(Trouble::row))),
            Ok(None) => format!("the file ends before its {} rows", self.total),
            Ok(Some(Err(error))) => error.to_string(),
            Err(reason) => reason,
        };
        // The columns may be at different rows by now.
        self.iter = None;
        let trouble: String = trouble.chars().take(300).collect();
        Some((self.row, Err(Trouble::fatal(trouble))))
    }
}

fn object(row: Row) -> Result<Raw, String> {
    group(row).map(Raw::Value)
}

fn group(row: Row) -> Result<Value, String> {
    let mut map = Map::new();
    for (name, field) in row.into_columns() {
        let value = value(field).map_err(|reason| {
            let separator = if reason.starts_with(':') { "" } else { "." };
            format!("{name}{separator}{reason}")
        })?;
        map.insert(name, value);
    }
    Ok(Value::Object(map))
}

/// A value in JSON. A reason for an error begins with `:`, or with the name of a field within.
fn value(field: Field) -> Result<Value, String> {
    let number = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) | Field::TimeMillis(value) => value.into(),
        Field::Long(value) | Field::TimeMicros(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => number(f64::from(value)),
        Field::Float(value) => number(f64::from(value)),
        Field::Double(value) => number(value),
        Field::Str(text) => Value::String(text),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => return Err(": bytes that are no UTF-8 text".to_owned()),
        },
        Field::Date(days) => Value::String(iso_8601(i64::from(days) * 86_400)[..10].to_owned()),
        Field::TimestampMillis(time) => Value::String(iso_8601(time.div_euclid(1000))),
        Field::TimestampMicros(time) => Value::String(iso_8601(time.div_euclid(1_000_000))),
        Field::Group(row) => group(row)?,
        Field::ListInternal(list) => {
            let values = list.elements().iter().map(|element| value(element.clone()));
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, field) in map.entries() {
                let Value::String(key) = value(key.clone())? else {
                    return Err(": a map whose keys are not text".to_owned());
                };
                object.insert(key, value(field.clone())?);
            }
            Value::Object(object)
        }
        decimal @ Field::Decimal(_) => Value::String(decimal.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use parquet::basic::{Compression, GzipLevel};

    use super::check_compression;

    #[test]
    fn other_compressions_are_named() {
        assert_eq!(check_compression(Compression::SNAPPY), Ok(()));
        let error = check_compression(Compression::GZIP(GzipLevel::default())).unwrap_err();
        assert!(error.starts_with("it is compressed with GZIP"), "{error}");
    }
}
