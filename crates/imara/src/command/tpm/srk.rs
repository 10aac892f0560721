//! `imara tpm srk`.

use super::target::Target;
use super::{SCHEMA, authorisation};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::new_files::write_together;
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::crypto::PublicKey;
use imara_engine::tpm::template::{self, KeyKind};
use imara_engine::tpm::{Hierarchy, Object, Tpm};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The storage root key, under which other keys are kept: show it, or keep it in the TPM.
///
/// It is made by a template of the TCG: the same template in the same TPM always makes the same key, until the owner hierarchy is
/// cleared. Kept at a handle it needs not be made anew each time, which takes a TPM seconds for RSA.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Show(Show),
    Create(Create),
}

/// Show the storage root key: what it is, where it is kept, its public key.
///
/// Without --type those that are kept; with it the key that the template makes now, whether it is kept or not.
///
/// Exit status: 0 shown, 1 the TPM refused or keeps no such key, 2 wrong command line, 3 there is no TPM, or it does not answer.
#[derive(clap::Args)]
struct Show {
    /// Make the key of this type
    #[arg(long = "type", value_enum)]
    kind: Option<Type>,
    /// The owner's authorisation value is the content of FILE
    #[arg(long, value_name = "FILE", requires = "kind")]
    owner_auth: Option<PathBuf>,
    /// Write the public key to a new file, in PEM
    #[arg(long, value_name = "FILE", requires = "kind")]
    pem: Option<PathBuf>,
    /// Write the public area to a new file, as `tpm2_readpublic -o` does
    #[arg(long, value_name = "FILE", requires = "kind")]
    public: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make the storage root key and keep it in the TPM.
///
/// What is kept at the handle already is never replaced: if it is this key, nothing is done.
///
/// Exit status: 0 it is kept there now, 1 the TPM refused or keeps something else there, 2 wrong command line, 3 there is no TPM, or
/// it does not answer.
#[derive(clap::Args)]
struct Create {
    /// Its type
    #[arg(long = "type", value_enum, default_value_t = Type::P256)]
    kind: Type,
    /// Where it is kept; 0x81000001 is where everybody looks for it
    #[arg(long, value_name = "HANDLE", default_value = "0x81000001", value_parser = owners_handle)]
    handle: u32,
    /// The owner's authorisation value is the content of FILE
    #[arg(long, value_name = "FILE")]
    owner_auth: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    change: Change,
}

/// The type of a key.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Type {
    Rsa2048,
    P256,
}

impl From<Type> for KeyKind {
    fn from(kind: Type) -> Self {
        match kind {
            Type::Rsa2048 => Self::Rsa2048,
            Type::P256 => Self::P256,
        }
    }
}

/// A handle, in hexadecimal with or without `0x`.
pub fn handle(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = digits.len() <= 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let handle = u32::from_str_radix(digits, 16).ok().filter(|_| plain);
    handle.ok_or_else(|| "a handle like 0x81000001 is needed".to_owned())
}

fn owners_handle(text: &str) -> Result<u32, String> {
    /// The owner's persistent handles; those after them are the platform's.
    const OWNERS: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x817f_ffff;
    let handle = handle(text)?;
    let theirs = OWNERS.contains(&handle).then_some(handle);
    theirs.ok_or_else(|| "the owner's handles are 0x81000000 to 0x817fffff".to_owned())
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Show(show) => show.run(),
        Command::Create(create) => create.run(),
    }
}

/// The objects that are kept and have the template of a storage root key.
pub fn kept(tpm: &mut Tpm) -> Result<Vec<Object>, Failure> {
    let templates = [KeyKind::P256, KeyKind::Rsa2048].map(template::srk);
    let mut found = Vec::new();
    for handle in tpm.persistent_handles()? {
        let object = tpm.object(handle)?;
        if templates.iter().any(|template| template::is_made_by(object.public(), template)) {
            found.push(object);
        }
    }
    Ok(found)
}

fn pem(key: &Object) -> Result<String, Failure> {
    let pem = PublicKey::public_area_to_pem(key.public()).map_err(Failure::failed)?;
    pem.ok_or_else(|| Failure::failed(format!("{} is not known here", key.public())))
}

