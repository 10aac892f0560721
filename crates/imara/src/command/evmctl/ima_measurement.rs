//! `evmctl ima_measurement`: a binary measurement list against PCR values, by the original's rules.
//!
//! Each entry extends two sets of simulated PCRs: with each bank's own hash of the template data, and with its SHA-1, filled up
//! with zeros, as older kernels did. After each entry a bank is compared with the TPM's values, and one that was equal once is done;
//! when all banks of a set are done, the rest of the list is not read. `imara measurement verify` proves more.

use super::certificates::Certificates;
use super::pcrs::{BANKS, read_pcrs};
use super::{Ending, Evmctl, Failed, missing, system_text, tell};
use imara_engine::crypto::hash;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label::Label;
use imara_format::measurement_list::{ByteOrder, ListErrorKind, Reader, Record};
use imara_format::pcr::PcrValues;
use imara_format::signature::Signature;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let Some(path) = words.first() else { return Err(missing("ima_measurement")) };
    let certificates = match evmctl.options.verify_signatures {
        true => evmctl.certificates(),
        false if evmctl.options.key.is_some() => evmctl.certificates(),
        false => Certificates::none(),
    };
    let claims = read_pcrs(evmctl);
    let list = std::fs::read(path).map_err(|error| {
        tell(format_args!("Failed to open measurement file: {}\n", path.display()));
        evmctl.note(&error);
        Failed::Negative
    })?;
    let mut check = Check::new(&claims, evmctl.options.verify_bank.as_deref());
    let mut reader = Reader::new(&list);
    let mut data_is_right = true;
    while !check.is_over() {
        let record = match reader.next_record() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(error) => {
                tell_malformed(&error.kind);
                return Err(Failed::Positive);
            }
        };
        let data = record.hash_input(NATIVE, &mut Vec::new()).to_vec();
        data_is_right &= record.is_violation()
            || hash(HashAlgorithm::Sha1, &[&data]).is_ok_and(|sha1| sha1.as_bytes() == record.template_digest);
        check.extend(&record, &data, evmctl.options.ignore_violations);
        evmctl.show(&record, &certificates);
        check.compare(evmctl.is_verbose(), record.number);
    }
    let matched = check.tell_result();
    if !data_is_right {
        tell("Failed to verify template data digest.\n");
    }
    if matched && data_is_right { Ok(()) } else { Err(Failed::Positive) }
}

/// The byte order of this machine, which the list has, too.
const NATIVE: ByteOrder = if cfg!(target_endian = "big") { ByteOrder::Big } else { ByteOrder::Little };

/// What the original says of a list that ends or cannot be.
fn tell_malformed(error: &ListErrorKind) {
    match error {
        ListErrorKind::Pcr(pcr) => tell(format_args!("Invalid PCR {pcr}.\n")),
        ListErrorKind::NameLength(length) => tell(format_args!("{length} ERROR: event name too long!\n")),
        ListErrorKind::DataLength(_) => tell("Invalid template data len\n"),
        error @ ListErrorKind::Truncated { .. } => tell(format_args!("Unable to read template\nreason: {error}\n")),
        error => tell(format_args!("Invalid template\nreason: {error}\n")),
    }
}

impl Evmctl {
    /// With `-v` the entry, as the ascii list has it; and its signature, which changes nothing.
    fn show(&self, record: &Record<'_>, certificates: &Certificates) {
        if self.is_verbose() {
            let mut line = Vec::new();
            record.write_ascii(&mut line);
            let line = String::from_utf8_lossy(&line);
            tell(format_args!("{}\n", line.trim_end()));
        }
        let (Some(label), Some(name)) = (record.signature().filter(|label| !label.is_empty()), record.path()) else {
            return;
        };
        let path = Path::new(OsStr::from_bytes(name));
        let Ok(Label::Signature(Signature::V2(signature))) = Label::parse_ima(label) else { return };
        let digest = match self.options.verify_signatures {
            true => record.digest(),
            false => {
                self.open_listed(path).and_then(|file| imara_linux::files::digest(&file, signature.algorithm).ok())
            }
        };
        if let Some(digest) = digest.filter(|digest| digest.algorithm() == signature.algorithm) {
            if self.is_verbose() {
                tell(format_args!("hash({}): {}\n", digest.algorithm(), digest.to_hex()));
                let _ = certificates.verify(path, &signature, &digest);
            } else {
                certificates.verify_quietly(path, &signature, &digest);
            }
        }
    }

