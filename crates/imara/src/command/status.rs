//! `imara status`.

use super::metrics;
use super::mode::seconds_from_now;
use super::paths::printable;
use super::{CommandResult, RuntimeDirectory};
use crate::guard::control::{AskError, Request, ask};
use crate::guard::level2::why_not_higher;
use crate::guard::rollback;
use crate::output::{Failure, Outcome, print, print_json};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// Show what is going on: level, policy, counts, TPM, keys, and the last refusals.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print Prometheus metrics (text format), for a scrape or for node_exporter's textfile collector.
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// Runs it.
///
/// # Errors
/// The guard cannot answer.
pub fn run(arguments: Arguments) -> CommandResult {
    let status = match ask(&arguments.runtime.runtime_dir, &Request::Status) {
        Ok(mut status) => {
            status["rollback"] = json!(rollback::state(&arguments.runtime.runtime_dir));
            status
        }
        // Without a guard there is still something to say: whether the kernel's own IMA is there.
        Err(AskError::NoGuard(Failure { what, next, .. })) => without_guard(&what, &next),
        Err(error) => return Err(error.into()),
    };
    if arguments.json {
        print_json(&status);
    } else if arguments.metrics {
        print(metrics::text(&status));
    } else {
        print(for_people(&status));
    }
    Ok(if status["provider"] == "none" { Outcome::Lacking } else { Outcome::Done })
}

