//! What a kernel's integrity subsystem does before anybody loads a policy: from its command line, its build options, the
//! machine's firmware.
//!
//! The default policy is in force from boot; the custom one waits for the first policy that is loaded:
//!
//! | group, in this order | in the default policy | in the custom policy |
//! |---|---|---|
//! | `tcb` or `ima_tcb` | if chosen | |
//! | architecture | if booted securely | the same |
//! | `secure_boot` | if chosen | |
//! | build-time | unless `secure_boot` is chosen | always |
//! | `appraise_tcb` | if chosen | |
//! | `critical_data` | if chosen | |
//!
//! Architecture rules are text that the kernel parses as it parses any policy: one that it does not take is left out, and
//! the others count. All other groups are built in and parsed by nobody.
//!
//! Source: `init_ima`, `hash_setup`, security/integrity/ima/ima_main.c; `ima_init_policy`, ima_policy.c;
//! `arch_get_ima_policy`, security/integrity/ima/ima_efi.c, arch/powerpc/kernel/ima_arch.c.

use crate::policy_lists::PolicyLists;
use imara_format::boot_parameters::{AppraiseMode, BootParameters, Tcb};
use imara_format::hash::HashAlgorithm;
use imara_format::kernel_config::KernelConfig;
use imara_format::policy::{
    Action, AlgorithmSet, Class, Func, KernelVersion, Policy, Rule, Target, appraise_signed, appraise_tcb, builtin,
    parse_line,
};
use imara_format::template::Template;

/// A machine at boot, as far as the integrity subsystem looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The command line.
    pub parameters: &'a BootParameters,
    /// The kernel's build options.
    pub config: &'a KernelConfig,
    /// The kernel.
    pub kernel: KernelVersion,
    /// Whose rules it has.
    pub architecture: Architecture,
    /// The firmware starts only what is signed.
    pub secure_boot: bool,
    /// The firmware measures what it starts; looked at on powerpc alone.
    pub trusted_boot: bool,
}

/// An architecture, as far as it has a say in policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86 with EFI.
    X86,
    /// arm64 with EFI.
    Arm64,
    /// POWER.
    Powerpc,
    /// IBM Z: tells whether it was booted securely, and has no rules.
    S390,
    /// Any other: nothing.
    Other,
}

/// What the integrity subsystem does after boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootState {
    /// Why IMA does nothing at all; then all the following is without effect, and there are no rules.
    pub stopped: Option<Stopped>,
    /// What becomes of files that do not verify.
    pub mode: AppraiseMode,
    /// Why `ima_appraise=` cannot change that.
    pub mode_fixed: Option<ModeFixed>,
    /// What the kernel itself reads, of which it refuses whatever it cannot appraise.
    pub flags: AppraiseFlags,
    /// The algorithm that files are hashed with by default.
    pub hash: HashAlgorithm,
    /// Why this one.
    pub hash_because: HashBecause,
    /// The template that files are measured with by default.
    pub template: Template,
    /// Whether the command line names it.
    pub template_chosen: bool,
    /// Signatures on filesystems that cannot be trusted fail.
    pub fail_securely: bool,
    /// EVM lets attributes of badly labelled files be changed.
    pub evm_fix: bool,
    /// Modules without a good signature of their own are refused.
    pub module_sig_enforced: bool,
    /// Kernels to start by kexec without a good signature of their own are refused.
    pub kexec_sig_enforced: bool,
    /// The policy in force.
    pub default: Vec<Group>,
    /// What comes before the rules of the first policy that is loaded.
    pub custom: Vec<Group>,
    /// Whether more than one policy can be loaded.
    pub loads_again: bool,
    /// What is not as the command line asks, or as its rules say.
    pub surprises: Vec<Surprise>,
}

/// Rules that came together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Where from.
    pub origin: Origin,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// Where a kernel has rules from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `ima_tcb`.
    OldTcb,
    /// `ima_policy=tcb`.
    Tcb,
    /// The architecture's code.
    Architecture,
    /// `ima_policy=secure_boot`.
    SecureBoot,
    /// Build options.
    BuildTime,
    /// `ima_policy=appraise_tcb`.
    AppraiseTcb,
    /// `ima_policy=critical_data`.
    CriticalData,
}

