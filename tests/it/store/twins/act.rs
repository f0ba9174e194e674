//! The steps: each does the same to the engine and to the model, and holds the answers together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use runbell::clock::Clock;
use runbell::store::{
    Append, Appended, Care as _, DeadSelection, EventId, Intake as _, Lane, Lanes as _, Lease,
    Leased, Settled, Settlement, Store, Terms,
};

use super::Step;
use super::compare::{same, same_all};
use super::draw::{SINKS, append, kind, once_in, one_of, seconds, settled, time, two_sinks};
use crate::harness::store::{On, TestStore};
use crate::model::{Model, Shared};

/// An engine and the model, with what they were told.
pub(super) struct Twins {
    pub(super) on: On,
    holders: Vec<Holder>,
    shared: Shared,
    wall: Clock,
    /// Grows with each step.
    pub(super) serial: u64,
    told: Vec<Append>,
    /// The engine's number of each event of the model.
    pub(super) events: BTreeMap<EventId, EventId>,
    /// Those of the engine's events that told again what another had told.
    pub(super) repeats: BTreeSet<EventId>,
    /// Dead letters: the model's number and the engine's.
    pub(super) dead: Vec<(i64, i64)>,
    held: Vec<Held>,
    ended: Vec<(Settlement, Settlement)>,
    pruned_at: Option<Timestamp>,
}

/// A holder, as both know it.
struct Holder {
    store: TestStore,
    model: Arc<Model>,
}

/// A lane that was leased from both, and by which holder.
struct Held {
    by: usize,
    engine: Lane,
    model: Lane,
}

/// The words for the log, or the difference.
pub(super) type Said = Result<String, String>;

impl Twins {
    pub(super) async fn open(on: On) -> Self {
        let wall = Clock::by_hand("2026-11-23T10:00:00Z".parse().unwrap());
        let shared = Shared::default();
        let store = TestStore::open_on_at(on, wall.clone()).await;
        let model = Model::open(&shared, Terms::default(), &wall, on == On::Postgres);
        let model = Arc::new(model);
        Self {
            on,
            holders: vec![Holder { store, model }],
            shared,
            wall,
            serial: 0,
            told: Vec::new(),
            events: BTreeMap::new(),
            repeats: BTreeSet::new(),
            dead: Vec::new(),
            held: Vec::new(),
            ended: Vec::new(),
            pruned_at: None,
        }
    }

    /// Both stores by the handles of one holder.
    pub(super) fn both(&self, by: usize) -> (Arc<dyn Store>, Arc<Model>) {
        let holder = &self.holders[by];
        (holder.store.handle(), Arc::clone(&holder.model))
    }

    /// Wall time, and the logical time of a holder.
    fn now(&self, by: usize) -> (Timestamp, Timestamp) {
        let (_, model) = self.both(by);
        (self.wall.now(), model.clock().now())
    }

    pub(super) async fn step(&mut self, step: Step, mut dice: Rng) -> Said {
        let dice = &mut dice;
        self.serial += 1;
        self.wall.advance(Duration::from_millis(1));
        let by = dice.usize(..self.holders.len());
        match step {
            Step::Append => self.append(dice, by).await,
            Step::Lease => self.lease(dice, by).await,
            Step::Settle => self.settle(dice).await,
            Step::Begin => self.begin(dice),
            Step::Drop => Ok(self.pick(dice).map_or_else(String::new, |it| place(&it))),
            Step::SettleAgain => self.settle_again(dice, by).await,
            Step::Divert | Step::Bury => self.clear(step, dice, by).await,
            Step::RetryDead | Step::DropDead => self.dead_letters(step, dice, by).await,
            Step::BackOff => self.back_off(dice, by).await,
            Step::Beat => self.beat(by).await,
            Step::Pass => Ok(self.pass(dice)),
            Step::Leap => Ok(self.leap(dice)),
            Step::Forget => self.forget(dice, by).await,
            Step::Restart => self.restart(dice, by).await,
            Step::Join => self.join(by).await,
        }
    }

