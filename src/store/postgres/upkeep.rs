//! Backoffs, subscriptions, certificates, generations, repairs.

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Error;

use super::read::subscription;
use super::tables::Tables;
use crate::sns::KnownCertificate;
use crate::store::rules::columns::nanos;
use crate::store::{Generation, Subscription};

impl Tables<'_, '_> {
    pub(super) async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.put_names(&[sink]).await?;
        self.execute(
            "INSERT INTO sink (name, backoff_until, failing_since) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET backoff_until = $2,
               failing_since = CASE WHEN $2::bigint IS NOT NULL
                 THEN coalesce(sink.failing_since, $3) END",
            &[
                &self.shared.names.number(sink),
                &until.map(nanos),
                &until.map(|_| nanos(now)),
            ],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, Error> {
        let row = self
            .query_one(
                "INSERT INTO subscription (topic, token, asked_at) VALUES ($1, $2, $3)
                 ON CONFLICT (topic, token) DO UPDATE SET topic = excluded.topic
                 RETURNING id, topic, token, asked_at, confirmed_at",
                &[&topic, &token.expose_secret(), &nanos(at)],
            )
            .await?;
        subscription(&row)
    }

    pub(super) async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), Error> {
        self.execute(
            "UPDATE subscription SET confirmed_at = $2 WHERE id = $1",
            &[&id, &nanos(at)],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn put_certificate(&self, it: &KnownCertificate) -> Result<(), Error> {
        self.execute(
            "INSERT INTO certificate_at (url, pem, fetched_at) VALUES ($1, $2, $3)
             ON CONFLICT (url) DO UPDATE SET pem = $2, fetched_at = $3",
            &[&it.url, &it.pem, &nanos(it.fetched_at)],
        )
        .await?;
        Ok(())
    }

    /// Keeps settings under their number, and who uses them from when on.
    pub(super) async fn put_generation(
        &self,
        number: i64,
        it: &Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.execute(
            "INSERT INTO generation (no, hash, text) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            &[&number, &it.hash.as_slice(), &it.text],
        )
        .await?;
        self.execute(
            "INSERT INTO generation_use (no, replica, since) VALUES ($1, $2, $3)
             ON CONFLICT DO NOTHING",
            &[&number, &replica, &nanos(at)],
        )
        .await?;
        Ok(())
    }

    /// Makes lanes due that were found waiting without being due, if they still are; how many. Their
    /// bounds are not believed any more.
    pub(super) async fn rescue(&self, lanes: &[i64]) -> Result<u64, Error> {
        let lanes = self
            .numbers(
                "SELECT id FROM lane WHERE id = ANY($1) AND due_at IS NULL
                   AND EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)
                 ORDER BY kind, number, instance, route, sink FOR UPDATE",
                &[&lanes],
            )
            .await?;
        self.execute(
            "UPDATE lane SET first_key = '', first_release = 0 WHERE id = ANY($1)",
            &[&lanes],
        )
        .await?;
        self.make_due(&lanes).await?;
        Ok(lanes.len() as u64)
    }
}
