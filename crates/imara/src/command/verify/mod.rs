//! `imara verify`.
//!
//! | file | concept |
//! |---|---|
//! | `keys.rs` | what is verified with: files, folders, a kernel keyring |
//! | `finding.rs` | what verifying a label came to |
//! | `packages.rs` | installed files against what the package manager keeps of them |

mod finding;
mod keys;
mod packages;

use super::CommandResult;
use super::labelling::content_place;
use super::labelling::refusal::name;
use super::paths::{Paths, holds_a_signature, printable};
use super::progress::Progress;
use super::telling::{
    Form, Telling, Told, amount, counted, failure_json, grouped, look_again, tell_if_interrupted, took,
};
use crate::output::{Failure, Outcome};
use finding::{Kind, Next, Proof, Refused};
use imara_format::journal::Place;
use imara_linux::files::Xattr;
use imara_linux::interruption;
use imara_linux::tree::{Batch, TreeFile};
use keys::{KeySources, Keys};
use packages::PackageOptions;
use serde_json::{Map, json};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Verify the labels of files.
///
/// A signature proves who signed the content. A digest label proves that the content is unchanged and nothing about who
/// made it; it passes only where no key is given with -k or --keyring.
///
/// The exit status is 0 when every file verified, 1 when one did not, 4 when trees and lists hold no file. A run over trees and lists that
/// SIGINT or SIGTERM ends says how far it came, and ends by the signal: a shell sees 130 or 143.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    keys: KeySources,
    #[command(flatten)]
    packages: PackageOptions,
    /// Verify the signature in PATH.sig, and no attribute
    #[arg(long, conflicts_with = "xattr_user")]
    sigfile: bool,
    /// Verify user.ima, not security.ima
    #[arg(long)]
    xattr_user: bool,
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

/// How many files came to what.
#[derive(Default)]
struct Counts {
    signed: u64,
    unchanged: u64,
    refused: [u64; Kind::ALL.len()],
    bytes: u64,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.signed += more.signed;
        self.unchanged += more.unchanged;
        self.refused.iter_mut().zip(more.refused).for_each(|(count, more)| *count += more);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    fn verified(&self) -> u64 {
        self.signed + self.unchanged
    }

    fn failed(&self) -> u64 {
        self.refused.iter().sum()
    }
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    if arguments.packages.packages {
        return packages::run(arguments);
    }
    arguments.paths.some()?;
    let keys = arguments.keys.find()?;
    let many = arguments.paths.are_many();
    let form = Form::new(arguments.json, arguments.quiet, arguments.verbose, many);
    let verification =
        Verification { arguments, keys, form, place: content_place(arguments.xattr_user, arguments.sigfile) };
    let (mut counts, mut telling) = (Counts::default(), Telling::new(form, many));
    let (progress, started) = (Progress::new(arguments.quiet, "files"), Instant::now());
    arguments.paths.for_each_batch(
        &progress,
        PathBuf::new,
        |path, batch| verification.batch(path, batch, &progress),
        |(more, told): (Counts, Told)| {
            counts.add(&more);
            telling.tell(told);
        },
    )?;
    drop(progress);
    let summary = || {
        let (verified, failed) = (counts.verified(), counts.failed());
        if verified + failed == 0 {
            return "no file was found\n".to_owned();
        }
        let mut parts = Vec::new();
        let mut part = |count: u64, what: &str| {
            if count > 0 {
                parts.push(format!("{} {what}", grouped(count)));
            }
        };
        part(counts.signed, "with a good signature");
        part(counts.unchanged, "unchanged by the digest in the label");
        for kind in Kind::ALL {
            part(counts.refused[kind.index()], kind.words());
        }
        let (parts, read, took) = (parts.join(", "), amount(counts.bytes), took(started.elapsed()));
        format!("{}: {parts}; {read} read in {took}\n", counted(verified + failed, "file"))
    };
    let mut numbers = Map::new();
    numbers.insert("verified".into(), json!(counts.verified()));
    numbers.insert("failed".into(), json!(counts.failed()));
    numbers.insert("signed".into(), json!(counts.signed));
    numbers.insert("unchanged".into(), json!(counts.unchanged));
    for kind in Kind::ALL {
        numbers.insert(kind.name().into(), json!(counts.refused[kind.index()]));
    }
    numbers.insert("bytes".into(), json!(counts.bytes));
    telling.end(summary, numbers);
    tell_if_interrupted(counts.verified() + counts.failed(), look_again);
    Ok(match (counts.verified(), counts.failed()) {
        (0, 0) if many => Outcome::Nothing,
        (_, 0) => Outcome::Done,
        _ => Outcome::Failed,
    })
}

struct Verification<'a> {
    arguments: &'a Arguments,
    keys: Keys,
    form: Form,
    place: Place,
}

