//! Lines of JSON in a file, for auditors: appended, flushed to the disk, rotated, never torn.

/// Settings of a file sink.
#[derive(Clone, Debug)]
pub struct Settings {}
