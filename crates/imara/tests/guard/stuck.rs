//! What never answers holds up those who ask for it, and nobody else.

use crate::scratch::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub const EVERYTHING: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK appraise_type=imasig\n\
                          measure func=FILE_CHECK mask=MAY_READ fsmagic=0x65735546\n";

/// A FUSE whose server does what the names say: `open-*` is never opened, `read-*` never read.
pub struct Fuse {
    place: PathBuf,
    server: Child,
}

impl Fuse {
    pub fn mount(scratch: &Scratch, place: &Path) -> Option<Self> {
        let (source, program) = (scratch.path("fuse.c"), scratch.path("fuse"));
        fs::write(&source, include_str!("fuse.c")).unwrap();
        must(command("cc").arg("-o").arg(&program).arg(&source));
        fs::create_dir_all(place).unwrap();
        let mut server = start(command(&program).arg(place).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        let said = server.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut line).unwrap();
        if line == "mounted\n" {
            return Some(Self { place: place.to_owned(), server });
        }
        println!("skipped: {place:?}: needs FUSE: {:?}", server.wait());
        None
    }

    pub fn on(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Whoever waits for it goes on with an error.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = output(command("umount").arg("-l").arg(&self.place));
    }
}

pub fn opener(scratch: &Scratch, path: &Path) -> Child {
    start(&mut scratch.tool(&["open", "0", path.to_str().unwrap(), "1"])).unwrap()
}

#[test]
fn a_file_system_that_never_answers_holds_up_nobody_else() {
    let mut scratch = scratch!("a_file_system_that_never_answers_holds_up_nobody_else");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    let (Some(dead), Some(alive)) =
        (Fuse::mount(&scratch, &scratch.on("dead")), Fuse::mount(&scratch, &scratch.on("alive")))
    else {
        return;
    };
    scratch.guard_with(EVERYTHING, "enforce", &["--follow", "below", "--deadline", "none"]);
    eventually("both are watched", PATIENCE, || scratch.status()["watch"].as_array().unwrap().len() == 3);
    assert!(opens(&alive.on("file")) && scratch.listed(&alive.on("file")) == 1);
    assert!(!runs(&alive.on("program")), "refused on it, too");
    let stuck = ["open", "read"].iter().flat_map(|kind| (0..40).map(move |number| format!("{kind}-{number}")));
    let mut waiting: Vec<Child> = stuck.map(|name| opener(&scratch, &dead.on(&name))).collect();
    thread::sleep(Duration::from_millis(300));
    assert!(waiting.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "they wait");
    let begun = Instant::now();
    for number in 0..20 {
        assert!(runs(&signed) && !runs(&unsigned));
        assert!(opens(&alive.on(&format!("another-{number}"))), "another of its kind");
    }
    assert!(begun.elapsed() < soon(10), "{:?}", begun.elapsed());
    assert!(scratch.alive());
    // In order, although threads of the guard are where not even a signal reaches them.
    signal(Signal::TERM, scratch.pid());
    eventually("nothing is guarded any more", soon(10), || runs(&unsigned));
    drop(dead);
    for child in &mut waiting {
        ended(child, PATIENCE).expect("nobody is left behind");
    }
}

#[test]
fn a_decision_that_stands_still_is_answered_in_time() {
    for (mode, on_deadline, expected) in [("enforce", "refuse", EPERM), ("enforce", "allow", 0), ("log", "refuse", 0)] {
        let mut scratch = scratch!("a_decision_that_stands_still_is_answered_in_time");
        let large = scratch.on("large");
        // Reading it takes longer than the deadline.
        fs::File::create(&large).unwrap().set_len(if level_2() { 1 << 28 } else { 3 << 30 }).unwrap();
        let Some(fuse) = Fuse::mount(&scratch, &scratch.on("fuse")) else {
            return;
        };
        let policy = format!("{EVERYTHING}measure func=FILE_CHECK mask=MAY_READ\n");
        let more = ["--follow", "below", "--deadline", "1s", "--on-deadline", on_deadline];
        scratch.guard_with(&policy, mode, &more);
        eventually("it is watched", PATIENCE, || scratch.status()["watch"].as_array().unwrap().len() == 2);
        let mut moving = opener(&scratch, &large);
        let path = fuse.on("read-this");
        let mut opening: Vec<Child> = (0..8).map(|_| opener(&scratch, &path)).collect();
        for child in &mut opening {
            let status = ended(child, soon(20)).expect("it is answered");
            assert_eq!(status.code(), Some(expected), "{mode} {on_deadline}");
        }
        let status = scratch.status();
        assert_eq!(status["kernel"]["overdue"], 8, "{status}");
        let recent = status["recent"].as_array().unwrap();
        let told = |record: &&serde_json::Value| record["cause"] == "no-decision-in-time";
        let record = recent.iter().find(told).unwrap_or_else(|| panic!("{status}"));
        assert_eq!(record["path"], path.to_str().unwrap(), "{record}");
        assert_eq!(record["refused"], expected == EPERM, "{record}");
        assert_eq!(ended(&mut moving, 2 * PATIENCE).unwrap().code(), Some(0), "{mode}: what moves is waited for");
        assert_eq!(scratch.listed(&large), 1);
    }
}
