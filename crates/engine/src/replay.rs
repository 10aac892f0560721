//! Replaying a measurement list against PCR values.
//!
//! For each entry the template digest is computed anew and, in SHA-1 or the list's own algorithm, compared with the
//! listed one; then each bank's PCR becomes H(PCR ‖ value). What the value is depends on the kernel and the bank:
//!
//! | [`Extension`] | entry | violation | where |
//! |---|---|---|---|
//! | `PerBank` | template digest in the bank's algorithm | 0xff | since Linux 5.8 |
//! | `PaddedSha1` | SHA-1 template digest, zeros | 0xff | a bank whose algorithm the kernel has not loaded |
//! | `PaddedSha1Violation` | SHA-1 template digest, zeros | 20 times 0xff, zeros | older kernels; unmapped banks |
//!
//! A list alone proves nothing: it becomes a [`ReplayedList`] only by matching PCR values. The list may have grown after
//! these were read, so what matches may be its beginning. What PCRs never prove: the name of the template, and every
//! field of a violation.
//!
//! Source: security/integrity/ima/ima_queue.c, ima_crypto.c (`ima_calc_field_array_hash`, `ima_pcr_extend`).

use crate::crypto::{Hasher, UnsupportedHash, hash};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::measurement_list::{ByteOrder, Entry, Record};
use imara_format::pcr::PcrValues;

/// A measurement list being replayed.
#[derive(Debug)]
pub struct Replay {
    banks: Vec<HashAlgorithm>,
    pcrs: Vec<Pcr>,
    claims: PcrValues,
    listed: Option<Listed>,
    order: ByteOrder,
    padded: bool,
    entries: u64,
    violations: u64,
    room: Vec<u8>,
}

/// How the values extended into a bank were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extension {
    /// With the bank's own algorithm.
    PerBank,
    /// With SHA-1 and zeros; violations 0xff throughout.
    PaddedSha1,
    /// With SHA-1 and zeros; violations as well.
    PaddedSha1Violation,
}

impl Extension {
    /// All of them, likeliest first.
    pub const ALL: [Self; 3] = [Self::PerBank, Self::PaddedSha1, Self::PaddedSha1Violation];
}

/// One PCR of one bank.
#[derive(Debug)]
struct Pcr {
    bank: HashAlgorithm,
    pcr: u32,
    claim: Option<Digest>,
    entries: u64,
    violations: u64,
    per_bank: Digest,
    padded: Digest,
    padded_violation: Digest,
    /// The last entry of this PCR after which the claim was met, and how.
    met: Option<(u64, Extension)>,
    /// The first entry after the one that met the claim.
    exceeded: Option<u64>,
}

/// How a PCR of a bank came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrResult {
    /// The bank.
    pub bank: HashAlgorithm,
    /// The PCR.
    pub pcr: u32,
    /// How many entries the list has for it.
    pub entries: u64,
    /// Its value after all of them, extended per bank.
    pub replayed: Digest,
    /// The value claimed, if one was.
    pub claimed: Option<Digest>,
    /// How the claim was met, if it was.
    pub met: Option<Match>,
}

/// How a claimed PCR value was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The kind of extension.
    pub extension: Extension,
    /// Up to which entry the list is proven by this PCR: the list's last, or the one before the first entry for this
    /// PCR that came later than the claim.
    pub up_to: u64,
}

/// A list that PCR values prove, made by [`Replay::prove`] alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedList {
    entries: u64,
    listed: u64,
    violations: u64,
    pcrs: Vec<PcrResult>,
}

impl ReplayedList {
    /// How many entries, from the first on, are proven.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many entries follow that are not proven: the list has grown since the PCRs were read.
    pub fn unproven(&self) -> u64 {
        self.listed.saturating_sub(self.entries)
    }

    /// How many of all entries are violations.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// What each PCR came to.
    pub fn pcrs(&self) -> &[PcrResult] {
        &self.pcrs
    }
}

/// Why a list is not proven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// There is no entry that could be proven.
    #[error("the list has no entries")]
    Empty,
    /// Nothing was claimed about any PCR that the list touches.
    #[error("no value was given for any PCR of the list's entries")]
    NothingClaimed,
    /// Entries go into a PCR whose value is claimed in no bank.
    #[error("PCR {pcr} has {entries} entries, and no value was given for it")]
    Unclaimed {
        /// The PCR.
        pcr: u32,
        /// Its entries.
        entries: u64,
    },
    /// A claimed value is the PCR's after no entry.
    #[error("{bank} PCR {pcr} is {claimed}, but the list gives {replayed} and no beginning of it gives that value")]
    Mismatch {
        /// The bank.
        bank: HashAlgorithm,
        /// The PCR.
        pcr: u32,
        /// The value claimed, in hexadecimal.
        claimed: String,
        /// The value replayed, in hexadecimal.
        replayed: String,
    },
}

