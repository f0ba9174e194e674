//! A naive model of the store, in memory: what the contracts of `runbell::store` say, in the plainest
//! words there are for it.
//!
//! It stands in for no store. It is held against both engines, answer by answer, and a simulation
//! may run on it. Several holders may share one [`Shared`], each by a [`Model`] of its own; one that
//! is dropped leaves its leases behind, as a killed process does. Nothing here depends on an address,
//! a hash or a random number, so the same calls give the same answers.
//!
//! `rows` holds what is kept and looks at it, `append`, `lease` and `settle` change it, and this file
//! joins them to the contracts. A take is not bounded by bytes, and no disk gets full.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use runbell::clock::{Clock, later, since};
use runbell::sns::KnownCertificate;
use runbell::store::register::Register;
use runbell::store::{
    Append, Appended, Backlog, Care, DeadLetter, DeadSelection, Delivery, Ending, EventId,
    EventQuery, Generation, History, Intake, Lanes, Leased, RouteBacklog, Settlement, StoreError,
    StoredEvent, Subscription, Tally, Terms,
};
use secrecy::{ExposeSecret as _, SecretString};

mod append;
mod lease;
mod rows;
mod settle;

use rows::State;

/// What several holders share.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<State>>);

/// One holder's handle.
pub struct Model {
    state: Shared,
    wall: Clock,
    /// Logical time.
    clock: Clock,
    terms: Terms,
    register: Arc<Register>,
    holder: i64,
    me: Mutex<Me>,
    /// Deliveries that may have been sent by the holder before, when there is one at a time.
    pub possible_repeats: u64,
}

/// What a holder remembers.
#[derive(Default)]
struct Me {
    /// Wall, boot and step at the last sign of life.
    last: Option<(Timestamp, Duration, u64)>,
    /// The boot time of the last new event.
    heard: Duration,
}

impl Model {
    /// A new holder. Where it is not one of several, whatever an earlier one held is freed.
    pub fn open(state: &Shared, terms: Terms, wall: &Clock, is_one_of_several: bool) -> Self {
        let state = state.clone();
        let mut rows = state.0.lock().unwrap();
        let now = rows.tick(wall.now(), wall.boot(), None);
        let mut possible_repeats = 0;
        if !is_one_of_several {
            possible_repeats = rows.recover_all();
        }
        rows.cut_waits(later(now, terms.longest_wait));
        rows.last_holder += 1;
        let holder = rows.last_holder;
        rows.beats.insert(holder, now);
        let last = Some((wall.now(), wall.boot(), rows.step));
        drop(rows);
        let clock = wall.steady(now);
        let me = Me {
            last,
            heard: clock.boot(),
        };
        let register = Register::new(clock.clone(), terms, is_one_of_several);
        register.heard(clock.boot());
        Self {
            register,
            me: Mutex::new(me),
            wall: wall.clone(),
            state,
            clock,
            terms,
            holder,
            possible_repeats,
        }
    }

    /// The rows, which learn how late it is.
    fn rows(&self) -> MutexGuard<'_, State> {
        let mut rows = self.state.0.lock().unwrap();
        rows.latest = rows.latest.max(self.clock.now());
        rows
    }
}

#[async_trait]
impl Intake for Model {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let appended = self.rows().append(&append);
        if matches!(appended, Appended::Stored { .. }) {
            self.me.lock().unwrap().heard = self.clock.boot();
        }
        Ok(appended)
    }

    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError> {
        Ok(self.rows().known(topic, sent_at, message_id))
    }

    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError> {
        let mut rows = self.rows();
        let is_it = |it: &&Subscription| {
            it.topic == topic && it.token.expose_secret() == token.expose_secret()
        };
        if let Some(known) = rows.subscriptions.iter().find(is_it) {
            return Ok(known.clone());
        }
        let new = Subscription {
            id: i64::try_from(rows.subscriptions.len()).unwrap() + 1,
            topic: topic.to_owned(),
            token: token.clone(),
            asked_at: at,
            confirmed_at: None,
        };
        rows.subscriptions.push(new.clone());
        Ok(new)
    }

    async fn subscription(&self, id: i64) -> Result<Option<Subscription>, StoreError> {
        let rows = self.rows();
        Ok(rows.subscriptions.iter().find(|it| it.id == id).cloned())
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        let mut rows = self.rows();
        if let Some(found) = rows.subscriptions.iter_mut().find(|it| it.id == id) {
            found.confirmed_at = Some(at);
        }
        Ok(())
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        let mut rows = self.rows();
        rows.certificates.retain(|it| it.url != certificate.url);
        rows.certificates.push(certificate);
        Ok(())
    }

    async fn put_generation(
        &self,
        generation: Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let used = (generation.text, replica.to_owned(), at);
        self.rows().generations.insert(used);
        Ok(())
    }
}

