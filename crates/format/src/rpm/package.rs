//! What a header says of an installed package and its files.
//!
//! What is said of files comes from the immutable region alone; from what was added only the state of each file since the installation, and signatures,
//! which prove themselves.
//!
//! | tag | of each file |
//! |---|---|
//! | `BASENAMES`, `DIRINDEXES`, `DIRNAMES` | its name, which folder of the third it is in |
//! | `FILEMODES`, `FILESIZES` or `LONGFILESIZES` | mode and size |
//! | `FILEDIGESTS`, `FILEDIGESTALGO` | digest in hex, empty for what is no regular file; its algorithm as in OpenPGP, MD5 where nothing says so |
//! | `FILELINKTOS` | where a link leads |
//! | `FILEUSERNAME`, `FILEGROUPNAME` | owner and group |
//! | `FILEFLAGS` | 1 configuration, 8 may be missing, 64 not packaged ("ghost") |
//! | `FILEVERIFYFLAGS` | what is to stay as installed: 1 digest, 2 size, 4 link, 8 owner, 16 group, 64 mode |
//! | `FILESTATES` | 0 as installed, 1 replaced by another package's, 2 not installed, 3 on a network, 4 another architecture's, 255 missing |
//! | `FILESIGNATURES` | a `security.ima` in hex; empty or zeros for none |
//!
//! Source: `include/rpm/rpmtag.h`, `rpmfiles.h` and `rpmvf.h` of RPM, `lib/rpmfi.cc`.

use super::header::{Header, HeaderError, Part, Tag};
use crate::base64;
use crate::hash::{Digest, HashAlgorithm, from_hex};

/// A package that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// `EPOCH:VERSION-RELEASE`, the first where it has one.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// What is said to vouch for the region, as OpenPGP packets.
    pub signatures: Vec<Vec<u8>>,
    /// The digest of the region, by which damage shows.
    pub digest: Option<Digest>,
    /// Whether its files were put elsewhere than their maker signed.
    pub relocated: bool,
    /// Its files, folders and links.
    pub files: Vec<File>,
}

/// What a package has of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// From the root, with a slash.
    pub path: Vec<u8>,
    /// Its type and mode, as in stat(2).
    pub mode: u16,
    /// Its size.
    pub size: u64,
    /// Of its content, for regular files.
    pub digest: Option<Digest>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Its owner.
    pub user: String,
    /// Its group.
    pub group: String,
    /// What it is for.
    pub flags: Flags,
    /// What is to stay.
    pub verified: Verified,
    /// What became of it when it was installed.
    pub state: State,
    /// What its `security.ima` is to be.
    pub signature: Option<Vec<u8>>,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// It is configuration, to be changed by administrators.
    pub fn is_configuration(self) -> bool {
        self.0 & 1 != 0
    }

    /// It need not be there.
    pub fn may_be_missing(self) -> bool {
        self.0 & (8 | 64) != 0
    }

    /// It came in no package: content and size are whatever they become.
    pub fn is_ghost(self) -> bool {
        self.0 & 64 != 0
    }
}

/// What of a file is to stay as it was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified(u32);

#[allow(missing_docs, reason = "the names say it")]
impl Verified {
    pub fn content(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn size(self) -> bool {
        self.0 & 2 != 0
    }

    pub fn link(self) -> bool {
        self.0 & 4 != 0
    }

    pub fn user(self) -> bool {
        self.0 & 8 != 0
    }

    pub fn group(self) -> bool {
        self.0 & 16 != 0
    }

    pub fn mode(self) -> bool {
        self.0 & 64 != 0
    }
}

/// What became of a file when it was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was put there.
    Installed,
    /// Another package's file is there.
    Replaced,
    /// It was left out.
    NotInstalled,
    /// It is on a network.
    NetShared,
    /// Another architecture's is there.
    WrongColor,
    /// It is not known, or known to be missing.
    Missing,
}

impl State {
    /// What a byte means.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Installed,
            1 => Self::Replaced,
            2 => Self::NotInstalled,
            3 => Self::NetShared,
            4 => Self::WrongColor,
            _ => Self::Missing,
        }
    }
}

/// A hash by its number in OpenPGP.
pub fn openpgp_hash(number: u64) -> Option<HashAlgorithm> {
    Some(match number {
        1 => HashAlgorithm::Md5,
        2 => HashAlgorithm::Sha1,
        3 => HashAlgorithm::Rmd160,
        8 => HashAlgorithm::Sha256,
        9 => HashAlgorithm::Sha384,
        10 => HashAlgorithm::Sha512,
        11 => HashAlgorithm::Sha224,
        12 => HashAlgorithm::Sha3_256,
        14 => HashAlgorithm::Sha3_512,
        _ => return None,
    })
}

