//! `imara keyring`: against this machine's kernel and keyctl, in session keyrings of the tests' own.

use imara_engine::crypto::{KeyType as Kind, SigningKey};
use imara_linux::key_service::{self as keys, KeyType, SESSION_KEYRING};
use serde_json::Value;
use std::fs;
use std::process::{Command, Output, Stdio};

fn imara(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.arg("keyring").args(arguments).stdin(Stdio::null()).output().unwrap()
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
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&done(&[arguments, &["--json"]].concat())).unwrap()
}

/// Runs it, and expects a refusal; all of what it says.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = imara(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stderr(&output)
}

/// A session keyring of this thread and the programs that it starts, on a kernel with asymmetric keys.
fn private_session(test: &str) -> bool {
    let certificate = SigningKey::generate(Kind::Rsa2048).unwrap().self_signed_certificate("imara probe", 1).unwrap();
    let made = keys::join_new_session()
        .and_then(|_| keys::add(KeyType::Asymmetric, None, &certificate, SESSION_KEYRING))
        .and_then(|probe| keys::unlink(probe, SESSION_KEYRING));
    if let Err(error) = &made {
        println!("skipped: {test}: no asymmetric keys: {error}");
    }
    made.is_ok()
}

/// What keyctl says; none where it is not installed.
fn keyctl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("keyctl").args(arguments).output().ok()?;
    assert!(output.status.success(), "keyctl {arguments:?}: {}", stderr(&output));
    Some(stdout(&output).trim_end().to_owned())
}

/// Keys and certificates in files: `NAME.key`, `NAME.der`, `NAME.pem`, `NAME.pub`.
struct Files(tempfile::TempDir);

