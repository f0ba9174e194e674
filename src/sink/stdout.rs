//! Lines of JSON on standard output, for containers whose platform collects it.

/// Settings of a standard-output sink.
#[derive(Clone, Debug)]
pub struct Settings {}
