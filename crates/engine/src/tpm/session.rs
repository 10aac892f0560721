//! Sessions: what authorises commands without a password on the wire, and keeps secrets from who listens there.
//!
//! A session begins with a nonce of each side, and, when it is *salted*, with a secret that only the TPM can read: it is
//! encrypted to a key of the TPM. From then on each command and each response brings a new nonce.
//!
//! | what | how |
//! |---|---|
//! | session key | KDFa(salt, `ATH`, nonce of the TPM, ours); none without a salt |
//! | HMAC of a command or response | key: session key ‖ authorisation value; over its hash ‖ newer nonce ‖ older nonce ‖ attributes |
//! | encryption of the first parameter | AES-128-CFB; key and IV: KDFa(session key ‖ authorisation value, `CFB`, newer nonce, older nonce) |
//! | salt, RSA | 32 random bytes, RSA-OAEP with the label `SECRET` |
//! | salt, ECC | KDFe(x of the shared point, `SECRET`, x of an ephemeral key, x of the TPM's) |
//!
//! An authorisation value counts without the zeros at its end. A policy session authorises by what was asserted in it; the
//! value counts only after `TPM2_PolicyAuthValue`.
//!
//! Who only listens learns nothing from a salted session. Who can also change what is sent can put a key of their own in
//! the place of the TPM's, unless the key's name is known beforehand.
//!
//! Source: TCG TPM 2.0 Library, part 1, "Session-based authorizations" and "Session-based encryption".

use imara_format::tpm::{PublicArea, PublicKind};
use tpm2_protocol::{
    basic::{TpmBuffer, TpmHandle, TpmUint16},
    data::{TpmAlgId, TpmSe, TpmaSession, TpmsAuthCommand, TpmtSymDefObject, TpmuSymKeyBits, TpmuSymMode},
    frame::TpmStartAuthSessionCommand,
};
use zeroize::Zeroizing;

use super::{Name, Tpm, TpmError, command::Request, object::Object};
use crate::crypto;

/// An authorisation value: wiped when dropped, and never printed.
#[derive(Clone)]
pub struct AuthValue(Zeroizing<Vec<u8>>);

impl AuthValue {
    /// The empty one.
    pub fn empty() -> Self {
        Self(Zeroizing::new(Vec::new()))
    }

    /// Takes a value over; none where it is longer than a TPM takes.
    ///
    /// Zeros at its end do not count in a TPM, and are taken away here.
    pub fn new(value: Vec<u8>) -> Option<Self> {
        let mut value = Zeroizing::new(value);
        let length = value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        value.truncate(length);
        (length <= MAX_AUTH).then_some(Self(value))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the empty one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for AuthValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "no value" } else { "a value" })
    }
}

/// The longest authorisation value that any TPM takes: its largest digest.
const MAX_AUTH: usize = 64;
/// Bytes of a nonce and of an HMAC: sessions here hash with SHA-256.
pub(super) const NONCE: usize = 32;
/// `TPM_RH_NULL`: no key, nothing bound.
const NULL_HANDLE: u32 = 0x4000_0007;
/// What of the first parameter's encryption: AES-128, and an IV of a block.
const CIPHER_BITS: u32 = 128 + 128;

/// What a session authorises by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionKind {
    /// The authorisation value of what it is used on.
    Hmac,
    /// What is asserted in it.
    Policy,
}

impl From<SessionKind> for TpmSe {
    fn from(kind: SessionKind) -> Self {
        match kind {
            SessionKind::Hmac => Self::Hmac,
            SessionKind::Policy => Self::Policy,
        }
    }
}

/// A session that is loaded in the TPM.
pub(super) struct Session {
    handle: u32,
    kind: SessionKind,
    key: Zeroizing<Vec<u8>>,
    ours: [u8; NONCE],
    tpms: [u8; NONCE],
    /// What it does to the command that is sent next; it stays loaded after it.
    attributes: TpmaSession,
    /// Whether `TPM2_PolicyAuthValue` was asserted.
    value_counts: bool,
}

