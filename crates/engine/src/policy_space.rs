//! Every event that some policies can tell apart: what [`crate::policy_analysis`] and [`crate::policy_difference`] search.
//!
//! ```text
//! lookup     one hook with the accesses it passes and the classes it asks for
//! dimension  one thing that a rule can ask about, cut into values so fine that no rule tells two points of one apart
//! region     a set of values for each dimension
//! ```
//!
//! A condition holds always, never, or in a part of a region; then the region is split in two and each half looked at.
//! So an answer is exact, for every uid and file system there is, and not a sample's. What cannot be is left out: a file
//! system of a known name has its known magic number.
//!
//! Source: security/integrity/ima/ima_main.c for what each hook passes; include/uapi/linux/magic.h.

use crate::policy::{Classes, Condition, Event, FileFacts, Subject};
use imara_format::policy::{Class, Func, IdCondition, Lsm, LsmCondition, LsmField, Mask, Operator, Rule, Uuid};
use std::fmt::{self, Write as _};

/// One hook, as it asks a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The hook.
    pub func: Func,
    /// The accesses that it passes.
    pub masks: &'static [u8],
    /// The classes that it does something about.
    pub classes: Classes,
    /// What happens, for people.
    pub name: &'static str,
}

/// A file is new, or its attributes change: no access.
const MAY_ACCESS: u8 = 0x10;
const EXECUTE: &[u8] = &[1];
const READ: &[u8] = &[4];
const NONE: &[u8] = &[0];
const MEASURED: Classes = Classes::only(Class::Measure);
/// For hooks that only ask whether the label is to be kept in step.
const LABELLED: Classes = Classes::only(Class::Appraise).union(Classes::only(Class::Hash));

/// All lookups.
pub const LOOKUPS: &[Lookup] = &[
    lookup(Func::FileCheck, &[4, 2, 6, 1, 5, 12, 10, 14, 3, 7, 8, 9, 11, 13, 15], Classes::ALL, "FILE_CHECK"),
    lookup(Func::MmapCheck, EXECUTE, Classes::ALL, "MMAP_CHECK"),
    lookup(Func::MmapCheckReqprot, EXECUTE, Classes::ALL, "MMAP_CHECK_REQPROT"),
    lookup(Func::BprmCheck, EXECUTE, Classes::ALL, "BPRM_CHECK"),
    lookup(Func::CredsCheck, EXECUTE, Classes::ALL, "CREDS_CHECK"),
    lookup(Func::ModuleCheck, READ, Classes::ALL, "MODULE_CHECK"),
    lookup(Func::FirmwareCheck, READ, Classes::ALL, "FIRMWARE_CHECK"),
    lookup(Func::KexecKernelCheck, READ, Classes::ALL, "KEXEC_KERNEL_CHECK"),
    lookup(Func::KexecInitramfsCheck, READ, Classes::ALL, "KEXEC_INITRAMFS_CHECK"),
    lookup(Func::PolicyCheck, READ, Classes::ALL, "POLICY_CHECK"),
    lookup(Func::KexecCmdline, NONE, MEASURED, "KEXEC_CMDLINE"),
    lookup(Func::KeyCheck, NONE, MEASURED, "KEY_CHECK"),
    lookup(Func::CriticalData, NONE, MEASURED, "CRITICAL_DATA"),
    lookup(Func::PostSetattr, &[MAY_ACCESS], LABELLED, "POST_SETATTR"),
    lookup(Func::FileCheck, &[MAY_ACCESS], LABELLED, "FILE_CHECK of a new file"),
];

const fn lookup(func: Func, masks: &'static [u8], classes: Classes, name: &'static str) -> Lookup {
    Lookup { func, masks, classes, name }
}

/// File systems by name, each with the magic numbers that it can have. tmpfs and devtmpfs have that of ramfs in kernels
/// without CONFIG_SHMEM or CONFIG_TMPFS.
pub const FILE_SYSTEMS: &[(&str, &[u64])] = &[
    ("ext4", &[0xef53]),
    ("ext3", &[0xef53]),
    ("ext2", &[0xef53]),
    ("xfs", &[0x5846_5342]),
    ("btrfs", &[0x9123_683e]),
    ("f2fs", &[0xf2f5_2010]),
    ("vfat", &[0x4d44]),
    ("squashfs", &[0x7371_7368]),
    ("erofs", &[0xe0f5_e1e2]),
    ("iso9660", &[0x9660]),
    ("overlay", &[0x794c_7630]),
    ("nfs", &[0x6969]),
    ("nfs4", &[0x6969]),
    ("fuse", &[0x6573_5546]),
    ("fuseblk", &[0x6573_5546]),
    ("ramfs", &[0x8584_58f6]),
    ("devtmpfs", &[0x0102_1994, 0x8584_58f6]),
    ("smackfs", &[0x4341_5d53]),
    ("tracefs", &[0x7472_6163]),
    ("proc", &[0x9fa0]),
    ("sysfs", &[0x6265_6572]),
    ("debugfs", &[0x6462_6720]),
    ("tmpfs", &[0x0102_1994, 0x8584_58f6]),
    ("devpts", &[0x1cd1]),
    ("binfmt_misc", &[0x4249_4e4d]),
    ("securityfs", &[0x7363_6673]),
    ("selinuxfs", &[0xf97c_ff8c]),
    ("cgroup", &[0x0027_e0eb]),
    ("cgroup2", &[0x6367_7270]),
    ("nsfs", &[0x6e73_6673]),
    ("efivarfs", &[0xde5e_81e4]),
];

