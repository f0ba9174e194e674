//! Keeping events: whatever waits to be appended becomes one transaction.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::errors::{lacks_a_day, too_late, translate};
use super::shared::Shared;
use super::tables::{Path, day_of};
use crate::fault::causes;
use crate::store::{Append, Appended, StoreError};

/// How many events share a transaction at most.
const LARGEST_BATCH: usize = 256;

/// How many transactions that keep events are under way at once: while one is written to the disk,
/// the next is gathered.
const AT_ONCE: usize = 2;

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

    /// Whoever no longer waits has given up on the answer, not on the deed.
    fn answer(self, answer: Result<Appended, StoreError>) {
        let _ = self.reply.send(answer);
    }
}

/// Keeps events; `app` gives it a task.
pub struct Keeper {
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
}

impl Keeper {
    pub(super) const fn new(jobs: mpsc::Receiver<Job>, shared: Arc<Shared>) -> Self {
        Self { jobs, shared }
    }

    /// Keeps events until the last handle is gone, then leaves the other replicas.
    pub async fn run(mut self) {
        self.keep().await;
        if let Err(error) = self.shared.leave().await {
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

impl Shared {
    /// Keeps events and answers for each. When the database cannot keep one of them, the batch is
    /// halved until that one stands alone. It is kept raw, and what is owed for it becomes dead
    /// letters that say why.
    async fn keep(self: Arc<Self>, jobs: Vec<Job>) {
        let mut batches = vec![jobs];
        while let Some(mut jobs) = batches.pop() {
            let appends: Vec<_> = jobs.iter().map(|job| Arc::clone(&job.append)).collect();
            if self.is_gone.load(Ordering::Relaxed) {
                answer_all(jobs, &too_late());
                continue;
            }
            let mut kept = self.append(&appends, None).await;
            match &kept {
                Err(StoreError::Data(_)) if jobs.len() > 1 => {
                    let half = jobs.split_off(jobs.len() / 2);
                    batches.push(half);
                    batches.push(jobs);
                    continue;
                }
                Err(StoreError::Data(why)) => {
                    let why = causes(&**why);
                    for it in &appends {
                        tracing::error!(
                            why,
                            topic = it.event.topic,
                            message_id = it.event.message_id,
                            "this cannot be kept as it is; it is kept raw, and what is owed for it becomes dead letters"
                        );
                    }
                    let why = format!("the store could not keep it as it is: {why}");
                    kept = self.append(&appends, Some(&why)).await;
                }
                _ => {}
            }
            match kept {
                Ok(answers) => {
                    tracing::trace!(target: "runbell::point", "committed");
                    for (job, answer) in jobs.into_iter().zip(answers) {
                        job.answer(Ok(answer));
                    }
                }
                Err(error) => {
                    self.gone(&error);
                    answer_all(jobs, &error);
                }
            }
        }
    }

    /// Keeps a batch in one transaction; raw where `why` says what it could not be kept for.
    async fn append(
        &self,
        batch: &[Arc<Append>],
        why: Option<&str>,
    ) -> Result<Vec<Appended>, StoreError> {
        let try_it = async || {
            self.try_write(Path::Receive, &|tables| tables.append(batch, why).boxed())
                .await
        };
        match try_it().await? {
            Err(error) if lacks_a_day(&error) => {
                let days = batch.iter().map(|it| day_of(it.event.sent_at));
                let mut days: Vec<i64> = days.collect();
                days.sort_unstable();
                days.dedup();
                self.make_days(&days).await?;
                try_it().await?.map_err(translate)
            }
            kept => kept.map_err(translate),
        }
    }
}

fn answer_all(jobs: Vec<Job>, error: &StoreError) {
    for job in jobs {
        job.answer(Err(error.alike()));
    }
}
