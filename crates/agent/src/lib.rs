//! The agent: tools, prompts, rendering, the ReAct loop, grading.

pub mod command;
pub mod fixture;
pub mod parse;
pub mod profile;
pub mod render;
pub mod tokenizer;
pub mod tools;

pub use tokenizer::{Piece, Tokenizer, TokenizerError};
