//! Deliveries that were sent under a lease that is over, and whose rows are gone: they lie among the
//! dead letters, or with a fallback, or were sent by somebody else as well.

use std::collections::HashMap;

use tokio_postgres::Error;

use super::lanes::LaneRow;
use super::outcome::Line;
use super::tables::{Tables, each, first_of_day};
use crate::delivery::Outcome;
use crate::store::rules::columns::nanos;
use crate::store::rules::step::KIND_OWN;
use crate::store::{Lease, Settled};

/// One such delivery. It is found by event, route and sink, and not by its place in a lane.
pub(super) struct Elsewhere<'a> {
    route: i64,
    sink: i64,
    /// Kind, number and instance of its lane.
    lane: (i64, i64, &'a [u8]),
    settled: &'a Settled,
}

impl<'a> Elsewhere<'a> {
    /// A result, whose lane may be gone: then it was one of a single event.
    pub(super) fn of(lease: &Lease, lane: Option<&'a LaneRow>, settled: &'a Settled) -> Self {
        Self {
            route: lease.route,
            sink: lease.sink,
            lane: lane.map_or((KIND_OWN, settled.event.0, &[]), |it| {
                (it.kind, it.number, &it.instance)
            }),
            settled,
        }
    }
}

impl Tables<'_, '_> {
    /// Records what was sent, and all that this implies; what is recorded already changes nothing.
    pub(super) async fn sent_elsewhere(&mut self, all: &[Elsewhere<'_>]) -> Result<(), Error> {
        if all.is_empty() {
            return Ok(());
        }
        // An event whose day is gone is forgotten, and has no history to be added to.
        let new = self
            .query(
                "SELECT place, to_regclass('outcome_' || event / $5) IS NOT NULL
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[])
                   WITH ORDINALITY AS it (event, route, sink, sent_at, place)
                 WHERE NOT EXISTS (SELECT 1 FROM outcome WHERE outcome.event = it.event
                   AND outcome.route = it.route AND outcome.sink = it.sink
                   AND result = 'sent' AND at = it.sent_at)",
                &[
                    &each(all, |it| it.settled.event.0),
                    &each(all, |it| it.route),
                    &each(all, |it| it.sink),
                    &each(all, |it| nanos(it.settled.at)),
                    &first_of_day(1),
                ],
            )
            .await?;
        let new = new
            .iter()
            .map(|row| Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, bool>(1)?)));
        let new = new.collect::<Result<Vec<_>, Error>>()?;
        let of_place = |place: i64| usize::try_from(place - 1).ok().and_then(|at| all.get(at));
        let known = new.iter().filter(|(_, has_day)| *has_day);
        let known: Vec<_> = known.filter_map(|(place, _)| of_place(*place)).collect();
        let new: Vec<_> = new.iter().filter_map(|it| of_place(it.0)).collect();
        let lines = each(&known, |it| Line {
            event: it.settled.event.0,
            route: it.route,
            sink: it.sink,
            outcome: Outcome::Sent,
            settled: it.settled,
        });
        self.write_lines(&lines).await?;
        self.unbury_sent(&new).await?;
        self.mark_diverted(&new).await
    }

    /// Removes the dead letters of what was sent after all.
    async fn unbury_sent(&mut self, sent: &[&Elsewhere<'_>]) -> Result<(), Error> {
        let rows = self
            .query(
                "DELETE FROM dead USING unnest($1::bigint[], $2::bigint[], $3::bigint[])
                   AS it (event, route, sink)
                 WHERE dead.event = it.event AND dead.route = it.route AND dead.sink = it.sink
                 RETURNING dead.event, dead.route, dead.sink",
                &[
                    &each(sent, |it| it.settled.event.0),
                    &each(sent, |it| it.route),
                    &each(sent, |it| it.sink),
                ],
            )
            .await?;
        let gone = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)));
        // There may be several of one delivery, each of which was owed.
        let mut many: HashMap<(i64, i64, i64), i64> = HashMap::new();
        for key in gone.collect::<Result<Vec<_>, Error>>()? {
            *many.entry(key).or_default() += 1;
        }
        for it in sent {
            if let Some(count) = many.remove(&(it.settled.event.0, it.route, it.sink)) {
                let book = self.book(it.sink, it.settled.at);
                book.dead -= count;
                book.sent += count;
            }
        }
        Ok(())
    }

    /// Marks what a fallback is going to bring a second time, so that it says so: whichever it is, of
    /// whatever sink it was handed over last.
    async fn mark_diverted(&self, sent: &[&Elsewhere<'_>]) -> Result<(), Error> {
        if sent.is_empty() {
            return Ok(());
        }
        self.execute(
            "UPDATE waiting SET possible_repeat = true,
               high_then = CASE WHEN possible_repeat THEN high_then ELSE lane.high END
             FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[],
               $6::bigint[]) AS it (sort_key, event, kind, number, instance, route)
             JOIN lane ON lane.kind = it.kind AND lane.number = it.number
               AND lane.instance = it.instance AND lane.route = it.route
             WHERE waiting.lane = lane.id AND waiting.sort_key = it.sort_key
               AND waiting.event = it.event AND waiting.instead_of IS NOT NULL",
            &[
                &each(sent, |it| it.settled.key.as_bytes()),
                &each(sent, |it| it.settled.event.0),
                &each(sent, |it| it.lane.0),
                &each(sent, |it| it.lane.1),
                &each(sent, |it| it.lane.2),
                &each(sent, |it| it.route),
            ],
        )
        .await?;
        Ok(())
    }
}
