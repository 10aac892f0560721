//! `imara hash`.

use super::CommandResult;
use super::labelling::{self, Labeller, Labelling, Plan, content_place};
use super::paths::printable;
use super::signing::algorithm;
use crate::output::Failure;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::journal::Place;
use imara_format::label::{Label, encode_digest};
use imara_linux::tree::TreeFile;
use std::io::ErrorKind;

/// Label files with the digests of their contents.
///
/// Each file's digest is kept in its security.ima, where the kernel and Imara's guard look for it. It proves that the content is
/// unchanged, and nothing about who made it: whoever can write the label can make one. Labels that are right already are
/// left alone, and so are signatures, as the kernel does in fix mode.
///
/// The exit status is 0 when all files are labelled, 1 when some failed, 4 when of trees and lists nothing was done.
/// A run over trees and lists that SIGINT or SIGTERM ends says how far it came and how to go on, and ends by the signal: a shell sees 130 or 143.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: Labelling,
    /// The hash: sha256, sha1, sha384, sha512, …
    #[arg(short = 'a', long = "hash", visible_alias = "algo", value_name = "HASH", default_value = "sha256", value_parser = algorithm)]
    algorithm: HashAlgorithm,
    /// Write to user.ima, not to security.ima: needs no privilege, and no kernel looks at it
    #[arg(long)]
    xattr_user: bool,
    /// Write only labels that are missing or wrong, which is the default
    #[arg(long, conflicts_with = "all")]
    only_wrong: bool,
    /// Write labels that are right already, too: a kernel with EVM then renews security.evm
    #[arg(long)]
    all: bool,
    /// Replace signatures, too
    #[arg(long)]
    replace_signatures: bool,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let place = [content_place(arguments.xattr_user, false)];
    labelling::run(&arguments.run, &Hash { arguments, place })
}

struct Hash<'a> {
    arguments: &'a Arguments,
    place: [Place; 1],
}

impl Labeller for Hash<'_> {
    type Thread = ();

    fn places(&self) -> &[Place] {
        &self.place
    }

    fn purpose(&self) -> String {
        format!(
            "hash {} {}",
            self.arguments.algorithm,
            if self.arguments.xattr_user { "user.ima" } else { "security.ima" }
        )
    }

    fn done(&self) -> &'static str {
        "hashed"
    }

    fn begin(&self) {}

    fn plan(
        &self,
        (): &mut (),
        file: &TreeFile<'_>,
        old: &[Option<Vec<u8>>],
        step: &mut dyn FnMut(u64),
    ) -> Result<Plan, Failure> {
        let old = old.first().and_then(Option::as_deref);
        if !self.arguments.replace_signatures
            && old
                .is_some_and(|old| matches!(Label::parse_ima(old), Ok(Label::Signature(_) | Label::VeritySignature(_))))
        {
            return Ok(Plan::Left("signed (--replace-signatures writes over signatures)"));
        }
        let digest = file.digest(self.arguments.algorithm, step).map_err(|error| {
            let failure = Failure::failed(format!("{}: {error}", printable(file.path)));
            match error.kind() {
                ErrorKind::Unsupported => failure.next("label it with another hash: -a sha256"),
                _ => failure,
            }
        })?;
        Ok(Plan::Set {
            labels: vec![Some(encode_digest(&digest))],
            digest: Some(digest),
            even_if_equal: self.arguments.all,
        })
    }

    fn details(&self, digest: Option<&Digest>) -> String {
        digest.map(ToString::to_string).unwrap_or_default()
    }
}
