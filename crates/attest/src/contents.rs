//! What keys and reference values say of the contents that a list names.
//!
//! PCRs prove that a list is the one that a machine made; not that what ran there was meant to. For that each entry is
//! held against signatures (the entry's own, as templates with `sig` have them) and against a list of references. Both
//! judge contents, so entries without one (violations, measured buffers, `boot_aggregate`) are counted and left.

use imara_engine::keyring::Keyring;
use imara_engine::label::{Verified, verify_label, verify_verity_label};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label::Label;
use imara_format::measurement_list::Record;
use imara_format::reference::{References, Standing};
use imara_format::template::{BOOT_AGGREGATE, Field};
use serde::Serialize;
use std::sync::Arc;

/// So many findings are told one by one.
const MOST_FINDINGS: usize = 1000;

/// Judges a list's entries, one after the other.
#[derive(Debug)]
pub struct Contents {
    keyring: Option<Arc<Keyring>>,
    references: Option<Arc<References>>,
    report: ContentsReport,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ContentsReport {
    /// Entries without a content that could be judged.
    pub without_content: u64,
    /// How the signatures came out, where keys were given.
    pub signatures: Option<Signatures>,
    /// How the contents came out, where references were given.
    pub references: Option<Referenced>,
    /// What did not pass, from the list's beginning on, at most 1000.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub findings_left_off: u64,
}

/// How signatures came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Signatures {
    /// Entries with a signature that a key verifies.
    pub verified: u64,
    /// Entries that carry none.
    pub unsigned: u64,
    /// Entries with one over metadata as well (an EVM portable signature), which a list alone cannot verify.
    pub portable: u64,
    /// Entries with one that does not verify, or whose key is not known.
    pub failed: u64,
}

/// How contents came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Referenced {
    /// Entries with a content that is meant.
    pub known: u64,
    /// Entries of a file that is meant to have another content.
    pub changed: u64,
    /// Entries of a file that no reference names.
    pub unlisted: u64,
}

/// An entry that did not pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its number; the first is 1.
    pub entry: u64,
    /// Its name; bytes that are no text are escaped.
    pub path: String,
    /// Why.
    pub why: String,
}

/// The list has the content in another algorithm than the signature's.
#[derive(Debug, thiserror::Error)]
#[error("the signature is over {signed}, and the list has the content in {listed}")]
struct OtherAlgorithm {
    signed: HashAlgorithm,
    listed: HashAlgorithm,
}

impl Contents {
    /// Judges by keys, references or both.
    pub fn new(keyring: Option<Arc<Keyring>>, references: Option<Arc<References>>) -> Self {
        let report = ContentsReport {
            signatures: keyring.as_ref().map(|_| Signatures::default()),
            references: references.as_ref().map(|_| Referenced::default()),
            ..ContentsReport::default()
        };
        Self { keyring, references, report }
    }

    /// Judges an entry.
    pub fn judge(&mut self, record: &Record<'_>) {
        let digest = match record.digest() {
            Some(digest) if !record.is_violation() && !is_no_file(record) => digest,
            _ => {
                self.report.without_content += 1;
                return;
            }
        };
        let path = record.path().unwrap_or_default();
        if let Some(why) = self.signature(record, &digest) {
            self.report.find(record.number, path, why);
        }
        if let Some(why) = self.reference(path, &digest) {
            self.report.find(record.number, path, why);
        }
    }

    /// What came out.
    pub fn finish(self) -> ContentsReport {
        self.report
    }

    fn signature(&mut self, record: &Record<'_>, digest: &Digest) -> Option<String> {
        let (Some(keyring), Some(counts)) = (&self.keyring, &mut self.report.signatures) else { return None };
        let Some(label) = record.signature().filter(|label| !label.is_empty()) else {
            counts.unsigned += 1;
            return None;
        };
        let listed = digest.algorithm();
        let digest_for = |signed| if signed == listed { Ok(*digest) } else { Err(OtherAlgorithm { signed, listed }) };
        let verified = match Label::parse_ima(label) {
            Ok(Label::VeritySignature(_)) => verify_verity_label(label, digest_for, keyring),
            Err(_) if matches!(Label::parse_evm(label), Ok(Label::EvmPortable(_))) => {
                counts.portable += 1;
                return None;
            }
            _ => verify_label(label, digest_for, keyring),
        };
        match verified {
            Ok(Verified::Signature { .. }) => {
                counts.verified += 1;
                None
            }
            // A digest label that agrees is no signature, and one that does not is one thing with the content: changed.
            Ok(Verified::Digest(_)) => {
                counts.unsigned += 1;
                None
            }
            Err(rejected) => {
                counts.failed += 1;
                Some(rejected.to_string())
            }
        }
    }

    fn reference(&mut self, path: &[u8], digest: &Digest) -> Option<String> {
        let (Some(references), Some(counts)) = (&self.references, &mut self.report.references) else { return None };
        match references.standing(path, digest) {
            Standing::Known => {
                counts.known += 1;
                None
            }
            Standing::Changed => {
                counts.changed += 1;
                Some(format!("its content is {digest}, which the references do not give it"))
            }
            Standing::OtherAlgorithm(other) => {
                counts.unlisted += 1;
                Some(format!("its content is {digest}, and the references have it in {other} only"))
            }
            Standing::Unlisted => {
                counts.unlisted += 1;
                Some(format!("no reference names it; its content is {digest}"))
            }
        }
    }
}

impl ContentsReport {
    /// How many findings there are.
    pub fn failed(&self) -> u64 {
        self.findings.len() as u64 + self.findings_left_off
    }

    fn find(&mut self, entry: u64, path: &[u8], why: String) {
        if self.findings.len() == MOST_FINDINGS {
            self.findings_left_off += 1;
        } else {
            self.findings.push(Finding { entry, path: path.escape_ascii().to_string(), why });
        }
    }
}

/// Whether the entry is of a buffer, or sums up PCRs.
fn is_no_file(record: &Record<'_>) -> bool {
    record.template.fields.contains(&Field::Buf) || (record.number == 1 && record.path() == Some(BOOT_AGGREGATE))
}
