//! Verification keys in a keyring of the kernel's, and what is never taken.

use crate::scratch::*;
use imara_engine::crypto::{self, PublicKey};
use imara_format::hash::HashAlgorithm;
use imara_linux::key_service::{self as keys, SESSION_KEYRING};
use std::fs;
use std::path::{Path, PathBuf};

impl Scratch {
    /// A program that is signed with the key in a folder.
    fn program_signed_with(&self, folder: &str, name: &str, algorithm: &str) -> PathBuf {
        let path = self.program(name);
        let key = self.path(folder).join("privkey_ima.pem");
        must(command(IMARA).args(["sign", "--quiet", "-a", algorithm, "-k"]).arg(key).arg(&path));
        path
    }

    fn make_rsa_key(&self, folder: &str) -> PathBuf {
        let mut imara = command(IMARA);
        must(imara.args(["key", "generate", "--quiet", "--type", "rsa2048", "--out"]).arg(self.path(folder)));
        self.path(folder).join("x509_ima.der")
    }
}

fn certificate(path: &Path) -> PublicKey {
    PublicKey::from_bytes(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn keys_in_the_kernels_keyring_verify_from_when_they_are_added_until_they_are_removed() {
    let name = "keys_in_the_kernels_keyring_verify_from_when_they_are_added_until_they_are_removed";
    let mut scratch = scratch!("keys_in_the_kernels_keyring_verify_from_when_they_are_added_until_they_are_removed");
    let ring = match keys::join_new_session().and_then(|_| keys::new_keyring(b"_guard", SESSION_KEYRING)) {
        Ok(ring) => ring.to_string(),
        Err(error) => return println!("skipped: {name}: no key service: {error}"),
    };
    let kept = scratch.make_rsa_key("kept");
    let keyring = |arguments: &[&str]| output(command(IMARA).arg("keyring").args(arguments)).unwrap();
    let imported = keyring(&["import", &ring, kept.to_str().unwrap()]);
    if !imported.status.success() {
        return println!("skipped: {name}: no asymmetric keys: {}", text(&imported.stderr));
    }
    let id = format!("id:{}", imara_format::hash::to_hex(&certificate(&kept).key_id()));
    assert!(keyring(&["remove", &ring, &id]).status.success());
    let program = |name: &str| scratch.program_signed_with("kept", name, "sha256");
    let (early, first, second, tampered) = (program("early"), program("first"), program("second"), program("tampered"));
    let given = scratch.signed_program("given");
    change_a_byte(&tampered);
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--keyring", &ring]);
    assert!(runs(&given), "keys in files count as before");
    assert!(!runs(&early), "nobody knows its key yet");
    assert!(keyring(&["import", &ring, kept.to_str().unwrap()]).status.success());
    assert!(runs(&early) && runs(&first), "the key counts from now on");
    assert!(!runs(&tampered), "and verifies");
    let status = scratch.status();
    assert_eq!(status["keyrings"][0], "_guard");
    let listed =
        status["keys"].as_array().unwrap().iter().any(|key| format!("id:{}", key["id"].as_str().unwrap()) == id);
    assert!(listed, "{}", status["keys"]);
    let explained = scratch.json(&["explain", "--json", first.to_str().unwrap()]);
    assert_eq!(explained["hooks"][0]["label"]["key"]["known"], true, "{explained}");
    assert!(keyring(&["remove", &ring, &id]).status.success());
    assert!(!runs(&second), "nor is it known any more");
    assert!(runs(&given) && scratch.alive());
}

#[test]
fn a_blocked_file_is_refused_whatever_its_label_and_a_blocked_key_whatever_it_signed() {
    let mut scratch = scratch!("a_blocked_file_is_refused_whatever_its_label_and_a_blocked_key_whatever_it_signed");
    let (blocked_key, blocked_id) = (scratch.make_rsa_key("by-certificate"), scratch.make_rsa_key("by-id"));
    let good = scratch.signed_program("good");
    let by_certificate = scratch.program_signed_with("by-certificate", "certified", "sha256");
    let by_id = scratch.program_signed_with("by-id", "identified", "sha256");
    // Another content, by a label of another hash than the list's.
    let content = scratch.on("content");
    shell(&format!("cp /bin/true {0}; printf more >>{0}", content.display()));
    must(command(IMARA).args(["sign", "--quiet", "-a", "sha512", "-k"]).arg(scratch.private_key()).arg(&content));
    let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(&content).unwrap()]).unwrap();
    let told = certificate(&blocked_key);
    let lines = [
        format!("bin:{}    # a known hole", digest.to_hex()),
        format!("tbs:{}", told.certificate().unwrap().to_be_signed.unwrap().to_hex()),
        format!("id:{}", imara_format::hash::to_hex(&certificate(&blocked_id).key_id())),
    ];
    let list = scratch.path("block-list");
    fs::write(&list, lines.join("\n")).unwrap();
    let more =
        ["--block-list", list.to_str().unwrap(), "--key", blocked_key.to_str().unwrap(), blocked_id.to_str().unwrap()];
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &more);
    assert!(runs(&good));
    for (path, cause, detail) in [
        (&content, "blacklisted-hash", "is on the block list"),
        (&by_certificate, "invalid-signature", "revoked key id"),
        (&by_id, "invalid-signature", "revoked key id"),
    ] {
        assert!(!runs(path), "{}", path.display());
        let status = scratch.status();
        let last = &status["recent"][0];
        assert_eq!((last["path"].as_str(), last["cause"].as_str()), (path.to_str(), Some(cause)), "{last}");
        assert!(last["detail"].as_str().unwrap().contains(detail), "{last}");
        assert_eq!(scratch.listed(path), 1, "refused, and on record");
    }
    assert!(scratch.list().iter().any(|line| line.contains("blacklisted-hash")), "{:?}", scratch.list());
    let status = scratch.status();
    assert_eq!((&status["blocked"]["files"], &status["blocked"]["certificates"]), (&1.into(), &1.into()));
    let explained = scratch.json(&["explain", "--json", content.to_str().unwrap()]);
    assert_eq!(explained["hooks"][0]["cause"], "blacklisted-hash", "{explained}");
    assert!(explained["hooks"][0]["why"].as_str().unwrap().contains("on the block list as sha256:"), "{explained}");
    // Nor is a label written over it where failures are mended.
    let before = label(&content).unwrap();
    scratch.switch("fix");
    assert!(runs(&content));
    assert_eq!(label(&content).unwrap(), before);
    scratch.switch("enforce");
    assert!(!runs(&content) && runs(&good));
    scratch.proven();
}

