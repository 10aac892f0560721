//! Encrypted keys: the commands that make them and the blobs that keep them.
//!
//! ```text
//! new    [FORMAT] MASTER KEYLEN [DECRYPTED-DATA]
//! load   [FORMAT] MASTER KEYLEN BLOB
//! update [FORMAT] MASTER
//! ```
//!
//! FORMAT is `default`, `ecryptfs` or `enc32`; MASTER is `user:NAME` or `trusted:NAME`; KEYLEN is decimal. Words are separated
//! by exactly one blank or tab, so that two of them make an empty word; what follows the last word needed is ignored, and the
//! text ends at its first NUL. A key is read back, and kept in files, as `FORMAT MASTER KEYLEN BLOB`; before Linux 3.1 it had
//! no FORMAT, which the MAC tells. BLOB is hexadecimal:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 16 | initialisation vector |
//! | 16 | 1 | zero; its two digits are not looked at when a blob is loaded |
//! | 17 | E | the key, padded with zeros to E, a multiple of 16, in AES-256-CBC |
//! | 17 + E | 32 | HMAC-SHA-256 of what [`Blob::authenticated`] gives |
//!
//! Source: `datablob_parse`, `encrypted_key_alloc`, `encrypted_key_decrypt`, security/keys/encrypted-keys/encrypted.c.

use super::{Errno, decimal, shown};
use crate::hash::to_hex;
use std::fmt;

/// The longest command or blob text that the kernel takes.
pub const LONGEST_TEXT: usize = 32_767;
/// The fewest bytes that an encrypted key may have.
pub const SHORTEST_KEY: usize = 20;
/// The most bytes that an encrypted key may have.
pub const LONGEST_KEY: usize = 4096;

const BLOCK: usize = 16;
const IV: usize = 16;
const MAC: usize = 32;

/// What an encrypted key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadFormat {
    /// Any number of bytes from 20 to 4096.
    Default,
    /// A key of 64 bytes for eCryptfs; its description is the 16 digits of a signature.
    Ecryptfs,
    /// 32 bytes, for NVDIMMs and others.
    Enc32,
}

impl PayloadFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Default, Self::Ecryptfs, Self::Enc32];

    /// The kernel's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Ecryptfs => "ecryptfs",
            Self::Enc32 => "enc32",
        }
    }

    fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name().as_bytes() == word)
    }

    /// The one length that its keys have, where they have one.
    pub const fn fixed_length(self) -> Option<usize> {
        match self {
            Self::Default => None,
            Self::Ecryptfs => Some(64),
            Self::Enc32 => Some(32),
        }
    }
}

impl fmt::Display for PayloadFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The types of key that an encrypted key can be sealed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MasterType {
    /// A key that user space loaded, readable by it.
    User,
    /// A key that a TPM or another source of trust sealed; only the kernel has its bytes.
    Trusted,
}

impl MasterType {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::User, Self::Trusted];

    /// The kernel's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Trusted => "trusted",
        }
    }
}

/// A master key's type and description: `user:kmk`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MasterName {
    kind: MasterType,
    description: Vec<u8>,
}

impl MasterName {
    /// Reads `user:NAME` or `trusted:NAME`.
    ///
    /// # Errors
    /// [`CommandError::Master`]: another type, no name, or a name with a byte that separates words.
    pub fn parse(word: &[u8]) -> Result<Self, CommandError> {
        let error = || CommandError::Master { found: shown(word) };
        let read = |kind: MasterType| Some((kind, word.strip_prefix(kind.name().as_bytes())?.strip_prefix(b":")?));
        let (kind, description) = MasterType::ALL.into_iter().find_map(read).ok_or_else(error)?;
        if description.is_empty() || description.iter().any(|byte| matches!(byte, 0 | b' ' | b'\t')) {
            return Err(error());
        }
        Ok(Self { kind, description: description.to_vec() })
    }

