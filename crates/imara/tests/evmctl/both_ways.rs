//! Every kind of label, with every kind of key and every hash: what ours makes the evmctl of this machine verifies, and the
//! other way round. Where an RSA key signs, the labels are the same byte for byte.

use super::{EVMCTL, vectors};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What becomes of a hash with a kind of key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Made {
    Both,
    /// SHA-3: the original knows it only where it was built with the headers of Linux 6.7.
    Ours,
    /// ECDSA over what no kernel verifies it over.
    Theirs,
    Neither,
}

const HASHES: [&str; 12] = [
    "md5", "sha1", "sha224", "sha256", "sha384", "sha512", "rmd160", "sm3", "sha3-256", "sha3-384", "sha3-512", "wp512",
];

fn made(key: &str, hash: &str) -> Made {
    match (&key[..2], hash) {
        (_, "wp512") => Made::Neither,
        ("sm", "sm3") => Made::Both,
        ("sm", _) | ("rs", "sm3") => Made::Neither,
        (_, "sha3-256" | "sha3-384" | "sha3-512") => Made::Ours,
        (_, "sha1" | "sha224" | "sha256" | "sha384" | "sha512") | ("rs", _) => Made::Both,
        (_, "md5" | "rmd160" | "sm3") => Made::Theirs,
        _ => unreachable!("{key} {hash} is not in the table"),
    }
}

const UUID: &str = "--uuid=6e1a2b3c-4d5e-4f60-8172-839405162738";

/// A name, how it is signed, how it is verified, and where the label then is.
type Kind = (&'static str, &'static [&'static str], &'static [&'static str], &'static str);

const KINDS: [Kind; 5] = [
    ("content", &["ima_sign"], &["ima_verify"], "user.ima"),
    ("content, beside", &["ima_sign", "-n", "--sigfile"], &["ima_verify", "--sigfile"], "f.sig"),
    ("metadata", &["sign", "--uuid", "--generation", "0"], &["verify", "--uuid", "--generation", "0"], "user.evm"),
    ("metadata, with UUID", &["sign", UUID, "--generation", "7"], &["verify", UUID, "--generation", "7"], "user.evm"),
    ("metadata, portable", &["sign", "--portable"], &["verify"], "user.evm"),
];

/// Keys, each with its certificate in DER; none where the machine has no OpenSSL to make some of them.
fn keys(folder: &Path) -> Option<Vec<(&'static str, PathBuf, PathBuf)>> {
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").args(arguments).current_dir(folder).stdin(Stdio::null()).output().ok()?;
        assert!(made.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
        Some(())
    };
    let mut keys = Vec::new();
    for name in ["rsa1024", "rsa2048", "rsa4096", "p192", "p256", "p384", "p521", "sm2"] {
        let (private, certificate) = (format!("{name}.pem"), format!("{name}.der"));
        match name {
            "rsa4096" => {
                openssl(&["genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:4096", "-out", &private])?
            }
            "p192" => openssl(&["ecparam", "-name", "prime192v1", "-genkey", "-noout", "-out", &private])?,
            _ => fs::copy(vectors().join(format!("key/{name}.key")), folder.join(&private)).map(|_| ()).unwrap(),
        }
        let subject = format!("/CN={name}");
        openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            &private,
            "-subj",
            &subject,
            "-outform",
            "der",
            "-out",
            &certificate,
        ])?;
        keys.push((name, folder.join(private), folder.join(certificate)));
    }
    Some(keys)
}

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_remove("EVMCTL_KEY_PASSWORD").stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

pub fn attribute(path: &Path, name: &str) -> Vec<u8> {
    let file = fs::File::open(path).unwrap();
    imara_linux::files::xattr(&file, name).unwrap().unwrap_or_else(|| panic!("{} has no {name}", path.display()))
}

/// The evmctl of this machine, if it has one; what a test says that cannot do without.
pub fn original(test: &str) -> Option<&'static str> {
    let found = Command::new("evmctl").arg("--version").stdin(Stdio::null()).output();
    if found.is_err() {
        println!("skipped: {test}: no evmctl on this machine: apt install ima-evm-utils");
    }
    found.ok().map(|_| "evmctl")
}

