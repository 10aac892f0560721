//! `imara verify --packages`: installed files against dpkg's lists.

use crate::scratch::{Scratch, text};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

/// MD5 of `content`, of nothing.
const CONTENT: &str = "9a0364b9e99bb480dd25e1f0284c8555";
const EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// A system with two packages: what is right, what is wrong, a diversion, links that lead out of it.
fn system(scratch: &Scratch) {
    let file = |name: &str, content: &str| scratch.file(name, content);
    let info = "var/lib/dpkg/info";
    file(
        "var/lib/dpkg/status",
        &format!(
            "Package: one\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\nConffiles:\n /etc/same {CONTENT}\n \
             /etc/edited {CONTENT}\n\nPackage: two\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n\nPackage: \
             bare\nStatus: install ok installed\nArchitecture: all\nVersion: 3\n\nPackage: gone\nStatus: deinstall ok config-files\n"
        ),
    );
    let list =
        [("bin/same", CONTENT), ("bin/changed", CONTENT), ("bin/missing", EMPTY), ("bin/link", EMPTY), ("sh", CONTENT)];
    file(&format!("{info}/one.md5sums"), &list.map(|(path, digest)| format!("{digest}  {path}\n")).concat());
    file(&format!("{info}/two:amd64.md5sums"), &format!("{EMPTY}  lib/a \\ b\n{EMPTY}  sh\n"));
    file("var/lib/dpkg/diversions", "/sh\n/sh.one\ntwo\n");
    file("usr/bin/same", "content");
    file("usr/bin/changed", "other");
    // A merged /usr, told absolutely: the system's own, not this machine's.
    symlink("/usr/bin", scratch.tree().join("bin")).unwrap();
    symlink("/etc/hostname", scratch.tree().join("usr/bin/link")).unwrap();
    file("etc/same", "content");
    file("etc/edited", "other");
    file("lib/a \\ b", "");
    file("sh", "");
    file("sh.one", "content");
}

#[test]
fn files_of_packages_are_told_from_changed_missing_and_configured_ones() {
    let scratch = Scratch::new();
    system(&scratch);
    let root = scratch.tree();
    let run = scratch.run(&["verify", "--packages", "--root", text(&root), "--json"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let mut states = Vec::new();
    for line in run.lines() {
        let path = line["path"].as_str().and_then(|path| path.strip_prefix(text(&root)));
        states.extend(
            path.map(|path| {
                format!("{} {path} {}", line["package"].as_str().unwrap(), line["state"].as_str().unwrap())
            }),
        );
    }
    let expected = [
        "one /bin/same same",
        "one /bin/changed changed",
        "one /bin/missing missing",
        "one /bin/link changed",
        "one /sh.one same",
        "one /etc/same same",
        "one /etc/edited configuration-changed",
        "two /lib/a \\ b same",
        "two /sh same",
    ];
    assert_eq!(states, expected);
    let summary = run.summary();
    for (name, value) in [
        ("packages", json!(3)),
        ("files", json!(9)),
        ("same", json!(5)),
        ("without_list", json!(1)),
        ("signed", json!(false)),
    ] {
        assert_eq!(summary[name], value, "{name}");
    }
    let told = scratch.run(&["verify", "--packages", "--root", text(&root)]);
    let counts = "9 files of 3 packages: 5 as installed, 2 changed, 1 of configuration changed, 1 missing; ";
    assert!(told.out.starts_with(counts), "{}", told.out);
    assert!(told.out.contains("not signed and hold MD5"), "{}", told.out);
    assert!(
        told.err.contains("bin/link: changed: it is a symbolic link") && told.err.contains("--reinstall"),
        "{}",
        told.err
    );
    let two = scratch.run(&["verify", "--packages", "--root", text(&root), "two"]);
    assert_eq!(two.code, 0, "{}", two.err);
    let none = scratch.run(&["verify", "--packages", "--root", text(&root), "three"]);
    assert!(none.code == 1 && none.err.contains("no package three is installed"), "{}", none.err);
    let elsewhere = scratch.run(&["verify", "--packages", "--root", text(&scratch.path("."))]);
    assert!(elsewhere.code == 3 && elsewhere.err.contains("no list of installed packages"), "{}", elsewhere.err);
}

#[test]
fn a_list_of_digests_holds_what_is_as_installed_and_says_that_nobody_signed_it() {
    let scratch = Scratch::new();
    system(&scratch);
    let (root, list) = (scratch.tree(), scratch.path("list"));
    let run = scratch.run(&["verify", "--packages", "--root", text(&root), "--quiet", "--digest-list", text(&list)]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("sign it before it is relied on"), "{}", run.err);
    let written = fs::read(&list).unwrap();
    let lines = String::from_utf8(written.clone()).unwrap();
    assert!(lines.starts_with("# Files of packages as found on ") && lines.contains("not signed"), "{lines}");
    assert_eq!(lines.lines().count(), 6);
    let content = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    assert!(lines.contains(&format!("\n{content}  /bin/same\n")), "{lines}");
    assert!(
        lines.contains("\n\\e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  /lib/a \\\\ b\n"),
        "{lines}"
    );
    imara_format::reference::References::parse(&written).unwrap();
    assert_eq!(fs::read_dir(scratch.path(".")).unwrap().count(), 2, "nothing is left beside it");
}

#[test]
fn a_damaged_list_is_named_and_the_rest_goes_on() {
    let scratch = Scratch::new();
    system(&scratch);
    scratch.file("var/lib/dpkg/info/two:amd64.md5sums", "what\n");
    let run = scratch.run(&["verify", "--packages", "--root", text(&scratch.tree())]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("two:amd64.md5sums: line 1: an MD5 digest was needed"), "{}", run.err);
    assert!(run.out.starts_with("7 files of 3 packages"), "{}", run.out);
}

#[test]
fn no_link_leads_from_the_database_out_of_the_root() {
    let outside = Scratch::new();
    system(&outside);
    let scratch = Scratch::new();
    scratch.file("bin/same", "content");
    for (link, target) in [("var", outside.tree().join("var")), ("etc", "../../../../../../../../etc".into())] {
        symlink(target, scratch.tree().join(link)).unwrap();
    }
    let run = scratch.run(&["verify", "--packages", "--root", text(&scratch.tree())]);
    assert!(run.code == 3 && run.err.contains("no list of installed packages"), "{} {}", run.code, run.err);
    fs::remove_file(scratch.tree().join("var")).unwrap();
    scratch.file("var/lib/dpkg/status", "Package: one\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n");
    for list in ["one.md5sums", "diversions"] {
        let folder = scratch.tree().join("var/lib/dpkg").join(if list == "diversions" { "." } else { "info" });
        fs::create_dir_all(&folder).unwrap();
        symlink(outside.tree().join("var/lib/dpkg/info/one.md5sums"), folder.join(list)).unwrap();
    }
    let run = scratch.run(&["verify", "--packages", "--root", text(&scratch.tree())]);
    assert!(run.code == 4 && run.out.contains("1 package has no list"), "{} {} {}", run.code, run.out, run.err);
}
