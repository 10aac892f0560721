//! A file against what is known of it.

use super::super::finding;
use super::super::keys::Keys;
use super::installed::{Content, Expected, Installed, Standing};
use super::{Batch, PackageOptions, Results};
use crate::command::paths::printable;
use crate::command::progress::Progress;
use crate::command::telling::{Form, failure_json};
use crate::output::Failure;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_linux::files::OpenError;
use imara_linux::tree::{InRoot, Kind, Looked, TreeFile};
use serde_json::json;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What came of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is as it was installed.
    Same,
    /// Its content is another.
    Changed,
    /// Its owner or mode is another.
    AttributesChanged,
    /// It is configuration, and was changed.
    Configured,
    /// It is not there.
    Missing,
    /// The package manager did not put it there.
    LeftOut,
    /// It is as it was installed, and nobody who was named vouches for that.
    NotSigned,
    /// It could not be read.
    Unreadable,
}

impl Fate {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Same,
        Self::Changed,
        Self::AttributesChanged,
        Self::Configured,
        Self::Missing,
        Self::LeftOut,
        Self::NotSigned,
        Self::Unreadable,
    ];

    /// For programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Changed => "changed",
            Self::AttributesChanged => "attributes-changed",
            Self::Configured => "configuration-changed",
            Self::Missing => "missing",
            Self::LeftOut => "left-out",
            Self::NotSigned => "not-signed",
            Self::Unreadable => "unreadable",
        }
    }

    /// After a number, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Same => "as installed",
            Self::Changed => "changed",
            Self::AttributesChanged => "with another owner or mode",
            Self::Configured => "of configuration changed",
            Self::Missing => "missing",
            Self::LeftOut => "left out when the package was installed",
            Self::NotSigned => "not signed by a key that was given",
            Self::Unreadable => "unreadable",
        }
    }

    /// Configuration is there to be changed.
    pub const fn is_good(self) -> bool {
        match self {
            Self::Same | Self::Configured | Self::LeftOut => true,
            Self::Changed | Self::AttributesChanged | Self::Missing | Self::NotSigned | Self::Unreadable => false,
        }
    }
}

/// A fate, and why it is not as installed.
type Found = (Fate, String);

/// How files are looked at.
pub struct Verification<'v> {
    options: &'v PackageOptions,
    form: Form,
    root: &'v InRoot,
    progress: &'v Progress,
    /// With which files' own signatures are verified, if they are asked for.
    keys: Option<&'v Keys>,
}

impl<'v> Verification<'v> {
    /// Those of a system.
    pub fn new(
        options: &'v PackageOptions,
        form: Form,
        root: &'v InRoot,
        progress: &'v Progress,
        keys: Option<&'v Keys>,
    ) -> Self {
        Self { options, form, root, progress, keys }
    }

    /// Looks at some.
    pub fn batch(&self, batch: &Batch) -> Results {
        let mut results = Results::default();
        for expected in &batch.files {
            let below = Path::new(OsStr::from_bytes(expected.path.get(1..).unwrap_or_default()));
            let shown = self.options.root.join(below);
            let found = self.verify(&batch.package, expected, below, &shown, &mut results);
            results.counts.fates[found.0 as usize] += 1;
            self.progress.count(1);
            self.tell(&batch.package, &shown, &found, &mut results);
        }
        results
    }

    fn tell(&self, package: &Installed, shown: &Path, (fate, why): &Found, results: &mut Results) {
        let Installed { name, version, manager, .. } = package;
        results.told.line(self.form, || format!("{}: {} by {name} {version}\n", printable(shown), fate.words()));
        let failure = Failure::failed(format!("{}: {why}", printable(shown))).next(match fate {
            Fate::Changed | Fate::Missing | Fate::AttributesChanged => manager.reinstall(),
            Fate::NotSigned => "give the certificate of the key that signed it: -k CERT",
            Fate::Same | Fate::Configured | Fate::LeftOut | Fate::Unreadable => "",
        });
        results.told.object(self.form, shown, |object| {
            object.insert("package".into(), json!(name));
            object.insert("version".into(), json!(version));
            object.insert("verified".into(), json!(fate.is_good()));
            object.insert("state".into(), json!(fate.name()));
            if let Standing::Signed(key) = &package.standing {
                object.insert("signed_by".into(), json!(key));
            }
            if !fate.is_good() {
                failure_json(object, &failure);
            }
        });
        // That a package is not signed is told once.
        let told = *fate == Fate::NotSigned && matches!(package.standing, Standing::Refused(_));
        if !fate.is_good() && !told {
            results.told.failure(failure);
        }
    }

