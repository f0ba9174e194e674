//! Numbers of commands, certificates and whatever else has a name that nothing else has.
//!
//! A number is a hash of the name, not the next of a sequence: every replica finds it by itself, and
//! no memory of it can outlive the transaction that taught it. With 63 bits two of a hundred million
//! names collide with a probability of one in 1,800.

use openssl::sha::Sha256;

/// Numbers a name that consists of `parts`. The parts are hashed with their lengths, so that
/// `["ab", "c"]` and `["a", "bc"]` differ. Never negative.
#[must_use]
pub(in crate::store) fn number_of(parts: &[&[u8]]) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let first = hash.finish().into_iter().take(8);
    first.fold(0, |number, byte| (number << 8) | i64::from(byte)) & i64::MAX
}

/// Numbers a topic, route or sink.
pub(in crate::store) fn name_no(name: &str) -> i64 {
    number_of(&[b"name", name.as_bytes()])
}

/// Numbers a command. Whoever vouches for its topic, and its account and region, are parts of its
/// name: one topic says nothing of another's commands.
pub(in crate::store) fn command_no(trust: &str, account: &str, region: &str, id: &str) -> i64 {
    number_of(&["command", trust, account, region, id].map(str::as_bytes))
}

/// Numbers a certificate by the SHA-256 of its DER.
pub(in crate::store) fn certificate_no(sha256: &[u8; 32]) -> i64 {
    number_of(&[b"certificate", sha256])
}

/// Numbers a version of the settings by its SHA-256.
pub(in crate::store) fn generation_no(hash: &[u8; 32]) -> i64 {
    number_of(&[b"generation", hash])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_the_same_for_ever() {
        // Computed with Python's hashlib and struct.
        for (parts, expected) in [
            (&[][..], 7_183_457_195_969_485_844),
            (&["".as_bytes()][..], 3_410_756_493_081_906_042),
            (
                &["aws", "123456789012", "eu-central-1", "c-1"].map(str::as_bytes)[..],
                1_713_020_797_573_859_389,
            ),
        ] {
            assert_eq!(number_of(parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn no_boundary_between_parts_is_lost() {
        let names: [&[&[u8]]; 9] = [
            &[],
            &[b""],
            &[b"", b""],
            &[b"abc"],
            &[b"ab", b"c"],
            &[b"a", b"bc"],
            &[b"a", b"b", b"c"],
            &[b"abc", b""],
            // A part that looks like another's length.
            &[b"\0\0\0\0\0\0\0\x03abc"],
        ];
        let numbers: HashSet<i64> = names.iter().map(|parts| number_of(parts)).collect();
        assert_eq!(numbers.len(), names.len());
    }

    #[test]
    fn numbers_are_never_negative_and_use_all_their_bits() {
        let (mut any, mut all) = (0, i64::MAX);
        for name in 0..1000_u32 {
            let number = number_of(&[&name.to_be_bytes()]);
            assert!(number >= 0, "{name}");
            any |= number;
            all &= number;
        }
        assert_eq!((any, all), (i64::MAX, 0));
    }
}
