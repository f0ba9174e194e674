//! The settings of the replicas: which routes bring what to which sinks, as data, so that the
//! checks at the end know what was asked for.

use crate::harness::sns::{Sns, TOPIC};

/// What a route puts in order, or that it gathers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Topic,
    Instance,
    Command,
    /// No order: few notices for each command, that count its instances.
    Digest,
}

impl Order {
    fn keys(self) -> &'static str {
        match self {
            Self::Topic => "order = 'topic'\nhold = '1s'",
            Self::Instance => "order = 'instance'\nhold = '1s'",
            Self::Command => "order = 'command'\nhold = '1s'",
            Self::Digest => "digest = { gather = '5s', every = '20s' }",
        }
    }
}

/// A sink whose URL differs by replica, so that each record shows which process told it.
#[derive(Debug)]
pub struct Sink {
    pub name: &'static str,
    /// Its keys, but for the URL.
    keys: &'static str,
}

/// A route and its sinks: the first is the one that it names, the others stand in for it.
#[derive(Debug)]
pub struct Route {
    pub name: &'static str,
    pub order: Order,
    pub sinks: &'static [Sink],
}

const WEBHOOK: &str = "type = 'webhook'\nhttp = { allow_private = true, timeout = '5s' }";

/// Two webhooks.
pub const PLAIN: &[Route] = &[
    Route {
        name: "topic",
        order: Order::Topic,
        sinks: &[Sink {
            name: "topic",
            keys: WEBHOOK,
        }],
    },
    Route {
        name: "instance",
        order: Order::Instance,
        sinks: &[Sink {
            name: "instance",
            keys: WEBHOOK,
        }],
    },
];

/// Besides: digests, sinks that one replica alone brings to, and a sink with a fallback.
pub const FULL: &[Route] = &[
    Route {
        name: "topic",
        order: Order::Topic,
        sinks: PLAIN[0].sinks,
    },
    Route {
        name: "instance",
        order: Order::Instance,
        sinks: PLAIN[1].sinks,
    },
    Route {
        name: "pinned",
        // One replica carries it all: one lane at a time would be too slow.
        order: Order::Instance,
        sinks: &[Sink {
            name: "pinned",
            keys: "type = 'webhook'\non = 'a'\n\
                   http = { allow_private = true, timeout = '5s' }",
        }],
    },
    Route {
        name: "relay",
        order: Order::Command,
        sinks: &[
            Sink {
                name: "relay",
                keys: "type = 'webhook'\nfallback = 'spare'\nfallback_after = '3s'\n\
                       http = { allow_private = true, timeout = '5s' }",
            },
            Sink {
                name: "spare",
                keys: WEBHOOK,
            },
        ],
    },
    Route {
        name: "chat",
        order: Order::Digest,
        sinks: &[Sink {
            name: "chat",
            keys: "type = 'slack'\nhttp = { allow_private = true, timeout = '5s' }",
        }],
    },
    Route {
        name: "desk",
        order: Order::Digest,
        // Longer than a pause: an answer that came meanwhile is still heard.
        sinks: &[Sink {
            name: "desk",
            keys: "type = 'slack'\non = 'a'\n\
                   http = { allow_private = true, timeout = '30s' }",
        }],
    },
];

/// The variable that holds the URL of a sink.
pub fn variable(sink: &str) -> String {
    format!("{}_URL", sink.to_uppercase())
}

/// Everything that one replica is told.
pub struct Settings<'a> {
    pub name: &'a str,
    pub hook: u16,
    pub admin: u16,
    pub database: &'a str,
    pub sns: &'a Sns,
    pub routes: &'a [Route],
}

impl Settings<'_> {
    pub fn text(&self) -> String {
        let Self { name, database, .. } = self;
        let head = format!(
            "[server]\nlisten = '127.0.0.1:{}'\nreplica = '{name}'\n\
             gap_hold = '0s'\nleave_after = '1s'\n\
             [admin]\nlisten = '127.0.0.1:{}'\nsocket = 'off'\n\
             [store]\nurl = '{database}'\n\
             [[topic]]\narn = '{TOPIC}'\nendpoint = '{}'\n",
            self.hook, self.admin, self.sns.base
        );
        let sinks = self.routes.iter().flat_map(|route| route.sinks);
        let sinks = sinks.map(|Sink { name, keys }| {
            let variable = variable(name);
            format!("[sink.{name}]\n{keys}\nurl = {{ env = '{variable}' }}\n")
        });
        let routes = self.routes.iter().map(|Route { name, order, sinks }| {
            let (to, order) = (sinks[0].name, order.keys());
            format!("[[route]]\nname = '{name}'\nto = ['{to}']\n{order}\nredundant = 'send'\n")
        });
        std::iter::once(head).chain(sinks).chain(routes).collect()
    }
}
