//! `evmctl ima_fix`.

use super::{Ending, Evmctl, Failed, system_text, tell};
use imara_linux::files;
use std::path::PathBuf;

pub fn run(evmctl: &Evmctl, words: &[PathBuf]) -> Ending {
    let path = evmctl.path(words, "ima_fix")?;
    let unless_labelled = evmctl.options.types.as_deref().is_some_and(|types| types.contains('x'));
    evmctl.for_files(path, &mut |path, name| {
        let name = name.display();
        let labelled = |attribute| {
            files::open_inode(path)
                .is_ok_and(|file| matches!(files::xattr(&file, attribute), Ok(Some(label)) if !label.is_empty()))
        };
        if unless_labelled && labelled("security.ima") && labelled("security.evm") {
            return Ok(());
        }
        tell(format_args!("{name}\n"));
        // The opening is all: a kernel in fix mode labels the file then.
        match files::open_inode(path) {
            Ok(_) => Ok(()),
            Err(error) => {
                tell(format_args!(
                    "Failed to open file: {name}: errno: {} ({})\n",
                    system_text(&error),
                    error.raw_os_error().unwrap_or_default()
                ));
                evmctl.note(&error);
                Err(Failed::Negative)
            }
        }
    })
}
