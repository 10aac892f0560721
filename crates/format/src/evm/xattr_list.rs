//! The attributes that EVM protects, in the order in which they are hashed, and the file `evm_xattrs`.
//!
//! | | name | enabled when |
//! |---|---|---|
//! | 1 | security.selinux | SECURITY_SELINUX is built |
//! | 2 | security.SMACK64 | SECURITY_SMACK is built |
//! | 3 | security.SMACK64EXEC | EVM_EXTRA_SMACK_XATTRS is |
//! | 4 | security.SMACK64TRANSMUTE | the same |
//! | 5 | security.SMACK64MMAP | the same |
//! | 6 | security.apparmor | SECURITY_APPARMOR is built |
//! | 7 | security.ima | IMA_APPRAISE is built |
//! | 8 | security.capability | always |
//! | 9.. | written to `evm_xattrs` | in the order in which they came |
//!
//! Every name is on every kernel's list; which are enabled depends on how it was built, not on which security module
//! runs. `evm_xattrs` shows the enabled ones, one a line; one write adds one name, and `.` locks it.
//!
//! Source: `evm_config_default_xattrnames`, security/integrity/evm/evm_main.c; `evm_write_xattrs`, evm_secfs.c.

use super::Form;
use crate::kernel_config::{DEBIAN, KernelConfig};

/// Where the kernel shows it, with EVM_ADD_XATTRS.
pub const XATTRS_FILE: &str = "/sys/kernel/security/integrity/evm/evm_xattrs";

/// An attribute on the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectedXattr {
    /// Its name.
    pub name: String,
    /// Whether HMACs and signatures of type 3 cover it.
    pub enabled: bool,
}

/// The list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XattrList(Vec<ProtectedXattr>);

/// What enabling a name did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enabled {
    /// It was on the list, and is enabled in its own place.
    InPlace,
    /// It is the last one now.
    Appended,
    /// It was enabled.
    Already,
}

impl XattrList {
    /// The list of a kernel that was built with these options.
    pub fn of_build(config: &KernelConfig) -> Self {
        let smack = config.evm_extra_smack_xattrs;
        Self::new([
            ("security.selinux", config.security_selinux),
            ("security.SMACK64", config.security_smack),
            ("security.SMACK64EXEC", smack),
            ("security.SMACK64TRANSMUTE", smack),
            ("security.SMACK64MMAP", smack),
            ("security.apparmor", config.security_apparmor),
            ("security.ima", config.ima_appraise),
            ("security.capability", true),
        ])
    }

    /// Debian's, which stands for a distribution's where nothing is known: SELinux, AppArmor, IMA and capabilities.
    pub fn debian() -> Self {
        KernelConfig::parse(DEBIAN).map_or_else(|_| Self(Vec::new()), |config| Self::of_build(&config))
    }

    /// What evmctl goes by whatever the kernel, without and with its `--smack`.
    pub fn evmctl(smack: bool) -> Self {
        Self::new([
            ("security.selinux", true),
            ("security.SMACK64", true),
            ("security.SMACK64EXEC", smack),
            ("security.SMACK64TRANSMUTE", smack),
            ("security.SMACK64MMAP", smack),
            ("security.apparmor", true),
            ("security.ima", true),
            ("security.capability", true),
        ])
    }

    /// The list of the kernel that shows `text` as its `evm_xattrs`: names that it does not show are not enabled.
    pub fn from_text(text: &str) -> Self {
        let mut list = Self::evmctl(true);
        for xattr in &mut list.0 {
            xattr.enabled = false;
        }
        for name in text.split('\n').filter(|name| !name.is_empty()) {
            list.enable(name);
        }
        list
    }

    fn new(entries: [(&str, bool); 8]) -> Self {
        Self(entries.map(|(name, enabled)| ProtectedXattr { name: name.to_owned(), enabled }).into())
    }

    /// What `evm_xattrs` shows.
    pub fn to_text(&self) -> String {
        self.enabled().flat_map(|name| [name, "\n"]).collect()
    }

    /// All of them, in their order.
    pub fn entries(&self) -> &[ProtectedXattr] {
        &self.0
    }

    /// Those that are enabled.
    pub fn enabled(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|xattr| xattr.enabled).map(|xattr| &*xattr.name)
    }

    /// Those that a label of this form covers.
    pub fn covered(&self, form: Form) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |xattr| xattr.enabled || form.covers_disabled()).map(|xattr| &*xattr.name)
    }

    /// Whether an attribute of this name is protected.
    pub fn protects(&self, name: &str) -> bool {
        self.enabled().any(|enabled| enabled == name)
    }

    /// Enables a name: in its place where it is listed, else as the last.
    pub fn enable(&mut self, name: &str) -> Enabled {
        match self.0.iter_mut().find(|xattr| xattr.name == name) {
            Some(xattr) if xattr.enabled => Enabled::Already,
            Some(xattr) => {
                xattr.enabled = true;
                Enabled::InPlace
            }
            None => {
                self.0.push(ProtectedXattr { name: name.to_owned(), enabled: true });
                Enabled::Appended
            }
        }
    }
}

