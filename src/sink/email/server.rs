//! The server as settings name it: `smtp+starttls://user@mail.example.com:587`.

use std::fmt;
use std::net::IpAddr;

use crate::fault::meant;

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// Not at all.
    Plain,
    /// By TLS, which is asked for within SMTP.
    StartTls,
    /// By TLS from the first byte.
    Implicit,
}

/// Where mail is handed in, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) security: Security,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<String>,
}

/// The schemes, with their ports.
const SCHEMES: [(&str, Security, u16); 3] = [
    ("smtp+starttls", Security::StartTls, 587),
    ("smtps", Security::Implicit, 465),
    ("smtp+plain", Security::Plain, 25),
];

impl Server {
    /// Reads it. What is said of a wrong one never repeats it: there may be a password in it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write it like smtp+starttls://user@mail.example.com:587";
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("this names no server: {FORM}"))?;
        let known = SCHEMES.iter().find(|(name, ..)| *name == scheme);
        let Some((_, security, port)) = known else {
            let hint = meant(scheme, SCHEMES.map(|(name, ..)| name));
            return Err(format!(
                "say how the connection is protected: smtp+starttls://, smtps:// (TLS at once) or \
                 smtp+plain://{hint}"
            ));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let user = user.map(user_name).transpose()?;
        let (host, port) = match split_port(place) {
            (host, None) => (host, *port),
            (host, Some(port)) => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, port.ok_or("the port is a number up to 65535")?)
            }
        };
        let is_name = |host: &str| {
            let mut bytes = host.bytes();
            !host.is_empty()
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        if !is_name(host) && host.parse::<IpAddr>().is_err() {
            return Err(format!("the host is missing or no host: {FORM}"));
        }
        Ok(Self {
            security: *security,
            host: host.to_owned(),
            port,
            user,
        })
    }

    /// Whether what is said to it stays on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Host and port; a host with colons stands in brackets.
fn split_port(place: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = place
        .strip_prefix('[')
        .and_then(|place| place.split_once(']'))
    {
        return match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            // Whatever follows the bracket is no part of a host.
            None => (if rest.is_empty() { host } else { "" }, None),
        };
    }
    match place.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (place, None),
    }
}

/// A user as URLs write it: `%40` is an @, though the @ itself passes as well.
fn user_name(written: &str) -> Result<String, String> {
    if written.contains(':') {
        return Err(
            "no password belongs in here: write `password = { env = \"NAME\" }` \
                    or `{ file = \"PATH\" }`; a colon of the user's name is %3A"
                .to_owned(),
        );
    }
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let code = after
            .get(..2)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|code| u8::from_str_radix(code, 16).ok())
            .ok_or("a % in the user's name is written %25")?;
        bytes.push(code);
        rest = after.get(2..).unwrap_or_default();
    }
    bytes.extend_from_slice(rest.as_bytes());
    let user = String::from_utf8(bytes).map_err(|_| "the user's name is no text")?;
    if user.is_empty() || user.chars().any(char::is_control) {
        return Err("the user's name is empty, or no text".to_owned());
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_in_all_of_its_forms() {
        for (text, security, shown, user) in [
            (
                "smtp+starttls://runbell@mail.example.com:2587",
                Security::StartTls,
                "mail.example.com:2587",
                Some("runbell"),
            ),
            (
                "smtp+starttls://mail.example.com",
                Security::StartTls,
                "mail.example.com:587",
                None,
            ),
            (
                "smtps://a%40example.com@mail.example.com/",
                Security::Implicit,
                "mail.example.com:465",
                Some("a@example.com"),
            ),
            (
                "smtps://a@example.com@mail.example.com",
                Security::Implicit,
                "mail.example.com:465",
                Some("a@example.com"),
            ),
            (
                "smtp+plain://[::1]:1025",
                Security::Plain,
                "[::1]:1025",
                None,
            ),
            (
                "smtp+plain://127.0.0.1",
                Security::Plain,
                "127.0.0.1:25",
                None,
            ),
        ] {
            let server = Server::parse(text).unwrap();
            assert_eq!(server.security, security, "{text}");
            assert_eq!(server.to_string(), shown, "{text}");
            assert_eq!(server.user.as_deref(), user, "{text}");
        }
    }

    #[test]
    fn a_wrong_server_is_told_and_not_shown() {
        for (text, expected) in [
            ("mail.example.com", "names no server"),
            ("smtp://mail.example.com", "how the connection is protected"),
            ("smtps://u:hunter2@mail.example.com", "no password belongs"),
            ("smtps://", "the host is missing"),
            ("smtps://u@", "the host is missing"),
            ("smtps://mail.example.com/inbox", "no host"),
            ("smtps://[::1]x", "the host is missing"),
            ("smtps://h:0", "the port"),
            ("smtps://h:hunter2", "the port"),
            ("smtps://a%4@h", "%25"),
            ("smtps://a%0a@h", "no text"),
            ("smtps://@h", "empty"),
        ] {
            let why = Server::parse(text).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
