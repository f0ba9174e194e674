//! The frontend/backend protocol of PostgreSQL, version 3, as far as it takes to find the answer to
//! a COMMIT among the bytes that a server sends.
//!
//! A message of the server is a byte for its type, its length as four bytes (without the type), and
//! its body. The first messages of a client have no type, and a request for encryption is answered
//! by one bare byte; both are known here so that the split stays in step. After a TLS handshake
//! nothing can be read any more, and all passes as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Codes of the requests that are answered by a bare byte: TLS, and GSSAPI encryption.
const BARE: [u32; 2] = [80_877_103, 80_877_104];
/// The longest introduction that a server reads.
const INTRODUCTION: usize = 10_000;
/// The type of a message that says that a command is complete.
const COMMAND_COMPLETE: u8 = b'C';

/// Follows a client until it has introduced itself.
pub struct Requests {
    begun: Vec<u8>,
    is_introduced: bool,
    bare_bytes: Arc<AtomicUsize>,
}

impl Requests {
    /// Counts into `bare_bytes` how many bare bytes the server owes.
    pub fn new(bare_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            begun: Vec::new(),
            is_introduced: false,
            bare_bytes,
        }
    }

    /// Looks at what a client sends, before it is passed on.
    pub fn look(&mut self, bytes: &[u8]) {
        if self.is_introduced {
            return;
        }
        self.begun.extend_from_slice(bytes);
        // What is longer is no introduction but a TLS handshake, which is not read.
        self.is_introduced = number(&self.begun, 0).is_some_and(|length| length > INTRODUCTION);
        while let Some(length) = number(&self.begun, 0)
            && let Some(code) = number(&self.begun, 4)
            && self.begun.len() >= length
        {
            if !BARE.iter().any(|bare| usize::try_from(*bare) == Ok(code)) {
                self.is_introduced = true;
                self.begun = Vec::new();
                return;
            }
            self.bare_bytes.fetch_add(1, Ordering::SeqCst);
            self.begun.drain(..length.max(8));
        }
    }
}

/// Splits what a server sends.
pub struct Answers {
    begun: Vec<u8>,
    is_opaque: bool,
    bare_bytes: Arc<AtomicUsize>,
}

impl Answers {
    /// Shares with [`Requests`] how many bare bytes are owed.
    pub fn new(bare_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            begun: Vec::new(),
            is_opaque: false,
            bare_bytes,
        }
    }

    /// Gives what is complete: runs of messages, and by itself, with `true`, each answer to a
    /// COMMIT.
    pub fn split(&mut self, bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        self.begun.extend_from_slice(bytes);
        let mut pieces: Vec<(Vec<u8>, bool)> = Vec::new();
        while let Some(length) = self.next_length() {
            let message: Vec<u8> = self.begun.drain(..length).collect();
            let is_commit = !self.is_opaque
                && message.first() == Some(&COMMAND_COMPLETE)
                && message.get(5..) == Some(b"COMMIT\0");
            match pieces.last_mut() {
                Some((run, false)) if !is_commit => run.extend(message),
                _ => pieces.push((message, is_commit)),
            }
        }
        pieces
    }

    /// How long the next message is, if all of it is there.
    fn next_length(&mut self) -> Option<usize> {
        let first = *self.begun.first()?;
        if self.is_opaque {
            return Some(self.begun.len());
        }
        if self.bare_bytes.load(Ordering::SeqCst) > 0 {
            self.bare_bytes.fetch_sub(1, Ordering::SeqCst);
            // A refusal (N) goes on in the clear.
            self.is_opaque = first != b'N';
            return Some(1);
        }
        let length = 1 + number(&self.begun, 1)?;
        (self.begun.len() >= length).then_some(length)
    }
}

/// The four bytes at a place as a number, most significant first.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(four)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(4 + body.len()).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    /// What a server says in a transaction, and what is around it.
    fn answers() -> Vec<u8> {
        [
            message(b'C', b"BEGIN\0"),
            message(b'D', b"C\0\0\0\x0bCOMMIT\0"),
            message(b'C', b"INSERT 0 1\0"),
            message(b'Z', b"T"),
            message(b'C', b"COMMIT\0"),
            message(b'Z', b"I"),
            message(b'C', b"ROLLBACK\0"),
        ]
        .concat()
    }

    fn request(code: u32) -> Vec<u8> {
        [8_u32.to_be_bytes(), code.to_be_bytes()].concat()
    }

    #[test]
    fn commit_is_found_wherever_the_bytes_are_split() {
        let all = answers();
        for at in 0..all.len() {
            let mut split = Answers::new(Arc::default());
            let mut pieces = split.split(&all[..at]);
            pieces.extend(split.split(&all[at..]));

            let commits: Vec<_> = pieces.iter().filter(|piece| piece.1).collect();
            assert_eq!(commits, [&(message(b'C', b"COMMIT\0"), true)], "{at}");
            let passed: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.0).collect();
            assert_eq!(passed, all, "{at}");
        }
    }

    #[test]
    fn refused_encryption_goes_on_in_the_clear() {
        let owed = Arc::<AtomicUsize>::default();
        let mut requests = Requests::new(Arc::clone(&owed));
        let introduction = [12_u32, 196_608, 0].map(u32::to_be_bytes).concat();
        let begin = [request(BARE[1]), request(BARE[0]), introduction].concat();
        for byte in begin {
            requests.look(&[byte]);
        }
        assert_eq!(owed.load(Ordering::SeqCst), 2);

        let mut split = Answers::new(owed);
        let pieces = split.split(&[b"NN".to_vec(), message(b'C', b"COMMIT\0")].concat());
        assert_eq!(pieces.last().unwrap(), &(message(b'C', b"COMMIT\0"), true));
    }

    #[test]
    fn encrypted_bytes_pass_as_they_are() {
        let owed = Arc::new(AtomicUsize::new(1));
        let mut split = Answers::new(owed);
        let bytes = [b"S".to_vec(), message(b'C', b"COMMIT\0"), vec![1, 2]].concat();
        let pieces = split.split(&bytes);
        assert_eq!(pieces, [(bytes, false)]);
    }
}
