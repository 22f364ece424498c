//! `patchwright models`, on the fixtures of the engine's tests.

use std::path::{Path, PathBuf};

use crate::support::{patchwright, shown};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens").join(name)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_gguf_file_becomes_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = text(&fixture("gguf/qwen3.gguf"));
    let import = ["models", "import", &gguf, "--out", "new", "--dtype", "bf16", "--json"];
    let output = patchwright(dir.path(), &import);
    assert!(output.status.success(), "{}", shown(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["dtypes"], serde_json::json!(["BF16"]));
    assert_eq!(json["config"]["model_type"], "qwen3");
    assert_eq!(
        (json["has_chat_template"] == true, &json["tokenizer"]),
        (true, &"tokenizer.json".into())
    );
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        assert!(dir.path().join("new").join(name).is_file(), "{name}");
    }

    // The same by headers alone, before and after.
    for (path, format) in [(gguf.as_str(), "gguf"), ("new", "safetensors")] {
        let output = patchwright(dir.path(), &["models", "show", path, "--json"]);
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["num_parameters"], json["num_parameters"]);
        assert_eq!(shown["format"], format);
    }
    let output = shown(&patchwright(dir.path(), &["models", "show", "new"]));
    for said in ["qwen3", "BF16, 1 safetensors file", "64 tokens", "Chat template  yes"] {
        assert!(output.contains(said), "{output} does not say {said}");
    }

    let again = patchwright(dir.path(), &import);
    assert_eq!(again.status.code(), Some(2));
    assert!(shown(&again).contains("is there already"));
}

#[test]
fn what_is_no_model_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.gguf"), "GGUX").unwrap();
    for (args, said) in [
        (["models", "show", "nothing"], "neither a directory nor a file"),
        (["models", "show", "."], "config.json"),
        (["models", "show", "x.gguf"], "is not a GGUF file"),
    ] {
        let output = patchwright(dir.path(), &args);
        assert_eq!(output.status.code(), Some(2));
        assert!(shown(&output).contains(said), "{}", shown(&output));
    }
    let output = patchwright(dir.path(), &["models", "import", "x.gguf", "--out", "y"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!dir.path().join("y").exists());
}
