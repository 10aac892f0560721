//! Policies over PCRs: what may be done only while PCRs have certain values.
//!
//! A policy is a digest that grows with each assertion, from zeros:
//!
//! | assertion | new digest |
//! |---|---|
//! | PCRs | H(old ‖ 0000017f ‖ the selection ‖ H(values, in its order)) |
//! | authorisation value | H(old ‖ 0000016b) |
//! | one of several policies | H(zeros ‖ 00000171 ‖ their digests) |
//!
//! A password in place of the value (`TPM2_PolicyPassword`) gives the same digest, so one policy serves both.
//!
//! Source: TCG TPM 2.0 Library, part 3, `TPM2_PolicyPCR`, `TPM2_PolicyOR`, `TPM2_PolicyAuthValue`.

use imara_format::{
    hash::{Digest, HashAlgorithm},
    pcr::PcrValues,
    tpm::PcrSelection,
};
use tpm2_protocol::{
    basic::{TpmBuffer, TpmHandle},
    data::{TpmlDigest, TpmlPcrSelection},
    frame::{TpmPolicyAuthValueCommand, TpmPolicyOrCommand, TpmPolicyPasswordCommand, TpmPolicyPcrCommand},
};

use super::{
    Tpm, TpmError,
    pcr::selection_list,
    session::{Session, SessionKind},
};
use crate::crypto;

/// A policy: one of several sets of values of the same PCRs, and perhaps an authorisation value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrPolicy {
    selection: PcrSelection,
    /// What may be in the PCRs: one to eight sets of all their values, in the selection's order.
    alternatives: Vec<Vec<Digest>>,
    /// Whether the authorisation value counts as well.
    pub with_auth: bool,
}

/// Values that make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No PCR is selected.
    #[error("a policy needs at least one PCR")]
    NoPcrs,
    /// A bank that the kernel does not map.
    #[error("the selection {0} has a bank that is not known")]
    UnknownBank(PcrSelection),
    /// A value is missing.
    #[error("there is no value of PCR {pcr} of bank {bank}, which the policy is over")]
    NoValue {
        /// The bank.
        bank: HashAlgorithm,
        /// The PCR.
        pcr: u32,
    },
    /// More sets of values than a TPM takes.
    #[error("a policy has 1 to {MOST_ALTERNATIVES} sets of values, not {0}")]
    Alternatives(usize),
}

/// What `TPM2_PolicyOR` takes.
const MOST_ALTERNATIVES: usize = 8;

/// A PCR that has not the value that a policy wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The bank.
    pub bank: HashAlgorithm,
    /// The PCR.
    pub pcr: u32,
    /// The values that the policy accepts.
    pub wanted: Vec<Digest>,
    /// What it has.
    pub found: Digest,
}

