//! Who is to take a policy: options shared by the commands that read one.

use crate::output::Failure;
use clap::{Args, ValueEnum};
use imara_engine::policy_analysis::Support;
use imara_format::hash::HashAlgorithm;
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
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|error| Failure::lacking(format_args!("/proc/sys/kernel/osrelease: {error}")))?;
    let release = release.trim();
    let places = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    let config = places.iter().find_map(|place| fs::read_to_string(place).ok()).ok_or_else(|| {
        Failure::lacking(format_args!(
            "what Linux {release} was built with cannot be read: no {}",
            places.join(", no ")
        ))
        .next("leave --here out, and name the kernel with --kernel, --lsm and --modsig")
    })?;
    let support = support(&config);
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let lsm = modules.trim().split(',').find_map(Lsm::from_name).unwrap_or(Lsm::None);
    // Which labels a module knows only it can tell: those it has a field for are taken.
    let target = Target { lsm, lsm_labels: LsmLabels::Known, ..Target::kernel(language(release)) };
    Ok((support.narrow(target), support))
}

/// The nearest language to that of a release, such as `6.1.0-49-amd64`; `dont_audit` and `fs_subtype=` came with 6.19.
fn language(release: &str) -> KernelVersion {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 12) {
        KernelVersion::V6_1
    } else if version < (6, 19) {
        KernelVersion::V6_12
    } else {
        KernelVersion::Latest
    }
}

/// What a kernel of this configuration supports.
fn support(config: &str) -> Support {
    let has = |option: &str| {
        let mut options = config.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
        options.any(|(name, value)| name == option && matches!(value, "y" | "m"))
    };
    let algorithms = [
        ("CRYPTO_MD4", &[HashAlgorithm::Md4] as &[HashAlgorithm]),
        ("CRYPTO_MD5", &[HashAlgorithm::Md5]),
        ("CRYPTO_SHA1", &[HashAlgorithm::Sha1]),
        ("CRYPTO_RMD160", &[HashAlgorithm::Rmd160]),
        ("CRYPTO_SHA256", &[HashAlgorithm::Sha224, HashAlgorithm::Sha256]),
        ("CRYPTO_SHA512", &[HashAlgorithm::Sha384, HashAlgorithm::Sha512]),
        ("CRYPTO_WP512", &[HashAlgorithm::Wp256, HashAlgorithm::Wp384, HashAlgorithm::Wp512]),
        ("CRYPTO_SM3", &[HashAlgorithm::Sm3]),
        ("CRYPTO_SM3_GENERIC", &[HashAlgorithm::Sm3]),
        ("CRYPTO_STREEBOG", &[HashAlgorithm::Streebog256, HashAlgorithm::Streebog512]),
        ("CRYPTO_SHA3", &[HashAlgorithm::Sha3_256, HashAlgorithm::Sha3_384, HashAlgorithm::Sha3_512]),
    ];
    let built = algorithms.iter().filter(|(option, _)| has(option)).flat_map(|(_, algorithms)| *algorithms);
    Support {
        ima: has("IMA"),
        appraise: has("IMA_APPRAISE"),
        modsig: has("IMA_APPRAISE_MODSIG"),
        verity: has("FS_VERITY"),
        key_measurement: has("IMA_MEASURE_ASYMMETRIC_KEYS"),
        lsm_rules: has("IMA_LSM_RULES"),
        algorithms: built.copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_configuration_says_what_it_supports() {
        let config = "CONFIG_IMA=y\n# CONFIG_IMA_APPRAISE_MODSIG is not set\nCONFIG_IMA_APPRAISE=y\nCONFIG_IMA_X=y\n\
             CONFIG_CRYPTO_SHA256=m\nCONFIG_FS_VERITY=n\nCONFIG_IMA_LSM_RULES=y\n";
        let found = support(config);
        assert!(found.ima && found.appraise && found.lsm_rules);
        assert!(!found.modsig && !found.verity && !found.key_measurement);
        assert_eq!(found.algorithms, [HashAlgorithm::Sha224, HashAlgorithm::Sha256].into_iter().collect());
        assert!(!support("").ima);
    }

    #[test]
    fn a_release_has_the_nearest_language() {
        for (release, expected) in [
            ("5.15.0-1-generic", KernelVersion::V6_1),
            ("6.1.0-49-amd64", KernelVersion::V6_1),
            ("6.12.117", KernelVersion::V6_12),
            ("6.18.44-fc-v509", KernelVersion::V6_12),
            ("6.19-rc1", KernelVersion::Latest),
            ("7.0.0", KernelVersion::Latest),
            ("", KernelVersion::V6_1),
        ] {
            assert_eq!(language(release), expected, "{release}");
        }
    }
}
