//! Sealed data in the form in which keys of a TPM 2.0 are kept in files, as the kernel's trusted keys have it and the OpenSSL
//! engines and providers for TPMs.
//!
//! ```text
//! TPMKey ::= SEQUENCE {
//!     type        OBJECT IDENTIFIER,                              2.23.133.10.1.5, sealed data
//!     emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,                  no authorisation value is needed
//!     policy      [1] EXPLICIT SEQUENCE OF TPMPolicy OPTIONAL,
//!     secret      [2] EXPLICIT OCTET STRING OPTIONAL,             of keys to be imported
//!     authPolicy  [3] EXPLICIT SEQUENCE OF TPMAuthPolicy OPTIONAL,
//!     description [4] EXPLICIT UTF8String OPTIONAL,
//!     rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,                  the parent made of a hierarchy is an RSA key
//!     parent      INTEGER,                                        a persistent handle, or a hierarchy's
//!     pubkey      OCTET STRING,                                   TPM2B_PUBLIC
//!     privkey     OCTET STRING }                                  TPM2B_PRIVATE
//! TPMPolicy ::= SEQUENCE { commandCode [0] EXPLICIT INTEGER, commandPolicy [1] EXPLICIT OCTET STRING }
//! ```
//!
//! The kernel reads type, emptyAuth, parent, pubkey and privkey, refuses the rest, and takes no notice of what follows the
//! sequence. (tpm2_encodeobject calls sealed data a key to be loaded, 2.23.133.10.1.3; that is read, too, and then written as
//! what it is.) It writes a true BOOLEAN as 1, where DER has 255; so it is done here. Trusted keys from before Linux 5.13 are a
//! TPM2B_PRIVATE and then a TPM2B_PUBLIC, without a parent; their data ends in a byte that says whether they are migratable.
//!
//! In PEM the form stands between `-----BEGIN TSS2 PRIVATE KEY-----` and its end.
//!
//! Source: `tpm2_key_encode`, `tpm2_load_cmd`, security/keys/trusted-keys/trusted_tpm2.c, tpm2key.asn1; draft-bottomley-tpm2-keys.

use crate::base64;
use crate::tpm::{ObjectAttributes, PublicArea, PublicKind, Reader, StructureError};

/// Sealed data, with where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedKey {
    /// Whether it is unsealed without an authorisation value.
    pub empty_auth: bool,
    /// How its policy is satisfied, where that is recorded.
    pub policy: Vec<PolicyCommand>,
    /// What somebody has written about it.
    pub description: Option<String>,
    /// Whether a parent that is made of a hierarchy is an RSA key, not one on P-256.
    pub rsa_parent: bool,
    /// The parent's handle.
    pub parent: u32,
    /// The public area.
    pub public: PublicArea,
    /// The rest, encrypted by the parent; without its size.
    pub private: Vec<u8>,
}

/// A command that a policy session is taken to its digest by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyCommand {
    /// The command's code.
    pub code: u32,
    /// What follows it in what the digest is made of.
    pub body: Vec<u8>,
}

/// A trusted key's blob, of whichever age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedBlob {
    /// In ASN.1.
    Key(SealedKey),
    /// From before Linux 5.13: the parent is not in it.
    Old {
        /// The public area.
        public: PublicArea,
        /// The rest, without its size.
        private: Vec<u8>,
    },
}

/// The label of its PEM form.
pub const PEM_LABEL: &str = "TSS2 PRIVATE KEY";