impl Origin {
    /// A word for it, that of `ima_policy=` where it has one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OldTcb => "ima_tcb",
            Self::Tcb => "tcb",
            Self::Architecture => "architecture",
            Self::SecureBoot => "secure_boot",
            Self::BuildTime => "build-time",
            Self::AppraiseTcb => "appraise_tcb",
            Self::CriticalData => "critical_data",
        }
    }

    /// What brought it.
    pub const fn because(self) -> &'static str {
        match self {
            Self::OldTcb => "the parameter ima_tcb",
            Self::Tcb => "ima_policy=tcb",
            Self::Architecture => "CONFIG_IMA_ARCH_POLICY, and the firmware's secure or trusted boot",
            Self::SecureBoot => "ima_policy=secure_boot",
            Self::BuildTime => "CONFIG_IMA_APPRAISE_REQUIRE_…_SIGS",
            Self::AppraiseTcb => "ima_policy=appraise_tcb or ima_appraise_tcb",
            Self::CriticalData => "ima_policy=critical_data",
        }
    }
}

/// Why IMA does nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// It is not there.
    #[error("the kernel is built without IMA (CONFIG_IMA)")]
    NotBuiltIn,
    /// `ima=off`, after a crash.
    #[error("ima=off")]
    TurnedOff,
    /// An empty `ima_template=`.
    #[error("the template has no fields")]
    EmptyTemplate,
    /// The kernel has none of the hash algorithms that it could take.
    #[error("the kernel is built without the hash algorithm {0}, and without another to fall back to")]
    NoHash(HashAlgorithm),
}

/// Why `ima_appraise=` cannot change the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeFixed {
    /// There is no appraisal.
    #[error("the kernel is built without appraisal (CONFIG_IMA_APPRAISE)")]
    NotBuiltIn,
    /// The parameter does not exist.
    #[error("the kernel is built without CONFIG_IMA_APPRAISE_BOOTPARAM")]
    NoParameter,
    /// The machine was booted securely.
    #[error("secure boot is on")]
    SecureBoot,
}

/// Why files are hashed with this algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashBecause {
    /// `ima_hash=`.
    #[error("ima_hash=")]
    Parameter,
    /// The build option.
    #[error("CONFIG_IMA_DEFAULT_HASH")]
    BuildOption,
    /// The build option's algorithm does not go with the template.
    #[error("the template `ima` does not hold {0}, which CONFIG_IMA_DEFAULT_HASH names")]
    LegacyTemplate(HashAlgorithm),
    /// The kernel does not have the one that was asked for.
    #[error("CONFIG_IMA_DEFAULT_HASH, as the kernel does not have {0}")]
    NotThere(HashAlgorithm),
}

/// Something that is not as the command line asks, or as its rules say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Surprise {
    /// IMA does nothing.
    #[error("IMA does nothing: {0}")]
    Stopped(Stopped),
    /// `ima_appraise=` and secure boot.
    #[error("ima_appraise={} is ignored: secure boot is on, the mode stays `enforce`", .0.name())]
    ModeIgnored(AppraiseMode),
    /// `ima_appraise=off` and rules for what the kernel reads.
    #[error(
        "ima_appraise=off does not switch appraisal off: the policy appraises what the kernel itself reads, so all its \
         appraise rules go on; what does not verify is recorded and not refused, as with `log`"
    )]
    OffIsLog,
    /// Rules that appraise and a kernel that does not.
    #[error("the appraise rules do nothing: appraisal is off")]
    AppraiseOff,
    /// The algorithm that was asked for.
    #[error("ima_hash={0} is not used: the kernel does not have it")]
    HashNotThere(HashAlgorithm),
    /// A module; and the algorithm that takes its place, if one can.
    #[error(
        "the hash algorithm {hash} is a module: if it cannot be loaded when IMA starts, before init runs, {}",
        other.map_or("IMA does not start".to_owned(), |other| format!("{other} is used"))
    )]
    HashModule {
        /// The module.
        hash: HashAlgorithm,
        /// What the kernel tries next.
        other: Option<HashAlgorithm>,
    },
    /// A rule of the architecture's that the kernel itself does not take.
    #[error("the architecture's rule `{rule}` is left out: {error}")]
    ArchitectureRule {
        /// The rule.
        rule: &'static str,
        /// Why it is refused.
        error: String,
    },
    /// `evm=fix` and secure boot.
    #[error("evm=fix is ignored: secure boot is on")]
    EvmFixIgnored,
}

