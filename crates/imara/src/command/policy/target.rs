//! Who is to take a policy: options shared by the commands that read one.

use super::this_machine;
use crate::output::Failure;
use clap::{Args, ValueEnum};
use imara_engine::policy_analysis::Support;
use imara_format::kernel_config::KernelConfig;
use imara_format::policy::{KernelVersion, Lsm, LsmLabels, Target};
use std::fs;

/// Who is to take the policy.
#[derive(Args)]
pub struct Taker {
    /// The kernel that is to take it.
    #[arg(long, value_enum, default_value_t = Kernel::Latest)]
    kernel: Kernel,
    /// The kernel's security module, which label conditions ask.
    #[arg(long, value_enum, default_value_t = SecurityModule::None)]
    lsm: SecurityModule,
    /// Take the labels named as known to the security module; otherwise it knows none, and refuses them.
    #[arg(long)]
    known_labels: bool,
    /// The kernel is built with appended signatures (modsig).
    #[arg(long)]
    modsig: bool,
    /// Imara's own guard is to take it, not a kernel.
    #[arg(long, conflicts_with_all = ["kernel", "lsm", "known_labels", "modsig", "here"])]
    pub guard: bool,
    /// This machine's running kernel is to take it: its version, what it was built with, its security module.
    #[arg(long, conflicts_with_all = ["kernel", "lsm", "known_labels", "modsig"])]
    here: bool,
}

/// A kernel, as the command line names it.
#[derive(Clone, Copy, ValueEnum)]
pub enum Kernel {
    /// 6.1.
    #[value(name = "6.1")]
    V6_1,
    /// 6.12.
    #[value(name = "6.12")]
    V6_12,
    /// The newest whose language is known.
    Latest,
}

impl Kernel {
    /// The version of the language that it takes.
    pub const fn version(self) -> KernelVersion {
        match self {
            Self::V6_1 => KernelVersion::V6_1,
            Self::V6_12 => KernelVersion::V6_12,
            Self::Latest => KernelVersion::Latest,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum SecurityModule {
    #[value(name = "apparmor")]
    AppArmor,
    #[value(name = "selinux")]
    Selinux,
    Smack,
    None,
}

impl Taker {
    /// The language that is taken, and, where that was asked for, what this machine's kernel was built with.
    ///
    /// # Errors
    /// This machine does not tell what its kernel was built with.
    pub fn target(&self) -> Result<(Target, Option<Support>), Failure> {
        if self.guard {
            return Ok((Target::guard(), None));
        }
        if self.here {
            let (target, support) = here()?;
            return Ok((target, Some(support)));
        }
        let lsm = match self.lsm {
            SecurityModule::AppArmor => Lsm::AppArmor,
            SecurityModule::Selinux => Lsm::Selinux,
            SecurityModule::Smack => Lsm::Smack,
            SecurityModule::None => Lsm::None,
        };
        let lsm_labels = if self.known_labels { LsmLabels::Known } else { LsmLabels::Unknown };
        Ok((Target { lsm, lsm_labels, modsig: self.modsig, ..Target::kernel(self.kernel.version()) }, None))
    }

    /// The taker of [`target`](Self::target), for people.
    pub fn name(&self, target: &Target) -> String {
        match (self.guard, self.here, target.kernel) {
            (true, ..) => "the guard".to_owned(),
            (_, true, _) => "this machine's kernel".to_owned(),
            (_, _, KernelVersion::Latest) => "the latest Linux".to_owned(),
            (_, _, kernel @ (KernelVersion::V6_1 | KernelVersion::V6_12)) => format!("Linux {kernel}"),
        }
    }
}

/// What this machine's kernel takes.
fn here() -> Result<(Target, Support), Failure> {
    let release = this_machine::release();
    let place = this_machine::config_place().ok_or_else(|| {
        Failure::lacking(format_args!(
            "what Linux {release} was built with cannot be read: there is no /boot/config-{release}"
        ))
        .next("leave --here out, and name the kernel with --kernel, --lsm and --modsig")
    })?;
    let support = support(&this_machine::parse_config(&place)?);
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let lsm = modules.trim().split(',').find_map(Lsm::from_name).unwrap_or(Lsm::None);
    // Which labels a module knows only it can tell: those it has a field for are taken.
    let target = Target { lsm, lsm_labels: LsmLabels::Known, ..Target::kernel(this_machine::nearest(&release)) };
    Ok((support.narrow(target), support))
}

/// What a kernel of this configuration supports.
fn support(config: &KernelConfig) -> Support {
    Support {
        ima: config.ima,
        appraise: config.ima_appraise,
        modsig: config.ima_appraise_modsig,
        verity: config.fs_verity,
        key_measurement: config.ima_measure_asymmetric_keys,
        lsm_rules: config.ima_lsm_rules,
        algorithms: config.hashes.iter().chain(config.hash_modules.iter()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::HashAlgorithm;

    #[test]
    fn a_kernels_configuration_says_what_it_supports() {
        let config = "CONFIG_IMA=y\n# CONFIG_IMA_APPRAISE_MODSIG is not set\nCONFIG_IMA_APPRAISE=y\nCONFIG_IMA_X=y\n\
             CONFIG_CRYPTO_SHA256=m\nCONFIG_FS_VERITY=n\nCONFIG_IMA_LSM_RULES=y\n";
        let found = support(&KernelConfig::parse(config).unwrap());
        assert!(found.ima && found.appraise && found.lsm_rules);
        assert!(!found.modsig && !found.verity && !found.key_measurement);
        assert!(found.algorithms.contains(HashAlgorithm::Sha256) && !found.algorithms.contains(HashAlgorithm::Sha512));
    }
}
