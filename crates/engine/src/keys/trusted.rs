//! Trusted keys, as the kernel's `trusted` key type has them with a TPM 2.0: random bytes that leave it only sealed by a parent
//! key of the TPM's.
//!
//! What the kernel does with each option is done here with the same effect on the blob; so a blob made by either is loaded by
//! both. What is different on purpose:
//!
//! | | the kernel | here |
//! |---|---|---|
//! | the key's bytes | of the TPM's random numbers, which some kernels let pass in clear | of the system's |
//! | keys of 113 to 128 bytes | refused when they are made (E2BIG), taken when they are loaded | made, too |
//! | a parent that is no handle | refused | the storage root key, made from the owner hierarchy's seed each time |
//! | a policy over PCRs | a session that somebody else has satisfied | also by the PCRs' values: see [`PolicyKnowledge`] |
//!
//! Source: `tpm2_seal_trusted`, `tpm2_unseal_trusted`, security/keys/trusted-keys/trusted_tpm2.c.

use super::KeyMaterial;
use crate::crypto::KeyError;
use crate::tpm::{AuthValue, Name, Object, PcrPolicy, SealedObject, Sealing, Tpm, TpmError, UnsealPolicy};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::key_blob::sealed_key::{SealedKey, TrustedBlob, is_migratable};
use imara_format::key_blob::sealed_record::SealedRecord;
use imara_format::key_blob::trusted::{AuthText, LONGEST_KEY, Options, SHORTEST_KEY};
use imara_format::tpm::ObjectAttributes;

mod error;
mod parent;
mod policy;

pub use error::{Mismatch, TrustedKeyError};
pub use parent::{Candidate, OWNER, Parent, find_parent, note};
pub use policy::{PolicyKnowledge, policy_of_pcrs, values_now};

/// A key in clear, with its blob.
pub struct TrustedKey {
    blob: TrustedBlob,
    material: KeyMaterial,
    migratable: bool,
}

impl TrustedKey {
    /// Makes a key of random bytes, and seals it.
    ///
    /// # Errors
    /// [`TrustedKeyError`].
    pub fn new(
        tpm: &mut Tpm,
        length: usize,
        parent: Parent,
        options: &Options<'_>,
    ) -> Result<(Self, SealedRecord), TrustedKeyError> {
        Self::seal(tpm, KeyMaterial::random(length)?, parent, options)
    }

    /// Seals these bytes; and what is to be noted beside the blob.
    ///
    /// # Errors
    /// [`TrustedKeyError`].
    pub fn seal(
        tpm: &mut Tpm,
        material: KeyMaterial,
        parent: Parent,
        options: &Options<'_>,
    ) -> Result<(Self, SealedRecord), TrustedKeyError> {
        length_of(&material)?;
        let name_algorithm = match options.hash {
            HashAlgorithm::Sha1
            | HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sm3 => options.hash.tpm_id().ok_or(TrustedKeyError::Hash(options.hash))?,
            other => return Err(TrustedKeyError::Hash(other)),
        };
        lockable(options.pcr_lock)?;
        let (auth, parent_auth) = (value(options.blob_auth), value(options.parent_auth));
        let mut attributes = ObjectAttributes(0);
        if options.policy_digest.is_empty() {
            attributes = attributes.with(ObjectAttributes::USER_WITH_AUTH);
        }
        if !options.migratable {
            attributes = attributes.with(ObjectAttributes::FIXED_TPM).with(ObjectAttributes::FIXED_PARENT);
        }
        let sealing = Sealing {
            data: material.as_bytes(),
            auth: &auth,
            attributes,
            name_algorithm,
            policy: &options.policy_digest,
        };
        let (object, record) = tpm.leaving_nothing(|tpm| {
            let object = parent.load(tpm)?;
            let sealed = tpm
                .seal(&object, &parent_auth, &sealing)
                .map_err(|error| error::sealing(tpm, error, &object, options.hash))?;
            Ok::<_, TrustedKeyError>((sealed, note(tpm, &object)))
        })?;
        let key = SealedKey {
            empty_auth: options.blob_auth.is_none_or(AuthText::is_empty),
            policy: Vec::new(),
            description: None,
            rsa_parent: parent.is_made_rsa(),
            parent: parent.handle(),
            public: object.public,
            private: object.private,
        };
        lock(tpm, options.pcr_lock)?;
        Ok((Self { blob: TrustedBlob::Key(key), material, migratable: options.migratable }, record))
    }

