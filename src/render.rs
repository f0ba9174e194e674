//! Events into what sinks send: a [`Notice`] carries everything that a sink may say.
//!
//! Pure. `deliver` renders; sinks bring the notice into their format and never build one by hand.

use jiff::Timestamp;

use crate::delivery::Marks;
use crate::event::Event;

/// What a sink is to tell: one event, with what its reader has to know besides.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Stable over tries, restarts and stores: the same event for the same route and sink.
    pub id: String,
    /// The route that owes it.
    pub route: String,
    /// What happened.
    pub event: Event,
    /// When that arrived here.
    pub received_at: Timestamp,
    /// What the reader has to know besides.
    pub marks: Marks,
}
