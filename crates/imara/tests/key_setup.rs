//! `imara key setup` and `imara key load`: in folders of the tests' own, against this machine's kernel in private session keyrings.

#[allow(dead_code)]
#[path = "tpm/software.rs"]
mod software;

use imara_engine::crypto::{self, PublicKey};
use imara_format::hash::HashAlgorithm;
use imara_format::key::KeySerial;
use imara_format::key_blob::encrypted::Blob;
use imara_linux::key_service::{self as keys, KeyType, SESSION_KEYRING};
use serde_json::Value;
use software::Software;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn imara(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.env_remove("IMARA_KEY_PASSPHRASE").env_remove("EVMCTL_KEY_PASSWORD");
    command.arg("key").args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn done(arguments: &[&str]) -> String {
    let output = imara(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = imara(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// The state of each step, by what it is about and what was done.
fn steps(arguments: &[&str]) -> BTreeMap<String, String> {
    let document: Value = serde_json::from_str(&done(&[arguments, &["--json"]].concat())).unwrap();
    let text = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
    let steps = document["steps"].as_array().unwrap().iter();
    steps.map(|step| (format!("{} {}", text(step, "what"), text(step, "verb")), text(step, "state"))).collect()
}

/// A folder that stands for `/`.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn text(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn keys(&self, name: &str) -> PathBuf {
        self.0.path().join("etc/keys").join(name)
    }

    /// All files, with their content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn gather(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => gather(&path, files),
                    false => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
                }
            }
        }
        let mut files = BTreeMap::new();
        gather(self.0.path(), &mut files);
        files
    }
}

fn private_session(test: &str) -> bool {
    let made = keys::join_new_session()
        .and_then(|_| keys::add(KeyType::User, Some(b"imara-master"), b"x", SESSION_KEYRING))
        .and_then(|_| {
            keys::add(KeyType::Encrypted, Some(b"imara-probe"), b"new user:imara-master 32", SESSION_KEYRING)
        });
    if let Err(error) = &made {
        println!("skipped: {test}: no encrypted keys: {error}");
    }
    made.is_ok()
}

fn in_session(kind: KeyType, name: &str) -> Option<KeySerial> {
    keys::search(SESSION_KEYRING, kind, name.as_bytes()).ok()
}

