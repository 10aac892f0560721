//! What RPM keeps of installed packages, read below a root that no link leads out of.
//!
//! | file | how it is read |
//! |---|---|
//! | `rpmdb.sqlite`, `rpmdb.sqlite-wal` | the table `Packages`, and the log of what is not in it yet |
//! | `Packages.db` | `ndb` |
//! | `Packages` | not: Berkeley DB, which RPM itself gave up; `rpmdb --rebuilddb` makes one of the others of it |
//!
//! No lock is taken: RPM would have to wait for us. That it wrote meanwhile shows afterwards.

use super::installed::{Content, Expected, Installed, Manager, Packages, Standing};
use super::owners::Owners;
use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::crypto::hash;
use imara_engine::package_keys::{PackageKeys, Refusal};
use imara_format::hash::to_hex;
use imara_format::openpgp;
use imara_format::read_at::ReadAt;
use imara_format::rpm::header::Header;
use imara_format::rpm::ndb::Ndb;
use imara_format::rpm::package::{File as PackageFile, Package, State};
use imara_format::sqlite::{Column, Sqlite};
use imara_linux::tree::InRoot;
use std::collections::HashSet;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where it is: of newer systems, of older ones, of those that are images.
const FOLDERS: [&str; 3] = ["usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm"];

/// What RPM keeps in a system.
pub struct Database<'r> {
    root: &'r InRoot,
    shown: PathBuf,
    store: Store,
    /// The database's files, as they were found.
    files: Vec<(File, Stamp)>,
}

enum Store {
    Sqlite(Sqlite<DatabaseFile>),
    Ndb(Ndb<DatabaseFile>),
}

/// Each package's number and header.
type Headers<'h> = Box<dyn Iterator<Item = Result<(i64, Vec<u8>), Failure>> + Send + 'h>;

/// A file that is read piece by piece.
struct DatabaseFile {
    file: File,
    size: u64,
}

impl ReadAt for DatabaseFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

/// What shows that a file was written to.
type Stamp = (u64, i64, i64, i64, i64);

