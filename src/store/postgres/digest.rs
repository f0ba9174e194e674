//! Digests: one notice that tells how a whole command stands.

use tokio_postgres::Error;

use super::lease::Asked;
use super::read::{EVENT, text};
use super::tables::{Tables, span};
use super::waiting::{Bounded, Found, waiting_columns, waiting_of};
use crate::delivery::Digest;
use crate::event::Status;
use crate::store::rules::columns::RawEvent;
use crate::store::rules::digest::{MOST_TROUBLED, count_ended, says_more};
use crate::store::rules::lease::{Batch, RawWaiting, Room, Taken};
use crate::store::rules::step::troubled;

/// How the command of a lane stands.
struct Standing {
    digest: Digest,
    /// The summary that said last of the whole.
    summary: Option<RawEvent>,
    /// How often something was said not to have ended well.
    troubles: i64,
}

impl Tables<'_, '_> {
    /// The batch of a digest, by its last delivery, which stands for all before it; none when nothing
    /// may go. A batch that was tried before ends where it did. Everything goes when the command is
    /// over.
    pub(super) async fn batch(
        &self,
        due: &Bounded,
        asked: Asked,
        room: &mut Room,
    ) -> Result<Option<Batch>, Error> {
        let alone = self.alone(due, asked.now, room).await?;
        if !alone.is_empty() || due.due.not_before > asked.now {
            let taken = self.choose(alone, due, asked.sink, room).await?;
            return Ok((!taken.is_empty()).then(|| Batch::plain(taken)));
        }
        let mut last = self.last_of_batch(due, asked.now).await?;
        let standing = self.standing(due, asked.sink).await?;
        let Standing {
            digest,
            summary,
            troubles,
        } = standing;
        if last.is_none() && digest.is_over() && !self.waits(due.due.lane, summary.as_ref()).await?
        {
            last = self.last_of_batch(due, i64::MAX).await?;
        }
        let Some(mut last) = last else {
            return Ok(None);
        };
        last.0.possible_repeat |= self.holds_a_repeat(due, &last.0).await?;
        let taken = self.choose(vec![last], due, asked.sink, room).await?;
        if taken.iter().any(|(_, event)| event.is_none()) {
            // It can tell nothing, and costs itself alone; the next look finds another last.
            return Ok(Some(Batch::plain(taken)));
        }
        Ok(Some(Batch {
            taken,
            digest: Some(digest),
            summary,
            troubles,
        }))
    }

    /// Rows with their events, as many as there is room for.
    async fn choose(
        &self,
        found: Vec<Found>,
        due: &Bounded,
        sink: i64,
        room: &mut Room,
    ) -> Result<Taken, Error> {
        let mut rows: Vec<RawWaiting> = Vec::with_capacity(found.len());
        for (row, bytes) in found {
            if room.is_full() {
                break;
            }
            room.take(bytes);
            rows.push(row);
        }
        let taken = self.with_events(vec![(due, rows)], sink).await?;
        Ok(taken.into_iter().flat_map(|(_, taken)| taken).collect())
    }

