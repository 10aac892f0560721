//! What verifying a file's label came to.

use super::keys::Keys;
use imara_engine::keyring::VerifyError;
use imara_engine::label::{Rejected, Verified, verify_label};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::label::{Label, LabelError};
use imara_format::signature::Signature;
use std::io::{self, ErrorKind};

/// How a label proves a content.
#[derive(Debug)]
pub struct Proof {
    /// The content's digest.
    pub digest: Digest,
    /// Who made the signature; none for a digest label.
    pub signer: Option<Signer>,
}

/// Who made a signature.
#[derive(Debug)]
pub struct Signer {
    /// The header's version.
    pub version: u8,
    /// The key's id.
    pub key_id: String,
    /// What the key is.
    pub kind: String,
    /// Of its certificate.
    pub subject: Option<String>,
}

/// What is wrong, and the only thing that is told of it in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The content is not the one that was labelled.
    HashMismatch,
    /// The signature is not by the key that it names, over this content.
    BadSignature,
    /// The key is not among those given.
    UnknownKey,
    /// There is no label.
    NoLabel,
    /// There is a digest, where a signature is asked for.
    NotSigned,
    /// The content is on the block list.
    Blocked,
    /// The label is damaged, or not for contents.
    BadLabel,
    /// The file or its label could not be read, or not be judged.
    Unreadable,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::HashMismatch,
        Self::BadSignature,
        Self::UnknownKey,
        Self::NoLabel,
        Self::NotSigned,
        Self::Blocked,
        Self::BadLabel,
        Self::Unreadable,
    ];

    /// Its place among all.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// For programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HashMismatch => "hash-mismatch",
            Self::BadSignature => "bad-signature",
            Self::UnknownKey => "unknown-key",
            Self::NoLabel => "no-label",
            Self::NotSigned => "not-signed",
            Self::Blocked => "blocked",
            Self::BadLabel => "bad-label",
            Self::Unreadable => "unreadable",
        }
    }

    /// After a number, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::HashMismatch => "changed",
            Self::BadSignature => "with a bad signature",
            Self::UnknownKey => "signed by an unknown key",
            Self::NoLabel => "without a label",
            Self::NotSigned => "not signed",
            Self::Blocked => "on the block list",
            Self::BadLabel => "with a damaged label",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Why a label is not accepted.
