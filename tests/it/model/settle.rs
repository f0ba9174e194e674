//! How the model records what became of deliveries, and what operators do to them.

use jiff::Timestamp;
use runbell::delivery::{Marks, Outcome, SortKey};
use runbell::store::{DeadSelection, Ending, EventId, Settled, Settlement, Tally};

use super::rows::{Given, Grave, Of, Place, Row, State};

impl State {
    pub(super) fn settle(&mut self, it: &Settlement, holder: i64) {
        let name = (it.lease().lane(), it.lease().epoch());
        let given = self.given[&name].clone();
        let place = given.place.clone();
        // A lane may have been forgotten and made anew meanwhile: then it is another.
        let lane = self.lanes.get(&place).filter(|lane| lane.id == name.0);
        let is_there = lane.is_some();
        let is_ours = lane.is_some_and(|lane| {
            let is_his = |it: &super::rows::Held| it.holder == holder;
            lane.epoch == name.1 && lane.held.as_ref().is_some_and(is_his)
        });
        let mut arrived: Option<SortKey> = None;
        for result in it.results() {
            let is_sent = matches!(result.ending, Ending::Sent { .. });
            if !is_ours && !is_sent {
                // The rest is somebody else's by now.
                continue;
            }
            let fed = it.lease().fed();
            if is_there && self.apply(&given, fed, result) {
                let failure = result.ending.failure();
                if is_sent || failure.is_some_and(|it| it.may_have_arrived) {
                    arrived = arrived.max(Some(result.key.clone()));
                }
            } else if !is_ours {
                self.sent_elsewhere(&place, result);
            }
        }
        if !is_there {
            return;
        }
        let lane = self.lanes.get_mut(&place).unwrap();
        lane.high = lane.high.clone().max(arrived);
        if is_ours {
            lane.held = None;
            lane.epoch += 1;
            // A lane that had its turn goes behind those that wait for theirs.
            lane.not_before = lane.not_before.max(it.not_before().unwrap_or(it.at()));
        }
        self.freshen(&place);
    }

    /// A free lane is due when its rows say, and one of one event goes with its last row.
    fn freshen(&mut self, place: &Place) {
        let Some(lane) = self.lanes.get_mut(place) else {
            return;
        };
        lane.due = lane.earliest();
        if matches!(place.of, Of::Own(_)) && lane.due_at().is_none() {
            self.lanes.remove(place);
        }
    }

    /// Applies one result to its row, and to those that it stands for; whether the row was there.
    fn apply(&mut self, given: &Given, fed: i64, it: &Settled) -> bool {
        let place = &given.place;
        let lane = self.lanes.get_mut(place).unwrap();
        let high = lane.high.clone();
        if let Some(failure) = it.ending.failure() {
            let Some(row) = lane.rows.get_mut(&it.key) else {
                return false;
            };
            row.tries += 1;
            row.failing_since = failure.since;
            row.progress = failure.progress.clone().or(row.progress.take());
            if failure.may_have_arrived && !row.possible_repeat {
                row.possible_repeat = true;
                row.high_then = high;
            }
            if let Ending::Parked { again_at, .. } = it.ending {
                row.alone = true;
                row.release_at = again_at;
            }
            self.note(place, it.event, it, it.ending.outcome());
            return true;
        }
        // A row that was put there by hand since the lease is another.
        let is_meant = |row: &Row| row.fed <= fed;
        let is_there = lane.rows.get(&it.key).is_some_and(is_meant);
        // A digest that was told told of all its members, whoever took out the last meanwhile.
        let told_all = given.is_batch && matches!(it.ending, Ending::Sent { .. });
        if !is_there && !told_all {
            return false;
        }
        let is_member =
            |(key, row): &(&SortKey, &Row)| **key < it.key && !row.alone && is_meant(row);
        let members = lane
            .rows
            .iter()
            .filter(is_member)
            .map(|(key, _)| key.clone());
        let mut all: Vec<SortKey> = members.filter(|_| given.is_batch).collect();
        all.extend(is_there.then(|| it.key.clone()));
        for key in all {
            let mut row = self
                .lanes
                .get_mut(place)
                .unwrap()
                .rows
                .remove(&key)
                .unwrap();
            row.tries += 1;
            let of_row = Settled {
                event: row.event,
                // The marks are those of the notice, which tells of the last. A hand-over has them
                // for each: what is brought elsewhere may be a repeat of all that the notice stood for.
                marks: if key == it.key || matches!(it.ending, Ending::Diverted { .. }) {
                    it.marks.clone()
                } else {
                    Marks::default()
                },
                key,
                ..it.clone()
            };
            self.end(place, row, &of_row);
        }
        let step = self
            .events
            .get(&it.event)
            .and_then(|event| event.step.as_ref());
        if let (
            Ending::Sent {
                message: Some(message),
            },
            Some(step),
        ) = (&it.ending, step)
        {
            let name = (step.0.clone(), place.route.clone(), place.sink.clone());
            let thread = self.threads.entry(name).or_default();
            *thread = (message.clone(), thread.1.max(given.troubles));
        }
        is_there
    }

