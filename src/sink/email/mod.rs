//! Mail over SMTP.
//!
//! One mail for each notice, with all of its recipients in one transaction. The server answers for
//! each of them: who has it and who was refused is kept as progress, and neither is asked again. How
//! the connection is protected is written in the settings and never given up in silence.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lettre::message::Mailbox;
use openssl::ssl::SslConnector;
use secrecy::SecretString;
use serde::Deserialize;

use super::{Capacity, Permit, Sink};
use crate::clock::Clock;
use crate::fault::Fault;
use crate::render::Notice;
use crate::retry::{Scope, Verdict};
use crate::secret::SecretText;
use crate::units::Span;

mod html;
mod message;
mod server;
mod smtp;
mod tally;
mod wire;

use message::Form;
use server::{Security, Server};
use smtp::{Post, Stage};
use tally::{Tally, Trouble};

/// How many connections are open at once, unless the settings say otherwise.
const CONNECTIONS: usize = 4;
/// More would be taken for an attack.
const MOST_CONNECTIONS: usize = 100;
/// How long one mail may take, unless the settings say otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 5321, section 4.5.3.2: no server needs longer for an answer.
const LONGEST_TIMEOUT: Duration = Duration::from_mins(10);
/// RFC 5321, section 4.5.3.1: every server takes so many.
const MOST_RECIPIENTS: usize = 100;

/// Settings of an e-mail sink, as they are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server, how the connection is protected, and who signs in.
    pub smtp: String,
    /// The password of whoever signs in.
    pub password: Option<SecretText>,
    /// Who the mail is from.
    pub from: String,
    /// Who gets it.
    pub to: Vec<String>,
    /// A file with certificates that the server's may come from, besides the system's.
    pub ca: Option<PathBuf>,
    /// How many connections are open at once.
    pub connections: Option<usize>,
    /// How long one mail may take, from the connection to the last answer.
    pub timeout: Option<Span>,
}

/// Checked settings of an e-mail sink.
#[derive(Clone, Debug)]
pub struct Checked {
    server: Server,
    password: Option<SecretString>,
    /// What trusts the server; none when the connection is plain.
    tls: Option<SslConnector>,
    from: Mailbox,
    to: Vec<Mailbox>,
    connections: usize,
    timeout: Duration,
}

impl Checked {
    /// The longest that a mail takes.
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
        let password = self.password.as_ref();
        let password = password.map(|it| SecretString::from(it.expose()));
        let server = Server::parse(&self.smtp)
            .map_err(|why| faults.push(Fault::at(&["smtp"], why)))
            .ok();
        if let Some(server) = &server {
            faults.extend(credentials(server, password.is_some()));
        }
        let from = mailbox(&self.from)
            .map_err(|why| faults.push(Fault::at(&["from"], why)))
            .ok();
        let to = recipients(&self.to, &mut faults);
        let security = server.as_ref().map(|server| server.security);
        if security == Some(Security::Plain) && self.ca.is_some() {
            let why = "`ca` is about TLS, and `smtp+plain` has none: write smtp+starttls:// or \
                smtps://";
            faults.push(Fault::at(&["ca"], why));
        }
        let ca = self.ca.map(|ca| folder.join(ca));
        let tls = wire::connector(ca.as_deref())
            .map_err(|why| faults.push(Fault::at(&["ca"], why)))
            .ok()
            .filter(|_| security != Some(Security::Plain));
        let connections = self.connections.unwrap_or(CONNECTIONS);
        if !(1..=MOST_CONNECTIONS).contains(&connections) {
            let why = format!("have 1 to {MOST_CONNECTIONS} connections");
            faults.push(Fault::at(&["connections"], why));
        }
        let timeout = self.timeout.map_or(TIMEOUT, |timeout| timeout.0);
        if !(Duration::from_secs(1)..=LONGEST_TIMEOUT).contains(&timeout) {
            faults.push(Fault::at(&["timeout"], "wait 1s to 10m for a mail"));
        }
        match (server, from) {
            (Some(server), Some(from)) if faults.is_empty() => Ok(Checked {
                server,
                password,
                tls,
                from,
                to,
                connections,
                timeout,
            }),
            _ => Err(faults),
        }
    }
}

