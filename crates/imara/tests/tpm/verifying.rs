//! `imara tpm verify-quote`: what tpm2-tools, Keylime and Imara make, and what was changed in it.

use crate::software::{Software, imara, text};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn vector(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/tpm").join(name);
    path.to_str().unwrap().to_owned()
}

fn run(status: i32, arguments: &[&str]) -> String {
    let output = imara(&[&["verify-quote"], arguments].concat()).output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {out}{said}");
    out + &said
}

fn document(status: i32, arguments: &[&str]) -> Value {
    serde_json::from_str(&run(status, &[arguments, &["--json"]].concat())).unwrap()
}

/// The result of a check in a report.
fn check<'a>(report: &'a Value, name: &str) -> &'a str {
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == name);
    found.map_or("absent", |check| check["result"].as_str().unwrap())
}

#[test]
fn quotes_of_tpm2_tools_are_verified_in_every_form() {
    let file = |name: &str| vector(&format!("tpm2_tools/{name}"));
    let (message, signature) = (file("quote.msg"), file("quote.sig"));
    let base = ["--message", &message, "--signature", &signature, "--nonce", "0102"];
    for values in ["quote.pcrs", "quote.values"] {
        let report = document(0, &[&base[..], &["--key", &file("ak.tss"), "--values", &file(values)]].concat());
        assert_eq!((&report["verdict"], &report["blamed"]), (&"proven".into(), &Value::Array(vec![])), "{values}");
        assert_eq!(report["pcrs"]["sha256"]["10"], "00".repeat(32));
        assert_eq!(report["attested"]["selection"], "sha256:0,10+sha1:1");
    }
    // A bare key does not say what else it signs; without values it is not known what was quoted.
    let report = document(0, &[&base[..], &["--key", &file("ak.pem")]].concat());
    assert_eq!((&report["verdict"], check(&report, "key")), (&"verified-in-part".into(), "not-checked"));
    assert_eq!((check(&report, "signature"), check(&report, "pcr-values")), ("passed", "not-checked"));
    // A plain signature, and a key that another TPM has.
    let (message, signature) = (file("plain.msg"), file("plain.sig"));
    let base = ["--message", &message, "--signature", &signature];
    run(0, &[&base[..], &["--key", &file("ak.tss"), "--nonce", "0102"]].concat());
    let said = run(1, &[&base[..], &["--key", &vector("quote/ak_ecc.tpmt_public")]].concat());
    assert!(said.contains("FAILED       signature"), "{said}");
    for (key, quote) in [("ak_rsa", "rsa_sha256"), ("ak_ecc", "ecc_sha1_sha256"), ("ak_rsa", "rsa_sha1_sha256")] {
        let message = vector(&format!("quote/{quote}.attest"));
        for signature in [format!("quote/{quote}.tpmt_signature"), format!("quote/{quote}.sig")] {
            for key in [format!("quote/{key}.tpmt_public"), format!("quote/{key}.pem")] {
                run(0, &["--message", &message, "--signature", &vector(&signature), "--key", &vector(&key)]);
            }
        }
    }
}

#[test]
fn a_measurement_list_gives_the_values_of_a_quote_that_came_without() {
    let message = vector("quote/ecc_sha1_sha256.attest");
    let signature = vector("quote/ecc_sha1_sha256.tpmt_signature");
    let (key, list) = (vector("quote/ak_ecc.tpmt_public"), vector("quote/ima_binary_runtime_measurements"));
    let base = ["--message", &message, "--signature", &signature, "--key", &key];
    let report = document(0, &[&base[..], &["--measurement-list", &list]].concat());
    assert_eq!((check(&report, "pcr-values"), check(&report, "measurement-list")), ("passed", "passed"));
    assert_eq!(report["measurement_list"]["entries"], 6);
    // An edited list gives other values.
    let dir = tempfile::tempdir().unwrap();
    let mut edited = std::fs::read(&list).unwrap();
    let last = edited.len() - 40;
    edited[last] ^= 1;
    let path = dir.path().join("edited");
    std::fs::write(&path, &edited).unwrap();
    let said = run(1, &[&base[..], &["--measurement-list", path.to_str().unwrap()]].concat());
    assert!(said.contains("REFUSED"), "{said}");
}

