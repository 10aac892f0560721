//! Which hash algorithms may be written into `security.ima`: the policy's rule for SETXATTR_CHECK, seen afterwards.
//!
//! The kernel refuses setxattr(2) itself. Whoever learns of it by a notice that an inode's attributes have changed cannot, and is not
//! told which. So the inode is *suspect* from the notice on: a label in an algorithm that the rule does not allow does not pass there.
//! A label that was there before stays good, as in the kernel, which looks at none that is written already: one that passed while its
//! inode was not suspect is *known*.
//!
//! Source: `ima_inode_setxattr`, `validate_hash_algo`, security/integrity/ima/ima_appraise.c.

use crate::appraise::Cause;
use crate::cache::InodeId;
use crate::crypto::Hasher;
use imara_format::hash::HashAlgorithm;
use imara_format::label;
use imara_format::policy::AlgorithmSet;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The hash algorithms that labels may be written in: those of a rule; without one, those that somebody could compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritableLabels {
    rule: Option<AlgorithmSet>,
    default: HashAlgorithm,
}

impl WritableLabels {
    /// By the policy's `rule`, if it has one. What names no algorithm stands for the `default` hash.
    pub const fn new(rule: Option<AlgorithmSet>, default: HashAlgorithm) -> Self {
        Self { rule, default }
    }

    /// Whether a rule says so.
    pub const fn by_rule(&self) -> bool {
        self.rule.is_some()
    }

    /// Whether a label may be written that names this algorithm.
    pub fn may_be(&self, algorithm: Option<HashAlgorithm>) -> bool {
        let algorithm = algorithm.unwrap_or(self.default);
        match self.rule {
            Some(rule) => rule.contains(algorithm),
            None => algorithm == self.default || Hasher::new(algorithm).is_ok(),
        }
    }

    /// The algorithm of a label that may not be written.
    pub fn denied(&self, label: &[u8]) -> Option<HashAlgorithm> {
        let algorithm = label::algorithm_of(label);
        (!self.may_be(algorithm)).then_some(algorithm.unwrap_or(self.default))
    }

    /// What is recorded of a label of `algorithm`, which may not be written.
    pub fn cause(&self, algorithm: HashAlgorithm) -> (Cause, String) {
        let (cause, why) = if self.by_rule() {
            (Cause::DeniedHashAlgorithm, "is not among the policy's appraise_algos of SETXATTR_CHECK")
        } else {
            (Cause::UnavailableHashAlgorithm, "cannot be computed here")
        };
        (cause, format!("a label of {algorithm} is not to be written: {algorithm} {why}"))
    }
}

/// How long ago an inode must have changed for what it holds to have been there before: much longer than a notice takes.
pub const LATELY: Duration = Duration::from_secs(10);

/// How many inodes are remembered; beyond that all are forgotten, so that the least that nobody looks at is lost.
const MOST: usize = 1 << 18;

/// What is known of inodes whose labels the rule would not let be written.
#[derive(Debug, Default)]
pub struct LabelWrites {
    state: Mutex<State>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct State {
    suspect: HashMap<InodeId, Suspicion>,
    /// Labels that are not allowed, and were there before, by a keyed hash.
    known: HashMap<InodeId, u64>,
}

/// What is known of an inode whose attributes have changed, and whose label was not looked at since or is not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Suspicion {
    notices: u64,
    /// The label that was told of.
    told: Option<u64>,
}

impl LabelWrites {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There has been a notice that an inode's attributes have changed, its label perhaps.
    pub fn suspect(&self, id: InodeId) {
        let mut state = self.state();
        if state.suspect.len() >= MOST {
            state.suspect.clear();
        }
        state.suspect.entry(id).or_default().notices += 1;
    }

    /// Looks at a suspect inode's label by `read`, which gives it where it is not allowed, and then whether it was there before is found
    /// out: the algorithm of one that was not, once for each label. Whatever is else there makes the inode suspect no longer, if there
    /// was no other notice meanwhile.
    pub fn look<T>(&self, id: InodeId, read: impl FnOnce() -> Option<(Vec<u8>, T)>) -> Option<T> {
        let before = self.state().suspect.get(&id).copied()?;
        let found = read();
        let mut state = self.state();
        if let Some((label, algorithm)) = found {
            let print = self.hasher.hash_one(label);
            if state.known.get(&id) != Some(&print) {
                let suspicion = state.suspect.entry(id).or_default();
                return (suspicion.told.replace(print) != Some(print)).then_some(algorithm);
            }
        }
        if state.suspect.get(&id).is_some_and(|now| now.notices == before.notices) {
            state.suspect.remove(&id);
        }
        None
    }

