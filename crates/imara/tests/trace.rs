//! Traces of a guard at work: real fanotify and an ext4 of its own, as root.
//!
//! A guard under test watches the scratch mount and nothing else, and is killed with the thread that started it. What a
//! machine lacks, a test says with `skipped: …`, and passes.

use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use imara_format::policy::Func;
use imara_format::trace::{Event, Header, LabelFacts, TraceReader};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// No single step may take longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A guard that is older is killed, so that nothing can hang for good.
const LIFETIME: Duration = Duration::from_secs(90);
/// A file that changed longer ago than this can be remembered by its times.
const SETTLED: Duration = Duration::from_millis(60);
const USER: u32 = 1000;
const IMARA: &str = env!("CARGO_BIN_EXE_imara");

/// The rules are in lines 2 and 4.
const SIGNED_PROGRAMS: &str =
    "# signed programs\nmeasure func=BPRM_CHECK\n\nappraise func=BPRM_CHECK appraise_type=imasig\n";

/// A file system of its own, a key, and a guard that dies with it.
struct Scratch {
    directory: tempfile::TempDir,
    guard: Option<Child>,
    /// Dropped with it, so that nobody kills another's process.
    life: Option<Sender<()>>,
}

/// The scratch file system with a guard in force, or `return` with the reason why there is none.
macro_rules! scratch {
    ($name:literal) => {
        match Scratch::new() {
            Ok(scratch) => scratch,
            Err(reason) => {
                println!("skipped: {}: {reason}", $name);
                return;
            }
        }
    };
}

fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    command.env("PATH", paths).env_remove("IMARA_KEY_PASSPHRASE").stdin(Stdio::null());
    command
}

fn must(command: &mut Command) -> Output {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {done:?}");
    done
}

