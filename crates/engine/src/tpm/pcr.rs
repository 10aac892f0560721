//! PCR banks, and reading and extending PCRs.
//!
//! Extends are authorised by the empty password and no HMAC session: a PCR is public and its authorisation is empty, so
//! a session would protect nothing against someone who can talk to the TPM, and would cost a round trip an extend.

use std::fmt;

use imara_format::{
    hash::{Digest, HashAlgorithm},
    tpm::{PcrSelection, Reader},
};
use tpm2_protocol::{
    basic::{TpmBuffer, TpmHandle},
    data::{TpmAlgId, TpmCap, TpmlDigestValues, TpmlPcrSelection, TpmsPcrSelect, TpmsPcrSelection, TpmtHa, TpmuHa},
    frame::{TpmPcrExtendCommand, TpmPcrReadCommand, TpmPcrResetCommand},
};

use super::{Tpm, TpmError, command::empty_password};

/// A PCR bank that has PCRs allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bank {
    /// The TPM's identifier of the bank's hash algorithm.
    pub tpm_id: u16,
    /// The algorithm, where the kernel maps the identifier.
    pub algorithm: Option<HashAlgorithm>,
    /// The size of the bank's digests in bytes; 0 where neither the kernel nor the codec knows the identifier.
    pub digest_size: usize,
}

/// Banks in one command, the codec's limit.
pub(super) const MAX_BANKS: usize = 8;
/// PCRs in a selection of three bytes, the size that every PC Client TPM takes.
const MAX_PCRS: u32 = 24;
/// Times that one consistent reading is begun anew.
pub(super) const READINGS: u32 = 10;
/// The largest digest that a response may carry.
const MAX_DIGEST: usize = imara_format::hash::MAX_DIGEST_SIZE;

impl Tpm {
    /// The value of one PCR.
    ///
    /// # Errors
    /// [`TpmError::NoBank`] and [`TpmError::NotAllocated`] when the TPM has no such value.
    pub fn pcr_read(&mut self, bank: HashAlgorithm, index: u32) -> Result<Digest, TpmError> {
        if !self.banks.iter().any(|allocated| allocated.algorithm == Some(bank)) {
            return Err(TpmError::NoBank { bank, allocated: self.banks.clone() });
        }
        let values = self.read_consistently(&[(bank, pcr_bit(index)?)])?;
        values.first().map(|(_, _, value)| *value).ok_or(TpmError::NotAllocated { bank, index })
    }

    /// The values of these PCRs in every bank that the kernel maps, of one moment: in the banks' order, PCRs ascending.
    ///
    /// # Errors
    /// [`TpmError::NotAllocated`] when a bank lacks one of them, [`TpmError::Unsettled`] when others kept extending.
    pub fn pcr_read_many(&mut self, indices: &[u32]) -> Result<Vec<(HashAlgorithm, u32, Digest)>, TpmError> {
        let mut wanted = 0;
        for index in indices {
            wanted |= pcr_bit(*index)?;
        }
        let banks = self.banks.iter().filter_map(|bank| bank.algorithm).take(MAX_BANKS);
        let banks: Vec<_> = banks.map(|bank| (bank, wanted)).collect();
        self.read_consistently(&banks)
    }

    /// The values of a selection, of one moment, in its order.
    ///
    /// # Errors
    /// [`TpmError::NoBank`] and [`TpmError::NotAllocated`] where the TPM lacks one of them.
    pub fn pcr_read_selection(
        &mut self,
        selection: &PcrSelection,
    ) -> Result<Vec<(HashAlgorithm, u32, Digest)>, TpmError> {
        let mut banks = Vec::new();
        for (id, pcrs) in selection.maps() {
            let bank = HashAlgorithm::from_tpm_id(*id).ok_or(TpmError::UnknownNameAlgorithm(*id))?;
            if !self.banks.iter().any(|allocated| allocated.algorithm == Some(bank)) {
                return Err(TpmError::NoBank { bank, allocated: self.banks.clone() });
            }
            banks.push((bank, *pcrs));
        }
        self.read_consistently(&banks)
    }

