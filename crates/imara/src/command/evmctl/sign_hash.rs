//! `evmctl sign_hash`: signs digests that other programs printed.
//!
//! A line is `HEX` and whatever follows a blank or tab; with `--veritysig` it is `ALGORITHM:HEX NAME`, as `fsverity digest`
//! prints it. The line is printed again, with the label behind it.

use super::hash_name::{Named, look_up};
use super::ima_sign::{could_not_sign, tell_size};
use super::{Ending, Evmctl, Failed, missing, tell, tell_out};
use imara_engine::label::{sign_v3, v3_digest};
use imara_format::hash::{Digest, HashAlgorithm, from_hex, to_hex};
use imara_format::signature::SignatureType;
use std::io::BufRead;
use std::path::PathBuf;

pub fn run(evmctl: &Evmctl, _: &[PathBuf]) -> Ending {
    let mut any = false;
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line.map_err(|error| {
            evmctl.note(&error);
            Failed::Negative
        })?;
        let line = String::from_utf8_lossy(&line);
        let label = match evmctl.options.verity_signature {
            true => match verity_digest(&line) {
                Ok(Some(digest)) => evmctl.sign_verity(&digest)?,
                Ok(None) => {
                    any = true;
                    continue;
                }
                Err(()) => continue,
            },
            false => evmctl.sign_line(&line)?,
        };
        any = true;
        tell_out(format_args!("{line} {}\n", to_hex(&label)));
    }
    if any { Ok(()) } else { Err(missing("sign_hash")) }
}

impl Evmctl {
    fn sign_line(&self, line: &str) -> Result<Vec<u8>, Failed> {
        let (name, hex) = (self.options.hash_name(), line.split([' ', '\t']).next().unwrap_or_default());
        let Named::Hash(algorithm) = self.options.hash() else {
            tell(format_args!("sign_hash_v2: hash algo is unknown: {name}\n"));
            return Err(Failed::Negative);
        };
        tell(format_args!("hash({name}): {hex}\n"));
        let digest = read_digest(algorithm, hex).map_err(|error| {
            tell("sign_hash_v2: signing failed: (invalid digest length) in EVP_PKEY_sign\n");
            tell(format_args!("reason: {error}\n"));
            Failed::Negative
        })?;
        self.sign_digest(&digest, SignatureType::Signature)
    }

    fn sign_verity(&self, digest: &Digest) -> Result<Vec<u8>, Failed> {
        let kind = SignatureType::Verity;
        let message = v3_digest(kind, digest).map_err(|error| could_not_sign(&error.into()))?;
        tell(format_args!("hash({}): {}\n", digest.algorithm(), message.to_hex()));
        let key = self.private_key()?;
        let label = sign_v3(kind, digest, &key.key, Some(key.key_id)).map_err(|error| could_not_sign(&error))?;
        tell_size("signature", &label);
        Ok(label)
    }
}

/// The digest of a line of `fsverity digest`; `None` for an algorithm that cannot be had; what is wrong has been told.
fn verity_digest(line: &str) -> Result<Option<Digest>, ()> {
    let algorithm = line.split_once(':').filter(|(algorithm, _)| algorithm.len() <= 6);
    let Some((algorithm, rest)) = algorithm else {
        tell("Missing/invalid fsverity hash algorithm\n");
        return Err(());
    };
    let Some((hex, _)) = rest.split_once([' ', '\t']) else {
        tell("Missing fsverity hash\n");
        return Err(());
    };
    let Named::Hash(hash) = look_up(algorithm) else {
        tell(format_args!("Hash algorithm {algorithm} not supported\nFailure to calculate fs-verity hash\n"));
        return Ok(None);
    };
    read_digest(hash, hex).map(Some).map_err(|error| tell(format_args!("Invalid fsverity hash: {error}\n")))
}

fn read_digest(algorithm: HashAlgorithm, hex: &str) -> Result<Digest, String> {
    let bytes = from_hex(hex).map_err(|error| error.to_string())?;
    Digest::new(algorithm, &bytes).map_err(|error| error.to_string())
}