    async fn append(&mut self, dice: &mut Rng, by: usize) -> Said {
        let new = append(dice, self.now(by), self.serial, &self.told);
        let (engine, model) = self.both(by);
        let mut expected = model.append(new.clone()).await.unwrap();
        let mut got = engine
            .append(new.clone())
            .await
            .map_err(|it| it.to_string())?;
        let of = |it: &Appended| match it {
            Appended::Stored { id, .. } | Appended::Known { id } => *id,
        };
        let known = *self.events.entry(of(&expected)).or_insert(of(&got));
        same("number", &of(&got), &known)?;
        if matches!(
            expected,
            Appended::Stored {
                repeat_of: Some(_),
                ..
            }
        ) {
            self.repeats.insert(known);
        }
        for (it, map) in [(&mut got, false), (&mut expected, true)] {
            match it {
                Appended::Known { id } => *id = EventId(0),
                Appended::Stored {
                    id, repeat_of, due, ..
                } => {
                    *id = EventId(0);
                    // Whatever is overdue is due now.
                    for (_, at) in due {
                        *at = new.now.max(*at);
                    }
                    // A step may have been told first by an event that is forgotten.
                    *repeat_of = repeat_of.map(|it| if map { self.events[&it] } else { it });
                }
            }
        }
        same("appended", &got, &expected)?;
        let owed = new
            .owed
            .iter()
            .map(|it| (&it.route, &it.sink, it.lane, it.hold));
        let owed: Vec<_> = owed.collect();
        let said = format!(
            "{:?} {} {:?}: {owed:?}",
            known, new.event.body, new.event.message_id
        );
        self.told.push(new);
        Ok(said)
    }

    async fn lease(&mut self, dice: &mut Rng, by: usize) -> Said {
        let sink = *one_of(dice, &SINKS);
        // Of lanes that are due at one moment PostgreSQL takes any first, and a limit would show it.
        let limits: &[usize] = if self.on == On::Postgres {
            &[100]
        } else {
            &[1, 2, 3, 100]
        };
        let limit = *one_of(dice, limits);
        let ((_, now), (engine, model)) = (self.now(by), self.both(by));
        let mut expected = model.lease(sink, now, limit).await.unwrap();
        let got = engine.lease(sink, now, limit).await;
        let mut got = got.map_err(|it| it.to_string())?;
        if self.on == On::Postgres {
            let name = |it: &Lane| (it.route.clone(), it.waiting[0].key.clone());
            got.lanes.sort_by_key(name);
            expected.lanes.sort_by_key(name);
        }
        let times = |it: &Leased| (it.next_due.map(|at| at.max(now)), it.failing_since);
        same("next due, failing since", &times(&got), &times(&expected))?;
        let map = |it: EventId| self.events.get(&it).copied();
        let shown: Vec<_> = got.lanes.iter().map(|it| self.lane(it, Some)).collect();
        let meant: Vec<_> = expected.lanes.iter().map(|it| self.lane(it, map)).collect();
        same_all("lanes", &shown, &meant)?;
        let pairs = got.lanes.into_iter().zip(expected.lanes);
        let new: Vec<_> = pairs
            .map(|(engine, model)| Held { by, engine, model })
            .collect();
        let said = new.iter().map(place).collect::<Vec<_>>().join("; ");
        self.held.extend(new);
        Ok(format!("by {by} of {sink} at most {limit}: {said}"))
    }

    /// Takes one of the lanes that are held.
    fn pick(&mut self, dice: &mut Rng) -> Option<Held> {
        let at = self.held.len().checked_sub(1)?;
        Some(self.held.remove(dice.usize(..=at)))
    }

    async fn settle(&mut self, dice: &mut Rng) -> Said {
        let mut said = Vec::new();
        let (mut engines, mut models) = (Vec::new(), Vec::new());
        let mut by = 0;
        for _ in 0..dice.usize(1..3) {
            let Some(it) = self.pick(dice) else { break };
            if !engines.is_empty() && it.by != by {
                self.held.push(it);
                break;
            }
            by = it.by;
            // A holder that is gone has its last word by another.
            let at = self.now(by.min(self.holders.len() - 1));
            let kind_of_all = dice.bool().then(|| kind(dice));
            let cut = dice.usize(..=it.engine.waiting.len() * 2);
            let mut results = Vec::new();
            for (engine, model) in it.engine.waiting.iter().zip(&it.model.waiting).take(cut) {
                let kind = kind_of_all.unwrap_or_else(|| kind(dice));
                let settled = settled(dice, kind, engine, &it.engine.sink, at);
                let of_model = Settled {
                    event: model.event_id,
                    ..settled.clone()
                };
                results.push((settled, of_model));
            }
            let endings: Vec<_> = results
                .iter()
                .map(|(it, _)| (it.event.0, &it.ending))
                .collect();
            let not_before = once_in(dice, 4)
                .then(|| at.1 + SignedDuration::try_from(seconds(dice, 0, 5)).unwrap());
            said.push(format!(
                "{} as {endings:?}, not before {not_before:?}",
                place(&it)
            ));
            let (of_engine, of_model) = results.into_iter().unzip();
            let engine = it.engine.lease.settle(of_engine, at.1, not_before);
            let model = it.model.lease.settle(of_model, at.1, not_before);
            self.ended.push((engine.clone(), model.clone()));
            engines.push(engine);
            models.push(model);
        }
        let (engine, model) = self.both(by.min(self.holders.len() - 1));
        model.settle(models).await.unwrap();
        engine.settle(engines).await.map_err(|it| it.to_string())?;
        Ok(format!("by {by}: {}", said.join("; ")))
    }

