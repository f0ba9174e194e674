//! A store with a past: events that were received and delivered like any others, through the store
//! itself, and nothing that waits.

use std::path::Path;

use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use runbell::app::keeping;
use runbell::clock::Clock;
use runbell::route::Routes;
use runbell::store::{Append, Ending, Lane, Settled, Settlement, Store};

use crate::notifications::past_event;
use crate::subject::settings;

/// Events that are appended at once; the store makes transactions of them.
const AT_ONCE: usize = 2000;
const LARGEST_LEASE: usize = 1000;

/// Fills the store of the settings in `folder` with `count` events.
pub(crate) async fn fill(folder: &Path, count: usize, now: Timestamp) -> anyhow::Result<()> {
    let config = settings(folder)?;
    let clock = Clock::system();
    let (store, keeping, _) = keeping::open(&config.store, &clock).await?;
    let routes = Routes::new(config.routes.clone());
    let past = now - SignedDuration::from_mins(30);
    for first in (0..count).step_by(AT_ONCE) {
        let appends = (first..count.min(first + AT_ONCE)).map(|number| {
            let event = past_event(number, count, past);
            let owed = routes.owed(&event, None);
            let received_at = event.sent_at;
            store.append(Append::new(event, owed, received_at))
        });
        try_join_all(appends).await?;
        for sink in &config.sinks {
            deliver(&*store, &sink.name, now).await?;
        }
    }
    drop(store);
    keeping.end(&clock, Timestamp::MAX).await;
    Ok(())
}

async fn deliver(store: &dyn Store, sink: &str, now: Timestamp) -> anyhow::Result<()> {
    loop {
        let leased = store.lease(sink, now, LARGEST_LEASE).await?;
        if leased.lanes.is_empty() {
            return Ok(());
        }
        let sent = leased.lanes.into_iter().map(|lane| all_sent(lane, now));
        store.settle(sent.collect()).await?;
    }
}

fn all_sent(lane: Lane, now: Timestamp) -> Settlement {
    let results = lane
        .waiting
        .into_iter()
        .map(|it| Settled::new(it.event_id, it.key, Ending::SENT, it.received_at));
    lane.lease.settle(results.collect(), now, None)
}
