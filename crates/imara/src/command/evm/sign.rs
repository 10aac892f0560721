//! `imara evm sign`.

use super::hmac::cannot_write;
use super::metadata::{Looker, Overrides};
use super::rules::RulesOptions;
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::paths::{Paths, printable};
use crate::command::signing::{EVM_KEY, Signer};
use crate::command::told::Told;
use crate::output::Failure;
use imara_engine::evm::sign::{EvmSignError, SignatureForm, Version, sign};
use imara_format::evm::SECURITY_EVM;
use imara_format::hash::to_hex;
use imara_linux::files;
use serde_json::{Map, json};

/// Sign the metadata of files: owner, mode and security attributes, in security.evm.
///
/// A signature is bound to the file: its inode, its filesystem. One that is made with --portable is not: it moves with the file, and
/// nothing that it covers may change from then on. `imara sign --evm` labels contents and metadata at once. A label that is there is
/// exchanged in one step.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    signer: Signer,
    /// Make portable signatures, for images and packages
    #[arg(long)]
    portable: bool,
    /// Make signatures of version 3, which Linux 7.1 and later verify and can be told to require
    #[arg(long)]
    v3: bool,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    rules: RulesOptions,
    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    arguments.paths.some()?;
    let looker = Looker::new(arguments.rules.find()?);
    let (key, key_id) = arguments.signer.find(EVM_KEY)?;
    let form =
        SignatureForm { portable: arguments.portable, version: if arguments.v3 { Version::V3 } else { Version::V2 } };
    let Change { dry_run, json, quiet } = arguments.change;
    Told { done: "signed", json, quiet }.each(&arguments.paths, |file| {
        let shown = printable(file.path);
        let snapshot = looker.look_and_override(file, file.path, &arguments.rules, &arguments.overrides)?;
        let (label, digest) = sign(&snapshot, form, &looker.rules, arguments.signer.algorithm, &key, Some(key_id))
            .map_err(|error| cannot_sign(&shown, &error))?;
        if !dry_run {
            files::set_xattr(file, SECURITY_EVM, &label).map_err(|error| cannot_write(&shown, &error, false))?;
        }
        let would = if dry_run { "would be " } else { "" };
        let portable = if form.portable { "portable, " } else { "" };
        let line = format!(
            "{shown}: {would}signed, {portable}{}, key id {}, in {SECURITY_EVM}\n",
            digest.algorithm(),
            to_hex(&key_id)
        );
        let document = Map::from_iter([
            ("algorithm".to_owned(), json!(digest.algorithm().name())),
            ("digest".to_owned(), json!(digest.to_hex())),
            ("key_id".to_owned(), json!(to_hex(&key_id))),
            ("portable".to_owned(), json!(form.portable)),
            ("label".to_owned(), json!(to_hex(&label))),
            ("target".to_owned(), json!(SECURITY_EVM)),
            ("written".to_owned(), json!(!dry_run)),
        ]);
        Ok((line, document))
    })
}

/// Why metadata cannot be signed, with what to do.
pub fn cannot_sign(shown: &str, error: &EvmSignError) -> Failure {
    let failure = Failure::failed(format!("{shown}: {error}"));
    match error {
        EvmSignError::NoIma | EvmSignError::NothingToProtect => {
            failure.next(format!("label its content, too: imara sign --evm {shown}"))
        }
        EvmSignError::Unbound(_) => {
            failure.next("--generation and --fsuuid can say it; a portable signature (--portable) needs neither")
        }
        EvmSignError::Hash(_) | EvmSignError::Sign(_) => failure,
    }
}
