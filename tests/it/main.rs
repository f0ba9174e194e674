//! The integration tests: one binary, one harness. Each module is a topic, and reads as scenarios.
#![expect(
    unreachable_pub,
    reason = "one binary: whatever is shared among its modules is public enough"
)]

mod attacks;
mod crash;
mod floors;
mod harness;
mod order;
mod store;
mod web;
