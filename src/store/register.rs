//! The register of one process: the takes it asked for, and the lanes that came of them.
//!
//! A lease lies in a row of the store and in a value of this process. Either may be lost: the answer
//! to a commit is not heard, a future is dropped, a task hangs. So each take is entered here *before*
//! the store is asked, and each lease row of ours that this register does not know is given back at
//! the next sign of life. A take whose answer is still awaited is known: without that, its lanes
//! would be given back while the answer is on its way, and two workers would send them, unmarked.
//!
//! Public for whoever writes an engine; nobody else needs it.
//!
//! Nothing here is asked of the store, and nothing is kept but in memory: after a restart the
//! register is empty, and so everything that an earlier process held is freed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::{LaneId, Terms};
use crate::clock::{Clock, earlier, later};

/// How much sooner a holder stops than its lease ends: a call under way must have time to be told.
const MARGIN: Duration = Duration::from_secs(5);

/// For how long after a sign of life a replica believes that the others believe in it. Less than
/// [`SILENT_FOR`], so that it stops before they act.
pub const BELIEVED_FOR: Duration = Duration::from_secs(6);

/// After how long without a sign of life a replica's leases are freed; and for how long a replica
/// must have been heard itself before it frees anybody's. After an outage of the database the living
/// renew first.
pub const SILENT_FOR: Duration = Duration::from_secs(8);

/// Knows what this process holds.
#[derive(Debug)]
pub struct Register {
    clock: Clock,
    terms: Terms,
    /// Other processes free our leases when they hear no sign of life.
    is_shared: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last_call: i64,
    /// Takes whose answer is awaited.
    asked: BTreeSet<i64>,
    /// Lanes by the take that they came of.
    held: BTreeMap<(i64, LaneId), Held>,
    /// When the last sign of life was asked for that came through.
    heard: Option<Duration>,
    /// Since when the signs have come through without a gap.
    heard_since: Option<Duration>,
}

#[derive(Debug)]
struct Held {
    epoch: i64,
    /// The first byte was about to go out.
    begun: bool,
    /// Nobody carries it any more.
    lost: bool,
    /// When the answer to its take came.
    answered_at: Duration,
    /// Until when, in boot time, nothing may begin unless the lease is renewed.
    good_until: Duration,
    /// The same in logical time, by which the store ends leases. A small leap of the wall clock counts
    /// as time that passed there.
    ends_at: Timestamp,
    /// Until when its worker counts as at work.
    works_until: Duration,
}

/// A lease row of ours that is to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GiveBack {
    /// Its lane.
    pub lane: LaneId,
    /// Its number in the lane's life.
    pub epoch: i64,
    /// The take that it came of.
    pub call: i64,
    /// Something of it may have gone out.
    pub begun: bool,
}

impl Register {
    /// An empty register. `is_shared` where other processes may free what this one holds.
    #[must_use]
    pub fn new(clock: Clock, terms: Terms, is_shared: bool) -> Arc<Self> {
        Arc::new(Self {
            clock,
            terms,
            is_shared,
            inner: Mutex::default(),
        })
    }

    /// Enters a take that is about to be asked for.
    #[must_use]
    pub fn ask(self: &Arc<Self>) -> Take {
        let mut inner = self.inner();
        inner.last_call += 1;
        let call = inner.last_call;
        inner.asked.insert(call);
        Take {
            register: Arc::clone(self),
            call,
            asked_at: self.clock.boot(),
        }
    }

    /// Notes a sign of life that was asked for at `asked_at` and came through.
    pub fn heard(&self, asked_at: Duration) {
        let mut inner = self.inner();
        let is_gap = inner
            .heard
            .is_none_or(|last| asked_at.saturating_sub(last) > BELIEVED_FOR);
        if is_gap || inner.heard_since.is_none() {
            inner.heard_since = Some(asked_at);
        }
        inner.heard = Some(asked_at);
    }

    /// Notes a sign of life that did not come through.
    pub fn missed(&self) {
        self.inner().heard_since = None;
    }

