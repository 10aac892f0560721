//! What dpkg keeps of installed packages: their state, the digests of their files, and which files are kept under other names.
//!
//! | file below `/var/lib/dpkg` | layout |
//! |---|---|
//! | `status` | paragraphs with a blank line between them; `Field: value`, further lines begin with a blank |
//! | `info/PACKAGE.md5sums`, `info/PACKAGE:ARCH.md5sums` | lines `HEX  PATH`; the path has no leading slash |
//! | `diversions` | three lines each: a path, where it is kept instead, the package whose own file stays at the path (`:` for none) |
//!
//! Nothing of it is signed, and the digests are MD5: it shows accidents, and says nothing about who made a file.
//!
//! Source: dpkg(1), deb-control(5), dpkg-divert(1); deb-md5sums(5).

use crate::hash::{Digest, HashAlgorithm, from_hex};
use std::collections::HashMap;

/// A package that is installed, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// Its version.
    pub version: String,
    /// Whether it is installed, whole.
    pub installed: bool,
    /// Its configuration files, which administrators change, with the digests that they were installed with.
    pub configuration: Vec<(Vec<u8>, Digest)>,
}

impl Package {
    /// The names that its list of digests may have in `info`.
    pub fn lists(&self) -> [String; 2] {
        let Self { name, architecture, .. } = self;
        [format!("{name}.md5sums"), format!("{name}:{architecture}.md5sums")]
    }
}

/// A line that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LineError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

fn md5(text: &[u8]) -> Option<Digest> {
    let bytes = from_hex(std::str::from_utf8(text).ok()?).ok()?;
    Digest::new(HashAlgorithm::Md5, &bytes).ok()
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// Reads a list of digests: paths, without a leading slash, and their digests.
///
/// # Errors
/// [`LineError`].
pub fn md5sums(list: &[u8]) -> Result<Vec<(&[u8], Digest)>, LineError> {
    let mut files = Vec::new();
    for (number, line) in (1..).zip(list.split(|byte| *byte == b'\n')) {
        if line.is_empty() {
            continue;
        }
        let error = |what| LineError { line: number, what };
        let (digest, rest) = line.split_at_checked(32).ok_or_else(|| error("an MD5 digest was needed"))?;
        let digest = md5(digest).ok_or_else(|| error("an MD5 digest was needed"))?;
        let path = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *"));
        let path = path.filter(|path| !path.is_empty()).ok_or_else(|| error("two blanks and a path were needed"))?;
        files.push((path.strip_prefix(b"./").unwrap_or(path), digest));
    }
    Ok(files)
}

/// Reads the state of all packages.
///
/// # Errors
/// [`LineError`].
pub fn status(text: &[u8]) -> Result<Vec<Package>, LineError> {
    let (mut packages, mut package, mut field) = (Vec::new(), Package::default(), Vec::new());
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let error = |what| LineError { line: number, what };
        if is_blank(line) {
            field.clear();
            let package = std::mem::take(&mut package);
            packages.extend(Some(package).filter(|package| !package.name.is_empty()));
            continue;
        }
        if line.first().is_some_and(u8::is_ascii_whitespace) {
            if field == b"conffiles" {
                package.configuration.extend(configuration_file(line));
            }
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| error("`Field: value` was needed"))?;
        let (name, value) = line.split_at(colon);
        field = name.to_ascii_lowercase();
        let value = String::from_utf8_lossy(value.get(1..).unwrap_or_default().trim_ascii()).into_owned();
        // They become parts of a file's name.
        if matches!(field.as_slice(), b"package" | b"architecture") && (value.contains(['/', '\0'])) {
            return Err(error("no package's name or architecture has a slash"));
        }
        match field.as_slice() {
            b"package" => package.name = value,
            b"architecture" => package.architecture = value,
            b"version" => package.version = value,
            b"status" => package.installed = value.ends_with(" ok installed"),
            _ => {}
        }
    }
    packages.extend(Some(package).filter(|package| !package.name.is_empty()));
    Ok(packages)
}

/// `PATH MD5`, with words behind it for one that the package no longer has; nothing for one that has no digest yet.
fn configuration_file(line: &[u8]) -> Option<(Vec<u8>, Digest)> {
    let mut words = line.trim_ascii().split(|byte| *byte == b' ').rev().collect::<Vec<_>>();
    let last = *words.first()?;
    if matches!(last, b"obsolete" | b"remove-on-upgrade") {
        return None;
    }
    let digest = md5(last)?;
    words.remove(0);
    words.reverse();
    let path = words.join(&b' ');
    Some((path, digest)).filter(|(path, _)| path.starts_with(b"/"))
}