    /// The master key's type.
    pub const fn kind(&self) -> MasterType {
        self.kind
    }

    /// The master key's description, as the key service searches for it.
    pub fn description(&self) -> &[u8] {
        &self.description
    }

    /// As it stands in commands and blobs.
    pub fn to_text(&self) -> Vec<u8> {
        [self.kind.name().as_bytes(), b":", &self.description].concat()
    }

    /// The same name with another type.
    #[must_use]
    pub fn with_kind(&self, kind: MasterType) -> Self {
        Self { kind, description: self.description.clone() }
    }
}

impl fmt::Display for MasterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.description.escape_ascii())
    }
}

impl fmt::Debug for MasterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An encrypted key's length, as it was spelled: the spelling is part of what the MAC covers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyLength {
    text: Vec<u8>,
    bytes: usize,
}

impl KeyLength {
    /// A length, spelled in the usual way.
    ///
    /// # Errors
    /// [`CommandError::LengthOutOfRange`].
    pub fn new(bytes: usize) -> Result<Self, CommandError> {
        Self::parse(bytes.to_string().as_bytes())
    }

    /// Reads a length as `kstrtol` does: a sign, leading zeros and one newline at the end are taken.
    ///
    /// # Errors
    /// [`CommandError::LengthNotANumber`], [`CommandError::LengthOutOfRange`].
    pub fn parse(word: &[u8]) -> Result<Self, CommandError> {
        let number = decimal(word).ok_or_else(|| CommandError::LengthNotANumber { found: shown(word) })?;
        match usize::try_from(number) {
            Ok(bytes) if (SHORTEST_KEY..=LONGEST_KEY).contains(&bytes) => Ok(Self { text: word.to_vec(), bytes }),
            Ok(_) | Err(_) => Err(CommandError::LengthOutOfRange { found: shown(word) }),
        }
    }

    /// The key's bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes of the key with its padding.
    pub const fn sealed_bytes(&self) -> usize {
        self.bytes.next_multiple_of(BLOCK)
    }

    /// As it was spelled.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn fits(self, format: Option<PayloadFormat>) -> Result<Self, CommandError> {
        match format.and_then(|format| Some((format, format.fixed_length()?))) {
            Some((format, needed)) if needed != self.bytes => {
                Err(CommandError::LengthForFormat { format, found: self.bytes, needed })
            }
            Some(_) | None => Ok(self),
        }
    }
}

impl fmt::Display for KeyLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text.escape_ascii())
    }
}

impl fmt::Debug for KeyLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Key bytes in hexadecimal, given to `new` so that a key of one's own is sealed. Shown nowhere; whoever has the text
/// has to wipe it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DecryptedData<'a>(&'a [u8]);

impl<'a> DecryptedData<'a> {
    fn parse(word: &'a [u8], length: &KeyLength) -> Result<Self, CommandError> {
        let needed = length.bytes.saturating_mul(2);
        if word.len() != needed {
            return Err(CommandError::DecryptedDataLength { found: word.len(), needed });
        }
        match word.iter().position(|byte| !byte.is_ascii_hexdigit()) {
            Some(offset) => Err(CommandError::DecryptedDataNotHex { offset }),
            None => Ok(Self(word)),
        }
    }

    /// The key's bytes, one after the other.
    pub fn bytes(self) -> impl Iterator<Item = u8> + 'a {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        self.0.chunks_exact(2).map(move |pair| pair.iter().fold(0, |byte, text| byte << 4 | digit(text)))
    }
}

impl fmt::Debug for DecryptedData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} digits", self.0.len())
    }
}

/// A sealed key, as it is read from the kernel and kept in files. Nothing in it is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    /// The format; none in a blob made before Linux 3.1.
    pub format: Option<PayloadFormat>,
    /// The master key's name.
    pub master: MasterName,
    /// The key's length.
    pub length: KeyLength,
    /// The initialisation vector.
    pub iv: [u8; IV],
    /// The encrypted key: [`KeyLength::sealed_bytes`] bytes.
    pub ciphertext: Vec<u8>,
    /// What authenticates all of it.
    pub mac: [u8; MAC],
}