fn without_guard(what: &str, next: &str) -> Value {
    let kernel = imara_linux::kernel_ima::status();
    let provider = if kernel.is_some() { "kernel" } else { "none" };
    json!({
        "schema": 1,
        "provider": provider,
        "level": if kernel.is_some() { json!("K") } else { json!(0) },
        "why_not_higher": why_not_higher(),
        "guard": what,
        "next": next,
        "list": kernel.map(|kernel| json!({
            "path": imara_linux::kernel_ima::BINARY_LIST,
            "entries": kernel.entries,
            "violations": kernel.violations,
        })),
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(Path::new(text)),
        other => other.to_string(),
    }
}

fn for_people(status: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<11} {value}");
    };
    let level = match text(&status["level"]).as_str() {
        "1" => "1 (fanotify)".to_owned(),
        "2" => "2 (fanotify and BPF LSM)".to_owned(),
        "K" => "K (the kernel's own IMA)".to_owned(),
        "0" => "0 (nothing is guarded)".to_owned(),
        other => other.to_owned(),
    };
    line("level", level);
    for reason in status["why_not_higher"].as_array().into_iter().flatten() {
        line("  not more", text(reason));
    }
    if status["provider"] != "guard" {
        line("guard", text(&status["guard"]));
        line("  next", text(&status["next"]));
        if !status["list"].is_null() {
            let list = &status["list"];
            line(
                "list",
                format!("{} entries, {} violations, {}", list["entries"], list["violations"], text(&list["path"])),
            );
        }
        return out;
    }
    let level2 = &status["level2"];
    if !level2.is_null() {
        let death =
            if level2["on_death"] == "refuse" { "what was not judged is refused" } else { "everything goes on" };
        let over = if level2["taken_over"] == true { "; it decided already when this guard came" } else { "" };
        line("  kernel", format!("{} refused; should the guard die, {death}{over}", level2["refused"]));
    }
    line("guard", format!("process {}, mode {}", status["pid"], text(&status["mode"])));
    let sentinel = &status["sentinel"];
    if sentinel["pid"].is_null() {
        line(
            "  sentinel",
            format!("none ({}): a guard that hangs would hold up whoever opens a file", text(&sentinel["why"])),
        );
    } else {
        line("  sentinel", format!("process {}", sentinel["pid"]));
    }
    let rollback = &status["rollback"];
    match rollback["ended"].as_str() {
        Some(how) => line("  rollback", format!("{} to {}: {how}", text(&rollback["from"]), text(&rollback["to"]))),
        None if !rollback.is_null() => line(
            "  rollback",
            format!(
                "back to {} in {} unless confirmed: imara mode --confirm",
                text(&rollback["to"]),
                seconds_from_now(rollback["at"].as_u64().unwrap_or_default())
            ),
        ),
        None => {}
    }
    for watch in status["watch"].as_array().into_iter().flatten() {
        line(
            "watching",
            format!("{} ({}, uuid {})", text(&watch["mount_point"]), text(&watch["type"]), text(&watch["uuid"])),
        );
    }
    for unwatched in status["not_watched"].as_array().into_iter().flatten() {
        line(
            "NOT watched",
            format!("{} ({}): {}", text(&unwatched["mount_point"]), text(&unwatched["type"]), text(&unwatched["why"])),
        );
    }
    for directory in status["not_mounted"].as_array().into_iter().flatten() {
        line("not mounted", format!("{}: guarded again as soon as it is mounted", text(&directory["path"])));
    }
    let late = status["kernel"]["late_labels"].as_u64().unwrap_or_default();
    if late > 0 {
        line("labels", format!("{late} wait to be written: their file system takes no changes now (frozen?)"));
    }
    let policy = &status["policy"];
    let version = policy["version"].as_u64().map_or(String::new(), |version| format!(", version {version}"));
    let signer = policy["signed_by"].as_str().map_or(String::new(), |key| format!(", signed by the key {key}"));
    line("policy", format!("{}, {} rules{version}{signer}", text(&policy["path"]), policy["rules"]));
    for key in status["keys"].as_array().into_iter().flatten() {
        line("key", format!("{} {} {}", text(&key["id"]), text(&key["kind"]), text(&key["subject"])));
    }
    for (name, value) in super::evm::status::guard_lines(&status["evm"]) {
        line(
            if name == "mode" { "EVM" } else { "" },
            if name == "mode" { value } else { format!("{}: {value}", name.trim()) },
        );
    }
    for keyring in status["keyrings"].as_array().into_iter().flatten() {
        line(
            "keyring",
            format!("{} of the kernel's: the keys that are in it when a signature is verified", text(keyring)),
        );
    }
    let blocked = &status["blocked"];
    if !blocked.is_null() {
        let revoked: Vec<String> = blocked["revoked"].as_array().into_iter().flatten().map(text).collect();
        let given =
            if revoked.is_empty() { String::new() } else { format!("; of the keys given: {}", revoked.join(" ")) };
        let counts = ["files", "certificates", "key_ids"].map(|name| &blocked[name]);
        line("blocked", format!("{} files, {} certificates, {} key ids{given}", counts[0], counts[1], counts[2]));
    }
    let list = &status["list"];
    line(
        "list",
        format!(
            "{} entries, {} violations, {} not in the TPM; template {}, {}; {}",
            list["entries"],
            list["violations"],
            list["not_in_tpm"],
            text(&list["template"]),
            text(&list["hash"]),
            text(&list["path"])
        ),
    );
    if let Some(seconds) = list["waits"].as_f64() {
        line(
            "",
            format!("takes no entries for {seconds:.0} s now: its file system is frozen, or its disk does not answer"),
        );
    }
    line("chain", text(&list["chain"]));
    if list["departure"].is_string() {
        line("", format!("broken since: {}", text(&list["departure"])));
    }
    let tpm = &status["tpm"];
    let trust = if tpm["root_of_trust"] == true { "a root of trust" } else { "no root of trust" };
    let banks: Vec<String> = tpm["banks"].as_array().into_iter().flatten().map(text).collect();
    line("TPM", format!("{} ({trust}), PCR {}, banks {}", text(&tpm["kind"]), tpm["pcr"], banks.join(" ")));
    let counts = &status["counts"];
    line(
        "counts",
        format!(
            "{} accesses asked about, {} files hashed, {} did not pass, {} refused, {} errors",
            counts["accesses"], counts["hashed"], counts["failed"], counts["refused"], counts["errors"]
        ),
    );
    if !status["trace"].is_null() {
        line("trace", super::trace::for_people(&status["trace"]));
    }
    for note in status["notes"].as_array().into_iter().flatten() {
        line("note", text(note));
    }
    for record in status["recent"].as_array().into_iter().flatten().take(8) {
        let verdict = match (record["refused"] == true, record["fixed"] == true) {
            (true, _) => "refused",
            (false, true) => "fixed",
            (false, false) => "failed",
        };
        line(
            verdict,
            format!(
                "{} {} for {} ({})",
                text(&record["path"]),
                text(&record["cause"]),
                text(&record["command"]),
                text(&record["func"])
            ),
        );
    }
    out
}
