//! What stands between the messages of a conversation: a profile's framing, or what a chat
//! template was seen to put there.
//!
//! A trajectory's tokens are only appended to, so a conversation must be its messages with the
//! same strings between them, however long it gets. A chat template is asked with messages that
//! can be told apart; whatever is not a message is a joint. One that renders an earlier message
//! otherwise once the conversation goes on (Qwen 3 drops what was thought) is refused.

use crate::chat::{ChatError, ChatOptions, ChatTemplate, message};
use crate::profile::Framing;

/// Who says what.
pub(crate) type Said<'a> = (Role, &'a str);

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
}

impl From<Role> for patchwright_core::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::System => Self::System,
            Role::User => Self::User,
            Role::Assistant => Self::Assistant,
        }
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Strings between messages. Special tokens in them are special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joints {
    /// Before the system message, and between it and the first user message; `None` where a
    /// template has no place for one.
    system: Option<(String, String)>,
    /// Before the first user message, where there is no system message.
    before_user: String,
    /// Between a user message and the assistant's.
    pub user_to_assistant: String,
    /// Between an assistant's message and the next user message; its first token ends a turn.
    pub assistant_to_user: String,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JointError {
    #[error(transparent)]
    Chat(#[from] ChatError),
    #[error(
        "{0}; a trajectory is only ever appended to, so take a template that leaves messages as \
         they are, or a profile with a framing of its own (such as full)"
    )]
    Unstable(String),
}

/// Messages that can be told apart and that no template has reason to change.
const SYSTEM: &str = "Systemmessage0";
const USERS: [&str; 3] = ["Usermessage1", "Usermessage2", "Usermessage3"];
const ASSISTANTS: [&str; 2] = ["Assistantmessage1", "Assistantmessage2"];

impl From<&Framing> for Joints {
    fn from(framing: &Framing) -> Self {
        let join = |a: &str, b: &str| format!("{a}{b}");
        Self {
            system: Some((
                framing.system_prefix.clone(),
                join(&framing.system_suffix, &framing.user_prefix),
            )),
            before_user: framing.user_prefix.clone(),
            user_to_assistant: join(&framing.user_suffix, &framing.assistant_prefix),
            assistant_to_user: join(&framing.assistant_suffix, &framing.user_prefix),
        }
    }
}

/// What a template makes of a conversation that the assistant is to continue.
fn rendered(template: &ChatTemplate, said: &[Said]) -> Result<String, ChatError> {
    let messages: Vec<_> = said.iter().map(|(role, text)| message(role.name(), text)).collect();
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    template.render(&messages, &options)
}

/// The strings before, between and behind the messages.
fn cut(text: &str, said: &[Said]) -> Result<Vec<String>, JointError> {
    let mut joints = Vec::new();
    let mut rest = text;
    for (role, content) in said {
        let lost = || {
            let role = role.name();
            JointError::Unstable(format!(
                "the chat template does not show each {role} message once"
            ))
        };
        let (before, after) = rest.split_once(content).ok_or_else(lost)?;
        if after.contains(content) {
            return Err(lost());
        }
        joints.push(before.to_owned());
        rest = after;
    }
    joints.push(rest.to_owned());
    Ok(joints)
}

impl Joints {
    /// Asks a template.
    pub(crate) fn of_template(template: &ChatTemplate) -> Result<Self, JointError> {
        let [u1, u2, u3] = USERS.map(|text| (Role::User, text));
        let [a1, a2] = ASSISTANTS.map(|text| (Role::Assistant, text));
        let ask = |said: &[Said]| cut(&rendered(template, said)?, said);
        let parts = ask(&[u1, a1, u2])?;
        let [before_user, user_to_assistant, assistant_to_user, _] = parts.as_slice() else {
            return Err(JointError::Unstable("the chat template lost a message".to_owned()));
        };
        let mut joints = Self {
            system: None,
            before_user: before_user.clone(),
            user_to_assistant: user_to_assistant.clone(),
            assistant_to_user: assistant_to_user.clone(),
        };
        let system = (Role::System, SYSTEM);
        // Some templates raise an exception here: they know no system message.
        if let Ok(text) = rendered(template, &[system, u1])
            && let [before, between, _] = cut(&text, &[system, u1])?.as_slice()
        {
            joints.system = Some((before.clone(), between.clone()));
        }
        let mut conversations = vec![vec![u1], vec![u1, a1, u2], vec![u1, a1, u2, a2, u3]];
        if joints.system.is_some() {
            let with_system = |said: &Vec<Said<'static>>| [vec![system], said.clone()].concat();
            let more: Vec<_> = conversations.iter().map(with_system).collect();
            conversations.extend(more);
        }
        for said in conversations {
            if joints.text(&said)? != rendered(template, &said)? {
                return Err(JointError::Unstable(
                    "the chat template renders a message otherwise once the conversation goes on"
                        .to_owned(),
                ));
            }
        }
        Ok(joints)
    }

