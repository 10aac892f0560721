//! The software TPM, against the `swtpm` that is installed here. Without one, each test says so and passes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use imara_engine::{
    crypto,
    tpm::{StartupType, Tpm},
};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_linux::{
    swtpm::{Resumed, SoftwareTpm, SwtpmError},
    tpm_socket::SocketTransport,
};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

const PCR: u32 = 10;
const BANK: HashAlgorithm = HashAlgorithm::Sha256;

/// A directory whose software TPM ends with the test, however that ends.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new(test: &str) -> Option<Self> {
        if Command::new("swtpm").arg("--version").output().is_err() {
            println!("{test}: skipped, swtpm is not installed");
            return None;
        }
        Some(Self { dir: tempfile::tempdir().unwrap() })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("tpm")
    }

    fn start(&self, fresh: bool) -> SoftwareTpm {
        SoftwareTpm::start_or_attach(&self.path(), fresh).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(pid) = SoftwareTpm::running(&self.path()) {
            kill(pid);
        }
    }
}

/// A process's session, 0 when its leader is outside our process namespace, as in a container (getsid(2) of rustix panics there).
fn session(process: &str) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The command, in parentheses, may hold spaces; after it come state, parent, group and session. Source: proc_pid_stat(5).
    let (_, after) = stat.rsplit_once(')').unwrap();
    after.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// Ends a process that a test has started.
