//! `runbell check`: what `serve` would say about the settings, without binding anything.

use std::path::Path;

use serde::Serialize;

use super::{Stop, output};
use crate::config::{Config, Diagnostic};
use crate::route::Route;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    diagnostics: Vec<Diagnostic>,
}

pub(super) fn run(path: &Path, args: &Args) -> Result<(), Stop> {
    let checked = Config::load(path);
    if args.json {
        let (ok, diagnostics) = match &checked {
            Ok((_, warnings)) => (true, warnings.clone()),
            Err(faults) => (false, faults.iter().cloned().collect()),
        };
        output::json(&Checked { ok, diagnostics })?;
        return match checked {
            Ok(_) => Ok(()),
            Err(_) => Err(Stop::SettingsSaid),
        };
    }
    let (config, warnings) = checked.map_err(|faults| Stop::Settings(Box::new(faults)))?;
    for warning in &warnings {
        output::complain(&warning.render(output::is_coloured()));
    }
    output::line(&format!("{} is good", path.display()))?;
    for topic in &config.topics {
        let endpoint = topic
            .endpoint
            .as_ref()
            .map_or_else(String::new, |endpoint| {
                format!(", signed by {endpoint} and not by AWS")
            });
        output::line(&format!("topic {}{endpoint}", topic.arn))?;
    }
    for route in &config.routes {
        output::line(&format!(
            "route {} to {}, for example {}",
            route.name,
            route.to.join(", "),
            example(route)
        ))?;
    }
    Ok(())
}

fn example(route: &Route) -> String {
    let Some(event) = route.witness() else {
        return "nothing that could be thought of".to_owned();
    };
    match event.command() {
        Some(command) => {
            let instance = command.instance.as_deref();
            let on = instance.map_or_else(String::new, |instance| format!(" on {instance}"));
            format!(
                "{} {} of {}{on}",
                event.kind.word(),
                command.status,
                command.document
            )
        }
        None => format!("{} {}", event.kind.word(), event.body),
    }
}
