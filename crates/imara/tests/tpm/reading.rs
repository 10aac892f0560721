//! What only reads: status, PCRs, random numbers; and what is said when there is nothing to read from.

use crate::software::{Software, imara, text};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

#[test]
fn status_tells_what_the_tpm_is_and_has() {
    let test = "status_tells_what_the_tpm_is_and_has";
    let Some(tpm) = Software::start(test) else { return };
    let status = tpm.json(&["status"]);
    assert_eq!((&status["schema"], &status["manufacturer"]), (&json!(1), &json!("IBM")));
    let banks: Vec<_> = status["banks"].as_array().unwrap().iter().collect();
    assert_eq!((&banks[0]["bank"], banks[0]["pcrs"].as_array().unwrap().len()), (&json!("sha1"), 24));
    assert_eq!((&banks[1]["bank"], banks[1]["pcrs"].as_array().unwrap().len()), (&json!("sha256"), 24));
    assert_eq!(status["lockout"]["locked"], json!(false));
    assert_eq!((&status["persistent"], &status["loaded"]), (&json!([]), &json!([])));
    let shown = tpm.expect(0, &["status"]);
    assert!(shown.contains("PCR banks       sha1:all+sha256:all\n"), "{shown}");

    // What tpm2-tools keep and leave loaded in it is shown, with what it is.
    for made in [
        vec!["tpm2_createprimary", "-Q", "-c", "primary.ctx", "-G", "ecc"],
        vec!["tpm2_evictcontrol", "-Q", "-c", "primary.ctx", "0x81000007"],
        vec!["tpm2_nvdefine", "-Q", "-s", "8", "0x01800001"],
        vec!["tpm2_startauthsession", "-S", "session.ctx"],
    ] {
        let Some(output) = tpm.tpm2(test, &made) else { return };
        assert!(output.status.success(), "{made:?}: {}", text(&output.stderr));
    }
    let status = tpm.json(&["status"]);
    assert_eq!(status["persistent"][0]["handle"], "0x81000007");
    assert_eq!(status["persistent"][0]["role"], "storage key");
    assert_eq!(status["nv_indices"], json!([{ "index": "0x01800001", "is": "of the owner" }]));
    let loaded = &status["loaded"][0];
    assert_eq!(loaded, "0x80000000", "{status:#}");
    // Reading has taken nothing away, and left nothing.
    assert_eq!(tpm.json(&["status"])["loaded"], status["loaded"]);
}

#[test]
fn pcrs_are_printed_as_the_tools_print_them() {
    let test = "pcrs_are_printed_as_the_tools_print_them";
    let Some(tpm) = Software::start(test) else { return };
    let digest = format!("23:sha1={},sha256={}", "5a".repeat(20), "a5".repeat(32));
    let Some(_) = tpm.tpm2(test, &["tpm2_pcrextend", &digest]) else { return };
    for selection in ["sha256:0,10,23", "sha1:23+sha256:all", "sha256:all+sha1:0,1,2,3,4,5,6,7,8,9"] {
        let theirs = tpm.tpm2(test, &["tpm2_pcrread", "-o", "theirs", selection]).unwrap();
        assert_eq!(tpm.expect(0, &["pcrs", selection, "--form", "tpm2-tools"]), text(&theirs.stdout), "{selection}");
        tpm.expect(0, &["pcrs", selection, "--form", "values", "--out", &tpm.file("ours")]);
        assert!(std::fs::read(tpm.path("ours")).unwrap() == std::fs::read(tpm.path("theirs")).unwrap(), "{selection}");
        std::fs::remove_file(tpm.path("ours")).unwrap();
    }
    let lines = tpm.expect(0, &["pcrs", "sha256:23+sha1:0"]);
    let (first, second) = lines.split_once('\n').unwrap();
    assert!(first.starts_with("sha256:23 "), "{lines}");
    assert_eq!(second, format!("sha1:0 {}\n", "00".repeat(20)));
    let all = tpm.json(&["pcrs"]);
    assert_eq!(all["pcrs"]["sha256"]["23"], first["sha256:23 ".len()..]);
    assert_eq!(all["pcrs"]["sha1"].as_object().unwrap().len(), 24);
    tpm.nothing_is_loaded();
}

