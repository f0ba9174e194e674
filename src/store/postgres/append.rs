//! Keeping a batch of events with everything owed for them, in a few questions to the database.
//!
//! Rows that two transactions may both want are asked for in the same order: names, commands,
//! certificates, notifications, steps, lanes, books, each by its key. Unsorted, they would wait for
//! each other. The first four depend on nothing, since their numbers are hashes, and go out together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_postgres::Error;

use super::tables::{Tables, day_of, each, first_of_day};
use crate::delivery::{Leading, SortKey};
use crate::sns::Certificate;
use crate::store::rules::columns::{day, envelope_number, nanos};
use crate::store::rules::number::{certificate_no, command_no};
use crate::store::rules::step::{KIND_OWN, Step};
use crate::store::{Append, Appended, EventId};

/// How often the last event of a command is noted, in nanoseconds.
const NOTED_EVERY: i64 = 60_000_000_000;

/// An event to be kept, with the numbers of what it names.
pub(super) struct Numbered<'b> {
    pub(super) append: &'b Append,
    pub(super) topic: i64,
    pub(super) command_no: Option<i64>,
    /// Route and sink of each delivery owed.
    pub(super) owed: Vec<(i64, i64)>,
}

impl<'b> Numbered<'b> {
    /// The step that it tells; none when its step is unknown or it is kept raw.
    pub(super) fn step(&self) -> Option<Step<'b>> {
        Step::of(&self.append.event, self.command_no?)
    }

    /// What names the notification.
    fn key(&self) -> Key<'b> {
        let event = &self.append.event;
        (
            self.topic,
            nanos(event.sent_at),
            event.message_id.as_bytes(),
        )
    }
}

type Key<'b> = (i64, i64, &'b [u8]);

/// Numbers of events by their places in the batch.
pub(super) type New = BTreeMap<usize, i64>;

impl Tables<'_, '_> {
    /// Keeps the new events of a batch, with what is owed for them; raw where `why` says why.
    pub(super) async fn append(
        &mut self,
        batch: &[Arc<Append>],
        why: Option<&str>,
    ) -> Result<Vec<Appended>, Error> {
        let numbered = self.numbered(batch, why.is_some());
        let ((), (), (), new) = tokio::try_join!(
            biased;
            self.put_names_of(batch),
            self.put_commands(&numbered),
            self.put_certificates(batch),
            self.insert_events(&numbered),
        )?;
        let (told, mut due) = if let Some(why) = why {
            self.owe_dead(&numbered, &new, why).await?;
            (HashMap::new(), HashMap::new())
        } else {
            let told = self.tell(&numbered, &new).await?;
            let due = self.owe(&numbered, &new, &told).await?;
            (told, due)
        };
        let known = self.known_events(&numbered, &new).await?;
        self.write_tally().await?;
        let answers = numbered.iter().enumerate().map(|(at, it)| {
            if let Some(id) = new.get(&at) {
                let told = told.get(&at).cloned().unwrap_or_default();
                return Appended::Stored {
                    id: EventId(*id),
                    repeat_of: told.before.map(EventId),
                    conflict: told.conflict,
                    due: due.remove(&at).unwrap_or_default(),
                };
            }
            Appended::Known {
                id: EventId(known.get(&it.key()).copied().unwrap_or_default()),
            }
        });
        Ok(answers.collect())
    }

