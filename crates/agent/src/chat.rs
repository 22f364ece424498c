//! Chat templates: how a model's makers turn a conversation into text, in Jinja.
//!
//! They are written for Python's Jinja as `transformers` sets it up (blocks trimmed, `tojson`
//! without escapes for HTML, `raise_exception`, `strftime_now`, methods of Python's strings), and
//! render here to the same characters. A template is text of the outside: it can load nothing, and
//! its steps and its output are bounded.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::ser::Serialize;
use serde_json::Value as Json;
use serde_json::ser::Formatter;

/// Bytes of a template file, or of a `tokenizer_config.json`, at most.
const MAX_BYTES: u64 = 16 << 20;
/// Instructions of one rendering at most.
const MAX_FUEL: u64 = 50_000_000;

/// A template that cannot be read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file cannot be read.
    #[error("chat template {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("chat template {path}: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The template failed, or refused the conversation.
    #[error("chat template: {0}")]
    Render(String),
}

/// What a conversation is rendered with, besides its messages.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// Whether the opening of the assistant's next message follows.
    pub add_generation_prompt: bool,
    /// Tools, a list of JSON schemas; `None` where the template hears of none. Parsed into this
    /// type, objects keep the order of their keys, which the template shows.
    pub tools: Option<Value>,
    /// More variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, Value>,
    /// What `strftime_now` says. `None`: there is no such function, and a template takes the date
    /// that it has for this case, so that prompts do not depend on the day.
    pub now: Option<SystemTime>,
}

/// A chat template with the special tokens that it may speak of.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like.
    tokens: BTreeMap<String, Value>,
    source: String,
}

impl ChatTemplate {
    /// Reads the template of a model's directory: `chat_template.jinja`, or else what
    /// `tokenizer_config.json` has. `None` where there is none.
    ///
    /// # Errors
    /// [`ChatError`] naming the file.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, ChatError> {
        let config_path = dir.join("tokenizer_config.json");
        let config: Json = match read(&config_path)? {
            None => Json::Null,
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| format_error(&config_path, error.to_string()))?,
        };
        let path = dir.join("chat_template.jinja");
        let (path, source) = if let Some(source) = read(&path)? {
            (path, source)
        } else if let Some(source) = default_template(&config["chat_template"]) {
            (config_path, source.to_owned())
        } else {
            return Ok(None);
        };
        let tokens = special_tokens(&config);
        let template = Self::new(source, tokens);
        template.map(Some).map_err(|error| format_error(&path, error.to_string()))
    }

    /// A template with the special tokens that it may speak of (`bos_token`, …).
    ///
    /// # Errors
    /// [`ChatError::Render`] for broken syntax, saying where.
    pub fn new(source: String, tokens: BTreeMap<String, Value>) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(MAX_FUEL));
        environment.set_unknown_method_callback(|state, value, method, arguments| {
            match (method, value.as_str(), arguments) {
                ("title", Some(text), []) => Ok(title(text).into()),
                _ => unknown_method_callback(state, value, method, arguments),
            }
        });
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| {
            Err::<String, _>(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.clone())
            .map_err(|error| ChatError::Render(describe(&error)))?;
        Ok(Self { environment, tokens, source })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. A message is an object with `role`, `content` and whatever else
    /// the template asks for.
    ///
    /// # Errors
    /// [`ChatError::Render`] with what the template says, or where it failed.
    pub fn render(&self, messages: &[Value], options: &ChatOptions) -> Result<String, ChatError> {
        let mut variables = self.tokens.clone();
        let given = [
            ("messages", messages.iter().map(with_reasoning).collect()),
            ("tools", options.tools.clone().unwrap_or(Value::from(()))),
            ("documents", Value::from(())),
            ("add_generation_prompt", options.add_generation_prompt.into()),
        ];
        variables.extend(given.map(|(name, value)| (name.to_owned(), value)));
        variables.extend(options.variables.clone());
        let mut environment = self.environment.clone();
        if let Some(now) = options.now {
            environment.add_function("strftime_now", move |format: String| strftime(now, &format));
        }
        let fail = |error: Error| ChatError::Render(describe(&error));
        environment.get_template("chat").map_err(fail)?.render(variables).map_err(fail)
    }
}

/// Names of a message's reasoning, the one that templates should read first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message whose reasoning, if it has any, is found under the first two names, as `transformers`
/// has it.
fn with_reasoning(message: &Value) -> Value {
    let get = |name: &str| {
        let value = message.get_attr(name).ok()?;
        (!value.is_none() && !value.is_undefined()).then_some(value)
    };
    let Some(reasoning) = REASONING.iter().find_map(|name| get(name)) else {
        return message.clone();
    };
    let mut pairs = vec![("thinking".to_owned(), get("thinking").unwrap_or(reasoning.clone()))];
    let mut placed = false;
    for key in message.try_iter().into_iter().flatten() {
        let name = key.to_string();
        if name == REASONING[0] {
            pairs.push((name, reasoning.clone()));
            placed = true;
        } else if name != "thinking" {
            pairs.push((name, message.get_item(&key).unwrap_or_default()));
        }
    }
    if !placed {
        pairs.push((REASONING[0].to_owned(), reasoning));
    }
    Value::from_pairs(pairs)
}

/// A message of a conversation.
pub fn message(role: &str, content: &str) -> Value {
    Value::from_pairs([("role", role), ("content", content)])
}

