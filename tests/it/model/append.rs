//! How the model takes an event in.

use jiff::Timestamp;
use runbell::clock::later;
use runbell::delivery::{LaneKey, Owed, Release};
use runbell::event::{Kind, Status};
use runbell::store::{Append, Appended, EventId, StoredEvent};

use super::rows::{Kept, Of, Place, Row, State};

impl State {
    pub(super) fn append(&mut self, append: &Append) -> Appended {
        let event = &append.event;
        if let Some(id) = self.known(&event.topic, event.sent_at, &event.message_id) {
            return Appended::Known { id };
        }
        self.last_event += 1;
        let id = EventId(self.last_event);
        let step = event.command().map(|told| {
            let text = |text: &str| text.to_owned();
            let (trust, account) = (text(&append.trust), text(&event.account));
            let command = (trust, account, text(&event.region), told.command.clone());
            let is_of_instance = matches!(event.kind, Kind::Invocation(_));
            let instance = told.instance.clone().filter(|_| is_of_instance);
            let status = text(told.status.as_str());
            let at = told.event_time.unwrap_or(event.sort_time);
            (command, instance.unwrap_or_default(), status, at)
        });
        let (mut repeat_of, mut started, mut against) = (None, false, Vec::new());
        if let Some(step) = &step {
            let first = *self.steps.entry(step.clone()).or_insert(id);
            repeat_of = (first != id).then_some(first);
            let status = Status::parse(&step.2);
            let is_same = |it: &super::rows::Step| (&it.0, &it.1) == (&step.0, &step.1);
            for (it, teller) in self.steps.iter().filter(|(it, _)| is_same(it)) {
                let other = Status::parse(&it.2);
                started |= other == Status::InProgress;
                if status.is_terminal() && other.is_terminal() && status != other {
                    against.push(*teller);
                }
            }
        }
        let conflict = !against.is_empty();
        let stored = StoredEvent {
            id,
            event: event.clone(),
            received_at: append.received_at,
            repeat_of,
            conflict,
        };
        let kept = Kept {
            stored,
            step: step.clone(),
        };
        self.events.insert(id, kept);
        // The contract leaves open whether later repeats of the other status bear the mark too.
        for other in against {
            if let Some(other) = self.events.get_mut(&other) {
                other.stored.conflict = true;
            }
        }
        let mut due = Vec::new();
        for owed in &append.owed {
            let of = match (owed.lane, &step) {
                (LaneKey::Command, Some(step)) => Of::Command(step.0.clone()),
                (LaneKey::Instance, Some(step)) => Of::Instance(step.0.clone(), step.1.clone()),
                (LaneKey::Digest, Some(step)) => Of::Digest(step.0.clone()),
                (LaneKey::Topic, _) => Of::Topic(event.topic.clone()),
                (LaneKey::Own, _) | (_, None) => Of::Own(id),
            };
            let place = Place {
                of,
                route: owed.route.clone(),
                sink: owed.sink.clone(),
            };
            due.push((
                owed.sink.as_str().into(),
                self.owe(&place, owed, id, append.now, started),
            ));
        }
        Appended::Stored {
            id,
            repeat_of,
            conflict,
            due,
        }
    }

    /// Puts one delivery into its lane; says when that has something to do.
    fn owe(
        &mut self,
        place: &Place,
        owed: &Owed,
        event: EventId,
        now: Timestamp,
        started: bool,
    ) -> Timestamp {
        let lane = self.feed(place);
        let release = owed.hold.release;
        // A status that is not known ends early release in its lane for good.
        lane.early &= release != Release::Never;
        let end = later(now, owed.hold.at_most);
        let release_at = match release {
            Release::First if lane.early => now,
            Release::AfterFirst if lane.early && started => now,
            // The first notice of a digest leaves early, so that a beginning is told soon.
            Release::WhenOver(gather) if lane.fed == 1 => end.min(later(now, gather)),
            _ => end,
        };
        // Whether the command is over is looked at sooner than its digest's time comes.
        let look_at = match release {
            Release::WhenOver(gather) if lane.early => end.min(later(now, gather)),
            _ => release_at,
        };
        if lane.early && release == Release::First {
            for row in lane.rows.values_mut().filter(|row| !row.alone) {
                row.release_at = row.release_at.min(now);
            }
        }
        let row = Row {
            event,
            fed: lane.fed,
            release_at,
            alone: false,
            resent: false,
            possible_repeat: false,
            high_then: None,
            instead_of: None,
            tries: 0,
            failing_since: None,
            progress: None,
        };
        // The same message, signed anew at another time, is owed already.
        let is_new = !lane.rows.contains_key(&owed.key);
        lane.rows.entry(owed.key.clone()).or_insert(row);
        let due = match (&lane.held, lane.due) {
            (Some(_), _) => release_at,
            (None, due) => {
                let look_at = look_at.max(lane.not_before);
                let due = due.map_or(look_at, |due| due.min(look_at));
                lane.due = Some(due);
                due
            }
        };
        self.book(&place.sink).owed += u64::from(is_new);
        due
    }
}
