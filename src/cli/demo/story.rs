//! What SNS delivers in the demo: one command on a fleet, out of order, with everything that an
//! endpoint on the internet has to expect.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::sns::{Sns, TOPIC};
use crate::cli::Stop;
use crate::sns::signer::Draft;

const COMMAND: &str = "a8c7e76f-15f1-4c33-9052-0123456789ab";
const DOCUMENT: &str = "AWS-RunPatchBaseline";

/// One request.
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) body: String,
}

/// What a request is, and so what should come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A status that was not told before.
    Status,
    /// The same notification once more, as SNS retries.
    Copy,
    /// The same status in another notification.
    Repeat,
    /// A subscription to be confirmed.
    Confirmation,
    /// Its text was changed after it was signed.
    Forged,
    /// It was signed two hours ago.
    Stale,
    /// Signed in earnest, for somebody else's topic.
    Foreign,
    /// Its certificate is said to lie in somebody's bucket.
    Elsewhere,
    /// What was accepted before, posted again by a stranger.
    Replayed,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::Status,
        Self::Copy,
        Self::Repeat,
        Self::Confirmation,
        Self::Replayed,
        Self::Forged,
        Self::Stale,
        Self::Foreign,
        Self::Elsewhere,
    ];

    /// What it is, in words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Status => "statuses",
            Self::Copy => "copies of a notification",
            Self::Repeat => "statuses told twice",
            Self::Confirmation => "subscription confirmation",
            Self::Forged => "forged: text changed",
            Self::Stale => "signed two hours ago",
            Self::Foreign => "signed for a foreign topic",
            Self::Elsewhere => "certificate in a bucket",
            Self::Replayed => "replayed by a stranger",
        }
    }

    /// What shall be answered, and why.
    pub(super) const fn outcome(self) -> (u16, &'static str) {
        match self {
            Self::Status => (200, "verified, kept, delivered in order"),
            Self::Copy | Self::Replayed => (200, "known: nothing changed"),
            Self::Repeat => (200, "kept, recognised as a repeat, not delivered again"),
            Self::Confirmation => (200, "verified and confirmed, without following its URL"),
            Self::Forged => (403, "the signature does not fit"),
            Self::Stale => (403, "too old"),
            Self::Foreign => (403, "the topic is not among the settings; nothing fetched"),
            Self::Elsewhere => (403, "SNS keeps no certificate there; nothing fetched"),
        }
    }
}

pub(super) struct Story {
    pub(super) parts: Vec<Part>,
    /// Where the first act ends: the rest comes after it was answered.
    first_act: usize,
    statuses: usize,
    failures: usize,
}

/// A status of the command, or of it on one instance.
struct Moment {
    instance: Option<String>,
    status: &'static str,
    at: Timestamp,
}

impl Story {
    /// Writes the story of one command on so many instances, that ended just now.
    pub(super) fn write(sns: &Sns, instances: usize, now: Timestamp) -> Result<Self, Stop> {
        let statuses = life(instances, now);
        let mut dice = fastrand::Rng::new();
        let mut parts = Vec::new();
        for status in &statuses {
            let body = sign(sns, &draft(&message(status), now, &mut dice))?;
            if dice.u8(..) < 26 {
                parts.push(Part {
                    kind: Kind::Copy,
                    body: body.clone(),
                });
            }
            if dice.u8(..) < 13 {
                let body = sign(sns, &draft(&message(status), now, &mut dice))?;
                parts.push(Part {
                    kind: Kind::Repeat,
                    body,
                });
            }
            parts.push(Part {
                kind: Kind::Status,
                body,
            });
        }
        for _ in 0..5 {
            parts.extend(strangers(sns, now, &mut dice)?);
        }
        dice.shuffle(&mut parts);
        settle_who_is_first(&mut parts);
        let confirmation = Draft {
            kind: "SubscriptionConfirmation".to_owned(),
            ..draft("You have chosen to subscribe to the topic.", now, &mut dice)
        };
        parts.insert(
            0,
            Part {
                kind: Kind::Confirmation,
                body: sign(sns, &confirmation)?,
            },
        );
        let first_act = parts.len();
        let replayed: Vec<_> = parts
            .iter()
            .filter(|part| part.kind == Kind::Status)
            .take(10)
            .map(|part| part.body.clone())
            .collect();
        parts.extend(replayed.into_iter().map(|body| Part {
            kind: Kind::Replayed,
            body,
        }));
        Ok(Self {
            parts,
            first_act,
            statuses: statuses.len(),
            failures: statuses
                .iter()
                .filter(|status| status.instance.is_some() && status.status != "Success")
                .count(),
        })
    }

    /// What is posted one after the other.
    pub(super) fn acts(&self) -> [&[Part]; 2] {
        let (first, second) = self.parts.split_at(self.first_act);
        [first, second]
    }