#[test]
fn keys_and_block_lists_are_read_again_when_a_policy_is_loaded() {
    let mut scratch = scratch!("keys_and_block_lists_are_read_again_when_a_policy_is_loaded");
    let (folder, list) = (scratch.path("trusted"), scratch.path("block-list"));
    fs::create_dir(&folder).unwrap();
    let added = scratch.make_rsa_key("added");
    fs::copy(scratch.certificate(), folder.join("first.der")).unwrap();
    fs::write(&list, "").unwrap();
    let (good, blocked) = (scratch.signed_program("good"), scratch.on("blocked"));
    shell(&format!("cp /bin/true {0}; printf more >>{0}", blocked.display()));
    scratch.sign(&[&blocked]);
    let signed = scratch.program_signed_with("added", "signed", "sha256");
    settle();
    let more = ["--block-list", list.to_str().unwrap(), "--key", folder.to_str().unwrap()];
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &more);
    // Twice: the second time nobody is asked.
    assert!(runs(&good) && runs(&blocked) && runs(&good) && runs(&blocked) && !runs(&signed));
    let reload = |scratch: &Scratch| scratch.json(&["policy", "load", "--json"]);
    assert_eq!(reload(&scratch)["keys"]["changed"], false);
    let hashed = scratch.status()["counts"]["hashed"].clone();
    // A content that was let pass before, and a key that was not known.
    let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(&blocked).unwrap()]).unwrap();
    fs::write(&list, format!("bin:{}\n", digest.to_hex())).unwrap();
    fs::copy(&added, folder.join("added.der")).unwrap();
    assert!(runs(&blocked) && !runs(&signed), "what is read again is that alone");
    let loaded = reload(&scratch);
    assert_eq!((&loaded["keys"]["changed"], &loaded["keys"]["blocked"]), (&true.into(), &1.into()), "{loaded}");
    assert!(!runs(&blocked) && runs(&signed) && runs(&good));
    assert_eq!(scratch.status()["recent"][0]["cause"], "blacklisted-hash");
    // One of them was named by itself, too.
    let keys = |scratch: &Scratch| scratch.status()["keys"].as_array().unwrap().len();
    assert_eq!(keys(&scratch), 3);
    assert_eq!(scratch.status()["counts"]["hashed"], hashed, "contents stay known");
    // What cannot be read leaves all as it was.
    fs::write(&list, "bin:0123").unwrap();
    fs::remove_file(folder.join("added.der")).unwrap();
    let refused = scratch.imara(&["policy", "load"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("line 1") && text(&refused.stderr).contains("stays in force"));
    assert!(!runs(&blocked) && runs(&signed) && runs(&good));
    // By signal; a key that is gone verifies nothing that was let pass before.
    fs::write(&list, "").unwrap();
    signal(Signal::HUP, scratch.pid());
    eventually("the key is gone", PATIENCE, || keys(&scratch) == 2);
    eventually("that is said", PATIENCE, || {
        scratch.said().contains("the policy, the keys and the block lists were read again")
    });
    assert!(runs(&good) && runs(&blocked) && !runs(&signed));
    scratch.proven();
}

#[test]
fn a_guard_does_not_start_with_a_keyring_or_a_list_that_it_cannot_use() {
    let mut scratch = scratch!("a_guard_does_not_start_with_a_keyring_or_a_list_that_it_cannot_use");
    let list = scratch.path("block-list");
    fs::write(&list, "bin:0123").unwrap();
    for (more, said) in [
        (["--keyring", "imara-none"], "keyring imara-none: there is none"),
        (["--block-list", list.to_str().unwrap()], "line 1: 2 bytes, where 20, 28, 32, 48 or 64 are needed"),
        (["--block-list", "/nonexistent/list"], "/nonexistent/list"),
    ] {
        let Err(ended) = scratch.launch(SIGNED_PROGRAMS, "enforce", &more) else { panic!("{more:?}: it starts") };
        assert!(ended.stderr.contains(said) && !ended.status.success(), "{more:?}: {}", ended.stderr);
    }
}
