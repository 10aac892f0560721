//! Any bytes as what the key service gives and takes: descriptions, lines of /proc/keys, commands and blobs of encrypted keys.
//! What is read prints to something that is read alike.

#![no_main]

use imara_engine::keys::KeyMaterial;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_format::key::{KeyDescription, KeyLine};
use imara_format::key_blob::encrypted::{Blob, Command};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = (KeyDescription::parse(bytes), KeyLine::parse(bytes));
    if let Ok(command) = Command::parse(bytes, b"0123456789abcdef") {
        let text = command.to_text();
        assert_eq!(Command::parse(&text, b"0123456789abcdef"), Ok(command));
    }
    if let Ok(blob) = Blob::parse(bytes) {
        assert_eq!(Blob::parse(&blob.to_text()).as_ref(), Ok(&blob));
        // No blob authenticates that was not sealed with this key. (Short ones alone: looking for the reason takes time.)
        if blob.ciphertext.len() <= 64 {
            assert!(EncryptedKey::open(&blob, &KeyMaterial::new(b"fuzz".to_vec())).is_err());
        }
    }
});