/// The magic numbers of the file system type `name`, where it is known.
pub fn magics_of(name: &str) -> Option<&'static [u64]> {
    FILE_SYSTEMS.iter().find(|(known, _)| *known == name).map(|(_, magics)| *magics)
}

/// The last id that a task can have.
const LAST_ID: u32 = u32::MAX - 1;
/// Names and magic numbers that no rule knows are tried with each other up to this many.
const MAX_UNKNOWN_PAIRS: usize = 1024;

/// What a rule can ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dimension {
    Mask,
    Filesystem,
    FsSubtype,
    Fsuuid,
    Uid,
    Euid,
    Suid,
    Setuid,
    Gid,
    Egid,
    Sgid,
    Setgid,
    Fowner,
    Fgroup,
    ObjUser,
    ObjRole,
    ObjType,
    SubjUser,
    SubjRole,
    SubjType,
    Data,
}

impl Dimension {
    const ALL: [Self; 21] = [
        Self::Mask,
        Self::Filesystem,
        Self::FsSubtype,
        Self::Fsuuid,
        Self::Uid,
        Self::Euid,
        Self::Suid,
        Self::Setuid,
        Self::Gid,
        Self::Egid,
        Self::Sgid,
        Self::Setgid,
        Self::Fowner,
        Self::Fgroup,
        Self::ObjUser,
        Self::ObjRole,
        Self::ObjType,
        Self::SubjUser,
        Self::SubjRole,
        Self::SubjType,
        Self::Data,
    ];

    const fn of(field: LsmField) -> Self {
        match field {
            LsmField::ObjUser => Self::ObjUser,
            LsmField::ObjRole => Self::ObjRole,
            LsmField::ObjType => Self::ObjType,
            LsmField::SubjUser => Self::SubjUser,
            LsmField::SubjRole => Self::SubjRole,
            LsmField::SubjType => Self::SubjType,
        }
    }
}

/// A set of a dimension's values, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Set(Vec<u64>);

impl Set {
    fn of(count: usize, holds: impl Fn(usize) -> bool) -> Self {
        let mut words = vec![0; count.div_ceil(64)];
        for index in (0..count).filter(|index| holds(*index)) {
            words[index / 64] |= 1 << (index % 64);
        }
        Self(words)
    }

    fn combined(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(left, right)| with(*left, *right)).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn within(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(left, right)| left & !right == 0)
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(left, right)| left & right != 0)
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 64).filter(|index| self.0[index / 64] >> (index % 64) & 1 == 1)
    }
}

/// A set of events: some values of each dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Region(Vec<Set>);

impl Region {
    fn at(&self, dimension: Dimension) -> &Set {
        &self.0[dimension as usize]
    }

    /// The part where `dimension` is in `set`, and the part where it is not; neither is empty where `set` came from
    /// [`Holds::Sometimes`].
    pub(crate) fn split(mut self, dimension: Dimension, set: &Set) -> (Self, Self) {
        let whole = &self.0[dimension as usize];
        let (inside, outside) = (whole.combined(set, |l, r| l & r), whole.combined(set, |l, r| l & !r));
        let mut other = self.clone();
        self.0[dimension as usize] = inside;
        other.0[dimension as usize] = outside;
        (self, other)
    }

    /// The union, where it is a region again: the two differ in one dimension at most.
    pub(crate) fn joined(&self, other: &Self) -> Option<Self> {
        let mut differing = (0..self.0.len()).filter(|at| self.0[*at] != other.0[*at]);
        let at = differing.next().unwrap_or(0);
        if differing.next().is_some() {
            return None;
        }
        let mut joined = self.clone();
        joined.0[at] = self.0[at].combined(&other.0[at], |l, r| l | r);
        Some(joined)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().any(Set::is_empty)
    }
}

/// Whether something holds in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    Always,
    Never,
    /// In a part; splitting there brings nearer to an answer.
    Sometimes(Dimension, Set),
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Atom {
    In(Condition, Dimension, Set),
    /// `euid`: the effective user is in the set, or, with CAP_SETUID, the saved or real one.
    AnyOf {
        set: Set,
        effective: Dimension,
        others: [Dimension; 2],
        able: Dimension,
    },
}

impl Atom {
    fn holds(&self, region: &Region) -> Holds {
        match self {
            Self::In(_, dimension, set) => match region.at(*dimension) {
                values if values.within(set) => Holds::Always,
                values if !values.meets(set) => Holds::Never,
                _ => Holds::Sometimes(*dimension, set.clone()),
            },
            Self::AnyOf { set, effective, others, able } => {
                let [yes, no] = [1, 0].map(|wanted| region.at(*able).iter().any(|value| value == wanted));
                let meeting = others.iter().find(|other| region.at(**other).meets(set));
                let within = others.iter().any(|other| region.at(*other).within(set));
                if region.at(*effective).within(set) || !no && within {
                    Holds::Always
                } else if region.at(*effective).meets(set) {
                    Holds::Sometimes(*effective, set.clone())
                } else {
                    match meeting {
                        Some(other) if yes && !no => Holds::Sometimes(*other, set.clone()),
                        Some(_) if yes => Holds::Sometimes(*able, Set::of(2, |value| value == 1)),
                        Some(_) | None => Holds::Never,
                    }
                }
            }
        }
    }
}

