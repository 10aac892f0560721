//! What dpkg keeps of installed packages, read below a root that no link leads out of.

use super::Expected;
use crate::command::paths::{printable, read_all};
use crate::output::Failure;
use imara_format::dpkg::{self, Diversions, Package};
use imara_format::hash::Digest;
use imara_linux::tree::InRoot;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What dpkg keeps in a system.
pub struct Database<'r> {
    root: &'r InRoot,
    shown: PathBuf,
    /// Those that are installed.
    pub packages: Vec<Package>,
    diversions: Diversions,
}

/// Where it is.
const FOLDER: &str = "var/lib/dpkg";

impl<'r> Database<'r> {
    /// Reads it; `shown` is what the root is called, `names` are the packages to be looked at, none for all.
    ///
    /// # Errors
    /// What is not there, cannot be read, or is damaged.
    pub fn read(root: &'r InRoot, shown: &Path, names: &[PathBuf]) -> Result<Self, Failure> {
        let below = Path::new(FOLDER);
        let read = |name: &str| root.content(&below.join(name)).and_then(read_all);
        let folder = shown.join(below);
        let path = folder.join("status");
        let status = read("status").map_err(|error| match error.kind() {
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
        let diversions = match read("diversions") {
            Ok(text) => Diversions::parse(&text).map_err(|error| damaged(&path, error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Diversions::default(),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", printable(&path)))),
        };
        Ok(Self { root, shown: folder, packages, diversions })
    }

    /// The files of a package; none where it has no list.
    ///
    /// # Errors
    /// A list that cannot be read, or is damaged.
    pub fn files(&self, package: &Package) -> Result<Option<Vec<Expected>>, Failure> {
        let mut text = None;
        for list in package.lists() {
            let below = Path::new("info").join(list);
            let shown = self.shown.join(&below);
            match self.root.content(&Path::new(FOLDER).join(below)).and_then(read_all) {
                Ok(found) => {
                    text = Some((found, shown));
                    break;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::failed(format!("{}: {error}", printable(&shown)))),
            }
        }
        let mut files = Vec::new();
        let mut add = |path: &[u8], digest, configuration| {
            let absolute = [b"/", path].concat();
            let path = self.diversions.place(&absolute, &package.name).to_vec();
            files.push(Expected { path, digest, configuration });
        };
        if let Some((text, shown)) = &text {
            let listed = dpkg::md5sums(text);
            for (path, digest) in listed.map_err(|error| Failure::failed(format!("{}: {error}", printable(shown))))? {
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
        Ok(if text.is_none() && files.is_empty() { None } else { Some(files) })
    }
}
