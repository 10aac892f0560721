//! Quotes as they come: the files of `imara tpm quote` and `tpm2_quote`, and what a Keylime agent answers.

use super::quote::{Nonce, nonce};
use crate::command::paths::{printable, read};
use crate::command::pcr_files;
use crate::output::{Failure, warn};
use imara_attest::quote::{Check, CheckResult, Evidence, Examination};
use imara_engine::crypto::PublicKey;
use imara_format::base64;
use imara_format::hash::HashAlgorithm;
use imara_format::pcr::PcrValues;
use imara_format::tpm::{PublicArea, QuoteAttestation, TpmSignature};
use std::path::{Path, PathBuf};

/// A quote's files.
#[derive(clap::Args)]
pub struct QuoteFiles {
    /// The folder that `imara tpm quote` wrote, with quote.msg, quote.sig, pcrs and ak.pub; each can be named by itself instead
    #[arg(value_name = "DIR", required_unless_present_any = ["message", "keylime"])]
    folder: Option<PathBuf>,
    /// What is signed, as `tpm2_quote -m` writes it
    #[arg(long, value_name = "FILE", requires = "signature", requires = "key")]
    message: Option<PathBuf>,
    /// The signature, as `tpm2_quote -s` writes it, also with `-f plain`
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// The hash of a plain signature, which does not say it
    #[arg(long, value_name = "ALGORITHM", default_value = "sha256", value_parser = pcr_files::algorithm)]
    hash: HashAlgorithm,
    /// The PCR values that are said to be quoted: as `tpm2_quote -o` writes them (also with `-F values`), or in any form that
    /// `imara measurement verify --pcrs` takes
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,
    /// What a Keylime agent answered: its JSON, or the quote in it alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["folder", "message", "signature", "values"], requires = "key")]
    keylime: Option<PathBuf>,
    /// The key that is known to be the TPM's: a public area (ak.pub, also in base64, as Keylime has it), a public key in PEM or DER,
    /// or a certificate. Without, the one that came with the quote, which proves nothing about whose it is
    #[arg(short, long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The nonce that was asked with, in hexadecimal
    #[arg(long, value_name = "HEX", value_parser = nonce)]
    nonce: Option<Nonce>,
    /// The same as text, as Keylime has it
    #[arg(long, value_name = "TEXT", conflicts_with = "nonce")]
    nonce_text: Option<String>,
}

/// A quote that was read, and what it is to be examined with.
pub struct Quoted {
    /// Where it is from, for people.
    pub name: String,
    message: Vec<u8>,
    signature: TpmSignature,
    key: PublicKey,
    area: Option<PublicArea>,
    nonce: Option<Vec<u8>>,
    values: Option<PcrValues>,
    /// Whether the key is known from elsewhere.
    pub key_is_known: bool,
}

/// The values that a quote came with, in whichever form.
enum Values {
    Known(PcrValues),
    /// One after the other, in the selection's order.
    Bare(PathBuf, Vec<u8>),
}

impl QuoteFiles {
    /// Those of a folder.
    pub fn of_folder(folder: PathBuf, key: Option<PathBuf>, nonce: Option<Nonce>) -> Self {
        Self {
            folder: Some(folder),
            message: None,
            signature: None,
            hash: HashAlgorithm::Sha256,
            values: None,
            keylime: None,
            key,
            nonce,
            nonce_text: None,
        }
    }

    /// Reads them.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn read(&self) -> Result<Quoted, Failure> {
        let in_folder = |name: &str| self.folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
        let came_with_it = in_folder("ak.pub").or_else(|| in_folder("ak.pem"));
        let key_is_known = self.key.is_some();
        let key_path = self.key.clone().or(came_with_it);
        let key_path = key_path.ok_or_else(|| missing("the key", "ak.pub", self.folder.as_deref(), "--key FILE"))?;
        let (key, area) = read_key(&key_path)?;
        let nonce = match (&self.nonce, &self.nonce_text) {
            (Some(Nonce(bytes)), _) => Some(bytes.clone()),
            (None, text) => text.as_ref().map(|text| text.as_bytes().to_vec()),
        };
        if let Some(path) = &self.keylime {
            let (message, signature, values) = read_keylime(path)?;
            let signature = TpmSignature::parse(&signature).map_err(|error| at(path, error))?;
            let name = printable(path);
            return Ok(Quoted { name, message, signature, key, area, nonce, values: Some(values), key_is_known });
        }
        let named = |given: &Option<PathBuf>, what, name, option| {
            let path = given.clone().or_else(|| in_folder(name));
            path.ok_or_else(|| missing(what, name, self.folder.as_deref(), option))
        };
        let message_path = named(&self.message, "what is signed", "quote.msg", "--message FILE")?;
        let signature_path = named(&self.signature, "the signature", "quote.sig", "--signature FILE")?;
        let message = bytes(&message_path)?;
        let signature = bytes(&signature_path)?;
        let signature = match TpmSignature::parse(&signature) {
            Ok(signature) => signature,
            Err(error) => key.plain_tpm_signature(self.hash, &signature).ok_or_else(|| at(&signature_path, error))?,
        };
        let values = match self.values.clone().or_else(|| in_folder("pcrs")) {
            None => None,
            Some(path) => Some(match read_values(&path)? {
                Values::Known(values) => values,
                Values::Bare(path, bare) => bare_values(&message, &path, &bare)?,
            }),
        };
        let name = printable(self.folder.as_deref().unwrap_or(&message_path));
        Ok(Quoted { name, message, signature, key, area, nonce, values, key_is_known })
    }
}

