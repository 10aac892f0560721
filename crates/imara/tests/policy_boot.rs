//! `imara policy boot` as scripts use it: exit statuses, the policy on standard output, problems on standard error, JSON.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/kernel_config/debian-6.12");

fn boot(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.args(["policy", "boot", "--config", CONFIG, "--kernel", "6.12", "--arch", "x86"]).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_exit_status_tells_whether_all_is_as_asked() {
    for (arguments, status) in [
        (&["--cmdline", "ima_policy=tcb"][..], 0),
        (&["--cmdline", "quiet"], 0),
        (&["--cmdline", "ima_policy=tcp"], 1),
        (&["--cmdline", "ima_appraise=off", "--secure-boot"], 1),
        (&["--cmdline", "ima_policy=tcb", "--kernel", "5"], 2),
        (&["--cmdline", "x", "--cmdline-file", "y"], 2),
        (&["--cmdline-file", "/nowhere"], 1),
    ] {
        let output = boot(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn the_policy_goes_to_standard_output_and_problems_to_standard_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.args(["policy", "boot", "--config", CONFIG, "--kernel", "6.12", "--cmdline-file", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"ima_policy=critical_data|x\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let rules: Vec<_> =
        text(&output.stdout).lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert_eq!(rules, ["measure func=CRITICAL_DATA"]);
    assert!(text(&output.stderr).starts_with("command line, byte 26: `x` is no built-in policy"));
}

#[test]
fn json_has_the_rules_by_their_origin() {
    let output = boot(&["--json", "--secure-boot", "--cmdline", "ima_policy=critical_data ima_hash=sha512 evm=fix"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["schema"], 1);
    assert_eq!((&told["hash"]["name"], &told["evm"]["fix"]), (&"sha512".into(), &true.into()));
    let origins: Vec<_> = told["default"].as_array().unwrap().iter().map(|group| &group["origin"]).collect();
    assert_eq!(origins, ["architecture", "critical_data"]);
    assert_eq!(told["default"][1]["rules"][0], "measure func=CRITICAL_DATA");
    assert_eq!(told["custom"], serde_json::json!([told["default"][0]]));
    assert_eq!(told["appraise"]["fixed"], "secure boot is on");
    assert_eq!(output.status.code(), Some(0));
}
