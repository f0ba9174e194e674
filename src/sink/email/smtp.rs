//! One mail in one transaction, on connections that are used again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use lettre::Address;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use secrecy::{ExposeSecret as _, SecretString};

use super::Checked;
use super::tally::{Tally, Trouble};
use super::wire::Wire;
use crate::clock::{Clock, since};
use crate::fault::causes;
use crate::render::Plain;
use crate::sink::Permit;

/// A connection that lay about for longer was forgotten by the server, or by something on the way.
const LONGEST_IDLE: Duration = Duration::from_mins(1);
/// How much of an answer is shown.
const SHOWN: usize = 200;

/// How far a transaction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody has the mail.
    Before,
    /// The mail is on its way, and the server has not answered for it.
    Uncertain,
}

/// What the server said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) text: String,
}

impl Answer {
    /// It did what it was asked.
    pub(super) const fn is_done(&self) -> bool {
        self.code / 100 == 2
    }

    /// It would say the same the next time.
    pub(super) const fn is_for_good(&self) -> bool {
        self.code / 100 == 5
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, shown(&self.text))
    }
}

/// A text from outside, fit to be shown.
fn shown(text: &str) -> String {
    Plain::new(text.trim()).cut(SHOWN).text().to_owned()
}

impl Answer {
    /// What lettre made of it; nothing when there was none.
    fn of(result: Result<Response, Error>) -> Result<Self, String> {
        match result {
            Ok(response) => Ok(Self {
                code: response.code().into(),
                text: response.message().collect::<Vec<_>>().join(" "),
            }),
            Err(error) => match error.status() {
                Some(code) => Ok(Self {
                    code: code.into(),
                    text: std::error::Error::source(&error)
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                }),
                None => Err(shown(&causes(&error))),
            },
        }
    }
}

/// Hands in mail at one server.
pub(super) struct Post {
    settings: Arc<Checked>,
    clock: Clock,
    hello: ClientId,
    /// Connections between two mails, and since when; the lock never waits.
    idle: Mutex<Vec<(AsyncSmtpConnection, Timestamp)>>,
}

impl Post {
    pub(super) fn new(settings: Arc<Checked>, clock: Clock) -> Self {
        Self {
            settings,
            clock,
            hello: ClientId::default(),
            idle: Mutex::default(),
        }
    }

    /// Lets go of the connections that nobody uses.
    pub(super) fn close_idle(&self) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Sends `mail` to whoever waits for it. A connection with which anything went wrong is not used
    /// again.
    pub(super) async fn send(
        &self,
        mail: &[u8],
        tally: &mut Tally,
        stage: &mut Stage,
        permit: &Permit,
    ) -> Result<(), Trouble> {
        let mut connection = self.begin(permit).await?;
        let mut takers: Vec<Address> = Vec::new();
        for address in tally.waiting().to_vec() {
            let answer = self
                .say(&mut connection, Rcpt::new(address.clone(), vec![]))
                .await?;
            if answer.is_done() {
                takers.push(address);
            } else {
                tally.denied(&[address], &answer);
            }
        }
        if takers.is_empty() {
            if self
                .say(&mut connection, Rset)
                .await
                .is_ok_and(|answer| answer.is_done())
            {
                self.keep(connection);
            }
            return Ok(());
        }
        let answer = self.say(&mut connection, Data).await?;
        if answer.code != 354 {
            if answer.is_done() {
                return Err(self.away(&format!("DATA was answered with {answer}")));
            }
            tally.mail_denied(&takers, &answer);
            return Ok(());
        }
        // A server that checks recipients may have taken its time since the permit was asked. Without
        // the mail itself it has nothing to deliver, and the connection goes.
        if !permit.begin() {
            return Err(Trouble::Refused);
        }
        *stage = Stage::Uncertain;
        let answer = Answer::of(connection.message(mail).await).map_err(|why| {
            let server = &self.settings.server;
            Trouble::Lost(format!("{server}: no answer to the whole mail: {why}"))
        })?;
        *stage = Stage::Before;
        if answer.is_done() {
            tally.sent(&takers, &answer);
            self.keep(connection);
        } else if answer.code == 421 {
            return Err(self.away(&answer.to_string()));
        } else {
            tally.mail_denied(&takers, &answer);
        }
        Ok(())
    }

