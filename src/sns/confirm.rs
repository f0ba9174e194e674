//! Answers a subscription confirmation, by a call built from topic and token alone.
//!
//! The envelope's `SubscribeURL` is never followed: it is an address that somebody else chose.