    /// Resets a PCR that can be reset from this locality: 16 and 23 from any.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn pcr_reset(&mut self, index: u32) -> Result<(), TpmError> {
        pcr_bit(index)?;
        let command = TpmPcrResetCommand { handles: [TpmHandle::new(index)] };
        self.run("TPM2_PCR_Reset", &command, &[empty_password()])?.end()?;
        Ok(())
    }

    /// Extends a PCR in the banks of `digests`, in one command. Other banks keep their value.
    ///
    /// # Errors
    /// [`TpmError::NoIdentifier`], [`TpmError::DigestCount`] and [`TpmError::NoPcr`] before anything is sent.
    pub fn pcr_extend(&mut self, index: u32, digests: &[Digest]) -> Result<(), TpmError> {
        self.extend(index, digests, None)
    }

    /// Extends a PCR in the banks of `digests`, and in those that the kernel does not map with `rest`, cut or filled up
    /// with zeros to the bank's size, all in one command. A bank that is left out could be extended later with
    /// whatever suits a forged list; the kernel's IMA does the same with its SHA-1 digest. A bank whose digest size is
    /// not known stays as it is.
    ///
    /// # Errors
    /// As [`pcr_extend`](Self::pcr_extend).
    ///
    /// Source: `ima_calc_field_array_hash`, security/integrity/ima/ima_crypto.c.
    pub fn pcr_extend_every_bank(&mut self, index: u32, digests: &[Digest], rest: &[u8]) -> Result<(), TpmError> {
        self.extend(index, digests, Some(rest))
    }

    pub(super) fn extend(&mut self, index: u32, digests: &[Digest], rest: Option<&[u8]>) -> Result<(), TpmError> {
        pcr_bit(index)?;
        let unmapped =
            self.banks.iter().filter(|bank| rest.is_some() && bank.algorithm.is_none() && bank.digest_size != 0);
        let unmapped = unmapped.filter_map(|bank| Some((TpmAlgId::try_from(bank.tpm_id).ok()?, bank.digest_size)));
        let count = digests.len() + unmapped.clone().count();
        if count == 0 {
            return Err(TpmError::DigestCount(count));
        }
        let mut values = TpmlDigestValues::default();
        for digest in digests {
            values.try_push(tagged_digest(digest)?).map_err(|_| TpmError::DigestCount(count))?;
        }
        for (hash_alg, size) in unmapped {
            let mut padded = [0; MAX_DIGEST];
            padded.iter_mut().zip(rest.unwrap_or_default()).for_each(|(byte, of)| *byte = *of);
            let Some(Ok(bytes)) = padded.get(..size).map(TpmBuffer::try_from) else { continue };
            let value = TpmtHa { hash_alg, digest: TpmuHa::Digest(bytes) };
            values.try_push(value).map_err(|_| TpmError::DigestCount(count))?;
        }
        let command = TpmPcrExtendCommand { handles: [TpmHandle::new(index)], digests: values };
        self.run("TPM2_PCR_Extend", &command, &[empty_password()])?.end()?;
        Ok(())
    }

    /// The PCRs of each bank that the TPM implements: none of a bank that it keeps no PCRs of now.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn pcr_allocation(&mut self) -> Result<PcrSelection, TpmError> {
        // The standard has all banks in one answer.
        let mut reader = self.capability(TpmCap::Pcrs, 0, 1)?;
        let selection = PcrSelection::read(&mut reader)?;
        reader.end()?;
        Ok(selection)
    }

    /// The banks that have PCRs.
    pub(super) fn allocated_banks(&mut self) -> Result<Vec<Bank>, TpmError> {
        let selection = self.pcr_allocation()?;
        let mut banks: Vec<Bank> = Vec::new();
        for (tpm_id, pcrs) in selection.maps().iter().copied().filter(|(_, pcrs)| *pcrs != 0) {
            if banks.iter().any(|bank| bank.tpm_id == tpm_id) {
                continue;
            }
            let algorithm = HashAlgorithm::from_tpm_id(tpm_id);
            let digest_size = match algorithm {
                Some(algorithm) => algorithm.digest_size(),
                // The kernel asks the TPM in the same way.
                None => self.unmapped_digest_size(tpm_id, pcrs)?,
            };
            banks.push(Bank { tpm_id, algorithm, digest_size });
        }
        Ok(banks)
    }

    /// The digest size of a bank that the kernel does not map: that of its first PCR.
    pub(super) fn unmapped_digest_size(&mut self, tpm_id: u16, pcrs: u32) -> Result<usize, TpmError> {
        if TpmAlgId::try_from(tpm_id).is_err() {
            return Ok(0);
        }
        let mut reader = match self.send_pcr_read(&PcrSelection::from_maps([(tpm_id, pcrs & pcrs.wrapping_neg())])) {
            Err(TpmError::Refused { .. }) => return Ok(0),
            answer => answer?,
        };
        reader.u32("PCR update counter")?;
        PcrSelection::read(&mut reader)?;
        let count = reader.u32("number of digests")?;
        if count == 0 { Ok(0) } else { Ok(reader.sized("digest", MAX_DIGEST)?.len()) }
    }

    /// Reads until all is there, and anew while the update counter says that the parts are of different moments.
    fn read_consistently(
        &mut self,
        wanted: &[(HashAlgorithm, u32)],
    ) -> Result<Vec<(HashAlgorithm, u32, Digest)>, TpmError> {
        'readings: for _ in 0..READINGS {
            let mut values = Vec::new();
            let mut counter = None;
            let mut missing = wanted.to_vec();
            missing.retain(|(_, pcrs)| *pcrs != 0);
            while let Some((bank, pcrs)) = missing.first().copied() {
                let before = values.len();
                let now = self.read_part(&mut missing, &mut values)?;
                if values.len() == before {
                    return Err(TpmError::NotAllocated { bank, index: pcrs.trailing_zeros() });
                }
                if *counter.get_or_insert(now) != now {
                    continue 'readings;
                }
            }
            let place = |bank: &HashAlgorithm| wanted.iter().position(|(other, _)| other == bank);
            values.sort_by_key(|(bank, index, _)| (place(bank), *index));
            return Ok(values);
        }
        Err(TpmError::Unsettled(READINGS))
    }

    /// One `TPM2_PCR_Read` of what is missing: moves what came from `missing` to `values`; returns the update counter.
    ///
    /// A TPM returns eight digests at most, and says in the returned selection which; a bank that is not allocated
    /// comes back with an empty map. So the returned selection counts, not the one asked for.
    pub(super) fn read_part(
        &mut self,
        missing: &mut Vec<(HashAlgorithm, u32)>,
        values: &mut Vec<(HashAlgorithm, u32, Digest)>,
    ) -> Result<u32, TpmError> {
        let mut asked = Vec::with_capacity(missing.len());
        for (bank, pcrs) in missing.iter() {
            asked.push((bank.tpm_id().ok_or(TpmError::NoIdentifier(*bank))?, *pcrs));
        }
        let mut reader = self.send_pcr_read(&PcrSelection::from_maps(asked.into_iter().take(MAX_BANKS)))?;
        let counter = reader.u32("PCR update counter")?;
        let at = reader.offset();
        let selection = PcrSelection::read(&mut reader)?;
        let found: u32 = selection.maps().iter().map(|(_, pcrs)| pcrs.count_ones()).sum();
        reader.expect("number of digests", found)?;
        for (tpm_id, returned) in selection.maps().iter().copied() {
            if returned == 0 {
                continue;
            }
            let bank = missing.iter_mut().find(|(bank, _)| bank.tpm_id() == Some(tpm_id));
            let Some((bank, pcrs)) = bank.filter(|(_, pcrs)| *pcrs & returned == returned) else {
                return Err(reader.malformed("selection of PCRs nobody asked for", at, returned.into(), 0).into());
            };
            for index in (0..u32::BITS).filter(|index| returned & 1 << index != 0) {
                let at = reader.offset();
                let bytes = reader.sized("digest", MAX_DIGEST)?;
                let value = Digest::new(*bank, bytes)
                    .map_err(|error| reader.malformed("digest's size", at, error.found as u64, error.needed as u64))?;
                values.push((*bank, index, value));
            }
            *pcrs &= !returned;
        }
        reader.end()?;
        missing.retain(|(_, pcrs)| *pcrs != 0);
        Ok(counter)
    }

    fn send_pcr_read(&mut self, selection: &PcrSelection) -> Result<Reader<'_>, TpmError> {
        let pcr_selection_in = selection_list(selection)?;
        self.run("TPM2_PCR_Read", &TpmPcrReadCommand { handles: [], pcr_selection_in }, &[])
    }
}

