//! Prompts are data: how a model is spoken to, in one TOML file.
//!
//! A [`Profile`] holds the framing of messages (special tokens; or it leaves that to the model's own
//! chat template), the templates of the system and instance messages, how commands are written, and
//! every text that tools answer with. Three come with the program: `full` (`ChatML`, reasoning and a
//! fenced command, texts for people and large models), `chat` (the same, framed by the model's chat
//! template) and `compact` (for small models: one special token per message, a message is a command,
//! no text that is not needed). Templates are minijinja; the variables of each are named
//! at its field, any other is refused when the profile is loaded.

use std::path::Path;
use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

const FULL: &str = include_str!("../profiles/full.toml");
const COMPACT: &str = include_str!("../profiles/compact.toml");

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("profile {path}: {source} (built-in profiles are: full, chat, compact)")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not a profile: syntax, a missing or an unknown key, a wrong value.
    #[error("profile {path}: {reason}")]
    Format {
        /// The file or built-in name.
        path: String,
        /// Where and what.
        reason: String,
    },
    /// A template is broken or uses a variable that it is not given.
    #[error("profile template {field}: {reason}")]
    Template {
        /// The field.
        field: String,
        /// Where and what.
        reason: String,
    },
    /// The model's chat template is missing, broken, or cannot be used.
    #[error("profile {profile}: {reason}")]
    ChatTemplate {
        /// The profile's name.
        profile: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The tokenizer lacks what the framing needs.
    #[error(
        "profile {profile}: {field} = {value:?} must hold a special token of the tokenizer; \
         use a profile made for this model"
    )]
    Framing {
        /// The profile's name.
        profile: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

/// How a turn's text holds its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandStyle {
    /// Free reasoning around exactly one fenced block whose info string is `command`.
    Fenced,
    /// The whole message is one command.
    Bare,
}

/// What `edit` and `replace` show afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditView {
    /// The window around the change.
    Window,
    /// The new lines only.
    NewLines,
}

/// Token strings around each role's messages. Special tokens in them are special tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Framing {
    /// Before the system message (left out with it when the message is empty).
    pub system_prefix: String,
    /// After the system message.
    pub system_suffix: String,
    /// Before the instance message and each observation.
    pub user_prefix: String,
    /// After the instance message and each observation.
    pub user_suffix: String,
    /// Before each of the model's messages.
    pub assistant_prefix: String,
    /// After each of the model's messages. Its first token ends a turn (the stop token).
    pub assistant_suffix: String,
}

/// How observations are bounded and closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservationFormat {
    /// Appended to every observation. Variables: `directory`, `file`. Empty: nothing.
    pub suffix: String,
    /// What `file` is while none is open.
    pub no_file: String,
    /// An observation of more than `head_chars + tail_chars` characters is cut: its first
    /// `head_chars` and last `tail_chars` characters are kept, with `cut_note` between them.
    pub head_chars: usize,
    /// See `head_chars`.
    pub tail_chars: usize,
    /// Stands for what was left out. Variables: `num_chars`.
    pub cut_note: String,
}

/// How files are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// Number of lines that `open` shows at once.
    pub window_lines: usize,
    /// Above a listing. Variables: `path`, `num_lines`. Empty: no header.
    pub header: String,
    /// Stands for lines above the window. Variables: `num_lines`. Empty: not shown.
    pub above: String,
    /// Stands for lines below the window. Variables: `num_lines`. Empty: not shown.
    pub below: String,
    /// What `edit` and `replace` show afterwards.
    pub edit_view: EditView,
    /// At most this many lines of a search's result are shown.
    pub num_matches_max: usize,
}

