//! 64 rules side by side, a bit each: a condition is judged once for all rules that have it, and passes over every rule
//! that it does not hold for.
//!
//! Of the rules for the event's hook and of classes still open, those remain whose conditions on the access and the
//! file hold. The first that remains is asked for what it wants to know of the subject; the answer again passes over
//! every rule that it does not suit. What then remains first decides its class.

use super::condition::{Facts, Id, data_list};
use super::{Classes, Event, FileFacts};
use imara_format::policy::{Class, Func, IdCondition, MaskCondition, Rule};

/// Rules of one block, a bit each; the lowest is the first.
pub(super) type Rules = u64;

/// Up to 64 rules that follow each other.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The place of its first rule in the policy.
    pub(super) first: usize,
    /// For each hook, the rules that could match its events.
    by_func: [Rules; Func::ALL.len()],
    by_class: [Rules; Class::ALL.len()],
    /// The rules that do something, i.e. no `dont_…`.
    does: Rules,
    mask: Field<MaskCondition>,
    fsmagic: Field<u64>,
    fsname: Field<String>,
    fs_subtype: Field<String>,
    fsuuid: Field<[u8; 16]>,
    fowner: Field<IdCondition>,
    fgroup: Field<IdCondition>,
    subject: [Field<IdCondition>; Id::ALL.len()],
    /// The rules that ask for a label of the security module.
    label: Rules,
    /// The rules for keys or data that have a list.
    data: Rules,
}

/// The conditions that rules have on one thing.
#[derive(Clone, Debug)]
struct Field<T> {
    /// The rules that have one.
    asking: Rules,
    /// Each condition once, and the rules that have it.
    conditions: Vec<(T, Rules)>,
}

/// The rules of a block that may still decide an event.
pub(super) struct Remaining<'a> {
    block: &'a Block,
    rules: Rules,
    /// For each id, the rules that ask for it and have not been judged by it.
    unasked: [Rules; Id::ALL.len()],
    /// The rules that must be asked each for itself: for labels and lists.
    alone: Rules,
}

impl Block {
    pub(super) const SIZE: usize = Rules::BITS as usize;

    /// The block of `rules`, which begin at the place `first`; `could_match` says whether events of a hook could match one.
    pub(super) fn new(first: usize, rules: &[Rule], could_match: impl Fn(&Rule, Func) -> bool) -> Self {
        let those = |wanted: &dyn Fn(&Rule) -> bool| {
            let wanted = rules.iter().enumerate().filter(|(_, rule)| wanted(rule));
            wanted.fold(0, |bits, (number, _)| bits | 1 << number)
        };
        Self {
            first,
            by_func: std::array::from_fn(|func| those(&|rule| could_match(rule, Func::ALL[func]))),
            by_class: std::array::from_fn(|class| those(&|rule| rule.action.class() == Class::ALL[class])),
            does: those(&|rule| rule.action.does()),
            mask: Field::of(rules, |rule| rule.mask),
            fsmagic: Field::of(rules, |rule| rule.fsmagic),
            fsname: Field::of(rules, |rule| rule.fsname.clone()),
            fs_subtype: Field::of(rules, |rule| rule.fs_subtype.clone()),
            fsuuid: Field::of(rules, |rule| rule.fsuuid),
            fowner: Field::of(rules, |rule| rule.fowner),
            fgroup: Field::of(rules, |rule| rule.fgroup),
            subject: std::array::from_fn(|id| Field::of(rules, |rule| Id::ALL[id].condition(rule))),
            label: those(&|rule| !rule.lsm.is_empty()),
            data: those(&|rule| rule.func.is_some_and(|func| func.is_data() && !data_list(rule, func).is_empty())),
        }
    }

    /// Whether some rule for the hook does something.
    pub(super) fn wants(&self, func: Func) -> bool {
        self.by_func[func as usize] & self.does != 0
    }

    /// The rules for the hook that ask for the access.
    pub(super) fn asking_mask(&self, func: Func) -> Rules {
        if func == Func::PostSetattr || func.is_data() { 0 } else { self.by_func[func as usize] & self.mask.asking }
    }

    /// The rules for the hook that ask for the subject, a label or a list.
    pub(super) fn asking_more(&self, func: Func) -> Rules {
        let asking = self.asking_ids(func).iter().fold(self.asking_alone(func), |all, rules| all | rules);
        self.by_func[func as usize] & asking
    }

