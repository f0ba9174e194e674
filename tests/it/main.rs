//! The integration tests: one binary, one harness. Each module is a topic, and reads as scenarios.
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on says so at once, in its helpers as well"
)]

mod attacks;
mod canary;
mod cancel;
mod crash;
mod deliver;
mod every_sink;
mod fleet;
mod floors;
mod harness;
mod history;
mod model;
mod mutual_tls;
mod order;
mod permits;
mod previews;
mod replicas;
mod sinks;
mod store;
mod threads;
mod web;
