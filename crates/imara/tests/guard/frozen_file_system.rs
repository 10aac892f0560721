//! A file system that takes no changes for a while, as for a snapshot, holds up no decision.

use crate::evm::{evm_key, hmac, verifies};
use crate::mounts::mount;
use crate::scratch::*;
use crate::stuck::opener;
use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use imara_format::label::encode_digest;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

/// A file system that takes no changes until this is dropped, or somebody has waited for too long.
pub struct Frozen {
    mnt: PathBuf,
    thaws: Child,
}

impl Frozen {
    /// Freezes it, or says why that cannot be done.
    pub fn new(mnt: &Path) -> Result<Self, String> {
        // Outlives this process, should that be killed: whatever writes there could not even be.
        let mut thaws = command("sh");
        thaws.args(["-c", "sleep 60; fsfreeze -u \"$1\"", "sh"]).arg(mnt);
        let thaws = start(thaws.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
        let frozen = Self { mnt: mnt.to_owned(), thaws };
        match output(command("fsfreeze").arg("-f").arg(mnt)) {
            Ok(done) if done.status.success() => Ok(frozen),
            other => Err(format!("needs fsfreeze: {other:?}")),
        }
    }

    pub fn thaw(self) {
        must(command("fsfreeze").arg("-u").arg(&self.mnt));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = output(command("fsfreeze").arg("-u").arg(&self.mnt));
        let _ = self.thaws.kill();
        let _ = self.thaws.wait();
    }
}

/// An attribute, without opening the file, at which its label would follow.
fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 512];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn label_of(path: &Path) -> Option<Vec<u8>> {
    attribute(path, "security.ima")
}

/// Whether the label is that of a content which was read before.
fn is_labelled(path: &Path, content: &[u8]) -> bool {
    label_of(path) == Some(encode_digest(&crypto::hash(HashAlgorithm::Sha256, &[content]).unwrap()))
}

fn labelled(path: &Path) {
    set_label(path, &digest_label(path, HashAlgorithm::Sha256));
}

fn appending(path: &Path) -> File {
    OpenOptions::new().append(true).open(path).unwrap()
}

#[test]
fn what_was_written_just_before_a_snapshot_is_used_meanwhile_and_labelled_after_it() {
    const NAME: &str = "what_was_written_just_before_a_snapshot_is_used_meanwhile_and_labelled_after_it";
    let mut scratch = scratch!("what_was_written_just_before_a_snapshot_is_used_meanwhile_and_labelled_after_it");
    let wrong = scratch.data("wrong", 0);
    set_label(&wrong, &digest_label(Path::new("/bin/true"), HashAlgorithm::Sha256));
    let untouched: Vec<PathBuf> = (0..20).map(|number| scratch.data(&format!("untouched-{number}"), USER)).collect();
    let mut written: Vec<PathBuf> = (0..40)
        .map(|number| scratch.data(&format!("written-{number}"), if number % 2 == 0 { 0 } else { USER }))
        .collect();
    let program = scratch.program("program");
    untouched.iter().chain(&written).chain([&program]).for_each(|path| labelled(path));
    settle();
    let policy = "measure func=FILE_CHECK mask=MAY_READ\nappraise func=FILE_CHECK\nappraise func=BPRM_CHECK\n";
    scratch.guard_with(policy, "enforce", &["--deadline", "20s"]);
    let mut writers: Vec<File> = written.iter().chain([&program]).map(|path| appending(path)).collect();
    for number in 0..10 {
        let new = scratch.on(&format!("new-{number}"));
        writers.push(OpenOptions::new().append(true).create_new(true).open(&new).unwrap());
        written.push(new);
    }
    let paths: Vec<&PathBuf> = written[..40].iter().chain([&program]).chain(&written[40..]).collect();
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for (path, writer) in paths.iter().zip(&mut writers) {
        writer.write_all(b"more\n").unwrap();
        contents.push(fs::read(path).unwrap());
    }
    let before: Vec<Option<Vec<u8>>> = written.iter().map(|path| label_of(path)).collect();
    let frozen = match Frozen::new(&scratch.mnt) {
        Ok(frozen) => frozen,
        Err(reason) => return println!("skipped: {NAME}: {reason}"),
    };
    drop(writers);
    for round in 0..2 {
        assert!(runs(&program), "{round}: executed");
        for path in written.iter().chain(&untouched) {
            assert!(opens(path), "{round}: {}", path.display());
        }
        assert!(!opens(&wrong), "{round}: a wrong label is one still");
    }
    assert!(before.iter().zip(&written).all(|(before, path)| *before == label_of(path)), "nothing could be written");
    let status = scratch.status();
    assert_eq!(status["kernel"]["overdue"], 0, "{status}");
    eventually("it is told how many labels wait", PATIENCE, || {
        scratch.status()["kernel"]["late_labels"] == written.len() + 1
    });
    let said = scratch.imara(&["status"]);
    assert!(text(&said.stdout).contains("labels      51 wait to be written"), "{said:?}");
    // Who comes to write meanwhile passes; what he writes waits for the file system, as it would without a guard.
    let mut writer = appending(&written[0]);
    let writing = thread::spawn(move || writer.write_all(b"and more\n").unwrap());
    // Nor is anybody held up by what fix mode would write.
    scratch.switch("fix");
    assert!(opens(&wrong) && opens(&written[1]));
    scratch.switch("enforce");
    frozen.thaw();
    writing.join().unwrap();
    contents[0].extend(b"and more\n");
    for (path, content) in paths.iter().zip(&contents) {
        eventually("the label has followed, with nobody asking", PATIENCE, || is_labelled(path, content));
    }
    eventually("none waits", PATIENCE, || scratch.status()["kernel"]["late_labels"] == 0);
    assert!(!opens(&wrong));
    assert!(written.iter().chain(&untouched).all(|path| opens(path)) && runs(&program));
    let status = scratch.status();
    assert_eq!(status["kernel"]["overdue"], 0, "{status}");
    assert!(scratch.alive() && written.iter().all(|path| scratch.listed(path) >= 1));
    scratch.proven();
}

