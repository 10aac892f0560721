//! Trusted keys: the commands that make them.
//!
//! ```text
//! new    KEYLEN [OPTION...]
//! load   BLOB   [OPTION...]
//! update        [OPTION...]
//! ```
//!
//! KEYLEN is decimal, 32 to 128. BLOB is hexadecimal, of either case and at most 512 bytes; an odd last digit counts for nothing.
//! The first two words are separated by exactly one blank or tab, options by any number of them; each option may stand once. The
//! text ends at its first NUL. With a TPM 2.0:
//!
//! | option | meaning |
//! |---|---|
//! | `keyhandle=` | the parent's handle, hexadecimal, of which the low 32 bits count; a blob in ASN.1 form has its own |
//! | `keyauth=` | the parent's authorisation value, 40 digits |
//! | `blobauth=` | the key's own, to unseal it with: 40 digits, or up to 20 characters as they are |
//! | `pcrinfo=` | of a TPM 1.2; read, and then counts for nothing |
//! | `pcrlock=` | a PCR that is extended afterwards, so that nothing is unsealed by its old value again; 0 is none |
//! | `migratable=` | begins with 0: the key cannot be sealed anew; begins with 1: it can, as without the option |
//! | `hash=` | the algorithm of the object's name and policy; stands before `policydigest=` |
//! | `policydigest=` | the digest of the policy to unseal it by, as long as the algorithm's digests are |
//! | `policyhandle=` | a policy session in the TPM that satisfies it, hexadecimal |
//!
//! Source: `datablob_parse`, security/keys/trusted-keys/trusted_core.c; `getoptions`, trusted_tpm1.c.

use super::{Errno, decimal, pairs_of_digits, shown, unsigned};
use crate::hash::{HashAlgorithm, to_hex};
use std::fmt;

/// The longest command that the kernel takes.
pub const LONGEST_TEXT: usize = 32_767;
/// The fewest bytes that a trusted key may have.
pub const SHORTEST_KEY: usize = 32;
/// The most bytes that a trusted key may have.
pub const LONGEST_KEY: usize = 128;
/// The longest blob that the kernel takes.
pub const LONGEST_BLOB: usize = 512;

/// The bytes of an authorisation value that is given as a digest.
const AUTH: usize = 20;
const LONGEST_PCR_INFO: usize = 64;

/// A command, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A key is made.
    New {
        /// Its bytes.
        length: usize,
        /// How it is sealed.
        options: Options<'a>,
    },
    /// A key is unsealed.
    Load {
        /// Its blob, in whichever form.
        blob: Vec<u8>,
        /// How it is unsealed.
        options: Options<'a>,
    },
    /// A key is sealed anew.
    Update {
        /// How it is sealed.
        options: Options<'a>,
    },
}

/// The options of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// The parent's handle.
    pub parent: Option<u32>,
    /// The parent's authorisation value.
    pub parent_auth: Option<AuthText<'a>>,
    /// The key's own.
    pub blob_auth: Option<AuthText<'a>>,
    /// Whether the key may be sealed anew.
    pub migratable: bool,
    /// The PCR that is extended afterwards; 0 is none.
    pub pcr_lock: u32,
    /// The algorithm of the object's name. Not every one that is read is one that a TPM has.
    pub hash: HashAlgorithm,
    /// The digest of its policy; empty for none.
    pub policy_digest: Vec<u8>,
    /// The session that satisfies the policy; 0 is none.
    pub policy_session: u32,
}

/// An authorisation value as it was given. Shown nowhere; whoever has the text has to wipe it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuthText<'a> {
    text: &'a [u8],
    is_hex: bool,
}

impl<'a> AuthText<'a> {
    /// Reads a value as `blobauth=` has it: 40 digits, or up to 20 characters.
    ///
    /// # Errors
    /// [`CommandError::Value`], which does not show it.
    pub fn parse(text: &'a [u8]) -> Result<Self, CommandError> {
        match (Self::digest(text), text.len()) {
            (Some(value), _) => Ok(value),
            (None, length) if length <= AUTH => Ok(Self { text, is_hex: false }),
            (None, _) => Err(Name::BlobAuth.secret_value(text)),
        }
    }

