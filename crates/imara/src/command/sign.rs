//! `imara sign`.

use super::CommandResult;
use super::new_files::stage;
use super::paths::{Paths, path_json, printable, signature_file};
use super::signing::{IMA_KEY, Signer};
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_engine::crypto::SigningKey;
use imara_engine::label;
use imara_format::hash::{Digest, to_hex};
use imara_linux::files;
use imara_linux::tree::TreeFile;
use serde_json::json;
use std::io::ErrorKind;
use std::path::Path;

/// Sign files.
///
/// Each file's digest is signed, and the signature is kept in its security.ima, where the kernel, Imara's guard and evmctl
/// look for it. A label that is there is exchanged in one step.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    signer: Signer,
    /// Write the signature to PATH.sig, and no attribute
    #[arg(long, conflicts_with = "xattr_user")]
    sigfile: bool,
    /// Write to user.ima, not to security.ima: needs no privilege, and no kernel looks at it
    #[arg(long)]
    xattr_user: bool,
    /// Sign, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

struct Signed {
    digest: Digest,
    label: Vec<u8>,
    target: String,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    // A wrong command line is told before a passphrase is asked for.
    arguments.paths.some()?;
    let (key, key_id) = arguments.signer.find(IMA_KEY)?;
    let mut failed = 0_u64;
    let mut signed = 0_u64;
    let mut documents = Vec::new();
    let work = |file: &TreeFile<'_>| arguments.sign(file, &key, key_id);
    arguments.paths.for_each(arguments.quiet, work, |path: &Path, result: Result<Signed, Failure>| {
        let mut document = path_json(path);
        match result {
            Ok(done) => {
                signed += 1;
                let Signed { digest, label, target } = done;
                if arguments.json {
                    document.insert("algorithm".into(), json!(digest.algorithm().name()));
                    document.insert("digest".into(), json!(digest.to_hex()));
                    document.insert("label".into(), json!(to_hex(&label)));
                    document.insert("target".into(), json!(target));
                    document.insert("written".into(), json!(!arguments.dry_run));
                } else if !arguments.quiet {
                    let would = if arguments.dry_run { "would be " } else { "" };
                    print(format_args!(
                        "{}: {would}signed, {}, key id {}, in {target}\n",
                        printable(path),
                        digest.algorithm(),
                        to_hex(&key_id)
                    ));
                }
            }
            Err(failure) => {
                failed += 1;
                complain(&failure);
                document.insert("error".into(), json!(failure.what));
                document.insert("next".into(), json!(failure.next));
            }
        }
        if arguments.json {
            documents.push(serde_json::Value::Object(document));
        }
    })?;
    if arguments.json {
        print_json(&json!({
            "schema": 1, "key_id": to_hex(&key_id), "signed": signed, "failed": failed, "files": documents,
        }));
    } else if failed > 0 && failed + signed > 1 {
        complain(&Failure::failed(format!("{failed} of {} files were not signed", failed + signed)));
    }
    Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
}

impl Arguments {
    fn sign(&self, file: &TreeFile<'_>, key: &SigningKey, key_id: [u8; 4]) -> Result<Signed, Failure> {
        let path = file.path;
        let shown = printable(path);
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {what}"));
        let digest = files::digest(file, self.signer.algorithm).map_err(|error| failure(&error))?;
        let label = label::sign(&digest, key, Some(key_id)).map_err(|error| failure(&error))?;
        let (attribute, target) = match (self.sigfile, self.xattr_user) {
            (true, _) => (None, printable(&signature_file(path))),
            (false, true) => (Some("user.ima"), "user.ima".to_owned()),
            (false, false) => (Some("security.ima"), "security.ima".to_owned()),
        };
        if !self.dry_run {
            match attribute {
                Some(name) => {
                    files::set_xattr(file, name, &label).map_err(|error| {
                        let failure = failure(&format_args!("{name} cannot be set: {error}"));
                        match error.kind() {
                            ErrorKind::PermissionDenied if name == "security.ima" => failure
                                .next("run as root (CAP_SYS_ADMIN); --sigfile and --xattr-user need no privilege"),
                            ErrorKind::Unsupported => failure
                                .next("the filesystem keeps no such attributes; --sigfile writes PATH.sig beside it"),
                            _ => failure,
                        }
                    })?
                }
                None => {
                    let place = signature_file(path);
                    let temporary = stage(&place, &label, 0o644)?;
                    std::fs::rename(&temporary, &place).map_err(|error| {
                        let _ = std::fs::remove_file(&temporary);
                        Failure::failed(format!("{}: {error}", printable(&place)))
                    })?;
                }
            }
        }
        Ok(Signed { digest, label, target })
    }
}
