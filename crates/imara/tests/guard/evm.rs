//! EVM under the guard: labels over metadata are asked about, and follow what may be changed.

use crate::scratch::*;
use imara_linux::key_service::{self as keys, KeyType, SESSION_KEYRING};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Bytes that are in no table.
const KEY: &str = "b7c1e93d5f0a846219fe37ac50d28b64e31f7795c80d4ab62e9c13f870a5d64b";

fn key() -> Vec<u8> {
    imara_format::hash::from_hex(KEY).unwrap()
}

fn master() -> Vec<u8> {
    key().iter().map(|byte| byte.wrapping_mul(5) ^ 0x5a).collect()
}

/// A master key and EVM's key below it, in a session keyring of this thread and of what it starts.
pub fn evm_key(test: &str, scratch: &Scratch) -> bool {
    let made = keys::join_new_session()
        .and_then(|_| keys::add(KeyType::User, Some(b"kmk"), &master(), SESSION_KEYRING))
        .and_then(|_| {
            let blob = scratch.path("evm-key.blob");
            fs::write(scratch.path("kmk"), master()).unwrap();
            fs::write(scratch.path("payload"), key()).unwrap();
            let new = ["key", "encrypted", "new", "evm-key", "default", "user:kmk", "32"];
            let files = ["kmk", "payload"].map(|name| scratch.path(name));
            must(
                command(IMARA)
                    .args(new)
                    .args(["--quiet", "--master"])
                    .arg(&files[0])
                    .arg("--payload")
                    .arg(&files[1])
                    .arg("--out")
                    .arg(&blob),
            );
            let load = [b"load ", fs::read(&blob).unwrap().trim_ascii_end()].concat();
            keys::add(KeyType::Encrypted, Some(b"evm-key"), &load, SESSION_KEYRING)
        });
    if let Err(error) = &made {
        println!("skipped: {test}: the kernel's encrypted keys: {error}");
    }
    made.is_ok()
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    imara_linux::files::set_xattr(fs::File::open(path).unwrap(), name, value).unwrap();
}

fn evm_label(path: &Path) -> Option<Vec<u8>> {
    imara_linux::files::xattr(fs::File::open(path).unwrap(), "security.evm").unwrap()
}

pub fn hmac(path: &Path) {
    must(command(IMARA).args(["evm", "hmac", "--write", "--quiet", "--key-hex", KEY]).arg(path));
}

pub fn verifies(path: &Path) -> bool {
    output(command(IMARA).args(["evm", "verify", "--quiet", "--key-hex", KEY]).arg(path)).unwrap().status.success()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn last(scratch: &Scratch) -> Value {
    scratch.status()["recent"][0].clone()
}

fn programs(scratch: &Scratch, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| scratch.signed_program(name)).collect()
}

#[test]
fn a_program_runs_while_its_label_agrees_and_the_label_follows_what_is_changed_meanwhile() {
    const TEST: &str = "a_program_runs_while_its_label_agrees_and_the_label_follows_what_is_changed_meanwhile";
    let mut scratch = scratch!("a_program_runs_while_its_label_agrees_and_the_label_follows_what_is_changed_meanwhile");
    if !evm_key(TEST, &scratch) {
        return;
    }
    let made = programs(&scratch, &["good", "bad", "bare", "unseen"]);
    let [good, bad, bare, unseen] = &made[..] else { unreachable!("four were made") };
    for path in [good, bad, unseen] {
        hmac(path);
    }
    // Before there is a guard, as on another machine.
    mode(bad, 0o777);
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--evm-key", "evm-key"]);
    let status = scratch.status();
    assert_eq!(status["evm"]["mode"]["words"], serde_json::json!(["hmac", "lock"]), "{status:#}");
    assert!(status["evm"]["hmac_key"]["where"].as_str().is_some(), "{status:#}");
    assert!(runs(good) && verifies(good));
    for (path, cause) in [(bad, "invalid-HMAC"), (bare, "missing-HMAC")] {
        assert!(!runs(path), "{cause}");
        assert_eq!(
            (&last(&scratch)["cause"], &last(&scratch)["path"]),
            (&cause.into(), &path.to_str().unwrap().into())
        );
    }
    // What was seen to be good may be changed by whoever may, and its label follows.
    let before = evm_label(good);
    mode(good, 0o700);
    eventually("the label follows", PATIENCE, || verifies(good));
    assert!(evm_label(good) != before && runs(good));
    chown(good, Some(1000), Some(1000)).unwrap();
    eventually("the label follows", PATIENCE, || verifies(good));
    set_xattr(good, "security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    eventually("the label follows", PATIENCE, || verifies(good));
    assert!(runs(good));
    // What was not is not made good, by nothing that is done to it.
    mode(unseen, 0o700);
    mode(bad, 0o700);
    settle();
    assert!(!verifies(unseen) && !runs(unseen) && !verifies(bad) && !runs(bad));
    mode(unseen, 0o755);
    assert!(runs(unseen));
    // An exchanged label speaks for itself.
    set_xattr(good, "security.evm", &[2; 21]);
    settle();
    assert!(!runs(good));
    let told = scratch.imara(&["evm", "explain", "--json", "--hmac-key", "evm-key", good.to_str().unwrap()]);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|error| panic!("{error}: {told:?}"));
    assert_eq!((&told["status"], &told["changed"]["known_by"]), (&"fail".into(), &"guard".into()), "{told:#}");
    let attributes: Vec<&str> = told["changed"]["changes"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|change| change["differences"].as_array().unwrap())
        .filter_map(|difference| difference["attribute"].as_str())
        .collect();
    // And who did it: this test.
    let by = &told["changed"]["changes"][0]["by"];
    let this = std::env::current_exe().unwrap();
    assert_eq!((&by["executable"], &by["uid"]), (&this.to_str().unwrap().into(), &0.into()), "{told:#}");
    assert!(["mode", "uid", "gid", "security.capability"].iter().all(|name| attributes.contains(name)), "{told:#}");
    scratch.proven();
}

