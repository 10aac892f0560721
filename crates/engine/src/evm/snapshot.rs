//! What EVM protects of a file, as it was at a moment, and what a label is made over it.

use super::key::{HmacError, HmacKey};
use super::rules::Rules;
use crate::check::File;
use crate::crypto::{self, UnsupportedHash};
use imara_format::evm::{Form, HMAC_SIZE, InodeMetadata, SECURITY_EVM, SECURITY_IMA, XattrList};
use imara_format::hash::{Digest, HashAlgorithm};
use std::collections::BTreeMap;
use std::io;

/// The filesystem that a file is on, as far as it matters to EVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// Whether it is overlayfs.
    pub overlay: bool,
    /// Whether it was mounted by another user namespace than the initial one: nothing on it verifies.
    pub foreign: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Whether it is tmpfs or sysfs, whose files get their attributes after they were made.
    pub pseudo: bool,
}

/// `security.evm`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EvmLabel {
    /// Its value.
    Value(Vec<u8>),
    /// The file has none.
    Absent,
    /// The filesystem keeps no such attributes.
    Unsupported,
    /// It cannot be read.
    Unreadable,
}

impl EvmLabel {
    /// Its value, where it has one.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Unsupported | Self::Unreadable => None,
        }
    }

    /// Its first byte.
    pub fn kind(&self) -> Option<u8> {
        self.value()?.first().copied()
    }
}

/// What EVM protects of a file, at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// What the inode says of itself.
    pub inode: InodeMetadata,
    /// The filesystem's UUID; zeros where it has none.
    pub fs_uuid: [u8; 16],
    /// Why generation or UUID could not be found out: then nothing but a portable signature can be verified.
    pub unbound: Option<String>,
    /// Where it is.
    pub place: Place,
    /// The listed attributes that it has, enabled or not.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Its label.
    pub label: EvmLabel,
}

impl Snapshot {
    /// Looks at a file. Attributes that cannot be read count as absent, as in the kernel.
    ///
    /// # Errors
    /// What the kernel says of the inode or its filesystem.
    pub fn take(file: &dyn File, list: &XattrList) -> io::Result<Self> {
        let label = match file.xattr(SECURITY_EVM) {
            Ok(Some(value)) => EvmLabel::Value(value),
            Ok(None) => EvmLabel::Absent,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => EvmLabel::Unsupported,
            Err(_) => EvmLabel::Unreadable,
        };
        let mut xattrs = BTreeMap::new();
        if label != EvmLabel::Unsupported {
            for xattr in list.entries() {
                if let Ok(Some(value)) = file.xattr(&xattr.name) {
                    xattrs.insert(xattr.name.clone(), value);
                }
            }
        }
        let mut unbound = None;
        let mut why = |what: &str, error: io::Error| unbound = Some(format!("{what} cannot be found out: {error}"));
        let generation = file.generation().unwrap_or_else(|error| {
            why("the inode's generation", error);
            0
        });
        let fs_uuid = file.fs_uuid().unwrap_or_else(|error| {
            why("the filesystem's UUID", error);
            [0; 16]
        });
        let inode = InodeMetadata { generation, ..file.inode()? };
        Ok(Self { inode, fs_uuid, unbound, place: file.place()?, xattrs, label })
    }

    /// Whether an attribute that a label of this form covers is there.
    pub fn is_covered(&self, form: Form, rules: &Rules) -> bool {
        rules.xattrs.covered(form).any(|name| self.xattrs.contains_key(name))
    }

    /// Whether it has an attribute that is on the list, enabled or not.
    pub fn has_listed(&self, list: &XattrList) -> bool {
        list.entries().iter().any(|xattr| self.xattrs.contains_key(&xattr.name))
    }

    /// Whether `security.ima` is there.
    pub fn has_ima(&self) -> bool {
        self.xattrs.contains_key(SECURITY_IMA)
    }

    /// What a label of this form is made over, in pieces.
    fn with_parts<T>(&self, form: Form, rules: &Rules, use_parts: impl FnOnce(&[&[u8]]) -> T) -> T {
        let misc = self.inode.misc(form, rules.layout);
        let mut parts: Vec<&[u8]> =
            rules.xattrs.covered(form).filter_map(|name| self.xattrs.get(name).map(Vec::as_slice)).collect();
        parts.push(&misc);
        if form.is_bound() && rules.fs_uuid {
            parts.push(&self.fs_uuid);
        }
        use_parts(&parts)
    }

    /// What a label of this form is made over, all of it.
    pub fn stream(&self, form: Form, rules: &Rules) -> Vec<u8> {
        self.with_parts(form, rules, |parts| parts.concat())
    }

    /// The HMAC over it.
    ///
    /// # Errors
    /// [`HmacError`].
    pub fn hmac(&self, rules: &Rules, key: &dyn HmacKey) -> Result<[u8; HMAC_SIZE], HmacError> {
        self.with_parts(Form::Hmac, rules, |parts| key.hmac(parts))
    }

    /// The whole label with that HMAC.
    ///
    /// # Errors
    /// [`HmacError`].
    pub fn hmac_label(&self, rules: &Rules, key: &dyn HmacKey) -> Result<Vec<u8>, HmacError> {
        let mut label = vec![super::HMAC_TYPE];
        label.extend_from_slice(&self.hmac(rules, key)?);
        Ok(label)
    }

    /// The digest that a signature of this form is over.
    ///
    /// # Errors
    /// [`UnsupportedHash`].
    pub fn digest(&self, form: Form, rules: &Rules, algorithm: HashAlgorithm) -> Result<Digest, UnsupportedHash> {
        self.with_parts(form, rules, |parts| crypto::hash(algorithm, parts))
    }
}