    /// 40 digits.
    fn digest(text: &'a [u8]) -> Option<Self> {
        let is_digest = text.len() == AUTH.saturating_mul(2) && text.iter().all(u8::is_ascii_hexdigit);
        is_digest.then_some(Self { text, is_hex: true })
    }

    /// The value's bytes, one after the other.
    pub fn bytes(self) -> impl Iterator<Item = u8> + 'a {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        let step = if self.is_hex { 2 } else { 1 };
        self.text.chunks_exact(step).map(move |part| match part {
            [high, low] => digit(high) << 4 | digit(low),
            [byte, ..] => *byte,
            [] => 0,
        })
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.text.is_empty()
    }
}

impl fmt::Debug for AuthText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "no value" } else { "a value" })
    }
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            parent: None,
            parent_auth: None,
            blob_auth: None,
            migratable: true,
            pcr_lock: 0,
            hash: HashAlgorithm::Sha256,
            policy_digest: Vec::new(),
            policy_session: 0,
        }
    }
}

/// The options' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `keyhandle=`.
    KeyHandle,
    /// `keyauth=`.
    KeyAuth,
    /// `blobauth=`.
    BlobAuth,
    /// `pcrinfo=`.
    PcrInfo,
    /// `pcrlock=`.
    PcrLock,
    /// `migratable=`.
    Migratable,
    /// `hash=`.
    Hash,
    /// `policydigest=`.
    PolicyDigest,
    /// `policyhandle=`.
    PolicyHandle,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::KeyHandle,
        Self::KeyAuth,
        Self::BlobAuth,
        Self::PcrInfo,
        Self::PcrLock,
        Self::Migratable,
        Self::Hash,
        Self::PolicyDigest,
        Self::PolicyHandle,
    ];

    /// The kernel's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::KeyHandle => "keyhandle",
            Self::KeyAuth => "keyauth",
            Self::BlobAuth => "blobauth",
            Self::PcrInfo => "pcrinfo",
            Self::PcrLock => "pcrlock",
            Self::Migratable => "migratable",
            Self::Hash => "hash",
            Self::PolicyDigest => "policydigest",
            Self::PolicyHandle => "policyhandle",
        }
    }

    /// What its value has to be.
    const fn needed(self) -> &'static str {
        match self {
            Self::KeyHandle => "a handle in hexadecimal is needed, as 0x81000001",
            Self::KeyAuth => "40 hexadecimal digits are needed",
            Self::BlobAuth => "40 hexadecimal digits or at most 20 characters are needed",
            Self::PcrInfo => "hexadecimal digits of at most 64 bytes are needed",
            Self::PcrLock => "a PCR's decimal number is needed",
            Self::Migratable => "0 or 1 is needed",
            Self::Hash => "a hash algorithm of the kernel's is needed: sha1, sha256, sha384, sha512 or sm3",
            Self::PolicyDigest => {
                "a digest in hexadecimal is needed, as long as those of hash= are (sha256 without it)"
            }
            Self::PolicyHandle => "the handle of a policy session in hexadecimal is needed",
        }
    }

    fn value(self, found: &[u8]) -> CommandError {
        CommandError::Value { option: self, found: shown(found), needed: self.needed() }
    }

    fn secret_value(self, found: &[u8]) -> CommandError {
        let found = format!("a value of {} characters", found.len());
        CommandError::Value { option: self, found, needed: self.needed() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.word())
    }
}