impl Show {
    fn run(self) -> CommandResult {
        let owner_auth = authorisation::value(self.owner_auth.as_deref())?;
        let (kept, made) = self.target.with(|tpm| {
            let kept = kept(tpm)?;
            let made = match self.kind {
                Some(kind) => Some(tpm.create_primary(Hierarchy::Owner, &owner_auth, &template::srk(kind.into()))?),
                None => None,
            };
            Ok((kept, made))
        })?;
        let mut files = Vec::new();
        let (mut text, mut documents) = (String::new(), Vec::new());
        let mut show = |key: &Object, handles: &[u32]| -> Result<(), Failure> {
            let pem = pem(key)?;
            let place = match handles {
                [] => "not kept in the TPM".to_owned(),
                handles => format!("kept at {}", super::target::handles(handles)),
            };
            text += &format!("{}: {place}\nname {}\n{pem}", key.public(), key.name());
            documents.push(document(key, handles, &pem));
            Ok(())
        };
        match &made {
            None => kept.iter().try_for_each(|key| show(key, &[key.handle()]))?,
            Some(made) => {
                let handles = kept.iter().filter(|key| key.name() == made.name()).map(Object::handle);
                show(made, &handles.collect::<Vec<_>>())?;
                let (pem, public) = (pem(made)?.into_bytes(), made.public().to_sized());
                files.extend(self.pem.iter().map(|path| (path, pem.clone())));
                files.extend(self.public.iter().map(|path| (path, public.clone())));
            }
        }
        let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_path(), bytes.as_slice(), 0o644)).collect();
        write_together(&files, false)?;
        if self.json {
            let tpm = self.target.tpm.to_string();
            print_json(&json!({ "schema": SCHEMA, "tpm": tpm, "keys": documents }));
        } else if documents.is_empty() {
            return Err(Failure::failed("the TPM keeps no storage root key")
                .next("`imara tpm srk create` keeps it; `imara tpm srk show --type p256` makes and shows it"));
        } else {
            print(text);
        }
        Ok(if documents.is_empty() { Outcome::Failed } else { Outcome::Done })
    }
}

fn document(key: &Object, handles: &[u32], pem: &str) -> Value {
    json!({
        "type": key.public().to_string(),
        "name": key.name().to_string(),
        "handles": handles.iter().map(|handle| format!("{handle:#010x}")).collect::<Vec<_>>(),
        "pem": pem,
    })
}

impl Create {
    fn run(self) -> CommandResult {
        let owner_auth = authorisation::value(self.owner_auth.as_deref())?;
        let handle = self.handle;
        let (key, was_there) = self.target.with(|tpm| {
            let there = match tpm.persistent_handles()?.contains(&handle) {
                true => Some(tpm.object(handle)?),
                false => None,
            };
            let key = tpm.create_primary(Hierarchy::Owner, &owner_auth, &template::srk(self.kind.into()))?;
            match there {
                Some(there) if there.name() == key.name() => return Ok((key, true)),
                Some(there) => {
                    return Err(Failure::failed(format!(
                        "{handle:#010x} has another object, {} of name {}, which is not replaced",
                        there.public(),
                        there.name()
                    ))
                    .next(format!(
                        "keep the key elsewhere (--handle), or, if nobody needs that object, take it away: tpm2_evictcontrol -c \
                         {handle:#010x}"
                    )));
                }
                None => {}
            }
            if !self.change.dry_run {
                tpm.evict_control(&owner_auth, &key, handle)?;
                // What is there is what everything will be kept under: looked at once more.
                let kept = tpm.object(handle)?;
                if kept.name() != key.name() {
                    return Err(Failure::failed(format!("{handle:#010x} has another key than was put there")));
                }
            }
            Ok((key, false))
        })?;
        let kind = key.public();
        let text = match (was_there, self.change.dry_run) {
            (true, _) => format!("{handle:#010x} has this storage root key already, {kind}: nothing was done\n"),
            (false, true) => format!("{handle:#010x} would get the storage root key, {kind}, name {}\n", key.name()),
            (false, false) => format!("{handle:#010x} has the storage root key now, {kind}, name {}\n", key.name()),
        };
        let mut document = document(&key, &[handle], &pem(&key)?);
        document["schema"] = json!(SCHEMA);
        document["tpm"] = json!(self.target.tpm.to_string());
        document["was_there"] = json!(was_there);
        document["dry_run"] = json!(self.change.dry_run);
        Ok(self.change.report(text, &document))
    }
}
