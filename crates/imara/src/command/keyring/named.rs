//! Keys and keyrings as people name them, and what the kernel has under that name.

use super::refusal::{Attempt, refused};
use crate::command::paths::printable_bytes;
use crate::output::Failure;
use imara_format::key::{KeyDescription, KeySerial};
use imara_linux::key_service::{self as keys, KeyType};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// A keyring's name: `@u` and its like, a serial number, `.ima`, `_evm`, `%:NAME` where a name looks like one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyringName {
    /// A keyring that every process can name.
    Special(KeySerial),
    /// A serial number.
    Serial(KeySerial),
    /// A keyring's description.
    Description(OsString),
}

/// The special keyrings by keyctl's names.
const SPECIAL: [(&str, KeySerial); 5] = [
    ("@t", keys::THREAD_KEYRING),
    ("@p", keys::PROCESS_KEYRING),
    ("@s", keys::SESSION_KEYRING),
    ("@u", keys::USER_KEYRING),
    ("@us", keys::USER_SESSION_KEYRING),
];

impl From<OsString> for KeyringName {
    fn from(text: OsString) -> Self {
        if let Some((_, serial)) = SPECIAL.into_iter().find(|(name, _)| *name == text) {
            return Self::Special(serial);
        }
        if let Some(serial) = serial(&text) {
            return Self::Serial(serial);
        }
        let bytes = text.as_bytes();
        let name = bytes.strip_prefix(b"%:").or_else(|| bytes.strip_prefix(b"%keyring:")).unwrap_or(bytes);
        Self::Description(OsStr::from_bytes(name).to_owned())
    }
}

impl From<&str> for KeyringName {
    fn from(text: &str) -> Self {
        Self::from(OsString::from(text))
    }
}

impl fmt::Display for KeyringName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Special(special) => {
                let name = SPECIAL.into_iter().find(|(_, serial)| serial == special);
                f.write_str(name.map_or("@?", |(name, _)| name))
            }
            Self::Serial(serial) => write!(f, "{serial}"),
            Self::Description(name) => f.write_str(&printable_bytes(name.as_bytes())),
        }
    }
}

/// A key's number, decimal or as `0x…`.
pub fn serial(text: &OsStr) -> Option<KeySerial> {
    let text = text.to_str()?;
    let number = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => i32::from_str_radix(digits, 16),
        _ => text.parse(),
    };
    number.ok().filter(|number| *number > 0 && !text.starts_with('+')).map(KeySerial)
}

/// A keyring that is there.
#[derive(Clone, Debug)]
pub struct Keyring {
    /// Its number.
    pub serial: KeySerial,
    /// Its description.
    pub name: Vec<u8>,
}

impl Keyring {
    /// Whether the kernel made it: only it can make names that begin with a dot.
    pub fn is_the_kernels(&self) -> bool {
        self.name.starts_with(b".")
    }

    /// Whether it has this name.
    pub fn is(&self, name: &str) -> bool {
        self.name == name.as_bytes()
    }
}

impl fmt::Display for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable_bytes(&self.name))
    }
}

impl KeyringName {
    /// The keyring of that name. A special one is made where it is not there yet, as keyctl does.
    ///
    /// # Errors
    /// There is none, or it may not be seen; something else than a keyring has the number.
    pub fn find(&self) -> Result<Keyring, Failure> {
        let (serial, told) = self.find_key()?;
        if told.kind != KeyType::Keyring.name() {
            return Err(Failure::failed(format!(
                "{self} is a key of type {}, not a keyring: {}",
                printable_bytes(told.kind.as_bytes()),
                printable_bytes(&told.description)
            )));
        }
        Ok(Keyring { serial, name: told.description })
    }

    /// The keyring of that name, or the key of any type that has the number.
    ///
    /// # Errors
    /// There is none, or it may not be seen.
    pub fn find_key(&self) -> Result<(KeySerial, KeyDescription), Failure> {
        // Without it a session that does not lead to @u finds nothing there; where it fails the search says so.
        let _ = keys::reach_user_keyring();
        let found = match self {
            Self::Special(serial) => keys::special_keyring(*serial, true),
            Self::Serial(serial) => Ok(*serial),
            Self::Description(name) => keys::keyring_named(name.as_bytes()),
        };
        let told = found.and_then(|serial| Ok((serial, keys::describe(serial)?)));
        told.map_err(|error| refused(Attempt::Find { keyring: self }, &error))
    }
}

impl Keyring {
    /// The keys that it holds itself and that may be seen.
    ///
    /// # Errors
    /// It may not be read.
    pub fn keys(&self) -> Result<Vec<(KeySerial, KeyDescription)>, Failure> {
        let name = self.to_string();
        let held = keys::keys_of(self.serial).map_err(|error| refused(Attempt::Read { key: &name }, &error))?;
        Ok(held.into_iter().filter_map(|key| Some((key, keys::describe(key).ok()?))).collect())
    }

    /// The key that it holds itself under a number, a description, or `id:` and the end of a certificate's id.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn key(&self, name: &OsStr) -> Result<(KeySerial, KeyDescription), Failure> {
        let shown = printable_bytes(name.as_bytes());
        let by_number = serial(name);
        let by_id = name.as_bytes().starts_with(b"id:").then(|| {
            keys::search(self.serial, KeyType::Asymmetric, name.as_bytes())
                .map_err(|error| refused(Attempt::Remove { key: &shown, keyring: self }, &error))
        });
        let by_id = by_id.transpose()?;
        let is_it = |key: KeySerial, told: &KeyDescription| match by_id.or(by_number) {
            Some(number) => key == number,
            None => told.description == name.as_bytes(),
        };
        let mut found = self.keys()?.into_iter().filter(|(key, told)| is_it(*key, told));
        let Some(key) = found.next() else {
            return Err(Failure::failed(format!("{shown} is not in {self}"))
                .next(format!("imara keyring show {self} lists what is: a number, a description, or id:HEX")));
        };
        match found.next() {
            None => Ok(key),
            Some((another, told)) => Err(Failure::failed(format!(
                "{shown} is the description of several keys in {self}: {} of type {}, {another} of type {}",
                key.0,
                printable_bytes(key.1.kind.as_bytes()),
                printable_bytes(told.kind.as_bytes())
            ))
            .next("name it by its number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyrings_are_named_as_keyctl_names_them() {
        let description = |name: &str| KeyringName::Description(name.into());
        for (text, expected) in [
            ("@u", KeyringName::Special(KeySerial(-4))),
            ("@us", KeyringName::Special(KeySerial(-5))),
            ("12", KeyringName::Serial(KeySerial(12))),
            ("0x1A", KeyringName::Serial(KeySerial(26))),
            ("%:12", description("12")),
            ("%keyring:.ima", description(".ima")),
            (".ima", description(".ima")),
            ("_evm", description("_evm")),
            ("@x", description("@x")),
            // No serial number is negative, signed or that large.
            ("-4", description("-4")),
            ("+4", description("+4")),
            ("0x+4", description("0x+4")),
            ("0", description("0")),
            ("4294967296", description("4294967296")),
        ] {
            assert_eq!(KeyringName::from(text), expected, "{text}");
        }
        assert_eq!(KeyringName::from("@us").to_string(), "@us");
    }
}
