//! `imara keyring permissions`.

use super::named::KeyringName;
use super::refusal::{Attempt, refused};
use super::{SCHEMA, key_json, key_words};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::output::Failure;
use imara_format::key::{KeyPermission, KeyPermissions};
use imara_linux::key_service as keys;
use serde_json::json;

/// Print or set who may do what with a key or a keyring.
///
/// The permissions are four times `alswrv` (set attributes, link, search, write, read, view), for whoever reaches the key through
/// keyrings of theirs, for its user, its group, and others: alswrv-----v------------ is what the kernel gives a new key.
#[derive(clap::Args)]
pub struct Permissions {
    /// A keyring, or the number of a key
    #[arg(value_name = "KEY")]
    key: KeyringName,
    /// The new permissions: 24 letters and dashes, or a number as keyctl takes it, such as 0x3f010000
    #[arg(value_name = "PERMISSIONS", allow_hyphen_values = true)]
    permissions: Option<String>,
    /// Also where nobody could change them afterwards
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    change: Change,
}

impl Permissions {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let wanted = self.permissions.as_deref().map(str::parse::<KeyPermissions>).transpose();
        let wanted = wanted.map_err(Failure::usage)?;
        let (serial, told) = self.key.find_key()?;
        let words = format!("{} ({serial})", key_words(&told));
        if let Some(wanted) = wanted {
            let attributes = KeyPermission::SetAttributes;
            if !wanted.possessor_may(attributes) && !wanted.owner_may(attributes) && !self.force {
                return Err(Failure::failed(format!(
                    "{words}: with {wanted} neither its possessor nor its user could ever change its permissions again"
                ))
                .next("leave one of them `a`; or --force"));
            }
            if !self.change.dry_run {
                keys::set_permissions(serial, wanted)
                    .map_err(|error| refused(Attempt::Permissions { key: &words }, &error))?;
            }
        }
        let mut document = key_json(serial, &told);
        document.insert("schema".into(), json!(SCHEMA));
        let set = wanted.is_some() && !self.change.dry_run;
        document.insert("set".into(), json!(set));
        document.insert("permissions_before".into(), json!(told.permissions.to_string()));
        let now = wanted.filter(|_| set).unwrap_or(told.permissions);
        document.insert("permissions".into(), json!(now.to_string()));
        document.insert("mask".into(), json!(format!("{:#010x}", now.0)));
        let text = match wanted {
            None => format!("{words}: {now} ({:#010x})\n", now.0),
            Some(wanted) => {
                let done = if set { "were" } else { "would become" };
                let before = told.permissions;
                match set {
                    true => format!("{words}: {now} ({:#010x}); they {done} {before}\n", now.0),
                    false => format!("{words}: {before} {done} {wanted}\n"),
                }
            }
        };
        Ok(self.change.report(text, &document.into()))
    }
}
