//! The files that a command works on: those named, those listed, those of trees; several at a time, told in their order.

use crate::output::Failure;
use imara_linux::files::{Found, OpenError, open_regular, walk};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Which files.
#[derive(clap::Args)]
pub struct Paths {
    /// Files; with -r also folders
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Take all regular files of the folders named: no symbolic links, each hard-linked file once, one filesystem
    #[arg(short, long)]
    pub recursive: bool,
    /// Take the paths that F lists, one a line; `-` is standard input
    #[arg(long, value_name = "F")]
    pub files_from: Option<PathBuf>,
    /// The paths of --files-from end in a zero byte, not in a newline
    #[arg(short = '0', long = "null", requires = "files_from")]
    pub null: bool,
}

impl Paths {
    /// The paths named and listed.
    ///
    /// # Errors
    /// An unreadable list; or none at all.
    pub fn all(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut paths = self.paths.clone();
        if let Some(list) = &self.files_from {
            let bytes = read(list).map_err(|error| Failure::failed(format!("{}: {error}", list.display())))?;
            let end = if self.null { 0 } else { b'\n' };
            let listed = bytes.split(|byte| *byte == end).filter(|path| !path.is_empty());
            paths.extend(listed.map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))));
        } else {
            self.some()?;
        }
        Ok(paths)
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

    /// Does `work` for every file, several at a time, and tells `report` the results in the files' order. A file that
    /// cannot be opened goes to `report` with its error.
    ///
    /// # Errors
    /// As [`Paths::all`].
    pub fn for_each<T: Send>(
        &self,
        quiet: bool,
        work: impl Fn(&Path, OwnedFd) -> Result<T, Failure> + Sync,
        mut report: impl FnMut(&Path, Result<T, Failure>),
    ) -> Result<(), Failure> {
        let roots = self.all()?;
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(16);
        let (found_in, found_out) = sync_channel::<(u64, Found)>(64);
        let (done_in, done_out) = sync_channel(64);
        let found_out = Mutex::new(found_out);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut number = 0;
                let mut send = |found| {
                    number += 1;
                    match found_in.send((number - 1, found)) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    }
                };
                for root in roots {
                    let ended =
                        if self.recursive { walk(&root, &mut send) } else { send((root.clone(), open_regular(&root))) };
                    if ended.is_break() {
                        break;
                    }
                }
            });
            for _ in 0..workers {
                let (found_out, done_in, work) = (&found_out, done_in.clone(), &work);
                scope.spawn(move || {
                    // A worker holds the lock while it waits, so that each file goes to one of them.
                    while let Ok((number, (path, file))) = {
                        let found = found_out.lock().expect("no worker panics with the lock held");
                        found.recv()
                    } {
                        let file = file.map_err(|error| open_failure(&error, self.recursive));
                        let result = file.and_then(|file| work(&path, file));
                        if done_in.send((number, path, result)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(done_in);
            let mut progress = Progress::new(quiet, "files");
            let (mut next, mut early) = (0, BTreeMap::new());
            for (number, path, result) in done_out {
                early.insert(number, (path, result));
                while let Some((path, result)) = early.remove(&next) {
                    next += 1;
                    progress.step(next, || report(&path, result));
                }
            }
        });
        Ok(())
    }
}

fn open_failure(error: &OpenError, recursive: bool) -> Failure {
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

/// A line on standard error that counts, once a command has run for two seconds on a terminal.
pub struct Progress {
    noun: &'static str,
    started: Instant,
    wanted: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// None yet; with `quiet`, never any. `noun` is what is counted.
    pub fn new(quiet: bool, noun: &'static str) -> Self {
        Self { noun, started: Instant::now(), wanted: !quiet && std::io::stderr().is_terminal(), bar: None }
    }

    /// `count` are done; `report` prints what is to be told of the last.
    pub fn step(&mut self, count: u64, report: impl FnOnce()) {
        if self.wanted && self.bar.is_none() && self.started.elapsed() > Duration::from_secs(2) {
            self.bar = Some(ProgressBar::new_spinner());
        }
        match &self.bar {
            Some(bar) => {
                bar.suspend(report);
                bar.set_message(format!("{count} {}", self.noun));
                bar.tick();
            }
            None => report(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A file's bytes; `-` is standard input.
///
/// # Errors
/// What the kernel refuses.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    } else {
        std::fs::read(path)
    }
}

/// A path for people: as it is, unless it has characters that would do something to a terminal.
pub fn printable(path: &Path) -> String {
    let text = path.to_string_lossy();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_does_nothing_to_a_terminal() {
        assert_eq!(printable(Path::new("/a/ü b")), "/a/ü b");
        assert_eq!(printable(Path::new("\u{1b}[2J\n")), "\\u{1b}[2J\\n");
    }
}
