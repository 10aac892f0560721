//! The files that a command works on: those named, those listed, those of trees; several at a time, told in their order.

use super::progress::Progress;
use super::selection::Globs;
use crate::output::Failure;
use imara_linux::files::OpenError;
use imara_linux::interruption;
use imara_linux::tree::{self, Batch, Choice, Root, Skipped, TreeFile, Walk, in_order};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which files.
#[derive(clap::Args)]
pub struct Paths {
    /// Files; with -r also folders
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Take all regular files of the folders named: symbolic links are not followed, a file with several names is taken
    /// once, and file systems that the kernel makes up (/proc, /sys) are left out
    #[arg(short, long)]
    pub recursive: bool,
    /// With -r, stay on the file system of each folder named
    #[arg(short = 'x', long, requires = "recursive")]
    pub one_file_system: bool,
    /// With -r, take programs, libraries and kernel modules only: files that may be executed, and ELF files
    #[arg(long, requires = "recursive")]
    pub executables: bool,
    /// Patterns for files of trees
    #[command(flatten)]
    pub globs: Globs,
    /// Take the paths that F lists, one a line; `-` is standard input
    #[arg(long, value_name = "F")]
    pub files_from: Option<PathBuf>,
    /// The paths of --files-from end in a zero byte, not in a newline
    #[arg(short = '0', long = "null", requires = "files_from")]
    pub null: bool,
}

impl Paths {
    /// Everything in these folders, each on its file system alone.
    pub fn of_trees(folders: Vec<PathBuf>) -> Self {
        Self {
            paths: folders,
            recursive: true,
            one_file_system: true,
            executables: false,
            globs: Globs::default(),
            files_from: None,
            null: false,
        }
    }

    /// Checks that any path is named, or a list of them.
    ///
    /// # Errors
    /// A wrong command line.
    pub fn some(&self) -> Result<(), Failure> {
        if self.paths.is_empty() && self.files_from.is_none() {
            return Err(Failure::usage("no file is named").next("name files, or a list of them with --files-from F"));
        }
        Ok(())
    }

    /// Whether more may be meant than what is named one by one.
    pub fn are_many(&self) -> bool {
        self.recursive || self.files_from.is_some()
    }

    /// Whether it is over before anybody would be told how far it is.
    fn is_one_small_file(&self) -> bool {
        const SMALL: u64 = 64 << 20;
        let [path] = self.paths.as_slice() else { return false };
        !self.are_many() && path.symlink_metadata().is_ok_and(|found| found.len() < SMALL)
    }

    fn root(&self, path: PathBuf) -> Root {
        if self.recursive { Root::Tree(path) } else { Root::File(path) }
    }

