//! The closed sets of words that the policy language has.

use crate::hash::HashAlgorithm;
use std::fmt;

macro_rules! words {
    ($(#[$enum_doc:meta])* $name:ident: $($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word, spelled as the policy language spells it.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
    };
}

words! {
    /// What a rule does.
    Action:
    /// Add to the measurement list.
    Measure = "measure",
    /// Do not.
    DontMeasure = "dont_measure",
    /// Refuse unless the label verifies.
    Appraise = "appraise",
    /// Do not.
    DontAppraise = "dont_appraise",
    /// Write the digest to the audit log.
    Audit = "audit",
    /// Do not (newest kernels).
    DontAudit = "dont_audit",
    /// Keep a hash in `security.ima` without appraising.
    Hash = "hash",
    /// Do not.
    DontHash = "dont_hash",
}

words! {
    /// What actions are about; the first matching rule of each class decides it.
    Class:
    /// `measure`, `dont_measure`.
    Measure = "measure",
    /// `appraise`, `dont_appraise`.
    Appraise = "appraise",
    /// `audit`, `dont_audit`.
    Audit = "audit",
    /// `hash`, `dont_hash`.
    Hash = "hash",
}

words! {
    /// The hook that asks.
    Func:
    /// A file is opened.
    FileCheck = "FILE_CHECK",
    /// A file is mapped executable.
    MmapCheck = "MMAP_CHECK",
    /// A file is mapped with executable asked for, given or not (6.12 on).
    MmapCheckReqprot = "MMAP_CHECK_REQPROT",
    /// A file is executed.
    BprmCheck = "BPRM_CHECK",
    /// A file is executed, judged by the credentials it is to run with.
    CredsCheck = "CREDS_CHECK",
    /// A file's attributes were changed. No policy can name it.
    PostSetattr = "POST_SETATTR",
    /// A kernel module is loaded.
    ModuleCheck = "MODULE_CHECK",
    /// Firmware is loaded.
    FirmwareCheck = "FIRMWARE_CHECK",
    /// A kernel to start by kexec is loaded.
    KexecKernelCheck = "KEXEC_KERNEL_CHECK",
    /// Its initial RAM disk is loaded.
    KexecInitramfsCheck = "KEXEC_INITRAMFS_CHECK",
    /// A policy is loaded.
    PolicyCheck = "POLICY_CHECK",
    /// The command line of a kernel to start by kexec.
    KexecCmdline = "KEXEC_CMDLINE",
    /// A key is put on a keyring.
    KeyCheck = "KEY_CHECK",
    /// Kernel data that a subsystem hands in.
    CriticalData = "CRITICAL_DATA",
    /// `security.ima` is written; rules for it only name the hash algorithms allowed there.
    SetxattrCheck = "SETXATTR_CHECK",
}

words! {
    /// A part of a label that a rule can ask for.
    LsmField:
    /// The file's user.
    ObjUser = "obj_user",
    /// The file's role.
    ObjRole = "obj_role",
    /// The file's type.
    ObjType = "obj_type",
    /// The subject's user.
    SubjUser = "subj_user",
    /// The subject's role.
    SubjRole = "subj_role",
    /// The subject's type.
    SubjType = "subj_type",
}

words! {
    /// The security module that answers LSM conditions.
    Lsm:
    /// None.
    None = "none",
    /// AppArmor: `subj_role` alone.
    AppArmor = "apparmor",
    /// SELinux: all fields.
    Selinux = "selinux",
    /// Smack: `obj_user` and `subj_user`.
    Smack = "smack",
}

words! {
    /// The kernel whose language is read.
    KernelVersion:
    /// Linux 6.1.
    V6_1 = "6.1",
    /// Linux 6.12.
    V6_12 = "6.12",
    /// The newest known: adds `dont_audit` and `fs_subtype=`.
    Latest = "latest",
}

words! {
    /// A template that a rule can name.
    TemplateName:
    /// `d|n`.
    Ima = "ima",
    /// `d-ng|n-ng`.
    ImaNg = "ima-ng",
    /// `d-ng|n-ng|sig`.
    ImaSig = "ima-sig",
    /// `d-ngv2|n-ng`.
    ImaNgv2 = "ima-ngv2",
    /// `d-ngv2|n-ng|sig`.
    ImaSigv2 = "ima-sigv2",
    /// `d-ng|n-ng|buf`.
    ImaBuf = "ima-buf",
    /// `d-ng|n-ng|sig|d-modsig|modsig`.
    ImaModsig = "ima-modsig",
    /// `d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode`.
    EvmSig = "evm-sig",
}

impl Action {
    /// The class it decides.
    pub const fn class(self) -> Class {
        match self {
            Self::Measure | Self::DontMeasure => Class::Measure,
            Self::Appraise | Self::DontAppraise => Class::Appraise,
            Self::Audit | Self::DontAudit => Class::Audit,
            Self::Hash | Self::DontHash => Class::Hash,
        }
    }

    /// Whether it does something, i.e. is no `dont_…`.
    pub const fn does(self) -> bool {
        match self {
            Self::Measure | Self::Appraise | Self::Audit | Self::Hash => true,
            Self::DontMeasure | Self::DontAppraise | Self::DontAudit | Self::DontHash => false,
        }
    }

    /// The action spelled `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.name() == name)
    }
}

