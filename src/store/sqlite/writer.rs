//! The one thread that changes the file: whatever waits becomes one transaction with one fsync.
//!
//! A job is answered when its transaction has committed. One that cannot be written never takes the
//! others down: the batch is tried again, each job by itself. When the disk is full, intake is
//! refused and a reserve that was laid by is given up, so that what was sent can still be recorded;
//! when there is room again, the reserve is laid by anew before anything is taken in.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::errors::{is_full, is_of_the_data, translate};
use super::tables::{Known, Tables};
use crate::clock::Clock;
use crate::store::StoreError;
use crate::store::rules::columns::nanos;

/// How many jobs share a transaction at most.
const LARGEST_BATCH: usize = 256;

/// A batch of so many jobs shows that more are on their way.
const BUSY: usize = 8;

/// How long those are waited for, to share a transaction: its fixed price is worth more than that
/// wait to whoever waits with many others, and one that comes by itself never waits.
const LINGER: Duration = Duration::from_millis(1);

/// How often the logical time is written with whatever else is, in nanoseconds.
const NOTED_EVERY: i64 = 1_000_000_000;

/// Changes the file; `app` gives it a thread.
pub struct Writer {
    /// The store's logical time.
    pub(super) clock: Clock,
    /// The logical time that was written last.
    pub(super) noted: i64,
    pub(super) connection: Connection,
    /// Held for as long as the file is ours.
    pub(super) _lock: File,
    pub(super) jobs: mpsc::Receiver<Box<dyn Job>>,
    pub(super) reserve: Reserve,
    pub(super) known: Known,
}

/// Something to be written.
pub(super) trait Job: Send {
    /// Writes it, within a transaction that may yet fail.
    fn write(&mut self, tables: &mut Tables<'_>) -> rusqlite::Result<()>;
    /// Tells whoever waits for it what came of it.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
    /// Whether it only takes note of what happened already, and so comes before new work when room
    /// is short.
    fn is_owed(&self) -> bool;
}

/// A job made of a closure.
pub(super) struct Task<F, T> {
    pub(super) work: F,
    pub(super) made: Option<T>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
    pub(super) is_owed: bool,
}

impl<F, T> Job for Task<F, T>
where
    F: FnMut(&mut Tables<'_>) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn write(&mut self, tables: &mut Tables<'_>) -> rusqlite::Result<()> {
        self.made = Some((self.work)(tables)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { made, reply, .. } = *self;
        // Who no longer waits has given up on the answer, not on the deed.
        let _ = reply.send(outcome.and_then(|()| made.ok_or(StoreError::Gone(None))));
    }

    fn is_owed(&self) -> bool {
        self.is_owed
    }
}

impl Writer {
    /// Writes what waits now, without waiting for more; whether there was anything. For whoever
    /// drives the store step by step in place of [`Writer::run`].
    pub fn turn(&mut self) -> bool {
        let mut batch = Vec::new();
        while batch.len() < LARGEST_BATCH
            && let Ok(job) = self.jobs.try_recv()
        {
            batch.push(job);
        }
        let any = !batch.is_empty();
        if any {
            self.write(batch);
        }
        any
    }

    /// Writes until nobody can ask for anything any more.
    pub fn run(mut self) {
        let mut batch = Vec::with_capacity(LARGEST_BATCH);
        loop {
            let many = self.jobs.blocking_recv_many(&mut batch, LARGEST_BATCH);
            if many == 0 {
                break;
            }
            self.write(std::mem::take(&mut batch));
            if (BUSY..LARGEST_BATCH).contains(&many) {
                #[expect(clippy::disallowed_methods, reason = "a thread of its own may wait")]
                std::thread::sleep(LINGER);
            }
        }
        // So that the file stands alone when it is copied after an orderly end.
        if let Err(error) = self
            .connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        {
            tracing::debug!(%error, "the log was not folded into the file");
        }
    }