/// The events of one lookup, as fine as the rules of some policies ask.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) lookup: &'static Lookup,
    /// Names and magic numbers; `None` stands for one that no rule names.
    filesystems: Vec<(Option<String>, Option<u64>)>,
    subtypes: Vec<Option<String>>,
    uuids: Vec<Option<[u8; 16]>>,
    /// The first and last id of each value.
    users: Vec<(u32, u32)>,
    groups: Vec<(u32, u32)>,
    owners: Vec<(u32, u32)>,
    file_groups: Vec<(u32, u32)>,
    labels: [Vec<Option<String>>; 6],
    data: Vec<Option<String>>,
    lsm: Lsm,
    /// Whether every combination of names and magic numbers is there.
    pub(crate) complete: bool,
}

/// A rule as a space sees it.
#[derive(Clone, Debug)]
pub(crate) struct Matcher(Vec<Atom>);

impl Matcher {
    /// Whether the rule matches in `region`.
    pub(crate) fn holds(&self, region: &Region) -> Holds {
        let mut result = Holds::Always;
        for atom in &self.0 {
            match atom.holds(region) {
                Holds::Always => {}
                Holds::Never => return Holds::Never,
                sometimes @ Holds::Sometimes(..) => {
                    if result == Holds::Always {
                        result = sometimes;
                    }
                }
            }
        }
        result
    }

    /// The conditions that can never hold in `region`.
    pub(crate) fn impossible(&self, region: &Region) -> Vec<Condition> {
        let never = |atom: &&Atom| atom.holds(region) == Holds::Never;
        let condition = |atom: &Atom| match atom {
            Atom::In(condition, ..) => *condition,
            Atom::AnyOf { effective: Dimension::Euid, .. } => Condition::Euid,
            Atom::AnyOf { .. } => Condition::Egid,
        };
        self.0.iter().filter(never).map(condition).collect()
    }
}

