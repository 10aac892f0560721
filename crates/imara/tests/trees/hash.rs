//! `imara hash`: which labels it writes, and which it leaves.

use crate::scratch::{Scratch, attribute, other, text};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

/// `04 04` and the SHA-256 of nothing, of `a`.
const EMPTY: &str = "0404e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const A: &str = "0404ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";

#[test]
fn a_tree_gets_labels_once_and_what_is_right_is_left_alone() {
    let scratch = Scratch::new();
    let (empty, a) = (scratch.file("empty", ""), scratch.file("inner/a", "a"));
    fs::hard_link(&a, scratch.tree().join("z")).unwrap();
    symlink(&a, scratch.tree().join("link")).unwrap();
    let tree = scratch.tree();
    let hash = ["hash", "-r", "--json", text(&tree)];

    let first = scratch.label(&hash);
    assert_eq!(first.code, 0, "{}", first.err);
    let summary = first.summary();
    assert_eq!(
        (&summary["hashed"], &summary["right"], &summary["skipped"]["hard_links"]),
        (&2.into(), &0.into(), &1.into())
    );
    assert_eq!(first.lines()[0]["path"], text(&empty));
    assert_eq!(first.lines()[1]["labels"][attribute().0]["new"], A);
    assert_eq!([scratch.label_of(&empty), scratch.label_of(&a)], [EMPTY, A]);

    // The label is not even written: no time changes.
    let changed = |path| fs::metadata(path).map(|metadata| (metadata.ctime(), metadata.ctime_nsec())).unwrap();
    let before = changed(&a);
    fs::write(&empty, "a").unwrap();
    let second = scratch.label(&hash);
    assert_eq!((second.code, &second.summary()["hashed"], &second.summary()["right"]), (0, &1.into(), &1.into()));
    assert_eq!((changed(&a), scratch.label_of(&empty)), (before, A.to_owned()));
    assert_eq!(scratch.label(&[&hash[..], &["--all"]].concat()).summary()["hashed"], 2);

    // Another hash is another label.
    assert_eq!(scratch.label(&[&hash[..], &["--algo", "sha1"]].concat()).summary()["hashed"], 2);
    assert_eq!(scratch.label_of(&a), "0186f7e437faa5a7fce15d1ddcb9eaeaea377667b8");
    // By the kernel's name and by OpenSSL's.
    assert_eq!(scratch.label(&[&hash[..], &["--algo", "rmd160"]].concat()).summary()["hashed"], 2);
    assert_eq!(scratch.label(&[&hash[..], &["--algo", "ripemd160"]].concat()).summary()["right"], 2);
    assert_eq!(scratch.label_of(&a), "04030bdc9d2d256b3ee9daae347be6f4dc835a467ffe");
    assert_eq!(fs::metadata(scratch.path("runs")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn labels_are_those_of_evmctl_with_every_hash() {
    let scratch = Scratch::new();
    let (name, option) = attribute();
    for hash in ["md5", "sha1", "sha224", "sha256", "sha384", "sha512"] {
        let [ours, theirs] =
            ["ours", "theirs"].map(|name| scratch.file(&format!("{name}-{hash}"), "the same content\n"));
        let theirs_made = other(
            "labels_are_those_of_evmctl_with_every_hash",
            "evmctl",
            &[&["ima_hash", "-a", hash, text(&theirs)], option].concat(),
        );
        let Some(made) = theirs_made else { return };
        assert!(made.status.success(), "{made:?}");
        let run = scratch.label(&["hash", "-a", hash, text(&ours)]);
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(
            run.out.contains(&format!("hashed, {hash}:")) && run.out.ends_with(&format!("in {name}\n")),
            "{}",
            run.out
        );
        assert_eq!(scratch.label_of(&ours), scratch.label_of(&theirs), "{hash}");
    }
}

#[test]
fn signatures_are_left_alone_unless_told_otherwise() {
    let scratch = Scratch::new();
    let (key, _) = scratch.key("p256");
    let file = scratch.file("signed", "content");
    assert_eq!(scratch.label(&["sign", "-k", &key, text(&file)]).code, 0);
    let label = scratch.label_of(&file);
    let tree = scratch.tree();
    let left = scratch.label(&["hash", "-r", text(&tree)]);
    assert_eq!(left.code, 0);
    assert!(left.out.contains("0 hashed, 1 left alone: signed"), "{}", left.out);
    assert_eq!(scratch.label_of(&file), label);
    assert!(scratch.runs().is_empty(), "a run that changes nothing leaves no journal");
    let replaced = scratch.label(&["hash", "-r", "--replace-signatures", text(&tree)]);
    assert_eq!(replaced.code, 0);
    assert!(scratch.label_of(&file).starts_with("0404"));
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let scratch = Scratch::new();
    let file = scratch.file("file", "a");
    let tree = scratch.tree();
    let run = scratch.label(&["hash", "-r", "--dry-run", text(&tree)]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("would be hashed, sha256:ca978112"), "{}", run.out);
    assert!(run.out.contains("1 file: 1 would be hashed"), "{}", run.out);
    assert_eq!(scratch.label_of(&file), "");
    assert!(!scratch.path("runs").exists());
}

#[test]
fn the_exit_status_tells_all_from_some_from_nothing_and_each_failure_has_a_line() {
    let scratch = Scratch::new();
    let file = scratch.file("file", "a");
    let (tree, missing, empty) = (scratch.tree(), scratch.path("missing"), scratch.path("empty"));
    fs::create_dir(&empty).unwrap();
    let some = scratch.label(&["hash", "-r", text(&tree), text(&missing)]);
    assert_eq!(some.code, 1);
    assert_eq!(some.err, format!("imara: {}: No such file or directory (os error 2)\n", text(&missing)));
    assert!(some.out.starts_with("2 files: 1 hashed, 1 failed; 1 byte read in"), "{}", some.out);
    let nothing = scratch.label(&["hash", "-r", text(&missing)]);
    assert_eq!(nothing.code, 4);
    let nothing = scratch.label(&["hash", "-r", text(&empty)]);
    assert_eq!((nothing.code, &*nothing.out), (4, "no file was found\n"));
    assert_eq!(scratch.label(&["hash", text(&missing)]).code, 1);
    assert_eq!(scratch.label(&["hash"]).code, 2);
    assert_eq!(scratch.label(&["hash", "-r", text(&tree)]).code, 0);
    assert_eq!(scratch.label_of(&file), A);
}

#[test]
fn files_are_chosen_by_patterns_kinds_and_lists() {
    let scratch = Scratch::new();
    let program = scratch.file("bin/program", "#!/bin/sh");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    scratch.file("lib/library.so", b"\x7fELF...");
    scratch.file("lib/text", "text");
    scratch.file("cache/x.so", b"\x7fELF...");
    let tree = scratch.tree();
    let list = scratch.path("list");
    let lists = |end: &str| {
        fs::write(&list, [text(&program), text(&tree.join("lib/text"))].map(|path| path.to_owned() + end).concat())
    };
    lists("\n").unwrap();
    let null = scratch.path("null");
    fs::write(&null, [text(&program), text(&tree.join("lib/text"))].map(|path| path.to_owned() + "\0").concat())
        .unwrap();
    for (options, expected) in [
        (vec!["-r", text(&tree)], "bin/program cache/x.so lib/library.so lib/text"),
        (vec!["-r", "-x", "--executables", text(&tree)], "bin/program cache/x.so lib/library.so"),
        (vec!["-r", "--include", "*.so", "--exclude", "cache", text(&tree)], "lib/library.so"),
        (vec!["--files-from", text(&list)], "bin/program lib/text"),
        (vec!["--files-from", text(&null), "-0"], "bin/program lib/text"),
    ] {
        let run = scratch.label(&[&["hash", "--dry-run", "--json"], &options[..]].concat());
        assert_eq!(run.code, 0, "{options:?}: {}", run.err);
        let paths = run.lines();
        let paths = paths.iter().filter_map(|line| line["path"].as_str()?.strip_prefix(&format!("{}/", text(&tree))));
        assert_eq!(paths.collect::<Vec<_>>().join(" "), expected, "{options:?}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_reported_and_not_labelled() {
    let scratch = Scratch::new();
    let file = scratch.file("busy", vec![7; 100 << 20]);
    let still = scratch.file("still", "a");
    let over = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = fs::OpenOptions::new().write(true).open(&file).unwrap();
            while !over.load(Ordering::Relaxed) {
                writer.write_at(b"x", 0).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let run = scratch.label(&["hash", "-r", text(&scratch.tree())]);
        over.store(true, Ordering::Relaxed);
        run
    });
    assert_eq!(run.code, 1);
    assert!(run.err.contains("busy: changed while it was read"), "{}", run.err);
    assert_eq!([scratch.label_of(&file), scratch.label_of(&still)], ["", A]);
}
