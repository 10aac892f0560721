//! `imara evm verify`.

use super::metadata::Looker;
use super::rules::RulesOptions;
use super::states::Recording;
use crate::command::CommandResult;
use crate::command::certificates::Trust;
use crate::command::each_file::{EachFile, OfFile};
use crate::command::hmac_key::HmacKeyOptions;
use crate::command::paths::{Paths, printable};
use crate::output::Failure;
use imara_engine::evm::verify::Reason;
use imara_engine::evm::{Found, HMAC_TYPE, HmacKey, PORTABLE_TYPE, SIGNATURE_TYPE, Snapshot, Verifier};
use imara_engine::integrity_status::IntegrityStatus;
use imara_engine::keyring::{Keyring, VerifyError};
use imara_format::evm::EvmMode;
use imara_format::hash::to_hex;
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Verify the EVM labels of files: HMACs and signatures over their owner, mode and security attributes.
///
/// The status is EVM's own: pass, pass_immutable (a portable signature), fail, fail_immutable, no_label, no_xattrs, unknown. The
/// exit status is 1 when a file's is not one of the first two, 4 when trees and lists hold no file.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    with: With,
    /// Keep the states of the files that verify in F, so that `imara evm explain --recorded F` can tell what was changed later; what F
    /// has of files that do not verify now stays
    #[arg(long, value_name = "F")]
    record: Option<PathBuf>,
    /// Print JSON: of files that are named a document, with -r or --files-from a line for each file, and at last a summary
    #[arg(long)]
    json: bool,
    /// With -r or --files-from, print a line for each file that verified, too
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// What labels are verified with.
#[derive(clap::Args)]
pub struct With {
    /// A certificate or public key, in DER or PEM; may be given several times [default: /etc/keys/x509_evm.der, if there]
    #[arg(short, long = "key", value_name = "CERT_OR_PUBKEY")]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    hmac_key: HmacKeyOptions,
    #[command(flatten)]
    rules: RulesOptions,
}

const DEFAULT_KEY: &str = "/etc/keys/x509_evm.der";

impl With {
    /// Finds all of it. An HMAC key that nobody has named need not be there.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn find(&self) -> Result<Means, Failure> {
        let hmac_key = match (self.hmac_key.find(), self.hmac_key.is_named()) {
            (Err(failure), true) => return Err(failure),
            (key, _) => key,
        };
        Ok(Means {
            keys: self.trust.keyring(&self.keys, Some(DEFAULT_KEY))?,
            hmac_key,
            looker: Looker::new(self.rules.find()?),
        })
    }
}

/// What there is to verify with.
pub struct Means {
    keys: Keyring,
    /// The key, or why there is none.
    hmac_key: Result<Box<dyn HmacKey>, Failure>,
    /// Looks at files.
    pub looker: Looker,
}

impl Means {
    /// EVM, with both bits set: what each of them is for is seen from the label.
    pub fn verifier(&self) -> Verifier<'_> {
        Verifier {
            rules: &self.looker.rules,
            mode: EvmMode::HMAC | EvmMode::X509,
            hmac_key: self.hmac_key.as_deref().ok(),
            keys: &self.keys,
        }
    }

    /// What would make a file pass, or tell more.
    pub fn remedy(&self, reason: &Reason, shown: &str) -> String {
        match reason {
            Reason::NoHmacKey => match &self.hmac_key {
                Err(failure) => format!("{}: {}", failure.what, failure.next),
                Ok(_) => String::new(),
            },
            Reason::HmacDiffers | Reason::Signature(VerifyError::Rejected { .. }) => {
                format!("imara evm explain {shown}    # tells what was changed, where that can be known")
            }
            Reason::NoLabel | Reason::Empty => format!(
                "if it is what you mean, label it: imara evm sign {shown}, or with the HMAC key imara evm hmac --write {shown}"
            ),
            Reason::NothingToProtect | Reason::NothingProtected | Reason::NoIma => {
                format!("label its content first: imara sign --evm {shown} labels both")
            }
            Reason::Signature(VerifyError::UnknownKey { key_id }) => {
                format!("give the certificate with key id {}: -k CERT", to_hex(key_id))
            }
            Reason::UnknownType(_)
            | Reason::HmacLength(_)
            | Reason::SignatureTooShort(_)
            | Reason::SignatureFormat(_) => {
                format!("see what it is with `imara show {shown}`; label it again: imara evm sign {shown}")
            }
            Reason::Hash(_) | Reason::OldVersion(_) | Reason::Signature(_) => {
                format!("sign it again: imara evm sign {shown}")
            }
            Reason::NewVersion(_) => {
                format!(
                    "--kernel latest judges it as Linux 7.1 and later do; for older kernels sign it without --v3: imara evm sign {shown}"
                )
            }
            Reason::Metadata(_) => {
                "run as root; --fsuuid UUID says what cannot be found out; a portable signature needs neither"
                    .to_owned()
            }
            Reason::NoAttributes => "the filesystem cannot hold a label".to_owned(),
            Reason::NotEnabled
            | Reason::NotProtected(_)
            | Reason::Overlay
            | Reason::Unreadable
            | Reason::Foreign
            | Reason::Hmac(_) => String::new(),
        }
    }
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    arguments.paths.some()?;
    let means = arguments.with.find()?;
    let Arguments { json, quiet, verbose, .. } = *arguments;
    let told = EachFile { done: "verified", json, quiet, verbose };
    let recording = arguments.record.as_deref().map(Recording::begin).transpose()?;
    let many = arguments.paths.are_many();
    let outcome = told.each_of(&arguments.paths, |file| of_file(file, &means, recording.as_ref(), many))?;
    if let Some(recording) = recording {
        recording.finish()?;
    }
    Ok(outcome)
}