fn known<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<Option<T>> {
    let mut all = vec![None];
    for value in values.map(Some) {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}

/// The ids up to `last`, cut where a condition begins or ends to hold.
fn intervals(conditions: impl Iterator<Item = IdCondition>, last: u32) -> Vec<(u32, u32)> {
    let mut starts = vec![0];
    for IdCondition { op, id } in conditions {
        let after = id.checked_add(1);
        let cuts = match op {
            Operator::Equal => [Some(id), after],
            Operator::Greater => [after, None],
            Operator::Less => [Some(id), None],
        };
        starts.extend(cuts.into_iter().flatten().filter(|start| *start <= last));
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([last]);
    starts.iter().copied().zip(ends).collect()
}

impl Space {
    /// The events of `lookup` that `rules`, of one or more policies, can tell apart, where `lsm` answers conditions on
    /// labels.
    pub(crate) fn new(lookup: &'static Lookup, rules: &[&Rule], lsm: Lsm) -> Self {
        let rules = || rules.iter().copied();
        let names = known(rules().filter_map(|rule| rule.fsname.clone()));
        let magics = known(rules().filter_map(|rule| rule.fsmagic));
        let is_known = |name: &Option<String>| name.as_deref().is_some_and(|name| magics_of(name).is_some());
        let mut filesystems: Vec<_> = FILE_SYSTEMS
            .iter()
            .flat_map(|(name, magics)| magics.iter().map(|magic| (Some((*name).to_owned()), Some(*magic))))
            .collect();
        let unknown: Vec<_> = names.into_iter().filter(|name| !is_known(name)).collect();
        let complete = unknown.len() * magics.len() <= MAX_UNKNOWN_PAIRS;
        for name in &unknown {
            let of_rules = |magic: &&Option<u64>| {
                complete || name.is_none() || magic.is_none() || {
                    rules().any(|rule| rule.fsname == *name && rule.fsmagic == **magic)
                }
            };
            filesystems.extend(magics.iter().filter(of_rules).map(|magic| (name.clone(), *magic)));
        }
        let label = |field: LsmField| {
            let conditions = rules().flat_map(|rule| &rule.lsm).filter(|condition| condition.field == field);
            known(conditions.filter(|_| lsm.has(field)).map(|condition| condition.value.clone()))
        };
        Self {
            lookup,
            filesystems,
            subtypes: known(rules().filter_map(|rule| rule.fs_subtype.clone())),
            uuids: known(rules().filter_map(|rule| rule.fsuuid)),
            users: intervals(rules().flat_map(|rule| rule.uid.into_iter().chain(rule.euid)), LAST_ID),
            groups: intervals(rules().flat_map(|rule| rule.gid.into_iter().chain(rule.egid)), LAST_ID),
            // An owner that an id-mapped mount does not map is the number after the last.
            owners: intervals(rules().filter_map(|rule| rule.fowner), u32::MAX),
            file_groups: intervals(rules().filter_map(|rule| rule.fgroup), u32::MAX),
            labels: [
                LsmField::ObjUser,
                LsmField::ObjRole,
                LsmField::ObjType,
                LsmField::SubjUser,
                LsmField::SubjRole,
                LsmField::SubjType,
            ]
            .map(label),
            data: known(rules().flat_map(|rule| data_list(rule, lookup.func)).cloned()),
            lsm,
            complete,
        }
    }

    fn count(&self, dimension: Dimension) -> usize {
        match dimension {
            Dimension::Mask => self.lookup.masks.len(),
            Dimension::Filesystem => self.filesystems.len(),
            Dimension::FsSubtype => self.subtypes.len(),
            Dimension::Fsuuid => self.uuids.len(),
            Dimension::Uid | Dimension::Euid | Dimension::Suid => self.users.len(),
            Dimension::Gid | Dimension::Egid | Dimension::Sgid => self.groups.len(),
            Dimension::Setuid | Dimension::Setgid => 2,
            Dimension::Fowner => self.owners.len(),
            Dimension::Fgroup => self.file_groups.len(),
            Dimension::ObjUser => self.labels[0].len(),
            Dimension::ObjRole => self.labels[1].len(),
            Dimension::ObjType => self.labels[2].len(),
            Dimension::SubjUser => self.labels[3].len(),
            Dimension::SubjRole => self.labels[4].len(),
            Dimension::SubjType => self.labels[5].len(),
            Dimension::Data => self.data.len(),
        }
    }

    /// All events.
    pub(crate) fn whole(&self) -> Region {
        Region(Dimension::ALL.map(|dimension| Set::of(self.count(dimension), |_| true)).into())
    }

    /// The part of `region` on the file system type `name` with its usual magic number.
    pub(crate) fn on(&self, name: &str, region: Region) -> Region {
        let magic = magics_of(name).and_then(|magics| magics.first()).copied();
        let set = self.set(Dimension::Filesystem, |at| {
            let (found, number) = &self.filesystems[at];
            found.as_deref() == Some(name) && *number == magic
        });
        region.split(Dimension::Filesystem, &set).0
    }

    /// The part of `region` with one of the accesses.
    pub(crate) fn with_masks(&self, masks: &[u8], region: Region) -> Region {
        let set = self.set(Dimension::Mask, |at| masks.contains(&self.lookup.masks[at]));
        region.split(Dimension::Mask, &set).0
    }

    fn set(&self, dimension: Dimension, holds: impl Fn(usize) -> bool) -> Set {
        Set::of(self.count(dimension), holds)
    }

    /// What `rule` asks of these events; `None` where it is for another hook.
    pub(crate) fn matcher(&self, rule: &Rule) -> Option<Matcher> {
        let func = self.lookup.func;
        let (data, attributes) = (func.is_data(), func == Func::PostSetattr);
        let named = match rule.func {
            Some(Func::SetxattrCheck) => attributes,
            Some(wanted) => attributes || wanted == func,
            None => !data,
        };
        if !named {
            return None;
        }
        let mut atoms = Vec::new();
        let mut is_in = |condition, dimension, set| atoms.push(Atom::In(condition, dimension, set));
        let ids = |dimension: Dimension, values: &[(u32, u32)], wanted: IdCondition| {
            self.set(dimension, |at| wanted.holds(values[at].0))
        };
        if let Some(wanted) = rule.uid {
            is_in(Condition::Uid, Dimension::Uid, ids(Dimension::Uid, &self.users, wanted));
        }
        if data {
            let list = data_list(rule, func);
            if !list.is_empty() {
                let listed = |at: usize| self.data[at].as_ref().is_some_and(|data| list.contains(data));
                is_in(Condition::Data, Dimension::Data, self.set(Dimension::Data, listed));
            }
            return Some(Matcher(atoms));
        }
        if let Some(wanted) = rule.mask.filter(|_| !attributes) {
            let holds = self.set(Dimension::Mask, |at| wanted.holds(self.lookup.masks[at]));
            is_in(Condition::Mask, Dimension::Mask, holds);
        }
        if let Some(magic) = rule.fsmagic {
            let holds = self.set(Dimension::Filesystem, |at| self.filesystems[at].1 == Some(magic));
            is_in(Condition::Fsmagic, Dimension::Filesystem, holds);
        }
        if rule.fsname.is_some() {
            let holds = |at: usize| {
                let (name, magic) = &self.filesystems[at];
                *name == rule.fsname && (rule.fsmagic.is_none() || *magic == rule.fsmagic)
            };
            is_in(Condition::Fsname, Dimension::Filesystem, self.set(Dimension::Filesystem, holds));
        }
        if rule.fs_subtype.is_some() {
            let holds = self.set(Dimension::FsSubtype, |at| self.subtypes[at] == rule.fs_subtype);
            is_in(Condition::FsSubtype, Dimension::FsSubtype, holds);
        }
        if rule.fsuuid.is_some() {
            let holds = self.set(Dimension::Fsuuid, |at| self.uuids[at] == rule.fsuuid);
            is_in(Condition::Fsuuid, Dimension::Fsuuid, holds);
        }
        if let Some(wanted) = rule.fowner {
            is_in(Condition::Fowner, Dimension::Fowner, ids(Dimension::Fowner, &self.owners, wanted));
        }
        if let Some(wanted) = rule.fgroup {
            is_in(Condition::Fgroup, Dimension::Fgroup, ids(Dimension::Fgroup, &self.file_groups, wanted));
        }
        if let Some(wanted) = rule.gid {
            is_in(Condition::Gid, Dimension::Gid, ids(Dimension::Gid, &self.groups, wanted));
        }
        for LsmCondition { field, value } in &rule.lsm {
            let dimension = Dimension::of(*field);
            let values = &self.labels[dimension as usize - Dimension::ObjUser as usize];
            let holds = |at: usize| self.lsm.has(*field) && values[at].as_ref() == Some(value);
            is_in(Condition::Label, dimension, self.set(dimension, holds));
        }
        if let Some(wanted) = rule.euid {
            let set = ids(Dimension::Euid, &self.users, wanted);
            let others = [Dimension::Suid, Dimension::Uid];
            atoms.push(Atom::AnyOf { set, effective: Dimension::Euid, others, able: Dimension::Setuid });
        }
        if let Some(wanted) = rule.egid {
            let set = ids(Dimension::Egid, &self.groups, wanted);
            let others = [Dimension::Sgid, Dimension::Gid];
            atoms.push(Atom::AnyOf { set, effective: Dimension::Egid, others, able: Dimension::Setgid });
        }
        Some(Matcher(atoms))
    }

    /// An event of `region`.
    pub(crate) fn witness(&self, region: &Region) -> Option<Witness> {
        if region.is_empty() {
            return None;
        }
        let first = |dimension: Dimension| region.at(dimension).iter().next().unwrap_or(0);
        let user = |dimension| self.users[first(dimension)].0;
        let group = |dimension| self.groups[first(dimension)].0;
        let (name, magic) = &self.filesystems[first(Dimension::Filesystem)];
        // What stands for a value that no rule names must not be one that a rule names.
        let unnamed_magic = || (0..).find(|magic| !self.filesystems.iter().any(|(_, named)| *named == Some(*magic)));
        let unnamed_uuid = || (0..=u8::MAX).map(|byte| [byte; 16]).find(|uuid| !self.uuids.contains(&Some(*uuid)));
        let labels = self.labels.iter().enumerate().filter_map(|(field, values)| {
            let value = values[first(Dimension::ALL[Dimension::ObjUser as usize + field])].clone()?;
            Some(LsmCondition { field: LsmField::ALL[field], value })
        });
        Some(Witness {
            func: self.lookup.func,
            mask: self.lookup.masks[first(Dimension::Mask)],
            fsname: name.clone().unwrap_or_default(),
            fsmagic: magic.or_else(unnamed_magic).unwrap_or_default(),
            fs_subtype: self.subtypes[first(Dimension::FsSubtype)].clone().unwrap_or_default(),
            fsuuid: self.uuids[first(Dimension::Fsuuid)].or_else(unnamed_uuid),
            uids: [user(Dimension::Euid), user(Dimension::Suid), user(Dimension::Uid)],
            gids: [group(Dimension::Egid), group(Dimension::Sgid), group(Dimension::Gid)],
            setuid: first(Dimension::Setuid) == 1,
            setgid: first(Dimension::Setgid) == 1,
            owner: self.owners[first(Dimension::Fowner)].0,
            group: self.file_groups[first(Dimension::Fgroup)].0,
            labels: labels.collect(),
            data: self.data[first(Dimension::Data)].clone(),
        })
    }

    /// A region in words; empty where it is everything.
    pub(crate) fn describe(&self, region: &Region) -> String {
        let mut parts: Vec<String> = Vec::new();
        for dimension in Dimension::ALL {
            let (values, count) = (region.at(dimension), self.count(dimension));
            let chosen: Vec<usize> = values.iter().collect();
            if chosen.len() == count {
                continue;
            }
            parts.push(match dimension {
                Dimension::Mask => self.masks_in_words(&chosen),
                Dimension::Filesystem => self.filesystems_in_words(&chosen),
                Dimension::FsSubtype => either("fs_subtype", "subtypes", &chosen, &self.subtypes),
                Dimension::Fsuuid => {
                    let uuids: Vec<_> = self.uuids.iter().map(|uuid| uuid.map(|uuid| Uuid(uuid).to_string())).collect();
                    either("fsuuid", "UUIDs", &chosen, &uuids)
                }
                Dimension::Uid => ids("uid", &chosen, &self.users),
                Dimension::Euid => ids("euid", &chosen, &self.users),
                Dimension::Suid => ids("saved uid", &chosen, &self.users),
                Dimension::Gid => ids("gid", &chosen, &self.groups),
                Dimension::Egid => ids("egid", &chosen, &self.groups),
                Dimension::Sgid => ids("saved gid", &chosen, &self.groups),
                Dimension::Setuid if chosen == [1] => "with CAP_SETUID".into(),
                Dimension::Setuid => "without CAP_SETUID".into(),
                Dimension::Setgid if chosen == [1] => "with CAP_SETGID".into(),
                Dimension::Setgid => "without CAP_SETGID".into(),
                Dimension::Fowner => ids("fowner", &chosen, &self.owners),
                Dimension::Fgroup => ids("fgroup", &chosen, &self.file_groups),
                Dimension::ObjUser => either("obj_user", "labels", &chosen, &self.labels[0]),
                Dimension::ObjRole => either("obj_role", "labels", &chosen, &self.labels[1]),
                Dimension::ObjType => either("obj_type", "labels", &chosen, &self.labels[2]),
                Dimension::SubjUser => either("subj_user", "labels", &chosen, &self.labels[3]),
                Dimension::SubjRole => either("subj_role", "labels", &chosen, &self.labels[4]),
                Dimension::SubjType => either("subj_type", "labels", &chosen, &self.labels[5]),
                Dimension::Data if self.lookup.func == Func::KeyCheck => {
                    either("keyring", "keyrings", &chosen, &self.data)
                }
                Dimension::Data => either("label", "data", &chosen, &self.data),
            });
        }
        parts.join(", ")
    }

    fn masks_in_words(&self, chosen: &[usize]) -> String {
        let all = || chosen.iter().map(|at| self.lookup.masks[*at]);
        let is = |holds: &dyn Fn(u8) -> bool| {
            all().all(holds) && self.lookup.masks.iter().filter(|mask| holds(**mask)).count() == chosen.len()
        };
        for mask in Mask::ALL {
            let (name, bit) = (mask.name(), mask.bits());
            let words: [(String, &dyn Fn(u8) -> bool); 5] = [
                (format!("{name} alone"), &|found| found == bit),
                (name.to_owned(), &|found| found & bit != 0),
                (format!("{name} with more"), &|found| found & bit != 0 && found != bit),
                (format!("without {name}"), &|found| found & bit == 0),
                (format!("not {name} alone"), &|found| found != bit),
            ];
            if let Some((words, _)) = words.into_iter().find(|(_, holds)| is(holds)) {
                return words;
            }
        }
        let words = all().map(|mask| {
            let names = Mask::ALL.iter().filter(|bit| mask & bit.bits() != 0).map(|bit| bit.name());
            names.collect::<Vec<_>>().join("+")
        });
        some_of(words.collect())
    }

    fn filesystems_in_words(&self, chosen: &[usize]) -> String {
        let words = |of: &[usize]| {
            let name = |at: &usize| match &self.filesystems[*at] {
                (Some(name), Some(magic)) => match magics_of(name).map(|magics| magics.first() == Some(magic)) {
                    Some(true) => Some(name.clone()),
                    Some(false) | None => Some(format!("{name} ({magic:#x})")),
                },
                (Some(name), None) => Some(name.clone()),
                (None, Some(magic)) => {
                    // Those of the names that the magic number is known for say enough where all of them are there.
                    let mut named = (0..self.filesystems.len()).filter(|at| {
                        let (name, found) = &self.filesystems[*at];
                        name.is_some() && *found == Some(*magic)
                    });
                    let all = named.clone().next().is_some() && named.all(|at| of.contains(&at));
                    (!all).then(|| format!("others with magic number {magic:#x}"))
                }
                (None, None) => Some("others".into()),
            };
            some_of(of.iter().filter_map(name).collect())
        };
        // What includes the unnamed is told by what it leaves out.
        let others = self.filesystems.iter().position(|filesystem| *filesystem == (None, None));
        if others.is_some_and(|others| chosen.contains(&others)) {
            let left_out: Vec<usize> = (0..self.filesystems.len()).filter(|at| !chosen.contains(at)).collect();
            return format!("file systems but {}", words(&left_out));
        }
        words(chosen)
    }
}

/// A short list of many words.
fn some_of(mut words: Vec<String>) -> String {
    const SHOWN: usize = 16;
    let more = words.len().saturating_sub(SHOWN);
    words.truncate(SHOWN);
    let list = words.join("|");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

fn ids(name: &str, chosen: &[usize], values: &[(u32, u32)]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for (first, last) in chosen.iter().map(|at| values[*at]) {
        match ranges.last_mut() {
            Some(range) if range.1 + 1 == first => range.1 = last,
            _ => ranges.push((first, last)),
        }
    }
    let end = values.last().map_or(u32::MAX, |last| last.1);
    let words = ranges.iter().map(|(first, last)| match (*first, *last) {
        (first, last) if first == last => first.to_string(),
        (first, last) if last == end => format!("{first} and above"),
        (first, last) => format!("{first} to {last}"),
    });
    format!("{name} {}", some_of(words.collect()))
}

fn either(name: &str, others: &str, chosen: &[usize], values: &[Option<String>]) -> String {
    let named = |at: &usize| values[*at].clone();
    match chosen.contains(&0) {
        true => {
            let left_out = (0..values.len()).filter(|at| !chosen.contains(at)).filter_map(|at| named(&at));
            format!("{others} but {}", some_of(left_out.collect()))
        }
        false => format!("{name} {}", some_of(chosen.iter().filter_map(named).collect())),
    }
}

fn data_list(rule: &Rule, func: Func) -> &[String] {
    match rule.func {
        Some(named) if named == func && func == Func::KeyCheck => &rule.keyrings,
        Some(named) if named == func && func == Func::CriticalData => &rule.label,
        Some(_) | None => &[],
    }
}

/// One event, with all that a policy could ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The hook.
    pub func: Func,
    /// The access.
    pub mask: u8,
    /// The file system's name.
    pub fsname: String,
    /// Its magic number.
    pub fsmagic: u64,
    /// Its subtype.
    pub fs_subtype: String,
    /// Its UUID.
    pub fsuuid: Option<[u8; 16]>,
    /// The effective, saved and real user.
    pub uids: [u32; 3],
    /// The effective, saved and real group.
    pub gids: [u32; 3],
    /// Whether the task has CAP_SETUID.
    pub setuid: bool,
    /// Whether the task has CAP_SETGID.
    pub setgid: bool,
    /// The file's owner.
    pub owner: u32,
    /// The file's group.
    pub group: u32,
    /// The labels of the file and of the subject.
    pub labels: Vec<LsmCondition>,
    /// The keyring's name, or the label of the data.
    pub data: Option<String>,
}

impl Witness {
    /// The file.
    pub fn file(&self) -> FileFacts<'_> {
        FileFacts {
            owner: self.owner,
            group: self.group,
            fsmagic: self.fsmagic,
            fsname: &self.fsname,
            fs_subtype: &self.fs_subtype,
            fsuuid: self.fsuuid,
        }
    }

    /// The event, of this witness's [file](Self::file).
    pub fn event<'a>(&'a self, file: &'a FileFacts<'a>) -> Event<'a> {
        Event { func: self.func, mask: self.mask, file, subject: self, data: self.data.as_deref() }
    }
}

