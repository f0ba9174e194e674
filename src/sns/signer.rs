//! Plays SNS: signs envelopes with a key of its own. For the demo, the tests and the benchmark.
//!
//! It writes the string to sign from AWS's documentation by itself and shares no code with the
//! verifier, so that a mistake in one shows in the other.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};
use serde_json::{Map, Value};

/// A key, its certificate, and where that is said to lie.
pub struct Signer {
    key: PKey<Private>,
    certificate: X509,
    certificate_url: String,
}

/// What the certificate shall be.
#[derive(Clone, Debug)]
pub struct Certificate<'a> {
    /// The host it names.
    pub name: &'a str,
    /// From when it is valid, in seconds since the epoch.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// It says that it may sign certificates.
    pub is_authority: bool,
}

impl Default for Certificate<'_> {
    fn default() -> Self {
        Self {
            name: "sns.amazonaws.com",
            not_before: 0,
            not_after: 4_000_000_000,
            is_authority: false,
        }
    }
}

/// A message to be signed.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// `Notification`, `SubscriptionConfirmation` or `UnsubscribeConfirmation`.
    pub kind: String,
    /// `TopicArn`.
    pub topic: String,
    /// `MessageId`.
    pub message_id: String,
    /// `Subject`, of notifications.
    pub subject: Option<String>,
    /// `Message`.
    pub message: String,
    /// `Timestamp`, as SNS writes it.
    pub timestamp: String,
    /// `Token`, of confirmations.
    pub token: String,
    /// Signature version 2 in place of 1.
    pub is_version_2: bool,
}

impl Signer {
    /// A signer with a fresh RSA key, whose certificate is said to lie at `certificate_url`.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn new(certificate_url: &str, certificate: &Certificate<'_>) -> Result<Self, ErrorStack> {
        let key = PKey::from_rsa(Rsa::generate(2048)?)?;
        Self::with_key(key, certificate_url, certificate)
    }

    /// A signer with a key of any kind.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn with_key(
        key: PKey<Private>,
        certificate_url: &str,
        certificate: &Certificate<'_>,
    ) -> Result<Self, ErrorStack> {
        Ok(Self {
            certificate: certify(&key, certificate)?,
            key,
            certificate_url: certificate_url.to_owned(),
        })
    }

    /// The certificate, as it lies at its URL.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn pem(&self) -> Result<Vec<u8>, ErrorStack> {
        self.certificate.to_pem()
    }

    /// Signs a message as SNS would: the envelope's fields, to be written as JSON.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn envelope(&self, draft: &Draft) -> Result<Map<String, Value>, ErrorStack> {
        let confirms = draft.kind != "Notification";
        let region = draft.topic.split(':').nth(3).unwrap_or_default();
        let subscribe_url = format!(
            "https://sns.{region}.amazonaws.com/?Action=ConfirmSubscription&TopicArn={}&Token={}",
            draft.topic, draft.token
        );
        let mut signed: Vec<(&str, &str)> = vec![
            ("Message", &draft.message),
            ("MessageId", &draft.message_id),
        ];
        if confirms {
            signed.push(("SubscribeURL", &subscribe_url));
        } else if let Some(subject) = &draft.subject {
            signed.push(("Subject", subject));
        }
        signed.push(("Timestamp", &draft.timestamp));
        if confirms {
            signed.push(("Token", &draft.token));
        }
        signed.push(("TopicArn", &draft.topic));
        signed.push(("Type", &draft.kind));
        let lines: Vec<&str> = signed
            .iter()
            .flat_map(|(key, value)| [*key, *value])
            .collect();
        let text = lines.join("\n") + "\n";
        let signature = self.sign(&text, draft.is_version_2)?;
        let mut envelope: Map<String, Value> = signed
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let version = if draft.is_version_2 { "2" } else { "1" };
        envelope.insert("SignatureVersion".to_owned(), version.into());
        envelope.insert("Signature".to_owned(), signature.into());
        envelope.insert(
            "SigningCertURL".to_owned(),
            self.certificate_url.as_str().into(),
        );
        if !confirms {
            let unsubscribe_url =
                format!("https://sns.{region}.amazonaws.com/?Action=Unsubscribe&SubscriptionArn=x");
            envelope.insert("UnsubscribeURL".to_owned(), unsubscribe_url.into());
        }
        Ok(envelope)
    }

    /// Signs any text; the signature in base64.
    ///
    /// # Errors
    /// When OpenSSL refuses.
    pub fn sign(&self, text: &str, is_version_2: bool) -> Result<String, ErrorStack> {
        let digest = if is_version_2 {
            MessageDigest::sha256()
        } else {
            MessageDigest::sha1()
        };
        let mut signer = sign::Signer::new(digest, &self.key)?;
        Ok(BASE64_STANDARD.encode(signer.sign_oneshot_to_vec(text.as_bytes())?))
    }
}

fn certify(key: &PKey<Private>, wanted: &Certificate<'_>) -> Result<X509, ErrorStack> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_text("CN", wanted.name)?;
    let name = name.build();
    let mut serial = BigNum::new()?;
    serial.rand(64, MsbOption::MAYBE_ZERO, false)?;
    let mut certificate = X509::builder()?;
    certificate.set_version(2)?;
    certificate.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    certificate.set_pubkey(key)?;
    certificate.set_not_before(Asn1Time::from_unix(wanted.not_before)?.as_ref())?;
    certificate.set_not_after(Asn1Time::from_unix(wanted.not_after)?.as_ref())?;
    let mut constraints = BasicConstraints::new();
    if wanted.is_authority {
        constraints.critical().ca();
    }
    certificate.append_extension(constraints.build()?)?;
    let names = SubjectAlternativeName::new()
        .dns(wanted.name)
        .build(&certificate.x509v3_context(None, None))?;
    certificate.append_extension(names)?;
    certificate.sign(key, MessageDigest::sha256())?;
    Ok(certificate.build())
}
