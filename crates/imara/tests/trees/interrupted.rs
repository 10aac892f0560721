//! Runs that SIGINT or SIGTERM ends: they say how far they came and how to go on, and end by the signal.

use crate::scratch::{Scratch, attribute, text};
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn send(signal: i32, child: &Child) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

/// By which signal it ended, and what it said.
fn ended(mut child: Child) -> (Option<i32>, String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut out).unwrap();
    }
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (child.wait().unwrap().signal(), out, err)
}

fn is_labelled(path: &Path) -> bool {
    imara_linux::files::xattr(File::open(path).unwrap(), attribute().0).unwrap().is_some()
}

fn wait_until(what: &str, mut state: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if state() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("{what}: not within two minutes");
}

/// More than hashing comes to in a test's time, and no room on the disk.
fn endless(scratch: &Scratch, name: &str) -> bool {
    let path = scratch.file(name, "");
    File::options().write(true).open(path).unwrap().set_len(1 << 42).is_ok()
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_how_to_undo_it_and_both_can_be_done() {
    let scratch = Scratch::new();
    let (key, certificate) = scratch.key("p256");
    let files = (0..100).map(|number| scratch.file(&format!("{number:03}"), format!("{number}"))).collect::<Vec<_>>();
    let list = files.iter().map(|path| format!("{}\n", text(path))).collect::<Vec<_>>();
    for signal in [SIGINT, SIGTERM] {
        // The list does not end: the run waits for more of it.
        let command = [&["sign", "-k", &key][..], attribute().1, &["--files-from", "-"]].concat();
        let mut child = scratch.command(&command);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(list[..70].concat().as_bytes()).unwrap();
        wait_until("two batches are signed", || files[..64].iter().all(|path| is_labelled(path)));
        send(signal, &child);
        let (by, out, err) = ended(child);
        drop(input);
        let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
        assert_eq!(by, Some(signal), "{out}{err}");
        assert!(err.contains(&format!("imara: interrupted by {name} after 64 files\n")), "{err}");
        let runs = scratch.runs();
        let [run] = &runs[..] else { panic!("{runs:?}") };
        let run = run["run"].as_str().unwrap().to_owned();
        assert_eq!(runs[0]["state"], "interrupted");
        let next = format!("the same command with --resume {run}; or undo it: imara undo {run}\n");
        assert!(err.contains(&next), "{err}");
        assert!(!files[70..].iter().any(|path| is_labelled(path)));
        if signal == SIGINT {
            let all = scratch.path("list");
            std::fs::write(&all, list.concat()).unwrap();
            let whole = [&["sign", "-k", &key][..], attribute().1, &["--files-from", text(&all)]].concat();
            let resumed = scratch.run(&[&whole[..], &["--json", "--resume", &run]].concat());
            assert_eq!(resumed.code, 0, "{}", resumed.err);
            let summary = resumed.summary();
            assert_eq!((&summary["right"], &summary["signed"]), (&json!(64), &json!(36)), "{summary}");
            assert_eq!(summary["interrupted"], json!(false));
            let tree = scratch.tree();
            let verify = [&["verify", "-r", "-k", &certificate, text(&tree)][..], attribute().1].concat();
            assert_eq!(scratch.run(&verify).code, 0);
        }
        let undone = scratch.run(&["undo", &run]);
        assert_eq!(undone.code, 0, "{}", undone.err);
        assert!(!files.iter().any(|path| is_labelled(path)));
        assert_eq!(scratch.run(&["undo", "--forget", &run]).code, 0);
    }
}

#[test]
fn a_large_file_is_not_read_to_its_end_first() {
    let scratch = Scratch::new();
    let first = scratch.file("a", "small");
    if !endless(&scratch, "b") {
        return println!("skipped: a_large_file_is_not_read_to_its_end_first: no sparse files of 4 TiB here");
    }
    let tree = scratch.tree();
    let command = [&["hash", "-r", "--json", text(&tree)][..], attribute().1].concat();
    let child = scratch.command(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the small one is hashed", || is_labelled(&first));
    send(SIGTERM, &child);
    let (by, out, err) = ended(child);
    assert_eq!(by, Some(SIGTERM), "{out}{err}");
    assert!(err.contains("interrupted by SIGTERM after 1 file\n"), "{err}");
    let summary: serde_json::Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let summary = &summary["summary"];
    assert_eq!((&summary["hashed"], &summary["untried"]), (&json!(1), &json!(1)), "{summary}");
    assert_eq!((&summary["failed"], &summary["interrupted"]), (&json!(0), &json!(true)), "{summary}");
    assert!(!is_labelled(&scratch.tree().join("b")));
}

#[test]
fn an_interrupted_verification_does_not_pass_for_a_whole_one() {
    let scratch = Scratch::new();
    for number in 0..32 {
        scratch.file(&format!("a/{number:02}"), "small");
    }
    let tree = scratch.tree();
    let hash = [&["hash", "-r", "--quiet", text(&tree)][..], attribute().1].concat();
    assert_eq!(scratch.run(&hash).code, 0);
    if !endless(&scratch, "b") {
        return println!(
            "skipped: an_interrupted_verification_does_not_pass_for_a_whole_one: no sparse files of 4 TiB here"
        );
    }
    let label = [&[4, 4][..], &[7; 32]].concat();
    let large = File::open(scratch.tree().join("b")).unwrap();
    imara_linux::files::set_xattr(large, attribute().0, &label).unwrap();
    let verify = [&["verify", "-r", "-v", text(&tree)][..], attribute().1].concat();
    let mut child = scratch.command(&verify).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("a/00: unchanged"), "{line}");
    send(SIGINT, &child);
    out.read_to_string(&mut line).unwrap();
    let (by, _, err) = ended(child);
    assert_eq!(by, Some(SIGINT), "{line}{err}");
    assert!(line.ends_with('\n') && line.contains("\n32 files: 32 unchanged"), "{line}");
    assert!(err.contains("interrupted by SIGINT after 32 files\n") && err.contains("begin again"), "{err}");
}

#[test]
fn a_run_that_was_to_ignore_interrupts_does() {
    let scratch = Scratch::new();
    let files = (0..70).map(|number| scratch.file(&format!("{number}"), "content")).collect::<Vec<_>>();
    let mut shell = Command::new("sh");
    let line = "trap '' INT; exec \"$@\"";
    let words = [&["hash", "--quiet"][..], attribute().1, &["--files-from", "-"]].concat();
    shell.args(["-c", line, "sh", env!("CARGO_BIN_EXE_imara")]).args(words);
    shell.env("IMARA_JOURNAL_DIR", scratch.path("runs")).current_dir(scratch.path("."));
    let mut child = shell.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let list = |files: &[std::path::PathBuf]| files.iter().map(|path| format!("{}\n", text(path))).collect::<String>();
    input.write_all(list(&files[..66]).as_bytes()).unwrap();
    wait_until("a batch is hashed", || is_labelled(&files[0]));
    send(SIGINT, &child);
    input.write_all(list(&files[66..]).as_bytes()).unwrap();
    drop(input);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{err}");
    assert!(files.iter().all(|path| is_labelled(path)));
}
