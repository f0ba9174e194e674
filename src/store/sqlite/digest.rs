//! Digests: one notice that tells how a whole command stands.

use rusqlite::{OptionalExtension as _, params};

use super::lease::{raw_waiting, waiting_columns};
use super::read::raw_event;
use super::tables::Tables;
use crate::delivery::Digest;
use crate::event::Status;
use crate::store::rules::columns::RawEvent;
use crate::store::rules::digest::{MOST_TROUBLED, count_ended, says_more};
use crate::store::rules::lease::{Batch, Due, RawWaiting, Room};
use crate::store::rules::step::troubled;

/// How the command of a lane stands.
struct Standing {
    digest: Digest,
    /// The summary that said last of the whole.
    summary: Option<RawEvent>,
    /// How often something was said not to have ended well.
    troubles: i64,
}

impl Tables<'_> {
    /// The batch of a digest, by its last delivery, which stands for all before it. A batch that was
    /// tried before ends where it did. Everything goes when the command is over.
    pub(super) fn batch(
        &mut self,
        due: &Due,
        sink: i64,
        now: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Batch> {
        let alone = self.alone(due, now, room)?;
        if !alone.is_empty() || due.not_before > now {
            return Ok(Batch::plain(self.with_events(alone, due, sink, room)?));
        }
        let mut last = self.last_of_batch(due, now)?;
        let standing = self.standing(due, sink)?;
        let Standing {
            digest,
            summary,
            troubles,
        } = standing;
        if last.is_none() && digest.is_over() && !self.waits(due.lane, summary.as_ref())? {
            last = self.last_of_batch(due, i64::MAX)?;
        }
        let Some(mut last) = last else {
            return Ok(Batch::plain(Vec::new()));
        };
        last.possible_repeat |= self.holds_a_repeat(due, &last)?;
        let taken = self.with_events(vec![last], due, sink, room)?;
        if taken.iter().any(|(_, event)| event.is_none()) {
            // It can tell nothing, and costs itself alone; the next look finds another last.
            return Ok(Batch::plain(taken));
        }
        Ok(Batch {
            taken,
            digest: Some(digest),
            summary,
            troubles,
        })
    }

    /// The last of the rows that may go at `now`, or of the batch that was tried before: the row
    /// that was tried stands at its end.
    fn last_of_batch(&self, due: &Due, now: i64) -> rusqlite::Result<Option<RawWaiting>> {
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                waiting_columns!(),
                " FROM waiting
                 WHERE lane = ?1 AND alone = 0 AND sort_key <= coalesce(
                   (SELECT max(sort_key) FROM waiting
                    WHERE lane = ?1 AND alone = 0 AND (tries > 0 OR possible_repeat)),
                   (SELECT max(sort_key) FROM waiting
                    WHERE lane = ?1 AND alone = 0 AND release_at <= ?2))
                 ORDER BY sort_key DESC LIMIT 1"
            ))?
            .query_row(params![due.lane, now], raw_waiting)
            .optional()
    }

    /// Whether some row that the last one stands for may be a repeat: then the notice may be one.
    fn holds_a_repeat(&self, due: &Due, last: &RawWaiting) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM waiting WHERE lane = ?1 AND alone = 0
                   AND sort_key < ?2 AND possible_repeat)",
            )?
            .query_row(params![due.lane, last.key.as_bytes()], |row| row.get(0))
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

    fn standing(&mut self, due: &Due, sink: i64) -> rusqlite::Result<Standing> {
        let command_no = due.number;
        let told = self
            .thread(sink, due.route, command_no)?
            .map_or(0, |(_, told)| told);
        let mut digest = Digest::default();
        let mut troubles = 0;
        let mut statement = self.connection.prepare_cached(concat!(
            "SELECT ended, count(*), sum(troubles) FROM (
               SELECT CASE WHEN max(status = 'Failed') THEN 'Failed'
                 WHEN max(status = 'TimedOut') THEN 'TimedOut'
                 WHEN max(status = 'Cancelled') THEN 'Cancelled'
                 WHEN max(status = 'Success') THEN 'Success' ELSE 'InProgress' END AS ended,
                 sum(status IN ",
            troubled!(),
            ") AS troubles
               FROM step WHERE command_no = ?1 AND instance <> '' GROUP BY instance)
             GROUP BY ended"
        ))?;
        let mut rows = statement.query([command_no])?;
        while let Some(row) = rows.next()? {
            let count = row.get::<_, i64>(1)?.unsigned_abs();
            count_ended(&mut digest, row.get_ref(0)?.as_str()?, count);
            troubles += row.get::<_, i64>(2)?;
        }
        // Steps are only ever added: more troubles than were told are news.
        digest.has_news = troubles > told;
        digest.troubled = self
            .connection
            .prepare_cached(concat!(
                "SELECT instance, status FROM step
                 WHERE command_no = ?1 AND instance <> '' AND status IN ",
                troubled!(),
                " ORDER BY event_time DESC, instance, status LIMIT ?2"
            ))?
            .query_map([command_no, MOST_TROUBLED], |row| {
                Ok((row.get(0)?, Status::parse(row.get_ref(1)?.as_str()?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut last = None;
        let mut said = self.connection.prepare_cached(
            "SELECT status, event FROM step WHERE command_no = ?1 AND instance = ''
             ORDER BY event_time DESC, status",
        )?;
        let mut rows = said.query([command_no])?;
        while let Some(row) = rows.next()? {
            let status = Status::parse(row.get_ref(0)?.as_str()?);
            if says_more(&status, digest.overall.as_ref()) {
                digest.overall = Some(status);
                last = Some(row.get(1)?);
            }
        }
        let summary = match last {
            Some(event) => raw_event(self.connection, event)?,
            None => None,
        };
        Ok(Standing {
            digest,
            summary,
            troubles,
        })
    }
}