/// An entry that does not hold together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The template digest is not that of the entry's fields.
    #[error(
        "entry {entry} ({path}): the template digest is listed as {listed}, but the entry's fields give {computed}"
    )]
    TemplateDigest {
        /// The entry's number; the first is 1.
        entry: u64,
        /// The entry's name.
        path: String,
        /// As listed, in hexadecimal.
        listed: String,
        /// As computed, in hexadecimal.
        computed: String,
    },
    /// A template digest of a size that no list has.
    #[error("entry {entry} ({path}): the template digest has {size} bytes; 20, 32, 48 or 64 were needed")]
    TemplateDigestSize {
        /// The entry's number.
        entry: u64,
        /// The entry's name.
        path: String,
        /// The size found.
        size: usize,
    },
    /// A violation whose digest is not zero, as no kernel makes it.
    #[error("entry {entry} ({path}): the template digest is zero as for a violation, but the file's digest is not")]
    Violation {
        /// The entry's number.
        entry: u64,
        /// The entry's name.
        path: String,
    },
    /// An algorithm that cannot be computed.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedHash),
}

/// How the listed template digests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    algorithm: HashAlgorithm,
    /// SHA-1 and zeros up to the algorithm's size.
    padded: bool,
}

/// An entry as this file needs it, owned or not.
trait Listing {
    fn pcr(&self) -> u32;
    fn template_digest(&self) -> &[u8];
    fn digest(&self) -> Option<Digest>;
    fn name(&self) -> String;
    fn hash_input<'a>(&'a self, order: ByteOrder, room: &'a mut Vec<u8>) -> &'a [u8];
}

impl Listing for Entry {
    fn pcr(&self) -> u32 {
        self.pcr
    }
    fn template_digest(&self) -> &[u8] {
        &self.template_digest
    }
    fn digest(&self) -> Option<Digest> {
        Entry::digest(self)
    }
    fn name(&self) -> String {
        readable(self.path())
    }
    fn hash_input<'a>(&'a self, order: ByteOrder, room: &'a mut Vec<u8>) -> &'a [u8] {
        *room = self.hash_input_in(order);
        room
    }
}

impl Listing for Record<'_> {
    fn pcr(&self) -> u32 {
        self.pcr
    }
    fn template_digest(&self) -> &[u8] {
        self.template_digest
    }
    fn digest(&self) -> Option<Digest> {
        Record::digest(self)
    }
    fn name(&self) -> String {
        readable(self.path())
    }
    fn hash_input<'a>(&'a self, order: ByteOrder, room: &'a mut Vec<u8>) -> &'a [u8] {
        Record::hash_input(self, order, room)
    }
}

/// An entry's name for messages.
fn readable(path: Option<&[u8]>) -> String {
    path.map_or_else(|| "no name".to_owned(), |path| path.escape_ascii().to_string())
}

/// What an entry extends.
enum Extended<'a> {
    /// Its template digest, known in the list's algorithm.
    Template { input: &'a [u8], known: Digest },
    /// 0xff bytes.
    Violation,
}

