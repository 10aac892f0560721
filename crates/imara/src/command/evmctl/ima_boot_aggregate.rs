//! `evmctl ima_boot_aggregate`.

use super::pcrs::{BANKS, read_pcrs};
use super::{Ending, Evmctl, Failed, tell, tell_out};
use imara_engine::crypto::{Hasher, hash};
use imara_format::hash::{Digest, HashAlgorithm};
use std::path::{Path, PathBuf};

/// What an event of a TPM 1.2 log is at most: a longer one is none.
const MAX_EVENT: usize = 200_000;

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    if let Some(log) = words.first() {
        let aggregate = from_log(evmctl, log)?;
        tell_out(format_args!("sha1:{}\n", aggregate.to_hex()));
        return Ok(());
    }
    let values = read_pcrs(evmctl);
    if values.is_empty() {
        tell("Failed to read any TPM PCRs\n");
        return Err(Failed::Negative);
    }
    for bank in BANKS {
        // Since Linux 5.8 all banks but SHA-1's sum up the boot loader's PCRs, too.
        let last = if bank == HashAlgorithm::Sha1 { 7 } else { 9 };
        let summed = (0..=last).map(|pcr| values.value(bank, pcr)).collect::<Option<Vec<_>>>();
        if let Some(summed) = summed {
            tell_out(format_args!("{bank}:{}\n", aggregate(bank, &summed)?.to_hex()));
        }
    }
    Ok(())
}

fn aggregate(bank: HashAlgorithm, pcrs: &[Digest]) -> Result<Digest, Failed> {
    let mut hasher = Hasher::new(bank).map_err(|_| Failed::Negative)?;
    pcrs.iter().for_each(|pcr| hasher.update(pcr.as_bytes()));
    Ok(hasher.finish())
}

/// Replays a TPM 1.2 event log: PCR (4 bytes), type (4), SHA-1 (20), size (4) of what follows, little-endian.
fn from_log(evmctl: &Evmctl, path: &Path) -> Result<Digest, Failed> {
    let unreadable = || tell(format_args!("Failed reading the TPM 1.2 event log ({})\n", path.display()));
    let log = std::fs::read(path).map_err(|error| {
        unreadable();
        evmctl.note(&error);
        Failed::Negative
    })?;
    let mut pcrs = [Digest::zeros(HashAlgorithm::Sha1); 24];
    let mut rest = log.as_slice();
    while !rest.is_empty() {
        let event = rest.split_first_chunk::<32>().and_then(|(header, after)| {
            let [pcr, _, .., size] = header.as_chunks::<4>().0 else { return None };
            let (pcr, size) = (u32::from_le_bytes(*pcr), u32::from_le_bytes(*size));
            let size = usize::try_from(size).ok().filter(|size| *size <= MAX_EVENT)?;
            rest = after.get(size..)?;
            Some((pcrs.get_mut(usize::try_from(pcr).ok()?)?, &header[8..28]))
        });
        let extended = event.and_then(|(pcr, digest)| {
            *pcr = hash(HashAlgorithm::Sha1, &[pcr.as_bytes(), digest]).ok()?;
            Some(())
        });
        if extended.is_none() {
            unreadable();
            return Err(Failed::Negative);
        }
    }
    aggregate(HashAlgorithm::Sha1, &pcrs[..8])
}