impl Files {
    /// An authority, one that it has certified, and a stranger; bundle.pem has the first two.
    fn new() -> Option<Self> {
        let files = Self(tempfile::tempdir().unwrap());
        let script = "set -e
            openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj '/O=Imara/CN=authority' -days 100
            openssl req -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf
            printf 'keyUsage=digitalSignature\\nsubjectKeyIdentifier=hash\\nauthorityKeyIdentifier=keyid\\n' >extensions
            openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions -out leaf.pem -days 100
            openssl req -x509 -newkey rsa:2048 -nodes -keyout stranger.key -out stranger.pem -subj /CN=stranger -days 100
            for name in ca leaf stranger; do
                openssl x509 -in $name.pem -outform der -out $name.der
                openssl x509 -in $name.pem -pubkey -noout >$name.pub
            done
            cat ca.pem leaf.pem >bundle.pem";
        let ran = Command::new("sh").args(["-c", script]).current_dir(files.0.path()).output().ok()?;
        assert!(ran.status.success(), "{}", stderr(&ran));
        Some(files)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn key_id(&self, name: &str) -> String {
        let bytes = fs::read(self.path(name)).unwrap();
        imara_format::hash::to_hex(&imara_engine::crypto::PublicKey::from_bytes(&bytes).unwrap().key_id())
    }
}

/// The keys that a keyring holds, by what `show --json` tells of it.
fn held(shown: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let keys = shown["keyrings"][0]["keys"].as_array().unwrap();
    keys.iter().map(|key| (text(&key["type"]), text(&key["description"]))).collect()
}

#[test]
fn certificates_are_imported_once_shown_from_their_files_and_removed() {
    let test = "certificates_are_imported_once_shown_from_their_files_and_removed";
    if !private_session(test) {
        return;
    }
    let Some(files) = Files::new() else { return println!("skipped: {test}: no openssl") };
    let made = json(&["new", "_ima", "--keyring", "@s"]);
    assert_eq!(made["made"], true);
    let serial = made["serial"].to_string();
    // What is there is left as it is.
    let again = json(&["new", "_ima", "--keyring", "@s"]);
    assert_eq!((again["made"].clone(), again["serial"].to_string()), (false.into(), serial.clone()));

    let dry = done(&["import", &serial, &files.path("bundle.pem"), "--dry-run"]);
    assert!(dry.contains("would go into _ima") && keys_of(&serial) == 0, "{dry}");
    let imported = json(&["import", &serial, &files.path("bundle.pem"), &files.path("leaf.der")]);
    let of = |index: usize, field: &str| imported["keys"][index][field].clone();
    for (index, imported, there) in [(0, true, false), (1, true, false), (2, false, true)] {
        assert_eq!((of(index, "imported"), of(index, "there_already")), (imported.into(), there.into()), "{index}");
    }
    assert_eq!(of(1, "serial"), of(2, "serial"));
    assert_eq!(of(1, "key_id"), files.key_id("leaf.der"));
    assert_eq!(of(0, "certificate")["authority"], true);

    let shown = json(&["show", &serial, "-c", files.0.path().to_str().unwrap()]);
    let kinds: Vec<String> = held(&shown).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["asymmetric", "asymmetric"]);
    for key in shown["keyrings"][0]["keys"].as_array().unwrap() {
        let subject = key["certificate"]["subject"].as_str().unwrap();
        let name = if subject == "CN=leaf" { "leaf.der" } else { "ca.der" };
        assert_eq!(key["key_id"], files.key_id(name), "{key}");
        assert_eq!(key["certificate"]["issuer"], "O=Imara, CN=authority");
        let rest = key["description"].as_str().unwrap().rsplit(": ").next().unwrap().to_owned();
        assert_eq!(key["certificate"]["subject_key_id"], rest, "the kernel's own id");
    }
    let text = done(&["show", &serial, "--verbose", "-c", &files.path("leaf.der")]);
    for line in ["subject   CN=leaf", "use       digitalSignature; no authority", "signed    sha256WithRSAEncryption"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    if let Some(theirs) = keyctl(&["show", &serial]) {
        let ours = done(&["show", &serial]);
        let numbers = |text: &str| {
            let first = text.lines().filter_map(|line| line.split_whitespace().next()?.parse::<i32>().ok());
            first.collect::<Vec<_>>()
        };
        assert_eq!(numbers(&ours), numbers(&theirs), "{ours}{theirs}");
    }

    let id = format!("id:{}", files.key_id("leaf.der"));
    assert!(done(&["remove", &serial, &id, "--dry-run"]).contains("would be taken out of _ima"));
    assert_eq!(keys_of(&serial), 2);
    done(&["remove", &serial, &id]);
    assert_eq!(held(&json(&["show", &serial])).len(), 1);
    assert!(refused(&["remove", &serial, &id], 1).contains("ENOKEY"));
    assert!(refused(&["remove", &serial, "leaf"], 1).contains("leaf is not in _ima"));
    done(&["remove", "--all", &serial]);
    assert_eq!(keys_of(&serial), 0);
}

fn keys_of(serial: &str) -> usize {
    keys::keys_of(imara_format::key::KeySerial(serial.parse().unwrap())).unwrap().len()
}

#[test]
fn bare_rsa_keys_become_what_evmctl_makes_of_them() {
    let test = "bare_rsa_keys_become_what_evmctl_makes_of_them";
    if !private_session(test) {
        return;
    }
    let Some(files) = Files::new() else { return println!("skipped: {test}: no openssl") };
    let ours = json(&["new", "ours", "--keyring", "@s"])["serial"].to_string();
    let theirs = json(&["new", "theirs", "--keyring", "@s"])["serial"].to_string();
    let imported = json(&["import", "--rsa", &ours, &files.path("leaf.pub")]);
    assert_eq!(json(&["import", "--rsa", &ours, &files.path("leaf.pub")])["keys"][0]["there_already"], true);
    let mut evmctl = Command::new("/usr/bin/evmctl");
    let evmctl = evmctl.env("EVMCTL_SIGV1", "1").args(["import", "--rsa", &files.path("leaf.pub"), &theirs]);
    match evmctl.output() {
        Ok(made) if made.status.success() => {
            let of = |ring: &str| {
                let serial = keys::keys_of(imara_format::key::KeySerial(ring.parse().unwrap())).unwrap()[0];
                (keys::describe(serial).unwrap().description, keys::read(serial).unwrap().as_bytes().to_vec())
            };
            assert_eq!(of(&ours), of(&theirs));
        }
        Ok(_) | Err(_) => {
            println!("skipped: {test}: no evmctl that imports RSA keys; only what is there was looked at")
        }
    }
    let id = imported["keys"][0]["key_id"].as_str().unwrap();
    assert!(
        !id.starts_with('0') && id.chars().all(|digit| digit.is_ascii_digit() || digit.is_ascii_uppercase()),
        "{id}"
    );
    // Another key under that name is not written over.
    let serial = keys::search(SESSION_KEYRING, KeyType::User, id.as_bytes()).unwrap();
    keys::update(serial, b"another").unwrap();
    assert!(refused(&["import", "--rsa", &ours, &files.path("leaf.pub")], 1).contains("another key under the name"));
}

#[test]
fn every_refusal_of_the_kernels_is_explained_with_the_way_out() {
    let test = "every_refusal_of_the_kernels_is_explained_with_the_way_out";
    if !private_session(test) {
        return;
    }
    let Some(files) = Files::new() else { return println!("skipped: {test}: no openssl") };
    let new = |name: &str| json(&["new", name, "--keyring", "@s"])["serial"].to_string();
    let (trusted, chained, closed, plain) = (new("trusted"), new("chained"), new("closed"), new("plain"));
    let file = |name: &str| files.path(name);
    let (leaf, stranger, public) = (file("leaf.der"), file("stranger.der"), file("leaf.pub"));
    done(&["import", &trusted, &file("ca.der")]);
    let rule = format!("key_or_keyring:{trusted}");
    assert!(
        done(&["restrict", &chained, &rule, "--dry-run"])
            .contains("would take certificates alone that keyring trusted")
    );
    done(&["restrict", &chained, &rule]);
    done(&["restrict", &closed, "nothing"]);
    // Signed by whom the restriction trusts, so it says, and the signature does not verify.
    let forged = file("forged.der");
    let mut bytes = fs::read(&leaf).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&forged, bytes).unwrap();
    let said = refused(&["import", &chained, &forged], 1);
    assert!(said.contains("signature does not verify") && said.contains("certified anew by the issuer"), "{said}");
    // What the restriction allows is taken, by name or by number.
    done(&["import", "chained", &leaf]);
    let junk = file("junk.der");
    fs::write(&junk, b"no certificate at all").unwrap();
    for (name, arguments, number, next) in [
        ("an unknown signer", &["import", &chained, &stranger][..], "ENOKEY", "have it signed by one of them"),
        ("no certificate", &["import", "--rsa", &chained, &public], "EOPNOTSUPP", "use another keyring"),
        ("a closed keyring", &["import", &closed, &leaf], "EPERM", "make another keyring"),
        ("a second restriction", &["restrict", &chained, "nothing"], "EEXIST", "make another keyring"),
        ("a rule without its key", &["restrict", &plain, "key_or_keyring:999999999"], "ENOKEY", "imara keyring show"),
        ("a keyring of the kernel's", &["new", ".imara", "--keyring", "@s"], "EPERM", "_ima and _evm"),
        ("no keyring of that name", &["show", "imara-none"], "ENOKEY", "imara keyring new imara-none"),
        ("a bare key as a certificate", &["import", &plain, &public], "a public key without a certificate", "--rsa"),
        ("a private key", &["import", &plain, &file("leaf.key")], "a private key", "a certificate is needed"),
        ("junk", &["import", &plain, &junk], "junk.der: neither a certificate nor", "a certificate is needed"),
        ("a certificate as a bare key", &["import", "--rsa", &plain, &leaf], "a certificate, where", "without --rsa"),
    ] {
        let said = refused(arguments, 1);
        assert!(said.contains(number) && said.contains(next) && said.contains("next: "), "{name}: {said}");
    }
    assert!(refused(&["restrict", &plain, "everything"], 2).contains("is no restriction"));
    // The kernel's own, which nobody may add to.
    if keys::keyring_named(b".builtin_trusted_keys").is_ok() {
        let said = refused(&["import", ".builtin_trusted_keys", &leaf], 1);
        assert!(said.contains("built into the kernel (EACCES)") && said.contains(".secondary_trusted_keys"), "{said}");
        let said = refused(&["permissions", ".builtin_trusted_keys", "0x3f3f0000"], 1);
        assert!(said.contains("EACCES"), "{said}");
    }
    let key = keys::add(KeyType::User, Some(b"secret"), b"5ec2e75ec2e75ec2e7", SESSION_KEYRING).unwrap().to_string();
    let outputs = [imara(&["show", "@s", "--json"]), imara(&["show", &key, "-v"]), imara(&["import", &key, &leaf])];
    for output in &outputs {
        assert!(!format!("{}{}", stdout(output), stderr(output)).contains("5ec2e7"), "a key's bytes");
    }
    assert!(stderr(&outputs[2]).contains("a key of type user, not a keyring"));
}

