//! A kernel's two policies and what loading does to them: the first load replaces, every further one appends.
//!
//! ```text
//! boot          active = default                            custom = what the kernel puts there by itself
//! first load    active = custom = custom + new rules        the default is never looked at again
//! next loads    active = custom = custom + new rules        only with CONFIG_IMA_WRITE_POLICY
//! ```
//!
//! Rules are never taken away, and a policy without a rule is not loaded.
//!
//! Source: `ima_init_policy`, `ima_update_policy`, security/integrity/ima/ima_policy.c; `ima_release_policy`, ima_fs.c.

use imara_format::policy::{Policy, Rule};

/// The policy that is in force, and the one that a load puts in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLists {
    default: Policy,
    custom: Policy,
    again: bool,
    loaded: bool,
}

/// Why a load changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Only comments, or nothing at all.
    #[error("there is no rule to load: what is in force stays")]
    NoRule,
    /// A policy was loaded before.
    #[error("a policy was loaded before, and this kernel takes one only (CONFIG_IMA_WRITE_POLICY is off)")]
    NotAgain,
}

impl PolicyLists {
    /// The lists after boot: `default` is in force, `custom` is what comes before all rules that are loaded. `again` is
    /// whether more than one policy can be loaded.
    pub fn new(default: Policy, custom: Policy, again: bool) -> Self {
        Self { default, custom, again, loaded: false }
    }

    /// The rules in force.
    pub fn active(&self) -> &Policy {
        if self.loaded { &self.custom } else { &self.default }
    }

    /// Whether a policy has been loaded.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Puts `rules` in force after the custom rules, in place of the default ones.
    ///
    /// # Errors
    /// [`LoadError`]; then nothing has changed.
    pub fn load(&mut self, rules: Vec<Rule>) -> Result<(), LoadError> {
        if self.loaded && !self.again {
            return Err(LoadError::NotAgain);
        }
        if rules.is_empty() {
            return Err(LoadError::NoRule);
        }
        self.custom.rules.extend(rules);
        self.loaded = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::policy::Target;

    fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), &Target::guard()).unwrap()
    }

    fn shown(policy: &Policy) -> Vec<String> {
        policy.rules.iter().map(|rule| rule.to_string().trim().to_owned()).collect()
    }

    #[test]
    fn the_first_load_replaces_and_the_next_ones_append() {
        let mut lists = PolicyLists::new(policy("audit\nhash\n"), policy("measure pcr=1\n"), true);
        assert_eq!(shown(lists.active()), ["audit", "hash"]);
        assert!(!lists.is_loaded());
        assert_eq!(lists.load(policy("measure pcr=2\n").rules), Ok(()));
        assert_eq!(shown(lists.active()), ["measure pcr=1", "measure pcr=2"]);
        assert_eq!(lists.load(policy("measure pcr=3\n").rules), Ok(()));
        assert_eq!(shown(lists.active()), ["measure pcr=1", "measure pcr=2", "measure pcr=3"]);
        assert!(lists.is_loaded());
    }

    #[test]
    fn a_load_that_is_refused_changes_nothing() {
        let mut lists = PolicyLists::new(policy("audit\n"), policy(""), false);
        let before = lists.clone();
        assert_eq!(lists.load(policy("# nothing\n").rules), Err(LoadError::NoRule));
        assert_eq!(lists, before);
        lists.load(policy("measure\n").rules).unwrap();
        let after = lists.clone();
        for rules in [policy("measure pcr=3\n").rules, Vec::new()] {
            assert_eq!(lists.load(rules), Err(LoadError::NotAgain));
            assert_eq!(lists, after);
        }
    }
}
