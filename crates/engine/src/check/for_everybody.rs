//! What is left to do for a file, whoever comes: where that is nothing the kernel need not ask again until the file changes.

use super::steps::mask_of;
use super::{Checker, File, Mode};
use crate::cache::Record;
use crate::policy::{CompiledPolicy, Slot};
use imara_format::policy::{Class, Func, Mask};

/// What is left to do for a file in its present state, whoever comes and by whichever of some hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing, with whatever content: the policy wants nothing.
    NeverAnything,
    /// Nothing: what the policy wants has been done.
    Nothing,
    /// Something, for some who might come.
    Something,
}

impl Checker {
    /// What is known of a file in its present state.
    pub fn known(&self, file: &dyn File) -> Option<Record> {
        file.stamp().ok().and_then(|stamp| self.cache.lookup(file.id(), &stamp))
    }

    /// What a policy leaves to do for a file of which this is [`Self::known`].
    pub fn left_to_do(&self, policy: &CompiledPolicy, file: &dyn File, known: Option<&Record>, funcs: &[Func]) -> Left {
        let facts = file.facts();
        let mut left = Left::NeverAnything;
        for func in funcs {
            let possible = policy.possible_with(*func, mask_of(*func), &facts);
            // The flags of another class's rule may come to those of the rule that has the file appraised.
            let asked = possible.flags.requirement();
            for outcome in possible.outcomes {
                let done = known.is_some_and(|record| match outcome.class {
                    Class::Measure => record.measured >> outcome.pcr.unwrap_or(self.log.pcr()) & 1 == 1,
                    Class::Appraise => {
                        self.mode() == Mode::Off
                            || record.passes(outcome.slot, asked, outcome.allowed_algorithms.as_ref())
                    }
                    Class::Audit => record.audited,
                    // Kept at the last close, which no open has a part in.
                    Class::Hash => true,
                });
                if !done {
                    return Left::Something;
                }
                left = Left::Nothing;
            }
        }
        left
    }

    /// Whether a file of which this is [`Self::known`] was appraised by a digest, so that its label has to follow when it is
    /// written to.
    pub const fn appraised_by_digest(known: Option<&Record>) -> bool {
        matches!(known, Some(record) if !record.immutable && record.status[Slot::File as usize].is_some())
    }

    /// Whether a file's label is a signature, or EVM's a portable one, as far as that is known.
    pub fn is_signed(&self, file: &dyn File) -> bool {
        self.known(file).is_some_and(|record| record.immutable)
    }

    /// Whether a file is signed, and may therefore not be opened for writing, as far as that is known.
    pub fn refuses_writers(&self, file: &dyn File) -> bool {
        let writes = Some(Mask::MAY_WRITE.bits());
        self.is_signed(file)
            && self.mode() == Mode::Enforce
            && self
                .policy()
                .possible_with(Func::FileCheck, writes, &file.facts())
                .outcomes
                .iter()
                .any(|outcome| outcome.class == Class::Appraise)
    }
}
