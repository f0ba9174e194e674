//! Recording settlements of which one cannot be kept as it is.
//!
//! A result that no database takes must stop neither its sink nor the others: nothing more is leased
//! before it is recorded. So it is tried alone, then without its texts, and then as a dead letter
//! that says so.

use futures_util::future::BoxFuture;

use super::{Settlement, StoreError};

/// Records settlements by `write`, which records all it is given or nothing.
///
/// # Errors
/// When the store is in trouble. What was recorded stays recorded, and the same call changes nothing
/// of it.
pub(super) async fn settle_each<'s>(
    settlements: Vec<Settlement>,
    write: impl Fn(Vec<Settlement>) -> BoxFuture<'s, Result<(), StoreError>> + Send,
) -> Result<(), StoreError> {
    match write(settlements.clone()).await {
        Err(StoreError::Data(_)) => {}
        written => return written,
    }
    for whole in settlements {
        let forms = [whole.clone(), whole.without_texts(), whole.given_up()];
        for form in forms {
            match write(vec![form]).await {
                Err(StoreError::Data(why)) => {
                    let (lane, why) = (whole.lease().lane().0, why.to_string());
                    tracing::error!(lane, why, "a result cannot be kept as it is");
                }
                written => {
                    written?;
                    break;
                }
            }
        }
    }
    Ok(())
}