    /// Whether a label that is not allowed was there before, as far as that is known. One on an inode that is not suspect was, and is
    /// known from now on if the inode has not changed lately: the notice of a change comes after it.
    pub fn was_there(&self, id: InodeId, label: &[u8], unchanged: bool) -> bool {
        let print = self.hasher.hash_one(label);
        let mut state = self.state();
        if state.suspect.contains_key(&id) {
            return state.known.get(&id) == Some(&print);
        }
        if unchanged {
            if state.known.len() >= MOST {
                state.known.clear();
            }
            state.known.insert(id, print);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::Digest;
    use imara_format::label::encode_digest;

    #[test]
    fn without_a_rule_what_nobody_computes_may_not_be_written() {
        use HashAlgorithm::{Md4, Md5, Sha1, Sha256, Tgr192, Wp512};
        let labels = WritableLabels::new(None, Sha256);
        for algorithm in [Md5, Sha1, Sha256] {
            assert_eq!(labels.denied(&encode_digest(&Digest::ones(algorithm))), None, "{algorithm}");
        }
        for algorithm in [Md4, Tgr192, Wp512] {
            let label = [&[4, algorithm.id()][..], &[0; 20]].concat();
            assert_eq!(labels.denied(&label), Some(algorithm));
            assert_eq!(labels.cause(algorithm).0, Cause::UnavailableHashAlgorithm);
            // A kernel may have it for its default.
            assert_eq!(WritableLabels::new(None, algorithm).denied(&label), None);
            // A rule may name what nobody computes.
            let rule = WritableLabels::new(Some(AlgorithmSet::EMPTY.with(algorithm)), Sha256);
            assert_eq!(rule.denied(&label), None);
            assert_eq!(rule.cause(Sha256).0, Cause::DeniedHashAlgorithm);
        }
    }

    #[test]
    fn the_algorithm_is_read_as_the_kernel_reads_it() {
        use HashAlgorithm::{Md5, Sha1, Sha256, Sha512};
        let allowed = AlgorithmSet::EMPTY.with(Sha256).with(Sha512);
        let signature = [&[3, 2, Sha1.id(), 0, 0, 0, 0, 0, 1][..], &[0; 4]].concat();
        for (name, label, expected) in [
            ("sha256", encode_digest(&Digest::ones(Sha256)), None),
            ("sha512", encode_digest(&Digest::ones(Sha512)), None),
            ("sha1", encode_digest(&Digest::ones(Sha1)), Some(Sha1)),
            ("md5", encode_digest(&Digest::ones(Md5)), Some(Md5)),
            ("sha1, type 4", [&[4, Sha1.id()][..], &[1; 20]].concat(), Some(Sha1)),
            ("a signature over sha1", signature, Some(Sha1)),
            // The default hash.
            ("unknown type", vec![0], None),
            ("unknown algorithm", vec![4, 255], None),
            ("cut short", vec![4], None),
        ] {
            assert_eq!(WritableLabels::new(Some(allowed), Sha256).denied(&label), expected, "{name}");
        }
        let without_default = WritableLabels::new(Some(AlgorithmSet::EMPTY.with(Sha512)), Sha256);
        assert_eq!(without_default.denied(&[0]), Some(Sha256), "the default is not allowed");
    }

    #[test]
    fn a_label_that_was_there_before_stays_good_and_one_that_was_not_does_not() {
        let writes = LabelWrites::default();
        let [old, new, never] = [1, 2, 3].map(|inode| InodeId { device: 1, inode });
        let bad = |label: &[u8]| Some((label.to_vec(), ()));
        assert!(writes.was_there(old, b"label", true), "nobody has touched it");
        writes.suspect(old);
        assert!(writes.was_there(old, b"label", true), "another attribute was changed");
        assert!(!writes.was_there(old, b"another", true));
        assert_eq!(writes.look(old, || bad(b"another")), Some(()), "it was written");
        assert_eq!(writes.look(old, || bad(b"another")), None, "which is told once");
        assert_eq!(writes.look(old, || bad(b"label")), None, "it was put back");
        assert!(writes.was_there(old, b"label", true));
        writes.suspect(new);
        assert!(!writes.was_there(new, b"label", true));
        assert!(!writes.was_there(new, b"label", true), "nor is it good the second time");
        assert_eq!(writes.look(new, || None), None::<()>, "one that is allowed is there now");
        assert!(writes.was_there(never, b"label", true));
        // Read in the moment before the notice came.
        let early = InodeId { device: 2, inode: 1 };
        assert!(writes.was_there(early, b"label", false));
        writes.suspect(early);
        assert!(!writes.was_there(early, b"label", true));
        assert_eq!(writes.look(never, || panic!("nobody has touched it")), None::<()>);
    }

    #[test]
    fn a_label_that_is_written_while_another_is_looked_at_is_seen() {
        let (writes, id) = (LabelWrites::default(), InodeId { device: 1, inode: 1 });
        writes.suspect(id);
        let looked = writes.look(id, || {
            writes.suspect(id);
            None
        });
        assert_eq!(looked, None::<()>);
        assert!(!writes.was_there(id, b"label", true));
    }
}
