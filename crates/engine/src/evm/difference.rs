//! What differs between two moments of a file, as far as EVM protects it.

use super::hooks::{Answer, Kind, answer};
use super::snapshot::Snapshot;
use crate::integrity_status::IntegrityStatus;
use imara_format::hash::to_hex;
use imara_format::label::Label;
use imara_format::uuid::Uuid;
use std::collections::BTreeSet;
use std::fmt;

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The mode.
    Mode {
        /// Before.
        was: u16,
        /// Now.
        is: u16,
    },
    /// The owner.
    Uid {
        /// Before.
        was: u32,
        /// Now.
        is: u32,
    },
    /// The group.
    Gid {
        /// Before.
        was: u32,
        /// Now.
        is: u32,
    },
    /// A protected attribute.
    Xattr {
        /// Its name.
        name: String,
        /// Its value before, if it had one.
        was: Option<Vec<u8>>,
        /// Its value now, if it has one.
        is: Option<Vec<u8>>,
    },
    /// The inode number: it is another file, or a copy.
    Inode {
        /// Before.
        was: u64,
        /// Now.
        is: u64,
    },
    /// The generation: another file has taken the inode's number.
    Generation {
        /// Before.
        was: u32,
        /// Now.
        is: u32,
    },
    /// The filesystem's UUID.
    FsUuid {
        /// Before.
        was: [u8; 16],
        /// Now.
        is: [u8; 16],
    },
}

impl Difference {
    /// What differs, in a word.
    pub fn attribute(&self) -> &str {
        match self {
            Self::Mode { .. } => "mode",
            Self::Uid { .. } => "uid",
            Self::Gid { .. } => "gid",
            Self::Xattr { name, .. } => name,
            Self::Inode { .. } => "inode",
            Self::Generation { .. } => "generation",
            Self::FsUuid { .. } => "fsuuid",
        }
    }

    /// Before and now, for people.
    pub fn values(&self) -> (String, String) {
        match self {
            Self::Mode { was, is } => (format!("{was:06o}"), format!("{is:06o}")),
            Self::Uid { was, is } | Self::Gid { was, is } | Self::Generation { was, is } => {
                (was.to_string(), is.to_string())
            }
            Self::Inode { was, is } => (was.to_string(), is.to_string()),
            Self::Xattr { name, was, is } => (value_text(name, was.as_deref()), value_text(name, is.as_deref())),
            Self::FsUuid { was, is } => (Uuid(*was).to_string(), Uuid(*is).to_string()),
        }
    }

    /// Whether a file of this status may be changed like this, and remain the same file.
    fn is_allowed(&self, status: IntegrityStatus) -> bool {
        let kind = match self {
            Self::Mode { .. } | Self::Uid { .. } | Self::Gid { .. } => Kind::Metadata,
            Self::Xattr { .. } => Kind::Attribute,
            // Nobody can change these: it is another file.
            Self::Inode { .. } | Self::Generation { .. } | Self::FsUuid { .. } => return false,
        };
        match answer(kind, status) {
            Answer::Allow => true,
            // Something did change, and a file that was verified is not new.
            Answer::Refuse | Answer::IfHmacDisabled | Answer::IfNew | Answer::IfUnchanged => false,
        }
    }
}

/// Whether the kernel would have let all of these changes be made to a file of this status.
pub fn would_be_allowed(differences: &[Difference], status: IntegrityStatus) -> bool {
    differences.iter().all(|difference| difference.is_allowed(status))
}

/// An attribute's value for people: a label as what it says, text as it is, anything else in hexadecimal.
pub fn value_text(name: &str, value: Option<&[u8]>) -> String {
    let Some(value) = value else { return "none".into() };
    if name == "security.ima" {
        match Label::parse_ima(value) {
            Ok(Label::Digest { digest, .. }) => return digest.to_string(),
            Ok(Label::Signature(signature) | Label::VeritySignature(signature)) => {
                return format!("a signature by the key {}", to_hex(signature.key_id()));
            }
            Ok(Label::EvmHmac(_) | Label::EvmPortable(_)) | Err(_) => {}
        }
    }
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    if name != "security.capability" && !text.is_empty() && text.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return String::from_utf8_lossy(text).into_owned();
    }
    format!("0x{}", to_hex(value))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (was, is) = self.values();
        write!(f, "{} was {was}, is {is}", self.attribute())
    }
}

impl Snapshot {
    /// What differs in `now`; the label is not looked at.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let (was, is) = (&self.inode, &now.inode);
        if was.inode != is.inode {
            found.push(Difference::Inode { was: was.inode, is: is.inode });
        }
        if was.generation != is.generation {
            found.push(Difference::Generation { was: was.generation, is: is.generation });
        }
        if self.fs_uuid != now.fs_uuid {
            found.push(Difference::FsUuid { was: self.fs_uuid, is: now.fs_uuid });
        }
        if was.mode != is.mode {
            found.push(Difference::Mode { was: was.mode, is: is.mode });
        }
        if was.uid != is.uid {
            found.push(Difference::Uid { was: was.uid, is: is.uid });
        }
        if was.gid != is.gid {
            found.push(Difference::Gid { was: was.gid, is: is.gid });
        }
        let names: BTreeSet<&String> = self.xattrs.keys().chain(now.xattrs.keys()).collect();
        for name in names {
            let (was, is) = (self.xattrs.get(name), now.xattrs.get(name));
            if was != is {
                found.push(Difference::Xattr { name: name.clone(), was: was.cloned(), is: is.cloned() });
            }
        }
        found
    }
}
