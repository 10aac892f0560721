//! What labels are verified with, and what is never taken, as the configuration names it: read when the guard starts, and again with
//! each load of a policy, as part of that transaction. What cannot be read then leaves everything as it was.

use super::config::Config;
use super::run::read_keys;
use crate::command::certificates::Trust;
use crate::output::Failure;
use imara_engine::check::Checker;
use imara_engine::keyring::Keyring;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Where they are.
#[derive(Clone, Debug)]
pub struct TrustedKeys {
    files: Vec<PathBuf>,
    trust: Trust,
    evm: Vec<PathBuf>,
}

/// What was read there.
#[derive(Debug)]
pub struct Read {
    /// For labels.
    pub keys: Arc<Keyring>,
    /// For EVM's.
    evm: Arc<Keyring>,
    /// Whether that is other than what is in force.
    pub changed: bool,
}

/// What was in force before.
pub struct Before(Arc<Keyring>, Option<Arc<Keyring>>);

impl TrustedKeys {
    /// As the guard is configured.
    pub fn of(config: &Config) -> Self {
        Self { files: config.keys.clone(), trust: config.trust.clone(), evm: config.evm.keys.clone() }
    }

    /// What labels are verified with, at the start.
    ///
    /// # Errors
    /// What cannot be read, is no key, or may not be searched.
    pub fn keyring(&self) -> Result<Keyring, Failure> {
        self.trust.keyring(&self.files, None)
    }

    /// Reads everything again. What comes to the same stays as it is.
    ///
    /// # Errors
    /// As [`TrustedKeys::keyring`].
    pub fn read(&self, checker: &Checker) -> Result<Read, Failure> {
        let (keys, evm) = (self.keyring()?, read_keys(&self.evm)?);
        let in_force = checker.keys();
        let evm_in_force = checker.evm().map(|evm| evm.keys());
        let same = keys.is_the_same(&in_force) && evm_in_force.as_ref().is_none_or(|before| evm.is_the_same(before));
        Ok(match (same, evm_in_force) {
            (true, before) => Read { keys: in_force, evm: before.unwrap_or_default(), changed: false },
            (false, _) => Read { keys: Arc::new(keys), evm: Arc::new(evm), changed: true },
        })
    }
}

impl Read {
    /// Puts them in force, if they are others; what was in force before then.
    pub fn put_in_force(&self, checker: &Checker) -> Option<Before> {
        self.changed.then(|| {
            let (keys, evm) = checker.replace_keys(Arc::clone(&self.keys), Some(Arc::clone(&self.evm)));
            Before(keys, evm)
        })
    }

    /// For whoever has a policy loaded.
    pub fn about(&self) -> Value {
        let [contents, certificates, keys] = self.keys.blocked().counts();
        json!({
            "changed": self.changed,
            "count": self.keys.keys().len(),
            "blocked": contents + certificates + keys,
        })
    }
}

impl Before {
    /// Puts back what was in force.
    pub fn restore(self, checker: &Checker) {
        let _ = checker.replace_keys(self.0, self.1);
    }
}
