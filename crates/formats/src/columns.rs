//! Parquet: a row a trajectory, with its tokens, loss mask and log-probabilities as lists. A rollout
//! is one row, and one more for each branch; every token that the policy sampled is in the loss of
//! exactly one row. A trainer gives each row the advantage of its episode, whose reward it has.
//!
//! | column | type | meaning |
//! |---|---|---|
//! | `instance_id`, `status`, `patch` | string | as in [`Rollout`] |
//! | `sibling`, `attempt` | int32 | as in [`Rollout`]; with `policy_version` they name the episode |
//! | `policy_version` | int64 | |
//! | `failure` | string or null | class of the failure |
//! | `solved` | boolean or null | the grade; null where there is none |
//! | `reward` | float or null | 1 or 0 by the grade |
//! | `branch` | int32 | 0: the main trajectory; then the others in their order |
//! | `num_branches` | int32 | rows of the episode |
//! | `num_turns`, `num_prompt_tokens` | int32 | of this row |
//! | `prompt` | string | this row's prompt |
//! | `messages`, `turns` | string | JSON: the prompt's messages; the turns |
//! | `tokens` | list of uint32 | all tokens, `[t]`; empty for a rollout that has only text |
//! | `loss_mask` | list of boolean | whether the policy sampled the token, `[t]` |
//! | `sampler_logprobs` | list of float | log-probability of each sampled token, else 0, `[t]` |

use std::io::Write;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type,
};
pub use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use patchwright_core::{Rollout, Trajectory};

use crate::Written;

const SCHEMA: &str = "message rollout {
    required binary instance_id (UTF8);
    required int32 sibling;
    required int32 attempt;
    required int64 policy_version;
    required binary status (UTF8);
    optional binary failure (UTF8);
    optional boolean solved;
    optional float reward;
    required binary patch (UTF8);
    required int32 branch;
    required int32 num_branches;
    required int32 num_turns;
    required int32 num_prompt_tokens;
    required binary prompt (UTF8);
    required binary messages (UTF8);
    required binary turns (UTF8);
    required group tokens (LIST) {
        repeated group list { required int32 element (INTEGER(32,false)); } }
    required group loss_mask (LIST) { repeated group list { required boolean element; } }
    required group sampler_logprobs (LIST) { repeated group list { required float element; } }
}";

/// Tokens of a row group, about; bounds what is held in memory.
const GROUP_TOKENS: usize = 1 << 20;
/// Rows of a row group, about.
const GROUP_ROWS: usize = 4096;

/// A trajectory of a rollout.
struct Row<'a> {
    rollout: &'a Rollout,
    branch: usize,
    trajectory: &'a Trajectory,
}

/// Writes rollouts as one Parquet file (zstd) and says how many.
///
/// # Errors
/// When `out` cannot be written, or `rollouts` gives an error, which comes first.
pub fn write<E: From<ParquetError>>(
    out: impl Write + Send,
    rollouts: impl IntoIterator<Item = Result<Rollout, E>>,
) -> Result<Written, E> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut file = SerializedFileWriter::new(out, schema, Arc::new(properties))?;
    let (mut group, mut num_tokens, mut num_rows) = (Vec::new(), 0, 0);
    let mut written = Written::default();
    for rollout in rollouts {
        let rollout = rollout?;
        num_rows += 1 + rollout.branches.len();
        num_tokens += rollout.trajectories().map(|t| t.tokens.len()).sum::<usize>();
        written.num_rollouts += 1;
        group.push(rollout);
        if num_tokens >= GROUP_TOKENS || num_rows >= GROUP_ROWS {
            written.num_rows += write_group(&mut file, &group)?;
            group.clear();
            (num_tokens, num_rows) = (0, 0);
        }
    }
    if !group.is_empty() {
        written.num_rows += write_group(&mut file, &group)?;
    }
    file.close()?;
    Ok(written)
}