    /// The last of the rows that may go at `now`, or of the batch that was tried before: the row that
    /// was tried stands at its end.
    async fn last_of_batch(&self, due: &Bounded, now: i64) -> Result<Option<Found>, Error> {
        let row = self
            .query_opt(
                concat!(
                    "SELECT ",
                    waiting_columns!(),
                    " FROM waiting WHERE lane = $1 AND sort_key = coalesce(
                       (SELECT sort_key FROM waiting
                        WHERE lane = $1 AND NOT alone AND sort_key >= $3
                          AND (tries > 0 OR possible_repeat)
                        ORDER BY sort_key DESC LIMIT 1),
                       (SELECT sort_key FROM waiting
                        WHERE lane = $1 AND NOT alone AND sort_key >= $3
                          AND release_at >= $4 AND release_at <= $2
                        ORDER BY sort_key DESC LIMIT 1))"
                ),
                &[&due.due.lane, &now, &due.first_key, &due.first_release],
            )
            .await?;
        row.as_ref().map(waiting_of).transpose()
    }

    /// Whether some row that the last one stands for may be a repeat: then the notice may be one.
    async fn holds_a_repeat(&self, due: &Bounded, last: &RawWaiting) -> Result<bool, Error> {
        self.query_one(
            "SELECT EXISTS (SELECT 1 FROM waiting WHERE lane = $1 AND NOT alone
               AND sort_key >= $2 AND sort_key < $3 AND possible_repeat)",
            &[&due.due.lane, &due.first_key, &last.key.as_bytes()],
        )
        .await?
        .try_get(0)
    }

    /// Whether the lane is going to tell the summary by itself, when that has gathered others.
    async fn waits(&self, lane: i64, summary: Option<&RawEvent>) -> Result<bool, Error> {
        let Some(summary) = summary else {
            return Ok(false);
        };
        self.query_one(
            "SELECT EXISTS (SELECT 1 FROM waiting WHERE lane = $1 AND event = $2)",
            &[&lane, &summary.id],
        )
        .await?
        .try_get(0)
    }

    async fn standing(&self, due: &Bounded, sink: i64) -> Result<Standing, Error> {
        let command_no = due.due.number;
        let mut digest = Digest::default();
        // One statement: all counts are of one moment.
        let rows = self
            .query(
                concat!(
                    "SELECT ended, count(*), sum(troubles)::bigint, coalesce((SELECT told FROM thread
                       WHERE command_no = $1 AND sink = $2 AND route = $3), 0)
                     FROM (
                       SELECT CASE WHEN bool_or(status = 'Failed') THEN 'Failed'
                         WHEN bool_or(status = 'TimedOut') THEN 'TimedOut'
                         WHEN bool_or(status = 'Cancelled') THEN 'Cancelled'
                         WHEN bool_or(status = 'Success') THEN 'Success' ELSE 'InProgress' END AS ended,
                         count(*) FILTER (WHERE status IN ",
                    troubled!(),
                    ") AS troubles
                       FROM step WHERE command_no = $1 AND instance <> '' GROUP BY instance) AS each
                     GROUP BY ended"
                ),
                &[&command_no, &sink, &due.due.route],
            )
            .await?;
        let (mut troubles, mut told) = (0, 0);
        for row in &rows {
            let count = row.try_get::<_, i64>(1)?.unsigned_abs();
            count_ended(&mut digest, row.try_get(0)?, count);
            troubles += row.try_get::<_, i64>(2)?;
            told = row.try_get(3)?;
        }
        // Steps are only ever added: more troubles than were told are news.
        digest.has_news = troubles > told;
        let rows = self
            .query(
                concat!(
                    "SELECT instance, status FROM step
                     WHERE command_no = $1 AND instance <> '' AND status IN ",
                    troubled!(),
                    " ORDER BY event_time DESC, instance, status LIMIT $2"
                ),
                &[&command_no, &MOST_TROUBLED],
            )
            .await?;
        for row in &rows {
            let status = Status::parse(&text(row, 1)?);
            digest.troubled.push((text(row, 0)?, status));
        }
        let said = self
            .query(
                "SELECT status, event FROM step WHERE command_no = $1 AND instance = ''
                 ORDER BY event_time DESC, status",
                &[&command_no],
            )
            .await?;
        let mut last = None;
        for row in &said {
            let status = Status::parse(&text(row, 0)?);
            if says_more(&status, digest.overall.as_ref()) {
                digest.overall = Some(status);
                last = Some(row.try_get(1)?);
            }
        }
        let summary = match last {
            Some(event) => self.raw_event(event).await?,
            None => None,
        };
        Ok(Standing {
            digest,
            summary,
            troubles,
        })
    }

    /// One event, if its row is there.
    pub(super) async fn raw_event(&self, id: i64) -> Result<Option<RawEvent>, Error> {
        let (start, end) = span(&[id]);
        let row = self
            .query_opt(
                &format!(
                    "SELECT {EVENT} FROM event WHERE id = $1 AND sns_time >= $2 AND sns_time < $3"
                ),
                &[&id, &start, &end],
            )
            .await?;
        match row {
            Some(row) => Ok(Some(self.event_of(&row).await?)),
            None => Ok(None),
        }
    }
}
