//! What the programs in the kernel and the guard tell each other: the structures of `bpf/shared.h`, byte by byte.
//!
//! All numbers are in the machine's byte order.

/// Bits of what is asked of a file, and of what it has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bits(pub(super) u32);

impl Bits {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// It may be opened.
    pub const OPEN: Self = Self(1);
    /// It may be executed.
    pub const EXEC: Self = Self(2);
    /// It may be mapped executable.
    pub const MMAP: Self = Self(4);
    /// It may be loaded as a module.
    pub const MODULE: Self = Self(8);
    /// It may be loaded as firmware.
    pub const FIRMWARE: Self = Self(16);
    /// It may be loaded as another kernel.
    pub const KEXEC_IMAGE: Self = Self(32);
    /// It may be loaded as another kernel's first file system.
    pub const KEXEC_INITRAMFS: Self = Self(64);
    /// Its label may be written, which no verdict tells.
    pub const LABEL: Self = Self(128);
    /// It is signed: not to be opened for writing.
    pub const IMMUTABLE: Self = Self(256);
    /// EVM's label is a portable signature: its attributes and labels are not to change.
    pub const PORTABLE: Self = Self(512);
    /// All of this whoever comes.
    pub const EVERYBODY: Self = Self(1024);
    /// Its size and time of change tell of changes.
    pub const STAMPED: Self = Self(2048);
    /// The guard's own, and nobody else's to change.
    pub const GUARDS_OWN: Self = Self(4096);
    /// Good whatever policy comes into force.
    pub const LASTING: Self = Self(8192);
    /// Part of the guard's program.
    pub const GUARDS_PROGRAM: Self = Self(16384);
    /// When it was judged, a change of attributes had been counted that may not have been made yet.
    pub const UNSETTLED: Self = Self(32768);
    /// On an overlay: another inode holds the data.
    pub const BELOW: Self = Self(65536);
    /// In a record: what was to be made executable is mapped already.
    const MPROTECT: Self = Self(131_072);

    /// Both of two.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in it and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in it and in `other`.
    #[must_use]
    pub const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// As the kernel's side has it.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Flags of the settings.
pub(super) mod flags {
    pub(in super::super) const ENFORCE: u32 = 1;
    pub(in super::super) const CLOSED: u32 = 2;
    pub(in super::super) const PROTECT: u32 = 4;
    pub(in super::super) const LABELS_BY_RULE: u32 = 8;
    pub(in super::super) const EVM: u32 = 16;
    pub(in super::super) const LOAD_MODULE: u32 = 32;
    pub(in super::super) const LOAD_FIRMWARE: u32 = 64;
    pub(in super::super) const LOAD_KEXEC: u32 = 128;
}

/// What a process is to the guard; bits.
pub(super) mod roles {
    /// Has started it.
    pub(in super::super) const STARTER: u32 = 1;
    pub(in super::super) const SENTINEL: u32 = 2;
    pub(in super::super) const SOFTWARE_TPM: u32 = 4;
    /// Undoes a switch of the mode.
    pub(in super::super) const ROLLS_BACK: u32 = 8;
}

/// `struct settings`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) flags: u32,
    pub(super) pins: u32,
    pub(super) epoch: u64,
    pub(super) epoch_before: u64,
    pub(super) before_until: u64,
    pub(super) programs: [u64; 4],
    pub(super) maps: [u32; 8],
    pub(super) elsewhere: u32,
    pub(super) labels: u32,
}

impl Settings {
    pub(super) const SIZE: usize = 104;

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let Self { flags, pins, epoch, epoch_before, before_until, programs, maps, elsewhere, labels } = self;
        let words = [flags, pins];
        let longs = [epoch, epoch_before, before_until];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(longs.iter().chain(&programs).flat_map(|long| long.to_ne_bytes()));
        bytes.extend(maps.iter().chain(&[elsewhere, labels]).flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| word(bytes, at);
        let long = |at: usize| long(bytes, at);
        let mut settings = Self {
            flags: word(0)?,
            pins: word(4)?,
            epoch: long(8)?,
            epoch_before: long(16)?,
            before_until: long(24)?,
            elsewhere: word(96)?,
            labels: word(100)?,
            ..Self::default()
        };
        for (index, program) in settings.programs.iter_mut().enumerate() {
            *program = long(32 + 8 * index)?;
        }
        for (index, map) in settings.maps.iter_mut().enumerate() {
            *map = word(64 + 4 * index)?;
        }
        Some(settings)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk))
}

/// `struct changes`: how often an inode has begun to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) content: u32,
    pub(super) attributes: u32,
}

impl Changes {
    pub(super) const SIZE: usize = 16;

    /// With when attributes last began to change, in nanoseconds since boot.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(Self, u64)> {
        Some((Self { content: word(bytes, 0)?, attributes: word(bytes, 4)? }, long(bytes, 8)?))
    }
}

/// `struct verdict`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) bits: Bits,
    pub(super) changes: Changes,
    pub(super) epoch: u64,
    /// Last change of the content: seconds and nanoseconds since 1970.
    pub(super) modified: (i64, u32),
    pub(super) size: i64,
    /// Last change of attributes or content.
    pub(super) altered: (i64, u32),
}

