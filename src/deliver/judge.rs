//! One verdict at a time: what is recorded of it, and how long the sink backs off.

use jiff::Timestamp;

use super::Worker;
use super::load::Going;
use crate::clock::since;
use crate::delivery::Outcome;
use crate::render::Notice;
use crate::retry::{self, Scope, Verdict};
use crate::route::Routes;
use crate::store::{Ending, Failure, Settled};

/// The judgement on one verdict. Times are logical.
pub(super) struct Judged {
    pub(super) settled: Settled,
    /// When the delivery is tried again, if it waits on.
    pub(super) again_at: Option<Timestamp>,
    /// Until when the whole sink backs off, if it does.
    pub(super) backoff_until: Option<Timestamp>,
}

impl Worker {
    /// A notice in the words of its route's template, or the sink's.
    pub(super) fn in_words(&self, notice: Notice, routes: &Routes) -> Notice {
        if !self.sink.speaks_to_people() {
            return notice;
        }
        let route = routes.route(&notice.route);
        let of_route = route.and_then(|route| route.template.as_deref());
        let notice = notice.in_words_of(of_route.or(self.template.as_deref()));
        if let Some(Err(error)) = &notice.texts {
            let route = &notice.route;
            tracing::warn!(sink = &*self.name, route, %error, "a template failed");
            self.metrics.template_failed(&self.name);
        }
        notice
    }

    /// Turns a verdict into what is recorded.
    pub(super) fn judge(&self, going: &Going, notice: &Notice, verdict: &Verdict) -> Judged {
        let (wall, now) = (self.clock.now(), self.time.now());
        self.metrics.attempted(&self.name, verdict.word());
        let next = retry::next(
            verdict,
            going.history,
            &going.patience,
            now,
            fastrand::f64(),
        );
        let mut marks = notice.marks.clone();
        let (mut answer, mut progress, mut message) = (None, None, None);
        match verdict {
            Verdict::Sent { remote_id } => {
                self.metrics
                    .reached(&self.name, since(notice.received_at, wall));
                if let Some(by) = marks.late {
                    self.metrics.late_by(by);
                }
                answer.clone_from(remote_id);
                if self.sink.keeps_threads() {
                    message.clone_from(remote_id);
                }
            }
            Verdict::Retry {
                why,
                progress: part,
                ..
            } => {
                answer = Some(why.clone());
                progress.clone_from(part);
            }
            Verdict::Refused { why, .. } | Verdict::Broken { why } => answer = Some(why.clone()),
            Verdict::Unknown { why } => {
                marks.possible_repeat = true;
                answer = Some(why.clone());
            }
        }
        let failure = || Failure {
            since: next.history.failing_since,
            progress: progress.clone(),
            may_have_arrived: verdict.may_have_arrived(),
        };
        // A delivery that goes alone had no turn to lose, and takes none from others.
        let steps_aside = going.alone && next.sink_backs_off_until.is_none();
        // A digest has only the same digest behind it, and would go as a plain notice by itself.
        let is_digest = notice.digest.is_some();
        let ending = match next.outcome {
            Outcome::Sent => Ending::Sent { message },
            Outcome::Parked if is_digest => Ending::Retry(failure()),
            Outcome::Parked => parked(&next, failure(), now),
            Outcome::Retry if steps_aside => parked(&next, failure(), now),
            Outcome::Retry => Ending::Retry(failure()),
            _ => match &self.fallback {
                Some((fallback, _)) => Ending::Diverted {
                    to: fallback.to.clone(),
                },
                None => Ending::Dead,
            },
        };
        if !verdict.is_sent() {
            tracing::warn!(
                sink = &*self.name,
                route = notice.route,
                event = going.event.0,
                outcome = ending.outcome().word(),
                again_at = next.again_at.map(tracing::field::display),
                why = answer,
                "a delivery failed"
            );
        }
        let settled = Settled {
            event: going.event,
            key: going.key.clone(),
            ending,
            at: wall,
            marks,
            answer,
            took: None,
        };
        Judged {
            settled,
            again_at: next.again_at,
            backoff_until: next.sink_backs_off_until,
        }
    }
}

fn parked(next: &retry::Next, failure: Failure, now: Timestamp) -> Ending {
    Ending::Parked {
        again_at: next.again_at.unwrap_or(now),
        failure,
    }
}

pub(super) fn no_verdict() -> Verdict {
    Verdict::Retry {
        why: "the sink gave no verdict".to_owned(),
        after: None,
        scope: Scope::Notice,
        progress: None,
    }
}
