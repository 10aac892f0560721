//! `imara verity`, with fsverity-utils and evmctl as the second opinion. That a kernel enables fs-verity and appraises the
//! signatures is tried in the virtual machine (`tests/vm/scenarios/verity`).

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const IMARA: &str = env!("CARGO_BIN_EXE_imara");
const EVMCTL: &str = env!("CARGO_BIN_EXE_evmctl");

fn key(name: &str) -> String {
    format!("{}/../../tests/vectors/key/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn imara(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(IMARA).args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What another program prints; `None`, and a line that says so, where it is not installed.
fn other(test: &str, folder: &Path, program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).current_dir(folder).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {test}: {program}: {error}");
            None
        }
    }
}

#[test]
fn digests_are_printed_as_fsverity_prints_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::write(folder.path().join("small"), "hello world\n").unwrap();
    // A hole, to be read as zeros.
    fs::File::create(folder.path().join("large")).unwrap().set_len(50_000_001).unwrap();
    for more in [
        &[][..],
        &["--hash=sha512"],
        &["--block-size=1024", "--salt=0123"],
        &["--hash=sha512", "--block-size=65536", "--salt=ff"],
    ] {
        let ours = [&["verity", "digest"], more, &["empty", "small", "large"]].concat();
        let (status, printed, told) = imara(folder.path(), &ours);
        assert_eq!(status, Some(0), "{told}");
        let theirs = more.iter().map(|option| option.replace("--hash=", "--hash-alg=")).collect::<Vec<_>>();
        let theirs = theirs.iter().map(String::as_str);
        let theirs = ["digest"].into_iter().chain(theirs).chain(["empty", "small", "large"]).collect::<Vec<_>>();
        let test = "digests_are_printed_as_fsverity_prints_them";
        let Some(theirs) = other(test, folder.path(), "fsverity", &theirs) else { return };
        assert_eq!(printed, String::from_utf8(theirs.stdout).unwrap(), "{more:?}");
    }
}

#[test]
fn a_signature_is_the_one_that_evmctl_makes_of_the_digest() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(folder.path().join("f"), "hello world\n").unwrap();
    let rsa = key("rsa2048.key");
    for hash in ["sha256", "sha512"] {
        let hash = format!("--hash={hash}");
        let (status, _, told) = imara(folder.path(), &["verity", "sign", "--sigfile", "-k", &rsa, &hash, "f"]);
        assert_eq!(status, Some(0), "{told}");
        let label = fs::read(folder.path().join("f.sig")).unwrap();
        assert_eq!(label[..2], [6, 3]);
        let line = imara(folder.path(), &["verity", "digest", &hash, "f"]).1;
        let mut child = Command::new(EVMCTL)
            .args(["sign_hash", "--veritysig", "--key", &rsa])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), line.as_bytes()).unwrap();
        let signed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let expected = label.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(signed.split_whitespace().nth(2), Some(expected.as_str()));
    }
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), "x").unwrap();
    let public = key("rsa2048.der");
    for (arguments, status, said) in [
        (&["verity", "digest", "--block-size=1000", "f"][..], 2, "a block size of 1000 is no power of two"),
        (&["verity", "digest", "--hash=sha1", "f"], 2, "fs-verity knows sha256 and sha512"),
        (&["verity", "digest", "--measured", "f"], 1, "fs-verity is not enabled for it"),
        (&["verity", "digest", "nofile", "f"], 1, "1 of 2 files were not digested"),
        (&["verity", "sign", "-k", &public, "f"], 1, "a certificate, where a private key is needed"),
        (&["verity", "enable", "."], 1, "is a directory, not a regular file"),
        (&["verity", "digest"], 2, "no file is named"),
    ] {
        let (found, printed, told) = imara(folder.path(), arguments);
        assert_eq!(found, Some(status), "{arguments:?}: {printed}{told}");
        assert!(told.contains(said), "{arguments:?}: {told}");
    }
    let (status, printed, _) = imara(folder.path(), &["verity", "enable", "--dry-run", "--json", "f"]);
    assert!(status == Some(0) && printed.contains("\"written\":false"), "{printed}");
}