#[test]
fn a_quote_made_here_is_verified_and_what_is_changed_is_named() {
    let test = "a_quote_made_here_is_verified_and_what_is_changed_is_named";
    let Some(tpm) = Software::start(test) else { return };
    tpm.expect(0, &["extend", "23", "--file", "/bin/true"]);
    let out = tpm.file("quote");
    tpm.expect(0, &["quote", "--pcrs", "sha1:23+sha256:0,16,23", "--nonce", "0a0b", "--out", &out]);
    let report = document(0, &[&out, "--nonce", "0a0b"]);
    assert_eq!((&report["verdict"], check(&report, "key-known")), (&"verified-in-part".into(), "not-checked"));
    let key = tpm.file("quote/ak.pub");
    let report = document(0, &[&out, "--nonce", "0a0b", "--key", &key]);
    assert_eq!(report["verdict"], "proven");
    assert_eq!(report["pcrs"]["sha256"].as_object().unwrap().len(), 3);
    assert_eq!(check(&document(1, &[&out, "--nonce", "0a0c", "--key", &key]), "nonce"), "failed");
    let said = run(0, &[&out]);
    assert!(said.contains("not checked  nonce") && said.contains("the quote may be an old one"), "{said}");

    // Wanted values: each that differs, and one that was not quoted, is named.
    let now = tpm.file("wanted");
    tpm.expect(0, &["pcrs", "sha256:0,16,23", "--out", &now]);
    assert_eq!(check(&document(0, &[&out, "--nonce", "0a0b", "--expect", &now]), "expected-values"), "passed");
    let other = std::fs::read_to_string(&now).unwrap().replace("sha256:0 00", "sha256:0 11")
        + &format!("sha1:0 {}\n", "00".repeat(20));
    let said = run(1, &[&out, "--expect", &tpm.write("other", other.as_bytes())]);
    assert!(said.contains("sha256 PCR 0 is 00") && said.contains("sha1 PCR 0 was not quoted"), "{said}");

    // A changed value is refused; a log that comes to the right ones tells which it is.
    let mut pcrs = std::fs::read(tpm.path("quote/pcrs")).unwrap();
    let digest = |number: usize| 4 + 16 * 8 + 4 + 4 + number * 66 + 2;
    pcrs[digest(1)] ^= 1;
    let changed = tpm.write("changed", &pcrs);
    let said = run(1, &[&out, "--values", &changed]);
    assert!(said.contains("FAILED       pcr-values"), "{said}");
    let empty_log = tpm.write("log", &std::fs::read(vector("event_log/debian-ovmf.bin")).unwrap()[..69]);
    let report = document(1, &[&out, "--values", &changed, "--event-log", &empty_log]);
    assert_eq!(
        (&report["blamed"][0]["bank"], &report["blamed"][0]["pcr"]),
        (&"sha256".into(), &0.into()),
        "{report:#}"
    );

    // The same as a Keylime agent answers it.
    let base64 = |name: &str| {
        let output = std::process::Command::new("base64").args(["-w0", &tpm.file(&format!("quote/{name}"))]).output();
        text(&output.unwrap().stdout)
    };
    let quote = format!("r{}:{}:{}", base64("quote.msg"), base64("quote.sig"), base64("pcrs"));
    let answer = format!("{{\"code\": 200, \"status\": \"Success\", \"results\": {{\"quote\": \"{quote}\"}}}}");
    let known = tpm.write("ak.base64", base64("ak.pub").as_bytes());
    for content in [&quote, &answer] {
        let file = tpm.write("keylime", content.as_bytes());
        assert_eq!(document(0, &["--keylime", &file, "--key", &known, "--nonce", "0a0b"])["verdict"], "proven");
        assert_eq!(check(&document(1, &["--keylime", &file, "--key", &known, "--nonce-text", "x"]), "nonce"), "failed");
    }
    for (content, reason) in [
        ("{}", "this JSON has no `quote`"),
        ("d::", "this is no quote of Keylime"),
        ("r:", "this is no quote of Keylime"),
        ("reJw=:AAAA:AAAA", "the quote is compressed"),
    ] {
        let said = run(1, &["--keylime", &tpm.write("keylime", content.as_bytes()), "--key", &known]);
        assert!(said.contains(reason), "{content}: {said}");
    }
}

