//! Which deliveries an event owes.
//!
//! Pure: checked routes and an event go in, [`Owed`] come out. `receive` asks for every event,
//! `runbell route` and `runbell check` ask to explain.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::delivery::{Hold, LaneKey, Leading, Owed, Release, SortKey};
use crate::event::{Event, Kind, Status};
use crate::fault::Fault;
use crate::render::{Template, TemplateSettings};
use crate::units::Span;

mod when;
mod witness;

pub use when::{Texts, When, WhenSettings};

/// How long a delivery waits for an earlier event when nobody says.
const USUAL_HOLD: Duration = Duration::from_secs(5);
/// The longest hold: an alert that is an hour old is news no more.
pub const LONGEST_HOLD: Duration = Duration::from_hours(1);

/// How long a digest gathers failures when nobody says.
const USUAL_GATHER: Duration = Duration::from_secs(10);
/// How long it waits with anything else.
const USUAL_EVERY: Duration = Duration::from_mins(5);
const LONGEST_EVERY: Duration = Duration::from_hours(24);

/// In which order a route's deliveries leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// What becomes of a delivery that tells nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redundant {
    /// It is recorded, not sent.
    #[default]
    Skip,
    /// It is sent all the same.
    Send,
}

/// A route as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Which events it takes.
    #[serde(default)]
    pub when: WhenSettings,
    /// Names of sinks.
    pub to: Vec<String>,
    /// In which order.
    #[serde(default)]
    pub order: Order,
    /// How long a delivery waits for an earlier event.
    pub hold: Option<Span>,
    /// Whether it also brings an event to a sink that an earlier route brought it to.
    #[serde(default)]
    pub again: bool,
    /// Whether a match ends the walk.
    #[serde(default)]
    pub stop: bool,
    /// What becomes of what tells nothing new.
    #[serde(default)]
    pub redundant: Redundant,
    /// How long a failing head blocks its lane.
    pub block_for: Option<Span>,
    /// Few notices for a whole command, in place of one for each event.
    pub digest: Option<DigestSettings>,
    /// Words in place of the usual ones, for sinks that speak to people.
    pub template: Option<TemplateSettings>,
}

/// How a digest gathers, as it is written.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DigestSettings {
    /// How long a failure, or what the whole command says, waits for others to be told with it.
    pub gather: Option<Span>,
    /// How long anything else waits to be counted.
    pub every: Option<Span>,
}

/// When a digest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// So long after a failure, or after what the whole command says.
    pub gather: Duration,
    /// So long after anything else.
    pub every: Duration,
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
    /// Few notices for a whole command, in place of one for each event.
    pub digest: Option<Digest>,
    /// Words in place of the usual ones, for sinks that speak to people.
    pub template: Option<Arc<Template>>,
}

/// The routes, in the order in which they are asked.
#[derive(Clone, Debug, Default)]
pub struct Routes(Vec<Route>);

/// What one route makes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The route's name.
    pub route: String,
    /// Why it does not take the event; `None` when it does.
    pub why_not: Option<String>,
    /// The sinks it brings the event to.
    pub to: Vec<String>,
    /// The sinks that an earlier route brings it to already.
    pub already: Vec<String>,
}

impl Settings {
    /// Turns it into a route.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check(self) -> Result<Route, Vec<Fault>> {
        let mut faults = Vec::new();
        if self.name.is_empty() {
            faults.push(Fault::at(&["name"], "a route needs a name"));
        }
        if self.to.is_empty() {
            faults.push(Fault::at(&["to"], "name at least one sink"));
        }
        let usual = if self.order == Order::None {
            Duration::ZERO
        } else {
            USUAL_HOLD
        };
        let hold = self.hold.map_or(usual, |span| span.0);
        if hold > LONGEST_HOLD {
            faults.push(Fault::at(&["hold"], "a hold is at most an hour"));
        }
        if self.order == Order::None && !hold.is_zero() {
            faults.push(Fault::at(
                &["hold"],
                "with `order = \"none\"` there is nothing to hold for: leave it out",
            ));
        }
        if self.digest.is_some() && (self.order != Order::Command || self.hold.is_some()) {
            faults.push(Fault::at(
                &["digest"],
                "a digest gathers by command and has its own times: leave `order` and `hold` out",
            ));
        }
        let digest = self.digest.map(|it| Digest {
            gather: it.gather.map_or(USUAL_GATHER, |span| span.0),
            every: it.every.map_or(USUAL_EVERY, |span| span.0),
        });
        if digest.is_some_and(|it| it.gather > it.every || it.every > LONGEST_EVERY) {
            faults.push(Fault::at(
                &["digest"],
                "`gather` is at most `every`, and that is at most a day",
            ));
        }
        let template = self.template.and_then(|template| {
            let checked = template.check();
            checked.map_err(|more| faults.extend(more)).ok()
        });
        match self.when.check() {
            Ok(when) if faults.is_empty() => Ok(Route {
                name: self.name,
                when,
                to: self.to,
                order: self.order,
                hold,
                again: self.again,
                stop: self.stop,
                send_redundant: self.redundant == Redundant::Send,
                block_for: self.block_for.map(|span| span.0),
                digest,
                template,
            }),
            checked => {
                faults.extend(checked.err().unwrap_or_default());
                Err(faults)
            }
        }
    }
}

impl Routes {
    /// Routes, asked in this order.
    #[must_use]
    pub const fn new(routes: Vec<Route>) -> Self {
        Self(routes)
    }

