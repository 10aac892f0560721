//! Undoing runs, and going on with them.

use crate::scratch::{Scratch, privileged, text};
use std::fs;

#[test]
fn a_run_is_undone_to_the_labels_that_were_there() {
    let scratch = Scratch::new();
    let (key, _) = scratch.key("p256");
    let (other, _) = scratch.key("rsa2048");
    let tree = scratch.tree();
    let [bare, signed, hashed] = ["bare", "signed", "hashed"].map(|name| scratch.file(name, name));
    assert_eq!(scratch.label(&["sign", "-k", &key, text(&signed)]).code, 0);
    assert_eq!(scratch.label(&["hash", text(&hashed)]).code, 0);
    let labels = || [&bare, &signed, &hashed].map(|path| scratch.label_of(path));
    let before = labels();
    assert!(scratch.runs().is_empty(), "files that are named have no journal");
    for (command, changed) in [
        (vec!["sign", "-k", &other, "-r"], 3),
        (vec!["hash", "-r", "--replace-signatures", "-a", "sha512"], 3),
        (vec!["clear", "-r"], 2),
    ] {
        let run = scratch.label(&[&command[..], &[text(&tree), "--json"]].concat());
        assert_eq!(run.code, 0, "{command:?}: {}", run.err);
        let name = run.summary()["run"].as_str().unwrap().to_owned();
        assert_ne!(labels(), before);
        let tried = scratch.run(&["undo", "--dry-run", &name]);
        assert!(tried.out.ends_with(&format!("{changed} files would get the old label back\n")), "{}", tried.out);
        assert_ne!(labels(), before);
        let undone = scratch.run(&["undo", &name]);
        assert_eq!((undone.code, undone.out), (0, format!("{changed} files got the old label back\n")), "{command:?}");
        assert_eq!(labels(), before, "{command:?}");
        let again = scratch.run(&["undo", &name]);
        assert!(again.code == 1 && again.err.contains("was undone already"), "{}", again.err);
        assert_eq!(scratch.runs().pop().unwrap()["state"], "undone");
        assert_eq!(scratch.run(&["undo", "--forget", &name]).code, 0);
        assert!(scratch.runs().is_empty());
    }
}

#[test]
fn what_was_changed_after_the_run_is_left_alone() {
    let scratch = Scratch::new();
    let (key, _) = scratch.key("p256");
    let tree = scratch.tree();
    let [relabelled, replaced, gone, edited] =
        ["relabelled", "replaced", "gone", "edited"].map(|name| scratch.file(name, name));
    let run = scratch.label(&["hash", "-r", "--json", "tree"]);
    let name = run.summary()["run"].as_str().unwrap().to_owned();
    assert_eq!(scratch.label(&["sign", "-k", &key, text(&relabelled)]).code, 0);
    let label = scratch.label_of(&relabelled);
    let new = scratch.path("new");
    fs::write(&new, "other").unwrap();
    fs::rename(&new, &replaced).unwrap();
    fs::remove_file(&gone).unwrap();
    fs::write(&edited, "edited content").unwrap();
    // Relative paths are those of the run, wherever it is undone.
    let undone = super::scratch::ran(scratch.command(&["undo", &name]).current_dir("/").output().unwrap());
    assert_eq!(undone.code, 1);
    for reason in [
        "relabelled: security.ima was changed after the run",
        "replaced: another file has this name by now",
        "gone: No such file",
        "--force puts the old labels back",
    ] {
        let reason = if privileged() { reason.to_owned() } else { reason.replace("security.ima", "user.ima") };
        assert!(undone.err.contains(&reason), "{}", undone.err);
    }
    assert_eq!([scratch.label_of(&relabelled), scratch.label_of(&edited)], [label, String::new()]);
    assert_eq!(scratch.run(&["undo", "--force", &name]).code, 1);
    assert_eq!(scratch.label_of(&relabelled), "");
    assert!(tree.join("replaced").exists());
}

#[test]
fn a_run_is_gone_on_with_only_by_its_own_command() {
    let scratch = Scratch::new();
    scratch.file("file", "a");
    let tree = scratch.tree();
    let run = scratch.label(&["hash", "-r", "--json", text(&tree)]).summary();
    let name = run["run"].as_str().unwrap();
    for (command, reason) in [
        (vec!["hash", "-r", "-a", "sha512"], "was to write something else"),
        (vec!["clear", "-r"], "was to write something else"),
        (vec!["hash", "-r"], "came to its end"),
    ] {
        let resumed = scratch.label(&[&command[..], &["--resume", name, text(&tree)]].concat());
        assert!(resumed.code > 0 && resumed.err.contains(reason), "{command:?}: {}", resumed.err);
    }
    let missing = scratch.label(&["hash", "-r", "--resume", "none", text(&tree)]);
    assert!(missing.code == 1 && missing.err.contains("imara undo --list"), "{}", missing.err);
}

