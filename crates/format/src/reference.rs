//! Reference values: which contents files are meant to have.
//!
//! A list of lines as `sha256sum` and its like write them, so that any list of a package or a build can be taken:
//!
//! | line | meaning |
//! |---|---|
//! | `HEX  PATH`, `HEX *PATH` | the file's digest; its length tells the algorithm (16, 20, 28, 32, 48 or 64 bytes) |
//! | `ALGORITHM:HEX  PATH` | the same, named |
//! | `ALGORITHM (PATH) = HEX` | the same, as BSD's tools and `--tag` write it |
//! | `HEX` or `ALGORITHM:HEX` | a content that any file may have |
//!
//! Blank lines and lines that begin with `#` are skipped. A line that begins with `\` has `\\` and `\n` in its path for a
//! backslash and a newline. A file may have several lines, each a content that it may have.
//!
//! Source: coreutils' digest.c describes the forms (`info sha256sum`).

use crate::hash::{Digest, DigestLengthError, HashAlgorithm, from_hex};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Which contents files are meant to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    files: HashMap<Vec<u8>, Vec<Digest>>,
    anywhere: HashSet<Digest>,
}

/// What the references say of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The file is meant to have it, or any file may.
    Known,
    /// The file is meant to have another one.
    Changed,
    /// The file is meant to have one, given in other algorithms than this one's.
    OtherAlgorithm(HashAlgorithm),
    /// Nothing is said of the file.
    Unlisted,
}

/// A line that says nothing, or nothing that can be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {kind}")]
pub struct ReferenceError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub kind: ReferenceErrorKind,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceErrorKind {
    /// It begins with no digest.
    #[error("`{0}` is no digest; `HEX  PATH` or `ALGORITHM:HEX  PATH` was needed")]
    NoDigest(String),
    /// No algorithm has digests of this size.
    #[error("no hash has digests of {0} bytes; 16, 20, 28, 32, 48 or 64 were needed")]
    Size(usize),
    /// No such algorithm.
    #[error("there is no hash algorithm `{0}`")]
    Algorithm(String),
    /// The algorithm's digests have another size.
    #[error(transparent)]
    Length(#[from] DigestLengthError),
}

impl References {
    /// Reads a list; `bytes` need not be UTF-8, as paths need not.
    ///
    /// # Errors
    /// [`ReferenceError`] with the line.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReferenceError> {
        let mut references = Self::default();
        references.add(bytes)?;
        Ok(references)
    }

    /// Adds a list.
    ///
    /// # Errors
    /// [`ReferenceError`] with the line; what stood before it was added.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), ReferenceError> {
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() || line.starts_with(b"#") {
                continue;
            }
            let at = |kind| ReferenceError { line: index.saturating_add(1), kind };
            match read_line(line).map_err(at)? {
                (digest, None) => {
                    self.anywhere.insert(digest);
                }
                (digest, Some(path)) => {
                    let digests = self.files.entry(path.into_owned()).or_default();
                    if !digests.contains(&digest) {
                        digests.push(digest);
                    }
                }
            }
        }
        Ok(())
    }

    /// How many files it names.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.anywhere.is_empty()
    }

    /// What is said of a file with this content. Names like `./usr/bin/true` and `usr/bin/true`, which a list made within a
    /// folder has, are meant from the root.
    pub fn standing(&self, path: &[u8], digest: &Digest) -> Standing {
        if self.anywhere.contains(digest) {
            return Standing::Known;
        }
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        let names = [Cow::Borrowed(path), Cow::Borrowed(relative), Cow::Owned([b"./", relative].concat())];
        let mut standing = Standing::Unlisted;
        for digests in names.iter().filter_map(|name| self.files.get(name.as_ref())) {
            if digests.contains(digest) {
                return Standing::Known;
            }
            let comparable = digests.iter().any(|known| known.algorithm() == digest.algorithm());
            standing = match (comparable, standing, digests.first()) {
                (false, Standing::Unlisted, Some(other)) => Standing::OtherAlgorithm(other.algorithm()),
                (true, _, _) => Standing::Changed,
                (false, before, _) => before,
            };
        }
        standing
    }
}

type Line<'a> = (Digest, Option<Cow<'a, [u8]>>);

fn read_line(line: &[u8]) -> Result<Line<'_>, ReferenceErrorKind> {
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let path = |path| if escaped { Cow::Owned(unescape(path)) } else { Cow::Borrowed(path) };
    if let Some((algorithm, name, hex)) = tagged(line) {
        return Ok((digest(Some(algorithm), hex)?, Some(path(name))));
    }
    let end = line.iter().position(|byte| *byte == b' ' || *byte == b'\t').unwrap_or(line.len());
    let (first, rest) = line.split_at_checked(end).unwrap_or((line, b""));
    let (algorithm, hex) = match first.iter().position(|byte| *byte == b':') {
        Some(colon) => {
            let (name, hex) = first.split_at_checked(colon).unwrap_or((first, b""));
            (Some(name), hex.strip_prefix(b":").unwrap_or(hex))
        }
        None => (None, first),
    };
    let digest = digest(algorithm, hex)?;
    // A space and the mode: a space, or `*` for binary. Fewer blanks, or a tab, are taken as well.
    let name = rest.strip_prefix(b" ").or_else(|| rest.strip_prefix(b"\t")).unwrap_or(rest);
    let name = name.strip_prefix(b" ").or_else(|| name.strip_prefix(b"*")).unwrap_or(name);
    Ok((digest, (!name.is_empty()).then(|| path(name))))
}

