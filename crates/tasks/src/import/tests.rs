use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use patchwright_core::TaskInstance;
use proptest::prelude::*;

use super::{BadKind, BadRow, Format, TaskReader, import};

const ROW: &str = r#"{"instance_id":"ID","repo":"org/r","base_commit":"abc","problem_statement":"p","FAIL_TO_PASS":["t"],"PASS_TO_PASS":"[\"u\"]","meta":{"is_lite":true},"install_config":{"test_cmd":"pytest"}}"#;

fn row(id: &str) -> String {
    ROW.replace("ID", id)
}

fn read(path: &Path, format: Format) -> Vec<Result<TaskInstance, BadRow>> {
    TaskReader::open(&[path.to_owned()], format).unwrap().collect()
}

/// What was read: ids, and reasons without the directory.
fn outcome(dir: &Path, items: &[Result<TaskInstance, BadRow>]) -> Vec<String> {
    let home = format!("{}/", dir.display());
    let text = |item: &Result<TaskInstance, BadRow>| match item {
        Ok(instance) => instance.instance_id.clone(),
        Err(bad) => bad.to_string().replace(&home, ""),
    };
    items.iter().map(text).collect()
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_bad_row_is_named_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let no_repo = row("x").replace("\"repo\":\"org/r\",", "");
    let wrong = row("y").replace("[\"t\"]", "7");
    let lines = ["\u{feff}".to_owned() + &row("a"), String::new(), no_repo, wrong, "{".into()];
    let more = [row("a"), row("b"), "[1]".into(), "\u{0}".into()];
    let text = [lines.as_slice(), &more].concat().join("\n");
    let path = write(dir.path(), "rows.jsonl", text);
    let items = read(&path, Format::Auto);
    let seen = outcome(dir.path(), &items);
    assert_eq!(seen[0], "a");
    assert!(seen[1].starts_with("rows.jsonl:3: missing field `repo`"), "{}", seen[1]);
    assert!(seen[2].starts_with("rows.jsonl:4: FAIL_TO_PASS: "), "{}", seen[2]);
    assert!(seen[3].starts_with("rows.jsonl:5: EOF while parsing"), "{}", seen[3]);
    assert!(seen[4].ends_with("instance_id: a was already at rows.jsonl:1"), "{}", seen[4]);
    assert_eq!(seen[5], "b");
    assert!(seen[6].starts_with("rows.jsonl:8: a row is a JSON object"), "{}", seen[6]);
    assert!(seen[7].starts_with("rows.jsonl:9: expected value"), "{}", seen[7]);
    assert_eq!(seen.len(), 8);

    let out = dir.path().join("out/rows.jsonl");
    let reader = || TaskReader::open(std::slice::from_ref(&path), Format::Auto).unwrap();
    let summary = import(reader(), &out, false, |_, _, _| true).unwrap();
    assert_eq!((summary.num_read, summary.num_written), (8, 2));
    assert_eq!((summary.num_bad, summary.num_duplicates), (5, 1));
    assert_eq!(summary.problems.len(), 6);
    assert_eq!(crate::rows::read_task_set(&out).unwrap().len(), 2);

    let strict = dir.path().join("strict.jsonl");
    let summary = import(reader(), &strict, true, |_, _, _| true).unwrap();
    assert!(summary.stopped && summary.num_written == 0 && !strict.exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no partial file stays");
}

#[test]
fn being_told_to_stop_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..300).map(|i| row(&format!("i{i}")) + "\n").collect();
    let path = write(dir.path(), "rows.jsonl", &text);
    let out = dir.path().join("out.jsonl");
    let reader = TaskReader::open(&[path], Format::Auto).unwrap();
    let mut seen = (0, 0);
    let summary = import(reader, &out, false, |done, total, _| {
        seen = (done, total);
        false
    });
    assert!(summary.unwrap().stopped && !out.exists());
    assert_eq!(seen.1, text.len() as u64);
    assert!(seen.0 > 0 && seen.0 <= seen.1);
}