#[test]
fn signatures_beside_the_files_of_a_tree_are_not_signed_in_their_turn() {
    let scratch = Scratch::new();
    let (key, certificate) = scratch.key("p256");
    let tree = scratch.tree();
    for number in 0..100 {
        scratch.file(&format!("file{number}"), number.to_string());
    }
    let count = || fs::read_dir(&tree).unwrap().count();
    let sign = ["sign", "-r", "--sigfile", "--json", "-k", &key, text(&tree)];
    let first = scratch.run(&sign);
    assert_eq!((first.code, &first.summary()["signed"], count()), (0, &100.into(), 200), "{}", first.err);
    let before = fs::read(tree.join("file7.sig")).unwrap();
    let second = scratch.run(&sign);
    assert_eq!((second.code, &second.summary()["signed"], count()), (0, &100.into(), 200), "{}", second.err);
    let verified = scratch.run(&["verify", "-r", "--sigfile", "--json", "-k", &certificate, text(&tree)]);
    assert_eq!((verified.code, &verified.summary()["signed"]), (0, &100.into()), "{}", verified.err);
    let run = |ran: &super::scratch::Ran| ran.summary()["run"].as_str().unwrap().to_owned();
    let cleared = scratch.run(&["clear", "-r", "--sigfile", "--json", text(&tree)]);
    assert_eq!((cleared.code, &cleared.summary()["cleared"], count()), (0, &100.into(), 100), "{}", cleared.err);
    for ran in [&cleared, &second] {
        assert_eq!(scratch.run(&["undo", &run(ran)]).code, 0);
    }
    assert_eq!((fs::read(tree.join("file7.sig")).unwrap(), count()), (before, 200));
    assert_eq!(scratch.run(&["undo", &run(&first)]).code, 0);
    assert_eq!(count(), 100);
}

/// Where the blocks of a journal begin.
fn blocks_of(journal: &[u8]) -> Vec<usize> {
    let (mut places, mut place) = (Vec::new(), 8);
    while place < journal.len() {
        places.push(place);
        place += 9 + u32::from_le_bytes(journal[place + 1..place + 5].try_into().unwrap()) as usize;
    }
    places
}

#[test]
fn a_damaged_journal_is_undone_only_by_force_and_loses_nothing() {
    let scratch = Scratch::new();
    let files = (0..200).map(|number| scratch.file(&format!("file{number}"), "content")).collect::<Vec<_>>();
    let tree = scratch.tree();
    let run = scratch.label(&["hash", "-r", "--json", text(&tree)]);
    assert_eq!(run.code, 0, "{}", run.err);
    let name = run.summary()["run"].as_str().unwrap().to_owned();
    let path = scratch.path("runs").join(format!("{name}.journal"));
    let whole = fs::read(&path).unwrap();
    let changes = blocks_of(&whole).into_iter().filter(|place| whole[*place] == 2).collect::<Vec<_>>();
    assert!(changes.len() >= 3, "{changes:?}");
    let second = changes[1];
    let labelled = || files.iter().filter(|file| !scratch.label_of(file).is_empty()).count();
    let beside = scratch.path("runs").join(format!("{name}.journal.damaged-{second}"));
    // A byte within a block; a length that leads beyond the end, as one that is cut off has, and one that none has.
    for (place, byte, expected) in
        [(second + 20, 1, "checksum"), (second + 3, 0x0f, "cut off"), (second + 4, 0xf0, "claims")]
    {
        let mut damaged = whole.clone();
        damaged[place] ^= byte;
        fs::write(&path, &damaged).unwrap();
        for arguments in [&["undo", &name][..], &["undo", "--dry-run", &name], &["undo", "--quiet", &name]] {
            let refused = scratch.run(arguments);
            assert_eq!(refused.code, 1, "{}", refused.err);
            let all = [expected, &format!("offset {second}"), "nothing was changed", "undo --force"];
            assert!(all.iter().all(|part| refused.err.contains(part)), "{}", refused.err);
        }
        let resumed = scratch.label(&["hash", "-r", text(&tree), "--resume", &name]);
        assert!(resumed.code == 1 && resumed.err.contains("cannot be gone on with"), "{}", resumed.err);
        assert!(!beside.exists() && fs::read(&path).unwrap() == damaged);
    }
    assert_eq!(labelled(), 200);
    let damaged = fs::read(&path).unwrap();
    for left in ["got the old label back", "0 files got"] {
        let forced = scratch.run(&["undo", "--force", &name]);
        assert!(forced.code == 1 && forced.out.contains(left), "{}{}", forced.out, forced.err);
        let all = [format!("offset {second}"), text(&beside).to_owned(), "label them anew".to_owned()];
        assert!(all.iter().all(|part| forced.err.contains(part)), "{}", forced.err);
        assert!((1..200).contains(&labelled()));
        assert!(fs::read(&beside).unwrap() == damaged[second..] && fs::read(&path).unwrap() == damaged);
    }
    // A journal that is put back is undone in full.
    fs::write(&path, &whole).unwrap();
    assert_eq!(scratch.run(&["undo", &name]).code, 0);
    assert_eq!(labelled(), 0);
}

#[test]
fn a_journal_that_is_cut_off_at_its_end_is_gone_on_with_and_undone() {
    let scratch = Scratch::new();
    (0..100).for_each(|number| drop(scratch.file(&format!("file{number}"), "content")));
    let tree = scratch.tree();
    let run = scratch.label(&["hash", "-r", "--json", text(&tree)]);
    let name = run.summary()["run"].as_str().unwrap().to_owned();
    let path = scratch.path("runs").join(format!("{name}.journal"));
    let whole = fs::read(&path).unwrap();
    let cut = || fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    cut();
    let resumed = scratch.label(&["hash", "-r", text(&tree), "--resume", &name]);
    assert_eq!(resumed.code, 0, "{}", resumed.err);
    cut();
    let undone = scratch.run(&["undo", &name]);
    assert_eq!((undone.code, &*undone.out, &*undone.err), (0, "100 files got the old label back\n", ""));
    assert_eq!(scratch.runs().pop().unwrap()["state"], "undone");
}