fn read(path: &Path) -> Result<Option<String>, ChatError> {
    let io = |source| ChatError::Io { path: path.display().to_string(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(format_error(path, format!("is larger than {MAX_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(io)
}

fn format_error(path: &Path, reason: String) -> ChatError {
    ChatError::Format { path: path.display().to_string(), reason }
}

/// A template by itself, or the one named `default` of several.
fn default_template(value: &Json) -> Option<&str> {
    let named = |value: &Json| value["name"] == "default";
    match value {
        Json::Array(several) => several.iter().find(|v| named(v))?["template"].as_str(),
        other => other.as_str(),
    }
}

/// The special tokens of a `tokenizer_config.json`, each a string or an object with `content`.
fn special_tokens(config: &Json) -> BTreeMap<String, Value> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let content = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name.clone(), content.into()))
        })
        .collect()
}

/// What went wrong, and in which line; the innermost cause says it best.
fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

fn strftime(now: SystemTime, format: &str) -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut text = String::new();
    write!(text, "{}", DateTime::<Utc>::from(now).format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format {format:?}"))
    })?;
    Ok(text)
}

/// Python's `str.title`: a letter is large where no letter is before it.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            titled.extend(c.to_lowercase());
        } else {
            titled.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    titled
}

/// JSON as Python writes it: a space behind commas and colons, and nothing escaped for HTML.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `tojson` as `transformers` has it: `indent` is the only option that templates use.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a filter")]
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let bad = |error: String| Error::new(ErrorKind::BadSerialization, error);
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ensure_ascii == Some(true) {
        return Err(bad("tojson: ensure_ascii is not supported".to_owned()));
    }
    let mut bytes = Vec::new();
    let written = if let Some(indent) = indent {
        let spaces = " ".repeat(indent.min(64));
        let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty))
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))
    };
    written.map_err(|error| bad(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| bad(error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use minijinja::Value;

    use super::{ChatOptions, ChatTemplate, message};

    fn render(source: &str, options: &ChatOptions) -> Result<String, String> {
        let tokens = [("eos_token".to_owned(), Value::from("<end>"))].into();
        let template = ChatTemplate::new(source.to_owned(), tokens).map_err(|e| e.to_string())?;
        template.render(&[message("user", " <a> ")], options).map_err(|e| e.to_string())
    }

    #[test]
    fn the_environment_is_that_of_transformers() {
        let plain = ChatOptions::default();
        for (source, expected) in [
            (
                "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}",
                " <a> \n",
            ),
            ("{{ messages[0]['content'].strip() }}{{ eos_token }}{{ bos_token }}", "<a><end>"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " <a> "}"#),
            ("{{ [1, 2.5, none, true] | tojson }}", "[1, 2.5, null, true]"),
            ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
            ("{{ 'x</think>y'.split('</think>')[-1] }}{{ ' y'.lstrip() }}", "yy"),
            ("{{ messages[::-1] | length }}{{ 'aXb'.replace('X', '-').upper() }}", "1A-B"),
            ("{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
            ("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "2"),
            ("{% if strftime_now is defined %}now{% else %}26 Jul 2024{% endif %}", "26 Jul 2024"),
            ("{% if tools is none %}none{% endif %}{{ add_generation_prompt }}", "noneFalse"),
        ] {
            assert_eq!(render(source, &plain).as_deref(), Ok(expected), "{source}");
        }
        let now = Some(SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365));
        let variables = [("enable_thinking".to_owned(), Value::from(false))].into();
        let options = ChatOptions { variables, now, ..ChatOptions::default() };
        let source = "{{ strftime_now('%d %b %Y') }}{% if enable_thinking is false %}!{% endif %}";
        assert_eq!(render(source, &options).as_deref(), Ok("01 Jan 1971!"));
    }

    #[test]
    fn what_fails_says_where() {
        let plain = ChatOptions::default();
        for (source, expected) in [
            (
                "\n{{ raise_exception('System role not supported') }}",
                "System role not supported (line 2",
            ),
            ("{% for %}", "line 1"),
            ("{{ messages.nothing() }}", "nothing"),
            ("{% include 'x' %}", "include"),
            (
                "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
                "fuel",
            ),
        ] {
            let said = render(source, &plain).unwrap_err();
            assert!(said.contains(expected), "{source}: {said:?} does not say {expected:?}");
        }
    }

    #[test]
    fn templates_are_found_where_models_have_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(ChatTemplate::from_dir(path).unwrap().is_none());
        let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
        let rendered = || {
            let template = ChatTemplate::from_dir(path).unwrap().unwrap();
            template.render(&[], &ChatOptions::default()).unwrap()
        };
        write(
            "tokenizer_config.json",
            r#"{"chat_template": "a{{ eos_token }}", "eos_token": "e"}"#,
        );
        assert_eq!(rendered(), "ae");
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "t"},
                {"name": "default", "template": "b{{ bos_token }}"}],
                "bos_token": {"content": "x", "special": true}}"#,
        );
        assert_eq!(rendered(), "bx");
        write("chat_template.jinja", "c{{ bos_token }}");
        assert_eq!(rendered(), "cx");
        write("chat_template.jinja", "{% if %}");
        let error = ChatTemplate::from_dir(path).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja") && error.contains("line 1"), "{error}");
        write("tokenizer_config.json", "{");
        let error = ChatTemplate::from_dir(path).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }
}