impl<'a> Command<'a> {
    /// Reads a command as add_key(2) is given it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn parse(text: &'a [u8]) -> Result<Self, CommandError> {
        if text.is_empty() || text.len() > LONGEST_TEXT {
            return Err(CommandError::TextLength { found: text.len() });
        }
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let (keyword, rest) = first_word(text);
        match keyword {
            b"new" => {
                let (word, rest) = first_word(rest.ok_or(CommandError::Missing { what: "the key's length" })?);
                let length = decimal(word).and_then(|length| usize::try_from(length).ok());
                let length = length.filter(|length| (SHORTEST_KEY..=LONGEST_KEY).contains(length));
                let length = length.ok_or_else(|| CommandError::Length { found: shown(word) })?;
                Ok(Self::New { length, options: Options::parse(rest.unwrap_or_default())? })
            }
            b"load" => {
                let (word, rest) = first_word(rest.ok_or(CommandError::Missing { what: "the blob" })?);
                if word.len() / 2 > LONGEST_BLOB {
                    return Err(CommandError::BlobLength { found: word.len() / 2 });
                }
                let blob = pairs_of_digits(word).map_err(|offset| CommandError::BlobNotHex { offset })?;
                Ok(Self::Load { blob, options: Options::parse(rest.unwrap_or_default())? })
            }
            b"update" => Ok(Self::Update { options: Options::parse(rest.unwrap_or_default())? }),
            _ => Err(CommandError::Keyword { found: shown(keyword) }),
        }
    }

    /// The command's text, as the kernel reads it. It is secret where it has authorisation values: the caller wipes it.
    pub fn to_text(&self) -> Vec<u8> {
        let (start, options) = match self {
            Self::New { length, options } => (format!("new {length}"), options),
            Self::Load { blob, options } => (format!("load {}", to_hex(blob)), options),
            Self::Update { options } => ("update".to_owned(), options),
        };
        let mut text = Vec::with_capacity(start.len().saturating_add(512));
        text.extend_from_slice(start.as_bytes());
        options.print(&mut text);
        text
    }
}

/// The text's first word, which is empty before a blank, and what follows the blank behind it.
fn first_word(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = text.splitn(2, |byte| matches!(byte, b' ' | b'\t'));
    (parts.next().unwrap_or_default(), parts.next())
}

impl<'a> Options<'a> {
    /// Reads options, any number of blanks or tabs apart.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn parse(text: &'a [u8]) -> Result<Self, CommandError> {
        let mut options = Self::default();
        let mut given = Vec::new();
        for word in text.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()) {
            let (name, value) = Name::ALL
                .into_iter()
                .find_map(|name| Some((name, word.strip_prefix(name.word().as_bytes())?.strip_prefix(b"=")?)))
                .ok_or_else(|| CommandError::UnknownOption { found: name_of(word) })?;
            if given.contains(&name) {
                return Err(CommandError::Repeated { option: name });
            }
            if name == Name::Hash && given.contains(&Name::PolicyDigest) {
                return Err(CommandError::HashAfterDigest);
            }
            given.push(name);
            options.take(name, value)?;
        }
        Ok(options)
    }

    fn take(&mut self, name: Name, value: &'a [u8]) -> Result<(), CommandError> {
        let wrong = || name.value(value);
        // The kernel keeps the low half of what it reads.
        let low = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default();
        match name {
            Name::KeyHandle => self.parent = Some(low(unsigned(value, 16).ok_or_else(wrong)?)),
            Name::KeyAuth => {
                self.parent_auth = Some(AuthText::digest(value).ok_or_else(|| name.secret_value(value))?);
            }
            Name::BlobAuth => self.blob_auth = Some(AuthText::parse(value)?),
            Name::PcrInfo => {
                if value.len() / 2 > LONGEST_PCR_INFO || pairs_of_digits(value).is_err() {
                    return Err(wrong());
                }
            }
            Name::PcrLock => self.pcr_lock = low(unsigned(value, 10).ok_or_else(wrong)?),
            Name::Migratable => match value.first() {
                Some(b'0') => self.migratable = false,
                Some(b'1') => {}
                Some(_) | None => return Err(wrong()),
            },
            Name::Hash => {
                let algorithm = std::str::from_utf8(value).ok().and_then(HashAlgorithm::from_name);
                self.hash = algorithm.ok_or_else(wrong)?;
            }
            Name::PolicyDigest => {
                if value.len() != self.hash.digest_size().saturating_mul(2) {
                    return Err(wrong());
                }
                self.policy_digest = pairs_of_digits(value).map_err(|_| wrong())?;
            }
            Name::PolicyHandle => self.policy_session = low(unsigned(value, 16).ok_or_else(wrong)?),
        }
        Ok(())
    }

    /// What differs from an option that is not given, a blank before each.
    fn print(&self, text: &mut Vec<u8>) {
        let mut option = |name: Name, value: &[u8]| {
            for part in [b" ", name.word().as_bytes(), b"=", value] {
                text.extend_from_slice(part);
            }
        };
        if let Some(parent) = self.parent {
            option(Name::KeyHandle, format!("{parent:#010x}").as_bytes());
        }
        if let Some(auth) = self.parent_auth {
            option(Name::KeyAuth, auth.text);
        }
        if let Some(auth) = self.blob_auth {
            option(Name::BlobAuth, auth.text);
        }
        if !self.migratable {
            option(Name::Migratable, b"0");
        }
        if self.pcr_lock != 0 {
            option(Name::PcrLock, self.pcr_lock.to_string().as_bytes());
        }
        if self.hash != HashAlgorithm::Sha256 {
            option(Name::Hash, self.hash.name().as_bytes());
        }
        if !self.policy_digest.is_empty() {
            option(Name::PolicyDigest, to_hex(&self.policy_digest).as_bytes());
        }
        if self.policy_session != 0 {
            option(Name::PolicyHandle, format!("{:#010x}", self.policy_session).as_bytes());
        }
    }
}

