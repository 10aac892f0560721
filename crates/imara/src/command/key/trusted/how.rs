//! How a key is sealed and unsealed, beyond the kernel's words: values out of files, PCRs by their names, parents that are made.

use super::not_done;
use crate::command::key::kept::Out;
use crate::command::key::secret::read_secret;
use crate::command::paths::{printable, read_text};
use crate::command::tpm::target::Target;
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{self, OWNER, Parent, TrustedKeyError};
use imara_engine::tpm::Tpm;
use imara_engine::tpm::template::KeyKind;
use imara_format::hash::HashAlgorithm;
use imara_format::key_blob::sealed_record::PcrRecord;
use imara_format::key_blob::trusted::{AuthText, Options};
use imara_format::pcr::PcrValues;
use imara_format::tpm::PcrSelection;
use imara_linux::tpm_address::TpmAddress;
use std::path::{Path, PathBuf};

/// The handle that a storage root key is kept at, where it is kept.
const USUAL_SRK: u32 = 0x8100_0001;
/// The TPM through the kernel's resource manager.
pub const MANAGED: &str = "/dev/tpmrm0";
/// The same TPM without it: what is loaded there is what the kernel itself sees.
pub const UNMANAGED: &str = "/dev/tpm0";

/// Values that authorise, out of files.
#[derive(clap::Args)]
pub struct Auths {
    /// The key's authorisation value is what F holds: up to 20 characters, or 40 digits (as blobauth=, without showing it)
    #[arg(long, value_name = "F")]
    auth: Option<PathBuf>,
    /// The parent key's: 40 digits (as keyauth=)
    #[arg(long, value_name = "F")]
    parent_auth: Option<PathBuf>,
}

impl Auths {
    /// The kernel's words for them, to be wiped.
    ///
    /// # Errors
    /// A file cannot be read, or holds no such value.
    pub fn words(&self) -> Result<KeyMaterial, Failure> {
        words(&[("blobauth", self.auth.as_deref()), ("keyauth", self.parent_auth.as_deref())])
    }
}

/// The kernel's word for a key's authorisation value, to be wiped.
///
/// # Errors
/// The file cannot be read, or holds no such value.
pub fn auth_words(auth: Option<&Path>) -> Result<KeyMaterial, Failure> {
    words(&[("blobauth", auth)])
}

fn words(values: &[(&str, Option<&Path>)]) -> Result<KeyMaterial, Failure> {
    let mut text = Vec::with_capacity(256);
    for (word, path) in values {
        let Some(path) = path else { continue };
        let secret = read_secret(path)?;
        let value = secret.as_bytes().strip_suffix(b"\n").unwrap_or(secret.as_bytes());
        let usable = !value.iter().any(|byte| matches!(byte, 0 | b' ' | b'\t')) && AuthText::parse(value).is_ok();
        if !usable {
            return Err(Failure::failed(format!(
                "{}: no authorisation value: at most 20 characters without blanks, or 40 hexadecimal digits, are needed",
                printable(path)
            )));
        }
        text.extend_from_slice(format!(" {word}=").as_bytes());
        text.extend_from_slice(value);
    }
    Ok(KeyMaterial::new(text))
}

/// The PCRs that a new blob is sealed to.
#[derive(clap::Args)]
pub struct Pcrs {
    /// Unseal only while these PCRs have the values that they have now: sha256:7,11
    #[arg(long, value_name = "SELECTION", value_parser = PcrSelection::parse)]
    pcrs: Option<PcrSelection>,
    /// Or those of F, ahead of an update (lines `sha256:7 HEX`; a PCR that is not in F keeps its value of now). May be repeated
    #[arg(long, value_name = "F", requires = "pcrs")]
    pcrs_after: Vec<PathBuf>,
}

impl Pcrs {
    /// Whether PCRs were asked for.
    pub fn is_given(&self) -> bool {
        self.pcrs.is_some()
    }