#[test]
fn rows_come_as_arrays_values_and_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: Vec<u8>, expected: &[&str]| {
        let path = write(dir.path(), name, bytes);
        let seen = outcome(dir.path(), &read(&path, Format::Auto));
        assert_eq!(seen.len(), expected.len(), "{name}: {seen:?}");
        for (seen, expected) in seen.iter().zip(expected) {
            assert!(seen.starts_with(expected), "{name}: {seen}");
        }
    };
    let (a, b) = (row("a"), row("b"));
    check("array.json", format!(" [\n{a},\n {b} ]\n").into(), &["a", "b"]);
    check("pretty.json", a.replace(',', ",\n\n").into_bytes(), &["a"]);
    check("values.json", format!("{a}{b}\n{a}").into(), &["a", "b", "values.json:3: instance_id"]);
    check("no_name", format!("{a}\n{b}\n").into(), &["a", "b"]);
    check("mark.json", format!("\u{feff}[{a}]").into(), &["a"]);
    check("empty.json", Vec::new(), &[]);
    check("none.json", b"[]".to_vec(), &[]);
    check("cut.json", format!("[{a},{}", &b[..40]).into(), &["a", "cut.json:2: the row does not"]);
    check("open.json", format!("[{a},").into(), &["a", "open.json:2: the array does not end"]);
    let broken = "{\"instance_id\": nonsense, \"x\": \"]}\\\"\"}";
    check("bad.json", format!("[{broken},{b},7]").into(), &["bad.json:1: ", "b", "bad.json:3: "]);

    let lines = format!("{a}\n{b}\n");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    check("rows.jsonl.gz", gz.clone(), &["a", "b"]);
    check("cut.jsonl.gz", gz[..gz.len() - 6].to_vec(), &["a", "b", "cut.jsonl.gz:3: "]);
    let zst = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    check("rows.jsonl.zst", zst, &["a", "b"]);
}

#[test]
fn directories_are_read_in_the_order_of_paths() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "data/b.jsonl", row("b"));
    write(dir.path(), "data/a.jsonl", row("a"));
    write(dir.path(), "z.jsonl", row("z"));
    write(dir.path(), "dataset_info.json", "{}");
    write(dir.path(), ".cache/c.jsonl", row("c"));
    write(dir.path(), "README.md", "no rows");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    std::os::unix::fs::symlink("../z.jsonl", dir.path().join("data/link.jsonl")).unwrap();
    let seen = outcome(dir.path(), &read(dir.path(), Format::Auto));
    assert_eq!(seen[..3], ["a", "b", "z"]);
    assert!(seen[3].starts_with("z.jsonl:1: instance_id: z was already at"), "{}", seen[3]);
    assert_eq!(seen.len(), 4);
    let error = TaskReader::open(&[dir.path().to_owned()], Format::Parquet).err().unwrap();
    assert!(error.to_string().contains("no *.parquet in it"), "{error}");
    assert!(TaskReader::open(&[dir.path().join("none")], Format::Auto).is_err());
}

#[test]
fn rows_of_every_set_become_alike() {
    let dir = tempfile::tempdir().unwrap();
    let v2 = r#"{"instance_id":"v2","repo":"o/r","base_commit":"c","patch":"p","test_patch":null,
        "problem_statement":"s","FAIL_TO_PASS":["t"],"PASS_TO_PASS":null,"language":"go",
        "created_at":1748736000000,"version":3.1,"interface":"f()","license":"MIT",
        "image_name":"img:latest","install_config":"{\"test_cmd\":[\"go test ./a\",\"go test ./b\"],\"log_parser\":\"parse_go\"}",
        "meta":"{\"num_modified_files\":2,\"llm_metadata\":{\"code\":\"A\"}}"}"#;
    let bench = r#"{"instance_id":"v","repo":"o/r","base_commit":"c","patch":"","test_patch":"","problem_statement":"s","FAIL_TO_PASS":"[\"t\"]","PASS_TO_PASS":"[]","hints_text":null,"difficulty":"<15 min","created_at":"2022-03-03T15:14:54Z"}"#;
    let path = write(dir.path(), "rows.json", format!("{v2}\n{bench}"));
    let rows: Vec<TaskInstance> =
        read(&path, Format::Auto).into_iter().map(Result::unwrap).collect();
    let v2 = &rows[0];
    assert_eq!(v2.install_config.test_cmd, "go test ./a\ngo test ./b");
    assert_eq!(v2.install_config.extra["test_cmds"][1], "go test ./b");
    assert_eq!(v2.extra["meta"]["num_modified_files"], 2);
    assert_eq!(v2.extra["language"], "go");
    assert_eq!(v2.created_at, "2025-06-01T00:00:00Z");
    assert_eq!((v2.version.as_str(), v2.test_patch.as_str()), ("3.1", ""));
    assert_eq!(v2.image(), Some("img:latest"));
    assert!(v2.pass_to_pass.is_empty());
    assert_eq!(v2.install_config.log_parser, "parse_go");
    assert_eq!(rows[1].fail_to_pass, ["t"]);
    assert_eq!(rows[1].extra["difficulty"], "<15 min");
}