    async fn settle_again(&mut self, dice: &mut Rng, by: usize) -> Said {
        if self.ended.is_empty() {
            return Ok(String::new());
        }
        let (of_engine, of_model) = one_of(dice, &self.ended).clone();
        let (engine, model) = self.both(by);
        model.settle(vec![of_model]).await.unwrap();
        let said = format!("{:?}", of_engine.results());
        engine
            .settle(vec![of_engine])
            .await
            .map_err(|it| it.to_string())?;
        Ok(said)
    }

    /// Asks, as whoever sends does right before the bytes go out.
    fn begin(&self, dice: &mut Rng) -> Said {
        let Some(first) = self.held.get(dice.usize(..self.held.len().max(1))) else {
            return Ok(String::new());
        };
        let also = self.held.iter().filter(|it| it.by == first.by);
        let all: Vec<_> = also.take(dice.usize(1..3)).chain([first]).collect();
        let ask = |leases: Vec<&Lease>| Lease::permission(&leases)();
        let got = ask(all.iter().map(|it| &it.engine.lease).collect());
        let expected = ask(all.iter().map(|it| &it.model.lease).collect());
        same("permission", &got, &expected)?;
        Ok(format!(
            "{got}: {}",
            all.into_iter().map(place).collect::<Vec<_>>().join("; ")
        ))
    }

    async fn clear(&self, step: Step, dice: &mut Rng, by: usize) -> Said {
        let (sink, to) = two_sinks(dice);
        let ((_, now), (engine, model)) = (self.now(by), self.both(by));
        let (got, expected) = if step == Step::Divert {
            let expected = model.divert(sink, to, now).await;
            (engine.divert(sink, to, now).await, expected)
        } else {
            (engine.bury(sink, now).await, model.bury(sink, now).await)
        };
        let got = got.map_err(|it| it.to_string())?;
        same("how many", &got, &expected.unwrap())?;
        Ok(format!("{sink} to {to}: {got}"))
    }

    async fn dead_letters(&self, step: Step, dice: &mut Rng, by: usize) -> Said {
        let some: Vec<_> = self.dead.iter().filter(|_| dice.bool()).copied().collect();
        let by_sink = DeadSelection::Sink((*one_of(dice, &SINKS)).to_owned());
        let (of_engine, of_model) = match dice.u8(..3) {
            0 => (DeadSelection::All, DeadSelection::All),
            1 => (by_sink.clone(), by_sink),
            _ => {
                let (models, engines) = some.into_iter().unzip();
                (DeadSelection::Ids(engines), DeadSelection::Ids(models))
            }
        };
        let to = once_in(dice, 3).then(|| (*one_of(dice, &SINKS)).to_owned());
        let said = format!("{of_engine:?} to {to:?}");
        let ((_, now), (engine, model)) = (self.now(by), self.both(by));
        let (got, expected) = if step == Step::RetryDead {
            let expected = model.retry_dead(of_model, to.clone(), now).await;
            (engine.retry_dead(of_engine, to, now).await, expected)
        } else {
            let expected = model.drop_dead(of_model, now).await;
            (engine.drop_dead(of_engine, now).await, expected)
        };
        let got = got.map_err(|it| it.to_string())?;
        same("how many", &got, &expected.unwrap())?;
        Ok(format!("{said}: {got}"))
    }