impl PcrPolicy {
    /// The policy that these PCRs have one of these sets of values.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn new(selection: PcrSelection, sets: &[PcrValues], with_auth: bool) -> Result<Self, PolicyError> {
        if selection.is_empty() {
            return Err(PolicyError::NoPcrs);
        }
        let mut alternatives: Vec<Vec<Digest>> = Vec::new();
        for set in sets {
            let mut values = Vec::new();
            for (bank, pcr) in selection.iter() {
                let bank = bank.ok_or_else(|| PolicyError::UnknownBank(selection.clone()))?;
                values.push(set.value(bank, pcr).ok_or(PolicyError::NoValue { bank, pcr })?);
            }
            if !alternatives.contains(&values) {
                alternatives.push(values);
            }
        }
        if !(1..=MOST_ALTERNATIVES).contains(&alternatives.len()) {
            return Err(PolicyError::Alternatives(alternatives.len()));
        }
        Ok(Self { selection, alternatives, with_auth })
    }

    /// Its PCRs.
    pub fn selection(&self) -> &PcrSelection {
        &self.selection
    }

    /// Its digest, by a hash that a session can have.
    pub fn digest(&self, algorithm: HashAlgorithm) -> Option<Digest> {
        let branches: Option<Vec<_>> =
            self.alternatives.iter().map(|values| self.pcr_digest(algorithm, values)).collect();
        let mut digest = match branches?.as_slice() {
            [only] => *only,
            several => or_digest(algorithm, several)?,
        };
        if self.with_auth {
            digest = extend(algorithm, &digest, &[&POLICY_AUTH_VALUE.to_be_bytes()])?;
        }
        Some(digest)
    }

    fn pcr_digest(&self, algorithm: HashAlgorithm, values: &[Digest]) -> Option<Digest> {
        let values: Vec<&[u8]> = values.iter().map(Digest::as_bytes).collect();
        let values = crypto::hash(algorithm, &values).ok()?;
        let code = POLICY_PCR.to_be_bytes();
        extend(algorithm, &Digest::zeros(algorithm), &[&code, &self.selection.to_bytes(), values.as_bytes()])
    }

    /// The PCRs that have none of the values wanted; where each has one of them, but not all of one set, all of the first
    /// set's that differ. Empty when the policy is met.
    pub fn differences(&self, now: &PcrValues) -> Vec<Difference> {
        let found: Vec<Option<Digest>> =
            self.selection.iter().map(|(bank, pcr)| bank.and_then(|bank| now.value(bank, pcr))).collect();
        let differs = |place: usize, set: &Vec<Digest>| found[place] != Some(set[place]);
        let places = 0..found.len();
        if self.alternatives.iter().any(|set| places.clone().all(|place| !differs(place, set))) {
            return Vec::new();
        }
        let mut wrong: Vec<usize> =
            places.clone().filter(|place| self.alternatives.iter().all(|set| differs(*place, set))).collect();
        if wrong.is_empty() {
            wrong = places.filter(|place| differs(*place, &self.alternatives[0])).collect();
        }
        let pcrs: Vec<_> = self.selection.iter().collect();
        let difference = |place: usize| {
            let (bank, pcr) = pcrs[place];
            let mut wanted: Vec<Digest> = self.alternatives.iter().map(|set| set[place]).collect();
            wanted.dedup();
            Some(Difference { bank: bank?, pcr, wanted, found: found[place]? })
        };
        wrong.into_iter().filter_map(difference).collect()
    }
}

const POLICY_AUTH_VALUE: u32 = 0x0000_016b;
const POLICY_OR: u32 = 0x0000_0171;
const POLICY_PCR: u32 = 0x0000_017f;

fn or_digest(algorithm: HashAlgorithm, branches: &[Digest]) -> Option<Digest> {
    let code = POLICY_OR.to_be_bytes();
    let mut parts: Vec<&[u8]> = vec![&code];
    parts.extend(branches.iter().map(Digest::as_bytes));
    extend(algorithm, &Digest::zeros(algorithm), &parts)
}

fn extend(algorithm: HashAlgorithm, old: &Digest, with: &[&[u8]]) -> Option<Digest> {
    crypto::hash(algorithm, &[&[old.as_bytes()], with].concat()).ok()
}