fn of_file(
    file: &TreeFile<'_>,
    means: &Means,
    recording: Option<&Recording>,
    many: bool,
) -> Result<Option<OfFile>, Failure> {
    // It is in the tree for the time of the run.
    if recording.is_some_and(|recording| recording.is_written_to(file)) {
        return Ok(None);
    }
    let shown = printable(file.path);
    let snapshot = means.looker.look(file, file.path)?;
    let found = means.verifier().status(&snapshot);
    if let Some(recording) = recording.filter(|_| found.status.passes()) {
        recording.note(file.path, &snapshot, found.status);
    }
    let document = document(&snapshot, &found);
    let line = match &found.reason {
        None => Ok(format!("{shown}: {}\n", good(&snapshot, &found))),
        Some(reason) => {
            let what = format!("{shown}: {}: {reason}", found.status);
            // Of many files it is said once.
            let named = if many { "FILE" } else { &shown };
            Err(Failure::failed(what).next(means.remedy(reason, named)))
        }
    };
    Ok(Some(OfFile { class: Some(found.status.words()), line, document }))
}

/// A label's type, in a word.
pub fn kind_word(snapshot: &Snapshot) -> Option<&'static str> {
    match snapshot.label.kind()? {
        HMAC_TYPE => Some("hmac"),
        SIGNATURE_TYPE => Some("signature"),
        PORTABLE_TYPE => Some("portable-signature"),
        _ => None,
    }
}

/// What is said of a file for programs.
pub fn document(snapshot: &Snapshot, found: &Found<'_>) -> Map<String, Value> {
    let mut document = Map::from_iter([
        ("verified".to_owned(), json!(found.status.passes())),
        ("status".to_owned(), json!(found.status.words())),
        ("type".to_owned(), json!(kind_word(snapshot))),
    ]);
    if let Some(key) = found.signer {
        document.insert("key_id".into(), json!(to_hex(&key.key_id())));
        document.insert("key".into(), json!(key.kind().to_string()));
        document.insert("subject".into(), json!(key.certificate().map(|certificate| certificate.subject.clone())));
    }
    document
}

/// A label that verified, for people: `good HMAC`.
pub fn good(snapshot: &Snapshot, found: &Found<'_>) -> String {
    let Some(key) = found.signer else { return "good HMAC".to_owned() };
    let portable = if found.status == IntegrityStatus::PassImmutable { "portable " } else { "" };
    let algorithm = snapshot.label.value().and_then(|label| label.get(2).copied());
    let algorithm = algorithm.and_then(imara_format::hash::HashAlgorithm::from_id);
    let algorithm = algorithm.map(|algorithm| format!(", {algorithm}")).unwrap_or_default();
    let subject = key.certificate().map(|certificate| format!(", {}", certificate.subject)).unwrap_or_default();
    format!("good {portable}signature{algorithm}, key id {}, {}{subject}", to_hex(&key.key_id()), key.kind())
}
