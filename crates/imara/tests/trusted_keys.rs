//! `imara key trusted`, run as a program on a software TPM, with tpm2-tools as the second opinion; and what it keeps, used by the
//! kernel of this machine. (The kernel's own trusted keys are tried in `tests/vm/scenarios/trusted-keys`.)

#[allow(dead_code)]
#[path = "tpm/software.rs"]
mod software;

use imara_format::hash::{from_hex, to_hex};
use imara_format::key::KeyPermissions;
use imara_format::key_blob::sealed_key::{SealedKey, TrustedBlob};
use imara_format::tpm::PublicArea;
use imara_linux::key_service::{self as keys, KeyType, SESSION_KEYRING};
use serde_json::Value;
use software::{Software, text};
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

fn run(software: &Software, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.args(["key", "trusted"]).args(arguments).args(["--tpm", &software.file("tpm")]);
    command.current_dir(software.dir.path()).output().unwrap()
}

/// Runs it; it must end with this status. Returns what it printed, or complained of.
fn expect(software: &Software, status: i32, arguments: &[&str]) -> String {
    let output = run(software, arguments);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    if status == 0 { text(&output.stdout) } else { text(&output.stderr) }
}

fn done(software: &Software, arguments: &[&str]) -> String {
    expect(software, 0, arguments)
}

fn shown(software: &Software, file: &str) -> Value {
    let output = run(software, &["show", file, "--json"]);
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["keys"][0].clone()
}

/// A session keyring of this thread and the programs that it starts.
fn private_session(test: &str) -> bool {
    let made = keys::join_new_session();
    if let Err(error) = &made {
        println!("skipped: {test}: no key service: {error}");
    }
    made.is_ok()
}

fn blob(software: &Software, file: &str) -> SealedKey {
    let text = fs::read_to_string(software.path(file)).unwrap();
    match TrustedBlob::parse(&from_hex(text.trim()).unwrap()).unwrap() {
        TrustedBlob::Key(key) => key,
        old @ TrustedBlob::Old { .. } => panic!("{old:?}"),
    }
}

/// Runs one of tpm2-tools, which must succeed.
fn tpm2(software: &Software, test: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = software.tpm2(test, arguments)?;
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(output.stdout)
}

#[test]
fn a_key_is_made_kept_and_loaded_under_every_kind_of_parent() {
    let test = "a_key_is_made_kept_and_loaded_under_every_kind_of_parent";
    let Some(software) = Software::start(test) else { return };
    let session = private_session(test);
    fs::write(software.path("secret"), "s3cret\n").unwrap();
    for (place, (name, words)) in [
        ("k0", &["32"][..]),
        ("k1", &["128", "--parent", "srk-rsa2048"]),
        ("k2", &["64", "migratable=0", "--auth", "secret"]),
        ("k3", &["32", "hash=sha1", "--parent", "srk-p256"]),
        ("k4", &["113", "hash=sha384", "--form", "pem"]),
    ]
    .into_iter()
    .enumerate()
    {
        let with_auth = if place == 2 { &["--auth", "secret"][..] } else { &[] };
        done(&software, &[&["new", name], words, &["--blob-only", "--out", name]].concat());
        assert!(
            expect(&software, 1, &[&["new", name], words, &["--blob-only", "--out", name]].concat())
                .contains("already there")
        );
        let told = shown(&software, name);
        assert_eq!(told["parent"], "0x40000001", "{told}");
        assert_eq!(told["migratable"], place != 2, "{told}");
        assert_eq!(told["needs_auth"], place == 2, "{told}");
        software.nothing_is_loaded();
        // The bytes themselves serve as well, whatever they end with.
        if place == 0 {
            fs::write(software.path("der"), blob(&software, name).to_der()).unwrap();
            assert_eq!(shown(&software, "der")["blob"], told["blob"]);
        }
        if session {
            let arguments = [&["load", name, name, "--keyring", "@s"], with_auth].concat();
            let said = done(&software, &arguments);
            assert!(said.contains("of type user, sealed under the storage root key made each time"), "{said}");
            let key = keys::search(SESSION_KEYRING, KeyType::User, name.as_bytes()).unwrap();
            assert_eq!(keys::update(key, b"other").unwrap_err().raw_os_error(), Some(13), "nobody can change it");
            assert_eq!(keys::set_permissions(key, KeyPermissions(0x3f3f_0000)).unwrap_err().raw_os_error(), Some(13));
            assert!(expect(&software, 1, &arguments).contains("in @s already"));
        }
        software.nothing_is_loaded();
    }
}

