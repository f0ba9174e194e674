//! How the model hands lanes out, and frees those that nobody ends.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use runbell::clock::{earlier, later};
use runbell::delivery::{Digest, SortKey};
use runbell::event::Status;
use runbell::store::register::{Hold, SILENT_FOR};
use runbell::store::{EventId, Lane as Carried, LaneId, Lease, Terms, Waiting};

use super::rows::{Command, Given, Held, Lane, Of, Place, Row, State};

/// Who asks for lanes.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) holder: i64,
    pub(super) call: i64,
    pub(super) terms: Terms,
    /// Leases of others that have run out may be taken.
    pub(super) may_free: bool,
}

/// A lane that was handed out, but for its place in the register.
pub(super) struct Taken {
    pub(super) lane: LaneId,
    pub(super) epoch: i64,
    fed: i64,
    place: Place,
    high: Option<SortKey>,
    waiting: Vec<Waiting>,
    digest: Option<Digest>,
}

impl Taken {
    pub(super) fn with(self, hold: Hold) -> Carried {
        Carried {
            lease: Lease::new(hold, self.lane, self.epoch, self.fed),
            route: self.place.route,
            sink: self.place.sink,
            high: self.high,
            waiting: self.waiting,
            digest: self.digest,
        }
    }
}

type Found = (Option<Timestamp>, Option<Timestamp>, Vec<Taken>);

impl State {
    pub(super) fn lease(
        &mut self,
        sink: &str,
        asked: Asked,
        now: Timestamp,
        limit: usize,
    ) -> Found {
        let latest = later(now, asked.terms.longest_wait);
        let it = self.sinks.get(sink);
        let until = it.and_then(|it| it.backoff_until);
        let failing_since = it.and_then(|it| it.failing_since);
        if let Some(until) = until.filter(|until| (now < *until) && (*until <= latest)) {
            return (Some(until), failing_since, Vec::new());
        }
        let mut taken: Vec<Taken> = Vec::new();
        loop {
            let mut changed = false;
            for place in self.due(sink, now) {
                let room = limit - taken.iter().map(|it| it.waiting.len()).sum::<usize>();
                if room == 0 {
                    break;
                }
                if self.lanes[&place].held.is_some() {
                    // Its holder did not end it in time.
                    if asked.may_free {
                        self.recover(&place, true);
                        changed = true;
                    }
                    continue;
                }
                let found = self.take(&place, asked, now, room);
                changed |= found.is_none();
                taken.extend(found);
            }
            if !changed {
                break;
            }
        }
        // As long as no leases may be freed, those that run out are not due.
        let is_meant = |lane: &Lane| lane.held.is_none() || asked.may_free;
        let lanes = self
            .lanes
            .iter()
            .filter(|(place, lane)| place.sink == sink && is_meant(lane));
        let next_due = lanes.filter_map(|(_, lane)| lane.due_at()).min();
        (next_due, failing_since, taken)
    }

    /// The lanes of a sink that are due, the longest first.
    fn due(&self, sink: &str, now: Timestamp) -> Vec<Place> {
        let lanes = self.lanes.iter().filter(|(place, _)| place.sink == sink);
        let of = |(place, lane): (&Place, &Lane)| Some((lane.due_at()?, lane.id, place.clone()));
        let mut due: Vec<_> = lanes.filter_map(of).filter(|(at, ..)| *at <= now).collect();
        due.sort();
        due.into_iter().map(|(.., place)| place).collect()
    }