    /// The paths named, then those listed, which are read as they are needed.
    fn roots(&self) -> Result<impl Iterator<Item = Root> + Send + '_, Failure> {
        self.some()?;
        let listed = match &self.files_from {
            Some(list) => Some(Listed::open(list, self.null)?),
            None => None,
        };
        let listed = listed.into_iter().flatten().map(|path| match path {
            Ok(path) => self.root(path),
            Err((list, error)) => Root::Failed(list, error),
        });
        Ok(self.paths.iter().cloned().map(|path| self.root(path)).chain(listed))
    }

    /// Does `work` for every file, several at a time, each thread with what `begin` makes for it, and tells `deliver` the
    /// results of each batch in the files' order. SIGINT or SIGTERM stop a run over trees and lists before its end: [`interruption::came`].
    ///
    /// # Errors
    /// As [`Paths::some`]; an unreadable list.
    pub fn for_each_batch<S, R: Send>(
        &self,
        progress: &Progress,
        begin: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, &Batch) -> R + Sync,
        mut deliver: impl FnMut(R) + Send,
    ) -> Result<Skipped, Failure> {
        let wanted = |path: &Path, folder: bool| self.globs.want(path, folder);
        let choice = Choice {
            one_device: self.one_file_system,
            executables: self.executables,
            wanted: (!self.globs.is_empty()).then_some(&wanted),
        };
        let mut walk = Walk::new(self.roots()?, choice);
        if self.is_one_small_file() {
            // Threads would cost more than it does.
            let mut state = begin();
            while let Some(batch) = walk.next_batch() {
                progress.count(batch.len() as u64);
                deliver(work(&mut state, &batch));
            }
            return Ok(walk.skipped());
        }
        // A few files that are named need no more threads than there are of them.
        let threads = if self.are_many() { tree::threads() } else { tree::threads().min(self.paths.len()) };
        let (over, mut counting) = (AtomicBool::new(false), false);
        // Of files that were named each is done or not; there is nothing to go on with.
        let _caught = self.are_many().then(interruption::catch);
        tree::allow_many_descriptors();
        std::thread::scope(|scope| {
            // Ends the count also when this thread panics.
            let _over = Set(&over);
            let work = |state: &mut S, batch: Batch| (batch.len() as u64, work(state, &batch));
            let deliver = |(count, result)| {
                progress.count(count);
                progress.suspend(|| deliver(result));
            };
            in_order(
                threads,
                || interruption::came().is_none().then(|| walk.next_batch()).flatten(),
                begin,
                work,
                deliver,
                || {
                    progress.tick();
                    if progress.is_shown() && !std::mem::replace(&mut counting, true) {
                        let over = &over;
                        scope.spawn(move || self.count(choice, progress, over));
                    }
                },
            );
        });
        Ok(walk.skipped())
    }

    /// Finds out how much there is to do, for the time left; not for a list on standard input, which cannot be read twice.
    fn count(&self, choice: Choice<'_>, progress: &Progress, over: &AtomicBool) {
        if self.files_from.as_ref().is_some_and(|list| list.as_os_str() == "-") {
            return;
        }
        let Ok(roots) = self.roots() else { return };
        let mut walk = Walk::new(roots, choice);
        let (mut count, mut bytes) = (0_u64, 0_u64);
        while let Some(batch) = walk.next_batch() {
            if over.load(Ordering::Relaxed) || interruption::came().is_some() {
                return;
            }
            count += batch.len() as u64;
            bytes = (0..batch.len()).map(|index| batch.size(index)).fold(bytes, u64::saturating_add);
        }
        progress.set_total(count, bytes);
    }

    /// Does `work` for every file, several at a time, and tells `report` the results in the files' order. A file that
    /// cannot be opened goes to `report` with its error.
    ///
    /// # Errors
    /// As [`Paths::for_each_batch`].
    pub fn for_each<T: Send>(
        &self,
        quiet: bool,
        work: impl Fn(&TreeFile<'_>) -> Result<T, Failure> + Sync,
        mut report: impl FnMut(&Path, Result<T, Failure>) + Send,
    ) -> Result<Skipped, Failure> {
        let progress = Progress::new(quiet, "files");
        let batch = |path: &mut PathBuf, batch: &Batch| {
            let each = (0..batch.len()).filter_map(|index| {
                batch.path(index, path);
                let result = match batch.open(index, path) {
                    Ok(Some(file)) => work(&file),
                    Ok(None) => return None,
                    Err(error) => Err(self.open_failure(&error)),
                };
                Some((path.clone(), result))
            });
            each.collect::<Vec<_>>()
        };
        let deliver =
            |results: Vec<_>| results.into_iter().for_each(|(path, result): (PathBuf, _)| report(&path, result));
        self.for_each_batch(&progress, PathBuf::new, batch, deliver)
    }

    /// Why a file could not be opened, with what to do.
    pub fn open_failure(&self, error: &OpenError) -> Failure {
        open_failure(error, self.recursive)
    }
}

/// Sets a flag when it is dropped.
struct Set<'f>(&'f AtomicBool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The paths of a list, read as they are asked for.
struct Listed {
    list: PathBuf,
    lines: Option<Box<dyn BufRead + Send>>,
    end: u8,
}

impl Listed {
    fn open(list: &Path, null: bool) -> Result<Self, Failure> {
        let input: Box<dyn BufRead + Send> = if list.as_os_str() == "-" {
            Box::new(BufReader::new(interruption::Input::new()))
        } else {
            let file = File::open(list).map_err(|error| Failure::failed(format!("{}: {error}", printable(list))))?;
            Box::new(BufReader::new(file))
        };
        Ok(Self { list: list.into(), lines: Some(input), end: if null { 0 } else { b'\n' } })
    }
}

