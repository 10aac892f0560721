//! What a TPM answers: the response's header, its code, and a reader for the parameters after it.
//!
//! Source: TCG TPM 2.0 Library, part 2, TPM_RC and the structures read here; part 1, "Response Code Evaluation".

use std::fmt;

use tpm2_protocol::data::{TpmRcBase, TpmSt};

use super::TpmError;

/// A response code other than success.
///
/// | form | bits |
/// |---|---|
/// | format 0 | 8: TPM 2.0; 10: the vendor's; 11: a warning; 0-6: number |
/// | format 1 | 7: set; 0-5: number; 6: a parameter, else 11: a session, else a handle; 8-10 (8-11 of a parameter): which one, 0 for none |
/// | layer | 16-23: who answers in the TPM's place, 0b for the kernel's resource manager |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(pub u32);

impl ResponseCode {
    /// `TPM_RC_SUCCESS`.
    pub const SUCCESS: Self = Self(0);
    /// `TPM_RC_INITIALIZE`: not started, or started already.
    pub const INITIALIZE: Self = Self(0x100);
    /// `TPM_RC_FAILURE`: in failure mode until its power goes.
    pub const FAILURE: Self = Self(0x101);
    /// `TPM_RC_LOCKOUT`.
    pub const LOCKOUT: Self = Self(0x921);

    /// Whether the code says that nothing was done and the same command is to be sent again: `TPM_RC_YIELDED`,
    /// `TPM_RC_TESTING`, `TPM_RC_RETRY`.
    pub fn asks_to_resubmit(self) -> bool {
        matches!(self.0, 0x908 | 0x90a | 0x922)
    }

    /// The standard's error without its place; none for vendors' codes.
    fn base(self) -> Option<TpmRcBase> {
        // Format 1: where it went wrong is in bits 6 and 8 to 11, which are no part of the error's number.
        let number = if self.0 & FORMAT_1 != 0 { self.0 & 0xbf } else { self.0 & 0xfff };
        TpmRcBase::try_from(number).ok()
    }

    /// Which parameter, session or handle is wrong, counted from 1.
    fn place(self) -> Option<(&'static str, u32)> {
        let number = self.0 >> 8 & 0xf;
        match (self.0 & FORMAT_1 != 0, self.0 & PARAMETER != 0, number) {
            (false, _, _) | (true, _, 0) => None,
            (true, true, _) => Some(("parameter", number)),
            (true, false, 1..=7) => Some(("handle", number)),
            (true, false, 8) => None,
            (true, false, _) => Some(("session", number - 8)),
        }
    }

    /// Who answers, when it is not the TPM itself.
    fn layer(self) -> Option<&'static str> {
        match self.0 >> 16 & 0xff {
            0 => None,
            0x0b => Some("the kernel's resource manager"),
            0x0c => Some("a resource manager"),
            _ => Some("a layer of software before the TPM"),
        }
    }

    /// What the code means, in words; empty where its name says it all.
    fn meaning(self) -> &'static str {
        use TpmRcBase as Rc;
        match self.base() {
            Some(Rc::BadTag) => "not a TPM 2.0 command to it: a TPM 1.2",
            Some(Rc::Initialize) => "not started, or started already",
            Some(Rc::Failure) => "in failure mode",
            Some(Rc::Disabled) => "the command is disabled",
            Some(Rc::AuthMissing) => "an authorisation is missing",
            Some(Rc::CommandCode) => "the command is not implemented",
            Some(Rc::CommandSize) => "the command's size is wrong",
            Some(Rc::AuthUnavailable) => "this kind of authorisation is not allowed here",
            Some(Rc::Reboot) => "a TPM reset is needed first",
            Some(Rc::NvUninitialized) => "the NV index was never written",
            Some(Rc::Value) => "a value is out of range",
            Some(Rc::Handle) => "the handle is not right for the command",
            Some(Rc::Hash) => "the hash algorithm is not supported",
            Some(Rc::Locality) => "not allowed from this locality",
            Some(Rc::AuthFail | Rc::BadAuth) => "the authorisation is wrong",
            Some(Rc::PolicyFail) => "the policy is not met",
            Some(Rc::Size) => "a size is wrong",
            Some(Rc::ObjectMemory | Rc::SessionMemory | Rc::Memory) => "no room left",
            Some(Rc::Yielded | Rc::Testing | Rc::Retry) => "busy: to be sent again",
            Some(Rc::NvRate) => "NV memory is written too often",
            Some(Rc::NvUnavailable) => "NV memory cannot be written now",
            Some(Rc::Lockout) => "locked after failed authorisations",
            _ => "",
        }
    }

    /// What a person can do about it, as the end of a sentence.
    pub(super) fn advice(self) -> &'static str {
        use TpmRcBase as Rc;
        match self.base() {
            Some(Rc::BadTag) => ": a TPM 1.2 cannot be used; look for a TPM 2.0 mode in the firmware's settings",
            Some(Rc::Initialize) => ": the firmware did not start it; reboot, or look in the firmware's settings",
            Some(Rc::Failure) => ": switch the machine off and on; if it stays so, the TPM is broken",
            Some(Rc::Reboot) => ": reboot the machine",
            Some(Rc::ObjectMemory | Rc::SessionMemory | Rc::Memory) => {
                ": use /dev/tpmrm0, which swaps objects, or flush old ones with `tpm2_flushcontext -t`"
            }
            Some(Rc::Lockout) => {
                ": wait until `tpm2_getcap properties-variable` shows no lockout, or reset it as owner"
            }
            Some(Rc::Hash | Rc::Value) => ": compare the banks used with `tpm2_getcap pcrs`",
            Some(Rc::Locality) => ": this PCR belongs to firmware or the kernel; configure another one",
            _ => "",
        }
    }
}