    fn open_listed(&self, path: &Path) -> Option<std::os::fd::OwnedFd> {
        if let Err(error) = path.symlink_metadata() {
            tell(format_args!("Failed to stat: {}\n", path.display()));
            self.note(&error);
            return None;
        }
        match imara_linux::files::open_regular(path) {
            Ok(file) => Some(file),
            Err(imara_linux::files::OpenError::System { error, .. }) => {
                tell(format_args!("Failed to open: {} ({})\n", path.display(), system_text(&error)));
                None
            }
            Err(imara_linux::files::OpenError::NotRegular { .. }) => None,
        }
    }
}

/// How the values that extend a bank are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Set {
    PerBank,
    Padded,
}

struct Bank {
    algorithm: HashAlgorithm,
    set: Set,
    pcrs: BTreeMap<u32, Digest>,
    /// A violation was extended as the list has it, which no TPM was.
    spoiled: bool,
    done: bool,
}

struct Check<'a> {
    claims: &'a PcrValues,
    banks: Vec<Bank>,
}

impl<'a> Check<'a> {
    fn new(claims: &'a PcrValues, only: Option<&str>) -> Self {
        // As the original: of two banks one is dropped.
        let dropped = only.and_then(|only| BANKS.iter().find(|bank| bank.name() != only));
        let banks = [Set::PerBank, Set::Padded].into_iter().flat_map(|set| {
            let algorithms = BANKS.iter().filter(|bank| Some(*bank) != dropped);
            algorithms.map(move |algorithm| Bank {
                algorithm: *algorithm,
                set,
                pcrs: BTreeMap::new(),
                spoiled: false,
                done: claims.iter().all(|(_, value)| value.algorithm() != *algorithm),
            })
        });
        Self { claims, banks: banks.collect() }
    }

    fn all_done(&self, set: Set) -> bool {
        self.banks.iter().filter(|bank| bank.set == set).all(|bank| bank.done)
    }

    fn is_over(&self) -> bool {
        !self.claims.is_empty() && (self.all_done(Set::PerBank) || self.all_done(Set::Padded))
    }

    fn extend(&mut self, record: &Record<'_>, data: &[u8], ignore_violations: bool) {
        for bank in &mut self.banks {
            let algorithm = bank.algorithm;
            let padded = |sha1: &[u8]| {
                let mut value = sha1.to_vec();
                value.resize(algorithm.digest_size(), 0);
                value
            };
            let value = match (record.is_violation(), bank.set) {
                (true, Set::PerBank) => Some(vec![0xff; algorithm.digest_size()]),
                (true, Set::Padded) => Some(padded(&[0xff; 20])),
                (false, Set::PerBank) => hash(algorithm, &[data]).ok().map(|digest| digest.as_bytes().to_vec()),
                (false, Set::Padded) => hash(HashAlgorithm::Sha1, &[data]).ok().map(|sha1| padded(sha1.as_bytes())),
            };
            bank.spoiled |= record.is_violation() && !ignore_violations;
            let pcr = bank.pcrs.entry(record.pcr).or_insert_with(|| Digest::zeros(algorithm));
            match value.and_then(|value| hash(algorithm, &[pcr.as_bytes(), &value]).ok()) {
                Some(extended) => *pcr = extended,
                None => bank.spoiled = true,
            }
        }
    }

    fn compare(&mut self, verbose: bool, number: u64) {
        for bank in self.banks.iter_mut().filter(|bank| !bank.done && !bank.spoiled) {
            let algorithm = bank.algorithm;
            bank.done = bank.pcrs.iter().all(|(pcr, value)| self.claims.value(algorithm, *pcr) == Some(*value));
            if verbose && bank.done {
                for (pcr, value) in &bank.pcrs {
                    let hex = value.to_hex();
                    tell(format_args!("{algorithm}: PCRAgg {pcr:3}: {hex}\n{algorithm}: TPM PCR-{pcr:02}: {hex}\n"));
                    tell(format_args!("{algorithm} PCR-{pcr:02}: succeed at entry {number}\n"));
                }
            }
        }
    }

    /// Tells how it came out, and returns whether that is a success: one of having no PCR values, too, as in the original.
    fn tell_result(&self) -> bool {
        let (text, success) = match () {
            () if self.claims.is_empty() => ("Failed to read any TPM PCRs\n", true),
            () if self.all_done(Set::PerBank) => ("Matched per TPM bank calculated digest(s).\n", true),
            () if self.all_done(Set::Padded) => ("Matched SHA1 padded TPM digest(s).\n", true),
            () => ("Failed to match per TPM bank or SHA1 padded TPM digest(s).\n", false),
        };
        tell(text);
        success
    }
}
