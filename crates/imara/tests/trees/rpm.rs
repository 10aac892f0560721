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
fn with_keys_of_packages_only_what_they_signed_verifies() {
    if !privileged() {
        return println!("skipped: with_keys_of_packages_only_what_they_signed_verifies: the files need to be root's");
    }
    let scratch = Scratch::new();
    system(&scratch);
    let keys = scratch.path("keys");
    fs::create_dir(&keys).unwrap();
    for name in ["rsa", "eddsa", "ecdsa", "other"] {
        fs::copy(vector(&format!("{name}.asc")), keys.join(name)).unwrap();
    }
    // What is no key in a folder is passed over.
    fs::write(keys.join("README"), "keys\n").unwrap();
    let list = scratch.path("list");
    let signed = ["imara-one", "imara-one-doc", "imara-curve", "imara-old", "imara-many"];
    let all = ["--package-key", text(&keys), "--json"];
    let run = verify(&scratch, &[&all, &signed[..]].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    let summary = run.summary();
    for (name, value) in
        [("files", json!(135)), ("same", json!(135)), ("signed", json!(true)), ("packages_not_signed", json!(0))]
    {
        assert_eq!(summary[name], value, "{name}: {summary}");
    }
    let by = |package: &str| {
        let lines = run.lines();
        let line = lines.iter().find(|line| line["package"] == package).unwrap();
        line["signed_by"].as_str().unwrap().to_owned()
    };
    assert_eq!(by("imara-one-doc"), "c5cf989df5451522 eddsa <eddsa@example.com>");
    assert_eq!(by("imara-curve"), "a1fe634af9f028e2 ecdsa <ecdsa@example.com>");
    // All packages, by one key: the others are named once each, and are on no list.
    let run = verify(&scratch, &["--package-key", text(&vector("rsa.asc")), "--digest-list", text(&list)]);
    assert_eq!(run.code, 1, "{}", run.err);
    for (what, times) in [
        ("package imara-many 2~rc1-1: signed by an unknown key, id 0f5317e38f408eab", 1),
        ("package imara-curve 1-1: signed by an unknown key, id a1fe634af9f028e2", 1),
        ("package imara-plain 1-1: not signed", 1),
        ("package imara-labelled 1-1: not signed", 1),
        ("usr/share/many", 0),
        ("imara: next: give the key that signed it: --package-key KEY", 1),
    ] {
        assert_eq!(run.err.matches(what).count(), times, "{what}: {}", run.err);
    }
    assert!(run.out.contains("124 not signed by a key that was given"), "{}", run.out);
    let lines = fs::read_to_string(&list).unwrap();
    assert!(
        lines.contains("/usr/bin/old") && !lines.contains("/usr/bin/plain") && !lines.contains("/many/"),
        "{lines}"
    );
    // A header that somebody has changed is his, and no longer the signer's.
    let database = scratch.tree().join(DATABASE).join("rpmdb.sqlite");
    let mut bytes = fs::read(&database).unwrap();
    // The indexes have it, too.
    let places = bytes.windows(16).enumerate().filter(|(_, window)| window == b"/usr/share/many/");
    let places = places.map(|(place, _)| place).collect::<Vec<_>>();
    places.iter().for_each(|place| bytes[place + 11] = b'M');
    fs::write(&database, bytes).unwrap();
    let run = verify(&scratch, &["--package-key", text(&keys), "imara-many"]);
    assert!(run.code == 1 && run.err.contains("its header is damaged"), "{}", run.err);
}

/// Writes into a package's header, in the database, what became of its only file, as whoever is root can.
fn set_state(scratch: &Scratch, package: &str, state: u8) {
    use imara_format::sqlite::{Column, Sqlite};
    let database = scratch.tree().join(DATABASE).join("rpmdb.sqlite");
    let mut bytes = fs::read(&database).unwrap();
    let header = {
        let database = Sqlite::open(bytes.as_slice(), None).unwrap();
        let headers = database.rows("Packages").unwrap().filter_map(|row| match row.unwrap().1.into_iter().nth(1) {
            Some(Column::Blob(header)) => Some(header),
            _ => None,
        });
        let name = |header: &[u8]| imara_format::rpm::package::Package::parse(header).unwrap().name;
        headers.into_iter().find(|header| name(header) == package).unwrap()
    };
    let place = bytes.windows(64).position(|window| window == &header[..64]).unwrap();
    assert_eq!(bytes[place..][..header.len()], header, "it is in one page");
    let number = |offset: usize| u32::from_be_bytes(header[offset..][..4].try_into().unwrap()) as usize;
    // Entries are tag, type, offset, count; 1029 is FILESTATES.
    let entry = (0..number(0)).map(|entry| 8 + 16 * entry).find(|entry| number(*entry) == 1029).unwrap();
    bytes[place + 8 + 16 * number(0) + number(entry + 8)] = state;
    fs::write(&database, bytes).unwrap();
}

#[test]
fn what_became_of_a_file_by_a_word_that_nobody_signed_hides_no_change() {
    if !privileged() {
        return println!(
            "skipped: what_became_of_a_file_by_a_word_that_nobody_signed_hides_no_change: the files need to be root's"
        );
    }
    let scratch = Scratch::new();
    system(&scratch);
    let key = vector("ecdsa.asc");
    let signed = ["--package-key", text(&key), "imara-curve"];
    scratch.file("usr/bin/curve", "Curve\n");
    for state in 0..=4 {
        set_state(&scratch, "imara-curve", state);
        let unasked = verify(&scratch, &["imara-curve"]);
        assert_eq!(unasked.code, i32::from(state == 0), "{state}: {}{}", unasked.out, unasked.err);
        let asked = verify(&scratch, &signed);
        assert!(asked.code == 1 && asked.err.contains("curve: changed: its digest is"), "{state}: {}", asked.err);
    }
    fs::remove_file(scratch.tree().join("usr/bin/curve")).unwrap();
    for (state, code) in [(0, 1), (1, 1), (2, 0), (3, 0), (4, 1)] {
        set_state(&scratch, "imara-curve", state);
        assert_eq!(verify(&scratch, &signed).code, code, "{state}: what was left out need not be there");
    }
}

#[test]
fn with_keys_of_files_each_content_needs_a_signature_of_its_own() {
    if !privileged() {
        return println!(
            "skipped: with_keys_of_files_each_content_needs_a_signature_of_its_own: the files need to be root's"
        );
    }
    let scratch = Scratch::new();
    system(&scratch);
    let certificate = vector("x509_ima.der");
    let run = verify(&scratch, &["-k", text(&certificate), "imara-labelled"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.out.contains("contents by the files' own signatures") && run.out.contains("not verified"),
        "{}",
        run.out
    );
    let json = verify(&scratch, &["-k", text(&certificate), "--json", "imara-labelled"]);
    assert_eq!(json.summary()["signed"], json!(false), "the header is not");
    let run = verify(&scratch, &["-k", text(&certificate), "imara-plain"]);
    let why = "usr/bin/plain: not signed: its package has no signature of its own for it";
    assert!(run.code == 1 && run.err.contains(why), "{}", run.err);
    let (_, other) = scratch.key("p256");
    let run = verify(&scratch, &["-k", &other, "imara-labelled"]);
    assert!(run.code == 1 && run.err.contains("usr/bin/labelled: its own signature: "), "{}", run.err);
    // Zeros are no signature, and not a bad one.
    let database = scratch.tree().join(DATABASE).join("rpmdb.sqlite");
    let sound = fs::read(&database).unwrap();
    let place = sound.windows(14).position(|window| window == b"030204b431bb69").unwrap();
    let mut zeros = sound.clone();
    zeros[place..].iter_mut().take_while(|byte| **byte != 0).for_each(|byte| *byte = b'0');
    fs::write(&database, zeros).unwrap();
    let run = verify(&scratch, &["-k", text(&certificate), "imara-labelled"]);
    let why = "usr/bin/labelled: not signed: its package has no signature of its own for it";
    assert!(run.code == 1 && run.err.contains(why), "{}", run.err);
    fs::write(&database, sound).unwrap();
    // Each that is asked for has to vouch.
    let package_key = vector("rsa.asc");
    let both = ["-k", text(&certificate), "--package-key", text(&package_key)];
    let run = verify(&scratch, &[&both[..], &["imara-labelled"]].concat());
    assert!(run.code == 1 && run.err.contains("package imara-labelled 1-1: not signed"), "{}", run.err);
    let run = verify(&scratch, &[&both[..], &["imara-old"]].concat());
    assert!(run.code == 1 && run.err.contains("usr/bin/old: not signed: its package has no"), "{}", run.err);
}

/// Builds a package, signs it and installs it into an empty root, all by this machine's tools; what a test says that lacks one of them.
fn freshly_installed(scratch: &Scratch, test: &str) -> Option<()> {
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(scratch.path(".")).env("GNUPGHOME", scratch.path("gnupg"));
        match command.output() {
            Ok(output) if output.status.success() => Some(output.stdout),
            Ok(output) => {
                println!("skipped: {test}: {program}: {}", String::from_utf8_lossy(&output.stderr).replace('\n', "; "));
                None
            }
            Err(error) => {
                println!("skipped: {test}: {program}: {error}");
                None
            }
        }
    };
    let spec = "Name: imara-fresh\nVersion: 1\nRelease: 1\nSummary: fresh\nLicense: MIT\nBuildArch: noarch\n%description\nfresh\n%install\n\
        mkdir -p %{buildroot}/opt/fresh\necho fresh >%{buildroot}/opt/fresh/file\nln -s file %{buildroot}/opt/fresh/link\n%files\n\
        %attr(755,root,root) /opt/fresh\n";
    fs::write(scratch.path("spec"), spec).unwrap();
    fs::create_dir(scratch.path("gnupg")).unwrap();
    fs::set_permissions(scratch.path("gnupg"), fs::Permissions::from_mode(0o700)).unwrap();
    let top = format!("_topdir {}", text(&scratch.path("build")));
    run("rpmbuild", &["-bb", "--quiet", "--define", &top, "spec"])?;
    let quiet = ["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""];
    let made = run("gpg", &[&quiet[..], &["--quick-generate-key", "fresh@example.com", "rsa2048", "sign"]].concat());
    made?;
    let key = run("gpg", &["--armor", "--export", "fresh@example.com"])?;
    fs::write(scratch.path("fresh.asc"), key).unwrap();
    let package = text(&scratch.path("build/RPMS/noarch/imara-fresh-1-1.noarch.rpm")).to_owned();
    let signed = run("rpmsign", &["--define", "_gpg_name fresh@example.com", "--addsign", &package]);
    // Or it would outlive the test.
    let _ = run("gpgconf", &["--kill", "gpg-agent"]);
    signed?;
    let (root, database) = (scratch.tree(), format!("_dbpath /{DATABASE}"));
    let install = ["--root", text(&root), "--define", &database, "--nodeps", "--nosignature", "--noplugins", "-i"];
    run("rpm", &[&install[..], &[&package]].concat()).map(|_| ())
}

#[test]
fn what_rpmsign_signs_today_verifies() {
    let test = "what_rpmsign_signs_today_verifies";
    if !privileged() {
        return println!("skipped: {test}: rpm --root needs root");
    }
    let scratch = Scratch::new();
    let Some(()) = freshly_installed(&scratch, test) else { return };
    let key = scratch.path("fresh.asc");
    let run = verify(&scratch, &["--package-key", text(&key), "--json"]);
    assert_eq!(run.code, 0, "{}{}", run.err, run.out);
    assert_eq!((&run.summary()["signed"], &run.summary()["files"]), (&json!(true), &json!(3)), "{}", run.out);
    let run = verify(&scratch, &["--package-key", text(&vector("rsa.asc"))]);
    assert!(run.code == 1 && run.err.contains("imara-fresh 1-1: signed by an unknown key"), "{}", run.err);
    scratch.file("opt/fresh/file", "FRESH\n");
    let run = verify(&scratch, &["--package-key", text(&key)]);
    assert!(run.code == 1 && run.err.contains("opt/fresh/file: changed: its digest is "), "{}", run.err);
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