    /// A connection on which the server has taken the sender.
    async fn begin(&self, permit: &Permit) -> Result<AsyncSmtpConnection, Trouble> {
        let idle = self.idle();
        if let Some(mut connection) = idle {
            // One that the server has given up meanwhile says nothing of the server, and nothing was
            // sent on it.
            match self.from(&mut connection, permit).await {
                Ok(()) => return Ok(connection),
                Err(Trouble::Away(_)) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        let mut connection = self.open().await?;
        self.from(&mut connection, permit).await?;
        Ok(connection)
    }

    /// Says who the mail is from. That is the same for all mail: so is what the server thinks of it.
    /// Nothing of a mail is said before the permit is there.
    async fn from(
        &self,
        connection: &mut AsyncSmtpConnection,
        permit: &Permit,
    ) -> Result<(), Trouble> {
        if !permit.begin() {
            return Err(Trouble::Refused);
        }
        let from = &self.settings.from.email;
        let mail = Mail::new(Some(from.clone()), vec![]);
        let answer = self.say(connection, mail).await?;
        if answer.is_done() {
            return Ok(());
        }
        if answer.is_for_good() {
            let server = &self.settings.server;
            return Err(Trouble::Broken(format!(
                "{server} takes no mail from {from}: {answer}: mend `from`, or the server's rights"
            )));
        }
        Err(self.away(&answer.to_string()))
    }

    /// Connects and signs in.
    async fn open(&self) -> Result<AsyncSmtpConnection, Trouble> {
        let settings = &self.settings;
        let wire = Wire::open(
            &settings.server,
            settings.tls.as_ref(),
            &self.hello,
            settings.timeout,
        )
        .await?;
        let mut connection =
            AsyncSmtpConnection::connect_with_transport(Box::new(wire), &self.hello)
                .await
                .map_err(|error| match Answer::of(Err(error)) {
                    Ok(answer) => self.away(&answer.to_string()),
                    Err(why) => self.away(&why),
                })?;
        if let (Some(user), Some(password)) = (&settings.server.user, &settings.password) {
            self.sign_in(&mut connection, user, password).await?;
        }
        Ok(connection)
    }

    async fn sign_in(
        &self,
        connection: &mut AsyncSmtpConnection,
        user: &str,
        password: &SecretString,
    ) -> Result<(), Trouble> {
        const WAYS: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];
        let server = &self.settings.server;
        if connection.server_info().get_auth_mechanism(&WAYS).is_none() {
            return Err(Trouble::Broken(format!(
                "{server} lets nobody sign in by PLAIN or LOGIN"
            )));
        }
        let exposed = password.expose_secret();
        let credentials = Credentials::new(user.to_owned(), exposed.to_owned());
        let answer = Answer::of(connection.auth(&WAYS, &credentials).await)
            .map_err(|why| self.away(&without(&why, user, exposed)))?;
        if answer.code == 235 {
            return Ok(());
        }
        let said = without(&answer.to_string(), user, exposed);
        if answer.is_for_good() {
            return Err(Trouble::Broken(format!(
                "{server} does not let {user} in: {said}: mend the user or `password`"
            )));
        }
        Err(self.away(&said))
    }

    /// Says something and hears the answer, if it is about what was said: not being served at all,
    /// and not being signed in, are about more than that.
    async fn say(
        &self,
        connection: &mut AsyncSmtpConnection,
        command: impl fmt::Display,
    ) -> Result<Answer, Trouble> {
        let answer =
            Answer::of(connection.command(command).await).map_err(|why| self.away(&why))?;
        match answer.code {
            421 => Err(self.away(&answer.to_string())),
            530 | 534 | 535 | 538 => Err(Trouble::Broken(format!(
                "{} wants somebody to sign in: {answer}: mend the user in `smtp`, and `password`",
                self.settings.server
            ))),
            _ => Ok(answer),
        }
    }

    fn away(&self, why: &str) -> Trouble {
        Trouble::Away(format!("{}: {why}", self.settings.server))
    }

    /// A connection from an earlier mail, the one used last.
    fn idle(&self) -> Option<AsyncSmtpConnection> {
        let now = self.clock.now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, used_at)| since(*used_at, now) < LONGEST_IDLE);
        idle.pop().map(|(connection, _)| connection)
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let now = self.clock.now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.has_broken() && idle.len() < self.settings.connections {
            idle.push((connection, now));
        }
    }
}

/// What a server said, unless it repeats the secret that it was told.
fn without(said: &str, user: &str, password: &str) -> String {
    let tellers = [
        password.to_owned(),
        BASE64_STANDARD.encode(password),
        BASE64_STANDARD.encode(format!("\0{user}\0{password}")),
    ];
    if tellers.iter().any(|teller| said.contains(teller.as_str())) {
        return "its answer repeats the password and is not shown".to_owned();
    }
    said.to_owned()
}
