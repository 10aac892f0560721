//! Event logs, of real machines and with tpm2-tools as the second opinion.

use crate::software::{Software, imara, text};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/tpm/event_log").join(name)
}

fn path(name: &str) -> String {
    vector(name).to_str().unwrap().to_owned()
}

fn run(status: i32, arguments: &[&str]) -> (String, String) {
    let output = imara(&[&["event-log"], arguments].concat()).output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {out}{said}");
    (out, said)
}

fn document(status: i32, arguments: &[&str]) -> Value {
    serde_json::from_str(&run(status, &[arguments, &["--json"]].concat()).0).unwrap()
}

#[test]
fn real_logs_are_shown_and_proven_by_the_pcrs_of_their_machines() {
    for (log, pcrs, bank, events) in [
        ("debian-seabios.bin", "debian-seabios.pcrs-sha256", "sha256", 14),
        ("debian-ovmf.bin", "debian-ovmf.pcrs", "sha1", 25),
        ("debian-ovmf-sha384.bin", "debian-ovmf-sha384.pcrs", "sha1", 25),
        ("seabios-tpm12.bin", "seabios-tpm12.pcrs", "sha1", 13),
    ] {
        let found = document(0, &[&path(log), "--pcrs", &path(pcrs), "--bank", bank]);
        assert_eq!(found["events"].as_array().unwrap().len(), events, "{log}");
        assert_eq!((&found["error"], &found["events_whose_data_differ"]), (&Value::Null, &json!([])), "{log}");
        let proven = found["pcrs"].as_array().unwrap().iter().filter(|pcr| pcr["agreement"] == "proven").count();
        assert!(proven >= 8, "{log}: {proven}");
        let (shown, _) = run(0, &[&path(log), "--pcrs", &path(pcrs), "--bank", bank]);
        assert!(shown.contains("PCR 0, events ") && !shown.contains("DIFFERS"), "{shown}");
        let (shown, _) = run(0, &[&path(log)]);
        assert!(shown.contains("NOT proven"), "{shown}");
    }
    let (shown, _) = run(0, &[&path("debian-ovmf.bin"), "--digests"]);
    assert!(shown.contains("EV_EFI_VARIABLE_DRIVER_CONFIG") && shown.contains("variable SecureBoot is off"), "{shown}");
}

#[test]
fn the_event_where_a_log_departs_from_the_pcrs_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(vector("debian-ovmf.bin")).unwrap();
    let events = document(0, &[&path("debian-ovmf.bin")])["events"].clone();
    let offset = |event: usize| usize::try_from(events[event - 1]["offset"].as_u64().unwrap()).unwrap();
    // Event 5 is SecureBoot: header, two digests (2+20, 2+32), data of a size.
    let secure_boot = 5;
    let digest = offset(secure_boot) + 12 + 2;
    let data = offset(secure_boot + 1) - 1;
    let write = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let changed = |places: &[usize]| {
        let mut bytes = whole.clone();
        places.iter().for_each(|place| bytes[*place] ^= 1);
        bytes
    };
    let added = [&whole[..], &whole[offset(secure_boot)..offset(secure_boot + 1)]].concat();
    let removed = [&whole[..offset(secure_boot)], &whole[offset(secure_boot + 1)..]].concat();
    for (name, bytes, reason) in [
        ("digest", changed(&[digest]), "the digest of event 5 (variable SecureBoot is off) was changed"),
        (
            "digest and data",
            changed(&[digest, data]),
            "is not that of the event's data in event 5 (variable SecureBoot is on)",
        ),
        ("added", added, "has what was added"),
        ("removed", removed, "events were changed or taken out"),
    ] {
        let file = write("log", &bytes);
        let (shown, said) = run(1, &[&file, "--pcrs", &path("debian-ovmf.pcrs")]);
        assert!(said.contains("sha1 PCR 7 is "), "{name}: {said}");
        assert!(said.contains(reason), "{name}: {said}");
        assert!(shown.contains("sha1 PCR 7, events") && shown.contains("DIFFERS"), "{name}: {shown}");
        assert!(shown.contains("sha1 PCR 0, events 2: proven") || shown.contains("sha1 PCR 0"), "{name}: {shown}");
    }
    // Only what the event says of itself was changed: every PCR is proven, and it is told all the same.
    let file = write("log", &changed(&[data]));
    let (shown, _) = run(0, &[&file, "--pcrs", &path("debian-ovmf.pcrs")]);
    assert!(shown.contains("event 5: its data are not what its digest is of"), "{shown}");
    // Cut off: what is whole is shown.
    let file = write("log", &whole[..whole.len() - 3]);
    let (shown, said) = run(1, &[&file]);
    assert!(shown.contains("24 events") && said.contains("event 25 at byte"), "{shown}{said}");
    let (_, said) = run(1, &[&write("log", b"no log at all, but text")]);
    assert!(said.contains("may be no event log"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for arguments in [&[][..], &["--json"], &["--no-pcrs"]] {
        let (shown, said) = run(1, &[&[empty.to_str().unwrap()], arguments].concat());
        assert!(shown.is_empty() && said.contains("empty: is empty, and no event log"), "{shown}{said}");
    }
    for arguments in [vec!["/no/such/log"], vec![]] {
        let output = imara(&[vec!["event-log"], arguments].concat()).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", text(&output.stderr));
    }
}

#[test]
fn a_live_tpm_that_was_extended_by_the_log_is_met() {
    let test = "a_live_tpm_that_was_extended_by_the_log_is_met";
    let Some(tpm) = Software::start(test) else { return };
    let log = path("debian-ovmf.bin");
    let events = document(0, &[&log])["events"].clone();
    for event in events.as_array().unwrap().iter().filter(|event| event["measured"] == true) {
        let digest = |bank: &str| format!("{bank}:{}", event["digests"][bank].as_str().unwrap());
        tpm.expect(0, &["extend", &event["pcr"].to_string(), &digest("sha1"), &digest("sha256")]);
    }
    let found: Value = serde_json::from_str(&tpm.expect(0, &["event-log", &log, "--json"])).unwrap();
    let proven = found["pcrs"].as_array().unwrap().iter().filter(|pcr| pcr["agreement"] == "proven").count();
    assert_eq!(proven, found["pcrs"].as_array().unwrap().len());
    tpm.nothing_is_loaded();
    // tpm2-tools replay the same log to the same values.
    let Ok(output) = Command::new("tpm2_eventlog").arg(&log).output() else {
        println!("skipped: {test}: tpm2_eventlog is not installed");
        return;
    };
    let theirs = text(&output.stdout).to_lowercase();
    for pcr in found["pcrs"].as_array().unwrap() {
        let replayed = pcr["replayed"].as_str().unwrap();
        assert!(theirs.contains(&format!("0x{replayed}")), "{pcr}");
    }
    // A bank that the log says nothing of.
    let older = path("seabios-tpm12.bin");
    let output = tpm.imara(&["event-log", &older, "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["banks_without_log"], json!([{ "bank": "sha256", "extended": true }]));
    // Extended once more, by somebody else.
    tpm.expect(0, &["extend", "4", "--file", "/bin/true"]);
    let said = tpm.expect(1, &["event-log", &log]);
    assert!(said.contains("sha256 PCR 4 is ") && said.contains("somebody else has extended the PCR"), "{said}");
}
