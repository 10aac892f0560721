//! Everything at once, for as long as IMARA_STRESS_SECONDS says (`make stress`: two minutes): 64 threads that open, execute, write,
//! change, mount and unmount, while the guard or its sentinel is killed or stopped again and again, and started anew.
//!
//! In the end everybody has come back, nothing ran that nobody signed, everything that was let go on under a guard is listed,
//! and the list comes to what the TPM holds.

use crate::scratch::*;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const POLICY: &str = "measure func=BPRM_CHECK\nmeasure func=FILE_CHECK mask=MAY_READ\n\
                      appraise func=BPRM_CHECK appraise_type=imasig\n";

/// As many as `stress.c` asks for.
const DATA: usize = 120;
const SIGNED: usize = 24;
const UNSIGNED: usize = 6;
const SHARED: usize = 6;
const LINES: usize = 64;

/// A mount namespace of its own, so that mounting and unmounting concerns nobody else.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut unshare = command("unshare");
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", "echo there; read end"]);
        let mut child = start(unshare.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        Self(child)
    }

    /// What enters it, to be followed by a command line. By its root as well, which is not the namespace's where this runs in a chroot.
    fn enter(&self) -> String {
        format!("nsenter --target {} --mount --root", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

fn content(name: &str, version: &str) -> String {
    format!("{name} {version}\n").repeat(LINES)
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Where each thread of a process is.
fn whereabouts(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: &Path, name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    tasks
        .map(|task| format!("{} {}", of(&task.path(), "stat").trim(), of(&task.path(), "stack").replace('\n', " ")))
        .collect::<Vec<_>>()
        .join("\n")
}

fn digest(bytes: &[u8]) -> String {
    let digest = imara_engine::crypto::hash(imara_format::hash::HashAlgorithm::Sha256, &[bytes]).unwrap();
    digest.as_bytes().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn under_stress_nobody_hangs_nothing_unverified_runs_and_no_entry_is_lost() {
    let mut scratch = scratch!("under_stress_nobody_hangs_nothing_unverified_runs_and_no_entry_is_lost");
    let duration = Duration::from_secs(number("IMARA_STRESS_SECONDS", 6));
    let seed = number("IMARA_STRESS_SEED", u64::from(std::process::id()));
    println!("IMARA_STRESS_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);

    fs::write(scratch.path("stress.c"), include_str!("stress.c")).unwrap();
    must(command("cc").args(["-O1", "-pthread", "-o"]).arg(scratch.path("stress")).arg(scratch.path("stress.c")));
    let mut program = fs::read("/bin/true").unwrap();
    let own = program.len();
    for (kind, count) in [("p", SIGNED), ("u", UNSIGNED)] {
        for number in 0..count {
            program.truncate(own);
            program.extend(format!("{kind}{number}").bytes());
            let made = scratch.path("made");
            fs::write(&made, &program).unwrap();
            must(command("install").args(["-m", "755"]).arg(&made).arg(scratch.on(&format!("{kind}{number}"))));
        }
    }
    let signed: Vec<_> = (0..SIGNED).map(|number| scratch.on(&format!("p{number}"))).collect();
    scratch.sign(&signed.iter().map(|path| path.as_path()).collect::<Vec<_>>());
    for number in 0..DATA {
        fs::write(scratch.on(&format!("d{number}")), content(&format!("d{number}"), "0")).unwrap();
    }
    for number in 0..SHARED {
        File::create(scratch.on(&format!("s{number}"))).unwrap().set_len(4096).unwrap();
    }
    let state = OpenOptions::new().write(true).create_new(true).open(scratch.path("state")).unwrap();
    state.set_len(4096).unwrap();
    // Odd as long as a guard is in force.
    let mut epoch = 0_u64;
    let tell = |offset: u64, value: u64| state.write_all_at(&value.to_ne_bytes(), offset).unwrap();
    settle();

    let namespace = Namespace::new();
    let inside = scratch.path("inside");
    fs::write(&inside, format!("#!/bin/sh\nexec {} '{IMARA}' \"$@\"\n", namespace.enter())).unwrap();
    fs::set_permissions(&inside, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let more = ["--follow", "below", "--deadline", "none"];
    scratch.imara = inside.clone();
    scratch.guard_with(POLICY, "enforce", &more);
    epoch += 1;
    tell(0, epoch);
    // Level 2's programs take seconds of a processor to be loaded, which one that QEMU translates has not to spare for a guard that is one of 65.
    let turns = if level_2() { "nice -n 19" } else { "" };
    let stress = format!(
        "exec {} {turns} '{}' '{}' '{}' /bin/true",
        namespace.enter(),
        scratch.path("stress").display(),
        scratch.mnt.display(),
        scratch.path("state").display()
    );
    let mut setpriv = command("setpriv");
    let mut workers = start(setpriv.args(["--pdeathsig", "KILL", "sh", "-c", &stress]).stdout(Stdio::piped())).unwrap();
    let mut said = BufReader::new(workers.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    let told = thread::spawn(move || {
        let mut told = String::new();
        said.read_to_string(&mut told).unwrap();
        told
    });

    let begun = Instant::now();
    let mut ends = BTreeMap::<&str, u32>::new();
    while begun.elapsed() < duration {
        thread::sleep(Duration::from_millis(random.below(1200)));
        let how = match random.below(11) {
            0 => "sentinel killed",
            1 => "stopped",
            2 => "ended in order",
            3 => "killed while its TPM was stopped",
            4 => "its TPM killed",
            _ => "killed",
        };
        *ends.entry(how).or_default() += 1;
        if how == "sentinel killed" {
            // Until there is another one a guard that is stopped would keep everybody waiting.
            let pid = |status: &serde_json::Value| status["sentinel"]["pid"].as_u64();
            let before = pid(&scratch.status()).expect("there is one");
            signal(Signal::KILL, before.try_into().unwrap());
            eventually("there is another one", PATIENCE, || pid(&scratch.status()).is_some_and(|now| now != before));
            continue;
        }
        if how == "its TPM killed" {
            // One without a guard is not started again, and takes what its PCRs held with it.
            let before = scratch.swtpm().expect("it outlives its guard");
            signal(Signal::KILL, before);
            eventually("there is another one that has the list", PATIENCE, || {
                let status = scratch.status();
                status["tpm"]["pid"] != before && status["list"]["not_in_tpm"] == 0
            });
            continue;
        }
        epoch += 1;
        tell(0, epoch);
        match how {
            "stopped" => {
                signal(Signal::STOP, scratch.pid());
                scratch.guards.last().unwrap().end().expect("its sentinel ends it");
            }
            "ended in order" => scratch.stop(),
            "killed while its TPM was stopped" => {
                let swtpm = scratch.swtpm().expect("it outlives its guard");
                signal(Signal::STOP, swtpm);
                thread::sleep(Duration::from_millis(random.below(300)));
                scratch.kill();
                signal(Signal::CONT, swtpm);
            }
            _ => scratch.kill(),
        }
        scratch.guards.clear();
        thread::sleep(Duration::from_millis(random.below(100)));
        scratch.guard_with(POLICY, "enforce", &more);
        epoch += 1;
        tell(0, epoch);
    }
    println!("the guard was {ends:?}");
    tell(8, 1);
    let ended = ended(&mut workers, Duration::from_secs(75));
    if ended.is_none_or(|status| !status.success()) {
        let (status, threads) = (scratch.status(), whereabouts(workers.id()));
        let _ = workers.kill();
        let _ = workers.wait();
        panic!("{ended:?}: {}\n{threads}\n{status}", told.join().unwrap());
    }
    let told = told.join().unwrap();

    assert!(scratch.alive(), "{}", scratch.said());
    eventually("nobody waits for an answer", PATIENCE, || scratch.status()["kernel"]["waiting"] == 0);
    let listed: HashSet<(String, String)> = scratch
        .list()
        .iter()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(3);
            let (digest, path) = (words.next()?, words.next()?);
            Some((digest.to_owned(), path.rsplit('/').next()?.to_owned()))
        })
        .collect();
    let mut claims = 0;
    for line in told.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (name, bytes) = match words[..] {
            ["read", name, version] => (name, content(name, version).into_bytes()),
            ["ran", name] => (name, fs::read(scratch.on(name)).unwrap()),
            ["count" | "slowest", ..] => {
                println!("{line}");
                continue;
            }
            _ => panic!("{line}: {:?}\n{}", scratch.status()["recent"], scratch.audit()),
        };
        claims += 1;
        let entry = (digest(&bytes), name.to_owned());
        assert!(listed.contains(&entry), "was let go on under a guard and is not listed: {line}");
    }
    println!("{claims} accesses that are to be listed, {} entries", listed.len());
    assert!(claims > SIGNED, "{told}");
    scratch.proven();
    scratch.stop();
    assert!(scratch.swtpm().is_none());
    drop(namespace);
    unmount(&scratch.mnt);
    must(command("mount").args(["-o", "loop"]).arg(scratch.path("image")).arg(&scratch.mnt));
}
