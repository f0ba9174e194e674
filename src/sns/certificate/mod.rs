//! The certificates that SNS signs with: where they may lie, what they must be, how they are got.
//!
//! The verifier asks `Certificates` for the key that a URL stands for. Keys are parsed once and
//! kept by their whole URL; parsing one anew would cost ten verifications.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;

use super::{Answer, Http, Refusal, TopicArn, TopicSettings};
use crate::clock::since;

mod fetch;
mod pem;

use fetch::Fetcher;
pub(super) use pem::Checked;

/// A certificate that was fetched and checked, as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownCertificate {
    /// Where it was fetched.
    pub url: String,
    /// The certificate, PEM.
    pub pem: Vec<u8>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// How long a certificate of a compatible service is taken to be the one that lies there now.
const SURELY_CURRENT: Duration = Duration::from_secs(10);

/// How many keys are kept. There is about one new certificate a year and region.
const MOST_KEPT: usize = 1024;

/// Gives the key that a certificate's URL stands for.
pub(super) struct Certificates {
    kept: RwLock<HashMap<String, Kept>>,
    source: Source,
}

#[derive(Clone)]
struct Kept {
    checked: Arc<Checked>,
    fetched_at: Timestamp,
}

/// Where a certificate comes from that is not kept.
enum Source {
    /// Its URL.
    Fetch(Box<Fetcher>),
    /// Whoever asks: this one stands for every URL.
    Given(Mutex<Option<Vec<u8>>>),
}

impl Certificates {
    /// Fetches with `http`; trusts what is `known` as if it had fetched it itself.
    pub(super) fn fetching(http: Http, known: Vec<KnownCertificate>) -> Self {
        let mut kept = HashMap::new();
        for certificate in known {
            match Checked::parse(&certificate.pem) {
                Ok(checked) => {
                    let checked = Kept {
                        checked: Arc::new(checked),
                        fetched_at: certificate.fetched_at,
                    };
                    kept.insert(certificate.url, checked);
                }
                Err(why) => tracing::warn!(
                    url = certificate.url,
                    "a certificate that was kept is of no use: {why}"
                ),
            }
        }
        Self {
            kept: RwLock::new(kept),
            source: Source::Fetch(Box::new(Fetcher::new(http))),
        }
    }

    /// Fetches nothing; `pem`, if any, stands in for every fetch.
    pub(super) fn given(pem: Option<Vec<u8>>) -> Self {
        Self {
            kept: RwLock::default(),
            source: Source::Given(Mutex::new(pem)),
        }
    }

    /// The key for `url`, which has been found right; and the certificate, if it had to be fetched.
    /// `anew` fetches it although it is kept.
    pub(super) async fn get(
        &self,
        url: &str,
        topic: &TopicSettings,
        client: IpAddr,
        now: Timestamp,
        anew: bool,
    ) -> Result<(Arc<Checked>, Option<KnownCertificate>), Refusal> {
        let (checked, fetched) = match self.kept(url).filter(|_| !anew) {
            Some(kept) => (kept.checked, None),
            None => self.obtain(url, client, now, anew).await?,
        };
        // At every use: a certificate ages while it is kept, and one URL may serve several topics.
        checked.judge(topic, now)?;
        Ok((checked, fetched))
    }

    /// Whether a key is kept for `url` in whose place another may lie by now.
    pub(super) fn may_be_outdated(&self, url: &str, now: Timestamp) -> bool {
        self.kept(url)
            .is_some_and(|kept| since(kept.fetched_at, now) >= SURELY_CURRENT)
    }

    async fn obtain(
        &self,
        url: &str,
        client: IpAddr,
        now: Timestamp,
        anew: bool,
    ) -> Result<(Arc<Checked>, Option<KnownCertificate>), Refusal> {
        let fetcher = match &self.source {
            Source::Fetch(fetcher) => fetcher,
            Source::Given(pem) => {
                let pem = pem.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let pem = pem.ok_or_else(|| {
                    refusal(
                        "certificate-missing",
                        "nothing was said about the certificate: give it as a file",
                        Answer::Later,
                    )
                })?;
                return Ok((Self::parse(&pem)?, None));
            }
        };
        let _place = fetcher.place()?;
        let flight = fetcher.flight(url);
        let _alone = flight.lock().await;
        // Whoever flew before may have brought it.
        if let Some(kept) = self.kept(url)
            && (!anew || kept.fetched_at >= now)
        {
            return Ok((kept.checked, None));
        }
        let pem = fetcher.fetch(url, client, now).await?;
        let checked = Self::parse(&pem).inspect_err(|refusal| {
            fetcher.remember_failure(url, now, refusal);
        })?;
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        let newest = Kept {
            checked: Arc::clone(&checked),
            fetched_at: now,
        };
        kept.insert(url.to_owned(), newest);
        let fetched = KnownCertificate {
            url: url.to_owned(),
            pem,
            fetched_at: now,
        };
        Ok((checked, Some(fetched)))
    }

