//! The guard's policy while it runs: shown, and replaced in one transaction.
//!
//! The keys and block lists of the configuration are read again with it. Read, parsed, its signature and version checked, asked about as
//! a policy (POLICY_CHECK), tried on what is running now, swapped. Whatever fails on the way leaves what was before in force.

use super::policy_source::{Demands, PolicySource, shown_signer};
use super::running::{self, Running};
use super::trusted_keys::{Read, TrustedKeys};
use crate::output::Failure;
use imara_engine::active_policy::ActivePolicy;
use imara_engine::audit::{AuditRecord, TaskIdentity};
use imara_engine::check::{Checker, Mode, Task};
use imara_engine::policy::CompiledPolicy;
use imara_format::policy::Policy;
use imara_linux::hooks::fanotify::Guard;
use imara_linux::opened::OpeningTask;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is known of the policy in force.
#[derive(Debug)]
pub struct LivePolicy {
    demands: Demands,
    trusted: TrustedKeys,
    in_force: Mutex<InForce>,
    /// Policies are loaded one after the other. That takes as long as hashing what is running, for which nobody else waits.
    loading: Mutex<()>,
}

#[derive(Clone, Debug)]
struct InForce {
    path: PathBuf,
    about: Value,
    /// Loads since the guard started.
    loads: u32,
}

/// How a policy is to be loaded. A field that this guard does not know could be what keeps it from being loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// The file; `None` reads again the one that is in force.
    pub path: Option<PathBuf>,
    /// Where its rules go.
    pub placement: Placement,
    /// Only say what would come of it.
    pub dry_run: bool,
    /// Also if it would refuse what is running now.
    pub force: bool,
}

/// Where the rules of a load go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// In place of those in force.
    #[default]
    Replace,
    /// Behind those in force.
    Append,
    /// As the kernel does: the first load since the start replaces, every later one appends.
    AsKernel,
}

impl LivePolicy {
    /// The policy that the guard started with.
    pub fn new(source: PolicySource, demands: Demands, trusted: TrustedKeys) -> Self {
        Self {
            demands,
            trusted,
            in_force: Mutex::new(InForce { about: about(&source, now()), path: source.path, loads: 0 }),
            loading: Mutex::default(),
        }
    }

    /// Where it came from, for `imara status`.
    pub fn about(&self) -> Value {
        self.in_force().about
    }

    fn in_force(&self) -> InForce {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every rule, with how often it decided.
    pub fn show(&self, active: &ActivePolicy) -> Value {
        let rules: Vec<Value> = active
            .rules()
            .iter()
            .zip(active.hits())
            .zip(1..)
            .map(|((rule, hits), number)| {
                json!({ "rule": number, "line": rule.line, "hits": hits, "text": rule.to_string() })
            })
            .collect();
        let mut document = json!({ "schema": 1, "provider": "guard" });
        document["policy"] = self.about();
        document["rules"] = json!(rules);
        document
    }

    /// Loads a policy that the process `peer` wants loaded.
    ///
    /// # Errors
    /// [`Failure`]; the policy before is in force then.
    pub fn load(&self, checker: &Checker, guard: &Guard, load: &Load, peer: i32) -> Result<Value, Failure> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.in_force();
        let path = load.path.clone().unwrap_or_else(|| in_force.path.clone());
        let result = self.try_load(checker, guard, load, in_force, &path);
        if !load.dry_run {
            let cause = if result.is_ok() { "completed" } else { "failed" };
            let task: TaskIdentity = OpeningTask::new(peer).identity();
            checker.audit_sink().record(AuditRecord::Status {
                op: "policy_update",
                cause,
                task,
                path: path.into_os_string().into_encoded_bytes(),
                success: result.is_ok(),
            });
        }
        result.map_err(|failure| Failure {
            what: format!("{}; the policy before stays in force", failure.what),
            ..failure
        })
    }