impl Subject for Witness {
    fn uid(&self) -> u32 {
        self.uids[2]
    }

    fn gid(&self) -> u32 {
        self.gids[2]
    }

    fn euids(&self) -> [u32; 3] {
        self.uids
    }

    fn egids(&self) -> [u32; 3] {
        self.gids
    }

    fn can_setuid(&self) -> bool {
        self.setuid
    }

    fn can_setgid(&self) -> bool {
        self.setgid
    }

    fn has_label(&self, condition: &LsmCondition) -> bool {
        self.labels.contains(condition)
    }
}

impl fmt::Display for Witness {
    /// Who does what to which file, on a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Mask::ALL.iter().filter(|bit| self.mask & bit.bits() != 0).map(|bit| bit.name()).collect();
        write!(f, "{}", self.func)?;
        if !names.is_empty() {
            write!(f, " {}", names.join("+"))?;
        }
        if let Some(data) = &self.data {
            write!(f, " of {data}")?;
        }
        let ids = |out: &mut String, name: &str, [effective, saved, real]: [u32; 3], able: bool, capability: &str| {
            let _ = write!(out, ", {name} {real}");
            if effective != real {
                let _ = write!(out, ", e{name} {effective}");
            }
            if able && saved != real {
                let _ = write!(out, ", saved {name} {saved}");
            }
            if able {
                let _ = write!(out, " ({capability})");
            }
        };
        let mut who = String::new();
        ids(&mut who, "uid", self.uids, self.setuid, "CAP_SETUID");
        if self.func.is_data() {
            return f.write_str(&who);
        }
        ids(&mut who, "gid", self.gids, self.setgid, "CAP_SETGID");
        f.write_str(&who)?;
        write!(f, "; file of {}:{}", self.owner, self.group)?;
        match self.fsname.as_str() {
            "" => write!(f, " on magic number {:#x}", self.fsmagic),
            name => write!(f, " on {name} ({:#x})", self.fsmagic),
        }?;
        if !self.fs_subtype.is_empty() {
            write!(f, ".{}", self.fs_subtype)?;
        }
        if let Some(uuid) = self.fsuuid.filter(|uuid| *uuid != [0; 16]) {
            write!(f, ", fsuuid {}", Uuid(uuid))?;
        }
        self.labels.iter().try_for_each(|label| write!(f, ", {}={}", label.field, label.value))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::CompiledPolicy;
    use imara_format::policy::{Action, LsmLabels, Policy, Target};
    use proptest::prelude::*;

