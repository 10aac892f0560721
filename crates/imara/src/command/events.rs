//! `imara events`.

use super::paths::printable_bytes;
use super::{CommandResult, RuntimeDirectory, duration};
use crate::guard::control::{Request, follow};
use crate::output::{Outcome, print, utc};
use clap::builder::PossibleValuesParser;
use imara_format::policy::Func;
use serde_json::Value;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Show what the running guard records, as it happens: accesses that do not pass, metadata that EVM finds changed, violations, what `audit` rules match, policy
/// loads and switches of the mode.
///
/// First the last failures, then what comes, until it is interrupted, the guard ends (1), or --count or --for say that it is enough. A
/// reader that is too slow loses events, and is told how many.
#[derive(clap::Args)]
pub struct Arguments {
    /// Of the failures before, show the last so many.
    #[arg(long, value_name = "N", default_value_t = 10)]
    last: usize,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time (90s, 10m, 1h).
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    time: Option<Duration>,
    /// Only these kinds (may be repeated).
    #[arg(long, value_name = "KIND", value_parser = ["appraisal", "metadata", "violation", "audit", "status"])]
    kind: Vec<String>,
    /// Only these causes, such as missing-hash (may be repeated).
    #[arg(long, value_name = "CAUSE")]
    cause: Vec<String>,
    /// Only these hooks, such as BPRM_CHECK (may be repeated).
    #[arg(long, value_name = "HOOK", ignore_case = true, hide_possible_values = true,
        value_parser = PossibleValuesParser::new(Func::ALL.iter().map(|func| func.name()).chain(["appraise_metadata"])))]
    func: Vec<String>,
    /// Only files at this path or below it (may be repeated).
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
    /// Only of this user.
    #[arg(long)]
    uid: Option<u64>,
    /// Only what was refused.
    #[arg(long)]
    refused: bool,
    /// Print a JSON document a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Runs it.
///
/// # Errors
/// There is no guard, or it ends.
pub fn run(arguments: Arguments) -> CommandResult {
    let until = arguments.time.and_then(|time| Instant::now().checked_add(time));
    let mut left = arguments.count;
    let enough = |left: Option<u64>| left == Some(0) || until.is_some_and(|until| Instant::now() >= until);
    if enough(left) {
        return Ok(Outcome::Done);
    }
    let request = Request::Events { recent: arguments.last };
    follow(&arguments.runtime.runtime_dir, &request, |event| {
        if !event.is_null() && arguments.wants(&event) {
            if arguments.json {
                print(format_args!("{event}\n"));
            } else {
                print(for_people(&event));
            }
            left = left.map(|left| left.saturating_sub(1));
        }
        if enough(left) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(Outcome::Done)
}

impl Arguments {
    fn wants(&self, event: &Value) -> bool {
        // That events were lost concerns everybody.
        if event["kind"] == "lost" {
            return true;
        }
        let is =
            |name: &str, wanted: &String| event[name].as_str().is_some_and(|found| found.eq_ignore_ascii_case(wanted));
        let among = |wanted: &[String], name: &str| wanted.is_empty() || wanted.iter().any(|one| is(name, one));
        let below = |path: &String| {
            let folder = path.trim_end_matches('/');
            event["path"]
                .as_str()
                .and_then(|path| path.strip_prefix(folder))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        among(&self.kind, "kind")
            && among(&self.cause, "cause")
            && among(&self.func, "func")
            && (self.path.is_empty() || self.path.iter().any(below))
            && self.uid.is_none_or(|uid| event["uid"] == uid)
            && (!self.refused || event["refused"] == true)
    }
}

/// One line.
fn for_people(event: &Value) -> String {
    let text = |name: &str| printable_bytes(event[name].as_str().unwrap_or_default().as_bytes());
    if event["kind"] == "lost" {
        return format!("({} events were lost: this was read too slowly)\n", event["count"]);
    }
    let time = utc(event["time"].as_u64().unwrap_or_default());
    let who = format!("{} (process {}, user {})", text("command"), event["pid"], event["uid"]);
    let detail = if text("detail").is_empty() { String::new() } else { format!(": {}", text("detail")) };
    match event["kind"].as_str() {
        Some("appraisal" | "metadata") => {
            let verdict = match (event["refused"] == true, event["fixed"] == true) {
                (true, _) => "refused",
                (false, true) => "fixed",
                (false, false) => "failed",
            };
            format!("{time} {verdict:<9} {} {} {} by {who}{detail}\n", text("path"), text("func"), text("cause"))
        }
        Some("audit") => format!("{time} audit     {} {} by {who}\n", text("path"), text("digest")),
        Some("violation") => format!("{time} violation {} {} by {who}\n", text("path"), text("cause")),
        _ => format!("{time} status    {} {} {} by {who}\n", text("op"), text("cause"), text("path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn filters_leave_out_what_they_do_not_fit() {
        let event = json!({ "kind": "appraisal", "cause": "missing-hash", "func": "BPRM_CHECK", "path": "/srv/app/x",
            "uid": 1000, "refused": true });
        for (line, wanted) in [
            ("", true),
            ("--kind appraisal --kind audit", true),
            ("--kind audit", false),
            ("--cause missing-hash", true),
            ("--cause invalid-hash", false),
            ("--func bprm_check", true),
            ("--func MMAP_CHECK", false),
            ("--path /srv/app", true),
            ("--path /srv/app/", true),
            ("--path /srv/app/x", true),
            ("--path /srv/ap", false),
            ("--path /home --path /srv", true),
            ("--uid 1000 --refused", true),
            ("--uid 0", false),
        ] {
            let words = std::iter::once("events").chain(line.split_whitespace());
            assert_eq!(Line::parse_from(words).arguments.wants(&event), wanted, "{line}");
        }
        let lost = Line::parse_from(["events", "--uid", "0"]).arguments.wants(&json!({ "kind": "lost", "count": 3 }));
        assert!(lost, "that events were lost is always told");
    }

    #[test]
    fn an_event_is_one_line_whatever_a_name_holds() {
        for event in [
            json!({ "kind": "appraisal", "path": "/a\nb\u{1b}[2J", "command": "x\ny", "detail": "z\n", "time": 0 }),
            json!({ "kind": "audit", "path": "/a\n" }),
            json!({ "kind": "violation", "path": "/a\n" }),
            json!({ "kind": "status", "path": "/a\n" }),
            json!({ "kind": "lost", "count": 3 }),
        ] {
            let line = for_people(&event);
            assert!(line.ends_with('\n') && line.trim_end().chars().all(|c| !c.is_control()), "{line:?}");
        }
    }
}