    fn take(&mut self, place: &Place, asked: Asked, now: Timestamp, room: usize) -> Option<Taken> {
        let lane = &self.lanes[place];
        let (mut goes, is_batch) = match &place.of {
            Of::Digest(command) => self.batch(place, command, now),
            _ => (Self::prefix(lane, now), false),
        };
        let standing = match &place.of {
            Of::Digest(command) if is_batch => Some(self.standing(command, place)),
            _ => None,
        };
        if !is_batch {
            // What goes alone is chosen first, by its release, and then what goes in turn.
            goes.sort_by_key(|(key, row)| {
                (!row.alone, row.alone.then_some(row.release_at), key.clone())
            });
            goes.truncate(room);
        }
        let handed_out: Vec<SortKey> = goes.iter().map(|(key, _)| key.clone()).collect();
        goes.sort_by(|one, other| one.0.cmp(&other.0));
        if is_batch {
            // A notice that tells of several may be a repeat when one of them may.
            let may_repeat = goes.iter().any(|(_, row)| row.possible_repeat);
            goes = goes.split_off(goes.len() - 1);
            goes[0].1.possible_repeat |= may_repeat;
        }
        let alone_upto = goes.iter().map(|(_, row)| row).filter(|row| row.alone);
        let alone_upto = alone_upto.map(|row| row.release_at).max();
        let waiting: Vec<_> = goes
            .iter()
            .map(|(key, row)| self.shown(place, key, row))
            .collect();
        let lane = self.lanes.get_mut(place).unwrap();
        if waiting.is_empty() {
            // Passed over. It is not looked at again at once, lest it hide others; and no time to
            // wait for lies further ahead than any wait.
            let latest = later(now, asked.terms.longest_wait);
            for row in lane.rows.values_mut() {
                row.release_at = row.release_at.min(latest);
            }
            lane.not_before = lane.not_before.min(latest);
            let soonest = later(now, Duration::from_millis(100));
            lane.due = lane.earliest().map(|at| at.max(soonest));
            return None;
        }
        lane.epoch += 1;
        lane.held = Some(Held {
            holder: asked.holder,
            call: asked.call,
            handed_out,
            alone_upto,
            fed: lane.fed,
            ends_at: later(now, asked.terms.lease_for),
        });
        let given = Given {
            place: place.clone(),
            is_batch,
            troubles: standing.as_ref().map_or(0, |(_, _, troubles)| *troubles),
        };
        self.given.insert((lane.id, lane.epoch), given);
        Some(Taken {
            lane: lane.id,
            epoch: lane.epoch,
            fed: lane.fed,
            place: place.clone(),
            high: lane.high.clone(),
            waiting,
            digest: standing.map(|(digest, ..)| digest),
        })
    }

    /// Everything that may go: what goes alone when its time has come, and in turn all that does
    /// not stand behind every delivery whose release has come.
    fn prefix(lane: &Lane, now: Timestamp) -> Vec<(SortKey, Row)> {
        let released = lane
            .rows
            .iter()
            .filter(|(_, row)| !row.alone && row.release_at <= now);
        let upto = released
            .map(|(key, _)| key)
            .max()
            .filter(|_| lane.not_before <= now);
        let goes = |key: &SortKey, row: &Row| {
            let alone = row.alone && row.release_at <= now;
            alone || (!row.alone && upto.is_some_and(|upto| key <= upto))
        };
        let rows = lane.rows.iter().filter(|(key, row)| goes(key, row));
        rows.map(|(key, row)| (key.clone(), row.clone())).collect()
    }

    /// The rows that one notice of a digest tells of, and whether they are such; in their stead
    /// what goes alone, which is told by itself.
    fn batch(
        &self,
        place: &Place,
        command: &Command,
        now: Timestamp,
    ) -> (Vec<(SortKey, Row)>, bool) {
        let lane = &self.lanes[place];
        let alone = |row: &Row| row.alone && row.release_at <= now;
        let rows = || {
            lane.rows
                .iter()
                .map(|(key, row)| (key.clone(), row.clone()))
        };
        if lane.rows.values().any(alone) || lane.not_before > now {
            return (rows().filter(|(_, row)| alone(row)).collect(), false);
        }
        let in_turn: Vec<_> = rows().filter(|(_, row)| !row.alone).collect();
        // What was tried before is tried again as it was, whatever came meanwhile.
        let tried = in_turn
            .iter()
            .rposition(|(_, row)| row.tries > 0 || row.possible_repeat);
        let released = in_turn.iter().rposition(|(_, row)| row.release_at <= now);
        let (digest, summary, _) = self.standing(command, place);
        let tells_it = |row: &Row| Some(row.event) == summary;
        let is_over = digest.is_over() && !lane.rows.values().any(tells_it);
        let all = in_turn.len().checked_sub(1).filter(|_| is_over);
        let upto = tried.or(released).or(all).map_or(0, |at| at + 1);
        (in_turn[..upto].to_vec(), upto > 0)
    }

