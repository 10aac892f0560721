//! Content that is changed between its check and its use: nothing that nobody verified may run.
//!
//! A program is executed over and over while somebody else puts another one in its place, or changes it in place, as fast as
//! the machine can. How long is tried is told by IMARA_RACE_MS, for each way.

use crate::scratch::*;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends with 0, or with 42 once the byte behind the marker is another one.
const PROGRAM: &str = r#"
static volatile char marker[] = "IMARA-RACE-0";
int main(void) { return marker[11] == '0' ? 0 : 42; }
"#;

struct Counts {
    ran: u64,
    refused: u64,
    other: u64,
    unverified: u64,
}

fn race(scratch: &Scratch, kind: &str, program: &Path, other: &Path) -> Counts {
    let milliseconds = std::env::var("IMARA_RACE_MS").unwrap_or_else(|_| "1500".into());
    let mut race = command(scratch.path("race"));
    let done = must(race.arg(kind).arg(program).arg(other).arg(&milliseconds).uid(USER).gid(USER));
    let counts: Vec<u64> = text(&done.stdout).split_whitespace().map(|count| count.parse().unwrap()).collect();
    let &[ran, refused, other, unverified] = &counts[..] else { panic!("{done:?}") };
    println!("{kind}: ran {ran}, refused {refused}, busy or torn {other}, unverified {unverified}");
    Counts { ran, refused, other, unverified }
}

fn own(path: &Path) {
    std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
}