#[test]
fn the_label_over_metadata_of_what_was_written_just_before_a_snapshot_follows_after_it_as_well() {
    const NAME: &str = "the_label_over_metadata_of_what_was_written_just_before_a_snapshot_follows_after_it_as_well";
    let mut scratch =
        scratch!("the_label_over_metadata_of_what_was_written_just_before_a_snapshot_follows_after_it_as_well");
    if !evm_key(NAME, &scratch) {
        return;
    }
    let [one, other, wrong] = ["one", "other", "wrong"].map(|name| scratch.data(name, 0));
    for path in [&one, &other, &wrong] {
        labelled(path);
        hmac(path);
    }
    fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    settle();
    scratch.guard_with("appraise func=FILE_CHECK\n", "enforce", &["--evm-key", "evm-key", "--deadline", "20s"]);
    let new = scratch.on("new");
    let mut writers = vec![appending(&one), appending(&other)];
    writers.push(OpenOptions::new().append(true).create_new(true).open(&new).unwrap());
    writers.iter_mut().for_each(|writer| writer.write_all(b"more\n").unwrap());
    let contents = [&one, &other, &new].map(|path| fs::read(path).unwrap());
    let frozen = match Frozen::new(&scratch.mnt) {
        Ok(frozen) => frozen,
        Err(reason) => return println!("skipped: {NAME}: {reason}"),
    };
    drop(writers);
    for round in 0..2 {
        assert!([&one, &other, &new].into_iter().all(|path| opens(path)) && !opens(&wrong), "{round}");
    }
    let before = [&one, &other, &new].map(|path| attribute(path, "security.evm"));
    frozen.thaw();
    for ((path, content), before) in [&one, &other, &new].into_iter().zip(&contents).zip(&before) {
        let followed = || is_labelled(path, content) && attribute(path, "security.evm") != *before;
        eventually("both labels have followed, with nobody asking", PATIENCE, followed);
        assert!(verifies(path) && opens(path), "{}", path.display());
    }
    let status = scratch.status();
    assert_eq!(status["kernel"]["overdue"], 0, "{status}");
    assert!(!opens(&wrong) && scratch.alive());
}