    /// How a command stands, the event of its last summary, and how many troubles it had so far.
    fn standing(&self, command: &Command, place: &Place) -> (Digest, Option<EventId>, u64) {
        let mut digest = Digest::default();
        let mut steps: Vec<_> = self
            .steps
            .iter()
            .filter(|(it, _)| it.0 == *command)
            .collect();
        steps.sort_by_key(|((_, instance, status, at), _)| {
            (std::cmp::Reverse(*at), instance.clone(), status.clone())
        });
        let mut worst = BTreeMap::new();
        let mut summary = None;
        for ((_, instance, status, _), event) in &steps {
            let status = Status::parse(status);
            if instance.is_empty() {
                let is_more = digest
                    .overall
                    .as_ref()
                    .is_none_or(|known| status.is_terminal() && !known.is_terminal());
                if is_more {
                    (digest.overall, summary) = (Some(status), Some(**event));
                }
                continue;
            }
            let badness = match status {
                Status::Failed => 4,
                Status::TimedOut => 3,
                Status::Cancelled => 2,
                Status::Success => 1,
                Status::InProgress | Status::Other(_) => 0,
            };
            let known = worst.entry(instance.clone()).or_insert(0);
            *known = badness.max(*known);
            if badness > 1 {
                digest.troubled.push((instance.clone(), status));
            }
        }
        for badness in worst.into_values() {
            *match badness {
                4 => &mut digest.failed,
                3 => &mut digest.timed_out,
                2 => &mut digest.cancelled,
                1 => &mut digest.succeeded,
                _ => &mut digest.running,
            } += 1;
        }
        let troubles = digest.troubled.len() as u64;
        digest.troubled.truncate(100);
        let thread = (command.clone(), place.route.clone(), place.sink.clone());
        digest.has_news = troubles > self.threads.get(&thread).map_or(0, |(_, told)| *told);
        if let Some(event) = summary.and_then(|event| self.events.get(&event)) {
            let named = event
                .stored
                .event
                .command()
                .map_or(0, |it| it.instances.len());
            digest.count_unheard(named);
        }
        (digest, summary, troubles)
    }

    /// A row as a lease shows it.
    fn shown(&self, place: &Place, key: &SortKey, row: &Row) -> Waiting {
        let lane = &self.lanes[place];
        let kept = &self.events[&row.event];
        let by = Some(&*place.route);
        let is_told = |first| {
            self.was_sent(first, by, &place.sink) || lane.rows.values().any(|it| it.event == first)
        };
        let high = if row.possible_repeat {
            &row.high_then
        } else {
            &lane.high
        };
        let is_below = high.as_ref().is_some_and(|high| key < high);
        let starts = kept
            .step
            .as_ref()
            .filter(|it| it.2 == Status::InProgress.as_str());
        let is_ended = self.steps.iter().any(|(other, end)| {
            starts.is_some_and(|it| (&other.0, &other.1) == (&it.0, &it.1))
                && Status::parse(&other.2).is_terminal()
                && self.was_sent(*end, by, &place.sink)
        });
        let thread = kept.step.as_ref().and_then(|step| {
            self.threads
                .get(&(step.0.clone(), place.route.clone(), place.sink.clone()))
        });
        Waiting {
            event_id: row.event,
            event: Some(kept.stored.event.clone()),
            received_at: kept.stored.received_at,
            key: key.clone(),
            repeat_of: kept.stored.repeat_of.filter(|first| is_told(*first)),
            conflict: kept.stored.conflict,
            terminal_sent: is_below && is_ended,
            alone: row.alone,
            resent: row.resent,
            possible_repeat: row.possible_repeat,
            high_then: row.high_then.clone(),
            instead_of: row.instead_of.clone(),
            tries: row.tries,
            failing_since: row.failing_since,
            progress: row.progress.clone(),
            thread: thread.map(|(message, _)| message.clone()),
        }
    }