/// Signs a file with the key of [`Files`] and keeps the signature beside it.
fn signed(files: &Files, name: &str, key: &str, algorithm: &str) -> String {
    let path = files.path(name);
    fs::write(&path, format!("what {name} holds")).unwrap();
    let mut sign = Command::new(env!("CARGO_BIN_EXE_imara"));
    let done = sign.args(["sign", "--sigfile", "-a", algorithm, "-k", &files.path(key), &path]).output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    path
}

fn verify(arguments: &[&str]) -> (Option<i32>, String) {
    let mut verify = Command::new(env!("CARGO_BIN_EXE_imara"));
    let done = verify.args(["verify", "--sigfile"]).args(arguments).stdin(Stdio::null()).output().unwrap();
    (done.status.code(), format!("{}{}", stdout(&done), stderr(&done)))
}

#[test]
fn the_kernel_verifies_with_the_keys_of_its_keyring() {
    let test = "the_kernel_verifies_with_the_keys_of_its_keyring";
    if !private_session(test) {
        return;
    }
    let Some(files) = Files::new() else { return println!("skipped: {test}: no openssl") };
    let ring = json(&["new", "verifying", "--keyring", "@s"])["serial"].to_string();
    let (good, other) =
        (signed(&files, "good", "leaf.key", "sha256"), signed(&files, "other", "stranger.key", "sha512"));
    done(&["import", &ring, &files.path("leaf.der")]);
    let (code, said) = verify(&["--keyring", "verifying", &good]);
    assert!(code == Some(0) && said.contains("RSA-2048, leaf: "), "{said}");
    let (code, said) = verify(&["--keyring", &ring, &good, &other]);
    assert!(code == Some(1) && said.contains("unknown key id"), "{said}");
    // With a key in a file beside.
    let (code, said) = verify(&["--keyring", &ring, "-k", &files.path("stranger.der"), &good, &other]);
    assert_eq!(code, Some(0), "{said}");
    fs::write(&good, "something else").unwrap();
    let (code, said) = verify(&["--keyring", &ring, &good]);
    assert!(code == Some(1) && said.contains("wrong signature"), "{said}");
    let (code, said) = verify(&["--keyring", "imara-none", &good]);
    assert!(code == Some(1) && said.contains("there is none"), "{said}");
}