/// Runs a program by `sh`, as a user; whether it was let run.
fn runs(path: &Path, user: u32) -> bool {
    let mut shell = command("timeout");
    let done =
        shell.args(["30", "sh", "-c"]).arg(format!("{} && true", path.display())).uid(user).gid(user).output().unwrap();
    match done.status.code() {
        Some(0) => true,
        // What a shell says of a program that it may not run.
        Some(126) => false,
        _ => panic!("{}: {done:?}", path.display()),
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Scratch {
    fn new() -> Result<Self, String> {
        if fs::metadata("/proc/self").map_or(1, |process| process.uid()) != 0 {
            return Err("needs root".into());
        }
        let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        for program in ["mkfs.ext4", "mount", "umount", "setpriv", "timeout", "sh"] {
            if !std::env::split_paths(&paths).any(|folder| folder.join(program).exists()) {
                return Err(format!("needs {program}"));
            }
        }
        let directory = tempfile::Builder::new().prefix("imara-trace-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut scratch = Self { directory, guard: None, life: None };
        let image = scratch.path("image");
        fs::create_dir(scratch.path("mnt")).unwrap();
        File::create(&image).and_then(|file| file.set_len(64 << 20)).unwrap();
        must(command("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let mounted = command("mount").args(["-o", "loop"]).arg(&image).arg(scratch.path("mnt")).output().unwrap();
        if !mounted.status.success() {
            return Err(format!("a loop mount: {}", String::from_utf8_lossy(&mounted.stderr).trim()));
        }
        must(command(IMARA).args(["key", "generate", "--quiet", "--type", "p256", "--out"]).arg(scratch.path("keys")));
        fs::write(scratch.path("policy"), SIGNED_PROGRAMS).unwrap();
        scratch.start_guard()?;
        Ok(scratch)
    }

    fn start_guard(&mut self) -> Result<(), String> {
        let stderr = File::create(self.path("guard.log")).unwrap();
        let mut guard = command("setpriv");
        guard.args(["--pdeathsig", "KILL", IMARA, "guard", "--tpm", "none", "--watch"]).arg(self.path("mnt"));
        guard.arg("--policy").arg(self.path("policy")).arg("--key").arg(self.path("keys/x509_ima.der"));
        guard.args(["--mode", "enforce", "--runtime-dir"]).arg(self.path("run"));
        let mut child = guard.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        let (life, over) = channel::<()>();
        let pid = child.id().to_string();
        thread::spawn(move || {
            if over.recv_timeout(LIFETIME) == Err(RecvTimeoutError::Timeout) {
                eprintln!("guard {pid} has outlived its test and is killed");
                must(command("kill").args(["-KILL", &pid]));
            }
        });
        // It says so, or ends.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let status = child.wait().unwrap();
            let said = fs::read_to_string(self.path("guard.log")).unwrap();
            assert_eq!(status.code(), Some(3), "{said}");
            return Err(format!("needs permission events: {}", said.trim()));
        }
        (self.guard, self.life) = (Some(child), Some(life));
        Ok(())
    }

    /// A name outside of what is watched.
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A signed program that succeeds, on the scratch file system.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.path("mnt").join(name);
        must(command("cp").arg("/bin/true").arg(&path));
        must(command(IMARA).args(["sign", "--quiet", "-k"]).arg(self.path("keys/privkey_ima.pem")).arg(&path));
        path
    }

    fn imara(&self, arguments: &[&str]) -> Output {
        let mut imara = command("timeout");
        imara.arg("30").arg(IMARA).args(arguments).arg("--runtime-dir").arg(self.path("run"));
        imara.output().unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.imara(&["status", "--json"]).stdout).unwrap()
    }

    /// Begins a trace; what was said where that is refused.
    fn begin(&self, name: &str, more: &[&str]) -> Result<Value, String> {
        let path = self.path(name);
        let done = self.imara(&[&["trace", "start", path.to_str().unwrap(), "--json"], more].concat());
        match done.status.code() {
            Some(0) => Ok(serde_json::from_slice(&done.stdout).unwrap()),
            Some(1) => Err(String::from_utf8(done.stderr).unwrap()),
            _ => panic!("{done:?}"),
        }
    }

    /// Everything in a trace that ended in order.
    fn read(&self, name: &str) -> (Header, Vec<Event>, String) {
        let (header, mut reader) = TraceReader::new(File::open(self.path(name)).unwrap()).unwrap();
        let events = reader.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(reader.lost(), 0);
        let ended = reader.ended().unwrap_or("without an end").to_owned();
        (header, events, ended)
    }

    fn kernel_events(&self) -> u64 {
        self.status()["kernel"]["events"].as_u64().unwrap()
    }

    /// That a program which nobody has changed is let pass unasked once it was judged.
    fn is_let_pass(&self, program: &Path) {
        assert!(runs(program, 0));
        let before = self.kernel_events();
        assert!(runs(program, 0));
        assert_eq!(self.kernel_events(), before);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the guard said: {}", fs::read_to_string(self.path("guard.log")).unwrap_or_default());
        }
        if let Some(mut guard) = self.guard.take() {
            // It may have ended already.
            let _ = guard.kill();
            let _ = guard.wait();
        }
        for attempt in 0..100 {
            let how: &[&str] = if attempt < 99 { &[] } else { &["-l"] };
            let done = command("umount").args(how).arg(self.path("mnt")).output();
            if done.is_ok_and(|done| done.status.success()) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn of<'a>(events: &'a [Event], path: &Path, func: Func) -> Vec<&'a Event> {
    let path = path.to_str().unwrap().as_bytes();
    events.iter().filter(|event| event.path == path && event.func == func).collect()
}

#[test]
fn every_access_is_in_the_trace_with_what_was_decided_and_for_whom() {
    let scratch = scratch!("every_access_is_in_the_trace_with_what_was_decided_and_for_whom");
    let (good, bad) = (scratch.program("good"), scratch.program("bad"));
    let data = scratch.path("mnt/data");
    fs::write(&data, "no rule is for it\n").unwrap();
    let offset = fs::metadata(&bad).unwrap().len() - 100;
    let tamper = format!("printf '\\220' | dd of='{}' bs=1 seek={offset} conv=notrunc status=none", bad.display());
    must(command("sh").args(["-ec", &tamper]));
    thread::sleep(SETTLED);
    scratch.is_let_pass(&good);

    let begun = scratch.begin("trace", &[]).unwrap();
    assert_eq!((&begun["active"], &begun["until"], &begun["schema"]), (&true.into(), &Value::Null, &1.into()));
    for user in [0, 0, USER] {
        assert!(runs(&good, user));
    }
    assert!(!runs(&bad, 0));
    fs::read(&data).unwrap();
    assert!(scratch.begin("other", &[]).unwrap_err().contains("a trace is being taken already"));
    assert!(!scratch.path("other").exists());
    let shown = String::from_utf8(scratch.imara(&["status"]).stdout).unwrap();
    assert!(shown.contains("tracing to") && shown.contains("until it is stopped"), "{shown}");
    let stopped = scratch.imara(&["trace", "stop"]);
    assert!(stopped.status.success(), "{stopped:?}");
    scratch.is_let_pass(&good);
    assert_eq!(scratch.status()["trace"]["ended"], "stopped");

    let (header, events, ended) = scratch.read("trace");
    assert_eq!(ended, "stopped");
    assert_eq!(
        (header.mode.as_str(), header.hash, header.pcr, header.banks),
        ("enforce", HashAlgorithm::Sha256, 10, 0)
    );
    assert_eq!(header.policy, "\nmeasure func=BPRM_CHECK\n\nappraise func=BPRM_CHECK appraise_type=imasig\n");
    assert_eq!(fs::metadata(scratch.path("trace")).unwrap().mode() & 0o777, 0o600);

    let good_runs = of(&events, &good, Func::BprmCheck);
    let users: Vec<u32> = good_runs.iter().map(|event| event.subject.uid).collect();
    assert_eq!(users, [0, 0, USER], "each of them, also those that nothing was left to do for");
    let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(&good).unwrap()]).unwrap();
    let stat = fs::metadata(&good).unwrap();
    for event in good_runs {
        let root = event.subject.uid == 0;
        assert_eq!((event.measured, event.appraised, &event.cause, event.denied), (Some(0), Some(1), &None, false));
        assert_eq!((event.mask, event.digest), (1, Some(digest)));
        assert_eq!((&event.label, event.entry), (&LabelFacts::NotRead, false), "known before");
        assert_eq!((event.subject.command.as_slice(), event.subject.can_setuid), (&b"sh"[..], root));
        assert_eq!((event.subject.euids, event.subject.egids), ([event.subject.uid; 3], [event.subject.gid; 3]));
        assert_eq!((event.inode, event.size, event.filesystem.name.as_str()), (stat.ino(), stat.size(), "ext4"));
        let changed = i128::from(stat.ctime()) * 1_000_000_000 + i128::from(stat.ctime_nsec());
        assert_eq!(event.changed, changed);
    }
    let [refused] = of(&events, &bad, Func::BprmCheck)[..] else { panic!("{events:?}") };
    assert_eq!((refused.measured, refused.appraised, refused.denied), (Some(0), Some(1), true));
    assert_eq!((refused.cause.as_deref(), refused.entry), (Some("invalid-signature"), true));
    assert!(matches!(refused.label, LabelFacts::Some(_)) && refused.digest.is_some());
    let [read] = of(&events, &data, Func::FileCheck)[..] else { panic!("{events:?}") };
    assert_eq!((read.mask, read.measured, read.appraised, read.denied), (4, None, None, false), "no rule is for it");

    let shown = command(IMARA).args(["trace", "show"]).arg(scratch.path("trace")).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = shown.lines().find(|line| line.contains("refused  BPRM_CHECK")).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains("measure:2 appraise:4") && line.ends_with("/mnt/bad (invalid-signature)"), "{line}");
    let mut show = command(IMARA);
    let shown = must(show.args(["trace", "show", "--json", "--limit", "1"]).arg(scratch.path("trace")));
    let lines: Vec<Value> =
        shown.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let [header, event, summary] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&header["type"], &event["type"], &header["schema"]), (&"header".into(), &"event".into(), &1.into()));
    assert_eq!((&summary["events"], &summary["refused"]), (&events.len().into(), &1.into()));
}

