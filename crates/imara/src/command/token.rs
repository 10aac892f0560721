//! A signing key in a token, for the commands that take `pkcs11:` where they take a key's file.

use crate::output::Failure;
use imara_engine::crypto::SigningKey;
use imara_format::pkcs11_uri::Pkcs11Uri;
use imara_linux::token;
use std::ffi::OsStr;
use zeroize::Zeroizing;

/// The key that a PKCS#11 URI names. The PIN is the one given, else the URI's.
///
/// # Errors
/// What the URI, the module or the token says.
pub fn signing_key(uri: &OsStr, pin: Option<&[u8]>) -> Result<SigningKey, Failure> {
    let uri = Pkcs11Uri::parse(&uri.to_string_lossy()).map_err(Failure::usage)?;
    let pin = match (pin, &uri.pin_value, &uri.pin_source) {
        (Some(pin), ..) => Some(Zeroizing::new(pin.to_vec())),
        (None, Some(pin), _) => Some(Zeroizing::new(pin.clone())),
        (None, None, Some(source)) => {
            let read = token::pin_from(source).map_err(|error| Failure::failed(format!("{source}: {error}")))?;
            Some(Zeroizing::new(read))
        }
        (None, None, None) => None,
    };
    let token = token::open(&uri, pin.as_deref().map(Vec::as_slice)).map_err(|error| {
        let failure = Failure::failed(&error);
        match error {
            token::TokenError::Module { .. } => Failure::lacking(error)
                .next("name the token's module in the URI, ?module-path=FILE, or install p11-kit's (p11-kit-modules)"),
            token::TokenError::PinNeeded(_) => {
                failure.next("give the PIN as the passphrase, or in the URI: ?pin-source=FILE")
            }
            token::TokenError::NoToken(_)
            | token::TokenError::ManyTokens(_)
            | token::TokenError::Pin { .. }
            | token::TokenError::NoKey { .. }
            | token::TokenError::KeyType(_)
            | token::TokenError::Public(_)
            | token::TokenError::Failed(_) => failure,
        }
    })?;
    SigningKey::in_token(token).map_err(Failure::failed)
}