impl Package {
    /// Reads a header.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = Header::parse(bytes)?;
        // What RPM 3 made has all in one part.
        let part = if header.has_region() { Part::Immutable } else { Part::Added };
        let text = |tag: Tag| {
            let text = header.texts(part, tag)?.first().map(|text| String::from_utf8_lossy(text).into_owned());
            text.ok_or(HeaderError::Missing(tag as u32))
        };
        let epoch = header.numbers(part, Tag::Epoch)?.first().map(|epoch| format!("{epoch}:")).unwrap_or_default();
        let mut signatures = Vec::new();
        for tag in [Tag::RsaHeader, Tag::DsaHeader] {
            signatures.extend(header.bytes(Part::Added, tag)?.map(<[u8]>::to_vec));
        }
        for text in header.texts(Part::Added, Tag::OpenPgp)? {
            signatures.extend(std::str::from_utf8(text).ok().and_then(base64::decode));
        }
        if !header.has_region() {
            signatures.clear();
        }
        let digest = |tag, algorithm| -> Result<Option<Digest>, HeaderError> {
            let text = header.texts(Part::Added, tag)?.first().map(|text| digest(tag, text, algorithm));
            text.transpose()
        };
        let digest = match digest(Tag::Sha256Header, HashAlgorithm::Sha256)? {
            Some(digest) => Some(digest),
            None => digest(Tag::Sha1Header, HashAlgorithm::Sha1)?,
        };
        let paths = paths(&header, part)?;
        let moved = part == Part::Immutable
            && [Tag::BaseNames, Tag::DirNames, Tag::OldFileNames].iter().any(|tag| header.has(Part::Added, *tag));
        let moved = if moved { Some(self::paths(&header, Part::Added)?) } else { None };
        let relocated = moved.as_ref().is_some_and(|moved| *moved != paths);
        let signed = files(&header, part, &paths)?;
        // Where they are, if they are as many; else the header says two things.
        let files = match moved.filter(|_| relocated) {
            Some(moved) if moved.len() != signed.len() => {
                return Err(HeaderError::Count { tag: Tag::BaseNames as u32, found: moved.len(), files: signed.len() });
            }
            Some(moved) => signed.into_iter().zip(moved).map(|(file, path)| File { path, ..file }).collect(),
            None => signed,
        };
        Ok(Self {
            name: text(Tag::Name)?,
            version: format!("{epoch}{}-{}", text(Tag::Version)?, text(Tag::Release)?),
            // Keys that were imported are kept as packages, and have none.
            architecture: text(Tag::Arch).unwrap_or_default(),
            signatures,
            digest,
            relocated,
            files,
        })
    }

    /// Whether it is a key that was imported, and no package.
    pub fn is_key(&self) -> bool {
        self.name == "gpg-pubkey" && self.files.is_empty()
    }
}

fn digest(tag: Tag, text: &[u8], algorithm: HashAlgorithm) -> Result<Digest, HeaderError> {
    let error = HeaderError::Value { tag: tag as u32, what: "no digest of its algorithm, in hex" };
    let bytes = std::str::from_utf8(text).ok().and_then(|text| from_hex(text).ok()).ok_or_else(|| error.clone())?;
    Digest::new(algorithm, &bytes).map_err(|_| error)
}

fn paths(header: &Header<'_>, part: Part) -> Result<Vec<Vec<u8>>, HeaderError> {
    let (names, folders) = (header.texts(part, Tag::BaseNames)?, header.texts(part, Tag::DirNames)?);
    let indexes = header.numbers(part, Tag::DirIndexes)?;
    if names.is_empty() {
        let whole = header.texts(part, Tag::OldFileNames)?;
        return whole.into_iter().map(|path| sound(path.to_vec(), Tag::OldFileNames)).collect();
    }
    if names.len() != indexes.len() {
        return Err(HeaderError::Count { tag: Tag::DirIndexes as u32, found: indexes.len(), files: names.len() });
    }
    let path = |(name, index): (&[u8], u64)| {
        let folder = usize::try_from(index).ok().and_then(|index| folders.get(index));
        let no_folder = HeaderError::Value { tag: Tag::DirIndexes as u32, what: "a folder that is not there" };
        sound([*folder.ok_or(no_folder)?, name].concat(), Tag::BaseNames)
    };
    names.into_iter().zip(indexes).map(path).collect()
}

