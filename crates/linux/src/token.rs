//! Private keys in tokens (a smart card, an HSM, SoftHSM), by PKCS#11.
//!
//! The token's own module is loaded, or p11-kit's, which has all that the system knows. OpenSSL's engine or provider for
//! PKCS#11 would load the same module, and neither is everywhere: Debian 12 has no provider, later ones no engine.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use imara_engine::crypto::{TokenKey, TokenPublicKey};
use imara_format::pkcs11_uri::Pkcs11Uri;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Why a token has no key for us.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The module cannot be loaded, or does not work.
    #[error("the PKCS#11 module {} cannot be used: {error}", path.display())]
    Module {
        /// Its file.
        path: PathBuf,
        /// Why.
        error: Error,
    },
    /// No token is as the URI says.
    #[error("no token is as the URI says; there are: {0}")]
    NoToken(String),
    /// Several are.
    #[error("several tokens are as the URI says: {0}")]
    ManyTokens(String),
    /// The token wants a PIN.
    #[error("the token {0:?} wants a PIN")]
    PinNeeded(String),
    /// The PIN is wrong.
    #[error("the token {token:?} does not take this PIN: {error}")]
    Pin {
        /// Its label.
        token: String,
        /// What it said.
        error: Error,
    },
    /// The token has no such key.
    #[error("the token {token:?} has {found} private keys that are as the URI says, where one is needed")]
    NoKey {
        /// Its label.
        token: String,
        /// How many are.
        found: usize,
    },
    /// A key that labels are not signed with.
    #[error("the key in the token is of type {0}, where RSA or EC is needed")]
    KeyType(String),
    /// The token does not tell the public key.
    #[error("the token does not tell the public half of the key: {0}")]
    Public(String),
    /// The module failed.
    #[error("PKCS#11: {0}")]
    Failed(#[from] Error),
}

/// Finds the private key that the URI names, and logs in for it.
///
/// # Errors
/// [`TokenError`].
pub fn open(uri: &Pkcs11Uri, pin: Option<&[u8]>) -> Result<Box<dyn TokenKey>, TokenError> {
    let path = module(uri);
    let unusable = |error| TokenError::Module { path: path.clone(), error };
    let module = Pkcs11::new(&path).map_err(unusable)?;
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(unusable)?;
    let (slot, token) = find_token(&module, uri)?;
    let label = token.label().to_owned();
    let session = module.open_ro_session(slot)?;
    if token.login_required() {
        if let Some(pin) = pin {
            let secret = AuthPin::from(String::from_utf8_lossy(pin).into_owned());
            match session.login(UserType::User, Some(&secret)) {
                Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
                Err(error) => return Err(TokenError::Pin { token: label, error }),
            }
        } else if token.protected_authentication_path() {
            session.login(UserType::User, None).map_err(|error| TokenError::Pin { token: label.clone(), error })?;
        } else {
            return Err(TokenError::PinNeeded(label));
        }
    }
    let key = match find(&session, ObjectClass::PRIVATE_KEY, uri.object.as_deref(), uri.id.as_deref())?.as_slice() {
        [one] => *one,
        several => return Err(TokenError::NoKey { token: label, found: several.len() }),
    };
    let public = public_half(&session, key)?;
    Ok(Box::new(Token { session: Mutex::new(session), key, public, _module: module }))
}

/// The module to load: the URI's, else the environment's, else p11-kit's.
fn module(uri: &Pkcs11Uri) -> PathBuf {
    if let Some(path) = &uri.module_path {
        return PathBuf::from(path);
    }
    if let Some(name) = &uri.module_name {
        return PathBuf::from(format!("lib{name}.so"));
    }
    // The names that OpenSSL's provider and libp11's engine have for it.
    let named = ["PKCS11_PROVIDER_MODULE", "PKCS11_MODULE_PATH"].into_iter().find_map(std::env::var_os);
    named.map_or_else(|| PathBuf::from("p11-kit-proxy.so"), PathBuf::from)
}

/// Reads the PIN that a file has: its first line.
///
/// # Errors
/// What the kernel says.
pub fn pin_from(source: &str) -> std::io::Result<Vec<u8>> {
    let mut pin = std::fs::read(Path::new(source.strip_prefix("file:").unwrap_or(source)))?;
    pin.truncate(pin.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(pin.len()));
    Ok(pin)
}