impl Func {
    /// The hook spelled `name`; the old names `PATH_CHECK` and `FILE_MMAP` included.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "PATH_CHECK" => Some(Self::FileCheck),
            "FILE_MMAP" => Some(Self::MmapCheck),
            _ => Self::ALL.iter().copied().find(|func| func.name() == name),
        }
    }

    /// Whether it hands in data and no file to judge: such events see only rules that name them.
    pub const fn is_data(self) -> bool {
        matches!(self, Self::KeyCheck | Self::CriticalData)
    }
}

impl Lsm {
    /// Whether it has that field to compare.
    pub const fn has(self, field: LsmField) -> bool {
        match self {
            Self::None => false,
            Self::AppArmor => matches!(field, LsmField::SubjRole),
            Self::Selinux => true,
            Self::Smack => matches!(field, LsmField::ObjUser | LsmField::SubjUser),
        }
    }

    /// The security module spelled `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|lsm| lsm.name() == name)
    }
}

impl KernelVersion {
    /// The version spelled `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|version| version.name() == name)
    }
}

impl TemplateName {
    /// Its fields.
    pub const fn format(self) -> &'static str {
        match self {
            Self::Ima => "d|n",
            Self::ImaNg => "d-ng|n-ng",
            Self::ImaSig => "d-ng|n-ng|sig",
            Self::ImaNgv2 => "d-ngv2|n-ng",
            Self::ImaSigv2 => "d-ngv2|n-ng|sig",
            Self::ImaBuf => "d-ng|n-ng|buf",
            Self::ImaModsig => "d-ng|n-ng|sig|d-modsig|modsig",
            Self::EvmSig => "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
        }
    }

    /// The template of that name, or of that format.
    pub fn from_name_or_format(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|template| template.name() == text || template.format() == text)
    }
}

/// One kind of access, as the hooks' bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mask(u8);

impl Mask {
    /// Execute.
    pub const MAY_EXEC: Self = Self(1);
    /// Write.
    pub const MAY_WRITE: Self = Self(2);
    /// Read.
    pub const MAY_READ: Self = Self(4);
    /// Append.
    pub const MAY_APPEND: Self = Self(8);
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::MAY_EXEC, Self::MAY_WRITE, Self::MAY_READ, Self::MAY_APPEND];

    /// The bit.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The word, as the policy language spells it.
    pub const fn name(self) -> &'static str {
        match self.0 {
            1 => "MAY_EXEC",
            2 => "MAY_WRITE",
            4 => "MAY_READ",
            _ => "MAY_APPEND",
        }
    }

    /// The access spelled `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mask| mask.name() == name)
    }
}

/// A set of hash algorithms.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AlgorithmSet(u32);

impl AlgorithmSet {
    /// No algorithm.
    pub const EMPTY: Self = Self(0);
    /// Every algorithm with a name.
    pub const ALL: Self = Self(0x007f_ffff);
    /// What distributions' kernels compute: MD5, SHA-1, SHA-2.
    pub const USUAL: Self = Self(
        bit(HashAlgorithm::Md5)
            | bit(HashAlgorithm::Sha1)
            | bit(HashAlgorithm::Sha224)
            | bit(HashAlgorithm::Sha256)
            | bit(HashAlgorithm::Sha384)
            | bit(HashAlgorithm::Sha512),
    );

    /// Whether it holds `algorithm`.
    pub const fn contains(self, algorithm: HashAlgorithm) -> bool {
        self.0 & bit(algorithm) != 0
    }

    /// The same with `algorithm`.
    #[must_use]
    pub const fn with(self, algorithm: HashAlgorithm) -> Self {
        Self(self.0 | bit(algorithm))
    }

    /// What both hold.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether it holds none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The algorithms, in ascending number.
    pub fn iter(self) -> impl Iterator<Item = HashAlgorithm> {
        HashAlgorithm::ALL.iter().copied().filter(move |algorithm| self.contains(*algorithm))
    }
}

const fn bit(algorithm: HashAlgorithm) -> u32 {
    1u32.wrapping_shl(algorithm.id() as u32)
}

impl FromIterator<HashAlgorithm> for AlgorithmSet {
    fn from_iter<T: IntoIterator<Item = HashAlgorithm>>(algorithms: T) -> Self {
        algorithms.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for AlgorithmSet {
    /// `sha256,sha512`, in ascending number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, algorithm) in self.iter().enumerate() {
            write!(f, "{}{algorithm}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for AlgorithmSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}