/// Bytes that are no sealed data in this form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedKeyError {
    /// No such sequence.
    #[error("no key of a TPM: at byte {offset}, {found} stands in the place of {needed}")]
    Form {
        /// Where, in bytes from the start.
        offset: usize,
        /// What is needed there.
        needed: &'static str,
        /// What was found.
        found: String,
    },
    /// A key of a TPM that is used in it, and not unsealed.
    #[error("a key that is {0} in the TPM, where sealed data is needed (object identifier 2.23.133.10.1.5)")]
    Kind(&'static str),
    /// A policy that somebody else's signature may change.
    #[error("sealed by a policy that others may sign for (authPolicy), which is not known here")]
    SignedPolicy,
    /// A structure of the TPM's.
    #[error(transparent)]
    Structure(#[from] StructureError),
    /// A public area of something else.
    #[error("the public area is that of {0}, where sealed data is needed")]
    NotSealed(String),
    /// Text that is no PEM.
    #[error("no PEM of a key of a TPM: {0}")]
    Pem(&'static str),
}

const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;

/// The tag of an explicit element with this number.
const fn tagged(number: u8) -> u8 {
    0xa0 | number
}

/// 2.23.133.10.1, the number of the kind to follow.
const KEYS: [u8; 5] = [0x67, 0x81, 0x05, 0x0a, 0x01];
const LOADABLE: u8 = 3;
const IMPORTABLE: u8 = 4;
const SEALED: u8 = 5;
/// The longest private part.
const MAX_PRIVATE: usize = 1408;

impl SealedKey {
    /// Reads the ASN.1 form. What follows it counts for nothing, as in the kernel.
    ///
    /// # Errors
    /// [`SealedKeyError`].
    pub fn from_der(bytes: &[u8]) -> Result<Self, SealedKeyError> {
        let mut outer = Elements { bytes, offset: 0, base: 0 };
        let mut key = outer.inner(SEQUENCE, "a sequence")?;
        match key.content(OBJECT_IDENTIFIER, "an object identifier")?.split_last() {
            Some((&(SEALED | LOADABLE), keys)) if keys == KEYS => {}
            Some((&IMPORTABLE, keys)) if keys == KEYS => return Err(SealedKeyError::Kind("imported and used")),
            _ => return Err(SealedKeyError::Kind("of an unknown kind")),
        }
        let empty_auth = key.boolean(0)?;
        let mut policy = Vec::new();
        if let Some(mut commands) = key.optional(tagged(1))? {
            let mut commands = commands.inner(SEQUENCE, "a sequence of policy commands")?;
            while !commands.is_at_end() {
                policy.push(PolicyCommand::read(&mut commands)?);
            }
        }
        if key.optional(tagged(2))?.is_some() {
            return Err(SealedKeyError::Kind("imported and used"));
        }
        if key.optional(tagged(3))?.is_some() {
            return Err(SealedKeyError::SignedPolicy);
        }
        let description = match key.optional(tagged(4))? {
            None => None,
            Some(mut text) => {
                let text = text.content(UTF8_STRING, "a description")?;
                Some(String::from_utf8_lossy(text).into_owned())
            }
        };
        let rsa_parent = key.boolean(5)?;
        let parent = key.number("the parent's handle")?;
        let public = PublicArea::parse_sized(key.content(OCTET_STRING, "the public area")?)?;
        let mut private = Reader::new("a sized private part", key.content(OCTET_STRING, "the private part")?);
        let bytes = private.sized("private part", MAX_PRIVATE)?.to_vec();
        private.end()?;
        key.end()?;
        Ok(Self { empty_auth, policy, description, rsa_parent, parent, public: sealed(public)?, private: bytes })
    }

    /// The ASN.1 form, with what the kernel does not read where there is such.
    pub fn to_der(&self) -> Vec<u8> {
        let boolean = |number, value: bool| match value {
            true => element(tagged(number), &element(BOOLEAN, &[1])),
            false => Vec::new(),
        };
        let policy = match self.policy.is_empty() {
            true => Vec::new(),
            false => {
                let commands: Vec<Vec<u8>> = self.policy.iter().map(PolicyCommand::to_der).collect();
                element(tagged(1), &element(SEQUENCE, &commands.concat()))
            }
        };
        let description = self.description.as_ref();
        let description =
            description.map(|text| element(tagged(4), &element(UTF8_STRING, text.as_bytes()))).unwrap_or_default();
        let size = u16::try_from(self.private.len()).unwrap_or(u16::MAX).to_be_bytes();
        let parts = [
            element(OBJECT_IDENTIFIER, &[&KEYS[..], &[SEALED]].concat()),
            boolean(0, self.empty_auth),
            policy,
            description,
            boolean(5, self.rsa_parent),
            integer(self.parent),
            element(OCTET_STRING, &self.public.to_sized()),
            element(OCTET_STRING, &[&size[..], &self.private].concat()),
        ];
        element(SEQUENCE, &parts.concat())
    }

    /// The same with only what the kernel reads, under this parent.
    pub fn to_kernel(&self, parent: u32) -> Vec<u8> {
        Self { policy: Vec::new(), description: None, rsa_parent: false, parent, ..self.clone() }.to_der()
    }

    /// Reads the PEM form, with or without text around it.
    ///
    /// # Errors
    /// [`SealedKeyError`].
    pub fn from_pem(text: &str) -> Result<Self, SealedKeyError> {
        let (begin, end) = (format!("-----BEGIN {PEM_LABEL}-----"), format!("-----END {PEM_LABEL}-----"));
        let after = text.split_once(&begin).map(|(_, after)| after).ok_or(SealedKeyError::Pem("it does not begin"))?;
        let inside = after.split_once(&end).map(|(inside, _)| inside).ok_or(SealedKeyError::Pem("it does not end"))?;
        Self::from_der(&base64::decode(inside).ok_or(SealedKeyError::Pem("between its ends is no base64"))?)
    }

    /// The PEM form.
    pub fn to_pem(&self) -> String {
        let digits = base64::encode(&self.to_der());
        let lines: Vec<&str> = (0..digits.len())
            .step_by(PEM_LINE)
            .filter_map(|start| digits.get(start..start.saturating_add(PEM_LINE).min(digits.len())))
            .collect();
        format!("-----BEGIN {PEM_LABEL}-----\n{}\n-----END {PEM_LABEL}-----\n", lines.join("\n"))
    }

    /// Whether it may be sealed anew: the TPM is not told to keep it where it is.
    pub const fn is_migratable(&self) -> bool {
        is_migratable(&self.public)
    }
}

impl TrustedBlob {
    /// Reads a trusted key's blob: ASN.1 is tried first, as in the kernel.
    ///
    /// # Errors
    /// [`SealedKeyError`] of the ASN.1 form, unless it is the old one.
    pub fn parse(bytes: &[u8]) -> Result<Self, SealedKeyError> {
        match SealedKey::from_der(bytes) {
            Ok(key) => Ok(Self::Key(key)),
            Err(error) => Self::parse_old(bytes).ok_or(error),
        }
    }

    fn parse_old(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new("a trusted key from before Linux 5.13", bytes);
        let private = reader.sized("private part", MAX_PRIVATE).ok()?.to_vec();
        let at = reader.offset();
        let size = usize::from(reader.u16("public area").ok()?);
        let public = PublicArea::parse_sized(bytes.get(at..at.checked_add(size)?.checked_add(2)?)?).ok()?;
        Some(Self::Old { public: sealed(public).ok()?, private })
    }

    /// The public area.
    pub const fn public(&self) -> &PublicArea {
        match self {
            Self::Key(SealedKey { public, .. }) | Self::Old { public, .. } => public,
        }
    }

    /// The private part.
    pub fn private(&self) -> &[u8] {
        match self {
            Self::Key(SealedKey { private, .. }) | Self::Old { private, .. } => private,
        }
    }

    /// The blob's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Key(key) => key.to_der(),
            Self::Old { public, private } => {
                let size = u16::try_from(private.len()).unwrap_or(u16::MAX).to_be_bytes();
                [&size[..], private, &public.to_sized()].concat()
            }
        }
    }
}

