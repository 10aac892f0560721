//! `imara tpm extend`.

use super::SCHEMA;
use super::pcrs::read;
use super::target::Target;
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::paths::printable;
use crate::command::progress::Progress;
use crate::output::{Failure, warn};
use imara_engine::crypto::{Hasher, hash};
use imara_engine::tpm::{Bank, Tpm, TpmError};
use imara_format::hash::{Digest, HashAlgorithm, from_hex};
use imara_format::pcr::PcrValues;
use imara_format::tpm::PcrSelection;
use imara_linux::tpm_address::TpmAddress;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Extend a PCR: its new value is the hash of the old one and a digest.
///
/// All banks are extended, in one command: one that is left out could be extended later with whatever suits a forged list. Only
/// PCRs 16 and 23 can be reset; any other stays as it then is until the machine is reset.
///
/// Exit status: 0 done, 1 the TPM refused, 2 wrong command line, 3 there is no TPM, it does not answer, or it has not the bank.
#[derive(clap::Args)]
pub struct Extend {
    /// The PCR
    #[arg(value_parser = clap::value_parser!(u32).range(0..24))]
    pcr: u32,
    /// A digest for each bank, as sha256:HEX
    #[arg(value_name = "BANK:HEX", value_parser = digest, required_unless_present = "file")]
    digests: Vec<Digest>,
    /// Hash this file for each bank instead; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "digests")]
    file: Option<PathBuf>,
    /// Extend the banks named alone, and leave the others as they are
    #[arg(long, requires = "digests")]
    partial: bool,
    /// Also if the kernel's measurement list can then no longer be proven
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    change: Change,
}

/// The PCR that kernels measure into unless built otherwise.
const IMA_PCR: u32 = 10;
/// PCRs that anybody can reset.
const RESETTABLE: [u32; 2] = [16, 23];

fn digest(text: &str) -> Result<Digest, String> {
    let (bank, hex) = text.split_once([':', '=']).ok_or("a form like sha256:HEX is needed")?;
    let bank = if bank == "sm3_256" { "sm3" } else { bank };
    let bank = HashAlgorithm::from_name(bank).ok_or_else(|| format!("there is no bank {bank}"))?;
    let bytes = from_hex(hex).map_err(|error| error.to_string())?;
    Digest::new(bank, &bytes).map_err(|error| error.to_string())
}