/// An overlay that is unmounted whatever becomes of the test.
struct Overlay(std::path::PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        for attempt in 0..100 {
            let how: &[&str] = if attempt < 99 { &[] } else { &["-l"] };
            if output(command("umount").args(how).arg(&self.0)).is_ok_and(|done| done.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// The programs that race, outside of what is watched.
fn prepare(scratch: &Scratch) {
    std::fs::write(scratch.path("race.c"), include_str!("race.c")).unwrap();
    must(command("cc").args(["-O1", "-pthread", "-o"]).arg(scratch.path("race")).arg(scratch.path("race.c")));
    std::fs::write(scratch.path("program.c"), PROGRAM).unwrap();
    must(command("cc").args(["-O1", "-o"]).arg(scratch.path("good")).arg(scratch.path("program.c")));
    // The same but for the byte that decides.
    let bytes = std::fs::read(scratch.path("good")).unwrap();
    let marker = b"IMARA-RACE-0";
    let at = bytes.windows(marker.len()).position(|window| window == marker).unwrap();
    let mut evil = bytes;
    evil[at + marker.len() - 1] = b'1';
    std::fs::write(scratch.path("evil"), evil).unwrap();
    std::fs::set_permissions(scratch.path("evil"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ends = output(&mut command(scratch.path("evil"))).unwrap().status.code();
    assert_eq!(ends, Some(42), "the other program can be told from the signed one");
}

/// Races each way under `policy`.
fn races(scratch: Scratch, policy: &str, kinds: &[&str]) {
    races_while(scratch, policy, kinds, |_| {});
}

/// The same, while `meanwhile` is done over and over.
fn races_while(mut scratch: Scratch, policy: &str, kinds: &[&str], meanwhile: impl Fn(&Scratch) + Sync) {
    prepare(&scratch);
    // Whoever races may write there; root could end the guard as well.
    own(&scratch.mnt);
    let places: Vec<_> = kinds.iter().map(|kind| (scratch.on(kind), scratch.on(&format!("{kind}.other")))).collect();
    for (program, other) in &places {
        copy(scratch.path("good"), program);
        copy(scratch.path("evil"), other);
        own(program);
        own(other);
        scratch.sign(&[program]);
        // The signed inode by a further name, for the ways that put it back.
        std::fs::hard_link(program, format!("{}.good", program.display())).unwrap();
    }
    settle();
    scratch.guard(policy, "enforce");
    for (kind, (program, other)) in kinds.iter().zip(&places) {
        assert!(runs(program), "{kind}: before");
        let over = AtomicBool::new(false);
        let counts = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    meanwhile(&scratch);
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            });
            let raced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| race(&scratch, kind, program, other)));
            over.store(true, Ordering::Relaxed);
            raced.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        assert_eq!(counts.unverified, 0, "{kind}");
        assert!(counts.ran > 0, "{kind}: the signed one is let run in between");
        assert!(counts.refused + counts.other > 0, "{kind}: something was in the way of the other one");
    }
    assert!(scratch.alive());
    scratch.proven();
}

#[test]
fn nothing_unverified_runs_whatever_is_changed_between_check_and_use() {
    let scratch = scratch!("nothing_unverified_runs_whatever_is_changed_between_check_and_use");
    races(scratch, SIGNED_PROGRAMS, &["rename", "link", "write", "mapping", "truncate"]);
}

/// Then files have ignore marks and leases, which go when they are written to.
#[test]
fn nothing_unverified_runs_where_opening_is_asked_about_as_well() {
    let scratch = scratch!("nothing_unverified_runs_where_opening_is_asked_about_as_well");
    let policy = format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n");
    races(scratch, &policy, &["write", "truncate"]);
}

/// A switch has everything asked about anew.
#[test]
fn nothing_unverified_runs_while_policies_are_replaced() {
    let scratch = scratch!("nothing_unverified_runs_while_policies_are_replaced");
    let policy = format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n");
    let policies = ["one", "other"].map(|name| scratch.path(name));
    std::fs::write(&policies[0], &policy).unwrap();
    std::fs::write(&policies[1], format!("dont_measure func=FILE_CHECK uid=4242\n{policy}")).unwrap();
    races_while(scratch, &policy, &["write", "rename"], |scratch| {
        for policy in &policies {
            must(&mut scratch.command(&["policy", "load", "--force", policy.to_str().unwrap()]));
        }
    });
}

#[test]
fn nothing_unverified_runs_on_an_overlay_whatever_is_copied_up() {
    let mut scratch = scratch!("nothing_unverified_runs_on_an_overlay_whatever_is_copied_up");
    prepare(&scratch);
    for folder in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(scratch.on(folder)).unwrap();
    }
    let program = scratch.on("lower/program");
    copy(scratch.path("good"), &program);
    scratch.sign(&[&program]);
    for path in ["lower", "upper", "work", "lower/program"] {
        own(&scratch.on(path));
    }
    let merged = scratch.path("merged");
    std::fs::create_dir(&merged).unwrap();
    let layers = ["lower", "upper", "work"].map(|layer| scratch.on(layer).display().to_string());
    let options = format!("lowerdir={},upperdir={},workdir={}", layers[0], layers[1], layers[2]);
    let mounted = output(command("mount").args(["-t", "overlay", "none", "-o", &options]).arg(&merged)).unwrap();
    if !mounted.status.success() {
        println!(
            "skipped: nothing_unverified_runs_on_an_overlay_whatever_is_copied_up: needs overlayfs: {}",
            text(&mounted.stderr).trim()
        );
        return;
    }
    let overlay = Overlay(merged.clone());
    let policy = scratch.path("policy");
    std::fs::write(&policy, SIGNED_PROGRAMS).unwrap();
    let key = scratch.certificate();
    if let Err(failed) = scratch.launch_with(&merged, &policy, &key, "enforce", &[]) {
        panic!("the guard did not start: {}", failed.stderr);
    }
    let shown = merged.join("program");
    let ran = runs(&shown);
    let counts = race(&scratch, "copy-up", &shown, &shown);
    let alive = scratch.alive();
    scratch.guards.clear();
    drop(overlay);
    assert!(ran && alive);
    assert_eq!(counts.unverified, 0);
    assert!(counts.refused > 0, "the changed copy is refused");
}

#[test]
fn another_file_with_the_same_inode_number_is_judged_for_itself() {
    let mut scratch = scratch!("another_file_with_the_same_inode_number_is_judged_for_itself");
    let program = scratch.signed_program("first");
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&program) && runs(&program));
    let number = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&program).unwrap());
    std::fs::remove_file(&program).unwrap();
    // The file system gives the number out again, to one of the next files.
    let next = (0..200).map(|count| scratch.program(&format!("next-{count}")));
    let same =
        next.into_iter().find(|path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap()) == number);
    let same = same.expect("ext4 takes the lowest free number");
    assert!(!runs(&same), "the verdict was of a file that is no more");
}