/// Whether an object may be sealed anew, as its attributes tell.
pub const fn is_migratable(public: &PublicArea) -> bool {
    !public.attributes.contains(ObjectAttributes::FIXED_TPM.with(ObjectAttributes::FIXED_PARENT))
}

fn sealed(public: PublicArea) -> Result<PublicArea, SealedKeyError> {
    match public.kind {
        PublicKind::KeyedHash { is_key: false, .. } => Ok(public),
        _ => Err(SealedKeyError::NotSealed(public.to_string())),
    }
}

impl PolicyCommand {
    fn read(commands: &mut Elements<'_>) -> Result<Self, SealedKeyError> {
        let mut command = commands.inner(SEQUENCE, "a policy command")?;
        let code = command.inner(tagged(0), "a command code")?.number("a command code")?;
        let body = command.inner(tagged(1), "a command's body")?.content(OCTET_STRING, "a command's body")?.to_vec();
        command.end()?;
        Ok(Self { code, body })
    }

    fn to_der(&self) -> Vec<u8> {
        let parts = [element(tagged(0), &integer(self.code)), element(tagged(1), &element(OCTET_STRING, &self.body))];
        element(SEQUENCE, &parts.concat())
    }
}

/// The elements of a sequence, one after the other.
struct Elements<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Where the first byte stands in the whole.
    base: usize,
}

