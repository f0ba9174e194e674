//! `runbell ready`: for health checks of containers, and for people.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::{Stop, block_on, output, settings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to ask, in place of the admin socket of the settings
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub(super) fn run(config: &Path, args: &Args) -> Result<(), Stop> {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(5));
    let (client, url) = if let Some(url) = &args.url {
        (builder, url.clone())
    } else {
        let socket = settings(config)?
            .admin
            .socket
            .ok_or_else(|| anyhow!("the settings name no admin socket: give --url"))?;
        let url = "http://localhost/-/ready".to_owned();
        (builder.unix_socket(socket), url)
    };
    let client = client.build()?;
    block_on(async {
        let asked = client.get(&url).send().await;
        let answer = asked.context("nobody answers")?;
        let is_ready = answer.status().is_success();
        let text = answer.text().await?;
        for line in text.lines() {
            output::line(&output::plain(line))?;
        }
        if is_ready { Ok(()) } else { Err(Stop::No) }
    })
}
