//! What happened, for whoever asks: the last failures, how many there were of each kind, what did not pass and could be
//! labelled, who listens now, and a word on standard error.
//!
//! Nothing here waits: a listener that does not take events loses some and is told how many; the word on standard error is
//! given once an hour for each file and cause, and not more often than `PACE` on the whole. Everything is bounded: who is
//! refused again and again must not fill the guard's memory.

use super::explanation::remedy;
use crate::command::paths::{path_json, printable_bytes as printable};
use imara_engine::appraise::Cause;
use imara_engine::audit::{AuditRecord, TaskIdentity};
use imara_engine::cache::InodeId;
use imara_engine::lock::{EVENTS, Lock};
use imara_format::policy::Func;
use imara_linux::process::has_other_mounts;
use imara_linux::sys::lease;
use imara_linux::sys::process::block_termination;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// How many failed accesses `imara status` can show.
const RECENT: usize = 32;
/// How many different failures are kept for `imara report`.
const FAILURES: usize = 1 << 14;
/// How many may listen at the same time, and how many events may wait for each.
const LISTENERS: usize = 8;
const WAITING: usize = 1024;
/// How many failures are explained at once, and then one each.
const BURST: u32 = 10;
/// How long after one explanation there may be another.
const PACE: Duration = Duration::from_secs(6);
/// How long a failure that was explained is not explained again.
const EXPLAINED: Duration = Duration::from_secs(3600);