    fn parse(pem: &[u8]) -> Result<Arc<Checked>, Refusal> {
        Checked::parse(pem).map(Arc::new).map_err(|why| {
            let sentence = format!("the certificate is not one of SNS's: {why}");
            refusal(why.word(), sentence, Answer::Forbidden)
        })
    }

    fn kept(&self, url: &str) -> Option<Kept> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(url).cloned()
    }
}

fn refusal(word: &'static str, sentence: impl Into<String>, answer: Answer) -> Refusal {
    Refusal {
        word,
        sentence: sentence.into(),
        answer,
        topic: None,
    }
}

/// Whether a certificate for `topic` may lie at `url`. No URL is parsed, so that no parser can be
/// tricked: AWS's URLs are all alike but for 32 digits.
pub(super) fn may_lie_at(url: &str, topic: &TopicSettings) -> bool {
    match &topic.endpoint {
        Some(base) => lies_under(url, base),
        None => is_awss(url, &topic.arn),
    }
}

fn is_awss(url: &str, topic: &TopicArn) -> bool {
    let Some(host) = topic.host("sns") else {
        return false;
    };
    url.strip_prefix("https://")
        .and_then(|rest| rest.strip_prefix(host.as_str()))
        .and_then(|rest| rest.strip_prefix("/SimpleNotificationService-"))
        .and_then(|rest| rest.strip_suffix(".pem"))
        .is_some_and(|digits| {
            digits.len() == 32
                && digits
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
}

/// Of a compatible service the base URL alone is known: the path may be any plain one below it.
fn lies_under(url: &str, base: &str) -> bool {
    url.strip_prefix(base.trim_end_matches('/'))
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|path| {
            !path.is_empty()
                && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && path.bytes().all(|byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/')
                })
        })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn topic(arn: &str, endpoint: Option<&str>) -> TopicSettings {
        TopicSettings {
            arn: arn.parse().unwrap(),
            confirm: true,
            endpoint: endpoint.map(str::to_owned),
            allow_version_1: true,
        }
    }

    const FILE: &str = "SimpleNotificationService-0123456789abcdef0123456789abcdef.pem";

    #[test]
    fn every_partition_has_its_host() {
        for (arn, host) in [
            (
                "arn:aws:sns:us-east-1:123456789012:t",
                "sns.us-east-1.amazonaws.com",
            ),
            (
                "arn:aws:sns:ap-southeast-7:123456789012:t",
                "sns.ap-southeast-7.amazonaws.com",
            ),
            (
                "arn:aws-us-gov:sns:us-gov-east-1:123456789012:t",
                "sns.us-gov-east-1.amazonaws.com",
            ),
            (
                "arn:aws-cn:sns:cn-northwest-1:123456789012:t",
                "sns.cn-northwest-1.amazonaws.com.cn",
            ),
            (
                "arn:aws-eusc:sns:eusc-de-east-1:123456789012:t",
                "sns.eusc-de-east-1.amazonaws.eu",
            ),
            (
                "arn:aws-iso:sns:us-iso-west-1:123456789012:t",
                "sns.us-iso-west-1.c2s.ic.gov",
            ),
            (
                "arn:aws-iso-b:sns:us-isob-east-1:123456789012:t",
                "sns.us-isob-east-1.sc2s.sgov.gov",
            ),
            (
                "arn:aws-iso-e:sns:eu-isoe-west-1:123456789012:t",
                "sns.eu-isoe-west-1.cloud.adc-e.uk",
            ),
            (
                "arn:aws-iso-f:sns:us-isof-south-1:123456789012:t",
                "sns.us-isof-south-1.csp.hci.ic.gov",
            ),
        ] {
            let topic = topic(arn, None);
            assert!(
                may_lie_at(&format!("https://{host}/{FILE}"), &topic),
                "{host}"
            );
            let elsewhere = format!("https://sns.us-west-2.amazonaws.com/{FILE}");
            assert!(!may_lie_at(&elsewhere, &topic), "{arn}");
        }
        let unknown = topic("arn:aws-new:sns:xx-east-1:123456789012:t", None);
        assert!(!may_lie_at(
            &format!("https://sns.xx-east-1.amazonaws.com/{FILE}"),
            &unknown
        ));
    }

    /// Every way in which a public verifier was once led elsewhere, and those that come to mind; for
    /// a topic in us-east-1.
    pub(in crate::sns) fn hostile_urls() -> Vec<String> {
        let good = format!("https://sns.us-east-1.amazonaws.com/{FILE}");
        let hosts = [
            "sns.s3-us-east-1.amazonaws.com",
            "sns.s3.us-east-1.amazonaws.com",
            "sns.s3.amazonaws.com",
            "s3.us-east-1.amazonaws.com/sns.us-east-1.amazonaws.com",
            "sns.us-east-1.amazonaws.com.evil.tld",
            "sns.us-east-1.amazonaws.com.cn",
            "sns.evil.com",
            "evil.sns.us-east-1.amazonaws.com",
            "amazonaws.com",
            "sns.amazonaws.com",
            "sns.us-east-1.amazonaws.com.",
            "sns.us-east-1.amazonaws.com:443",
            "sns.us-east-1.amazonaws.com:8443",
            "user@sns.us-east-1.amazonaws.com",
            "sns.us-east-1.amazonaws.com@evil.com",
            "sns.us-east-1.amazonaws.com%40evil.com",
            "sns.us-east-1.amazonaws.com#@evil.com",
            "sns.us-east-1.amazonaws.com?@evil.com",
            "sns.us-east-1.amazonaws.com\\@evil.com",
            "sns.us-east-1\u{3002}amazonaws.com",
            "sns.us-east-1.am\u{430}zonaws.com",
            "SNS.us-east-1.amazonaws.com",
            "sns.us-east-2.amazonaws.com",
            "sns-us-east-1.amazonaws.com",
            "127.0.0.1",
            "[::1]",
            "169.254.169.254",
            "localhost",
            "",
        ];
        let paths = [
            FILE.to_uppercase(),
            FILE.replace("abcdef", "ABCDEF"),
            FILE.replace("0123456789abcdef0123456789abcdef", "0123456789abcdef"),
            FILE.replace(
                "0123456789abcdef0123456789abcdef",
                "0123456789abcdef0123456789abcdeg",
            ),
            FILE.replace(".pem", ".pem.txt"),
            FILE.replace(".pem", ""),
            format!("{FILE}?x=1"),
            format!("{FILE}#x"),
            format!("{FILE}\n"),
            format!("{FILE}\0"),
            format!("{FILE} "),
            format!("/{FILE}"),
            format!("a/../{FILE}"),
            format!("%2e%2e/{FILE}"),
            format!("a/{FILE}"),
            format!("\\{FILE}"),
            "SimpleNotificationService.pem".to_owned(),
            "other.pem".to_owned(),
            String::new(),
        ];
        let of_hosts = hosts.iter().map(|host| format!("https://{host}/{FILE}"));
        let of_paths = paths
            .iter()
            .map(|path| format!("https://sns.us-east-1.amazonaws.com/{path}"));
        let others = [
            good.replace("https", "http"),
            good.replace("https", "HTTPS"),
            good.replace("https://", "https:/"),
            good.replace("https://", "//"),
            good.replace("https://", "file://"),
            format!(" {good}"),
            format!("\t{good}"),
            format!("https://evil.com/?{good}"),
            format!("https://evil.com/{good}"),
        ];
        of_hosts.chain(of_paths).chain(others).collect()
    }

    #[test]
    fn no_other_url_will_do() {
        let topic = topic("arn:aws:sns:us-east-1:123456789012:t", None);
        assert!(may_lie_at(
            &format!("https://sns.us-east-1.amazonaws.com/{FILE}"),
            &topic
        ));
        for url in hostile_urls() {
            assert!(!may_lie_at(&url, &topic), "{url:?}");
        }
    }

    #[test]
    fn of_a_compatible_service_only_plain_paths_under_its_base_will_do() {
        let arn = "arn:aws:sns:us-east-1:000000000000:t";
        let topic = topic(arn, Some("http://localhost:4566/"));
        for (url, right) in [
            (
                "http://localhost:4566/_aws/sns/SimpleNotificationService-6c.pem",
                true,
            ),
            ("http://localhost:4566/a.pem", true),
            ("http://localhost:4566/", false),
            ("http://localhost:4566", false),
            ("http://localhost:45660/a.pem", false),
            ("http://localhost:4566@evil.com/a.pem", false),
            ("http://localhost:4566.evil.com/a.pem", false),
            ("http://localhost:4566/a/../b.pem", false),
            ("http://localhost:4566//evil.com/a.pem", false),
            ("http://localhost:4566/a.pem?x", false),
            ("http://localhost:4566/%2e%2e/a.pem", false),
            ("http://localhost:4566/\\evil.com/a.pem", false),
            (
                "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem",
                false,
            ),
        ] {
            assert_eq!(may_lie_at(url, &topic), right, "{url}");
        }
    }
}
