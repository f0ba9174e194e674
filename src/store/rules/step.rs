//! Steps: the facts that events tell, and which lane a delivery joins.

use crate::delivery::LaneKey;
use crate::event::{Event, Kind, Status};
use crate::store::rules::columns::nanos;

/// The terminal statuses as SQL text. Held to [`Status::is_terminal`] by a test.
macro_rules! terminal {
    () => {
        "('Success', 'Failed', 'TimedOut', 'Cancelled')"
    };
}
pub(in crate::store) use terminal;

/// The terminal statuses that are not good news, as SQL text.
macro_rules! troubled {
    () => {
        "('Failed', 'TimedOut', 'Cancelled')"
    };
}
pub(in crate::store) use troubled;

/// A fact about a command, as the step table keeps it.
pub(in crate::store) struct Step<'a> {
    pub(in crate::store) command_no: i64,
    /// Empty, of the whole command.
    pub(in crate::store) instance: &'a str,
    pub(in crate::store) status: &'a Status,
    pub(in crate::store) event_time: i64,
}

impl<'a> Step<'a> {
    /// The step that an event tells, if it tells one; `command_no` numbers its command.
    pub(in crate::store) fn of(event: &'a Event, command_no: i64) -> Option<Self> {
        let command = event.command()?;
        let is_invocation = matches!(event.kind, Kind::Invocation(_));
        Some(Self {
            command_no,
            instance: command
                .instance
                .as_deref()
                .filter(|_| is_invocation)
                .unwrap_or_default(),
            status: &command.status,
            event_time: nanos(command.event_time.unwrap_or(event.sort_time)),
        })
    }
}

/// A step that is stored.
pub(in crate::store) struct Stored {
    pub(in crate::store) status: Status,
    pub(in crate::store) event_time: i64,
    /// The event that told it first.
    pub(in crate::store) event: i64,
}

/// The bearing of the steps told before on a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Told {
    /// The event that told the same step.
    pub(in crate::store) before: Option<i64>,
    /// The `InProgress` of the same thing is stored.
    pub(in crate::store) started: bool,
    /// Another terminal status of the same thing is stored.
    pub(in crate::store) conflict: bool,
}

impl Told {
    /// Judges `step`, told by `event`, against all that is stored of the same thing, itself included.
    pub(in crate::store) fn of<'s>(
        step: &Step<'_>,
        event: i64,
        stored: impl IntoIterator<Item = &'s Stored>,
    ) -> Self {
        let mut told = Self::default();
        for it in stored {
            let is_same = it.status == *step.status && it.event_time == step.event_time;
            if is_same {
                told.before = (it.event != event).then_some(it.event);
            }
            told.conflict |= contradicts(&it.status, step.status);
            told.started |= it.status == Status::InProgress;
        }
        told
    }
}

/// Whether two statuses of one thing cannot both be its end.
pub(in crate::store) fn contradicts(one: &Status, other: &Status) -> bool {
    one.is_terminal() && other.is_terminal() && one != other
}

/// A lane of a route and sink, in columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::store) struct LaneColumns<'a> {
    pub(in crate::store) kind: i64,
    pub(in crate::store) number: i64,
    pub(in crate::store) instance: &'a str,
}

pub(in crate::store) const KIND_COMMAND: i64 = 0;
pub(in crate::store) const KIND_INSTANCE: i64 = 1;
pub(in crate::store) const KIND_TOPIC: i64 = 2;
/// A lane of one event, which goes with it.
pub(in crate::store) const KIND_OWN: i64 = 3;
pub(in crate::store) const KIND_DIGEST: i64 = 4;

/// The kind of lane that a number stands for. An unknown one is a lane of its own: no order.
pub(in crate::store) const fn lane_key(kind: i64) -> LaneKey {
    match kind {
        KIND_COMMAND => LaneKey::Command,
        KIND_INSTANCE => LaneKey::Instance,
        KIND_TOPIC => LaneKey::Topic,
        KIND_DIGEST => LaneKey::Digest,
        _ => LaneKey::Own,
    }
}

/// The kinds of lane that belong to a command, as SQL text.
macro_rules! kinds_of_a_command {
    () => {
        "(0, 1, 4)"
    };
}
pub(in crate::store) use kinds_of_a_command;

impl<'a> LaneColumns<'a> {
    pub(in crate::store) fn new(
        key: LaneKey,
        step: Option<&Step<'a>>,
        topic: i64,
        event: i64,
    ) -> Self {
        let (kind, number, instance) = match (key, step) {
            (LaneKey::Command, Some(step)) => (KIND_COMMAND, step.command_no, ""),
            (LaneKey::Instance, Some(step)) => (KIND_INSTANCE, step.command_no, step.instance),
            (LaneKey::Digest, Some(step)) => (KIND_DIGEST, step.command_no, ""),
            (LaneKey::Topic, _) => (KIND_TOPIC, topic, ""),
            (LaneKey::Own, _) | (_, None) => (KIND_OWN, event, ""),
        };
        Self {
            kind,
            number,
            instance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(status: Status, event_time: i64, event: i64) -> Stored {
        Stored {
            status,
            event_time,
            event,
        }
    }

    #[test]
    fn statuses_in_statements_are_those_of_the_type() {
        for status in [
            Status::InProgress,
            Status::Success,
            Status::Failed,
            Status::TimedOut,
            Status::Cancelled,
        ] {
            let quoted = format!("'{}'", status.as_str());
            assert_eq!(terminal!().contains(&quoted), status.is_terminal());
            let is_trouble = status.is_terminal() && status != Status::Success;
            assert_eq!(troubled!().contains(&quoted), is_trouble);
        }
        let kinds = [KIND_COMMAND, KIND_INSTANCE, KIND_DIGEST];
        let text = kinds.map(|kind| kind.to_string()).join(", ");
        assert_eq!(kinds_of_a_command!(), format!("({text})"));
    }

    #[test]
    fn step_is_judged_against_what_was_told_before() {
        use Status::{Failed, InProgress, Success};
        for (name, status, others, before, started, conflict) in [
            ("alone", Success, vec![], None, false, false),
            (
                "after its start",
                Success,
                vec![(InProgress, 1, 3)],
                None,
                true,
                false,
            ),
            (
                "told again",
                Success,
                vec![(Success, 2, 3)],
                Some(3),
                false,
                false,
            ),
            (
                "the same at another time",
                Success,
                vec![(Success, 9, 3)],
                None,
                false,
                false,
            ),
            (
                "another end",
                Success,
                vec![(Failed, 1, 3)],
                None,
                false,
                true,
            ),
        ] {
            let step = Step {
                command_no: 1,
                instance: "i-1",
                status: &status,
                event_time: 2,
            };
            let mut all: Vec<_> = others
                .into_iter()
                .map(|(status, time, event)| stored(status, time, event))
                .collect();
            if before.is_none() {
                all.push(stored(status.clone(), 2, 8));
            }
            let told = Told::of(&step, 8, &all);
            assert_eq!(
                (told.before, told.started, told.conflict),
                (before, started, conflict),
                "{name}"
            );
        }
    }
}