    fn write(&mut self, jobs: Vec<Box<dyn Job>>) {
        let jobs = if self.reserve.lay_by() {
            jobs
        } else {
            refuse_new(jobs)
        };
        let jobs = match self.commit(jobs) {
            Ok(()) => return,
            Err(Failed { jobs, error }) if is_full(&error) => {
                self.reserve.give_up();
                refuse_new(jobs)
            }
            Err(Failed { jobs, error }) if jobs.len() > 1 && is_of_the_data(&error) => jobs,
            Err(Failed { jobs, error }) => {
                let why = error.to_string();
                tracing::error!(why, "the store cannot be written");
                let mut error = Some(error);
                for job in jobs {
                    let error = error
                        .take()
                        .map_or_else(|| StoreError::Database(why.clone().into()), translate);
                    job.answer(Err(error));
                }
                return;
            }
        };
        for job in jobs {
            if let Err(Failed { jobs, error }) = self.commit(vec![job]) {
                let error = translate(error);
                let cause: &dyn std::error::Error = &error;
                tracing::error!(error = cause, "the store cannot write this");
                let mut error = Some(error);
                for job in jobs {
                    job.answer(Err(error.take().unwrap_or(StoreError::Gone(None))));
                }
            }
        }
    }

    /// All of them or none. What failed is handed back, unanswered.
    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) -> Result<(), Failed> {
        if jobs.is_empty() {
            return Ok(());
        }
        let generation = self.known.only_generation();
        match self.attempt(&mut jobs) {
            Ok(()) => {
                tracing::trace!(target: "runbell::point", "committed");
                for job in jobs {
                    job.answer(Ok(()));
                }
                Ok(())
            }
            Err(error) => {
                // The rows that the transaction made are not there.
                self.known = generation;
                Err(Failed { jobs, error })
            }
        }
    }

    fn attempt(&mut self, jobs: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = transaction.total_changes();
        let mut tables = Tables::new(&transaction, &mut self.known);
        for job in jobs {
            job.write(&mut tables)?;
        }
        tables.write_tally()?;
        // After a restart nothing that was written now may lie further ahead than it does. Where
        // nothing was written, the commit costs no fsync, and must not cost one for this.
        let now = nanos(self.clock.now());
        let is_noted =
            transaction.total_changes() == before || now < self.noted.saturating_add(NOTED_EVERY);
        if !is_noted {
            transaction
                .prepare_cached("UPDATE clock SET latest = max(latest, ?1)")?
                .execute([now])?;
        }
        transaction.commit()?;
        if !is_noted {
            self.noted = now;
        }
        Ok(())
    }
}

struct Failed {
    jobs: Vec<Box<dyn Job>>,
    error: rusqlite::Error,
}

/// Answers what is new, keeps what is owed.
fn refuse_new(jobs: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
    let (owed, new): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.is_owed());
    for job in new {
        job.answer(Err(StoreError::Full("no room left for new events".into())));
    }
    owed
}

/// Room on the disk that is given up when there is none, so that debts can still be struck off.
pub(super) struct Reserve {
    path: PathBuf,
    size: u64,
    laid_by: bool,
}

impl Reserve {
    pub(super) const fn new(path: PathBuf, size: u64) -> Self {
        Self {
            path,
            size,
            laid_by: false,
        }
    }

    /// Whether the room is there, now or already.
    fn lay_by(&mut self) -> bool {
        if !self.laid_by {
            match self.fill() {
                Ok(()) => self.laid_by = true,
                Err(Errno::NOSPC | Errno::DQUOT) => self.give_up(),
                Err(error) => {
                    tracing::warn!(%error, "no room can be laid by for a full disk");
                    self.laid_by = true;
                }
            }
        }
        self.laid_by
    }

    fn fill(&self) -> rustix::io::Result<()> {
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        if std::fs::metadata(&self.path).is_ok_and(|found| found.len() == self.size) {
            return Ok(());
        }
        let mut file = File::create(&self.path).map_err(errno)?;
        // As much again must be free, or what was just taken in would fill the disk anew.
        let wanted = self.size.saturating_mul(2);
        match fallocate(&file, FallocateFlags::empty(), 0, wanted) {
            // Some file systems cannot promise room; there it is written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                std::io::copy(&mut std::io::repeat(0).take(wanted), &mut file).map_err(errno)?;
            }
            done => done?,
        }
        file.set_len(self.size).map_err(errno)?;
        file.sync_all().map_err(errno)
    }

    fn give_up(&mut self) {
        self.laid_by = false;
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::error!(%error, "the reserve cannot be given up");
        }
    }
}
