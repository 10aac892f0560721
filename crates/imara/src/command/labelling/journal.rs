//! The journal of a run, as a file: `DIR/RUN.journal`, which a run appends to, and which going on and undoing read.
//!
//! What is about to be changed is written before the first label of it is; that it was done, after the last. A killed process
//! loses none of that, since the kernel has it; against a power failure it is brought to the disk every second and at the end.
//! While a process writes or reads a journal it holds a lock on it.

use crate::command::paths::printable;
use crate::output::{Failure, utc};
use imara_format::journal::{self, Begun, Block, JournalError, MAGIC};
use imara_format::pkcs11_uri::without_pin;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where root's journals are.
const FOLDER: &str = "/var/lib/imara/runs";

const ENDING: &str = ".journal";

/// How long what was written may stay in memory alone.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// Where the journals are.
#[derive(Clone, Debug, clap::Args)]
pub struct Folder {
    /// Keep the journals of runs in DIR [default: /var/lib/imara/runs; for users, ~/.local/state/imara/runs]
    #[arg(long, value_name = "DIR", env = "IMARA_JOURNAL_DIR")]
    journal_dir: Option<PathBuf>,
}

impl Folder {
    /// The folder.
    ///
    /// # Errors
    /// None is named, and the user has no home.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.journal_dir {
            return Ok(folder.clone());
        }
        if imara_linux::process::is_root() {
            return Ok(FOLDER.into());
        }
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
        state.map(|state| state.join("imara/runs")).ok_or_else(|| {
            Failure::lacking("there is no place for the journal of the run: HOME is not set")
                .next("name one with --journal-dir DIR, or do without with --no-journal")
        })
    }

    /// The names of all runs, the oldest first.
    ///
    /// # Errors
    /// An unreadable folder; none is no error.
    pub fn runs(&self) -> Result<Vec<String>, Failure> {
        let folder = self.path()?;
        let failure = |error: io::Error| Failure::failed(format!("{}: {error}", printable(&folder)));
        let mut runs = Vec::new();
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(runs),
            Err(error) => return Err(failure(error)),
        };
        for entry in entries {
            let name = entry.map_err(failure)?.file_name();
            runs.extend(name.to_str().and_then(|name| name.strip_suffix(ENDING)).map(str::to_owned));
        }
        runs.sort();
        Ok(runs)
    }

    /// The journal of a run, which is named or given by its path.
    ///
    /// # Errors
    /// As [`Folder::path`].
    pub fn journal(&self, run: &OsStr) -> Result<PathBuf, Failure> {
        if run.as_bytes().contains(&b'/') {
            return Ok(run.into());
        }
        let mut name = run.to_owned();
        if !run.as_bytes().ends_with(ENDING.as_bytes()) {
            name.push(ENDING);
        }
        Ok(self.path()?.join(name))
    }
}

/// A journal that is written.
pub struct Journal {
    path: PathBuf,
    run: String,
    state: Mutex<State>,
}

struct State {
    file: File,
    end: u64,
    announced: bool,
    /// Something was written since it was last brought to the disk.
    unsynced: bool,
    failed: Option<io::Error>,
    synced: Instant,
}

