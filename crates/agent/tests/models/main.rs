//! Models as their makers publish them: chat templates, tokenizers, and a real one.

mod chat;
mod real;
