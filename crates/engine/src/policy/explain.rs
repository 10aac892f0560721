//! What became of each rule, for people.

use super::condition::{Condition, Facts, Id};
use super::{CompiledPolicy, Event};
use imara_format::policy::{Mask, Rule};

/// What became of one rule when an event was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The rule.
    pub rule: usize,
    /// What became of it.
    pub why: Why,
}

/// Why a rule decided its class, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It matched first, and decided its class.
    Decides,
    /// An earlier rule had decided its class.
    Decided {
        /// The earlier rule.
        by: usize,
    },
    /// No rule of the policy does what its class is about, so the class is never looked at.
    NothingToDo,
    /// A condition did not hold.
    Fails {
        /// The condition.
        condition: Condition,
        /// What the event had instead.
        found: String,
    },
}

impl CompiledPolicy {
    /// What became of each rule, for people.
    pub fn explain(&self, event: &Event<'_>) -> Vec<Explanation> {
        let decision = self.decide(event);
        let facts = Facts::new(event);
        let why = |index: usize, rule: &Rule| {
            let class = rule.action.class();
            if !self.done.contains(class) {
                return Why::NothingToDo;
            }
            if let Some(by) = decision.decided_by.class(class) {
                if by == index {
                    return Why::Decides;
                }
                if by < index {
                    return Why::Decided { by };
                }
            }
            let condition = match facts.wrong_func(rule) {
                true => Condition::Func,
                false if !self.labels && !rule.lsm.is_empty() && !event.func.is_data() => Condition::Label,
                // Every rule before the deciding one failed, and so did all of them where none decided.
                false => Condition::failing(rule, &facts).unwrap_or(Condition::Func),
            };
            Why::Fails { condition, found: facts.found(condition) }
        };
        let rules = self.policy.rules.iter().enumerate();
        rules.map(|(rule, text)| Explanation { rule, why: why(rule, text) }).collect()
    }
}

impl Facts<'_> {
    /// What the event has where a rule asked for something else.
    fn found(&self, condition: Condition) -> String {
        let file = self.event.file;
        let ids = |id| self.ids(id).iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        match condition {
            Condition::Func => self.event.func.to_string(),
            Condition::Mask => mask_text(self.event.mask),
            Condition::Fsmagic => format!("{:#x}", file.fsmagic),
            Condition::Fsname => file.fsname.to_owned(),
            Condition::FsSubtype => file.fs_subtype.to_owned(),
            Condition::Fsuuid => imara_format::hash::to_hex(&file.fsuuid.unwrap_or_default()),
            Condition::Uid => ids(Id::Uid),
            Condition::Euid => ids(Id::Euid),
            Condition::Gid => ids(Id::Gid),
            Condition::Egid => ids(Id::Egid),
            Condition::Fowner => file.owner.to_string(),
            Condition::Fgroup => file.group.to_string(),
            Condition::Label => "not known, or another".to_owned(),
            Condition::Data => self.event.data.unwrap_or_default().to_owned(),
        }
    }
}

fn mask_text(mask: u8) -> String {
    let names: Vec<_> = Mask::ALL.iter().filter(|bit| mask & bit.bits() != 0).map(|bit| bit.name()).collect();
    if names.is_empty() { format!("{mask:#x}") } else { names.join(" ") }
}
