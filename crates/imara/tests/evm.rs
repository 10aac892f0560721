//! `imara evm`: against vectors that kernels and evmctl made, and on real files.
//!
//! A test whose judge is not there, or that lacks a privilege, says `skipped: …` and passes.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const UUID: &str = "6e1a2b3c-4d5e-4f60-8172-839405162738";

fn vectors(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors").join(path)
}

fn cases(name: &str) -> Vec<Value> {
    serde_json::from_slice(&fs::read(vectors("evm").join(name)).unwrap()).unwrap()
}

fn imara<T: AsRef<std::ffi::OsStr>>(arguments: &[T]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.args(arguments).stdin(Stdio::null()).env_remove("IMARA_KEY_PASSPHRASE").output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a vector says, as the command line says it.
fn described(case: &Value) -> Vec<String> {
    let number = |name: &str| case[name].as_u64().unwrap().to_string();
    let mut arguments: Vec<String> = ["evm", "hmac"].map(str::to_owned).into();
    let key = fs::read(vectors("key").join(case["key"].as_str().unwrap())).unwrap();
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for (option, value) in [
        ("--key-hex", hex),
        ("--ino", number("ino")),
        ("--generation", number("generation")),
        ("--uid", number("uid")),
        ("--gid", number("gid")),
        ("--mode", case["mode"].as_str().unwrap().to_owned()),
        ("--bits", case["bits"].as_u64().unwrap_or(64).to_string()),
    ] {
        arguments.extend([option.to_owned(), value]);
    }
    if let Some(uuid) = case["fsuuid"].as_str() {
        arguments.extend(["--fsuuid".to_owned(), uuid.to_owned()]);
    }
    for (name, value) in case["xattrs"].as_object().unwrap() {
        arguments.extend(["--xattr".to_owned(), format!("{name}={}", value.as_str().unwrap())]);
    }
    arguments
}

#[test]
fn hmacs_are_those_that_kernels_and_evmctl_made() {
    let mut tried = 0;
    for (file, evmctl) in [("kernel_made_hmac.json", false), ("evm_hmac.json", true)] {
        for case in cases(file) {
            let mut arguments = described(&case);
            let more = match (&case["enabled_xattrs_in_order"], case["smack_extra"].as_bool()) {
                (Value::Array(names), _) => names.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
                (_, smack) => {
                    // evmctl takes Smack's label whatever the kernel, and the others where it is told to.
                    let extra = ["SMACK64EXEC", "SMACK64TRANSMUTE", "SMACK64MMAP"].iter();
                    let extra = extra.filter(|_| smack == Some(true)).map(|name| format!("security.{name}"));
                    std::iter::once("security.SMACK64".to_owned()).chain(extra).collect::<Vec<_>>()
                }
            };
            // What was added on that kernel, in its order; the rest is there.
            arguments.extend(more.into_iter().flat_map(|name| ["--protect".to_owned(), name]));
            let made = imara(&arguments);
            assert_eq!(code(&made), 0, "{arguments:?}: {made:?}");
            assert_eq!(format!("02{}", stdout(&made).trim()), case["security_evm"], "evmctl {evmctl}: {arguments:?}");
            arguments.push("--json".to_owned());
            let document = json(&imara(&arguments));
            assert_eq!((&document["label"], &document["input"]), (&case["security_evm"], &case["hmac_input"]));
            tried += 1;
        }
    }
    assert_eq!(tried, 48);
}

#[test]
fn a_command_line_that_does_not_say_enough_or_nonsense_is_refused() {
    let whole = ["evm", "hmac", "--key-hex", KEY, "--ino", "12", "--generation", "1", "--uid", "0", "--gid", "0"];
    for (case, more, word) in [
        ("no mode", &[][..], "--mode"),
        ("a mode that is none", &["--mode", "9"], "octal"),
        ("no value", &["--mode", "644", "--xattr", "security.ima"], "NAME=HEX"),
        ("no UUID", &["--mode", "644", "--fsuuid", "6e1a"], "UUID"),
        ("another namespace", &["--mode", "644", "--protect", "user.foo"], "security."),
        ("bits", &["--mode", "644", "--bits", "16"], "32 or 64"),
        ("nothing to write to", &["--mode", "644", "--write"], "--write takes files"),
    ] {
        let refused = imara(&[&whole[..], more].concat());
        assert_eq!(code(&refused), 2, "{case}: {refused:?}");
        assert!(stderr(&refused).contains(word), "{case}: {refused:?}");
    }
    // What an HMAC does not cover is left out, and told.
    let left =
        imara(&[&whole[..], &["--mode", "644", "--xattr", "user.foo=00", "--xattr", "security.ima=0102"]].concat());
    assert_eq!(code(&left), 0, "{left:?}");
    assert!(stderr(&left).contains("user.foo") && !stderr(&left).contains("left out: security.ima"), "{left:?}");
}

#[test]
fn no_key_material_is_told_whatever_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("long");
    fs::write(&long, "5ec2e7".repeat(40)).unwrap();
    let rest = ["--ino", "1", "--generation", "1", "--uid", "0", "--gid", "0", "--mode", "644"];
    for key in [
        &["--key-hex", "5ec2e75ec2e7z"][..],
        &["--key-hex", &"5ec2e7".repeat(60)],
        &["--hmac-key-file", text(&long)],
        &["--key-hex", "5ec2e75ec2e7", "--nonsense"],
        &["--key-hex", "5ec2e75ec2e7", "--json", "-v"],
    ] {
        let made = imara(&[&["evm", "hmac"], key, &rest].concat());
        let told = stdout(&made) + &stderr(&made);
        assert_eq!(code(&made) == 0, key.contains(&"-v"), "{key:?}: {told}");
        assert!(!told.contains("5ec2e7"), "{key:?}: {told}");
    }
}

