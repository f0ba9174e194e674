//! What people type: one file per command.
//!
//! Commands that look read the store, beside a running process or without one. Commands that change
//! something ask the running process over its admin socket, or do it themselves when none runs here:
//! under the lock of an embedded store, beside the replicas of a shared one. Exit codes: 0 done, 1 it failed, 2 wrong command line, 78 wrong
//! settings.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{Config, Faults};

mod admin;
mod check;
mod dead;
mod demo;
mod event;
mod output;
mod ready;
mod route;
mod serve;
mod sink;
mod store;
mod subscription;
mod verify;

/// Receives Run Command notifications from Amazon SNS, puts them in order, and brings them where
/// people want them.
#[derive(Debug, Parser)]
#[command(name = "runbell", version, about, max_term_width = 100)]
pub struct Args {
    /// The settings file
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        default_value = "/etc/runbell/runbell.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive, order, route and deliver, until told to stop
    Serve,
    /// Check the settings as `serve` would, and bind nothing
    Check(check::Args),
    /// Play everything through on this machine: a signer in place of SNS, a real server, a file
    Demo(demo::Args),
    /// Say whether AWS signed one envelope, offline, and why not
    Verify(verify::Args),
    /// Say which routes would take a message, and to which sinks
    Route(route::Args),
    /// Look at the events that are kept
    #[command(subcommand)]
    Event(event::Command),
    /// Look at dead letters, send them again, or let them go
    #[command(subcommand)]
    Dead(dead::Command),
    /// Try a sink
    #[command(subcommand)]
    Sink(sink::Command),
    /// Copy a store
    #[command(subcommand)]
    Store(store::Command),
    /// Look at subscriptions that asked to be confirmed, and confirm them
    #[command(subcommand)]
    Subscription(subscription::Command),
    /// Say whether the running process is ready for traffic, and if not, why
    Ready(ready::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Why a command did not do what it was asked to.
enum Stop {
    /// The settings are wrong.
    Settings(Box<Faults>),
    /// The settings are wrong, and that was said.
    SettingsSaid,
    /// The command line names something that is not there.
    Usage(String),
    /// It was done, and the answer is no; what there is to say was said.
    No,
    /// It failed.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Does what the arguments ask for.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let done = match args.command {
        Command::Serve => serve::run(&args.config),
        Command::Check(own) => check::run(&args.config, &own),
        Command::Demo(own) => demo::run(&own),
        Command::Verify(own) => verify::run(&own),
        Command::Route(own) => route::run(&args.config, &own),
        Command::Event(command) => event::run(&args.config, command),
        Command::Dead(command) => dead::run(&args.config, command),
        Command::Sink(command) => sink::run(&args.config, &command),
        Command::Store(command) => store::run(&args.config, &command),
        Command::Subscription(command) => subscription::run(&args.config, &command),
        Command::Ready(own) => ready::run(&args.config, &own),
        Command::Completions { shell } => {
            let mut command = Args::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "runbell", &mut script);
            output::raw(&script)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::No) => ExitCode::FAILURE,
        Err(Stop::Settings(faults)) => {
            output::complain(&faults.render(output::is_coloured()));
            ExitCode::from(78)
        }
        Err(Stop::SettingsSaid) => ExitCode::from(78),
        Err(Stop::Usage(why)) => {
            output::complain(&format!("error: {why}\n"));
            ExitCode::from(2)
        }
        // Whoever reads our output may have read enough.
        Err(Stop::Failed(error)) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Stop::Failed(error)) => {
            output::complain(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Reads the settings; warnings go to the one who typed.
fn settings(path: &Path) -> Result<Config, Stop> {
    match Config::load(path) {
        Ok((config, warnings)) => {
            for warning in warnings {
                output::complain(&warning.render(output::is_coloured()));
            }
            Ok(config)
        }
        Err(faults) => Err(Stop::Settings(Box::new(faults))),
    }
}

/// Runs a command that waits for other things than people.
fn block_on<T>(work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