    /// Whether every sign of the last [`SILENT_FOR`] came through, so that others may be judged.
    /// The only holder of a store judges nobody but itself.
    #[must_use]
    pub fn may_free(&self) -> bool {
        if !self.is_shared {
            return true;
        }
        let inner = self.inner();
        let now = self.clock.boot();
        let is_fresh = |heard: Duration| now.saturating_sub(heard) <= BELIEVED_FOR;
        inner.heard.is_some_and(is_fresh)
            && inner
                .heard_since
                .is_some_and(|since| now.saturating_sub(since) >= SILENT_FOR)
    }

    /// The leases of `rows` (lane, epoch, call) that nobody here carries. To be asked *after* the
    /// rows were read: a take is entered before its row can be there.
    #[must_use]
    pub fn unknown(&self, rows: &[(LaneId, i64, i64)]) -> Vec<GiveBack> {
        let inner = self.inner();
        let of_row = |&(lane, epoch, call): &(LaneId, i64, i64)| {
            let held = inner.held.get(&(call, lane));
            let is_known = inner.asked.contains(&call) || held.is_some_and(|held| !held.lost);
            (!is_known).then(|| GiveBack {
                lane,
                epoch,
                call,
                begun: held.is_some_and(|held| held.begun),
            })
        };
        rows.iter().filter_map(of_row).collect()
    }

    /// Forgets leases that were given back.
    pub fn given_back(&self, leases: &[GiveBack]) {
        let mut inner = self.inner();
        for it in leases {
            inner.held.remove(&(it.call, it.lane));
        }
    }

    /// Forgets what has no row any more, by `rows` that were read at `asked_at` or later: its lease ran
    /// out, or others freed it while this process was not heard, and somebody may have taken the lane.
    /// Nothing of it may begin. A lease that was answered after that may have a row that was not seen,
    /// and is kept.
    ///
    /// To be called *before* a sign of life is noted by [`Register::heard`]: a process that was paused
    /// is heard again at its first sign, and what it held before may be another's by then.
    pub fn forget_ended(&self, rows: &[(LaneId, i64, i64)], asked_at: Duration) {
        self.inner().held.retain(|(call, lane), held| {
            let has_row = || rows.contains(&(*lane, held.epoch, *call));
            held.answered_at >= asked_at || has_row()
        });
    }

    /// The leases to be renewed: those whose worker is at work. One that hangs must lose them, or
    /// they would be renewed for ever.
    #[must_use]
    pub fn at_work(&self) -> Vec<(LaneId, i64)> {
        let now = self.clock.boot();
        let inner = self.inner();
        let held = inner.held.iter();
        held.filter(|(_, it)| !it.lost && it.works_until >= now)
            .map(|((_, lane), it)| (*lane, it.epoch))
            .collect()
    }

    /// Notes that leases were renewed, by a request of `asked_at`.
    pub fn renewed(&self, leases: &[(LaneId, i64)], asked_at: Duration) {
        let (good_until, ends_at) = self.good_until(asked_at);
        let leases: BTreeSet<_> = leases.iter().copied().collect();
        let mut inner = self.inner();
        for ((_, lane), held) in &mut inner.held {
            if leases.contains(&(*lane, held.epoch)) {
                held.good_until = held.good_until.max(good_until);
                held.ends_at = held.ends_at.max(ends_at);
            }
        }
    }

    /// Asks whether some lanes are still held, all of them, and notes that the first byte of each is
    /// about to go out. When one is not, it is lost, and nothing of any may go.
    #[must_use]
    pub fn begin(&self, lanes: &[(i64, LaneId)]) -> bool {
        let (now, logical) = (self.clock.boot(), self.clock.now());
        let mut inner = self.inner();
        let is_heard = !self.is_shared
            || inner
                .heard
                .is_some_and(|heard| now < heard.saturating_add(BELIEVED_FOR));
        let mut all = true;
        for key in lanes {
            let Some(held) = inner.held.get_mut(key) else {
                all = false;
                continue;
            };
            held.lost |= !is_heard || now >= held.good_until || logical >= held.ends_at;
            all &= !held.lost;
        }
        if all {
            for key in lanes {
                if let Some(held) = inner.held.get_mut(key) {
                    held.begun = true;
                    held.works_until = held.works_until.max(now + self.terms.lease_for);
                }
            }
        }
        all
    }

    /// Notes that the worker of a lane waits for something known for `time`, and is not stuck.
    pub fn works_for(&self, hold: &Hold, time: Duration) {
        let until = self.clock.boot() + self.terms.lease_for.saturating_add(time);
        if let Some(held) = self.inner().held.get_mut(&hold.key()) {
            held.works_until = held.works_until.max(until);
        }
    }

