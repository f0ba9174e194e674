//! What was refused for allowed topics, kept a while to be judged again.
//!
//! Bounded by number and by bytes: what a stranger sends can push out older entries, and nothing
//! more. It lives in memory; what is worth keeping was never proved.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::sns::Refusal;

const MOST_ENTRIES: usize = 256;
const MOST_BYTES: usize = 8 << 20;

/// One envelope that was not believed.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its number, as long as the process lives.
    pub id: u64,
    /// When it came.
    pub at: Timestamp,
    /// The topic it names.
    pub topic: String,
    /// Why, in one stable word.
    pub word: &'static str,
    /// Why, in one sentence.
    pub sentence: String,
    /// What was posted.
    pub body: Vec<u8>,
}

/// The last refused envelopes, oldest first.
#[derive(Debug, Default)]
pub struct Ring {
    entries: VecDeque<Refused>,
    bytes: usize,
    last_id: u64,
}

impl Ring {
    pub(super) fn push(&mut self, refusal: Refusal, body: &[u8], at: Timestamp) {
        self.bytes += body.len();
        self.last_id += 1;
        self.entries.push_back(Refused {
            id: self.last_id,
            at,
            topic: refusal
                .topic
                .map(|topic| topic.to_string())
                .unwrap_or_default(),
            word: refusal.word,
            sentence: refusal.sentence,
            body: body.to_vec(),
        });
        while self.bytes > MOST_BYTES || self.entries.len() > MOST_ENTRIES {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= oldest.body.len();
        }
    }

    pub(super) fn list(&self) -> Vec<Refused> {
        self.entries.iter().cloned().collect()
    }

    pub(super) fn take(&mut self, id: u64) -> Option<Refused> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        let taken = self.entries.remove(at)?;
        self.bytes -= taken.body.len();
        Some(taken)
    }
}

/// How many lines about refusals the log takes in one minute.
const COMPLAINTS_A_MINUTE: u64 = 60;

/// Bounds what refusals write to the log.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    /// The minute since the epoch, and the lines written in it.
    written: Mutex<(i64, u64)>,
}

impl Complaints {
    /// Whether one more line may be written.
    pub(super) fn allow(&self, now: Timestamp) -> bool {
        let minute = now.as_second() / 60;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.0 != minute {
            *written = (minute, 0);
        }
        written.1 += 1;
        written.1 <= COMPLAINTS_A_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sns::Answer;

    fn push(ring: &mut Ring, body: &[u8]) {
        let refusal = Refusal {
            word: "signature",
            sentence: String::new(),
            answer: Answer::Forbidden,
            topic: None,
        };
        ring.push(refusal, body, Timestamp::UNIX_EPOCH);
    }

    #[test]
    fn the_ring_is_bounded_by_number_and_by_bytes() {
        let mut ring = Ring::default();
        for _ in 0..MOST_ENTRIES + 10 {
            push(&mut ring, b"x");
        }
        assert_eq!(ring.list().len(), MOST_ENTRIES);
        for _ in 0..9 {
            push(&mut ring, &vec![0; 1 << 20]);
        }
        assert_eq!(ring.list().len(), 8);
        let newest = ring.list().last().unwrap().id;
        assert_eq!(ring.take(newest).unwrap().body.len(), 1 << 20);
        assert!(ring.take(newest).is_none());
        push(&mut ring, &vec![0; 1 << 20]);
        assert_eq!(ring.list().len(), 8);
    }

    #[test]
    fn the_log_takes_so_many_complaints_a_minute() {
        let complaints = Complaints::default();
        let now = Timestamp::from_second(1_000_000_020).unwrap();
        let allowed = |now| (0..1000).filter(|_| complaints.allow(now)).count();
        assert_eq!(allowed(now), 60);
        assert_eq!(allowed(now + jiff::SignedDuration::from_secs(60)), 60);
    }
}
