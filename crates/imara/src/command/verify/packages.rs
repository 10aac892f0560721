//! `imara verify --packages`: installed files against what the package manager keeps of them.

use super::Arguments;
use crate::command::CommandResult;
use crate::command::paths::{printable, read};
use crate::command::progress::Progress;
use crate::command::telling::{Form, Telling, Told, amount, counted, failure_json, grouped, took};
use crate::output::{Failure, Outcome, utc, warn};
use imara_format::dpkg::{self, Diversions, Package};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_linux::files::OpenError;
use imara_linux::tree::{self, InRoot, TreeFile, in_order};
use serde_json::{Map, json};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Installed files rather than labels.
#[derive(clap::Args)]
pub struct PackageOptions {
    /// Verify the files of installed packages, by the digests that dpkg keeps, and no labels; PATH is then a package's name, none means
    /// all. These digests are MD5 and not signed: they show accidents, and say nothing about who made a file
    #[arg(long, conflicts_with_all = ["keys", "keyrings", "block_lists", "sigfile", "xattr_user", "recursive", "files_from"])]
    pub packages: bool,
    /// With --packages, the system in DIR, e.g. an image
    #[arg(long, value_name = "DIR", default_value = "/", requires = "packages")]
    root: PathBuf,
    /// With --packages, write a list of the SHA-256 digests of all files that are as they were installed, for `imara measurement verify
    /// --reference`
    #[arg(long, value_name = "F", requires = "packages")]
    digest_list: Option<PathBuf>,
}

/// What is said whenever dpkg's lists are relied on.
const NOT_SIGNED: &str =
    "by dpkg's lists, which are not signed and hold MD5 digests: whoever may write the files may write the lists too";

/// A file that a package has.
struct Expected {
    /// From the root.
    path: Vec<u8>,
    digest: Digest,
    configuration: bool,
}

/// Files of one package.
struct Batch {
    package: String,
    version: String,
    files: Vec<Expected>,
}

/// So many files are worked on together.
const FILES: usize = 64;

/// What came of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Same,
    Changed,
    Configured,
    Missing,
    Unreadable,
}

impl Fate {
    const ALL: [Self; 5] = [Self::Same, Self::Changed, Self::Configured, Self::Missing, Self::Unreadable];

    /// For programs.
    const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Changed => "changed",
            Self::Configured => "configuration-changed",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
        }
    }

    /// After a number, for people.
    const fn words(self) -> &'static str {
        match self {
            Self::Same => "as installed",
            Self::Changed => "changed",
            Self::Configured => "of configuration changed",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
        }
    }

    /// Configuration is there to be changed.
    const fn is_good(self) -> bool {
        match self {
            Self::Same | Self::Configured => true,
            Self::Changed | Self::Missing | Self::Unreadable => false,
        }
    }
}

#[derive(Default)]
struct Counts {
    fates: [u64; Fate::ALL.len()],
    bytes: u64,
}

#[derive(Default)]
struct Results {
    counts: Counts,
    told: Told,
    list: Vec<u8>,
}