    fn numbered<'b>(&self, batch: &'b [Arc<Append>], is_raw: bool) -> Vec<Numbered<'b>> {
        let number = |text: &str| self.shared.names.number(text);
        let numbered = batch.iter().map(|append| {
            let event = &append.event;
            let command = event.command().filter(|_| !is_raw);
            let owed = append.owed.iter();
            Numbered {
                append,
                topic: number(&event.topic),
                command_no: command.map(|it| {
                    command_no(&append.trust, &event.account, &event.region, &it.command)
                }),
                owed: owed
                    .map(|it| (number(&it.route), number(&it.sink)))
                    .collect(),
            }
        });
        numbered.collect()
    }

    async fn put_names_of(&self, batch: &[Arc<Append>]) -> Result<(), Error> {
        let mut names = HashSet::new();
        for it in batch {
            names.insert(it.event.topic.as_str());
            for owed in &it.owed {
                names.extend([owed.route.as_str(), owed.sink.as_str()]);
            }
        }
        self.put_names(&names.into_iter().collect::<Vec<_>>()).await
    }

    /// Puts the rows of commands that are missing, and notes once a minute that they are alive. A row
    /// that is there is not locked: many events of one command are kept at the same time.
    async fn put_commands(&self, batch: &[Numbered<'_>]) -> Result<(), Error> {
        let mut commands: BTreeMap<i64, (&Append, &str)> = BTreeMap::new();
        for it in batch {
            if let (Some(number), Some(command)) = (it.command_no, it.append.event.command()) {
                commands.insert(number, (it.append, &command.command));
            }
        }
        if commands.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = commands.keys().copied().collect();
        let rows: Vec<_> = commands.values().collect();
        // What was signed about midnight may come after what was signed later.
        let first = |append: &Append| first_of_day(day_of(append.event.sent_at).saturating_sub(1));
        let seen = each(&rows, |(append, _)| nanos(append.received_at));
        let latest = seen.iter().copied().max().unwrap_or_default();
        self.execute(
            "WITH noted AS (UPDATE command SET last_event_at = $8 WHERE no IN (
               SELECT no FROM command WHERE no = ANY($1) AND last_event_at < $8 - $9
               FOR UPDATE SKIP LOCKED))
             INSERT INTO command (no, trust, account, region, id, first_event, last_event_at)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[],
               $6::bigint[], $7::bigint[]) ON CONFLICT DO NOTHING",
            &[
                &numbers,
                &each(&rows, |(append, _)| append.trust.as_bytes()),
                &each(&rows, |(append, _)| append.event.account.as_bytes()),
                &each(&rows, |(append, _)| append.event.region.as_bytes()),
                &each(&rows, |(_, id)| id.as_bytes()),
                &each(&rows, |(append, _)| first(append)),
                &seen,
                &latest,
                &NOTED_EVERY,
            ],
        )
        .await?;
        Ok(())
    }

    /// Puts the rows of certificates that are missing, and notes once a day that they verify.
    async fn put_certificates(&self, batch: &[Arc<Append>]) -> Result<(), Error> {
        let mut certificates: BTreeMap<i64, (&Certificate, i64)> = BTreeMap::new();
        for it in batch {
            let proof = it.proof.as_ref();
            if let Some(certificate) = proof.and_then(|proof| proof.certificate.as_deref()) {
                let number = certificate_no(&certificate.sha256);
                certificates.insert(number, (certificate, day(it.received_at)));
            }
        }
        if certificates.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = certificates.keys().copied().collect();
        let rows: Vec<_> = certificates.values().collect();
        let days = each(&rows, |it| it.1);
        self.execute(
            "WITH noted AS (UPDATE certificate SET last_used_day = $5 WHERE no IN (
               SELECT no FROM certificate WHERE no = ANY($1) AND last_used_day < $5
               FOR UPDATE SKIP LOCKED))
             INSERT INTO certificate (no, sha256, pem, last_used_day)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[])
             ON CONFLICT DO NOTHING",
            &[
                &numbers,
                &each(&rows, |it| it.0.sha256.as_slice()),
                &each(&rows, |it| it.0.pem.as_slice()),
                &days,
                &days.iter().copied().max().unwrap_or_default(),
            ],
        )
        .await?;
        Ok(())
    }

    /// Enters the new events; their numbers, by place in the batch.
    async fn insert_events(&self, batch: &[Numbered<'_>]) -> Result<New, Error> {
        let mut places: BTreeMap<Key<'_>, usize> = BTreeMap::new();
        for (at, it) in batch.iter().enumerate() {
            // Of a notification that is there twice the first counts.
            places.entry(it.key()).or_insert(at);
        }
        let sorted: Vec<&Numbered<'_>> = places.values().filter_map(|at| batch.get(*at)).collect();
        let steps = each(&sorted, |it| it.step());
        let generation = Some(self.shared.generation.load(Ordering::Relaxed)).filter(|it| *it != 0);
        let proof = |it: &&Numbered<'_>| it.append.proof.clone();
        let proofs = each(&sorted, proof);
        let certificate = |certificate: &Arc<Certificate>| certificate_no(&certificate.sha256);
        let rows = self
            .query(
                "INSERT INTO event (id, topic, sns_time, message_id, envelope, received_at,
                   command_no, instance, status, event_time, subject, body,
                   signature, signature_version, timestamp, certificate, generation)
                 SELECT day + nextval('event_no') % 10000000000, topic, sns_time, message_id,
                   envelope, received_at, command_no, instance, status, event_time, subject, body,
                   signature, signature_version, literal, certificate, $17
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[],
                   $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[], $10::bigint[],
                   $11::bytea[], $12::bytea[], $13::bytea[], $14::bigint[], $15::bytea[],
                   $16::bigint[]) AS new (day, topic, sns_time, message_id, envelope, received_at,
                   command_no, instance, status, event_time, subject, body, signature,
                   signature_version, literal, certificate)
                 ON CONFLICT (topic, sns_time, message_id) DO NOTHING
                 RETURNING id, topic, sns_time, message_id",
                &[
                    &each(&sorted, |it| first_of_day(day_of(it.append.event.sent_at))),
                    &each(&sorted, |it| it.topic),
                    &each(&sorted, |it| nanos(it.append.event.sent_at)),
                    &each(&sorted, |it| it.append.event.message_id.as_bytes()),
                    &each(&sorted, |it| envelope_number(&it.append.event.kind)),
                    &each(&sorted, |it| nanos(it.append.received_at)),
                    &each(&steps, |it| it.as_ref().map(|step| step.command_no)),
                    &each(&steps, |it| {
                        it.as_ref().map(|step| step.instance.as_bytes())
                    }),
                    &each(&steps, |it| {
                        it.as_ref().map(|step| step.status.as_str().as_bytes())
                    }),
                    &each(&steps, |it| it.as_ref().map(|step| step.event_time)),
                    &each(&sorted, |it| {
                        it.append.event.subject.as_ref().map(String::as_bytes)
                    }),
                    &each(&sorted, |it| it.append.event.body.as_bytes()),
                    &each(&proofs, |it| it.as_ref().map(|it| it.signature.as_slice())),
                    &each(&proofs, |it| it.as_ref().map(|it| i64::from(it.version))),
                    &each(&proofs, |it| {
                        let literal = it.as_ref().and_then(|it| it.timestamp.as_deref());
                        literal.map(str::as_bytes)
                    }),
                    &each(&proofs, |it| {
                        let proof = it.as_ref();
                        proof.and_then(|it| it.certificate.as_ref().map(certificate))
                    }),
                    &generation,
                ],
            )
            .await?;
        let mut new = New::new();
        for row in &rows {
            let key = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            if let Some(at) = places.get(&key) {
                new.insert(*at, row.try_get(0)?);
            }
        }
        Ok(new)
    }

    /// The numbers of the events that were stored before.
    async fn known_events<'b>(
        &self,
        batch: &[Numbered<'b>],
        new: &New,
    ) -> Result<HashMap<Key<'b>, i64>, Error> {
        let old = batch
            .iter()
            .enumerate()
            .filter(|(at, _)| !new.contains_key(at));
        let keys: Vec<Key<'b>> = old.map(|(_, it)| it.key()).collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = self
            .query(
                "SELECT found.id, it.place FROM unnest($1::bigint[], $2::bigint[], $3::bytea[])
                   WITH ORDINALITY AS it (topic, sns_time, message_id, place)
                 CROSS JOIN LATERAL (
                   SELECT id FROM event WHERE event.topic = it.topic
                     AND event.sns_time = it.sns_time AND event.message_id = it.message_id
                   -- So that it is looked up, however little is known of the table yet.
                   OFFSET 0) AS found",
                &[
                    &each(&keys, |it| it.0),
                    &each(&keys, |it| it.1),
                    &each(&keys, |it| it.2),
                ],
            )
            .await?;
        let mut known = HashMap::with_capacity(rows.len());
        for row in &rows {
            let place = row.try_get::<_, i64>(1)?.saturating_sub(1);
            let key = usize::try_from(place).ok().and_then(|at| keys.get(at));
            if let Some(key) = key {
                known.insert(*key, row.try_get(0)?);
            }
        }
        Ok(known)
    }

    /// Makes dead letters of what is owed for events that are kept raw, so that somebody sees it.
    async fn owe_dead(
        &mut self,
        batch: &[Numbered<'_>],
        new: &New,
        why: &str,
    ) -> Result<(), Error> {
        for (at, id) in new {
            let Some(it) = batch.get(*at) else { continue };
            let event = &it.append.event;
            // A plain key: the one that was owed may be what cannot be kept.
            let key = SortKey::new(Leading::Time, event.sort_time, 0, "", &event.message_id);
            let bytes = i64::try_from(event.body.len()).unwrap_or(i64::MAX);
            self.execute(
                "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key, died_at,
                   tries, bytes, answer)
                 SELECT $1, $2, $1, '', it.route, it.sink, $3, $4, 0, $5, $6
                 FROM unnest($7::bigint[], $8::bigint[]) AS it (route, sink)",
                &[
                    id,
                    &KIND_OWN,
                    &key.as_bytes(),
                    &nanos(it.append.received_at),
                    &bytes,
                    &why.as_bytes(),
                    &each(&it.owed, |it| it.0),
                    &each(&it.owed, |it| it.1),
                ],
            )
            .await?;
            for (_, sink) in &it.owed {
                let book = self.book(*sink, it.append.received_at);
                book.owed += 1;
                book.dead += 1;
            }
        }
        Ok(())
    }
}
