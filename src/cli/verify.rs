//! `runbell verify`: whether AWS signed one envelope, offline, and why not.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::{Stop, block_on, output};
use crate::clock::Clock;
use crate::sns::verify::{Freshness, freshness};
use crate::sns::{TopicArn, TopicSettings, Verified, Verifier};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The envelope as it was posted, JSON; `-` for standard input
    file: PathBuf,
    /// The certificate that lies at its `SigningCertURL`
    #[arg(long, value_name = "PEM")]
    cert: Option<PathBuf>,
    /// As if it were this moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// Only for this topic; may be given several times. Any when left out
    #[arg(long, value_name = "ARN")]
    topic: Vec<TopicArn>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    verified: bool,
    /// `verified`, or the stable word of the refusal.
    word: &'a str,
    sentence: &'a str,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let body = read(&args.file)?;
    let pem = args.cert.as_deref().map(read).transpose()?;
    let now = args.at.unwrap_or_else(|| Clock::system().now());
    let topics = args.topic.iter().map(|arn| TopicSettings {
        arn: arn.clone(),
        confirm: false,
        endpoint: None,
        allow_version_1: true,
    });
    let verifier = Verifier::offline(topics.collect(), pem);
    let verdict = block_on(async { Ok(verifier.verify_file(&body, now).await) })?;
    let verdict = verdict.and_then(|verified| match freshness(verified.sent_at(), now) {
        Freshness::Fresh => Ok(verified),
        Freshness::Stale(refusal) | Freshness::Ahead(refusal) => Err(refusal),
    });
    match verdict {
        Ok(verified) => {
            say(
                args,
                true,
                "verified",
                &what(&verified, args.cert.is_some()),
            )?;
            Ok(())
        }
        Err(refusal) => {
            say(args, false, refusal.word, &refusal.sentence)?;
            Err(Stop::No)
        }
    }
}

fn what(verified: &Verified, is_given: bool) -> String {
    let who = if is_given {
        "Whoever holds the key of the certificate given"
    } else {
        "AWS"
    };
    format!(
        "{who} signed this {} for {} at {}",
        verified.message_type().as_str(),
        verified.topic(),
        verified.sent_at()
    )
}

fn say(args: &Args, verified: bool, word: &str, sentence: &str) -> Result<(), Stop> {
    if args.json {
        output::json(&Answer {
            verified,
            word,
            sentence,
        })
    } else {
        output::line(&format!("{word}: {sentence}"))
    }
}

/// The most that is read, in bytes.
const LARGEST: u64 = 2 * 1024 * 1024;

/// What lies at a path that was typed.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::new();
    let done = if path == Path::new("-") {
        std::io::stdin().take(LARGEST).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes))
    };
    match done {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Stop::Usage(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
    }
}
