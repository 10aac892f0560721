//! `imara verify --packages`: installed files against what the package manager keeps of them.
//!
//! | file | concept |
//! |---|---|
//! | `dpkg.rs` | what dpkg keeps |
//! | `digest_list.rs` | the list that is written of what is as it was installed |

mod digest_list;
mod dpkg;

use super::Arguments;
use crate::command::CommandResult;
use crate::command::paths::printable;
use crate::command::progress::Progress;
use crate::command::telling::{Form, Telling, Told, amount, counted, failure_json, grouped, took};
use crate::output::{Failure, Outcome};
use digest_list::DigestList;
use dpkg::Database;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_linux::files::OpenError;
use imara_linux::tree::{self, InRoot, TreeFile, in_order};
use serde_json::{Map, json};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

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

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let options = &arguments.packages;
    let root = InRoot::open(&options.root)
        .map_err(|error| Failure::failed(format!("{}: {error}", printable(&options.root))))?;
    let database = Database::read(&root, &options.root, &arguments.paths.paths)?;
    let begin = |place: &PathBuf| DigestList::begin(place, NOT_SIGNED);
    let mut list = options.digest_list.as_ref().map(begin).transpose()?;
    let form = Form::new(arguments.json, arguments.quiet, arguments.verbose, true);
    let (mut telling, mut counts) = (Telling::new(form, true), Counts::default());
    let (progress, started) = (Progress::new(arguments.quiet, "files"), Instant::now());
    let (mut without, mut damaged) = (0_u64, Vec::new());
    let verification = Verification { options, form, root: &root, progress: &progress };
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

struct Verification<'v> {
    options: &'v PackageOptions,
    form: Form,
    root: &'v InRoot,
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