impl Verification<'_> {
    fn batch(&self, path: &mut PathBuf, batch: &Batch, progress: &Progress) -> (Counts, Told) {
        let (mut counts, mut told) = (Counts::default(), Told::default());
        for index in 0..batch.len() {
            batch.path(index, path);
            if interruption::came().is_some() {
                break;
            }
            let beside = self.place == Place::SignatureFile && self.arguments.paths.are_many();
            if beside && holds_a_signature(path) {
                continue;
            }
            let found = match batch.open(index, path) {
                Ok(Some(file)) => self.verify(&file, |more| {
                    counts.bytes += more;
                    progress.bytes(more);
                }),
                Ok(None) => continue,
                Err(error) => {
                    let Failure { next, .. } = self.arguments.paths.open_failure(&error);
                    Err(Refused { kind: Kind::Unreadable, what: error.reason(), next: Next::Text(next) })
                }
            };
            match found {
                Ok(proof) => self.passed(path, &proof, &mut counts, &mut told),
                // It was not read to its end.
                Err(Refused { kind: Kind::Unreadable, .. }) if interruption::came().is_some() => break,
                Err(refused) => self.refused(path, &refused, &mut counts, &mut told),
            }
        }
        (counts, told)
    }

    fn verify(&self, file: &TreeFile<'_>, mut step: impl FnMut(u64)) -> Result<Proof, Refused> {
        let refused = |kind, what: &dyn Display, next| Refused { kind, what: what.to_string(), next };
        let name = || name(self.place, file.path);
        let label = match file.label(self.place) {
            Ok(Xattr::Value(label)) => label,
            Ok(Xattr::Absent) if self.place == Place::SignatureFile => {
                return Err(refused(
                    Kind::NoLabel,
                    &format_args!("not signed: {} is not there", name()),
                    Next::Sign(""),
                ));
            }
            Ok(Xattr::Absent) => {
                return Err(refused(
                    Kind::NoLabel,
                    &format_args!("not labelled: it has no {}", name()),
                    Next::Sign(""),
                ));
            }
            Ok(Xattr::Unsupported) => {
                let what = format!("not labelled: its filesystem keeps no {}", name());
                return Err(refused(Kind::NoLabel, &what, Next::Text("--sigfile verifies PATH.sig".to_owned())));
            }
            Err(error) => return Err(refused(Kind::Unreadable, &format_args!("{}: {error}", name()), Next::Nothing)),
        };
        let digest_is_enough = !self.keys.given && self.place != Place::SignatureFile;
        finding::verify(&label, |algorithm| file.digest(algorithm, &mut step), &self.keys, digest_is_enough)
    }

    fn passed(&self, path: &Path, proof: &Proof, counts: &mut Counts, told: &mut Told) {
        let Proof { digest, signer } = proof;
        *(if signer.is_some() { &mut counts.signed } else { &mut counts.unchanged }) += 1;
        told.line(self.form, || {
            let (shown, algorithm) = (printable(path), digest.algorithm());
            match signer {
                Some(signer) => {
                    let subject = signer.subject.as_ref().map(|subject| format!(", {subject}")).unwrap_or_default();
                    let (key_id, kind) = (&signer.key_id, &signer.kind);
                    format!("{shown}: good signature, {algorithm}, key id {key_id}, {kind}{subject}\n")
                }
                None => format!("{shown}: unchanged, {algorithm}; a digest alone, which does not say who made it\n"),
            }
        });
        told.object(self.form, path, |object| {
            object.insert("verified".into(), json!(true));
            object.insert("algorithm".into(), json!(digest.algorithm().name()));
            object.insert("digest".into(), json!(digest.to_hex()));
            object.insert("proves".into(), json!(if signer.is_some() { "signature" } else { "digest" }));
            if let Some(signer) = signer {
                object.insert("version".into(), json!(signer.version));
                object.insert("key_id".into(), json!(signer.key_id));
                object.insert("key".into(), json!(signer.kind));
                object.insert("subject".into(), json!(signer.subject));
            }
        });
    }

    fn refused(&self, path: &Path, refused: &Refused, counts: &mut Counts, told: &mut Told) {
        let Refused { kind, what, next } = refused;
        counts.refused[kind.index()] += 1;
        let next = self.next(next, path);
        let failure = Failure::failed(format!("{}: {what}", printable(path))).next(next);
        told.object(self.form, path, |object| {
            object.insert("verified".into(), json!(false));
            object.insert("state".into(), json!(kind.name()));
            failure_json(object, &failure);
        });
        told.failure(failure);
    }

    /// What would make the file pass; of many files for all of them.
    fn next(&self, next: &Next, path: &Path) -> String {
        let shown = if self.arguments.paths.are_many() { "FILE".to_owned() } else { printable(path) };
        let option = match self.place {
            Place::UserIma | Place::UserEvm => " --xattr-user",
            Place::SignatureFile => " --sigfile",
            Place::SecurityIma | Place::SecurityEvm => "",
        };
        match next {
            Next::Nothing => String::new(),
            Next::Restore => {
                format!("restore the content that was labelled; or, if the change is meant, imara sign{option} {shown}")
            }
            Next::Sign(more) => format!("sign it: imara sign{option} {shown}{more}"),
            Next::Relabel(None) => format!("the label is damaged; label it again: imara sign{option} {shown}"),
            Next::Relabel(Some(hash)) => format!("label it with another hash: imara sign{option} -a {hash} {shown}"),
            Next::Look => {
                format!("see what it is with `imara show {shown}`; label it again: imara sign{option} {shown}")
            }
            Next::Text(text) => text.clone(),
        }
    }
}
