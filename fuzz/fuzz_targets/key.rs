//! Any bytes as what the key service gives and takes: descriptions, lines of /proc/keys, commands and blobs of encrypted and
//! trusted keys, what is noted beside those.
//! What is read prints to something that is read alike.

#![no_main]

use imara_engine::keys::KeyMaterial;
use imara_engine::keys::encrypted::EncryptedKey;
use imara_format::key::{KeyDescription, KeyLine};
use imara_format::key_blob::encrypted::{Blob, Command};
use imara_format::key_blob::sealed_key::{SealedKey, TrustedBlob};
use imara_format::key_blob::sealed_record::SealedRecord;
use imara_format::key_blob::trusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = (KeyDescription::parse(bytes), KeyLine::parse(bytes));
    if let Ok(command) = trusted::Command::parse(bytes) {
        assert_eq!(trusted::Command::parse(&command.to_text()), Ok(command.clone()));
        if let trusted::Command::Load { blob, .. } = command {
            of_a_trusted_key(&blob);
        }
    }
    of_a_trusted_key(bytes);
    let text = String::from_utf8_lossy(bytes);
    if let Ok(key) = SealedKey::from_pem(&text) {
        assert_eq!(SealedKey::from_pem(&key.to_pem()), Ok(key));
    }
    if let Ok(record) = SealedRecord::parse(&text) {
        assert_eq!(SealedRecord::parse(&record.to_text()), Ok(record));
    }
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

fn of_a_trusted_key(bytes: &[u8]) {
    if let Ok(blob) = TrustedBlob::parse(bytes) {
        assert_eq!(TrustedBlob::parse(&blob.to_bytes()), Ok(blob));
    }
}