impl Blob {
    /// Reads a blob's text, as it follows the word `load`.
    ///
    /// # Errors
    /// [`CommandError`], which shows no word of the text: it comes from a file, and that may be another one than was
    /// meant, with a key in it.
    pub fn parse(text: &[u8]) -> Result<Self, CommandError> {
        let read = || {
            let mut words = Words::new(text)?;
            let (format, master) = words.format_and_master()?;
            Self::from_words(&mut words, format, master)
        };
        read().map_err(CommandError::without_words)
    }

    fn from_words(
        words: &mut Words<'_>,
        format: Option<PayloadFormat>,
        master: MasterName,
    ) -> Result<Self, CommandError> {
        let length = KeyLength::parse(words.next("the key's length")?)?.fits(format)?;
        let hex = words.next("the blob")?;
        let needed = length.sealed_bytes().saturating_add(IV + 1 + MAC).saturating_mul(2);
        if hex.len() != needed {
            return Err(CommandError::BlobLength { found: hex.len(), needed });
        }
        let mut bytes = Vec::with_capacity(hex.len() / 2);
        for (index, pair) in hex.chunks_exact(2).enumerate() {
            // The kernel steps over this byte without reading it.
            if index == IV {
                continue;
            }
            let mut byte = 0;
            for (place, text) in pair.iter().enumerate() {
                let digit = char::from(*text).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let offset = index.saturating_mul(2).saturating_add(place);
                byte = byte << 4 | digit.ok_or(CommandError::BlobNotHex { offset })?;
            }
            bytes.push(byte);
        }
        let too_short = CommandError::BlobLength { found: hex.len(), needed };
        let (iv, rest) = bytes.split_first_chunk().ok_or_else(|| too_short.clone())?;
        let (ciphertext, mac) = rest.split_last_chunk().ok_or(too_short)?;
        Ok(Self { format, master, length, iv: *iv, ciphertext: ciphertext.to_vec(), mac: *mac })
    }

    /// The bytes that the MAC is made of: each word with a NUL behind it, the initialisation vector, a zero byte, the
    /// ciphertext. Without the format where the blob has none.
    pub fn authenticated(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.ciphertext.len().saturating_add(128));
        if let Some(format) = self.format {
            bytes.extend_from_slice(format.name().as_bytes());
            bytes.push(0);
        }
        bytes.extend_from_slice(&self.master.to_text());
        bytes.push(0);
        bytes.extend_from_slice(&self.length.text);
        bytes.push(0);
        bytes.extend_from_slice(&self.iv);
        bytes.push(0);
        bytes.extend_from_slice(&self.ciphertext);
        bytes
    }

    /// The text that [`Blob::parse`] reads, as the kernel prints it.
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Some(format) = self.format {
            text.extend_from_slice(format.name().as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&self.master.to_text());
        text.push(b' ');
        text.extend_from_slice(&self.length.text);
        text.push(b' ');
        for part in [&self.iv[..], &[0], &self.ciphertext, &self.mac] {
            text.extend_from_slice(to_hex(part).as_bytes());
        }
        text
    }

    /// The byte that the digit at `offset` of the last word stands for: its high half where `offset` is even. None beyond
    /// the end, and for the two digits that are not looked at.
    pub fn byte_of_digit(&mut self, offset: usize) -> Option<&mut u8> {
        let index = offset / 2;
        if index < IV {
            return self.iv.get_mut(index);
        }
        let index = index.checked_sub(IV + 1)?;
        let beyond = index.checked_sub(self.ciphertext.len());
        match beyond {
            None => self.ciphertext.get_mut(index),
            Some(index) => self.mac.get_mut(index),
        }
    }

    /// How many digits the last word has.
    pub fn digits(&self) -> usize {
        self.ciphertext.len().saturating_add(IV + 1 + MAC).saturating_mul(2)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_text()))
    }
}

