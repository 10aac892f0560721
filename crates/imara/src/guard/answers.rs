//! What the running guard answers to each command.

use super::control::{Reply, Request};
use super::events::Events;
use super::evm;
use super::explanation::{self, By};
use super::level2::Programs;
use super::live_policy::LivePolicy;
use super::runtime;
use super::sentinel::Beside;
use super::software_tpm::GuardsTpm;
use super::tracing::Tracing;
use crate::command::paths::path_json;
use crate::output::Failure;
use imara_engine::audit::AuditRecord;
use imara_engine::check::{Checker, Mode, Task};
use imara_engine::keyring::Keyring;
use imara_engine::lock;
use imara_format::hash::to_hex;
use imara_format::pcr::PcrValues;
use imara_linux::hooks::fanotify::Guard;
use imara_linux::hooks::latency::{BOUNDS, Latency};
use imara_linux::opened::OpeningTask;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// What commands are answered from.
pub struct Answers {
    /// The guard, until it ends.
    pub guard: Arc<Mutex<Option<Arc<Guard>>>>,
    /// The engine.
    pub checker: Weak<Checker>,
    /// What happened.
    pub events: Arc<Events>,
    /// What does not change while the guard runs.
    pub about: Value,
    /// Why the list's chain has turned out to be broken after all.
    pub broken_since: Arc<OnceLock<String>>,
    /// The policy.
    pub policy: LivePolicy,
    /// The trace, while one is taken.
    pub tracing: Arc<Tracing>,
    /// The process that lets everybody go on should the guard not.
    pub beside: Arc<Beside>,
    /// The software TPM, where that is in use.
    pub software_tpm: Option<Arc<GuardsTpm>>,
    /// The programs in the kernel.
    pub programs: Arc<Programs>,
    /// When it started, in seconds since 1970.
    pub started: u64,
}

impl Answers {
    /// Answers one that `peer` asks.
    ///
    /// # Errors
    /// [`Failure`]: what keeps it from being done.
    pub fn answer(&self, request: Request, peer: i32) -> Result<Reply, Failure> {
        let checker = self.checker.upgrade().ok_or_else(|| Failure::failed("the guard is ending"))?;
        if let Request::Events { recent } = request {
            return self
                .events
                .listen(recent)
                .map(Reply::Stream)
                .ok_or_else(|| Failure::failed("too many listen already").next("end one of the other `imara events`"));
        }
        self.document(&checker, request, peer).map(Reply::Once)
    }

    fn document(&self, checker: &Arc<Checker>, request: Request, peer: i32) -> Result<Value, Failure> {
        match request {
            Request::Status => Ok(self.status(checker)),
            Request::Events { .. } => Err(Failure::failed("events are told one by one")),
            Request::Report { forget } => {
                let mut report = self.events.failures();
                report["schema"] = json!(1);
                report["mode"] = json!(checker.mode().name());
                report["since"] = json!(self.started);
                if forget {
                    self.events.forget_failures();
                }
                Ok(report)
            }
            Request::Mode { mode } => self.switch_mode(checker, &mode, peer),
            Request::WillRollBack => {
                if let Some(level2) = self.programs.level2() {
                    level2.let_roll_back(peer.cast_unsigned()).map_err(Failure::failed)?;
                }
                Ok(json!({ "schema": 1 }))
            }
            Request::Policy => Ok(self.policy.show(&checker.policy())),
            Request::LoadPolicy(load) => self.policy.load(checker, &*self.guard()?, &load, peer),
            Request::Trace(wanted) => self.tracing.start(checker, &self.guard()?, &wanted),
            Request::StopTrace => self.tracing.stop("stopped"),
            Request::Explain { path, uid } => {
                let policy = checker.policy();
                let hash = checker.log().hash();
                let evm = checker.evm().map(|evm| &**evm);
                let (keys, mode) = (checker.keys(), checker.mode());
                let by = By { policy: &policy, keys: &keys, evm, hash, mode, checker: Some(checker) };
                explanation::explain_file(by, &path, uid).map_err(Failure::failed)
            }
            Request::EvmMode { bits, dry_run } => evm::write_mode(checker, &bits, dry_run, || self.ask_again()),
            Request::EvmXattrs { write: Some(write) } => evm::write_xattrs(checker, &write, || self.ask_again()),
            Request::EvmXattrs { write: None } => Ok(evm::xattrs(evm::of(checker)?)),
            Request::EvmChanges { path } => evm::changes(checker, &path),
            Request::Pcrs => {
                let values = checker
                    .log()
                    .with_tpm(|tpm| tpm.pcr_read_many(&(0..24).collect::<Vec<_>>()))
                    .ok_or_else(|| {
                        let list = self.list_path();
                        Failure::lacking("the guard has no TPM to prove the list with").next(format_args!(
                            "`imara measurement verify - < {}` checks the entries without one",
                            list.display()
                        ))
                    })?
                    .map_err(Failure::failed)?;
                let mut pcrs = PcrValues::new();
                for (_, index, value) in values {
                    pcrs.insert(index, value).map_err(Failure::failed)?;
                }
                Ok(json!(pcrs.to_text()))
            }
        }
    }

