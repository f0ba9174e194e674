//! A program of one's own: one run for each notice.
//!
//! No shell is involved. The event comes as one line of JSON on standard input, in the form of the
//! file sink, and its most telling parts in the environment, which holds nothing else but `PATH`.
//! What the program prints is kept with the attempt. Exit codes are those of `sysexits.h`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::permit::refused;
use super::record::write_line;
use super::{Capacity, Permit, Sink};
use crate::fault::Fault;
use crate::render::{Notice, Plain};
use crate::retry::{Scope, Verdict};
use crate::units::Span;

/// How long a run may take when nobody says.
const USUAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How many runs there are at once when nobody says.
const USUAL_AT_ONCE: usize = 1;
/// How much of what it prints is read, in bytes, and shown, in characters.
const LARGEST: u64 = 64 * 1024;
const SHOWN: usize = 200;
/// Where programs are looked for by the program itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// It will never take this.
const EX_DATAERR: i32 = 65;
/// It is wrong itself.
const EX_CONFIG: i32 = 78;

/// Settings of an exec sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The program's path, and its arguments.
    pub command: Vec<String>,
    /// How long a run may take.
    pub timeout: Option<Span>,
    /// How many runs there are at once.
    pub at_once: Option<usize>,
}

/// Checked settings of an exec sink.
#[derive(Clone, Debug)]
pub struct Checked {
    program: PathBuf,
    arguments: Vec<String>,
    timeout: Duration,
    at_once: usize,
}

impl Checked {
    /// The longest that a run takes.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Settings {
    /// Checks them; a path that is not absolute lies in `folder`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut command = self.command.into_iter();
        let program = folder.join(command.next().unwrap_or_default());
        if !program.is_file() {
            let shown = program.display();
            faults.push(Fault::at(
                &["command"],
                format!("{shown} is no program: write its path, and each argument by itself"),
            ));
        }
        let at_once = self.at_once.unwrap_or(USUAL_AT_ONCE);
        if !(1..=64).contains(&at_once) {
            faults.push(Fault::at(&["at_once"], "from 1 to 64"));
        }
        let timeout = self.timeout.map_or(USUAL_TIMEOUT, |span| span.0);
        if timeout.is_zero() {
            faults.push(Fault::at(&["timeout"], "no time is too little"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Checked {
            program,
            arguments: command.collect(),
            timeout,
            at_once,
        })
    }
}

/// Runs a program.
#[derive(Debug)]
pub struct Exec(Checked);

impl Exec {
    /// A sink that runs what the settings say.
    #[must_use]
    pub const fn new(settings: Checked) -> Self {
        Self(settings)
    }