#[test]
fn a_policy_tried_on_a_trace_decides_as_the_guard_did() {
    let scratch = scratch!("a_policy_tried_on_a_trace_decides_as_the_guard_did");
    let (before, good, unsigned) = (scratch.program("before"), scratch.program("good"), scratch.path("mnt/unsigned"));
    must(command("cp").arg("/bin/true").arg(&unsigned));
    thread::sleep(SETTLED);
    scratch.is_let_pass(&before);
    scratch.begin("trace", &[]).unwrap();
    for user in [0, USER, 0] {
        assert!(runs(&before, user) && runs(&good, user) && !runs(&unsigned, user));
    }
    // Written to while the trace is taken: another state, another entry.
    fs::write(&unsigned, "#!/bin/sh\n").unwrap();
    assert!(!runs(&unsigned, 0));
    assert!(scratch.imara(&["trace", "stop"]).status.success());
    let (_, events, _) = scratch.read("trace");

    let test = |policy: &[&str]| {
        let mut test = command(IMARA);
        test.args(["policy", "test", "--json"]).args(policy).arg("--trace").arg(scratch.path("trace"));
        let done = test.arg("--key").arg(scratch.path("keys/x509_ima.der")).output().unwrap();
        let document: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
        (document, done.status.code())
    };
    let (document, status) = test(&[]);
    assert_eq!((&document["agrees"], status), (&true.into(), Some(0)), "{document:#}");
    assert_eq!(document["trace"]["events"], events.len());
    // The guard had listed one of them before the trace began.
    let entries = events.iter().filter(|event| event.entry).count();
    assert_eq!((document["entries"].as_u64(), entries), (Some(4), 3));
    assert_eq!(document["refused"]["events"], 4);

    fs::write(scratch.path("another"), "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK uid=0\n").unwrap();
    let (document, status) = test(&[scratch.path("another").to_str().unwrap()]);
    assert_eq!(status, Some(1));
    let changes = document["changes"].as_array().unwrap().iter();
    let told: Vec<_> = changes.map(|change| (change["change"].as_str().unwrap(), change["events"].clone())).collect();
    // Without `imasig` what has no label lacks a hash; and only root is asked about any more.
    let expected = [("no-longer-refused", 1), ("other-cause", 3), ("no-longer-appraised", 3)];
    let expected = expected.map(|(change, events)| (change, Value::from(events)));
    assert_eq!(told, expected);
}

