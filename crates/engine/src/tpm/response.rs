//! What a TPM answers: the response's header, and a reader for the parameters after it.
//!
//! Source: TCG TPM 2.0 Library, part 2, the structures read here.

use tpm2_protocol::data::TpmSt;

use super::{ResponseCode, TpmError};

/// The largest response that the Linux device hands over.
pub(super) const MAX_RESPONSE: usize = 4096;
/// The tag without authorisations.
pub(super) const NO_SESSIONS: u16 = 0x8001;
/// The tag with authorisations.
pub(super) const SESSIONS: u16 = 0x8002;

/// The response's code, when its header is sound.
pub(super) fn response_code(command: &'static str, response: &[u8]) -> Result<ResponseCode, TpmError> {
    let mut reader = Reader { command, bytes: response, offset: 0 };
    let tag = reader.u16("tag")?;
    let size = reader.u32("size")?;
    let code = ResponseCode(reader.u32("response code")?);
    if size as usize != response.len() || response.len() > MAX_RESPONSE {
        return Err(reader.malformed("size", 2, size.into(), response.len().min(MAX_RESPONSE) as u64));
    }
    // TPM 1.2 answers with its own tag, and so does a TPM 2.0 to a command whose tag it cannot read.
    const TPM_1_2: u16 = 0x00c4;
    match tag {
        NO_SESSIONS | SESSIONS => Ok(code),
        TPM_1_2 if code != ResponseCode::SUCCESS => Ok(code),
        _ => Err(reader.malformed("tag", 0, tag.into(), NO_SESSIONS.into())),
    }
}

/// The parameters of a successful response to a command with this tag.
pub(super) fn parameters<'a>(command: &'static str, tag: TpmSt, response: &'a [u8]) -> Result<Reader<'a>, TpmError> {
    let mut reader = Reader { command, bytes: response, offset: 0 };
    let found = reader.u16("tag")?;
    if found != tag.value() {
        return Err(reader.malformed("tag", 0, found.into(), tag.value().into()));
    }
    reader.bytes("header", 8)?;
    if found == SESSIONS {
        let size = reader.u32("size of the parameters")? as usize;
        let start = reader.offset;
        reader.bytes("parameters", size)?;
        return Ok(Reader { command, bytes: &response[..reader.offset], offset: start });
    }
    Ok(reader)
}

/// Reads a response from front to back.
pub(super) struct Reader<'a> {
    command: &'static str,
    bytes: &'a [u8],
    pub(super) offset: usize,
}

/// A bank's PCRs in a response; bit n is PCR n.
pub(super) struct Selection {
    pub(super) tpm_id: u16,
    pub(super) pcrs: u32,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], TpmError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        match rest.get(..length) {
            Some(bytes) => {
                self.offset += length;
                Ok(bytes)
            }
            None => Err(self.malformed(what, self.offset, rest.len() as u64, length as u64)),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], TpmError> {
        Ok(self.bytes(what, N)?.try_into().expect("as many bytes as asked for"))
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, TpmError> {
        self.array(what).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, TpmError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, TpmError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// A u32 that can only be this.
    pub(super) fn expect(&mut self, what: &'static str, needed: u32) -> Result<(), TpmError> {
        let at = self.offset;
        let found = self.u32(what)?;
        if found == needed { Ok(()) } else { Err(self.malformed(what, at, found.into(), needed.into())) }
    }

    /// A TPM2B of at most `most` bytes.
    pub(super) fn sized(&mut self, what: &'static str, most: usize) -> Result<&'a [u8], TpmError> {
        let at = self.offset;
        let size = self.u16(what)?;
        if usize::from(size) > most {
            return Err(self.malformed(what, at, size.into(), most as u64));
        }
        self.bytes(what, size.into())
    }

    /// A TPML_PCR_SELECTION.
    pub(super) fn selections(&mut self) -> Result<Vec<Selection>, TpmError> {
        let count = self.u32("number of PCR selections")?;
        // The response's own size bounds the loop: each takes three bytes at least.
        let mut selections = Vec::new();
        for _ in 0..count {
            let tpm_id = self.u16("PCR bank")?;
            let (at, size) = (self.offset, self.u8("size of a PCR selection")?);
            if size > 4 {
                return Err(self.malformed("size of a PCR selection", at, size.into(), 4));
            }
            let map = self.bytes("PCR selection", size.into())?;
            let pcrs = map.iter().rev().fold(0, |pcrs, byte| pcrs << 8 | u32::from(*byte));
            selections.push(Selection { tpm_id, pcrs });
        }
        Ok(selections)
    }

    /// That nothing follows.
    pub(super) fn end(&self) -> Result<(), TpmError> {
        let left = self.bytes.len().saturating_sub(self.offset);
        if left == 0 { Ok(()) } else { Err(self.malformed("bytes after the end", self.offset, left as u64, 0)) }
    }

    pub(super) fn malformed(&self, what: &'static str, offset: usize, found: u64, needed: u64) -> TpmError {
        TpmError::Malformed { command: self.command, what, offset, found, needed }
    }
}
