//! `patchwright report` on a made-up run.

use crate::made_up_run::write_run;
use crate::support::{patchwright, shown};

#[test]
fn a_page_that_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let output = patchwright(dir.path(), &["report", "."]);
    insta::assert_snapshot!(shown(&output));
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    if let Some(copy) = std::env::var_os("PATCHWRIGHT_KEEP_REPORT") {
        std::fs::copy(dir.path().join("report.html"), copy).unwrap();
    }
    let own = html.replace("http://www.w3.org/2000/svg", "").replace("url(#", "");
    for outside in ["http://", "https://", "src=", "href=", "<script", "url(", "@import"] {
        let found = own.contains(outside);
        assert!(!found, "the page loads something or runs something: {outside}");
    }
    assert_eq!(html.matches("<svg").count(), 10, "Pass@1 and nine learning curves");
    assert!(html.contains("&#60;script&#62;alert(1)&#60;/script&#62;"), "texts are escaped");
    assert!(html.contains("Held-out Pass@1 went from 6.1 ± 0.6 % (base) to 35.2 ± 1.3 % (rl-2)."));
    assert!(!html.contains("not finished"));
}

/// What an interrupted run has so far is shown, and said to be so.
#[test]
fn an_unfinished_run_has_a_page_too() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let journal = dir.path().join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    let cut = text.len() / 4;
    std::fs::write(&journal, &text[..cut]).unwrap();
    let output = patchwright(dir.path(), &["report", "."]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("not finished"));
    assert!(!html.contains("NaN"));
    assert!(![">inf", "\"inf", "inf%"].iter().any(|text| html.contains(text)));
}

#[test]
fn a_journal_with_a_header_only() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let journal = dir.path().join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.split_inclusive('\n').next().unwrap()).unwrap();
    let output = patchwright(dir.path(), &["report", "."]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("No policy was measured yet."));
}

#[test]
fn evaluations_as_json() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let output = patchwright(dir.path(), &["report", ".", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["schema_version"], 1);
    assert_eq!(value["evaluations"].as_array().unwrap().len(), 8);
    insta::assert_snapshot!(serde_json::to_string_pretty(&value["evaluations"][0]).unwrap());
}

#[test]
fn a_directory_without_a_run() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(shown(&patchwright(dir.path(), &["report", "."])));
    std::fs::write(dir.path().join("journal.jsonl"), "garbage\n").unwrap();
    insta::assert_snapshot!(shown(&patchwright(dir.path(), &["report", "."])));
}