#[derive(Debug)]
pub struct Refused {
    /// The sort of reason.
    pub kind: Kind,
    /// What was found.
    pub what: String,
    /// What to do next.
    pub next: Next,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing can be said.
    Nothing,
    /// Restore the content, or label it again.
    Restore,
    /// Sign it; what else can be done.
    Sign(&'static str),
    /// Label it again; with another hash, if one is named.
    Relabel(Option<&'static str>),
    /// See what the label is.
    Look,
    /// Anything else.
    Text(String),
}

/// Verifies a label of a content, whose digest `digest_for` makes.
///
/// # Errors
/// [`Refused`].
pub fn verify(
    label: &[u8],
    mut digest_for: impl FnMut(HashAlgorithm) -> io::Result<Digest>,
    keys: &Keys,
    digest_is_enough: bool,
) -> Result<Proof, Refused> {
    let mut collected = None;
    let collect = |algorithm| {
        let digest = digest_for(algorithm)?;
        collected = Some(digest);
        Ok(digest)
    };
    let verified = verify_label(label, collect, &keys.keyring);
    if let Ok(Verified::Signature { digest, .. } | Verified::Digest(digest)) = &verified {
        not_blocked(digest, &mut digest_for, keys)?;
    }
    match verified {
        Ok(Verified::Signature { key, version, digest }) => {
            let key_id = match version {
                1 => to_hex(&key.v1_id().unwrap_or_default()),
                _ => to_hex(&key.key_id()),
            };
            let subject = key.subject().map(str::to_owned);
            Ok(Proof { digest, signer: Some(Signer { version, key_id, kind: key.kind().to_string(), subject }) })
        }
        Ok(Verified::Digest(digest)) if digest_is_enough => Ok(Proof { digest, signer: None }),
        Ok(Verified::Digest(digest)) => {
            let what = format!(
                "not signed: its label is a {} digest, which anyone who can write the label can make",
                digest.algorithm()
            );
            let next = Next::Sign("; without -k, `imara verify` takes a digest");
            Err(Refused { kind: Kind::NotSigned, what, next })
        }
        Err(Rejected::Signature(VerifyError::UnknownKey { key_id })) => Err(Refused {
            kind: Kind::UnknownKey,
            what: format!("unknown key id {}", to_hex(&key_id)),
            next: Next::Text(unknown_key(&key_id, keys)),
        }),
        Err(Rejected::Signature(VerifyError::Rejected { key_id, error })) => {
            Err(signed_other_content(label, collected, keys).unwrap_or_else(|| Refused {
                kind: Kind::BadSignature,
                what: format!("key {}: {error}", to_hex(&key_id)),
                next: Next::Restore,
            }))
        }
        Err(rejected) => Err(refused(&rejected)),
    }
}

/// What cannot be looked for is not known to be off the list.
fn not_blocked(
    digest: &Digest,
    digest_for: impl FnMut(HashAlgorithm) -> io::Result<Digest>,
    keys: &Keys,
) -> Result<(), Refused> {
    let unreadable =
        |error: io::Error| Refused { kind: Kind::Unreadable, what: error.to_string(), next: Next::Nothing };
    match keys.keyring.blocked().find(digest, false, digest_for).map_err(unreadable)? {
        None => Ok(()),
        Some(digest) => Err(Refused {
            kind: Kind::Blocked,
            what: format!("its content is on the block list as {digest}, whatever it is labelled with"),
            next: Next::Text("replace the file; or, if that is not meant, take the entry off the list".to_owned()),
        }),
    }
}

/// An RSA signature that is good, but for another content: it holds the digest that was signed.
fn signed_other_content(label: &[u8], collected: Option<Digest>, keys: &Keys) -> Option<Refused> {
    let Ok(Label::Signature(Signature::V2(signature))) = Label::parse_ima(label) else { return None };
    let signed = keys.keyring.find(&signature.key_id)?.signed_digest(signature.algorithm, signature.signature)?;
    let found = collected?;
    let what = format!("the content has changed: its digest is {found}, signed {signed}");
    Some(Refused { kind: Kind::HashMismatch, what, next: Next::Restore })
}

fn refused(rejected: &Rejected<io::Error>) -> Refused {
    let (kind, next) = match rejected {
        Rejected::Changed { .. } => (Kind::HashMismatch, Next::Restore),
        Rejected::Signature(VerifyError::Rejected { .. }) => (Kind::BadSignature, Next::Restore),
        Rejected::Signature(VerifyError::UnknownKey { .. }) => (Kind::UnknownKey, Next::Nothing),
        Rejected::Signature(VerifyError::RevokedKey { .. }) => (Kind::BadSignature, Next::Sign(" with another key")),
        Rejected::Signature(VerifyError::AlgorithmMismatch { .. }) => (Kind::BadSignature, Next::Nothing),
        Rejected::Label(LabelError::UnknownType { .. } | LabelError::Empty(_)) => (Kind::BadLabel, Next::Look),
        Rejected::Label(_) | Rejected::Version(_) => (Kind::BadLabel, Next::Relabel(None)),
        Rejected::Verity | Rejected::NotVerity => {
            let next = "an fs-verity signature is verified by the kernel; sign the content with `imara sign`";
            (Kind::BadLabel, Next::Text(next.to_owned()))
        }
        Rejected::Hash(_) => (Kind::Unreadable, Next::Nothing),
        Rejected::Collect(error) if error.kind() == ErrorKind::Unsupported => {
            (Kind::Unreadable, Next::Relabel(Some("sha256")))
        }
        Rejected::Collect(_) => (Kind::Unreadable, Next::Nothing),
    };
    Refused { kind, what: rejected.to_string(), next }
}

fn unknown_key(key_id: &[u8], keys: &Keys) -> String {
    let key_id_text = to_hex(key_id);
    let keyring = &keys.keyring;
    let sources = keyring.source_names();
    if keyring.keys().is_empty() && !sources.is_empty() {
        let names = sources.join(", ");
        return format!("the keyring {names} has no key with id {key_id_text}; give its certificate: -k CERT");
    }
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