impl fmt::Display for ResponseCode {
    /// `0x98e TPM_RC_AUTH_FAIL, session 1 (the authorisation is wrong)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        match self.base() {
            Some(base) => write!(f, " {base}")?,
            None if self.0 & FORMAT_1 == 0 && self.0 & VENDOR != 0 => f.write_str(" (a code of the TPM's vendor)")?,
            None => f.write_str(" (not a code of the standard)")?,
        }
        if let Some((kind, number)) = self.place() {
            write!(f, ", {kind} {number}")?;
        }
        if !self.meaning().is_empty() {
            write!(f, " ({})", self.meaning())?;
        }
        self.layer().map_or(Ok(()), |layer| write!(f, " from {layer}"))
    }
}

const FORMAT_1: u32 = 1 << 7;
const PARAMETER: u32 = 1 << 6;
const VENDOR: u32 = 1 << 10;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn response_codes_are_named_and_placed() {
        for (code, text) in [
            (0x922, "0x922 TPM_RC_RETRY (busy: to be sent again)"),
            (0x902, "0x902 TPM_RC_OBJECT_MEMORY (no room left)"),
            (0x921, "0x921 TPM_RC_LOCKOUT (locked after failed authorisations)"),
            (0x12f, "0x12f TPM_RC_AUTH_UNAVAILABLE (this kind of authorisation is not allowed here)"),
            (0x98e, "0x98e TPM_RC_AUTH_FAIL, session 1 (the authorisation is wrong)"),
            (0x99d, "0x99d TPM_RC_POLICY_FAIL, session 1 (the policy is not met)"),
            (0x18b, "0x18b TPM_RC_HANDLE, handle 1 (the handle is not right for the command)"),
            (0x1c4, "0x1c4 TPM_RC_VALUE, parameter 1 (a value is out of range)"),
            (0x084, "0x84 TPM_RC_VALUE (a value is out of range)"),
            (0xfc4, "0xfc4 TPM_RC_VALUE, parameter 15 (a value is out of range)"),
            (0x884, "0x884 TPM_RC_VALUE (a value is out of range)"),
            (0x918, "0x918 TPM_RC_REFERENCE_S0"),
            (0x14a, "0x14a TPM_RC_NV_UNINITIALIZED (the NV index was never written)"),
            (0x101, "0x101 TPM_RC_FAILURE (in failure mode)"),
            (0x100, "0x100 TPM_RC_INITIALIZE (not started, or started already)"),
            (0x907, "0x907 TPM_RC_LOCALITY (not allowed from this locality)"),
            (0x01e, "0x1e TPM_RC_BAD_TAG (not a TPM 2.0 command to it: a TPM 1.2)"),
            (0x503, "0x503 (a code of the TPM's vendor)"),
            (0x0bf, "0xbf (not a code of the standard)"),
            (
                0x000b_0143,
                "0xb0143 TPM_RC_COMMAND_CODE (the command is not implemented) from the kernel's resource manager",
            ),
        ] {
            assert_eq!(ResponseCode(code).to_string(), text);
        }
        let refused = TpmError::Refused { command: "TPM2_PCR_Extend", code: ResponseCode::FAILURE };
        assert_eq!(
            refused.to_string(),
            "the TPM refused TPM2_PCR_Extend with 0x101 TPM_RC_FAILURE (in failure mode): \
             switch the machine off and on; if it stays so, the TPM is broken"
        );
    }

    proptest! {
        #[test]
        fn every_response_code_prints(code in any::<u32>()) {
            prop_assert!(ResponseCode(code).to_string().starts_with("0x"));
        }
    }
}
