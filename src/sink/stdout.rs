//! Lines of JSON on standard output, for containers whose platform collects it.
//!
//! Sent means that the reader at the other end of the pipe has taken it from us. What it loses
//! afterwards nobody here can know: where that matters, write a file.

use std::io::{self, Write as _};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::record::write_line;
use super::{Capacity, Sink};
use crate::render::Notice;
use crate::retry::{Patience, Scope, Verdict};

/// Settings of a standard-output sink: there are none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {}

/// Writes to standard output.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdoutSink;

#[async_trait]
impl Sink for StdoutSink {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1000,
            at_once: 1,
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            horizon: Duration::MAX,
            block_for: None,
            ..Patience::default()
        }
    }

    async fn send(&self, notices: &[Notice]) -> Vec<Verdict> {
        let mut lines = Vec::new();
        for notice in notices {
            write_line(notice, &mut lines);
        }
        // A reader that does not read must stop this sink, and not the runtime.
        let written = tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            out.write_all(&lines)?;
            out.flush()
        })
        .await;
        let verdict = match written {
            Ok(Ok(())) => Verdict::Sent { remote_id: None },
            // How much of it was taken before is not known.
            Ok(Err(error)) => Verdict::Unknown {
                why: format!("standard output cannot be written: {error}"),
            },
            Err(error) => Verdict::Retry {
                why: error.to_string(),
                after: None,
                scope: Scope::Sink,
                progress: None,
            },
        };
        vec![verdict; notices.len()]
    }
}