#[test]
fn what_tpm2_quote_makes_of_a_live_tpm_is_verified() {
    let test = "what_tpm2_quote_makes_of_a_live_tpm_is_verified";
    let Some(tpm) = Software::start(test) else { return };
    for (kind, scheme) in [("ecc", "ecdsa"), ("rsa", "rsassa"), ("rsa", "rsapss")] {
        let ek = ["tpm2_createek", "-Q", "-c", "ek.ctx", "-G", kind];
        let Some(_) = tpm.tpm2_done(test, &ek) else { return };
        tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
        let make = [
            "tpm2_createak",
            "-Q",
            "-C",
            "ek.ctx",
            "-c",
            "ak.ctx",
            "-G",
            kind,
            "-g",
            "sha256",
            "-s",
            scheme,
            "-u",
            "ak",
        ];
        tpm.tpm2_done(test, &make);
        tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
        let quote = [
            "tpm2_quote",
            "-c",
            "ak.ctx",
            "-l",
            "sha1:0,1+sha256:23",
            "-q",
            "beef",
            "-m",
            "m",
            "-s",
            "s",
            "-o",
            "p",
            "--scheme",
            scheme,
        ];
        tpm.tpm2_done(test, &quote);
        tpm.tpm2_done(test, &["tpm2_flushcontext", "-t"]);
        let (message, signature, values, key) = (tpm.file("m"), tpm.file("s"), tpm.file("p"), tpm.file("ak"));
        let arguments =
            ["--message", &message, "--signature", &signature, "--values", &values, "--key", &key, "--nonce", "beef"];
        assert_eq!(document(0, &arguments)["verdict"], "proven", "{kind} {scheme}");
    }
}

#[test]
fn files_that_are_missing_or_something_else_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    let message = vector("tpm2_tools/quote.msg");
    let (signature, key) = (vector("tpm2_tools/quote.sig"), vector("tpm2_tools/ak.tss"));
    for (arguments, status, reason) in [
        (vec![], 2, "required"),
        (vec![empty], 2, "has no ak.pub"),
        (vec![empty, "--key", &key], 2, "has no quote.msg"),
        (vec!["--message", &message, "--signature", &signature], 2, "--key"),
        (vec!["--message", &message, "--signature", &message, "--key", &key], 1, "the signature is malformed"),
        (vec!["--message", &message, "--signature", &signature, "--key", &message], 1, "quote.msg: "),
        (vec!["--message", &signature, "--signature", &signature, "--key", &key], 1, "FAILED       message"),
        (vec!["--message", &message, "--signature", "/no/such", "--key", &key], 1, "/no/such: No such file"),
    ] {
        let said = run(status, &arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}

#[test]
fn a_measurement_list_is_proven_by_a_quote() {
    let test = "a_measurement_list_is_proven_by_a_quote";
    let Some(tpm) = Software::start(test) else { return };
    let list = vector("quote/ima_binary_runtime_measurements");
    let verify = |status: i32, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_imara"));
        let output = command.args(["measurement", "verify"]).args(arguments).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        said
    };
    // The list's entries, into the PCR of this TPM.
    for entry in extends(&list) {
        tpm.expect(0, &["extend", "10", &entry.0, &entry.1]);
    }
    let out = tpm.file("quote");
    tpm.expect(0, &["quote", "--pcrs", "sha1:10+sha256:10", "--nonce", "01", "--out", &out]);
    let key = tpm.file("quote/ak.pub");
    let said = verify(0, &[&list, "--quote", &out, "--nonce", "01", "--quote-key", &key]);
    assert!(said.contains("proven: all 6 entries") && !said.contains("warning"), "{said}");
    let said = verify(0, &[&list, "--quote", &out]);
    assert!(said.contains("the key came with the quote") && said.contains("may be an old one"), "{said}");
    let said = verify(1, &[&list, "--quote", &out, "--nonce", "02"]);
    assert!(said.contains("the quote's nonce: "), "{said}");
    // The values alone are read, too, and what was extended since is no longer what was quoted.
    verify(0, &[&list, "--pcrs", &tpm.file("quote/pcrs")]);
    tpm.expect(0, &["extend", "10", "--file", "/bin/true"]);
    let later = tpm.file("later");
    tpm.expect(0, &["quote", "--pcrs", "sha1:10+sha256:10", "--nonce", "01", "--out", &later]);
    verify(1, &[&list, "--quote", &later]);
}

/// What each entry of a list extends its PCR with, as arguments of `imara tpm extend`.
fn extends(list: &str) -> Vec<(String, String)> {
    use imara_format::hash::{Digest, HashAlgorithm};
    let mut decoder = imara_format::measurement_list::Decoder::new();
    decoder.feed(&std::fs::read(list).unwrap());
    decoder.end();
    let mut extends = Vec::new();
    while let Some(record) = decoder.next_record().unwrap() {
        let mut room = Vec::new();
        let data = record.hash_input(imara_format::measurement_list::ByteOrder::Little, &mut room);
        let of = |bank| match record.is_violation() {
            true => Digest::ones(bank),
            false => imara_engine::crypto::hash(bank, &[data]).unwrap(),
        };
        let argument = |bank| {
            let digest: Digest = of(bank);
            format!("{bank}:{}", digest.to_hex())
        };
        extends.push((argument(HashAlgorithm::Sha1), argument(HashAlgorithm::Sha256)));
    }
    extends
}