#[test]
fn a_key_that_is_kept_without_trusted_keys_is_the_master_of_encrypted_ones() {
    let test = "a_key_that_is_kept_without_trusted_keys_is_the_master_of_encrypted_ones";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    done(&software, &["new", "kmk", "32", "--keyring", "@s", "--out", "kmk.blob"]);
    let made = keys::add(KeyType::Encrypted, Some(b"evm-key"), b"new user:kmk 32", SESSION_KEYRING);
    let Ok(made) = made.and_then(keys::read) else {
        println!("skipped: {test}: no encrypted keys");
        return;
    };
    // After a boot: the same master key out of its blob, and the same encrypted key out of its own.
    keys::clear(SESSION_KEYRING).unwrap();
    done(&software, &["load", "kmk", "kmk.blob", "--keyring", "@s"]);
    let command = [b"load ", made.as_bytes()].concat();
    let again = keys::add(KeyType::Encrypted, Some(b"evm-key"), &command, SESSION_KEYRING).unwrap();
    assert!(keys::read(again).unwrap() == made);
}

#[test]
fn an_encrypted_key_under_a_trusted_master_is_checked_and_loaded_by_the_masters_blob() {
    let test = "an_encrypted_key_under_a_trusted_master_is_checked_and_loaded_by_the_masters_blob";
    let Some(software) = Software::start(test) else { return };
    let tpm = software.file("tpm");
    let encrypted = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
        let output =
            command.args(["key", "encrypted"]).args(arguments).current_dir(software.dir.path()).output().unwrap();
        (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    fs::write(software.path("secret"), "s3cret").unwrap();
    done(
        &software,
        &["new", "kmk", "32", "--auth", "secret", "--pcrs", "sha256:23", "--blob-only", "--out", "kmk.blob"],
    );
    let master = ["--master", "kmk.blob", "--master-auth", "secret", "--tpm", &tpm];
    let (status, said) =
        encrypted(&[&["new", "evm-key", "trusted:kmk", "32", "--out", "evm.blob"][..], &master].concat());
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = encrypted(&[&["check", "evm.blob"][..], &master].concat());
    assert!(status == Some(0) && said.contains("authentic: default, 32 bytes under trusted:kmk"), "{said}");
    let (_, said) = encrypted(&["check", "evm.blob", "--master", "kmk.blob", "--tpm", &tpm]);
    assert!(said.contains("the authorisation value of the key (blobauth=) is wrong"), "{said}");
    if !private_session(test)
        || keys::add(KeyType::Encrypted, Some(b"probe"), b"new user:x 32", SESSION_KEYRING).is_err()
    {
        println!("skipped: {test}: no encrypted keys");
        return;
    }
    let (status, said) = encrypted(&[&["load", "evm-key", "evm.blob", "--keyring", "@s"][..], &master].concat());
    assert_eq!(status, Some(0), "{said}");
    // It is there, and its master is not.
    let key = keys::search(SESSION_KEYRING, KeyType::Encrypted, b"evm-key").unwrap();
    assert!(keys::read(key).is_err() && keys::request(KeyType::User, b"kmk").is_err());
    // With the master it is the key that was made.
    done(&software, &["load", "kmk", "kmk.blob", "--auth", "secret", "--keyring", "@s"]);
    let blob = String::from_utf8(keys::read(key).unwrap().as_bytes().to_vec()).unwrap();
    assert!(blob.starts_with("default user:kmk 32 "), "{blob}");
    fs::write(software.path("again.blob"), &blob).unwrap();
    assert_eq!(encrypted(&[&["check", "again.blob"][..], &master].concat()).0, Some(0));
}

#[test]
fn tpm2_tools_unseal_what_imara_sealed_and_the_other_way_round() {
    let test = "tpm2_tools_unseal_what_imara_sealed_and_the_other_way_round";
    let Some(software) = Software::start(test) else { return };
    if tpm2(&software, test, &["tpm2_createprimary", "-Q", "-C", "o", "-G", "rsa", "-c", "parent.ctx"]).is_none() {
        return;
    }
    tpm2(&software, test, &["tpm2_evictcontrol", "-Q", "-C", "o", "-c", "parent.ctx", "0x81000001"]);
    tpm2(&software, test, &["tpm2_flushcontext", "-t"]);
    // Imara's, with and without an authorisation value, unsealed by the tools.
    fs::write(software.path("secret"), "s3cret").unwrap();
    for (name, words) in [("a", &["64"][..]), ("b", &["32", "--auth", "secret", "migratable=0"])] {
        done(&software, &[&["new", name], words, &["--blob-only", "--out", name]].concat());
        let key = blob(&software, name);
        assert_eq!(key.parent, 0x8100_0001, "the storage root key that is kept");
        fs::write(software.path("public"), key.public.to_sized()).unwrap();
        let size = (key.private.len() as u16).to_be_bytes();
        fs::write(software.path("private"), [&size[..], &key.private].concat()).unwrap();
        tpm2(
            &software,
            test,
            &["tpm2_load", "-Q", "-C", "0x81000001", "-u", "public", "-r", "private", "-c", "key.ctx"],
        );
        let auth = if name == "b" { &["-p", "s3cret"][..] } else { &[] };
        let unsealed = tpm2(&software, test, &[&["tpm2_unseal", "-c", "key.ctx"], auth].concat()).unwrap();
        assert_eq!(unsealed.len(), if name == "a" { 64 } else { 32 });
        tpm2(&software, test, &["tpm2_flushcontext", "-t"]);
    }
    // Theirs, to PCRs, unsealed here: only the PCRs' names are known of the policy.
    fs::write(software.path("data"), [7; 40]).unwrap();
    tpm2(&software, test, &["tpm2_createpolicy", "-Q", "--policy-pcr", "-l", "sha256:16,23", "-L", "policy"]);
    tpm2(
        &software,
        test,
        &["tpm2_create", "-Q", "-C", "0x81000001", "-i", "data", "-L", "policy", "-u", "public", "-r", "private"],
    );
    let key = SealedKey {
        empty_auth: true,
        policy: Vec::new(),
        description: None,
        rsa_parent: false,
        parent: 0x8100_0001,
        public: PublicArea::parse_sized(&fs::read(software.path("public")).unwrap()).unwrap(),
        private: fs::read(software.path("private")).unwrap()[2..].to_vec(),
    };
    fs::write(software.path("theirs"), to_hex(&key.to_der())).unwrap();
    if !private_session(test) {
        return;
    }
    let load = ["load", "theirs", "theirs", "--keyring", "@s", "--dry-run"];
    assert!(expect(&software, 1, &load).contains("nothing is known of that policy but its digest (EPERM)"));
    done(&software, &[&load[..], &["--pcrs", "sha256:16,23"]].concat());
    assert!(expect(&software, 1, &[&load[..], &["--pcrs", "sha256:16"]].concat()).contains("asks for more than these"));
    // Their file of the same, in PEM.
    if let Some(output) =
        software.tpm2(test, &["tpm2_encodeobject", "-C", "0x81000001", "-u", "public", "-r", "private", "-o", "pem"])
        && output.status.success()
    {
        let pem = fs::read_to_string(software.path("pem")).unwrap();
        assert!(pem.contains("TSS2 PRIVATE KEY"), "{pem}");
    }
}

#[test]
fn the_pcr_that_keeps_a_key_from_being_unsealed_is_named_and_an_update_is_sealed_to_beforehand() {
    let test = "the_pcr_that_keeps_a_key_from_being_unsealed_is_named_and_an_update_is_sealed_to_beforehand";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    let load = |file: &'static str| ["load", "k", file, "--keyring", "@s", "--dry-run"];
    fs::write(software.path("secret"), "s3cret").unwrap();
    done(&software, &["new", "k", "32", "--pcrs", "sha256:16,23", "--blob-only", "--out", "now"]);
    done(
        &software,
        &["new", "k", "32", "--pcrs", "sha256:23", "--auth", "secret", "--blob-only", "--form", "pem", "--out", "pem"],
    );
    done(&software, &load("now"));
    done(&software, &[&load("pem")[..], &["--auth", "secret"]].concat());
    // The policy is in the PEM form, too, for others; it needs no record then.
    fs::rename(software.path("pem.sealed"), software.path("away")).unwrap();
    done(&software, &[&load("pem")[..], &["--auth", "secret"]].concat());
    assert!(expect(&software, 1, &load("pem")).contains("the authorisation value of the key (blobauth=) is wrong"));

    // What PCR 23 will be after the update: one extend with ones.
    let zeros = [0_u8; 32];
    let after = imara_engine::crypto::hash(imara_format::hash::HashAlgorithm::Sha256, &[&zeros, &[0xff; 32]]).unwrap();
    fs::write(software.path("after"), format!("sha256:23 {}\n", after.to_hex())).unwrap();
    let nowhere = ["update", "now", "--pcrs", "sha256:16,23", "--pcrs-after", "after", "--out", "-"];
    assert!(expect(&software, 2, &nowhere).contains("next: name a file with --out FILE"));
    let update = ["update", "now", "--pcrs", "sha256:16,23", "--pcrs-after", "after", "--out", "both"];
    assert!(done(&software, &update).contains("to one of 2 sets of values of the PCRs sha256:16,23"));
    done(&software, &load("both"));
    let ones = format!("23:sha256={}", "ff".repeat(32));
    if tpm2(&software, test, &["tpm2_pcrextend", &ones]).is_none() {
        return;
    }
    let said = expect(&software, 1, &load("now"));
    let differs = format!("PCR sha256:23 is {}, sealed to {} (EPERM)", after.to_hex(), to_hex(&zeros));
    assert!(said.contains(&differs) && !said.contains("sha256:16 is"), "{said}");
    assert!(said.contains("next: boot what it is sealed to"), "{said}");
    assert!(
        expect(&software, 1, &[&load("pem")[..], &["--auth", "secret"]].concat()).contains("one of the PCRs sha256:23")
    );
    done(&software, &load("both"));
    let told = shown(&software, "now");
    assert_eq!((&told["pcrs_fit_now"], &told["pcrs"]["selection"]), (&false.into(), &"sha256:16,23".into()), "{told}");
    assert_eq!(shown(&software, "both")["pcrs_fit_now"], true);
    tpm2(&software, test, &["tpm2_pcrextend", &ones]);
    let said = expect(&software, 1, &load("both"));
    assert!(said.contains(&format!("sealed to {} or {}", to_hex(&zeros), after.to_hex())), "{said}");
    // The record of another blob is no help, and is found out.
    fs::rename(software.path("away"), software.path("both.sealed")).unwrap();
    assert!(expect(&software, 1, &load("both")).contains("the record beside the blob is that of another blob"));
    software.nothing_is_loaded();
}

#[test]
fn a_blob_and_its_record_belong_together_whenever_the_command_that_writes_them_over_is_killed() {
    let test = "a_blob_and_its_record_belong_together_whenever_the_command_that_writes_them_over_is_killed";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    // Two seals of one key: the record of the one makes the other unusable.
    let update = |pcrs: &str, out: &str| {
        let words = ["update", "k", "--pcrs", pcrs, "--out", out, "--force"].map(str::to_owned);
        let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
        command.args(["key", "trusted"]).args(words).args(["--tpm", &software.file("tpm")]);
        command.current_dir(software.dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    done(&software, &["new", "k", "32", "--pcrs", "sha256:16", "--blob-only", "--out", "k"]);
    assert!(update("sha256:23", "other").status().unwrap().success());
    let load = ["load", "k", "k", "--keyring", "@s", "--dry-run"];
    let read = |name: &str| fs::read(software.path(name)).unwrap();
    let [blob, record, other, other_record] = ["k", "k.sealed", "other", "other.sealed"].map(read);
    for (name, blob_there, next, record_after) in [
        ("before the blob is there", &blob, &other_record[..], &record),
        ("once it is there", &other, &other_record, &other_record),
        ("half a record", &blob, &other_record[..20], &record),
    ] {
        fs::write(software.path("k"), blob_there).unwrap();
        fs::write(software.path("k.sealed"), &record).unwrap();
        fs::write(software.path("k.sealed.next"), next).unwrap();
        done(&software, &load);
        assert_eq!(&read("k.sealed"), record_after, "{name}");
    }
    // At any time, whatever becomes of the command.
    fs::write(software.path("k"), &blob).unwrap();
    fs::write(software.path("k.sealed"), &record).unwrap();
    let begun = Instant::now();
    assert!(update("sha256:23", "k").status().unwrap().success());
    let whole = begun.elapsed();
    const KILLS: u32 = 24;
    for kill in 0..KILLS {
        let mut child = update(if kill % 2 == 0 { "sha256:16" } else { "sha256:16,23" }, "k").spawn().unwrap();
        std::thread::sleep(whole * kill / KILLS);
        let _ = child.kill();
        child.wait().unwrap();
        done(&software, &load);
    }
    software.nothing_is_loaded();
}

#[test]
fn pcrlock_keeps_a_key_from_being_unsealed_a_second_time() {
    let test = "pcrlock_keeps_a_key_from_being_unsealed_a_second_time";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    done(&software, &["new", "k", "32", "--pcrs", "sha256:23", "--blob-only", "--out", "k"]);
    done(&software, &["load", "k", "k", "pcrlock=23", "--keyring", "@s", "--dry-run"]);
    done(&software, &["load", "k", "k", "pcrlock=23", "--keyring", "@s"]);
    assert!(expect(&software, 1, &["load", "k2", "k", "--keyring", "@s"]).contains("PCR sha256:23 is"));
    assert!(
        expect(&software, 1, &["load", "k2", "k", "pcrlock=24", "--keyring", "@s"])
            .contains("pcrlock=24 is no PCR; there are 0 to 23 (EINVAL)")
    );
}

#[test]
fn a_damaged_blob_another_tpm_and_a_cleared_one_are_told_apart() {
    let test = "a_damaged_blob_another_tpm_and_a_cleared_one_are_told_apart";
    let (Some(software), Some(other)) = (Software::start(test), Software::start(test)) else { return };
    if !private_session(test) {
        return;
    }
    done(&software, &["new", "k", "32", "--blob-only", "--out", "k"]);
    let good = fs::read_to_string(software.path("k")).unwrap();
    let record = fs::read(software.path("k.sealed")).unwrap();
    let load = ["load", "k", "k", "--keyring", "@s", "--dry-run"];
    done(&software, &load);
    for (file, content) in [("k", good.as_bytes()), ("k.sealed", &record)] {
        fs::write(other.path(file), content).unwrap();
    }
    assert!(expect(&other, 1, &load).contains("it was sealed in another TPM (EPERM)"));
    // A digit of the private part.
    let at = good.len() - 11;
    let digit = if good.as_bytes()[at] == b'0' { "1" } else { "0" };
    let damaged = format!("{}{digit}{}", &good[..at], &good[at + 1..]);
    fs::write(software.path("k"), damaged).unwrap();
    assert!(
        expect(&software, 1, &load).contains("it is the key that sealed it, so the blob was changed since (EPERM)")
    );
    fs::remove_file(software.path("k.sealed")).unwrap();
    assert!(
        expect(&software, 1, &load)
            .contains("the blob was changed, or sealed in another TPM, or the TPM was cleared since")
    );
    fs::write(software.path("k"), good).unwrap();
    fs::write(software.path("k.sealed"), record).unwrap();
    if tpm2(&software, test, &["tpm2_clear"]).is_none() {
        return;
    }
    let said = expect(&software, 1, &load);
    assert!(said.contains("it was sealed in this TPM by another key: the TPM was cleared since"), "{said}");
    assert!(said.contains("next: what a cleared TPM has sealed is lost"), "{said}");
    software.nothing_is_loaded();
}

#[test]
fn a_wrong_value_and_a_lockout_are_told_with_the_failures_counted() {
    let test = "a_wrong_value_and_a_lockout_are_told_with_the_failures_counted";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    fs::write(software.path("secret"), "s3cret").unwrap();
    fs::write(software.path("wrong"), "wrong").unwrap();
    done(&software, &["new", "k", "32", "--auth", "secret", "--blob-only", "--out", "k"]);
    let load = |auth| ["load", "k", "k", "--keyring", "@s", "--dry-run", "--auth", auth];
    let said = expect(&software, 1, &load("wrong"));
    assert!(
        said.contains("the authorisation value of the key (blobauth=) is wrong; the TPM has counted 1 such failures"),
        "{said}"
    );
    done(&software, &load("secret"));
    for _ in 0..64 {
        let said = expect(&software, 1, &load("wrong"));
        if !said.contains("the authorisation value of the key") {
            assert!(
                said.contains("the TPM refuses everything that failed authorisations count for: it has counted"),
                "{said}"
            );
            assert!(expect(&software, 1, &load("secret")).contains("next: wait; or"), "{said}");
            return;
        }
    }
    panic!("the TPM is not locked");
}

#[test]
fn every_refusal_has_the_kernels_number_and_its_reason() {
    let test = "every_refusal_has_the_kernels_number_and_its_reason";
    let Some(software) = Software::start(test) else { return };
    done(&software, &["new", "k", "32", "migratable=0", "--blob-only", "--out", "k"]);
    let new = |words: &[&'static str]| [&["new", "n"][..], words, &["--blob-only", "--out", "never"]].concat();
    for (arguments, status, reason) in [
        (new(&["31"]), 1, "the key's length is `31`, where 32 to 128 are possible (EINVAL)"),
        (new(&["32", "keyhandel=1"]), 1, "`keyhandel=` is no option"),
        (
            new(&["32", "hash=md5"]),
            1,
            "hash=md5 is none of sha1, sha256, sha384, sha512 and sm3, which a TPM can have (EINVAL)",
        ),
        (new(&["32", "keyhandle=0"]), 1, "no parent key is named (keyhandle=) (EINVAL)"),
        (
            new(&["32", "keyhandle=81000009"]),
            1,
            "there is no parent key at 0x81000009; persistent objects of this TPM:",
        ),
        (
            new(&["32", "keyhandle=40000001"]),
            1,
            "at 0x40000001 is a hierarchy, whose keys have to be made first, which is no storage key",
        ),
        (new(&["32", "pcrlock=24"]), 1, "pcrlock=24 is no PCR; there are 0 to 23 (EINVAL)"),
        (new(&["32", "pcrlock=24", "--dry-run"]), 1, "pcrlock=24 is no PCR; there are 0 to 23 (EINVAL)"),
        (new(&["32", "hash=sha384", "--pcrs", "sha256:23"]), 1, "a policy over PCRs needs hash=sha256, not sha384"),
        (new(&["32", "--pcrs", "sha512:23"]), 3, "the TPM has no sha512 PCR bank; it has"),
        (vec!["new", "n", "32", "--blob-only"], 2, "--out FILE is missing"),
        (
            vec!["update", "./k", "--out", "never"],
            1,
            "the key was made with migratable=0 and cannot be sealed anew (EPERM)",
        ),
        (
            vec!["show", "./k.sealed"],
            1,
            "no blob of a trusted key: no key of a TPM: at byte 0, an element with the tag",
        ),
    ] {
        let said = expect(&software, status, &arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
        assert!(!software.path("never").exists());
    }
    let said = run(&software, &["new", "n", "32", "pcrinfo=00", "--blob-only", "--out", "never", "--dry-run"]);
    assert!(text(&said.stderr).contains("counts for nothing: --pcrs seals to PCRs"), "{}", text(&said.stderr));
    software.nothing_is_loaded();
}

#[test]
fn a_key_that_needs_the_owners_value_is_kept_in_the_tpm_once() {
    let test = "a_key_that_needs_the_owners_value_is_kept_in_the_tpm_once";
    let Some(software) = Software::start(test) else { return };
    if tpm2(&software, test, &["tpm2_changeauth", "-c", "o", "owners"]).is_none() {
        return;
    }
    let new = ["new", "k", "32", "--blob-only", "--out", "k"];
    let said = expect(&software, 1, &new);
    assert!(said.contains("the owner hierarchy has an authorisation value"), "{said}");
    assert!(said.contains("next: keep one in the TPM, which needs the value once: imara tpm srk create"), "{said}");
    fs::write(software.path("owners"), "owners").unwrap();
    software.expect(0, &["srk", "create", "--owner-auth", &software.file("owners")]);
    done(&software, &new);
    assert_eq!(blob(&software, "k").parent, 0x8100_0001);
}

#[test]
fn no_bit_of_a_blob_can_be_changed() {
    let test = "no_bit_of_a_blob_can_be_changed";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    done(&software, &["new", "k", "32", "--blob-only", "--out", "k"]);
    let good = blob(&software, "k").to_der();
    for place in (0..good.len()).step_by(7) {
        let mut changed = good.clone();
        changed[place] ^= 1 << (place % 8);
        fs::write(software.path("changed"), to_hex(&changed)).unwrap();
        let output = run(&software, &["load", "k", "changed", "--keyring", "@s", "--dry-run"]);
        // Whether a value is needed is only a hint, and any value but zero is true.
        let is_hint = good[..place].ends_with(&[0xa0, 3, 1, 1]);
        assert!(output.status.code() == Some(1) || is_hint, "byte {place}: {}", text(&output.stdout));
    }
    software.nothing_is_loaded();
}

#[test]
fn neither_key_bytes_nor_authorisation_values_are_told() {
    let test = "neither_key_bytes_nor_authorisation_values_are_told";
    let Some(software) = Software::start(test) else { return };
    if !private_session(test) {
        return;
    }
    fs::write(software.path("secret"), "s3cret").unwrap();
    fs::write(software.path("long"), "s3crets3crets3crets3crets3cret").unwrap();
    for arguments in [
        &["new", "k", "32", "--auth", "secret", "--keyring", "@s", "--out", "k", "--json"][..],
        &["load", "k2", "k", "--auth", "secret", "--keyring", "@s", "--json"],
        &["load", "k3", "k", "blobauth=s3crets", "--keyring", "@s"],
        &["show", "k", "--json"],
        &["new", "k4", "32", "--auth", "long", "--out", "k4"],
        &["new", "k4", "32", "blobauth=s3crets3crets3crets3crets3cret", "--out", "k4"],
        &["update", "./k", "--old-auth", "long", "--out", "k5"],
        &["update", "./k", "--old-auth", "secret", "--auth", "secret", "--out", "k5"],
    ] {
        let output = run(&software, arguments);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(!said.contains("s3cret"), "{arguments:?}: {said}");
    }
    assert!(software.path("k5").exists());
}
