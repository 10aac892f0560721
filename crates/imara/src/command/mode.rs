//! `imara mode`.

use super::{CommandResult, RuntimeDirectory, duration};
use crate::guard::control::{AskError, Request, ask};
use crate::guard::rollback::{self, Rollback};
use crate::output::{Failure, Outcome, print, print_json};
use serde_json::{Value, json};
use std::time::Duration;

/// Switch what the running guard does with a file that does not pass; without a mode, show it.
///
/// With --for the switch undoes itself after that time unless it is confirmed (`imara mode --confirm`). A process of its own
/// sees to that: it asks the guard, and ends it where it does not answer, so that not even a guard that hangs leaves a
/// machine locked.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to switch to.
    #[arg(value_parser = ["enforce", "log", "fix", "off"])]
    mode: Option<String>,
    /// Go back by itself after this time (90s, 10m, 1h) unless confirmed.
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse, requires = "mode")]
    time: Option<Duration>,
    /// Keep the mode that was switched to with --for.
    #[arg(long, conflicts_with_all = ["mode", "time"])]
    confirm: bool,
    /// Say what would be switched, and switch nothing.
    #[arg(long, requires = "mode")]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Runs it.
///
/// # Errors
/// There is no guard, or it cannot.
pub fn run(arguments: Arguments) -> CommandResult {
    let document = match &arguments.mode {
        Some(mode) if arguments.dry_run => arguments.would_switch(mode)?,
        Some(mode) => arguments.switch(mode)?,
        None if arguments.confirm => arguments.confirm()?,
        None => {
            let status = ask(&arguments.runtime.runtime_dir, &Request::Status)?;
            json!({ "schema": 1, "mode": status["mode"], "rollback": arguments.waiting() })
        }
    };
    if arguments.json {
        print_json(&document);
    } else {
        print(for_people(&document));
    }
    Ok(Outcome::Done)
}

impl Arguments {
    fn waiting(&self) -> Option<Rollback> {
        rollback::state(&self.runtime.runtime_dir).filter(|state| state.ended.is_none())
    }

    fn switch(&self, mode: &str) -> Result<Value, Failure> {
        let directory = &self.runtime.runtime_dir;
        let mode = mode.to_owned();
        let Some(time) = self.time else {
            let mut document = ask(directory, &Request::Mode { mode })?;
            // Whoever switches has decided anew. Not before it is done: a guard that hangs must still be rolled back.
            document["cancelled"] = json!(rollback::confirm(directory)?);
            return Ok(document);
        };
        if let Some(waiting) = self.waiting() {
            return Err(Failure::failed(format_args!(
                "a switch to {} waits to be confirmed or rolled back already",
                waiting.from
            ))
            .next(format_args!("keep it: imara mode --confirm; or go back now: imara mode {}", waiting.to)));
        }
        let status = ask(directory, &Request::Status)?;
        let to = status["mode"].as_str().unwrap_or_default().to_owned();
        let guard = status["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        rollback::arm(directory, guard, &mode, &to, time)?;
        let mut document = ask(directory, &Request::Mode { mode }).map_err(|error| {
            if let AskError::Silent(failure) = error {
                // It may have been switched all the same, and the guard hangs: then going back is all the more needed.
                return Failure {
                    what: format!(
                        "{}; whether it has switched is not known, so it goes back to {to} all the same",
                        failure.what
                    ),
                    ..failure
                };
            }
            // Nothing was switched, so nothing is to be rolled back.
            let _ = rollback::confirm(directory);
            error.into()
        })?;
        document["rollback"] = json!(self.waiting());
        Ok(document)
    }

    fn would_switch(&self, mode: &str) -> Result<Value, Failure> {
        let status = ask(&self.runtime.runtime_dir, &Request::Status)?;
        Ok(json!({
            "schema": 1,
            "switched": false,
            "from": status["mode"],
            "mode": mode,
            "for_seconds": self.time.map(|time| time.as_secs()),
            "did_not_pass": status["counts"]["failed"],
        }))
    }

    fn confirm(&self) -> Result<Value, Failure> {
        let directory = &self.runtime.runtime_dir;
        let confirmed = rollback::confirm(directory)?.ok_or_else(|| {
            let last = rollback::state(directory).and_then(|state| Some((state.ended?, state.to)));
            let why = last.map_or(String::new(), |(how, to)| format!(" (the last one went back to {to}: {how})"));
            Failure::failed(format_args!("no switch of the mode waits for a confirmation{why}"))
                .next("imara mode enforce --for 10m")
        })?;
        Ok(json!({ "schema": 1, "mode": confirmed.from, "confirmed": confirmed }))
    }
}

fn for_people(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if document["switched"] == false {
        let time = document["for_seconds"].as_u64().map_or(String::new(), |seconds| format!(", for {seconds} s"));
        return format!(
            "would switch the mode from {} to {}{time}\n{} accesses did not pass their appraisal since the guard started{}\n",
            text(&document["from"]),
            text(&document["mode"]),
            document["did_not_pass"],
            if document["did_not_pass"] == 0 { "" } else { ": imara status names the last ones" },
        );
    }
    let mut out = format!("mode: {}", text(&document["mode"]));
    if let Some(from) = document["from"].as_str() {
        out.push_str(&format!(" (was {from})"));
    }
    let rollback = &document["rollback"];
    if !rollback.is_null() {
        out.push_str(&format!(
            "; back to {} in {} unless confirmed: imara mode --confirm",
            text(&rollback["to"]),
            seconds_from_now(rollback["at"].as_u64().unwrap_or_default())
        ));
    }
    if !document["confirmed"].is_null() {
        out.push_str(", confirmed: it stays");
    }
    if !document["cancelled"].is_null() {
        out.push_str("; the switch that waited to be confirmed is settled with that");
    }
    out.push('\n');
    out
}

/// The time from now to `at`, for people.
pub fn seconds_from_now(at: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match at.saturating_sub(now) {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}
