//! What an ignore mark lets pass while it is taken back, by a group that refuses everything on a file system of its own.

use imara_linux::sys::fanotify::{EventBuffer, Mask, PermissionGroup, Told};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A file system in memory.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Result<Self, String> {
        let scratch = Self(tempfile::tempdir().map_err(|error| error.to_string())?);
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(scratch.0.path()).output();
        match mounted {
            Ok(done) if done.status.success() => Ok(scratch),
            other => Err(format!("needs a mount: {other:?}")),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing of it is open any more.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Keeps the calling thread on a processor, as far as there are so many.
fn stay_on(processor: usize) {
    let mut processors = rustix::thread::CpuSet::new();
    processors.set(processor);
    // Where there is but one, they take turns.
    let _ = rustix::thread::sched_setaffinity(None, &processors);
}

/// Opens `path` again and again while `change` is done to its mark; how often it was refused, and how often it passed.
fn opened_while(group: &PermissionGroup, path: &Path, mut change: impl FnMut()) -> (u64, u64) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            stay_on(0);
            let mut buffer = EventBuffer::new(16);
            while !over.load(Ordering::Relaxed) {
                let mut events = [PollFd::new(group, PollFlags::IN)];
                let a_while = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                if rustix::event::poll(&mut events, Some(&a_while)).unwrap() == 0 {
                    continue;
                }
                group
                    .read(&mut buffer, |told| {
                        if let Told::Asked(event) = told {
                            // ENOENT: who asked is gone.
                            let _ = group.answer(event.file.as_fd(), false);
                        }
                    })
                    .unwrap();
            }
        });
        let opener = scope.spawn(|| {
            // Beside who answers it, and away from who changes the mark.
            stay_on(0);
            let (mut refused, mut passed) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                match File::open(path) {
                    Ok(_) => passed += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                        refused += 1;
                    }
                }
            }
            // The listener answers as long as somebody asks.
            (refused, passed)
        });
        stay_on(1);
        let until = Instant::now() + Duration::from_millis(700);
        while Instant::now() < until {
            change();
        }
        // Whoever waits is asked about once more.
        over.store(true, Ordering::Relaxed);
        listener.join().unwrap();
        group.unwatch_everything().unwrap();
        let mut buffer = EventBuffer::new(16);
        while !opener.is_finished() {
            if group.is_pending().unwrap() {
                let refuse = |told| {
                    if let Told::Asked(event) = told {
                        let _ = group.answer(event.file.as_fd(), false);
                    }
                };
                group.read(&mut buffer, refuse).unwrap();
            }
        }
        opener.join().unwrap()
    })
}

#[test]
fn nobody_passes_unasked_while_what_a_mark_ignores_is_taken_back() {
    const NAME: &str = "nobody_passes_unasked_while_what_a_mark_ignores_is_taken_back";
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(reason) => return println!("skipped: {NAME}: {reason}"),
    };
    let path = scratch.file("file");
    let file = File::open(&path).unwrap();
    let folder = File::open(scratch.0.path()).unwrap();
    let group = match PermissionGroup::open() {
        Ok(group) => group,
        Err(error) => return println!("skipped: {NAME}: needs permission events: {error}"),
    };
    // What it ignores is not what is done, so that nothing may pass.
    let mark = || group.ignore_inode(file.as_fd(), Mask::OPEN_EXEC).unwrap();
    for (name, take_back, closed) in [
        ("by itself", &(|| group.ask_again_descriptor(file.as_fd())) as &dyn Fn() -> io::Result<()>, true),
        ("with all marks", &|| group.ask_again_all(), false),
    ] {
        group.watch_filesystem(folder.as_fd(), Mask::OPEN).unwrap();
        let mut times = 0u64;
        let (refused, passed) = opened_while(&group, &path, || {
            mark();
            take_back().unwrap();
            times += 1;
        });
        println!("taken back {name}: {times} times; refused {refused}, passed {passed}");
        assert!(refused > 0 && times > 0);
        // One more may pass where the file system is watched no longer, at the end.
        assert!(!closed || passed <= 1, "{name}: {passed} passed");
    }
}

#[test]
fn the_kernel_lists_what_is_ignored_until_it_is_not() {
    const NAME: &str = "the_kernel_lists_what_is_ignored_until_it_is_not";
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(reason) => return println!("skipped: {NAME}: {reason}"),
    };
    let group = match PermissionGroup::open() {
        Ok(group) => group,
        Err(error) => return println!("skipped: {NAME}: needs permission events: {error}"),
    };
    let listed = || {
        let mut listed = Vec::new();
        group.each_ignored(|ignored| listed.push(ignored)).unwrap();
        listed
    };
    let (file, gone) = (File::open(scratch.file("file")).unwrap(), File::open(scratch.file("gone")).unwrap());
    let folder = File::open(scratch.0.path()).unwrap();
    std::fs::remove_file(scratch.0.path().join("gone")).unwrap();
    group.ignore_inode_for_good(folder.as_fd(), Mask::OPEN).unwrap();
    assert_eq!(listed(), [], "what is ignored for good is of no interest");
    for file in [&file, &gone] {
        group.ignore_inode(file.as_fd(), Mask::OPEN).unwrap();
    }
    let all = listed();
    assert_eq!(all.len(), 2);
    for file in [&file, &gone] {
        let stat = rustix::fs::fstat(file).unwrap();
        let found = all.iter().find(|ignored| ignored.inode == stat.st_ino).expect("it is listed");
        assert_eq!(found.device, stat.st_dev);
        assert_eq!(found.handle, Some(imara_linux::sys::identity::handle(file.as_fd()).unwrap()));
    }
    group.ask_again_descriptor(file.as_fd()).unwrap();
    assert_eq!(listed().len(), 1, "the mark stays, and ignores nothing");
    group.ask_again_all().unwrap();
    assert_eq!(listed(), []);
}
