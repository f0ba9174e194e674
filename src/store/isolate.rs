//! Recording settlements of which one cannot be kept as it is.
//!
//! A result that no database takes must not cost the others. So it is tried alone, then without its
//! texts, and then as a dead letter that says so. The last costs the truth about a delivery that may
//! have been sent, so it is not done at the first refusal: whoever records keeps what was refused
//! and comes again, and by then the reason may be gone. Until something of it is recorded nothing
//! more of its sink is leased, since that could be sent twice.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Settlement, StoreError};

/// How long a settlement is refused before something of it is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// In so many parts the results of one settlement are given up by turns, before all of them are.
const PARTS: usize = 32;

/// Records settlements by `write`, which records all it is given or nothing; `boot` is the time.
///
/// # Errors
/// When the store is in trouble, or refuses something that is to be tried again. What was recorded
/// stays recorded, and the same call changes nothing of it.
pub(super) async fn settle_each<'s>(
    settlements: Vec<Settlement>,
    boot: Duration,
    write: impl Fn(Vec<Settlement>) -> BoxFuture<'s, Result<(), StoreError>> + Send,
) -> Result<(), StoreError> {
    match write(settlements.clone()).await {
        Err(StoreError::Data(_)) => {}
        written => return written,
    }
    let mut refused = Ok(());
    for settlement in settlements {
        match settle_one(&settlement, boot, &write).await {
            Err(StoreError::Data(why)) => refused = Err(StoreError::Data(why)),
            written => written?,
        }
    }
    refused
}

/// Records one settlement in the first of its forms that the store takes.
async fn settle_one<'s>(
    whole: &Settlement,
    boot: Duration,
    write: &(impl Fn(Vec<Settlement>) -> BoxFuture<'s, Result<(), StoreError>> + Send),
) -> Result<(), StoreError> {
    let mut last = write(vec![whole.clone()]).await;
    let Err(StoreError::Data(why)) = &last else {
        return last;
    };
    let (lane, why) = (whole.lease().lane().0, why.to_string());
    tracing::error!(lane, why, "a result cannot be kept as it is");
    let is_over = boot.saturating_sub(whole.refused_since(boot)) >= PATIENCE;
    for form in forms(whole, is_over) {
        if !matches!(last, Err(StoreError::Data(_))) {
            break;
        }
        last = write(vec![form]).await;
    }
    last
}

/// The forms of a settlement that lose ever more of it: its texts, and at last what became of one
/// part of the deliveries, or of all.
fn forms(whole: &Settlement, is_over: bool) -> impl Iterator<Item = Settlement> {
    let count = whole.results().len();
    let parts = if is_over { count.min(PARTS) } else { 0 };
    let part = move |at: usize| at.saturating_mul(parts) / count.max(1);
    let in_parts = (0..parts).map(move |one| whole.given_up(|at| part(at) == one));
    let all = is_over.then(|| whole.given_up(|_| true));
    std::iter::once(whole.without_texts())
        .chain(in_parts)
        .chain(all)
}
