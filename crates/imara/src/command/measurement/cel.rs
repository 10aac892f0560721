//! `imara measurement convert --to cel-json`, `cel-cbor`, `cel-tlv`: a list as a Canonical Event Log of the TCG.

use crate::output::Failure;
use imara_engine::replay::{Replay, ReplayError};
use imara_format::cel::{BankDigest, Encoding, Event, Writer};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::Record;
use std::io::{self, Write};

/// The banks whose digests are written unless told otherwise: the one of the list, and the one that TPMs are quoted in.
const BANKS: [HashAlgorithm; 2] = [HashAlgorithm::Sha1, HashAlgorithm::Sha256];

/// Reads a name of `--bank`.
///
/// # Errors
/// There is no such algorithm, or no TPM has a bank of it.
pub fn bank(name: &str) -> Result<HashAlgorithm, String> {
    let algorithm = crate::command::pcr_files::algorithm(name)?;
    let digest = BankDigest::try_from(Digest::zeros(algorithm)).map_err(|error| error.to_string())?;
    Ok(digest.algorithm())
}

/// A list on its way into a log.
pub struct CanonicalLog {
    replay: Replay,
    writer: Writer,
    digests: Vec<Digest>,
    bank_digests: Vec<BankDigest>,
    template_data: Vec<u8>,
    /// The records so far, where their number stands before them.
    gathered: Vec<u8>,
}

impl CanonicalLog {
    /// A log without records.
    ///
    /// # Errors
    /// A bank's algorithm cannot be computed here.
    pub fn new(encoding: Encoding, banks: Option<&[HashAlgorithm]>) -> Result<Self, Failure> {
        Ok(Self {
            replay: Replay::new(banks.unwrap_or(&BANKS)).map_err(Failure::failed)?,
            writer: Writer::new(encoding),
            digests: Vec::new(),
            bank_digests: Vec::new(),
            template_data: Vec::new(),
            gathered: Vec::new(),
        })
    }

    /// Appends what can be written of an entry already.
    ///
    /// # Errors
    /// The entry does not hold together, so that nobody knows what was extended; nothing is appended.
    pub fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), ReplayError> {
        let order = self.replay.digests(record, &mut self.digests)?;
        self.bank_digests.clear();
        // None is left out: what `bank` gives are banks.
        self.bank_digests.extend(self.digests.iter().filter_map(|digest| BankDigest::try_from(*digest).ok()));
        self.template_data.clear();
        record.write_template_data(order, &mut self.template_data);
        let event = Event {
            pcr: record.pcr,
            digests: &self.bank_digests,
            template_name: &record.template.listed_name(),
            template_data: &self.template_data,
        };
        if self.writer.needs_their_number() {
            self.writer.record(&event, &mut self.gathered);
        } else {
            if record.number == 1 {
                self.writer.begin(out);
            }
            self.writer.record(&event, out);
        }
        Ok(())
    }

    /// Writes what is left after the last entry.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end(&self, out: &mut impl Write) -> io::Result<()> {
        let (mut begin, mut end) = (Vec::new(), Vec::new());
        if self.writer.needs_their_number() || self.writer.records() == 0 {
            self.writer.begin(&mut begin);
        }
        self.writer.end(&mut end);
        // One after the other, for a long log is not to be held twice.
        [&begin, &self.gathered, &end].into_iter().try_for_each(|part| out.write_all(part))
    }
}