    /// Ends a row that was taken out.
    fn end(&mut self, place: &Place, row: Row, it: &Settled) {
        let event = row.event;
        let outcome = match &it.ending {
            Ending::Diverted { to } => {
                // The try that ended so may itself have arrived.
                let row = Row {
                    possible_repeat: row.possible_repeat || it.marks.possible_repeat,
                    ..row
                };
                self.hand_over(place, row, &it.key, to)
            }
            Ending::Dead => {
                self.last_dead += 1;
                let grave = Grave {
                    place: place.clone(),
                    event,
                    key: it.key.clone(),
                    died_at: it.at,
                    tries: row.tries,
                    answer: it.answer.clone(),
                };
                self.dead.insert(self.last_dead, grave);
                Outcome::Dead
            }
            ending => ending.outcome(),
        };
        count(self.book(&place.sink), &outcome);
        self.note(place, event, it, outcome);
    }

    /// Makes a row wait for another sink, in the same place and with its marks, unless that sink
    /// was told already or is going to be.
    fn hand_over(&mut self, from: &Place, row: Row, key: &SortKey, to: &str) -> Outcome {
        if self.was_sent(row.event, None, to) {
            return Outcome::Redundant;
        }
        let place = Place {
            sink: to.to_owned(),
            ..from.clone()
        };
        let lane = self.feed(&place);
        let row = Row {
            fed: lane.fed,
            instead_of: row.instead_of.or(Some(from.sink.clone())),
            failing_since: None,
            progress: None,
            // It is held against the watermark of where it goes.
            high_then: lane.high.clone().filter(|_| row.possible_repeat),
            ..row
        };
        let is_new = !lane.rows.contains_key(key);
        lane.rows.entry(key.clone()).or_insert(row);
        self.freshen(&place);
        if !is_new {
            return Outcome::Redundant;
        }
        self.book(to).owed += 1;
        Outcome::Diverted
    }

    /// Records what was sent under a lease that is over, when its row is gone: it lies among the
    /// dead letters, or with another sink, or was sent by somebody else as well.
    fn sent_elsewhere(&mut self, place: &Place, it: &Settled) {
        let (route, sink) = (&place.route, &place.sink);
        let lines = self.outcomes.get(&it.event).into_iter().flatten();
        let mut lines = lines.filter(|(by, to, _)| by == route && to == sink);
        if lines.any(|(.., past)| past.outcome == Outcome::Sent && past.at == it.at) {
            return;
        }
        self.note(place, it.event, it, Outcome::Sent);
        let is_it = |grave: &Grave| {
            grave.event == it.event && grave.place.route == *route && grave.place.sink == *sink
        };
        let before = self.dead.len();
        self.dead.retain(|_, grave| !is_it(grave));
        let buried = (before - self.dead.len()) as u64;
        let book = self.book(sink);
        book.dead -= buried;
        book.sent += buried;
        // Whoever is to bring it in its stead brings it a second time, and says so.
        for (at, lane) in &mut self.lanes {
            let is_same = at.of == place.of && at.route == *route;
            let row = lane.rows.get_mut(&it.key).filter(|_| is_same);
            let is_meant = |row: &&mut Row| row.event == it.event && row.instead_of.is_some();
            if let Some(row) = row.filter(is_meant).filter(|row| !row.possible_repeat) {
                row.possible_repeat = true;
                row.high_then.clone_from(&lane.high);
            }
        }
    }

