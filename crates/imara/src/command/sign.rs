//! `imara sign`.

use super::CommandResult;
use super::key::Passphrase;
use super::new_files::stage;
use super::paths::{Paths, path_json, printable, read, signature_file};
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_engine::crypto::{KeyError, PublicKey, SigningKey};
use imara_engine::label;
use imara_format::hash::{Digest, HashAlgorithm, from_hex, to_hex};
use imara_linux::files;
use imara_linux::tree::TreeFile;
use serde_json::json;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Sign files.
///
/// Each file's digest is signed, and the signature is kept in its security.ima, where the kernel, Imara's guard and evmctl
/// look for it. A label that is there is exchanged in one step.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    /// The private key, in PEM or DER
    #[arg(short, long, value_name = "PRIVKEY", default_value = DEFAULT_KEY)]
    key: PathBuf,
    #[command(flatten)]
    passphrase: Passphrase,
    /// The hash to sign: sha256, sha1, sha384, sha512, …
    #[arg(short = 'a', long = "hash", value_name = "HASH", default_value = "sha256", value_parser = algorithm)]
    algorithm: HashAlgorithm,
    /// The key id to write into the signature, up to 8 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = key_id, conflicts_with = "keyid_from_cert")]
    keyid: Option<KeyId>,
    /// Take the key id from this certificate of the key
    #[arg(long, value_name = "F")]
    keyid_from_cert: Option<PathBuf>,
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

const DEFAULT_KEY: &str = "/etc/keys/privkey_ima.pem";

#[derive(Clone, Copy)]
struct KeyId([u8; 4]);

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
    let key = arguments.signing_key()?;
    let key_id = arguments.key_id(&key)?;
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
    fn signing_key(&self) -> Result<SigningKey, Failure> {
        let path = self.key.display();
        let pem = match read(&self.key) {
            Ok(pem) => Zeroizing::new(pem),
            Err(error) if error.kind() == ErrorKind::NotFound && self.key == Path::new(DEFAULT_KEY) => {
                return Err(Failure::lacking(format!("there is no private key: {path} is missing"))
                    .next("name one with -k PRIVKEY, or make one with `imara key generate`"));
            }
            Err(error) => return Err(Failure::failed(format!("{path}: {error}"))),
        };
        let passphrase = self.passphrase.find(false)?;
        SigningKey::from_bytes(&pem, passphrase.as_deref().map(Vec::as_slice)).map_err(|error| {
            let failure = Failure::failed(format!("{path}: {error}"));
            match error {
                KeyError::PassphraseNeeded | KeyError::WrongPassphrase => failure
                    .next("give it with --passphrase-file F or in IMARA_KEY_PASSPHRASE; --passphrase asks for it"),
                KeyError::NotAPrivateKey(_) | KeyError::PublicKeyGiven(_) => {
                    failure.next("a private key in PEM or DER is needed, as privkey_ima.pem")
                }
                KeyError::NotAPublicKey(_)
                | KeyError::PrivateKeyGiven
                | KeyError::Truncated { .. }
                | KeyError::TruncatedPem
                | KeyError::UnsupportedType(_)
                | KeyError::InToken
                | KeyError::Library(_) => failure,
            }
        })
    }

    fn key_id(&self, key: &SigningKey) -> Result<[u8; 4], Failure> {
        if let Some(KeyId(key_id)) = self.keyid {
            return Ok(key_id);
        }
        let Some(path) = &self.keyid_from_cert else { return Ok(key.key_id()) };
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", path.display()));
        let bytes = read(path).map_err(|error| failure(&error))?;
        let public = PublicKey::from_bytes(&bytes).map_err(|error| failure(&error))?;
        let subject_key_id = public.certificate().and_then(|certificate| certificate.subject_key_id.as_deref());
        match subject_key_id {
            Some(id) if id.len() >= 4 => {}
            _ => {
                return Err(failure(&"no certificate with a subject key identifier, so it has no key id")
                    .next("give the key id with --keyid HEX"));
            }
        }
        if !public.is_same_key(key.public()) {
            return Err(failure(&format_args!("the certificate is of another key than {}", self.key.display()))
                .next("what is signed would verify nowhere; name the certificate of this key"));
        }
        Ok(public.key_id())
    }

    fn sign(&self, file: &TreeFile<'_>, key: &SigningKey, key_id: [u8; 4]) -> Result<Signed, Failure> {
        let path = file.path;
        let shown = printable(path);
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {what}"));
        let digest = files::digest(file, self.algorithm).map_err(|error| failure(&error))?;
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

fn algorithm(name: &str) -> Result<HashAlgorithm, String> {
    HashAlgorithm::from_name(name).ok_or_else(|| {
        let names = HashAlgorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>();
        format!("no such hash; known: {}", names.join(" "))
    })
}

fn key_id(text: &str) -> Result<KeyId, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() || digits.len() > 8 {
        return Err("1 to 8 hexadecimal digits are needed".to_owned());
    }
    let bytes = from_hex(&format!("{digits:0>8}")).map_err(|error| error.to_string())?;
    bytes.first_chunk().copied().map(KeyId).ok_or_else(|| "1 to 8 hexadecimal digits are needed".to_owned())
}