/// Writes rollouts as a row group and gives its rows.
fn write_group<W: Write + Send>(
    file: &mut SerializedFileWriter<W>,
    rollouts: &[Rollout],
) -> Result<usize, ParquetError> {
    let rows: Vec<Row> = rollouts
        .iter()
        .flat_map(|rollout| {
            let trajectories = rollout.trajectories().enumerate();
            trajectories.map(move |(branch, trajectory)| Row { rollout, branch, trajectory })
        })
        .collect();
    let mut columns = Columns { group: file.next_row_group()?, rows: &rows };
    columns.text(|row| row.rollout.instance_id.clone())?;
    columns.values::<Int32Type>(|row| row.rollout.sibling as i32)?;
    columns.values::<Int32Type>(|row| row.rollout.attempt as i32)?;
    columns.values::<Int64Type>(|row| row.rollout.policy_version.0 as i64)?;
    columns.text(|row| word(&row.rollout.status))?;
    columns.optional::<ByteArrayType>(|row| {
        row.rollout.failure.map(|failure| ByteArray::from(word(&failure).as_str()))
    })?;
    columns.optional::<BoolType>(|row| row.rollout.solved)?;
    columns.optional::<FloatType>(|row| row.rollout.solved.map(|s| if s { 1.0 } else { 0.0 }))?;
    columns.text(|row| row.rollout.patch.clone())?;
    columns.values::<Int32Type>(|row| row.branch as i32)?;
    columns.values::<Int32Type>(|row| 1 + row.rollout.branches.len() as i32)?;
    columns.values::<Int32Type>(|row| row.trajectory.turns.len() as i32)?;
    columns.values::<Int32Type>(|row| row.trajectory.num_prompt_tokens as i32)?;
    columns.text(|row| row.trajectory.prompt.clone())?;
    columns.text(|row| json(&row.trajectory.messages))?;
    columns.text(|row| json(&row.trajectory.turns))?;
    // The bits of an unsigned integer are kept as those of a signed one.
    let ids = |row: &Row| row.trajectory.tokens.iter().map(|id| id.cast_signed()).collect();
    columns.lists::<Int32Type>(ids)?;
    columns.lists::<BoolType>(|row| loss_mask(row.trajectory))?;
    columns.lists::<FloatType>(|row| row.trajectory.sampler_logprobs.clone())?;
    columns.group.close()?;
    Ok(rows.len())
}

fn json(value: &impl serde::Serialize) -> String {
    // Plain data with string keys cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

/// The name of a unit variant.
fn word(value: &impl serde::Serialize) -> String {
    json(value).trim_matches('"').to_owned()
}

fn loss_mask(trajectory: &Trajectory) -> Vec<bool> {
    let mut mask = vec![false; trajectory.tokens.len()];
    for turn in &trajectory.turns {
        mask[turn.sampled.start..turn.sampled.end].fill(true);
    }
    mask
}

/// Writes one column after the other.
struct Columns<'a, W: Write> {
    group: SerializedRowGroupWriter<'a, W>,
    rows: &'a [Row<'a>],
}

impl<W: Write + Send> Columns<'_, W> {
    fn text(&mut self, of: impl Fn(&Row) -> String) -> Result<(), ParquetError> {
        self.values::<ByteArrayType>(|row| ByteArray::from(of(row).into_bytes()))
    }

    fn values<T: DataType>(&mut self, of: impl Fn(&Row) -> T::T) -> Result<(), ParquetError> {
        let values: Vec<T::T> = self.rows.iter().map(of).collect();
        self.write::<T>(&values, None, None)
    }

    fn optional<T: DataType>(
        &mut self,
        of: impl Fn(&Row) -> Option<T::T>,
    ) -> Result<(), ParquetError> {
        let cells: Vec<Option<T::T>> = self.rows.iter().map(of).collect();
        let there: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
        let values: Vec<T::T> = cells.into_iter().flatten().collect();
        self.write::<T>(&values, Some(&there), None)
    }

    /// Lists that are never null, of elements that are never null: level 1 is an element, level 0
    /// an empty list; repetition 0 begins a list.
    fn lists<T: DataType>(&mut self, of: impl Fn(&Row) -> Vec<T::T>) -> Result<(), ParquetError> {
        let (mut values, mut there, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
        for row in self.rows {
            let list = of(row);
            there.extend(std::iter::repeat_n(i16::from(!list.is_empty()), list.len().max(1)));
            repeats.push(0);
            repeats.extend(std::iter::repeat_n(1, list.len().saturating_sub(1)));
            values.extend(list);
        }
        self.write::<T>(&values, Some(&there), Some(&repeats))
    }

    fn write<T: DataType>(
        &mut self,
        values: &[T::T],
        there: Option<&[i16]>,
        repeats: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let mut column = self.group.next_column()?.ok_or_else(|| {
            ParquetError::General("the schema has fewer columns than are written".to_owned())
        })?;
        column.typed::<T>().write_batch(values, there, repeats)?;
        column.close()
    }
}