/// What dpkg keeps in a system.
struct Database {
    folder: PathBuf,
    packages: Vec<Package>,
    diversions: Diversions,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let options = &arguments.packages;
    let database = Database::read(options, &arguments.paths.paths)?;
    let root = InRoot::open(&options.root)
        .map_err(|error| Failure::failed(format!("{}: {error}", printable(&options.root))))?;
    let mut list = options.digest_list.as_deref().map(DigestList::begin).transpose()?;
    let form = Form::new(arguments.json, arguments.quiet, arguments.verbose, true);
    let (mut telling, mut counts) = (Telling::new(form, true), Counts::default());
    let (progress, started) = (Progress::new(arguments.quiet, "files"), Instant::now());
    let (mut without, mut damaged) = (0_u64, Vec::new());
    let verification = Verification { options, form, root, progress: &progress };
    let mut batches = database.packages.iter().flat_map(|package| {
        let files = database.files(package).unwrap_or_else(|failure| {
            damaged.push(failure);
            Some(Vec::new())
        });
        without += u64::from(files.is_none());
        let mut files = files.unwrap_or_default().into_iter().peekable();
        std::iter::from_fn(move || {
            files.peek()?;
            let files = files.by_ref().take(FILES).collect();
            Some(Batch { package: package.name.clone(), version: package.version.clone(), files })
        })
    });
    let mut written = Ok(());
    in_order(
        tree::threads(),
        || batches.next(),
        || (),
        |(), batch| verification.batch(&batch),
        |results: Results| {
            progress.suspend(|| telling.tell(results.told));
            counts.add(&results.counts);
            if let Some(list) = &mut list {
                let wrote = list.write(&results.list);
                written = std::mem::replace(&mut written, Ok(())).and(wrote);
            }
        },
        || progress.tick(),
    );
    drop(batches);
    written?;
    if let Some(list) = list {
        list.end()?;
    }
    let some_damaged = !damaged.is_empty();
    for failure in damaged {
        let mut told = Told::default();
        told.failure(failure);
        telling.tell(told);
    }
    drop(progress);
    let files = counts.fates.iter().sum::<u64>();
    let packages = database.packages.len() as u64;
    let summary = || {
        let mut parts = Vec::new();
        for fate in Fate::ALL {
            let count = counts.fates[fate as usize];
            if count > 0 {
                parts.push(format!("{} {}", grouped(count), fate.words()));
            }
        }
        let (read, took) = (amount(counts.bytes), took(started.elapsed()));
        let mut text = format!(
            "{} of {}: {}; {read} read in {took}\n",
            counted(files, "file"),
            counted(packages, "package"),
            parts.join(", ")
        );
        if files == 0 {
            text = "no file was found\n".to_owned();
        }
        if without > 0 {
            text += &format!(
                "{} no list of digests\n",
                if without == 1 { "1 package has".to_owned() } else { format!("{} packages have", grouped(without)) }
            );
        }
        text + NOT_SIGNED + "\n"
    };
    let mut numbers = Map::new();
    numbers.insert("packages".into(), json!(packages));
    numbers.insert("files".into(), json!(files));
    for fate in Fate::ALL {
        numbers.insert(fate.name().into(), json!(counts.fates[fate as usize]));
    }
    numbers.insert("without_list".into(), json!(without));
    numbers.insert("bytes".into(), json!(counts.bytes));
    numbers.insert("source".into(), json!("dpkg"));
    numbers.insert("signed".into(), json!(false));
    telling.end(summary, numbers);
    let bad = Fate::ALL.into_iter().filter(|fate| !fate.is_good()).map(|fate| counts.fates[fate as usize]).sum::<u64>();
    Ok(match (files, bad) {
        (0, _) => Outcome::Nothing,
        (_, 0) if !some_damaged => Outcome::Done,
        _ => Outcome::Failed,
    })
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.fates.iter_mut().zip(more.fates).for_each(|(count, more)| *count += more);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

impl Database {
    fn read(options: &PackageOptions, names: &[PathBuf]) -> Result<Self, Failure> {
        let folder = options.root.join("var/lib/dpkg");
        let path = folder.join("status");
        let status = read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Failure::lacking(format!("there is no list of installed packages: {}: {error}", printable(&path)))
                    .next("--packages needs dpkg's database (Debian, Ubuntu); --root DIR names the system that has it")
            }
            _ => Failure::failed(format!("{}: {error}", printable(&path))),
        })?;
        let damaged = |path: &Path, error: dpkg::LineError| Failure::failed(format!("{}: {error}", printable(path)));
        let mut packages = dpkg::status(&status).map_err(|error| damaged(&path, error))?;
        packages.retain(|package| package.installed);
        if !names.is_empty() {
            for name in names {
                let known = |package: &Package| {
                    OsStr::new(&package.name) == name
                        || format!("{}:{}", package.name, package.architecture).as_str() == name
                };
                if !packages.iter().any(known) {
                    return Err(Failure::failed(format!("no package {} is installed", printable(name)))
                        .next("with --packages, PATH is the name of a package; dpkg -S FILE tells whose a file is"));
                }
            }
            packages.retain(|package| {
                let whole = format!("{}:{}", package.name, package.architecture);
                names.iter().any(|name| name == OsStr::new(&package.name) || name == OsStr::new(&whole))
            });
        }
        let path = folder.join("diversions");
        let diversions = match read(&path) {
            Ok(text) => Diversions::parse(&text).map_err(|error| damaged(&path, error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Diversions::default(),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", printable(&path)))),
        };
        Ok(Self { folder, packages, diversions })
    }

    /// The files of a package; none where it has no list.
    fn files(&self, package: &Package) -> Result<Option<Vec<Expected>>, Failure> {
        let mut lists = package.lists().into_iter().map(|list| self.folder.join("info").join(list));
        let list = lists.find(|list| list.exists());
        let mut files = Vec::new();
        let mut add = |path: &[u8], digest, configuration| {
            let absolute = [b"/", path].concat();
            let path = self.diversions.place(&absolute, &package.name).to_vec();
            files.push(Expected { path, digest, configuration });
        };
        if let Some(list) = &list {
            let failure = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", printable(list)));
            let text = read(list).map_err(|error| failure(&error))?;
            for (path, digest) in dpkg::md5sums(&text).map_err(|error| failure(&error))? {
                // A package of old may list its configuration twice.
                let configured = |(configuration, _): &&(Vec<u8>, Digest)| configuration.get(1..) == Some(path);
                if package.configuration.iter().find(configured).is_none() {
                    add(path, digest, false);
                }
            }
        }
        for (path, digest) in &package.configuration {
            add(path.get(1..).unwrap_or_default(), *digest, true);
        }
        Ok(if list.is_none() && files.is_empty() { None } else { Some(files) })
    }
}

struct Verification<'v> {
    options: &'v PackageOptions,
    form: Form,
    root: InRoot,
    progress: &'v Progress,
}

