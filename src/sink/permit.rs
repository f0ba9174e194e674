//! Permission to send, asked for when the next thing to happen is that bytes leave.
//!
//! A lease can end while a sink waits: for its pace, for a name server, for a handshake. `deliver`
//! makes a [`Permit`] that knows the lease and hands it to the sink, which asks it each time right
//! before bytes of a notice can leave. After the send `deliver` reads from it whether anything may
//! have left, and whether anything was held back. A permit knows nothing of stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::retry::{Scope, Verdict};

/// Tells a sink whether it may still send, and remembers the answers; cheap to clone.
///
/// Several threads may ask. A refusal is final: a lease that is lost does not come back, and half of
/// a load sent under the old one would be told twice.
#[derive(Clone)]
pub struct Permit(Arc<State<dyn Fn() -> bool + Send + Sync>>);

/// One allocation for all of it: a permit is made for every send.
struct State<F: ?Sized> {
    has_begun: AtomicBool,
    is_refused: AtomicBool,
    may_send: F,
}

impl Permit {
    /// A permit that lasts for as long as `may_send` says so. It is called right before bytes leave,
    /// so it must answer from memory.
    #[must_use]
    pub fn new(may_send: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(State {
            has_begun: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            may_send,
        }))
    }

    /// A permit that never ends, where no lease is involved: a test of a sink, a demonstration.
    #[must_use]
    pub fn always() -> Self {
        Self::new(|| true)
    }

    /// Asks whether bytes may leave now. `true` notes that something may have left; `false` means
    /// that nothing may be sent any more.
    #[must_use]
    pub fn begin(&self) -> bool {
        let may_send = !self.is_refused() && (self.0.may_send)();
        // Noted before the caller can act on the answer: whoever finds nothing noted knows that
        // nothing had left by then.
        let answer = if may_send {
            &self.0.has_begun
        } else {
            &self.0.is_refused
        };
        answer.store(true, Ordering::Release);
        may_send
    }

    /// Whether something may have left, even if the rest was refused later.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Acquire)
    }

    /// Whether something was held back. What left before that is known by its verdict.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.0.is_refused.load(Ordering::Acquire)
    }
}

/// Why a notice that was held back was not sent.
pub(super) const REFUSED: &str = "the lease ended before it could be sent";

/// The verdict on a notice that was held back. It blames nobody: the notice belongs to another holder,
/// and `deliver` records nothing of it.
pub(super) fn refused() -> Verdict {
    Verdict::Retry {
        why: REFUSED.to_owned(),
        after: None,
        scope: Scope::Notice,
        progress: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permit_notes_what_it_answered() {
        let held = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&held);
        let permit = Permit::new(move || asked.load(Ordering::Relaxed));
        let state = |permit: &Permit| (permit.has_begun(), permit.is_refused());
        assert_eq!(state(&permit), (false, false), "nobody asked");
        assert!(permit.begin() && permit.begin());
        assert_eq!(state(&permit), (true, false));
        held.store(false, Ordering::Relaxed);
        assert!(!permit.clone().begin());
        assert_eq!(state(&permit), (true, true), "a clone is the same permit");
        held.store(true, Ordering::Relaxed);
        assert!(!permit.begin(), "a refusal is final");
    }

    #[test]
    fn permit_without_a_lease_never_ends() {
        let permit = Permit::always();
        assert!((0..3).all(|_| permit.begin()));
        assert!(permit.has_begun() && !permit.is_refused());
    }
}
