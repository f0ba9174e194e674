//! The rows that wait in a lane, and the events that they owe.

use std::collections::HashMap;

use tokio_postgres::{Error, Row};

use super::read::{EVENT, optional_text};
use super::tables::{Tables, each, span};
use crate::delivery::SortKey;
use crate::event::Status;
use crate::store::rules::columns::rows;
use crate::store::rules::lease::{self, RawWaiting, Room, Taken};
use crate::store::rules::step::{KIND_DIGEST, terminal};

/// The columns of [`RawWaiting`], in order, and how large its message is.
macro_rules! waiting_columns {
    () => {
        "sort_key, event, release_at, alone, tries, failing_since, resent, possible_repeat, progress,
         high_then, instead_of, bytes"
    };
}
pub(super) use waiting_columns;

/// A due lane, and the bounds of its scans.
pub(super) struct Bounded {
    pub(super) due: lease::Due,
    pub(super) first_key: Vec<u8>,
    pub(super) first_release: i64,
}

impl Bounded {
    pub(super) fn of(row: &Row) -> Result<Self, Error> {
        let high: Option<Vec<u8>> = row.try_get(5)?;
        Ok(Self {
            due: lease::Due {
                lane: row.try_get(0)?,
                kind: row.try_get(1)?,
                number: row.try_get(2)?,
                route: row.try_get(3)?,
                epoch: row.try_get(4)?,
                high: high.map(SortKey::from_bytes),
                not_before: row.try_get(6)?,
                fed: row.try_get(7)?,
                leased: row.try_get(8)?,
            },
            first_key: row.try_get(9)?,
            first_release: row.try_get(10)?,
        })
    }
}

/// A row that waits, and how large its message is in bytes.
pub(super) type Found = (RawWaiting, usize);