#[test]
fn while_the_list_is_on_a_frozen_file_system_what_it_has_goes_on_and_the_rest_is_listed_after_it() {
    const NAME: &str = "while_the_list_is_on_a_frozen_file_system_what_it_has_goes_on_and_the_rest_is_listed_after_it";
    for (deadline, on_deadline, mode, expected) in [
        ("60s", "refuse", "enforce", 0),
        ("3s", "refuse", "enforce", EPERM),
        ("3s", "allow", "enforce", 0),
        ("3s", "refuse", "log", 0),
    ] {
        let case = format!("{mode}, after {deadline} {on_deadline}");
        let mut scratch =
            scratch!("while_the_list_is_on_a_frozen_file_system_what_it_has_goes_on_and_the_rest_is_listed_after_it");
        scratch.run = scratch.on("run");
        let Some(watched) = mount(&scratch, "ext4", NAME) else {
            return;
        };
        let on = |name: &str| watched.0.join(name);
        let (signed, unsigned) = (on("signed"), on("unsigned"));
        copy("/bin/true", &signed);
        copy("/bin/true", &unsigned);
        scratch.sign(&[&signed]);
        let made = |name: String| {
            fs::write(on(&name), format!("what {name} holds\n")).unwrap();
            on(&name)
        };
        let listed: Vec<PathBuf> = (0..8).map(|number| made(format!("listed-{number}"))).collect();
        // More than the threads that may be at one file system at a time.
        let more: Vec<PathBuf> = (0..40).map(|number| made(format!("more-{number}"))).collect();
        settle();
        let policy = scratch.path("policy");
        fs::write(&policy, "measure func=FILE_CHECK mask=MAY_READ\nappraise func=BPRM_CHECK appraise_type=imasig\n")
            .unwrap();
        let certificate = scratch.certificate();
        let options = ["--deadline", deadline, "--on-deadline", on_deadline, "--level", "1"];
        if let Err(failed) = scratch.launch_with(&watched.0, &policy, &certificate, mode, &options) {
            panic!("{}", failed.stderr);
        }
        assert!(listed.iter().all(|path| opens(path)) && runs(&signed), "{case}");
        let audited = scratch.audit().len();
        let frozen = match Frozen::new(&scratch.mnt) {
            Ok(frozen) => frozen,
            Err(reason) => return println!("skipped: {NAME}: {reason}"),
        };
        let mut opening: Vec<Child> = more.iter().map(|path| opener(&scratch, path)).collect();
        eventually("they wait", PATIENCE, || {
            deadline != "60s" || scratch.status()["kernel"]["waiting"] == opening.len()
        });
        eventually("it is told", PATIENCE, || scratch.status()["list"]["waits"].is_f64());
        let said = scratch.imara(&["status"]);
        assert!(text(&said.stdout).contains("takes no entries for "), "{case}: {said:?}");
        for round in 0..5 {
            // Asked about again, as other files that have the same content.
            for (number, path) in listed.iter().enumerate() {
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600 + round)).unwrap();
                assert!(opens(path), "{case}: {number} in round {round}");
            }
            assert!(runs(&signed) && runs(&unsigned) == (mode == "log"), "{case}");
        }
        if deadline != "60s" {
            for child in &mut opening {
                let status = ended(child, PATIENCE).expect("it is answered");
                assert_eq!(status.code(), Some(expected), "{case}");
            }
            assert_eq!(scratch.status()["kernel"]["overdue"], opening.len(), "{case}");
        }
        frozen.thaw();
        for child in &mut opening {
            assert_eq!(ended(child, PATIENCE).expect("it is answered").code(), Some(expected), "{case}");
        }
        for path in &more {
            eventually("it is listed", PATIENCE, || scratch.listed(path) == 1);
        }
        assert!(listed.iter().chain(&more).all(|path| opens(path)), "{case}");
        let status = scratch.status();
        assert_eq!(status["counts"]["errors"], 0, "{case}: {status}");
        assert!(status["list"]["waits"].is_null(), "{case}: {status}");
        assert_eq!(status["list"]["entries"], 1 + listed.len() + more.len(), "{case}: {status}");
        scratch.proven();
        eventually("what was refused meanwhile is on record", PATIENCE, || {
            scratch.audit()[audited..].contains(unsigned.to_str().unwrap())
        });
        scratch.stop();
    }
}

#[test]
fn a_guard_that_ends_or_is_killed_while_a_label_waits_holds_up_nobody() {
    const NAME: &str = "a_guard_that_ends_or_is_killed_while_a_label_waits_holds_up_nobody";
    for how in [Signal::TERM, Signal::KILL] {
        let mut scratch = scratch!("a_guard_that_ends_or_is_killed_while_a_label_waits_holds_up_nobody");
        let [written, wrong] = ["written", "wrong"].map(|name| scratch.data(name, 0));
        labelled(&written);
        set_label(&wrong, &digest_label(&written, HashAlgorithm::Sha256));
        settle();
        scratch.guard_with("appraise func=FILE_CHECK\n", "enforce", &["--deadline", "20s", "--level", "1"]);
        let mut writer = appending(&written);
        writer.write_all(b"more\n").unwrap();
        let content = fs::read(&written).unwrap();
        let frozen = match Frozen::new(&scratch.mnt) {
            Ok(frozen) => frozen,
            Err(reason) => return println!("skipped: {NAME}: {reason}"),
        };
        drop(writer);
        assert!(opens(&written) && !opens(&wrong), "{how:?}");
        signal(how, scratch.pid());
        eventually("nothing is guarded any more", PATIENCE, || opens(&wrong));
        assert!(opens(&written), "{how:?}");
        frozen.thaw();
        scratch.guards.last().unwrap().end().expect("it is gone");
        assert!(is_labelled(&written, &content), "{how:?}: the one that was being written");
        scratch.guard_with("appraise func=FILE_CHECK\n", "enforce", &["--level", "1"]);
        assert!(opens(&written) && !opens(&wrong), "{how:?}");
    }
}