impl Tpm {
    /// Begins a session, salted with a key of the TPM where one is given. It is noted, so that it is flushed.
    pub(super) fn start_session(
        &mut self,
        kind: SessionKind,
        salted_with: Option<&Object>,
    ) -> Result<Session, TpmError> {
        let mut ours = [0; NONCE];
        crypto::random(&mut ours).map_err(TpmError::Crypto)?;
        let (salt, encrypted) = match salted_with {
            Some(key) => salt_for(key.public())?,
            None => (Zeroizing::new(Vec::new()), Vec::new()),
        };
        let symmetric = match salted_with {
            Some(_) => TpmtSymDefObject {
                algorithm: TpmAlgId::Aes,
                key_bits: TpmuSymKeyBits::Aes(TpmUint16::from(128)),
                mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
            },
            None => TpmtSymDefObject::default(),
        };
        let null = Name::of_handle(NULL_HANDLE);
        let (key_handle, key_name) = salted_with.map_or((NULL_HANDLE, &null), |key| (key.handle(), key.name()));
        let command = TpmStartAuthSessionCommand {
            handles: [TpmHandle::new(key_handle), TpmHandle::new(NULL_HANDLE)],
            nonce_caller: TpmBuffer::try_from(ours.as_slice()).expect("a nonce fits"),
            encrypted_salt: TpmBuffer::try_from(encrypted.as_slice()).expect("an encrypted salt fits"),
            session_type: kind.into(),
            symmetric,
            auth_hash: TpmAlgId::Sha256,
        };
        let name = "TPM2_StartAuthSession";
        self.about_to_load(super::loaded::Making::Session)?;
        let request = Request { name, command: &command, names: &[key_name, &null], returns_handle: true };
        let (handle, mut reader) = self.request(&request, &mut [])?;
        let handle = handle.expect("asked for");
        let at = reader.offset();
        let nonce = reader.sized("nonce", NONCE)?;
        let tpms = <[u8; NONCE]>::try_from(nonce)
            .map_err(|_| reader.malformed("size of the nonce", at, nonce.len() as u64, NONCE as u64))?;
        reader.end()?;
        self.write_record(None)?;
        let key = match salt.is_empty() {
            true => salt,
            false => crypto::kdfa(&salt, "ATH", &tpms, &ours, 8 * NONCE as u32),
        };
        let attributes = TpmaSession::CONTINUE_SESSION;
        Ok(Session { handle, kind, key, ours, tpms, attributes, value_counts: false })
    }
}

impl Session {
    pub(super) fn handle(&self) -> u32 {
        self.handle
    }

    /// Has the first parameter of the next command or response encrypted, or neither.
    pub(super) fn encrypting(&mut self, command: bool, response: bool) -> &mut Self {
        self.attributes = TpmaSession::CONTINUE_SESSION;
        if command {
            self.attributes |= TpmaSession::DECRYPT;
        }
        if response {
            self.attributes |= TpmaSession::ENCRYPT;
        }
        self
    }

    /// That the authorisation value counts from now on in a policy session.
    pub(super) fn count_value(&mut self) {
        self.value_counts = true;
    }

    pub(super) fn begin_exchange(&mut self) -> Result<(), TpmError> {
        crypto::random(&mut self.ours).map_err(TpmError::Crypto)
    }

    /// Encrypts a command's first parameter where it stands, if that was asked for.
    pub(super) fn encrypt_command(&self, value: &AuthValue, parameters: &mut [u8]) -> Result<(), TpmError> {
        if !self.attributes.contains(TpmaSession::DECRYPT) {
            return Ok(());
        }
        let (key, iv) = self.cipher(value, &self.ours, &self.tpms);
        let parameter = first_parameter(parameters).expect("the first parameter of what is encrypted is sized");
        crypto::aes128_cfb_encrypt(&key, &iv, parameter).map_err(TpmError::Crypto)
    }

    /// Decrypts a response's first parameter where it stands, if that was asked for.
    pub(super) fn decrypt_response(&self, value: &AuthValue, parameters: &mut [u8]) -> Result<(), TpmError> {
        if !self.attributes.contains(TpmaSession::ENCRYPT) {
            return Ok(());
        }
        let (key, iv) = self.cipher(value, &self.tpms, &self.ours);
        match first_parameter(parameters) {
            Some(parameter) => crypto::aes128_cfb_decrypt(&key, &iv, parameter).map_err(TpmError::Crypto),
            // Whoever reads it says that it is malformed.
            None => Ok(()),
        }
    }

    /// The session as a command carries it.
    pub(super) fn command(&self, value: &AuthValue, hash: &[u8]) -> TpmsAuthCommand {
        let hmac = self.hmac(value, hash, &self.ours, &self.tpms, self.attributes);
        TpmsAuthCommand {
            session_handle: TpmHandle::new(self.handle),
            nonce: TpmBuffer::try_from(self.ours.as_slice()).expect("a nonce fits"),
            session_attributes: self.attributes,
            hmac: TpmBuffer::try_from(hmac.as_slice()).expect("an HMAC fits"),
        }
    }