    /// For each id, the rules that ask for it; of events without a file nothing is looked at but the user.
    fn asking_ids(&self, func: Func) -> [Rules; Id::ALL.len()] {
        let asked = |id: Id| id == Id::Uid || !func.is_data();
        Id::ALL.map(|id| if asked(id) { self.subject[id as usize].asking } else { 0 })
    }

    fn asking_alone(&self, func: Func) -> Rules {
        if func.is_data() { self.data } else { self.label }
    }

    /// The rules for the hook and for classes in `open` whose conditions on the file and, where it is known, on the
    /// access hold.
    pub(super) fn possible(&self, func: Func, mask: Option<u8>, file: &FileFacts<'_>, open: Classes) -> Rules {
        let of_class = |class: &Class| if open.contains(*class) { self.by_class[*class as usize] } else { 0 };
        let rules = self.by_func[func as usize] & Class::ALL.iter().fold(0, |rules, class| rules | of_class(class));
        if func.is_data() {
            return rules;
        }
        let rules = match mask {
            Some(mask) if func != Func::PostSetattr => self.mask.keep(rules, |wanted| wanted.holds(mask)),
            _ => rules,
        };
        let rules = self.fsmagic.keep(rules, |magic| *magic == file.fsmagic);
        let rules = self.fsname.keep(rules, |name| name == file.fsname);
        let rules = self.fs_subtype.keep(rules, |name| name == file.fs_subtype);
        let rules = self.fsuuid.keep(rules, |uuid| *uuid == file.fsuuid.unwrap_or_default());
        let rules = self.fowner.keep(rules, |owner| owner.holds(file.owner));
        self.fgroup.keep(rules, |group| group.holds(file.group))
    }

    /// The rules that may decide `event`, before anything is asked about the subject.
    pub(super) fn remaining(&self, event: &Event<'_>, open: Classes) -> Remaining<'_> {
        let rules = self.possible(event.func, Some(event.mask), event.file, open);
        let (unasked, alone) = (self.asking_ids(event.func), self.asking_alone(event.func));
        Remaining { block: self, rules, unasked, alone }
    }
}

impl Remaining<'_> {
    /// The first of the policy's `rules` that matches, by its place.
    pub(super) fn first(&mut self, facts: &Facts<'_>, rules: &[Rule]) -> Option<usize> {
        while let Some(number) = numbers(self.rules).next() {
            let (rule, index) = (1 << number, self.block.first + number);
            self.ask(rule, facts);
            if self.rules & rule & self.alone != 0 && !facts.alone_hold(&rules[index]) {
                self.rules &= !rule;
            }
            if self.rules & rule != 0 {
                return Some(index);
            }
        }
        None
    }

    /// Judges all rules by each id that `rule` asks for, until it is passed over.
    fn ask(&mut self, rule: Rules, facts: &Facts<'_>) {
        for id in Id::ALL {
            if self.rules & rule & self.unasked[id as usize] != 0 {
                self.unasked[id as usize] = 0;
                let known = facts.ids(id);
                let holds = |wanted: &IdCondition| known.iter().any(|id| wanted.holds(*id));
                self.rules = self.block.subject[id as usize].keep(self.rules, holds);
            }
        }
    }

    /// Passes over the rules of a class that is decided.
    pub(super) fn close(&mut self, class: Class) {
        self.rules &= !self.block.by_class[class as usize];
    }
}

/// The numbers of `rules` in their block, from the first.
pub(super) fn numbers(mut rules: Rules) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let number = rules.trailing_zeros();
        rules &= rules.wrapping_sub(1);
        (number < Rules::BITS).then_some(number as usize)
    })
}

impl<T: PartialEq> Field<T> {
    fn of(rules: &[Rule], condition: impl Fn(&Rule) -> Option<T>) -> Self {
        let mut field = Self { asking: 0, conditions: Vec::new() };
        for (number, rule) in rules.iter().enumerate() {
            let Some(condition) = condition(rule) else { continue };
            field.asking |= 1 << number;
            match field.conditions.iter_mut().find(|(known, _)| *known == condition) {
                Some((_, having)) => *having |= 1 << number,
                None => field.conditions.push((condition, 1 << number)),
            }
        }
        field
    }

    /// Those of `rules` whose condition holds, and those that have none.
    fn keep(&self, rules: Rules, holds: impl Fn(&T) -> bool) -> Rules {
        if rules & self.asking == 0 {
            return rules;
        }
        let having = |(condition, having): &(T, Rules)| if holds(condition) { *having } else { 0 };
        rules & self.conditions.iter().fold(!self.asking, |kept, condition| kept | having(condition))
    }
}