#[test]
fn a_portable_signature_stays_as_it_is_and_its_breaking_is_told() {
    let mut scratch = scratch!("a_portable_signature_stays_as_it_is_and_its_breaking_is_told");
    let path = scratch.signed_program("portable");
    let sign = |path: &Path| {
        let mut sign = command(IMARA);
        must(sign.args(["evm", "sign", "--portable", "--quiet", "-k"]).arg(scratch.private_key()).arg(path));
    };
    sign(&path);
    let label = evm_label(&path);
    let certificate = scratch.certificate();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--evm-cert", certificate.to_str().unwrap()]);
    assert_eq!(scratch.status()["evm"]["mode"]["words"], serde_json::json!(["x509"]));
    assert!(runs(&path));
    mode(&path, 0o700);
    eventually("it is told", PATIENCE, || {
        let last = last(&scratch);
        last["cause"] == "pass_immutable" && last["detail"].as_str().is_some_and(|what| what.contains("mode was"))
    });
    assert!(scratch.audit().contains("op=appraise_metadata cause=pass_immutable"), "{}", scratch.audit());
    assert!(!runs(&path));
    assert_eq!(last(&scratch)["cause"], "invalid-fail-immutable");
    assert_eq!(evm_label(&path), label);
    let explain = ["evm", "explain", "--json", "-k", certificate.to_str().unwrap(), path.to_str().unwrap()];
    let told: Value = serde_json::from_slice(&scratch.imara(&explain).stdout).unwrap();
    assert_eq!(told["changed"]["known_by"], "guard", "{told:#}");
    assert_eq!(told["next"][0], format!("chmod 0755 {}", path.display()), "{told:#}");
    mode(&path, 0o755);
    assert!(runs(&path));
}

#[test]
fn the_mode_and_the_list_are_steered_as_the_kernels() {
    const TEST: &str = "the_mode_and_the_list_are_steered_as_the_kernels";
    let mut scratch = scratch!("the_mode_and_the_list_are_steered_as_the_kernels");
    if !evm_key(TEST, &scratch) {
        return;
    }
    let path = scratch.signed_program("bare");
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    // Nothing is judged yet.
    assert!(runs(&path));
    let evm = |arguments: &[&str]| scratch.imara(&[&["evm"], arguments].concat());
    let tried = evm(&["enable", "hmac", "--dry-run", "--json"]);
    assert!(tried.status.success(), "{tried:?}");
    assert!(runs(&path));
    for (arguments, code) in [
        (&["enable", "sha1"][..], 2),
        (&["enable", "0"], 1),
        (&["xattrs", "user.foo"], 1),
        (&["xattrs", "security.ima"], 1),
        (&["xattrs", "security.foo"], 0),
        (&["enable", "x509"], 0),
        (&["enable", "hmac"], 0),
        // Locked by that.
        (&["enable", "x509"], 1),
        (&["xattrs", "--lock"], 0),
        (&["xattrs", "security.bar"], 1),
    ] {
        let done = evm(arguments);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {done:?}");
    }
    assert!(!runs(&path));
    assert_eq!(last(&scratch)["cause"], "missing-HMAC");
    let shown: Value = serde_json::from_slice(&evm(&["xattrs", "--json"]).stdout).unwrap();
    assert_eq!((&shown["locked"], &shown["provider"]), (&true.into(), &"guard".into()));
    assert!(shown["xattrs"].as_array().unwrap().contains(&"security.foo".into()), "{shown}");
    let status = evm(&["status"]);
    let text = text(&status.stdout);
    assert!(status.status.success() && text.contains("hmac, x509, lock") && text.contains("security.foo"), "{text}");
    hmac(&path);
    assert!(runs(&path));
}

