//! What changes the TPM: extends and the storage root key.

use crate::software::{Software, text};
use serde_json::json;

#[test]
fn a_pcr_is_extended_in_every_bank_as_tpm2_tools_extend_it() {
    let test = "a_pcr_is_extended_in_every_bank_as_tpm2_tools_extend_it";
    let Some(tpm) = Software::start(test) else { return };
    let (sha1, sha256) = (format!("sha1:{}", "5a".repeat(20)), format!("sha256:{}", "A5".repeat(32)));
    let pcr = |number: u32| {
        let lines = tpm.expect(0, &["pcrs", &format!("sha1:{number}+sha256:{number}")]);
        lines.replace(&format!(":{number} "), " ")
    };
    let before = pcr(23);
    let told = tpm.json(&["extend", "23", &sha1, &sha256, "--dry-run"]);
    assert_eq!(pcr(23), before, "tried only");
    let done = tpm.json(&["extend", "23", &sha1, &sha256]);
    assert_eq!((&told["banks"], &done["dry_run"]), (&done["banks"], &json!(false)));
    assert!(pcr(23).contains(done["banks"]["sha256"]["after"].as_str().unwrap()));
    let digests = format!("16:sha1={},sha256={}", "5a".repeat(20), "a5".repeat(32));
    let Some(_) = tpm.tpm2_done(test, &["tpm2_pcrextend", &digests]) else { return };
    assert_eq!(pcr(23), pcr(16));

    // By file: what the TPM makes of the same event itself.
    let file = tpm.write("event", &vec![7; 1000]);
    tpm.expect(0, &["extend", "23", "--file", &file]);
    tpm.tpm2_done(test, &["tpm2_pcrevent", "16", &file]);
    assert_eq!(pcr(23), pcr(16));
    tpm.nothing_is_loaded();
}