/// What the kernel itself reads and appraises, by the rules that it ever had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppraiseFlags {
    /// Modules: `init_module`, which has no file, is refused in enforce mode.
    pub modules: bool,
    /// Firmware: its fallback through sysfs is refused in enforce mode.
    pub firmware: bool,
    /// Policies: rules can no longer be written, only the path of a file with a signature, in every mode.
    pub policy: bool,
    /// Kernels to start by kexec: `kexec_load`, which has no file, is refused in enforce mode.
    pub kexec: bool,
}

impl AppraiseFlags {
    /// What these rules switch on: only `func=` is looked at.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        let mut flags = Self::default();
        for rule in rules.into_iter().filter(|rule| rule.action == Action::Appraise) {
            flags.modules |= rule.func == Some(Func::ModuleCheck);
            flags.firmware |= rule.func == Some(Func::FirmwareCheck);
            flags.policy |= rule.func == Some(Func::PolicyCheck);
            flags.kexec |= rule.func == Some(Func::KexecKernelCheck);
        }
        flags
    }

    /// Whether any is on.
    pub const fn any(self) -> bool {
        self.modules || self.firmware || self.policy || self.kexec
    }
}

impl Boot<'_> {
    /// What the integrity subsystem does after boot.
    pub fn state(&self) -> BootState {
        let (parameters, config) = (self.parameters, self.config);
        let mut surprises = Vec::new();
        let template = parameters.template.clone().unwrap_or_else(|| config.default_template.clone());
        let (hash, hash_because, no_hash) = self.hash(&template, &mut surprises);
        let stopped = match () {
            () if !config.ima => Some(Stopped::NotBuiltIn),
            () if parameters.ima == Some(false) => Some(Stopped::TurnedOff),
            () if template.fields.is_empty() => Some(Stopped::EmptyTemplate),
            () => no_hash,
        };
        let (default, custom) = match stopped {
            Some(_) => (Vec::new(), Vec::new()),
            None => self.groups(&mut surprises),
        };
        let flags = AppraiseFlags::of(default.iter().chain(&custom).flat_map(|group| &group.rules));
        let (mode, mode_fixed) = self.mode(&mut surprises);
        let appraises = default.iter().flat_map(|group| &group.rules).any(|rule| rule.action == Action::Appraise);
        match (mode, flags.any()) {
            (AppraiseMode::Off, true) if appraises => surprises.push(Surprise::OffIsLog),
            // `off` asked for is no surprise.
            (AppraiseMode::Off, false) if appraises && parameters.appraise != Some(AppraiseMode::Off) => {
                surprises.push(Surprise::AppraiseOff);
            }
            (AppraiseMode::Off | AppraiseMode::Log | AppraiseMode::Fix | AppraiseMode::Enforce, _) => {}
        }
        // Linux 7.1 on.
        let evm_fix_ignored = parameters.evm_fix && self.kernel == KernelVersion::Latest && self.booted_securely();
        if evm_fix_ignored {
            surprises.push(Surprise::EvmFixIgnored);
        }
        if let Some(stopped) = stopped {
            surprises = vec![Surprise::Stopped(stopped)];
        }
        let efi = matches!(self.architecture, Architecture::X86 | Architecture::Arm64);
        let enforces = self.asks_architecture() && self.secure_boot && stopped.is_none();
        let powerpc = self.architecture == Architecture::Powerpc;
        BootState {
            stopped,
            mode,
            mode_fixed,
            flags,
            hash,
            hash_because,
            template,
            template_chosen: parameters.template.is_some(),
            fail_securely: parameters.fail_securely,
            evm_fix: parameters.evm_fix && !evm_fix_ignored,
            module_sig_enforced: config.module_sig && (config.module_sig_force || enforces && (efi || powerpc)),
            kexec_sig_enforced: config.kexec_sig && (config.kexec_sig_force || enforces && efi),
            default,
            custom,
            loads_again: config.ima_write_policy,
            surprises,
        }
    }

    /// Whether the kernel knows of a secure boot.
    fn booted_securely(&self) -> bool {
        let can_tell = self.architecture != Architecture::Other && self.config.ima_secure_and_or_trusted_boot;
        can_tell && self.secure_boot
    }

    fn asks_architecture(&self) -> bool {
        self.config.ima_arch_policy && self.config.ima_secure_and_or_trusted_boot
    }

    fn mode(&self, surprises: &mut Vec<Surprise>) -> (AppraiseMode, Option<ModeFixed>) {
        let asked = self.parameters.appraise;
        if !self.config.ima_appraise {
            return (AppraiseMode::Off, Some(ModeFixed::NotBuiltIn));
        }
        if !self.config.ima_appraise_bootparam {
            return (AppraiseMode::Enforce, Some(ModeFixed::NoParameter));
        }
        if self.booted_securely() {
            surprises.extend(asked.filter(|mode| *mode != AppraiseMode::Enforce).map(Surprise::ModeIgnored));
            return (AppraiseMode::Enforce, Some(ModeFixed::SecureBoot));
        }
        (asked.unwrap_or(AppraiseMode::Enforce), None)
    }

    fn hash(
        &self,
        template: &Template,
        surprises: &mut Vec<Surprise>,
    ) -> (HashAlgorithm, HashBecause, Option<Stopped>) {
        let default = self.config.default_hash;
        let fits = !template.is_legacy() || matches!(default, HashAlgorithm::Sha1 | HashAlgorithm::Md5);
        let (hash, because) = match self.parameters.hash {
            Some(asked) => (asked, HashBecause::Parameter),
            None if fits => (default, HashBecause::BuildOption),
            // Where the kernel's variable stands before anything sets it.
            None => (HashAlgorithm::Sha1, HashBecause::LegacyTemplate(default)),
        };
        if self.config.hashes.contains(hash) {
            return (hash, because, None);
        }
        // What the kernel tries next.
        let other = Some(default).filter(|default| fits && *default != hash && self.config.hashes.contains(*default));
        if self.config.hash_modules.contains(hash) {
            surprises.push(Surprise::HashModule { hash, other });
            return (hash, because, None);
        }
        if other.is_none() {
            return (hash, because, Some(Stopped::NoHash(hash)));
        }
        surprises.push(Surprise::HashNotThere(hash));
        (default, HashBecause::NotThere(hash), None)
    }

    /// The default and the custom policy.
    fn groups(&self, surprises: &mut Vec<Surprise>) -> (Vec<Group>, Vec<Group>) {
        let parameters = self.parameters;
        let built_in = |name| builtin(name).expect("a name out of the list of built-in policies").rules;
        let chosen = |chosen, rules: &dyn Fn() -> Vec<Rule>| if chosen { rules() } else { Vec::new() };
        let (tcb, tcb_rules) = match parameters.tcb {
            Some(Tcb::Old) => (Origin::OldTcb, built_in("ima_tcb")),
            Some(Tcb::New) => (Origin::Tcb, built_in("tcb")),
            None => (Origin::Tcb, Vec::new()),
        };
        let architecture = self.architecture_rules(surprises);
        let build_time = self.build_time_rules();
        let appraise = || appraise_tcb(self.config.ima_write_policy, self.config.ima_appraise_signed_init).rules;
        let default = [
            (tcb, tcb_rules),
            (Origin::Architecture, architecture.clone()),
            (Origin::SecureBoot, chosen(parameters.secure_boot, &|| built_in("secure_boot"))),
            (Origin::BuildTime, chosen(!parameters.secure_boot, &|| build_time.clone())),
            (Origin::AppraiseTcb, chosen(parameters.appraise_tcb, &appraise)),
            (Origin::CriticalData, chosen(parameters.critical_data, &|| built_in("critical_data"))),
        ];
        let custom = [(Origin::Architecture, architecture), (Origin::BuildTime, build_time.clone())];
        (groups(default), groups(custom))
    }

    fn build_time_rules(&self) -> Vec<Rule> {
        let config = self.config;
        [
            (config.ima_appraise_require_module_sigs, Func::ModuleCheck),
            (config.ima_appraise_require_firmware_sigs, Func::FirmwareCheck),
            (config.ima_appraise_require_kexec_sigs, Func::KexecKernelCheck),
            (config.ima_appraise_require_policy_sigs, Func::PolicyCheck),
        ]
        .into_iter()
        .filter(|(required, _)| *required)
        .map(|(_, func)| appraise_signed(func))
        .collect()
    }

    fn architecture_rules(&self, surprises: &mut Vec<Surprise>) -> Vec<Rule> {
        let hashes: AlgorithmSet = self.config.hashes.iter().chain(self.config.hash_modules.iter()).collect();
        let target = Target {
            modsig: self.config.ima_appraise_modsig,
            key_measurement: self.config.ima_measure_asymmetric_keys,
            algorithms: hashes,
            ..Target::kernel(self.kernel)
        };
        let mut rules = Vec::new();
        for text in self.architecture_text() {
            match parse_line(text.as_bytes(), 0, &target) {
                Ok(rule) => rules.extend(rule),
                Err(error) => {
                    surprises.push(Surprise::ArchitectureRule { rule: text, error: error.kind.to_string() });
                }
            }
        }
        rules
    }

    fn architecture_text(&self) -> Vec<&'static str> {
        let config = self.config;
        let rules = match self.architecture {
            _ if !self.asks_architecture() => Vec::new(),
            Architecture::S390 | Architecture::Other => Vec::new(),
            Architecture::X86 | Architecture::Arm64 if !self.secure_boot => Vec::new(),
            Architecture::X86 | Architecture::Arm64 => {
                let machine_keys = self.kernel >= KernelVersion::V6_12
                    && config.integrity_machine_keyring
                    && config.ima_keyrings_permit_signed_by_builtin_or_secondary;
                vec![
                    (!config.kexec_sig, "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig"),
                    (true, "measure func=KEXEC_KERNEL_CHECK"),
                    (!config.module_sig, "appraise func=MODULE_CHECK appraise_type=imasig"),
                    (machine_keys, "appraise func=POLICY_CHECK appraise_type=imasig"),
                    (true, "measure func=MODULE_CHECK"),
                ]
            }
            Architecture::Powerpc => {
                let (secure, trusted) = (self.secure_boot, self.trusted_boot);
                let modules = secure && !config.module_sig;
                let [kexec_rule, module_rule] = match self.kernel {
                    KernelVersion::V6_1 => [
                        "appraise func=KEXEC_KERNEL_CHECK appraise_flag=check_blacklist appraise_type=imasig|modsig",
                        "appraise func=MODULE_CHECK appraise_flag=check_blacklist appraise_type=imasig|modsig",
                    ],
                    KernelVersion::V6_12 | KernelVersion::Latest => [
                        "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig|modsig",
                        "appraise func=MODULE_CHECK appraise_type=imasig|modsig",
                    ],
                };
                vec![
                    (trusted && !secure, "measure func=KEXEC_KERNEL_CHECK"),
                    (trusted && !secure, "measure func=MODULE_CHECK"),
                    (trusted && secure, "measure func=KEXEC_KERNEL_CHECK template=ima-modsig"),
                    (trusted && secure, "measure func=MODULE_CHECK template=ima-modsig"),
                    (secure, kexec_rule),
                    (modules, module_rule),
                ]
            }
        };
        rules.into_iter().filter(|(there, _)| *there).map(|(_, text)| text).collect()
    }
}