impl Journal {
    /// Begins a journal.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(folder: &Folder, purpose: String) -> Result<Self, Failure> {
        let folder = folder.path()?;
        let failure = |error: io::Error| {
            Failure::failed(format!("the journal of the run cannot be written: {}: {error}", printable(&folder)))
                .next("name another place with --journal-dir DIR, or do without with --no-journal")
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failure)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let when = utc(since.as_secs()).replace(['-', ':'], "").replace(" UTC", "").replace(' ', "-");
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let working = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let begun = Begun {
            started: since.as_secs(),
            boot_id,
            folder: working.as_os_str().as_bytes().to_vec(),
            purpose,
            command: command_line(std::env::args_os()),
        };
        let start = [&MAGIC[..], &begun.encode()].concat();
        let process = std::process::id();
        // It gets its name once it says what it is, so that one whose run was killed at its start is no riddle.
        let nameless = folder.join(format!("begun-{process}"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&nameless)
            .map_err(failure)?;
        let named = lock(&file, &nameless).and_then(|()| {
            file.write_all(&start).map_err(failure)?;
            for number in 0_u32.. {
                let more = if number == 0 { String::new() } else { format!("-{number}") };
                let run = format!("{when}-{process}{more}");
                let path = folder.join(format!("{run}{ENDING}"));
                match std::fs::hard_link(&nameless, &path) {
                    Ok(()) => return Ok((run, path)),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    // A file system without links.
                    Err(_) if !path.exists() => {
                        return std::fs::rename(&nameless, &path).map(|()| (run, path)).map_err(failure);
                    }
                    Err(error) => return Err(failure(error)),
                }
            }
            Err(failure(io::ErrorKind::AlreadyExists.into()))
        });
        // Gone already where it was renamed.
        let _ = std::fs::remove_file(&nameless);
        let (run, path) = named?;
        // A folder's entry is its own to be kept.
        let kept = File::open(&folder).and_then(|folder| folder.sync_all()).or_else(|_| file.sync_all());
        if let Err(error) = kept {
            // It tells nothing.
            let _ = std::fs::remove_file(&path);
            return Err(failure(error));
        }
        Ok(Self { path, run, state: Mutex::new(State::new(file, start.len() as u64)) })
    }

    /// Goes on with the journal of a run that was ended.
    ///
    /// # Errors
    /// It cannot be written, or what is cut off from it cannot be kept.
    pub fn go_on(mut read: ReadJournal) -> Result<Self, Failure> {
        read.keep_tail()?;
        let ReadJournal { path, run, file, end, .. } = read;
        let failure = |error| Failure::failed(format!("{}: {error}", printable(&path)));
        let mut file = file.into_inner();
        // What was cut off had not begun.
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(failure)?;
        let state = State { announced: true, ..State::new(file, end) };
        Ok(Self { path, run, state: Mutex::new(state) })
    }

    /// The run's name.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Writes what is about to be changed; the place of that in the journal. After a failure nothing is to be changed.
    pub fn announce(&self, files: &[journal::File]) -> Option<u64> {
        self.append(&journal::encode_changes(files))
    }

    /// Writes that what was announced there has been done.
    pub fn made(&self, place: u64) {
        // A failure shows at the next announcement; what was done is no less done.
        let _ = self.append(&journal::encode_made(place));
    }

    fn append(&self, block: &[u8]) -> Option<u64> {
        let mut state = self.state();
        if state.failed.is_some() {
            return None;
        }
        let place = state.end;
        if let Err(error) = state.file.write_all(block) {
            // Half a block is what a reader takes for the end.
            let _ = state.file.set_len(place);
            state.failed = Some(error);
            return None;
        }
        state.end += block.len() as u64;
        (state.announced, state.unsynced) = (true, true);
        let due = state.synced.elapsed() >= SYNC_AFTER;
        drop(state);
        if due {
            self.sync();
        }
        Some(place)
    }

    /// Brings what was written to the disk: called before something that takes long, in which nothing else may be written.
    pub fn sync(&self) {
        let mut state = self.state();
        if !std::mem::take(&mut state.unsynced) {
            return;
        }
        state.synced = Instant::now();
        let file = state.file.try_clone();
        drop(state);
        // Others go on writing meanwhile. A disk that fails tells at the end.
        let _ = file.and_then(|file| file.sync_data());
    }

    /// Whether it could not be written any more.
    pub fn has_failed(&self) -> bool {
        self.state().failed.is_some()
    }

    /// Ends the run. A journal that announces nothing is removed; whether it is still there.
    ///
    /// # Errors
    /// It could not be written.
    pub fn end(self, failed: u64) -> Result<bool, Failure> {
        let mut state = self.state();
        if !state.announced {
            // An empty one does no harm.
            let _ = std::fs::remove_file(&self.path);
            return Ok(false);
        }
        let written = match state.failed.take() {
            Some(error) => Err(error),
            None => state.file.write_all(&journal::encode_ended(failed)).and_then(|()| state.file.sync_all()),
        };
        written.map(|()| true).map_err(|error| {
            Failure::failed(format!(
                "the journal of the run could not be written further: {}: {error}; nothing was changed after that",
                printable(&self.path)
            ))
            .next(format_args!("make room there, and go on with --resume {}", self.run))
        })
    }