macro_rules! texts {
    ($($(#[$doc:meta])* $field:ident($($var:ident),*)),* $(,)?) => {
        /// What tools answer with. Empty: nothing is said.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Texts {
            $($(#[$doc])* #[doc = concat!("\n\nVariables:", $(" `", stringify!($var), "`",)* ".")]
            pub $field: String,)*
        }

        impl Texts {
            fn fields(&self) -> Vec<(&'static str, &str, &'static [&'static str])> {
                vec![$((
                    concat!("texts.", stringify!($field)),
                    self.$field.as_str(),
                    &[$(stringify!($var)),*],
                )),*]
            }
        }
    };
}

texts! {
    /// A command without output.
    empty_output(),
    /// Added when a command's exit code is not 0.
    exit_code(code),
    /// Added when a signal ended a command.
    signal(number),
    /// Added when a command ran out of time.
    timed_out(seconds),
    /// Added when a command wrote more than is kept.
    output_dropped(num_bytes),
    /// The working directory is gone; the agent is back in the repository's root.
    no_directory(path),
    /// A path that cannot be read.
    no_file(path, reason),
    /// A file too large for the tools.
    too_large(path, num_bytes_max),
    /// A file that cannot be written.
    not_written(path, reason),
    /// A tool that needs an open file.
    nothing_open(),
    /// A line that the file does not have.
    bad_line(line, num_lines),
    /// `create` of a file that exists.
    exists(path),
    /// `create` made the file.
    created(path),
    /// `edit` took out lines without putting any.
    deleted(),
    /// Before what is shown after an edit. Empty: nothing.
    edited(path),
    /// `replace` did not find the text.
    not_found(path),
    /// `replace` found the text several times without `--replace-all`.
    not_unique(path, num_matches, lines),
    /// A search without result.
    no_matches(term, place),
    /// Above a search's result. Empty: nothing.
    matches(num_matches, term, place),
    /// Below a search's result that is not whole.
    more_matches(num_more),
    /// A search that did not work.
    search_failed(reason),
    /// Format error: a turn without a command.
    no_command(),
    /// Format error: a turn with several commands.
    several_commands(),
    /// Format error: a tool's arguments.
    malformed(reason),
    /// A turn that was cut off at the limit of tokens.
    turn_too_long(num_tokens_max),
}

/// A message of a demonstration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemonstrationMessage {
    /// Who speaks.
    pub role: DemonstrationRole,
    /// What is said.
    pub content: String,
}

/// Who speaks in a demonstration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DemonstrationRole {
    /// The task or an observation.
    User,
    /// The model.
    Assistant,
}

/// How a model is spoken to. See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name, for messages and journals.
    pub name: String,
    /// How a turn's text holds its command.
    pub command_style: CommandStyle,
    /// The system message. Variables: `workdir`, `window_lines`. Empty: none.
    pub system: String,
    /// The first message. Variables: `problem_statement`, `hints_text`, `repo`, `workdir`.
    pub instance: String,
    /// Whether the chat template of the model's directory frames messages. Then there is no
    /// `framing`.
    #[serde(default)]
    pub chat_template: bool,
    /// Token strings around messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framing: Option<Framing>,
    /// How observations are bounded and closed.
    pub observation: ObservationFormat,
    /// How files are shown.
    pub listing: Listing,
    /// What tools answer with.
    pub texts: Texts,
    /// A worked session that may be shown before the instance (RFT samples with it, and trains
    /// without).
    #[serde(default)]
    pub demonstration: Vec<DemonstrationMessage>,
}

impl Profile {
    /// The built-in profile for models that speak `ChatML`.
    pub fn full() -> Self {
        Self::builtin("full").expect("the shipped profile is valid: a test loads it")
    }

    /// The built-in profile for small models.
    pub fn compact() -> Self {
        Self::builtin("compact").expect("the shipped profile is valid: a test loads it")
    }

    /// The built-in profile for models with a chat template.
    pub fn chat() -> Self {
        Self::builtin("chat").expect("the shipped profile is valid: a test loads it")
    }

    /// A profile that comes with the program: `full`, `chat` or `compact`.
    ///
    /// # Errors
    /// [`ProfileError::Format`] for another name.
    pub fn builtin(name: &str) -> Result<Self, ProfileError> {
        match name {
            "full" => Self::from_toml(FULL, "full"),
            "compact" => Self::from_toml(COMPACT, "compact"),
            // The texts of `full`; only who frames them differs.
            "chat" => Self::from_toml(FULL, "full").map(|full| Self {
                name: "chat".to_owned(),
                chat_template: true,
                framing: None,
                ..full
            }),
            _ => Err(ProfileError::Format {
                path: name.to_owned(),
                reason: "no such built-in profile; there are: full, chat, compact".to_owned(),
            }),
        }
    }

