//! The servers run as processes of their own, made from this same program, so that what they use is
//! theirs alone. A child says its port on standard output and ends when its standard input does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::{Role, load};

/// A server that runs.
pub(crate) struct Child {
    process: Process,
    pub(crate) port: u16,
    /// From its start as a process to its first answer.
    pub(crate) ready_after: Duration,
}

/// CPU that a process has used.
#[derive(Clone, Copy)]
pub(crate) struct Used(Duration);

impl Used {
    /// Microseconds for each of `count`, since `before`.
    pub(crate) fn micros_each(self, before: Self, count: usize) -> f64 {
        let used = self.0.saturating_sub(before.0);
        used.as_secs_f64() * 1e6 / crate::float(count)
    }
}

impl Child {
    pub(crate) async fn start(role: Role, folder: &Path) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--role", role.word(), "--folder"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line.trim().parse().context("the child did not start")?;
        load::knock(port).await?;
        Ok(Self {
            process,
            port,
            ready_after: begun.elapsed(),
        })
    }

    pub(crate) fn used(&self) -> anyhow::Result<Used> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name stands in parentheses and may hold anything; user and system time are the 14th
        // and 15th words.
        let (_, rest) = stat.rsplit_once(')').context("no such process")?;
        let ticks: u64 = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|word| word.parse::<u64>().unwrap_or_default())
            .sum();
        let micros = ticks * 1_000_000 / rustix::param::clock_ticks_per_second();
        Ok(Used(Duration::from_micros(micros)))
    }

    /// The most memory it ever had, in MB.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .context("the system does not say how much memory it had")?;
        Ok(kilobytes.trim().parse::<f64>()? / 1024.0)
    }

    /// Ends it in order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.process.stdin.take());
        let ended = tokio::task::spawn_blocking(move || self.process.wait()).await??;
        if !ended.success() {
            bail!("a child ended with {ended}");
        }
        Ok(())
    }
}

/// For the child: where it listens.
pub(crate) fn say_port(port: u16) {
    println!("{port}");
    // Whoever does not listen will not ask either.
    let _ = std::io::stdout().flush();
}

/// For the child: waits until the parent is done with it, or gone.
pub(crate) async fn told_to_stop() {
    let read = || std::io::stdin().read_to_end(&mut Vec::new());
    let _ = tokio::task::spawn_blocking(read).await;
}