    /// Ends all that waits for a sink and that nobody carries; says how many that were.
    pub(super) fn clear(&mut self, sink: &str, ending: &Ending, wall: Timestamp) -> u64 {
        let lanes = self
            .lanes
            .iter()
            .filter(|(at, lane)| at.sink == sink && lane.held.is_none());
        let mut free: Vec<_> = lanes.map(|(at, it)| (it.due, it.id, at.clone())).collect();
        free.sort();
        let mut count = 0;
        for (.., place) in free {
            let rows = std::mem::take(&mut self.lanes.get_mut(&place).unwrap().rows);
            for (key, row) in rows {
                let answer = (*ending == Ending::Dead).then(|| "given up by hand".to_owned());
                let it = Settled {
                    answer,
                    ..Settled::new(row.event, key, ending.clone(), wall)
                };
                self.end(&place, row, &it);
                count += 1;
            }
            self.freshen(&place);
        }
        count
    }

    pub(super) fn retry_dead(
        &mut self,
        selection: &DeadSelection,
        to: Option<&str>,
        now: Timestamp,
    ) -> u64 {
        let mut count = 0;
        for id in self.graves(selection) {
            let grave = self.dead[&id].clone();
            let from = &grave.place.sink;
            let place = Place {
                sink: to.unwrap_or(from).to_owned(),
                ..grave.place.clone()
            };
            let lane = self.feed(&place);
            if lane.rows.contains_key(&grave.key) {
                // It waits for that sink already.
                continue;
            }
            lane.rows
                .insert(grave.key, by_hand(grave.event, lane.fed, now));
            self.freshen(&place);
            self.dead.remove(&id);
            self.book(from).dead -= 1;
            if place.sink != *from {
                self.book(from).owed -= 1;
                self.book(&place.sink).owed += 1;
            }
            count += 1;
        }
        count
    }

    pub(super) fn drop_dead(&mut self, selection: &DeadSelection, now: Timestamp) -> u64 {
        let ids = self.graves(selection);
        for id in &ids {
            let grave = self.dead.remove(id).unwrap();
            let it = Settled::new(grave.event, grave.key, Ending::Dead, now);
            self.note(&grave.place, grave.event, &it, Outcome::Dropped);
            let book = self.book(&grave.place.sink);
            book.dead -= 1;
            book.dropped += 1;
        }
        ids.len() as u64
    }
}

/// A row that somebody put back by hand: it goes at once, and by itself.
fn by_hand(event: EventId, fed: i64, now: Timestamp) -> Row {
    Row {
        event,
        fed,
        release_at: now,
        alone: true,
        resent: true,
        possible_repeat: false,
        high_then: None,
        instead_of: None,
        tries: 0,
        failing_since: None,
        progress: None,
    }
}

/// Counts a delivery that ended so. One that another sink is to bring is no longer owed here.
fn count(book: &mut Tally, outcome: &Outcome) {
    match outcome {
        Outcome::Sent => book.sent += 1,
        Outcome::Muted => book.muted += 1,
        Outcome::Redundant => book.redundant += 1,
        Outcome::Dead => book.dead += 1,
        Outcome::Dropped => book.dropped += 1,
        Outcome::Diverted => book.owed -= 1,
        Outcome::Retry | Outcome::Parked => {}
    }
}