/// `SHA256 (PATH) = HEX`.
fn tagged(line: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let open = line.windows(2).position(|pair| pair == b" (")?;
    let close = line.windows(4).rposition(|four| four == b") = ")?;
    Some((line.get(..open)?, line.get(open.checked_add(2)?..close)?, line.get(close.checked_add(4)?..)?))
}

fn digest(algorithm: Option<&[u8]>, hex: &[u8]) -> Result<Digest, ReferenceErrorKind> {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(40).collect::<String>();
    let bytes = std::str::from_utf8(hex).ok().and_then(|hex| from_hex(hex).ok());
    let bytes = bytes.ok_or_else(|| ReferenceErrorKind::NoDigest(shown(hex)))?;
    let algorithm = match algorithm {
        Some(name) => {
            let lower = shown(name).to_ascii_lowercase();
            HashAlgorithm::from_name(&lower).ok_or(ReferenceErrorKind::Algorithm(lower))?
        }
        None => match bytes.len() {
            16 => HashAlgorithm::Md5,
            20 => HashAlgorithm::Sha1,
            28 => HashAlgorithm::Sha224,
            32 => HashAlgorithm::Sha256,
            48 => HashAlgorithm::Sha384,
            64 => HashAlgorithm::Sha512,
            0 => return Err(ReferenceErrorKind::NoDigest(shown(hex))),
            size => return Err(ReferenceErrorKind::Size(size)),
        },
    };
    Ok(Digest::new(algorithm, &bytes)?)
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => out.push(b'\n'),
                Some(b'r') => out.push(b'\r'),
                Some(other) => out.push(other),
                None => out.push(b'\\'),
            },
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: &str = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
    const TWO: &str = "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35";

    fn sha256(hex: &str) -> Digest {
        Digest::new(HashAlgorithm::Sha256, &from_hex(hex).unwrap()).unwrap()
    }

    #[test]
    fn every_form_of_a_line_is_taken() {
        for (line, path) in [
            (format!("{ONE}  /bin/one"), "/bin/one"),
            (format!("{ONE} */bin/one"), "/bin/one"),
            (format!("{ONE}\t/bin/one\r"), "/bin/one"),
            (format!("sha256:{ONE}  /bin/one"), "/bin/one"),
            (format!("SHA256 (/bin/one) = {ONE}"), "/bin/one"),
            (format!("SHA256 (/bin/a (b) = c) = {ONE}"), "/bin/a (b) = c"),
            (format!("{ONE}  ./bin/one"), "/bin/one"),
            (format!("{ONE}  bin/one"), "/bin/one"),
            (format!("\\{ONE}  /a\\\\b\\nc"), "/a\\b\nc"),
            (format!("{ONE}   two blanks"), " two blanks"),
            (ONE.to_owned(), "/any/where"),
            (format!("sha256:{ONE}"), "/any/where"),
        ] {
            let references = References::parse(format!("# a comment\n\n{line}\n").as_bytes()).unwrap();
            assert_eq!(references.standing(path.as_bytes(), &sha256(ONE)), Standing::Known, "{line}");
            let other = if line.ends_with(ONE) && !line.contains('(') { Standing::Unlisted } else { Standing::Changed };
            assert_eq!(references.standing(path.as_bytes(), &sha256(TWO)), other, "{line}");
        }
    }

    #[test]
    fn a_file_may_have_several_contents_and_algorithms() {
        let text = format!("{ONE}  /f\n{TWO}  /f\nsha1:{}  /g\n", "11".repeat(20));
        let references = References::parse(text.as_bytes()).unwrap();
        assert_eq!(references.files(), 2);
        for (path, digest, standing) in [
            ("/f", ONE, Standing::Known),
            ("/f", TWO, Standing::Known),
            ("/g", ONE, Standing::OtherAlgorithm(HashAlgorithm::Sha1)),
            ("/h", ONE, Standing::Unlisted),
        ] {
            assert_eq!(references.standing(path.as_bytes(), &sha256(digest)), standing, "{path}");
        }
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for (line, expected) in [
            ("hello world", "line 2: `hello` is no digest; `HEX  PATH` or `ALGORITHM:HEX  PATH` was needed"),
            ("abcd  /f", "line 2: no hash has digests of 2 bytes; 16, 20, 28, 32, 48 or 64 were needed"),
            ("sha9:abcd  /f", "line 2: there is no hash algorithm `sha9`"),
            (" x", "line 2: `` is no digest; `HEX  PATH` or `ALGORITHM:HEX  PATH` was needed"),
        ] {
            let error = References::parse(format!("{ONE}  /f\n{line}\n").as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let error = References::parse(b"sha256:abcd  /f").unwrap_err();
        assert!(matches!(error.kind, ReferenceErrorKind::Length(_)), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = References::parse(&bytes);
        }
    }
}
