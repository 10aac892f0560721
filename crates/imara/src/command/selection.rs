//! `--include` and `--exclude`: which files of a tree, by patterns.

use globset::{Candidate, GlobBuilder, GlobMatcher};
use std::path::Path;

/// Patterns, in the manner of gitignore: one without a slash is for the name alone, in every folder; one with a slash for the
/// path below the folder that was named.
#[derive(Clone, Default, clap::Args)]
pub struct Globs {
    /// With -r, take only files that this pattern fits: `*.ko`, `lib/**`; may be given several times
    #[arg(long, value_name = "GLOB", requires = "recursive")]
    include: Vec<Glob>,
    /// With -r, leave out files and whole folders that this pattern fits: `*.pyc`, `.git`, `var/cache`; may be given several
    /// times, and wins over --include
    #[arg(long, value_name = "GLOB", requires = "recursive")]
    exclude: Vec<Glob>,
}

/// One pattern.
#[derive(Clone)]
struct Glob(GlobMatcher);

impl std::str::FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pattern = text.strip_suffix('/').unwrap_or(text);
        let pattern = match pattern.strip_prefix('/') {
            Some(anchored) => anchored.to_owned(),
            None if pattern.contains('/') => pattern.to_owned(),
            None => format!("**/{pattern}"),
        };
        if pattern.is_empty() || pattern == "**/" {
            return Err("an empty pattern fits nothing".to_owned());
        }
        let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
        Ok(Self(glob.map_err(|error| error.kind().to_string())?.compile_matcher()))
    }
}

impl Globs {
    /// Whether every file is wanted.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a file is wanted, or anything in a folder.
    pub fn want(&self, path: &Path, folder: bool) -> bool {
        let candidate = Candidate::new(path);
        let fits = |globs: &[Glob]| globs.iter().any(|glob| glob.0.is_match_candidate(&candidate));
        !fits(&self.exclude) && (folder || self.include.is_empty() || fits(&self.include))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn patterns_choose_by_name_or_by_path_below_the_root() {
        for (include, exclude, path, folder, wanted) in [
            (&[][..], &[][..], &b"any"[..], false, true),
            (&["*.ko"], &[], b"lib/modules/a.ko", false, true),
            (&["*.ko"], &[], b"lib/modules/a.ko.xz", false, false),
            (&["*.ko"], &[], b"lib", true, true),
            (&["*.ko", "bin/*"], &[], b"bin/x", false, true),
            (&["bin/*"], &[], b"usr/bin/x", false, false),
            (&["bin/*"], &[], b"bin/x/y", false, false),
            (&["bin/**"], &[], b"bin/x/y", false, true),
            (&["/x"], &[], b"x", false, true),
            (&["/x"], &[], b"y/x", false, false),
            (&[], &[".git"], b"a/.git", true, false),
            (&[], &["cache/"], b"a/cache", true, false),
            (&[], &["var/cache"], b"var/cache", true, false),
            (&[], &["var/cache"], b"x/var/cache", true, true),
            (&["*.so"], &["*.so"], b"x.so", false, false),
            (&["{a,b}[0-9]"], &[], b"b7", false, true),
            (&["*.so"], &[], b"\xff.so", false, true),
        ] {
            let parse = |list: &[&str]| list.iter().map(|text| text.parse().ok().unwrap()).collect();
            let globs = Globs { include: parse(include), exclude: parse(exclude) };
            let path = Path::new(OsStr::from_bytes(path));
            assert_eq!(globs.want(path, folder), wanted, "{include:?} {exclude:?} {path:?}");
        }
        for wrong in ["", "/", "[", "{a"] {
            assert!(wrong.parse::<Glob>().is_err(), "{wrong:?}");
        }
    }
}