/// The grader knows results by what prints them, not by the name of a Python function.
#[test]
fn pytest_is_pytest() {
    let dir = tempfile::tempdir().unwrap();
    let v1 =
        row("a").replace("\"pytest\"", "\"pytest -rA\",\"log_parser\":\"parse_log_pytest_v2\"");
    let items = read(&write(dir.path(), "rows.jsonl", v1), Format::Auto);
    let config = &items[0].as_ref().unwrap().install_config;
    assert_eq!((config.log_parser.as_str(), config.test_cmd.as_str()), ("pytest", "pytest -rA"));
    assert_eq!(config.extra["log_parser_of_source"], "parse_log_pytest_v2");
}

mod parquet_files {
    use std::sync::Arc;

    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    const SCHEMA: &str = "message row {
        required binary instance_id (UTF8); required binary repo (UTF8);
        optional binary problem_statement (UTF8);
        optional group FAIL_TO_PASS (LIST) { repeated group list { optional binary element (UTF8); } }
        optional binary PASS_TO_PASS (UTF8);
        optional int64 created_at (TIMESTAMP_MICROS);
        optional group meta { optional int64 num_modified_files; optional double score; }
    }";

    /// Rows `i0`, `i1`, …; every third without its optional columns.
    pub(super) fn file(path: &Path, num: usize, compression: Compression) {
        let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_data_page_size_limit(512)
            .build();
        let out = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(out, schema, Arc::new(properties)).unwrap();
        for group in (0..num).collect::<Vec<_>>().chunks(40) {
            let texts = |text: &dyn Fn(usize) -> String| -> Vec<ByteArray> {
                group.iter().map(|i| ByteArray::from(text(*i).as_str())).collect()
            };
            let there: Vec<usize> = group.iter().copied().filter(|i| i % 3 != 2).collect();
            let levels = |top: i16| -> Vec<i16> {
                group.iter().map(|i| if i % 3 == 2 { 0 } else { top }).collect()
            };
            let mut row_group = writer.next_row_group().unwrap();
            let mut column = 0;
            while let Some(mut out) = row_group.next_column().unwrap() {
                let bytes = |text: &str| -> Vec<ByteArray> {
                    there.iter().map(|i| ByteArray::from(format!("{text}{i}").as_str())).collect()
                };
                match column {
                    0 => out.typed::<ByteArrayType>().write_batch(
                        &texts(&|i| format!("i{i}")),
                        None,
                        None,
                    ),
                    1 => out.typed::<ByteArrayType>().write_batch(
                        &texts(&|_| "o/r".into()),
                        None,
                        None,
                    ),
                    2 => {
                        // The last row of the file has no issue text.
                        let levels: Vec<i16> =
                            group.iter().map(|i| i16::from(i + 1 != num)).collect();
                        let values: Vec<ByteArray> = group
                            .iter()
                            .filter(|i| *i + 1 != num)
                            .map(|i| ByteArray::from(format!("issue {i} ü").as_str()))
                            .collect();
                        out.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)
                    }
                    3 => {
                        let zeros = vec![0; group.len()];
                        out.typed::<ByteArrayType>().write_batch(
                            &bytes("t"),
                            Some(&levels(3)),
                            Some(&zeros),
                        )
                    }
                    4 => {
                        let values = vec![ByteArray::from("[\"u\"]"); there.len()];
                        out.typed::<ByteArrayType>().write_batch(&values, Some(&levels(1)), None)
                    }
                    5 => {
                        let times = vec![1_748_736_000_000_000; there.len()];
                        out.typed::<Int64Type>().write_batch(&times, Some(&levels(1)), None)
                    }
                    6 => {
                        let files: Vec<i64> = there.iter().map(|i| *i as i64).collect();
                        out.typed::<Int64Type>().write_batch(&files, Some(&levels(2)), None)
                    }
                    _ => {
                        let scores = vec![f64::NAN; there.len()];
                        out.typed::<DoubleType>().write_batch(&scores, Some(&levels(2)), None)
                    }
                }
                .unwrap();
                out.close().unwrap();
                column += 1;
            }
            row_group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn rows_are_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let path = dir.path().join("rows.parquet");
            file(&path, 100, compression);
            let items = read(&path, Format::Auto);
            assert_eq!(items.len(), 100);
            let bad = items[99].as_ref().unwrap_err();
            assert_eq!((bad.kind, bad.row), (BadKind::Row, 100));
            assert!(bad.reason.starts_with("problem_statement: "), "{bad}");
            for (index, item) in items[..99].iter().enumerate() {
                let row = item.as_ref().unwrap();
                assert_eq!(row.instance_id, format!("i{index}"));
                assert_eq!(row.problem_statement, format!("issue {index} ü"));
                if index % 3 == 2 {
                    assert!(row.fail_to_pass.is_empty() && row.created_at.is_empty());
                    assert!(row.extra["meta"].is_null());
                } else {
                    assert_eq!(row.fail_to_pass, [format!("t{index}")]);
                    assert_eq!(row.pass_to_pass, ["u"]);
                    assert_eq!(row.created_at, "2025-06-01T00:00:00Z");
                    assert_eq!(row.extra["meta"]["num_modified_files"], index);
                    assert!(row.extra["meta"]["score"].is_null());
                }
            }
        }
    }

    #[test]
    fn broken_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("good.parquet");
        file(&good, 100, Compression::SNAPPY);
        let bytes = std::fs::read(&good).unwrap();
        for cut in [0, 3, 4, 12, bytes.len() / 2, bytes.len() - 1] {
            let path = write(dir.path(), "cut.parquet", &bytes[..cut]);
            let items = read(&path, Format::Auto);
            assert!(items.last().is_some_and(Result::is_err), "{cut}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        /// Whatever is in a Parquet file, reading it ends, and without a panic.
        #[test]
        fn no_parquet_file_stops_us(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            footer: bool,
        ) {
            use std::sync::OnceLock;
            static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
            let dir = tempfile::tempdir().unwrap();
            let bytes = BYTES.get_or_init(|| {
                let path = dir.path().join("good.parquet");
                file(&path, 50, Compression::UNCOMPRESSED);
                std::fs::read(&path).unwrap()
            });
            let mut bytes = bytes.clone();
            let len = bytes.len();
            for (index, byte) in changes {
                // Half of the files are changed in the footer, where the counts and offsets are.
                let from = if footer { len - len / 4 } else { 0 };
                bytes[from + index.index(len - from)] = byte;
            }
            let path = write(dir.path(), "changed.parquet", &bytes);
            let mut num = 0;
            for item in TaskReader::open(&[path], Format::Auto).unwrap() {
                num += 1;
                prop_assert!(num <= len, "more items than bytes: {:?}", item.err());
            }
        }
    }
}