/// A write to `evm_xattrs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XattrsRequest {
    /// Nothing can be added any more.
    Lock,
    /// Adds this name.
    Add(String),
}

/// A write that `evm_xattrs` does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrsRequestError {
    /// Longer than an attribute's name can be (`E2BIG`).
    #[error("{0} bytes, where the name of an attribute has 255 at most")]
    TooLong(usize),
    /// Of another namespace (`EINVAL`).
    #[error("`{0}` does not begin with security.")]
    NotSecurity(String),
    /// Bytes that are no text; the kernel would take them.
    #[error("not UTF-8")]
    NotText,
}

impl XattrsRequest {
    /// Reads what is written: up to a zero byte, without a newline at its end.
    ///
    /// # Errors
    /// [`XattrsRequestError`], in the kernel's order.
    pub fn parse(written: &[u8]) -> Result<Self, XattrsRequestError> {
        if written.len() > 255 {
            return Err(XattrsRequestError::TooLong(written.len()));
        }
        let name = written.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = name.strip_suffix(b"\n").unwrap_or(name);
        let name = std::str::from_utf8(name).map_err(|_| XattrsRequestError::NotText)?;
        match name {
            "." => Ok(Self::Lock),
            name if name.starts_with("security.") => Ok(Self::Add(name.to_owned())),
            other => Err(XattrsRequestError::NotSecurity(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn debians_kernels_protect_what_was_seen_of_them() {
        let debian = XattrList::debian();
        assert_eq!(debian.to_text(), "security.selinux\nsecurity.apparmor\nsecurity.ima\nsecurity.capability\n");
        for config in [
            include_str!("../../../../tests/vectors/kernel_config/debian-6.1"),
            include_str!("../../../../tests/vectors/kernel_config/debian-6.12"),
        ] {
            assert_eq!(XattrList::of_build(&KernelConfig::parse(config).unwrap()), debian);
        }
        assert_eq!(debian.covered(Form::Portable).count(), 8);
        assert_eq!(debian.covered(Form::Signature).count(), 4);
    }

    #[test]
    fn names_are_enabled_in_their_place_or_come_last() {
        let mut list = XattrList::debian();
        assert_eq!(list.enable("security.foo"), Enabled::Appended);
        assert_eq!(list.enable("security.bar"), Enabled::Appended);
        assert_eq!(list.enable("security.SMACK64"), Enabled::InPlace);
        assert_eq!(list.enable("security.foo"), Enabled::Already);
        let expected = "security.selinux\nsecurity.SMACK64\nsecurity.apparmor\nsecurity.ima\nsecurity.capability\n\
                        security.foo\nsecurity.bar\n";
        assert_eq!(list.to_text(), expected);
        assert_eq!(XattrList::from_text(expected), list);
        assert!(list.protects("security.foo") && !list.protects("security.SMACK64EXEC") && !list.protects("user.foo"));
    }

    #[test]
    fn a_write_is_taken_or_refused_as_the_kernel_does() {
        let add = |name: &str| Ok(XattrsRequest::Add(name.to_owned()));
        let foreign = |name: &str| Err(XattrsRequestError::NotSecurity(name.to_owned()));
        let long = format!("security.{}", "x".repeat(246));
        for (written, expected) in [
            ("security.foo", add("security.foo")),
            ("security.foo\n", add("security.foo")),
            ("security.", add("security.")),
            ("security.a b", add("security.a b")),
            ("security.a\nsecurity.b", add("security.a\nsecurity.b")),
            ("security.a\0junk", add("security.a")),
            (".", Ok(XattrsRequest::Lock)),
            (".\n", Ok(XattrsRequest::Lock)),
            ("security", foreign("security")),
            ("user.foo", foreign("user.foo")),
            ("\n", foreign("")),
            ("", foreign("")),
            (&long, add(&long)),
        ] {
            assert_eq!(XattrsRequest::parse(written.as_bytes()), expected, "{written:?}");
        }
        assert_eq!(XattrsRequest::parse(&[b'a'; 256]), Err(XattrsRequestError::TooLong(256)));
        assert_eq!(XattrsRequest::parse(&[0xff]), Err(XattrsRequestError::NotText));
    }

    proptest! {
        #[test]
        fn any_write_is_taken_or_refused(written in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(XattrsRequest::Add(name)) = XattrsRequest::parse(&written) {
                prop_assert!(name.starts_with("security."));
            }
        }
    }
}
