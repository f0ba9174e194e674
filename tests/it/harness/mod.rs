//! What the scenarios share: real stores, real streets, a clock moved by hand.

pub mod store;
pub mod street;
