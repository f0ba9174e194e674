//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    runbell::cli::run(runbell::cli::Args::parse())
}
