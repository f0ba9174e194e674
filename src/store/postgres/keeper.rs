//! What a replica does besides answering: keeps what waits to be appended, one transaction for many;
//! gives signs of life; frees what dead replicas had leased; and notices that the database is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::append::Numbered;
use super::faults::{lacks_a_day, too_late, translate};
use super::replicas::{BEAT, BELIEVED_FOR};
use super::shared::Shared;
use super::tables::{Street, day_of, first_of_day};
use crate::clock::Clock;
use crate::fault::causes;
use crate::store::rows::nanos;
use crate::store::{Append, Appended, StoreError};

/// How many events share a transaction at most.
const LARGEST_BATCH: usize = 256;

/// How many transactions that keep events are under way at once: while one is written to the disk,
/// the next is gathered.
const AT_ONCE: usize = 2;

/// How many beats apart the leases of dead replicas are looked for.
const LOOK_EVERY: u32 = 2;

/// How often it is seen to that what was settled is cleared away, and from how much on.
const TIDY: Duration = Duration::from_secs(5);
const MANY_SETTLED: u64 = 5000;

/// An event that waits to be kept.
pub(super) struct Job {
    append: Arc<Append>,
    reply: oneshot::Sender<Result<Appended, StoreError>>,
}

impl Job {
    pub(super) fn new(append: Append) -> (Self, oneshot::Receiver<Result<Appended, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let append = Arc::new(append);
        (Self { append, reply }, answer)
    }

    /// Who no longer waits has given up on the answer, not on the deed.
    fn answer(self, answer: Result<Appended, StoreError>) {
        let _ = self.reply.send(answer);
    }
}

/// Keeps events, and the replica's place among the others; `app` gives it a task.
pub struct Keeper {
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
}

impl Keeper {
    pub(super) const fn new(jobs: mpsc::Receiver<Job>, shared: Arc<Shared>) -> Self {
        Self { jobs, shared }
    }

    /// Keeps events until nobody can ask for it any more, then leaves the other replicas. The clock
    /// is led by the database's.
    pub async fn run(mut self, clock: Clock) {
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            () = self.keep() => {}
            () = beats(Arc::clone(&shared), clock).boxed() => {}
            () = tidies(Arc::clone(&shared)).boxed() => {}
        }
        let left = shared
            .write(Street::Upkeep, |tables| {
                async move { tables.leave().await }.boxed()
            })
            .await;
        if let Err(error) = left {
            let error = causes(&error);
            tracing::warn!(
                error,
                "the other replicas could not be told that this one ends"
            );
        }
    }

    async fn keep(&mut self) {
        let mut under_way = FuturesUnordered::new();
        let mut batch = Vec::with_capacity(LARGEST_BATCH);
        loop {
            tokio::select! {
                biased;
                Some(()) = under_way.next() => {}
                many = self.jobs.recv_many(&mut batch, LARGEST_BATCH), if under_way.len() < AT_ONCE => {
                    if many == 0 {
                        break;
                    }
                    under_way.push(Arc::clone(&self.shared).keep(std::mem::take(&mut batch)).boxed());
                }
            }
        }
        while under_way.next().await.is_some() {}
    }
}

/// Gives signs of life for as long as it is polled.
async fn beats(shared: Arc<Shared>, clock: Clock) {
    // The database's time counts, which runs by itself.
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut until_look = 0;
    loop {
        beat.tick().await;
        let alive = shared
            .write(Street::Upkeep, |tables| {
                async move { tables.beat().await }.boxed()
            })
            .await;
        match alive {
            Ok((now, alive)) => {
                clock.follow(now);
                shared.is_alive_at(nanos(now));
                shared.alive.store(alive, Ordering::Relaxed);
                if shared.is_gone.swap(false, Ordering::Relaxed) {
                    tracing::info!("the database answers again");
                }
            }
            Err(error) => {
                shared.gone(&error);
                continue;
            }
        }
        if until_look == 0 {
            until_look = LOOK_EVERY;
            if let Err(error) = shared.take_back().await {
                let error = causes(&error);
                tracing::warn!(error, "the lanes of dead replicas cannot be looked for");
            }
        }
        until_look -= 1;
    }
}

/// Has the database clear away what settled deliveries leave behind, for as long as it is polled. By
/// itself it would look once a minute, and by then every look at a lane would walk over all of it.
async fn tidies(shared: Arc<Shared>) {
    let mut look = tokio::time::interval(TIDY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if shared.settled.load(Ordering::Relaxed) < MANY_SETTLED {
            continue;
        }
        shared.settled.store(0, Ordering::Relaxed);
        let tidied = shared
            .read(|tables| {
                async move {
                    // Another replica may be at it.
                    let vacuum = "VACUUM (SKIP_LOCKED, TRUNCATE false) waiting, lane";
                    tables.run(vacuum).await
                }
                .boxed()
            })
            .await;
        if let Err(error) = tidied {
            let error = causes(&error);
            tracing::debug!(error, "what is gone could not be cleared away");
        }
    }
}

impl Shared {
    /// Notes a sign of life. After a gap, what was leased before it may be somebody else's.
    fn is_alive_at(&self, now: i64) {
        let until = now.saturating_add(BELIEVED_FOR);
        let before = self.alive_until.swap(until, Ordering::Relaxed);
        if now >= before {
            self.unbroken_since.store(now, Ordering::Relaxed);
        }
    }