#[test]
fn what_is_on_a_block_list_does_not_verify() {
    let test = "what_is_on_a_block_list_does_not_verify";
    let Some(files) = Files::new() else { return println!("skipped: {test}: no openssl") };
    let path = signed(&files, "good", "leaf.key", "sha512");
    let content = fs::read(&path).unwrap();
    let hash = |algorithm| imara_engine::crypto::hash(algorithm, &[&content]).unwrap().to_hex();
    use imara_format::hash::HashAlgorithm::{Sha1, Sha256};
    let list = files.path("list");
    for (name, text, code, said) in [
        ("nothing", "# nothing\n".to_owned(), 0, "good signature"),
        ("another file", format!("bin:{}", "00".repeat(32)), 0, "good signature"),
        ("in another hash than the label's", format!("bin:{}", hash(Sha256)), 1, "on the block list as sha256:"),
        ("by the name of the hash", format!("sha1:{}", hash(Sha1)), 1, "on the block list as sha1:"),
        ("its key", format!("id:{}", files.key_id("leaf.der")), 1, "revoked key id"),
        ("no list", "bin".to_owned(), 1, "line 1: `bin` is no entry"),
    ] {
        fs::write(&list, text).unwrap();
        let (found, told) = verify(&["--block-list", &list, "-k", &files.path("leaf.der"), &path]);
        assert!(found == Some(code) && told.contains(said), "{name}: {told}");
    }
}