/// What happened since the start.
#[derive(Debug)]
pub struct Events {
    state: Lock<State>,
    /// Records that the audit log has not taken, because its queue was full.
    pub dropped: AtomicU64,
    /// Records that could not be written.
    pub unwritten: AtomicU64,
    words: SyncSender<String>,
    /// Words that were not said yet.
    unsaid: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct State {
    recent: VecDeque<(u64, AuditRecord)>,
    causes: BTreeMap<(&'static str, &'static str, bool), u64>,
    failures: HashMap<(Vec<u8>, Func, Cause), Failed>,
    /// Failures for which there was no room.
    left_out: u64,
    listeners: Vec<Listener>,
    explained: HashMap<(Vec<u8>, Cause), Instant>,
    explaining: Explaining,
}

/// Failures of one file by one hook and cause.
#[derive(Debug, Default)]
struct Failed {
    count: u64,
    refused: u64,
    first: u64,
    last: u64,
    detail: String,
    command: Vec<u8>,
    uid: u32,
    rule: Option<usize>,
    inode: Option<InodeId>,
}

#[derive(Debug)]
struct Listener {
    events: SyncSender<Value>,
    lost: u64,
}

/// Who may be told more on standard error.
#[derive(Debug)]
struct Explaining {
    left: u32,
    since: Instant,
    /// Failures that were not explained meanwhile.
    silent: u64,
}

impl Default for Explaining {
    fn default() -> Self {
        Self { left: BURST, since: Instant::now(), silent: 0 }
    }
}

impl Explaining {
    /// Whether there may be a word now.
    fn may(&mut self, now: Instant) -> bool {
        let more = now.duration_since(self.since).as_nanos() / PACE.as_nanos();
        if more > 0 {
            self.left = BURST.min(self.left.saturating_add(more.try_into().unwrap_or(BURST)));
            self.since = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl Events {
    /// Nothing has happened yet. `say` is given what standard error is to be told, in a thread of its own, which may wait.
    pub fn new(mut say: impl FnMut(&str) + Send + 'static) -> Arc<Self> {
        let (words, said) = sync_channel::<String>(64);
        let unsaid = Arc::<AtomicUsize>::default();
        let left = Arc::clone(&unsaid);
        // Where no thread can be started nothing is said; everything else works.
        let _ = std::thread::Builder::new().name("explain".into()).spawn(move || {
            // It begins before the guard's other threads, which have learnt it from the one that starts them.
            block_termination();
            lease::block_signals();
            for word in said {
                say(&word);
                left.fetch_sub(1, Ordering::SeqCst);
            }
        });
        let (dropped, unwritten) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { state: Lock::new(State::default(), &EVENTS), dropped, unwritten, words, unsaid })
    }

    /// The same, said on standard error.
    pub fn on_standard_error() -> Arc<Self> {
        Self::new(|word| {
            // Nothing is left to tell anybody when standard error is gone.
            let _ = writeln!(std::io::stderr(), "imara: {word}");
        })
    }

    /// Says something on standard error, which may wait for the guard: so nobody waits for it.
    pub fn say(&self, word: impl Into<String>) {
        self.unsaid.fetch_add(1, Ordering::SeqCst);
        if self.words.try_send(word.into()).is_err() {
            // Who is to hear it does not listen.
            self.unsaid.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits until everything was said, but no longer than `most`.
    pub fn fall_silent(&self, most: Duration) {
        let begun = Instant::now();
        while self.unsaid.load(Ordering::SeqCst) > 0 && begun.elapsed() < most {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Takes note of a record.
    pub fn note(&self, when: u64, record: &AuditRecord) {
        let mut state = self.lock();
        if let AuditRecord::Data { .. } | AuditRecord::Metadata { .. } = record {
            state.note_failure(when, record);
            if let Some(word) = state.explain(record, Instant::now()) {
                self.say(word);
            }
        }
        state.publish(when, record);
    }

    /// The last accesses that failed their appraisal, the newest first.
    pub fn recent(&self) -> Vec<Value> {
        self.lock().recent.iter().rev().map(|(when, record)| to_json(*when, record)).collect()
    }

    /// How many accesses did not pass, by hook, cause and whether they were refused.
    pub fn causes(&self) -> Vec<Value> {
        let state = self.lock();
        let one = |((func, cause, refused), count): (&(&str, &str, bool), &u64)| json!({ "func": func, "cause": cause, "refused": refused, "count": count });
        state.causes.iter().map(one).collect()
    }

    /// Everything that did not pass, by file, hook and cause.
    pub fn failures(&self) -> Value {
        let state = self.lock();
        let mut failures: Vec<Value> = state
            .failures
            .iter()
            .map(|((path, func, cause), failed)| {
                let mut failure = json!({
                    "func": func.name(),
                    "cause": cause.words(),
                    "count": failed.count,
                    "refused": failed.refused,
                    "first": failed.first / 1000,
                    "last": failed.last / 1000,
                    "detail": failed.detail,
                    "command": String::from_utf8_lossy(&failed.command),
                    "uid": failed.uid,
                    "rule": failed.rule.map(|rule| rule + 1),
                    "device": failed.inode.map(|inode| inode.device),
                    "inode": failed.inode.map(|inode| inode.inode),
                });
                put_path(&mut failure, path);
                failure
            })
            .collect();
        failures.sort_by(|one, other| {
            let key = |failure: &Value| (failure["path"].to_string(), failure["func"].to_string());
            key(one).cmp(&key(other))
        });
        json!({ "failures": failures, "left_out": state.left_out })
    }

    /// Forgets what `imara report` would tell.
    pub fn forget_failures(&self) {
        let mut state = self.lock();
        state.failures.clear();
        state.left_out = 0;
        state.explained.clear();
    }

    /// Tells every event from now on, after the last failures; `None` where too many listen already.
    pub fn listen(&self, recent: usize) -> Option<Receiver<Value>> {
        let mut state = self.lock();
        // Whoever has gone makes room at the next event only, which need not come.
        state
            .listeners
            .retain(|listener| !matches!(listener.events.try_send(Value::Null), Err(TrySendError::Disconnected(_))));
        if state.listeners.len() >= LISTENERS {
            return None;
        }
        let (events, receiver) = sync_channel(WAITING);
        let skipped = state.recent.len().saturating_sub(recent);
        for (when, record) in state.recent.iter().skip(skipped) {
            // There is room for all.
            let _ = events.try_send(to_json(*when, record));
        }
        state.listeners.push(Listener { events, lost: 0 });
        Some(receiver)
    }
}

/// The task that asked, as far as it is still known.
fn whom(task: &TaskIdentity) -> String {
    if task.pid == 0 {
        return "a task that has ended".into();
    }
    let elsewhere = if has_other_mounts(task.tid) { "; the path is that of its mount namespace" } else { "" };
    format!("{} (process {}, user {}{elsewhere})", printable(&task.command), task.pid, task.uids[0])
}

/// Whether nothing was to be refused, as there is a rule that measures and none that appraises.
fn only_measured(rule: Option<usize>, cause: Cause) -> bool {
    rule.is_none() && cause.is_nothing_to_measure()
}

impl State {
    fn note_failure(&mut self, when: u64, record: &AuditRecord) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((when, record.clone()));
        let AuditRecord::Data { func, cause, detail, task, path, inode, rule, denied, .. } = record else {
            return;
        };
        *self.causes.entry((func.name(), cause.words(), *denied)).or_default() += 1;
        if only_measured(*rule, *cause) {
            return;
        }
        let key = (path.clone(), *func, *cause);
        if self.failures.len() >= FAILURES && !self.failures.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        let failed = self.failures.entry(key).or_insert_with(|| Failed { first: when, ..Failed::default() });
        failed.count += 1;
        failed.refused += u64::from(*denied);
        failed.last = when;
        failed.detail.clone_from(detail);
        failed.command.clone_from(&task.command);
        failed.uid = task.uids[0];
        failed.rule = *rule;
        // Of a file that was not asked for its number there is none.
        failed.inode = (inode.inode != 0).then_some(*inode);
    }

    /// A word about a failure, if it is the first of its kind and there were not too many.
    fn explain(&mut self, record: &AuditRecord, now: Instant) -> Option<String> {
        let AuditRecord::Data { func, cause, detail, task, path, rule, denied, fixed, .. } = record else {
            return None;
        };
        if self.explained.len() >= FAILURES {
            self.explained.retain(|_, when| now.duration_since(*when) < EXPLAINED);
        }
        let key = (path.clone(), *cause);
        let recently = self.explained.get(&key).is_some_and(|when| now.duration_since(*when) < EXPLAINED);
        if recently || self.explained.len() >= FAILURES {
            return None;
        }
        if !self.explaining.may(now) {
            self.explaining.silent += 1;
            return None;
        }
        self.explained.insert(key, now);
        let shown = printable(path);
        let mut word = format!(
            "{} {shown} ({}, {cause}) for {}",
            match (denied, fixed, func) {
                (true, ..) => "refused",
                (false, true, _) => "fixed",
                // It is done, and what is done then is refused.
                (false, false, Func::SetxattrCheck) => "labelled, which the policy does not allow:",
                (false, false, _) if only_measured(*rule, *cause) => "not measured:",
                (false, false, _) => "would be refused:",
            },
            func.name(),
            whom(task),
        );
        if !detail.is_empty() {
            word.push_str(&format!(": {}", printable(detail.as_bytes())));
        }
        if !fixed && !only_measured(*rule, *cause) {
            word.push_str(&format!("; to let it pass: {}", remedy(*cause, Path::new(OsStr::from_bytes(path)), None)));
        }
        let silent = std::mem::take(&mut self.explaining.silent);
        if silent > 0 {
            word.push_str(&format!(" ({silent} more that did not pass meanwhile: imara report)"));
        }
        Some(word)
    }

    fn publish(&mut self, when: u64, record: &AuditRecord) {
        if self.listeners.is_empty() {
            return;
        }
        let event = to_json(when, record);
        self.listeners.retain_mut(|listener| {
            if listener.lost > 0 && listener.events.try_send(json!({ "kind": "lost", "count": listener.lost })).is_ok()
            {
                listener.lost = 0;
            }
            match listener.events.try_send(event.clone()) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    listener.lost += 1;
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }
}

fn put_path(value: &mut Value, path: &[u8]) {
    if let Value::Object(object) = value {
        object.append(&mut path_json(Path::new(OsStr::from_bytes(path))));
    }
}

/// A record for whoever listens: a document with the kind of what happened, and when, in seconds since 1970.
pub fn to_json(when: u64, record: &AuditRecord) -> Value {
    let (mut event, task, path) = match record {
        AuditRecord::Data { func, cause, detail, task, path, inode, rule, denied, fixed } => (
            json!({
                "kind": "appraisal",
                "func": func.name(),
                "cause": cause.words(),
                "detail": detail,
                "refused": denied,
                "fixed": fixed,
                "rule": rule.map(|rule| rule + 1),
                "inode": inode.inode,
            }),
            task,
            path,
        ),
        AuditRecord::Metadata { status, what, task, path, inode, .. } => (
            json!({
                "kind": "metadata",
                "func": "appraise_metadata",
                "cause": status.words(),
                "detail": what,
                "refused": false,
                "rule": null,
                "inode": inode.inode,
            }),
            task,
            path,
        ),
        AuditRecord::Rule { digest, task, path } => {
            (json!({ "kind": "audit", "digest": digest.to_string() }), task, path)
        }
        AuditRecord::Violation { cause, task, path, inode } => {
            (json!({ "kind": "violation", "cause": cause, "inode": inode.inode }), task, path)
        }
        AuditRecord::Status { op, cause, task, path, success } => {
            (json!({ "kind": "status", "op": op, "cause": cause, "done": success }), task, path)
        }
    };
    event["time"] = json!(when / 1000);
    event["milliseconds"] = json!(when % 1000);
    put_path(&mut event, path);
    put_task(&mut event, task);
    event
}

fn put_task(event: &mut Value, task: &TaskIdentity) {
    event["pid"] = json!(task.pid);
    event["uid"] = json!(task.uids[0]);
    event["command"] = json!(String::from_utf8_lossy(&task.command));
    event["executable"] = json!(String::from_utf8_lossy(&task.executable));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(path: &[u8], cause: Cause, denied: bool) -> AuditRecord {
        AuditRecord::Data {
            func: Func::BprmCheck,
            cause,
            detail: "something\nelse".into(),
            task: TaskIdentity { pid: 7, command: b"sh".to_vec(), ..TaskIdentity::default() },
            path: path.to_vec(),
            inode: InodeId { device: 1, inode: 2 },
            rule: Some(2),
            denied,
            fixed: false,
        }
    }

    #[test]
    fn failures_are_counted_by_cause_and_grouped_by_file() {
        let events = Events::new(|_| {});
        for (when, path, cause, denied) in [
            (1000, "/a", Cause::MissingHash, false),
            (2000, "/a", Cause::MissingHash, true),
            (3000, "/a", Cause::InvalidHash, true),
            (4000, "/b", Cause::MissingHash, true),
        ] {
            events.note(when, &failure(path.as_bytes(), cause, denied));
        }
        let causes = events.causes();
        assert_eq!(causes.len(), 3, "{causes:?}");
        assert!(causes.iter().any(|one| one["cause"] == "missing-hash" && one["refused"] == true && one["count"] == 2));
        let report = events.failures();
        let failures = report["failures"].as_array().unwrap();
        assert_eq!(failures.len(), 3);
        let one = failures.iter().find(|one| one["path"] == "/a" && one["cause"] == "missing-hash").unwrap();
        assert_eq!((one["count"].as_u64(), one["refused"].as_u64()), (Some(2), Some(1)), "{one}");
        assert_eq!((one["first"].as_u64(), one["last"].as_u64(), one["rule"].as_u64()), (Some(1), Some(2), Some(3)));
        assert_eq!(events.recent()[0]["path"], "/b");
        events.forget_failures();
        assert!(events.failures()["failures"].as_array().unwrap().is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_left_out_is_counted() {
        let events = Events::new(|_| {});
        for number in 0..FAILURES + 100 {
            events.note(1, &failure(format!("/{number}").as_bytes(), Cause::MissingHash, true));
        }
        let report = events.failures();
        assert_eq!(report["failures"].as_array().unwrap().len(), FAILURES);
        assert_eq!(report["left_out"], 100);
        assert_eq!(events.recent().len(), RECENT);
    }

    #[test]
    fn a_failure_is_explained_once_in_one_line_and_many_are_counted() {
        let (sender, said) = std::sync::mpsc::channel();
        let events = Events::new(move |word| sender.send(word.to_owned()).unwrap());
        let heard = || said.recv_timeout(Duration::from_secs(10)).unwrap();
        for _ in 0..3 {
            events.note(1, &failure(b"/a\x1b", Cause::MissingHash, true));
        }
        let word = heard();
        assert!(word.starts_with("refused /a") && word.contains("imara sign"), "{word}");
        assert!(!word.contains(['\n', '\x1b']), "{word}");
        events.note(1, &failure(b"/a\x1b", Cause::InvalidHash, false));
        assert!(heard().starts_with("would be refused: /a"));
        for number in 0..100 {
            events.note(1, &failure(format!("/{number}").as_bytes(), Cause::MissingHash, true));
        }
        for _ in 2..BURST {
            heard();
        }
        assert!(said.recv_timeout(Duration::from_millis(50)).is_err(), "no more than at once");
        let mut state = events.lock();
        assert_eq!(state.explaining.silent, 100 - u64::from(BURST) + 2);
        let later = Instant::now() + PACE;
        let word = state.explain(&failure(b"/later", Cause::MissingHash, true), later).unwrap();
        assert!(word.ends_with("(92 more that did not pass meanwhile: imara report)"), "{word}");
        assert_eq!(state.explain(&failure(b"/later", Cause::MissingHash, true), later + PACE), None, "once");
        assert!(state.explain(&failure(b"/later", Cause::MissingHash, true), later + EXPLAINED).is_some());
    }

    #[test]
    fn listeners_hear_what_was_and_what_comes_and_how_much_they_missed() {
        let events = Events::new(|_| {});
        events.note(1, &failure(b"/before", Cause::MissingHash, true));
        let listener = events.listen(5).unwrap();
        assert_eq!(listener.recv().unwrap()["path"], "/before");
        for number in 0..WAITING + 10 {
            events.note(1, &failure(format!("/{number}").as_bytes(), Cause::MissingHash, true));
        }
        for number in 0..WAITING {
            assert_eq!(listener.recv().unwrap()["path"], format!("/{number}"));
        }
        events.note(1, &failure(b"\xff", Cause::MissingHash, true));
        let lost = listener.recv().unwrap();
        assert_eq!((lost["kind"].as_str(), lost["count"].as_u64()), (Some("lost"), Some(10)));
        assert_eq!(listener.recv().unwrap()["path_hex"], "ff");
        let others: Vec<_> = (1..LISTENERS).map(|_| events.listen(0).unwrap()).collect();
        assert!(events.listen(0).is_none(), "too many");
        drop(others);
        assert!(events.listen(0).is_some(), "there is room again");
    }
}
