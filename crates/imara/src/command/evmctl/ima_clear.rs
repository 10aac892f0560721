//! `evmctl ima_clear`.

use super::{Ending, Evmctl, tell};
use imara_linux::files;
use std::path::PathBuf;

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = evmctl.path(words, "ima_clear")?;
    evmctl.for_files(path, &mut |path, name| {
        tell(format_args!("{}\n", name.display()));
        if let Ok(file) = files::open_inode(path) {
            for attribute in [evmctl.options.ima_attribute(), evmctl.options.evm_attribute()] {
                // As in the original: a label that cannot be removed, or is not there, is passed over.
                let _ = files::remove_xattr(&file, attribute);
            }
        }
        Ok(())
    })
}
