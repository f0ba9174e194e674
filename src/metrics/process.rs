//! What the kernel says of this process, under the names that every Prometheus client uses.
//!
//! Read from `/proc` when a page is asked for; where there is no `/proc`, nothing is shown.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Reads `/proc` at each scrape.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self/stat` tells, in the kernel's own units.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    started_ticks: u64,
    resident_pages: u64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut write = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some(stat) = read("/proc/self/stat").as_deref().and_then(Stat::parse) {
            write(
                "process_cpu_seconds",
                "User and system CPU time.",
                &ConstCounter::new(seconds(stat.cpu_ticks)),
            )?;
            let resident = stat
                .resident_pages
                .saturating_mul(u64::try_from(page_size()).unwrap_or(u64::MAX));
            write(
                "process_resident_memory_bytes",
                "Resident memory.",
                &ConstGauge::new(i64::try_from(resident).unwrap_or(i64::MAX)),
            )?;
            if let Some(boot) = read("/proc/stat").as_deref().and_then(boot_time) {
                write(
                    "process_start_time_seconds",
                    "Start of the process, since the epoch.",
                    &ConstGauge::new(boot + seconds(stat.started_ticks)),
                )?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // Listing the directory holds one descriptor of its own.
            let open = i64::try_from(open.count()).unwrap_or(i64::MAX) - 1;
            write(
                "process_open_fds",
                "Open file descriptors.",
                &ConstGauge::new(open),
            )?;
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            write(
                "process_max_fds",
                "Most file descriptors that may be open.",
                &ConstGauge::new(i64::try_from(most).unwrap_or(i64::MAX)),
            )?;
        }
        Ok(())
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold blanks and
        // parentheses itself; what follows the last one is the third field.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            started_ticks: field(22)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time(text: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks of a process's life stay far below 2^53"
)]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_shifts_no_field() {
        let text = "42 (a) b) (c) S 1 42 42 0 -1 4194560 100 0 0 0 \
                    250 50 0 0 20 0 4 0 123456 9000000 512 18446744073709551615 1 1";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                cpu_ticks: 300,
                started_ticks: 123_456,
                resident_pages: 512
            })
        );
        assert_eq!(Stat::parse("42 (cut off"), None);
        assert_eq!(Stat::parse("42 (short) S 1 2 3"), None);
        assert_eq!(
            boot_time("cpu 1 2\nbtime 1700000000\n"),
            Some(1_700_000_000.0)
        );
    }
}