    async fn back_off(&self, dice: &mut Rng, by: usize) -> Said {
        let ((_, now), (engine, model)) = (self.now(by), self.both(by));
        let sink = *one_of(dice, &SINKS);
        // Two hours are further ahead than any wait, and hold nothing up.
        let wait = SignedDuration::from_secs(*one_of(dice, &[1, 20, 7200]));
        let until = dice.bool().then(|| now + wait);
        model.back_off(sink, until, now).await.unwrap();
        engine
            .back_off(sink, until, now)
            .await
            .map_err(|it| it.to_string())?;
        Ok(format!("{sink} until {until:?}"))
    }

    async fn beat(&self, by: usize) -> Said {
        let (engine, model) = self.both(by);
        model.beat().await.unwrap();
        engine.beat().await.map_err(|it| it.to_string())?;
        Ok(format!("by {by}"))
    }

    fn pass(&self, dice: &mut Rng) -> String {
        let time = time(dice);
        self.wall.advance(time);
        format!("{time:?}")
    }

    fn leap(&self, dice: &mut Rng) -> String {
        // PostgreSQL numbers events by the day: one set back by a day is older than those before.
        let days = usize::from(self.on == On::Sqlite);
        let far = *one_of(dice, &[2, 40, 4000, 90_000][..3 + days]);
        let by = SignedDuration::from_secs(if dice.bool() { far } else { -far });
        self.wall.leap(by);
        format!("{by:?}")
    }

    async fn forget(&mut self, dice: &mut Rng, by: usize) -> Said {
        if self.on == On::Postgres {
            // A day goes as a whole there, which is coarser than the model.
            return Ok(String::new());
        }
        // Whoever forgets begins anew after an hour; between, what was passed by is not looked at.
        let hour = SignedDuration::from_mins(61);
        let next = self
            .pruned_at
            .map_or_else(|| self.wall.now(), |at| at + hour);
        if self.wall.now() < next {
            self.wall.set(next);
        }
        let now = self.wall.now();
        self.pruned_at = Some(now);
        let keep = Duration::from_secs(*one_of(dice, &[0, 20, 3600, 4000]));
        let (engine, model) = self.both(by);
        model.prune(now, keep).await.unwrap();
        for _ in 0..9 {
            if !engine.prune(now, keep).await.map_err(|it| it.to_string())? {
                break;
            }
        }
        Ok(format!("what is older than {keep:?}"))
    }

    async fn restart(&mut self, dice: &mut Rng, by: usize) -> Said {
        if self.on == On::Postgres {
            // The model does not know yet what a replica frees there when it stops and starts.
            return Ok(String::new());
        }
        // The time is written with whatever else is, once a second: afterwards it is known to all.
        self.wall.advance(Duration::from_secs(2));
        self.beat(by).await?;
        let (_, now) = self.now(by);
        let (engine, model) = self.both(by);
        engine
            .back_off("nobody", None, now)
            .await
            .map_err(|it| it.to_string())?;
        model.back_off("nobody", None, now).await.unwrap();
        drop((engine, model));
        if once_in(dice, 3) {
            self.leap(dice);
        }
        let holder = &mut self.holders[by];
        holder.store.reopen().await;
        let model = Model::open(&self.shared, Terms::default(), &self.wall, false);
        let marked = (holder.store.opened.possible_repeats, model.possible_repeats);
        holder.model = Arc::new(model);
        same("possible repeats", &marked.0, &marked.1)?;
        Ok(format!("{by}: {} possible repeats", marked.0))
    }

    async fn join(&mut self, by: usize) -> Said {
        if self.on == On::Sqlite {
            return Ok(String::new());
        }
        if self.holders.len() > 1 {
            // Killed: nobody gives anything back.
            self.held
                .iter_mut()
                .filter(|it| it.by > by)
                .for_each(|it| it.by -= 1);
            std::mem::forget(self.holders.remove(by));
            return Ok(format!("{by} is gone"));
        }
        // The newcomer learns the time from what the others have written.
        self.wall.advance(Duration::from_secs(2));
        self.beat(0).await?;
        let store = self.holders[0].store.another().await;
        let model = Model::open(&self.shared, Terms::default(), &self.wall, true);
        let model = Arc::new(model);
        self.holders.push(Holder { store, model });
        Ok("one more".to_owned())
    }
}

fn place(it: &Held) -> String {
    let events: Vec<_> = it.engine.waiting.iter().map(|it| it.event_id.0).collect();
    format!("{}/{} {events:?}", it.engine.route, it.engine.sink)
}
