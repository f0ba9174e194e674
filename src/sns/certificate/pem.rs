//! What a certificate must be to have signed for SNS.

use std::sync::Arc;

use jiff::Timestamp;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::sha::sha256;
use openssl::x509::X509;

use super::{Answer, Refusal, TopicArn, TopicSettings, refusal};
use crate::sns::Certificate;

/// The weakest RSA key that is believed, in bits. SNS once signed with 1024.
const LEAST_BITS: u32 = 2048;

/// The largest certificate that is looked at.
pub(super) const LARGEST: usize = 64 * 1024;

/// A certificate of the right form, its key at hand.
pub(in crate::sns) struct Checked {
    pub(in crate::sns) key: PKey<Public>,
    /// The certificate itself, for the proofs of all messages that it verifies.
    pub(in crate::sns) proof: Arc<Certificate>,
    names: Vec<String>,
    is_authority: bool,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Why a file is no certificate that SNS could have signed with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::sns) enum Unfit {
    #[error("it is not exactly one certificate in PEM")]
    Form,
    #[error("its key is not RSA")]
    KeyKind,
    #[error("its key has {0} bits, and {LEAST_BITS} are the least")]
    WeakKey(u32),
}

impl Unfit {
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Form => "certificate-form",
            Self::KeyKind => "certificate-key",
            Self::WeakKey(_) => "weak-key",
        }
    }
}

impl Checked {
    pub(super) fn parse(pem: &[u8]) -> Result<Self, Unfit> {
        let certificate = only_certificate(pem).ok_or(Unfit::Form)?;
        let text = certificate.to_text().map_err(|_| Unfit::Form)?;
        let key = certificate.public_key().map_err(|_| Unfit::Form)?;
        if key.id() != Id::RSA {
            return Err(Unfit::KeyKind);
        }
        if key.bits() < LEAST_BITS {
            return Err(Unfit::WeakKey(key.bits()));
        }
        let proof = proof(&certificate).map_err(|_| Unfit::Form)?;
        Ok(Self {
            key,
            proof: Arc::new(proof),
            names: names(&certificate),
            // OpenSSL's text is the one place where its Rust face shows this extension. Other fields
            // could contain the words as well: such a certificate is refused, and no harm done.
            is_authority: contains(&text, b"CA:TRUE"),
            not_before: moment(certificate.not_before()).ok_or(Unfit::Form)?,
            not_after: moment(certificate.not_after()).ok_or(Unfit::Form)?,
        })
    }

    /// Whether it may sign for `topic` at `now`.
    pub(super) fn judge(&self, topic: &TopicSettings, now: Timestamp) -> Result<(), Refusal> {
        if now < self.not_before || now > self.not_after {
            // As likely our clock is wrong: SNS shall try again.
            return Err(refusal(
                "certificate-time",
                format!(
                    "the certificate is valid from {} to {}, and it is {now} by our clock",
                    self.not_before, self.not_after
                ),
                Answer::Later,
            ));
        }
        if topic.endpoint.is_some() {
            // A compatible service is known by its URL alone; its certificate may say anything.
            return Ok(());
        }
        if self.is_authority {
            return Err(refusal(
                "certificate-authority",
                "the certificate belongs to an authority, which signs certificates and not messages",
                Answer::Forbidden,
            ));
        }
        if !self.names.iter().any(|name| is_snss(name, &topic.arn)) {
            return Err(refusal(
                "certificate-name",
                format!(
                    "the certificate is for {}, not for SNS in {}",
                    self.names.join(", "),
                    topic.arn.region()
                ),
                Answer::Forbidden,
            ));
        }
        Ok(())
    }
}

/// Whether SNS signs for `topic` under this name. Source: the certificates of all regions.
fn is_snss(name: &str, topic: &TopicArn) -> bool {
    let regional = ["sns", "sns-signing"]
        .iter()
        .any(|service| topic.host(service).is_some_and(|host| host == name));
    regional
        || match topic.partition() {
            "aws" => name == "sns.amazonaws.com",
            "aws-cn" => name == format!("sns-{}.amazonaws.com.cn", topic.region()),
            "aws-us-gov" => name == "sns-us-gov-west-1.amazonaws.com",
            _ => false,
        }
}

/// The certificate, when the file has one block and nothing but blanks around it.
fn only_certificate(pem: &[u8]) -> Option<X509> {
    let text = std::str::from_utf8(pem).ok()?.trim_ascii();
    let inside = text
        .strip_prefix("-----BEGIN CERTIFICATE-----")?
        .strip_suffix("-----END CERTIFICATE-----")?;
    if pem.len() > LARGEST || inside.contains('-') {
        return None;
    }
    X509::from_pem(text.as_bytes()).ok()
}

fn proof(certificate: &X509) -> Result<Certificate, ErrorStack> {
    Ok(Certificate {
        sha256: sha256(&certificate.to_der()?),
        pem: certificate.to_pem()?,
    })
}

fn names(certificate: &X509) -> Vec<String> {
    let subject = certificate
        .subject_name()
        .entries_by_nid(Nid::COMMONNAME)
        .filter_map(|entry| entry.data().to_string().ok());
    let alternatives = certificate.subject_alt_names();
    let alternatives = alternatives
        .iter()
        .flatten()
        .filter_map(|name| name.dnsname().map(str::to_owned));
    subject.chain(alternatives).collect()
}

fn moment(time: &Asn1TimeRef) -> Option<Timestamp> {
    let since_epoch = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    let seconds = i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs);
    Timestamp::from_second(seconds).ok()
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