#[test]
fn a_trace_ends_by_itself_and_replaces_a_file_only_by_force() {
    let scratch = scratch!("a_trace_ends_by_itself_and_replaces_a_file_only_by_force");
    let good = scratch.program("good");
    thread::sleep(SETTLED);
    let ended = || scratch.status()["trace"]["ended"].as_str().map(str::to_owned);
    assert_eq!(scratch.status()["trace"], Value::Null);
    assert!(String::from_utf8(scratch.imara(&["trace", "stop"]).stderr).unwrap().contains("no trace is being taken"));

    let begun = scratch.begin("trace", &["--for", "1s"]).unwrap();
    assert_eq!(begun["until"].as_u64(), begun["started"].as_u64().map(|started| started + 1));
    assert!(runs(&good, 0));
    eventually("the time is over", || ended().as_deref() == Some("its time was over"));
    scratch.is_let_pass(&good);
    let (_, events, why) = scratch.read("trace");
    assert_eq!((of(&events, &good, Func::BprmCheck).len(), why.as_str()), (1, "its time was over"));

    assert!(scratch.begin("trace", &[]).unwrap_err().contains("exists already"));
    assert_eq!(scratch.read("trace").1, events, "as it was");
    scratch.begin("trace", &["--force", "--max-size", "1K"]).unwrap();
    eventually("the trace is full", || {
        fs::read(&good).unwrap();
        ended().as_deref() == Some("it is as large as it may be")
    });
    let size = fs::metadata(scratch.path("trace")).unwrap().len();
    assert!((1024..2048).contains(&size), "{size}");
    assert_eq!(scratch.read("trace").2, "it is as large as it may be");
    let again = scratch.imara(&["trace", "stop"]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("has ended: it is as large as it may be"));
    scratch.is_let_pass(&good);
}