/// A selection as commands carry it.
pub(super) fn selection_list(selection: &PcrSelection) -> Result<TpmlPcrSelection, TpmError> {
    let mut list = TpmlPcrSelection::default();
    for (id, pcrs) in selection.maps() {
        let hash = TpmAlgId::try_from(*id).map_err(|_| TpmError::UnknownNameAlgorithm(*id))?;
        let [_, high, middle, low] = pcrs.to_be_bytes();
        let pcr_select = TpmsPcrSelect::try_from([low, middle, high].as_slice())
            .expect("three bytes fit the codec's selection of four");
        let pushed = list.try_push(TpmsPcrSelection { hash, pcr_select });
        pushed.map_err(|_| TpmError::DigestCount(selection.maps().len()))?;
    }
    Ok(list)
}

impl fmt::Display for Bank {
    /// The kernel's name, else the TPM's identifier.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm {
            Some(algorithm) => algorithm.fmt(f),
            None => write!(f, "{:#06x}", self.tpm_id),
        }
    }
}

/// The bit of a PCR in a selection.
fn pcr_bit(index: u32) -> Result<u32, TpmError> {
    if index < MAX_PCRS { Ok(1 << index) } else { Err(TpmError::NoPcr(index)) }
}

/// A digest as an extend carries it.
fn tagged_digest(digest: &Digest) -> Result<TpmtHa, TpmError> {
    let algorithm = digest.algorithm();
    let hash_alg =
        algorithm.tpm_id().and_then(|id| TpmAlgId::try_from(id).ok()).ok_or(TpmError::NoIdentifier(algorithm))?;
    let bytes = TpmBuffer::try_from(digest.as_bytes()).map_err(|_| TpmError::NoIdentifier(algorithm))?;
    Ok(TpmtHa { hash_alg, digest: TpmuHa::Digest(bytes) })
}
