//! `imara key encrypted`: against this machine's kernel and keyctl, in session keyrings of the tests' own, and without any.

use imara_linux::key_service::{self as keys, KeyType, SESSION_KEYRING};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MASTER: &[u8] = b"a master key that is no secret";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        Command::new("chmod").arg("600").arg(&path).status().unwrap();
        text(&path)
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn imara(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.args(["key", "encrypted"]).args(arguments).stdin(Stdio::null()).output().unwrap()
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

/// Runs it, and expects success.
fn done(arguments: &[&str]) -> String {
    let output = imara(arguments);
    assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

/// Runs it, and expects a refusal; the first line of what it says.
fn refused(arguments: &[&str]) -> String {
    let output = imara(arguments);
    assert_eq!(code(&output), 1, "{arguments:?}: {}", stdout(&output));
    stderr(&output).lines().next().unwrap_or_default().to_owned()
}

/// A session keyring of this thread and the programs that it starts, with a master key in it.
fn private_session(test: &str) -> bool {
    let made = keys::join_new_session()
        .and_then(|_| keys::add(KeyType::User, Some(b"kmk"), MASTER, SESSION_KEYRING))
        .and_then(|_| keys::add(KeyType::Encrypted, Some(b"imara-probe"), b"new user:kmk 32", SESSION_KEYRING))
        .and_then(|probe| keys::unlink(probe, SESSION_KEYRING));
    if let Err(error) = &made {
        println!("skipped: {test}: no encrypted keys: {error}");
    }
    made.is_ok()
}

/// What keyctl says; none where it is not installed.
fn keyctl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("keyctl").args(arguments).output().ok()?;
    assert!(output.status.success(), "keyctl {arguments:?}: {}", stderr(&output));
    Some(stdout(&output).trim_end().to_owned())
}

#[test]
fn a_key_is_made_kept_loaded_and_gets_another_master_key() {
    if !private_session("a_key_is_made_kept_loaded_and_gets_another_master_key") {
        return;
    }
    let folder = Folder::new();
    let (blob, other) = (text(&folder.path("k.blob")), text(&folder.path("k2.blob")));
    let master = folder.file("kmk", MASTER);
    done(&["new", "k", "user:kmk", "32", "--keyring", "@s", "--out", &blob]);
    let kept = fs::read_to_string(&blob).unwrap();
    assert!(kept.starts_with("default user:kmk 32 "), "{kept}");
    assert_eq!(done(&["export", "k"]), format!("{kept}\n"));
    let serial = keys::request(KeyType::Encrypted, b"k").unwrap().to_string();
    if let Some(theirs) = keyctl(&["pipe", &serial]) {
        assert_eq!(theirs, kept);
    }
    assert!(done(&["check", "--master", &master, &blob]).contains("authentic: default, 32 bytes under user:kmk"));
    // What is there is never made anew, and no file is written over.
    assert!(refused(&["new", "k", "user:kmk", "32", "--keyring", "@s"]).contains("is in @s already"));
    assert!(refused(&["new", "k2", "user:kmk", "32", "--keyring", "@s", "--out", &blob]).contains("already there"));
    assert!(refused(&["load", "k", &blob, "--keyring", "@s"]).contains("is in @s already"));
    assert!(keys::request(KeyType::Encrypted, b"k2").is_err());
    // Loaded again, it is the same key.
    let shown: Value = serde_json::from_str(&done(&["show", "--json", &serial, &blob])).unwrap();
    for key in shown["keys"].as_array().unwrap() {
        assert_eq!((&key["bytes"], &key["master"]), (&32.into(), &"user:kmk".into()), "{key}");
    }
    done(&["load", "again", &blob, "--keyring", "@s"]);
    assert_eq!(done(&["export", "again"]), format!("{kept}\n"));
    // Another master key: it must be there, of the same type.
    assert!(refused(&["update", "k", "user:kmk2"]).contains("master key user:kmk2"));
    assert!(refused(&["update", "k", "trusted:kmk"]).contains("not its type"));
    keys::add(KeyType::User, Some(b"kmk2"), b"another", SESSION_KEYRING).unwrap();
    let dry = done(&["update", "k", "user:kmk2", "--dry-run"]);
    assert!(dry.contains("would become default, 32 bytes under user:kmk2"), "{dry}");
    assert_eq!(done(&["export", "k"]), format!("{kept}\n"));
    // A blob that cannot be written leaves the key under its old master key.
    refused(&["update", "k", "user:kmk2", "--out", "/nonexistent/k.blob"]);
    assert_eq!(done(&["export", "k"]), format!("{kept}\n"));
    done(&["update", "k", "user:kmk2", "--out", &other]);
    let second = folder.file("kmk2", b"another");
    done(&["check", "--master", &second, &other]);
    // The same without a kernel.
    let offline = text(&folder.path("k3.blob"));
    done(&["update", &blob, "user:kmk2", "--master", &master, "--new-master", &second, "--out", &offline]);
    assert_eq!(fs::read(&offline).unwrap(), fs::read(&other).unwrap());
}

#[test]
fn a_key_made_without_a_kernel_is_loaded_by_one() {
    let folder = Folder::new();
    let master = folder.file("kmk", MASTER);
    let payload = folder.file("payload", &[0x5c; 64]);
    let session = private_session("a_key_made_without_a_kernel_is_loaded_by_one");
    for (name, words) in [
        ("k", &["user:kmk", "20"][..]),
        ("l", &["enc32", "user:kmk", "32"]),
        ("m", &["default user:kmk 4096"]),
        ("0123456789abcdef", &["ecryptfs", "user:kmk", "64", "--payload", &payload]),
        ("n", &["user:kmk", "64", "--payload", &payload]),
    ] {
        let blob = text(&folder.path(&format!("{name}.blob")));
        let arguments = [&["new", name][..], words, &["--master", &master, "--out", &blob]].concat();
        done(&arguments);
        done(&["check", "--master", &master, &blob]);
        if session {
            let kept = fs::read_to_string(&blob).unwrap();
            done(&["load", name, &blob, "--keyring", "@s"]);
            assert_eq!(done(&["export", name]), format!("{kept}\n"));
            if let Some(serial) =
                keyctl(&["add", "encrypted", &format!("{name}2").replace("f2", "e"), &format!("load {kept}"), "@s"])
            {
                assert_eq!(keyctl(&["pipe", &serial]).unwrap(), kept);
            }
        }
    }
    // The key's own bytes, sealed here and loaded there, also by kernels that take none in a command.
    if session {
        let blob = text(&folder.path("own.blob"));
        done(&["new", "own", "user:kmk", "64", "--payload", &payload, "--keyring", "@s", "--out", &blob]);
        done(&["check", "--master", &master, &blob]);
    }
}

#[test]
fn every_refusal_has_the_kernels_number_and_its_reason() {
    let folder = Folder::new();
    let master = folder.file("kmk", MASTER);
    let blob = text(&folder.path("good.blob"));
    done(&["new", "k", "user:kmk", "33", "--master", &master, "--out", &blob]);
    let good = fs::read_to_string(&blob).unwrap();
    let session = private_session("every_refusal_has_the_kernels_number_and_its_reason");
    for (words, number, reason) in [
        (&["user:kmk"][..], "EINVAL", "the key's length is missing"),
        (&["user:kmk", "19"], "EINVAL", "20 to 4096 bytes are possible"),
        (&["kmk", "32"], "EINVAL", "user:NAME or trusted:NAME is needed"),
        (&["enc32", "user:kmk", "64"], "EINVAL", "keys of the format enc32 have 32 bytes, not 64"),
        (&["ecryptfs", "user:kmk", "64"], "EINVAL", "16 hexadecimal digits"),
        (&["default", "user:kmk", "", "32"], "EINVAL", "where a decimal number is needed"),
        (&["user:kmk", "32", "0011"], "EINVAL", "the decrypted data has 4 digits, 64 are needed"),
    ] {
        let out = text(&folder.path("never"));
        let offline = [&["new", "k"][..], words, &["--master", &master, "--out", &out]].concat();
        let kernel = [&["new", "k"][..], words, &["--keyring", "@s"]].concat();
        for arguments in [Some(offline), session.then_some(kernel)].into_iter().flatten() {
            let said = refused(&arguments);
            assert!(said.contains(number) && said.contains(reason), "{arguments:?}: {said}");
        }
        assert!(!folder.path("never").exists());
    }
    let spoiled = |name: &str, change: &dyn Fn(&str) -> String| folder.file(name, change(&good).as_bytes());
    let stranger = folder.file("stranger", b"stranger");
    let newline = folder.file("newline", &[MASTER, b"\n"].concat());
    let digits = folder.file("digits", imara_format::hash::to_hex(MASTER).as_bytes());
    // `count` digits from `start` on are others afterwards.
    let changed = |start: usize, count: usize| {
        let first = good.rfind(' ').unwrap() + 1 + start;
        let other = |digit: u8| if digit == b'0' { b'1' } else { b'0' };
        let mut text = good.clone().into_bytes();
        text[first..first + count].iter_mut().for_each(|digit| *digit = other(*digit));
        String::from_utf8(text).unwrap()
    };
    let digit = folder.file("digit", changed(0, 8).as_bytes());
    for (name, master, blob, reason) in [
        (
            "another master",
            &stranger,
            &blob,
            "it is another key than the one it was sealed with, or the blob is damaged (EINVAL)",
        ),
        ("a newline", &newline, &blob, "ends in a newline that the master key has not"),
        ("in hexadecimal", &digits, &blob, "has the master key in hexadecimal"),
        (
            "a digit",
            &master,
            &folder.file("one", changed(40, 1).as_bytes()),
            "the digit at offset 40 of the blob was changed",
        ),
        ("its end", &master, &folder.file("end", changed(193, 1).as_bytes()), "1 digits of the MAC"),
        ("several", &master, &digit, "the master key is right"),
        (
            "another length",
            &master,
            &spoiled("length", &|good| good.replace(" 33 ", " 34 ")),
            "it was sealed with the length 33",
        ),
        (
            "another format",
            &master,
            &spoiled("format", &|good| good.replace("default ", "")),
            "it was sealed with the format word default",
        ),
        ("cut", &master, &spoiled("cut", &|good| good[..good.len() - 2].to_owned()), "digits, 194 are needed"),
        ("no blob", &master, &stranger, "what stands in its place is no master key"),
        ("nothing", &master, &folder.file("nothing", b""), "the text has 0 bytes"),
        ("too much", &master, &folder.file("much", &[b'a'; 40_000]), "the text has 40000 bytes"),
    ] {
        let said = refused(&["check", "--master", master, blob]);
        assert!(said.contains(reason), "{name}: {said}");
    }
    // Scripts are told the verdict as well.
    let said = imara(&["check", "--master", &master, &digit, "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((code(&said), &told["authentic"]), (1, &false.into()), "{told}");
    assert!(told["error"].as_str().unwrap().contains("does not authenticate"), "{told}");
    assert!(refused(&["check", "--master", &folder.file("empty", b""), &blob]).contains("is empty"));
    assert!(
        refused(&["check", "--master", &folder.file("huge", &[1; 32_768]), &blob]).contains("more than 32767 bytes")
    );
    assert_eq!(code(&imara(&["check", "--master", "-", "-"])), 2);
    if session {
        assert!(refused(&["load", "k", &digit, "--keyring", "@s"]).contains("the master key is right"));
        assert!(refused(&["export", "imara-none"]).contains("ENOKEY"));
        let missing = spoiled("missing", &|good| good.replace("user:kmk", "user:imara-none"));
        let said = imara(&["load", "k", &missing, "--keyring", "@s"]);
        assert!(stderr(&said).contains("user:imara-none") && stderr(&said).contains("(ENOKEY)"), "{}", stderr(&said));
        assert!(stderr(&said).contains("next: load it: imara key load"), "{}", stderr(&said));
        let trusted = spoiled("trusted", &|good| good.replace("user:kmk", "trusted:imara-none"));
        let said = imara(&["load", "k", &trusted, "--keyring", "@s"]);
        let expected = match code(&said) {
            3 => "this kernel has none (EOPNOTSUPP)",
            _ => "the master key trusted:imara-none is not in any keyring that this session leads to (ENOKEY)",
        };
        assert!(stderr(&said).contains(expected), "{}", stderr(&said));
        // The kernel makes such a key, and it could never be kept.
        let said = refused(&["new", "k", "user:imara-none", "32", "--keyring", "@s"]);
        assert!(said.contains("its master key user:imara-none is not in any keyring"), "{said}");
        assert!(said.contains("the new key was not kept"), "{said}");
        assert!(keys::request(KeyType::Encrypted, b"k").is_err());
        // A wiped key, as EVM leaves it behind.
        let zeros = folder.file("zeros", &[0; 32]);
        done(&["new", "wiped", "user:kmk", "32", "--payload", &zeros, "--keyring", "@s", "--quiet"]);
        assert!(refused(&["export", "wiped"]).contains("EVM took the key over"));
    }
}

#[test]
fn no_key_material_is_told() {
    let folder = Folder::new();
    let master = folder.file("kmk", MASTER);
    let secret = b"5ec2e75ec2e75ec2e75ec2e75ec2e75e";
    let payload = folder.file("payload", secret);
    let hex = imara_format::hash::to_hex(secret);
    let blob = text(&folder.path("blob"));
    let mut outputs = vec![
        imara(&["new", "k", "user:kmk", "32", "--payload", &payload, "--master", &master, "--out", &blob, "--json"]),
        imara(&["check", "--master", &master, &blob, "--json"]),
        imara(&["check", "--master", &payload, &blob]),
        imara(&["show", &blob]),
        // In the wrong place, on the command line and in files.
        imara(&["new", "k", "user:kmk", &hex, "--master", &master, "--out", "/nonexistent/x"]),
        imara(&["new", "k", &hex, "32", "--master", &master, "--out", "/nonexistent/x"]),
        imara(&["new", "k", "user:kmk", "32", &hex, "--master", &master, "--out", "/nonexistent/x"]),
        imara(&["check", "--master", &master, &payload]),
        imara(&["check", "--master", &payload, &master]),
        imara(&["new", "k", "user:kmk", "33", "--payload", &payload, "--master", &master, "--out", "/nonexistent/x"]),
    ];
    if private_session("no_key_material_is_told") {
        outputs.push(imara(&["new", "k", "user:kmk", "32", "--payload", &payload, "--keyring", "@s", "--json"]));
        outputs.push(imara(&["new", "k3", "user:kmk", "32", &hex, "--keyring", "@s", "--json"]));
        outputs.push(imara(&["show", "--json"]));
        outputs.push(imara(&["export", "k"]));
    }
    for output in outputs {
        let said = format!("{}{}", stdout(&output), stderr(&output));
        for secret in ["5ec2e7", &hex[..12], "a master key", "61206d6173746572"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}

#[test]
fn a_damaged_blob_of_a_trusted_master_is_not_taken_for_the_key_itself() {
    let folder = Folder::new();
    let out = text(&folder.path("never"));
    let new = |master: &str| imara(&["new", "k", "user:kmk", "32", "--master", master, "--out", &out]);
    // The beginning of a blob; its end, then a length and at last what says what it is are wrong.
    let begin = "308201a606066781050a0103a0030101ff020481000001";
    let damaged = [
        ("cut", begin.to_owned(), "not whole"),
        ("cut inside a byte", begin[..43].to_owned(), "not whole"),
        ("flipped", begin.replace("308201a6", "308201a7"), "not whole"),
        ("pem", "-----BEGIN TSS2 PRIVATE KEY-----\nMIIB\n".to_owned(), "not whole"),
        ("name flipped", begin.replace("67810", "77810"), "beside it is the record of one"),
        ("cut short", begin[..8].to_owned(), "beside it is the record of one"),
    ];
    for (name, content, expected) in damaged {
        let master = folder.file(name, content.as_bytes());
        if expected != "not whole" {
            folder.file(&format!("{name}.sealed"), b"");
        }
        let said = new(&master);
        assert!(code(&said) == 1 && stderr(&said).contains(expected), "{name}: {}", stderr(&said));
        assert!(stderr(&said).contains("next: take the blob from a backup"), "{name}: {}", stderr(&said));
        assert!(!folder.path("never").exists(), "{name}");
    }
    // Without a record it is a key like any other.
    assert_eq!(code(&new(&folder.file("text", b"308201a6"))), 0);
}
