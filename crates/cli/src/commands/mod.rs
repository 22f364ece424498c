//! One module a command: each reads its arguments, asks another crate, and tells the result.

mod bench;
mod doctor;
mod eval;
mod export;
mod gateway;
mod images;
mod models;
mod policy;
mod pretrain;
mod report;
mod rollout;
mod sandbox;
mod serve;
mod tasks;
mod train;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{BenchCommand, Cli, Command, CompletionsArgs, TasksCommand};
use crate::error::CliError;
use crate::output;

/// Does what was asked. An exit code other than 0 is a command's own, such as the sandbox's.
pub fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Rollout(args) => rollout::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Tasks(TasksCommand::Generate(args)) => tasks::generate(&args),
        Command::Tasks(TasksCommand::Show(args)) => tasks::show(&args),
        Command::Tasks(TasksCommand::Import(args)) => tasks::import(&args),
        Command::Tasks(TasksCommand::Export(args)) => tasks::export(&args),
        Command::Tasks(TasksCommand::Filter(args)) => tasks::filter(&args),
        Command::Tasks(TasksCommand::FromReleases(args)) => tasks::releases::run(&args),
        Command::Tasks(TasksCommand::Inject(args)) => tasks::inject::run(&args),
        Command::Tasks(TasksCommand::Validate(args)) => tasks::validate::run(&args),
        Command::Sandbox(command) => sandbox::dispatch(&command),
        Command::Bench(BenchCommand::Sandbox(args)) => bench::sandbox(&args),
        Command::Bench(BenchCommand::Engine(args)) => bench::engine(&args),
        Command::Bench(BenchCommand::Control(args)) => bench::control(&args),
        Command::Bench(BenchCommand::Serve(args)) => bench::serve(&args),
        Command::Images(command) => images::dispatch(&command),
        Command::Models(command) => models::dispatch(&command),
        Command::Serve(args) => serve::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions(&args),
    }
}

fn completions(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "patchwright", &mut text);
    output::data(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
