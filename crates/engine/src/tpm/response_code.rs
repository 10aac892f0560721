//! Response codes, in words.
//!
//! Source: TCG TPM 2.0 Library, part 2, TPM_RC; part 1, "Response Code Evaluation".

use std::fmt;

use tpm2_protocol::data::TpmRcBase;

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
    pub fn base(self) -> Option<TpmRcBase> {
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
            Some(Rc::Integrity) => "not made by this TPM under this parent, or changed",
            Some(Rc::PolicyFail) => "the policy is not met",
            Some(Rc::Size) => "a size is wrong",
            Some(Rc::ObjectMemory | Rc::SessionMemory | Rc::Memory) => "no room left",
            Some(Rc::Yielded | Rc::Testing | Rc::Retry) => "busy: to be sent again",
            Some(Rc::NvSpace) => "no room left in NV memory",
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
                ": use /dev/tpmrm0, which swaps objects; `imara tpm status` shows what is loaded, `tpm2_flushcontext -t` flushes it"
            }
            Some(Rc::NvSpace) => ": `imara tpm status` shows what is kept",
            Some(Rc::Lockout) => {
                ": `imara tpm status` shows for how long; `tpm2_dictionarylockout -c` ends it for who has the lockout authorisation"
            }
            Some(Rc::Hash | Rc::Value) => ": `imara tpm status` shows the banks that it has",
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::TpmError, *};

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
