//! `imara keyring`: the kernel's keyrings, one subcommand a file.

pub mod certificates;
mod import;
pub mod named;
mod new;
mod permissions;
pub mod refusal;
mod remove;
mod restrict;
mod show;

use super::CommandResult;
use super::paths::printable_bytes;
use imara_format::key::{KeyDescription, KeySerial};
use serde_json::{Map, Value, json};

/// The kernel's keyrings: show, make, fill, empty, restrict them, and say who may.
///
/// A keyring is named as keyctl names it: @s (the session's), @u (the user's), @us, @p, @t, a number, or a name: .ima and .evm,
/// which kernels with CONFIG_INTEGRITY_TRUSTED_KEYRING verify with, _ima and _evm, which the others do, .blacklist, .platform,
/// .machine. `%:NAME` is a name that looks like one of the others.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Show(show::Show),
    New(new::New),
    Import(import::Import),
    Remove(remove::Remove),
    Restrict(restrict::Restrict),
    Permissions(permissions::Permissions),
}

/// The number of the JSON documents' form.
const SCHEMA: u32 = 1;

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Verb::Show(show) => show.run(),
        Verb::New(new) => new.run(),
        Verb::Import(import) => import.run(),
        Verb::Remove(remove) => remove.run(),
        Verb::Restrict(restrict) => restrict.run(),
        Verb::Permissions(permissions) => permissions.run(),
    }
}

/// What the kernel tells of a key, in JSON.
fn key_json(serial: KeySerial, told: &KeyDescription) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("serial".into(), json!(serial.0));
    document.insert("type".into(), json!(told.kind));
    document.insert("description".into(), json!(String::from_utf8_lossy(&told.description)));
    if std::str::from_utf8(&told.description).is_err() {
        document.insert("description_hex".into(), json!(imara_format::hash::to_hex(&told.description)));
    }
    document.insert("uid".into(), json!(told.uid));
    document.insert("gid".into(), json!(told.gid));
    document.insert("permissions".into(), json!(told.permissions.to_string()));
    document
}

/// A key for people: `keyring _ima`, `asymmetric CN: 7a1f04c3`.
fn key_words(told: &KeyDescription) -> String {
    format!("{} {}", printable_bytes(told.kind.as_bytes()), printable_bytes(&told.description))
}
