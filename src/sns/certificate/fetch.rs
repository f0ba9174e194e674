//! Fetching a certificate, so that no stranger can make us fetch without bound.
//!
//! Only URLs that are right for an allowed topic come here. There is one flight per URL, a failure
//! is remembered for less than the 20 s after which SNS tries again, every client address has a
//! budget of its own, and few fetches are under way at once.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::pem::LARGEST;
use super::{Answer, Http, Refusal, refusal};
use crate::clock::{earlier, later};
use crate::fault::causes;

/// How long one fetch may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long trouble of the network or of the server is remembered.
const TROUBLE_LASTS: Duration = Duration::from_secs(5);
/// How long an answer is remembered that will not change soon.
const REFUSAL_LASTS: Duration = Duration::from_secs(15);
/// How many fetches are under way at once.
const AT_ONCE: usize = 8;
/// How many fetches one client address may cause in a row.
const BURST: u32 = 4;
/// After how long it may cause one more.
const ONE_MORE_AFTER: Duration = Duration::from_secs(10);
/// How many URLs and clients are remembered.
const MOST_REMEMBERED: usize = 4096;

/// How many requests may wait for certificates at once: far fewer than there are connections, so that
/// strangers who make us fetch leave the others to those whose certificate is at hand.
const WAITING: usize = 64;

pub(super) struct Fetcher {
    http: Http,
    waiting: Semaphore,
    at_once: Semaphore,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    flights: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    failures: HashMap<String, Failure>,
    /// Until when each client's debt lasts; it pays `ONE_MORE_AFTER` for each fetch.
    debts: HashMap<IpAddr, Timestamp>,
}

struct Failure {
    until: Timestamp,
    word: &'static str,
    sentence: String,
    answer: Answer,
}

impl Fetcher {
    pub(super) fn new(http: Http) -> Self {
        Self {
            http,
            waiting: Semaphore::new(WAITING),
            at_once: Semaphore::new(AT_ONCE),
            memory: Mutex::default(),
        }
    }

    /// A place among those who wait for a certificate.
    pub(super) fn place(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.waiting.try_acquire().map_err(|_| {
            refusal(
                "certificate-busy",
                "too many certificates are being waited for just now",
                Answer::Later,
            )
        })
    }

    /// What has to be held while `url` is fetched.
    pub(super) fn flight(&self, url: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut memory = self.memory();
        if memory.flights.len() >= MOST_REMEMBERED {
            memory
                .flights
                .retain(|_, flight| Arc::strong_count(flight) > 1);
        }
        Arc::clone(memory.flights.entry(url.to_owned()).or_default())
    }

    /// Fetches what lies at `url`, at the expense of `client`.
    pub(super) async fn fetch(
        &self,
        url: &str,
        client: IpAddr,
        now: Timestamp,
    ) -> Result<Vec<u8>, Refusal> {
        self.memory().may_fetch(url, client, now)?;
        let fetched = tokio::time::timeout(DEADLINE, self.get(url)).await;
        let trouble = match fetched {
            Ok(Ok(pem)) => return Ok(pem),
            Ok(Err(trouble)) => trouble,
            Err(_) => Trouble::Late,
        };
        let refusal = trouble.refusal();
        let lasts = match trouble {
            Trouble::Network(_) => TROUBLE_LASTS,
            Trouble::Answered(_) => REFUSAL_LASTS,
            // Counted from when it began.
            Trouble::Late => DEADLINE + TROUBLE_LASTS,
        };
        self.memory().remember(url, later(now, lasts), &refusal);
        Err(refusal)
    }

