//! What labels are verified with: keys in files and in folders of them, and the keys of a kernel keyring, with which the kernel
//! itself verifies.

use crate::command::certificates::read_keyring;
use crate::command::keyring::named::{Keyring as KernelKeyring, KeyringName};
use crate::command::paths::printable_bytes;
use crate::output::Failure;
use imara_engine::keyring::Keyring;
use imara_format::hash::{Digest, to_hex};
use imara_format::key::KeySerial;
use imara_linux::key_service::{self, KeyType};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Which keys.
#[derive(clap::Args)]
pub struct KeySources {
    /// A certificate or public key, in DER or PEM, or a folder of them; may be given several times [default: /etc/keys/x509_ima.der, if
    /// there]
    #[arg(short, long = "key", value_name = "CERT_OR_PUBKEY")]
    keys: Vec<PathBuf>,
    /// Verify with the keys of a kernel keyring, too: `.ima`, `@s`, a number; the kernel verifies
    #[arg(long, value_name = "KEYRING")]
    keyring: Option<OsString>,
}

const DEFAULT_KEY: &str = "/etc/keys/x509_ima.der";

/// The keys.
pub struct Keys {
    /// Those in files.
    pub files: Keyring,
    /// Those of the kernel.
    pub kernel: Option<KernelKeys>,
    /// Whether any were asked for: then a digest alone is not enough.
    pub given: bool,
}

impl KeySources {
    /// Reads the keys, and finds the keyring.
    ///
    /// # Errors
    /// What cannot be read, is no key, or is not there.
    pub fn find(&self) -> Result<Keys, Failure> {
        let given = !self.keys.is_empty() || self.keyring.is_some();
        let files = match self.keys.is_empty() && given {
            true => Keyring::new(),
            false => read_keyring(&self.keys, DEFAULT_KEY)?,
        };
        let kernel = match &self.keyring {
            Some(name) => {
                let keyring = KeyringName::from(name.clone()).find()?;
                Some(KernelKeys { keyring, found: Mutex::default() })
            }
            None => None,
        };
        Ok(Keys { files, kernel, given })
    }
}

/// The keys of a kernel keyring. They cannot be read; the kernel finds them by their ids and verifies with them.
pub struct KernelKeys {
    keyring: KernelKeyring,
    found: Mutex<HashMap<[u8; 4], Option<KernelKey>>>,
}

/// An asymmetric key of the kernel.
#[derive(Clone, Debug)]
pub struct KernelKey {
    serial: KeySerial,
    encoding: &'static str,
    /// Its description: the subject of the certificate, and an id.
    pub description: String,
}

impl KernelKeys {
    /// The keyring's name.
    pub fn name(&self) -> String {
        self.keyring.to_string()
    }

    /// The key that signatures with this id are verified with, as the kernel's IMA finds it.
    ///
    /// # Errors
    /// What the key service says, other than that there is none.
    pub fn find(&self, key_id: [u8; 4]) -> io::Result<Option<KernelKey>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = found.get(&key_id) {
            return Ok(known.clone());
        }
        let key = self.search(key_id)?;
        found.insert(key_id, key.clone());
        Ok(key)
    }

    fn search(&self, key_id: [u8; 4]) -> io::Result<Option<KernelKey>> {
        let id = format!("id:{}", to_hex(&key_id));
        let serial = match key_service::search(self.keyring.serial, KeyType::Asymmetric, id.as_bytes()) {
            Ok(serial) => serial,
            Err(error) if error.raw_os_error() == Some(ENOKEY) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The kernel takes an encoding that does not belong to the key's type for a mistake.
        let rsa = key_service::public_key_query(serial, "pkcs1", "sha256").is_ok();
        let encoding = if rsa { "pkcs1" } else { "x962" };
        let description = key_service::describe(serial).map(|told| printable_bytes(&told.description));
        Ok(Some(KernelKey { serial, encoding, description: description.unwrap_or_default() }))
    }
}

/// `ENOKEY` of include/uapi/asm-generic/errno.h.
const ENOKEY: i32 = 126;

impl KernelKey {
    /// Has the kernel verify a signature; whether it is good.
    ///
    /// # Errors
    /// The kernel cannot verify such a signature.
    pub fn verify(&self, digest: &Digest, signature: &[u8]) -> io::Result<bool> {
        // EKEYREJECTED, EBADMSG and EINVAL: another digest, no padding, no such structure.
        const WRONG: [i32; 3] = [129, 74, 22];
        let hash = digest.algorithm().name();
        match key_service::public_key_verify(self.serial, self.encoding, hash, digest.as_bytes(), signature) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error().is_some_and(|number| WRONG.contains(&number)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What it is: `kernel key 123456`.
    pub fn kind(&self) -> String {
        format!("kernel key {}", self.serial)
    }
}
