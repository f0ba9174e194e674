//! Whether the OpenSSL of this machine verifies what SNS signs: a policy of the system may forbid
//! SHA-1, and every notification of version 1 would then look forged.
//!
//! The key was made for this file, and nobody has its other half any more.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;

use super::envelope::Version;
use super::verify::is_signed;

const MESSAGE: &str = "Runbell verifies what SNS signs.";

const KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAu4t60FSQUSYaxw4kmwEd
Kkn+OEEHXvmmHkffGQIOVn9zNV1cmwsZ1VQcPPLD7Llx/x8Nte5cUDG5FgPOVSEx
d5WwAAF0RuMB4b9Nat3Gq1ZIeXFqAQMCjOw5zX2BQ9eLLNS/HA8eNBEUTKNxRp0n
QihBOpD8hSur0kEJwzlNCiVgWje/1uBMD6hKrOquizwfTK4rp1PoEi6M52HmF6Lw
C2WnYRyzyPdEZTwWAqC0Hc2C1t0lpnQlmMl4aMWBeTAHZreuxgRZGHMo/mmuSsT3
HFYcn2XjGpeiMyBH5KshpVf3MhrKwAjzOFAOUcqPSeGMOepO/+4SJ+TgFH6HDErn
LwIDAQAB
-----END PUBLIC KEY-----";

const SIGNATURES: [(Version, &str); 2] = [
    (
        Version::One,
        "CeBC26rNvFkNAmfc6ydTmOLP9YQanqNtZ+dcSzj78VtxNYYX3X80MxjysiHtm4gzU1HbUT9bWbYdo+nq6vyF78lf1DoTDXZzBw8UIvbypScHBqX+ZkdgqCBD3cRMgd4OoC49+AaqbRQkhkOThptJxHsxwLpJPpvFQV18qXzv53ggov6p0yglguMXRsEJ8NIVpEHGKc6rXK/nGhXvXesGfh7+oV0lwAE7KgVNFSINM1aBhavcXdnjOpSFzDFb5EaCZMfWH9I6dGf+AGENittRtlw2qU+4jWgr03Ay9UhSrIs8VPhB5PkZCsokYqFp5J0n9hgwYhiaG0/jQVkXEG3cHg==",
    ),
    (
        Version::Two,
        "FkQ4mxrAEiN+NJXicDV/5Nm5W1I7hAqGe+qJ7Rr2OvGoJojV42UMqBhlAeu9Ev9mJQ2k/wt4WAEo0vVYDmHoQqRyym0pc97KNKzGQf0FNr4RoQGDUk8wTHrC1ei4l6ZG8NjpHC9wU0OT/LWdEwskYFAC5HsKXKN87gSwr+rZjI8rZnx618ONAXOGFTRj07U8vYkl/iwXPWnJ2HDSN7Hck5jLJ02BtXEOK4w29nPkJrxccAeEM8AmmKhiamdnbTdt3rDm3a7K7mIF4Hr1cmpe02i4BytozZaFOjSCf+8+msf5u6op9baqD97Jz53ycf3xU2CtFNPd6phHqRtBNLcMWw==",
    ),
];

/// Why signatures cannot be verified here.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// OpenSSL failed.
    #[error("OpenSSL cannot verify RSA with {0}")]
    Verify(&'static str, #[source] ErrorStack),
    /// A good signature was not recognised.
    #[error("OpenSSL takes a good RSA signature with {0} for a bad one")]
    Wrong(&'static str),
}

/// Verifies one signature of each version that is allowed.
///
/// # Errors
/// When OpenSSL refuses, or is wrong.
pub fn self_test(allow_version_1: bool) -> Result<(), SelfTestError> {
    for (version, signature) in SIGNATURES {
        if matches!(version, Version::One) && !allow_version_1 {
            continue;
        }
        let name = match version {
            Version::One => "SHA-1",
            Version::Two => "SHA-256",
        };
        let failed = |error| SelfTestError::Verify(name, error);
        let key = PKey::public_key_from_pem(KEY.as_bytes()).map_err(failed)?;
        let signature = BASE64_STANDARD
            .decode(signature)
            .map_err(|_| SelfTestError::Wrong(name))?;
        if !is_signed(&key, version, &signature, MESSAGE.as_bytes()).map_err(failed)? {
            return Err(SelfTestError::Wrong(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_verifies_both_versions() {
        self_test(true).unwrap();
    }
}