fn stamp(file: &File) -> io::Result<Stamp> {
    let found = file.metadata()?;
    Ok((found.size(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()))
}

impl<'r> Database<'r> {
    /// Opens it, if it is there; `shown` is what the root is called.
    ///
    /// # Errors
    /// What cannot be read, is damaged, or is of a kind that is not read.
    pub fn open(root: &'r InRoot, shown: &Path) -> Result<Option<Self>, Failure> {
        let mut berkeley = None;
        for folder in FOLDERS {
            for name in ["rpmdb.sqlite", "Packages.db", "Packages"] {
                let below = Path::new(folder).join(name);
                let shown = shown.join(&below);
                let Some(file) = open(root, &below, &shown)? else { continue };
                match name {
                    "Packages" => berkeley = berkeley.or(Some(shown)),
                    _ => return Self::of(root, &below, shown, file).map(Some),
                }
            }
        }
        match berkeley {
            None => Ok(None),
            Some(place) => {
                Err(Failure::lacking(format!("{}: a database in Berkeley DB, which is not read", printable(&place)))
                    .next("make one of it that is, with its RPM: rpmdb --rebuilddb --define '_db_backend sqlite'"))
            }
        }
    }

    fn of(root: &'r InRoot, below: &Path, shown: PathBuf, file: File) -> Result<Self, Failure> {
        let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", printable(&shown)));
        let beside = |end: &str| {
            let name = |path: &Path| {
                let mut name = path.as_os_str().to_owned();
                name.push(end);
                PathBuf::from(name)
            };
            open(root, &name(below), &name(&shown))
        };
        let mut files = Vec::new();
        let mut part = |file: File| -> io::Result<DatabaseFile> {
            let found = stamp(&file)?;
            files.push((file.try_clone()?, found));
            Ok(DatabaseFile { file, size: found.0 })
        };
        let store = if below.ends_with("rpmdb.sqlite") {
            if let Some(journal) = beside("-journal")?
                && stamp(&journal).map_err(|error| failure(&error))?.0 > 0
            {
                return Err(failure(&"a change of it was interrupted")
                    .next("let its RPM put it in order: rpm -q rpm, as root; then verify again"));
            }
            let log = beside("-wal")?.map(&mut part).transpose().map_err(|error| failure(&error))?;
            let file = part(file).map_err(|error| failure(&error))?;
            Store::Sqlite(Sqlite::open(file, log).map_err(|error| failure(&error))?)
        } else {
            let file = part(file).map_err(|error| failure(&error))?;
            Store::Ndb(Ndb::open(file).map_err(|error| failure(&error))?)
        };
        Ok(Self { root, shown, store, files })
    }

    /// Whether there is any package.
    pub fn has_packages(&self) -> bool {
        self.headers().next().is_some()
    }

    /// All packages, each with its files, and what `keys` say of it, if any were given.
    pub fn packages<'p>(&'p self, keys: Option<&'p PackageKeys>) -> Packages<'p> {
        let owners = Owners::read(self.root);
        let kept = keys.map(|keys| self.kept_by_others(keys)).unwrap_or_default();
        Box::new(self.headers().filter_map(move |header| match header {
            Ok((number, header)) => self.package(number, &header, &owners, keys, &kept).transpose(),
            Err(failure) => Some(Err(failure)),
        }))
    }

    /// What some package leaves to another, by what nobody has signed, and another really has, by what is signed.
    fn kept_by_others(&self, keys: &PackageKeys) -> HashSet<Vec<u8>> {
        let signed = || {
            let package = |(_, header): (i64, Vec<u8>)| match judged(&header, Some(keys)) {
                Ok((package, Standing::Signed(_))) => Some(package.files),
                // It is told of when it comes to it.
                Ok(_) | Err(_) => None,
            };
            self.headers().flatten().filter_map(package).flatten()
        };
        let left = signed().filter(|file| matches!(file.state, State::Replaced | State::WrongColor));
        let left = left.map(|file| file.path).collect::<HashSet<_>>();
        if left.is_empty() {
            return left;
        }
        let has = |file: &PackageFile| {
            let there = matches!(file.state, State::Installed | State::Missing);
            there && !file.flags.is_ghost() && !file.flags.is_configuration() && left.contains(&file.path)
        };
        signed().filter(has).map(|file| file.path).collect()
    }

    /// What shows that RPM wrote while it was read.
    pub fn was_changed(&self) -> Option<Failure> {
        let unchanged = self.files.iter().all(|(file, before)| stamp(file).is_ok_and(|now| now == *before));
        if unchanged {
            return None;
        }
        let what =
            format!("{}: was changed while it was read, so that packages may be missing", printable(&self.shown));
        Some(Failure::failed(what).next("verify again when RPM has ended"))
    }

    fn headers(&self) -> Headers<'_> {
        let failure = |error: &dyn Display| Failure::failed(format!("{}: {error}", printable(&self.shown)));
        match &self.store {
            Store::Ndb(ndb) => Box::new(ndb.headers().map(move |header| {
                header.map(|(number, header)| (i64::from(number), header)).map_err(|error| failure(&error))
            })),
            Store::Sqlite(database) => match database.rows("Packages") {
                Err(error) => Box::new(std::iter::once(Err(failure(&error)))),
                Ok(rows) => Box::new(rows.map(move |row| match row {
                    Ok((number, columns)) => match columns.into_iter().nth(1) {
                        Some(Column::Blob(header)) => Ok((number, header)),
                        _ => Err(failure(&format_args!("row {number} of its table Packages has no header"))),
                    },
                    Err(error) => Err(failure(&error)),
                })),
            },
        }
    }

    /// None for a key that was imported.
    fn package(
        &self,
        number: i64,
        header: &[u8],
        owners: &Owners,
        keys: Option<&PackageKeys>,
        kept: &HashSet<Vec<u8>>,
    ) -> Result<Option<Installed>, Failure> {
        let (package, standing) = judged(header, keys).map_err(|failure| Failure {
            what: format!("{}: package {number}: {}", printable(&self.shown), failure.what),
            ..failure
        })?;
        if package.is_key() {
            return Ok(None);
        }
        let Package { name, version, architecture, files, .. } = package;
        let kept = matches!(standing, Standing::Signed(_)).then_some(kept);
        let files = files.into_iter().map(|file| expected(file, owners, kept)).collect();
        Ok(Some(Installed { manager: Manager::Rpm, name, version, architecture, standing, files: Ok(Some(files)) }))
    }
}

