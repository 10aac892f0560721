//! `imara verify --packages`: installed files against what the package managers keep of them.
//!
//! | file | concept |
//! |---|---|
//! | `installed.rs` | a package and its files, as either package manager has them |
//! | `dpkg.rs`, `rpm.rs` | what each keeps, read below the root |
//! | `owners.rs` | names of users and groups of the system below the root |
//! | `file.rs` | a file against what is known of it |
//! | `keys.rs` | the keys that packages are signed with |
//! | `digest_list.rs` | the list that is written of what is as it was installed |

mod digest_list;
mod dpkg;
mod file;
mod installed;
mod keys;
mod owners;
mod rpm;

use super::Arguments;
use crate::command::CommandResult;
use crate::command::paths::printable;
use crate::command::progress::Progress;
use crate::command::telling::{Form, Telling, Told, amount, counted, grouped, look_again, tell_if_interrupted, took};
use crate::output::{Failure, Outcome};
use digest_list::DigestList;
use file::{Fate, Verification};
use imara_linux::interruption;
use imara_linux::tree::{self, InRoot, in_order};
use installed::{Expected, Installed, Manager, Packages, Standing};
use serde_json::{Map, json};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Installed files rather than labels.
#[derive(clap::Args)]
pub struct PackageOptions {
    /// Verify the files of installed packages, by what dpkg and RPM keep of them, and no labels; PATH is then a package's name, none
    /// means all. dpkg's digests are MD5 and not signed: they show accidents, and say nothing about who made a file
    #[arg(long, conflicts_with_all = ["block_lists", "sigfile", "xattr_user", "recursive", "files_from"])]
    pub packages: bool,
    /// With --packages, the system in DIR, e.g. an image
    #[arg(long, value_name = "DIR", default_value = "/", requires = "packages")]
    root: PathBuf,
    /// With --packages, what is not signed by a key in F does not verify: OpenPGP public keys, or a folder of them, as in
    /// /etc/pki/rpm-gpg; may be given several times. With -k or --keyring each file's own signature in its RPM package has to be good, too
    #[arg(long = "package-key", value_name = "F", requires = "packages")]
    package_keys: Vec<PathBuf>,
    /// With --packages, write a list of the SHA-256 digests of all files that are as they were installed, for `imara measurement verify
    /// --reference`
    #[arg(long, value_name = "F", requires = "packages")]
    digest_list: Option<PathBuf>,
}

/// Whose signatures are asked for.
#[derive(Clone, Copy)]
struct Asked {
    /// Of packages, by --package-key.
    packages: bool,
    /// Of the files in them.
    files: bool,
}

/// Files of one package.
struct Batch {
    package: Arc<Installed>,
    files: Vec<Expected>,
}

/// So many files are worked on together.
const FILES: usize = 64;

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