impl Verification<'_> {
    fn batch(&self, batch: &Batch) -> Results {
        let mut results = Results::default();
        for expected in &batch.files {
            let below = Path::new(OsStr::from_bytes(expected.path.get(1..).unwrap_or_default()));
            let shown = self.options.root.join(below);
            let (fate, why) = self.verify(expected, below, &shown, &mut results);
            results.counts.fates[fate as usize] += 1;
            self.progress.count(1);
            let (package, version) = (&batch.package, &batch.version);
            results
                .told
                .line(self.form, || format!("{}: {} by {package} {version}\n", printable(&shown), fate.words()));
            let failure = Failure::failed(format!("{}: {why}", printable(&shown))).next(match fate {
                Fate::Changed | Fate::Missing => "install the package again: apt-get install --reinstall PACKAGE",
                Fate::Same | Fate::Configured | Fate::Unreadable => "",
            });
            results.told.object(self.form, &shown, |object| {
                object.insert("package".into(), json!(package));
                object.insert("version".into(), json!(version));
                object.insert("verified".into(), json!(fate.is_good()));
                object.insert("state".into(), json!(fate.name()));
                if !fate.is_good() {
                    failure_json(object, &failure);
                }
            });
            if !fate.is_good() {
                results.told.failure(failure);
            }
        }
        results
    }

    /// What came of a file, and why it is not as installed.
    fn verify(&self, expected: &Expected, below: &Path, shown: &Path, results: &mut Results) -> (Fate, String) {
        let file = match self.root.file(below, shown) {
            Ok(file) => file,
            Err(OpenError::System { error, .. })
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return match expected.configuration {
                    true => (Fate::Configured, String::new()),
                    false => (Fate::Missing, "missing".to_owned()),
                };
            }
            Err(error @ OpenError::NotRegular { .. }) if !expected.configuration => {
                return (Fate::Changed, format!("changed: it {}", error.reason()));
            }
            Err(OpenError::NotRegular { .. }) => return (Fate::Configured, String::new()),
            Err(error @ OpenError::System { .. }) => return (Fate::Unreadable, error.reason()),
        };
        let digest = file.digest(HashAlgorithm::Md5, |more| {
            results.counts.bytes += more;
            self.progress.bytes(more);
        });
        match digest {
            Err(error) => (Fate::Unreadable, error.to_string()),
            Ok(found) if found == expected.digest => match self.list(&file, expected, results) {
                Ok(()) => (Fate::Same, String::new()),
                Err(error) => (Fate::Unreadable, error.to_string()),
            },
            Ok(_) if expected.configuration => (Fate::Configured, String::new()),
            Ok(found) => (Fate::Changed, format!("changed: its digest is {found}, installed with {}", expected.digest)),
        }
    }

    /// Adds a file to the list of digests.
    fn list(&self, file: &TreeFile<'_>, expected: &Expected, results: &mut Results) -> io::Result<()> {
        if self.options.digest_list.is_none() {
            return Ok(());
        }
        let digest = file.digest(HashAlgorithm::Sha256, |_| {})?;
        if !file.has_its_content()? {
            return Err(io::Error::other("changed while it was read"));
        }
        let escaped = expected.path.iter().any(|byte| matches!(byte, b'\\' | b'\n'));
        let list = &mut results.list;
        list.extend(escaped.then_some(b'\\'));
        list.extend(format!("{}  ", digest.to_hex()).into_bytes());
        for byte in &expected.path {
            match byte {
                b'\\' if escaped => list.extend(b"\\\\"),
                b'\n' => list.extend(b"\\n"),
                byte => list.push(*byte),
            }
        }
        list.push(b'\n');
        Ok(())
    }
}

/// A list of digests that is written, and is there when it is whole.
struct DigestList {
    place: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
}

impl DigestList {
    fn begin(place: &Path) -> Result<Self, Failure> {
        let mut name = std::ffi::OsString::from(".");
        name.push(
            place.file_name().ok_or_else(|| Failure::usage(format!("{}: is no name of a file", printable(place))))?,
        );
        name.push(format!(".{}.new", std::process::id()));
        let temporary = place.with_file_name(name);
        let file =
            File::create_new(&temporary).map_err(|error| Failure::failed(format!("{}: {error}", printable(place))))?;
        let mut list = Self { place: place.into(), temporary, file: BufWriter::new(file) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let head = format!("# Files of packages as found on {}, {NOT_SIGNED}\n", utc(now));
        list.write(head.as_bytes())?;
        Ok(list)
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
        self.file.write_all(lines).map_err(|error| self.failure(&error))
    }

    fn end(mut self) -> Result<(), Failure> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let placed = written.and_then(|()| std::fs::rename(&self.temporary, &self.place));
        placed.map_err(|error| self.failure(&error))?;
        warn(format_args!("{}: made {NOT_SIGNED}; sign it before it is relied on elsewhere", printable(&self.place)));
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure::failed(format!("{}: {error}", printable(&self.place)))
    }
}

impl Drop for DigestList {
    fn drop(&mut self) {
        // It is gone already when all went well.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