impl Tables<'_, '_> {
    /// The rows of each lane that may go. A row that goes alone neither waits for its turn nor brings
    /// others along; of the rest, everything goes up to a delivery whose release has come.
    pub(super) async fn prefixes(
        &self,
        page: &[Bounded],
        now: i64,
        limit: usize,
    ) -> Result<HashMap<i64, Vec<Found>>, Error> {
        let mut found: HashMap<i64, Vec<Found>> = HashMap::new();
        let plain: Vec<_> = page
            .iter()
            .filter(|it| it.due.kind != KIND_DIGEST)
            .collect();
        if plain.is_empty() || limit == 0 {
            return Ok(found);
        }
        // No more are asked for their keys than may go, however many wait. The lower bounds keep both
        // scans from walking over what is gone.
        let rows = self
            .query(
                concat!(
                    "SELECT ",
                    waiting_columns!(),
                    ", due.lane
                     FROM unnest($1::bigint[]) AS due (lane) CROSS JOIN LATERAL (
                       SELECT * FROM waiting WHERE waiting.lane = due.lane AND alone
                         AND release_at <= $5 ORDER BY release_at LIMIT $6) AS it
                     UNION ALL
                     SELECT ",
                    waiting_columns!(),
                    ", due.lane
                     FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[])
                       AS due (lane, not_before, first_key, first_release)
                     CROSS JOIN LATERAL (
                       SELECT * FROM waiting WHERE waiting.lane = due.lane AND NOT alone
                         AND due.not_before <= $5 AND sort_key >= due.first_key AND sort_key <= (
                           SELECT sort_key FROM (SELECT sort_key FROM waiting AS first
                             WHERE first.lane = due.lane AND NOT alone
                               AND release_at >= due.first_release AND release_at <= $5
                             ORDER BY release_at LIMIT $6) AS released ORDER BY sort_key DESC LIMIT 1)
                       ORDER BY sort_key LIMIT $6) AS it"
                ),
                &[
                    &each(&plain, |it| it.due.lane),
                    &each(&plain, |it| it.due.not_before),
                    &each(&plain, |it| it.first_key.as_slice()),
                    &each(&plain, |it| it.first_release),
                    &now,
                    &rows(limit),
                ],
            )
            .await?;
        for row in &rows {
            let lane = found.entry(row.try_get(12)?).or_default();
            // What goes alone comes first, and leaves the rest less room.
            if lane.len() < limit {
                lane.push(waiting_of(row)?);
            }
        }
        Ok(found)
    }

    /// The rows of a lane that go by themselves, the longest released first.
    pub(super) async fn alone(
        &self,
        due: &Bounded,
        now: i64,
        room: &Room,
    ) -> Result<Vec<Found>, Error> {
        self.query(
            concat!(
                "SELECT ",
                waiting_columns!(),
                " FROM waiting
                 WHERE lane = $1 AND alone AND release_at <= $2 ORDER BY release_at LIMIT $3"
            ),
            &[&due.due.lane, &now, &rows(room.deliveries)],
        )
        .await?
        .iter()
        .map(waiting_of)
        .collect()
    }

    /// Rows with their events, and what is known of others that told the same. A row whose event is
    /// missing has none; each answer names the place of its row, so that it shifts no other.
    pub(super) async fn with_events<D: std::borrow::Borrow<Bounded>>(
        &self,
        chosen: Vec<(D, Vec<RawWaiting>)>,
        sink: i64,
    ) -> Result<Vec<(D, Taken)>, Error> {
        let wanted: Vec<(&Bounded, &RawWaiting)> = chosen
            .iter()
            .flat_map(|(due, rows)| rows.iter().map(|row| (due.borrow(), row)))
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let events = each(&wanted, |(_, row)| row.event);
        let (start, end) = span(&events);
        let below = each(&wanted, |(due, row)| row.is_below(due.due.high.as_ref()));
        let rows = self
            .query(
                &format!(
                    "WITH wanted AS (SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[],
                         $4::boolean[]) WITH ORDINALITY AS it (event, route, lane, below, place)),
                     found AS (SELECT {EVENT}, thread.message, place, wanted.lane, wanted.route,
                         wanted.below
                       FROM wanted
                       JOIN event ON event.id = wanted.event AND sns_time >= $5 AND sns_time < $6
                       LEFT JOIN thread ON thread.command_no = event.command_no
                         AND thread.sink = $7 AND thread.route = wanted.route
                       -- Evaluated once: the columns below look at it several times.
                       OFFSET 0)
                     SELECT found.*,
                       repeat_of IS NOT NULL AND (
                         EXISTS (SELECT 1 FROM outcome WHERE outcome.event = repeat_of
                           AND outcome.route = found.route AND sink = $7 AND result = 'sent')
                         OR EXISTS (SELECT 1 FROM waiting
                           WHERE waiting.lane = found.lane AND waiting.event = repeat_of)),
                       below AND status = '{}' AND EXISTS (
                         SELECT 1 FROM step JOIN outcome ON outcome.event = step.event
                         WHERE step.command_no = found.command_no
                           AND step.instance = found.instance AND step.status IN {}
                           AND outcome.route = found.route AND outcome.sink = $7
                           AND outcome.result = 'sent')
                     FROM found",
                    Status::InProgress.as_str(),
                    terminal!()
                ),
                &[
                    &events,
                    &each(&wanted, |(due, _)| due.due.route),
                    &each(&wanted, |(due, _)| due.due.lane),
                    &below,
                    &start,
                    &end,
                    &sink,
                ],
            )
            .await?;
        let mut by_place: HashMap<usize, &Row> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let place: i64 = row.try_get(14)?;
            by_place.insert(usize::try_from(place - 1).unwrap_or(usize::MAX), row);
        }
        let mut all = Vec::with_capacity(chosen.len());
        let mut place = 0;
        for (due, waiting) in chosen {
            let mut taken = Vec::with_capacity(waiting.len());
            for mut row in waiting {
                let found = by_place.get(&place).copied();
                place += 1;
                if let Some(sink) = row.instead_of.0 {
                    row.instead_of.1 = Some(self.text(sink).await?.as_ref().to_owned());
                }
                let Some(found) = found else {
                    taken.push((row, None));
                    continue;
                };
                let mut event = self.event_of(found).await?;
                row.thread = optional_text(found, 13)?;
                if !found.try_get::<_, Option<bool>>(18)?.unwrap_or_default() {
                    // The first notification of this step went elsewhere: here it is news.
                    event.repeat_of = None;
                }
                row.terminal_sent = found.try_get::<_, Option<bool>>(19)?.unwrap_or_default();
                taken.push((row, Some(event)));
            }
            all.push((due, taken));
        }
        Ok(all)
    }
}

pub(super) fn waiting_of(row: &Row) -> Result<Found, Error> {
    let high_then: Option<Vec<u8>> = row.try_get(9)?;
    let waiting = RawWaiting {
        key: SortKey::from_bytes(row.try_get(0)?),
        event: row.try_get(1)?,
        release_at: row.try_get(2)?,
        alone: row.try_get(3)?,
        tries: u32::try_from(row.try_get::<_, i64>(4)?).unwrap_or(u32::MAX),
        failing_since: row.try_get(5)?,
        resent: row.try_get(6)?,
        possible_repeat: row.try_get(7)?,
        progress: optional_text(row, 8)?,
        high_then: high_then.map(SortKey::from_bytes),
        terminal_sent: false,
        thread: None,
        instead_of: (row.try_get(10)?, None),
    };
    let bytes = usize::try_from(row.try_get::<_, i64>(11)?).unwrap_or_default();
    Ok((waiting, bytes))
}