#[test]
fn an_extend_that_leaves_a_bank_out_or_cannot_be_is_refused_and_changes_nothing() {
    let test = "an_extend_that_leaves_a_bank_out_or_cannot_be_is_refused_and_changes_nothing";
    let Some(tpm) = Software::start(test) else { return };
    let before = tpm.expect(0, &["pcrs"]);
    let (sha1, sha256) = (format!("sha1:{}", "00".repeat(20)), format!("sha256={}", "00".repeat(32)));
    let sha384 = format!("sha384:{}", "00".repeat(48));
    for (arguments, status, reason) in [
        (
            vec!["extend", "16", &sha256],
            2,
            "no digest for the bank sha1, which could then be extended later with anything",
        ),
        (vec!["extend", "16", &sha256, &sha1, &sha1], 2, "two digests for the bank sha1"),
        (vec!["extend", "16", &sha384, &sha256, &sha1], 3, "the TPM has no sha384 PCR bank; it has sha1, sha256"),
        (vec!["extend", "24", &sha256, &sha1], 2, "24 is not in 0..24"),
        (vec!["extend", "16", "sha256:00"], 2, "sha256 digest"),
        (vec!["extend", "16", "sha256"], 2, "a form like sha256:HEX is needed"),
        (vec!["extend", "16", "md9:00"], 2, "there is no bank md9"),
        (vec!["extend", "16"], 2, "required"),
        (vec!["extend", "16", "--file", "/no/such/file"], 1, "/no/such/file: No such file"),
        // A PCR of the dynamic root of trust.
        (vec!["extend", "18", &sha256, &sha1], 1, "TPM_RC_LOCALITY"),
    ] {
        let said = tpm.expect(status, &arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    assert_eq!(tpm.expect(0, &["pcrs"]), before);
    tpm.expect(0, &["extend", "16", &sha256, "--partial"]);
    let after = tpm.expect(0, &["pcrs"]);
    let changed: Vec<_> = before.lines().zip(after.lines()).filter(|(before, after)| before != after).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
}

#[test]
fn the_storage_root_key_is_kept_once_and_replaces_nothing() {
    let test = "the_storage_root_key_is_kept_once_and_replaces_nothing";
    let Some(tpm) = Software::start(test) else { return };
    let said = tpm.expect(1, &["srk", "show"]);
    assert!(said.contains("keeps no storage root key") && said.contains("imara tpm srk create"), "{said}");
    let tried = tpm.json(&["srk", "create", "--dry-run"]);
    tpm.expect(1, &["srk", "show"]);
    let made = tpm.json(&["srk", "create"]);
    assert_eq!(
        (&made["name"], &made["was_there"], &made["handles"]),
        (&tried["name"], &json!(false), &json!(["0x81000001"]))
    );
    let again = tpm.json(&["srk", "create"]);
    assert_eq!((&again["name"], &again["was_there"]), (&made["name"], &json!(true)));
    let rsa = tpm.json(&["srk", "create", "--type", "rsa2048", "--handle", "0x81000002"]);
    assert_ne!(rsa["name"], made["name"]);
    let said = tpm.expect(1, &["srk", "create", "--type", "rsa2048"]);
    assert!(
        said.contains("0x81000001 has another object, ECC P-256 of name") && said.contains("not replaced"),
        "{said}"
    );
    assert_eq!(tpm.expect(0, &["srk", "show"]).matches("BEGIN PUBLIC KEY").count(), 2);
    let shown =
        tpm.json(&["srk", "show", "--type", "p256", "--pem", &tpm.file("pem"), "--public", &tpm.file("public")]);
    assert_eq!((&shown["keys"][0]["name"], &shown["keys"][0]["handles"]), (&made["name"], &json!(["0x81000001"])));
    for handle in ["0x80000001", "0x81800000", "81", "x"] {
        assert!(tpm.expect(2, &["srk", "create", "--handle", handle]).contains("0x81000"), "{handle}");
    }
    tpm.nothing_is_loaded();

    // tpm2-tools see the same key, and can use it.
    let read = ["tpm2_readpublic", "-Q", "-c", "0x81000001", "-f", "pem", "-o", "theirs.pem", "-n", "theirs.name"];
    let Some(_) = tpm.tpm2_done(test, &read) else { return };
    let file = |name: &str| std::fs::read(tpm.path(name)).unwrap();
    assert_eq!(text(&file("pem")), text(&file("theirs.pem")));
    assert_eq!(imara_format::hash::to_hex(&file("theirs.name")), made["name"].as_str().unwrap());
    tpm.tpm2_done(test, &["tpm2_readpublic", "-Q", "-c", "0x81000001", "-o", "theirs.public"]);
    assert!(file("public") == file("theirs.public"));
    tpm.write("secret", b"secret");
    tpm.tpm2_done(test, &["tpm2_create", "-Q", "-C", "0x81000001", "-i", "secret", "-u", "s.pub", "-r", "s.priv"]);

    // An object of somebody else's stays as well.
    tpm.tpm2_done(test, &["tpm2_createprimary", "-Q", "-c", "primary.ctx"]);
    tpm.tpm2_done(test, &["tpm2_evictcontrol", "-Q", "-c", "primary.ctx", "0x81000003"]);
    tpm.expect(1, &["srk", "create", "--handle", "0x81000003"]);
}

#[test]
fn an_owner_with_an_authorisation_value_is_asked_for_it() {
    let test = "an_owner_with_an_authorisation_value_is_asked_for_it";
    let Some(tpm) = Software::start(test) else { return };
    let (right, wrong) = (tpm.write("right", b"owner's word"), tpm.write("wrong", b"another"));
    let Some(_) = tpm.tpm2_done(test, &["tpm2_changeauth", "-c", "owner", "owner's word"]) else { return };
    let said = tpm.expect(1, &["srk", "create"]);
    assert!(said.contains("the authorisation is wrong"), "{said}");
    tpm.expect(1, &["srk", "create", "--owner-auth", &wrong]);
    tpm.expect(0, &["srk", "create", "--owner-auth", &right]);
    assert_eq!(tpm.json(&["status"])["authorisations_set"]["owner"], true);
    tpm.nothing_is_loaded();
}

#[test]
fn the_tpm_hashes_as_everybody_does_and_vouches_for_it() {
    let test = "the_tpm_hashes_as_everybody_does_and_vouches_for_it";
    let Some(tpm) = Software::start(test) else { return };
    for size in [0, 1, 1023, 1024, 1025, 2048, 5000] {
        let content: Vec<u8> = (0..size).map(|place| place as u8).collect();
        let file = tpm.write("content", &content);
        let (ticket, theirs) = (tpm.file(&format!("ticket{size}")), tpm.file(&format!("theirs{size}")));
        for algorithm in ["sha1", "sha256", "sha512"] {
            let hashed = tpm.json(&["hash", &file, "--algorithm", algorithm]);
            let expected = std::process::Command::new(format!("{algorithm}sum")).arg(&file).output().unwrap();
            assert!(text(&expected.stdout).starts_with(hashed["digest"].as_str().unwrap()), "{algorithm} {size}");
            assert_eq!(hashed["may_be_signed"], true);
        }
        let printed = tpm.expect(0, &["hash", &file, "--ticket", &ticket]);
        assert!(printed.ends_with(&format!("  {file}\n")), "{printed}");
        let hash = ["tpm2_hash", "-C", "o", "-g", "sha256", "-t", &theirs, "-o", "digest", &file];
        let Some(_) = tpm.tpm2_done(test, &hash) else { continue };
        assert!(std::fs::read(&ticket).unwrap() == std::fs::read(&theirs).unwrap(), "{size}");
    }
    // What only a TPM makes begins so: no key may sign it.
    let forged = [&[0xff, 0x54, 0x43, 0x47], [0; 2000].as_slice()].concat();
    let output = tpm.imara(&["hash", &tpm.write("forged", &forged), "--json"]);
    assert!(
        text(&output.stdout).contains("\"may_be_signed\": false") && text(&output.stderr).contains("no restricted key")
    );
    for (arguments, status, reason) in [
        (vec!["hash", "/no/such"], 1, "/no/such: No such file"),
        (vec!["hash", "/bin", "--algorithm", "sha256"], 1, "Is a directory"),
        (vec!["hash", "/bin/true", "--algorithm", "md5"], 1, "a TPM knows no hash md5"),
        (vec!["hash", "/bin/true", "--algorithm", "md9"], 2, "no such hash algorithm: md9"),
    ] {
        let said = tpm.expect(status, &arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    tpm.nothing_is_loaded();
}
