//! The program from outside.

mod cli;
mod export;
mod gateway;
mod images;
mod isolated;
mod made_up_run;
mod models;
mod report;
mod running;
mod sandboxed;
mod served;
mod support;
mod task_sets;
mod training;
