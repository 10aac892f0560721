//! Runs that are killed at any moment: every file has its old label or its new one, and the run can be gone on with and undone.

use crate::scratch::{Scratch, attribute, text};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// Files whose old label is a digest of other content, `04 02` and 20 bytes of 7.
fn labelled_tree(scratch: &Scratch, count: usize) -> Vec<PathBuf> {
    let old = [&[4, 2][..], &[7; 20]].concat();
    let file = |number: usize| {
        let path = scratch.file(&format!("{}/{number}", number % 7), format!("content {number}"));
        imara_linux::files::set_xattr(std::fs::File::open(&path).unwrap(), attribute().0, &old).unwrap();
        path
    };
    (0..count).map(file).collect()
}

fn label(path: &PathBuf) -> Vec<u8> {
    let label = imara_linux::files::xattr(std::fs::File::open(path).unwrap(), attribute().0).unwrap();
    label.unwrap_or_else(|| panic!("{}: has no label", path.display()))
}

/// How large the journals are together.
fn journals(scratch: &Scratch) -> u64 {
    let entries = std::fs::read_dir(scratch.path("runs")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_killed_run_leaves_old_or_new_labels_and_is_gone_on_with_and_undone() {
    let scratch = Scratch::new();
    let (key, certificate) = scratch.key("rsa2048");
    let files = labelled_tree(&scratch, 3000);
    let tree = scratch.tree();
    let command = [&["sign", "-r", "-k", &key][..], attribute().1, &[text(&tree)]].concat();
    let (mut run, mut new_before) = (None::<String>, 0);
    for delay in [0, 3, 40, 11, 70, 25, 120, 5] {
        let resume = run.as_deref().map_or(vec![], |run| vec!["--resume", run]);
        let written = journals(&scratch);
        let mut child = scratch.command(&[&command[..], &resume].concat());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From when it has announced something.
        while journals(&scratch) < written + 1000 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let new = files.iter().filter(|path| match label(path).as_slice() {
            [4, 2, rest @ ..] => {
                assert_eq!(rest, [7; 20]);
                false
            }
            [3, 2, ..] => true,
            other => panic!("{other:?}"),
        });
        let new = new.count();
        assert!(new >= new_before, "what was done stays done: {new} of {new_before}");
        new_before = new;
        let runs = scratch.runs();
        let [found] = &runs[..] else { panic!("{runs:?}") };
        run = found["run"].as_str().map(str::to_owned);
        if found["state"] != "interrupted" {
            break;
        }
    }
    let run = run.unwrap();
    if scratch.runs()[0]["state"] == "interrupted" {
        let resumed = scratch.run(&[&command[..], &["--json", "--resume", &run]].concat());
        assert_eq!(resumed.code, 0, "{}", resumed.err);
        let summary = resumed.summary();
        assert_eq!(summary["signed"].as_u64().unwrap() + summary["right"].as_u64().unwrap(), 3000);
        // Files of the last batches are done again, at most: each of eight threads has one at a time, for each kill.
        assert!(summary["right"].as_u64().unwrap() + 2048 > new_before as u64, "{summary} {new_before}");
    }
    let verify = [&["verify", "-r", "--quiet", "-k", &certificate][..], attribute().1, &[text(&tree)]].concat();
    assert_eq!(scratch.run(&verify).code, 0);
    let undone = scratch.run(&["undo", &run]);
    assert_eq!(undone.code, 0, "{}", undone.err);
    assert!(files.iter().all(|path| label(path) == [&[4, 2][..], &[7; 20]].concat()));
}

#[test]
fn a_killed_run_is_undone_as_far_as_it_came() {
    let scratch = Scratch::new();
    let files = labelled_tree(&scratch, 2000);
    let tree = scratch.tree();
    let command = [&["hash", "-r"][..], attribute().1, &[text(&tree)]].concat();
    for delay in [2, 8, 15, 30] {
        let mut child = scratch.command(&command);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        for run in scratch.runs() {
            let run = run["run"].as_str().unwrap();
            let undone = scratch.run(&["undo", run]);
            assert_eq!(undone.code, 0, "{}", undone.err);
            assert_eq!(scratch.run(&["undo", "--forget", run]).code, 0);
        }
        assert!(files.iter().all(|path| label(path) == [&[4, 2][..], &[7; 20]].concat()));
    }
}
