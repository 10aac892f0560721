//! Bad days: a TPM that is locked, full, or gone.

use crate::software::{Software, text};
use std::process::Stdio;

const QUOTE: [&str; 5] = ["quote", "--pcrs", "sha256:0", "--nonce", "00"];

#[test]
fn a_lockout_is_told_with_how_long_it_lasts_and_who_can_end_it() {
    let test = "a_lockout_is_told_with_how_long_it_lasts_and_who_can_end_it";
    let Some(tpm) = Software::start(test) else { return };
    let (keys, right, wrong) = (tpm.file("keys"), tpm.write("right", b"right"), tpm.write("wrong", b"wrong"));
    let quote = |out: &str, auth: &str| {
        let out = tpm.file(out);
        tpm.imara(&[QUOTE.as_slice(), &["--key", &keys, "--auth", auth, "--out", &out]].concat())
    };
    assert!(quote("first", &right).status.success());
    let mut said = String::new();
    for number in 0..40 {
        let output = quote(&format!("wrong{number}"), &wrong);
        assert_eq!(output.status.code(), Some(1));
        said = text(&output.stderr);
        if !said.contains("the authorisation is wrong") {
            break;
        }
    }
    assert!(said.contains("TPM_RC_LOCKOUT") && said.contains("`imara tpm status` shows for how long"), "{said}");
    let status = tpm.json(&["status"]);
    assert_eq!(status["lockout"]["locked"], true, "{status:#}");
    let shown = tpm.expect(0, &["status"]);
    assert!(shown.contains("LOCKED: failed authorisations") && shown.contains("tpm2_dictionarylockout -c"), "{shown}");
    assert_eq!(quote("locked", &right).status.code(), Some(1), "the right value is refused, too");
    // What needs no authorisation that counts goes on.
    tpm.expect(0, &["pcrs", "sha256:0"]);
    tpm.expect(0, &["srk", "create"]);
    tpm.nothing_is_loaded();
    let Some(_) = tpm.tpm2_done(test, &["tpm2_dictionarylockout", "-c"]) else { return };
    assert!(quote("after", &right).status.success());
    assert_eq!(tpm.json(&["status"])["lockout"]["failures"], 0);
}

#[test]
fn a_full_tpm_is_told_with_what_fills_it() {
    let test = "a_full_tpm_is_told_with_what_fills_it";
    let Some(tpm) = Software::start(test) else { return };
    // Objects and sessions of others, until nothing more has room.
    for _ in 0..3 {
        let Some(_) = tpm.tpm2_done(test, &["tpm2_createprimary", "-Q", "-G", "ecc"]) else { return };
    }
    let out = tpm.file("out");
    let said = tpm.expect(1, &[QUOTE.as_slice(), &["--out", &out]].concat());
    assert!(
        said.contains("TPM_RC_OBJECT_MEMORY") && said.contains("`imara tpm status` shows what is loaded"),
        "{said}"
    );
    let said = tpm.expect(1, &["hash", &tpm.write("large", &[0; 5000])]);
    assert!(said.contains("TPM_RC_OBJECT_MEMORY"), "{said}");
    let shown = tpm.expect(0, &["status"]);
    assert!(
        shown.contains("3 objects (0x80000000, 0x80000001, 0x80000002)") && shown.contains("room for 0 objects"),
        "{shown}"
    );
    tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
    tpm.expect(0, &[QUOTE.as_slice(), &["--out", &out]].concat());
}

#[test]
fn a_tpm_that_goes_away_in_between_is_told() {
    let Some(tpm) = Software::start("a_tpm_that_goes_away_in_between_is_told") else { return };
    // Standard input that does not end, and more than a pipe holds: the TPM is in the middle of hashing.
    let mut child = tpm.command(&["hash", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &[7; 1 << 18]).unwrap();
    tpm.stop();
    let _ = std::io::Write::write_all(&mut input, &[7; 1 << 16]);
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("got no response from the TPM") && said.contains("next: look whether the TPM is there"),
        "{said}"
    );
    // It is back, and nothing is left of before.
    tpm.run(true);
    tpm.nothing_is_loaded();
}
