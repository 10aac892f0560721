//! The name of a key in a token: a PKCS#11 URI.
//!
//! `pkcs11:` then attributes of the token and the object, separated by `;`, then after a `?` what helps to reach them, separated by
//! `&`; each `name=value`, the value's bytes percent-encoded where they have to be. Each name at most once.
//!
//! | attribute | names |
//! |---|---|
//! | `token`, `manufacturer`, `serial`, `model` | the token, by what it says of itself |
//! | `slot-id` | the slot, in decimal |
//! | `object`, `id` | the key, by its label and its identifier |
//! | `type` | the class of object; a private key is looked for whatever this says |
//! | `pin-value` | the PIN |
//! | `pin-source` | a file that has it: a path or `file:` URI |
//! | `module-path`, `module-name` | the module to load: its file, or its name without `lib`, folder and ending |
//!
//! Attributes of other names, of slots and libraries, are left alone.
//!
//! Source: RFC 7512.

/// A key in a token, by what is known of it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Pkcs11Uri {
    /// The token's label.
    pub token: Option<String>,
    /// Who made the token.
    pub manufacturer: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The token's model.
    pub model: Option<String>,
    /// The slot's number.
    pub slot_id: Option<u64>,
    /// The object's label.
    pub object: Option<String>,
    /// The object's identifier.
    pub id: Option<Vec<u8>>,
    /// The PIN.
    pub pin_value: Option<Vec<u8>>,
    /// The path of a file that has the PIN.
    pub pin_source: Option<String>,
    /// The path of the module.
    pub module_path: Option<String>,
    /// The name of the module.
    pub module_name: Option<String>,
}

impl std::fmt::Debug for Pkcs11Uri {
    /// Never the PIN.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pkcs11: token {:?}, object {:?}, id {:02x?}", self.token, self.object, self.id)
    }
}

/// Text that is no PKCS#11 URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Pkcs11UriError {
    /// Another scheme.
    #[error("a PKCS#11 URI begins with pkcs11:")]
    Scheme,
    /// A piece without a `=`.
    #[error("{0:?} in the PKCS#11 URI is not NAME=VALUE")]
    NoValue(String),
    /// An attribute twice.
    #[error("{0} stands twice in the PKCS#11 URI")]
    Twice(String),
    /// A percent sign without two hexadecimal digits after it.
    #[error("the value of {0} in the PKCS#11 URI has a % without two hexadecimal digits")]
    Escape(String),
    /// A value that is not UTF-8.
    #[error("the value of {0} in the PKCS#11 URI is not UTF-8")]
    NotUtf8(String),
    /// A slot that is no number.
    #[error("slot-id={0} in the PKCS#11 URI is no decimal number")]
    Slot(String),
}