    /// The newest language, with SELinux's labels.
    pub(crate) fn target() -> Target {
        Target { lsm: Lsm::Selinux, lsm_labels: LsmLabels::Known, ..Target::guard() }
    }

    /// Random policies of small numbers, so that rules meet.
    pub(crate) fn rules() -> impl Strategy<Value = String> {
        let condition = "(uid|euid|gid|egid|fowner|fgroup)[=<>][0-2]|mask=\\^?MAY_(READ|EXEC|WRITE)|fsname=(ext4|foo)|\
             fsmagic=(ef53|9fa0|123)|pcr=[3-4]|template=ima-(ng|sig)|appraise_algos=sha(1|256)|appraise_type=imasig|\
             permit_directio|func=(FILE_CHECK|BPRM_CHECK|KEY_CHECK|KEXEC_CMDLINE|SETXATTR_CHECK)|keyrings=[ab]|\
             obj_type=[ab]|digest_type=verity|fsuuid=0000000[01]-0000-0000-0000-000000000000";
        let rule = ("(dont_)?(measure|appraise|audit|hash)", proptest::collection::vec(condition, 0..4))
            .prop_map(|(action, rest)| format!("{action} {}", rest.join(" ")));
        proptest::collection::vec(rule, 0..12).prop_map(|rules| {
            let good = |rule: &String| Policy::parse(rule.as_bytes(), &target()).is_ok();
            rules.into_iter().filter(good).collect::<Vec<_>>().join("\n")
        })
    }