    /// Unseals a blob. What is known of its policy and its parent helps to satisfy the one and to tell why it cannot be done.
    ///
    /// # Errors
    /// [`TrustedKeyError`].
    pub fn load(
        tpm: &mut Tpm,
        blob: TrustedBlob,
        options: &Options<'_>,
        known: &PolicyKnowledge<'_>,
    ) -> Result<Self, TrustedKeyError> {
        lockable(options.pcr_lock)?;
        let (auth, parent_auth) = (value(options.blob_auth), value(options.parent_auth));
        let object = SealedObject { public: blob.public().clone(), private: blob.private().to_vec() };
        let pcrs = known.policy(tpm, &blob, options)?;
        let policy = match (&pcrs, options.policy_session) {
            (Some(pcrs), _) => Some(UnsealPolicy::Pcrs(pcrs)),
            (None, 0) => None,
            (None, session) => Some(UnsealPolicy::Session(session)),
        };
        let unseal = |tpm: &mut Tpm, _: &Candidate, parent: &Object| {
            tpm.unseal(parent, &parent_auth, &object, &auth, policy.as_ref())
        };
        let mut unsealed = parent::with_parent_of(tpm, &blob, options.parent, known.record, unseal)?;
        let mut migratable = is_migratable(&object.public);
        if let TrustedBlob::Old { .. } = blob {
            migratable = unsealed.pop().is_some_and(|flag| flag != 0);
        }
        let material = KeyMaterial::from(unsealed);
        length_of(&material)?;
        lock(tpm, options.pcr_lock)?;
        Ok(Self { blob, material, migratable })
    }

    /// Seals the key anew, with options of its own: none is taken over.
    ///
    /// # Errors
    /// [`TrustedKeyError`]; the key is as it was then.
    pub fn update(
        &mut self,
        tpm: &mut Tpm,
        parent: Parent,
        options: &Options<'_>,
    ) -> Result<SealedRecord, TrustedKeyError> {
        if !self.migratable {
            return Err(TrustedKeyError::NotMigratable);
        }
        let material = KeyMaterial::new(self.material.as_bytes().to_vec());
        let (updated, record) = Self::seal(tpm, material, parent, options)?;
        *self = updated;
        Ok(record)
    }

    /// The blob.
    pub fn blob(&self) -> &TrustedBlob {
        &self.blob
    }

    /// The key's bytes.
    pub fn material(&self) -> &KeyMaterial {
        &self.material
    }

    /// Gives the key's bytes away.
    pub fn into_material(self) -> KeyMaterial {
        self.material
    }

    /// Whether it may be sealed anew.
    pub fn is_migratable(&self) -> bool {
        self.migratable
    }
}

/// Why somebody else, the kernel, cannot unseal a blob: all that can be told without trying its authorisation value, and when
/// nothing is wrong then, that this is.
pub fn why_not_unsealed(
    tpm: &mut Tpm,
    blob: &TrustedBlob,
    options: &Options<'_>,
    known: &PolicyKnowledge<'_>,
) -> TrustedKeyError {
    match tpm.lockout() {
        Ok(lockout) if lockout.locked => return TrustedKeyError::LockedOut(Some(lockout)),
        Ok(_) => {}
        Err(error) => return error.into(),
    }
    let found = find_parent(tpm, blob, options, known.record).and_then(|_| known.policy(tpm, blob, options));
    match found {
        Err(error) => error,
        Ok(_) if options.policy_session != 0 => TrustedKeyError::SessionNotEnough(options.policy_session),
        Ok(_) => error::wrong_auth(tpm, error::OF_KEY, blob.public()),
    }
}

/// The name of a blob's sealed object, which no other has; none where it is made by a hash that this library has not.
pub fn name_of(blob: &TrustedBlob) -> Option<Vec<u8>> {
    Name::of_object(blob.public()).map(|name| name.as_bytes().to_vec())
}

/// Has the policy's digest sealed into a new blob, as `policydigest=` does.
///
/// # Errors
/// [`TrustedKeyError::PolicyHash`]: sessions here hash with SHA-256.
pub fn digest_of(policy: &PcrPolicy, hash: HashAlgorithm) -> Result<Vec<u8>, TrustedKeyError> {
    let digest = Some(hash).filter(|hash| *hash == HashAlgorithm::Sha256).and_then(|hash| policy.digest(hash));
    Ok(digest.ok_or(TrustedKeyError::PolicyHash(hash))?.as_bytes().to_vec())
}

/// An authorisation value; the form allows none that is too long.
fn value(text: Option<AuthText<'_>>) -> AuthValue {
    let bytes = text.map(|text| text.bytes().collect()).unwrap_or_default();
    AuthValue::new(bytes).unwrap_or_else(AuthValue::empty)
}

fn length_of(material: &KeyMaterial) -> Result<(), TrustedKeyError> {
    match material.len() {
        SHORTEST_KEY..=LONGEST_KEY => Ok(()),
        other => Err(TrustedKeyError::Length(other)),
    }
}

const PCRS: u32 = 24;

/// Whether there is the PCR of a `pcrlock=`.
///
/// # Errors
/// There is not.
pub fn lockable(pcr: u32) -> Result<(), TrustedKeyError> {
    if pcr < PCRS { Ok(()) } else { Err(TrustedKeyError::NoPcr(pcr)) }
}

/// Extends a PCR with zeros in every bank, so that what was sealed to its value is not unsealed any more; 0 is none.
fn lock(tpm: &mut Tpm, pcr: u32) -> Result<(), TpmError> {
    if pcr == 0 {
        return Ok(());
    }
    let zeros: Vec<Digest> = tpm.banks().iter().filter_map(|bank| bank.algorithm).map(Digest::zeros).collect();
    tpm.pcr_extend_every_bank(pcr, &zeros, &[])
}

impl From<KeyError> for TrustedKeyError {
    fn from(error: KeyError) -> Self {
        Self::Library(error)
    }
}