    fn guard(&self) -> Result<Arc<Guard>, Failure> {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        guard.ok_or_else(|| Failure::failed("the guard is ending"))
    }

    fn ask_again(&self) -> Result<(), Failure> {
        self.guard()?.ask_again_all().map_err(Failure::failed)
    }

    fn list_path(&self) -> PathBuf {
        Path::new(self.about["runtime_dir"].as_str().unwrap_or_default()).join(runtime::LIST)
    }

    fn switch_mode(&self, checker: &Checker, mode: &str, peer: i32) -> Result<Value, Failure> {
        let to = Mode::from_name(mode)
            .ok_or_else(|| Failure::usage(format_args!("mode `{mode}` is not one of enforce, log, fix, off")))?;
        let from = checker.mode();
        checker.set_mode(to);
        // What another mode let through must be asked about again.
        checker.cache().clear();
        if let Ok(guard) = self.guard() {
            guard.ask_again_all().map_err(Failure::failed)?;
        }
        checker.audit_sink().record(AuditRecord::Status {
            op: "appraise_mode",
            cause: to.name(),
            task: OpeningTask::new(peer).identity(),
            path: Vec::new(),
            success: true,
        });
        Ok(json!({ "schema": 1, "from": from.name(), "mode": to.name() }))
    }

    fn status(&self, checker: &Checker) -> Value {
        let counts = checker.log().counts();
        let counters = &checker.counters;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let guard = self.guard().ok();
        let unwatched: Vec<Value> = guard
            .iter()
            .flat_map(|guard| guard.unwatched())
            .map(|unwatched| json!({ "mount_point": unwatched.path, "type": unwatched.kind, "why": unwatched.why }))
            .collect();
        let unmounted: Vec<Value> =
            guard.iter().flat_map(|guard| guard.unmounted()).map(|path| path_json(&path).into()).collect();
        let (watch, events) = guard.map_or((json!([]), json!({})), |guard| {
            let watch: Vec<Value> = guard
                .filesystems()
                .into_iter()
                .map(|(path, filesystem)| {
                    json!({
                        "directory": path,
                        "mount_point": filesystem.mount_point,
                        "type": filesystem.name,
                        "magic": format!("{:#x}", filesystem.magic),
                        "uuid": filesystem.uuid.map(|uuid| imara_format::policy::Uuid(uuid).to_string()),
                    })
                })
                .collect();
            let counters = guard.counters();
            let events = json!({
                "events": load(&counters.events),
                "exempt": load(&counters.exempt),
                "marks": load(&counters.marks),
                "changes": load(&counters.changes),
                "leases": guard.leases(),
                "leases_broken": load(&counters.leases_broken),
                "lost": load(&counters.lost),
                "overdue": load(&counters.overdue),
                "overflows": load(&counters.overflows),
                "waiting": guard.waiting(),
                "followed": load(&counters.followed),
                "late_labels": load(&counters.late_labels),
                "latency": latency_json(&counters.latency),
            });
            (json!(watch), events)
        });
        let banks: Vec<&str> = checker.log().banks().iter().map(|bank| bank.name()).collect();
        let mut tpm = self.about["tpm"].clone();
        tpm["banks"] = json!(banks);
        tpm["pcr"] = self.about["pcr"].clone();
        if let (Some(software), Some(tpm)) = (&self.software_tpm, tpm.as_object_mut()) {
            tpm.extend(software.status());
        }
        tpm["extends"] = json!(counts.extends);
        tpm["seconds"] = json!(counts.extending.as_secs_f64());
        let mut about_policy = self.policy.about();
        about_policy["rules"] = json!(checker.policy().rules().len());
        json!({
            "schema": 1,
            "provider": "guard",
            "level": self.programs.level(),
            "why_not_higher": self.programs.why_not_higher(),
            "level2": self.programs.status(),
            "pid": std::process::id(),
            "started": self.started,
            "mode": checker.mode().name(),
            "policy": about_policy,
            "watch": watch,
            "not_watched": unwatched,
            "not_mounted": unmounted,
            "keys": keys_json(&checker.keys()),
            "evm": checker.evm().map(|evm| evm::status(evm)),
            "keyrings": checker.keys().source_names(),
            "blocked": blocked_json(&checker.keys()),
            "list": {
                "path": self.list_path(),
                "template": checker.template().listed_name(),
                "hash": self.about["hash"],
                "entries": counts.entries,
                "violations": counts.violations,
                "not_in_tpm": counts.unextended,
                "waits": counts.waiting.map(|waiting| waiting.as_secs_f64()),
                "departure": checker.log().departure().map(|why| why.to_string()),
                "chain": self.broken_since.get().map_or_else(|| self.about["chain"].clone(), |why| json!(format!("broken: {why}"))),
            },
            "tpm": tpm,
            "sentinel": self.beside.status(),
            "trace": self.tracing.status(),
            "gap": self.about["gap"],
            "notes": self.about["notes"],
            "counts": {
                "accesses": load(&counters.accesses),
                "known": load(&counters.known),
                "hashed": load(&counters.collected),
                "failed": load(&counters.failed),
                "refused": load(&counters.denied),
                "errors": load(&counters.measure_errors),
                "known_files": checker.cache().len(),
                "audit_dropped": load(&self.events.dropped),
                "audit_unwritten": load(&self.events.unwritten),
            },
            "kernel": events,
            "waits": waits_json(),
            "causes": self.events.causes(),
            "recent": self.events.recent(),
        })
    }
}

fn keys_json(keys: &Keyring) -> Vec<Value> {
    keys.keys()
        .iter()
        .map(|key| {
            json!({
                "id": to_hex(&key.key_id()),
                "kind": key.kind().to_string(),
                "subject": key.subject(),
            })
        })
        .collect()
}

/// How much is never taken: `null` where nothing is.
fn blocked_json(keys: &Keyring) -> Value {
    match keys.blocked().counts() {
        [0, 0, 0] => Value::Null,
        [contents, certificates, ids] => {
            let revoked: Vec<String> = keys.revoked().iter().map(|key| to_hex(&key.key_id())).collect();
            json!({ "files": contents, "certificates": certificates, "key_ids": ids, "revoked": revoked })
        }
    }
}

/// How often one thread had to wait for another, by what is behind the lock.
fn waits_json() -> Value {
    lock::ALL
        .iter()
        .map(|waits| (waits.name.to_owned(), json!(waits.count())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A histogram: how many answers took as long as each bound at most, in microseconds, and how many longer than the last.
fn latency_json(latency: &Latency) -> Value {
    json!({ "bounds_us": BOUNDS, "counts": latency.counts(), "seconds": latency.sum().as_secs_f64() })
}
