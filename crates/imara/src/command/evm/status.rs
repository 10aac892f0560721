//! `imara evm status`.

use super::provider::no_kernel_evm;
use super::rules;
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::paths::{printable, printable_bytes};
use crate::command::policy::this_machine;
use crate::command::{CommandResult, RuntimeDirectory};
use crate::guard::control::{AskError, Request, ask};
use crate::guard::evm::mode_json;
use crate::output::{Outcome, print, print_json};
use imara_format::evm::{EvmMode, MODE_FILE};
use imara_linux::kernel_evm;
use imara_linux::key_service::{self as keys, KeyType};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// Show what EVM does: the kernel's and the running guard's; modes, keys, protected attributes.
///
/// The exit status is 3 where there is neither.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    runtime: RuntimeDirectory,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// A guard that does not answer.
pub fn run(arguments: &Arguments) -> CommandResult {
    let guard = match ask(&arguments.runtime.runtime_dir, &Request::Status) {
        Ok(status) => json!({ "pid": status["pid"], "evm": status["evm"] }),
        Err(AskError::NoGuard(failure)) => json!({ "pid": null, "why_not": failure.what, "next": failure.next }),
        Err(error) => return Err(error.into()),
    };
    let kernel = kernel();
    let neither = guard["pid"].is_null() && kernel["mode"].is_null();
    let document = json!({ "schema": 1, "kernel": kernel, "guard": guard });
    if arguments.json {
        print_json(&document);
    } else {
        print(for_people(&document));
    }
    Ok(if neither { Outcome::Lacking } else { Outcome::Done })
}

/// The kernel's EVM.
fn kernel() -> Value {
    let mode = match kernel_evm::mode() {
        Ok(Some(mode)) => mode,
        Ok(None) => {
            let failure = no_kernel_evm();
            return json!({ "mode": null, "why_not": failure.what, "next": failure.next });
        }
        Err(error) => {
            return json!({ "mode": null, "why_not": format!("{MODE_FILE}: {error}"), "next": "run as root" });
        }
    };
    let mut shown = mode_json(mode);
    // The bit is never shown, but HMACs lock the mode by themselves.
    shown["locked"] = if mode.contains(EvmMode::HMAC) { json!(true) } else { Value::Null };
    let listed = kernel_evm::xattrs().ok().flatten();
    let built = rules::this_machine().ok();
    let (names, locked, source) = match (&listed, &built) {
        (Some((list, locked)), _) => (list.enabled().map(str::to_owned).collect(), json!(locked), "evm_xattrs"),
        (None, Some(rules)) => {
            let found = this_machine::config_place().is_some();
            let source = if found { "build options" } else { "build options, assumed to be those of Debian's kernels" };
            (rules.xattrs.enabled().map(str::to_owned).collect::<Vec<_>>(), Value::Null, source)
        }
        (None, None) => (Vec::new(), Value::Null, "not to be found out"),
    };
    json!({
        "mode": shown,
        "xattrs": names,
        "xattrs_locked": locked,
        "xattrs_from": source,
        "hmac_key": hmac_key(mode),
        "keys": certificates(),
    })
}

/// What is to be said of `evm-key`.
fn hmac_key(mode: EvmMode) -> Value {
    let _ = keys::reach_user_keyring();
    let reachable = keys::request(KeyType::Encrypted, EVM_KEY_NAME.as_bytes());
    let text = match (mode.contains(EvmMode::HMAC), &reachable) {
        (true, _) => "loaded".to_owned(),
        (false, Ok(serial)) => format!("not loaded; {EVM_KEY_NAME} is there (key {serial})"),
        (false, Err(_)) => format!("not loaded; no {EVM_KEY_NAME} in this session's keyrings"),
    };
    json!({ "loaded": mode.contains(EvmMode::HMAC), "key": reachable.ok().map(|serial| serial.0), "text": text })
}

fn certificates() -> Vec<Value> {
    let mut found = Vec::new();
    for name in [".evm", "_evm"] {
        let Ok(keyring) = keys::keyring_named(name.as_bytes()) else { continue };
        for key in keys::keys_of(keyring).unwrap_or_default() {
            let description = keys::describe(key).map(|key| printable_bytes(&key.description)).unwrap_or_default();
            found.push(json!({ "keyring": name, "key": key.0, "description": description }));
        }
    }
    found
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(Path::new(text)),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// EVM's part of `imara status` for people: names and values.
pub fn guard_lines(evm: &Value) -> Vec<(String, String)> {
    let mut lines = vec![("mode".to_owned(), mode_text(&evm["mode"], evm["fix"] == true))];
    let key = &evm["hmac_key"];
    if key.is_null() {
        lines.push(("HMAC key".to_owned(), "not loaded".to_owned()));
    } else {
        lines.push(("HMAC key".to_owned(), text(&key["where"])));
        for why in key["why_not_better"].as_array().into_iter().flatten() {
            lines.push(("  not better".to_owned(), text(why)));
        }
    }
    for key in evm["keys"].as_array().into_iter().flatten() {
        lines
            .push(("key".to_owned(), format!("{} {} {}", text(&key["id"]), text(&key["kind"]), text(&key["subject"]))));
    }
    lines.push(("protects".to_owned(), protects(evm)));
    lines
}

fn mode_text(mode: &Value, fix: bool) -> String {
    let words = text(&mode["words"]);
    let words = if words.is_empty() { "off: nothing is judged".to_owned() } else { words };
    let fix = if fix { "; fix: what is changed gets a good label" } else { "" };
    format!("{words} ({:#x}){fix}", mode["bits"].as_u64().unwrap_or_default())
}

fn protects(evm: &Value) -> String {
    let locked = if evm["xattrs_locked"] == true { " (locked)" } else { "" };
    format!("{}{locked}", text(&evm["xattrs"]))
}

fn for_people(document: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    let kernel = &document["kernel"];
    if kernel["mode"].is_null() {
        line("kernel", format!("none: {}", text(&kernel["why_not"])));
        line("  next", text(&kernel["next"]));
    } else {
        line("kernel", mode_text(&kernel["mode"], false));
        let locked = match kernel["mode"]["locked"] {
            Value::Bool(true) => "until the next start",
            _ => "not to be seen: the kernel hides that bit",
        };
        line("  locked", locked.to_owned());
        line("  HMAC key", text(&kernel["hmac_key"]["text"]));
        for key in kernel["keys"].as_array().into_iter().flatten() {
            line("  key", format!("{} (key {} in {})", text(&key["description"]), key["key"], text(&key["keyring"])));
        }
        line("  protects", format!("{}    (from its {})", protects(kernel), text(&kernel["xattrs_from"])));
    }
    let guard = &document["guard"];
    if guard["pid"].is_null() {
        line("guard", format!("none: {}", text(&guard["why_not"])));
    } else {
        line("guard", format!("process {}", guard["pid"]));
        for (name, value) in guard_lines(&guard["evm"]) {
            line(&format!("  {name}"), value);
        }
    }
    out
}