    fn command(&self, notice: &Notice) -> Command {
        let event = &notice.event;
        let command = event.command();
        let text = |text: Option<&str>| Plain::new(text.unwrap_or_default()).text().to_owned();
        let mut run = Command::new(&self.0.program);
        run.args(&self.0.arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("RUNBELL_ID", &notice.id)
            .env("RUNBELL_ROUTE", &notice.route)
            .env("RUNBELL_KIND", event.kind.word())
            .env("RUNBELL_ACCOUNT", text(Some(&event.account)))
            .env("RUNBELL_REGION", text(Some(&event.region)))
            .env("RUNBELL_STATUS", text(command.map(|it| it.status.as_str())))
            .env(
                "RUNBELL_COMMAND",
                text(command.map(|it| it.command.as_str())),
            )
            .env(
                "RUNBELL_DOCUMENT",
                text(command.map(|it| it.document.as_str())),
            )
            .env(
                "RUNBELL_INSTANCE",
                text(command.and_then(|it| it.instance.as_deref())),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        run
    }

    async fn run(&self, notice: &Notice, permit: &Permit) -> Verdict {
        let mut command = self.command(notice);
        if !permit.begin() {
            return refused();
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let program = self.0.program.display();
                return Verdict::Broken {
                    why: format!("{program} cannot be started: {error}"),
                };
            }
        };
        let mut line = Vec::new();
        write_line(notice, &mut line);
        match tokio::time::timeout(self.0.timeout, finish(&mut child, &line)).await {
            Ok(Ok((code, said))) => verdict(code, &said),
            Ok(Err(error)) => Verdict::Unknown {
                why: error.to_string(),
            },
            Err(_) => {
                end(&mut child).await;
                Verdict::Unknown {
                    why: format!("it was ended after {} s", self.0.timeout.as_secs_f64()),
                }
            }
        }
    }
}

/// Feeds a program, listens to it, and waits for its end: its exit code, none when a signal ended it,
/// and what it said.
async fn finish(child: &mut Child, line: &[u8]) -> std::io::Result<(Option<i32>, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // Whoever does not care for it need not read it.
            let _ = stdin.write_all(line).await;
        }
    };
    let mut said = Vec::new();
    let mut complained = Vec::new();
    tokio::join!(
        feed,
        listen(stdout, &mut said),
        listen(stderr, &mut complained)
    );
    let status = child.wait().await?;
    said.extend(complained);
    Ok((status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// Keeps the beginning of what is said, and hears the rest out: nobody is to fail for having said much.
async fn listen(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    // What it says is for people only: a pipe that breaks is no fault of the notice.
    let _ = (&mut pipe).take(LARGEST).read_to_end(kept).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
}

/// Ends a program with everything that it has started.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(group) = group.and_then(Pid::from_raw) {
        // It may have ended by itself just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait().await;
}

fn verdict(code: Option<i32>, said: &str) -> Verdict {
    let said = Plain::new(said.trim()).cut(SHOWN).text().to_owned();
    let why = || match code {
        Some(code) => format!("exit code {code}: {said}"),
        None => format!("ended by a signal: {said}"),
    };
    match code {
        Some(0) => Verdict::Sent {
            remote_id: (!said.is_empty()).then(|| said.clone()),
        },
        Some(EX_DATAERR) => Verdict::Refused {
            why: why(),
            content: false,
        },
        Some(EX_CONFIG | 126 | 127) => Verdict::Broken { why: why() },
        // Also EX_TEMPFAIL: later.
        _ => Verdict::Retry {
            why: why(),
            after: None,
            scope: Scope::Notice,
            progress: None,
        },
    }
}

#[async_trait]
impl Sink for Exec {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1,
            at_once: self.0.at_once,
        }
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(notices.len());
        for notice in notices {
            let verdict = self.run(notice, permit).await;
            let is_sent = matches!(verdict, Verdict::Sent { .. });
            verdicts.push(verdict);
            if !is_sent {
                break;
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::record::tests::notice;

    async fn run(script: &str, timeout: Duration) -> Verdict {
        let settings = Settings {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: Some(Span(timeout)),
            at_once: None,
        };
        let sink = Exec::new(settings.check(Path::new("/")).unwrap());
        let mut verdicts = sink.send(&[notice("i-1")], &Permit::always()).await;
        verdicts.remove(0)
    }

    fn sent(said: &str) -> Verdict {
        Verdict::Sent {
            remote_id: (!said.is_empty()).then(|| said.to_owned()),
        }
    }

    #[tokio::test]
    async fn a_program_gets_the_event_and_nothing_of_ours() {
        let long = Duration::from_mins(1);
        let script = r#"read -r line; case $line in '{"id":"'*'"instance":"i-1"'*) ;; *) exit 65;; esac; echo "$RUNBELL_STATUS $RUNBELL_INSTANCE $HOME""#;
        assert_eq!(run(script, long).await, sent("TimedOut i-1"));
        // It need not read what it is given.
        assert_eq!(run("exit 0", long).await, sent(""));
    }

    #[tokio::test]
    async fn an_exit_code_is_a_verdict() {
        let long = Duration::from_mins(1);
        for (script, word) in [
            ("exit 0", "sent"),
            ("exit 1", "retry"),
            ("exit 75", "retry"),
            ("exit 65", "refused"),
            ("exit 78", "broken"),
            ("kill -9 $$", "retry"),
            ("/no/such/program", "broken"),
        ] {
            let verdict = run(script, long).await;
            assert_eq!(verdict.word(), word, "{script}: {verdict:?}");
        }
        let Verdict::Retry { why, .. } = run("echo out; echo err >&2; exit 3", long).await else {
            panic!("no retry");
        };
        assert_eq!(why, "exit code 3: out err");
    }

    #[tokio::test]
    async fn a_run_without_an_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let verdict = run(&script, Duration::from_millis(500)).await;
        assert_eq!(verdict.word(), "unknown", "{verdict:?}");
        let pid = std::fs::read_to_string(&pid).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // Gone, or dead and not yet reaped, very soon: nobody has to be told to.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_is_no_program_is_said() {
        for command in [vec![], vec!["/no/such".to_owned()], vec!["/tmp".to_owned()]] {
            let settings = Settings {
                command,
                timeout: None,
                at_once: Some(0),
            };
            assert_eq!(settings.check(Path::new("/")).unwrap_err().len(), 2);
        }
    }
}