/// A command, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A key is made.
    New {
        /// Its format; none is the same as [`PayloadFormat::Default`].
        format: Option<PayloadFormat>,
        /// The key to seal it with.
        master: MasterName,
        /// Its length.
        length: KeyLength,
        /// Its bytes, where it is not to be random. Kernels take them only with CONFIG_USER_DECRYPTED_DATA.
        decrypted_data: Option<DecryptedData<'a>>,
    },
    /// A sealed key is opened.
    Load(Blob),
    /// A key gets another master.
    Update {
        /// The new master.
        master: MasterName,
    },
}

impl<'a> Command<'a> {
    /// Reads a command; `description` is that of the key it is for.
    ///
    /// # Errors
    /// [`CommandError`], which the kernel answers with EINVAL.
    pub fn parse(text: &'a [u8], description: &[u8]) -> Result<Self, CommandError> {
        let mut words = Words::new(text)?;
        let keyword = words.next("the command")?;
        let keyword = Keyword::from_word(keyword).ok_or_else(|| CommandError::Keyword { found: shown(keyword) })?;
        let (format, master) = words.format_and_master()?;
        let command = match keyword {
            Keyword::New => {
                let length = KeyLength::parse(words.next("the key's length")?)?.fits(format)?;
                let decrypted_data = words.optional().map(|word| DecryptedData::parse(word, &length)).transpose()?;
                Self::New { format, master, length, decrypted_data }
            }
            Keyword::Load => Self::Load(Blob::from_words(&mut words, format, master)?),
            // Its format is read and then counts for nothing.
            Keyword::Update => return Ok(Self::Update { master }),
        };
        let signature = description.len() == 16 && description.iter().all(u8::is_ascii_hexdigit);
        if format == Some(PayloadFormat::Ecryptfs) && !signature {
            return Err(CommandError::EcryptfsDescription { found: shown(description) });
        }
        Ok(command)
    }

    /// The command's text. That of `new` with decrypted data is secret: the caller wipes it.
    pub fn to_text(&self) -> Vec<u8> {
        let (keyword, format, master) = match self {
            Self::Load(blob) => return [b"load ".to_vec(), blob.to_text()].concat(),
            Self::New { format, master, .. } => (Keyword::New, *format, master),
            Self::Update { master } => (Keyword::Update, None, master),
        };
        let format = format.map(|format| [format.name().as_bytes(), b" "].concat()).unwrap_or_default();
        let start = [keyword.name().as_bytes(), b" ", &format, &master.to_text()].concat();
        match self {
            Self::New { length, decrypted_data: Some(data), .. } => {
                [&start, &b" "[..], &length.text, b" ", data.0].concat()
            }
            Self::New { length, decrypted_data: None, .. } => [&start, &b" "[..], &length.text].concat(),
            Self::Load(_) | Self::Update { .. } => start,
        }
    }
}

#[derive(Clone, Copy)]
enum Keyword {
    New,
    Load,
    Update,
}

impl Keyword {
    const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Load => "load",
            Self::Update => "update",
        }
    }

    fn from_word(word: &[u8]) -> Option<Self> {
        [Self::New, Self::Load, Self::Update].into_iter().find(|keyword| keyword.name().as_bytes() == word)
    }
}

/// A text's words, one blank or tab apart.
struct Words<'a>(Option<&'a [u8]>);

impl<'a> Words<'a> {
    fn new(text: &'a [u8]) -> Result<Self, CommandError> {
        if text.is_empty() || text.len() > LONGEST_TEXT {
            return Err(CommandError::TextLength { found: text.len() });
        }
        Ok(Self(text.split(|byte| *byte == 0).next()))
    }

