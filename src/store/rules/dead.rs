//! Dead letters, as both engines keep them, and the progress of long work.

/// The progress of one step of long work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Progress {
    /// To how many rows it was done.
    pub(in crate::store) count: u64,
    /// Where the next step begins; none when there is nothing left.
    pub(in crate::store) upto: Option<i64>,
}

impl Progress {
    /// Nothing was left to be done.
    pub(in crate::store) const OVER: Self = Self {
        count: 0,
        upto: None,
    };
}

/// The answer that a dead letter bears which an operator made.
pub(in crate::store) const BY_HAND: &str = "given up by hand";
