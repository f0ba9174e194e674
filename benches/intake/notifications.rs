//! What is posted: distinct, signed notifications as Run Command sends them, made before anything is
//! measured; and the same things as events, to fill a store with.

use std::sync::Arc;

use axum::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::sns::signer::{Certificate, Draft, Signer};

pub(crate) const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:run-command";

/// Instances of one command; it tells of itself and of each of them twice.
const INSTANCES: usize = 50;
const STEPS: usize = 2 * (INSTANCES + 1);

/// A signed notification and the id that it is found again by.
#[derive(Clone)]
pub(crate) struct Notification {
    pub(crate) message_id: Arc<str>,
    pub(crate) body: Bytes,
}

/// One thing that Run Command tells.
struct Told {
    message_id: String,
    sent_at: Timestamp,
    message: String,
}

/// A key, made anew for each run.
pub(crate) fn signer(certificate_url: &str) -> anyhow::Result<Signer> {
    Ok(Signer::new(certificate_url, &Certificate::default())?)
}

/// Signs `count` notifications, on all processors, that end `now`.
pub(crate) fn sign(
    signer: &Signer,
    count: usize,
    now: Timestamp,
) -> anyhow::Result<Vec<Notification>> {
    let workers = std::thread::available_parallelism()?.get();
    let share = count.div_ceil(workers).max(1);
    let numbers: Vec<usize> = (0..count).collect();
    let mut signed = Vec::with_capacity(count);
    std::thread::scope(|scope| {
        let workers: Vec<_> = numbers
            .chunks(share)
            .map(|numbers| {
                scope.spawn(move || {
                    let sign = |number: &usize| sign_one(signer, &tell("new", *number, count, now));
                    numbers.iter().map(sign).collect::<anyhow::Result<Vec<_>>>()
                })
            })
            .collect();
        for worker in workers {
            let share = worker
                .join()
                .map_err(|_| anyhow::anyhow!("signing failed"))?;
            signed.extend(share?);
        }
        Ok(signed)
    })
}

/// The `number`-th of `count` events of the past, the last of which was `now`.
pub(crate) fn past_event(number: usize, count: usize, now: Timestamp) -> Event {
    let told = tell("past", number, count, now);
    Event::read(&Source {
        topic: TOPIC,
        account: "123456789012",
        region: "eu-central-1",
        message_id: &told.message_id,
        sent_at: told.sent_at,
        subject: Some("EC2 Run Command Notification eu-central-1"),
        body: &told.message,
        envelope: EnvelopeKind::Notification,
    })
}

fn sign_one(signer: &Signer, told: &Told) -> anyhow::Result<Notification> {
    let envelope = signer.envelope(&Draft {
        kind: "Notification".to_owned(),
        topic: TOPIC.to_owned(),
        message_id: told.message_id.clone(),
        subject: Some("EC2 Run Command Notification eu-central-1".to_owned()),
        message: told.message.clone(),
        timestamp: format!("{:.3}", told.sent_at),
        ..Draft::default()
    })?;
    Ok(Notification {
        message_id: told.message_id.as_str().into(),
        body: serde_json::to_vec(&envelope)?.into(),
    })
}

/// A command begins, its instances begin, they end, it ends; one millisecond apart.
fn tell(life: &str, number: usize, count: usize, now: Timestamp) -> Told {
    let (command, step) = (number / STEPS, number % STEPS);
    let command_id = uuid(&[life, "command", &command.to_string()]);
    let ago = i64::try_from(count - number).unwrap_or_default();
    let sent_at = now - SignedDuration::from_millis(ago);
    let event_time = sent_at - SignedDuration::from_millis(40);
    let is_start = step <= INSTANCES;
    let status = match (is_start, step % 10) {
        (true, _) => "InProgress",
        (false, 7) => "Failed",
        (false, _) => "Success",
    };
    let message = if step == 0 || step == STEPS - 1 {
        let expires_at = event_time + SignedDuration::from_hours(1);
        serde_json::json!({
            "commandId": command_id, "documentName": "AWS-RunShellScript", "instanceIds": [],
            "requestedDateTime": event_time, "expiresAfter": expires_at,
            "outputS3BucketName": "amzn-s3-demo-bucket", "outputS3KeyPrefix": "runcommand",
            "status": status, "eventTime": event_time,
        })
    } else {
        let instance = uuid(&["instance", &((step - 1) % INSTANCES).to_string()]).replace('-', "");
        let instance = instance.get(..17).unwrap_or_default();
        serde_json::json!({
            "commandId": command_id, "documentName": "AWS-RunShellScript",
            "instanceId": format!("i-{instance}"), "requestedDateTime": event_time,
            "status": status, "detailedStatus": status, "eventTime": event_time,
        })
    };
    Told {
        message_id: uuid(&[life, "message", &number.to_string()]),
        sent_at,
        message: message.to_string(),
    }
}

/// An id that looks random, and is the same in every run.
fn uuid(seed: &[&str]) -> String {
    let hash = openssl::sha::sha256(seed.join("/").as_bytes());
    let number = hash
        .iter()
        .take(16)
        .fold(0, |number, byte| number << 8 | u128::from(*byte));
    let hex = format!("{number:032x}");
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    let parts = [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ];
    parts.join("-")
}
