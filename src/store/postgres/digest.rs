//! Digests: one notice that tells how a whole command stands.

use tokio_postgres::Error;

use super::lease::{Due, Found, waiting_columns, waiting_of};
use super::read::{EVENT, text};
use super::tables::{Tables, span};
use crate::delivery::Digest;
use crate::event::Status;
use crate::store::rows::{
    Batch, MOST_TROUBLED, RawEvent, RawWaiting, Room, Taken, count_ended, says_more,
};

/// How the command of a lane stands.
struct Standing {
    digest: Digest,
    /// The summary that said last of the whole.
    summary: Option<RawEvent>,
    /// How often something was said not to have ended well.
    troubles: i64,
}

impl Tables<'_> {
    /// The batch of a digest, by its last delivery, which stands for all before it; and of how many
    /// troubles it tells. A batch that was tried before stays what it was. All that waits goes when
    /// the command is over.
    pub(super) async fn batch(
        &self,
        due: &Due,
        sink: i64,
        now: i64,
        room: &mut Room,
    ) -> Result<(Batch, i64), Error> {
        let alone = self.alone(due, now, room).await?;
        if !alone.is_empty() || due.not_before > now {
            let taken = self.take(alone, due, sink, room).await?;
            return Ok((Batch::plain(taken), 0));
        }
        let mut last = self.last_of_batch(due, now).await?;
        let standing = self.standing(due, sink).await?;
        let Standing {
            digest,
            summary,
            troubles,
        } = standing;
        if last.is_none() && digest.is_over() && !self.waits(due.lane, summary.as_ref()).await? {
            last = self.last_of_batch(due, i64::MAX).await?;
        }
        let Some(last) = last else {
            return Ok((Batch::plain(Vec::new()), 0));
        };
        let batch = Batch {
            waiting: self.take(vec![last], due, sink, room).await?,
            digest: Some(digest),
            summary,
        };
        Ok((batch, troubles))
    }

    /// Deliveries with their events, as many as there is room for.
    async fn take(
        &self,
        found: Vec<Found>,
        due: &Due,
        sink: i64,
        room: &mut Room,
    ) -> Result<Taken, Error> {
        let mut rows: Vec<RawWaiting> = Vec::with_capacity(found.len());
        for (row, bytes) in found {
            if room.is_full() {
                break;
            }
            room.take(usize::try_from(bytes).unwrap_or_default());
            rows.push(row);
        }
        let taken = self.with_events(vec![(due, rows)], sink).await?;
        Ok(taken.into_iter().flat_map(|(_, taken)| taken).collect())
    }

    /// The last of what may go at `now`, or of the batch that was tried before.
    async fn last_of_batch(&self, due: &Due, now: i64) -> Result<Option<Found>, Error> {
        let row = self
            .query_opt(
                concat!(
                    "SELECT ",
                    waiting_columns!(),
                    " FROM waiting
                     WHERE lane = $1 AND NOT alone AND sort_key <= coalesce($3, (
                       SELECT sort_key FROM waiting
                       WHERE lane = $1 AND NOT alone AND release_at <= $2
                       ORDER BY sort_key DESC LIMIT 1))
                     ORDER BY sort_key DESC LIMIT 1"
                ),
                &[&due.lane, &now, &due.batch_upto],
            )
            .await?;
        row.as_ref().map(waiting_of).transpose()
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

    async fn standing(&self, due: &Due, sink: i64) -> Result<Standing, Error> {
        let command_no = due.number;
        let told: i64 = self
            .query_one(
                "SELECT coalesce((SELECT told FROM thread
                   WHERE command_no = $1 AND sink = $2 AND route = $3), 0)",
                &[&command_no, &sink, &due.route],
            )
            .await?
            .try_get(0)?;
        let mut digest = Digest::default();
        let rows = self
            .query(
                "SELECT ended, count(*), sum(troubles)::bigint FROM (
                   SELECT CASE WHEN bool_or(status = 'Failed') THEN 'Failed'
                     WHEN bool_or(status = 'TimedOut') THEN 'TimedOut'
                     WHEN bool_or(status = 'Cancelled') THEN 'Cancelled'
                     WHEN bool_or(status = 'Success') THEN 'Success' ELSE 'InProgress' END AS ended,
                     count(*) FILTER (WHERE status IN ('Failed', 'TimedOut', 'Cancelled')) AS troubles
                   FROM step WHERE command_no = $1 AND instance <> '' GROUP BY instance) AS each
                 GROUP BY ended",
                &[&command_no],
            )
            .await?;
        let mut troubles = 0;
        for row in &rows {
            let count = row.try_get::<_, i64>(1)?.unsigned_abs();
            count_ended(&mut digest, row.try_get(0)?, count);
            troubles += row.try_get::<_, i64>(2)?;
        }
        // Steps are only ever added: more troubles than were told are news.
        digest.has_news = troubles > told;
        let rows = self
            .query(
                "SELECT instance, status FROM step
                 WHERE command_no = $1 AND instance <> ''
                   AND status IN ('Failed', 'TimedOut', 'Cancelled')
                 ORDER BY event DESC, instance LIMIT $2",
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
                 ORDER BY event DESC",
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

    /// One event, if it is kept.
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
