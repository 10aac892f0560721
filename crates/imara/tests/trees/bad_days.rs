//! What bad days bring: no room, read-only mounts, immutable files, no privilege, file systems without attributes, files without
//! an end, trees without a bottom. Each is named in a line, the rest goes on, and no label is lost.

use crate::scratch::{Ran, Scratch, attribute, other, privileged, ran, text};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A file system of its own, unmounted with the test.
struct Mount {
    scratch: Scratch,
    place: PathBuf,
}

impl Mount {
    /// `None`, and a line that says so, where this machine cannot.
    fn new(test: &str, kind: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        let skip = |reason: &str| println!("skipped: {test}: {reason}");
        if !privileged() {
            skip("needs root to mount");
            return None;
        }
        let scratch = Scratch::new();
        let (place, image) = (scratch.path("mnt"), scratch.path("image"));
        fs::create_dir(&place).unwrap();
        prepare(&image);
        let source = if image.exists() { text(&image) } else { "none" };
        let options: &[&str] = if image.exists() { &["-o", "loop"] } else { &[] };
        let mounted = other(test, "mount", &[&["-t", kind], options, &[source, text(&place)]].concat())?;
        if !mounted.status.success() {
            skip(String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(Self { scratch, place })
    }

    fn ext4(test: &str, size: u64, options: &[&str]) -> Option<Self> {
        other(test, "mkfs.ext4", &["-V"])?;
        Self::new(test, "ext4", |image| {
            fs::File::create(image).and_then(|file| file.set_len(size)).unwrap();
            let mut mkfs = Command::new("mkfs.ext4");
            assert!(mkfs.args(["-q", "-F", "-m", "0"]).args(options).arg(image).status().unwrap().success());
        })
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.place.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..50 {
            if Command::new("umount")
                .arg(&self.place)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

/// Ended with the test, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// The most memory that it has had so far, in KiB.
    fn most_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
    }
}

fn failures(ran: &Ran) -> usize {
    ran.err.lines().filter(|line| !line.contains("next: ")).count()
}

#[test]
fn without_room_for_attributes_old_labels_stay_and_the_rest_goes_on() {
    let test = "without_room_for_attributes_old_labels_stay_and_the_rest_goes_on";
    // A digest fits into an inode of 256 bytes, an RSA signature does not.
    let Some(mount) = Mount::ext4(test, 8 << 20, &["-I", "256", "-b", "4096"]) else { return };
    // Each has content of its own, or their labels would share a block.
    let file = |number: u32| mount.file(&format!("file{number}"), &number.to_string());
    let files = (0..50).map(file).collect::<Vec<_>>();
    let scratch = &mount.scratch;
    assert_eq!(scratch.run(&["hash", "-r", text(&mount.place)]).code, 0);
    let filler = fs::File::create(mount.place.join("filler")).unwrap();
    let mut end = 0;
    while filler.write_all_at(&[1; 4096], end).is_ok() {
        end += 4096;
    }
    filler.set_len(end - 3 * 4096).unwrap();
    filler.sync_all().unwrap();
    let (key, _) = scratch.key("rsa2048");
    let signed = scratch.run(&["sign", "-r", "-k", &key, "--include", "file*", text(&mount.place)]);
    assert_eq!(signed.code, 1, "{}", signed.err);
    assert!(signed.err.contains("No space left on device") && signed.err.contains("free some room"), "{}", signed.err);
    let labels = files.iter().map(|path| scratch.label_of(path)).collect::<Vec<_>>();
    let (old, new) = (
        labels.iter().filter(|label| label.starts_with("0404")).count(),
        labels.iter().filter(|label| label.starts_with("0302")).count(),
    );
    assert_eq!((old + new, failures(&signed)), (50, old));
    assert!(old > 0);
    // Room again: the same run is gone on with to its end.
    drop(filler);
    fs::remove_file(mount.place.join("filler")).unwrap();
    let run = scratch.runs().pop().unwrap()["run"].as_str().unwrap().to_owned();
    let again = scratch.run(&["sign", "-r", "-k", &key, "--include", "file*", "--resume", &run, text(&mount.place)]);
    assert_eq!(again.code, 0, "{}", again.err);
}

#[test]
fn a_read_only_mount_is_named_for_each_file() {
    let test = "a_read_only_mount_is_named_for_each_file";
    let Some(mount) = Mount::ext4(test, 4 << 20, &[]) else { return };
    let file = mount.file("file", "content");
    let writable = mount.scratch.file("file", "content");
    assert!(other(test, "mount", &["-o", "remount,ro", text(&mount.place)]).unwrap().status.success());
    let run = mount.scratch.run(&["hash", "-r", text(&mount.place), text(&mount.scratch.tree())]);
    assert_eq!((run.code, failures(&run)), (1, 1), "{}", run.err);
    let expected = format!("imara: {}: security.ima cannot be set: Read-only file system (os error 30)\n", text(&file));
    assert!(run.err.starts_with(&expected) && run.err.contains("remount,rw"), "{}", run.err);
    assert_ne!(mount.scratch.label_of(&writable), "");
}

#[test]
fn an_immutable_file_is_named_and_the_rest_goes_on() {
    let test = "an_immutable_file_is_named_and_the_rest_goes_on";
    let scratch = Scratch::new();
    let [fixed, free] = ["fixed", "free"].map(|name| scratch.file(name, name));
    let chattr = |flag: &str| other(test, "chattr", &[flag, text(&fixed)]);
    match chattr("+i") {
        None => return,
        Some(done) if !done.status.success() => {
            return println!("skipped: {test}: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Some(_) => {}
    }
    let run = scratch.label(&["hash", "-r", text(&scratch.tree())]);
    chattr("-i");
    assert_eq!((run.code, failures(&run)), (1, 1), "{}", run.err);
    assert!(
        run.err.contains("fixed: ") && run.err.contains("immutable") && run.err.contains("chattr -i"),
        "{}",
        run.err
    );
    assert!(scratch.label_of(&fixed).is_empty() && !scratch.label_of(&free).is_empty());
}

#[test]
fn without_privilege_it_is_said_at_once_and_user_attributes_still_do() {
    let test = "without_privilege_it_is_said_at_once_and_user_attributes_still_do";
    if !privileged() {
        return println!("skipped: {test}: needs root to give up a privilege");
    }
    let scratch = Scratch::new();
    let file = scratch.file("file", "content");
    let imara = env!("CARGO_BIN_EXE_imara");
    let unprivileged = |arguments: &[&str]| -> Option<Ran> {
        let drop = ["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", imara];
        let mut command = Command::new("setpriv");
        command.args(drop).args(arguments).env("IMARA_JOURNAL_DIR", scratch.path("runs")).stdin(Stdio::null());
        match command.output() {
            Ok(output) => Some(ran(output)),
            Err(error) => {
                println!("skipped: {test}: setpriv: {error}");
                None
            }
        }
    };
    let Some(run) = unprivileged(&["hash", "-r", text(&scratch.tree())]) else { return };
    assert_eq!(run.code, 3, "{}", run.err);
    assert!(
        run.err.contains("this process lacks CAP_SYS_ADMIN") && run.err.contains("next: run as root"),
        "{}",
        run.err
    );
    assert_eq!(scratch.label_of(&file), "");
    let run = unprivileged(&["hash", "-r", "--xattr-user", text(&scratch.tree())]).unwrap();
    assert_eq!(run.code, 0, "{}", run.err);
    let undone = unprivileged(&["undo", scratch.runs()[0]["run"].as_str().unwrap()]).unwrap();
    assert_eq!(undone.code, 0, "{}", undone.err);
}

#[test]
fn a_file_system_without_attributes_is_named_before_anything_is_read() {
    let test = "a_file_system_without_attributes_is_named_before_anything_is_read";
    let Some(mount) = Mount::new(test, "ramfs", |_| {}) else { return };
    let file = mount.file("file", "content");
    let run = mount.scratch.run(&["hash", "-r", "--json", text(&mount.place)]);
    if run.code == 0 {
        return println!("skipped: {test}: this kernel's ramfs keeps attributes");
    }
    assert_eq!(run.code, 4, "{}", run.err);
    assert_eq!(run.summary()["bytes"], 0);
    assert!(run.err.contains("its filesystem keeps no security.ima"), "{}", run.err);
    // A signature beside it does.
    let (key, certificate) = mount.scratch.key("p256");
    assert_eq!(mount.scratch.run(&["sign", "-r", "--sigfile", "-k", &key, text(&mount.place)]).code, 0);
    assert_eq!(mount.scratch.run(&["verify", "--sigfile", "-k", &certificate, text(&file)]).code, 0);
    assert_eq!(mount.scratch.run(&["clear", "-r", "--sigfile", text(&mount.place)]).code, 0);
    assert!(!mount.place.join("file.sig").exists());
}

#[test]
fn a_file_of_a_tebibyte_holds_nobody_up_and_takes_no_memory() {
    let scratch = Scratch::new();
    let small = (0..10).map(|number| scratch.file(&format!("a{number}"), "content")).collect::<Vec<_>>();
    let huge = scratch.file("b", "");
    fs::File::options().write(true).open(&huge).unwrap().set_len(1 << 40).unwrap();
    let after = (0..500).map(|number| scratch.file(&format!("c/{number}"), "content")).collect::<Vec<_>>();
    let tree = scratch.tree();
    let arguments = [&["hash", "-r"][..], attribute().1, &[text(&tree)]].concat();
    let mut command = scratch.command(&arguments);
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let begun = Instant::now();
    let labelled =
        |path: &PathBuf| imara_linux::files::xattr(fs::File::open(path).unwrap(), attribute().0).unwrap().is_some();
    while !small.iter().chain(&after).all(labelled) {
        assert!(begun.elapsed() < Duration::from_secs(60), "the others wait for the huge one");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(running.most_memory().unwrap() < 64 << 10, "{:?}", running.most_memory());
    drop(running);
    assert_eq!(scratch.label_of(&huge), "");
    let run = scratch.runs().pop().unwrap();
    assert_eq!((&run["state"], &run["files"]), (&"interrupted".into(), &510.into()));
}

#[test]
fn memory_stays_small_while_many_results_wait_for_one_file() {
    let scratch = Scratch::new();
    let first = scratch.file("%first", "");
    fs::File::options().write(true).open(&first).unwrap().set_len(1 << 30).unwrap();
    for number in 0..20_000 {
        // Their failures are told, with their long paths, after the first file.
        scratch.file(&format!("{}/{number}-{}", number % 50, "x".repeat(100)), "");
    }
    let tree = scratch.tree();
    let arguments = ["verify", "-r", "--json", "--xattr-user", text(&tree)];
    imara_linux::files::set_xattr(fs::File::open(&first).unwrap(), "user.ima", &[&[4, 4][..], &[7; 32]].concat())
        .unwrap();
    let mut command = scratch.command(&arguments);
    let mut running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let mut most = 0;
    while running.0.try_wait().unwrap().is_none() {
        most = running.most_memory().unwrap_or(most).max(most);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(most > 0 && most < 64 << 10, "{most} KiB");
}

#[test]
fn a_tree_deeper_than_any_path_is_labelled_and_undone() {
    let scratch = Scratch::new();
    let script =
        "for (1..800) { mkdir 'folder' and chdir 'folder' or die } open F, '>', 'deepest' or die; print F 'content'";
    let made = Command::new("perl").args(["-e", script]).current_dir(scratch.tree()).status();
    if !made.is_ok_and(|status| status.success()) {
        return println!("skipped: a_tree_deeper_than_any_path_is_labelled_and_undone: needs perl");
    }
    let tree = scratch.tree();
    let run = scratch.label(&["hash", "-r", "--json", text(&tree)]);
    assert_eq!((run.code, &run.summary()["hashed"]), (0, &1.into()), "{}", run.err);
    assert!(run.lines()[0]["path"].as_str().unwrap().len() > 5000);
    let again = scratch.label(&["hash", "-r", "--json", text(&tree)]);
    assert_eq!((again.code, &again.summary()["right"]), (0, &1.into()));
    let undone = scratch.run(&["undo", run.summary()["run"].as_str().unwrap()]);
    assert_eq!((undone.code, &*undone.out), (0, "1 file got the old label back\n"), "{}", undone.err);
}