/// What has been found out while packages were gone through.
#[derive(Default)]
struct Gone {
    packages: u64,
    without: u64,
    /// Not signed by a key that was given.
    refused: u64,
    managers: BTreeSet<Manager>,
    names: BTreeSet<PathBuf>,
    damaged: Vec<Failure>,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let (options, names) = (&arguments.packages, &arguments.paths.paths);
    let root = InRoot::open(&options.root)
        .map_err(|error| Failure::failed(format!("{}: {error}", printable(&options.root))))?;
    let (dpkg, rpm) = (dpkg::Database::read(&root, &options.root)?, rpm::Database::open(&root, &options.root)?);
    let managers = managers(&dpkg, &rpm);
    if managers.is_empty() {
        let place = printable(&options.root);
        return Err(Failure::lacking(format!("there is no list of installed packages in {place}"))
            .next("--packages needs the database of dpkg or RPM; --root DIR names the system that has it"));
    }
    let keys = keys::read_keys(&options.package_keys)?;
    let file_keys = if arguments.keys.are_given() { Some(arguments.keys.find()?) } else { None };
    let asked = Asked { packages: keys.is_some(), files: file_keys.is_some() };
    if (asked.packages || asked.files) && managers.contains(&Manager::Dpkg) {
        return Err(Failure::lacking("dpkg's lists are not signed, so that no key can prove anything of them")
            .next("leave out --package-key, -k and --keyring"));
    }
    let worth = worth(&managers, asked);
    let mut list = options.digest_list.as_ref().map(|place| DigestList::begin(place, worth)).transpose()?;
    let form = Form::new(arguments.json, arguments.quiet, arguments.verbose, true);
    let (mut telling, mut counts) = (Telling::new(form, true), Counts::default());
    let (progress, started) = (Progress::new(arguments.quiet, "files"), Instant::now());
    let verification = Verification::new(options, form, &root, &progress, file_keys.as_ref());
    let mut gone = Gone::default();
    let dpkg = dpkg.iter().flat_map(dpkg::Database::packages);
    let packages: Packages<'_> = Box::new(dpkg.chain(rpm.iter().flat_map(|rpm| rpm.packages(keys.as_ref()))));
    let mut batches = batches(packages, names, &mut gone);
    let (mut written, caught) = (Ok(()), interruption::catch());
    in_order(
        tree::threads(),
        || interruption::came().is_none().then(|| batches.next()).flatten(),
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
    drop((batches, caught));
    written?;
    gone.damaged.extend(rpm.as_ref().and_then(rpm::Database::was_changed));
    let unknown = names.iter().filter(|name| !gone.names.contains(*name) && interruption::came().is_none());
    for name in unknown {
        let next = "with --packages, PATH is the name of a package; dpkg -S FILE or rpm -qf FILE tells whose a file is";
        gone.damaged.push(Failure::failed(format!("no package {} is installed", printable(name))).next(next));
    }
    // One that is not whole is not put in its place.
    if let Some(list) = list.filter(|_| interruption::came().is_none()) {
        list.end()?;
    }
    let some_damaged = !gone.damaged.is_empty();
    for failure in std::mem::take(&mut gone.damaged) {
        let mut told = Told::default();
        told.failure(failure);
        telling.tell(told);
    }
    drop(progress);
    let files = counts.fates.iter().sum::<u64>();
    telling.end(|| summary(&counts, &gone, started) + worth + "\n", numbers(&counts, &gone, asked));
    tell_if_interrupted(files, look_again);
    let bad = Fate::ALL.into_iter().filter(|fate| !fate.is_good()).map(|fate| counts.fates[fate as usize]).sum::<u64>();
    Ok(match (files, bad) {
        (0, _) if !some_damaged => Outcome::Nothing,
        (_, 0) if !some_damaged => Outcome::Done,
        _ => Outcome::Failed,
    })
}

/// Which have packages here: a database without any, of a tool that is merely installed, is none.
fn managers(dpkg: &Option<dpkg::Database<'_>>, rpm: &Option<rpm::Database<'_>>) -> BTreeSet<Manager> {
    let rpm_counts = rpm.as_ref().is_some_and(|rpm| dpkg.is_none() || rpm.has_packages());
    let found = [(Manager::Dpkg, dpkg.is_some()), (Manager::Rpm, rpm_counts)];
    found.into_iter().filter_map(|(manager, is_there)| is_there.then_some(manager)).collect()
}

/// What is said whenever it is relied on.
fn worth(managers: &BTreeSet<Manager>, asked: Asked) -> &'static str {
    match (managers.contains(&Manager::Dpkg), managers.contains(&Manager::Rpm)) {
        (false, true) if asked.packages => {
            "by RPM's headers; what is not signed by a key that was given counts as not signed"
        }
        (false, true) if asked.files => {
            "contents by the files' own signatures; which files there are, links, owners and modes by RPM's headers, whose signatures were \
             not verified: whoever may write the files may write the headers too"
        }
        (_, false) => {
            "by dpkg's lists, which are not signed and hold MD5 digests: whoever may write the files may write the lists too"
        }
        (false, true) => {
            "by RPM's headers, whose signatures were not verified: whoever may write the files may write the headers too"
        }
        (true, true) => {
            "by dpkg's lists, which are not signed and hold MD5 digests, and RPM's headers, whose signatures were not verified: whoever \
             may write the files may write these too"
        }
    }
}