#[test]
fn each_verifies_what_the_other_signs() {
    let name = "each_verifies_what_the_other_signs";
    let Some(theirs) = original(name) else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    let Some(keys) = keys(folder) else {
        println!("skipped: {name}: no openssl on this machine: apt install openssl");
        return;
    };
    let file = folder.join("f");
    let mut problems = Vec::new();
    let mut tried = 0;
    for (key, private, certificate) in &keys {
        for hash in HASHES {
            for (kind, sign, verify, place) in KINDS {
                let made = made(key, hash);
                let mut labels = Vec::new();
                for (signer, program, succeeds) in [
                    ("ours", EVMCTL, matches!(made, Made::Both | Made::Ours)),
                    ("theirs", theirs, matches!(made, Made::Both | Made::Theirs)),
                ] {
                    let case = format!("{key} {hash}, {kind}, signed by {signer}");
                    let _ = (fs::remove_file(&file), fs::remove_file(folder.join("f.sig")));
                    fs::write(&file, "the same content\n").unwrap();
                    if sign.contains(&"--portable") {
                        // It covers this label.
                        assert!(run(EVMCTL, folder, &["ima_hash", "--xattr-user", "f"]).status.success());
                    }
                    let signing = ["--xattr-user", "-a", hash, "--key", private.to_str().unwrap(), "f"];
                    let signed = run(program, folder, &[sign, &signing[..]].concat());
                    if signed.status.success() != succeeds {
                        // A newer original knows SHA-3.
                        if signer != "theirs" || made != Made::Ours {
                            problems.push(format!("{case}: {made:?} in the table: {signed:?}"));
                        }
                        continue;
                    }
                    if !succeeds {
                        continue;
                    }
                    tried += 1;
                    labels.push(match place {
                        "f.sig" => fs::read(folder.join(place)).unwrap(),
                        attribute => self::attribute(&file, attribute),
                    });
                    for (verifier, program, expected) in
                        [("ours", EVMCTL, made != Made::Theirs), ("theirs", theirs, made != Made::Ours)]
                    {
                        let verifying = ["--xattr-user", "--key", certificate.to_str().unwrap(), "f"];
                        let verified = run(program, folder, &[verify, &verifying[..]].concat());
                        if verified.status.success() != expected {
                            problems.push(format!("{case}, verified by {verifier}: {verified:?}"));
                        }
                    }
                }
                if let ([ours, theirs], "rs") = (labels.as_slice(), &key[..2])
                    && ours != theirs
                    // Each made a file of its own, with another inode number.
                    && !matches!(kind, "metadata" | "metadata, with UUID")
                {
                    problems.push(format!("{key} {hash}, {kind}: {ours:02x?} is not {theirs:02x?}"));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} of {tried}:\n{}", problems.len(), problems.join("\n"));
    assert!(tried > 300, "{tried}");
}

#[test]
fn a_digest_label_has_the_kernels_number_of_its_hash() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("f");
    fs::write(&file, "the same content\n").unwrap();
    for (hash, prefix, length) in [
        ("md5", &[1][..], 16),
        ("sha1", &[1], 20),
        ("rmd160", &[4, 3], 20),
        ("sha256", &[4, 4], 32),
        ("sha384", &[4, 5], 48),
        ("sha512", &[4, 6], 64),
        ("sha224", &[4, 7], 28),
        ("sm3", &[4, 17], 32),
        ("md_gost12_256", &[4, 18], 32),
        ("streebog256", &[4, 18], 32),
        ("md_gost12_512", &[4, 19], 64),
        ("streebog512", &[4, 19], 64),
        ("sha3-256", &[4, 20], 32),
        ("sha3-384", &[4, 21], 48),
        ("sha3-512", &[4, 22], 64),
    ] {
        let arguments = ["ima_hash", "--xattr-user", "-a", hash, "f"];
        let hashed = run(EVMCTL, folder.path(), &arguments);
        assert!(hashed.status.success(), "{hash}: {hashed:?}");
        let label = attribute(&file, "user.ima");
        assert_eq!((&label[..prefix.len()], label.len() - prefix.len()), (prefix, length), "{hash}");
        let Some(theirs) = original("a_digest_label_has_the_kernels_number_of_its_hash") else { continue };
        if run(theirs, folder.path(), &arguments).status.success() {
            assert_eq!(attribute(&file, "user.ima"), label, "{hash}");
        }
    }
}

#[test]
fn signatures_of_version_1_go_both_ways() {
    let name = "signatures_of_version_1_go_both_ways";
    let Some(theirs) = original(name) else { return };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    fs::write(folder.join("f"), "the same content\n").unwrap();
    let with = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).env("EVMCTL_SIGV1", "1").stdin(Stdio::null());
        command.output().unwrap()
    };
    for key in ["rsa1024", "rsa2048"] {
        fs::copy(vectors().join(format!("key/{key}.key")), folder.join("k.pem")).unwrap();
        let arguments = ["pkey", "-in", "k.pem", "-pubout", "-out", "pub.pem"];
        let Ok(public) = Command::new("openssl").args(arguments).current_dir(folder).output() else {
            return println!("skipped: {name}: no openssl on this machine: apt install openssl");
        };
        assert!(public.status.success(), "{public:?}");
        for hash in ["sha1", "sha256"] {
            for (kind, sign, verify, place) in
                [("content", "ima_sign", "ima_verify", "user.ima"), ("metadata", "sign", "verify", "user.evm")]
            {
                let bound = if kind == "metadata" { &["--uuid", "--generation", "0"][..] } else { &[] };
                for (signer, program) in [("ours", EVMCTL), ("theirs", theirs)] {
                    let case = format!("{key} {hash}, {kind}, signed by {signer}");
                    let signing = ["--rsa", "--xattr-user", "-a", hash, "--key", "k.pem", "f"];
                    let signed = with(program, &[&[sign], bound, &signing[..]].concat());
                    if !signed.status.success() && signer == "theirs" {
                        // From 1.5 on it is left out unless built in.
                        println!("skipped: {name}: {case}: {}", String::from_utf8_lossy(&signed.stderr).trim());
                        continue;
                    }
                    assert!(signed.status.success(), "{case}: {signed:?}");
                    assert_eq!(attribute(&folder.join("f"), place)[..2], [3, 1], "{case}");
                    for (verifier, program) in [("ours", EVMCTL), ("theirs", theirs)] {
                        let verifying = ["--rsa", "--xattr-user", "-a", hash, "--key", "pub.pem", "f"];
                        let verified = with(program, &[&[verify], bound, &verifying[..]].concat());
                        let left_out =
                            verifier == "theirs" && String::from_utf8_lossy(&verified.stderr).contains("igv1");
                        assert!(verified.status.success() || left_out, "{case}, verified by {verifier}: {verified:?}");
                    }
                }
            }
        }
    }
}
