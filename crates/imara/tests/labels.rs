//! Keys and labels, with the programs that others use as judges: evmctl, OpenSSL, the kernel's keyrings.
//!
//! A test whose judge is not there says `skipped: …` and passes.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const HASHES: [&str; 4] = ["sha1", "sha256", "sha384", "sha512"];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        // Beside the build, since a temporary filesystem may keep no attributes.
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a key, and returns its folder.
    fn key(&self, kind: &str) -> PathBuf {
        let folder = self.path(&format!("key-{kind}"));
        let made = imara(&["key", "generate", "--quiet", "--type", kind, "--out", text(&folder)]);
        assert_eq!(code(&made), 0, "{made:?}");
        folder
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("IMARA_JOURNAL_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("runs"));
    command.env_remove("IMARA_KEY_PASSPHRASE").env_remove("EVMCTL_KEY_PASSWORD").stdin(Stdio::null());
    command
}

fn imara(arguments: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_imara")).args(arguments).output().unwrap()
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

/// Runs another's program; without it the test is skipped.
fn other(program: &str, arguments: &[&str]) -> Option<Output> {
    match command(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {program} does not run ({error})");
            None
        }
    }
}

/// `--xattr-user` where security attributes need a privilege that the test does not have.
fn namespace() -> &'static [&'static str] {
    if fs::metadata("/proc/self").unwrap().uid() == 0 { &[] } else { &["--xattr-user"] }
}

