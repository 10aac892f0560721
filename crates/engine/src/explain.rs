//! Why a file is let through or refused, and what would make it pass: the steps of [`crate::check`] without their
//! effects.

use crate::appraise::{self, Appraisal, Cause, IntegrityStatus};
use crate::audit::TaskIdentity;
use crate::check::{File, Hook, Task};
use crate::evm::Evm;
use crate::evm::running::Judged;
use crate::keyring::Keyring;
use crate::policy::{CompiledPolicy, Decision, Event, Explanation as RuleExplanation, Subject, Why};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label;
use std::fmt;
use std::io;

/// What would be done for one hook, and why.
#[derive(Debug)]
pub struct Explanation {
    /// The hook.
    pub hook: Hook,
    /// What the policy decides.
    pub decision: Decision,
    /// Each rule, and why it matched or did not.
    pub rules: Vec<RuleExplanation>,
    /// The content's digest, in the algorithm that the label names; or fs-verity's, where the rule goes by that and there is one.
    pub digest: Digest,
    /// Whether it is fs-verity's.
    pub verity: bool,
    /// The value of `security.ima`.
    pub label: Option<Vec<u8>>,
    /// The appraisal, where the policy asks for one.
    pub appraisal: Option<Appraisal>,
    /// What EVM makes of the file, where it was asked.
    pub evm: Option<Judged>,
    /// The label's algorithm, where the policy would not have let it be written (see [`crate::label_writes`]); whoever has seen that says so.
    pub not_to_be_written: Option<HashAlgorithm>,
}

impl Explanation {
    /// Why it would not pass; `None` where it passes, or is not appraised.
    pub fn cause(&self) -> Option<Cause> {
        let appraisal = self.appraisal.as_ref()?;
        let denied = self.decision.allowed_algorithms.is_some_and(|set| !set.contains(self.digest.algorithm()));
        let denied = denied || self.not_to_be_written.is_some();
        appraisal.cause.or(denied.then_some(Cause::DeniedHashAlgorithm))
    }
}

/// Explains one hook for one file and task.
///
/// # Errors
/// What reading the file or its label says.
pub fn explain(
    policy: &CompiledPolicy,
    keys: &Keyring,
    evm: Option<&Evm>,
    default_hash: HashAlgorithm,
    file: &dyn File,
    task: &dyn Task,
    hook: Hook,
) -> io::Result<Explanation> {
    let facts = file.facts();
    let event = Event { func: hook.func, mask: hook.mask, file: &facts, subject: task, data: None };
    let decision = policy.decide(&event);
    let label = file.xattr("security.ima").or_else(|error| match error.kind() {
        io::ErrorKind::Unsupported => Ok(None),
        _ => Err(error),
    })?;
    let requirement = decision.flags.requirement();
    let verity = if requirement.verity { file.verity_digest()? } else { None };
    let lacks_verity = requirement.verity && verity.is_none();
    let algorithm = label.as_deref().and_then(label::algorithm_of).unwrap_or(default_hash);
    let content = || {
        file.digest(algorithm).or_else(|error| match error.kind() {
            io::ErrorKind::Unsupported => file.digest(default_hash),
            _ => Err(error),
        })
    };
    let (digest, verity) = match verity {
        Some(digest) => (digest, true),
        None => (content()?, false),
    };
    let empty = file.stamp()?.size == 0;
    let mut judged = None;
    let ask_evm = || match evm {
        Some(evm) => judged.insert(evm.look(file)).status,
        None => IntegrityStatus::Unknown,
    };
    let blocked = match decision.appraise {
        Some(_) => keys.blocked().find(&digest, verity, |algorithm| file.digest(algorithm))?,
        None => None,
    };
    let appraisal = decision.appraise.map(|_| match blocked {
        _ if lacks_verity => Appraisal::without_verity(),
        Some(digest) => Appraisal::blocked(digest),
        None => appraise::appraise(label.as_deref(), &digest, empty, false, requirement, keys, ask_evm),
    });
    let (rules, evm) = (policy.explain(&event), judged);
    Ok(Explanation { hook, decision, rules, digest, verity, label, appraisal, evm, not_to_be_written: None })
}

impl fmt::Display for Why {
    /// Rules are numbered from 1, in their order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decides => f.write_str("matches first and decides"),
            Self::Decided { by } => write!(f, "rule {} has decided already", by + 1),
            Self::NothingToDo => f.write_str("no rule asks for what it excepts"),
            Self::Fails { condition, found } => write!(f, "{condition} does not hold: found {found}"),
        }
    }
}

/// A task that might use a file: a user by that number, with root's powers where it is 0.
#[derive(Clone, Copy, Debug)]
pub struct User(pub u32);

impl Subject for User {
    fn uid(&self) -> u32 {
        self.0
    }

    fn gid(&self) -> u32 {
        self.0
    }

    fn euids(&self) -> [u32; 3] {
        [self.0; 3]
    }

    fn egids(&self) -> [u32; 3] {
        [self.0; 3]
    }

    fn can_setuid(&self) -> bool {
        self.0 == 0
    }

    fn can_setgid(&self) -> bool {
        self.0 == 0
    }
}

impl Task for User {
    fn identity(&self) -> TaskIdentity {
        TaskIdentity { uids: [self.0; 4], gids: [self.0; 4], ..TaskIdentity::default() }
    }
}