fn kill(pid: i32) {
    let command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    if command == b"swtpm\n" {
        let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        let begun = Instant::now();
        while Path::new(&format!("/proc/{pid}/exe")).exists() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn connected(tpm: &SoftwareTpm) -> Tpm {
    Tpm::new(tpm.transport()).unwrap()
}

fn extend(tpm: &mut Tpm, byte: u8) {
    let digests: Vec<_> = tpm
        .banks()
        .iter()
        .filter_map(|bank| bank.algorithm)
        .map(|bank| Digest::new(bank, &vec![byte; bank.digest_size()]).unwrap())
        .collect();
    tpm.pcr_extend(PCR, &digests).unwrap();
}

fn extended(old: &Digest, byte: u8) -> Digest {
    crypto::hash(old.algorithm(), &[old.as_bytes(), &vec![byte; old.algorithm().digest_size()]]).unwrap()
}

#[test]
fn every_bank_is_extended_and_read_back() {
    let Some(scratch) = Scratch::new("every_bank_is_extended_and_read_back") else { return };
    let software = scratch.start(true);
    assert_eq!(software.resumed(), Resumed::Cleared);
    assert!(software.banks().iter().any(|bank| bank.algorithm == Some(BANK)), "{:?}", software.banks());
    let mut tpm = connected(&software);
    assert_eq!(tpm.banks(), software.banks());
    extend(&mut tpm, 0x11);
    extend(&mut tpm, 0xff);
    let values = tpm.pcr_read_many(&[PCR, 0]).unwrap();
    assert_eq!(values.len(), 2 * tpm.banks().len());
    for (bank, index, value) in values {
        let zeros = Digest::zeros(bank);
        let expected = if index == PCR { extended(&extended(&zeros, 0x11), 0xff) } else { zeros };
        assert_eq!(value, expected, "{bank} {index}");
        assert_eq!(tpm.pcr_read(bank, index).unwrap(), expected);
    }
    // More than eight digests: several parts.
    let all: Vec<u32> = (0..24).collect();
    assert_eq!(tpm.pcr_read_many(&all).unwrap().len(), 24 * tpm.banks().len());
    assert_eq!(tpm.properties().unwrap().manufacturer, "IBM");
    assert_eq!(tpm.random(300).unwrap().len(), 300);
}

#[test]
fn pcrs_outlive_stop_and_start_and_are_zero_after_a_fresh_start() {
    let Some(scratch) = Scratch::new("pcrs_outlive_stop_and_start_and_are_zero_after_a_fresh_start") else { return };
    let software = scratch.start(true);
    extend(&mut connected(&software), 1);
    let expected = extended(&Digest::zeros(BANK), 1);

    let first = software.pid();
    software.stop().unwrap();
    assert!(!Path::new(&format!("/proc/{first}/exe")).exists());
    let software = scratch.start(false);
    assert_eq!(software.resumed(), Resumed::State);
    assert_eq!(connected(&software).pcr_read(BANK, PCR).unwrap(), expected);

    // Of itself a fresh start ends the one that runs.
    let second = software.pid();
    let software = scratch.start(true);
    assert_eq!(software.resumed(), Resumed::Cleared);
    assert_ne!(software.pid(), second);
    assert!(connected(&software).pcr_read(BANK, PCR).unwrap().is_zero());

    extend(&mut connected(&software), 2);
    software.stop().unwrap();
    let software = scratch.start(true);
    assert!(connected(&software).pcr_read(BANK, PCR).unwrap().is_zero());
}

#[test]
fn one_that_runs_is_found_again_with_its_pcrs() {
    let Some(scratch) = Scratch::new("one_that_runs_is_found_again_with_its_pcrs") else { return };
    assert_eq!(SoftwareTpm::running(&scratch.path()), None);
    let software = scratch.start(true);
    extend(&mut connected(&software), 1);
    let pid = software.pid();
    assert_eq!(SoftwareTpm::running(&scratch.path()), Some(pid));
    // Neither a terminal's signals nor the end of our session reach it.
    assert_ne!(session(&pid.to_string()), session("self"));
    drop(software);
    let software = scratch.start(false);
    assert_eq!((software.resumed(), software.pid()), (Resumed::Attached, pid));
    assert_eq!(connected(&software).pcr_read(BANK, PCR).unwrap(), extended(&Digest::zeros(BANK), 1));

    // Also when the pid file is gone, or names another process.
    for text in [None, Some(std::process::id().to_string()), Some("nonsense".to_owned())] {
        match &text {
            Some(text) => fs::write(scratch.path().join("pid"), text).unwrap(),
            None => fs::remove_file(scratch.path().join("pid")).unwrap(),
        }
        let software = scratch.start(false);
        assert_eq!((software.resumed(), software.pid()), (Resumed::Attached, pid), "{text:?}");
    }
    fs::write(scratch.path().join("pid"), pid.to_string()).unwrap();
}

#[test]
fn a_killed_one_is_started_again_and_said_to_be_cleared() {
    let Some(scratch) = Scratch::new("a_killed_one_is_started_again_and_said_to_be_cleared") else { return };
    let software = scratch.start(true);
    let mut tpm = connected(&software);
    extend(&mut tpm, 1);
    kill(software.pid());
    let begun = Instant::now();
    let error = tpm.pcr_read(BANK, PCR).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(1), "{error}");
    assert!(scratch.path().join("socket").exists(), "the socket is left behind");
    let lost = software.pid();
    assert!(matches!(software.stop(), Err(SwtpmError::Ended { pid, .. }) if pid == lost));

    let software = scratch.start(false);
    assert_eq!(software.resumed(), Resumed::Cleared);
    assert!(connected(&software).pcr_read(BANK, PCR).unwrap().is_zero());
    // The old connection reaches the new one.
    assert!(tpm.pcr_read(BANK, PCR).unwrap().is_zero());
}

#[test]
fn those_who_start_it_at_once_get_the_same_one() {
    let Some(scratch) = Scratch::new("those_who_start_it_at_once_get_the_same_one") else { return };
    let started: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| scratch.start(false))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(started.iter().all(|software| software.pid() == started[0].pid()), "{started:?}");
    assert_eq!(started.iter().filter(|software| software.resumed() == Resumed::Cleared).count(), 1);
    assert_eq!(started.iter().filter(|software| software.resumed() == Resumed::Attached).count(), 3);
}