fn label(path: &Path) -> String {
    let shown = imara(&["show", "--json", "--xattr-user", text(path)]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let name = if namespace().is_empty() { "security.ima" } else { "user.ima" };
    shown["files"][0][name]["raw"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_imara_signs_evmctl_verifies_and_the_other_way_round() {
    let folder = Folder::new();
    for kind in ["rsa1024", "rsa2048", "rsa3072", "rsa4096", "p256", "p384"] {
        let keys = folder.key(kind);
        let (private, certificate) = (keys.join("privkey_ima.pem"), keys.join("x509_ima.der"));
        let (private, certificate) = (text(&private), text(&certificate));
        for hash in HASHES {
            let case = format!("{kind} {hash}");
            let [ours, theirs, ours_beside, theirs_beside] = ["ours", "theirs", "ours-beside", "theirs-beside"]
                .map(|name| folder.file(&format!("{kind}-{hash}-{name}"), "the same content\n"));
            let run = |arguments: &[&[&str]]| imara(&arguments.concat());

            let signed = run(&[&["sign", "-k", private, "-a", hash], namespace(), &[text(&ours)]]);
            assert_eq!(code(&signed), 0, "{case}: {signed:?}");
            let verify = [&["ima_verify", "-k", certificate, "-a", hash], namespace(), &[text(&ours)]].concat();
            let Some(verified) = other("evmctl", &verify) else { return };
            assert_eq!(code(&verified), 0, "{case}: {verified:?}");

            let sign = [&["ima_sign", "-k", private, "-a", hash], namespace(), &[text(&theirs)]].concat();
            let signed = other("evmctl", &sign).unwrap();
            assert_eq!(code(&signed), 0, "{case}: {signed:?}");
            let verified = run(&[&["verify", "-k", certificate], namespace(), &[text(&theirs), text(&ours)]]);
            assert_eq!(code(&verified), 0, "{case}: {verified:?}");
            if kind.starts_with("rsa") {
                assert_eq!(label(&ours), label(&theirs), "{case}");
            }

            let signed = run(&[&["sign", "--sigfile", "-k", private, "-a", hash, text(&ours_beside)]]);
            assert_eq!(code(&signed), 0, "{case}: {signed:?}");
            assert_eq!(label(&ours_beside), "", "--sigfile writes no attribute");
            let verify = [&["ima_verify", "--sigfile", "-k", certificate], namespace(), &[text(&ours_beside)]].concat();
            let verified = other("evmctl", &verify).unwrap();
            assert_eq!(code(&verified), 0, "{case}: {verified:?}");

            let sign = ["ima_sign", "--sigfile", "-k", private, "-a", hash];
            let sign = [&sign[..], namespace(), &[text(&theirs_beside)]].concat();
            let signed = other("evmctl", &sign).unwrap();
            assert_eq!(code(&signed), 0, "{case}: {signed:?}");
            let verified = run(&[&["verify", "--sigfile", "-k", certificate, text(&theirs_beside)]]);
            assert_eq!(code(&verified), 0, "{case}: {verified:?}");
        }
    }
}

#[test]
fn digest_labels_of_evmctl_are_taken_as_integrity_alone() {
    let folder = Folder::new();
    let certificate = folder.key("p256").join("x509_ima.der");
    let file = folder.file("file", "content\n");
    for hash in HASHES {
        let arguments = [&["ima_hash", "-a", hash], namespace(), &[text(&file)]].concat();
        let Some(hashed) = other("evmctl", &arguments) else { return };
        assert_eq!(code(&hashed), 0, "{hashed:?}");
        let verified = imara(&[&["verify"], namespace(), &[text(&file)]].concat());
        assert_eq!(code(&verified), 0, "{verified:?}");
        assert!(stdout(&verified).contains("does not say who made it"), "{verified:?}");
        let verified = imara(&[&["verify", "-k", text(&certificate)], namespace(), &[text(&file)]].concat());
        assert_eq!(code(&verified), 1);
        assert!(stderr(&verified).contains("not signed"), "{verified:?}");
    }
    fs::write(&file, "changed\n").unwrap();
    let verified = imara(&[&["verify"], namespace(), &[text(&file)]].concat());
    assert_eq!(code(&verified), 1);
    assert!(stderr(&verified).contains("the content has changed"), "{verified:?}");
}

#[test]
fn the_kernel_finds_the_certificate_by_its_key_id_and_verifies_with_it() {
    let folder = Folder::new();
    for kind in ["rsa2048", "rsa4096", "p256", "p384"] {
        let keys = folder.key(kind);
        let (private, certificate) = (keys.join("privkey_ima.pem"), keys.join("x509_ima.der"));
        let file = folder.file(&format!("{kind}-file"), "content\n");
        let signed = imara(&["sign", "--sigfile", "--json", "-k", text(&private), text(&file)]);
        let signed: Value = serde_json::from_slice(&signed.stdout).unwrap();
        let key_id = signed["key_id"].as_str().unwrap();
        let label = signed["files"][0]["label"].as_str().unwrap();
        let digest = signed["files"][0]["digest"].as_str().unwrap();
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        fs::write(folder.path("signature"), bytes(&label[18..])).unwrap();
        fs::write(folder.path("digest"), bytes(digest)).unwrap();
        let encoding = if kind.starts_with("rsa") { "pkcs1" } else { "x962" };
        // In a session keyring of its own, which ends with the script.
        let script = format!(
            "keyctl padd asymmetric '' @s < {certificate} || exit 77
             found=$(keyctl search @s asymmetric id:{key_id}) || exit 1
             keyctl pkey_verify $found 0 {digest} {signature} enc={encoding} hash=sha256",
            certificate = certificate.display(),
            digest = folder.path("digest").display(),
            signature = folder.path("signature").display(),
        );
        let Some(judged) = other("keyctl", &["session", "-", "sh", "-c", &script]) else { return };
        match code(&judged) {
            77 => println!("skipped: this kernel takes no {kind} certificate"),
            status => assert_eq!(status, 0, "{kind}: {judged:?}"),
        }
    }
}

#[test]
fn a_new_certificate_has_what_the_kernels_ima_keyring_asks_for() {
    let folder = Folder::new();
    for kind in ["rsa2048", "p384"] {
        let keys = folder.key(kind);
        let certificate = keys.join("x509_ima.der");
        let read = ["x509", "-inform", "der", "-noout", "-text", "-in", text(&certificate)];
        let Some(shown) = other("openssl", &read) else { return };
        let shown = stdout(&shown);
        for needed in [
            "Version: 3 (0x2)",
            "CN = IMA signing key",
            "Basic Constraints: critical\n                CA:FALSE\n",
            "Key Usage: critical\n                Digital Signature\n",
            "X509v3 Subject Key Identifier:",
            "X509v3 Authority Key Identifier:",
        ] {
            assert!(shown.contains(needed), "{needed} is not in\n{shown}");
        }
        let valid = ["x509", "-inform", "der", "-noout", "-checkend", "315000000", "-in", text(&certificate)];
        assert_eq!(code(&other("openssl", &valid).unwrap()), 0, "valid for nearly ten years");
        let public = fs::read(keys.join("pubkey_ima.pem")).unwrap();
        let private = keys.join("privkey_ima.pem");
        assert_eq!(other("openssl", &["pkey", "-pubout", "-in", text(&private)]).unwrap().stdout, public);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names = fs::read_dir(folder).unwrap().map(name).collect::<Vec<_>>();
    names.sort();
    names
}

#[test]
fn a_private_key_is_its_owners_alone_and_never_written_over() {
    let folder = Folder::new();
    let keys = folder.key("p256");
    assert_eq!(names(&keys), ["privkey_ima.pem", "pubkey_ima.pem", "x509_ima.der"]);
    let private = keys.join("privkey_ima.pem");
    assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o7777, 0o600);
    let before = fs::read(&private).unwrap();

    let again = imara(&["key", "generate", "--type", "p256", "--out", text(&keys)]);
    assert_eq!(code(&again), 1);
    assert!(stderr(&again).contains("privkey_ima.pem is already there"), "{again:?}");
    assert_eq!(fs::read(&private).unwrap(), before);

    // One of the three is enough to refuse all of them, a dangling link too.
    let half = folder.path("half");
    fs::create_dir(&half).unwrap();
    symlink("/nonexistent/place", half.join("x509_ima.der")).unwrap();
    assert_eq!(code(&imara(&["key", "generate", "--type", "p256", "--out", text(&half)])), 1);
    assert_eq!(names(&half), ["x509_ima.der"]);

    let forced = imara(&["key", "generate", "--type", "p256", "--force", "--quiet", "--out", text(&keys)]);
    assert_eq!((code(&forced), stdout(&forced)), (0, String::new()));
    assert_ne!(fs::read(&private).unwrap(), before);
    assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(names(&keys).len(), 3);

    let dry = folder.path("dry");
    let made = imara(&["key", "generate", "--type", "p256", "--dry-run", "--json", "--out", text(&dry)]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["written"], false);
    assert!(!dry.exists());

    let evm = imara(&["key", "generate", "--type", "p256", "--for", "evm", "--out", text(&keys)]);
    assert_eq!(code(&evm), 0);
    assert_eq!(names(&keys).len(), 6);

    let weak = imara(&["key", "generate", "--type", "rsa1024", "--out", text(&folder.path("weak"))]);
    assert!(code(&weak) == 0 && stderr(&weak).contains("warning: RSA-1024"), "{weak:?}");

    let file = folder.file("file", "");
    let nowhere = imara(&["key", "generate", "--type", "p256", "--out", text(&file)]);
    assert_eq!(code(&nowhere), 1, "{nowhere:?}");
}

#[test]
fn an_encrypted_key_signs_with_its_passphrase_alone() {
    let folder = Folder::new();
    let keys = folder.path("keys");
    let secret = folder.file("secret", "open sesame\n");
    let wrong = folder.file("wrong", "open barley\n");
    let made =
        imara(&["key", "generate", "--type", "rsa2048", "--out", text(&keys), "--passphrase-file", text(&secret)]);
    assert_eq!(code(&made), 0, "{made:?}");
    let private = keys.join("privkey_ima.pem");
    assert!(fs::read_to_string(&private).unwrap().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    let file = folder.file("file", "content");
    let sign = ["sign", "--sigfile", "-k", text(&private), text(&file)];
    let with_file = |passphrase: &Path| imara(&[&sign[..], &["--passphrase-file", text(passphrase)]].concat());
    assert_eq!(code(&with_file(&secret)), 0);
    let refused = with_file(&wrong);
    assert!(
        code(&refused) == 1 && stderr(&refused).contains("cannot be decrypted with this passphrase"),
        "{refused:?}"
    );
    let refused = imara(&sign);
    assert!(code(&refused) == 1 && stderr(&refused).contains("no passphrase was given"), "{refused:?}");
    for (name, passphrase, expected) in [
        ("IMARA_KEY_PASSPHRASE", "open sesame", 0),
        ("EVMCTL_KEY_PASSWORD", "open sesame", 0),
        ("IMARA_KEY_PASSPHRASE", "open barley", 1),
    ] {
        let mut command = command(env!("CARGO_BIN_EXE_imara"));
        let signed = command.args(sign).env(name, passphrase).output().unwrap();
        assert_eq!(code(&signed), expected, "{name}: {signed:?}");
    }
    let mut evmctl = command("evmctl");
    evmctl.args(["ima_sign", "-k", text(&private)]).args(namespace()).arg(&file);
    let Ok(signed) = evmctl.env("EVMCTL_KEY_PASSWORD", "open sesame").output() else {
        println!("skipped: evmctl does not run");
        return;
    };
    assert_eq!(code(&signed), 0, "{signed:?}");
    let certificate = keys.join("x509_ima.der");
    let verified = imara(&[&["verify", "-k", text(&certificate)], namespace(), &[text(&file)]].concat());
    assert_eq!(code(&verified), 0, "{verified:?}");
}

#[test]
fn keys_in_every_form_that_openssl_writes_are_taken() {
    let folder = Folder::new();
    let file = folder.file("file", "content");
    let rsa = folder.key("rsa2048").join("privkey_ima.pem");
    let ec = folder.key("p256").join("privkey_ima.pem");
    let secret = folder.file("secret", "open sesame");
    let made = |name: &str, from: &Path, arguments: &[&str]| {
        let path = folder.path(name);
        let made = other("openssl", &[arguments, &["-in", text(from), "-out", text(&path)]].concat())?;
        assert_eq!(code(&made), 0, "{name}: {made:?}");
        Some(path)
    };
    let encrypted = ["-aes128", "-passout", "pass:open sesame"];
    for (name, from, arguments) in [
        ("pkcs1", &rsa, vec!["rsa", "-traditional"]),
        ("pkcs1-encrypted", &rsa, [&["rsa", "-traditional"], &encrypted[..]].concat()),
        ("sec1", &ec, vec!["ec"]),
        ("sec1-encrypted", &ec, [&["ec"], &encrypted[..]].concat()),
        ("pkcs8-encrypted", &ec, [&["pkcs8", "-topk8"], &encrypted[1..]].concat()),
    ] {
        let Some(key) = made(name, from, &arguments) else { return };
        let sign = ["sign", "--sigfile", "-k", text(&key), text(&file)];
        let bare = imara(&sign);
        assert_eq!(code(&bare), i32::from(name.ends_with("encrypted")), "{name}: {bare:?}");
        let signed = imara(&[&sign[..], &["--passphrase-file", text(&secret)]].concat());
        assert_eq!(code(&signed), 0, "{name}: {signed:?}");
    }
    assert_eq!(code(&imara(&["sign", "--sigfile", "-k", text(&rsa), text(&file)])), 0);
    for (name, arguments) in [
        ("spki.pem", vec!["pkey", "-pubout"]),
        ("spki.der", vec!["pkey", "-pubout", "-outform", "der"]),
        ("pkcs1.pem", vec!["rsa", "-RSAPublicKey_out"]),
        ("pkcs1.der", vec!["rsa", "-RSAPublicKey_out", "-outform", "der"]),
    ] {
        let key = made(name, &rsa, &arguments).unwrap();
        let verified = imara(&["verify", "--sigfile", "-k", text(&key), text(&file)]);
        assert_eq!(code(&verified), 0, "{name}: {verified:?}");
    }
}

#[test]
fn every_failure_is_named_with_what_would_make_it_pass() {
    let folder = Folder::new();
    let (keys, others) = (folder.key("p256"), folder.key("p384"));
    let (private, certificate) = (keys.join("privkey_ima.pem"), keys.join("x509_ima.der"));
    let [good, changed, unsigned, foreign] =
        ["good", "changed", "unsigned", "foreign"].map(|name| folder.file(name, "content\n"));
    let sign = |key: &Path, file: &Path| {
        let signed = imara(&[&["sign", "-k", text(key)], namespace(), &[text(file)]].concat());
        assert_eq!(code(&signed), 0, "{signed:?}");
    };
    sign(&private, &good);
    sign(&private, &changed);
    sign(&others.join("privkey_ima.pem"), &foreign);
    fs::write(&changed, "other content\n").unwrap();
    let missing = folder.path("missing");
    let files = [&good, &changed, &unsigned, &foreign, &missing].map(|path| text(path));
    let arguments = [&["verify", "--json", "-k", text(&certificate)], namespace(), &files].concat();
    let verified = imara(&arguments);
    assert_eq!(code(&verified), 1);
    let document: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!((&document["schema"], &document["verified"], &document["failed"]), (&1.into(), &1.into(), &4.into()));
    for (index, (error, next)) in [
        ("", ""),
        ("wrong signature", "restore the content"),
        ("not labelled", "sign it: imara sign"),
        ("unknown key id", "give the certificate with key id"),
        ("No such file", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let file = &document["files"][index];
        assert_eq!(file["path"], files[index]);
        assert_eq!(file["verified"], error.is_empty());
        assert!(file["error"].as_str().unwrap_or_default().contains(error), "{file}");
        assert!(file["next"].as_str().unwrap_or_default().contains(next), "{file}");
        assert!(error.is_empty() || stderr(&verified).contains(files[index]));
    }
    // With both keys the foreign one passes too, and the bare public key does as the certificate does.
    let (bare, other) = (keys.join("pubkey_ima.pem"), others.join("x509_ima.der"));
    let both = ["verify", "-k", text(&bare), "-k", text(&other)];
    assert_eq!(code(&imara(&[&both[..], namespace(), &[text(&good), text(&foreign)]].concat())), 0);
}

#[test]
fn help_has_a_line_of_each_command_and_each_its_own() {
    let all = stdout(&imara(&["--help"]));
    for (command, words) in
        [("sign", "Sign files"), ("verify", "Verify the labels of files"), ("key", "key"), ("tpm", "TPM")]
    {
        let line = all
            .lines()
            .find(|line| line.trim_start().starts_with(command))
            .unwrap_or_else(|| panic!("{command}: {all}"));
        assert!(line.contains(words), "{line}");
        for asked in [&[command, "--help"][..], &["help", command], &[command, "-h"]] {
            let told = imara(asked);
            assert!(code(&told) == 0 && stdout(&told).contains("Usage: imara"), "{asked:?}: {told:?}");
        }
    }
    assert_eq!(stdout(&imara(&["help"])), all);
    // Without a word it is the same, and wrong.
    let bare = imara(&[]);
    assert!(code(&bare) == 2 && stderr(&bare).contains("Verify the labels of files"), "{bare:?}");
    let mistyped = stderr(&imara(&["verfy"]));
    assert!(mistyped.contains("'verify'"), "{mistyped}");
    let foreign = imara(&["verify", "--portable", "f"]);
    assert!(code(&foreign) == 2 && stderr(&foreign).contains("unexpected argument '--portable'"), "{foreign:?}");
}

#[test]
fn wrong_command_lines_and_missing_keys_have_their_own_status() {
    let folder = Folder::new();
    let file = folder.file("file", "content");
    for (arguments, expected) in [
        (vec!["sign"], 2),
        (vec!["sign", "-a", "sha257", text(&file)], 2),
        (vec!["sign", "--keyid", "123456789", text(&file)], 2),
        (vec!["sign", "--keyid", "xyz", text(&file)], 2),
        (vec!["verify"], 2),
        (vec!["show"], 2),
        (vec!["verify", "-k", text(&file), text(&file)], 1),
        (vec!["sign", "-k", text(&file), text(&file)], 1),
        (vec!["sign", "-k", "/nonexistent", text(&file)], 1),
    ] {
        let output = imara(&arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {output:?}");
        assert!(!stderr(&output).is_empty());
    }
    if !Path::new("/etc/keys/privkey_ima.pem").exists() {
        assert_eq!(code(&imara(&["sign", text(&file)])), 3);
    }
}

#[test]
fn the_key_id_is_the_one_asked_for_or_the_certificates() {
    let folder = Folder::new();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/key");
    let vector = |name: &str| vectors.join(name).to_str().unwrap().to_owned();
    let file = folder.file("file", "content");
    let own = vector("rsa2048-ownskid.key");
    for (extra, expected) in [
        (vec![], "15a26031"),
        (vec!["--keyid".to_owned(), "0xabc".to_owned()], "00000abc"),
        (vec!["--keyid-from-cert".to_owned(), vector("rsa2048-ownskid.der")], "05060708"),
        (vec!["--keyid-from-cert".to_owned(), vector("rsa2048-ownskid.pem")], "05060708"),
    ] {
        let extra = extra.iter().map(String::as_str).collect::<Vec<_>>();
        let signed = imara(&[&["sign", "--json", "--dry-run", "-k", &own, text(&file)], &extra[..]].concat());
        let signed: Value = serde_json::from_slice(&signed.stdout).unwrap();
        assert_eq!(signed["key_id"], expected);
        assert_eq!(signed["files"][0]["written"], false);
        assert_eq!(label(&file), "", "a dry run writes nothing");
    }
    for (certificate, reason) in [
        ("rsa2048.der", "the certificate is of another key"),
        ("rsa2048-ownskid.pub", "no certificate with a subject key identifier"),
        ("rsa2048-noskid.der", "no certificate with a subject key identifier"),
    ] {
        let certificate = vector(certificate);
        let refused = imara(&["sign", "--dry-run", "-k", &own, "--keyid-from-cert", &certificate, text(&file)]);
        assert!(code(&refused) == 1 && stderr(&refused).contains(reason), "{refused:?}");
    }
    // Signed in the name of the SHA-1 id, which a certificate without subject key identifier does not answer to.
    let signed = imara(&["sign", "--sigfile", "-k", &vector("rsa2048-noskid.key"), text(&file)]);
    assert_eq!(code(&signed), 0);
    let verified = imara(&["verify", "--sigfile", "-k", &vector("rsa2048-noskid.der"), text(&file)]);
    assert!(code(&verified) == 1 && stderr(&verified).contains("has no subject key identifier"), "{verified:?}");
    assert_eq!(code(&imara(&["verify", "--sigfile", "-k", &vector("rsa2048-noskid.pub"), text(&file)])), 0);
}

#[test]
fn a_tree_is_signed_once_for_each_file_and_told_in_order() {
    let folder = Folder::new();
    let keys = folder.key("p256");
    let (private, certificate) = (keys.join("privkey_ima.pem"), keys.join("x509_ima.der"));
    let tree = folder.path("tree");
    fs::create_dir_all(tree.join("inner")).unwrap();
    let mut expected = Vec::new();
    for number in 0..40 {
        let path = tree.join(format!("file{number:02}"));
        // Large ones among small ones: they end out of order.
        fs::write(&path, vec![7; if number % 10 == 0 { 3_000_000 } else { 10 }]).unwrap();
        expected.push(text(&path).to_owned());
    }
    fs::hard_link(tree.join("file00"), tree.join("inner/again")).unwrap();
    symlink(tree.join("file00"), tree.join("link")).unwrap();
    let paths = |output: &Output| {
        let lines = stdout(output);
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|file| file["path"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let sign = ["sign", "--json", "-k", text(&private)];
    let signed = imara(&[&sign[..], namespace(), &["-r", text(&tree)]].concat());
    assert_eq!(code(&signed), 0, "{signed:?}");
    assert_eq!(paths(&signed), expected);
    let verify = ["verify", "-r", "--json", "-k", text(&certificate)];
    let verified = imara(&[&verify[..], namespace(), &[text(&tree)]].concat());
    assert_eq!(code(&verified), 0, "{verified:?}");

    for (separator, extra) in [("\n", vec![]), ("\0", vec!["-0"])] {
        let list = folder.file("list", &expected.join(separator));
        let listed = imara(&[&sign[..], namespace(), &["--files-from", text(&list)], &extra].concat());
        assert_eq!(paths(&listed), expected, "{listed:?}");
    }
    let refused = imara(&[&sign[..], &[text(&tree), text(&tree.join("link"))]].concat());
    assert_eq!(code(&refused), 1);
    assert!(stderr(&refused).contains("-r takes the files of a folder"), "{refused:?}");
    assert!(stderr(&refused).contains("name the file that it leads to"), "{refused:?}");
}

#[test]
fn damaged_labels_are_named_and_never_verify() {
    let folder = Folder::new();
    let keys = folder.key("rsa2048");
    let (private, certificate) = (keys.join("privkey_ima.pem"), keys.join("x509_ima.der"));
    let file = folder.file("file", "content\n");
    assert_eq!(code(&imara(&["sign", "--sigfile", "-k", text(&private), text(&file)])), 0);
    let beside = folder.path("file.sig");
    let good = fs::read(&beside).unwrap();
    let with = |at: usize, byte: u8| {
        let mut label = good.clone();
        label[at] = byte;
        label
    };
    for (name, label, reason) in [
        ("empty", vec![], "security.ima is empty"),
        ("a byte", vec![3], "ends at offset 1"),
        ("half", good[..100].to_vec(), "signature size at offset 7 is 256 bytes, but 91 bytes follow"),
        ("longer", [&good[..], b"x"].concat(), "but 257 bytes follow"),
        ("unknown type", with(0, 9), "has type 9 at offset 0"),
        ("version 3 for 2", with(1, 3), "wrong signature: of another content, or made by another key"),
        ("version 0", with(1, 0), "signature version 0 at offset 1"),
        ("unknown hash", with(2, 200), "hash algorithm 200 at offset 2 is unknown"),
        ("another hash", with(2, 6), "wrong signature"),
        ("another key", with(6, good[6] ^ 1), "unknown key id"),
        ("another signature", with(200, good[200] ^ 1), "wrong signature"),
        ("an fs-verity signature", [&[6, 3], &good[2..]].concat(), "signs an fs-verity digest"),
    ] {
        fs::write(&beside, label).unwrap();
        let verified = imara(&["verify", "--sigfile", "-k", text(&certificate), text(&file)]);
        assert_eq!(code(&verified), 1, "{name}");
        assert!(stderr(&verified).contains(reason), "{name}: {verified:?}");
        let shown = imara(&["show", "--raw", text(&beside)]);
        assert!(code(&shown) <= 1, "{name}: {shown:?}");
    }
}
