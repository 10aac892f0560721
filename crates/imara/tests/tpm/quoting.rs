//! Quotes: made here and verified by tpm2-tools, and the other way round.

use crate::software::{Software, text};

const NONCE: &str = "0102030405060708";

/// What `tpm2_checkquote` says of a folder that `imara tpm quote` wrote.
fn checkquote(tpm: &Software, test: &str, folder: &str, nonce: &str, key: &str) -> Option<bool> {
    let path = |name: &str| format!("{folder}/{name}");
    let (key, message, signature, pcrs) = (path(key), path("quote.msg"), path("quote.sig"), path("pcrs"));
    let arguments = ["tpm2_checkquote", "-u", &key, "-m", &message, "-s", &signature, "-f", &pcrs, "-q", nonce];
    Some(tpm.tpm2(test, &arguments)?.status.success())
}

#[test]
fn tpm2_checkquote_accepts_quotes_by_every_kind_of_key() {
    let test = "tpm2_checkquote_accepts_quotes_by_every_kind_of_key";
    let Some(tpm) = Software::start(test) else { return };
    tpm.expect(0, &["extend", "23", "--file", "/bin/true"]);
    let auth = tpm.write("auth", b"a value");
    let (keys, guarded) = (tpm.file("keys"), tpm.file("guarded"));
    let mut kept: Vec<Vec<&str>> = Vec::new();
    if tpm.tpm2(test, &["tpm2_createek", "-Q", "-c", "ek.ctx", "-G", "ecc"]).is_some() {
        let make = ["tpm2_createak", "-Q", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa"];
        tpm.tpm2_done(test, &make);
        // These tools leave what they have loaded, until nothing more has room.
        let said = tpm.expect(1, &["srk", "show", "--type", "p256"]);
        assert!(
            said.contains("TPM_RC_OBJECT_MEMORY") && said.contains("`imara tpm status` shows what is loaded"),
            "{said}"
        );
        tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
        tpm.tpm2_done(test, &["tpm2_evictcontrol", "-Q", "-c", "ak.ctx", "0x81010002"]);
        tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
        kept.push(vec!["--key", "0x81010002"]);
    }
    let cases = [
        vec![],
        vec!["--type", "rsa2048"],
        // Made, then found again.
        vec!["--key", &keys],
        vec!["--key", &keys],
        vec!["--key", &guarded, "--auth", &auth, "--type", "rsa2048"],
        vec!["--key", &guarded, "--auth", &auth],
    ];
    let mut names = Vec::new();
    for (number, key) in cases.into_iter().chain(kept).enumerate() {
        let out = tpm.file(&format!("quote{number}"));
        let selection = ["sha256:0,10,23", "sha1:23+sha256:all"][number % 2];
        let arguments = [vec!["quote", "--pcrs", selection, "--nonce", NONCE, "--out", &out], key.clone()].concat();
        let told = tpm.json(&arguments);
        assert_eq!(told["nonce"], NONCE);
        names.push(told["key"]["name"].clone());
        tpm.nothing_is_loaded();
        for form in ["ak.pub", "ak.pem"] {
            let Some(accepted) = checkquote(&tpm, test, &out, NONCE, form) else { break };
            assert!(accepted, "{key:?} {form}");
            assert_eq!(checkquote(&tpm, test, &out, "ff", form), Some(false), "{key:?}");
        }
        // Nothing is written over.
        let before = std::fs::read(format!("{out}/quote.sig")).unwrap();
        tpm.expect(1, &arguments);
        assert!(std::fs::read(format!("{out}/quote.sig")).unwrap() == before);
    }
    assert_eq!((&names[2], &names[4]), (&names[3], &names[5]));
    let said =
        tpm.expect(1, &["quote", "--pcrs", "sha256:0", "--nonce", NONCE, "--out", &tpm.file("no"), "--key", &guarded]);
    assert!(said.contains("the authorisation is wrong"), "{said}");
    assert!(!tpm.path("no").exists());
    tpm.nothing_is_loaded();
}

#[test]
fn a_key_made_under_the_kept_storage_root_key_is_loaded_by_tpm2_tools() {
    let test = "a_key_made_under_the_kept_storage_root_key_is_loaded_by_tpm2_tools";
    let Some(tpm) = Software::start(test) else { return };
    tpm.expect(0, &["srk", "create", "--type", "rsa2048"]);
    let (keys, out) = (tpm.file("keys"), tpm.file("quote"));
    tpm.expect(0, &["quote", "--pcrs", "sha256:0", "--nonce", NONCE, "--out", &out, "--key", &keys]);
    let load = ["tpm2_load", "-Q", "-C", "0x81000001", "-u", "keys/ak.pub", "-r", "keys/ak.priv", "-c", "ak.ctx"];
    let Some(_) = tpm.tpm2_done(test, &load) else { return };
    tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
    // Under another parent it does not load, and under the right one without being told which.
    let out = tpm.file("again");
    let quote = ["quote", "--pcrs", "sha256:0", "--nonce", NONCE, "--out", &out, "--key", &keys];
    tpm.expect(0, &["srk", "create", "--handle", "0x81000002"]);
    let said = tpm.expect(1, &[quote.as_slice(), &["--parent", "0x81000002"]].concat());
    assert!(said.contains("this TPM has not made the key") && said.contains("--parent"), "{said}");
    tpm.expect(0, &quote);
    tpm.nothing_is_loaded();
}

#[test]
fn quotes_that_would_prove_nothing_are_not_made() {
    let Some(tpm) = Software::start("quotes_that_would_prove_nothing_are_not_made") else { return };
    tpm.expect(0, &["srk", "create"]);
    let (out, half) = (tpm.file("out"), tpm.file("half"));
    std::fs::create_dir(&half).unwrap();
    tpm.write("half/ak.pub", b"x");
    let long = "00".repeat(65);
    for (arguments, status, reason) in [
        (vec!["--pcrs", "sha256:none", "--nonce", NONCE], 2, "selects no PCR"),
        (vec!["--pcrs", "sha256:0", "--nonce", ""], 2, "1 to 64 bytes are needed, not 0"),
        (vec!["--pcrs", "sha256:0", "--nonce", &long], 2, "1 to 64 bytes are needed, not 65"),
        (vec!["--pcrs", "sha256:0"], 2, "--nonce"),
        (vec!["--pcrs", "sha384:0", "--nonce", NONCE], 3, "no sha384 PCR bank"),
        (vec!["--pcrs", "sha256:0", "--nonce", NONCE, "--key", "0x81000001"], 1, "is no attestation key"),
        (vec!["--pcrs", "sha256:0", "--nonce", NONCE, "--key", "0x81000009"], 1, "TPM_RC_HANDLE"),
        (vec!["--pcrs", "sha256:0", "--nonce", NONCE, "--key", &half], 1, "half/ak.priv is missing beside"),
    ] {
        let said = tpm.expect(status, &[vec!["quote", "--out", &out], arguments.clone()].concat());
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    assert!(!tpm.path("out").exists());
    tpm.nothing_is_loaded();
    // The key by its template is the same each time, so that it can be enrolled once.
    let name = |out: &str| {
        let told = tpm.json(&["quote", "--pcrs", "sha256:0", "--nonce", NONCE, "--out", &tpm.file(out)]);
        text(told["key"]["name"].as_str().unwrap().as_bytes())
    };
    assert_eq!(name("one"), name("two"));
}
