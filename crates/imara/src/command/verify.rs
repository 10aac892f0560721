//! `imara verify`.

use super::CommandResult;
use super::certificates::read_keyring;
use super::paths::{Paths, path_json, printable, signature_file};
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_engine::keyring::{Keyring, VerifyError};
use imara_engine::label::{Rejected, Verified, verify_label};
use imara_format::hash::{Digest, to_hex};
use imara_format::label::LabelError;
use imara_linux::files::{self, Xattr};
use imara_linux::tree::TreeFile;
use serde_json::json;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Verify the labels of files.
///
/// A signature proves who signed the content. A digest label proves that the content is unchanged and nothing about who
/// made it; it passes only where no key is given with -k.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    /// A certificate or public key, in DER or PEM; may be given several times [default: /etc/keys/x509_ima.der, if there]
    #[arg(short, long = "key", value_name = "CERT_OR_PUBKEY")]
    keys: Vec<PathBuf>,
    /// Verify the signature in PATH.sig, and no attribute
    #[arg(long, conflicts_with = "xattr_user")]
    sigfile: bool,
    /// Verify user.ima, not security.ima
    #[arg(long)]
    xattr_user: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

const DEFAULT_KEY: &str = "/etc/keys/x509_ima.der";

struct Proof {
    digest: Digest,
    /// Key id and what else is known of the key; none for a digest label.
    signer: Option<Signer>,
}

