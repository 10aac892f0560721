//! `imara sign`.

use super::CommandResult;
use super::evm::metadata::Looker;
use super::evm::rules;
use super::evm::sign::Metadata;
use super::labelling::{self, Labeller, Labelling, Plan, content_place};
use super::paths::printable;
use super::signing::{IMA_KEY, Signer};
use crate::output::Failure;
use imara_engine::crypto::SigningKey;
use imara_engine::evm::sign::{SignatureForm, Version};
use imara_engine::label::{self, SignError};
use imara_format::evm::SECURITY_IMA;
use imara_format::hash::{Digest, to_hex};
use imara_format::journal::Place;
use imara_format::label::Label;
use imara_format::signature::{Signature, SignatureType};
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};

/// Sign files.
///
/// Each file's digest is signed, and the signature is kept in its security.ima, where the kernel, Imara's guard and evmctl
/// look for it. A label that is there is exchanged in one step.
///
/// The exit status is 0 when all files are signed, 1 when some failed, 4 when of trees and lists nothing was done.
/// A run over trees and lists that SIGINT or SIGTERM ends says how far it came and how to go on, and ends by the signal: a shell sees 130 or 143.
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
    /// Sign the metadata, too: owner, mode and security attributes with the new security.ima, in security.evm, with the same key; both
    /// labels or none. With =portable the signature moves with the file, and nothing that it covers may change from then on
    #[arg(
        long,
        value_name = "KIND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "bound",
        value_parser = ["bound", "portable"],
        conflicts_with_all = ["sigfile", "xattr_user"]
    )]
    evm: Option<String>,
    /// Make signatures of version 3, which Linux 7.1 and later verify and policies can require (appraise_type=sigv3): what is signed says
    /// which hash it is and that it is of a content, so that it can stand for nothing else
    #[arg(long)]
    v3: bool,
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
    let mut places = vec![content_place(arguments.xattr_user, arguments.sigfile)];
    let metadata = match arguments.evm.as_deref() {
        None => None,
        Some(kind) => {
            places.push(Place::SecurityEvm);
            let form = SignatureForm { portable: kind == "portable", version: arguments.version() };
            let looker = Looker::new(rules::this_machine()?);
            Some(Metadata { looker, form, algorithm: arguments.signer.algorithm, key_id })
        }
    };
    labelling::run(&arguments.run, &Sign { arguments, key, key_id, places, metadata })
}

impl Arguments {
    const fn version(&self) -> Version {
        if self.v3 { Version::V3 } else { Version::V2 }
    }
}

struct Sign<'a> {
    arguments: &'a Arguments,
    key: SigningKey,
    key_id: [u8; 4],
    places: Vec<Place>,
    /// How metadata is signed, if it is.
    metadata: Option<Metadata>,
}

impl Labeller for Sign<'_> {
    /// A thread's own key; a key in a token is one for all.
    type Thread = Option<SigningKey>;

    fn places(&self) -> &[Place] {
        &self.places
    }

    fn purpose(&self) -> String {
        let place = self.places.first().and_then(|place| place.attribute()).unwrap_or("FILE.sig");
        let metadata = self.metadata.as_ref().map(|metadata| format!(", {}", metadata.purpose())).unwrap_or_default();
        let version = match self.arguments.version() {
            Version::V2 => "",
            Version::V3 => ", version 3",
        };
        format!("sign {} {} {place}{version}{metadata}", self.arguments.signer.algorithm, to_hex(&self.key_id))
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
        let kept = old
            .first()
            .and_then(Option::as_ref)
            .filter(|old| self.arguments.only_wrong && self.is_right(old, &digest, key));
        let label = match kept {
            Some(label) => label.clone(),
            None => self.sign(&digest, key).map_err(|error| failure(&error))?,
        };
        let mut labels = vec![Some(label)];
        if let Some(metadata) = &self.metadata {
            labels.push(Some(self.metadata_label(metadata, file, &labels, old, key)?));
        }
        if kept.is_some() && labels == old {
            return Ok(Plan::Right { digest: Some(digest) });
        }
        Ok(Plan::Set { labels, digest: Some(digest), even_if_equal: false })
    }

    fn details(&self, digest: Option<&Digest>) -> String {
        let algorithm = digest.map(|digest| format!("{}, ", digest.algorithm())).unwrap_or_default();
        let metadata = match &self.metadata {
            None => "",
            Some(metadata) if metadata.form.portable => ", with its metadata, portable",
            Some(_) => ", with its metadata",
        };
        format!("{algorithm}key id {}{metadata}", to_hex(&self.key_id))
    }

    fn numbers(&self, numbers: &mut Map<String, Value>) {
        numbers.insert("key_id".into(), json!(to_hex(&self.key_id)));
    }
}

impl Sign<'_> {
    /// The label over the metadata as they will be with the first label; the old one where it is that and may stay.
    fn metadata_label(
        &self,
        metadata: &Metadata,
        file: &TreeFile<'_>,
        labels: &[Option<Vec<u8>>],
        old: &[Option<Vec<u8>>],
        key: &SigningKey,
    ) -> Result<Vec<u8>, Failure> {
        let mut snapshot = metadata.looker.look(file, file.path)?;
        if let Some(Some(label)) = labels.first() {
            snapshot.xattrs.insert(SECURITY_IMA.to_owned(), label.clone());
        }
        match old.get(1) {
            Some(Some(old)) if self.arguments.only_wrong && metadata.is_right(old, &snapshot, key) => Ok(old.clone()),
            _ => Ok(metadata.sign(file, &snapshot, key)?.0),
        }
    }

    fn sign(&self, digest: &Digest, key: &SigningKey) -> Result<Vec<u8>, SignError> {
        match self.arguments.version() {
            Version::V2 => label::sign(digest, key, Some(self.key_id)),
            Version::V3 => label::sign_v3(SignatureType::Signature, digest, key, Some(self.key_id)),
        }
    }

    /// Whether a label is what would be made, but for what chance brings into an ECDSA signature.
    fn is_right(&self, label: &[u8], digest: &Digest, key: &SigningKey) -> bool {
        let (signature, signed) = match (Label::parse_ima(label), self.arguments.version()) {
            (Ok(Label::Signature(Signature::V2(signature))), Version::V2) => (signature, Ok(*digest)),
            (Ok(Label::Signature(Signature::V3(signature))), Version::V3) => {
                (signature, label::v3_digest(SignatureType::Signature, digest))
            }
            _ => return false,
        };
        signature.key_id == self.key_id
            && signature.algorithm == digest.algorithm()
            && signed.is_ok_and(|signed| key.public().verify(&signed, signature.signature).is_ok())
    }
}
