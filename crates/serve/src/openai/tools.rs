//! Tool calls: parsed out of the text in the form of Hermes and Qwen,
//! `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

use minijinja::Value;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::error::ApiError;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Tools of one request at most.
const MAX_TOOLS: usize = 256;

/// A call as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolCall {
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// The text before the first call, and the calls. Text in which a call is not well formed is all
/// text: nothing is guessed.
pub(crate) fn parse(text: &str) -> (String, Vec<ToolCall>) {
    let whole = || (text.to_owned(), Vec::new());
    let Some((content, mut rest)) = text.split_once(OPEN) else { return whole() };
    let mut calls = Vec::new();
    loop {
        // The last one may lack its end, where the end was a stop.
        let (body, after) = rest.split_once(CLOSE).unwrap_or((rest, ""));
        let Ok(Written { name, arguments }) = serde_json::from_str(body.trim()) else {
            return whole();
        };
        let arguments = match arguments.map(RawValue::get) {
            None => "{}".to_owned(),
            // Some models write the arguments as a string of JSON.
            Some(raw) => serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned()),
        };
        calls.push(ToolCall { name, arguments });
        match after.split_once(OPEN) {
            Some((_, next)) => rest = next,
            None => break,
        }
    }
    (content.trim_end().to_owned(), calls)
}

/// The calls as a response shows them.
pub(crate) fn to_json(calls: &[ToolCall], id: &str) -> Vec<serde_json::Value> {
    let call = |(index, call): (usize, &ToolCall)| {
        json!({
            "index": index,
            "id": format!("call_{id}_{index}"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        })
    };
    calls.iter().enumerate().map(call).collect()
}

/// Checks what the request says about tools. `None` where the template is to hear of none.
pub(crate) fn check(
    tools: Option<Vec<Value>>,
    choice: Option<&serde_json::Value>,
) -> Result<Option<Value>, ApiError> {
    let tools = tools.filter(|tools| !tools.is_empty());
    for (index, tool) in tools.iter().flatten().enumerate() {
        let function = tool.get_attr("function").unwrap_or_default();
        if function.get_attr("name").ok().and_then(|name| name.as_str().map(str::len)).is_none() {
            return Err(ApiError::param(
                "tools",
                format!("number {index} is no function with a name"),
            ));
        }
    }
    if tools.as_ref().is_some_and(|tools| tools.len() > MAX_TOOLS) {
        return Err(ApiError::param("tools", format!("more than {MAX_TOOLS}")));
    }
    match choice.map(|choice| choice.as_str()) {
        None | Some(Some("auto")) => Ok(tools.map(Value::from)),
        Some(Some("none")) => Ok(None),
        Some(_) => Err(ApiError::param(
            "tool_choice",
            "a call cannot be forced here, only auto and none are supported",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{ToolCall, parse};

    #[test]
    fn calls_are_found_and_bad_ones_stay_text() {
        let call = |name: &str, arguments: &str| ToolCall {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        let one = r#"<tool_call>
{"name": "bash", "arguments": {"z": 1, "command": "ls </tmp"}}
</tool_call>"#;
        for (text, content, calls) in [
            ("just text", "just text", vec![]),
            (one, "", vec![call("bash", r#"{"z": 1, "command": "ls </tmp"}"#)]),
            (
                r#"Look. <tool_call>{"name":"a","arguments":"{\"x\":1}"}</tool_call><tool_call>{"name":"b"}"#,
                "Look.",
                vec![call("a", r#"{"x":1}"#), call("b", "{}")],
            ),
        ] {
            assert_eq!(parse(text), (content.to_owned(), calls), "{text}");
        }
        for bad in
            ["<tool_call>{\"name\": 3}</tool_call>", "<tool_call>ls</tool_call>", "a <tool_call>"]
        {
            assert_eq!(parse(bad), (bad.to_owned(), vec![]));
        }
    }
}