    /// Whether what is to be noted can be kept: values foretold are nowhere else, and standard output has room for the blob alone.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self, out: &Out) -> Result<(), Failure> {
        match !self.pcrs_after.is_empty() && out.is_stdout() {
            true => {
                Err(Failure::usage("--pcrs-after with --out -: the values that it is sealed to would be noted nowhere")
                    .next("name a file with --out FILE: the values are kept beside it, in FILE.sealed"))
            }
            false => Ok(()),
        }
    }

    /// What is to be noted: the values of now and those foretold.
    ///
    /// # Errors
    /// A file cannot be read, or the TPM has not these PCRs.
    pub fn record(&self, tpm: &mut Tpm, with_auth: bool) -> Result<Option<PcrRecord>, Failure> {
        let Some(selection) = &self.pcrs else { return Ok(None) };
        let now = trusted::values_now(tpm, selection)?;
        let mut sets = vec![now.clone()];
        for path in &self.pcrs_after {
            let set = after(path, selection, &now)?;
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        Ok(Some(PcrRecord { selection: selection.clone(), sets, with_auth }))
    }
}

/// The values of a selection after an update: those that a file tells, and for the others those of now.
fn after(path: &Path, selection: &PcrSelection, now: &PcrValues) -> Result<PcrValues, Failure> {
    let failure = |what: String| Failure::failed(format!("{}: {what}", printable(path)));
    let text = read_text(path).map_err(|error| failure(error.to_string()))?;
    let foretold = PcrValues::from_text(&text, HashAlgorithm::Sha256).map_err(|error| failure(error.to_string()))?;
    let mut values = PcrValues::new();
    let mut any = false;
    for (bank, pcr) in selection.iter() {
        let Some(bank) = bank else { continue };
        any |= foretold.value(bank, pcr).is_some();
        if let Some(value) = foretold.value(bank, pcr).or_else(|| now.value(bank, pcr)) {
            values.insert(pcr, value).map_err(|error| failure(error.to_string()))?;
        }
    }
    match any {
        true => Ok(values),
        false => Err(failure(format!("no value of {selection} is in it"))
            .next("lines like `sha256:7 HEX` are needed, as `imara tpm pcrs` prints them")),
    }
}

/// The parent, named by what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentName(Parent);

impl std::str::FromStr for ParentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        match text {
            "srk" | "srk-p256" => Ok(Self(Parent::Made(KeyKind::P256))),
            "srk-rsa2048" => Ok(Self(Parent::Made(KeyKind::Rsa2048))),
            _ => match u32::from_str_radix(digits, 16) {
                Ok(handle) if handle >> 24 == 0x81 => Ok(Self(Parent::Handle(handle))),
                Ok(_) | Err(_) => {
                    Err("srk-p256, srk-rsa2048 or a persistent handle as 0x81000001 is needed".to_owned())
                }
            },
        }
    }
}

/// The parent of a new blob: the one named, else the persistent storage root key, else one that is made each time.
///
/// # Errors
/// The TPM does not answer.
pub fn parent(tpm: &mut Tpm, named: Option<ParentName>, options: &Options<'_>) -> Result<Parent, TrustedKeyError> {
    match (named, options.parent) {
        (Some(ParentName(parent)), _) => Ok(parent),
        (None, Some(handle)) => Ok(Parent::Handle(handle)),
        (None, None) => {
            let kept = tpm.persistent_handles()?.contains(&USUAL_SRK);
            let usable = kept && tpm.object(USUAL_SRK)?.public().is_storage_key();
            Ok(if usable { Parent::Handle(USUAL_SRK) } else { Parent::Made(KeyKind::P256) })
        }
    }
}

/// The TPM that seals: the one named, else the machine's through the kernel's resource manager.
pub fn target(named: Option<&TpmAddress>) -> Target {
    Target { tpm: named.cloned().unwrap_or_else(|| address(MANAGED)) }
}

/// The TPM that seals a new blob. Where the kernel seals by a parent that is made each time, it has to see that key.
///
/// # Errors
/// The TPM does not answer.
pub fn sealing_target(
    in_kernel: bool,
    named: Option<&TpmAddress>,
    parent_named: Option<ParentName>,
    options: &Options<'_>,
) -> Result<Target, Failure> {
    let target = target(named);
    let made = in_kernel
        && target.with(|tpm| {
            let parent = parent(tpm, parent_named, options).map_err(|error| not_done("the parent key", error))?;
            Ok(parent.handle() == OWNER)
        })?;
    Ok(if made { unmanaged() } else { target })
}

/// The machine's TPM, as the kernel sees it.
pub fn unmanaged() -> Target {
    Target { tpm: address(UNMANAGED) }
}

fn address(path: &str) -> TpmAddress {
    TpmAddress::Device(path.into())
}