    fn optional(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        let mut parts = rest.splitn(2, |byte| matches!(byte, b' ' | b'\t'));
        let word = parts.next();
        self.0 = parts.next();
        word
    }

    fn next(&mut self, what: &'static str) -> Result<&'a [u8], CommandError> {
        self.optional().ok_or(CommandError::Missing { what })
    }

    fn format_and_master(&mut self) -> Result<(Option<PayloadFormat>, MasterName), CommandError> {
        let word = self.next("the master key")?;
        let format = PayloadFormat::from_word(word);
        let master = if format.is_some() { self.next("the master key")? } else { word };
        Ok((format, MasterName::parse(master)?))
    }
}

/// Why a command or a blob's text is refused. The kernel says EINVAL to each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No text at all, or too much of it.
    #[error("the text has {found} bytes, 1 to {LONGEST_TEXT} are needed")]
    TextLength {
        /// Bytes found.
        found: usize,
    },
    /// The text ends too early.
    #[error("{what} is missing; words are separated by exactly one blank")]
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
    /// A master key of another type, or without a name.
    #[error("{found} is no master key: user:NAME or trusted:NAME is needed")]
    Master {
        /// The word found.
        found: String,
    },
    /// The length is no decimal number.
    #[error("the key's length is {found}, where a decimal number is needed")]
    LengthNotANumber {
        /// The word found.
        found: String,
    },
    /// The length is too small or too large.
    #[error("the key's length is {found}, {SHORTEST_KEY} to {LONGEST_KEY} bytes are possible")]
    LengthOutOfRange {
        /// The word found.
        found: String,
    },
    /// The format has keys of one length, and it is another.
    #[error("keys of the format {format} have {needed} bytes, not {found}")]
    LengthForFormat {
        /// The format.
        format: PayloadFormat,
        /// The length found.
        found: usize,
        /// The length needed.
        needed: usize,
    },
    /// A description that eCryptfs has no use for.
    #[error("the description of an ecryptfs key is 16 hexadecimal digits, not {found}")]
    EcryptfsDescription {
        /// The description found.
        found: String,
    },
    /// The key's bytes are too few or too many.
    #[error("the decrypted data has {found} digits, {needed} are needed")]
    DecryptedDataLength {
        /// Digits found.
        found: usize,
        /// Digits needed.
        needed: usize,
    },
    /// The key's bytes are not hexadecimal.
    #[error("the decrypted data has a character at offset {offset} that is not a hexadecimal digit")]
    DecryptedDataNotHex {
        /// Its offset in the word.
        offset: usize,
    },
    /// The blob is too short or too long for the key's length.
    #[error("the blob has {found} digits, {needed} are needed for a key of this length")]
    BlobLength {
        /// Digits found.
        found: usize,
        /// Digits needed.
        needed: usize,
    },
    /// The blob is not hexadecimal.
    #[error("the blob has a character at offset {offset} that is not a hexadecimal digit")]
    BlobNotHex {
        /// Its offset in the word.
        offset: usize,
    },
}

impl CommandError {
    fn without_words(self) -> Self {
        let found = "what stands in its place".to_owned();
        match self {
            Self::Keyword { .. } => Self::Keyword { found },
            Self::Master { .. } => Self::Master { found },
            Self::LengthNotANumber { .. } => Self::LengthNotANumber { found },
            Self::LengthOutOfRange { .. } => Self::LengthOutOfRange { found },
            Self::EcryptfsDescription { .. } => Self::EcryptfsDescription { found },
            Self::TextLength { .. }
            | Self::Missing { .. }
            | Self::LengthForFormat { .. }
            | Self::DecryptedDataLength { .. }
            | Self::DecryptedDataNotHex { .. }
            | Self::BlobLength { .. }
            | Self::BlobNotHex { .. } => self,
        }
    }

    /// The kernel's error number.
    pub const fn errno(&self) -> Errno {
        Errno::Einval
    }
}

#[cfg(test)]
mod tests;