    /// Believes a response only if its HMAC is right.
    pub(super) fn end_exchange(
        &mut self,
        command: &'static str,
        value: &AuthValue,
        hash: &[u8],
        nonce: &[u8],
        attributes: u8,
        hmac: &[u8],
    ) -> Result<(), TpmError> {
        let forged = TpmError::Forged { command };
        let Ok(tpms) = <[u8; NONCE]>::try_from(nonce) else { return Err(forged) };
        self.tpms = tpms;
        let attributes = TpmaSession::from_bits_truncate(attributes);
        let expected = self.hmac(value, hash, &self.tpms, &self.ours, attributes);
        if crypto::equal(&expected, hmac) { Ok(()) } else { Err(forged) }
    }

    fn hmac(&self, value: &AuthValue, hash: &[u8], newer: &[u8], older: &[u8], attributes: TpmaSession) -> Vec<u8> {
        let value_counts = match self.kind {
            SessionKind::Hmac => true,
            SessionKind::Policy => self.value_counts,
        };
        let value = if value_counts { value.as_bytes() } else { &[] };
        if self.kind != SessionKind::Hmac && self.key.is_empty() && value.is_empty() {
            return Vec::new();
        }
        let key = Zeroizing::new([self.key.as_slice(), value].concat());
        crypto::hmac_sha256(&key, &[hash, newer, older, &[attributes.bits()]].concat()).to_vec()
    }

    /// Key and IV for a first parameter.
    fn cipher(&self, value: &AuthValue, newer: &[u8], older: &[u8]) -> (Zeroizing<[u8; 16]>, [u8; 16]) {
        let secret = Zeroizing::new([self.key.as_slice(), value.as_bytes()].concat());
        let both = crypto::kdfa(&secret, "CFB", newer, older, CIPHER_BITS);
        let (mut key, mut iv) = (Zeroizing::new([0; 16]), [0; 16]);
        key.copy_from_slice(&both[..16]);
        iv.copy_from_slice(&both[16..]);
        (key, iv)
    }
}

/// The bytes of the sized buffer that parameters begin with.
fn first_parameter(parameters: &mut [u8]) -> Option<&mut [u8]> {
    let size = usize::from(u16::from_be_bytes(*parameters.first_chunk()?));
    parameters.get_mut(2..)?.get_mut(..size)
}

/// A secret for a session, and the same encrypted to a key of the TPM.
fn salt_for(key: &PublicArea) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), TpmError> {
    const LABEL: &str = "SECRET";
    let unusable = || TpmError::CannotSalt { key: key.to_string() };
    let hash = key.name_hash().ok_or_else(unusable)?;
    match &key.kind {
        PublicKind::Rsa { exponent, modulus, .. } => {
            let mut salt = Zeroizing::new(vec![0; hash.digest_size()]);
            crypto::random(&mut salt).map_err(TpmError::Crypto)?;
            let encrypted = crypto::rsa_oaep_encrypt(modulus, *exponent, hash, LABEL, &salt);
            Ok((salt, encrypted.map_err(TpmError::Crypto)?))
        }
        PublicKind::Ecc { curve, x, y, .. } => {
            let ephemeral = crypto::ecdh_with(*curve, x, y).map_err(TpmError::Crypto)?.ok_or_else(unusable)?;
            let salt = crypto::kdfe(hash, &ephemeral.shared_x, LABEL, &ephemeral.x, &ephemeral.peer_x)
                .map_err(TpmError::Crypto)?;
            let mut encrypted = Vec::new();
            for coordinate in [&ephemeral.x, &ephemeral.y] {
                encrypted.extend_from_slice(&(coordinate.len() as u16).to_be_bytes());
                encrypted.extend_from_slice(coordinate);
            }
            Ok((salt, encrypted))
        }
        PublicKind::KeyedHash { .. } | PublicKind::Symmetric => Err(unusable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authorisation_value_counts_without_zeros_at_its_end() {
        for (value, expected) in [
            (vec![], Some(vec![])),
            (vec![0; 20], Some(vec![])),
            (vec![1, 0, 2, 0, 0], Some(vec![1, 0, 2])),
            (vec![1; 64], Some(vec![1; 64])),
            (vec![1; 65], None),
        ] {
            assert_eq!(AuthValue::new(value).map(|value| value.as_bytes().to_vec()), expected);
        }
        assert_eq!(format!("{:?}", AuthValue::new(vec![7; 4])), "Some(a value)");
    }
}