    /// The route of that name.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.0.iter().find(|route| route.name == name)
    }

    /// All routes.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// What an event owes: each sink once, by the first route that names it, unless a later one
    /// says `again`. `least_hold` applies while something earlier may still come after a gap.
    #[must_use]
    pub fn owed(&self, event: &Event, least_hold: Option<Duration>) -> Vec<Owed> {
        let mut owed = Vec::new();
        self.walk(event, |route, to, _| {
            let to = to.into_iter();
            owed.extend(to.map(|sink| route.owe(sink, event, least_hold)));
        });
        owed
    }

    /// What each route makes of an event, up to the one that ends the walk.
    #[must_use]
    pub fn explain(&self, event: &Event) -> Vec<Explained> {
        let mut explained: Vec<Explained> = Vec::new();
        self.walk(event, |route, to, already| {
            let words = |sinks: Vec<&str>| sinks.into_iter().map(str::to_owned).collect();
            explained.push(Explained {
                route: route.name.clone(),
                why_not: route.when.why_not(event),
                to: words(to),
                already: words(already),
            });
        });
        explained
    }

    /// Asks each route in turn; `visit` gets the sinks that it brings the event to, and those that
    /// have it already. Both are empty when the route does not take it.
    fn walk<'r>(
        &'r self,
        event: &Event,
        mut visit: impl FnMut(&'r Route, Vec<&'r str>, Vec<&'r str>),
    ) {
        let mut served = HashSet::new();
        for route in &self.0 {
            if !route.when.takes(event) {
                visit(route, Vec::new(), Vec::new());
                continue;
            }
            let (mut to, mut already) = (Vec::new(), Vec::new());
            for sink in &route.to {
                if served.insert(sink.as_str()) || (route.again && !to.contains(&sink.as_str())) {
                    to.push(sink.as_str());
                } else {
                    already.push(sink.as_str());
                }
            }
            visit(route, to, already);
            if route.stop {
                return;
            }
        }
    }
}

impl Route {
    fn owe(&self, sink: &str, event: &Event, least_hold: Option<Duration>) -> Owed {
        let lane = self.lane(event);
        let leading = match lane {
            LaneKey::Instance => Leading::Rank,
            LaneKey::Command | LaneKey::Digest | LaneKey::Topic | LaneKey::Own => Leading::Time,
        };
        let instance = match &event.kind {
            Kind::Invocation(status) => status.instance.as_deref().unwrap_or_default(),
            _ => "",
        };
        Owed {
            route: self.name.clone(),
            sink: sink.to_owned(),
            lane,
            key: SortKey::new(
                leading,
                event.sort_time,
                event.rank(),
                instance,
                &event.message_id,
            ),
            hold: self.hold_of(event, lane, least_hold),
        }
    }

    /// Whether deliveries that wait in lanes of another kind keep the order of this route: what
    /// arrives from here on joins no lane of theirs, and may leave before them.
    #[must_use]
    pub fn keeps_order_of(&self, waiting: LaneKey) -> bool {
        let now = match self.order {
            _ if self.digest.is_some() => LaneKey::Digest,
            Order::Topic => LaneKey::Topic,
            Order::Command => LaneKey::Command,
            Order::Instance => LaneKey::Instance,
            Order::None => LaneKey::Own,
        };
        // An event of no command, or of a route without order, was promised none.
        now == waiting || waiting == LaneKey::Own || now == LaneKey::Own
    }

    fn lane(&self, event: &Event) -> LaneKey {
        match (self.order, event.command()) {
            (_, Some(_)) if self.digest.is_some() => LaneKey::Digest,
            (Order::Topic, _) => LaneKey::Topic,
            (Order::Command, Some(_)) => LaneKey::Command,
            (Order::Instance, Some(_)) => LaneKey::Instance,
            (Order::None, _) | (_, None) => LaneKey::Own,
        }
    }

    fn hold_of(&self, event: &Event, lane: LaneKey, least_hold: Option<Duration>) -> Hold {
        if let (LaneKey::Digest, Some(digest)) = (lane, self.digest) {
            let is_urgent = match &event.kind {
                Kind::Invocation(it) => it.status.is_terminal() && it.status != Status::Success,
                _ => true,
            };
            return if is_urgent {
                Hold {
                    at_most: digest.gather,
                    release: Release::AtEnd,
                }
            } else {
                Hold {
                    at_most: digest.every,
                    release: Release::WhenOver(digest.gather),
                }
            };
        }
        if self.hold.is_zero() || lane == LaneKey::Own {
            return Hold {
                at_most: Duration::ZERO,
                release: Release::AtEnd,
            };
        }
        let status = event.command().map(|command| &command.status);
        let release = match (lane, status) {
            (LaneKey::Instance, Some(Status::Other(_))) => Release::Never,
            (LaneKey::Instance, Some(Status::InProgress)) => Release::First,
            (LaneKey::Instance, Some(_)) if !self.when.can_take_in_progress() => Release::First,
            (LaneKey::Instance, Some(_)) => Release::AfterFirst,
            _ => Release::AtEnd,
        };
        match least_hold {
            None => Hold {
                at_most: self.hold,
                release,
            },
            // Whatever is missing may still come: nothing goes early. An unknown status says so of
            // its whole lane.
            Some(least) => Hold {
                at_most: self.hold.max(least),
                release: match release {
                    Release::Never => Release::Never,
                    _ => Release::AtEnd,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests;
