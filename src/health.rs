//! Whether the process is ready for traffic, and if not, why.
//!
//! One [`Readiness`] is made by `app` and lent to every part that may be in trouble: the start, the
//! store, the drain. A part says its reason and takes it back; `web::admin` shows what stands.
//! Liveness is another question, and answered by answering.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What keeps the process from being ready; cheap to clone, all clones share.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Nothing stands in the way.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `part` is not ready, and why; replaces what it said before.
    pub fn unready(&self, part: &'static str, why: impl Into<String>) {
        self.reasons_by_part().insert(part, why.into());
    }

    /// Takes back what `part` said, if it said anything.
    pub fn ready(&self, part: &'static str) {
        self.reasons_by_part().remove(part);
    }

    /// Whether nothing stands in the way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reasons_by_part().is_empty()
    }

    /// Everything that stands in the way: the part and its reason, in the order of the parts' names.
    #[must_use]
    pub fn reasons(&self) -> Vec<(&'static str, String)> {
        let reasons = self.reasons_by_part();
        reasons
            .iter()
            .map(|(part, why)| (*part, why.clone()))
            .collect()
    }

    fn reasons_by_part(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        // No code panics while it holds the lock, and a map is whole after any that might.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_every_part_took_its_reason_back() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let elsewhere = readiness.clone();
        elsewhere.unready("store", "the disk is full");
        elsewhere.unready("start", "opening the store");
        elsewhere.unready("store", "the store is gone");
        assert_eq!(
            readiness.reasons(),
            [
                ("start", "opening the store".to_owned()),
                ("store", "the store is gone".to_owned())
            ]
        );
        readiness.ready("start");
        assert!(!readiness.is_ready());
        readiness.ready("store");
        readiness.ready("never said anything");
        assert!(elsewhere.is_ready());
    }
}