    /// A random event that a lookup could make, and the lookup.
    pub(crate) fn events() -> impl Strategy<Value = (&'static Lookup, Witness)> {
        let ids = proptest::array::uniform3(0u32..4);
        let filesystem =
            proptest::sample::select(&[("ext4", 0xef53), ("proc", 0x9fa0), ("foo", 0x123), ("", 0x456)][..]);
        let lookup = (proptest::sample::select(LOOKUPS.iter().collect::<Vec<_>>()), any::<proptest::sample::Index>());
        (lookup, ids.clone(), ids, any::<[bool; 2]>(), [0u32..4, 0u32..4], filesystem, "[abc]?", 0u8..3).prop_map(
            |((lookup, mask), uids, gids, [setuid, setgid], [owner, group], (name, magic), word, uuid)| {
                let label = LsmCondition { field: LsmField::ObjType, value: word.clone() };
                let mut fsuuid = [0; 16];
                fsuuid[3] = uuid;
                let witness = Witness {
                    func: lookup.func,
                    mask: lookup.masks[mask.index(lookup.masks.len())],
                    fsname: name.into(),
                    fsmagic: magic,
                    fs_subtype: String::new(),
                    fsuuid: Some(fsuuid),
                    uids,
                    gids,
                    setuid,
                    setgid,
                    owner,
                    group,
                    labels: vec![label],
                    data: lookup.func.is_data().then_some(word),
                };
                (lookup, witness)
            },
        )
    }

