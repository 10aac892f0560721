//! What a write to `evm_xattrs` does.
//!
//! Source: `evm_write_xattrs`, security/integrity/evm/evm_secfs.c.

use imara_format::evm::{Enabled, XattrList, XattrsRequest, XattrsRequestError};

/// The list, and whether it can still grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectedXattrs {
    /// The list.
    pub list: XattrList,
    /// Whether nothing can be added any more.
    pub locked: bool,
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrote {
    /// Nothing can be added any more.
    Locked,
    /// This name is protected now.
    Added(String, Enabled),
}

/// A write that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrsError {
    /// Locked, or the writer is not privileged.
    #[error("{0}")]
    NotPermitted(&'static str),
    /// Not a name that can be added.
    #[error(transparent)]
    Request(#[from] XattrsRequestError),
    /// It is protected already.
    #[error("{0} is protected already")]
    Exists(String),
}

impl XattrsError {
    /// The error number's name.
    pub const fn errno(&self) -> &'static str {
        match self {
            Self::NotPermitted(_) => "EPERM",
            Self::Request(XattrsRequestError::TooLong(_)) => "E2BIG",
            Self::Request(XattrsRequestError::NotSecurity(_) | XattrsRequestError::NotText) => "EINVAL",
            Self::Exists(_) => "EEXIST",
        }
    }
}

impl ProtectedXattrs {
    /// A list that can grow.
    pub const fn new(list: XattrList) -> Self {
        Self { list, locked: false }
    }

    /// Takes a write.
    ///
    /// # Errors
    /// [`XattrsError`], in the kernel's order; the list stays as it was.
    pub fn write(&mut self, written: &[u8], privileged: bool) -> Result<Wrote, XattrsError> {
        if !privileged {
            return Err(XattrsError::NotPermitted("it takes CAP_SYS_ADMIN"));
        }
        if self.locked {
            return Err(XattrsError::NotPermitted("the list is locked until the next start"));
        }
        match XattrsRequest::parse(written)? {
            XattrsRequest::Lock => {
                self.locked = true;
                Ok(Wrote::Locked)
            }
            XattrsRequest::Add(name) => match self.list.enable(&name) {
                Enabled::Already => Err(XattrsError::Exists(name)),
                enabled @ (Enabled::InPlace | Enabled::Appended) => Ok(Wrote::Added(name, enabled)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_taken_in_turn_as_the_kernel_takes_them() {
        let mut xattrs = ProtectedXattrs::new(XattrList::debian());
        let long = format!("security.{}", "x".repeat(300));
        for (written, privileged, expected) in [
            ("security.foo", false, Err("EPERM")),
            ("security.foo", true, Ok(Enabled::Appended)),
            ("security.foo\n", true, Err("EEXIST")),
            ("security.ima", true, Err("EEXIST")),
            ("security.SMACK64", true, Ok(Enabled::InPlace)),
            ("user.foo", true, Err("EINVAL")),
            ("security", true, Err("EINVAL")),
            ("", true, Err("EINVAL")),
            ("security.", true, Ok(Enabled::Appended)),
            (&long, true, Err("E2BIG")),
        ] {
            let result = xattrs.write(written.as_bytes(), privileged);
            let shown = match &result {
                Ok(Wrote::Added(_, enabled)) => Ok(*enabled),
                Ok(Wrote::Locked) => panic!("{written} locked it"),
                Err(error) => Err(error.errno()),
            };
            assert_eq!(shown, expected, "{written}");
        }
        assert_eq!(xattrs.write(b".", true), Ok(Wrote::Locked));
        assert_eq!(xattrs.write(b"security.bar", true).unwrap_err().errno(), "EPERM");
        assert_eq!(xattrs.write(b".", true).unwrap_err().errno(), "EPERM");
        assert!(xattrs.list.to_text().ends_with("security.capability\nsecurity.foo\nsecurity.\n"));
    }
}