    /// Lines of the audit file: every status once, and the confirmation.
    pub(super) const fn audit_lines(&self) -> usize {
        self.statuses + 1
    }

    pub(super) const fn failure_lines(&self) -> usize {
        self.failures
    }

    pub(super) const fn lines_expected(&self) -> usize {
        self.audit_lines() + self.failure_lines()
    }
}

/// Of a notification and its copies one comes first: that one is the news.
fn settle_who_is_first(parts: &mut [Part]) {
    let mut seen = std::collections::HashSet::new();
    for part in parts.iter_mut() {
        if matches!(part.kind, Kind::Status | Kind::Copy) {
            let is_first = seen.insert(part.body.clone());
            part.kind = if is_first { Kind::Status } else { Kind::Copy };
        }
    }
}

/// The whole life of the command; it lasted some seconds.
fn life(instances: usize, now: Timestamp) -> Vec<Moment> {
    let at = |millis: i64| now - SignedDuration::from_millis(5_000 - millis);
    let mut statuses = vec![Moment {
        instance: None,
        status: "InProgress",
        at: at(0),
    }];
    for number in 0..instances {
        let instance = format!("i-{number:017x}");
        let begins = 20 + i64::try_from(number % 200).unwrap_or_default() * 5;
        statuses.push(Moment {
            instance: Some(instance.clone()),
            status: "InProgress",
            at: at(begins),
        });
        let status = match number % 20 {
            7 => "Failed",
            13 => "TimedOut",
            _ => "Success",
        };
        statuses.push(Moment {
            instance: Some(instance),
            status,
            at: at(begins + 1_500 + i64::try_from(number % 7).unwrap_or_default() * 200),
        });
    }
    statuses.push(Moment {
        instance: None,
        status: "Failed",
        at: at(4_500),
    });
    statuses
}

fn message(status: &Moment) -> String {
    let mut message = json!({
        "commandId": COMMAND,
        "documentName": DOCUMENT,
        "requestedDateTime": status.at.to_string(),
        "status": status.status,
        "eventTime": status.at.to_string(),
    });
    if let Some(fields) = message.as_object_mut() {
        if let Some(instance) = &status.instance {
            fields.insert("instanceId".to_owned(), instance.as_str().into());
            fields.insert("detailedStatus".to_owned(), status.status.into());
        } else {
            fields.insert("instanceIds".to_owned(), json!([]));
            fields.insert("outputS3BucketName".to_owned(), "".into());
        }
    }
    message.to_string()
}

fn draft(message: &str, at: Timestamp, dice: &mut fastrand::Rng) -> Draft {
    Draft {
        kind: "Notification".to_owned(),
        topic: TOPIC.to_owned(),
        message_id: format!("{:032x}", dice.u128(..)),
        subject: Some("EC2 Run Command Notification eu-central-1".to_owned()),
        message: message.to_owned(),
        timestamp: format!("{at:.3}"),
        token: format!("{:032x}", dice.u128(..)),
        is_version_2: dice.bool(),
    }
}

/// One of each kind that must be refused.
fn strangers(sns: &Sns, now: Timestamp, dice: &mut fastrand::Rng) -> Result<Vec<Part>, Stop> {
    let forged = Moment {
        instance: Some("i-0".to_owned()),
        status: "Failed",
        at: now,
    };
    let honest = draft(&message(&forged), now, dice);
    let mut changed = fields(sns, &honest)?;
    let text = honest.message.replace("Failed", "Success");
    changed.insert("Message".to_owned(), text.into());
    let two_hours_ago = now - SignedDuration::from_hours(2);
    let stale = draft(&message(&forged), two_hours_ago, dice);
    let foreign = Draft {
        topic: TOPIC.replace("123456789012", "666666666666"),
        ..draft(&message(&forged), now, dice)
    };
    let mut elsewhere = fields(sns, &draft(&message(&forged), now, dice))?;
    let bucket = "https://sns.s3-eu-central-1.amazonaws.com/certificate.pem";
    elsewhere.insert("SigningCertURL".to_owned(), bucket.into());
    Ok(vec![
        Part {
            kind: Kind::Forged,
            body: Value::Object(changed).to_string(),
        },
        Part {
            kind: Kind::Stale,
            body: sign(sns, &stale)?,
        },
        Part {
            kind: Kind::Foreign,
            body: sign(sns, &foreign)?,
        },
        Part {
            kind: Kind::Elsewhere,
            body: Value::Object(elsewhere).to_string(),
        },
    ])
}

fn fields(sns: &Sns, draft: &Draft) -> Result<Map<String, Value>, Stop> {
    Ok(sns.signer.envelope(draft).context("cannot sign")?)
}

fn sign(sns: &Sns, draft: &Draft) -> Result<String, Stop> {
    Ok(Value::Object(fields(sns, draft)?).to_string())
}
