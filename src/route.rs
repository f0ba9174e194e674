//! Which deliveries an event owes.
//!
//! Pure: checked routes and an event go in, [`Owed`] come out. `receive` asks for every event,
//! `runbell route` and `runbell check` ask to explain.

use std::time::Duration;

/// In which order a route's deliveries leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By event time within each command, summary and invocations together.
    #[default]
    Command,
    /// By status within each command and instance.
    Instance,
    /// By event time within each topic.
    Topic,
    /// As they come.
    None,
}

/// One checked route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name, unique among routes.
    pub name: String,
    /// Which events it takes.
    pub when: When,
    /// Names of the sinks it brings them to.
    pub to: Vec<String>,
    /// In which order.
    pub order: Order,
    /// How long a delivery waits for an earlier event.
    pub hold: Duration,
    /// Whether it also brings an event to a sink that an earlier route brought it to.
    pub again: bool,
    /// Whether a match ends the walk.
    pub stop: bool,
    /// Whether what tells nothing new is sent all the same.
    pub send_redundant: bool,
    /// How long a failing head blocks its lane: `None` leaves it to the sink.
    pub block_for: Option<Duration>,
}

/// Which events a route takes; everything by default.
#[derive(Clone, Debug, Default)]
pub struct When {}