struct Signer {
    version: u8,
    key_id: String,
    kind: String,
    subject: Option<String>,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    arguments.paths.some()?;
    let keyring = read_keyring(&arguments.keys, DEFAULT_KEY)?;
    let (mut verified, mut failed) = (0_u64, 0_u64);
    let mut documents = Vec::new();
    let work = |file: &TreeFile<'_>| arguments.verify(file, &keyring);
    arguments.paths.for_each(arguments.quiet, work, |path: &Path, result: Result<Proof, Failure>| {
        let mut document = path_json(path);
        document.insert("verified".into(), json!(result.is_ok()));
        match result {
            Ok(Proof { digest, signer }) => {
                verified += 1;
                document.insert("algorithm".into(), json!(digest.algorithm().name()));
                document.insert("digest".into(), json!(digest.to_hex()));
                document.insert("proves".into(), json!(if signer.is_some() { "signature" } else { "digest" }));
                let shown = printable(path);
                let text = match &signer {
                    Some(signer) => {
                        document.insert("version".into(), json!(signer.version));
                        document.insert("key_id".into(), json!(signer.key_id));
                        document.insert("key".into(), json!(signer.kind));
                        document.insert("subject".into(), json!(signer.subject));
                        let subject = signer.subject.as_ref().map(|subject| format!(", {subject}")).unwrap_or_default();
                        let (algorithm, key_id, kind) = (digest.algorithm(), &signer.key_id, &signer.kind);
                        format!("{shown}: good signature, {algorithm}, key id {key_id}, {kind}{subject}\n")
                    }
                    None => format!(
                        "{shown}: unchanged, {}; a digest alone, which does not say who made it\n",
                        digest.algorithm()
                    ),
                };
                if !arguments.quiet && !arguments.json {
                    print(text);
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
        print_json(&json!({ "schema": 1, "verified": verified, "failed": failed, "files": documents }));
    } else if failed > 0 && failed + verified > 1 {
        complain(&Failure::failed(format!("{failed} of {} files did not verify", failed + verified)));
    }
    Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
}

impl Arguments {
    fn verify(&self, file: &TreeFile<'_>, keyring: &Keyring) -> Result<Proof, Failure> {
        let path = file.path;
        let shown = printable(path);
        let failure = |what: &dyn Display| Failure::failed(format!("{shown}: {what}"));
        let name = if self.xattr_user { "user.ima" } else { "security.ima" };
        let sign = if self.xattr_user { "imara sign --xattr-user" } else { "imara sign" };
        let label = if self.sigfile {
            let place = signature_file(path);
            super::paths::read(&place).map_err(|error| match error.kind() {
                ErrorKind::NotFound => failure(&format_args!("not signed: {} is not there", printable(&place)))
                    .next(format_args!("sign it: imara sign --sigfile {shown}")),
                _ => failure(&format_args!("{}: {error}", printable(&place))),
            })?
        } else {
            match files::read_xattr(file, name).map_err(|error| failure(&format_args!("{name}: {error}")))? {
                Xattr::Value(label) => label,
                Xattr::Absent => {
                    return Err(failure(&format_args!("not labelled: it has no {name}"))
                        .next(format_args!("sign it: {sign} {shown}")));
                }
                Xattr::Unsupported => {
                    return Err(failure(&format_args!("not labelled: its filesystem keeps no {name}"))
                        .next("--sigfile verifies PATH.sig"));
                }
            }
        };
        let digest_for = |algorithm| files::digest(file, algorithm);
        match verify_label(&label, digest_for, keyring) {
            Ok(Verified::Signature { key, version, digest }) => {
                let signer = Signer {
                    version,
                    key_id: match version {
                        1 => to_hex(&key.v1_id().unwrap_or_default()),
                        _ => to_hex(&key.key_id()),
                    },
                    kind: key.kind().to_string(),
                    subject: key.certificate().map(|certificate| certificate.subject.clone()),
                };
                Ok(Proof { digest, signer: Some(signer) })
            }
            Ok(Verified::Digest(digest)) if self.keys.is_empty() && !self.sigfile => Ok(Proof { digest, signer: None }),
            Ok(Verified::Digest(digest)) => Err(failure(&format_args!(
                "not signed: its label is a {} digest, which anyone who can write the label can make",
                digest.algorithm()
            ))
            .next(format_args!("sign it: {sign} {shown}; without -k, `imara verify` takes a digest"))),
            Err(rejected) => Err(failure(&rejected).next(self.remedy(&rejected, keyring, path))),
        }
    }

    /// What would make the file pass.
    fn remedy(&self, rejected: &Rejected<io::Error>, keyring: &Keyring, path: &Path) -> String {
        let shown = printable(path);
        match rejected {
            Rejected::Changed { .. } | Rejected::Signature(VerifyError::Rejected { .. }) => {
                format!("restore the content that was labelled; or, if the change is meant, imara sign {shown}")
            }
            Rejected::Signature(VerifyError::UnknownKey { key_id }) => unknown_key(key_id, keyring),
            Rejected::Signature(VerifyError::RevokedKey { .. }) => {
                format!("sign it with another key: imara sign {shown}")
            }
            Rejected::Signature(VerifyError::AlgorithmMismatch { .. }) => String::new(),
            Rejected::Label(LabelError::UnknownType { .. } | LabelError::Empty(_)) => {
                format!("see what it is with `imara show {shown}`; label it again: imara sign {shown}")
            }
            Rejected::Label(_) | Rejected::Version(_) => {
                format!("the label is damaged; label it again: imara sign {shown}")
            }
            Rejected::Verity | Rejected::NotVerity => {
                "an fs-verity signature is verified by the kernel; sign the content with `imara sign`".to_owned()
            }
            Rejected::Hash(_) => String::new(),
            Rejected::Collect(error) if error.kind() == ErrorKind::Unsupported => {
                format!("label it with another hash: imara sign -a sha256 {shown}")
            }
            Rejected::Collect(_) => String::new(),
        }
    }
}

fn unknown_key(key_id: &[u8], keyring: &Keyring) -> String {
    let key_id_text = to_hex(key_id);
    if keyring.is_empty() {
        return format!("give the certificate with key id {key_id_text}: -k CERT");
    }
    if key_id.len() == 8 {
        return format!("version 1 signatures need the bare RSA public key with id {key_id_text}: -k PUBKEY");
    }
    // The one case where the right key was given and neither the kernel nor evmctl's signature names it.
    if let Some(key) = keyring.keys().iter().find(|key| key.key_id() == *key_id) {
        let subject = key.certificate().map_or("", |certificate| &certificate.subject);
        return format!(
            "the certificate of {subject} is of that key, but has no subject key identifier, so the kernel would not find it \
             either; make one that has it, or give the public key"
        );
    }
    let given = keyring.keys().iter().map(|key| to_hex(&key.key_id())).collect::<Vec<_>>();
    format!("give the certificate with key id {key_id_text}: -k CERT; given: {}", given.join(", "))
}