/// A folder on a filesystem that keeps labels, or why there is none.
fn scratch(test: &str) -> Option<tempfile::TempDir> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        println!("skipped: {test}: security attributes need root");
        return None;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("probe");
    fs::write(&file, "probe").unwrap();
    let made = imara(&["evm", "hmac", "--key-hex", KEY, "--xattr", "security.ima=01", text(&file)]);
    if code(&made) != 0 {
        println!("skipped: {test}: {}", stderr(&made).trim());
        return None;
    }
    fs::remove_file(file).unwrap();
    Some(folder)
}

fn set_xattr(path: &Path, name: &str, value: Option<&[u8]>) {
    let file = fs::File::open(path).unwrap();
    match value {
        Some(value) => imara_linux::files::set_xattr(&file, name, value).unwrap(),
        None => drop(imara_linux::files::remove_xattr(&file, name).unwrap()),
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    imara_linux::files::xattr(fs::File::open(path).unwrap(), name).unwrap()
}

fn keys(folder: &Path) -> (PathBuf, PathBuf) {
    let keys = folder.join("keys");
    let made = imara(&["key", "generate", "--quiet", "--for", "evm", "--out", text(&keys)]);
    assert_eq!(code(&made), 0, "{made:?}");
    (keys.join("privkey_evm.pem"), keys.join("x509_evm.der"))
}

#[test]
fn what_is_labelled_verifies_until_something_protected_changes() {
    let Some(folder) = scratch("what_is_labelled_verifies_until_something_protected_changes") else { return };
    let (private, certificate) = keys(folder.path());
    let label = |kind: &str, path: &Path| {
        let made = match kind {
            "hmac" => imara(&["evm", "hmac", "--write", "--key-hex", KEY, text(path)]),
            "signature" => imara(&["evm", "sign", "-k", text(&private), text(path)]),
            _ => imara(&["evm", "sign", "--portable", "-k", text(&private), text(path)]),
        };
        assert_eq!(code(&made), 0, "{kind}: {made:?}");
    };
    let verify = |path: &Path| {
        let verified = imara(&["evm", "verify", "--json", "--key-hex", KEY, "-k", text(&certificate), text(path)]);
        let file = json(&verified)["files"][0].clone();
        assert_eq!(code(&verified), i32::from(file["verified"] != true), "{verified:?}");
        file
    };
    for (kind, pass, fail) in [
        ("hmac", "pass", "fail"),
        ("signature", "pass", "fail"),
        ("portable-signature", "pass_immutable", "fail_immutable"),
    ] {
        let path = folder.path().join(kind);
        fs::write(&path, "content").unwrap();
        assert_eq!(verify(&path)["status"], "no_xattrs", "{kind}");
        set_xattr(&path, "security.ima", Some(&[1; 21]));
        assert_eq!(verify(&path)["status"], "no_label", "{kind}");
        label(kind, &path);
        let file = verify(&path);
        assert_eq!((&file["status"], &file["type"]), (&pass.into(), &kind.into()), "{file}");
        // Other contents and other attributes are not EVM's.
        fs::write(&path, "other content").unwrap();
        set_xattr(&path, "user.other", Some(b"x"));
        assert_eq!(verify(&path)["status"], pass, "{kind}");
        let mode = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(verify(&path)["status"], fail, "{kind}: mode");
        fs::set_permissions(&path, mode).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
        assert_eq!(verify(&path)["status"], fail, "{kind}: owner");
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        set_xattr(&path, "security.ima", Some(&[2; 21]));
        let file = verify(&path);
        assert_eq!(file["status"], fail, "{kind}: attribute");
        assert!(file["next"].as_str().unwrap().contains("imara evm explain"), "{file}");
        set_xattr(&path, "security.ima", Some(&[1; 21]));
        assert_eq!(verify(&path)["status"], pass, "{kind}");
        // A copy is another file: only a portable signature goes with it.
        let copy = folder.path().join(format!("{kind}-copy"));
        fs::copy(&path, &copy).unwrap();
        for name in ["security.ima", "security.evm"] {
            set_xattr(&copy, name, xattr(&path, name).as_deref());
        }
        assert_eq!(verify(&copy)["status"], if kind == "portable-signature" { pass } else { fail }, "{kind}: copy");
    }
    let all =
        imara(&["evm", "verify", "-r", "--json", "--key-hex", KEY, "-k", text(&certificate), text(folder.path())]);
    let lines: Vec<Value> = stdout(&all).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = &lines.last().unwrap()["summary"];
    // Three keys without labels, and two copies.
    assert_eq!((summary["verified"].as_u64(), summary["failed"].as_u64()), (Some(4), Some(5)), "{summary:#}");
    assert_eq!((summary["no_xattrs"].as_u64(), summary["fail"].as_u64()), (Some(3), Some(2)), "{summary:#}");
    assert_eq!((lines.len(), code(&all)), (10, 1));
}

#[test]
fn a_label_that_cannot_be_made_leaves_the_old_one() {
    let Some(folder) = scratch("a_label_that_cannot_be_made_leaves_the_old_one") else { return };
    let (private, _) = keys(folder.path());
    let path = folder.path().join("file");
    fs::write(&path, "content").unwrap();
    set_xattr(&path, "security.evm", Some(b"old"));
    for arguments in [
        &["hmac", "--write", "--key-hex", KEY][..],
        &["sign", "-k", text(&private)],
        &["sign", "--portable", "-k", text(&private)],
    ] {
        let refused = imara(&[&["evm"], arguments, &[text(&path)]].concat());
        assert_eq!(code(&refused), 1, "{refused:?}");
        assert_eq!(xattr(&path, "security.evm").as_deref(), Some(&b"old"[..]));
        // Nothing is written either where that is only tried.
        set_xattr(&path, "security.ima", Some(&[1; 21]));
        let tried = imara(&[&["evm"], arguments, &["--dry-run", text(&path)]].concat());
        assert_eq!(code(&tried), 0, "{tried:?}");
        assert!(stdout(&tried).contains("would be"), "{tried:?}");
        assert_eq!(xattr(&path, "security.evm").as_deref(), Some(&b"old"[..]));
        set_xattr(&path, "security.ima", None);
    }
}

#[test]
fn evmctl_agrees_on_signatures() {
    let Some(folder) = scratch("evmctl_agrees_on_signatures") else { return };
    let (private, certificate) = keys(folder.path());
    let path = folder.path().join("file");
    fs::write(&path, "content").unwrap();
    set_xattr(&path, "security.ima", Some(&[1; 21]));
    for portable in [false, true] {
        let mut arguments = vec!["evm", "sign", "-k", text(&private), "--fsuuid", UUID];
        if portable {
            arguments.push("--portable");
        }
        arguments.push(text(&path));
        let signed = imara(&arguments);
        assert_eq!(code(&signed), 0, "{signed:?}");
        let uuid = format!("--uuid={UUID}");
        let verified = Command::new("evmctl").args(["verify", "-k", text(&certificate), &uuid, text(&path)]).output();
        let Ok(verified) = verified else {
            println!("skipped: evmctl_agrees_on_signatures: there is no evmctl");
            return;
        };
        assert!(verified.status.success(), "portable {portable}: {verified:?}");
    }
}

#[test]
fn what_was_changed_is_found_or_known_from_before() {
    let Some(folder) = scratch("what_was_changed_is_found_or_known_from_before") else { return };
    let (private, certificate) = keys(folder.path());
    let states = folder.path().join("states");
    let path = folder.path().join("file");
    fs::write(&path, "content").unwrap();
    let nowhere = folder.path().join("no-guard");
    let explain = |more: &[&str]| {
        let with =
            ["evm", "explain", "--json", "--key-hex", KEY, "-k", text(&certificate), "--runtime-dir", text(&nowhere)];
        let told = imara(&[&with[..], more, &[text(&path)]].concat());
        let document = json(&told);
        assert_eq!(code(&told), i32::from(document["verified"] != true), "{told:?}");
        document
    };
    set_xattr(&path, "security.ima", Some(&[1; 21]));
    for label in [&["hmac", "--write", "--key-hex", KEY][..], &["sign", "--portable", "-k", text(&private)]] {
        let made = imara(&[&["evm"], label, &[text(&path)]].concat());
        assert_eq!(code(&made), 0, "{made:?}");
        assert_eq!(explain(&[])["changed"], Value::Null);
        let noted = ["evm", "verify", "--quiet", "--key-hex", KEY, "-k", text(&certificate), "--record", text(&states)];
        assert_eq!(code(&imara(&[&noted[..], &[text(&path)]].concat())), 0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
        let found = explain(&[]);
        let difference = serde_json::json!([{ "attribute": "mode", "was": "100644", "is": "104711" }]);
        assert_eq!(found["changed"]["differences"], difference, "{found:#}");
        assert_eq!(
            (&found["changed"]["known_by"], &found["next"][0]),
            (&"search".into(), &format!("chmod 0644 {}", text(&path)).into())
        );
        // More than one thing at once is known only from before.
        std::os::unix::fs::chown(&path, Some(4321), Some(4321)).unwrap();
        assert_eq!(explain(&["--time", "1s"])["changed"]["known_by"], Value::Null);
        // What verified before is kept where it does not verify now.
        assert_eq!(code(&imara(&[&noted[..], &[text(&path)]].concat())), 1);
        let known = explain(&["--recorded", text(&states)]);
        let attributes: Vec<&str> = known["changed"]["differences"]
            .as_array()
            .unwrap()
            .iter()
            .map(|difference| difference["attribute"].as_str().unwrap())
            .collect();
        assert_eq!((&known["changed"]["known_by"], &attributes[..]), (&"recorded".into(), &["mode", "uid", "gid"][..]));
        std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        set_xattr(&path, "security.capability", Some(&[&[1, 0, 0, 2, 0, 0x20], &[0; 14][..]].concat()));
        let found = explain(&[]);
        assert_eq!(found["changed"]["differences"][0]["attribute"], "security.capability", "{found:#}");
        set_xattr(&path, "security.capability", None);
        assert_eq!(explain(&[])["verified"], true);
        // Also where nothing is left that the label would protect.
        set_xattr(&path, "security.ima", None);
        let known = explain(&["--recorded", text(&states)]);
        assert_eq!(known["changed"]["differences"][0]["attribute"], "security.ima", "{known:#}");
        assert!(known["next"][0].as_str().unwrap().starts_with("setfattr -n security.ima -v 0x0101"), "{known:#}");
        set_xattr(&path, "security.ima", Some(&[1; 21]));
        assert_eq!(explain(&[])["verified"], true);
    }
    let shown = imara(&["evm", "explain", "-k", text(&certificate), "--runtime-dir", text(&nowhere), text(&path)]);
    assert!(stdout(&shown).contains("security.ima") && stdout(&shown).contains("good portable signature"), "{shown:?}");
}

#[test]
fn without_any_evm_the_next_step_is_named() {
    if Path::new(imara_format::evm::MODE_FILE).exists() {
        println!("skipped: without_any_evm_the_next_step_is_named: this kernel has EVM");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["evm", "status"][..],
        &["evm", "enable", "x509"],
        &["evm", "enable", "x509", "--provider", "kernel"],
        &["evm", "xattrs"],
        &["evm", "xattrs", "security.foo", "--provider", "guard"],
    ] {
        let lacking = imara(&[arguments, &["--runtime-dir", text(folder.path())]].concat());
        assert_eq!(code(&lacking), 3, "{arguments:?}: {lacking:?}");
        let told = stdout(&lacking) + &stderr(&lacking);
        assert!(
            told.contains("next") && (told.contains("guard") || told.contains("CONFIG_EVM") || told.contains("mount")),
            "{told}"
        );
    }
}

#[test]
fn the_file_that_states_are_recorded_in_is_none_of_those_that_are_verified() {
    let test = "the_file_that_states_are_recorded_in_is_none_of_those_that_are_verified";
    let Some(folder) = scratch(test) else { return };
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for name in ["one", "two"] {
        let path = tree.join(name);
        fs::write(&path, name).unwrap();
        set_xattr(&path, "security.ima", Some(&[1; 21]));
        assert_eq!(code(&imara(&["evm", "hmac", "--write", "--key-hex", KEY, text(&path)])), 0);
    }
    let states = tree.join("states");
    let verify = ["evm", "verify", "-r", "--json", "--key-hex", KEY, "--record", text(&states), text(&tree)];
    let verified = imara(&verify);
    let lines = stdout(&verified);
    let summary: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((code(&verified), lines.lines().count()), (0, 3), "{lines}");
    assert_eq!(summary["summary"]["verified"], 2, "{summary}");
    let recorded = fs::read_to_string(&states).unwrap();
    assert_eq!(recorded.lines().count(), 2, "{recorded}");
    // What is there from an earlier run is a file like any other.
    assert_eq!(code(&imara(&verify)), 1);
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 3);
}

#[test]
fn both_signatures_are_of_version_3_and_each_stands_for_nothing_but_what_it_is_of() {
    let test = "both_signatures_are_of_version_3_and_each_stands_for_nothing_but_what_it_is_of";
    let Some(folder) = scratch(test) else { return };
    // No evmctl makes or takes version 3 of these: the original knows it for fs-verity's digests alone.
    let path = folder.path().join("file");
    for (kind, evm_type, pass) in [("--evm", 3, "pass"), ("--evm=portable", 5, "pass_immutable")] {
        for (key, hash, id) in [("rsa2048", "sha256", 4), ("p256", "sha512", 6)] {
            let case = format!("{kind} {key} {hash}");
            let keys = folder.path().join(format!("{key}{kind}"));
            let made = imara(&["key", "generate", "--quiet", "--type", key, "--out", text(&keys)]);
            assert_eq!(code(&made), 0, "{made:?}");
            let (private, certificate) = (keys.join("privkey_ima.pem"), keys.join("x509_ima.der"));
            let _ = fs::remove_file(&path);
            fs::write(&path, "content").unwrap();
            let signed = imara(&["sign", "--quiet", "--v3", kind, "-a", hash, "-k", text(&private), text(&path)]);
            assert_eq!(code(&signed), 0, "{case}: {signed:?}");
            let labels = ["security.ima", "security.evm"].map(|name| xattr(&path, name).unwrap());
            assert_eq!((&labels[0][..3], &labels[1][..3]), (&[3, 3, id][..], &[evm_type, 3, id][..]), "{case}");
            let content = || code(&imara(&["verify", "--quiet", "-k", text(&certificate), text(&path)]));
            let metadata = || {
                let verified = json(&imara(&[
                    "evm",
                    "verify",
                    "--json",
                    "--kernel",
                    "latest",
                    "-k",
                    text(&certificate),
                    text(&path),
                ]));
                verified["files"][0]["status"].as_str().unwrap().to_owned()
            };
            assert_eq!((content(), metadata().as_str()), (0, pass), "{case}");
            // A kernel that does not know the version refuses it, and it is said that it is not the file's fault.
            let older = imara(&["evm", "verify", "--kernel", "6.12", "-k", text(&certificate), text(&path)]);
            let said = stderr(&older);
            assert!(
                code(&older) == 1 && said.contains("good and has version 3") && said.contains("--kernel latest"),
                "{said}"
            );
            // The content's signature is no signature of metadata, nor the other way round.
            let mut borrowed = labels[0].clone();
            borrowed[0] = evm_type;
            set_xattr(&path, "security.evm", Some(&borrowed));
            assert_ne!(metadata(), pass, "{case}");
            set_xattr(&path, "security.evm", Some(&labels[1]));
            let mut borrowed = labels[1].clone();
            borrowed[0] = 3;
            set_xattr(&path, "security.ima", Some(&borrowed));
            assert_eq!(content(), 1, "{case}");
            set_xattr(&path, "security.ima", Some(&labels[0]));
            assert_eq!((content(), metadata().as_str()), (0, pass), "{case}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!((content(), metadata() == pass), (0, false), "{case}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, "Content").unwrap();
            assert_eq!((content(), metadata().as_str()), (1, pass), "{case}");
            // Version 2 is made again where it is asked for, and the other way round.
            fs::write(&path, "content").unwrap();
            let sign = ["sign", "--json", "--only-wrong", kind, "-a", hash, "-k", text(&private), text(&path)];
            assert_eq!(json(&imara(&sign))["files"][0]["state"], "signed", "{case}");
            assert_eq!((xattr(&path, "security.ima").unwrap()[1], metadata().as_str()), (2, pass), "{case}");
        }
    }
}

#[test]
fn contents_and_metadata_are_signed_at_once_and_both_are_put_back() {
    let Some(folder) = scratch("contents_and_metadata_are_signed_at_once_and_both_are_put_back") else { return };
    let (private, certificate) = keys(folder.path());
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let path = tree.join("file");
    fs::write(&path, "content").unwrap();
    let verified = |status: &str| {
        let content = imara(&["verify", "--quiet", "-k", text(&certificate), text(&path)]);
        let metadata = json(&imara(&["evm", "verify", "--json", "-k", text(&certificate), text(&path)]));
        assert_eq!((code(&content), &metadata["files"][0]["status"]), (0, &status.into()), "{metadata:#}");
    };
    let sign = |more: &[&str]| {
        let signed = imara(&[&["sign", "--json", "-k", text(&private)], more, &[text(&path)]].concat());
        assert_eq!(code(&signed), 0, "{signed:?}");
        json(&signed)["files"][0].clone()
    };
    for (kind, pass) in [("--evm", "pass"), ("--evm=portable", "pass_immutable")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        sign(&[kind]);
        verified(pass);
        assert_eq!(sign(&[kind, "--only-wrong"])["state"], "right");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let again = sign(&[kind, "--only-wrong"]);
        assert_eq!(again["labels"].as_object().unwrap().keys().collect::<Vec<_>>(), ["security.evm"], "{again:#}");
        verified(pass);
        // Another kind is not the one that was asked for.
        let other = if kind == "--evm" { "--evm=portable" } else { "--evm" };
        assert_eq!(sign(&[other, "--only-wrong", "--dry-run"])["state"], "signed");
    }
    let before = ["security.ima", "security.evm"].map(|name| xattr(&path, name));
    let journals = folder.path().join("journals");
    let run =
        ["sign", "--quiet", "-r", "--evm", "-a", "sha512", "--journal-dir", text(&journals), "-k", text(&private)];
    assert_eq!(code(&imara(&[&run[..], &[text(&tree)]].concat())), 0);
    verified("pass");
    assert_ne!(["security.ima", "security.evm"].map(|name| xattr(&path, name)), before);
    let runs = fs::read_dir(&journals).unwrap().map(|run| run.unwrap().file_name()).collect::<Vec<_>>();
    let undone = imara(&["undo", "--quiet", "--journal-dir", text(&journals), runs[0].to_str().unwrap()]);
    assert_eq!(code(&undone), 0, "{undone:?}");
    assert_eq!(["security.ima", "security.evm"].map(|name| xattr(&path, name)), before);
    let nonsense = imara(&["sign", "--evm=both", "-k", text(&private), text(&path)]);
    assert_eq!(code(&nonsense), 2, "{nonsense:?}");
}