impl Iterator for Listed {
    type Item = Result<PathBuf, (PathBuf, io::Error)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut path = Vec::new();
        loop {
            path.clear();
            // No path is longer; what is, is not kept whole.
            let most = Read::take(self.lines.as_mut()?, LONGEST_PATH).read_until(self.end, &mut path);
            match most {
                Ok(0) => return None,
                Ok(_) if path.len() as u64 == LONGEST_PATH && path.last() != Some(&self.end) => {
                    self.lines = None;
                    let error =
                        io::Error::other(format!("a path of more than {LONGEST_PATH} bytes; the rest was not read"));
                    return Some(Err((self.list.clone(), error)));
                }
                Ok(_) => {}
                Err(error) => {
                    self.lines = None;
                    return Some(Err((self.list.clone(), error)));
                }
            }
            if path.last() == Some(&self.end) {
                path.pop();
            }
            if !path.is_empty() {
                return Some(Ok(PathBuf::from(OsString::from_vec(path))));
            }
        }
    }
}

/// `PATH_MAX` of include/uapi/linux/limits.h is 4096 with its zero byte; a list may say it with many `./`.
const LONGEST_PATH: u64 = 65536;

/// Why a file could not be opened, with what to do; where folders are taken with -r, `recursive` says whether that was given.
pub fn open_failure(error: &OpenError, recursive: bool) -> Failure {
    let failure = Failure::failed(match error {
        OpenError::NotRegular { path, found } => format!("{}: is {found}, not a regular file", printable(path)),
        OpenError::System { path, error } => format!("{}: {error}", printable(path)),
    });
    match error {
        OpenError::NotRegular { found: "a directory", .. } if !recursive => {
            failure.next("-r takes the files of a folder")
        }
        OpenError::NotRegular { found: "a symbolic link", .. } => failure.next("name the file that it leads to"),
        OpenError::NotRegular { .. } | OpenError::System { .. } => failure,
    }
}

/// The most that is read of a key, a policy, a signature or another file that is held as a whole, in bytes.
pub const MOST: u64 = 64 << 20;

/// A file's bytes, [`MOST`] of them; `-` is standard input.
///
/// # Errors
/// What the kernel refuses; a file that is longer, and so not what it was taken for.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path.as_os_str() == "-" { read_all(io::stdin().lock()) } else { read_all(File::open(path)?) }
}

/// The same of what is open.
///
/// # Errors
/// As [`read`].
pub fn read_all(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other(format!(
            "longer than {} MiB, which is more than is read of such a file",
            MOST >> 20
        )));
    }
    Ok(bytes)
}

/// The same of text.
///
/// # Errors
/// As [`read`]; the place of the first byte that is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("the byte at offset {place} is not UTF-8 text"))
    })
}

/// A path for people: as it is, unless it has characters that would do something to a terminal.
pub fn printable(path: &Path) -> String {
    printable_bytes(path.as_os_str().as_bytes())
}

/// The same of any bytes that somebody has chosen.
pub fn printable_bytes(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let escape = |character: char| match character {
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    if text.contains(char::is_control) { text.chars().map(escape).collect() } else { text.into_owned() }
}

/// An object that names a path: as text, and exactly, in hexadecimal, where it is not UTF-8.
pub fn path_json(path: &Path) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("path".into(), json!(path.to_string_lossy()));
    if path.to_str().is_none() {
        object.insert("path_hex".into(), json!(imara_format::hash::to_hex(path.as_os_str().as_bytes())));
    }
    object
}

/// `PATH.sig`, where evmctl keeps a file's signature beside it.
pub fn signature_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

/// Whether a file of a tree is not looked at for itself, being one that holds another's signature.
pub fn holds_a_signature(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b".sig")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_not_read_to_the_end() {
        let error = read(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().starts_with("longer than 64 MiB"), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        std::fs::write(&path, b"ab\xff").unwrap();
        assert_eq!(read_text(&path).unwrap_err().to_string(), "the byte at offset 2 is not UTF-8 text");
        std::fs::write(&path, "ä").unwrap();
        assert_eq!(read_text(&path).unwrap(), "ä");
    }

    #[test]
    fn a_path_does_nothing_to_a_terminal() {
        assert_eq!(printable(Path::new("/a/ü b")), "/a/ü b");
        assert_eq!(printable(Path::new("\u{1b}[2J\n")), "\\u{1b}[2J\\n");
    }
}
