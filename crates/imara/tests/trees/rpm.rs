//! `imara verify --packages`: installed files against RPM's database, one that RPM itself made.

use crate::scratch::{Ran, Scratch, privileged, text};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Fedora and openSUSE have it.
const DATABASE: &str = "usr/lib/sysimage/rpm";

pub fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/rpm").join(name)
}

/// A system with the packages of the vectors, as they were installed.
fn system(scratch: &Scratch) {
    let file = |name: &str, content: &str, mode: u32| {
        let path = scratch.file(name, content);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file(&format!("{DATABASE}/rpmdb.sqlite"), "", 0o644);
    fs::copy(vector("installed/rpmdb.sqlite"), scratch.tree().join(DATABASE).join("rpmdb.sqlite")).unwrap();
    for name in ["same", "changed", "missing"] {
        file(&format!("usr/bin/{name}"), &format!("{name}\n"), 0o755);
    }
    file("usr/bin/mode", "mode\n", 0o4755);
    file("usr/bin/empty", "", 0o644);
    for name in ["curve", "labelled", "plain", "old"] {
        file(&format!("usr/bin/{name}"), &format!("{name}\n"), 0o755);
    }
    for name in ["link", "moved"] {
        symlink("same", scratch.tree().join("usr/bin").join(name)).unwrap();
    }
    file("etc/one/one.conf", "setting\n", 0o640);
    file("etc/one/removed.conf", "setting\n", 0o644);
    fs::set_permissions(scratch.tree().join("etc/one"), fs::Permissions::from_mode(0o750)).unwrap();
    file("var/lib/one/freely", "freely\n", 0o644);
    file("usr/share/doc/one/text", "text\n", 0o644);
    for number in 1..=120 {
        file(&format!("usr/share/many/{number:03}"), &format!("{number:03}\n"), 0o644);
    }
}

/// What can come over such a system.
fn disturb(scratch: &Scratch) {
    let path = |name: &str| scratch.tree().join(name);
    scratch.file("usr/bin/changed", "Changed\n");
    scratch.file("usr/share/doc/one/text", "longer than it was\n");
    fs::remove_file(path("usr/bin/missing")).unwrap();
    fs::set_permissions(path("usr/bin/mode"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(path("usr/bin/moved")).unwrap();
    symlink("changed", path("usr/bin/moved")).unwrap();
    scratch.file("etc/one/one.conf", "another setting\n");
    fs::remove_file(path("etc/one/removed.conf")).unwrap();
    scratch.file("var/lib/one/freely", "what it became\n");
    fs::remove_file(path("usr/share/many/007")).unwrap();
    fs::create_dir(path("usr/share/many/007")).unwrap();
}

fn verify(scratch: &Scratch, more: &[&str]) -> Ran {
    let root = scratch.tree();
    scratch.run(&[&["verify", "--packages", "--root", text(&root)], more].concat())
}

#[test]
fn files_are_verified_by_the_headers_of_their_packages() {
    if !privileged() {
        return println!("skipped: files_are_verified_by_the_headers_of_their_packages: the files need to be root's");
    }
    let scratch = Scratch::new();
    system(&scratch);
    let sound = verify(&scratch, &["--json"]);
    assert_eq!(sound.code, 0, "{}", sound.err);
    let summary = sound.summary();
    for (name, value) in [
        ("packages", json!(7)),
        ("files", json!(137)),
        ("same", json!(137)),
        ("source", json!("rpm")),
        ("signed", json!(false)),
    ] {
        assert_eq!(summary[name], value, "{name}: {summary}");
    }
    disturb(&scratch);
    let run = verify(&scratch, &["--json"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let mut states = BTreeSet::new();
    for line in run.lines() {
        let path = line["path"].as_str().and_then(|path| path.strip_prefix(text(&scratch.tree())));
        if let (Some(path), Some(state)) = (path, line["state"].as_str().filter(|state| *state != "same")) {
            states.insert(format!("{} {path} {state}", line["package"].as_str().unwrap()));
        }
    }
    let expected = [
        "imara-many /usr/share/many/007 changed",
        "imara-one /etc/one/one.conf configuration-changed",
        "imara-one /etc/one/removed.conf configuration-changed",
        "imara-one /usr/bin/changed changed",
        "imara-one /usr/bin/missing missing",
        "imara-one /usr/bin/mode attributes-changed",
        "imara-one /usr/bin/moved changed",
        "imara-one-doc /usr/share/doc/one/text changed",
    ];
    assert_eq!(states.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let told = verify(&scratch, &[]);
    let counts = "137 files of 7 packages: 129 as installed, 4 changed, 1 with another owner or mode, 2 of configuration changed, 1 missing;";
    assert!(told.out.starts_with(counts) && told.out.contains("signatures were not verified"), "{}", told.out);
    for what in [
        "mode: its mode is 0755, installed with 4755",
        "moved: changed: it leads to changed, installed to same",
        "text: changed: it has 19 bytes, installed with 5",
        "many/007: changed: it is a directory, not a regular file",
        "dnf reinstall",
    ] {
        assert!(told.err.contains(what), "{what}: {}", told.err);
    }
    let named = verify(&scratch, &["imara-plain", "imara-old:noarch"]);
    assert!(named.code == 0 && named.out.starts_with("2 files of 2 packages: 2 as installed"), "{}", named.out);
    let unknown = verify(&scratch, &["imara-plain", "plain"]);
    assert!(unknown.code == 1 && unknown.err.contains("no package plain is installed"), "{}", unknown.err);
}

#[test]
fn rpm_itself_finds_the_same() {
    let test = "rpm_itself_finds_the_same";
    if !privileged() {
        return println!("skipped: {test}: rpm --root needs root");
    }
    let scratch = Scratch::new();
    system(&scratch);
    disturb(&scratch);
    let database = format!("_dbpath /{DATABASE}");
    let root = scratch.tree();
    let rpm =
        ["--root", text(&root), "--define", &database, "-Va", "--nomtime", "--nosignature", "--nodigest", "--nordev"];
    let theirs = match Command::new("rpm").args(rpm).output() {
        Ok(output) if output.stderr.is_empty() => String::from_utf8(output.stdout).unwrap(),
        Ok(output) => return println!("skipped: {test}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => return println!("skipped: {test}: rpm: {error}"),
    };
    let theirs =
        theirs.lines().filter_map(|line| Some(line.get(line.find(" /")? + 1..)?.to_owned())).collect::<BTreeSet<_>>();
    let mut ours = BTreeSet::new();
    for line in verify(&scratch, &["--json"]).lines() {
        let path = line["path"].as_str().and_then(|path| path.strip_prefix(text(&scratch.tree())));
        ours.extend(path.filter(|_| line["state"] != "same").map(str::to_owned));
    }
    assert_eq!(ours, theirs);
}

#[test]
fn a_list_of_digests_holds_what_is_as_installed() {
    if !privileged() {
        return println!("skipped: a_list_of_digests_holds_what_is_as_installed: the files need to be root's");
    }
    let scratch = Scratch::new();
    system(&scratch);
    disturb(&scratch);
    let list = scratch.path("list");
    let run = verify(&scratch, &["--quiet", "--digest-list", text(&list)]);
    assert!(run.code == 1 && run.err.contains("sign it before it is relied on"), "{}", run.err);
    let written = fs::read(&list).unwrap();
    let lines = String::from_utf8(written.clone()).unwrap();
    assert!(lines.lines().next().unwrap().contains("RPM's headers, whose signatures were not verified"), "{lines}");
    // 119 of `many`, same, empty, curve, labelled, plain, and old, which RPM knows by MD5.
    assert_eq!(lines.lines().count(), 1 + 119 + 6);
    for line in [
        "01d09d19c2139a46aebfb577780d123d7396e97201bc7ead210a2ebff8239dee  /usr/bin/old",
        "a6328afc76e9db71da297ebff4b0d3e7a7eb3b01d917c05a6573fef121b6ecb6  /usr/bin/same",
        "97b912eb4a61df5f806ca6239dde3e1a4f51ad20aced1642cbb83dc510a5fa6b  /usr/share/many/120",
    ] {
        assert!(lines.contains(&format!("\n{line}\n")), "{line}: {lines}");
    }
    imara_format::reference::References::parse(&written).unwrap();
}

#[test]
fn what_the_log_holds_counts_and_what_is_damaged_is_named() {
    if !privileged() {
        return println!(
            "skipped: what_the_log_holds_counts_and_what_is_damaged_is_named: the files need to be root's"
        );
    }
    let scratch = Scratch::new();
    system(&scratch);
    let database = scratch.tree().join(DATABASE);
    // Row 2 is gone, and row 99 is zeros.
    fs::copy(vector("log/rpmdb.sqlite-wal"), database.join("rpmdb.sqlite-wal")).unwrap();
    let run = verify(&scratch, &[]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("package 99: the header has 9000 bytes, and says that it has 8"), "{}", run.err);
    assert!(run.out.contains(" files of 6 packages: "), "{}", run.out);
    fs::remove_file(database.join("rpmdb.sqlite-wal")).unwrap();
    scratch.file(&format!("{DATABASE}/rpmdb.sqlite-journal"), "journal");
    let run = verify(&scratch, &[]);
    assert!(run.code == 1 && run.err.contains("a change of it was interrupted"), "{}", run.err);
    fs::remove_dir_all(&database).unwrap();
    scratch.file("var/lib/rpm/Packages", "whatever");
    let run = verify(&scratch, &[]);
    assert!(run.code == 3 && run.err.contains("Berkeley DB") && run.err.contains("rpmdb --rebuilddb"), "{}", run.err);
    scratch.file("var/lib/rpm/Packages.db", "whatever");
    let run = verify(&scratch, &[]);
    assert!(run.code == 1 && run.err.contains("no database of RPM's"), "{}", run.err);
}
