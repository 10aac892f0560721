//! `imara show`.

use super::CommandResult;
use super::paths::{Paths, printable, read};
use super::progress::Progress;
use super::telling::{Form, Telling, Told, failure_json, look_again, tell_if_interrupted};
use crate::output::{Failure, Outcome};
use imara_format::hash::to_hex;
use imara_format::label::{Label, LabelError};
use imara_format::signature::Signature;
use imara_linux::files::{Xattr, read_xattr};
use imara_linux::tree::Batch;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Show the labels of files: security.ima and security.evm, decoded.
///
/// Nothing is verified: see `imara verify`. The exit status is 1 when a label cannot be read.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    /// Show user.ima and user.evm too
    #[arg(long)]
    xattr_user: bool,
    /// Show the label that FILE holds as its content, e.g. PATH.sig; `-` is standard input
    #[arg(long, value_name = "FILE")]
    raw: Vec<PathBuf>,
    /// Print JSON: of files that are named a document, with -r or --files-from a line for each file, and at last a summary
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let many = arguments.paths.are_many();
    let form = Form::new(arguments.json, arguments.quiet, true, many);
    let (mut telling, mut counts) = (Telling::new(form, many), Counts::default());
    for path in &arguments.raw {
        let value = read(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())));
        let (mut told, mut more) = (Told::default(), Counts::default());
        tell(form, path, value.map(|value| vec![("label", Ok(Xattr::Value(value)))]), &mut more, &mut told);
        counts.add(more);
        telling.tell(told);
    }
    if arguments.raw.is_empty() || arguments.paths.some().is_ok() {
        let names = match arguments.xattr_user {
            true => &["security.ima", "security.evm", "user.ima", "user.evm"][..],
            false => &["security.ima", "security.evm"],
        };
        let work = |path: &mut PathBuf, batch: &Batch| {
            let (mut told, mut counts) = (Told::default(), Counts::default());
            for index in 0..batch.len() {
                batch.path(index, path);
                let attributes = match batch.open(index, path) {
                    Ok(Some(file)) => Ok(names.iter().map(|name| (*name, read_xattr(&file, name))).collect()),
                    Ok(None) => continue,
                    Err(error) => Err(arguments.paths.open_failure(&error)),
                };
                tell(form, path, attributes, &mut counts, &mut told);
            }
            (counts, told)
        };
        let progress = Progress::new(arguments.quiet, "files");
        arguments.paths.for_each_batch(&progress, PathBuf::new, work, |(more, told)| {
            counts.add(more);
            telling.tell(told);
        })?;
    }
    let Counts { files, unreadable } = counts;
    let numbers = [("shown", json!(files)), ("unreadable", json!(unreadable))];
    let numbers = numbers.into_iter().map(|(name, number)| (name.to_owned(), number)).collect();
    telling.end(|| if files == 0 { "no file was found\n".to_owned() } else { String::new() }, numbers);
    tell_if_interrupted(files, look_again);
    Ok(match (files, unreadable) {
        (0, _) if many => Outcome::Nothing,
        (_, 0) => Outcome::Done,
        _ => Outcome::Failed,
    })
}

type Attributes = Vec<(&'static str, std::io::Result<Xattr>)>;

/// How many files there were, and those with something that cannot be read.
#[derive(Clone, Copy, Default)]
struct Counts {
    files: u64,
    unreadable: u64,
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.files += more.files;
        self.unreadable += more.unreadable;
    }
}

fn tell(form: Form, path: &Path, attributes: Result<Attributes, Failure>, counts: &mut Counts, told: &mut Told) {
    counts.files += 1;
    let attributes = match attributes {
        Ok(attributes) => attributes,
        Err(failure) => {
            counts.unreadable += 1;
            told.object(form, path, |object| failure_json(object, &failure));
            return told.failure(failure);
        }
    };
    let described = attributes.into_iter().map(|(name, value)| (name, describe(name, value)));
    let described = described.collect::<Vec<_>>();
    counts.unreadable += u64::from(described.iter().any(|(_, (_, _, readable))| !readable));
    told.line(form, || {
        let lines = described.iter().map(|(name, (line, _, _))| format!("  {name}: {line}\n"));
        std::iter::once(format!("{}\n", printable(path))).chain(lines).collect()
    });
    told.object(form, path, |object| {
        object.extend(described.into_iter().map(|(name, (_, value, _))| (name.to_owned(), value)));
    });
}