impl Pkcs11Uri {
    /// Reads one.
    ///
    /// # Errors
    /// [`Pkcs11UriError`].
    pub fn parse(text: &str) -> Result<Self, Pkcs11UriError> {
        let rest = text.strip_prefix("pkcs11:").ok_or(Pkcs11UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        for piece in path.split(';').chain(query.split('&')).filter(|piece| !piece.is_empty()) {
            let no_value = || Pkcs11UriError::NoValue(piece.to_owned());
            let (name, value) = piece.split_once('=').ok_or_else(no_value)?;
            let bytes = decode(value).ok_or_else(|| Pkcs11UriError::Escape(name.to_owned()))?;
            let twice = Err(Pkcs11UriError::Twice(name.to_owned()));
            let place = match name {
                "token" => &mut uri.token,
                "manufacturer" => &mut uri.manufacturer,
                "serial" => &mut uri.serial,
                "model" => &mut uri.model,
                "object" => &mut uri.object,
                "pin-source" => &mut uri.pin_source,
                "module-path" => &mut uri.module_path,
                "module-name" => &mut uri.module_name,
                "id" | "pin-value" => {
                    let place = if name == "id" { &mut uri.id } else { &mut uri.pin_value };
                    match place.replace(bytes) {
                        Some(_) => return twice,
                        None => continue,
                    }
                }
                "slot-id" => {
                    let slot = value.parse().map_err(|_| Pkcs11UriError::Slot(value.to_owned()))?;
                    match uri.slot_id.replace(slot) {
                        Some(_) => return twice,
                        None => continue,
                    }
                }
                _ => continue,
            };
            let value = String::from_utf8(bytes).map_err(|_| Pkcs11UriError::NotUtf8(name.to_owned()))?;
            if place.replace(value).is_some() {
                return twice;
            }
        }
        Ok(uri)
    }
}

/// A word of a command line without the PIN that a URI in it has: for what keeps or shows command lines.
pub fn without_pin(word: &str) -> String {
    let Some((before, uri)) = word.split_once("pkcs11:") else { return word.to_owned() };
    let hidden = |pieces: &str, between: char| {
        let pieces = pieces.split(between).map(|piece| match piece.starts_with("pin-value=") {
            true => "pin-value=...",
            false => piece,
        });
        pieces.collect::<Vec<_>>().join(&between.to_string())
    };
    let (path, query) = match uri.split_once('?') {
        Some((path, query)) => (path, format!("?{}", hidden(query, '&'))),
        None => (uri, String::new()),
    };
    format!("{before}pkcs11:{}{query}", hidden(path, ';'))
}

fn decode(value: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok()?
            }
            byte => byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_uri_names_a_key() {
        let uri = "pkcs11:model=SoftHSM%20v2;token=swtpm-test;id=%01ab;object=mykey;type=public;slot-id=7;library-version=3\
                   ?pin-value=1%323%26&module-path=/usr/lib/a.so&x=y";
        let expected = Pkcs11Uri {
            model: Some("SoftHSM v2".into()),
            token: Some("swtpm-test".into()),
            id: Some(b"\x01ab".to_vec()),
            object: Some("mykey".into()),
            slot_id: Some(7),
            pin_value: Some(b"123&".to_vec()),
            module_path: Some("/usr/lib/a.so".into()),
            ..Pkcs11Uri::default()
        };
        let read = Pkcs11Uri::parse(uri).unwrap();
        assert_eq!(read, expected);
        assert!(!format!("{read:?}").contains("123"));
        assert_eq!(Pkcs11Uri::parse("pkcs11:"), Ok(Pkcs11Uri::default()));
    }

    #[test]
    fn what_is_no_uri_is_refused_with_what_was_found() {
        use Pkcs11UriError as E;
        for (uri, error) in [
            ("file:/x", E::Scheme),
            ("pkcs11:token", E::NoValue("token".into())),
            ("pkcs11:token=a;token=b", E::Twice("token".into())),
            ("pkcs11:id=%01?id=%01", E::Twice("id".into())),
            ("pkcs11:slot-id=1;slot-id=1", E::Twice("slot-id".into())),
            ("pkcs11:id=%0", E::Escape("id".into())),
            ("pkcs11:id=%zz", E::Escape("id".into())),
            ("pkcs11:token=%ff", E::NotUtf8("token".into())),
            ("pkcs11:slot-id=-1", E::Slot("-1".into())),
        ] {
            assert_eq!(Pkcs11Uri::parse(uri), Err(error), "{uri}");
        }
    }

    #[test]
    fn a_pin_is_taken_out_of_a_word_and_nothing_else() {
        for (word, shown) in [
            ("sign", "sign"),
            ("pin-value=1", "pin-value=1"),
            ("pkcs11:token=T;object=O", "pkcs11:token=T;object=O"),
            ("pkcs11:token=T;pin-value=1&2;object=O", "pkcs11:token=T;pin-value=...;object=O"),
            ("--key=pkcs11:?pin-value=12;3?4&module-path=/a", "--key=pkcs11:?pin-value=...&module-path=/a"),
            ("-kpkcs11:pin-value=12", "-kpkcs11:pin-value=..."),
            ("pkcs11:pin-source=/a?x=y", "pkcs11:pin-source=/a?x=y"),
        ] {
            assert_eq!(without_pin(word), shown);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_uri_or_refused(text in ".{0,80}", rest in "([a-z-]{0,12}=[%a-f0-9é]{0,9}[;?&]?){0,6}") {
            let _ = (Pkcs11Uri::parse(&text), Pkcs11Uri::parse(&format!("pkcs11:{rest}")));
        }

        #[test]
        fn any_bytes_are_an_identifier(id in proptest::collection::vec(any::<u8>(), 0..20)) {
            let escaped = id.iter().map(|byte| format!("%{byte:02X}")).collect::<String>();
            prop_assert_eq!(Pkcs11Uri::parse(&format!("pkcs11:id={escaped}")).unwrap().id, Some(id));
        }
    }
}