    #[test]
    fn ids_are_cut_where_a_condition_begins_or_ends_to_hold() {
        let condition = |op, id| IdCondition { op, id };
        for (name, conditions, expected) in [
            ("none", vec![], vec![(0, LAST_ID)]),
            ("=0", vec![condition(Operator::Equal, 0)], vec![(0, 0), (1, LAST_ID)]),
            ("<0", vec![condition(Operator::Less, 0)], vec![(0, LAST_ID)]),
            (">last", vec![condition(Operator::Greater, LAST_ID)], vec![(0, LAST_ID)]),
            (
                "5..9",
                vec![condition(Operator::Greater, 4), condition(Operator::Less, 10)],
                vec![(0, 4), (5, 9), (10, LAST_ID)],
            ),
        ] {
            assert_eq!(intervals(conditions.into_iter(), LAST_ID), expected, "{name}");
        }
    }

    #[test]
    fn regions_are_told_in_words() {
        let policy = Policy::parse(
            b"measure func=FILE_CHECK mask=^MAY_READ uid<5 fsname=ext4\nmeasure fsmagic=123 fowner=7",
            &target(),
        )
        .unwrap();
        let rules: Vec<&Rule> = policy.rules.iter().collect();
        let space = Space::new(&LOOKUPS[0], &rules, Lsm::None);
        let part = |rule: &Rule, inside: bool| {
            let matcher = space.matcher(rule).unwrap();
            let mut region = space.whole();
            while let Holds::Sometimes(dimension, set) = matcher.holds(&region) {
                let (holds, not) = region.split(dimension, &set);
                region = if inside { holds } else { not };
            }
            space.describe(&region)
        };
        assert_eq!(part(rules[0], true), "MAY_READ, ext4, uid 0 to 4");
        assert_eq!(part(rules[0], false), "uid 5 and above");
        assert_eq!(part(rules[1], true), "others with magic number 0x123, fowner 7");
        assert_eq!(space.describe(&space.whole()), "");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// A region in which a rule always matches holds events that it matches, and likewise for never.
        #[test]
        fn a_region_is_judged_as_its_events_are(rules in rules(), choices in any::<u64>()) {
            let policy = Policy::parse(rules.as_bytes(), &target()).unwrap();
            for (lookup, rule) in LOOKUPS.iter().flat_map(|lookup| policy.rules.iter().map(move |rule| (lookup, rule))) {
                let all: Vec<&Rule> = policy.rules.iter().collect();
                let space = Space::new(lookup, &all, Lsm::Selinux);
                // What the rule does not decide, the next does, where it can.
                let action = match rule.action.class() {
                    Class::Measure => Action::Measure,
                    Class::Appraise => Action::Appraise,
                    Class::Audit => Action::Audit,
                    Class::Hash => Action::Hash,
                };
                let judge = CompiledPolicy::with_labels(Policy { rules: vec![rule.clone(), Rule::new(action)] });
                let (mut region, mut choices) = (space.whole(), choices);
                let always = loop {
                    match space.matcher(rule).map_or(Holds::Never, |matcher| matcher.holds(&region)) {
                        Holds::Always => break true,
                        Holds::Never => break false,
                        Holds::Sometimes(dimension, set) => {
                            let (inside, outside) = region.split(dimension, &set);
                            prop_assert!(!inside.is_empty() && !outside.is_empty());
                            region = if choices & 1 == 1 { inside } else { outside };
                            choices = choices.rotate_right(1);
                        }
                    }
                };
                let witness = space.witness(&region).unwrap();
                let file = witness.file();
                let decided_by = judge.decide(&witness.event(&file)).decided_by.class(rule.action.class());
                prop_assert_eq!(decided_by == Some(0), always, "{} at {}", rule, witness);
            }
        }
    }
}
