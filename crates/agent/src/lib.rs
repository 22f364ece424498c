//! The agent: tools, prompts, rendering, the `ReAct` loop, grading.
//!
//! The one place where text becomes tokens. [`run_agent`] is the loop: a [`Renderer`] (a
//! [`Tokenizer`] with a [`Profile`]) makes the prompt, a `Sampler` draws a turn, [`parse`] finds
//! its one command, [`tools`] runs it in a `Sandbox`, and the observation is appended.

pub mod chat;
pub mod command;
pub mod environment;
pub mod fixture;
pub mod git;
pub mod grade;
mod joints;
pub mod parse;
pub mod profile;
pub mod react;
pub mod render;
pub mod scripted;
pub mod tokenizer;
pub mod tools;
pub mod vocabulary;

pub use chat::{ChatError, ChatOptions, ChatTemplate};
pub use environment::{TaskRoot, TaskRoots, sandbox_spec, sandbox_spec_on};
pub use grade::{Grade, GradeCache, GradeError, Grader, GraderOptions};
pub use profile::{CommandStyle, Profile, ProfileError};
pub use react::{AgentConfig, AgentRun, run_agent};
pub use render::{Prompt, Renderer};
pub use scripted::ScriptedSampler;
pub use tokenizer::{Piece, Tokenizer, TokenizerError};
pub use vocabulary::BpeVocabulary;
