//! A trace to a file, without ever holding up a decision: a bounded queue and a thread that writes.
//!
//! While a trace is taken the kernel asks about every access, and nothing is let pass unasked. It ends when somebody says
//! so, when its time is over, when it is as large as it may be, when it cannot be written, when another policy comes into
//! force (whose rules the header does not have), or with the guard.

use super::runtime;
use crate::output::Failure;
use imara_engine::active_policy::ActivePolicy;
use imara_engine::check::Checker;
use imara_engine::trace::TraceSink;
use imara_format::policy::Rule;
use imara_format::trace::{Event, Header, TraceWriter};
use imara_linux::hooks::fanotify::Guard;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many events may wait to be written.
const QUEUE: usize = 8192;
/// How long the writing thread sleeps before it looks whether the trace is to end.
const TICK: Duration = Duration::from_millis(50);
/// How long a command waits for the last events to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// What kind of trace is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The file, by its whole path.
    pub path: PathBuf,
    /// For how long; `None` until it is stopped.
    pub seconds: Option<u64>,
    /// The most bytes.
    pub most: u64,
    /// Replaces a file that is there.
    pub force: bool,
    /// Only finds out whether it could be begun.
    #[serde(default)]
    pub dry_run: bool,
}

/// The trace that is taken, or the last one.
#[derive(Debug, Default)]
pub struct Tracing {
    last: Mutex<Option<Trace>>,
}

#[derive(Debug)]
struct Trace {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What is known of a trace from outside.
#[derive(Debug)]
struct Shared {
    wanted: Wanted,
    started: u64,
    events: AtomicU64,
    bytes: AtomicU64,
    /// Events dropped because the queue was full: all, and those that the trace does not tell yet.
    lost: AtomicU64,
    untold: AtomicU64,
    /// Why it is to end.
    why: OnceLock<String>,
}

impl Shared {
    fn new(wanted: Wanted, started: u64) -> Self {
        Self {
            wanted,
            started,
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            why: OnceLock::new(),
        }
    }

    fn end(&self, why: impl Into<String>) {
        // The first reason counts.
        let _ = self.why.set(why.into());
    }

    fn to_json(&self, active: bool) -> Value {
        json!({
            "path": self.wanted.path,
            "active": active,
            "started": self.started,
            "until": self.wanted.seconds.map(|seconds| self.started.saturating_add(seconds)),
            "events": self.events.load(Ordering::Relaxed),
            "lost": self.lost.load(Ordering::Relaxed),
            "bytes": self.bytes.load(Ordering::Relaxed),
            "most_bytes": self.wanted.most,
            "ended": if active { None } else { self.why.get() },
        })
    }
}

impl Trace {
    fn is_active(&self) -> bool {
        !self.thread.is_finished()
    }

