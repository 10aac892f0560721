//! What `sign`, `verify` and `hmac` count of a file, and what options put in its place: beside the evmctl of this machine.
//!
//! An RSA signature over the same bytes is the same signature, so equal labels tell that the same was signed.

use super::both_ways::original;
use super::{EVMCTL, vectors};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Exit status and standard output.
fn run(program: &str, folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// A key, and files to be signed: one with content and a label, an empty one without, a folder.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::copy(vectors().join("key/rsa2048.key"), folder.path().join("k.pem")).unwrap();
    fs::copy(vectors().join("key/rsa2048.der"), folder.path().join("c.der")).unwrap();
    fs::write(folder.path().join("f"), "content\n").unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    assert_eq!(run(EVMCTL, folder.path(), &["ima_hash", "--xattr-user", "f"]).0, Some(0));
    folder
}

const UUID: &str = "--uuid=6e1a2b3c-4d5e-4f60-8172-839405162738";
const IMA: &str = "0404abababababababababababababababababababababababababababababababab";

/// All of an inode's fields at once.
const INODE: &[&str] = &["--generation", "9", "--inode", "5", "--uid", "6", "--gid", "7", "--mode", "33188"];

#[test]
fn every_override_is_signed_as_the_original_signs_it() {
    let Some(theirs) = original("every_override_is_signed_as_the_original_signs_it") else { return };
    let folder = folder();
    let long = "x".repeat(1100);
    let long_ima = "ab".repeat(1100);
    let overrides: &[&[&str]] = &[
        &[],
        &["--uuid"],
        &["-u"],
        &[UUID],
        &["-u6e1a2b3c-4d5e-4f60-8172-839405162738"],
        &["--uuid=6E1A2B3C-4D5E-4F60-8172-839405162738"],
        &["--generation", "4294967295"],
        &["--ino", "18446744073709551615"],
        &["--inode", "4294967296"],
        &["--uid", "4294967295"],
        &["--gid", "4294967294"],
        &["--mode", "33261"],
        &["--mode", "98724"],
        &["--mode", "0"],
        &["--ima", IMA],
        &["--ima", "0404"],
        &["--ima", &long_ima],
        &["--selinux", "system_u:object_r:bin_t:s0"],
        &["--selinux", ""],
        &["--selinux", &long],
        &["--caps=0123"],
        &["--caps="],
        &["--caps"],
        &["--smack"],
        &["--m32"],
        &["--m64"],
        &["-a", "sha1"],
        &["-a", "sha512"],
        &["--keyid", "1234"],
    ];
    let mut problems = Vec::new();
    let mut tried = 0;
    for form in [&["--generation", "0", "--uuid"][..], &["--portable"], &["-i"]] {
        for given in overrides {
            for inode in [&[][..], INODE] {
                for file in ["f", "empty", "d"] {
                    let fixed: &[&str] = &["sign", "-n", "--xattr-user", "--key", "k.pem"];
                    let arguments = [fixed, form, inode, given, &[file]].concat();
                    let (ours, theirs) =
                        (run(EVMCTL, folder.path(), &arguments), run(theirs, folder.path(), &arguments));
                    tried += 1;
                    if ours != theirs {
                        problems.push(format!("{arguments:?}\n   ours   {ours:?}\n   theirs {theirs:?}"));
                    }
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} of {tried}:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn what_is_signed_with_overrides_verifies_with_the_same_ones_alone() {
    let folder = folder();
    let evmctl = |arguments: &[&str]| run(EVMCTL, folder.path(), &[arguments, &["--xattr-user", "f"]].concat()).0;
    let bound: &[&str] = &[UUID, "--generation", "9", "--ino", "5", "--uid", "6", "--gid", "7", "--mode", "33188"];
    assert_eq!(evmctl(&[&["sign", "-k", "k.pem"], bound].concat()), Some(0));
    assert_eq!(evmctl(&[&["verify", "-k", "c.der"], bound].concat()), Some(0));
    // The last of two counts.
    for other in [
        &["--uuid"][..],
        &["--generation", "8"],
        &["--ino", "6"],
        &["--uid", "7"],
        &["--gid", "8"],
        &["--mode", "33261"],
        &["--m32"],
        &["--selinux", "a"],
        &["--caps=a"],
        &["--ima", IMA],
    ] {
        assert_eq!(evmctl(&[&["verify", "-k", "c.der"], bound, other].concat()), Some(1), "{other:?}");
    }
    // A portable one is bound to none of the first three.
    let portable: &[&str] = &["--uid", "6", "--gid", "7", "--mode", "33188"];
    assert_eq!(evmctl(&[&["sign", "--portable", "-k", "k.pem"], portable].concat()), Some(0));
    assert_eq!(evmctl(&[&["verify", "-k", "c.der"], bound].concat()), Some(0));
    for other in [&["--uid", "7"][..], &["--gid", "8"], &["--mode", "33261"], &["--selinux", "a"], &["--ima", IMA]] {
        assert_eq!(evmctl(&[&["verify", "-k", "c.der"], portable, other].concat()), Some(1), "{other:?}");
    }
}