/// A path from the root that goes down all the way.
fn sound(path: Vec<u8>, tag: Tag) -> Result<Vec<u8>, HeaderError> {
    let up = path.split(|byte| *byte == b'/').any(|name| name == b"..");
    if up || !path.starts_with(b"/") {
        return Err(HeaderError::Value {
            tag: tag as u32,
            what: "a file's path that is not one from the root downwards",
        });
    }
    Ok(path)
}

fn files(header: &Header<'_>, part: Part, paths: &[Vec<u8>]) -> Result<Vec<File>, HeaderError> {
    let files = paths.len();
    if files == 0 {
        return Ok(Vec::new());
    }
    let all = |tag: Tag, found: usize| {
        if found == files { Ok(()) } else { Err(HeaderError::Count { tag: tag as u32, found, files }) }
    };
    let numbers = |tag: Tag, absent: u64| {
        let mut numbers = header.numbers(part, tag)?;
        if numbers.is_empty() {
            numbers = vec![absent; files];
        }
        all(tag, numbers.len()).map(|()| numbers)
    };
    let texts = |part: Part, tag: Tag| {
        let mut texts = header.texts(part, tag)?;
        if texts.is_empty() {
            texts = vec![b"".as_slice(); files];
        }
        all(tag, texts.len()).map(|()| texts)
    };
    let modes = header.numbers(part, Tag::FileModes)?;
    all(Tag::FileModes, modes.len())?;
    let long = header.numbers(part, Tag::LongFileSizes)?;
    let sizes = if long.is_empty() { header.numbers(part, Tag::FileSizes)? } else { long };
    all(Tag::FileSizes, sizes.len())?;
    let digests = texts(part, Tag::FileDigests)?;
    let number = header.numbers(part, Tag::FileDigestAlgo)?.first().copied().unwrap_or(1);
    let algorithm = openpgp_hash(number)
        .ok_or(HeaderError::Value { tag: Tag::FileDigestAlgo as u32, what: "a hash that is not known" })?;
    let (links, users, groups) =
        (texts(part, Tag::FileLinkTos)?, texts(part, Tag::FileUserName)?, texts(part, Tag::FileGroupName)?);
    let (flags, verified) = (numbers(Tag::FileFlags, 0)?, numbers(Tag::FileVerifyFlags, u64::from(u32::MAX))?);
    let states = header.bytes(Part::Added, Tag::FileStates)?.unwrap_or_default();
    if !states.is_empty() {
        all(Tag::FileStates, states.len())?;
    }
    let signatures = match header.texts(Part::Added, Tag::FileSignatures)? {
        none if none.is_empty() && part == Part::Immutable => texts(part, Tag::FileSignatures)?,
        _ => texts(Part::Added, Tag::FileSignatures)?,
    };
    let narrow = |number: Option<&u64>| number.and_then(|number| u32::try_from(*number).ok()).unwrap_or(0);
    let owner = |text: Option<&&[u8]>| String::from_utf8_lossy(text.copied().unwrap_or_default()).into_owned();
    let file = |(index, path): (usize, &Vec<u8>)| {
        let text = digests.get(index).copied().unwrap_or_default();
        let signature = signatures.get(index).copied().unwrap_or_default();
        let bad = HeaderError::Value { tag: Tag::FileSignatures as u32, what: "a signature that is not in hex" };
        let signature = std::str::from_utf8(signature).ok().and_then(|text| from_hex(text).ok()).ok_or(bad)?;
        let digest = if text.is_empty() { None } else { Some(digest(Tag::FileDigests, text, algorithm)?) };
        Ok(File {
            path: path.clone(),
            mode: modes.get(index).and_then(|mode| u16::try_from(*mode).ok()).unwrap_or(0),
            size: sizes.get(index).copied().unwrap_or(0),
            digest,
            link: links.get(index).map(|link| link.to_vec()).unwrap_or_default(),
            user: owner(users.get(index)),
            group: owner(groups.get(index)),
            flags: Flags(narrow(flags.get(index))),
            verified: Verified(narrow(verified.get(index))),
            state: states.get(index).map_or(State::Installed, |byte| State::from_byte(*byte)),
            // One of zeros is what stands for none where others have one.
            signature: Some(signature).filter(|signature| signature.iter().any(|byte| *byte != 0)),
        })
    };
    paths.iter().enumerate().map(file).collect()
}