    fn to_json(&self) -> Value {
        self.shared.to_json(self.is_active())
    }
}

impl Tracing {
    /// Begins a trace, or says what would be.
    ///
    /// # Errors
    /// [`Failure`]: there is one already, or the file cannot be made.
    pub fn start(&self, checker: &Arc<Checker>, guard: &Arc<Guard>, wanted: &Wanted) -> Result<Value, Failure> {
        let mut last = self.lock();
        if let Some(trace) = last.as_ref().filter(|trace| trace.is_active()) {
            let path = trace.shared.wanted.path.display();
            return Err(
                Failure::failed(format_args!("a trace is being taken already, to {path}")).next("imara trace stop")
            );
        }
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format_args!("{}: a trace cannot be begun: {error}", wanted.path.display()))
        };
        let policy = checker.policy();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if wanted.dry_run {
            could_create(wanted)?;
            let mut trace = with_schema(Shared::new(wanted.clone(), started).to_json(false));
            trace["begun"] = json!(false);
            return Ok(trace);
        }
        let file = create(wanted)?;
        let header = header(checker, &policy, started);
        let discarded = |error: &io::Error| {
            // Nothing was written that anybody could want.
            let _ = std::fs::remove_file(&wanted.path);
            failed(error)
        };
        // Written at once, so that a trace for which there is no room is not begun.
        let writer = TraceWriter::new(BufWriter::new(file), &header)
            .and_then(|mut writer| writer.flush().map(|()| writer))
            .map_err(|error| discarded(&error))?;
        let shared = Arc::new(Shared::new(wanted.clone(), started));
        shared.bytes.store(writer.written(), Ordering::Relaxed);
        let (sender, receiver) = sync_channel(QUEUE);
        let until = wanted.seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        // Before the thread, which takes both back when the trace ends.
        checker.set_trace(Some(Arc::new(Sink { sender, policy, shared: Arc::clone(&shared) })));
        let undo = |error: &io::Error| {
            checker.set_trace(None);
            discarded(error)
        };
        guard.ask_always(true).map_err(|error| undo(&error))?;
        let recorder = Recorder {
            writer,
            receiver,
            shared: Arc::clone(&shared),
            until,
            told: Told { checker: Arc::downgrade(checker), guard: Arc::downgrade(guard) },
        };
        let thread =
            std::thread::Builder::new().name("trace".into()).spawn(move || recorder.run()).map_err(|error| {
                // What is asked about needlessly costs time and nothing else.
                let _ = guard.ask_always(false);
                undo(&error)
            })?;
        let trace = last.insert(Trace { shared, thread });
        Ok(with_schema(trace.to_json()))
    }

    /// Ends the trace and waits until it is written.
    ///
    /// # Errors
    /// [`Failure`]: none is being taken.
    pub fn stop(&self, why: &str) -> Result<Value, Failure> {
        let last = self.lock();
        let none = |what: String| Failure::failed(what).next("imara trace start FILE");
        let Some(trace) = last.as_ref() else {
            return Err(none("no trace is being taken".into()));
        };
        if !trace.is_active() {
            let (path, why) = (trace.shared.wanted.path.display(), trace.shared.why.get());
            let why = why.map_or("", String::as_str);
            return Err(none(format!("no trace is being taken; the last one, {path}, has ended: {why}")));
        }
        trace.shared.end(why);
        let begun = Instant::now();
        while trace.is_active() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(with_schema(trace.to_json()))
    }

    /// The trace that is taken, or the last one; null where there was none.
    pub fn status(&self) -> Value {
        self.lock().as_ref().map_or(Value::Null, Trace::to_json)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Trace>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_schema(mut document: Value) -> Value {
    document["schema"] = json!(1);
    document
}

/// Makes the file, readable by its owner alone. What is there is not opened, and no link is followed.
fn create(wanted: &Wanted) -> Result<File, Failure> {
    let path = &wanted.path;
    let failed = |error: io::Error| Failure::failed(format_args!("{}: {error}", path.display()));
    if !path.is_absolute() {
        return Err(Failure::usage(format_args!("{}: the guard needs the whole path", path.display())));
    }
    if wanted.force && std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(wanted),
        _ => failed(error),
    })
}

