//! 100,000 files known: what that takes in memory, and how long a guard takes to resume a list of as many entries.

use super::place::{Place, imara};
use super::subject;
use super::table::{Row, Rows};
use super::work;
use std::path::Path;
use std::time::Instant;

const FILES: usize = 100_000;

pub fn run(directory: &Path, rows: &mut Rows) {
    let place = Place::new(directory, 1 << 30, FILES + 4000);
    let files = place.small_files("files", FILES, 16);
    place.hash("files");
    place.settle();
    let policy = place.policy("policy", &["measure func=FILE_CHECK", "appraise func=FILE_CHECK"]);
    let guard = subject::guard(&place, &policy, &["--tpm", "none"]);
    let start = Instant::now();
    work::open_each(&files);
    let took = start.elapsed().as_secs_f64();
    rows.push(Row::told(
        "100,000 files measured and appraised",
        format!("{:.1} s, {:.0} a second", took, FILES as f64 / took),
    ));
    let memory = memory(guard.pid());
    let needed = "< 48 MiB".into();
    rows.push(Row::held_to("memory of the guard then", format!("{memory:.1} MiB"), needed, memory < 48.0));
    guard.crash();
    let name = "start with a list of 100,000 entries, until ready";
    rows.push(resumed(&place, &policy, "none", name));
    if !Path::new("/usr/bin/swtpm").exists() {
        rows.push(Row::told("the same with a TPM", "skipped: swtpm is not installed".into()));
        return;
    }
    // A list of its own, which that TPM proves.
    std::fs::remove_dir_all(place.at("run")).expect("the first list");
    let guard = subject::guard(&place, &policy, &["--tpm", "swtpm"]);
    work::open_each(&files);
    guard.crash();
    rows.push(resumed(&place, &policy, "swtpm", "the same with a list that a TPM proves"));
}

/// How long a guard takes that resumes the list.
fn resumed(place: &Place, policy: &Path, tpm: &str, name: &str) -> Row {
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let guard = subject::guard(place, policy, &["--tpm", tpm]);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let entries =
            imara().args(["status", "--json", "--runtime-dir"]).arg(place.at("run")).output().expect("status");
        let text = String::from_utf8_lossy(&entries.stdout).into_owned();
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(
            status["list"]["entries"].as_u64().is_some_and(|entries| entries >= FILES as u64),
            "{}",
            status["list"]
        );
        assert!(tpm == "none" || status["list"]["chain"] == "whole", "{}", status["list"]);
        guard.crash();
    }
    let time = work::median(times);
    Row::held_to(name, format!("{time:.0} ms"), "< 200 ms".into(), time < 200.0)
}

/// What a process occupies, in MiB.
fn memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}