/// What does not fit together of user, password and protection.
fn credentials(server: &Server, has_password: bool) -> Option<Fault> {
    let fault = match (&server.user, has_password) {
        (Some(_), false) => Fault::at(
            &["smtp"],
            "somebody signs in, and there is no password: add \
             `password = { env = \"NAME\" }` or `{ file = \"PATH\" }`",
        ),
        (None, true) => Fault::at(
            &["password"],
            "nobody signs in with this password: write the user before the host, like \
             smtp+starttls://user@mail.example.com:587",
        ),
        (Some(_), true) if server.security == Security::Plain && !server.is_loopback() => {
            Fault::at(
                &["smtp"],
                "`smtp+plain` would show the password to everybody on the way: write \
                 smtp+starttls:// or smtps://",
            )
        }
        _ => return None,
    };
    Some(fault)
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    let mailbox: Mailbox = text.parse().map_err(|error| {
        format!("`{text}` is no address ({error}): write it like `Name <name@example.com>`")
    })?;
    // Few servers take others, and none that we would have to go through is sure to.
    if !mailbox.email.to_string().is_ascii() {
        return Err(format!(
            "the address in `{text}` is not in ASCII: write the domain in its xn-- form"
        ));
    }
    Ok(mailbox)
}

fn recipients(written: &[String], faults: &mut Vec<Fault>) -> Vec<Mailbox> {
    let mut to: Vec<Mailbox> = Vec::new();
    for text in written {
        match mailbox(text) {
            Err(why) => faults.push(Fault::at(&["to"], why)),
            Ok(mailbox) => {
                let address = mailbox.email.to_string();
                let is_same = |other: &Mailbox| {
                    let other = other.email.to_string();
                    other.eq_ignore_ascii_case(&address)
                };
                if to.iter().any(is_same) {
                    let why = format!("`{address}` is written twice");
                    faults.push(Fault::at(&["to"], why));
                }
                to.push(mailbox);
            }
        }
    }
    if written.is_empty() {
        faults.push(Fault::at(&["to"], "somebody has to get the mail"));
    }
    if written.len() > MOST_RECIPIENTS {
        let why =
            format!("at most {MOST_RECIPIENTS} recipients: make a list of them at the server");
        faults.push(Fault::at(&["to"], why));
    }
    to
}

/// Sends mail.
pub struct Email {
    settings: Arc<Checked>,
    name: String,
    clock: Clock,
    post: Post,
}

impl Email {
    /// A sink of that name that connects when the first notice comes.
    #[must_use]
    pub fn new(settings: Checked, name: &str, clock: Clock) -> Self {
        let settings = Arc::new(settings);
        Self {
            name: name.to_owned(),
            post: Post::new(Arc::clone(&settings), clock.clone()),
            settings,
            clock,
        }
    }

    /// Sends one notice to whoever does not have it yet; once more as little else than its title when
    /// the server refuses what is in it. A notice is never lost to its looks.
    async fn mail(&self, notice: &Notice, permit: &Permit) -> Verdict {
        let verdict = self.attempt(notice, Form::Whole, permit).await;
        if let Verdict::Refused { content: true, why } = &verdict {
            tracing::warn!(
                sink = self.name,
                why,
                "a mail was refused for what is in it; its title goes as plain text"
            );
            return self.attempt(notice, Form::Plain, permit).await;
        }
        verdict
    }

    async fn attempt(&self, notice: &Notice, form: Form, permit: &Permit) -> Verdict {
        let mut tally = Tally::new(&self.settings.to, notice.progress.as_deref());
        if tally.waiting().is_empty() {
            return tally.verdict(Ok(()));
        }
        let (from, to) = (&self.settings.from, &self.settings.to);
        let bytes = match message::build(notice, form, &self.name, from, to, self.clock.now()) {
            Ok(bytes) => bytes,
            Err(error) => {
                return Verdict::Refused {
                    why: format!("the mail cannot be written: {error}"),
                    content: true,
                };
            }
        };
        let mut stage = Stage::Before;
        let limit = self.settings.timeout;
        let sending = self.post.send(&bytes, &mut tally, &mut stage, permit);
        let sent = tokio::time::timeout(limit, sending).await;
        let outcome = sent.unwrap_or_else(|_| {
            let why = format!("no answer from {} within {limit:?}", self.settings.server);
            Err(match stage {
                Stage::Before => Trouble::Away(why),
                Stage::Uncertain => Trouble::Lost(why),
            })
        });
        tally.verdict(outcome)
    }
}

#[async_trait]
impl Sink for Email {
    fn speaks_to_people(&self) -> bool {
        true
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1,
            at_once: self.settings.connections,
        }
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = Vec::with_capacity(notices.len());
        for notice in notices {
            let is_free = verdicts
                .last()
                .is_none_or(|last| matches!(last, Verdict::Sent { .. }));
            let verdict = if is_free {
                self.mail(notice, permit).await
            } else {
                Verdict::Retry {
                    why: "the one before it was not sent".to_owned(),
                    after: None,
                    scope: Scope::Notice,
                    progress: None,
                }
            };
            verdicts.push(verdict);
        }
        verdicts
    }

    fn preview(&self, notice: &Notice) -> String {
        let to = self.settings.to.iter().map(ToString::to_string);
        message::shown(notice, &to.collect::<Vec<_>>().join(", "))
    }

    async fn reopen(&self) {
        self.post.close_idle();
    }
}

#[cfg(test)]
mod tests;