impl<'a> Elements<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    fn is_at_end(&self) -> bool {
        self.rest().is_empty()
    }

    fn place(&self) -> usize {
        self.base.saturating_add(self.offset)
    }

    fn wrong(&self, needed: &'static str) -> SealedKeyError {
        let found = match self.rest().first() {
            None => "the end".to_owned(),
            Some(tag) => format!("an element with the tag {tag:#04x}"),
        };
        SealedKeyError::Form { offset: self.place(), needed, found }
    }

    fn end(&self) -> Result<(), SealedKeyError> {
        if self.is_at_end() { Ok(()) } else { Err(self.wrong("the end")) }
    }

    /// The next element, if it has this tag.
    fn optional(&mut self, tag: u8) -> Result<Option<Elements<'a>>, SealedKeyError> {
        if self.rest().first() != Some(&tag) {
            return Ok(None);
        }
        let error = |found: String| SealedKeyError::Form { offset: self.place(), needed: "an element's length", found };
        let (header, length) = length(self.rest().get(1..).unwrap_or_default())
            .ok_or_else(|| error("what is no length of an element".to_owned()))?;
        let start = self.offset.saturating_add(1).saturating_add(header);
        let end = start.saturating_add(length);
        let Some(bytes) = self.bytes.get(start..end) else {
            let left = self.bytes.len().saturating_sub(start);
            return Err(error(format!("the length {length}, where {left} bytes are left,")));
        };
        let inner = Elements { bytes, offset: 0, base: self.base.saturating_add(start) };
        self.offset = end;
        Ok(Some(inner))
    }

    /// What is in the next element, which has this tag.
    fn inner(&mut self, tag: u8, what: &'static str) -> Result<Elements<'a>, SealedKeyError> {
        self.optional(tag)?.ok_or_else(|| self.wrong(what))
    }

    fn content(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], SealedKeyError> {
        Ok(self.inner(tag, what)?.bytes)
    }

    /// An explicit BOOLEAN that may be missing; whatever is not zero is true.
    fn boolean(&mut self, number: u8) -> Result<bool, SealedKeyError> {
        let Some(mut element) = self.optional(tagged(number))? else { return Ok(false) };
        let value = element.content(BOOLEAN, "a boolean")?;
        element.end()?;
        Ok(value.iter().any(|byte| *byte != 0))
    }

    /// A number of 32 bits. That the highest bit makes a number of DER negative is not heeded, as in some tools' files.
    fn number(&mut self, what: &'static str) -> Result<u32, SealedKeyError> {
        let before = Elements { ..*self };
        let bytes = match self.content(INTEGER, what)? {
            [0, bytes @ ..] => bytes,
            bytes => bytes,
        };
        if bytes.len() > 4 {
            return Err(before.wrong(what));
        }
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }
}

/// An element's length, and how many bytes it takes.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.first()? {
        short @ 0..=0x7f => Some((1, short.into())),
        long @ 0x81..=0x83 => {
            let count = usize::from(long & 0x0f);
            let bytes = bytes.get(1..count.checked_add(1)?)?;
            let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            Some((count.checked_add(1)?, length))
        }
        _ => None,
    }
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let mut bytes = vec![tag];
    match content.len() {
        0..=0x7f => bytes.extend(length.last()),
        _ => {
            let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
            bytes.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
            bytes.extend(significant);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

fn integer(number: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = number.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
    if bytes.first().is_none_or(|first| first & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    element(INTEGER, &bytes)
}

const PEM_LINE: usize = 64;

#[cfg(test)]
mod tests;
