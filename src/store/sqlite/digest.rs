//! Digests: one notice that tells how a whole command stands.

use rusqlite::{OptionalExtension as _, params};

use super::lease::{Due, raw_waiting};
use super::read::raw_event;
use super::tables::Tables;
use crate::delivery::Digest;
use crate::event::Status;
use crate::store::rows::{
    Batch, MOST_TROUBLED, RawEvent, RawWaiting, Room, count_ended, says_more,
};

impl Tables<'_> {
    /// The batch of a digest, by its last delivery, which stands for all before it. A batch that was
    /// tried before stays what it was. All that waits goes when the command is over.
    pub(super) fn batch(
        &mut self,
        due: &Due,
        sink: i64,
        now: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Batch> {
        let alone = self.alone(due, now, room)?;
        if !alone.is_empty() || due.not_before > now {
            return Ok(Batch::plain(self.take(alone, due, sink, room)?));
        }
        let mut last = self.last_of_batch(due, now)?;
        let (digest, summary) = self.digest(due, sink)?;
        if last.is_none() && digest.is_over() && !self.waits(due.lane, summary.as_ref())? {
            last = self.last_of_batch(due, i64::MAX)?;
        }
        let Some(last) = last else {
            return Ok(Batch::plain(Vec::new()));
        };
        Ok(Batch {
            waiting: self.take(vec![last], due, sink, room)?,
            digest: Some(digest),
            summary,
        })
    }

    /// The last of what may go at `now`, or of the batch that was tried before.
    fn last_of_batch(&self, due: &Due, now: i64) -> rusqlite::Result<Option<RawWaiting>> {
        self.connection
            .prepare_cached(
                "SELECT sort_key, event, alone, tries, failing_since, resent, possible_repeat,
                   progress, high_then, instead_of FROM waiting
                 WHERE lane = ?1 AND alone = 0 AND sort_key <= coalesce(?3, (
                   SELECT max(sort_key) FROM waiting
                   WHERE lane = ?1 AND alone = 0 AND release_at <= ?2))
                 ORDER BY sort_key DESC LIMIT 1",
            )?
            .query_row(params![due.lane, now, due.batch_upto], raw_waiting)
            .optional()
    }

    /// Whether the lane is going to tell the summary by itself, when that has gathered others.
    fn waits(&self, lane: i64, summary: Option<&RawEvent>) -> rusqlite::Result<bool> {
        let Some(summary) = summary else {
            return Ok(false);
        };
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM waiting WHERE lane = ?1 AND event = ?2)")?
            .query_row([lane, summary.id], |row| row.get(0))
    }

    /// How the command of a lane stands, and the summary that said last of the whole.
    fn digest(&mut self, due: &Due, sink: i64) -> rusqlite::Result<(Digest, Option<RawEvent>)> {
        let command_no = due.number;
        let told_upto = self
            .thread(sink, due.route, command_no)?
            .map_or(-1, |(_, told_upto)| told_upto);
        let mut digest = Digest::default();
        let mut summary = None;
        let mut statement = self.connection.prepare_cached(
            "SELECT ended, count(*) FROM (
               SELECT CASE WHEN max(status = 'Failed') THEN 'Failed'
                 WHEN max(status = 'TimedOut') THEN 'TimedOut'
                 WHEN max(status = 'Cancelled') THEN 'Cancelled'
                 WHEN max(status = 'Success') THEN 'Success' ELSE 'InProgress' END AS ended
               FROM step WHERE command_no = ?1 AND instance <> '' GROUP BY instance)
             GROUP BY ended",
        )?;
        let mut rows = statement.query([command_no])?;
        while let Some(row) = rows.next()? {
            let count = row.get::<_, i64>(1)?.unsigned_abs();
            count_ended(&mut digest, row.get_ref(0)?.as_str()?, count);
        }
        digest.troubled = self
            .connection
            .prepare_cached(
                "SELECT instance, status, event > ?3 FROM step
                 WHERE command_no = ?1 AND instance <> ''
                   AND status IN ('Failed', 'TimedOut', 'Cancelled')
                 ORDER BY event > ?3 DESC, event_time DESC, instance LIMIT ?2",
            )?
            .query_map([command_no, MOST_TROUBLED, told_upto], |row| {
                digest.has_news |= row.get::<_, bool>(2)?;
                Ok((row.get(0)?, Status::parse(row.get_ref(1)?.as_str()?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut said = self.connection.prepare_cached(
            "SELECT status, event FROM step WHERE command_no = ?1 AND instance = ''
             ORDER BY event DESC",
        )?;
        let mut rows = said.query([command_no])?;
        while let Some(row) = rows.next()? {
            let status = Status::parse(row.get_ref(0)?.as_str()?);
            if says_more(&status, digest.overall.as_ref()) {
                digest.overall = Some(status);
                summary = Some(raw_event(self.connection, row.get(1)?)?);
            }
        }
        Ok((digest, summary))
    }
}