/// What stands before the `=` of a word: what stands behind it may be secret.
fn name_of(word: &[u8]) -> String {
    shown(word.split_inclusive(|byte| *byte == b'=').next().unwrap_or_default())
}

/// Why a command is refused. The kernel says EINVAL to each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No text at all, or too much of it.
    #[error("the text has {found} bytes, 1 to {LONGEST_TEXT} are needed")]
    TextLength {
        /// Bytes found.
        found: usize,
    },
    /// The text ends too early.
    #[error("{what} is missing")]
    Missing {
        /// What should have stood there.
        what: &'static str,
    },
    /// The first word is no command.
    #[error("{found} is none of new, load and update")]
    Keyword {
        /// The word found.
        found: String,
    },
    /// The length is none that a trusted key can have.
    #[error("the key's length is {found}, where {SHORTEST_KEY} to {LONGEST_KEY} are possible")]
    Length {
        /// The word found.
        found: String,
    },
    /// A blob of too many bytes.
    #[error("the blob has {found} bytes, at most {LONGEST_BLOB} are possible")]
    BlobLength {
        /// Bytes found.
        found: usize,
    },
    /// The blob is not hexadecimal.
    #[error("the blob has a character at offset {offset} that is not a hexadecimal digit")]
    BlobNotHex {
        /// Its offset in the word.
        offset: usize,
    },
    /// No option.
    #[error(
        "{found} is no option; there are keyhandle=, keyauth=, blobauth=, pcrinfo=, pcrlock=, migratable=, hash=, \
         policydigest= and policyhandle="
    )]
    UnknownOption {
        /// The name found.
        found: String,
    },
    /// An option a second time.
    #[error("{option} stands there twice")]
    Repeated {
        /// The option.
        option: Name,
    },
    /// The digest's length was judged by another algorithm.
    #[error("hash= has to stand before policydigest=")]
    HashAfterDigest,
    /// An option's value cannot be that.
    #[error("{option} has {found}; {needed}")]
    Value {
        /// The option.
        option: Name,
        /// The value found.
        found: String,
        /// What is needed.
        needed: &'static str,
    },
}

impl CommandError {
    /// The kernel's error number.
    pub const fn errno(&self) -> Errno {
        Errno::Einval
    }
}

#[cfg(test)]
mod tests;
