//! `evmctl hmac`: the HMAC that a kernel with this key would make.

use super::{Ending, Evmctl, Failed, tell};
use imara_engine::evm::key::PlainKey;
use imara_format::evm::{Form, KEY_SIZE};
use imara_format::hash::to_hex;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Where the key is where `--hmackey` names none.
const KEY: &str = "/etc/keys/evm-key-plain";

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = evmctl.path(words, "hmac")?;
    evmctl.for_files(path, &mut |path, name| {
        evmctl.label_content_first(path, name)?;
        let key = evmctl.hmac_key()?;
        let (file, snapshot, rules) = evmctl.metadata(path, name, Form::Hmac)?;
        if imara_linux::files::xattr_names(&file).is_ok_and(|names| names.is_empty()) {
            tell(format_args!("llistxattr() failed: {}\n", name.display()));
            return Err(Failed::Negative);
        }
        let fails = |error: &dyn std::fmt::Display| {
            tell(format_args!("{error}\n"));
            Failed::Negative
        };
        let key = PlainKey::new(&key).map_err(|error| fails(&error))?;
        let label = snapshot.hmac_label(&rules, &key).map_err(|error| fails(&error))?;
        tell(format_args!("hmac: {}\n", to_hex(&label[1..])));
        evmctl.set_label(&file, name, evmctl.options.evm_attribute(), &label, "EVM HMAC")
    })
}

impl Evmctl {
    fn hmac_key(&self) -> Result<Zeroizing<Vec<u8>>, Failed> {
        let path = self.options.hmac_key.as_deref().unwrap_or(Path::new(KEY));
        let shown = path.display();
        tell(format_args!("Reading to {shown}\n"));
        let key = Zeroizing::new(std::fs::read(path).map_err(|error| {
            tell(format_args!("Failed to open: {shown}\nFailed to read a key: {shown}\n"));
            self.note(&error);
            Failed::Negative
        })?);
        match key.len() {
            0 => {
                tell(format_args!("Failed to read a key: {shown} is empty\n"));
                Err(Failed::Negative)
            }
            length if length > KEY_SIZE => {
                tell(format_args!("key is too long: {length}\n"));
                Err(Failed::Negative)
            }
            _ => Ok(key),
        }
    }
}
