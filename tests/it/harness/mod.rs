//! What the scenarios share: real stores, real streets, a clock moved by hand.

pub mod app;
pub mod postgres;
pub mod proxy;
pub mod sns;
pub mod store;
pub mod street;
