//! `evmctl ima_setxattr`.

use super::{Ending, Evmctl, missing};
use crate::command::paths::signature_file;
use std::path::PathBuf;

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let (sigfile, path) = match (evmctl.options.sigfile, words) {
        (true, [sigfile, path, ..]) => (Some(sigfile), path),
        (false, [path, ..]) => (None, path),
        (true, [_] | []) | (false, []) => return Err(missing("ima_setxattr")),
    };
    evmctl.for_files(path, &mut |path, name| {
        let file = evmctl.open(path, name)?;
        let label = match sigfile {
            Some(sigfile) => evmctl.read_sigfile(sigfile, sigfile),
            None => evmctl.read_sigfile(&signature_file(path), &signature_file(name)),
        };
        // As in the original: files without a signature are passed over, and scripts label whole trees so.
        let Ok(label) = label else { return Ok(()) };
        evmctl.set_label(&file, name, evmctl.options.ima_attribute(), &label, "IMA sig")
    })
}