#[test]
fn a_guard_that_is_to_have_evm_and_cannot_does_not_start() {
    let mut scratch = scratch!("a_guard_that_is_to_have_evm_and_cannot_does_not_start");
    let nowhere = scratch.path("nowhere/blob");
    for (more, said) in [
        (&["--evm", "hmac", "--evm-key", nowhere.to_str().unwrap()][..], "nowhere/blob"),
        (&["--evm", "hmac", "--evm-key", "imara-no-such-key"], "imara-no-such-key"),
        (&["--evm", "hmm"], "hmm"),
    ] {
        let failed = scratch.launch(SIGNED_PROGRAMS, "enforce", more).err().unwrap();
        assert!(failed.stderr.contains(said), "{more:?}: {}", failed.stderr);
    }
}

#[test]
fn in_fix_mode_what_is_labelled_gets_a_good_label_over_its_metadata_too() {
    const TEST: &str = "in_fix_mode_what_is_labelled_gets_a_good_label_over_its_metadata_too";
    let mut scratch = scratch!("in_fix_mode_what_is_labelled_gets_a_good_label_over_its_metadata_too");
    if !evm_key(TEST, &scratch) {
        return;
    }
    let path = scratch.program("fresh");
    scratch.guard_with("appraise func=BPRM_CHECK\n", "fix", &["--evm-key", "evm-key"]);
    assert!(runs(&path));
    eventually("both labels are there", PATIENCE, || label(&path).is_some() && verifies(&path));
    scratch.switch("enforce");
    assert!(runs(&path));
}

/// Which of these are in memory of the process that another one can read, and that it can write to.
fn in_memory(pid: u32, wanted: &[Vec<u8>]) -> Vec<String> {
    use std::os::unix::fs::FileExt;
    const PAGE: usize = 4096;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; ((to - from) as usize).min(256 << 20)];
        // Secret memory, above all, is not to be read.
        let Ok(length) = memory.read_at(&mut bytes, from) else { continue };
        bytes.truncate(length);
        // Most of it has never been touched. What goes on into the next page is looked for, too.
        for at in (0..bytes.len()).step_by(PAGE).filter(|at| bytes[*at..(at + PAGE).min(length)] != [0; PAGE]) {
            let page = &bytes[at..(at + PAGE + 64).min(length)];
            for (number, wanted) in wanted.iter().enumerate() {
                if page.windows(wanted.len()).any(|window| window == &wanted[..]) {
                    found.push(format!("{number} in {line}"));
                }
            }
        }
    }
    found
}

#[test]
fn the_key_is_nowhere_in_the_guards_memory_its_logs_or_its_answers() {
    const TEST: &str = "the_key_is_nowhere_in_the_guards_memory_its_logs_or_its_answers";
    let mut scratch = scratch!("the_key_is_nowhere_in_the_guards_memory_its_logs_or_its_answers");
    if !evm_key(TEST, &scratch) {
        return;
    }
    let path = scratch.signed_program("good");
    hmac(&path);
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--evm-key", "evm-key"]);
    assert!(runs(&path));
    mode(&path, 0o700);
    eventually("the label follows", PATIENCE, || verifies(&path));
    let status = scratch.status();
    if status["evm"]["hmac_key"]["custody"] == "locked-memory" {
        println!("skipped: {TEST}: no secret memory here");
        return;
    }
    let condensed = imara_engine::evm::key::condense(&key()).unwrap().to_vec();
    let secrets = [key(), condensed, master()];
    // What is no secret is found.
    let public = scratch.run.to_str().unwrap().as_bytes().to_vec();
    assert_ne!(in_memory(scratch.pid(), &[public]), Vec::<String>::new());
    assert_eq!(in_memory(scratch.pid(), &secrets), Vec::<String>::new());
    let told = format!("{status} {} {}", scratch.audit(), scratch.said());
    for secret in secrets {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!told.contains(&hex[..32]), "{told}");
    }
}