fn find_token(module: &Pkcs11, uri: &Pkcs11Uri) -> Result<(Slot, TokenInfo), TokenError> {
    let mut all = Vec::new();
    for slot in module.get_slots_with_initialized_token()? {
        all.push((slot, module.get_token_info(slot)?));
    }
    let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
    let labels = |tokens: &[(Slot, TokenInfo)]| match tokens {
        [] => "none".to_owned(),
        tokens => tokens.iter().map(|(_, token)| token.label()).collect::<Vec<_>>().join(", "),
    };
    let there = labels(&all);
    all.retain(|(slot, token)| {
        is(&uri.token, token.label())
            && is(&uri.manufacturer, token.manufacturer_id())
            && is(&uri.serial, token.serial_number())
            && is(&uri.model, token.model())
            && uri.slot_id.is_none_or(|wanted| wanted == slot.id())
    });
    match (all.pop(), all.len()) {
        (Some(found), 0) => Ok(found),
        (None, _) => Err(TokenError::NoToken(there)),
        (Some(last), _) => {
            all.push(last);
            Err(TokenError::ManyTokens(labels(&all)))
        }
    }
}

fn find(
    session: &Session,
    class: ObjectClass,
    label: Option<&str>,
    id: Option<&[u8]>,
) -> Result<Vec<ObjectHandle>, Error> {
    let mut template = vec![Attribute::Class(class)];
    template.extend(label.map(|label| Attribute::Label(label.as_bytes().to_vec())));
    template.extend(id.map(|id| Attribute::Id(id.to_vec())));
    session.find_objects(&template)
}

/// RSA private keys tell their modulus and exponent; of EC keys only the public object, which has the same id, has the point.
fn public_half(session: &Session, key: ObjectHandle) -> Result<TokenPublicKey, TokenError> {
    let mut kind = None;
    let mut id = None;
    for attribute in session.get_attributes(key, &[AttributeType::KeyType, AttributeType::Id])? {
        match attribute {
            Attribute::KeyType(found) => kind = Some(found),
            Attribute::Id(found) => id = Some(found),
            _ => {}
        }
    }
    match kind {
        Some(KeyType::RSA) => {
            let (mut modulus, mut exponent) = (None, None);
            for attribute in session.get_attributes(key, &[AttributeType::Modulus, AttributeType::PublicExponent])? {
                match attribute {
                    Attribute::Modulus(bytes) => modulus = Some(bytes),
                    Attribute::PublicExponent(bytes) => exponent = Some(bytes),
                    _ => {}
                }
            }
            match (modulus, exponent) {
                (Some(modulus), Some(exponent)) => Ok(TokenPublicKey::Rsa { modulus, exponent }),
                _ => Err(TokenError::Public("no modulus or exponent".into())),
            }
        }
        Some(KeyType::EC) => {
            let publics = find(session, ObjectClass::PUBLIC_KEY, None, id.as_deref())?;
            let [public] = publics.as_slice() else {
                return Err(TokenError::Public(format!("{} public keys have the same id", publics.len())));
            };
            let (mut parameters, mut point) = (None, None);
            for attribute in session.get_attributes(*public, &[AttributeType::EcParams, AttributeType::EcPoint])? {
                match attribute {
                    Attribute::EcParams(bytes) => parameters = Some(bytes),
                    Attribute::EcPoint(bytes) => point = Some(bytes),
                    _ => {}
                }
            }
            match (parameters, point.as_deref().and_then(without_octet_string)) {
                (Some(parameters), Some(point)) => Ok(TokenPublicKey::Ec { parameters, point: point.to_vec() }),
                _ => Err(TokenError::Public("no curve or no point".into())),
            }
        }
        Some(other) => Err(TokenError::KeyType(format!("{other}"))),
        None => Err(TokenError::Public("no type".into())),
    }
}

/// A point without the OCTET STRING around it. Points of the curves in use have fewer than 256 bytes.
fn without_octet_string(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [4, 0x81, length, point @ ..] | [4, length, point @ ..] if point.len() == usize::from(*length) => Some(point),
        _ => None,
    }
}

/// A key, with the session that may use it.
struct Token {
    session: Mutex<Session>,
    key: ObjectHandle,
    public: TokenPublicKey,
    /// Loaded as long as the session is.
    _module: Pkcs11,
}

impl TokenKey for Token {
    fn public(&self) -> &TokenPublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let session = self.session.lock().map_err(|_| "a thread panicked while it signed".to_owned())?;
        let mechanism = match &self.public {
            TokenPublicKey::Rsa { .. } => Mechanism::RsaPkcs,
            TokenPublicKey::Ec { .. } => Mechanism::Ecdsa,
        };
        session.sign(&mechanism, self.key, message).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_comes_out_of_its_octet_string() {
        for (bytes, expected) in [
            (&[4, 2, 4, 9][..], Some(&[4, 9][..])),
            (&[4, 0x81, 2, 4, 9], Some(&[4, 9])),
            (&[4, 3, 4, 9], None),
            (&[4], None),
            (&[], None),
        ] {
            assert_eq!(without_octet_string(bytes), expected);
        }
    }
}
