//! A package and its files, as either package manager has them.

use crate::output::Failure;
use imara_format::hash::Digest;

/// Who installed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manager {
    /// Debian's.
    Dpkg,
    /// Fedora's and openSUSE's.
    Rpm,
}

impl Manager {
    /// For programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dpkg => "dpkg",
            Self::Rpm => "rpm",
        }
    }

    /// How files are put back.
    pub const fn reinstall(self) -> &'static str {
        match self {
            Self::Dpkg => "install the package again: apt-get install --reinstall PACKAGE",
            Self::Rpm => "install the package again: dnf reinstall PACKAGE, or zypper install --force PACKAGE",
        }
    }
}

/// Who vouches for what is known of a package's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No key was given.
    Unasked,
    /// This key.
    Signed(String),
    /// None of those that were given, and why.
    Refused(String),
}

/// Packages, or why one of them could not be read.
pub type Packages<'p> = Box<dyn Iterator<Item = Result<Installed, Failure>> + Send + 'p>;

/// A package that is installed.
pub struct Installed {
    /// By whom.
    pub manager: Manager,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// Who vouches for what is known of them.
    pub standing: Standing,
    /// Its files; none where there is no list of them.
    pub files: Result<Option<Vec<Expected>>, Failure>,
}

/// A file that a package has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// From the root.
    pub path: Vec<u8>,
    /// What it is.
    pub content: Content,
    /// It is there to be changed.
    pub configuration: bool,
    /// It need not be there.
    pub optional: bool,
    /// Its mode without its type, where that is known and is to stay.
    pub mode: Option<u32>,
    /// Its owner.
    pub user: Option<u32>,
    /// Its group.
    pub group: Option<u32>,
    /// What is to be its `security.ima`.
    pub signature: Option<Vec<u8>>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file, as far as its digest and size are known and are to stay.
    Regular {
        /// Of its content.
        digest: Option<Digest>,
        /// In bytes.
        size: Option<u64>,
    },
    /// A link, and where it leads, if that is to stay.
    Link(Option<Vec<u8>>),
    /// A folder.
    Folder,
    /// A device, a pipe.
    Special,
    /// Anything.
    Any,
    /// Nothing is looked at: the package manager itself did not put it there.
    LeftOut,
}