#[test]
fn a_trace_ends_with_the_policy_whose_rules_it_names() {
    let scratch = scratch!("a_trace_ends_with_the_policy_whose_rules_it_names");
    let good = scratch.program("good");
    thread::sleep(SETTLED);
    scratch.begin("trace", &[]).unwrap();
    assert!(runs(&good, 0));
    fs::write(scratch.path("another"), "measure func=FILE_CHECK mask=MAY_READ\n").unwrap();
    let loaded = scratch.imara(&["policy", "load", scratch.path("another").to_str().unwrap()]);
    assert!(loaded.status.success(), "{loaded:?}");
    assert!(runs(&good, 0));
    eventually("the trace has ended", || scratch.status()["trace"]["active"] == false);
    let (_, events, why) = scratch.read("trace");
    assert_eq!(why, "another policy came into force");
    assert_eq!(of(&events, &good, Func::BprmCheck).len(), 1);
    assert!(events.iter().all(|event| event.func != Func::FileCheck || event.measured.is_none()));
    // What the new policy needs is still asked about.
    let entries = || scratch.status()["list"]["entries"].as_u64().unwrap();
    let before = entries();
    fs::write(scratch.path("mnt/new"), "new\n").unwrap();
    fs::read(scratch.path("mnt/new")).unwrap();
    assert_eq!(entries(), before + 1);
}

#[test]
fn a_killed_guard_leaves_a_trace_that_can_be_read() {
    let mut scratch = scratch!("a_killed_guard_leaves_a_trace_that_can_be_read");
    let good = scratch.program("good");
    scratch.begin("trace", &[]).unwrap();
    assert!(runs(&good, 0) && runs(&good, 0));
    // Written as soon as nothing else is to be.
    let good_runs = || -> io::Result<usize> {
        let (_, reader) = TraceReader::new(File::open(scratch.path("trace"))?).map_err(io::Error::other)?;
        let events: Vec<Event> = reader.map_while(Result::ok).collect();
        Ok(of(&events, &good, Func::BprmCheck).len())
    };
    eventually("both are written", || good_runs().is_ok_and(|count| count == 2));
    let mut guard = scratch.guard.take().unwrap();
    guard.kill().unwrap();
    guard.wait().unwrap();
    let mut show = command(IMARA);
    let shown = String::from_utf8(must(show.args(["trace", "show"]).arg(scratch.path("trace"))).stdout).unwrap();
    assert!(shown.contains("without an end: the trace is still being taken, or its guard was killed"), "{shown}");

    // Cut off anywhere, what is whole is shown, and that it is cut off is said.
    let whole = fs::read(scratch.path("trace")).unwrap();
    fs::write(scratch.path("cut"), &whole[..whole.len() - 1]).unwrap();
    let shown = command(IMARA).args(["trace", "show"]).arg(scratch.path("cut")).output().unwrap();
    assert_eq!(shown.status.code(), Some(1));
    assert!(String::from_utf8(shown.stderr).unwrap().contains("cut off within the record at offset"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("passed   BPRM_CHECK"), "{shown}");
    // A guard that starts again takes no trace, and is asked to end in order.
    scratch.start_guard().unwrap();
    assert_eq!(scratch.status()["trace"], Value::Null);
    // On the file system that is traced: what the guard itself does there is not asked about.
    scratch.begin("mnt/second", &[]).unwrap();
    assert!(runs(&good, 0));
    let mut guard = scratch.guard.take().unwrap();
    must(command("kill").args(["-TERM", &guard.id().to_string()]));
    assert!(guard.wait().unwrap().success());
    let (_, events, why) = scratch.read("mnt/second");
    assert_eq!((of(&events, &good, Func::BprmCheck).len(), why.as_str()), (1, "the guard ended"));
    assert!(events.iter().all(|event| !event.path.ends_with(b"/second")), "{events:?}");
}