    fn try_load(
        &self,
        checker: &Checker,
        guard: &Guard,
        load: &Load,
        in_force: InForce,
        path: &std::path::Path,
    ) -> Result<Value, Failure> {
        let keys = self.trusted.read(checker)?;
        let source = PolicySource::read(path, &keys.keys, &self.demands)?;
        source.check_version(&self.demands)?;
        let before = checker.policy();
        let appends = match load.placement {
            Placement::Replace => false,
            Placement::Append => true,
            Placement::AsKernel => in_force.loads > 0,
        };
        let mut rules = if appends { before.rules().to_vec() } else { Vec::new() };
        rules.extend_from_slice(&source.policy.rules);
        if rules.is_empty() && !load.force {
            return Err(Failure::failed(format_args!(
                "{}: no rule, so nothing would be measured or appraised",
                path.display()
            ))
            .next("if that is meant: --force; `imara mode off` stops appraising without touching the policy"));
        }
        let policy = CompiledPolicy::new(Policy { rules });
        let running = running::judge(checker, &policy, &keys.keys, guard);
        if !running.refused.is_empty() && checker.mode() == Mode::Enforce && !load.force && !load.dry_run {
            return Err(would_stop(path, &running));
        }
        let (count, was) = (policy.rules().len(), before.rules().len());
        let mut notes: Vec<String> = Vec::new();
        let asked_again = match load.dry_run {
            true => None,
            false => Some(self.put_in_force(checker, guard, &source, policy, &keys, &mut notes)?),
        };
        let mut document = json!({
            "schema": 1,
            "loaded": !load.dry_run,
            "placement": if appends { "append" } else { "replace" },
            "mode": checker.mode().name(),
            "rules": count,
            "before": { "rules": was, "policy": in_force.about },
            "keys": keys.about(),
            "running": running,
            "asked_again": asked_again,
            "notes": notes,
        });
        let about = about(&source, now());
        document["policy"] = about.clone();
        if !load.dry_run {
            let loads = in_force.loads.saturating_add(1);
            *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = InForce { path: source.path, about, loads };
        }
        Ok(document)
    }

    /// The last step, the only one that changes anything; whether the kernel asks again about what it let pass.
    fn put_in_force(
        &self,
        checker: &Checker,
        guard: &Guard,
        source: &PolicySource,
        policy: CompiledPolicy,
        keys: &Read,
        notes: &mut Vec<String>,
    ) -> Result<bool, Failure> {
        // A policy that came with its key is good by it.
        let keys_before = keys.put_in_force(checker);
        let swapped = self.swap(checker, guard, source, policy, keys_before.is_some());
        if let (Err(_), Some(before)) = (&swapped, keys_before) {
            before.restore(checker);
            // What was let pass by the others, if anything was.
            let _ = guard.ask_again_all();
        }
        let asked_again = swapped?;
        if let Err(error) = source.remember_version(&self.demands) {
            notes.push(format!("its version cannot be kept, so an older one will not be refused: {error}"));
        }
        Ok(asked_again)
    }

    fn swap(
        &self,
        checker: &Checker,
        guard: &Guard,
        source: &PolicySource,
        policy: CompiledPolicy,
        other_keys: bool,
    ) -> Result<bool, Failure> {
        let failed = |error: io::Error| {
            Failure::failed(format_args!("the kernel cannot be asked for what this policy needs: {error}"))
                .next("see `imara status`, and the kernel log")
        };
        source.ask(checker)?;
        let replaced = guard.replace_policy(Arc::new(ActivePolicy::new(policy))).map_err(failed)?;
        if !other_keys || replaced.asked_again {
            return Ok(replaced.asked_again);
        }
        guard.ask_again_all().map(|()| true).map_err(|error| {
            // The rules are asked about already; only what they are differs.
            let _ = guard.replace_policy(replaced.before);
            failed(error)
        })
    }
}

fn about(source: &PolicySource, since: u64) -> Value {
    json!({
        "path": source.path,
        "digest": source.digest.to_string(),
        "version": source.version,
        "signed_by": shown_signer(source.signer),
        "since": since,
    })
}

fn would_stop(path: &std::path::Path, running: &Running) -> Failure {
    const SHOWN: usize = 5;
    let named: Vec<String> = running
        .refused
        .iter()
        .take(SHOWN)
        .map(|refused| format!("{} (process {}, rule {}: {})", refused.path, refused.pid, refused.rule, refused.cause))
        .collect();
    let more = running.refused.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    Failure::failed(format_args!(
        "{}: not loaded: it would refuse what is running now: {}{more}",
        path.display(),
        named.join(", ")
    ))
    .next("label these files, or try it first: imara mode log, then load it; to load it all the same: --force")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