/// An attribute for people and for programs, and whether it could be read.
fn describe(name: &str, value: std::io::Result<Xattr>) -> (String, Value, bool) {
    match value {
        Ok(Xattr::Value(value)) => {
            let parsed = if name.ends_with(".evm") { Label::parse_evm(&value) } else { Label::parse_ima(&value) };
            let parsed = match parsed {
                // A label out of a file may be either attribute's.
                Err(LabelError::UnknownType { .. }) if name == "label" => Label::parse_evm(&value),
                parsed => parsed,
            };
            let (text, mut document, readable) = match &parsed {
                Ok(label) => (label_text(label), label_json(label), true),
                Err(error) => (
                    format!("unreadable: {error}: {}", to_hex(&value)),
                    Map::from_iter([("error".to_owned(), json!(error.to_string()))]),
                    false,
                ),
            };
            document.insert("raw".into(), json!(to_hex(&value)));
            (text, Value::Object(document), readable)
        }
        Ok(Xattr::Absent) => ("none".into(), Value::Null, true),
        Ok(Xattr::Unsupported) => ("none: the filesystem keeps no such attributes".into(), Value::Null, true),
        Err(error) => (format!("unreadable: {error}"), json!({ "error": error.to_string() }), false),
    }
}

/// A label in a line.
pub(super) fn label_text(label: &Label<'_>) -> String {
    match label {
        Label::Digest { digest, legacy, padding } => {
            let legacy = if *legacy { "legacy digest" } else { "digest" };
            let padding = if *padding > 0 { format!(", {padding} bytes more") } else { String::new() };
            format!("{legacy} {digest}{padding}")
        }
        Label::Signature(signature) => format!("signature {}", signature_text(signature)),
        Label::EvmPortable(signature) => format!("portable signature {}", signature_text(signature)),
        Label::VeritySignature(signature) => format!("fs-verity signature {}", signature_text(signature)),
        Label::EvmHmac(hmac) => format!("HMAC {}", to_hex(hmac)),
    }
}

fn signature_text(signature: &Signature<'_>) -> String {
    let algorithm = match signature {
        Signature::V1(signature) => signature.algorithm().map_or("unknown hash", |algorithm| algorithm.name()),
        Signature::V2(signature) | Signature::V3(signature) => signature.algorithm.name(),
    };
    format!(
        "v{}, {algorithm}, key id {}, {} bytes",
        signature.version(),
        to_hex(signature.key_id()),
        signature.bytes().len()
    )
}

fn label_json(label: &Label<'_>) -> Map<String, Value> {
    let (kind, signature) = match label {
        Label::Digest { digest, legacy, padding } => {
            return Map::from_iter([
                ("type".to_owned(), json!("digest")),
                ("legacy".to_owned(), json!(legacy)),
                ("algorithm".to_owned(), json!(digest.algorithm().name())),
                ("digest".to_owned(), json!(digest.to_hex())),
                ("padding".to_owned(), json!(padding)),
            ]);
        }
        Label::EvmHmac(hmac) => {
            return Map::from_iter([
                ("type".to_owned(), json!("hmac")),
                ("algorithm".to_owned(), json!("sha1")),
                ("hmac".to_owned(), json!(to_hex(hmac))),
            ]);
        }
        Label::Signature(signature) => ("signature", signature),
        Label::EvmPortable(signature) => ("portable-signature", signature),
        Label::VeritySignature(signature) => ("verity-signature", signature),
    };
    let mut document = Map::from_iter([
        ("type".to_owned(), json!(kind)),
        ("version".to_owned(), json!(signature.version())),
        ("key_id".to_owned(), json!(to_hex(signature.key_id()))),
        ("signature".to_owned(), json!(to_hex(signature.bytes()))),
    ]);
    match signature {
        Signature::V1(signature) => {
            document.insert("algorithm".into(), json!(signature.algorithm().map(|algorithm| algorithm.name())));
            document.insert("timestamp".into(), json!(signature.timestamp()));
        }
        Signature::V2(signature) | Signature::V3(signature) => {
            document.insert("algorithm".into(), json!(signature.algorithm.name()));
        }
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::from_hex;

    #[test]
    fn labels_are_told_in_a_line() {
        for (name, label, expected, readable) in [
            ("security.ima", "01da39a3ee5e6b4b0d3255bfef95601890afd80709", "legacy digest sha1:da39a3ee", true),
            ("security.ima", "0302041122334400 03aabbcc", "signature v2, sha256, key id 11223344, 3 bytes", true),
            ("security.evm", "0502041122334400 03aabbcc", "portable signature v2, sha256, key id 11223344", true),
            ("security.ima", "0603061122334400 03aabbcc", "fs-verity signature v3, sha512, key id 11223344", true),
            ("security.evm", "027ef067ba197346507bb9114da539f270a2b18a21", "HMAC 7ef067ba", true),
            ("label", "027ef067ba197346507bb9114da539f270a2b18a21", "HMAC 7ef067ba", true),
            ("security.ima", "027ef0", "unreadable: security.ima has type 2 at offset 0", false),
            ("security.ima", "", "unreadable: security.ima is empty", false),
        ] {
            let value = from_hex(&label.replace(' ', "")).unwrap();
            let (text, document, told) = describe(name, Ok(Xattr::Value(value)));
            assert!(text.starts_with(expected), "{text}");
            assert_eq!(told, readable);
            assert_eq!(document["raw"], label.replace(' ', ""));
        }
    }
}
