//! What an imara that is killed leaves in a TPM without resource manager: nothing, as soon as the next one has run.

use crate::software::{Software, text};
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn what_a_killed_command_has_loaded_is_flushed_by_the_next_and_others_objects_stay() {
    let test = "what_a_killed_command_has_loaded_is_flushed_by_the_next_and_others_objects_stay";
    let Some(tpm) = Software::start(test) else { return };
    // Another program's object.
    let others = match tpm.tpm2_done(test, &["tpm2_createprimary", "-Q", "-G", "ecc"]) {
        Some(_) => json!(["0x80000000"]),
        None => json!([]),
    };
    let (keys, auth) = (tpm.file("keys"), tpm.write("auth", b"a value"));
    let quote = |out: &str| {
        let out = tpm.file(out);
        let arguments =
            ["quote", "--pcrs", "sha256:0", "--nonce", "00", "--key", &keys, "--auth", &auth, "--out", &out];
        tpm.command(&arguments)
    };
    let key = |_: &str| tpm.command(&["srk", "show", "--type", "rsa2048"]);
    // A sequence, which has no name.
    let large = tpm.write("large", &vec![7; 1 << 19]);
    let hash = |_: &str| tpm.command(&["hash", &large]);
    let commands: [&dyn Fn(&str) -> Command; 3] = [&quote, &key, &hash];
    assert!(quote("first").output().unwrap().status.success());
    let durations = commands.map(|command| {
        let begun = Instant::now();
        assert!(command("second").output().unwrap().status.success());
        begun.elapsed()
    });
    assert_eq!(tpm.json(&["status"])["loaded"], others);

    const KILLS: u32 = 36;
    let mut flushed = 0;
    for kill in 0..KILLS {
        let (command, whole) = (commands[kill as usize % 3], durations[kill as usize % 3]);
        let mut child = command(&format!("out{kill}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From before it has connected to after it has done all.
        std::thread::sleep(whole * kill / (KILLS - 4) + Duration::from_micros(137));
        let _ = child.kill();
        child.wait().unwrap();
        let next = tpm.imara(&["status", "--json"]);
        let said = text(&next.stderr);
        assert!(next.status.success(), "{kill}: {said}");
        let status: serde_json::Value = serde_json::from_slice(&next.stdout).unwrap();
        assert_eq!(status["loaded"], others, "{kill}: {said}");
        flushed += u32::from(said.contains("flushed what an imara that was killed had left loaded in the TPM: 0x"));
    }
    println!("{flushed} of {KILLS} had left something");
}

#[test]
fn two_commands_at_once_take_turns() {
    let Some(tpm) = Software::start("two_commands_at_once_take_turns") else { return };
    let children: Vec<_> = (0..4)
        .map(|_| tpm.command(&["srk", "show", "--type", "p256", "--json"]).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let names: Vec<_> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["keys"][0]["name"].clone()
        })
        .collect();
    assert!(names.iter().all(|name| *name == names[0]));
    tpm.nothing_is_loaded();
}