#[test]
fn a_full_quota_is_explained() {
    let test = "a_full_quota_is_explained";
    if !private_session(test) {
        return;
    }
    // Users other than root have room for 200 keys; this one has no other.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("imara");
    fs::copy(env!("CARGO_BIN_EXE_imara"), &program).unwrap();
    for path in [folder.path(), &program] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let script =
        "key=0; while [ $key -lt 1000 ] && keyctl newring filler-$key @s >/dev/null 2>&1; do key=$((key + 1)); done
        \"$0\" keyring new one-more --keyring @s";
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=54321", "--regid=54321", "--clear-groups", "keyctl", "session", "-", "sh", "-c", script]);
    let Ok(output) = setpriv.arg(&program).stdin(Stdio::null()).output() else {
        return println!("skipped: {test}: no setpriv");
    };
    let said = stderr(&output);
    if said.contains("keyctl") && !said.contains("imara") {
        return println!("skipped: {test}: {said}");
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("quota of keys is full (EDQUOT)") && said.contains("kernel.keys"), "{said}");
}

#[test]
fn a_tree_is_shown_to_its_end_also_where_it_is_revoked_or_closed() {
    if !private_session("a_tree_is_shown_to_its_end_also_where_it_is_revoked_or_closed") {
        return;
    }
    let outer = json(&["new", "outer", "--keyring", "@s"])["serial"].to_string();
    let inner = json(&["new", "inner", "--keyring", &outer])["serial"].to_string();
    let inner_serial = imara_format::key::KeySerial(inner.parse().unwrap());
    keys::link(inner_serial, SESSION_KEYRING).unwrap();
    let gone = keys::add(KeyType::User, Some(b"gone"), b"x", inner_serial).unwrap();
    keys::revoke(gone).unwrap();
    let escape = keys::add(KeyType::User, Some(b"\x1b[2J\n\xff"), b"x", inner_serial).unwrap();
    let shown = json(&["show", "@s"]);
    let rings = shown["keyrings"][0]["keys"].as_array().unwrap();
    let repeated: Vec<&Value> = rings.iter().filter(|ring| ring["repeated"] == true).collect();
    assert_eq!(repeated.len(), 1, "{shown}");
    let text = done(&["show", "@s"]);
    assert!(text.contains("shown above"), "{text}");
    assert!(text.contains(&gone.to_string()) && text.contains(&escape.to_string()), "{text}");
    assert!(text.contains("revoked"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    // Nobody may read it, nor find what is in it.
    keys::set_permissions(inner_serial, imara_format::key::KeyPermissions(0x3501_0000)).unwrap();
    let text = done(&["show", &inner]);
    assert!(text.contains("may not be read (EACCES)"), "{text}");
}

#[test]
fn permissions_are_printed_and_set_but_never_lost_by_accident() {
    if !private_session("permissions_are_printed_and_set_but_never_lost_by_accident") {
        return;
    }
    let ring = json(&["new", "ring", "--keyring", "@s"])["serial"].to_string();
    assert_eq!(json(&["permissions", &ring])["mask"], "0x3f010000");
    assert!(done(&["permissions", &ring, "0x3f0b0000", "--dry-run"]).contains("would become alswrv--s-rv"));
    assert_eq!(json(&["permissions", &ring])["mask"], "0x3f010000");
    let set = json(&["permissions", "ring", "alswrv--s-rv------------"]);
    assert_eq!((&set["mask"], &set["permissions_before"]), (&"0x3f0b0000".into(), &"alswrv-----v------------".into()));
    if let Some(told) = keyctl(&["rdescribe", &ring]) {
        assert!(told.contains(";3f0b0000;"), "{told}");
    }
    assert!(
        refused(&["permissions", &ring, "-lswrv--s-rv------------"], 1).contains("ever change its permissions again")
    );
    assert!(refused(&["permissions", &ring, "rwx"], 2).contains("no set of permissions"));
    // Numbers as keyctl takes them; 0 leaves nothing to anybody, and so needs the same word.
    assert_eq!(json(&["permissions", &ring, "1057685504", "--dry-run"])["set"], false);
    assert!(refused(&["permissions", &ring, "0"], 1).contains("ever change its permissions again"));
    assert!(done(&["permissions", &ring, "0", "--force", "--dry-run"]).contains("become ------------------------"));
    done(&["permissions", &ring, "-lswrv--s-rv------------", "--force"]);
    assert!(refused(&["permissions", &ring, "0x3f0b0000"], 1).contains("EACCES"));
}