    /// What stands before each message, and at last before the assistant's next. The conversation
    /// begins with a system or user message, users and assistant alternate, a user ends it.
    pub(crate) fn before(&self, said: &[Said]) -> Result<Vec<&str>, JointError> {
        let no_system = || {
            JointError::Unstable("the chat template has no place for a system message".to_owned())
        };
        let mut last = None;
        let mut joints = Vec::new();
        for (role, _) in said {
            joints.push(match (last, role) {
                (_, Role::System) => &self.system.as_ref().ok_or_else(no_system)?.0,
                (Some(Role::System), _) => &self.system.as_ref().ok_or_else(no_system)?.1,
                (None, _) => &self.before_user,
                (_, Role::Assistant) => &self.user_to_assistant,
                (_, Role::User) => &self.assistant_to_user,
            });
            last = Some(*role);
        }
        joints.push(&self.user_to_assistant);
        Ok(joints.into_iter().map(String::as_str).collect())
    }

    /// The conversation as text.
    fn text(&self, said: &[Said]) -> Result<String, JointError> {
        let contents = said.iter().map(|(_, text)| *text).chain([""]);
        Ok(self.before(said)?.into_iter().zip(contents).flat_map(|(a, b)| [a, b]).collect())
    }

    /// The contents of the messages as the template shows them: as they are, or without the
    /// blanks around them.
    pub(crate) fn contents<'a>(
        &self,
        template: &ChatTemplate,
        said: &[Said<'a>],
    ) -> Result<Vec<Said<'a>>, JointError> {
        let expected = rendered(template, said)?;
        if self.text(said)? == expected {
            return Ok(said.to_vec());
        }
        let trimmed: Vec<Said> = said.iter().map(|(role, text)| (*role, text.trim())).collect();
        if self.text(&trimmed)? == expected {
            return Ok(trimmed);
        }
        Err(JointError::Unstable(
            "the chat template changes what a message says, or leaves out a part of it".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Joints, Role};
    use crate::chat::ChatTemplate;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source.to_owned(), BTreeMap::new()).unwrap()
    }

    fn refused(source: &str) -> String {
        Joints::of_template(&template(source)).unwrap_err().to_string()
    }

    const CHATML: &str = "{% for m in messages %}{{ '<s>' + m.role + ':' + m.content + '<e>' }}\
        {% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}";

    #[test]
    fn joints_are_seen() {
        let joints = Joints::of_template(&template(CHATML)).unwrap();
        let said =
            [(Role::System, "a"), (Role::User, "b"), (Role::Assistant, "c"), (Role::User, "d")];
        assert_eq!(
            joints.before(&said).unwrap(),
            ["<s>system:", "<e><s>user:", "<e><s>assistant:", "<e><s>user:", "<e><s>assistant:"]
        );
        assert_eq!(joints.text(&said[1..2]).unwrap(), "<s>user:b<e><s>assistant:");
    }

    #[test]
    fn a_default_system_message_is_a_joint() {
        let source = format!(
            "{{% if messages[0].role != 'system' %}}<s>system:Be kind.<e>{{% endif %}}{CHATML}"
        );
        let joints = Joints::of_template(&template(&source)).unwrap();
        let said = [(Role::User, "b")];
        assert_eq!(joints.before(&said).unwrap()[0], "<s>system:Be kind.<e><s>user:");
    }

    #[test]
    fn trimmed_messages_are_trimmed() {
        let template = template(&CHATML.replace("m.content", "m.content.strip()"));
        let joints = Joints::of_template(&template).unwrap();
        let said = [(Role::User, " b\n"), (Role::Assistant, "c "), (Role::User, "d")];
        let trimmed = [(Role::User, "b"), (Role::Assistant, "c"), (Role::User, "d")];
        assert_eq!(joints.contents(&template, &said).unwrap(), trimmed);
    }

    #[test]
    fn templates_that_change_the_past_are_refused() {
        let shouting = template(&CHATML.replace("m.content", "m.content.replace('x', 'X')"));
        let joints = Joints::of_template(&shouting).unwrap();
        assert!(joints.contents(&shouting, &[(Role::User, "plain")]).is_ok());
        let error = joints.contents(&shouting, &[(Role::User, "x")]).unwrap_err().to_string();
        assert!(error.contains("changes what a message says"), "{error}");

        let last_only = CHATML.replace("m.content", "(m.content if loop.last else '')");
        assert!(refused(&last_only).contains("does not show each user message once"));
        let numbered = CHATML.replace("'<s>'", "loop.revindex ~ '<s>'");
        assert!(refused(&numbered).contains("otherwise once the conversation goes on"));
        let without = CHATML.replace(
            "{% for",
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for",
        );
        let joints = Joints::of_template(&template(&without)).unwrap();
        let error = joints.before(&[(Role::System, "x")]).unwrap_err().to_string();
        assert!(error.contains("no place for a system message"), "{error}");
    }
}