/// Which files are kept under other names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diversions(HashMap<Vec<u8>, (Vec<u8>, Vec<u8>)>);

impl Diversions {
    /// Reads them.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect::<Vec<_>>();
        let mut diversions = HashMap::new();
        for (number, lines) in lines.chunks(3).enumerate() {
            let &[from, to, package] = lines else {
                return Err(LineError {
                    line: number.saturating_mul(3).saturating_add(1),
                    what: "three lines were needed",
                });
            };
            diversions.insert(from.to_vec(), (to.to_vec(), package.to_vec()));
        }
        Ok(Self(diversions))
    }

    /// Where a package's file is.
    pub fn place<'p>(&'p self, path: &'p [u8], package: &str) -> &'p [u8] {
        match self.0.get(path) {
            Some((to, own)) if own != package.as_bytes() => to,
            _ => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn empty() -> Digest {
        Digest::new(HashAlgorithm::Md5, &from_hex(EMPTY).unwrap()).unwrap()
    }

    #[test]
    fn lists_of_digests_are_read_or_refused_with_the_line() {
        let list = format!("{EMPTY}  usr/bin/with a blank\n{EMPTY}  ./usr/share/\u{fc}\n\n{EMPTY} *bin\n");
        let read = md5sums(list.as_bytes()).unwrap();
        let paths = read.iter().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>();
        assert_eq!(paths, ["usr/bin/with a blank", "usr/share/\u{fc}", "bin"]);
        assert!(read.iter().all(|(_, digest)| *digest == empty()));
        for (text, what) in [
            ("d41d8cd98f  a", "an MD5 digest was needed"),
            ("d41d8cd98f00b204e9800998ecf8427x  a", "an MD5 digest was needed"),
            (&format!("{EMPTY} a"), "two blanks and a path were needed"),
            (&format!("{EMPTY}  "), "two blanks and a path were needed"),
        ] {
            let text = format!("{EMPTY}  good\n{text}\n");
            assert_eq!(md5sums(text.as_bytes()), Err(LineError { line: 2, what }));
        }
    }

    #[test]
    fn states_are_read_with_their_configuration_files() {
        let text = format!(
            "Package: one\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\nConffiles:\n /etc/a b {EMPTY}\n \
             /etc/old {EMPTY} obsolete\n /etc/new newconffile\nDescription: text\n /etc/none {EMPTY}\n\nPackage: gone\nStatus: \
             deinstall ok config-files\n\nPackage: half\nstatus: install ok half-installed\n"
        );
        let packages = status(text.as_bytes()).unwrap();
        let states = packages.iter().map(|package| (package.name.as_str(), package.installed)).collect::<Vec<_>>();
        assert_eq!(states, [("one", true), ("gone", false), ("half", false)]);
        assert_eq!(packages[0].configuration, [(b"/etc/a b".to_vec(), empty())]);
        assert_eq!(packages[0].version, "1:2-3");
        assert_eq!(packages[0].lists(), ["one.md5sums", "one:amd64.md5sums"]);
        for (text, what) in [
            ("Package: a\nwhat\n", "`Field: value` was needed"),
            ("Version: 1\nPackage: ../../etc/a\n", "no package's name or architecture has a slash"),
            ("Package: a\nArchitecture: /x\n", "no package's name or architecture has a slash"),
        ] {
            assert_eq!(status(text.as_bytes()), Err(LineError { line: 2, what }), "{text}");
        }
    }

    #[test]
    fn diverted_files_are_where_they_are_kept() {
        let diversions = Diversions::parse(b"/bin/sh\n/bin/sh.distrib\ndash\n/a\n/b\n:\n").unwrap();
        for (path, package, place) in [
            ("/bin/sh", "bash", "/bin/sh.distrib"),
            ("/bin/sh", "dash", "/bin/sh"),
            ("/a", "any", "/b"),
            ("/c", "any", "/c"),
        ] {
            assert_eq!(diversions.place(path.as_bytes(), package), place.as_bytes());
        }
        assert_eq!(Diversions::parse(b"/a\n/b\n:\n/c\n").unwrap_err().line, 4);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (md5sums(&text), status(&text), Diversions::parse(&text));
        }
    }
}
