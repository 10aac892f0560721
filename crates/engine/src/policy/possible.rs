//! What anybody could make a policy decide for a file.

use super::condition::{Conditions, file_holds};
use super::{Candidate, CompiledPolicy, FileFacts, Flags, Slot};
use imara_format::policy::{AlgorithmSet, Class, Func, TemplateName};

/// What anybody could make a policy decide for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Possible {
    /// Whether every subject gets the same decision.
    pub uniform: bool,
    /// The do-rules that decide their class for some subject, in their order.
    pub outcomes: Vec<Outcome>,
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
        let mut possible = Possible { uniform: true, outcomes: Vec::new(), flags: Flags::default() };
        let mut open = self.done;
        for (candidate, rule) in self.candidates(func) {
            let Candidate { rule: index, class, conditions } = *candidate;
            let on_file = conditions.and(Conditions::FILE);
            if !open.contains(class) || !on_file.iter().all(|condition| file_holds(condition, rule, file)) {
                continue;
            }
            let mut unsure = conditions.without(Conditions::FILE);
            if let (Some(wanted), Some(mask)) = (rule.mask, mask)
                && !unsure.and(Conditions::MASK).is_empty()
            {
                if !wanted.holds(mask) {
                    continue;
                }
                unsure = unsure.without(Conditions::MASK);
            }
            if unsure.is_empty() {
                open = open.without(class);
            } else {
                possible.uniform = false;
            }
            let flags = self.flags(rule);
            possible.flags = possible.flags.union(flags);
            if rule.action.does() {
                possible.outcomes.push(Outcome {
                    rule: index,
                    class,
                    pcr: rule.pcr,
                    template: rule.template,
                    slot: if class == Class::Appraise { Slot::of(rule, func) } else { Slot::File },
                    flags,
                    allowed_algorithms: rule.appraise_algos,
                });
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
