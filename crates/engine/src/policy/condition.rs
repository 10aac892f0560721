//! The conditions of a rule, and whether they hold for an event.

use super::{Event, FileFacts};
use imara_format::policy::{Func, IdCondition, Rule};
use std::cell::OnceCell;
use std::fmt;

macro_rules! conditions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A condition of a rule, in the order in which they are judged: what costs nothing to know comes first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Condition { $($(#[$doc])* $variant,)* }

        impl Condition {
            const ALL: &[Self] = &[$(Self::$variant,)*];
        }

        impl fmt::Display for Condition {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

conditions! {
    /// `func=`.
    Func = "func",
    /// `mask=`.
    Mask = "mask",
    /// `fsmagic=`.
    Fsmagic = "fsmagic",
    /// `fsname=`.
    Fsname = "fsname",
    /// `fs_subtype=`.
    FsSubtype = "fs_subtype",
    /// `fsuuid=`.
    Fsuuid = "fsuuid",
    /// `fowner=`.
    Fowner = "fowner",
    /// `fgroup=`.
    Fgroup = "fgroup",
    /// `uid=`.
    Uid = "uid",
    /// `euid=`.
    Euid = "euid",
    /// `gid=`.
    Gid = "gid",
    /// `egid=`.
    Egid = "egid",
    /// `obj_user=` … `subj_type=`.
    Label = "label of the security module",
    /// `keyrings=`, or `label=` of CRITICAL_DATA.
    Data = "keyrings or label",
}

/// A set of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conditions(u16);

impl Conditions {
    /// Those on the file.
    pub(super) const FILE: Self = Self(
        1 << Condition::Fsmagic as u16
            | 1 << Condition::Fsname as u16
            | 1 << Condition::FsSubtype as u16
            | 1 << Condition::Fsuuid as u16
            | 1 << Condition::Fowner as u16
            | 1 << Condition::Fgroup as u16,
    );
    /// That on the access.
    pub(super) const MASK: Self = Self(1 << Condition::Mask as u16);

    /// What `rule` asks of an event of the hook `func`.
    pub(super) fn of(rule: &Rule, func: Func) -> Self {
        let data = func.is_data();
        let asked = |condition: &Condition| match condition {
            // A candidate is for the hook.
            Condition::Func => false,
            Condition::Mask => rule.mask.is_some() && func != Func::PostSetattr && !data,
            Condition::Fsmagic => rule.fsmagic.is_some() && !data,
            Condition::Fsname => rule.fsname.is_some() && !data,
            Condition::FsSubtype => rule.fs_subtype.is_some() && !data,
            Condition::Fsuuid => rule.fsuuid.is_some() && !data,
            Condition::Fowner => rule.fowner.is_some() && !data,
            Condition::Fgroup => rule.fgroup.is_some() && !data,
            Condition::Uid => rule.uid.is_some(),
            Condition::Euid => rule.euid.is_some() && !data,
            Condition::Gid => rule.gid.is_some() && !data,
            Condition::Egid => rule.egid.is_some() && !data,
            Condition::Label => !rule.lsm.is_empty() && !data,
            Condition::Data => data && !data_list(rule, func).is_empty(),
        };
        let asked = Condition::ALL.iter().filter(|condition| asked(condition));
        Self(asked.fold(0, |bits, condition| bits | 1 << *condition as u16))
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Condition> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            let condition = Condition::ALL.get(bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(*condition)
        })
    }
}

/// An event whose subject has been asked each thing once at most.
pub(super) struct Facts<'a> {
    pub(super) event: &'a Event<'a>,
    uid: OnceCell<u32>,
    gid: OnceCell<u32>,
    /// The users that `euid` conditions are for.
    euids: OnceCell<([u32; 3], usize)>,
    egids: OnceCell<([u32; 3], usize)>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(event: &'a Event<'a>) -> Self {
        let (uid, gid, euids, egids) = (OnceCell::new(), OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { event, uid, gid, euids, egids }
    }

    /// Whether the rule is for another hook.
    pub(super) fn wrong_func(&self, rule: &Rule) -> bool {
        let func = self.event.func;
        match rule.func {
            _ if func == Func::PostSetattr => false,
            Some(wanted) => wanted != func,
            None => func.is_data(),
        }
    }

    /// The first of a rule's conditions that does not hold; the rule is for this hook.
    pub(super) fn failing(&self, rule: &Rule, conditions: Conditions) -> Option<Condition> {
        conditions.iter().find(|condition| !self.holds(*condition, rule))
    }

    fn holds(&self, condition: Condition, rule: &Rule) -> bool {
        let event = self.event;
        let holds = |wanted: Option<IdCondition>, id: u32| wanted.is_none_or(|wanted| wanted.holds(id));
        let any = |wanted: Option<IdCondition>, (ids, count): ([u32; 3], usize)| {
            wanted.is_none_or(|wanted| ids.iter().take(count).any(|id| wanted.holds(*id)))
        };
        match condition {
            Condition::Func => !self.wrong_func(rule),
            Condition::Mask => rule.mask.is_none_or(|mask| mask.holds(event.mask)),
            Condition::Fsmagic
            | Condition::Fsname
            | Condition::FsSubtype
            | Condition::Fsuuid
            | Condition::Fowner
            | Condition::Fgroup => file_holds(condition, rule, event.file),
            Condition::Uid => holds(rule.uid, self.uid()),
            Condition::Euid => any(rule.euid, self.euids()),
            Condition::Gid => holds(rule.gid, self.gid()),
            Condition::Egid => any(rule.egid, self.egids()),
            Condition::Label => rule.lsm.iter().all(|label| event.subject.has_label(label)),
            Condition::Data => {
                event.data.is_some_and(|data| data_list(rule, event.func).iter().any(|item| item == data))
            }
        }
    }

    pub(super) fn uid(&self) -> u32 {
        *self.uid.get_or_init(|| self.event.subject.uid())
    }

    pub(super) fn gid(&self) -> u32 {
        *self.gid.get_or_init(|| self.event.subject.gid())
    }

    /// With CAP_SETUID all three, else the effective user alone.
    pub(super) fn euids(&self) -> ([u32; 3], usize) {
        let subject = self.event.subject;
        *self.euids.get_or_init(|| (subject.euids(), if subject.can_setuid() { 3 } else { 1 }))
    }

    pub(super) fn egids(&self) -> ([u32; 3], usize) {
        let subject = self.event.subject;
        *self.egids.get_or_init(|| (subject.egids(), if subject.can_setgid() { 3 } else { 1 }))
    }
}

/// Whether a condition on the file holds; conditions on anything else do.
pub(super) fn file_holds(condition: Condition, rule: &Rule, file: &FileFacts<'_>) -> bool {
    match condition {
        Condition::Fsmagic => rule.fsmagic.is_none_or(|magic| magic == file.fsmagic),
        Condition::Fsname => rule.fsname.as_deref().is_none_or(|name| name == file.fsname),
        Condition::FsSubtype => rule.fs_subtype.as_deref().is_none_or(|name| name == file.fs_subtype),
        Condition::Fsuuid => rule.fsuuid.is_none_or(|uuid| uuid == file.fsuuid.unwrap_or_default()),
        Condition::Fowner => rule.fowner.is_none_or(|owner| owner.holds(file.owner)),
        Condition::Fgroup => rule.fgroup.is_none_or(|group| group.holds(file.group)),
        Condition::Func
        | Condition::Mask
        | Condition::Uid
        | Condition::Euid
        | Condition::Gid
        | Condition::Egid
        | Condition::Label
        | Condition::Data => true,
    }
}

fn data_list(rule: &Rule, func: Func) -> &[String] {
    if func == Func::KeyCheck { &rule.keyrings } else { &rule.label }
}
