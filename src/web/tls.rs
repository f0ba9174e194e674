//! TLS for the listener that SNS posts to: OpenSSL, TLS 1.2 and up, HTTP/1.1 only.
//!
//! `app` loads a [`Tls`] before it binds, so that a bad certificate stops the start and not the
//! first client; it asks [`Tls::changed`] every few seconds and calls [`Tls::reload`] then and when
//! a person asks. A pair that does not fit leaves the old one in place. The handshake, and its
//! deadline, is `serve`'s.
//!
//! Both files are read once and the pair is built from those very bytes, so what was compared is
//! what is served, even while another program is replacing them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::sha::Sha256;
use openssl::ssl::{
    AlpnError, Ssl, SslAcceptor, SslMethod, SslOptions, SslSessionCacheMode, SslVersion,
    select_next_proto,
};
use openssl::x509::X509;

use super::TlsSettings;

/// The only protocol that is offered, as ALPN spells a list of one.
const HTTP_1_1: &[u8] = b"\x08http/1.1";

/// The certificate that is served now, and where a newer one would lie.
#[derive(Debug)]
pub struct Tls {
    settings: TlsSettings,
    serving: ArcSwap<Pair>,
    /// Of the files' content when they were last looked at, good or bad.
    seen: Mutex<Fingerprint>,
}

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: does it exist, and may this user read it?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate's file is not PEM.
    #[error("{} holds a certificate that cannot be read: write the chain as PEM, leaf first", path.display())]
    ParseCertificate {
        /// The file.
        path: PathBuf,
        /// What OpenSSL said.
        source: ErrorStack,
    },
    /// There is no certificate in its file.
    #[error("{} holds no certificate: write the chain as PEM, leaf first", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The key's file is not PEM, or is encrypted.
    #[error("{} holds no key that can be read: write it as PEM, without a passphrase", path.display())]
    ParseKey {
        /// The file.
        path: PathBuf,
        /// What OpenSSL said.
        source: ErrorStack,
    },
    /// Key and leaf are not a pair.
    #[error("the key in {} is not that of the first certificate in {}: put the leaf first, and give its own key", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// OpenSSL does not take what is well-formed: a key that is too short, say.
    #[error("OpenSSL refuses the certificate in {} or its key", cert.display())]
    Configure {
        /// The certificate's file.
        cert: PathBuf,
        /// What OpenSSL said.
        source: ErrorStack,
    },
}

struct Pair {
    acceptor: SslAcceptor,
    fingerprint: Fingerprint,
    expires: Timestamp,
}

type Fingerprint = [u8; 32];

impl Tls {
    /// Loads certificate and key.
    ///
    /// # Errors
    /// When they cannot be read, or do not make a pair that OpenSSL takes.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let files = Files::read(&settings);
        let seen = files.fingerprint();
        let pair = files.into_pair(&settings)?;
        Ok(Self {
            settings,
            serving: ArcSwap::from_pointee(pair),
            seen: Mutex::new(seen),
        })
    }

    /// Whether the files differ from what was last looked at; so that a bad pair is reported once
    /// and not at every look.
    pub fn changed(&self) -> bool {
        let now = Files::read(&self.settings).fingerprint();
        now != *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads both files again, and serves the new pair from the next connection on. Says whether
    /// anything is new. Connections that stand are left alone.
    ///
    /// # Errors
    /// When the files do not make a pair; the old one is served on.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.settings);
        let fingerprint = files.fingerprint();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint;
        if fingerprint == self.serving.load().fingerprint {
            return Ok(false);
        }
        let pair = files.into_pair(&self.settings)?;
        self.serving.store(pair.into());
        Ok(true)
    }

    /// When the served leaf ends.
    pub fn expires(&self) -> Timestamp {
        self.serving.load().expires
    }

    /// The server's side of one new connection.
    ///
    /// # Errors
    /// When OpenSSL is out of memory.
    pub(super) fn session(&self) -> Result<Ssl, ErrorStack> {
        Ssl::new(self.serving.load().acceptor.context())
    }
}

/// Both files as they were read, readable or not.
struct Files {
    cert: std::io::Result<Vec<u8>>,
    key: std::io::Result<Vec<u8>>,
}

impl Files {
    fn read(settings: &TlsSettings) -> Self {
        Self {
            cert: std::fs::read(&settings.cert),
            key: std::fs::read(&settings.key),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for file in [&self.cert, &self.key] {
            match file {
                Ok(bytes) => {
                    hash.update(b"file");
                    // The length keeps a byte that moves from one file to the other from hiding.
                    hash.update(&bytes.len().to_be_bytes());
                    hash.update(bytes);
                }
                Err(error) => hash.update(error.kind().to_string().as_bytes()),
            }
        }
        hash.finish()
    }

    fn into_pair(self, settings: &TlsSettings) -> Result<Pair, TlsError> {
        let fingerprint = self.fingerprint();
        let TlsSettings { cert, key } = settings;
        let chain = parse_chain(cert, &readable(cert, self.cert)?)?;
        let pkey = parse_key(key, &readable(key, self.key)?)?;
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(TlsError::NoCertificate { path: cert.clone() });
        };
        let refused = |source| TlsError::Configure {
            cert: cert.clone(),
            source,
        };
        if !leaf.public_key().map_err(refused)?.public_eq(&pkey) {
            return Err(TlsError::Mismatch {
                cert: cert.clone(),
                key: key.clone(),
            });
        }
        Ok(Pair {
            acceptor: acceptor(leaf, intermediates, &pkey).map_err(refused)?,
            fingerprint,
            expires: timestamp(leaf.not_after()).map_err(refused)?,
        })
    }
}

fn readable(path: &Path, bytes: std::io::Result<Vec<u8>>) -> Result<Vec<u8>, TlsError> {
    bytes.map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse_chain(path: &Path, pem: &[u8]) -> Result<Vec<X509>, TlsError> {
    X509::stack_from_pem(pem).map_err(|source| TlsError::ParseCertificate {
        path: path.to_owned(),
        source,
    })
}

fn parse_key(path: &Path, pem: &[u8]) -> Result<PKey<Private>, TlsError> {
    // Without a callback of ours OpenSSL would ask the terminal for a passphrase, and wait.
    PKey::private_key_from_pem_callback(pem, |_| Ok(0)).map_err(|source| TlsError::ParseKey {
        path: path.to_owned(),
        source,
    })
}

fn acceptor(
    leaf: &X509,
    intermediates: &[X509],
    key: &PKey<Private>,
) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // The server's preference makes X25519, the cheapest, win wherever a client knows it.
    builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_RENEGOTIATION);
    builder.set_groups_list("X25519:P-256:P-384")?;
    // Tickets let clients resume without a word kept here; a cache would be kept for strangers.
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_alpn_select_callback(|_, offered| {
        select_next_proto(HTTP_1_1, offered).ok_or(AlpnError::ALERT_FATAL)
    });
    builder.set_certificate(leaf)?;
    for certificate in intermediates {
        builder.add_extra_chain_cert(certificate.clone())?;
    }
    builder.set_private_key(key)?;
    builder.check_private_key()?;
    Ok(builder.build())
}

fn timestamp(time: &Asn1TimeRef) -> Result<Timestamp, ErrorStack> {
    let since_epoch = Asn1Time::from_unix(0)?.diff(time)?;
    let seconds = i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs);
    Ok(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
