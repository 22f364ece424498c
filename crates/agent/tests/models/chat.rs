//! The same characters as transformers: `goldens/make_chat.py` made the fixture.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use minijinja::Value;
use patchwright_agent::{ChatOptions, ChatTemplate};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    now: u64,
    tokens: BTreeMap<String, Value>,
    templates: BTreeMap<String, String>,
    tools: Value,
    conversations: BTreeMap<String, Vec<Value>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    tools: bool,
    variables: BTreeMap<String, Value>,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn templates_render_to_the_same_characters() {
    let fixture: Fixture = serde_json::from_str(include_str!("goldens/chat.json")).unwrap();
    let mut num_errors = 0;
    for case in &fixture.cases {
        let source = fixture.templates[&case.template].clone();
        let template = ChatTemplate::new(source, fixture.tokens.clone()).unwrap();
        let options = ChatOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools.then(|| fixture.tools.clone()),
            variables: case.variables.clone(),
            now: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(fixture.now)),
        };
        let found = template.render(&fixture.conversations[&case.conversation], &options);
        let name = format!(
            "{}, {}, generation {}, tools {}",
            case.template, case.conversation, case.add_generation_prompt, case.tools
        );
        match (found, &case.text, &case.error) {
            (Ok(found), Some(text), _) => assert_eq!(found, *text, "{name}"),
            (Err(found), None, Some(error)) => {
                num_errors += 1;
                assert!(found.to_string().contains(error), "{name}: {found} is not {error}");
            }
            (found, ..) => panic!("{name}: {found:?}, expected {:?}", case.text),
        }
    }
    assert!(fixture.cases.len() > 80 && num_errors > 3, "the fixture has both kinds");
}
