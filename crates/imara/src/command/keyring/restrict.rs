//! `imara keyring restrict`.

use super::SCHEMA;
use super::named::KeyringName;
use super::refusal::{Attempt, refused};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::output::Failure;
use imara_linux::key_service as keys;
use serde_json::json;

/// Restrict for good what a keyring takes.
///
/// What is in it already stays and is not looked at: restrict a keyring before it is filled, or look at what it holds.
/// No restriction can be taken back or changed; the way out is another keyring.
#[derive(clap::Args)]
pub struct Restrict {
    /// The keyring
    #[arg(value_name = "KEYRING")]
    keyring: KeyringName,
    /// builtin_trusted, builtin_and_secondary_trusted (what a key of .builtin_trusted_keys, or of that and
    /// .secondary_trusted_keys, has signed), key_or_keyring:KEY, with :chain also by what is in the keyring itself, or nothing
    /// (no key is taken any more)
    #[arg(value_name = "RULE")]
    rule: String,
    #[command(flatten)]
    change: Change,
}

/// What a keyring takes from now on.
enum Rule {
    Nothing,
    Kernel(String),
    /// What this key, or one of this keyring, has signed.
    SignedBy {
        by: KeyringName,
        chain: bool,
    },
}

impl Restrict {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let rule = Rule::parse(&self.rule)?;
        let keyring = self.keyring.find()?;
        let (text, words) = match rule {
            Rule::Nothing => (None, "nothing any more".to_owned()),
            Rule::Kernel(rule) => {
                let words = match rule.as_str() {
                    "builtin_trusted" => "certificates alone that a key of .builtin_trusted_keys has signed",
                    _ => "certificates alone that a key of .builtin_trusted_keys or .secondary_trusted_keys has signed",
                };
                (Some(rule), words.to_owned())
            }
            Rule::SignedBy { by, chain } => {
                let (serial, told) = by.find_key()?;
                let end = if chain { ":chain" } else { "" };
                let own = if chain { " or one of its own" } else { "" };
                let words = format!("certificates alone that {} ({serial}){own} has signed", super::key_words(&told));
                (Some(format!("key_or_keyring:{serial}{end}")), words)
            }
        };
        let held = keyring.keys().map_or(0, |held| held.len());
        if !self.change.dry_run {
            keys::restrict(keyring.serial, text.as_deref().map(str::as_bytes))
                .map_err(|error| refused(Attempt::Restrict { keyring: &keyring }, &error))?;
        }
        let document = json!({
            "schema": SCHEMA,
            "keyring": keyring.to_string(),
            "serial": keyring.serial.0,
            "rule": text.as_deref().unwrap_or("nothing"),
            "keys": held,
            "restricted": !self.change.dry_run,
        });
        let takes = if self.change.dry_run { "would take" } else { "takes" };
        let inside = match held {
            0 => String::new(),
            1 => "; the key that is in it stays, whoever signed it".to_owned(),
            held => format!("; the {held} keys that are in it stay, whoever signed them"),
        };
        Ok(self.change.report(format_args!("{keyring}: {takes} {words}{inside}\n"), &document))
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(named) = text.strip_prefix("key_or_keyring:").filter(|named| !named.is_empty()) {
            let (by, chain) = named.strip_suffix(":chain").map_or((named, false), |by| (by, true));
            return Ok(Self::SignedBy { by: KeyringName::from(by), chain });
        }
        match text {
            "nothing" => Ok(Self::Nothing),
            "builtin_trusted" | "builtin_and_secondary_trusted" => Ok(Self::Kernel(text.to_owned())),
            _ => Err(Failure::usage(format!("`{text}` is no restriction")).next(
                "builtin_trusted, builtin_and_secondary_trusted, key_or_keyring:KEY, key_or_keyring:KEY:chain, or nothing",
            )),
        }
    }
}