impl Verdict {
    pub(super) const SIZE: usize = 56;

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let Self { bits, changes, epoch, modified, size, altered } = self;
        let words = [bits.0, changes.content, changes.attributes, modified.1];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(epoch.to_ne_bytes());
        bytes.extend(modified.0.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(altered.0.to_ne_bytes());
        bytes.extend([altered.1, 0].iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            bits: Bits(word(bytes, 0)?),
            changes: Changes { content: word(bytes, 4)?, attributes: word(bytes, 8)? },
            epoch: long(bytes, 16)?,
            modified: (long(bytes, 24)?.cast_signed(), word(bytes, 12)?),
            size: long(bytes, 32)?.cast_signed(),
            altered: (long(bytes, 40)?.cast_signed(), word(bytes, 48)?),
        })
    }
}

/// Why something was refused in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The words below say it.
pub enum Why {
    NoVerdict,
    Changed,
    Writers,
    Signed,
    OtherEpoch,
    NotAsked,
    NotWatched,
    NoFile,
    GuardDead,
    Protected,
    EvmLabel,
    PortableLabel,
    LabelDenied,
    LabelUnavailable,
}

impl Why {
    const ALL: [Self; 14] = [
        Self::NoVerdict,
        Self::Changed,
        Self::Writers,
        Self::Signed,
        Self::OtherEpoch,
        Self::NotAsked,
        Self::NotWatched,
        Self::NoFile,
        Self::GuardDead,
        Self::Protected,
        Self::EvmLabel,
        Self::PortableLabel,
        Self::LabelDenied,
        Self::LabelUnavailable,
    ];

    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NoVerdict => "the guard has not judged it",
            Self::Changed => "it has changed since it was judged",
            Self::Writers => "somebody can write to it",
            Self::Signed => "it is signed, and was to be opened for writing",
            Self::OtherEpoch => "it was judged under another policy or mode, and not opened since",
            Self::NotAsked => "it was judged, and did not pass for this use",
            Self::NotWatched => "the guard does not watch its file system yet",
            Self::NoFile => "no file holds it, so that there is nothing to appraise",
            Self::GuardDead => "the guard has died, and this depends on who asks",
            Self::Protected => "it is the guard's own",
            Self::EvmLabel => "an HMAC in security.evm is the key holder's to write",
            Self::PortableLabel => "EVM's portable signature covers its attributes and labels",
            Self::LabelDenied => "the policy does not let a label of this algorithm be written",
            Self::LabelUnavailable => "nobody here could compute the algorithm of the label",
        }
    }
}

/// `struct record`: a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked.
    pub asked: Bits,
    /// Whether what was to be mapped executable is mapped already.
    pub by_mprotect: bool,
    /// Why it was refused.
    pub why: Why,
    /// The process.
    pub process: i32,
    /// The thread.
    pub thread: i32,
    /// The real user.
    pub uid: u32,
    /// The file system, as the kernel numbers it.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// The command's name.
    pub command: Vec<u8>,
    /// The last part of the file's path.
    pub name: Vec<u8>,
    /// The kernel's number of the algorithm of a label, [`NO_ALGORITHM`] where it names none.
    pub algorithm: u8,
}

/// Stands for the default hash.
pub const NO_ALGORITHM: u8 = 31;

impl Refusal {
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = |from: usize, to: usize| {
            bytes.get(from..to).map(|text| text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
        };
        let asked = Bits(word(bytes, 0)?);
        let why = (word(bytes, 4)? as usize).checked_sub(1)?;
        Some(Self {
            asked: asked.without(Bits::MPROTECT),
            by_mprotect: asked.contains(Bits::MPROTECT),
            why: *Why::ALL.get(why)?,
            process: word(bytes, 8)?.cast_signed(),
            thread: word(bytes, 12)?.cast_signed(),
            uid: word(bytes, 16)?,
            device: device_from_kernel(word(bytes, 20)?),
            inode: long(bytes, 24)?,
            command: text(32, 48)?,
            name: text(48, 112)?,
            algorithm: u8::try_from(word(bytes, 112)?).ok()?,
        })
    }
}

/// A device number in the kernel's own form: 12 bits and 20.
pub(super) fn device_in_kernel(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

fn device_from_kernel(device: u32) -> u64 {
    rustix::fs::makedev(device >> 20, device & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let settings = Settings {
            flags: 1,
            pins: 4,
            epoch: 5,
            epoch_before: 6,
            before_until: 7,
            programs: [8, 9, 10, 11],
            maps: [12, 13, 14, 15, 16, 17, 18, 19],
            elsewhere: 20,
            labels: 21,
        };
        assert_eq!(settings.to_bytes().len(), Settings::SIZE);
        assert_eq!(Settings::from_bytes(&settings.to_bytes()), Some(settings));
        let verdict = Verdict {
            bits: Bits::EXEC,
            changes: Changes { content: 2, attributes: 3 },
            epoch: 4,
            modified: (5, 6),
            size: 7,
            altered: (8, 9),
        };
        assert_eq!(verdict.to_bytes().len(), Verdict::SIZE);
        assert_eq!(Verdict::from_bytes(&verdict.to_bytes()), Some(verdict));
        assert_eq!(Verdict::from_bytes(&[0; 8]), None);
    }

    #[test]
    fn devices_are_numbered_as_the_kernel_does() {
        let device = rustix::fs::makedev(259, 70_000);
        assert_eq!(device_from_kernel(device_in_kernel(device)), device);
        assert_eq!(device_in_kernel(rustix::fs::makedev(8, 1)), 0x80_0001);
    }
}
