//! Runbell: an Amazon SNS HTTP/S subscriber for AWS Systems Manager Run Command.
//!
//! Two paths and a database between them. RECEIVE: [`web::hook`] hands bytes to [`receive`], which
//! verifies them ([`sns`]), reads them ([`event`]), asks what they owe ([`route`]) and has the store
//! keep both ([`store`]). DELIVER: [`deliver`] leases what may go, in order ([`order`]), renders it
//! ([`render`]), has a sink send it ([`sink`]), and settles what came of it ([`retry`]).
//!
//! A file imports only from lower floors; floors from the ground up: [`clock`], [`units`], [`fault`],
//! [`secret`], [`wake`], [`metrics`], [`health`] · [`delivery`], [`event`], [`retry`], [`sns`] · [`render`], [`store`], [`order`],
//! [`route`] · [`sink`], [`receive`] · [`web`], [`deliver`] · [`config`] · [`app`] · [`cli`].

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod delivery;
pub mod event;
pub mod fault;
pub mod health;
pub mod metrics;
pub mod order;
pub mod receive;
pub mod render;
pub mod retry;
pub mod route;
pub mod secret;
pub mod sink;
pub mod sns;
pub mod store;
pub mod units;
pub mod wake;
pub mod web;
