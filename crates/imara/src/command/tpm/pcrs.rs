//! `imara tpm pcrs`.

use super::SCHEMA;
use super::target::Target;
use crate::command::CommandResult;
use crate::command::new_files::write_together;
use crate::output::{Failure, Outcome, print, print_json, warn};
use imara_engine::tpm::{Tpm, TpmError};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::pcr::PcrValues;
use imara_format::tpm::PcrSelection;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Read PCRs: all of one moment.
///
/// Exit status: 0 done, 1 the TPM refused, 2 wrong command line, 3 there is no TPM, it does not answer, or it has not these
/// PCRs.
#[derive(clap::Args)]
pub struct Pcrs {
    /// Which: sha256:0,7,10 or sha1:10+sha256:all; without, all of every bank
    #[arg(value_name = "SELECTION", value_parser = PcrSelection::parse)]
    selection: Option<PcrSelection>,
    /// The form
    #[arg(long, value_enum, default_value_t = Form::Lines, conflicts_with = "json")]
    form: Form,
    /// Write to a new file instead of standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// Lines `sha256:10 HEX`, which `imara measurement verify --pcrs` takes
    Lines,
    /// As tpm2_pcrread prints them
    Tpm2Tools,
    /// Binary: the values one after the other, as `tpm2_pcrread -o` writes them
    Values,
    /// Binary: the selection and the values, as `tpm2_quote -o` writes them and `tpm2_checkquote -f` reads them
    Serialized,
}

impl Pcrs {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let binary = matches!(self.form, Form::Values | Form::Serialized);
        if binary && self.out.is_none() && std::io::stdout().is_terminal() {
            return Err(Failure::usage("this form is binary, and standard output is a terminal").next("add --out FILE"));
        }
        let (selection, values) = self.target.with(|tpm| {
            let selection = match &self.selection {
                Some(selection) => selection.clone(),
                None => everything(tpm)?,
            };
            let values = read(tpm, &selection)?;
            Ok((selection, values))
        })?;
        if self.json {
            print_json(&json!({ "schema": SCHEMA, "tpm": self.target.tpm.to_string(), "pcrs": document(&values) }));
            return Ok(Outcome::Done);
        }
        let bytes = match self.form {
            Form::Lines => lines(&selection, &values).into_bytes(),
            Form::Tpm2Tools => as_tpm2_pcrread(&selection, &values).into_bytes(),
            Form::Values => in_order(&selection, &values).flat_map(|(_, _, value)| value.as_bytes().to_vec()).collect(),
            Form::Serialized => values.to_tpm2_tools(&selection).map_err(Failure::failed)?,
        };
        match &self.out {
            Some(out) => write_together(&[(out, &bytes, 0o644)], false)?,
            None if binary => {
                let mut stdout = std::io::stdout().lock();
                let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                written.map_err(|error| Failure::failed(format!("standard output: {error}")))?;
            }
            None => print(String::from_utf8_lossy(&bytes)),
        }
        Ok(Outcome::Done)
    }
}

/// All PCRs of each bank that is known here.
pub fn everything(tpm: &mut Tpm) -> Result<PcrSelection, TpmError> {
    let mut banks = Vec::new();
    for (id, pcrs) in tpm.pcr_allocation()?.maps() {
        match HashAlgorithm::from_tpm_id(*id) {
            Some(_) if *pcrs != 0 => banks.push((*id, *pcrs)),
            None if *pcrs != 0 => warn(format_args!("the bank {id:#06x} is left out: its algorithm is not known here")),
            _ => {}
        }
    }
    Ok(PcrSelection::from_maps(banks))
}

/// The values of a selection, of one moment.
pub fn read(tpm: &mut Tpm, selection: &PcrSelection) -> Result<PcrValues, TpmError> {
    let mut values = PcrValues::new();
    for (_, pcr, value) in tpm.pcr_read_selection(selection)? {
        values.insert(pcr, value).expect("a selection has each PCR of a bank once");
    }
    Ok(values)
}

/// The values in the selection's order: banks as they stand, PCRs ascending.
fn in_order(selection: &PcrSelection, values: &PcrValues) -> impl Iterator<Item = (HashAlgorithm, u32, Digest)> {
    selection.iter().filter_map(|(bank, pcr)| Some((bank?, pcr, values.value(bank?, pcr)?)))
}

fn lines(selection: &PcrSelection, values: &PcrValues) -> String {
    in_order(selection, values).map(|(bank, pcr, value)| format!("{bank}:{pcr} {}\n", value.to_hex())).collect()
}

fn as_tpm2_pcrread(selection: &PcrSelection, values: &PcrValues) -> String {
    let mut text = String::new();
    let mut last = None;
    for (bank, pcr, value) in in_order(selection, values) {
        // Writing into memory does not fail.
        if last != Some(bank) {
            let name = if bank == HashAlgorithm::Sm3 { "sm3_256" } else { bank.name() };
            let _ = writeln!(text, "  {name}:");
            last = Some(bank);
        }
        let _ = writeln!(text, "    {pcr:<2}: 0x{}", value.to_hex().to_uppercase());
    }
    text
}

/// Values by bank and PCR.
pub fn document(values: &PcrValues) -> Value {
    let mut banks: Map<String, Value> = Map::new();
    for (pcr, value) in values.iter() {
        banks.entry(value.algorithm().name()).or_insert_with(|| json!({}))[pcr.to_string()] = json!(value.to_hex());
    }
    Value::Object(banks)
}
