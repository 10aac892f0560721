//! `imara evm sign`, and what `imara sign --evm` has of it.

use super::metadata::{Looker, Overrides};
use super::rules::RulesOptions;
use crate::command::CommandResult;
use crate::command::labelling::{self, Labeller, Labelling, Plan};
use crate::command::paths::printable;
use crate::command::signing::{EVM_KEY, Signer};
use crate::output::Failure;
use imara_engine::crypto::SigningKey;
use imara_engine::evm::sign::{EvmSignError, SignatureForm, Version, sign};
use imara_engine::evm::{PORTABLE_TYPE, SIGNATURE_TYPE, Snapshot};
use imara_format::evm::Form;
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::journal::Place;
use imara_format::signature::Signature;
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};

/// Sign the metadata of files: owner, mode and security attributes, in security.evm.
///
/// A signature is bound to the file: its inode, its filesystem. One that is made with --portable is not: it moves with the file, and
/// nothing that it covers may change from then on. `imara sign --evm` labels contents and metadata at once. A label that is there is
/// exchanged in one step.
///
/// The exit status is 0 when all files are signed, 1 when some failed, 4 when of trees and lists nothing was done.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: Labelling,
    #[command(flatten)]
    signer: Signer,
    /// Make portable signatures, for images and packages
    #[arg(long)]
    portable: bool,
    /// Make signatures of version 3, which Linux 7.1 and later verify and can be told to require
    #[arg(long)]
    v3: bool,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    rules: RulesOptions,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    arguments.run.paths.some()?;
    let looker = Looker::new(arguments.rules.find()?);
    let (key, key_id) = arguments.signer.find(EVM_KEY)?;
    let form =
        SignatureForm { portable: arguments.portable, version: if arguments.v3 { Version::V3 } else { Version::V2 } };
    let metadata = Metadata { looker, form, algorithm: arguments.signer.algorithm, key_id };
    labelling::run(&arguments.run, &Sign { arguments, metadata, key })
}

struct Sign<'a> {
    arguments: &'a Arguments,
    metadata: Metadata,
    key: SigningKey,
}

impl Labeller for Sign<'_> {
    /// A thread's own key; a key in a token is one for all.
    type Thread = Option<SigningKey>;

    fn places(&self) -> &[Place] {
        &[Place::SecurityEvm]
    }

    fn purpose(&self) -> String {
        self.metadata.purpose()
    }

    fn done(&self) -> &'static str {
        "signed"
    }

    fn reads_content(&self) -> bool {
        false
    }

    fn begin(&self) -> Option<SigningKey> {
        self.key.duplicate().ok()
    }

    fn plan(
        &self,
        thread: &mut Option<SigningKey>,
        file: &TreeFile<'_>,
        _: &[Option<Vec<u8>>],
        _: &mut dyn FnMut(u64),
    ) -> Result<Plan, Failure> {
        let Arguments { rules, overrides, .. } = self.arguments;
        let snapshot = self.metadata.looker.look_and_override(file, file.path, rules, overrides)?;
        let (label, digest) = self.metadata.sign(file, &snapshot, thread.as_ref().unwrap_or(&self.key))?;
        Ok(Plan::Set { labels: vec![Some(label)], digest: Some(digest), even_if_equal: false })
    }

    fn details(&self, _: Option<&Digest>) -> String {
        self.metadata.details()
    }

    fn numbers(&self, numbers: &mut Map<String, Value>) {
        numbers.insert("key_id".into(), json!(to_hex(&self.metadata.key_id)));
        numbers.insert("portable".into(), json!(self.metadata.form.portable));
    }
}

/// How metadata is signed.
pub struct Metadata {
    /// Looks at files.
    pub looker: Looker,
    /// What kind of signature.
    pub form: SignatureForm,
    /// The hash to sign.
    pub algorithm: HashAlgorithm,
    /// What the signature names the key by.
    pub key_id: [u8; 4],
}

impl Metadata {
    /// A file's label, and the digest that it signs.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn sign(
        &self,
        file: &TreeFile<'_>,
        snapshot: &Snapshot,
        key: &SigningKey,
    ) -> Result<(Vec<u8>, Digest), Failure> {
        sign(snapshot, self.form, &self.looker.rules, self.algorithm, key, Some(self.key_id))
            .map_err(|error| cannot_sign(&printable(file.path), &error))
    }

    /// Whether a label is what would be made of such metadata, but for what chance brings into an ECDSA signature.
    pub fn is_right(&self, label: &[u8], snapshot: &Snapshot, key: &SigningKey) -> bool {
        let (form, kind) = match self.form.portable {
            true => (Form::Portable, PORTABLE_TYPE),
            false => (Form::Signature, SIGNATURE_TYPE),
        };
        let Ok(Signature::V2(signature)) = Signature::parse(label) else { return false };
        label.first() == Some(&kind)
            && self.form.version == Version::V2
            && signature.key_id == self.key_id
            && signature.algorithm == self.algorithm
            && snapshot
                .digest(form, &self.looker.rules, self.algorithm)
                .is_ok_and(|digest| key.public().verify(&digest, signature.signature).is_ok())
    }

    /// By what a run is found to have made the same.
    pub fn purpose(&self) -> String {
        let portable = if self.form.portable { "portable " } else { "" };
        format!("sign {}{} {} security.evm {:?}", portable, self.algorithm, to_hex(&self.key_id), self.form.version)
    }

    /// What is told of a file after `signed`.
    pub fn details(&self) -> String {
        let portable = if self.form.portable { "portable, " } else { "" };
        format!("{portable}{}, key id {}", self.algorithm, to_hex(&self.key_id))
    }
}

/// Why metadata cannot be signed, with what to do.
fn cannot_sign(shown: &str, error: &EvmSignError) -> Failure {
    let failure = Failure::failed(format!("{shown}: {error}"));
    match error {
        EvmSignError::NoIma | EvmSignError::NothingToProtect => {
            failure.next(format!("label its content, too: imara sign --evm {shown}"))
        }
        EvmSignError::Unbound(_) => {
            failure.next("--generation and --fsuuid can say it; a portable signature (--portable) needs neither")
        }
        EvmSignError::Hash(_) | EvmSignError::Sign(_) => failure,
    }
}
