//! Structures of the TPM 2.0, as responses carry them and as they stand in files: public areas, quotes, signatures,
//! selections of PCRs.
//!
//! All integers are big endian. A sized buffer (TPM2B) is a u16 length and as many bytes; a list (TPML) is a u32 count and
//! as many elements.
//!
//! Source: TCG TPM 2.0 Library, part 2.

mod attest;
mod public;
mod selection;
mod signature;

pub use attest::QuoteAttestation;
pub use public::{Curve, ObjectAttributes, PublicArea, PublicKind, Scheme, Symmetric};
pub use selection::{PcrSelection, SelectionError};
pub use signature::TpmSignature;

/// Bytes that are not the structure that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} is malformed at byte {offset}: {what} is {found}, {needed} needed")]
pub struct StructureError {
    /// What was being read.
    pub structure: &'static str,
    /// Which part of it.
    pub what: &'static str,
    /// Where, in bytes from the structure's start.
    pub offset: usize,
    /// What stands there, or how much is left.
    pub found: u64,
    /// What should stand there, or how much is needed.
    pub needed: u64,
}

/// Reads a structure from front to back.
pub struct Reader<'a> {
    structure: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, which are said to be a `structure`.
    pub const fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self { structure, bytes, offset: 0 }
    }

    /// What is being read.
    pub const fn structure(&self) -> &'static str {
        self.structure
    }

    /// Where it is, in bytes from the start.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`StructureError`] when there are fewer, as for all that follow.
    pub fn bytes(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], StructureError> {
        let rest = self.rest();
        match rest.get(..length) {
            Some(bytes) => {
                self.offset = self.offset.saturating_add(length);
                Ok(bytes)
            }
            None => Err(self.malformed(what, self.offset, rest.len() as u64, length as u64)),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], StructureError> {
        let offset = self.offset;
        let bytes = self.bytes(what, N)?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.malformed(what, offset, bytes.len() as u64, N as u64))
    }

    /// One byte.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn u8(&mut self, what: &'static str) -> Result<u8, StructureError> {
        self.array(what).map(u8::from_be_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn u16(&mut self, what: &'static str) -> Result<u16, StructureError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, StructureError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, StructureError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A u32 that can only be this.
    ///
    /// # Errors
    /// [`StructureError`] also when it is another.
    pub fn expect(&mut self, what: &'static str, needed: u32) -> Result<(), StructureError> {
        let at = self.offset;
        let found = self.u32(what)?;
        if found == needed { Ok(()) } else { Err(self.malformed(what, at, found.into(), needed.into())) }
    }

    /// A sized buffer of at most `most` bytes.
    ///
    /// # Errors
    /// [`StructureError`] also when it is longer.
    pub fn sized(&mut self, what: &'static str, most: usize) -> Result<&'a [u8], StructureError> {
        let at = self.offset;
        let size = self.u16(what)?;
        if usize::from(size) > most {
            return Err(self.malformed(what, at, size.into(), most as u64));
        }
        self.bytes(what, size.into())
    }

    /// That nothing follows.
    ///
    /// # Errors
    /// [`StructureError`] when something does.
    pub fn end(&self) -> Result<(), StructureError> {
        match self.rest().len() {
            0 => Ok(()),
            left => Err(self.malformed("bytes after the end", self.offset, left as u64, 0)),
        }
    }

    /// An error of this structure.
    pub const fn malformed(&self, what: &'static str, offset: usize, found: u64, needed: u64) -> StructureError {
        StructureError { structure: self.structure, what, offset, found, needed }
    }
}
