//! Random events and endings.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use runbell::delivery::{Hold, LaneKey, Leading, Marks, Owed, Release, SortKey};
use runbell::event::{EnvelopeKind, Event, Source, Status};
use runbell::store::{Append, Ending, Failure, Settled, Waiting};

pub(super) const SINKS: [&str; 3] = ["s", "t", "u"];

/// Two topics of one authority, which tell of the same commands, and one of another.
const TOPICS: [(&str, &str); 3] = [
    ("arn:aws:sns:eu-central-1:123456789012:one", "aws"),
    ("arn:aws:sns:eu-central-1:123456789012:two", "aws"),
    (
        "arn:aws:sns:eu-central-1:123456789012:own",
        "https://own.example/hook",
    ),
];

const LANES: [LaneKey; 8] = [
    LaneKey::Command,
    LaneKey::Digest,
    LaneKey::Digest,
    LaneKey::Digest,
    LaneKey::Instance,
    LaneKey::Instance,
    LaneKey::Own,
    LaneKey::Topic,
];

pub(super) fn one_of<'a, T>(dice: &mut Rng, all: &'a [T]) -> &'a T {
    &all[dice.usize(..all.len())]
}

/// Once in `many`.
pub(super) fn once_in(dice: &mut Rng, many: u32) -> bool {
    dice.u32(..many) == 0
}

pub(super) fn seconds(dice: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_secs(dice.u64(from..=to))
}

/// How long nothing happens: now and then longer than a lease or a replica's silence may last.
pub(super) fn time(dice: &mut Rng) -> Duration {
    match dice.u8(..10) {
        0 => Duration::from_secs(31),
        1 => Duration::from_secs(9),
        _ => seconds(dice, 0, 4),
    }
}

/// A sink, and another.
pub(super) fn two_sinks(dice: &mut Rng) -> (&'static str, &'static str) {
    let one = dice.usize(..3);
    (SINKS[one], SINKS[(one + dice.usize(1..3)) % 3])
}

fn body(dice: &mut Rng, now: Timestamp) -> String {
    if once_in(dice, 12) {
        return format!("not a status {}", dice.u8(..));
    }
    let status = [
        "InProgress",
        "Success",
        "Failed",
        "TimedOut",
        "Cancelled",
        "Pending",
    ];
    let status = status[(dice.usize(..11)) / 2];
    // Few moments, so that steps are told again and times are equal.
    let at = now.as_second() / 10 * 10 - dice.i64(0..3) * 3;
    let mut told = serde_json::json!({
        "commandId": one_of(dice, &["c-1", "c-1", "c-2"]), "documentName": "AWS-RunShellScript",
        "status": status, "eventTime": Timestamp::from_second(at).unwrap().to_string(),
    });
    if once_in(dice, 4) {
        let named = &["i-1", "i-2", "i-3", "i-4"][..dice.usize(..5)];
        told["instanceIds"] = named.into();
    } else {
        told["instanceId"] = (*one_of(dice, &["i-1", "i-2", "i-3"])).into();
    }
    told.to_string()
}

/// An event with what is owed for it: often new, sometimes one that came before in some form.
pub(super) fn append(
    dice: &mut Rng,
    (wall, now): (Timestamp, Timestamp),
    serial: u64,
    before: &[Append],
) -> Append {
    if !before.is_empty() && once_in(dice, 12) {
        return one_of(dice, before).clone();
    }
    let (topic, trust) = *one_of(dice, &TOPICS);
    let mut message_id = format!("m-{serial}");
    let mut body = body(dice, wall);
    if !before.is_empty() && once_in(dice, 5) {
        let earlier = one_of(dice, before);
        body.clone_from(&earlier.event.body);
        if once_in(dice, 3) {
            // Signed anew.
            message_id.clone_from(&earlier.event.message_id);
        }
    }
    let event = Event::read(&Source {
        topic,
        account: "123456789012",
        region: "eu-central-1",
        message_id: &message_id,
        sent_at: wall,
        subject: None,
        body: &body,
        envelope: EnvelopeKind::Notification,
    });
    let mut all = Vec::new();
    for route in ["a", "b"] {
        // A route has one order, whichever sink it names.
        let lane = *one_of(dice, &LANES);
        for sink in &SINKS[..2] {
            if dice.bool() {
                all.push(owed(dice, &event, lane, (route, sink), serial));
            }
        }
    }
    Append {
        received_at: wall,
        trust: Arc::from(trust),
        ..Append::new(event, all, now)
    }
}

