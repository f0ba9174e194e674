//! An event that a route takes: what `check` shows, so that a rule that never fires is seen before
//! the night in which it should have.

use serde_json::{Map, Value, json};

use super::Route;
use super::when::Field;
use crate::event::{EnvelopeKind, Event, Source};

impl Route {
    /// An event that this route takes, made from its patterns; `None` when none could be made, and
    /// the route may never take anything.
    #[must_use]
    pub fn witness(&self) -> Option<Event> {
        let statuses = ["Failed", "InProgress", "Success", "TimedOut", "Cancelled"];
        let kinds = ["invocation", "summary", "other", "alarm", "eventbridge"];
        kinds
            .iter()
            .flat_map(|kind| statuses.iter().map(move |status| (*kind, *status)))
            .find_map(|(kind, status)| {
                let event = self.made(kind, status)?;
                self.when.takes(&event).then_some(event)
            })
            .or_else(|| {
                [
                    EnvelopeKind::SubscriptionConfirmation,
                    EnvelopeKind::UnsubscribeConfirmation,
                ]
                .into_iter()
                .filter_map(|envelope| self.enveloped(envelope, ""))
                .find(|event| self.when.takes(event))
            })
    }

    fn made(&self, kind: &str, status: &str) -> Option<Event> {
        let body = match kind {
            "invocation" | "summary" => {
                let mut body = json!({
                    "commandId": self.like(Field::Command, "11111111-2222-3333-4444-555555555555")?,
                    "documentName": self.like(Field::Document, "AWS-RunShellScript")?,
                    "status": self.like(Field::Status, status)?,
                    "eventTime": "2026-01-01T00:00:00Z",
                });
                let instance = self.like(Field::Instance, "i-0123456789abcdef0")?;
                let fields = body.as_object_mut()?;
                if kind == "invocation" {
                    fields.insert("instanceId".to_owned(), instance.into());
                    let detail = self.like(Field::Detail, status)?;
                    fields.insert("detailedStatus".to_owned(), detail.into());
                } else {
                    fields.insert("instanceIds".to_owned(), json!([instance]));
                }
                body
            }
            "alarm" => json!({"AlarmName": "an alarm", "NewStateValue": "ALARM"}),
            "eventbridge" => json!({"detail-type": "a type", "source": "a.source"}),
            _ => json!({}),
        };
        let body = self.with_message(body)?;
        self.enveloped(EnvelopeKind::Notification, &body.to_string())
    }

    /// Puts into `body` what the route wants to find in the message.
    fn with_message(&self, mut body: Value) -> Option<Value> {
        for (pointer, patterns) in self.when.message_patterns() {
            let wanted = patterns.example("a text")?;
            let mut place = &mut body;
            for key in pointer.split('/').skip(1) {
                let key = key.replace("~1", "/").replace("~0", "~");
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                place = place.as_object_mut()?.entry(key).or_insert(Value::Null);
            }
            *place = Value::String(wanted);
        }
        Some(body)
    }

    fn enveloped(&self, envelope: EnvelopeKind, body: &str) -> Option<Event> {
        let account = self.like(Field::Account, "123456789012")?;
        let region = self.like(Field::Region, "us-east-1")?;
        let arn = format!("arn:aws:sns:{region}:{account}:run-command");
        let topic = self.like(Field::Topic, &arn)?;
        let subject = format!("EC2 Run Command Notification {region}");
        Some(Event::read(&Source {
            topic: &topic,
            account: &account,
            region: &region,
            message_id: "a-message",
            sent_at: "2026-01-01T00:00:01Z".parse().ok()?,
            subject: Some(&self.like(Field::Subject, &subject)?),
            body,
            envelope,
        }))
    }

    /// A value for a field: the usual one, unless the route wants another.
    fn like(&self, field: Field, usual: &str) -> Option<String> {
        match self.when.patterns(field) {
            Some(patterns) => patterns.example(usual),
            None => Some(usual.to_owned()),
        }
    }
}
