//! Which kernel's EVM: what was chosen when it was built, and what changed from version to version.

use imara_format::evm::{MiscLayout, XattrList};
use imara_format::kernel_config::KernelConfig;
use imara_format::policy::KernelVersion;

/// How a kernel's EVM makes and judges labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The version: `V6_1` stands for Linux up to 6.8, `V6_12` for 6.10 and later, `Latest` for 7.1.
    pub kernel: KernelVersion,
    /// How it lays out what an inode says of itself.
    pub layout: MiscLayout,
    /// Whether labels are bound to the filesystem's UUID (EVM_ATTR_FSUUID).
    pub fs_uuid: bool,
    /// What it protects.
    pub xattrs: XattrList,
}

impl Rules {
    /// The rules of a kernel of this version that was built with these options, on this machine.
    pub fn of_build(kernel: KernelVersion, config: &KernelConfig) -> Self {
        Self {
            kernel,
            layout: MiscLayout::NATIVE,
            fs_uuid: config.evm_attr_fsuuid,
            xattrs: XattrList::of_build(config),
        }
    }

    /// The guard's, and those of a kernel of which nothing is known: a distribution's, of the latest version.
    pub fn distribution() -> Self {
        Self { kernel: KernelVersion::Latest, layout: MiscLayout::NATIVE, fs_uuid: true, xattrs: XattrList::debian() }
    }

    /// From 6.10 on overlayfs has rules of its own.
    pub(super) fn knows_overlay(&self) -> bool {
        self.kernel >= KernelVersion::V6_12
    }

    /// From 7.1 on signatures of version 3 are over the label's type and algorithm too.
    pub(super) fn knows_sigv3(&self) -> bool {
        self.kernel >= KernelVersion::Latest
    }
}