    /// Frees a lane. With `marks` whatever was handed out of it may have arrived: it says so when it
    /// goes again, and what comes below it later may be late. Says how many were marked.
    pub(super) fn recover(&mut self, place: &Place, marks: bool) -> u64 {
        let lane = self.lanes.get_mut(place).unwrap();
        let Some(held) = lane.held.take() else {
            return 0;
        };
        lane.epoch += 1;
        let (mut marked, before) = (0, lane.high.clone());
        for (key, row) in lane.rows.iter_mut().filter(|_| marks) {
            // What goes alone is bounded by its release: of those that were released at one moment
            // all count as handed out. What was put there by hand since is another.
            let is_one = held.handed_out.contains(key)
                || (row.alone && held.alone_upto.is_some_and(|upto| row.release_at <= upto));
            if !is_one || row.fed > held.fed {
                continue;
            }
            if !row.possible_repeat {
                row.possible_repeat = true;
                row.high_then.clone_from(&before);
            }
            lane.high = lane.high.clone().max(Some(key.clone()));
            marked += 1;
        }
        lane.due = lane.earliest();
        marked
    }

    fn place_of(&self, lane: LaneId) -> Option<Place> {
        let found = self.lanes.iter().find(|(_, it)| it.id == lane);
        found.map(|(place, _)| place.clone())
    }

    pub(super) fn give_back(&mut self, lane: LaneId, marks: bool) {
        if let Some(place) = self.place_of(lane) {
            self.recover(&place, marks);
        }
    }

    pub(super) fn recover_all(&mut self) -> u64 {
        let places: Vec<Place> = self.lanes.keys().cloned().collect();
        places.iter().map(|place| self.recover(place, true)).sum()
    }

    /// The leases of a holder: lane, epoch, call.
    pub(super) fn leases_of(&self, holder: i64) -> Vec<(LaneId, i64, i64)> {
        let of = |lane: &Lane| {
            let held = lane.held.as_ref().filter(|held| held.holder == holder)?;
            Some((lane.id, lane.epoch, held.call))
        };
        self.lanes.values().filter_map(of).collect()
    }

    /// Renews those leases of a holder of which half is over.
    pub(super) fn renew(
        &mut self,
        leases: &[(LaneId, i64)],
        holder: i64,
        now: Timestamp,
        lease_for: Duration,
    ) -> Vec<(LaneId, i64)> {
        let mut renewed = Vec::new();
        for lane in self.lanes.values_mut() {
            let name = (lane.id, lane.epoch);
            let Some(held) = lane.held.as_mut().filter(|it| it.holder == holder) else {
                continue;
            };
            if leases.contains(&name) && held.ends_at < later(now, lease_for / 2) {
                held.ends_at = later(now, lease_for);
                renewed.push(name);
            }
        }
        renewed
    }

    /// The leases of holders that give no sign of life run out now.
    pub(super) fn expire_silent(&mut self, now: Timestamp) {
        let beats = &self.beats;
        let is_silent = |holder| {
            beats
                .get(&holder)
                .is_none_or(|at| *at < earlier(now, SILENT_FOR))
        };
        for held in self
            .lanes
            .values_mut()
            .filter_map(|lane| lane.held.as_mut())
        {
            if is_silent(held.holder) {
                held.ends_at = held.ends_at.min(now);
            }
        }
    }

    /// Cuts times to wait for that lie further ahead than any wait.
    pub(super) fn cut_waits(&mut self, latest: Timestamp) {
        for lane in self.lanes.values_mut() {
            if lane.due.is_some_and(|due| due > latest) {
                lane.due = Some(latest);
                lane.not_before = lane.not_before.min(latest);
            }
        }
        for it in self.sinks.values_mut() {
            it.backoff_until = it.backoff_until.map(|until| until.min(latest));
        }
    }
}