#[test]
fn random_numbers_are_as_many_as_asked_for_and_never_written_over_a_file() {
    let Some(tpm) = Software::start("random_numbers_are_as_many_as_asked_for_and_never_written_over_a_file") else {
        return;
    };
    let (once, again) = (tpm.expect(0, &["random", "200"]), tpm.expect(0, &["random", "200"]));
    assert_eq!((once.trim().len(), again.trim().len()), (400, 400));
    assert_ne!(once, again);
    assert_eq!(tpm.imara(&["random", "7", "--raw"]).stdout.len(), 7);
    let out = tpm.file("random");
    tpm.expect(0, &["random", "33", "--out", &out]);
    let metadata = std::fs::metadata(&out).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (33, 0o600));
    let before = std::fs::read(&out).unwrap();
    tpm.expect(1, &["random", "33", "--out", &out]);
    assert!(std::fs::read(&out).unwrap() == before);
    for count in ["0", "4097", "x"] {
        assert_eq!(imara(&["random", count]).output().unwrap().status.code(), Some(2), "{count}");
    }
}

#[test]
fn what_is_missing_is_named_with_the_next_step() {
    let Some(tpm) = Software::start("what_is_missing_is_named_with_the_next_step") else { return };
    let said = tpm.expect(3, &["pcrs", "sha384:0"]);
    assert!(said.contains("the TPM has no sha384 PCR bank; it has sha1, sha256"), "{said}");
    for (selection, reason) in [
        ("sha256:24", "`24` is no PCR; there are 0 to 23"),
        ("sha256", "`sha256` selects no PCRs"),
        ("sha3:1", "`sha3` is no PCR bank"),
    ] {
        let said = tpm.expect(2, &["pcrs", selection]);
        assert!(said.contains(reason), "{said}");
    }

    let at = |place: &str, status: i32| {
        let output = imara(&["status", "--tpm", place]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{place}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let said = at("/dev/imara-no-such-tpm", 3);
    assert!(said.contains("/dev/imara-no-such-tpm does not exist") && said.contains("--tpm"), "{said}");
    assert!(at("what", 2).contains("`what` is no TPM"));
    // Its socket is there, and it is not.
    tpm.stop();
    let gone = tpm.file("gone");
    drop(UnixListener::bind(&gone).unwrap());
    let said = at(&gone, 3);
    assert!(said.contains("no software TPM is running there"), "{said}");
    // It runs, and nothing has started it up.
    tpm.run(false);
    let said = at(&tpm.file("tpm"), 3);
    assert!(said.contains("0x100 TPM_RC_INITIALIZE"), "{said}");
}

#[test]
fn a_tpm_that_does_not_answer_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent");
    // Takes connections, and never says a word.
    let _listener = UnixListener::bind(&path).unwrap();
    let output = imara(&["status", "--tpm", path.to_str().unwrap()]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no answer within 5 s; another program uses it, or it hangs"), "{said}");
    let record = path.to_str().unwrap().replace('/', "%2f");
    let _ = std::fs::remove_file(std::path::Path::new("/run/imara-tpm").join(record));
}

#[test]
fn a_tpm_behind_a_tcp_port_is_reached_in_either_way_of_writing_it() {
    let test = "a_tpm_behind_a_tcp_port_is_reached_in_either_way_of_writing_it";
    let Some(tpm) = Software::start(test) else { return };
    tpm.stop();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    tpm.run_at(&format!("type=tcp,port={port},bindaddr=127.0.0.1"), true);
    for address in [format!("tcp:127.0.0.1:{port}"), format!("swtpm:host=127.0.0.1,port={port}")] {
        let output = imara(&["random", "8", "--tpm", &address, "--verbose"]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 17), "{said}");
        assert!(said.contains("TPM command 0x17b of 12 bytes: done"), "{said}");
    }
    let _ = std::fs::remove_file(format!("/run/imara-tpm/tcp%3a127.0.0.1%3a{port}"));
    tpm.stop();
    let output = imara(&["status", "--tpm", &format!("tcp:127.0.0.1:{port}")]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("no software TPM is running there"), "{said}");
}
