//! `evmctl import`.

use super::{Ending, Evmctl, Failed, certificates, missing, short_hex, system_text, tell, tell_out};
use imara_engine::crypto::PublicKey;
use imara_format::key::KeySerial;
use imara_linux::key_service::{self, KeyType};
use std::path::{Path, PathBuf};

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = match (words.first(), evmctl.options.version_1) {
        (Some(path), _) => path.as_path(),
        (None, false) => Path::new(certificates::CERTIFICATE),
        (None, true) => return Err(missing("import")),
    };
    let keyring = keyring(words.get(1).map(|ring| ring.to_string_lossy()).as_deref());
    let shown = path.display();
    if evmctl.options.version_1 {
        if !super::version_1_is_allowed() {
            tell("Importing public RSA key is not supported\n");
            return Err(Failed::Positive);
        }
        let pem = std::fs::read(path).map_err(|error| {
            evmctl.note(&error);
            Failed::Positive
        })?;
        let key = PublicKey::from_bytes(&pem);
        let payload = key.as_ref().ok().and_then(|key| Some((key.v1_id()?, key.v1_payload()?)));
        let Some((id, payload)) = payload else {
            tell(format_args!("{shown}: a bare RSA public key in PEM is needed\n"));
            return Err(Failed::Positive);
        };
        let name = short_hex(&id).to_uppercase();
        tell(format_args!("Importing public key {name} from file {shown} into keyring {}\n", keyring.0));
        return evmctl.add(KeyType::User, Some(name.as_bytes()), payload, keyring);
    }
    let Some(key) = evmctl.certificate(path) else { return Err(Failed::Positive) };
    tell(format_args!("Reading to {shown}\n"));
    let der = std::fs::read(path).map_err(|error| {
        evmctl.note(&error);
        Failed::Negative
    })?;
    let id = short_hex(&key.key_id());
    tell(format_args!("Importing public key {id} from file {shown} into keyring {}\n", keyring.0));
    evmctl.add(KeyType::Asymmetric, None, &der, keyring)
}

impl Evmctl {
    fn add(&self, kind: KeyType, name: Option<&[u8]>, payload: &[u8], keyring: KeySerial) -> Ending {
        match key_service::add(kind, name, payload, keyring) {
            Ok(serial) => {
                tell(format_args!("keyid: {}\n", serial.0));
                tell_out(format_args!("{}\n", serial.0));
                Ok(())
            }
            Err(error) => {
                tell("add_key failed\n");
                self.note(&error);
                if error.raw_os_error().is_none() {
                    tell(format_args!("{}\n", system_text(&error)));
                }
                Err(Failed::Negative)
            }
        }
    }
}

/// The keyring that a word names; like the original, @u where it names none of them, and 0 for what is no number.
fn keyring(word: Option<&str>) -> KeySerial {
    KeySerial(match word {
        Some("@t") => -1,
        Some("@p") => -2,
        Some("@s") => -3,
        Some("@us") => -5,
        Some("@g") => -6,
        None | Some("") => -4,
        Some(word) if word.starts_with('@') => -4,
        Some(word) => match word.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).map_or(0, u32::cast_signed),
            None => word.parse().unwrap_or(0),
        },
    })
}