    /// What was fetched was no certificate of SNS's: the same will be said for a while.
    pub(super) fn remember_failure(&self, url: &str, now: Timestamp, refusal: &Refusal) {
        self.memory()
            .remember(url, later(now, REFUSAL_LASTS), refusal);
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, Trouble> {
        let network = |error: reqwest::Error| Trouble::Network(causes(&error.without_url()));
        let Ok(_seat) = self.at_once.acquire().await else {
            return Err(Trouble::Network("stopping".to_owned()));
        };
        let asked = self.http.get(url).await.map_err(network)?;
        let mut answer = asked.send().await.map_err(network)?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_server_error() => {
                return Err(Trouble::Network(format!("the server answered {status}")));
            }
            status => return Err(Trouble::Answered(format!("the server answered {status}"))),
        }
        let mut pem = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(network)? {
            pem.extend_from_slice(&chunk);
            if pem.len() > LARGEST {
                return Err(Trouble::Answered("it is larger than 64 KiB".to_owned()));
            }
        }
        Ok(pem)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Trouble {
    /// It may be over in a moment.
    Network(String),
    /// The server said no.
    Answered(String),
    /// Nobody answered in time.
    Late,
}

impl Trouble {
    fn refusal(&self) -> Refusal {
        let why = match self {
            Self::Network(why) | Self::Answered(why) => why,
            Self::Late => "no answer in time",
        };
        refusal(
            "certificate-fetch",
            format!("the certificate could not be fetched: {why}"),
            Answer::Later,
        )
    }
}

impl Memory {
    fn may_fetch(&mut self, url: &str, client: IpAddr, now: Timestamp) -> Result<(), Refusal> {
        if let Some(failure) = self.failures.get(url)
            && now < failure.until
        {
            return Err(refusal(
                failure.word,
                failure.sentence.clone(),
                failure.answer,
            ));
        }
        let spent = || {
            refusal(
                "certificate-budget",
                "this address has caused too many fetches of certificates for now",
                Answer::Later,
            )
        };
        if self.debts.len() >= MOST_REMEMBERED {
            self.debts.retain(|_, until| *until > now);
            // Those who owe least are forgiven: a crowd must not keep a newcomer out.
            if self.debts.len() >= MOST_REMEMBERED {
                let mut owed: Vec<Timestamp> = self.debts.values().copied().collect();
                owed.sort_unstable();
                let median = owed.get(owed.len() / 2).copied().unwrap_or(now);
                self.debts.retain(|_, until| *until > median);
            }
        }
        let paid_at = self.debts.entry(payer(client)).or_insert(now);
        let from = (*paid_at).max(now);
        if earlier(from, ONE_MORE_AFTER * (BURST - 1)) > now {
            return Err(spent());
        }
        *paid_at = later(from, ONE_MORE_AFTER);
        Ok(())
    }

    fn remember(&mut self, url: &str, until: Timestamp, refusal: &Refusal) {
        if self.failures.len() >= MOST_REMEMBERED {
            let now = earlier(until, REFUSAL_LASTS);
            self.failures.retain(|_, failure| failure.until > now);
            if self.failures.len() >= MOST_REMEMBERED {
                self.failures.clear();
            }
        }
        self.failures.insert(
            url.to_owned(),
            Failure {
                until,
                word: refusal.word,
                sentence: refusal.sentence.clone(),
                answer: refusal.answer,
            },
        );
    }
}

/// Who shares a budget: whoever has an IPv6 address has 2⁶⁴ of them.
fn payer(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn one_address_spends_its_own_budget_only() {
        let mut memory = Memory::default();
        let (greedy, other): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let neighbour: IpAddr = "2001:db8::ffff".parse().unwrap();
        let mut allowed = |client, second| memory.may_fetch("u", client, at(second)).is_ok();
        let burst: Vec<bool> = (0..6).map(|_| allowed(greedy, 0)).collect();
        assert_eq!(burst, [true, true, true, true, false, false]);
        assert!(!allowed(neighbour, 0), "the same network");
        assert!(allowed(other, 0));
        assert!(!allowed(greedy, 9));
        assert!(allowed(greedy, 10));
        assert!(!allowed(greedy, 10));
    }

    #[test]
    fn strangers_in_any_number_take_a_bounded_room() {
        let mut memory = Memory::default();
        let said = refusal("certificate-fetch", "404", Answer::Later);
        for number in 0..10_000_u32 {
            let client = IpAddr::V4(std::net::Ipv4Addr::from_bits(number));
            let _ = memory.may_fetch("u", client, at(0));
            memory.remember(&format!("https://x/{number}"), at(15), &said);
        }
        assert!(memory.debts.len() <= MOST_REMEMBERED);
        assert!(memory.failures.len() <= MOST_REMEMBERED);
        let late: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(
            memory.may_fetch("u", late, at(3600)).is_ok(),
            "debts are forgotten"
        );
    }
}
