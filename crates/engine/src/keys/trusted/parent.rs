//! The parent keys of sealed blobs, and what it means when one does not open a blob.
//!
//! The writers of TPM key files name a hierarchy in the parent's place for a storage root key that is made each time, with
//! nothing in its template's `unique`; keys that were provisioned have zeros there. So either is tried.

use super::error;
use super::{Mismatch, TrustedKeyError};
use crate::tpm::template::{self, KeyKind};
use crate::tpm::{AuthValue, Hierarchy, Name, Object, SealedObject, Tpm, TpmError};
use imara_format::key_blob::sealed_key::{SealedKey, TrustedBlob};
use imara_format::key_blob::sealed_record::SealedRecord;
use imara_format::key_blob::trusted::Options;
use imara_format::tpm::PublicArea;

/// The owner hierarchy's handle: in a blob it stands for the storage root key that is made from the hierarchy's seed.
pub const OWNER: u32 = 0x4000_0001;

/// The key that seals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The storage key at a handle.
    Handle(u32),
    /// A storage root key that is made from the owner hierarchy's seed each time.
    Made(KeyKind),
}

impl Parent {
    /// What stands for it in a blob.
    pub const fn handle(self) -> u32 {
        match self {
            Self::Handle(handle) => handle,
            Self::Made(_) => OWNER,
        }
    }

    /// Whether it has to be said that it is no key on P-256.
    pub(super) const fn is_made_rsa(self) -> bool {
        matches!(self, Self::Made(KeyKind::Rsa2048))
    }

    /// Has it loaded, in [`Tpm::leaving_nothing`].
    ///
    /// # Errors
    /// [`TrustedKeyError`]: there is none, or it is no storage key.
    pub fn load(self, tpm: &mut Tpm) -> Result<Object, TrustedKeyError> {
        match self {
            Self::Handle(0) => Err(TrustedKeyError::NoParent),
            Self::Handle(handle) if handle >> 24 == OWNER >> 24 => Err(TrustedKeyError::NotStorage {
                handle,
                found: "a hierarchy, whose keys have to be made first".to_owned(),
            }),
            Self::Handle(handle) => at(tpm, handle),
            Self::Made(kind) => make(tpm, &template::key_file_srk(kind)),
        }
    }
}

fn at(tpm: &mut Tpm, handle: u32) -> Result<Object, TrustedKeyError> {
    let object = match tpm.object(handle) {
        Ok(object) => object,
        Err(TpmError::Refused { .. }) => {
            return Err(TrustedKeyError::ParentMissing { handle, there: tpm.persistent_handles()? });
        }
        Err(error) => return Err(error.into()),
    };
    match object.public().is_storage_key() {
        true => Ok(object),
        false => Err(TrustedKeyError::NotStorage { handle, found: object.public().to_string() }),
    }
}

fn make(tpm: &mut Tpm, template: &PublicArea) -> Result<Object, TrustedKeyError> {
    tpm.create_primary(Hierarchy::Owner, &AuthValue::empty(), template).map_err(error::making)
}

/// The key that takes a blob for its own.
///
/// # Errors
/// [`TrustedKeyError`], with what can be told of the reason where none does.
pub fn find_parent(
    tpm: &mut Tpm,
    blob: &TrustedBlob,
    options: &Options<'_>,
    record: Option<&SealedRecord>,
) -> Result<Candidate, TrustedKeyError> {
    let object = SealedObject { public: blob.public().clone(), private: blob.private().to_vec() };
    let auth = super::value(options.parent_auth);
    with_parent_of(tpm, blob, options.parent, record, |tpm, candidate, parent| {
        tpm.try_load(parent, &auth, &object).map(|()| candidate.clone())
    })
}

/// Does some work with each key that can be a blob's parent until one is the right one, and says what the others mean.
pub(super) fn with_parent_of<T>(
    tpm: &mut Tpm,
    blob: &TrustedBlob,
    given: Option<u32>,
    record: Option<&SealedRecord>,
    mut work: impl FnMut(&mut Tpm, &Candidate, &Object) -> Result<T, TpmError>,
) -> Result<T, TrustedKeyError> {
    let (handle, is_rsa) = match blob {
        TrustedBlob::Key(SealedKey { parent, rsa_parent, .. }) => (*parent, *rsa_parent),
        TrustedBlob::Old { .. } => (given.unwrap_or_default(), false),
    };
    let mut tried = Vec::new();
    for candidate in Candidate::of(handle, is_rsa) {
        let result = tpm.leaving_nothing(|tpm| {
            let parent = candidate.load(tpm)?;
            match work(tpm, &candidate, &parent) {
                Ok(done) => Ok(Ok(done)),
                Err(TpmError::Refused { code, .. }) if error::is_integrity(code) => Ok(Err(parent)),
                Err(error) => Err(error::unsealing(tpm, error, blob.public())),
            }
        })?;
        match result {
            Ok(done) => return Ok(done),
            Err(parent) => tried.push(parent),
        }
    }
    match tried.is_empty() {
        true => Err(TrustedKeyError::NoParent),
        false => Err(TrustedKeyError::NotOpened { parent: handle, cause: cause(tpm, &tried, record) }),
    }
}

/// A key that may be a blob's parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// The one at a handle.
    Handle(u32),
    /// One that is made by a template.
    Template(PublicArea),
}

impl Candidate {
    fn of(handle: u32, is_rsa: bool) -> Vec<Self> {
        let kind = if is_rsa { KeyKind::Rsa2048 } else { KeyKind::P256 };
        match handle {
            0 => Vec::new(),
            OWNER => vec![Self::Template(template::key_file_srk(kind)), Self::Template(template::srk(kind))],
            _ => vec![Self::Handle(handle)],
        }
    }

    /// Has it loaded, in [`Tpm::leaving_nothing`].
    ///
    /// # Errors
    /// [`TrustedKeyError`]: there is none, or it is no storage key.
    pub fn load(&self, tpm: &mut Tpm) -> Result<Object, TrustedKeyError> {
        match self {
            Self::Handle(handle) => Parent::Handle(*handle).load(tpm),
            Self::Template(template) => make(tpm, template),
        }
    }
}

/// What is to be noted of a TPM and a parent in it.
pub fn note(tpm: &mut Tpm, parent: &Object) -> SealedRecord {
    let parent = Some(parent.name().as_bytes().to_vec());
    let tpm = identity(tpm).map(|name| name.as_bytes().to_vec());
    SealedRecord { parent, tpm, ..SealedRecord::default() }
}

/// The name of the TPM's endorsement key, which tells it from others; none where its hierarchy has an authorisation value.
fn identity(tpm: &mut Tpm) -> Option<Name> {
    let made = tpm.leaving_nothing(|tpm| {
        tpm.create_primary(Hierarchy::Endorsement, &AuthValue::empty(), &template::endorsement_key())
    });
    Some(made.ok()?.name().clone())
}

fn cause(tpm: &mut Tpm, tried: &[Object], record: Option<&SealedRecord>) -> Mismatch {
    let Some(noted) = record.and_then(|record| record.parent.as_deref()) else { return Mismatch::Unknown };
    if tried.iter().any(|parent| parent.name().as_bytes() == noted) {
        return Mismatch::Damaged;
    }
    match (record.and_then(|record| record.tpm.as_deref()), identity(tpm)) {
        (Some(noted), Some(found)) if noted == found.as_bytes() => Mismatch::OtherParent,
        (Some(_), Some(_)) => Mismatch::OtherTpm,
        (None, _) | (_, None) => Mismatch::OtherParentOrTpm,
    }
}