impl Extended<'_> {
    fn in_algorithm(&self, algorithm: HashAlgorithm) -> Result<Digest, UnsupportedHash> {
        match self {
            Self::Template { known, .. } if known.algorithm() == algorithm => Ok(*known),
            Self::Template { input, .. } => hash(algorithm, &[input]),
            Self::Violation => Ok(Digest::ones(algorithm)),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The values that an entry extends into `banks`, in their order: its template digests, or 0xff bytes for a violation.
///
/// # Errors
/// [`UnsupportedHash`] when a bank's algorithm cannot be computed.
pub fn template_digests(entry: &Entry, banks: &[HashAlgorithm]) -> Result<Vec<Digest>, UnsupportedHash> {
    let input = entry.hash_input();
    let value = |bank: &HashAlgorithm| {
        let digest = hash(*bank, &[&input])?;
        Ok(if entry.is_violation() { Digest::ones(*bank) } else { digest })
    };
    banks.iter().map(value).collect()
}

impl Replay {
    /// A replay from PCRs that are all zero, as after a boot.
    ///
    /// # Errors
    /// [`UnsupportedHash`] when a bank's algorithm cannot be computed.
    pub fn new(banks: &[HashAlgorithm]) -> Result<Self, UnsupportedHash> {
        let mut replay = Self {
            banks: Vec::new(),
            pcrs: Vec::new(),
            claims: PcrValues::default(),
            listed: None,
            order: ByteOrder::Little,
            padded: true,
            entries: 0,
            violations: 0,
            room: Vec::new(),
        };
        replay.add_banks(banks)?;
        Ok(replay)
    }

    /// Replays in these banks as well; to be called before the first entry.
    ///
    /// # Errors
    /// As [`Replay::new`].
    pub fn add_banks(&mut self, banks: &[HashAlgorithm]) -> Result<(), UnsupportedHash> {
        for bank in banks {
            Hasher::new(*bank)?;
            if !self.banks.contains(bank) {
                self.banks.push(*bank);
            }
        }
        Ok(())
    }

    /// A replay that compares each PCR with its claimed value after each entry, in every bank that is claimed.
    ///
    /// # Errors
    /// As [`Replay::new`].
    pub fn against(claims: PcrValues) -> Result<Self, UnsupportedHash> {
        let mut replay = Self::new(&claims.banks())?;
        replay.claims = claims;
        Ok(replay)
    }

    /// Leaves out the values padded from SHA-1, which takes a third less time; to be called before the first entry.
    #[must_use]
    pub fn per_bank_only(mut self) -> Self {
        self.padded = false;
        self
    }

    /// Takes the next entry; when it is refused, nothing has changed.
    ///
    /// # Errors
    /// [`ReplayError`] naming the entry when it does not hold together.
    pub fn extend(&mut self, entry: &Entry) -> Result<(), ReplayError> {
        self.extend_listing(entry)
    }

    /// The same for an entry that was just read, without a copy.
    ///
    /// # Errors
    /// As [`Replay::extend`].
    pub fn extend_record(&mut self, record: &Record<'_>) -> Result<(), ReplayError> {
        self.extend_listing(record)
    }

    fn extend_listing(&mut self, entry: &impl Listing) -> Result<(), ReplayError> {
        let mut room = std::mem::take(&mut self.room);
        let result = self.extend_in(entry, &mut room);
        self.room = room;
        result
    }

    fn extend_in(&mut self, entry: &impl Listing, room: &mut Vec<u8>) -> Result<(), ReplayError> {
        let values = self.accept(entry, room)?;
        let in_algorithm = |algorithm| values.in_algorithm(algorithm);
        let violation = matches!(values, Extended::Violation);
        let (number, pcr) = (self.entries, entry.pcr());
        // In banks other than SHA-1 alone, and the same for all of them.
        let padded = self.padded && self.banks.iter().any(|bank| *bank != HashAlgorithm::Sha1);
        let sha1 = if padded { Some(in_algorithm(HashAlgorithm::Sha1)?) } else { None };
        for bank in &self.banks {
            let bank = *bank;
            let known = match self.pcrs.iter_mut().position(|known| known.pcr == pcr && known.bank == bank) {
                Some(index) => &mut self.pcrs[index],
                None => {
                    self.pcrs.push(Pcr::new(bank, pcr, self.claims.value(bank, pcr)));
                    self.pcrs.last_mut().expect("a PCR was just added")
                }
            };
            known.entries += 1;
            known.violations += u64::from(violation);
            let mut met = None;
            if let Some(sha1) = sha1.filter(|_| bank != HashAlgorithm::Sha1) {
                let short = pad(bank, &sha1);
                let long = if violation { Digest::ones(bank) } else { short };
                // Until the first violation both kinds are one.
                if known.violations > 0 && known.extend(Extension::PaddedSha1Violation, &short)? {
                    met = Some(Extension::PaddedSha1Violation);
                }
                if known.extend(Extension::PaddedSha1, &long)? {
                    met = Some(Extension::PaddedSha1);
                }
                if known.violations == 0 {
                    known.padded_violation = known.padded;
                }
            }
            if known.extend(Extension::PerBank, &in_algorithm(bank)?)? {
                met = Some(Extension::PerBank);
            }
            known.compared(number, met);
        }
        Ok(())
    }

    /// Makes sure that an entry holds together, and counts it.
    fn accept<'a>(&mut self, entry: &'a impl Listing, room: &'a mut Vec<u8>) -> Result<Extended<'a>, ReplayError> {
        let number = self.entries + 1;
        if entry.template_digest().is_empty() || !is_zero(entry.template_digest()) {
            let (listed, order, known) = self.check(entry, number, room)?;
            (self.listed, self.order, self.entries) = (Some(listed), order, number);
            return Ok(Extended::Template { input: entry.hash_input(order, room), known });
        }
        if entry.digest().is_some_and(|digest| !digest.is_zero()) {
            return Err(ReplayError::Violation { entry: number, path: entry.name() });
        }
        (self.entries, self.violations) = (number, self.violations + 1);
        Ok(Extended::Violation)
    }

    /// What a record extends into each bank with the bank's own algorithm, in the order of the banks; nothing is extended
    /// here. The byte order is that of the machine which hashed it: hashed in it, the fields give these digests.
    ///
    /// # Errors
    /// As [`Replay::extend`].
    pub fn digests(&mut self, record: &Record<'_>, digests: &mut Vec<Digest>) -> Result<ByteOrder, ReplayError> {
        let mut room = std::mem::take(&mut self.room);
        let extended = self.accept(record, &mut room)?;
        digests.clear();
        for bank in &self.banks {
            digests.push(extended.in_algorithm(*bank)?);
        }
        self.room = room;
        Ok(self.order)
    }

    /// Compares the listed template digest, whose algorithm the first entry tells.
    fn check(
        &self,
        entry: &impl Listing,
        number: u64,
        room: &mut Vec<u8>,
    ) -> Result<(Listed, ByteOrder, Digest), ReplayError> {
        use HashAlgorithm::{Sha1, Sha3_256, Sha3_384, Sha3_512, Sha256, Sha384, Sha512, Sm3};
        let listed_digest = entry.template_digest();
        let candidates: &[HashAlgorithm] = match listed_digest.len() {
            20 => &[Sha1],
            32 => &[Sha256, Sm3, Sha3_256],
            48 => &[Sha384, Sha3_384],
            64 => &[Sha512, Sha3_512],
            size => return Err(ReplayError::TemplateDigestSize { entry: number, path: entry.name(), size }),
        };
        let mut attempt = |listed: Listed, order| -> Result<Option<Digest>, UnsupportedHash> {
            let algorithm = if listed.padded { Sha1 } else { listed.algorithm };
            let computed = hash(algorithm, &[entry.hash_input(order, room)])?;
            let (start, rest) = listed_digest.split_at(computed.as_bytes().len());
            Ok((start == computed.as_bytes() && is_zero(rest)).then_some(computed))
        };
        if let Some(listed) = self.listed.filter(|listed| listed.algorithm.digest_size() == listed_digest.len())
            && let Some(computed) = attempt(listed, self.order)?
        {
            return Ok((listed, self.order, computed));
        }
        // The machine that hashed may have been of the other byte order, and a bank may be padded.
        let forms = candidates.iter().map(|algorithm| Listed { algorithm: *algorithm, padded: false });
        let padded = Listed { algorithm: candidates[0], padded: true };
        for listed in forms.chain([padded]) {
            if self.listed.is_some_and(|first| first != listed) {
                continue;
            }
            for order in [ByteOrder::Little, ByteOrder::Big] {
                if let Some(computed) = attempt(listed, order)? {
                    return Ok((listed, order, computed));
                }
            }
        }
        let algorithm = self.listed.map_or(candidates[0], |listed| listed.algorithm);
        let algorithm = if algorithm.digest_size() == listed_digest.len() { algorithm } else { candidates[0] };
        let computed = hash(algorithm, &[entry.hash_input(self.order, room)])?;
        Err(ReplayError::TemplateDigest {
            entry: number,
            path: entry.name(),
            listed: to_hex(listed_digest),
            computed: computed.to_hex(),
        })
    }

    /// The PCR's value so far, extended per bank; `None` for a bank that is not replayed. Zero before its first entry.
    pub fn value(&self, pcr: u32, bank: HashAlgorithm) -> Option<Digest> {
        self.value_by(pcr, bank, Extension::PerBank)
    }

    /// The PCR's value so far by that kind of extension; zero for kinds that are left out.
    pub fn value_by(&self, pcr: u32, bank: HashAlgorithm, extension: Extension) -> Option<Digest> {
        self.banks.contains(&bank).then(|| {
            let known = self.pcrs.iter().find(|known| known.pcr == pcr && known.bank == bank);
            known.map_or_else(|| Digest::zeros(bank), |known| known.value(extension))
        })
    }

    /// How many entries were taken.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many of them are violations.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// What each PCR that the list touches has come to, by PCR and then bank.
    pub fn pcrs(&self) -> Vec<PcrResult> {
        let mut results: Vec<_> = self.pcrs.iter().map(|pcr| pcr.result(self.entries)).collect();
        results.sort_by_key(|result| (result.pcr, result.bank));
        results
    }

    /// Proves the list, or its beginning, by the claimed values: each claim on a PCR that the list touches must be met,
    /// and each PCR that it touches must be claimed in one bank at least.
    ///
    /// # Errors
    /// [`Unproven`] with the first claim that is not met.
    pub fn prove(&self) -> Result<ReplayedList, Unproven> {
        let pcrs = self.pcrs();
        if self.entries == 0 {
            return Err(Unproven::Empty);
        }
        if self.claims.is_empty() || pcrs.iter().all(|result| result.claimed.is_none()) {
            return Err(Unproven::NothingClaimed);
        }
        let mut entries = self.entries;
        for result in &pcrs {
            match (result.claimed, result.met) {
                (Some(claimed), None) => {
                    return Err(Unproven::Mismatch {
                        bank: result.bank,
                        pcr: result.pcr,
                        claimed: claimed.to_hex(),
                        replayed: result.replayed.to_hex(),
                    });
                }
                (Some(_), Some(met)) => entries = entries.min(met.up_to),
                (None, _) if pcrs.iter().any(|other| other.pcr == result.pcr && other.claimed.is_some()) => {}
                (None, _) => return Err(Unproven::Unclaimed { pcr: result.pcr, entries: result.entries }),
            }
        }
        Ok(ReplayedList { entries, listed: self.entries, violations: self.violations, pcrs })
    }
}

/// A digest with zeros up to the bank's size, or cut to it.
fn pad(bank: HashAlgorithm, digest: &Digest) -> Digest {
    let mut bytes = [0; imara_format::hash::MAX_DIGEST_SIZE];
    bytes[..digest.as_bytes().len()].copy_from_slice(digest.as_bytes());
    Digest::new(bank, &bytes[..bank.digest_size()]).expect("the bytes are cut to the bank's size")
}

impl Pcr {
    fn new(bank: HashAlgorithm, pcr: u32, claim: Option<Digest>) -> Self {
        let zeros = Digest::zeros(bank);
        let (per_bank, padded, padded_violation) = (zeros, zeros, zeros);
        Self {
            bank,
            pcr,
            claim,
            entries: 0,
            violations: 0,
            per_bank,
            padded,
            padded_violation,
            met: None,
            exceeded: None,
        }
    }

    fn value(&self, extension: Extension) -> Digest {
        match extension {
            Extension::PerBank => self.per_bank,
            // SHA-1 needs no padding.
            _ if self.bank == HashAlgorithm::Sha1 => self.per_bank,
            Extension::PaddedSha1 => self.padded,
            Extension::PaddedSha1Violation => self.padded_violation,
        }
    }

    /// Extends one of the values, and says whether it is the claimed one now.
    fn extend(&mut self, extension: Extension, by: &Digest) -> Result<bool, UnsupportedHash> {
        let value = match extension {
            Extension::PerBank => &mut self.per_bank,
            Extension::PaddedSha1 => &mut self.padded,
            Extension::PaddedSha1Violation => &mut self.padded_violation,
        };
        *value = hash(self.bank, &[value.as_bytes(), by.as_bytes()])?;
        Ok(self.claim.as_ref().is_some_and(|claim| claim == value))
    }

    /// Keeps how the claim was met after this entry, or that the list went on.
    fn compared(&mut self, number: u64, met: Option<Extension>) {
        if let Some(extension) = met {
            (self.met, self.exceeded) = (Some((number, extension)), None);
        } else if self.met.is_some() && self.exceeded.is_none() {
            self.exceeded = Some(number);
        }
    }

    fn result(&self, listed: u64) -> PcrResult {
        let up_to = self.exceeded.map_or(listed, |first| first - 1);
        PcrResult {
            bank: self.bank,
            pcr: self.pcr,
            entries: self.entries,
            replayed: self.per_bank,
            claimed: self.claim,
            met: self.met.map(|(_, extension)| Match { extension, up_to }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HashAlgorithm::{Sha1, Sha256, Sha384, Sha512};
    use imara_format::measurement_list::Reader;
    use imara_format::template::{encode_d_ng, encode_n_ng};
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    const BANKS: [HashAlgorithm; 4] = [Sha1, Sha256, Sha384, Sha512];

    fn vectors() -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/measurement_list");
        let cases = std::fs::read_dir(folder).unwrap().map(|case| case.unwrap().path());
        cases.filter(|case| case.is_dir()).collect()
    }

    fn vector(name: &str) -> (Vec<u8>, PcrValues) {
        let case = vectors().into_iter().find(|case| case.ends_with(name)).unwrap();
        let claims = std::fs::read_to_string(case.join("pcrs")).unwrap();
        (std::fs::read(case.join("binary")).unwrap(), PcrValues::from_text(&claims, Sha1).unwrap())
    }

    /// The proof, or what is wrong, as text.
    fn verify(list: &[u8], claims: &PcrValues) -> Result<ReplayedList, String> {
        let mut replay = Replay::against(claims.clone()).unwrap();
        let mut reader = Reader::new(list);
        while let Some(record) = reader.next_record().map_err(|error| error.to_string())? {
            replay.extend_record(&record).map_err(|error| error.to_string())?;
        }
        replay.prove().map_err(|error| error.to_string())
    }

    #[test]
    fn every_kernel_list_comes_to_its_pcrs_in_every_bank() {
        for case in vectors() {
            let name = case.file_name().unwrap().to_str().unwrap();
            let (list, claims) = vector(name);
            if name == "notpm" {
                assert_eq!(verify(&list, &claims), Err(Unproven::NothingClaimed.to_string()));
                continue;
            }
            let proven = verify(&list, &claims).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(proven.unproven(), 0, "{name}");
            for result in proven.pcrs() {
                let padded = name == "tcb-sha512-nomod" && result.bank != Sha1 && result.bank != Sha256;
                let extension = if padded { Extension::PaddedSha1 } else { Extension::PerBank };
                assert_eq!(result.met.unwrap().extension, extension, "{name} {}:{}", result.bank, result.pcr);
            }
            if name != "tpm-quote" {
                assert!(proven.pcrs().len() >= 4, "{name}");
            }
        }
    }

    #[test]
    fn template_digests_and_pcrs_are_the_computed_ones() {
        let no_tpm = Digest::zeros(Sha256);
        let mut aggregate = Entry {
            pcr: 10,
            template_digest: Vec::new(),
            template: "ima-ng".into(),
            fields: vec![encode_d_ng(&no_tpm), encode_n_ng(b"boot_aggregate")],
        };
        let digests = template_digests(&aggregate, &[Sha1, Sha256]).unwrap();
        assert_eq!(digests[0].to_hex(), "0adefe762c149c7cec19da62f0da1297fcfbffff");
        assert_eq!(digests[1].to_hex(), "36f1cd67a730bc4137870c4d00dbc7430b51b1ebdaa130744297cf65339078a0");
        aggregate.template_digest = digests[0].as_bytes().to_vec();
        let mut violation = aggregate.clone();
        violation.template_digest = vec![0; 20];
        violation.fields[1] = encode_n_ng(b"/opt/x");
        assert_eq!(template_digests(&violation, &[Sha1]).unwrap(), [Digest::ones(Sha1)]);

        let mut replay = Replay::new(&[Sha1, Sha256]).unwrap();
        for (entry, sha1, sha256, padded) in [
            (
                &aggregate,
                "5141100982188d48fb6fa0f19a8d27e3eabd703b",
                "35d08f4de6c76c315d9ea3e5fea0305fc1e902506504f80d7c98d6d4e6e33072",
                Some("456030c66cacf38b61cdaefc1207b6ab0764038cdf2a09c990697bc602dfa9b2"),
            ),
            (
                &violation,
                "59ca5b393fc4edbe83a0fcd606df05773f0e5f69",
                "23c1b510b8dd7127644f16aa531b44000f1b9a67b4dc68f87f69a4f212eb4ed3",
                None,
            ),
        ] {
            replay.extend(entry).unwrap();
            assert_eq!(replay.value(10, Sha1).unwrap().to_hex(), sha1);
            assert_eq!(replay.value(10, Sha256).unwrap().to_hex(), sha256);
            if let Some(padded) = padded {
                for extension in [Extension::PaddedSha1, Extension::PaddedSha1Violation] {
                    assert_eq!(replay.value_by(10, Sha256, extension).unwrap().to_hex(), padded);
                }
            }
        }
        let short = replay.value_by(10, Sha256, Extension::PaddedSha1Violation);
        assert_ne!(short, replay.value_by(10, Sha256, Extension::PaddedSha1));
        assert_eq!((replay.entries(), replay.violations()), (2, 1));
        assert_eq!(replay.value(11, Sha1), Some(Digest::zeros(Sha1)));
        assert_eq!(replay.value(10, Sha512), None);
    }

    #[test]
    fn digests_are_what_is_extended_and_a_changed_entry_has_none() {
        let (list, claims) = vector("tcb");
        let banks = claims.banks();
        let mut replay = Replay::new(&banks).unwrap();
        let (mut digests, mut pcr) = (Vec::new(), banks.iter().map(|bank| Digest::zeros(*bank)).collect::<Vec<_>>());
        let mut reader = Reader::new(&list);
        while let Some(record) = reader.next_record().unwrap() {
            assert_eq!(replay.digests(&record, &mut digests), Ok(ByteOrder::Little));
            assert_eq!(digests[0] == Digest::ones(banks[0]), record.is_violation());
            for (value, digest) in pcr.iter_mut().zip(&digests) {
                *value = hash(value.algorithm(), &[value.as_bytes(), digest.as_bytes()]).unwrap();
            }
        }
        assert_eq!(pcr, banks.iter().map(|bank| claims.value(*bank, 10).unwrap()).collect::<Vec<_>>());
        assert_eq!((replay.entries(), replay.violations()), (27, 3));
        let mut edited = list;
        // The last letter of the last name, before its NUL and the length of no signature.
        let at = edited.len() - 6;
        edited[at] ^= 1;
        let mut reader = Reader::new(&edited);
        let mut replay = Replay::new(&banks).unwrap();
        for _ in 0..26 {
            replay.digests(&reader.next_record().unwrap().unwrap(), &mut digests).unwrap();
        }
        let error = replay.digests(&reader.next_record().unwrap().unwrap(), &mut digests).unwrap_err();
        assert!(matches!(error, ReplayError::TemplateDigest { entry: 27, .. }), "{error}");
    }

    #[test]
    fn an_edited_byte_is_pinned_to_its_entry() {
        let (list, claims) = vector("tcb");
        let at = list.windows(11).position(|window| window == b"/mnt/empty-").unwrap();
        let mut edited = list;
        edited[at + 5] = b'E';
        let error = verify(&edited, &claims).unwrap_err();
        assert!(error.starts_with("entry 6 (/mnt/Empty-alpha): the template digest is listed as 36d7ff"), "{error}");
        assert_eq!(verify(&edited, &PcrValues::new()).unwrap_err(), error);
    }

    #[test]
    fn any_changed_byte_is_found_but_in_what_pcrs_do_not_cover() {
        let (list, claims) = vector("buf");
        let mut reader = Reader::new(&list);
        let mut uncovered = vec![false; list.len()];
        let mut spans = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            spans.push((record.offset as usize, record.is_violation()));
        }
        // The template's name is hashed nowhere, and of a violation nothing is.
        for (index, (start, violation)) in spans.iter().enumerate() {
            let end = spans.get(index + 1).map_or(list.len(), |next| next.0);
            if *violation {
                uncovered[start + 24..end].fill(true);
            }
        }
        for at in (0..list.len()).filter(|at| !uncovered[*at]) {
            for change in [1, 0x80, 0xff] {
                let mut edited = list.clone();
                edited[at] ^= change;
                let result = verify(&edited, &claims);
                assert!(result.is_err(), "byte {at} changed by {change:#x}: {result:?}");
            }
        }
        assert!(uncovered.iter().filter(|byte| **byte).count() < list.len() / 4);
    }

    #[test]
    fn removed_doubled_and_swapped_entries_are_found() {
        let (list, claims) = vector("tpl-ima-ng");
        let entries: Vec<Entry> = Reader::new(&list).collect::<Result<_, _>>().unwrap();
        let prove = |entries: &[Entry]| {
            let mut replay = Replay::against(claims.clone()).unwrap();
            entries.iter().for_each(|entry| replay.extend(entry).unwrap());
            replay.prove()
        };
        for index in 0..entries.len() {
            let mut removed = entries.clone();
            removed.remove(index);
            assert!(matches!(prove(&removed), Err(Unproven::Mismatch { .. })), "{index} removed");
            let mut doubled = entries.clone();
            doubled.insert(index, entries[index].clone());
            let last = index + 1 == entries.len();
            assert_eq!(prove(&doubled).map(|list| list.unproven()).ok(), last.then_some(1), "{index} doubled");
            let mut swapped = entries.clone();
            swapped.swap(index, (index + 1) % entries.len());
            if swapped != entries && !(entries[index].is_violation() && swapped[index].is_violation()) {
                assert!(prove(&swapped).is_err(), "{index} swapped");
            }
        }
        let mut grown = entries.clone();
        grown.extend_from_slice(&entries[1..4]);
        let proven = prove(&grown).unwrap();
        assert_eq!((proven.entries(), proven.unproven()), (entries.len() as u64, 3));
    }

    #[test]
    fn every_touched_pcr_must_be_claimed_and_met() {
        let (list, claims) = vector("custom");
        assert!(verify(&list, &claims).is_ok());
        let only = |keep: &dyn Fn(u32, HashAlgorithm) -> bool| {
            let mut some = PcrValues::new();
            claims.iter().filter(|(pcr, value)| keep(*pcr, value.algorithm())).for_each(|(pcr, value)| {
                some.insert(pcr, value).unwrap();
            });
            verify(&list, &some)
        };
        assert!(only(&|_, bank| bank == Sha384).is_ok());
        assert!(only(&|pcr, bank| (pcr == 10 && bank == Sha1) || (pcr == 11 && bank == Sha256)).is_ok());
        assert!(only(&|pcr, _| pcr == 10).unwrap_err().starts_with("PCR 11 has "));
        assert_eq!(only(&|pcr, _| pcr < 9), Err(Unproven::NothingClaimed.to_string()));
    }

    #[test]
    fn lists_of_other_banks_padded_ones_and_other_byte_orders_are_checked() {
        let (list, claims) = vector("fmt-many");
        for (bank, padded) in [(Sha256, false), (Sha512, false), (HashAlgorithm::Sm3, false), (Sha384, true)] {
            for order in [ByteOrder::Little, ByteOrder::Big] {
                let mut relisted = Vec::new();
                for mut entry in Reader::new(&list).map(Result::unwrap) {
                    let digest = hash(if padded { Sha1 } else { bank }, &[&entry.hash_input_in(order)]).unwrap();
                    let violation = entry.is_violation();
                    entry.template_digest = if violation { vec![0; 1] } else { digest.as_bytes().to_vec() };
                    entry.template_digest.resize(bank.digest_size(), 0);
                    entry.write_binary(order, &mut relisted);
                }
                let result = verify(&relisted, &claims);
                match order {
                    // The machine that made the claims hashes little-endian.
                    ByteOrder::Little => assert!(result.is_ok(), "{bank} {result:?}"),
                    ByteOrder::Big => assert!(result.unwrap_err().contains(" PCR 10 is "), "{bank}"),
                }
            }
        }
    }

    #[test]
    fn a_violation_with_a_digest_is_refused() {
        let entry = Entry {
            pcr: 10,
            template_digest: vec![0; 20],
            template: "ima-ng".into(),
            fields: vec![encode_d_ng(&Digest::ones(Sha256)), encode_n_ng(b"/x")],
        };
        let error = Replay::new(&BANKS).unwrap().extend(&entry).unwrap_err();
        assert_eq!(error, ReplayError::Violation { entry: 1, path: "/x".into() });
        let empty = Entry { template_digest: Vec::new(), ..entry };
        let error = Replay::new(&BANKS).unwrap().extend(&empty).unwrap_err();
        assert_eq!(error, ReplayError::TemplateDigestSize { entry: 1, path: "/x".into(), size: 0 });
    }

    proptest! {
        #[test]
        fn a_replay_claimed_after_any_entry_proves_exactly_the_entries_before(
            names in proptest::collection::vec("[a-z]{1,8}", 2..12),
            claimed in any::<prop::sample::Index>(),
        ) {
            let entries: Vec<Entry> = names.iter().enumerate().map(|(index, name)| {
                let mut entry = Entry {
                    pcr: 10,
                    template_digest: Vec::new(),
                    template: "ima-ng".into(),
                    fields: vec![encode_d_ng(&hash(Sha256, &[&[index as u8]]).unwrap()), encode_n_ng(name.as_bytes())],
                };
                entry.template_digest = template_digests(&entry, &[Sha1]).unwrap()[0].as_bytes().to_vec();
                entry
            }).collect();
            let claimed = claimed.index(entries.len()) + 1;
            let mut replay = Replay::new(&BANKS).unwrap();
            entries[..claimed].iter().for_each(|entry| replay.extend(entry).unwrap());
            let mut claims = PcrValues::new();
            BANKS.iter().for_each(|bank| claims.insert(10, replay.value(10, *bank).unwrap()).unwrap());
            let mut replay = Replay::against(claims).unwrap();
            entries.iter().for_each(|entry| replay.extend(entry).unwrap());
            prop_assert_eq!(replay.prove().unwrap().entries(), claimed as u64);
        }
    }
}
