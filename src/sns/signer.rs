//! Plays SNS: signs envelopes with a key of its own. For the demo, the tests and the benchmark.
//!
//! It writes the string to sign from AWS's documentation by itself and shares no code with the
//! verifier, so that a mistake in one shows in the other.
