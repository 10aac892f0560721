//! What has to be known of a blob's policy to satisfy it: the blob has its digest alone.
//!
//! | known | what is done |
//! |---|---|
//! | the record beside the blob | the PCRs are compared with the values noted, and those that differ named |
//! | the policy commands of a TPM key file | the PCRs' values now are tried; which of them differs is not known |
//! | that it is over some PCRs | the same |
//! | nothing | only a session of somebody else's satisfies it |
//!
//! A wrong guess is found out before the TPM is asked, so that it counts for no failed authorisation.

use super::TrustedKeyError;
use crate::crypto;
use crate::tpm::{PcrPolicy, PolicyError, Tpm, TpmError};
use imara_format::hash::HashAlgorithm;
use imara_format::key_blob::sealed_key::{PolicyCommand, SealedKey, TrustedBlob};
use imara_format::key_blob::sealed_record::{PcrRecord, SealedRecord};
use imara_format::key_blob::trusted::Options;
use imara_format::pcr::PcrValues;
use imara_format::tpm::{PcrSelection, Reader};

/// What is known of a blob that is to be unsealed.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyKnowledge<'a> {
    /// What was noted when it was sealed.
    pub record: Option<&'a SealedRecord>,
    /// The PCRs that its policy is over, where that is said.
    pub pcrs: Option<&'a PcrSelection>,
}

impl PolicyKnowledge<'_> {
    /// The policy to satisfy, if it is one over PCRs that have the right values now.
    ///
    /// # Errors
    /// [`TrustedKeyError`]: it has not, or nothing is known of it.
    pub fn policy(
        &self,
        tpm: &mut Tpm,
        blob: &TrustedBlob,
        options: &Options<'_>,
    ) -> Result<Option<PcrPolicy>, TrustedKeyError> {
        let wanted = blob.public().policy.as_slice();
        if wanted.is_empty() || options.policy_session != 0 {
            return Ok(None);
        }
        let hash = blob.public().name_hash().filter(|hash| *hash == HashAlgorithm::Sha256);
        let hash = hash.ok_or_else(|| {
            let named = blob.public().name_hash();
            named.map_or(TrustedKeyError::PolicyUnknown, TrustedKeyError::PolicyHash)
        })?;
        let digest_is =
            |policy: &PcrPolicy, wanted: &[u8]| policy.digest(hash).is_some_and(|it| it.as_bytes() == wanted);
        if let Some(record) = self.record.and_then(|record| record.pcrs.as_ref()) {
            let policy = PcrPolicy::new(record.selection.clone(), &record.sets, record.with_auth)?;
            if !digest_is(&policy, wanted) {
                return Err(TrustedKeyError::RecordOfAnother);
            }
            let differences = policy.differences(&values_now(tpm, &record.selection)?);
            return if differences.is_empty() { Ok(Some(policy)) } else { Err(TrustedKeyError::Pcrs(differences)) };
        }
        let noted = match blob {
            TrustedBlob::Key(SealedKey { policy, .. }) => selection_of(policy),
            TrustedBlob::Old { .. } => None,
        };
        let Some(selection) = self.pcrs.cloned().or(noted) else { return Err(TrustedKeyError::PolicyUnknown) };
        let now = values_now(tpm, &selection)?;
        for with_auth in [false, true] {
            let policy = PcrPolicy::new(selection.clone(), std::slice::from_ref(&now), with_auth)?;
            if digest_is(&policy, wanted) {
                return Ok(Some(policy));
            }
        }
        Err(TrustedKeyError::SomePcr(selection))
    }
}

/// The PCRs' values now.
///
/// # Errors
/// [`TpmError`] where the TPM lacks one of them.
pub fn values_now(tpm: &mut Tpm, selection: &PcrSelection) -> Result<PcrValues, TpmError> {
    let mut values = PcrValues::new();
    for (_, pcr, digest) in tpm.pcr_read_selection(selection)? {
        values.insert(pcr, digest).expect("a PCR of a bank is read once");
    }
    Ok(values)
}

/// A policy by what is noted of it, and the commands that a TPM key file has for it: none where it needs more than those can say.
///
/// # Errors
/// [`PolicyError`].
pub fn policy_of_pcrs(record: &PcrRecord) -> Result<(PcrPolicy, Vec<PolicyCommand>), PolicyError> {
    let policy = PcrPolicy::new(record.selection.clone(), &record.sets, record.with_auth)?;
    let mut commands = Vec::new();
    if let [values] = record.sets.as_slice() {
        let digests: Vec<_> = record.selection.iter().filter_map(|(bank, pcr)| values.value(bank?, pcr)).collect();
        let parts: Vec<&[u8]> = digests.iter().map(|digest| digest.as_bytes()).collect();
        if let Ok(digest) = crypto::hash(HashAlgorithm::Sha256, &parts) {
            let body = [record.selection.to_bytes().as_slice(), digest.as_bytes()].concat();
            commands.push(PolicyCommand { code: POLICY_PCR, body });
            if record.with_auth {
                commands.push(PolicyCommand { code: POLICY_AUTH_VALUE, body: Vec::new() });
            }
        }
    }
    Ok((policy, commands))
}

const POLICY_AUTH_VALUE: u32 = 0x0000_016b;
const POLICY_PCR: u32 = 0x0000_017f;

/// The PCRs of the commands of a TPM key file, where they are the first of them.
fn selection_of(commands: &[PolicyCommand]) -> Option<PcrSelection> {
    let first = commands.first().filter(|command| command.code == POLICY_PCR)?;
    PcrSelection::read(&mut Reader::new("a policy over PCRs", &first.body)).ok()
}