    /// The database did not answer.
    fn gone(&self, error: &StoreError) {
        let cause = causes(error);
        if !matches!(error, StoreError::Gone(_)) {
            tracing::error!(error = cause, "the database refused");
        } else if !self.is_gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                error = cause,
                "the database is gone; nothing is taken in until it is back"
            );
        }
    }

    /// Keeps events and answers for each. When the database cannot keep one of them, the batch is
    /// halved until that stands alone; it is kept raw.
    async fn keep(self: Arc<Self>, jobs: Vec<Job>) {
        let mut batches = vec![jobs];
        while let Some(jobs) = batches.pop() {
            let appends: Vec<_> = jobs.iter().map(|job| Arc::clone(&job.append)).collect();
            if self.is_gone.load(Ordering::Relaxed) {
                answer_all(jobs, &too_late());
                continue;
            }
            match self.append(&appends, false).await {
                Ok(answers) => {
                    tracing::trace!(target: "runbell::point", "committed");
                    answer_each(jobs, answers);
                }
                Err(StoreError::Data(_)) if jobs.len() > 1 => {
                    let mut jobs = jobs;
                    let half = jobs.split_off(jobs.len() / 2);
                    batches.push(half);
                    batches.push(jobs);
                }
                Err(StoreError::Data(why)) => {
                    for it in &appends {
                        let why: &dyn std::error::Error = &*why;
                        tracing::error!(
                            why,
                            topic = it.event.topic,
                            message_id = it.event.message_id,
                            "this cannot be kept as it should; it is kept raw, and goes nowhere"
                        );
                    }
                    match self.append(&appends, true).await {
                        Ok(answers) => answer_each(jobs, answers),
                        Err(error) => answer_all(jobs, &error),
                    }
                }
                Err(error) => {
                    self.gone(&error);
                    answer_all(jobs, &error);
                }
            }
        }
    }

    /// Keeps a batch in one transaction.
    async fn append(
        &self,
        appends: &[Arc<Append>],
        raw: bool,
    ) -> Result<Vec<Appended>, StoreError> {
        let mut names: Vec<&str> = Vec::new();
        for it in appends {
            names.push(&it.event.topic);
            for owed in it.owed.iter().filter(|_| !raw) {
                names.extend([owed.route.as_str(), owed.sink.as_str()]);
            }
        }
        let names = self.numbers(&names).await?;
        let number = |name: &str| names.get(name).copied().unwrap_or_default();
        let commands = if raw {
            HashMap::new()
        } else {
            self.commands(appends).await?
        };
        let numbered = appends.iter().map(|it| Numbered {
            append: Arc::clone(it),
            topic: number(&it.event.topic),
            command_no: it
                .event
                .command()
                .and_then(|command| commands.get(&*command.command).copied()),
            owed: it
                .owed
                .iter()
                .filter(|_| !raw)
                .map(|owed| (number(&owed.route), number(&owed.sink)))
                .collect(),
        });
        let batch: Arc<Vec<Numbered>> = Arc::new(numbered.collect());
        let days = appends.iter().map(|it| day_of(it.event.sent_at));
        let mut days: Vec<i64> = days.collect();
        days.sort_unstable();
        days.dedup();
        for is_last in [false, true] {
            let batch = Arc::clone(&batch);
            let kept = self
                .try_write(Street::Receive, move |tables| {
                    let batch = Arc::clone(&batch);
                    async move { tables.append(&batch, raw).await }.boxed()
                })
                .await?;
            match kept {
                Ok(answers) => return Ok(answers),
                Err(error) if !is_last && lacks_a_day(&error) => {
                    self.make_days(days.clone()).await?;
                }
                Err(error) => return Err(translate(error)),
            }
        }
        Err(StoreError::Gone(None))
    }

    /// The numbers of the commands that events tell of, given when they are first met.
    async fn commands(&self, appends: &[Arc<Append>]) -> Result<HashMap<String, i64>, StoreError> {
        let mut numbers = HashMap::new();
        let mut new: Vec<(String, i64, Timestamp)> = Vec::new();
        for it in appends {
            let Some(command) = it.event.command() else {
                continue;
            };
            let id = &command.command;
            match self.known.command(id, it.received_at) {
                Some(number) => {
                    numbers.insert(id.clone(), number);
                }
                // What was signed about midnight may come after what was signed later.
                None => new.push((
                    id.clone(),
                    first_of_day(day_of(it.event.sent_at) - 1),
                    it.received_at,
                )),
            }
        }
        if new.is_empty() {
            return Ok(numbers);
        }
        new.sort_by(|one, other| one.0.cmp(&other.0));
        new.dedup_by(|one, other| one.0 == other.0);
        let new = Arc::new(new);
        let asked = Arc::clone(&new);
        let rows = self
            .write(Street::Receive, move |tables| {
                let new = Arc::clone(&asked);
                async move {
                    let ids: Vec<_> = new.iter().map(|it| it.0.as_bytes()).collect();
                    let first: Vec<_> = new.iter().map(|it| it.1).collect();
                    let seen: Vec<_> = new.iter().map(|it| nanos(it.2)).collect();
                    tables
                        .query(
                            "INSERT INTO command (id, first_event, seen_at)
                             SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[])
                             ON CONFLICT (id) DO UPDATE SET
                               seen_at = GREATEST(command.seen_at, excluded.seen_at)
                             RETURNING no",
                            &[&ids, &first, &seen],
                        )
                        .await
                }
                .boxed()
            })
            .await?;
        // In the order in which they were asked for.
        for ((id, _, now), row) in new.iter().zip(&rows) {
            let number = row.get(0);
            self.known.learn_command(id, number, *now);
            numbers.insert(id.clone(), number);
        }
        Ok(numbers)
    }
}

fn answer_each(jobs: Vec<Job>, answers: Vec<Appended>) {
    for (job, answer) in jobs.into_iter().zip(answers) {
        job.answer(Ok(answer));
    }
}

fn answer_all(jobs: Vec<Job>, error: &StoreError) {
    for job in jobs {
        job.answer(Err(error.alike()));
    }
}
