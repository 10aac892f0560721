//! A kernel's build options, as `/boot/config-VERSION` has them: those that decide what its integrity subsystem does.
//!
//! ```text
//! CONFIG_IMA=y                         built in
//! CONFIG_CRYPTO_SHA512=m               a module
//! CONFIG_IMA_DEFAULT_HASH="sha256"     text
//! CONFIG_IMA_MEASURE_PCR_IDX=10        a number
//! # CONFIG_IMA_WRITE_POLICY is not set off, as is whatever is not named
//! ```
//!
//! Source: Documentation/kbuild/kconfig.rst; security/integrity/{,ima,evm}/Kconfig.

use crate::hash::HashAlgorithm;
use crate::policy::AlgorithmSet;
use crate::template::Template;
use std::collections::BTreeMap;

macro_rules! switches {
    ($($(#[$doc:meta])* $field:ident = $option:literal,)*) => {
        /// The build options that the integrity subsystem depends on.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct KernelConfig {
            $($(#[$doc])* pub $field: bool,)*
            /// `IMA_MEASURE_PCR_IDX`: the PCR that is extended.
            pub measure_pcr: u32,
            /// `IMA_DEFAULT_HASH`.
            pub default_hash: HashAlgorithm,
            /// `IMA_DEFAULT_TEMPLATE`.
            pub default_template: &'static Template,
            /// `IMA_X509_PATH`: the certificate that `IMA_LOAD_X509` loads.
            pub ima_x509_path: String,
            /// `EVM_X509_PATH`: the certificate that `EVM_LOAD_X509` loads.
            pub evm_x509_path: String,
            /// `LSM`: the security modules started without `lsm=`, in their order.
            pub lsm: String,
            /// The hash algorithms built in.
            pub hashes: AlgorithmSet,
            /// The hash algorithms that are modules.
            pub hash_modules: AlgorithmSet,
        }

        impl KernelConfig {
            /// Every option that is on or off, without its `CONFIG_`, and whether it is on.
            pub fn switches(&self) -> impl Iterator<Item = (&'static str, bool)> {
                [$(($option, self.$field),)*].into_iter()
            }

            fn read(options: &Options<'_>) -> Result<Self, KernelConfigError> {
                Ok(Self {
                    $($field: options.is_on($option),)*
                    measure_pcr: options.number("IMA_MEASURE_PCR_IDX", 10)?,
                    default_hash: options.known("IMA_DEFAULT_HASH", "sha1", HashAlgorithm::from_name)?,
                    default_template: options.known("IMA_DEFAULT_TEMPLATE", "ima-ng", Template::built_in)?,
                    ima_x509_path: options.text("IMA_X509_PATH", "/etc/keys/x509_ima.der").to_owned(),
                    evm_x509_path: options.text("EVM_X509_PATH", "/etc/keys/x509_evm.der").to_owned(),
                    lsm: options.text("LSM", "").to_owned(),
                    hashes: options.hashes("y"),
                    hash_modules: options.hashes("m"),
                })
            }
        }
    };
}

switches! {
    /// Digests, signatures and audit that IMA and EVM share.
    integrity = "INTEGRITY",
    /// Signatures can be verified.
    integrity_signature = "INTEGRITY_SIGNATURE",
    /// Signatures of versions 2 and 3 can.
    integrity_asymmetric_keys = "INTEGRITY_ASYMMETRIC_KEYS",
    /// The keyrings are `.ima` and `.evm` and take only certificates signed by a trusted key.
    integrity_trusted_keyring = "INTEGRITY_TRUSTED_KEYRING",
    /// The firmware's keys, on `.platform`.
    integrity_platform_keyring = "INTEGRITY_PLATFORM_KEYRING",
    /// The machine owner's keys, on `.machine`.
    integrity_machine_keyring = "INTEGRITY_MACHINE_KEYRING",
    /// Of the machine owner's keys only those of certificate authorities.
    integrity_ca_machine_keyring = "INTEGRITY_CA_MACHINE_KEYRING",
    /// Audit records.
    integrity_audit = "INTEGRITY_AUDIT",
    /// Measurement.
    ima = "IMA",
    /// Measurement lists survive kexec.
    ima_kexec = "IMA_KEXEC",
    /// Rules may have conditions on labels.
    ima_lsm_rules = "IMA_LSM_RULES",
    /// A policy can be loaded more than once.
    ima_write_policy = "IMA_WRITE_POLICY",
    /// The policy can be read.
    ima_read_policy = "IMA_READ_POLICY",
    /// Appraisal.
    ima_appraise = "IMA_APPRAISE",
    /// Rules from the architecture's code.
    ima_arch_policy = "IMA_ARCH_POLICY",
    /// The architecture tells whether it was booted securely.
    ima_secure_and_or_trusted_boot = "IMA_SECURE_AND_OR_TRUSTED_BOOT",
    /// Rules chosen when the kernel was built.
    ima_appraise_build_policy = "IMA_APPRAISE_BUILD_POLICY",
    /// One of them: firmware needs a signature.
    ima_appraise_require_firmware_sigs = "IMA_APPRAISE_REQUIRE_FIRMWARE_SIGS",
    /// One of them: kernels to start by kexec need a signature.
    ima_appraise_require_kexec_sigs = "IMA_APPRAISE_REQUIRE_KEXEC_SIGS",
    /// One of them: kernel modules need a signature.
    ima_appraise_require_module_sigs = "IMA_APPRAISE_REQUIRE_MODULE_SIGS",
    /// One of them: policies need a signature.
    ima_appraise_require_policy_sigs = "IMA_APPRAISE_REQUIRE_POLICY_SIGS",
    /// `ima_appraise=` exists.
    ima_appraise_bootparam = "IMA_APPRAISE_BOOTPARAM",
    /// Appended signatures.
    ima_appraise_modsig = "IMA_APPRAISE_MODSIG",
    /// `appraise_tcb` needs a signature of init and all else that root owns.
    ima_appraise_signed_init = "IMA_APPRAISE_SIGNED_INIT",
    /// Keys signed by the secondary keyring may be added to `.ima`.
    ima_keyrings_permit_signed_by_builtin_or_secondary = "IMA_KEYRINGS_PERMIT_SIGNED_BY_BUILTIN_OR_SECONDARY",
    /// Keys on `.ima_blacklist` are refused.
    ima_blacklist_keyring = "IMA_BLACKLIST_KEYRING",
    /// A certificate is loaded at boot.
    ima_load_x509 = "IMA_LOAD_X509",
    /// Keys can be measured.
    ima_measure_asymmetric_keys = "IMA_MEASURE_ASYMMETRIC_KEYS",
    /// The same measurement is listed again and again.
    ima_disable_htable = "IMA_DISABLE_HTABLE",
    /// EVM.
    evm = "EVM",
    /// Labels are bound to the filesystem's UUID.
    evm_attr_fsuuid = "EVM_ATTR_FSUUID",
    /// Smack's other attributes are protected too.
    evm_extra_smack_xattrs = "EVM_EXTRA_SMACK_XATTRS",
    /// More attributes can be named for protection.
    evm_add_xattrs = "EVM_ADD_XATTRS",
    /// A certificate is loaded at boot.
    evm_load_x509 = "EVM_LOAD_X509",
    /// SELinux; EVM protects its attribute.
    security_selinux = "SECURITY_SELINUX",
    /// Smack; EVM protects its first attribute.
    security_smack = "SECURITY_SMACK",
    /// AppArmor; EVM protects its attribute.
    security_apparmor = "SECURITY_APPARMOR",
    /// Files can have fs-verity digests.
    fs_verity = "FS_VERITY",
    /// Modules' own signatures are verified.
    module_sig = "MODULE_SIG",
    /// Modules without a good one are refused.
    module_sig_force = "MODULE_SIG_FORCE",
    /// Kernels' own signatures are verified by kexec.
    kexec_sig = "KEXEC_SIG",
    /// Kernels without a good one are refused.
    kexec_sig_force = "KEXEC_SIG_FORCE",
    /// Certificates built into the kernel.
    system_trusted_keyring = "SYSTEM_TRUSTED_KEYRING",
    /// Certificates that they have signed.
    secondary_trusted_keyring = "SECONDARY_TRUSTED_KEYRING",
    /// Hashes and keys that are refused.
    system_blacklist_keyring = "SYSTEM_BLACKLIST_KEYRING",
    /// Trusted keys; a module counts.
    trusted_keys = "TRUSTED_KEYS",
    /// Encrypted keys; a module counts.
    encrypted_keys = "ENCRYPTED_KEYS",
}

/// What Debian 12's Linux 6.1 is built with: it stands for a distribution's kernel where nothing is known.
pub const DEBIAN: &str = "CONFIG_INTEGRITY=y
CONFIG_INTEGRITY_SIGNATURE=y
CONFIG_INTEGRITY_ASYMMETRIC_KEYS=y
CONFIG_INTEGRITY_PLATFORM_KEYRING=y
CONFIG_INTEGRITY_MACHINE_KEYRING=y
CONFIG_INTEGRITY_AUDIT=y
CONFIG_IMA=y
CONFIG_IMA_LSM_RULES=y
CONFIG_IMA_DEFAULT_TEMPLATE=\"ima-sig\"
CONFIG_IMA_DEFAULT_HASH=\"sha256\"
CONFIG_IMA_APPRAISE=y
CONFIG_IMA_ARCH_POLICY=y
CONFIG_IMA_SECURE_AND_OR_TRUSTED_BOOT=y
CONFIG_IMA_APPRAISE_BOOTPARAM=y
CONFIG_IMA_MEASURE_ASYMMETRIC_KEYS=y
CONFIG_EVM=y
CONFIG_EVM_ATTR_FSUUID=y
CONFIG_SECURITY_SELINUX=y
CONFIG_SECURITY_APPARMOR=y
CONFIG_MODULE_SIG=y
CONFIG_KEXEC_SIG=y
CONFIG_SYSTEM_TRUSTED_KEYRING=y
CONFIG_SECONDARY_TRUSTED_KEYRING=y
CONFIG_SYSTEM_BLACKLIST_KEYRING=y
CONFIG_ENCRYPTED_KEYS=y
CONFIG_LSM=\"landlock,lockdown,yama,loadpin,safesetid,integrity,apparmor,selinux,smack,tomoyo,bpf\"
CONFIG_CRYPTO_MD4=m
CONFIG_CRYPTO_MD5=y
CONFIG_CRYPTO_SHA1=y
CONFIG_CRYPTO_RMD160=m
CONFIG_CRYPTO_SHA256=y
CONFIG_CRYPTO_SHA512=m
CONFIG_CRYPTO_WP512=m
CONFIG_CRYPTO_STREEBOG=m
CONFIG_CRYPTO_SHA3=m
";

/// A text that is no kernel's configuration, or one that the integrity subsystem cannot have been built with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelConfigError {
    /// Not one line is an option.
    #[error("no line is a build option (`CONFIG_…=…`): this is no kernel configuration")]
    NoOption,
    /// A value that its option cannot have.
    #[error("line {line}: CONFIG_{option} cannot be `{value}`")]
    Value {
        /// The line, from 1.
        line: usize,
        /// The option, without its `CONFIG_`.
        option: &'static str,
        /// The value found.
        value: String,
    },
}

/// Option, without `CONFIG_`: its line and its value.
struct Options<'a>(BTreeMap<&'a str, (usize, &'a str)>);

/// Which option of the kernel's cryptography brings which hash algorithms; the kernel has none of the others.
const HASHES: [(&str, &[HashAlgorithm]); 11] = [
    ("CRYPTO_MD4", &[HashAlgorithm::Md4]),
    ("CRYPTO_MD5", &[HashAlgorithm::Md5]),
    ("CRYPTO_SHA1", &[HashAlgorithm::Sha1]),
    ("CRYPTO_RMD160", &[HashAlgorithm::Rmd160]),
    ("CRYPTO_SHA256", &[HashAlgorithm::Sha224, HashAlgorithm::Sha256]),
    ("CRYPTO_SHA512", &[HashAlgorithm::Sha384, HashAlgorithm::Sha512]),
    ("CRYPTO_WP512", &[HashAlgorithm::Wp256, HashAlgorithm::Wp384, HashAlgorithm::Wp512]),
    ("CRYPTO_SM3_GENERIC", &[HashAlgorithm::Sm3]),
    ("CRYPTO_SM3", &[HashAlgorithm::Sm3]),
    ("CRYPTO_STREEBOG", &[HashAlgorithm::Streebog256, HashAlgorithm::Streebog512]),
    ("CRYPTO_SHA3", &[HashAlgorithm::Sha3_256, HashAlgorithm::Sha3_384, HashAlgorithm::Sha3_512]),
];

impl KernelConfig {
    /// Reads a kernel's configuration; options that the integrity subsystem does not depend on are not looked at.
    ///
    /// # Errors
    /// [`KernelConfigError`]: the text is something else, or has a value that its option cannot have.
    pub fn parse(text: &str) -> Result<Self, KernelConfigError> {
        let option = |(index, line): (usize, &'_ str)| -> Option<_> {
            let (name, value) = line.trim().strip_prefix("CONFIG_")?.split_once('=')?;
            Some((name.to_owned(), (index.saturating_add(1), value.to_owned())))
        };
        let options: BTreeMap<_, _> = text.lines().enumerate().filter_map(option).collect();
        if options.is_empty() {
            return Err(KernelConfigError::NoOption);
        }
        let borrowed = options.iter().map(|(name, (line, value))| (name.as_str(), (*line, value.as_str())));
        Self::read(&Options(borrowed.collect()))
    }
}

impl<'a> Options<'a> {
    /// A module counts as on.
    fn is_on(&self, option: &str) -> bool {
        matches!(self.0.get(option), Some((_, "y" | "m")))
    }

    fn text(&self, option: &str, absent: &'a str) -> &'a str {
        self.0.get(option).map_or(absent, |(_, value)| value.trim_matches('"'))
    }

    fn number(&self, option: &'static str, absent: u32) -> Result<u32, KernelConfigError> {
        match self.0.get(option) {
            None => Ok(absent),
            Some((line, value)) => {
                value.parse().map_err(|_| KernelConfigError::Value { line: *line, option, value: (*value).to_owned() })
            }
        }
    }

    fn known<T>(
        &self,
        option: &'static str,
        absent: &'a str,
        known: impl Fn(&str) -> Option<T>,
    ) -> Result<T, KernelConfigError> {
        let value = self.text(option, absent);
        let line = self.0.get(option).map_or(0, |(line, _)| *line);
        known(value).ok_or_else(|| KernelConfigError::Value { line, option, value: value.to_owned() })
    }

    fn hashes(&self, built: &str) -> AlgorithmSet {
        let is_built = |option: &str| self.0.get(option).is_some_and(|(_, value)| *value == built);
        HASHES.iter().filter(|(option, _)| is_built(option)).flat_map(|(_, hashes)| hashes.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_6_1: &str = include_str!("../../../tests/vectors/kernel_config/debian-6.1");
    const DEBIAN_6_12: &str = include_str!("../../../tests/vectors/kernel_config/debian-6.12");

    #[test]
    fn the_configuration_that_stands_for_an_unknown_one_is_debians() {
        assert_eq!(KernelConfig::parse(DEBIAN_6_1), KernelConfig::parse(DEBIAN));
        assert!(KernelConfig::parse(DEBIAN).is_ok());
    }

    #[test]
    fn options_are_read_by_their_names() {
        let config = KernelConfig::parse(DEBIAN_6_12).unwrap();
        assert_eq!((config.default_hash, &*config.default_template.name), (HashAlgorithm::Sha256, "ima-sig"));
        assert_eq!(config.measure_pcr, 10);
        assert!(config.hashes.contains(HashAlgorithm::Sha512) && !config.hash_modules.contains(HashAlgorithm::Sha512));
        assert!(
            config.hash_modules.contains(HashAlgorithm::Streebog256) && !config.hashes.contains(HashAlgorithm::Sm3)
        );
        assert!(config.ima_appraise_bootparam && config.evm && !config.ima_write_policy);
        let on = |option: &str| {
            let text = format!("CONFIG_{option}=y\n");
            let config = KernelConfig::parse(&text).unwrap();
            config.switches().filter(|(_, on)| *on).map(|(option, _)| option).collect::<Vec<_>>()
        };
        for (option, _) in config.switches() {
            assert_eq!(on(option), [option]);
        }
    }

    #[test]
    fn what_is_not_set_has_the_kernels_default() {
        let config = KernelConfig::parse("# CONFIG_IMA is not set\r\nCONFIG_64BIT=y\r\n").unwrap();
        assert!(config.switches().all(|(_, on)| !on));
        assert_eq!((config.default_hash, &*config.default_template.name), (HashAlgorithm::Sha1, "ima-ng"));
        assert_eq!(config.ima_x509_path, "/etc/keys/x509_ima.der");
    }

    #[test]
    fn other_text_and_impossible_values_are_refused() {
        let value = |line, option, value: &str| Err(KernelConfigError::Value { line, option, value: value.to_owned() });
        for (text, expected) in [
            ("", Err(KernelConfigError::NoOption)),
            ("root=/dev/sda quiet\n# CONFIG_IMA is not set\n", Err(KernelConfigError::NoOption)),
            ("CONFIG_IMA=y\nCONFIG_IMA_DEFAULT_HASH=\"sha0\"\n", value(2, "IMA_DEFAULT_HASH", "sha0")),
            ("CONFIG_IMA_DEFAULT_TEMPLATE=\"nope\"", value(1, "IMA_DEFAULT_TEMPLATE", "nope")),
            ("CONFIG_IMA_MEASURE_PCR_IDX=ten", value(1, "IMA_MEASURE_PCR_IDX", "ten")),
        ] {
            assert_eq!(KernelConfig::parse(text), expected, "{text}");
        }
    }
}
