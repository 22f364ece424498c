//! What is written is read by the tools that the formats belong to, where `PATCHWRIGHT_READERS`
//! names the environment that `scripts/foreign_readers.sh` made. `read_back.py` says what is
//! compared.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use patchwright_core::{FailureClass, Rollout};
use patchwright_formats::{Origin, atif, chat, columns, native, predictions};

fn write_all(dir: &Path) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let of = |name: &str| native::read(&tests.join(name)).unwrap().map(Result::unwrap);
    // Our own agent's, and a foreign one's: an attempt that it left, and one with a branch.
    let rollouts: Vec<Rollout> = of("rollouts.jsonl").chain(of("foreign.jsonl")).collect();
    let origin = Origin {
        agent_name: "patchwright".to_owned(),
        agent_version: "0.1.0".to_owned(),
        model_name: "org/base".to_owned(),
    };
    let file = |name: &str| File::create_new(dir.join(name)).unwrap();
    native::write(&mut file("rollouts.jsonl"), &rollouts).unwrap();
    let rows = rollouts.iter().cloned().map(Ok::<_, columns::ParquetError>);
    let written = columns::write(file("rollouts.parquet"), rows).unwrap();
    assert_eq!((written.num_rollouts, written.num_rows), (4, 5));
    for (index, rollout) in rollouts.iter().enumerate() {
        let document = atif::document(rollout, &origin, true).to_string();
        std::fs::write(dir.join(format!("atif-{index}.json")), document).unwrap();
    }
    let written = chat::write(&mut file("chat.jsonl"), &dir.join("chat.jsonl"), &rollouts).unwrap();
    assert_eq!((written.num_rollouts, written.num_rows), (3, 4));
    let rollouts: Vec<Rollout> =
        rollouts.into_iter().filter(|r| r.failure != Some(FailureClass::Agent)).collect();
    let object = predictions::object(&rollouts, &origin).unwrap().to_string();
    std::fs::write(dir.join("preds.json"), object).unwrap();
    std::fs::write(dir.join("preds.jsonl"), predictions::lines(&rollouts, &origin).unwrap())
        .unwrap();
    let report = predictions::report(&rollouts).unwrap().to_string();
    std::fs::write(dir.join("report.json"), report).unwrap();
}

#[test]
fn foreign_readers_find_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    let Some(readers) = std::env::var_os("PATCHWRIGHT_READERS") else {
        eprintln!("PATCHWRIGHT_READERS is not set: written, but not read by others");
        return;
    };
    let output = Command::new(Path::new(&readers).join("bin/python"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_back.py"))
        .arg(dir.path())
        .envs([("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "read back: 4 rollouts\n");
}