/// Reads a header, and finds out who vouches for it.
fn judged(header: &[u8], keys: Option<&PackageKeys>) -> Result<(Package, Standing), Failure> {
    let failure = |error: &dyn Display| Failure::failed(error);
    let package = Package::parse(header).map_err(|error| failure(&error))?;
    let signed = Header::parse(header).map_err(|error| failure(&error))?.signed();
    let signed = signed.each_ref().map(Vec::as_slice);
    if let Some(kept) = &package.digest {
        let found = hash(kept.algorithm(), &signed).map_err(|error| failure(&error))?;
        if found != *kept {
            let Package { name, version, .. } = &package;
            let what = format!("{name} {version}: its header is damaged: its digest is {found}, kept was {kept}");
            return Err(failure(&what).next(Manager::Rpm.reinstall()));
        }
    }
    let standing = match keys {
        None => Standing::Unasked,
        Some(keys) => standing(&package, &signed, keys),
    };
    Ok((package, standing))
}

fn standing(package: &Package, signed: &[&[u8]], keys: &PackageKeys) -> Standing {
    let mut signatures = Vec::new();
    for packets in &package.signatures {
        match openpgp::signatures(packets) {
            Ok(found) => signatures.extend(found),
            Err(error) => return Standing::Refused(Refusal::NoSignature(error.to_string()).to_string()),
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match keys.verify(&signatures, signed, now) {
        Ok(_) if package.relocated => {
            Standing::Refused("its files were put elsewhere than their maker signed".to_owned())
        }
        Ok(key) => Standing::Signed(format!("{} {}", to_hex(&key.id), key.owner)),
        Err(refusal) => Standing::Refused(refusal.to_string()),
    }
}

fn open(root: &InRoot, below: &Path, shown: &Path) -> Result<Option<File>, Failure> {
    match root.content(below) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Failure::failed(format!("{}: {error}", printable(shown)))),
    }
}

/// What is to be expected of a file, by what its package wants to stay. Of a signed package's, `kept` says what others keep: that a file was left out or is
/// another package's stands in the database alone, where whoever changed the file could have written it.
fn expected(file: PackageFile, owners: &Owners, kept: Option<&HashSet<Vec<u8>>>) -> Expected {
    const TYPE: u16 = 0o170_000;
    let (flags, verified) = (file.flags, file.verified);
    let left_out = matches!(file.state, State::NotInstalled | State::NetShared);
    let state = match (file.state, kept) {
        (State::Replaced | State::WrongColor, Some(kept)) if !kept.contains(&file.path) => State::Installed,
        (State::NotInstalled | State::NetShared, Some(_)) => State::Installed,
        (state, _) => state,
    };
    let content = match state {
        State::NotInstalled | State::NetShared => Content::LeftOut,
        // Another package's file is there.
        State::Replaced | State::WrongColor => Content::Any,
        State::Installed | State::Missing if flags.is_ghost() => Content::Any,
        State::Installed | State::Missing => match file.mode & TYPE {
            0o100_000 => Content::Regular {
                digest: file.digest.filter(|_| verified.content()),
                size: Some(file.size).filter(|_| verified.size() && verified.content()),
            },
            0o120_000 => Content::Link(Some(file.link).filter(|_| verified.link())),
            0o040_000 => Content::Folder,
            _ => Content::Special,
        },
    };
    let is_link = matches!(content, Content::Link(_));
    let own = matches!(state, State::Installed | State::Missing);
    Expected {
        signature: file.signature,
        path: file.path,
        configuration: flags.is_configuration(),
        optional: flags.may_be_missing() || left_out,
        mode: (own && verified.mode() && !is_link).then_some(u32::from(file.mode & !TYPE)),
        user: if own && verified.user() { owners.user(&file.user) } else { None },
        group: if own && verified.group() { owners.group(&file.group) } else { None },
        content,
    }
}
