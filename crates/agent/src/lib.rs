//! The agent: tools, prompts, rendering, the ReAct loop, grading.

pub mod fixture;
pub mod tokenizer;

pub use tokenizer::{Piece, Tokenizer, TokenizerError};