    fn verify(
        &self,
        package: &Installed,
        expected: &Expected,
        below: &Path,
        shown: &Path,
        results: &mut Results,
    ) -> Found {
        let same = || (Fate::Same, String::new());
        // Whatever became of configuration, it is there to be changed.
        let changed = |why: String| match expected.configuration {
            true => (Fate::Configured, String::new()),
            false => (Fate::Changed, format!("changed: {why}")),
        };
        if expected.content == Content::LeftOut {
            return (Fate::LeftOut, String::new());
        }
        let looked = match self.root.look(below, false) {
            Ok(looked) => looked,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return match (expected.configuration, expected.optional) {
                    (true, _) => (Fate::Configured, String::new()),
                    (false, true) => same(),
                    (false, false) => (Fate::Missing, "missing".to_owned()),
                };
            }
            Err(error) => return (Fate::Unreadable, error.to_string()),
        };
        let (content, attributes) = match &expected.content {
            Content::Regular { digest, size } => {
                let file = match self.root.file(below, shown) {
                    Ok(file) => file,
                    Err(error @ OpenError::NotRegular { .. }) => return changed(format!("it {}", error.reason())),
                    Err(error @ OpenError::System { .. }) => return (Fate::Unreadable, error.reason()),
                };
                let attributes = attributes(expected, &Looked::of(&file.stat));
                let content = self.content(&file, digest.as_ref(), *size, results).and_then(|content| {
                    let (None, None, Some(digest)) = (&content, &attributes, digest) else {
                        return Ok((content, None));
                    };
                    let unproven = self.unproven(package, expected, &file);
                    if unproven.is_none() {
                        self.list(&file, &expected.path, *digest, results)?;
                    }
                    Ok((content, unproven))
                });
                match content {
                    Ok((_, Some(why))) => return (Fate::NotSigned, why),
                    Ok((content, None)) => (content, attributes),
                    Err(error) => return (Fate::Unreadable, error.to_string()),
                }
            }
            Content::Link(target) => {
                let content = match (&looked.link, target) {
                    (None, _) => Some(format!("it is {}, not a symbolic link", looked.kind.words())),
                    (Some(found), Some(target)) if found != target => {
                        let [found, target] = [found, target].map(|path| printable(Path::new(OsStr::from_bytes(path))));
                        Some(format!("it leads to {found}, installed to {target}"))
                    }
                    (Some(_), _) => None,
                };
                (content, attributes(expected, &looked))
            }
            Content::Folder => {
                // A link to a folder in a folder's place is what administrators make, and RPM takes.
                let followed = match looked.kind {
                    Kind::Link => self.root.look(below, true).ok(),
                    Kind::Regular | Kind::Folder | Kind::Special => None,
                };
                of_kind(expected, &followed.unwrap_or(looked), Kind::Folder)
            }
            Content::Special => of_kind(expected, &looked, Kind::Special),
            Content::Any => (None, attributes(expected, &looked)),
            Content::LeftOut => (None, None),
        };
        match (content, attributes) {
            (Some(why), _) => changed(why),
            (None, Some(_)) if expected.configuration => (Fate::Configured, String::new()),
            (None, Some(why)) => (Fate::AttributesChanged, why),
            (None, None) => match &package.standing {
                Standing::Refused(why) => (Fate::NotSigned, why.clone()),
                // Of what is no content a file's own signature says nothing.
                Standing::Signed(_) | Standing::Unasked => same(),
            },
        }
    }

    /// Why somebody who was named does not vouch for a content: each of those that are asked for has to.
    fn unproven(&self, package: &Installed, expected: &Expected, file: &TreeFile<'_>) -> Option<String> {
        if let Standing::Refused(why) = &package.standing {
            return Some(why.clone());
        }
        let keys = self.keys?;
        let Some(label) = &expected.signature else {
            return Some("not signed: its package has no signature of its own for it".to_owned());
        };
        let verified = finding::verify(label, |algorithm| file.digest(algorithm, |_| {}), keys, false);
        verified.err().map(|refused| format!("its own signature: {}", refused.what))
    }

    /// Why a content is another.
    fn content(
        &self,
        file: &TreeFile<'_>,
        digest: Option<&Digest>,
        size: Option<u64>,
        results: &mut Results,
    ) -> io::Result<Option<String>> {
        let found = file.state().size;
        if let Some(size) = size.filter(|size| *size != found) {
            return Ok(Some(format!("it has {found} bytes, installed with {size}")));
        }
        let Some(digest) = digest else { return Ok(None) };
        let found = file.digest(digest.algorithm(), |more| {
            results.counts.bytes += more;
            self.progress.bytes(more);
        })?;
        Ok((found != *digest).then(|| format!("its digest is {found}, installed with {digest}")))
    }

    /// Adds a file to the list of digests.
    fn list(&self, file: &TreeFile<'_>, path: &[u8], found: Digest, results: &mut Results) -> io::Result<()> {
        if self.options.digest_list.is_none() {
            return Ok(());
        }
        let digest = match found.algorithm() {
            HashAlgorithm::Sha256 => found,
            _ => file.digest(HashAlgorithm::Sha256, |_| {})?,
        };
        if !file.has_its_content()? {
            return Err(io::Error::other("changed while it was read"));
        }
        let escaped = path.iter().any(|byte| matches!(byte, b'\\' | b'\n'));
        let list = &mut results.list;
        list.extend(escaped.then_some(b'\\'));
        list.extend(format!("{}  ", digest.to_hex()).into_bytes());
        for byte in path {
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

/// Why something is another than of this kind, and which attribute is another.
fn of_kind(expected: &Expected, looked: &Looked, kind: Kind) -> (Option<String>, Option<String>) {
    let content = (looked.kind != kind).then(|| format!("it is {}, not {}", looked.kind.words(), kind.words()));
    (content, attributes(expected, looked))
}

/// Which attribute is another.
fn attributes(expected: &Expected, found: &Looked) -> Option<String> {
    let mut differ = Vec::new();
    if let Some(mode) = expected.mode.filter(|mode| *mode != found.mode) {
        differ.push(format!("its mode is {:04o}, installed with {mode:04o}", found.mode));
    }
    for (name, expected, found) in [("owner", expected.user, found.user), ("group", expected.group, found.group)] {
        if let Some(id) = expected.filter(|id| *id != found) {
            differ.push(format!("its {name} is {found}, installed with {id}"));
        }
    }
    if differ.is_empty() { None } else { Some(differ.join("; ")) }
}
