//! The integration tests: one binary, one harness. Each module is a topic, and reads as scenarios.
#![expect(missing_docs, reason = "nobody uses a test as a library")]

mod harness;
mod order;
mod store;
