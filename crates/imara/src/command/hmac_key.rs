//! Where EVM's HMAC key is: options shared by the commands that make or verify HMACs, and by the guard.

use super::key::encrypted::{MasterFile, Unsealing, blob_of, find_key, not_made, parse_blob, read_blob};
use super::key::secret::read_secret;
use super::paths::{printable, printable_bytes};
use crate::output::Failure;
use imara_engine::evm::HmacKey;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_engine::keys::{KeyMaterial, MasterKeys};
use imara_format::hash::from_hex;
use imara_format::key_blob::encrypted::Blob;
use imara_linux::evm_key::{self, Keeping};
use imara_linux::key_service::KernelMasterKeys;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the kernel calls EVM's key.
pub const EVM_KEY_NAME: &str = "evm-key";

/// Where the HMAC key is.
#[derive(clap::Args)]
pub struct HmacKeyOptions {
    /// The HMAC key: an encrypted key in the kernel, by name or number, or a file with its blob (a path with a `/`) [default:
    /// evm-key in the kernel, as for the kernel's EVM]
    #[arg(long, value_name = "KEY_OR_BLOB", conflicts_with_all = ["key_hex", "hmac_key_file"])]
    hmac_key: Option<OsString>,
    /// The master key to open the blob with: its bytes, or a trusted key's blob, which the TPM unseals; otherwise it is looked for in
    /// the kernel
    #[arg(long, value_name = "FILE", requires = "hmac_key")]
    master: Option<PathBuf>,
    #[command(flatten)]
    unsealing: Unsealing,
    /// The HMAC key's own bytes, 1 to 128 of them, from a file; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "key_hex")]
    hmac_key_file: Option<PathBuf>,
    /// The HMAC key in hexadecimal: for trying things out, since every process can read command lines
    // A string: what a parser refuses it shows.
    #[arg(long, value_name = "HEX")]
    key_hex: Option<String>,
}

impl HmacKeyOptions {
    /// Whether one is named.
    pub const fn is_named(&self) -> bool {
        self.hmac_key.is_some() || self.hmac_key_file.is_some() || self.key_hex.is_some()
    }

    /// The key, in memory of this process alone, or in the kernel.
    ///
    /// # Errors
    /// There is none, or it cannot be had.
    pub fn find(&self) -> Result<Box<dyn HmacKey>, Failure> {
        // A key passes through this process: no core dump, no debugger of another.
        imara_linux::sys::process::forbid_dumps();
        if let Some(hex) = &self.key_hex {
            let bytes = from_hex(hex).map(KeyMaterial::new);
            let bytes = bytes.map_err(|_| Failure::usage("--key-hex: not an even number of hexadecimal digits"))?;
            return keep(&bytes, "--key-hex", Keeping::InProcess);
        }
        if let Some(path) = &self.hmac_key_file {
            return keep(&read_secret(path)?, &printable(path), Keeping::InProcess);
        }
        let name = self.hmac_key.as_deref().unwrap_or(OsStr::new(EVM_KEY_NAME));
        load(name, self.master.as_deref(), &self.unsealing, Keeping::InProcess)
    }
}

fn keep(bytes: &KeyMaterial, shown: &str, keeping: Keeping) -> Result<Box<dyn HmacKey>, Failure> {
    evm_key::keep(bytes.as_bytes(), keeping).map_err(|error| Failure::failed(format!("{shown}: {error}")))
}

/// Loads an encrypted key: one in the kernel, or from a file with its blob.
///
/// # Errors
/// There is none, or it cannot be opened.
pub(crate) fn load(
    key: &OsStr,
    master: Option<&Path>,
    unsealing: &Unsealing,
    keeping: Keeping,
) -> Result<Box<dyn HmacKey>, Failure> {
    let path = Path::new(key);
    if key.as_bytes().contains(&b'/') || path.is_file() {
        let shown = printable(path);
        let blob = parse_blob(&read_blob(path)?, &shown)?;
        return open(&blob, master, unsealing, &shown, keeping);
    }
    let (serial, description) = find_key(key).map_err(|failure| Failure {
        next: "load it (imara key load; or imara key encrypted load), or name its blob with --hmac-key FILE".into(),
        ..failure
    })?;
    let shown = format!("{} (key {serial})", printable_bytes(&description));
    let blob = blob_of(serial, &shown)?;
    // Where the kernel makes the HMACs with its own key, that never comes here at all.
    if keeping == Keeping::Best
        && let Ok(kernel) = evm_key::by_serial(serial, blob.length.bytes())
    {
        return Ok(kernel);
    }
    open(&blob, master, unsealing, &shown, keeping)
}

fn open(
    blob: &Blob,
    master: Option<&Path>,
    unsealing: &Unsealing,
    shown: &str,
    keeping: Keeping,
) -> Result<Box<dyn HmacKey>, Failure> {
    let from_file = master.map(|path| MasterFile::read_or_unseal(path, unsealing)).transpose()?;
    let masters: &dyn MasterKeys = match &from_file {
        Some(file) => file,
        None => &KernelMasterKeys,
    };
    let key = masters.master_key(&blob.master).map_err(Into::into).and_then(|master| EncryptedKey::open(blob, &master));
    let key = key.map_err(|error| not_made(shown, &error))?;
    if key.material().is_zero() {
        return Err(Failure::failed(format!(
            "{shown} has nothing but zeros: the kernel's EVM wipes its key once it has taken it over"
        ))
        .next("name the file that the key was loaded from with --hmac-key FILE"));
    }
    keep(key.material(), shown, keeping)
}