#[async_trait]
impl Lanes for Model {
    fn clock(&self) -> &Clock {
        &self.clock
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        let take = self.register.ask();
        let asked = lease::Asked {
            holder: self.holder,
            call: take.call,
            terms: self.terms,
            may_free: self.register.may_free(),
        };
        let (next_due, failing_since, lanes) = self.rows().lease(sink, asked, now, limit);
        let held: Vec<_> = lanes.iter().map(|it| (it.lane, it.epoch)).collect();
        let holds = take.answered(&held);
        let lanes = lanes.into_iter().zip(holds);
        Ok(Leased {
            lanes: lanes.map(|(lane, hold)| lane.with(hold)).collect(),
            next_due,
            failing_since,
        })
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        let mut rows = self.rows();
        for it in &settlements {
            rows.settle(it, self.holder);
            self.register.settled(it.lease().hold());
        }
        Ok(())
    }

    async fn divert(&self, sink: &str, to: &str, _now: Timestamp) -> Result<u64, StoreError> {
        let ending = Ending::Diverted { to: to.to_owned() };
        Ok(self.rows().clear(sink, &ending, self.wall.now()))
    }

    async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut rows = self.rows();
        let it = rows.sinks.entry(sink.to_owned()).or_default();
        it.backoff_until = until;
        it.failing_since = until.map(|_| it.failing_since.unwrap_or(now));
        Ok(())
    }
}

#[async_trait]
impl Care for Model {
    async fn beat(&self) -> Result<(), StoreError> {
        let asked_at = self.clock.boot();
        let mut rows = self.rows();
        let last = self.me.lock().unwrap().last;
        let wall = self.wall.now();
        let now = rows.tick(wall, asked_at, last);
        self.me.lock().unwrap().last = Some((wall, asked_at, rows.step));
        self.clock.follow(now);
        rows.beats.insert(self.holder, now);
        let mine = rows.leases_of(self.holder);
        self.register.forget_ended(&mine, asked_at);
        let lost = self.register.unknown(&mine);
        for it in &lost {
            rows.give_back(it.lane, it.begun);
        }
        self.register.given_back(&lost);
        let renewed = rows.renew(
            &self.register.at_work(),
            self.holder,
            now,
            self.terms.lease_for,
        );
        self.register.renewed(&renewed, asked_at);
        self.register.heard(asked_at);
        if self.register.may_free() {
            rows.expire_silent(now);
        }
        Ok(())
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        Ok(self.rows().sweep())
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        let silent = self
            .clock
            .boot()
            .saturating_sub(self.me.lock().unwrap().heard);
        let is_silent = silent >= Duration::from_hours(24);
        self.rows().forget(now, keep, is_silent);
        Ok(false)
    }

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        Ok(self.rows().retry_dead(&selection, to.as_deref(), now))
    }

    async fn bury(&self, sink: &str, _now: Timestamp) -> Result<u64, StoreError> {
        Ok(self.rows().clear(sink, &Ending::Dead, self.wall.now()))
    }

    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError> {
        Ok(self.rows().drop_dead(&selection, now))
    }
}

#[async_trait]
impl History for Model {
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError> {
        Ok(self.rows().events(&query))
    }

    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError> {
        Ok(self.rows().event(id))
    }

    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(self.rows().dead_letters(&selection, limit))
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        Ok(self.rows().subscriptions.iter().rev().cloned().collect())
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        Ok(self.rows().certificates.clone())
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        Ok(self.rows().backlog())
    }

    async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, StoreError> {
        Ok(self.rows().route_backlog())
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        Ok(self.rows().tally())
    }
}

impl State {
    /// Judges the clocks, and says what time it is. Logical time is wall time and what it is ahead;
    /// it never goes back, and a leap of the wall clock while somebody ran is no time that passed.
    fn tick(
        &mut self,
        wall: Timestamp,
        boot: Duration,
        last: Option<(Timestamp, Duration, u64)>,
    ) -> Timestamp {
        let before = self.ahead;
        if let Some((wall_then, boot_then, step)) = last
            && step == self.step
        {
            let passed = SignedDuration::try_from(boot.saturating_sub(boot_then)).unwrap();
            let leap = wall.duration_since(wall_then) - passed;
            if leap > SignedDuration::from_secs(30) {
                self.ahead -= leap;
            }
        }
        if since(wall + self.ahead, self.latest) > Duration::from_secs(1) {
            self.ahead = self.latest.duration_since(wall);
        }
        self.step += u64::from(self.ahead != before);
        self.latest = self.latest.max(wall + self.ahead);
        self.latest
    }
}
