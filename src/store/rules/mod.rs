//! The rules of keeping, pure and written once for both engines.
//!
//! No statement, no network, no clock: times and chance are arguments. An engine asks a rule and
//! turns the answer into its own statements. `columns`: values as tables keep them · `number`: what
//! things are numbered by · `step` and `hold`: an append · `lease`: what a take may carry ·
//! `settle` and `books`: the meaning of a settlement · `digest` · `dead` · `time`: the logical clock
//! and the bounds of forgetting.

pub(super) mod books;
pub(super) mod columns;
pub(super) mod dead;
pub(super) mod digest;
pub(super) mod hold;
pub(super) mod lease;
pub(super) mod number;
pub(super) mod settle;
pub(super) mod step;
pub(super) mod time;