    /// Forgets a lease whose settlement is known to be committed.
    pub fn settled(&self, hold: &Hold) {
        self.inner().held.remove(&hold.key());
    }

    /// How many leases are held, lost ones included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner().held.len()
    }

    /// Until when a lease is good that was asked for at `asked_at`: in boot time, and in logical time.
    fn good_until(&self, asked_at: Duration) -> (Duration, Timestamp) {
        let time = self.terms.lease_for.saturating_sub(MARGIN);
        let asked = earlier(self.clock.now(), self.clock.boot().saturating_sub(asked_at));
        (asked_at.saturating_add(time), later(asked, time))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A take that was asked for. Dropped without an answer, it is lost: its rows, if the store made
/// any, are unknown from here on, and nothing of them had begun.
#[derive(Debug)]
pub struct Take {
    register: Arc<Register>,
    /// Its number, for the lease rows.
    pub call: i64,
    asked_at: Duration,
}

impl Take {
    /// Enters the lanes that came of it, each with its epoch.
    #[must_use]
    pub fn answered(self, lanes: &[(LaneId, i64)]) -> Vec<Hold> {
        let register = &self.register;
        let (good_until, ends_at) = register.good_until(self.asked_at);
        let answered_at = register.clock.boot();
        let works_until = answered_at + register.terms.lease_for;
        let mut inner = register.inner();
        for (lane, epoch) in lanes {
            let held = Held {
                epoch: *epoch,
                begun: false,
                lost: false,
                answered_at,
                good_until,
                ends_at,
                works_until,
            };
            inner.held.insert((self.call, *lane), held);
        }
        drop(inner);
        let hold = |(lane, _): &(LaneId, i64)| Hold {
            register: Arc::clone(register),
            call: self.call,
            lane: *lane,
        };
        lanes.iter().map(hold).collect()
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        self.register.inner().asked.remove(&self.call);
    }
}

/// A lane that is held. Dropped before its settlement is committed, it is lost.
#[derive(Debug)]
pub struct Hold {
    register: Arc<Register>,
    call: i64,
    lane: LaneId,
}

impl Hold {
    /// Names the lane and the take that it came of.
    #[must_use]
    pub const fn key(&self) -> (i64, LaneId) {
        (self.call, self.lane)
    }

    /// The register that it stands in.
    #[must_use]
    pub fn register(&self) -> Arc<Register> {
        Arc::clone(&self.register)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = self.register.inner();
        if let Some(held) = inner.held.get_mut(&self.key()) {
            held.lost = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: LaneId = LaneId(7);
    const SECOND: Duration = Duration::from_secs(1);

    fn register(is_shared: bool) -> (Clock, Arc<Register>) {
        let clock = Clock::by_hand(Timestamp::UNIX_EPOCH);
        let register = Register::new(clock.clone(), Terms::default(), is_shared);
        register.heard(clock.boot());
        (clock, register)
    }

    fn begun(call: i64, begun: bool) -> GiveBack {
        GiveBack {
            lane: LANE,
            epoch: 3,
            call,
            begun,
        }
    }

    #[test]
    fn take_is_known_while_its_answer_is_awaited() {
        let (_, register) = register(false);
        let take = register.ask();
        let row = [(LANE, 3, take.call)];
        assert_eq!(register.unknown(&row), []);
        let call = take.call;
        drop(take);
        assert_eq!(register.unknown(&row), [begun(call, false)]);
    }

    #[test]
    fn lane_that_is_dropped_is_given_back_and_marked_if_it_had_begun() {
        for has_begun in [false, true] {
            let (_, register) = register(false);
            let take = register.ask();
            let call = take.call;
            let holds = take.answered(&[(LANE, 3)]);
            assert_eq!(register.unknown(&[(LANE, 3, call)]), []);
            if has_begun {
                assert!(register.begin(&[holds[0].key()]));
            }
            drop(holds);
            let back = register.unknown(&[(LANE, 3, call)]);
            assert_eq!(back, [begun(call, has_begun)]);
            register.given_back(&back);
            assert_eq!(register.held(), 0);
        }
    }

    #[test]
    fn lane_that_is_settled_is_forgotten() {
        let (_, register) = register(false);
        let holds = register.ask().answered(&[(LANE, 3)]);
        register.settled(&holds[0]);
        drop(holds);
        assert_eq!(register.held(), 0);
    }

    #[test]
    fn nothing_begins_when_the_lease_is_nearly_over_unless_it_was_renewed() {
        let (clock, register) = register(false);
        let holds = register.ask().answered(&[(LANE, 3), (LaneId(8), 3)]);
        clock.advance(SECOND * 20);
        assert_eq!(register.at_work(), [(LANE, 3), (LaneId(8), 3)]);
        register.renewed(&[(LANE, 3)], clock.boot());
        clock.advance(SECOND * 6);
        assert!(register.begin(&[holds[0].key()]));
        assert!(!register.begin(&[holds[1].key()]));
        assert!(
            !register.begin(&[holds[1].key()]),
            "a lease that was lost is not found again"
        );
    }

    #[test]
    fn lost_lease_that_ran_out_is_forgotten_once_its_row_is_gone() {
        let (clock, register) = register(false);
        let take = register.ask();
        let call = take.call;
        drop(take.answered(&[(LANE, 3)]));
        register.forget_ended(&[], clock.boot());
        assert_eq!(register.held(), 1, "its row may be younger than the look");
        clock.advance(SECOND);
        register.forget_ended(&[(LANE, 3, call)], clock.boot());
        assert_eq!(register.held(), 1, "its row is there");
        register.forget_ended(&[(LANE, 5, call + 1)], clock.boot());
        assert_eq!(register.held(), 0);
    }

    #[test]
    fn replica_that_was_paused_begins_nothing_that_others_freed_meanwhile() {
        let (clock, register) = register(true);
        let take = register.ask();
        let call = take.call;
        let holds = take.answered(&[(LANE, 3), (LaneId(8), 3)]);
        clock.advance(SECOND * 15);
        register.forget_ended(&[(LANE, 3, call)], clock.boot());
        register.heard(clock.boot());
        assert!(register.begin(&[holds[0].key()]), "nobody had freed it");
        assert!(!register.begin(&[holds[1].key()]));
    }

    #[test]
    fn nothing_begins_when_the_lease_is_over_in_logical_time() {
        let (clock, register) = register(false);
        let holds = register.ask().answered(&[(LANE, 3), (LaneId(8), 3)]);
        clock.advance(SECOND * 19);
        assert!(register.begin(&[holds[0].key()]));
        clock.leap(jiff::SignedDuration::from_secs(6));
        assert!(!register.begin(&[holds[1].key()]));
    }

    #[test]
    fn worker_that_hangs_is_not_renewed() {
        let (clock, register) = register(false);
        let holds = register.ask().answered(&[(LANE, 3)]);
        clock.advance(SECOND * 31);
        assert_eq!(register.at_work(), []);
        register.works_for(&holds[0], SECOND * 60);
        assert_eq!(register.at_work(), [(LANE, 3)]);
    }

    #[test]
    fn replica_that_is_not_heard_begins_nothing_and_frees_nobody() {
        let (clock, register) = register(true);
        let holds = register.ask().answered(&[(LANE, 3), (LaneId(8), 3)]);
        assert!(register.begin(&[holds[0].key()]));
        assert!(!register.may_free(), "it has been heard for a moment only");
        for _ in 0..8 {
            clock.advance(SECOND);
            register.heard(clock.boot());
        }
        assert!(register.may_free());
        clock.advance(SECOND * 6);
        assert!(!register.begin(&[holds[1].key()]));
        register.heard(clock.boot());
        register.missed();
        assert!(!register.may_free());
    }

    #[test]
    fn nothing_of_several_lanes_begins_when_one_is_lost() {
        let (clock, register) = register(false);
        let holds = register.ask().answered(&[(LANE, 3), (LaneId(8), 3)]);
        let keys: Vec<_> = holds.iter().map(Hold::key).collect();
        clock.advance(SECOND * 20);
        register.renewed(&[(LANE, 3)], clock.boot());
        clock.advance(SECOND * 6);
        assert!(!register.begin(&keys));
        let call = keys[0].0;
        drop(holds);
        let rows = [(LANE, 3, call), (LaneId(8), 3, call)];
        assert!(register.unknown(&rows).iter().all(|it| !it.begun));
    }
}