/// The files of the packages that are meant, in pieces.
fn batches<'b>(
    packages: Packages<'b>,
    names: &'b [PathBuf],
    gone: &'b mut Gone,
) -> impl Iterator<Item = Batch> + Send + 'b {
    packages.flat_map(move |package| {
        let mut package = match package {
            Ok(package) => package,
            Err(failure) => {
                gone.damaged.push(failure);
                return Vec::new();
            }
        };
        let whole = format!("{}:{}", package.name, package.architecture);
        let named = names.iter().filter(|name| [&package.name, &whole].iter().any(|own| OsStr::new(own) == *name));
        let named = named.cloned().collect::<Vec<_>>();
        if named.is_empty() && !names.is_empty() {
            return Vec::new();
        }
        gone.names.extend(named);
        gone.packages += 1;
        gone.managers.insert(package.manager);
        // Once, and not for each of its files.
        if let Standing::Refused(why) = &package.standing {
            gone.refused += 1;
            let what = format!("package {} {}: {why}", package.name, package.version);
            let next =
                "give the key that signed it: --package-key KEY; where nobody did, install a package that is signed";
            gone.damaged.push(Failure::failed(what).next(next));
        }
        let files = match std::mem::replace(&mut package.files, Ok(Some(Vec::new()))) {
            Ok(Some(files)) => files,
            Ok(None) => {
                gone.without += 1;
                return Vec::new();
            }
            Err(failure) => {
                gone.damaged.push(failure);
                return Vec::new();
            }
        };
        let package = Arc::new(package);
        let mut files = files.into_iter().peekable();
        let mut batches = Vec::new();
        while files.peek().is_some() {
            batches.push(Batch { package: package.clone(), files: files.by_ref().take(FILES).collect() });
        }
        batches
    })
}

fn summary(counts: &Counts, gone: &Gone, started: Instant) -> String {
    let files = counts.fates.iter().sum::<u64>();
    let mut parts = Vec::new();
    for fate in Fate::ALL {
        let count = counts.fates[fate as usize];
        if count > 0 {
            parts.push(format!("{} {}", grouped(count), fate.words()));
        }
    }
    let (read, took) = (amount(counts.bytes), took(started.elapsed()));
    let (files_of, packages) = (counted(files, "file"), counted(gone.packages, "package"));
    let mut text = match files {
        0 => "no file was found\n".to_owned(),
        _ => format!("{files_of} of {packages}: {}; {read} read in {took}\n", parts.join(", ")),
    };
    if gone.without > 0 {
        let packages = match gone.without {
            1 => "1 package has".to_owned(),
            without => format!("{} packages have", grouped(without)),
        };
        text += &format!("{packages} no list of digests\n");
    }
    text
}

fn numbers(counts: &Counts, gone: &Gone, asked: Asked) -> Map<String, serde_json::Value> {
    let mut numbers = Map::new();
    numbers.insert("packages".into(), json!(gone.packages));
    numbers.insert("files".into(), json!(counts.fates.iter().sum::<u64>()));
    for fate in Fate::ALL {
        numbers.insert(fate.name().into(), json!(counts.fates[fate as usize]));
    }
    numbers.insert("packages_not_signed".into(), json!(gone.refused));
    numbers.insert("without_list".into(), json!(gone.without));
    numbers.insert("bytes".into(), json!(counts.bytes));
    let sources = gone.managers.iter().map(|manager| manager.name()).collect::<Vec<_>>();
    numbers.insert("source".into(), json!(sources.join(",")));
    let whole = interruption::came().is_none();
    let signed = whole && asked.packages && gone.refused == 0 && counts.fates[Fate::NotSigned as usize] == 0;
    numbers.insert("signed".into(), json!(signed));
    numbers
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.fates.iter_mut().zip(more.fates).for_each(|(count, more)| *count += more);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}
