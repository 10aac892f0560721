//! What anybody could make a policy decide for a file.

use super::block;
use super::{CompiledPolicy, FileFacts, Flags, Slot};
use imara_format::policy::{AlgorithmSet, Class, Func, TemplateName};
use smallvec::SmallVec;

/// What anybody could make a policy decide for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Possible {
    /// Whether every subject gets the same decision.
    pub uniform: bool,
    /// The do-rules that decide their class for some subject, in their order.
    pub outcomes: SmallVec<[Outcome; 3]>,
    /// All flags that some subject could get.
    pub flags: Flags,
}

/// A rule that has something done, for some subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The rule.
    pub rule: usize,
    /// What it has done.
    pub class: Class,
    /// The PCR, for [`Class::Measure`].
    pub pcr: Option<u32>,
    /// The template, for [`Class::Measure`].
    pub template: Option<TemplateName>,
    /// Where the result is kept, for [`Class::Appraise`].
    pub slot: Slot,
    /// The flags of this rule alone; those of other classes' rules may come to it.
    pub flags: Flags,
    /// The hash algorithms accepted, for [`Class::Appraise`].
    pub allowed_algorithms: Option<AlgorithmSet>,
}

impl CompiledPolicy {
    /// What any subject with any access could still make this policy decide for this file. If that is done, it is done
    /// for everybody.
    ///
    /// Conditions on the file are judged; those on the subject, the access, a label or data may hold or not.
    pub fn possible(&self, func: Func, file: &FileFacts<'_>) -> Possible {
        self.possible_with(func, None, file)
    }

    /// The same, for one access where it is known.
    pub fn possible_with(&self, func: Func, mask: Option<u8>, file: &FileFacts<'_>) -> Possible {
        let mut possible = Possible { uniform: true, outcomes: SmallVec::new(), flags: Flags::default() };
        let mut open = self.done;
        for block in &self.blocks {
            let unsure = block.asking_more(func) | if mask.is_none() { block.asking_mask(func) } else { 0 };
            for number in block::numbers(block.possible(func, mask, file, open)) {
                let rule = &self.policy.rules[block.first + number];
                let class = rule.action.class();
                if !open.contains(class) {
                    continue;
                }
                if unsure & 1 << number == 0 {
                    open = open.without(class);
                } else {
                    possible.uniform = false;
                }
                let flags = self.flags(rule);
                possible.flags = possible.flags.union(flags);
                if rule.action.does() {
                    possible.outcomes.push(Outcome {
                        rule: block.first + number,
                        class,
                        pcr: rule.pcr,
                        template: rule.template,
                        slot: if class == Class::Appraise { Slot::of(rule, func) } else { Slot::File },
                        flags,
                        allowed_algorithms: rule.appraise_algos,
                    });
                }
            }
        }
        possible
    }
}

impl Possible {
    /// Whether nobody can have anything done.
    pub fn is_nothing(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// The outcomes of one class.
    pub fn class(&self, class: Class) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| outcome.class == class)
    }
}