impl Tpm {
    /// Begins a session for somebody else, the kernel, who is told its handle, and asserts a policy in it; an authorisation value
    /// is to be given as a password. To be called in [`Tpm::leaving_nothing`], which flushes it if it was not used.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn begin_policy(&mut self, policy: &PcrPolicy) -> Result<u32, TpmError> {
        let session = self.start_session(SessionKind::Policy, None)?;
        self.assert_pcrs(session.handle(), policy)?;
        if policy.with_auth {
            let handles = [TpmHandle::new(session.handle())];
            self.run("TPM2_PolicyPassword", &TpmPolicyPasswordCommand { handles }, &[])?.end()?;
        }
        Ok(session.handle())
    }

    /// Asserts a policy in a session. What is not met shows when the session is used, not here.
    pub(super) fn satisfy(&mut self, session: &mut Session, policy: &PcrPolicy) -> Result<(), TpmError> {
        self.assert_pcrs(session.handle(), policy)?;
        if policy.with_auth {
            let handles = [TpmHandle::new(session.handle())];
            self.run("TPM2_PolicyAuthValue", &TpmPolicyAuthValueCommand { handles }, &[])?.end()?;
            session.count_value();
        }
        Ok(())
    }

    fn assert_pcrs(&mut self, session: u32, policy: &PcrPolicy) -> Result<(), TpmError> {
        let handle = TpmHandle::new(session);
        let pcrs: TpmlPcrSelection = selection_list(policy.selection())?;
        let command = TpmPolicyPcrCommand { handles: [handle], pcr_digest: TpmBuffer::default(), pcrs };
        self.run("TPM2_PolicyPCR", &command, &[])?.end()?;
        if policy.alternatives.len() > 1 {
            let algorithm = HashAlgorithm::Sha256;
            let mut digests = TpmlDigest::default();
            for values in &policy.alternatives {
                let digest = policy.pcr_digest(algorithm, values).expect("SHA-256 can be computed");
                let digest = TpmBuffer::try_from(digest.as_bytes()).expect("a digest fits");
                digests.try_push(digest).expect("no more alternatives than the list takes");
            }
            let command = TpmPolicyOrCommand { handles: [handle], p_hash_list: digests };
            self.run("TPM2_PolicyOR", &command, &[])?.end()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HashAlgorithm::{Sha1, Sha256};

    fn values(pairs: &[(u32, u8)]) -> PcrValues {
        let mut values = PcrValues::new();
        for (pcr, byte) in pairs {
            values.insert(*pcr, Digest::new(Sha256, &[*byte; 32]).unwrap()).unwrap();
        }
        values
    }

    fn policy(selection: &str, sets: &[&[(u32, u8)]]) -> PcrPolicy {
        let sets: Vec<_> = sets.iter().map(|set| values(set)).collect();
        PcrPolicy::new(PcrSelection::parse(selection).unwrap(), &sets, false).unwrap()
    }

    #[test]
    fn a_policys_digest_is_the_tpms() {
        // PCR 23 of SHA-256 at zero, as a TPM computed it.
        let expected = "3c87a4b3fb85ebeea58c5fb36ac22d3f280cec27a9f6dd0fa23be9ce560deec8";
        assert_eq!(policy("sha256:23", &[&[(23, 0)]]).digest(Sha256).unwrap().to_hex(), expected);
        // The same set twice is no alternative.
        assert_eq!(policy("sha256:23", &[&[(23, 0)], &[(23, 0)]]).digest(Sha256).unwrap().to_hex(), expected);
    }

    #[test]
    fn the_pcrs_that_differ_are_named() {
        let two = policy("sha256:1,7", &[&[(1, 1), (7, 1)], &[(1, 2), (7, 2)]]);
        for (now, expected) in [
            ([(1, 1), (7, 1)], vec![]),
            ([(1, 2), (7, 2)], vec![]),
            ([(1, 1), (7, 9)], vec![7]),
            ([(1, 9), (7, 9)], vec![1, 7]),
            // Each is one that is wanted, but not together.
            ([(1, 1), (7, 2)], vec![7]),
        ] {
            let differences = two.differences(&values(&now));
            assert_eq!(differences.iter().map(|difference| difference.pcr).collect::<Vec<_>>(), expected, "{now:?}");
        }
    }

    #[test]
    fn values_that_make_no_policy_are_refused() {
        let selection = |text| PcrSelection::parse(text).unwrap();
        for (text, sets, error) in [
            ("sha256:none", vec![values(&[])], PolicyError::NoPcrs),
            ("sha256:1", vec![values(&[(2, 0)])], PolicyError::NoValue { bank: Sha256, pcr: 1 }),
            ("sha1:2", vec![values(&[(2, 0)])], PolicyError::NoValue { bank: Sha1, pcr: 2 }),
            ("sha256:1", vec![], PolicyError::Alternatives(0)),
            ("sha256:1", (0..9).map(|byte| values(&[(1, byte)])).collect(), PolicyError::Alternatives(9)),
        ] {
            assert_eq!(PcrPolicy::new(selection(text), &sets, false), Err(error));
        }
    }
}
