//! `imara verity sign`.

use super::Tree;
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::each_file::EachFile;
use crate::command::new_files::stage;
use crate::command::paths::{Paths, printable, signature_file};
use crate::command::signing::{IMA_KEY, Key};
use crate::output::Failure;
use imara_engine::label;
use imara_format::hash::to_hex;
use imara_linux::{files, verity};
use serde_json::{Map, json};

/// Sign the fs-verity digests of files, for rules with `digest_type=verity appraise_type=sigv3`.
///
/// The label, version 3 in security.ima, is over the digest that the kernel has, or for a file without fs-verity over the one that
/// it will have. Kernels from 5.19 on verify it.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    tree: Tree,
    #[command(flatten)]
    key: Key,
    /// Write the signature to PATH.sig, and no attribute
    #[arg(long, conflicts_with = "xattr_user")]
    sigfile: bool,
    /// Write to user.ima, not to security.ima: needs no privilege, and no kernel looks at it
    #[arg(long)]
    xattr_user: bool,
    #[command(flatten)]
    change: Change,
}

pub fn run(arguments: &Arguments) -> CommandResult {
    arguments.paths.some()?;
    let parameters = arguments.tree.parameters()?;
    let (key, key_id) = arguments.key.find(IMA_KEY)?;
    let Change { dry_run, json, quiet } = arguments.change;
    EachFile { done: "signed", json, quiet, verbose: true }.each(&arguments.paths, |file| {
        let shown = printable(file.path);
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {what}"));
        let measured = verity::measure(file).map_err(|error| failure(&error))?;
        let enabled = measured.is_some();
        let digest = match measured {
            Some(digest) => digest,
            None => verity::compute(file, &parameters).map_err(|error| failure(&error))?,
        };
        let label = label::sign_verity(&digest, &key, Some(key_id)).map_err(|error| failure(&error))?;
        let target = match (arguments.sigfile, arguments.xattr_user) {
            (true, _) => {
                let place = signature_file(file.path);
                if !dry_run {
                    let temporary = stage(&place, &label, 0o644)?;
                    std::fs::rename(&temporary, &place).map_err(|error| {
                        let _ = std::fs::remove_file(&temporary);
                        Failure::failed(format!("{}: {error}", printable(&place)))
                    })?;
                }
                printable(&place)
            }
            (false, user) => {
                let name = if user { "user.ima" } else { "security.ima" };
                if !dry_run {
                    files::set_xattr(file, name, &label)
                        .map_err(|error| failure(&format_args!("{name} cannot be set: {error}")))?;
                }
                name.to_owned()
            }
        };
        let would = if dry_run { "would be " } else { "" };
        let not_yet = if enabled { "" } else { "; fs-verity is not enabled for it yet" };
        let (algorithm, hex, id) = (digest.algorithm(), digest.to_hex(), to_hex(&key_id));
        let document = Map::from_iter([
            ("algorithm".to_owned(), json!(algorithm.name())),
            ("digest".to_owned(), json!(hex)),
            ("enabled".to_owned(), json!(enabled)),
            ("key_id".to_owned(), json!(id)),
            ("label".to_owned(), json!(to_hex(&label))),
            ("target".to_owned(), json!(target)),
            ("written".to_owned(), json!(!dry_run)),
        ]);
        Ok((format!("{shown}: {would}signed, verity:{algorithm}:{hex}, key id {id}, in {target}{not_yet}\n"), document))
    })
}