impl Extend {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let is_machines = matches!(self.target.tpm, TpmAddress::Device(_));
        if self.pcr == IMA_PCR && is_machines && !self.force && imara_linux::kernel_ima::status().is_some() {
            return Err(Failure::failed(format!(
                "the kernel's IMA measures into PCR {IMA_PCR}: its list could not be proven any more until the next boot"
            ))
            .next("extend another PCR, or use --force"));
        }
        let (digests, before, after) = self.target.with(|tpm| self.extend(tpm))?;
        let known = digests.iter().map(Digest::algorithm);
        let value = |values: &PcrValues, bank| values.value(bank, self.pcr).map(|value| value.to_hex());
        let mut banks = Map::new();
        let mut text = match self.change.dry_run {
            true => format!("PCR {} would be extended:\n", self.pcr),
            false => format!("PCR {} extended:\n", self.pcr),
        };
        for (bank, digest) in known.zip(&digests) {
            let (before, after) = (value(&before, bank), value(&after, bank));
            // Writing into memory does not fail.
            let _ = writeln!(text, "  {bank} {} -> {}", words(before.as_ref()), words(after.as_ref()));
            banks
                .insert(bank.name().to_owned(), json!({ "digest": digest.to_hex(), "before": before, "after": after }));
        }
        if !RESETTABLE.contains(&self.pcr) && !self.change.dry_run {
            text.push_str("It stays so until the machine is reset.\n");
        }
        let document = json!({
            "schema": SCHEMA,
            "tpm": self.target.tpm.to_string(),
            "pcr": self.pcr,
            "dry_run": self.change.dry_run,
            "banks": Value::Object(banks),
        });
        Ok(self.change.report(text, &document))
    }

    /// The digests, and the values before and after.
    fn extend(&self, tpm: &mut Tpm) -> Result<(Vec<Digest>, PcrValues, PcrValues), Failure> {
        let banks = tpm.banks().to_vec();
        let known: Vec<HashAlgorithm> = banks.iter().filter_map(|bank| bank.algorithm).collect();
        let digests = match &self.file {
            Some(file) => hash_file(file, &known)?,
            None => self.for_each_bank(&banks, &known)?,
        };
        let maps = digests.iter().filter_map(|digest| Some((digest.algorithm().tpm_id()?, 1 << self.pcr)));
        let selection = PcrSelection::from_maps(maps);
        let before = read(tpm, &selection)?;
        let mut expected = PcrValues::new();
        for digest in &digests {
            let old = before.value(digest.algorithm(), self.pcr).expect("it was read");
            let new = hash(digest.algorithm(), &[old.as_bytes(), digest.as_bytes()]).map_err(Failure::failed)?;
            expected.insert(self.pcr, new).map_err(Failure::failed)?;
        }
        if self.change.dry_run {
            return Ok((digests, before, expected));
        }
        match self.partial {
            true => tpm.pcr_extend(self.pcr, &digests)?,
            // As the kernel does it: a bank that it does not know gets the first digest, cut or filled up with zeros.
            false => tpm.pcr_extend_every_bank(self.pcr, &digests, digests.first().map_or(&[], Digest::as_bytes))?,
        }
        let after = read(tpm, &selection)?;
        if after != expected {
            warn(format_args!(
                "PCR {} has another value than this extend gives: somebody else extends it too",
                self.pcr
            ));
        }
        Ok((digests, before, after))
    }

    /// The digests given, if there is one for each bank.
    fn for_each_bank(&self, banks: &[Bank], known: &[HashAlgorithm]) -> Result<Vec<Digest>, Failure> {
        let given: Vec<HashAlgorithm> = self.digests.iter().map(Digest::algorithm).collect();
        if let Some(twice) = given.iter().enumerate().find(|(place, bank)| given[..*place].contains(bank)) {
            return Err(Failure::usage(format!("two digests for the bank {}", twice.1)));
        }
        if let Some(bank) = given.iter().find(|bank| !known.contains(bank)) {
            return Err(TpmError::NoBank { bank: *bank, allocated: banks.to_vec() }.into());
        }
        let left_out: Vec<_> = known.iter().filter(|bank| !given.contains(bank)).map(ToString::to_string).collect();
        if !left_out.is_empty() && !self.partial {
            return Err(Failure::usage(format!(
                "there is no digest for the bank {}, which could then be extended later with anything",
                left_out.join(" and ")
            ))
            .next("give one for each bank, hash a --file, or leave those banks as they are with --partial"));
        }
        Ok(self.digests.clone())
    }
}

fn words(value: Option<&String>) -> &str {
    value.map_or("no value", String::as_str)
}

/// The digests of a file by each of these algorithms.
fn hash_file(path: &Path, algorithms: &[HashAlgorithm]) -> Result<Vec<Digest>, Failure> {
    let failure = |error: io::Error| Failure::failed(format!("{}: {error}", printable(path)));
    let mut input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).map_err(failure)?),
    };
    let hashers: Result<Vec<Hasher>, _> = algorithms.iter().map(|algorithm| Hasher::new(*algorithm)).collect();
    let mut hashers = hashers.map_err(Failure::lacking)?;
    let progress = Progress::new(false, "files");
    let mut room = vec![0; 1 << 18];
    loop {
        match input.read(&mut room) {
            Ok(0) => return Ok(hashers.into_iter().map(Hasher::finish).collect()),
            Ok(count) => {
                hashers.iter_mut().for_each(|hasher| hasher.update(&room[..count]));
                progress.bytes(count as u64);
                progress.tick();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failure(error)),
        }
    }
}
