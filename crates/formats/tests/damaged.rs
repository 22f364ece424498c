//! Damaged documents are refused or read, and never panic.

use proptest::prelude::*;

use patchwright_core::Rollout;
use patchwright_formats::{Origin, atif, chat, native, swe_agent};
use serde_json::Value;

fn rollout() -> Rollout {
    serde_json::from_str(include_str!("rollouts.jsonl").lines().next().unwrap()).unwrap()
}

/// Any JSON, small.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Replaces the `n`-th value of a document, counted in depth first order.
fn replace(value: &mut Value, n: &mut usize, with: &Value) {
    if *n == 0 {
        *value = with.clone();
    }
    *n = n.wrapping_sub(1);
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, n, with)),
        Value::Object(map) => map.values_mut().for_each(|item| replace(item, n, with)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn readers_never_panic(n in 0usize..120, with in json(), cut in 0usize..6000) {
        let origin = Origin {
            agent_name: "a".into(), agent_version: "1".into(), model_name: "m".into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("document.jsonl");
        let documents = [
            atif::document(&rollout(), &origin, true),
            swe_agent::document(&rollout()),
            serde_json::to_value(rollout()).unwrap(),
        ];
        for mut document in documents {
            replace(&mut document, &mut n.clone(), &with);
            let text = document.to_string().into_bytes();
            for bytes in [&text[..], &text[..cut.min(text.len())]] {
                std::fs::write(&path, bytes).unwrap();
                let natives = native::read(&path).unwrap().filter_map(Result::ok);
                let read = [atif::read(&path), swe_agent::read(&path)];
                for rollout in read.into_iter().flatten().chain(natives) {
                    // What was accepted can be written again.
                    let _ = chat::records(&rollout);
                    let _ = atif::document(&rollout, &origin, true);
                    let _ = swe_agent::document(&rollout);
                }
            }
        }
    }
}