impl Quoted {
    /// Examines it; with other values than those that it came with, if there are.
    pub fn examine(&self, values: Option<&PcrValues>) -> Examination {
        Examination::new(&Evidence {
            message: &self.message,
            signature: &self.signature,
            key: &self.key,
            area: self.area.as_ref(),
            nonce: self.nonce.as_deref(),
            values: values.or(self.values.as_ref()),
        })
    }

    /// The values that were certainly quoted, for a command that only goes on with these; it warns of what is not sure.
    ///
    /// # Errors
    /// A check failed, or the quote came without values.
    pub fn certain_values(&self) -> Result<PcrValues, Failure> {
        let examination = self.examine(None);
        let failed = examination.checks.iter().find(|check| check.result == CheckResult::Failed);
        if let Some(Check { check, detail, .. }) = failed {
            return Err(Failure::failed(format!("{}: the quote's {check}: {detail}", self.name)));
        }
        let values = examination.proven_values().ok_or_else(|| {
            Failure::failed(format!("{}: the quote came without PCR values", self.name))
                .next("`imara tpm verify-quote --measurement-list LIST` finds them by the list")
        })?;
        if !self.key_is_known {
            warn(format_args!("{}: the key came with the quote: any TPM's would do", self.name));
        }
        if self.nonce.is_none() {
            warn(format_args!("{}: no nonce was given: the quote may be an old one", self.name));
        }
        Ok(values.clone())
    }

    /// Whether it came with values.
    pub fn has_values(&self) -> bool {
        self.values.is_some()
    }
}

fn missing(what: &str, name: &str, folder: Option<&Path>, option: &str) -> Failure {
    let place = folder.map_or_else(String::new, |folder| format!(": {} has no {name}", printable(folder)));
    Failure::usage(format!("{what} is missing{place}")).next(format!("name it with {option}"))
}

fn at(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{}: {error}", printable(path)))
}

fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    read(path).map_err(|error| pcr_files::unreadable(path, &error))
}

/// A key in any of the forms that it comes in, and what it may sign, if it says that.
fn read_key(path: &Path) -> Result<(PublicKey, Option<PublicArea>), Failure> {
    let bytes = bytes(path)?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim);
    let decoded = text.and_then(base64::decode).filter(|decoded| !decoded.is_empty());
    let area = [Some(&bytes), decoded.as_ref()].into_iter().flatten().find_map(|bytes| {
        let area = PublicArea::parse_sized(bytes).or_else(|_| PublicArea::parse(bytes));
        area.ok()
    });
    match area {
        Some(area) => {
            let key = PublicKey::from_public_area(&area).map_err(|error| at(path, error))?;
            let key = key.ok_or_else(|| at(path, format!("{area} is no key that quotes are verified with")))?;
            Ok((key, Some(area)))
        }
        None => Ok((PublicKey::from_bytes(&bytes).map_err(|error| at(path, error))?, None)),
    }
}

fn read_values(path: &Path) -> Result<Values, Failure> {
    if path.is_dir() {
        return pcr_files::read_folder(path).map(Values::Known);
    }
    let content = bytes(path)?;
    if let Some((_, values)) = PcrValues::from_tpm2_tools(&content) {
        return Ok(Values::Known(values));
    }
    match String::from_utf8(content) {
        // A bank is named in each line: values in one that is taken for granted prove nothing here.
        Ok(text) if text.contains(':') => {
            let values = PcrValues::from_text(&text, HashAlgorithm::Sha1);
            values.map(Values::Known).map_err(|error| at(path, error))
        }
        Ok(text) => Ok(Values::Bare(path.to_owned(), text.into_bytes())),
        Err(error) => Ok(Values::Bare(path.to_owned(), error.into_bytes())),
    }
}

fn bare_values(message: &[u8], path: &Path, bare: &[u8]) -> Result<PcrValues, Failure> {
    // What the quote is of; whether it is one is told by its examination.
    let selection = QuoteAttestation::parse(message).map_err(|error| at(path, error))?.selection;
    PcrValues::from_digests(&selection, bare).ok_or_else(|| {
        at(path, format!("its {} bytes are not the values of {selection}, nor PCR values in another form", bare.len()))
    })
}

/// `rMESSAGE:SIGNATURE:VALUES`, each in base64, by itself or in the agent's JSON.
///
/// Source: keylime/tpm/tpm_main.py, `check_quote`.
fn read_keylime(path: &Path) -> Result<(Vec<u8>, Vec<u8>, PcrValues), Failure> {
    let content = bytes(path)?;
    let text = std::str::from_utf8(&content).map_err(|error| at(path, error))?.trim();
    let quote = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(document) => {
            let found = document["results"]["quote"].as_str().or_else(|| document["quote"].as_str());
            let found = found.or_else(|| document.as_str());
            found.ok_or_else(|| at(path, "this JSON has no `quote`"))?.to_owned()
        }
        Err(_) => text.to_owned(),
    };
    let form = || at(path, "this is no quote of Keylime: r, then three parts in base64 with colons between them");
    let parts: Vec<&str> = quote.strip_prefix('r').ok_or_else(form)?.split(':').collect();
    let decoded: Option<Vec<Vec<u8>>> = parts.iter().take(3).map(|part| base64::decode(part)).collect();
    let [message, signature, values] = <[Vec<u8>; 3]>::try_from(decoded.ok_or_else(form)?).map_err(|_| form())?;
    /// How zlib's data begin.
    const COMPRESSED: u8 = 0x78;
    if message.first() == Some(&COMPRESSED) {
        return Err(at(path, "the quote is compressed, as Keylime before version 6.4 has it")
            .next("decompress its three parts with zlib, and name them with --message, --signature and --values"));
    }
    let values = PcrValues::from_tpm2_tools(&values).map(|(_, values)| values);
    Ok((message, signature, values.ok_or_else(|| at(path, "its third part has no PCR values"))?))
}
