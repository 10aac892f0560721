//! `imara verify` and `imara show` on trees: what is told from what, with which keys.

use crate::scratch::{Scratch, attribute, text};
use imara_linux::files::set_xattr;
use imara_linux::key_service::{self, KeyType, SESSION_KEYRING};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn set(path: &Path, label: &[u8]) {
    set_xattr(fs::File::open(path).unwrap(), attribute().0, label).unwrap();
}

/// A tree with a file for each thing that can be wrong, and the certificate.
fn broken_tree(scratch: &Scratch) -> String {
    let (rsa, certificate) = scratch.key("rsa2048");
    let (foreign, _) = scratch.key("p256");
    let sign = |key: &str, name: &str| {
        let path = scratch.file(name, name);
        assert_eq!(scratch.label(&["sign", "--quiet", "-k", key, text(&path)]).code, 0);
        path
    };
    sign(&rsa, "good");
    fs::write(sign(&rsa, "changed"), "other").unwrap();
    sign(&foreign, "foreign");
    let spoilt = sign(&rsa, "spoilt");
    let mut label = imara_linux::files::xattr(fs::File::open(&spoilt).unwrap(), attribute().0).unwrap().unwrap();
    label[100] ^= 1;
    set(&spoilt, &label);
    set(&scratch.file("damaged", "damaged"), &label[..50]);
    scratch.file("bare", "bare");
    let digest = scratch.file("digest", "digest");
    assert_eq!(scratch.label(&["hash", "--quiet", text(&digest)]).code, 0);
    // What cannot be computed here cannot be judged.
    set(&scratch.file("tiger", "tiger"), &[&[4, 16][..], &[7; 24]].concat());
    certificate
}

#[test]
fn each_thing_that_is_wrong_is_told_from_the_others_and_counted() {
    let scratch = Scratch::new();
    let certificate = broken_tree(&scratch);
    let tree = scratch.tree();
    let verified = scratch.label(&["verify", "-r", "--json", "-k", &certificate, text(&tree)]);
    assert_eq!(verified.code, 1);
    let lines = verified.lines();
    let states = lines.iter().filter_map(|line| {
        let name = Path::new(line["path"].as_str()?).file_name()?.to_str()?.to_owned();
        Some((name, line["state"].as_str().unwrap_or("verified").to_owned()))
    });
    let states = states.map(|(name, state)| format!("{name}: {state}")).collect::<Vec<_>>();
    let expected = [
        "bare: no-label",
        "changed: hash-mismatch",
        "damaged: bad-label",
        "digest: not-signed",
        "foreign: unknown-key",
        "good: verified",
        "spoilt: bad-signature",
        "tiger: unreadable",
    ];
    assert_eq!(states, expected);
    let summary = verified.summary();
    for (kind, count) in
        [("verified", 1), ("failed", 7), ("signed", 1), ("unchanged", 0), ("no-label", 1), ("not-signed", 1)]
    {
        assert_eq!(summary[kind], count, "{kind}");
    }
    let told = scratch.label(&["verify", "-r", "-k", &certificate, text(&tree)]);
    let counts = "8 files: 1 with a good signature, 1 changed, 1 with a bad signature, 1 signed by an unknown key, 1 without a label, \
                  1 not signed, 1 with a damaged label, 1 unreadable; ";
    assert!(told.out.starts_with(counts), "{}", told.out);
    assert_eq!(told.err.lines().filter(|line| line.contains(text(&tree))).count(), 7, "{}", told.err);
    assert!(told.err.contains("next: sign it: imara sign"), "{}", told.err);
    // Without a key a digest is enough.
    let digests = scratch.label(&["verify", "-r", "--json", "--include", "digest", text(&tree)]);
    assert_eq!((digests.code, &digests.summary()["unchanged"]), (0, &json!(1)));
    let none = scratch.label(&["verify", "-r", "--include", "none", text(&tree)]);
    assert_eq!((none.code, &*none.out), (4, "no file was found\n"));
}

#[test]
fn keys_are_taken_from_a_folder() {
    let scratch = Scratch::new();
    let (rsa, _) = scratch.key("rsa2048");
    let (ec, certificate) = scratch.key("p256");
    let [one, two] = ["one", "two"].map(|name| scratch.file(name, name));
    assert_eq!(scratch.label(&["sign", "-k", &rsa, text(&one)]).code, 0);
    assert_eq!(scratch.label(&["sign", "-k", &ec, text(&two)]).code, 0);
    let keys = scratch.path("keys");
    fs::create_dir(&keys).unwrap();
    let tree = scratch.tree();
    let empty = scratch.label(&["verify", "-r", "-k", text(&keys), text(&tree)]);
    assert!(empty.code == 1 && empty.err.contains("no file in it is a certificate"), "{}", empty.err);
    fs::write(keys.join("README"), "not a key").unwrap();
    fs::copy(&certificate, keys.join("ec.der")).unwrap();
    assert_eq!(scratch.label(&["verify", "-r", "-k", text(&keys), text(&tree)]).code, 1);
    fs::copy(scratch.path("key-rsa2048/pubkey_ima.pem"), keys.join("rsa.pem")).unwrap();
    assert_eq!(scratch.label(&["verify", "-r", "-k", text(&keys), text(&tree)]).code, 0);
}