proptest! {
    /// Any bytes as a JSON file: reading ends, every item is a row or a reason, no panic.
    #[test]
    fn no_json_stops_us(pieces in prop::collection::vec(piece(), 0..40), array: bool) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = if array { b"[".to_vec() } else { Vec::new() };
        bytes.extend(pieces.concat());
        for (name, format) in [("x.json", Format::Json), ("x.jsonl", Format::Jsonl)] {
            let path = write(dir.path(), name, &bytes);
            let num = read(&path, format).len();
            prop_assert!(num <= bytes.len() + 1);
        }
    }

    /// Compressed files that are broken anywhere end in an error, or in rows; no panic.
    #[test]
    fn no_compressed_file_stops_us(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
        gzip: bool,
    ) {
        let lines: String = (0..30).map(|index| row(&index.to_string()) + "\n").collect();
        let mut bytes = if gzip {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(lines.as_bytes()).unwrap();
            gz.finish().unwrap()
        } else {
            zstd::encode_all(lines.as_bytes(), 1).unwrap()
        };
        for (index, byte) in changes {
            let len = bytes.len();
            bytes[index.index(len)] = byte;
        }
        let end = bytes.len() / 2 + cut.index(bytes.len());
        bytes.truncate(end);
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "rows.jsonl", &bytes);
        let num = TaskReader::open(&[path], Format::Auto).unwrap().take(100_000).count();
        prop_assert!(num < 100_000);
    }

    /// What is written as an array, with any strings in it, is cut where the elements end.
    #[test]
    fn arrays_are_cut_between_their_elements(texts in prop::collection::vec(".{0,12}", 1..8)) {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<serde_json::Value> = texts
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let mut row: serde_json::Value =
                    serde_json::from_str(&row(&index.to_string())).unwrap();
                row["problem_statement"] = text.as_str().into();
                row["nested"] = serde_json::json!([[text], {"]": text}]);
                row
            })
            .collect();
        for text in [
            serde_json::to_string(&rows).unwrap(),
            serde_json::to_string_pretty(&rows).unwrap(),
            rows.iter().map(ToString::to_string).collect::<String>(),
        ] {
            let path = write(dir.path(), "rows.json", text);
            let read: Vec<TaskInstance> =
                read(&path, Format::Auto).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), texts.len());
            for (instance, text) in read.iter().zip(&texts) {
                prop_assert_eq!(&instance.problem_statement, text);
                prop_assert_eq!(instance.extra["nested"][1]["]"].as_str(), Some(text.as_str()));
            }
        }
    }
}

/// Pieces of JSON, good and bad, and any bytes.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\n",
        " ",
        "null",
        "7",
        "\"instance_id\"",
        "\"repo\":\"r\"",
        "\u{feff}",
    ]);
    prop_oneof![
        4 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
        1 => Just(row("q").into_bytes()),
    ]
}
