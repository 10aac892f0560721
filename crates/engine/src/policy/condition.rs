//! The conditions of a rule, and whether they hold for an event.

use super::Event;
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

impl Condition {
    /// The first condition of `rule` that does not hold for an event of the rule's hook.
    pub(super) fn failing(rule: &Rule, facts: &Facts<'_>) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|condition| condition.is_asked(facts.event.func) && !condition.holds(rule, facts))
    }

    /// Whether events of the hook are judged by it.
    const fn is_asked(self, func: Func) -> bool {
        match self {
            Self::Func => false,
            Self::Uid => true,
            Self::Data => func.is_data(),
            Self::Mask => !matches!(func, Func::PostSetattr) && !func.is_data(),
            Self::Fsmagic
            | Self::Fsname
            | Self::FsSubtype
            | Self::Fsuuid
            | Self::Fowner
            | Self::Fgroup
            | Self::Euid
            | Self::Gid
            | Self::Egid
            | Self::Label => !func.is_data(),
        }
    }

    fn holds(self, rule: &Rule, facts: &Facts<'_>) -> bool {
        let (event, file) = (facts.event, facts.event.file);
        let any = |id: Id| id.condition(rule).is_none_or(|wanted| facts.ids(id).iter().any(|id| wanted.holds(*id)));
        match self {
            Self::Func => !facts.wrong_func(rule),
            Self::Mask => rule.mask.is_none_or(|mask| mask.holds(event.mask)),
            Self::Fsmagic => rule.fsmagic.is_none_or(|magic| magic == file.fsmagic),
            Self::Fsname => rule.fsname.as_deref().is_none_or(|name| name == file.fsname),
            Self::FsSubtype => rule.fs_subtype.as_deref().is_none_or(|name| name == file.fs_subtype),
            Self::Fsuuid => rule.fsuuid.is_none_or(|uuid| uuid == file.fsuuid.unwrap_or_default()),
            Self::Fowner => rule.fowner.is_none_or(|owner| owner.holds(file.owner)),
            Self::Fgroup => rule.fgroup.is_none_or(|group| group.holds(file.group)),
            Self::Uid => any(Id::Uid),
            Self::Euid => any(Id::Euid),
            Self::Gid => any(Id::Gid),
            Self::Egid => any(Id::Egid),
            Self::Label | Self::Data => facts.alone_hold(rule),
        }
    }
}

/// An id of the subject, in the order in which they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Id {
    Uid,
    Euid,
    Gid,
    Egid,
}

impl Id {
    pub(super) const ALL: [Self; 4] = [Self::Uid, Self::Euid, Self::Gid, Self::Egid];

    /// What `rule` asks of it.
    pub(super) const fn condition(self, rule: &Rule) -> Option<IdCondition> {
        match self {
            Self::Uid => rule.uid,
            Self::Euid => rule.euid,
            Self::Gid => rule.gid,
            Self::Egid => rule.egid,
        }
    }
}

/// An event whose subject has been asked each thing once at most.
pub(super) struct Facts<'a> {
    pub(super) event: &'a Event<'a>,
    /// For each [`Id`], those that one condition is for, and how many.
    ids: [OnceCell<([u32; 3], usize)>; Id::ALL.len()],
}

impl<'a> Facts<'a> {
    pub(super) fn new(event: &'a Event<'a>) -> Self {
        Self { event, ids: [const { OnceCell::new() }; Id::ALL.len()] }
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

    /// The ids of which one must be as a rule asks: with CAP_SETUID all three users, else the effective one alone;
    /// likewise with groups.
    pub(super) fn ids(&self, id: Id) -> &[u32] {
        let subject = self.event.subject;
        let (ids, count) = self.ids[id as usize].get_or_init(|| match id {
            Id::Uid => ([subject.uid(); 3], 1),
            Id::Euid => (subject.euids(), if subject.can_setuid() { 3 } else { 1 }),
            Id::Gid => ([subject.gid(); 3], 1),
            Id::Egid => (subject.egids(), if subject.can_setgid() { 3 } else { 1 }),
        });
        &ids[..*count]
    }

    /// Whether the labels that the rule asks for are the event's or, for events that have none, its list has the event's
    /// data.
    pub(super) fn alone_hold(&self, rule: &Rule) -> bool {
        let event = self.event;
        if event.func.is_data() {
            let list = data_list(rule, event.func);
            return list.is_empty() || event.data.is_some_and(|data| list.iter().any(|item| item == data));
        }
        rule.lsm.iter().all(|label| event.subject.has_label(label))
    }
}

/// The list of a rule for events without a file.
pub(super) fn data_list(rule: &Rule, func: Func) -> &[String] {
    if func == Func::KeyCheck { &rule.keyrings } else { &rule.label }
}
