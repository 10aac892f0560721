//! `evmctl hmac`, with OpenSSL's HMAC over what the kernel counts as the judge.

use super::{EVMCTL, evmctl, folder};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// What a tool prints, or nothing where it is not there or fails.
fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// HMAC-SHA-1 with the key filled up to 128 bytes, as EVM's.
fn judge(folder: &Path, input: &[u8]) -> Option<String> {
    fs::write(folder.join("input"), input).unwrap();
    let key = KEY.iter().chain(&[0; 96]).map(|byte| format!("{byte:02x}")).collect::<String>();
    let input = folder.join("input");
    let mac = format!("hexkey:{key}");
    let found = printed("openssl", &["dgst", "-sha1", "-mac", "HMAC", "-macopt", &mac, input.to_str().unwrap()])?;
    found.trim().rsplit(' ').next().map(str::to_owned)
}

/// `struct h_misc` of a 64-bit kernel: inode, generation, owner, group, mode; little-endian, 24 bytes.
fn misc(inode: u64, generation: u32, uid: u32, gid: u32, mode: u16) -> Vec<u8> {
    let mut misc = inode.to_le_bytes().to_vec();
    for number in [generation, uid, gid] {
        misc.extend(number.to_le_bytes());
    }
    misc.extend(mode.to_le_bytes());
    misc.resize(24, 0);
    misc
}

#[test]
fn an_hmac_is_over_the_attributes_the_inode_and_the_filesystem() {
    let name = "an_hmac_is_over_the_attributes_the_inode_and_the_filesystem";
    let folder = folder();
    let file = folder.path().join("f");
    fs::write(folder.path().join("key"), KEY).unwrap();
    let generation = printed("lsattr", &["-v", file.to_str().unwrap()]);
    let generation = generation.and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok());
    let Some(generation) = generation else {
        println!("skipped: {name}: lsattr tells no generation here (e2fsprogs, a file system that has generations)");
        return;
    };
    let hmac = |more: &[&str]| evmctl(folder.path(), &[&["hmac", "-n", "--hmackey", "key"], more].concat());
    let (status, _, told) = hmac(&["--uuid", "f"]);
    assert!(status == Some(125) && told.contains("llistxattr() failed: f"), "no attribute at all: {told}");

    // Of these only the label in security.ima counts.
    assert_eq!(evmctl(folder.path(), &["ima_hash", "--xattr-user", "f"]).0, Some(0));
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut counted = Vec::new();
    if root {
        assert_eq!(evmctl(folder.path(), &["ima_hash", "f"]).0, Some(0));
        counted = super::both_ways::attribute(&file, "security.ima");
    }
    let stat = fs::metadata(&file).unwrap();
    let own = misc(stat.ino(), generation, stat.uid(), stat.gid(), stat.mode() as u16);
    let uuid = [0x6e, 0x1a, 0x2b, 0x3c, 0x4d, 0x5e, 0x4f, 0x60, 0x81, 0x72, 0x83, 0x94, 0x05, 0x16, 0x27, 0x38];
    let with_uuid = "--uuid=6e1a2b3c-4d5e-4f60-8172-839405162738";
    let given = misc(5, 9, 6, 7, 0o100_644);
    let fields = ["--ino", "5", "--generation", "9", "--uid", "6", "--gid", "7", "--mode", "33188"];
    for (arguments, misc, uuid) in [
        (&["--uuid", "f"][..], &own, &[][..]),
        (&[with_uuid, "f"], &own, &uuid),
        (&["--smack", "-v", "-a", "sha1", with_uuid, "f"], &own, &uuid),
        (&[&fields[..], &["--uuid", "f"]].concat(), &given, &[]),
    ] {
        let Some(expected) = judge(folder.path(), &[&counted, misc.as_slice(), uuid].concat()) else {
            println!("skipped: {name}: no openssl on this machine: apt install openssl");
            return;
        };
        let (status, _, told) = hmac(arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {told}");
        assert!(told.contains(&format!("hmac: {expected}\n")), "{arguments:?}: not {expected}: {told}");
    }
    // Without -n it becomes the label, of type 2.
    let line = ["hmac", "--xattr-user", "--hmackey", "key", "--uuid", "f"];
    let output = Command::new(EVMCTL).args(line).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let label = super::both_ways::attribute(&file, "user.evm");
    assert_eq!((label[0], label.len()), (2, 21));
}