#[test]
fn an_image_gets_all_files_that_others_look_for_and_none_is_ever_replaced() {
    let root = Root::new();
    let dry = done(&["setup", "--root", root.text(), "--dry-run"]);
    assert!(dry.contains("master key would be made") && root.files().is_empty(), "{dry}");
    done(&["setup", "--root", root.text(), "--type", "p256"]);
    let made = root.files();
    let names: Vec<String> = made
        .keys()
        .map(|path| path.strip_prefix(root.0.path().join("etc/keys")).unwrap().to_str().unwrap().to_owned())
        .collect();
    let expected = [
        "evm/x509_evm.der",
        "evm-user.blob",
        "ima/x509_ima.der",
        "kmk-user.blob",
        "privkey_evm.pem",
        "privkey_ima.pem",
        "pubkey_evm.pem",
        "pubkey_ima.pem",
        "x509_evm.der",
        "x509_ima.der",
    ];
    assert_eq!(names, expected);
    for (name, mode) in
        [("kmk-user.blob", 0o600), ("evm-user.blob", 0o600), ("privkey_ima.pem", 0o600), ("x509_ima.der", 0o644)]
    {
        assert_eq!(fs::metadata(root.keys(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    // What a shell reads is what is there: dracut loads it so.
    let master = fs::read(root.keys("kmk-user.blob")).unwrap();
    let cat =
        Command::new("sh").args(["-c", r#"printf %s "$(cat "$0")""#]).arg(root.keys("kmk-user.blob")).output().unwrap();
    assert_eq!((cat.stdout, master.len()), (master, 64));
    let blob = fs::read_to_string(root.keys("evm-user.blob")).unwrap();
    assert!(blob.starts_with("default user:kmk-user 128 "), "{blob}");
    let (master, blob) = (root.keys("kmk-user.blob"), root.keys("evm-user.blob"));
    done(&["encrypted", "check", "--master", master.to_str().unwrap(), blob.to_str().unwrap()]);
    // Again, and nothing changes.
    let again = steps(&["setup", "--root", root.text()]);
    assert!(again.values().all(|state| state == "there") && again.len() == 4, "{again:?}");
    assert_eq!(root.files(), made);
    // What is missing is made, under the master key that is there.
    fs::remove_file(&blob).unwrap();
    let steps = steps(&["setup", "--root", root.text(), "--evm-bytes", "32", "--no-signing-keys"]);
    let of = |what: &str| steps[what].as_str();
    assert_eq!((of("master key made"), of("key evm-key made")), ("there", "done"));
    done(&["encrypted", "check", "--master", master.to_str().unwrap(), blob.to_str().unwrap()]);
}

#[test]
fn what_does_not_fit_together_is_said_and_left_alone() {
    let root = Root::new();
    let arguments = ["setup", "--root", root.text(), "--no-signing-keys"];
    done(&arguments);
    let (master, blob) = (root.keys("kmk-user.blob"), root.keys("evm-user.blob"));
    let good = fs::read(&master).unwrap();
    for (name, spoil, expected) in [
        ("another master key", &(|| fs::write(&master, "another").unwrap()) as &dyn Fn(), "does not open with"),
        ("no text", &|| fs::write(&master, b"a\0b").unwrap(), "has zero bytes"),
        ("nothing", &|| fs::write(&master, "").unwrap(), "is empty"),
        ("newlines", &|| fs::write(&master, "\n\n").unwrap(), "nothing but newlines"),
        ("no master key", &|| fs::remove_file(&master).unwrap(), "and not the master key that it is sealed with"),
        ("no blob", &|| fs::write(&blob, "nonsense").unwrap(), "no blob of an encrypted key"),
    ] {
        let kept = fs::read(&blob).unwrap();
        spoil();
        let before = root.files();
        let said = refused(&arguments);
        assert!(said.contains(expected), "{name}: {said}");
        assert_eq!(root.files(), before, "{name}");
        fs::write(&master, &good).unwrap();
        fs::write(&blob, kept).unwrap();
    }
    // No second evm-key beside one that is there, whichever master key was asked for or is there.
    let trusted = root.keys("evm-trusted.blob");
    fs::rename(&blob, &trusted).unwrap();
    for (wanted, expected) in
        [("auto", "and not the master key that it is sealed with"), ("user", "would be another key")]
    {
        let said = refused(&[&arguments[..], &["--master", wanted]].concat());
        assert!(said.contains(expected) && said.contains("evm-trusted.blob") && !blob.exists(), "{wanted}: {said}");
    }
    fs::rename(&trusted, &blob).unwrap();
    // A newline at its end is none of the key's.
    fs::write(&master, [good.as_slice(), b"\n"].concat()).unwrap();
    done(&arguments);
    let missing = Root::new();
    assert!(refused(&["load", "--root", missing.text()]).contains("imara key setup"));
    assert!(refused(&["setup", "--root", "/nonexistent"]).contains("is no folder"));
}

#[test]
fn keys_are_loaded_once_and_verify() {
    let test = "keys_are_loaded_once_and_verify";
    if !private_session(test) {
        return;
    }
    let root = Root::new();
    done(&["setup", "--root", root.text()]);
    let load = ["load", "--root", root.text(), "--keyring", "@s"];
    let dry = steps(&[&load[..], &["--dry-run"]].concat());
    assert!(dry.values().all(|state| state == "would"), "{dry:?}");
    assert!(in_session(KeyType::User, "kmk-user").is_none());
    let first = steps(&load);
    assert!(first.values().all(|state| state == "done"), "{first:?}");
    for (name, expected) in [
        ("master key loaded", true),
        ("key evm-key loaded", true),
        ("keyring _ima made", keys::keyring_named(b".ima").is_err()),
    ] {
        assert_eq!(first.contains_key(name), expected, "{name}: {first:?}");
    }
    let evm = in_session(KeyType::Encrypted, "evm-key").unwrap();
    let blob = fs::read(root.keys("evm-user.blob")).unwrap();
    assert_eq!(keys::read(evm).unwrap().as_bytes(), blob, "the key in the kernel is the file's");
    let certificate = PublicKey::from_bytes(&fs::read(root.keys("x509_ima.der")).unwrap()).unwrap();
    let id = format!("id:{}", imara_format::hash::to_hex(&certificate.key_id()));
    let ring = in_session(KeyType::Keyring, "_ima").unwrap();
    assert!(keys::search(ring, KeyType::Asymmetric, id.as_bytes()).is_ok(), "{first:?}");
    assert_eq!(keys::keys_of(ring).unwrap().len(), 1, "the copy for dracut is the same certificate");
    // Again, and nothing changes.
    let held = keys::keys_of(SESSION_KEYRING).unwrap();
    let again = steps(&load);
    assert!(again.values().all(|state| state == "there"), "{again:?}");
    assert_eq!(keys::keys_of(SESSION_KEYRING).unwrap(), held);
    // Setup finds all of it, too.
    let all = steps(&["setup", "--root", root.text()]);
    assert!(all.values().all(|state| state == "there"), "{all:?}");

    // Another key under one of the names is left alone.
    let other = Root::new();
    done(&["setup", "--root", other.text(), "--no-signing-keys"]);
    let said = refused(&["load", "--root", other.text(), "--keyring", "@s"]);
    assert!(said.contains("holds another master key under that name"), "{said}");
    assert!(said.contains("holds another key evm-key"), "{said}");
    assert_eq!(keys::read(evm).unwrap().as_bytes(), blob);
}

#[test]
fn a_tpm_seals_the_master_key_where_there_is_one() {
    let test = "a_tpm_seals_the_master_key_where_there_is_one";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    let root = Root::new();
    let tpm = software.file("tpm");
    let setup = ["setup", "--root", root.text(), "--no-signing-keys", "--tpm", &tpm];
    assert!(done(&[&setup[..], &["--dry-run"]].concat()).contains("sealed by the TPM") && root.files().is_empty());
    done(&setup);
    let made = root.files();
    let names: Vec<&str> = made.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["evm-trusted.blob", "kmk-trusted.blob", "kmk-trusted.blob.sealed"]);
    software.nothing_is_loaded();
    // dracut gives the kernel the text that is in the file.
    let blob = String::from_utf8(made[&root.keys("kmk-trusted.blob")].clone()).unwrap();
    assert!(blob.chars().all(|digit| digit.is_ascii_hexdigit()), "{blob}");
    let load = ["load", "--root", root.text(), "--keyring", "@s", "--tpm", &tpm];
    let first = steps(&load);
    assert!(first.values().all(|state| state == "done") && first.len() == 2, "{first:?}");
    let evm = in_session(KeyType::Encrypted, "evm-key").unwrap();
    assert_eq!(keys::read(evm).unwrap().as_bytes(), made[&root.keys("evm-trusted.blob")]);
    let again = steps(&load);
    assert!(again.values().all(|state| state == "there"), "{again:?}");
    let same = steps(&setup);
    assert!(same.values().all(|state| state == "there"), "{same:?}");
    assert_eq!(root.files(), made);
    // A lost blob of evm-key is made anew under the same master key.
    fs::remove_file(root.keys("evm-trusted.blob")).unwrap();
    assert_eq!(steps(&setup)["key evm-key made"], "done");
    assert_eq!(fs::read(root.keys("kmk-trusted.blob")).unwrap(), made[&root.keys("kmk-trusted.blob")]);
    software.nothing_is_loaded();
    // Another TPM does not unseal it, and what is there stays.
    let Some(other) = Software::start(test) else { return };
    keys::clear(SESSION_KEYRING).unwrap();
    let tpm = other.file("tpm");
    let said = refused(&["load", "--root", root.text(), "--keyring", "@s", "--tpm", &tpm]);
    assert!(said.contains("kmk-trusted.blob") && in_session(KeyType::User, "kmk-trusted").is_none(), "{said}");
    let output = imara(&["setup", "--root", root.text(), "--master", "trusted"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_damaged_blob_is_told_from_another_key_and_from_one_that_evm_has_wiped() {
    let test = "a_damaged_blob_is_told_from_another_key_and_from_one_that_evm_has_wiped";
    if !private_session(test) {
        return;
    }
    let root = Root::new();
    done(&["setup", "--root", root.text(), "--no-signing-keys", "--no-load"]);
    let load = ["load", "--root", root.text(), "--keyring", "@s"];
    done(&load);
    let path = root.keys("evm-user.blob");
    let good = fs::read_to_string(&path).unwrap();
    let blob = Blob::parse(good.as_bytes()).unwrap();
    let text = |change: &dyn Fn(&mut Blob)| {
        let mut blob = blob.clone();
        change(&mut blob);
        String::from_utf8(blob.to_text()).unwrap()
    };
    for (name, damaged) in [
        ("the IV", text(&|blob| blob.iv[3] ^= 1)),
        ("the key", text(&|blob| blob.ciphertext[40] ^= 0x10)),
        ("the MAC", text(&|blob| blob.mac[31] ^= 2)),
        ("all of the key", text(&|blob| blob.ciphertext.fill(7))),
    ] {
        fs::write(&path, damaged).unwrap();
        let said = refused(&load);
        assert!(said.contains("does not authenticate") && !said.contains("wiped"), "{name}: {said}");
        assert!(!said.contains("another key evm-key"), "{name}: {said}");
        assert_eq!(said.contains("writes its blob anew"), name == "the MAC", "{name}: {said}");
    }
    // Without its master key nothing can be told, and nothing is claimed.
    let master = root.keys("kmk-user.blob");
    let there = fs::read(&master).unwrap();
    fs::write(&path, text(&|blob| blob.ciphertext[40] ^= 0x10)).unwrap();
    fs::remove_file(&master).unwrap();
    keys::unlink(in_session(KeyType::User, "kmk-user").unwrap(), SESSION_KEYRING).unwrap();
    let said = refused(&load);
    assert!(said.contains("evm-key (key ") && said.contains("(ENOKEY)") && !said.contains("wiped"), "{said}");
    // What the kernel's EVM leaves of its key: zeros.
    fs::write(&master, &there).unwrap();
    fs::write(&path, &good).unwrap();
    let derived = |label: &[u8]| {
        let mut text = [label, b"\0", &there].concat();
        text.resize(text.len().max(b"AUTH_KEY".len() + 1 + there.len()), 0);
        crypto::hash(HashAlgorithm::Sha256, &[&text]).unwrap()
    };
    let key = derived(b"ENC_KEY").as_bytes().try_into().unwrap();
    let mut wiped = blob.clone();
    let zeros = vec![0; blob.length.sealed_bytes()];
    wiped.ciphertext = crypto::aes256_cbc_encrypt(&key, &blob.iv, &zeros).unwrap();
    wiped.mac = crypto::hmac_sha256(derived(b"AUTH_KEY").as_bytes(), &wiped.authenticated());
    keys::unlink(in_session(KeyType::Encrypted, "evm-key").unwrap(), SESSION_KEYRING).unwrap();
    done(&load);
    keys::unlink(in_session(KeyType::Encrypted, "evm-key").unwrap(), SESSION_KEYRING).unwrap();
    let command = [b"load ", wiped.to_text().as_slice()].concat();
    keys::add(KeyType::Encrypted, Some(b"evm-key"), &command, SESSION_KEYRING).unwrap();
    let said = done(&load);
    assert!(said.contains("taken over and wiped"), "{said}");
}

#[test]
fn a_master_key_is_loaded_by_the_name_that_the_blob_under_it_has() {
    let test = "a_master_key_is_loaded_by_the_name_that_the_blob_under_it_has";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    if keys::add(KeyType::Trusted, Some(b"probe"), b"nonsense", SESSION_KEYRING)
        .is_err_and(|error| error.raw_os_error() != Some(19))
    {
        println!("skipped: {test}: this kernel has trusted keys");
        return;
    }
    let tpm = software.file("tpm");
    // Made on a kernel with trusted keys, or under a name of one's own: as docs/keys.md has it.
    for master in ["trusted:kmk-trusted", "trusted:kmk", "user:kmk-trusted", "user:kmk"] {
        keys::clear(SESSION_KEYRING).unwrap();
        let root = Root::new();
        fs::create_dir_all(root.keys("")).unwrap();
        let [sealed, blob] = ["kmk-trusted.blob", "evm-trusted.blob"].map(|name| root.keys(name).display().to_string());
        done(&["trusted", "new", "any", "32", "--blob-only", "--out", &sealed, "--tpm", &tpm]);
        done(&["encrypted", "new", "evm-key", master, "128", "--master", &sealed, "--tpm", &tpm, "--out", &blob]);
        let load = ["load", "--root", root.text(), "--keyring", "@s"];
        let with_tpm = [&load[..], &["--tpm", &tpm]].concat();
        let first = steps(&with_tpm);
        assert!(first.values().all(|state| state == "done") && first.len() == 2, "{master}: {first:?}");
        let name = master.split_once(':').unwrap().1;
        assert!(in_session(KeyType::User, name).is_some(), "{master}");
        let there = Blob::parse(keys::read(in_session(KeyType::Encrypted, "evm-key").unwrap()).unwrap().as_bytes());
        let (there, kept) = (there.unwrap(), Blob::parse(&fs::read(&blob).unwrap()).unwrap());
        assert_eq!((there.iv, &there.ciphertext), (kept.iv, &kept.ciphertext), "{master}: the same key");
        let again = steps(&with_tpm);
        assert!(again.values().all(|state| state == "there"), "{master}: {again:?}");
        software.nothing_is_loaded();
    }
}

#[test]
fn no_key_is_told_and_private_keys_may_be_encrypted() {
    let root = Root::new();
    let passphrase = root.0.path().join("passphrase");
    fs::write(&passphrase, "a passphrase\n").unwrap();
    let setup = ["setup", "--root", root.text(), "--type", "p256", "--passphrase-file", passphrase.to_str().unwrap()];
    let mut outputs = vec![imara(&setup)];
    assert!(fs::read_to_string(root.keys("privkey_evm.pem")).unwrap().contains("ENCRYPTED PRIVATE KEY"));
    outputs.push(imara(&[&setup[..], &["--json"]].concat()));
    if private_session("no_key_is_told_and_private_keys_may_be_encrypted") {
        outputs.push(imara(&["load", "--root", root.text(), "--keyring", "@s"]));
        outputs.push(imara(&["load", "--root", root.text(), "--keyring", "@s", "--json"]));
    }
    let master = fs::read_to_string(root.keys("kmk-user.blob")).unwrap();
    for output in outputs {
        let said = said(&output);
        assert!(!said.contains(&master[..8]) && !said.contains("a passphrase"), "{said}");
    }
}