#[cfg(test)]
mod tests {
    use parquet::errors::ParquetError;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, RowAccessor};

    use super::write;
    use crate::testing::{foreign, rollouts};

    fn file(rollouts: Vec<patchwright_core::Rollout>) -> SerializedFileReader<std::fs::File> {
        let path = tempfile::NamedTempFile::new().unwrap();
        let rows = rollouts.into_iter().map(Ok::<_, ParquetError>);
        let num_rollouts = rows.len();
        let written = write(path.reopen().unwrap(), rows).unwrap();
        assert_eq!(written.num_rollouts, num_rollouts);
        SerializedFileReader::new(path.reopen().unwrap()).unwrap()
    }

    #[test]
    fn rows_are_read_back() {
        let file = file(rollouts());
        let rows: Vec<_> = file.get_row_iter(None).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].get_string(0).unwrap(), "owner__repo-1");
        assert!(rows[0].get_bool(6).unwrap());
        let tokens: Vec<_> = rows[0].get_list(16).unwrap().elements().to_vec();
        assert_eq!(tokens[0], Field::UInt(u32::MAX));
        assert_eq!(tokens.len(), 13);
        let sampled = rows[0].get_list(17).unwrap().elements().to_vec();
        let sampled: Vec<_> = sampled.iter().map(|field| *field == Field::Bool(true)).collect();
        assert_eq!(sampled.iter().filter(|sampled| **sampled).count(), 6);
        assert!(sampled[3] && !sampled[6] && sampled[12]);
        assert_eq!(rows[0].get_list(18).unwrap().elements()[4], Field::Float(-0.25));
        assert_eq!(rows[1].get_list(16).unwrap().len(), 0);
        assert_eq!(rows[1].get_string(5).unwrap(), "sandbox");
        assert!(rows[1].get_bool(6).is_err(), "no grade is null, not false");
    }

    #[test]
    fn branches_are_rows() {
        let foreign = foreign();
        let num_sampled: usize =
            foreign.iter().map(patchwright_core::Rollout::num_sampled_tokens).sum();
        let file = file(foreign);
        let rows: Vec<_> = file.get_row_iter(None).unwrap().collect::<Result<_, _>>().unwrap();
        let ints = |n: usize| -> Vec<i32> { rows.iter().map(|r| r.get_int(n).unwrap()).collect() };
        assert_eq!((ints(2), ints(9), ints(10)), (vec![0, 1, 1], vec![0, 0, 1], vec![1, 2, 2]));
        assert_eq!(ints(11), [1, 2, 1], "turns of each row");
        let rewards: Vec<_> = rows.iter().map(|row| row.get_float(7).ok()).collect();
        assert_eq!(rewards, [None, Some(1.0), Some(1.0)], "of the episode");
        let masks = rows.iter().flat_map(|row| row.get_list(17).unwrap().elements());
        assert_eq!(masks.filter(|mask| **mask == Field::Bool(true)).count(), num_sampled);
    }

    #[test]
    fn many_rows_make_several_groups() {
        let rollout = rollouts().remove(0);
        let file = file(vec![rollout; 5000]);
        assert_eq!(file.metadata().num_row_groups(), 2);
        assert_eq!(file.metadata().file_metadata().num_rows(), 5000);
    }
}