/// Whether [`create`] would do, as far as that shows from outside.
fn could_create(wanted: &Wanted) -> Result<(), Failure> {
    let path = &wanted.path;
    let failed = |error: io::Error| Failure::failed(format_args!("{}: {error}", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !wanted.force || !metadata.is_file() => return Err(exists(wanted)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(_) | Err(_) => {}
    }
    let folder = path.parent().unwrap_or(path);
    let metadata = std::fs::metadata(folder).map_err(failed)?;
    if metadata.is_dir() { Ok(()) } else { Err(failed(io::ErrorKind::NotADirectory.into())) }
}

fn exists(wanted: &Wanted) -> Failure {
    Failure::failed(format_args!("{} exists already", wanted.path.display())).next(match wanted.force {
        true => "it is no regular file: name another",
        false => "name another file, or have it replaced with --force",
    })
}

fn header(checker: &Checker, policy: &ActivePolicy, started: u64) -> Header {
    let banks = checker.log().with_tpm(|tpm| tpm.banks().len()).unwrap_or(0);
    Header {
        started,
        boot_id: runtime::boot_id(),
        hash: checker.log().hash(),
        pcr: checker.log().pcr(),
        template: checker.template().listed_name().into_owned(),
        mode: checker.mode().name().to_owned(),
        policy: policy_text(policy.rules()),
        banks: u32::try_from(banks).unwrap_or(u32::MAX),
    }
}

/// The rules in force as a policy's text, each in the line that it was read from, as far as that can be.
fn policy_text(rules: &[Rule]) -> String {
    let mut text = String::new();
    let mut line = 1;
    for rule in rules {
        // A line number is that of a file which was read into memory, so there are not too many.
        while line < rule.line {
            text.push('\n');
            line += 1;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{rule}");
        line += 1;
    }
    text
}

/// What the engine is given.
struct Sink {
    sender: SyncSender<Event>,
    /// The policy whose rules the header has.
    policy: Arc<ActivePolicy>,
    shared: Arc<Shared>,
}

impl TraceSink for Sink {
    fn started(&self) -> i128 {
        i128::from(self.shared.started) * 1_000_000_000
    }

    fn record(&self, policy: &ActivePolicy, event: Event) {
        if !std::ptr::eq(policy, &*self.policy) {
            return self.shared.end("another policy came into force");
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(event) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            self.shared.untold.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread that writes.
struct Recorder {
    writer: TraceWriter<BufWriter<File>>,
    receiver: Receiver<Event>,
    shared: Arc<Shared>,
    until: Option<Instant>,
    told: Told,
}

/// Who tells the trace. Dropped, they no longer do, whatever becomes of the thread that writes.
struct Told {
    checker: Weak<Checker>,
    guard: Weak<Guard>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.close();
    }
}

impl Told {
    /// Nothing is told from now on; what has been is still to be written.
    fn close(&self) {
        if let Some(checker) = self.checker.upgrade() {
            checker.set_trace(None);
        }
        if let Some(guard) = self.guard.upgrade() {
            // What is asked about needlessly costs time and nothing else.
            let _ = guard.ask_always(false);
        }
    }
}

impl Recorder {
    fn run(mut self) {
        let mut closed = false;
        loop {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                self.shared.end("its time was over");
            }
            if !closed && self.shared.why.get().is_some() {
                closed = true;
                self.told.close();
            }
            // A killed guard leaves what has been flushed: all, but under load.
            let next = self.receiver.try_recv().or_else(|error| match error {
                TryRecvError::Disconnected => Err(RecvTimeoutError::Disconnected),
                TryRecvError::Empty => {
                    self.note(|writer| writer.flush());
                    self.receiver.recv_timeout(TICK)
                }
            });
            match next {
                Ok(event) => self.write(&event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.tell_lost();
        self.shared.end("the guard ended");
        let why = self.shared.why.get().map_or("", String::as_str);
        // Nobody is left to be told that the very end could not be written; without one the trace reads as cut off.
        let _ = self.writer.finish_because(why);
    }

    fn write(&mut self, event: &Event) {
        if self.shared.bytes.load(Ordering::Relaxed) >= self.shared.wanted.most {
            return self.shared.end("it is as large as it may be");
        }
        self.tell_lost();
        self.note(|writer| writer.event(event));
        self.shared.events.fetch_add(1, Ordering::Relaxed);
        self.shared.bytes.store(self.writer.written(), Ordering::Relaxed);
    }

    fn tell_lost(&mut self) {
        let untold = self.shared.untold.swap(0, Ordering::Relaxed);
        if untold > 0 {
            self.note(|writer| writer.lost(untold));
            self.shared.bytes.store(self.writer.written(), Ordering::Relaxed);
        }
    }

    fn note(&mut self, write: impl FnOnce(&mut TraceWriter<BufWriter<File>>) -> io::Result<()>) {
        if let Err(error) = write(&mut self.writer) {
            self.shared.end(format!("it cannot be written: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_engine::policy::CompiledPolicy;
    use imara_format::hash::HashAlgorithm;
    use imara_format::policy::{Func, Policy, Target};
    use imara_format::trace::{LabelFacts, TraceReader};

    #[test]
    fn the_rules_in_force_stay_in_their_lines() {
        for (name, text, expected) in [
            ("comments", "# one\nmeasure\n\n# four\nappraise uid=0\n", "\nmeasure\n\n\nappraise uid=0\n"),
            ("none", "# nothing\n", ""),
        ] {
            let policy = Policy::parse(text.as_bytes(), &Target::guard()).unwrap();
            let printed = policy_text(&policy.rules);
            assert_eq!(printed, expected, "{name}");
            assert_eq!(Policy::parse(printed.as_bytes(), &Target::guard()).unwrap(), policy, "{name}");
        }
        let mut appended = Policy::parse(b"measure\naudit\n", &Target::guard()).unwrap().rules;
        appended.extend(appended.clone());
        assert_eq!(policy_text(&appended), "measure\naudit\nmeasure\naudit\n");
    }

    #[test]
    fn events_that_find_no_room_are_counted_and_told_in_the_trace() {
        let directory = tempfile::tempdir().unwrap();
        let wanted =
            Wanted { path: directory.path().join("trace"), seconds: None, most: 1 << 20, force: false, dry_run: false };
        let rules = |text: &str| {
            ActivePolicy::new(CompiledPolicy::new(Policy::parse(text.as_bytes(), &Target::guard()).unwrap()))
        };
        let header = Header {
            started: 1,
            boot_id: String::new(),
            hash: HashAlgorithm::Sha256,
            pcr: 10,
            template: "ima-sig".into(),
            mode: "log".into(),
            policy: "measure\n".into(),
            banks: 0,
        };
        let event = Event {
            time: 0,
            func: Func::FileCheck,
            mask: 4,
            path: b"/x".to_vec(),
            device: 0,
            inode: 0,
            size: 0,
            modified: 0,
            changed: 0,
            owner: 0,
            group: 0,
            filesystem: Arc::default(),
            subject: Arc::default(),
            label: LabelFacts::None,
            digest: None,
            writes: false,
            created: false,
            measured: Some(0),
            appraised: None,
            audited: None,
            hashed: None,
            entry: false,
            cause: None,
            denied: false,
        };
        let writer = TraceWriter::new(BufWriter::new(create(&wanted).unwrap()), &header).unwrap();
        let shared = Arc::new(Shared::new(wanted.clone(), 1));
        let (sender, receiver) = sync_channel(2);
        let policy = Arc::new(rules("measure\n"));
        let sink = Sink { sender, policy: Arc::clone(&policy), shared: Arc::clone(&shared) };
        for time in 0..5 {
            sink.record(&policy, Event { time, ..event.clone() });
        }
        sink.record(&rules("audit\n"), event);
        drop(sink);
        let told = Told { checker: Weak::new(), guard: Weak::new() };
        Recorder { writer, receiver, shared: Arc::clone(&shared), until: None, told }.run();
        let shown = shared.to_json(false);
        assert_eq!((&shown["events"], &shown["lost"]), (&json!(2), &json!(3)));
        assert_eq!(shown["ended"], "another policy came into force");
        let (found, mut reader) = TraceReader::new(File::open(&wanted.path).unwrap()).unwrap();
        let times: Vec<u64> = reader.by_ref().map(|event| event.unwrap().time).collect();
        assert_eq!((found, times, reader.lost()), (header, vec![0, 1], 3));
        assert_eq!(reader.ended(), Some("another policy came into force"));
        assert_eq!(
            shown["bytes"].as_u64().unwrap() + 2 + "another policy came into force".len() as u64,
            std::fs::metadata(&wanted.path).unwrap().len()
        );
    }

    #[test]
    fn whatever_becomes_of_the_thread_that_writes_nothing_is_told_any_more() {
        struct Nowhere;
        impl imara_engine::measure::Store for Nowhere {
            fn append(&mut self, _: &[u8]) -> io::Result<()> {
                Ok(())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let events = crate::guard::events::Events::new(|_| {});
        let (audit, _) = crate::guard::audit_log::AuditLog::open(&directory.path().join("audit"), &events).unwrap();
        let log = imara_engine::measure::MeasurementLog::new(Box::new(Nowhere), None, HashAlgorithm::Sha256, 10);
        let checker = Arc::new(Checker::new(
            CompiledPolicy::new(Policy::default()),
            imara_engine::keyring::Keyring::new(),
            Arc::new(log.unwrap()),
            imara_format::template::Template::built_in("ima-ng").unwrap().clone(),
            imara_engine::check::Mode::Log,
            Box::new(audit),
        ));
        let wanted =
            Wanted { path: directory.path().join("trace"), seconds: None, most: 1, force: false, dry_run: false };
        let (sender, _receiver) = sync_channel(1);
        let shared = Arc::new(Shared::new(wanted, 1));
        checker.set_trace(Some(Arc::new(Sink { sender, policy: checker.policy(), shared: Arc::clone(&shared) })));
        let told = Told { checker: Arc::downgrade(&checker), guard: Weak::new() };
        let thread = std::thread::spawn(move || {
            let _told = told;
            panic!("a bug");
        });
        assert!(thread.join().is_err());
        assert_eq!(Arc::strong_count(&shared), 1, "nobody holds the sink");
    }

    #[test]
    fn a_file_that_is_there_is_refused_or_replaced_and_no_link_is_followed() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let wanted = |name: &str, force| Wanted {
            path: directory.path().join(name),
            seconds: None,
            most: 1,
            force,
            dry_run: false,
        };
        let file = create(&wanted("new", false)).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        let failure = create(&wanted("new", false)).unwrap_err();
        assert!(failure.what.ends_with("exists already") && failure.next.contains("--force"), "{failure:?}");
        std::fs::write(directory.path().join("new"), "old").unwrap();
        assert_eq!(create(&wanted("new", true)).unwrap().metadata().unwrap().len(), 0);
        std::fs::write(directory.path().join("kept"), "kept").unwrap();
        symlink("kept", directory.path().join("link")).unwrap();
        for force in [false, true] {
            assert!(create(&wanted("link", force)).is_err());
        }
        assert_eq!(std::fs::read(directory.path().join("kept")).unwrap(), b"kept");
        let relative = Wanted { path: "trace".into(), seconds: None, most: 1, force: false, dry_run: false };
        assert_eq!(create(&relative).unwrap_err().outcome, crate::output::Outcome::Usage);
    }
}
