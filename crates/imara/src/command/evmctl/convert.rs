//! `evmctl convert`: a public RSA key in the form that version 1 signatures want it in, for the kernel's key type `user`.
//!
//! `KEY.bin` becomes what the kernel is given, `KEY.keyid` its description.

use super::certificates::read_at_most;
use super::{Ending, Evmctl, Failed, short_hex, tell};
use imara_engine::crypto::PublicKey;
use std::path::{Path, PathBuf};

/// The key where none is named.
const PUBLIC_KEY: &str = "/etc/keys/pubkey_evm.pem";

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = words.first().map_or(Path::new(PUBLIC_KEY), PathBuf::as_path);
    let shown = path.display();
    let pem = read_at_most(path).map_err(|error| {
        tell(format_args!("Failed to open keyfile: {shown}\n"));
        evmctl.note(&error);
        Failed::Positive
    })?;
    let key = PublicKey::from_bytes(&pem).map_err(|error| error.to_string());
    let (id, payload) = key
        .and_then(|key| {
            let known = key.v1_id().zip(key.v1_payload().map(<[u8]>::to_vec));
            known.ok_or_else(|| "a bare RSA public key is needed".to_owned())
        })
        .map_err(|reason| {
            tell(format_args!("Failed to PEM_read_PUBKEY key file: {shown}\nreason: {reason}\n"));
            Failed::Positive
        })?;
    let id = short_hex(&id).to_uppercase();
    for (ending, content) in [("bin", payload.as_slice()), ("keyid", id.as_bytes())] {
        let mut file = path.as_os_str().to_owned();
        file.push(".");
        file.push(ending);
        let file = PathBuf::from(file);
        tell(format_args!("Writing to {}\n", file.display()));
        std::fs::write(&file, content).map_err(|error| {
            tell(format_args!("Failed to open: {}\n", file.display()));
            evmctl.note(&error);
            Failed::Negative
        })?;
    }
    Ok(())
}
