//! EVM: what a label in `security.evm` is made over. The labels themselves are in [`crate::label`] and
//! [`crate::signature`].
//!
//! The values of the protected attributes that the file has, in the order of [`XattrList`], without names, lengths or
//! separators; then what the inode says (`misc`, in the CPU's byte order); then the filesystem's UUID (16 bytes):
//!
//! | misc: field | 64-bit: offset, size | 32-bit: offset, size | value |
//! |---|---|---|---|
//! | inode | 0, 8 | 0, 4 | number; 0 in a portable signature |
//! | generation | 8, 4 | 4, 4 | `FS_IOC_GETVERSION`; 0 in a portable signature |
//! | uid | 12, 4 | 8, 4 | owner, in the initial user namespace |
//! | gid | 16, 4 | 12, 4 | group, the same |
//! | mode | 20, 2 | 16, 2 | all of `st_mode`, the type's bits too |
//! | padding | 22, 2 | 18, 2 | zero |
//!
//! | label | attributes | inode, generation | UUID |
//! |---|---|---|---|
//! | type 2, HMAC | enabled | yes | yes |
//! | type 3, signature | enabled | yes | yes |
//! | type 5, portable signature | all listed | zero | no |
//! | `evmctl sign --imm` (no kernel takes it) | enabled | left out, so 12 bytes | no |
//!
//! Source: `struct h_misc` and `hmac_add_misc`, security/integrity/evm/evm_crypto.c.

mod mode;
mod xattr_list;

pub use mode::{EvmMode, MODE_FILE, UnknownBit};
pub use xattr_list::{Enabled, ProtectedXattr, XATTRS_FILE, XattrList, XattrsRequest, XattrsRequestError};

use crate::signature::SignatureType;

/// The attribute that holds EVM's label.
pub const SECURITY_EVM: &str = "security.evm";
/// The attribute that a portable signature must cover.
pub const SECURITY_IMA: &str = "security.ima";

/// The size of an HMAC label's HMAC (SHA-1), in bytes.
pub const HMAC_SIZE: usize = 20;
/// The size of the buffer that the kernel keeps the HMAC key in: shorter keys are filled up with zeros, and all of it is
/// the key.
pub const KEY_SIZE: usize = 128;

/// What an inode says of itself, as far as EVM protects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InodeMetadata {
    /// The inode number.
    pub inode: u64,
    /// The inode's generation.
    pub generation: u32,
    /// The owner, as the initial user namespace numbers it.
    pub uid: u32,
    /// The group, as the initial user namespace numbers it.
    pub gid: u32,
    /// `st_mode`, with the type's bits.
    pub mode: u16,
}

/// What a label is made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Type 2.
    Hmac,
    /// Type 3.
    Signature,
    /// Type 5.
    Portable,
    /// What `evmctl sign --imm` makes: type 3 with version 3.
    EvmctlImmutable,
}

impl Form {
    /// Whether inode number, generation and the filesystem's UUID count.
    pub const fn is_bound(self) -> bool {
        match self {
            Self::Hmac | Self::Signature => true,
            Self::Portable | Self::EvmctlImmutable => false,
        }
    }

    /// Whether attributes count that are listed and not enabled.
    pub const fn covers_disabled(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Hmac | Self::Signature | Self::EvmctlImmutable => false,
        }
    }

    /// The type of label that a signature in this form stands in; an HMAC has none.
    pub const fn signature_type(self) -> Option<SignatureType> {
        match self {
            Self::Hmac => None,
            Self::Signature | Self::EvmctlImmutable => Some(SignatureType::Signature),
            Self::Portable => Some(SignatureType::Portable),
        }
    }
}

/// How a kernel lays `misc` out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MiscLayout {
    /// Whether the kernel has 64 bits.
    pub bits_64: bool,
    /// Whether its integers begin with the most significant byte.
    pub big_endian: bool,
}

impl MiscLayout {
    /// What the kernel of the machine that this program is built for does.
    pub const NATIVE: Self =
        Self { bits_64: cfg!(target_pointer_width = "64"), big_endian: cfg!(target_endian = "big") };
    /// What this machine's kernel does in its 64-bit and in its 32-bit build.
    pub const BITS_64: Self = Self { bits_64: true, ..Self::NATIVE };
    /// The same for 32 bits.
    pub const BITS_32: Self = Self { bits_64: false, ..Self::NATIVE };
}

impl InodeMetadata {
    /// The bytes that the kernel calls `misc`.
    pub fn misc(&self, form: Form, layout: MiscLayout) -> Vec<u8> {
        let mut misc = Vec::with_capacity(24);
        let mut push = |little: &[u8]| {
            if layout.big_endian {
                misc.extend(little.iter().rev());
            } else {
                misc.extend_from_slice(little);
            }
        };
        let (inode, generation) = if form.is_bound() { (self.inode, self.generation) } else { (0, 0) };
        if form != Form::EvmctlImmutable {
            match inode.to_le_bytes() {
                all if layout.bits_64 => push(&all),
                // Where inode numbers have 32 bits there are no larger ones.
                [a, b, c, d, ..] => push(&[a, b, c, d]),
            }
            push(&generation.to_le_bytes());
        }
        push(&self.uid.to_le_bytes());
        push(&self.gid.to_le_bytes());
        push(&self.mode.to_le_bytes());
        push(&[0, 0]);
        misc
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::to_hex;

    #[test]
    fn misc_is_laid_out_as_each_kernel_lays_it_out() {
        let metadata = InodeMetadata { inode: 12, generation: 0x89ab_cdef, uid: 1000, gid: 1001, mode: 0o104_755 };
        let little = |bits_64| MiscLayout { bits_64, big_endian: false };
        let big = MiscLayout { bits_64: true, big_endian: true };
        for (form, layout, expected) in [
            (Form::Hmac, little(true), "0c00000000000000efcdab89e8030000e9030000ed890000"),
            (Form::Signature, little(false), "0c000000efcdab89e8030000e9030000ed890000"),
            (Form::Portable, little(true), "000000000000000000000000e8030000e9030000ed890000"),
            (Form::Portable, little(false), "0000000000000000e8030000e9030000ed890000"),
            (Form::EvmctlImmutable, little(true), "e8030000e9030000ed890000"),
            (Form::Hmac, big, "000000000000000c89abcdef000003e8000003e989ed0000"),
        ] {
            assert_eq!(to_hex(&metadata.misc(form, layout)), expected, "{form:?} {layout:?}");
        }
    }
}