#[test]
fn the_kernel_verifies_with_the_keys_of_a_keyring() {
    let scratch = Scratch::new();
    let tree = scratch.tree();
    let kinds = ["rsa2048", "p256"].map(|kind| (kind, scratch.key(kind)));
    for (kind, (private, _)) in &kinds {
        let file = scratch.file(kind, kind);
        assert_eq!(scratch.label(&["sign", "-k", private, text(&file)]).code, 0);
    }
    fs::write(scratch.file("changed", "changed"), "changed").unwrap();
    assert_eq!(scratch.label(&["sign", "-k", &kinds[0].1.0, text(&tree.join("changed"))]).code, 0);
    fs::write(tree.join("changed"), "other").unwrap();
    std::thread::scope(|scope| {
        // A session keyring of its own, which ends with the thread.
        scope.spawn(|| {
            if let Err(error) = key_service::join_new_session() {
                return println!(
                    "skipped: the_kernel_verifies_with_the_keys_of_a_keyring: no session keyring: {error}"
                );
            }
            let verify = || scratch.label(&["verify", "-r", "--json", "--keyring", "@s", text(&tree)]);
            assert_eq!(verify().summary()["unknown-key"], 3);
            for (kind, (_, certificate)) in &kinds {
                if let Err(error) =
                    key_service::add(KeyType::Asymmetric, None, &fs::read(certificate).unwrap(), SESSION_KEYRING)
                {
                    return println!("skipped: the_kernel_verifies_with_the_keys_of_a_keyring: {kind}: {error}");
                }
            }
            let verified = verify();
            assert_eq!(verified.code, 1, "{}", verified.err);
            let summary = verified.summary();
            assert_eq!((&summary["signed"], &summary["bad-signature"]), (&json!(2), &json!(1)), "{}", verified.out);
            assert!(verified.out.contains("RSA-2048") && verified.out.contains("ECDSA P-256"), "{}", verified.out);
        });
    });
    let missing = scratch.label(&["verify", "-r", "--keyring", "no-such-keyring", text(&tree)]);
    assert!(missing.code > 0 && missing.err.contains("no-such-keyring"), "{}", missing.err);
}

#[test]
fn labels_of_a_tree_are_shown_in_lines() {
    let scratch = Scratch::new();
    broken_tree(&scratch);
    let tree = scratch.tree();
    let shown = scratch.run(&["show", "-r", "--json", "--xattr-user", text(&tree)]);
    assert_eq!(shown.code, 1, "one is damaged");
    let lines = shown.lines();
    assert_eq!(lines.len(), 9);
    let of = |name: &str| -> Value {
        let path = text(&tree.join(name)).to_owned();
        lines.iter().find(|line| line["path"] == path.as_str()).unwrap()[attribute().0].clone()
    };
    assert_eq!((of("digest")["type"].clone(), of("good")["version"].clone()), (json!("digest"), json!(2)));
    assert_eq!(
        (of("bare"), lines[8].clone()),
        (Value::Null, json!({ "schema": 1, "summary": { "shown": 8, "unreadable": 1, "interrupted": false } }))
    );
    let text = scratch.run(&["show", "-r", "--xattr-user", text(&tree)]);
    assert!(text.out.contains("digest\n  security.ima: "), "{}", text.out);
}

#[test]
fn signatures_of_version_3_are_made_told_and_left_alone_where_they_are_right() {
    let scratch = Scratch::new();
    for kind in ["rsa2048", "p384"] {
        let (private, certificate) = scratch.key(kind);
        let path = scratch.file(kind, "content");
        let sign = |more: &[&str]| {
            let signed = scratch.label(&[&["sign", "--json", "-k", &private], more, &[text(&path)]].concat());
            let signed: Value = serde_json::from_str(&signed.out).unwrap();
            (signed["files"][0]["state"].as_str().unwrap().to_owned(), scratch.label_of(&path))
        };
        let verified = || {
            let verified = scratch.label(&["verify", "--json", "-k", &certificate, text(&path)]);
            let document: Value = serde_json::from_str(&verified.out).unwrap();
            (verified.code, document["files"][0]["version"].clone())
        };
        // Type 3, then the version, then the hash.
        for (more, state, start, version) in [
            (&["--v3"][..], "signed", "030304", 3),
            (&["--v3", "--only-wrong"], "right", "030304", 3),
            (&["--v3", "--only-wrong", "-a", "sha512"], "signed", "030306", 3),
            (&["--only-wrong", "-a", "sha512"], "signed", "030206", 2),
            (&["--v3", "--only-wrong", "-a", "sha512"], "signed", "030306", 3),
        ] {
            let (told, label) = sign(more);
            assert_eq!((told.as_str(), &label[..6]), (state, start), "{kind} {more:?}");
            assert_eq!(verified(), (0, json!(version)), "{kind} {more:?}");
        }
        fs::write(&path, "other").unwrap();
        assert_eq!(verified().0, 1, "{kind}");
    }
}
