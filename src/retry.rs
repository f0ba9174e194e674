//! What a sink answered, and what happens next.
//!
//! Pure: verdict, history and `now` go in, a [`Next`] comes out. `deliver` obeys it.

use std::time::Duration;

use jiff::Timestamp;

use crate::delivery::Outcome;

/// What came of one attempt to send a notice. Only a sink makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It arrived.
    Sent {
        /// What the other side calls it, if it says.
        remote_id: Option<String>,
    },
    /// It did not arrive, and may later.
    Retry {
        /// What stood in the way.
        why: String,
        /// How long the other side asked us to wait.
        after: Option<Duration>,
        /// Whether this notice or the whole sink is in trouble.
        scope: Scope,
        /// What part of it did arrive, in the sink's own words; handed to the next attempt.
        progress: Option<String>,
    },
    /// The other side will never take this notice.
    Refused {
        /// What it said.
        why: String,
        /// Whether plain text in its place may pass.
        content: bool,
    },
    /// The sink itself does not work: bad credentials, a deleted channel, a missing folder.
    Broken {
        /// What is wrong, and where to mend it.
        why: String,
    },
    /// The connection was lost after everything was sent: it may have arrived.
    Unknown {
        /// What happened.
        why: String,
    },
}

impl Verdict {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Retry { .. } => "retry",
            Self::Refused { .. } => "refused",
            Self::Broken { .. } => "broken",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// How far the cause of a failure reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This notice alone.
    Notice,
    /// Everything for this sink.
    Sink,
}

/// How patiently a route's deliveries are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The first backoff; doubled at each try.
    pub first: Duration,
    /// The longest backoff.
    pub longest: Duration,
    /// How long after its first failure a delivery is given up.
    pub horizon: Duration,
    /// How long a failing head may block its lane; `None` is without end.
    pub block_for: Option<Duration>,
}

impl Default for Patience {
    /// One second to fifteen minutes, for a day; a head blocks its lane for a quarter of an hour.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(15 * 60),
            horizon: Duration::from_secs(24 * 60 * 60),
            block_for: Some(Duration::from_secs(15 * 60)),
        }
    }
}

/// What is known of the tries so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How many attempts were made before this one.
    pub tries: u32,
    /// When the first failure of notice scope was.
    pub failing_since: Option<Timestamp>,
}

/// What happens next to a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// What is recorded.
    pub outcome: Outcome,
    /// When it is tried again, if it waits.
    pub again_at: Option<Timestamp>,
    /// The history after this attempt.
    pub history: History,
    /// Until when the whole sink rests, if it should.
    pub sink_rests_until: Option<Timestamp>,
}