    /// A built-in profile by its name, any other by the path of its file.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn resolve(name_or_path: &str) -> Result<Self, ProfileError> {
        if matches!(name_or_path, "full" | "chat" | "compact") {
            return Self::builtin(name_or_path);
        }
        let text = std::fs::read_to_string(Path::new(name_or_path))
            .map_err(|source| ProfileError::Io { path: name_or_path.to_owned(), source })?;
        Self::from_toml(&text, name_or_path)
    }

    /// Reads and checks a profile; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ProfileError::Format`] and [`ProfileError::Template`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|error| ProfileError::Format {
            path: origin.to_owned(),
            reason: error.to_string(),
        })?;
        let format =
            |reason: &str| ProfileError::Format { path: origin.into(), reason: reason.into() };
        match &profile.framing {
            None if !profile.chat_template => {
                return Err(format("framing is missing, and chat_template is not true"));
            }
            Some(_) if profile.chat_template => {
                return Err(format("framing is given, but chat_template = true takes its place"));
            }
            Some(framing) if framing.assistant_suffix.is_empty() => {
                return Err(format("framing.assistant_suffix is empty: nothing would end a turn"));
            }
            _ => {}
        }
        if profile.listing.window_lines == 0 {
            return Err(format("listing.window_lines must be at least 1"));
        }
        if profile.listing.num_matches_max == 0 {
            return Err(format("listing.num_matches_max must be at least 1"));
        }
        if profile.observation.head_chars + profile.observation.tail_chars == 0 {
            return Err(format("observation.head_chars + tail_chars must be at least 1"));
        }
        profile.check_templates()?;
        Ok(profile)
    }

    fn check_templates(&self) -> Result<(), ProfileError> {
        let mut templates = vec![
            ("system", self.system.as_str(), &["workdir", "window_lines"][..]),
            (
                "instance",
                self.instance.as_str(),
                &["problem_statement", "hints_text", "repo", "workdir"][..],
            ),
            ("observation.suffix", self.observation.suffix.as_str(), &["directory", "file"][..]),
            ("observation.cut_note", self.observation.cut_note.as_str(), &["num_chars"][..]),
            ("listing.header", self.listing.header.as_str(), &["path", "num_lines"][..]),
            ("listing.above", self.listing.above.as_str(), &["num_lines"][..]),
            ("listing.below", self.listing.below.as_str(), &["num_lines"][..]),
        ];
        templates.extend(self.texts.fields());
        for (field, template, variables) in templates {
            let given: Vec<(&str, Value)> =
                variables.iter().map(|name| (*name, Value::from("1"))).collect();
            render(field, template, &given)?;
        }
        Ok(())
    }
}

/// Renders one template of a profile with its variables.
///
/// # Errors
/// [`ProfileError::Template`] for broken syntax or a variable that is not given.
pub fn render(
    field: &str,
    template: &str,
    variables: &[(&str, Value)],
) -> Result<String, ProfileError> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    if !template.contains('{') {
        return Ok(template.to_owned());
    }
    let environment = ENVIRONMENT.get_or_init(|| {
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let mut syntax = SyntaxConfig::builder();
        syntax.keep_trailing_newline(true);
        if let Ok(syntax) = syntax.build() {
            environment.set_syntax(syntax);
        }
        environment
    });
    let context = Value::from_pairs(variables.iter().map(|(k, v)| (*k, v.clone())));
    environment.render_str(template, context).map_err(|error| ProfileError::Template {
        field: field.to_owned(),
        reason: error.to_string(),
    })
}

/// Renders a text of a loaded profile, whose templates were all checked with the same variables.
pub(crate) fn say(template: &str, variables: &[(&str, Value)]) -> String {
    // Checked when the profile was loaded; were one to fail regardless, the model sees which.
    render("text", template, variables).unwrap_or_else(|error| format!("[{error}]"))
}

#[cfg(test)]
mod tests {
    use super::{COMPACT, Profile, render};

    #[test]
    fn the_built_in_profiles_load() {
        for name in ["full", "chat", "compact"] {
            assert_eq!(Profile::builtin(name).unwrap().name, name);
        }
        assert_ne!(Profile::full(), Profile::compact());
        assert!(Profile::builtin("ful").unwrap_err().to_string().contains("full, chat, compact"));
    }

    #[test]
    fn the_compact_profile_adds_nothing_but_roles() {
        let profile = Profile::builtin("compact").unwrap();
        let framing = profile.framing.unwrap();
        assert_eq!(framing.user_prefix, "<|user|>");
        assert_eq!(framing.assistant_prefix, "<|assistant|>");
        assert_eq!(framing.assistant_suffix, "<|end|>");
        assert_eq!(framing.user_suffix, "");
        assert_eq!(framing.system_prefix, "");
        assert_eq!(framing.system_suffix, "");
        assert_eq!(profile.system, "");
        assert_eq!(profile.instance, "{{ problem_statement }}");
        assert_eq!(profile.observation.suffix, "");
    }

    #[test]
    fn mistakes_in_a_profile_are_refused_with_their_place() {
        for (from, to, said) in [
            ("name =", "nom =", "nom"),
            ("{{ problem_statement }}", "{{ problem }}", "instance"),
            ("{{ problem_statement }}", "{{ problem_statement", "instance"),
            ("assistant_suffix = \"<|end|>\"", "assistant_suffix = \"\"", "assistant_suffix"),
            ("command_style = \"bare\"", "command_style = \"naked\"", "naked"),
            ("window_lines = ", "window_lines = 0 # ", "window_lines"),
            ("name =", "chat_template = true\nname =", "takes its place"),
        ] {
            let broken = COMPACT.replacen(from, to, 1);
            assert_ne!(broken, COMPACT, "{from}");
            let error = Profile::from_toml(&broken, "test").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn values_are_not_templates() {
        let given = [("a", minijinja::Value::from("{{ b }}\n"))];
        assert_eq!(render("t", "<{{ a }}>\n", &given).unwrap(), "<{{ b }}\n>\n");
    }
}