#[test]
fn one_in_failure_mode_is_replaced() {
    let Some(scratch) = Scratch::new("one_in_failure_mode_is_replaced") else { return };
    let software = scratch.start(true);
    let mut tpm = connected(&software);
    // Its state cannot be written while the directory has another name.
    let elsewhere = scratch.dir.path().join("elsewhere");
    fs::rename(scratch.path(), &elsewhere).unwrap();
    let _ = tpm.shutdown(StartupType::State);
    fs::rename(&elsewhere, scratch.path()).unwrap();
    let error = tpm.pcr_read(BANK, PCR).unwrap_err();
    assert!(error.to_string().contains("TPM_RC_FAILURE"), "{error}");
    drop(tpm);
    let replaced = scratch.start(false);
    assert_eq!(replaced.resumed(), Resumed::Cleared);
    assert_ne!(replaced.pid(), software.pid());
    connected(&replaced);
}

#[test]
fn a_second_client_gets_an_error_and_no_answer_of_the_firsts() {
    let Some(scratch) = Scratch::new("a_second_client_gets_an_error_and_no_answer_of_the_firsts") else { return };
    let software = scratch.start(true);
    let mut first = connected(&software);
    extend(&mut first, 1);
    let error = Tpm::new(software.transport()).unwrap_err();
    assert!(error.to_string().contains("no answer within 5 s; another program uses it"), "{error}");
    assert_eq!(first.pcr_read(BANK, PCR).unwrap(), extended(&Digest::zeros(BANK), 1));
    drop(first);
    connected(&software);
}

#[test]
fn the_directory_is_private_and_a_bad_one_is_refused_with_the_reason() {
    let Some(scratch) = Scratch::new("the_directory_is_private_and_a_bad_one_is_refused_with_the_reason") else {
        return;
    };
    fs::create_dir(scratch.path()).unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let software = scratch.start(true);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scratch.path()), 0o700);
    assert_eq!(mode(&software.socket()), 0o600);
    software.stop().unwrap();

    for (name, reason) in [("a,b".to_owned(), "has a comma in it"), ("d".repeat(120), "is too long for a socket, by ")]
    {
        let error = SoftwareTpm::start_or_attach(&scratch.dir.path().join(name), true).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }

    // What swtpm says when it cannot start is passed on.
    fs::write(scratch.path().join("tpm2-00.permall"), "not a TPM's state").unwrap();
    let error = SoftwareTpm::start_or_attach(&scratch.path(), true).unwrap_err();
    assert!(matches!(&error, SwtpmError::Failed { said, .. } if said.contains("libtpms")), "{error}");
}

#[test]
fn tpm2_tools_read_the_pcrs_that_were_extended() {
    let Some(scratch) = Scratch::new("tpm2_tools_read_the_pcrs_that_were_extended") else { return };
    if Command::new("tpm2_pcrread").arg("--version").output().is_err() {
        println!("skipped, tpm2_pcrread is not installed");
        return;
    }
    // tpm2-tools want a control socket, which ours has not; so this one is started by hand.
    let dir = scratch.path();
    fs::create_dir(&dir).unwrap();
    let (at, socket) = (dir.display(), dir.join("socket"));
    let status = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init", "--daemon", "--tpmstate", &format!("dir={at}")])
        .args(["--server", &format!("type=unixio,path={at}/socket"), "--pid", &format!("file={at}/pid")])
        .args(["--ctrl", &format!("type=unixio,path={at}/socket.ctrl"), "--log", &format!("file={at}/log")])
        .status()
        .unwrap();
    assert!(status.success());
    let mut tpm = Tpm::unstarted(Box::new(SocketTransport::unix(socket.clone())));
    tpm.startup(StartupType::Clear).unwrap();
    extend(&mut tpm, 0xab);
    let value = tpm.pcr_read(BANK, PCR).unwrap();
    drop(tpm);
    let read = Command::new("tpm2_pcrread")
        .args(["-T", &format!("swtpm:path={}", socket.display()), "sha256:10"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&read.stdout).to_lowercase();
    assert!(text.contains(&value.to_hex()), "{text}");
}
