//! What dpkg keeps of installed packages, read below a root that no link leads out of.

use super::installed::{Content, Expected, Installed, Manager, Packages, Standing};
use crate::command::paths::{printable, read_all};
use crate::output::Failure;
use imara_format::dpkg::{self, Diversions, Package};
use imara_format::hash::Digest;
use imara_linux::tree::InRoot;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What dpkg keeps in a system.
pub struct Database<'r> {
    root: &'r InRoot,
    shown: PathBuf,
    /// Those that are installed.
    packages: Vec<Package>,
    diversions: Diversions,
}

/// Where it is.
const FOLDER: &str = "var/lib/dpkg";

impl<'r> Database<'r> {
    /// Reads it, if it is there; `shown` is what the root is called.
    ///
    /// # Errors
    /// What cannot be read, or is damaged.
    pub fn read(root: &'r InRoot, shown: &Path) -> Result<Option<Self>, Failure> {
        let below = Path::new(FOLDER);
        let read = |name: &str| root.content(&below.join(name)).and_then(read_all);
        let folder = shown.join(below);
        let path = folder.join("status");
        let status = match read("status") {
            Ok(status) => status,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", printable(&path)))),
        };
        let damaged = |path: &Path, error: dpkg::LineError| Failure::failed(format!("{}: {error}", printable(path)));
        let mut packages = dpkg::status(&status).map_err(|error| damaged(&path, error))?;
        packages.retain(|package| package.installed);
        let path = folder.join("diversions");
        let diversions = match read("diversions") {
            Ok(text) => Diversions::parse(&text).map_err(|error| damaged(&path, error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Diversions::default(),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", printable(&path)))),
        };
        Ok(Some(Self { root, shown: folder, packages, diversions }))
    }

    /// All packages, each with its files.
    pub fn packages(&self) -> Packages<'_> {
        Box::new(self.packages.iter().map(|package| {
            Ok(Installed {
                manager: Manager::Dpkg,
                name: package.name.clone(),
                version: package.version.clone(),
                architecture: package.architecture.clone(),
                standing: Standing::Unasked,
                files: self.files(package),
            })
        }))
    }

    /// The files of a package; none where it has no list.
    fn files(&self, package: &Package) -> Result<Option<Vec<Expected>>, Failure> {
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
            let content = Content::Regular { digest: Some(digest), size: None };
            files.push(Expected {
                path,
                content,
                configuration,
                optional: configuration,
                mode: None,
                user: None,
                group: None,
                signature: None,
            });
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
