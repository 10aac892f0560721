//! What `-r` and `-t` make of a path: the same work for the files of a directory.
//!
//! In the order in which the directory has them, depth first, nothing but regular files, symbolic links not followed. Unlike the
//! original, the working directory stays, so that relative paths of keys hold, and a file that failed makes the command fail.

use super::{Ending, Evmctl, Failed, system_text, tell};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl Evmctl {
    /// Does `work` for `path`, or with `-r` for the files of that directory. The second argument of `work` is the name that
    /// the original tells: in a directory the last one alone.
    pub fn for_files(&self, path: &Path, work: &mut dyn FnMut(&Path, &Path) -> Ending) -> Ending {
        if !self.options.recursive {
            return work(path, path);
        }
        let types = self.options.types.as_deref().unwrap_or("f");
        let device = match types.contains('m') {
            true => std::fs::symlink_metadata(path).ok().map(|metadata| metadata.dev()),
            false => None,
        };
        let mut failed = false;
        self.directory(path, &Descent { files: types.contains('f'), device }, &mut failed, work)?;
        if failed { Err(Failed::Positive) } else { Ok(()) }
    }

    fn directory(
        &self,
        path: &Path,
        descent: &Descent,
        failed: &mut bool,
        work: &mut dyn FnMut(&Path, &Path) -> Ending,
    ) -> Ending {
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => {
                tell(format_args!("Failed to open directory {}\n", path.display()));
                self.note(&error);
                return Err(Failed::Negative);
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    tell(format_args!("{}: {}\n", path.display(), system_text(&error)));
                    self.note(&error);
                    *failed = true;
                    break;
                }
            };
            let (path, name) = (entry.path(), entry.file_name());
            let elsewhere = |device| entry.metadata().map_or(true, |metadata| metadata.dev() != device);
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    if !descent.device.is_some_and(elsewhere) {
                        *failed |= self.directory(&path, descent, failed, work).is_err();
                    }
                }
                Ok(kind) if kind.is_file() && descent.files => *failed |= work(&path, Path::new(&name)).is_err(),
                Ok(_) => {}
                Err(error) => {
                    tell(format_args!("{}: {}\n", path.display(), system_text(&error)));
                    self.note(&error);
                    *failed = true;
                }
            }
        }
        Ok(())
    }
}

/// Which entries count.
struct Descent {
    files: bool,
    device: Option<u64>,
}
