//! The program from outside.

mod cli;
mod made_up_run;
mod report;
mod sandboxed;
mod support;
mod training;