fn groups(groups: impl IntoIterator<Item = (Origin, Vec<Rule>)>) -> Vec<Group> {
    let filled = groups.into_iter().filter(|(_, rules)| !rules.is_empty());
    filled.map(|(origin, rules)| Group { origin, rules }).collect()
}

impl BootState {
    /// The two policies after boot, ready to load others.
    pub fn lists(&self) -> PolicyLists {
        let policy = |groups: &[Group]| Policy { rules: groups.iter().flat_map(|group| group.rules.clone()).collect() };
        PolicyLists::new(policy(&self.default), policy(&self.custom), self.loads_again)
    }

    /// What the policy in force does at all; with nothing here, no hook looks at it.
    pub fn classes(&self) -> Vec<Class> {
        let does = |class: Class| {
            let appraises = class != Class::Appraise || self.mode != AppraiseMode::Off || self.flags.any();
            // A rule for SETXATTR_CHECK only names algorithms.
            let rules = self.default.iter().flat_map(|group| &group.rules);
            let mut rules = rules.filter(|rule| rule.func != Some(Func::SetxattrCheck));
            appraises && rules.any(|rule| rule.action.does() && rule.action.class() == class)
        };
        Class::ALL.iter().copied().filter(|class| does(*class)).collect()
    }
}

#[cfg(test)]
mod tests;
