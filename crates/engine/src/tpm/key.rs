//! Keys that are made under a parent and kept outside of the TPM: only the TPM that made them can load them.
//!
//! Source: TCG TPM 2.0 Library, part 3, `TPM2_Create`, `TPM2_Load`.

use imara_format::tpm::PublicArea;

use super::{AuthValue, Object, SealedObject, Tpm, TpmError, session::SessionKind};

impl Tpm {
    /// Makes a key of this template under a parent. Its authorisation value goes to the TPM encrypted.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn create_key(
        &mut self,
        parent: &Object,
        parent_auth: &AuthValue,
        template: &PublicArea,
        auth: &AuthValue,
    ) -> Result<SealedObject, TpmError> {
        self.create_under(parent, parent_auth, template, auth, &[])
    }

    /// Loads a key, or other data, under its parent, until [`Tpm::leaving_nothing`] flushes it.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers: 0x1df when another parent made it.
    pub fn load_key(
        &mut self,
        parent: &Object,
        parent_auth: &AuthValue,
        key: &SealedObject,
    ) -> Result<Object, TpmError> {
        let mut session = self.start_session(SessionKind::Hmac, Some(parent))?;
        let loaded = self.load_in(&mut session, parent, parent_auth, key);
        // The key stays loaded, the session has done its work: a TPM has room for three.
        self.flush(session.handle())?;
        loaded
    }
}
