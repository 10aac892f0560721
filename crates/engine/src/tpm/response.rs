//! What a TPM answers: the response's header, and where its handle, parameters and sessions are.
//!
//! Source: TCG TPM 2.0 Library, part 1, "Response Structure".

use std::ops::Range;

use imara_format::tpm::Reader;

use super::{ResponseCode, TpmError};

/// The largest response that the Linux device hands over.
pub(super) const MAX_RESPONSE: usize = 4096;
/// The tag without authorisations.
pub(super) const NO_SESSIONS: u16 = 0x8001;
/// The tag with authorisations.
pub(super) const SESSIONS: u16 = 0x8002;

/// The response's code, when its header is sound.
pub(super) fn response_code(command: &'static str, response: &[u8]) -> Result<ResponseCode, TpmError> {
    let mut reader = Reader::new(command, response);
    let tag = reader.u16("tag")?;
    let size = reader.u32("size")?;
    let code = ResponseCode(reader.u32("response code")?);
    if size as usize != response.len() || response.len() > MAX_RESPONSE {
        return Err(reader.malformed("size", 2, size.into(), response.len().min(MAX_RESPONSE) as u64).into());
    }
    // TPM 1.2 answers with its own tag, and so does a TPM 2.0 to a command whose tag it cannot read.
    const TPM_1_2: u16 = 0x00c4;
    match tag {
        NO_SESSIONS | SESSIONS => Ok(code),
        TPM_1_2 if code != ResponseCode::SUCCESS => Ok(code),
        _ => Err(reader.malformed("tag", 0, tag.into(), NO_SESSIONS.into()).into()),
    }
}

/// The parts of a successful response, as places in it.
pub(super) struct Parts {
    /// The handle of what the command loaded.
    pub(super) handle: Option<u32>,
    pub(super) parameters: Range<usize>,
    pub(super) sessions: Range<usize>,
}

/// Takes a successful response to a command with this tag apart.
pub(super) fn parts(command: &'static str, tag: u16, returns_handle: bool, response: &[u8]) -> Result<Parts, TpmError> {
    let mut reader = Reader::new(command, response);
    let found = reader.u16("tag")?;
    if found != tag {
        return Err(reader.malformed("tag", 0, found.into(), tag.into()).into());
    }
    reader.bytes("header", 8)?;
    let handle = if returns_handle { Some(reader.u32("handle")?) } else { None };
    let size = match tag {
        SESSIONS => reader.u32("size of the parameters")? as usize,
        _ => reader.rest().len(),
    };
    let start = reader.offset();
    reader.bytes("parameters", size)?;
    Ok(Parts { handle, parameters: start..start + size, sessions: start + size..response.len() })
}

/// A reader of a part of a response, which counts from the response's beginning.
pub(super) fn reader<'a>(command: &'static str, response: &'a [u8], part: &Range<usize>) -> Reader<'a> {
    let mut reader = Reader::new(command, &response[..part.end]);
    reader.bytes("what is before", part.start).expect("a part of the response begins in it");
    reader
}