fn owed(
    dice: &mut Rng,
    event: &Event,
    lane: LaneKey,
    (route, sink): (&str, &str),
    serial: u64,
) -> Owed {
    use LaneKey::{Digest, Instance};
    let told = event.command();
    let usual = match (lane, told.map(|it| &it.status)) {
        (Digest, _) => Release::WhenOver(seconds(dice, 1, 2)),
        (Instance, Some(Status::InProgress)) => Release::First,
        (Instance, Some(Status::Other(_))) => Release::Never,
        (Instance, Some(_)) => Release::AfterFirst,
        _ => Release::AtEnd,
    };
    let odd = [
        Release::AtEnd,
        Release::First,
        Release::AfterFirst,
        Release::Never,
        Release::WhenOver(seconds(dice, 1, 2)),
    ];
    let release = if once_in(dice, 12) {
        *one_of(dice, &odd)
    } else {
        usual
    };
    let leading = if lane == Instance {
        Leading::Rank
    } else {
        Leading::Time
    };
    let instance = told
        .and_then(|it| it.instance.as_deref())
        .unwrap_or_default();
    // No two are held for the same time: nobody says who goes first then.
    let nanos = serial * 4 + u64::from(route == "b") * 2 + u64::from(sink == "t");
    Owed {
        route: route.to_owned(),
        sink: sink.to_owned(),
        lane,
        key: SortKey::new(
            leading,
            event.sort_time,
            event.rank(),
            instance,
            &event.message_id,
        ),
        hold: Hold {
            at_most: seconds(dice, 0, 9) + Duration::from_nanos(nanos),
            release,
        },
    }
}

/// How all of a lane end, or none: each for itself then.
pub(super) fn kind(dice: &mut Rng) -> u32 {
    dice.u32(..11)
}

pub(super) fn settled(
    dice: &mut Rng,
    kind: u32,
    it: &Waiting,
    from: &str,
    (wall, now): (Timestamp, Timestamp),
) -> Settled {
    let failure = Failure {
        since: dice.bool().then_some(now),
        progress: once_in(dice, 3).then(|| format!("half {}", dice.u8(..))),
        may_have_arrived: dice.bool(),
    };
    let others: Vec<&str> = SINKS.into_iter().filter(|sink| *sink != from).collect();
    let ending = match kind {
        0..=2 => Ending::Sent {
            message: dice.bool().then(|| format!("thread {}", dice.u8(..))),
        },
        3 => Ending::Redundant,
        4 => Ending::Muted,
        5 | 6 => Ending::Retry(failure),
        7 => Ending::Parked {
            again_at: now + SignedDuration::try_from(seconds(dice, 0, 9)).unwrap(),
            failure,
        },
        8 | 9 => Ending::Dead,
        _ => Ending::Diverted {
            to: (*one_of(dice, &others)).to_owned(),
        },
    };
    Settled {
        marks: Marks {
            late: once_in(dice, 3).then(|| seconds(dice, 1, 9)),
            repeat: dice.bool(),
            possible_repeat: it.possible_repeat,
            resent: it.resent,
            conflict: dice.bool(),
            instead_of: it.instead_of.clone(),
        },
        answer: dice.bool().then(|| format!("answer {}", dice.u8(..))),
        took: dice.bool().then(|| Duration::from_millis(dice.u64(..999))),
        ..Settled::new(it.event_id, it.key.clone(), ending, wall)
    }
}
