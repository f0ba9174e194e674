//! Who has a mail, who was refused, who still waits: over all attempts to send it.

use std::collections::BTreeMap;

use lettre::Address;
use lettre::message::Mailbox;
use serde::{Deserialize, Serialize};

use super::smtp::Answer;
use crate::retry::{Scope, Verdict};
use crate::sink::permit::refused;

/// Why a transaction came to no end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server cannot be reached, or takes nothing now.
    Away(String),
    /// It will not take anything until somebody mends something.
    Broken(String),
    /// Everything was said, and no answer came.
    Lost(String),
    /// The permit to send was refused.
    Refused,
}

/// What is known of every recipient, in the words that are stored between attempts.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Who has it.
    #[serde(default)]
    sent: Vec<String>,
    /// Who was refused, and how.
    #[serde(default)]
    refused: BTreeMap<String, String>,
}

/// The recipients of one mail during one attempt.
#[derive(Debug)]
pub(super) struct Tally {
    waiting: Vec<Address>,
    progress: Progress,
    /// Who is to be asked again, and why.
    later: BTreeMap<String, String>,
    /// What the server said when it took the mail.
    taken: Option<String>,
    /// Whether the mail itself was refused, for what is in it.
    is_content: bool,
}

impl Tally {
    /// All of `to` but those who had it, or were refused, by the end of an earlier attempt.
    pub(super) fn new(to: &[Mailbox], progress: Option<&str>) -> Self {
        // What cannot be read was not written by us: then everybody gets it, again at worst.
        let progress: Progress = progress
            .and_then(|progress| serde_json::from_str(progress).ok())
            .unwrap_or_default();
        let is_done = |address: &Address| {
            let address = address.to_string();
            progress.sent.contains(&address) || progress.refused.contains_key(&address)
        };
        let to = to.iter().map(|mailbox| &mailbox.email);
        Self {
            waiting: to.filter(|address| !is_done(address)).cloned().collect(),
            progress,
            later: BTreeMap::new(),
            taken: None,
            is_content: false,
        }
    }

    /// Who is to be asked.
    pub(super) fn waiting(&self) -> &[Address] {
        &self.waiting
    }

    /// They have it.
    pub(super) fn sent(&mut self, to: &[Address], answer: &Answer) {
        self.progress.sent.extend(to.iter().map(Address::to_string));
        self.taken = Some(answer.to_string());
    }

    /// The server says no: for now, or for good.
    pub(super) fn denied(&mut self, to: &[Address], answer: &Answer) {
        for address in to {
            let (address, answer_shown) = (address.to_string(), answer.to_string());
            if answer.is_for_good() {
                self.progress.refused.insert(address, answer_shown);
            } else {
                self.later.insert(address, answer_shown);
            }
        }
    }

    /// The server says no to the mail itself.
    pub(super) fn mail_denied(&mut self, to: &[Address], answer: &Answer) {
        self.denied(to, answer);
        // Filters have no code of their own: 550, 552 and 554 are all heard of.
        self.is_content = answer.is_for_good();
    }

    /// What came of the attempt.
    pub(super) fn verdict(self, outcome: Result<(), Trouble>) -> Verdict {
        let progress = self.written();
        let retry = |why, scope, progress| Verdict::Retry {
            why,
            after: None,
            scope,
            progress,
        };
        match outcome {
            Err(Trouble::Away(why)) => return retry(why, Scope::Sink, progress),
            Err(Trouble::Broken(why)) => return Verdict::Broken { why },
            Err(Trouble::Lost(why)) => return Verdict::Unknown { why },
            Err(Trouble::Refused) => return refused(),
            Ok(()) => {}
        }
        let refused = listed(&self.progress.refused);
        let has_arrived = !self.progress.sent.is_empty();
        // Others would be told the same of it; another form of it is for all of them.
        if self.is_content && !has_arrived {
            return Verdict::Refused {
                why: refused,
                content: true,
            };
        }
        if !self.later.is_empty() {
            return retry(listed(&self.later), Scope::Notice, progress);
        }
        if !has_arrived {
            return Verdict::Refused {
                why: refused,
                content: false,
            };
        }
        let parts = [
            self.taken,
            (!refused.is_empty()).then(|| format!("refused {refused}")),
        ];
        let said: Vec<String> = parts.into_iter().flatten().collect();
        Verdict::Sent {
            remote_id: (!said.is_empty()).then(|| said.join("; ")),
        }
    }

    /// What the next attempt has to know; nothing when nobody is done with.
    fn written(&self) -> Option<String> {
        let progress = &self.progress;
        if progress.sent.is_empty() && progress.refused.is_empty() {
            return None;
        }
        serde_json::to_string(progress).ok()
    }
}

/// The first few of them, each with what was said.
fn listed(who: &BTreeMap<String, String>) -> String {
    const SHOWN: usize = 5;
    let more = who.len().saturating_sub(SHOWN);
    let shown: Vec<String> = who
        .iter()
        .take(SHOWN)
        .map(|(address, why)| format!("{address}: {why}"))
        .collect();
    let rest = if more > 0 {
        format!(", and {more} more")
    } else {
        String::new()
    };
    format!("{}{rest}", shown.join(", "))
}
