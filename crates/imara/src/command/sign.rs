//! `imara sign`.

use super::CommandResult;
use super::labelling::{self, Labeller, Labelling, Plan, content_place};
use super::paths::printable;
use super::signing::{IMA_KEY, Signer};
use crate::output::Failure;
use imara_engine::crypto::SigningKey;
use imara_engine::label;
use imara_format::hash::{Digest, to_hex};
use imara_format::journal::Place;
use imara_format::label::Label;
use imara_format::signature::Signature;
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};

/// Sign files.
///
/// Each file's digest is signed, and the signature is kept in its security.ima, where the kernel, Imara's guard and evmctl
/// look for it. A label that is there is exchanged in one step.
///
/// The exit status is 0 when all files are signed, 1 when some failed, 4 when of trees and lists nothing was done.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: Labelling,
    #[command(flatten)]
    signer: Signer,
    /// Write the signature to PATH.sig, and no attribute
    #[arg(long, conflicts_with = "xattr_user")]
    sigfile: bool,
    /// Write to user.ima, not to security.ima: needs no privilege, and no kernel looks at it
    #[arg(long)]
    xattr_user: bool,
    /// Leave files alone that have a good signature by this key over the same hash: that is found out much faster than signing
    #[arg(long)]
    only_wrong: bool,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    // A wrong command line is told before a passphrase is asked for.
    arguments.run.paths.some()?;
    let (key, key_id) = arguments.signer.find(IMA_KEY)?;
    let place = [content_place(arguments.xattr_user, arguments.sigfile)];
    labelling::run(&arguments.run, &Sign { arguments, key, key_id, place })
}

struct Sign<'a> {
    arguments: &'a Arguments,
    key: SigningKey,
    key_id: [u8; 4],
    place: [Place; 1],
}

impl Labeller for Sign<'_> {
    /// A thread's own key; a key in a token is one for all.
    type Thread = Option<SigningKey>;

    fn places(&self) -> &[Place] {
        &self.place
    }

    fn purpose(&self) -> String {
        let [place] = self.place;
        let place = place.attribute().unwrap_or("FILE.sig");
        format!("sign {} {} {place}", self.arguments.signer.algorithm, to_hex(&self.key_id))
    }

    fn done(&self) -> &'static str {
        "signed"
    }

    fn begin(&self) -> Option<SigningKey> {
        self.key.duplicate().ok()
    }

    fn plan(
        &self,
        thread: &mut Option<SigningKey>,
        file: &TreeFile<'_>,
        old: &[Option<Vec<u8>>],
        step: &mut dyn FnMut(u64),
    ) -> Result<Plan, Failure> {
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", printable(file.path)));
        let digest = file.digest(self.arguments.signer.algorithm, step).map_err(|error| failure(&error))?;
        let key = thread.as_ref().unwrap_or(&self.key);
        if let (Some(old), true) = (old.first().and_then(Option::as_deref), self.arguments.only_wrong)
            && self.is_right(old, &digest, key)
        {
            return Ok(Plan::Right { digest: Some(digest) });
        }
        let label = label::sign(&digest, key, Some(self.key_id)).map_err(|error| failure(&error))?;
        Ok(Plan::Set { labels: vec![Some(label)], digest: Some(digest), even_if_equal: false })
    }

    fn details(&self, digest: Option<&Digest>) -> String {
        let algorithm = digest.map(|digest| format!("{}, ", digest.algorithm())).unwrap_or_default();
        format!("{algorithm}key id {}", to_hex(&self.key_id))
    }

    fn numbers(&self, numbers: &mut Map<String, Value>) {
        numbers.insert("key_id".into(), json!(to_hex(&self.key_id)));
    }
}

impl Sign<'_> {
    /// Whether a label is what would be made, but for what chance brings into an ECDSA signature.
    fn is_right(&self, label: &[u8], digest: &Digest, key: &SigningKey) -> bool {
        match Label::parse_ima(label) {
            Ok(Label::Signature(Signature::V2(signature))) => {
                signature.key_id == self.key_id
                    && signature.algorithm == digest.algorithm()
                    && key.public().verify(digest, signature.signature).is_ok()
            }
            _ => false,
        }
    }
}