    /// Leaves a run that was interrupted: its journal has no end, so that it is gone on with or undone. As [`Journal::end`].
    ///
    /// # Errors
    /// As [`Journal::end`].
    pub fn leave(self) -> Result<bool, Failure> {
        let state = self.state();
        if !state.announced || state.failed.is_some() {
            drop(state);
            return self.end(0);
        }
        let synced = state.file.sync_all();
        synced.map(|()| true).map_err(|error| Failure::failed(format!("{}: {error}", printable(&self.path))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(file: File, end: u64) -> Self {
        Self { file, end, announced: false, unsynced: false, failed: None, synced: Instant::now() }
    }
}

fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            Failure::failed(format!("{}: in use by another process: the run is still going on", printable(path)))
                .next("wait until it ends, or end it; it can then be gone on with, or undone")
        }
        TryLockError::Error(error) => Failure::failed(format!("{}: {error}", printable(path))),
    })
}

/// Whether a process is writing or reading a journal.
pub fn is_in_use(journal: &Path) -> bool {
    File::open(journal).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The command line, quoted for a shell where need be. A PIN in it is not kept.
fn command_line(words: impl Iterator<Item = OsString>) -> String {
    let quoted = |word: OsString| {
        let word = without_pin(&word.to_string_lossy());
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,@%+".contains(letter);
        if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    std::iter::once("imara".to_owned()).chain(words.skip(1).map(quoted)).collect::<Vec<_>>().join(" ")
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It was ended before its end.
    Interrupted,
    /// It came to its end; so many files failed.
    Ended(u64),
    /// It was undone, but for so many files.
    Undone(u64),
}

/// A journal that was read.
pub struct ReadJournal {
    /// Where it is.
    pub path: PathBuf,
    /// The run's name.
    pub run: String,
    /// How the run began.
    pub begun: Begun,
    /// How far it came.
    pub progress: Progress,
    /// How many files it announced, one again for each time.
    pub files: u64,
    /// The end of its last whole block.
    pub end: u64,
    /// What follows that and is damaged, or cut off.
    pub tail: Option<JournalError>,
    /// Whether that is no more than the end of a block that was being written: nothing it announced had begun.
    cut_off: bool,
    file: BufReader<File>,
    changes: Vec<u64>,
    made: HashSet<u64>,
}

impl ReadJournal {
    /// Reads a journal and locks it.
    ///
    /// # Errors
    /// There is none, it is in use, or it is no journal.
    pub fn open(folder: &Folder, run: &OsStr) -> Result<Self, Failure> {
        let path = folder.journal(run)?;
        let failure = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", printable(&path)));
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let next = "`imara undo --list` lists the runs";
                Failure::failed(format!("there is no journal of that run: {}", printable(&path))).next(next)
            }
            _ => failure(&error),
        })?;
        lock(&file, &path)?;
        let mut file = BufReader::with_capacity(256 * 1024, file);
        journal::read_magic(&mut file).map_err(|error| failure(&error))?;
        let mut end = MAGIC.len() as u64;
        let begun = match journal::read_block(&mut file, end).map_err(|error| failure(&error))? {
            Some((Block::Begun(begun), length)) => {
                end += length;
                begun
            }
            _ => return Err(failure(&"the journal does not tell how the run began")),
        };
        let run = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut read = Self {
            path: path.clone(),
            run,
            begun,
            progress: Progress::Interrupted,
            files: 0,
            end,
            tail: None,
            cut_off: false,
            file,
            changes: Vec::new(),
            made: HashSet::new(),
        };
        loop {
            match journal::read_block(&mut read.file, read.end) {
                Ok(None) => return Ok(read),
                Ok(Some((block, length))) => {
                    match block {
                        Block::Begun(_) => return Err(failure(&"the journal begins twice")),
                        Block::Changes(files) => {
                            read.files += files.len() as u64;
                            read.changes.push(read.end);
                            read.progress = Progress::Interrupted;
                        }
                        Block::Made(place) => {
                            read.made.insert(place);
                        }
                        Block::Ended(failed) => read.progress = Progress::Ended(failed),
                        Block::Undone(left) => read.progress = Progress::Undone(left),
                    }
                    read.end += length;
                }
                Err(JournalError::Read(error)) => return Err(failure(&error)),
                Err(error) => {
                    if let JournalError::CutOff(_) = error {
                        // No longer than the largest block.
                        let mut rest = Vec::new();
                        let start = read.file.seek(SeekFrom::Start(read.end));
                        start.and_then(|_| read.file.read_to_end(&mut rest)).map_err(|error| failure(&error))?;
                        read.cut_off = !journal::holds_a_block(&rest);
                    }
                    read.tail = Some(error);
                    return Ok(read);
                }
            }
        }
    }

    /// The files of a block that announced changes, by its number, and whether all of them had been done.
    ///
    /// # Errors
    /// What the journal's file says.
    pub fn block(&mut self, number: usize) -> Result<Option<(Vec<journal::File>, bool)>, Failure> {
        let Some(place) = self.changes.get(number).copied() else { return Ok(None) };
        let failure = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", printable(&self.path)));
        let here = self.file.stream_position().map_err(|error| failure(&error))?;
        // Going on forwards keeps what was read ahead.
        let step = i64::try_from(i128::from(place) - i128::from(here)).map_err(|error| failure(&error))?;
        self.file.seek_relative(step).map_err(|error| failure(&error))?;
        match journal::read_block(&mut self.file, place).map_err(|error| failure(&error))? {
            Some((Block::Changes(files), _)) => Ok(Some((files, self.made.contains(&place)))),
            _ => Err(failure(&"the journal was changed while it was read")),
        }
    }

    /// What is wrong with the journal, if it is more than an end that was cut off: what the run did after that is not known.
    pub fn damage(&self) -> Option<&JournalError> {
        self.tail.as_ref().filter(|_| !self.cut_off)
    }

    /// Keeps what follows the last whole block in a file beside the journal, `RUN.journal.damaged-OFFSET`: it may hold old labels.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_tail(&mut self) -> Result<Option<PathBuf>, Failure> {
        if self.tail.is_none() {
            return Ok(None);
        }
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".damaged-{}", self.end));
        let kept = PathBuf::from(name);
        // One that a process was killed over is not taken for whole.
        let mut part = kept.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut copy = || {
            self.file.seek(SeekFrom::Start(self.end))?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
            io::copy(&mut self.file, &mut file)?;
            file.sync_all()?;
            std::fs::rename(&part, &kept)?;
            let folder = kept.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()
        };
        copy().map_err(|error| {
            let _ = std::fs::remove_file(&part);
            Failure::failed(format!("the rest of the journal cannot be kept in {}: {error}", printable(&kept)))
                .next("make room there, or let the folder be written to, and try again; the journal is as it was")
        })?;
        Ok(Some(kept))
    }

    /// How many blocks announced changes.
    pub fn blocks(&self) -> usize {
        self.changes.len()
    }

    /// Writes that the run was undone, but for so many files.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn undone(mut self, left: u64) -> Result<(), Failure> {
        self.keep_tail()?;
        let mut file = self.file.into_inner();
        let write = |file: &mut File| {
            file.set_len(self.end)?;
            file.seek(SeekFrom::Start(self.end))?;
            file.write_all(&journal::encode_undone(left))?;
            file.sync_all()
        };
        write(&mut file).map_err(|error| Failure::failed(format!("{}: {error}", printable(&self.path))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::journal::{Change, FileState, Place};

    fn folder(path: &Path) -> Folder {
        Folder { journal_dir: Some(path.join("runs")) }
    }

    #[test]
    fn the_command_is_kept_as_a_shell_takes_it_and_without_a_pin() {
        for (words, kept) in [
            (&["/usr/bin/imara", "sign", "-r", "/a b"][..], "imara sign -r '/a b'"),
            (&["imara", "hash", "it's", ""], "imara hash 'it'\\''s' ''"),
            (&["imara", "sign", "-k", "pkcs11:token=T;pin-value=1234"], "imara sign -k 'pkcs11:token=T;pin-value=...'"),
        ] {
            assert_eq!(command_line(words.iter().map(OsString::from)), kept);
        }
    }

    fn changed(path: &str, old: u8, new: u8) -> journal::File {
        let state = FileState { device: 1, inode: 2, size: 3, modified: (4, 5) };
        let change = Change { place: Place::SecurityIma, old: Some(vec![old]), new: Some(vec![new]) };
        journal::File { path: path.into(), state, changes: vec![change] }
    }

    fn blocks(read: &mut ReadJournal) -> Vec<(Vec<journal::File>, bool)> {
        (0..read.blocks()).rev().map(|number| read.block(number).unwrap().unwrap()).collect()
    }

    #[test]
    fn a_run_is_read_back_locked_while_it_goes_on_and_gone_on_with_where_it_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let folder = folder(directory.path());
        let journal = Journal::begin(&folder, "hash".into()).unwrap();
        let run = OsStr::new(journal.run()).to_owned();
        let first = journal.announce(&[changed("a", 1, 2), changed("b", 3, 4)]).unwrap();
        journal.made(first);
        journal.announce(&[changed("c", 5, 6)]).unwrap();
        let error = ReadJournal::open(&folder, &run).err().unwrap();
        assert!(error.what.contains("still going on"), "{error:?}");
        // Killed while it wrote.
        journal.state().file.write_all(&[3, 8, 0]).unwrap();
        drop(journal);
        let mut read = ReadJournal::open(&folder, &run).unwrap();
        assert!(matches!(read.tail, Some(JournalError::CutOff(_))));
        assert_eq!((read.progress, read.files, &*read.begun.purpose), (Progress::Interrupted, 3, "hash"));
        let expected = [(vec![changed("c", 5, 6)], false), (vec![changed("a", 1, 2), changed("b", 3, 4)], true)];
        assert_eq!(blocks(&mut read), expected);
        let journal = Journal::go_on(read).unwrap();
        let place = journal.announce(&[changed("c", 6, 7)]).unwrap();
        journal.made(place);
        assert!(journal.end(1).unwrap());
        let mut read = ReadJournal::open(&folder, &run).unwrap();
        assert!(read.tail.is_none());
        assert_eq!((read.progress, read.files), (Progress::Ended(1), 4));
        assert_eq!(blocks(&mut read)[0], (vec![changed("c", 6, 7)], true));
        read.undone(2).unwrap();
        assert_eq!(ReadJournal::open(&folder, &run).unwrap().progress, Progress::Undone(2));
        assert_eq!(folder.runs().unwrap(), [run.to_str().unwrap()]);
    }

    #[test]
    fn a_run_that_changes_nothing_leaves_no_journal() {
        let directory = tempfile::tempdir().unwrap();
        let folder = folder(directory.path());
        assert!(folder.runs().unwrap().is_empty());
        let [one, two] = ["a", "b"].map(|purpose| Journal::begin(&folder, purpose.into()).unwrap());
        assert_ne!(one.run(), two.run());
        assert!(!one.end(0).unwrap());
        assert!(!two.end(5).unwrap());
        assert!(folder.runs().unwrap().is_empty());
        let missing = ReadJournal::open(&folder, OsStr::new("none")).err().unwrap();
        assert!(missing.next.contains("imara undo --list"), "{missing:?}");
        for (content, expected) in [(&b"IMATRACE"[..], "not a journal"), (b"IMAJOURN", "does not tell how")] {
            let path = directory.path().join("file");
            std::fs::write(&path, content).unwrap();
            let error = ReadJournal::open(&folder, path.as_os_str()).err().unwrap();
            assert!(error.what.contains(expected), "{error:?}");
        }
    }

    #[test]
    fn a_full_disk_stops_the_run_and_leaves_whole_blocks() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (path, run) = ("/dev/full".into(), "full".to_owned());
        let journal = Journal { path, run, state: Mutex::new(State::new(full, 8)) };
        assert!(!journal.has_failed());
        assert_eq!(journal.announce(&[changed("a", 1, 2)]), None);
        assert!(journal.has_failed());
        assert_eq!(journal.announce(&[changed("b", 1, 2)]), None);
        journal.state().announced = true;
        let failure = journal.end(0).unwrap_err();
        assert!(failure.what.contains("No space left") && failure.next.contains("--resume full"), "{failure:?}");
    }
}
