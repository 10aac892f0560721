//! Which kernel's EVM a label is made for, or judged by: this machine's, as long as options do not say otherwise.

use crate::command::paths::printable;
use crate::command::policy::target::Kernel;
use crate::command::policy::this_machine;
use crate::output::Failure;
use imara_engine::evm::Rules;
use imara_format::evm::MiscLayout;
use imara_format::policy::KernelVersion;
use imara_format::uuid::Uuid;
use imara_linux::kernel_evm;
use std::path::PathBuf;

/// Which kernel's.
#[derive(clap::Args)]
pub struct RulesOptions {
    /// The kernel whose rules hold [default: the running one's]
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// A kernel's build options, as /boot/config-VERSION: what it protects [default: this machine's; Debian's where there are
    /// none]
    #[arg(long, value_name = "F")]
    kernel_config: Option<PathBuf>,
    /// An attribute that is protected, too, as those that were written to evm_xattrs; may be given several times
    #[arg(long, value_name = "NAME", value_parser = protected)]
    protect: Vec<String>,
    /// The word size of the kernel, 32 or 64 bits [default: this machine's]
    #[arg(long, value_name = "BITS", value_parser = bits)]
    bits: Option<Bits>,
    /// The filesystem's UUID, which labels are bound to [default: as found]
    #[arg(long, value_name = "UUID", conflicts_with = "no_fsuuid")]
    pub fsuuid: Option<Uuid>,
    /// Labels are not bound to the filesystem's UUID (kernels without EVM_ATTR_FSUUID)
    #[arg(long)]
    no_fsuuid: bool,
}

#[derive(Clone, Copy)]
struct Bits(MiscLayout);

fn bits(text: &str) -> Result<Bits, String> {
    match text {
        "32" => Ok(Bits(MiscLayout::BITS_32)),
        "64" => Ok(Bits(MiscLayout::BITS_64)),
        _ => Err("32 or 64 is needed".to_owned()),
    }
}

fn protected(name: &str) -> Result<String, String> {
    match name.starts_with("security.") {
        true => Ok(name.to_owned()),
        false => Err("EVM protects attributes that begin with security.".to_owned()),
    }
}

impl RulesOptions {
    /// The rules.
    ///
    /// # Errors
    /// The build options cannot be read.
    pub fn find(&self) -> Result<Rules, Failure> {
        let mut rules = match &self.kernel_config {
            Some(file) => Rules::of_build(running_version(), &this_machine::parse_config(file)?),
            None => this_machine()?,
        };
        if let Some(kernel) = self.kernel {
            rules.kernel = kernel.version();
        }
        for name in &self.protect {
            rules.xattrs.enable(name);
        }
        if let Some(Bits(layout)) = self.bits {
            rules.layout = layout;
        }
        rules.fs_uuid = (rules.fs_uuid || self.fsuuid.is_some()) && !self.no_fsuuid;
        Ok(rules)
    }
}

/// The running kernel's EVM: as it was built, with what was written to its `evm_xattrs`.
///
/// # Errors
/// The build options are there and cannot be read.
pub fn this_machine() -> Result<Rules, Failure> {
    let (config, _) = this_machine::config()?;
    let mut rules = Rules::of_build(running_version(), &config);
    // Without EVM_ADD_XATTRS, or to whom it is not shown, it is as it was built.
    if let Ok(Some((list, _))) = kernel_evm::xattrs() {
        rules.xattrs = list;
    }
    Ok(rules)
}

/// The running kernel, among those whose EVM differs.
fn running_version() -> KernelVersion {
    version(&this_machine::release())
}

fn version(release: &str) -> KernelVersion {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (6_u32, 10_u32) => KernelVersion::V6_1,
        (Some(major), Some(minor)) if (major, minor) < (7_u32, 1_u32) => KernelVersion::V6_12,
        (_, _) => KernelVersion::Latest,
    }
}

/// What the rules protect, for people: `security.selinux, security.ima`.
pub fn protected_text(rules: &Rules) -> String {
    let names: Vec<&str> = rules.xattrs.enabled().collect();
    printable(names.join(", ").as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_by_its_release() {
        for (release, expected) in [
            ("5.15.0-91-generic", KernelVersion::V6_1),
            ("6.8.12", KernelVersion::V6_1),
            ("6.12.117+deb12-amd64", KernelVersion::V6_12),
            ("7.0.3", KernelVersion::V6_12),
            ("7.1-rc1", KernelVersion::Latest),
            ("", KernelVersion::Latest),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
