//! `imara status --metrics`: the guard's counters in Prometheus's text format, for a scrape or for node_exporter's textfile
//! collector.
//!
//! Names that end in `_total` only grow while a guard runs; they begin at zero with it (`imara_start_time_seconds`).
//!
//! Source: the exposition format, version 0.0.4, prometheus.io/docs/instrumenting/exposition_formats.

use serde_json::Value;
use std::fmt::Write as _;

const SIMPLE: [(&str, &str, &str, &str); 31] = [
    ("start_time_seconds", "gauge", "When the guard started, in seconds since 1970.", "/started"),
    ("accesses_total", "counter", "Accesses that the policy was asked about.", "/counts/accesses"),
    (
        "cache_hits_total",
        "counter",
        "Answers that were known already, of those that the kernel asked for.",
        "/counts/known",
    ),
    ("files_hashed_total", "counter", "Files that were read and hashed.", "/counts/hashed"),
    ("refused_total", "counter", "Accesses that were refused.", "/counts/refused"),
    (
        "errors_total",
        "counter",
        "Files that could not be read, and entries that could not be listed or extended.",
        "/counts/errors",
    ),
    ("known_files", "gauge", "Files of which something is known.", "/counts/known_files"),
    (
        "audit_dropped_total",
        "counter",
        "Audit records that were dropped, as too many waited to be written.",
        "/counts/audit_dropped",
    ),
    ("audit_unwritten_total", "counter", "Audit records that could not be written.", "/counts/audit_unwritten"),
    ("events_total", "counter", "Permission events that came from the kernel.", "/kernel/events"),
    (
        "events_exempt_total",
        "counter",
        "Of these, from the guard's own threads and its software TPM.",
        "/kernel/exempt",
    ),
    (
        "events_lost_total",
        "counter",
        "Events that the kernel could not hand over; it has refused these accesses itself.",
        "/kernel/lost",
    ),
    (
        "queue_overflows_total",
        "counter",
        "Times that the kernel's queue was too full to take an event.",
        "/kernel/overflows",
    ),
    ("queue_depth", "gauge", "Accesses that wait for a decision now.", "/kernel/waiting"),
    ("overdue_total", "counter", "Decisions on which nothing moved for too long.", "/kernel/overdue"),
    (
        "late_labels",
        "gauge",
        "Files whose labels are to be written once their file system takes changes again.",
        "/kernel/late_labels",
    ),
    ("ignore_marks_total", "counter", "Inodes that the kernel was told not to ask about.", "/kernel/marks"),
    ("changes_total", "counter", "Changes that the kernel has told of.", "/kernel/changes"),
    ("leases", "gauge", "Read leases that are held.", "/kernel/leases"),
    ("leases_broken_total", "counter", "Leases that somebody broke who wants to write.", "/kernel/leases_broken"),
    ("file_systems_followed_total", "counter", "File systems that were taken under watch.", "/kernel/followed"),
    ("measurements", "gauge", "Entries of the measurement list.", "/list/entries"),
    ("violations", "gauge", "Violations among them.", "/list/violations"),
    (
        "measurements_not_in_tpm",
        "gauge",
        "Entries that the TPM has not taken; the list cannot be proven from the first one on.",
        "/list/not_in_tpm",
    ),
    ("tpm_extends_total", "counter", "Entries that were given to the TPM.", "/tpm/extends"),
    ("tpm_seconds_total", "counter", "How long the TPM took for them.", "/tpm/seconds"),
    ("software_tpm_restarts_total", "counter", "Software TPMs that ended before the guard.", "/tpm/restarts"),
    ("policy_rules", "gauge", "Rules in force.", "/policy/rules"),
    ("policy_since_seconds", "gauge", "Since when the policy is in force, in seconds since 1970.", "/policy/since"),
    ("sentinel_restarts_total", "counter", "Sentinels that ended before the guard.", "/sentinel/restarts"),
    ("keys", "gauge", "Keys that signatures are verified with.", "/keys"),
];

/// The metrics of a guard whose status this is; of none that runs, only that.
pub fn text(status: &Value) -> String {
    let mut out = String::new();
    let up = status["provider"] == "guard";
    head(&mut out, "up", "gauge", "Whether a guard runs and answers.");
    sample(&mut out, "up", &[], if up { "1" } else { "0" });
    if !up {
        return out;
    }
    for (name, kind, help, place) in SIMPLE {
        let value = match status.pointer(place) {
            Some(Value::Array(several)) => several.len().to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => continue,
        };
        head(&mut out, name, kind, help);
        sample(&mut out, name, &[], &value);
    }
    head(&mut out, "mode", "gauge", "1 for the mode in force.");
    for mode in imara_engine::check::Mode::ALL {
        let value = if status["mode"] == mode.name() { "1" } else { "0" };
        sample(&mut out, "mode", &[("mode", mode.name())], value);
    }
    head(&mut out, "sentinel_up", "gauge", "Whether a sentinel watches over the guard.");
    sample(&mut out, "sentinel_up", &[], if status["sentinel"]["pid"].is_null() { "0" } else { "1" });
    for (name, place, help) in [
        ("file_systems_watched", "watch", "File systems that are watched."),
        ("file_systems_not_watched", "not_watched", "File systems that should be watched and cannot be."),
        ("file_systems_not_mounted", "not_mounted", "Watched directories whose file system is not mounted now."),
    ] {
        head(&mut out, name, "gauge", help);
        sample(&mut out, name, &[], &status[place].as_array().map_or(0, Vec::len).to_string());
    }
    head(
        &mut out,
        "failed_total",
        "counter",
        "Accesses that did not pass, by hook and cause; refused or only recorded.",
    );
    for cause in status["causes"].as_array().into_iter().flatten() {
        let label = |name: &str| cause[name].as_str().unwrap_or_default();
        let verdict = if cause["refused"] == true { "refused" } else { "recorded" };
        let labels = [("func", label("func")), ("cause", label("cause")), ("verdict", verdict)];
        sample(&mut out, "failed_total", &labels, &cause["count"].to_string());
    }
    head(
        &mut out,
        "lock_waits_total",
        "counter",
        "Times that one of the guard's threads had to wait for another, by what they share.",
    );
    for (name, count) in status["waits"].as_object().into_iter().flatten() {
        sample(&mut out, "lock_waits_total", &[("lock", name)], &count.to_string());
    }
    histogram(&mut out, &status["kernel"]["latency"]);
    out
}

fn histogram(out: &mut String, latency: &Value) {
    const NAME: &str = "decision_duration_seconds";
    head(out, NAME, "histogram", "How long accesses waited for their answers.");
    let (Some(bounds), Some(counts)) = (latency["bounds_us"].as_array(), latency["counts"].as_array()) else {
        return;
    };
    let mut total = 0;
    for (index, count) in counts.iter().enumerate() {
        total += count.as_u64().unwrap_or(0);
        let bound = bounds.get(index).and_then(Value::as_u64);
        // Exact in decimal digits, which the quotient of two numbers need not be.
        let bound = bound.map_or("+Inf".to_owned(), |bound| {
            let text = format!("{}.{:06}", bound / 1_000_000, bound % 1_000_000);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        });
        sample(out, &format!("{NAME}_bucket"), &[("le", &bound)], &total.to_string());
    }
    sample(out, &format!("{NAME}_sum"), &[], &latency["seconds"].to_string());
    sample(out, &format!("{NAME}_count"), &[], &total.to_string());
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP imara_{name} {help}\n# TYPE imara_{name} {kind}");
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: &str) {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(out, "imara_{name}{labels} {value}");
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counters_and_the_histogram_are_in_the_text_format() {
        let status = json!({
            "provider": "guard", "mode": "log", "started": 7,
            "counts": { "accesses": 12, "known": 3 },
            "tpm": { "extends": 2, "seconds": 0.25 },
            "sentinel": { "pid": 4, "restarts": 0 },
            "watch": [1, 2],
            "waits": { "list": 3, "cache": 0 },
            "causes": [{ "func": "BPRM_CHECK", "cause": "missing-\"hash\"", "refused": true, "count": 5 }],
            "kernel": { "waiting": 1, "latency": { "bounds_us": [10, 1500, 3_000_000], "counts": [1, 2, 3, 4], "seconds": 1.5 } },
        });
        let text = text(&status);
        for line in [
            "# TYPE imara_up gauge\nimara_up 1",
            "# TYPE imara_accesses_total counter\nimara_accesses_total 12",
            "imara_cache_hits_total 3",
            "imara_queue_depth 1",
            "imara_tpm_seconds_total 0.25",
            "imara_mode{mode=\"log\"} 1",
            "imara_mode{mode=\"enforce\"} 0",
            "imara_sentinel_up 1",
            "imara_file_systems_watched 2",
            "imara_lock_waits_total{lock=\"list\"} 3\nimara_lock_waits_total{lock=\"cache\"} 0",
            "imara_failed_total{func=\"BPRM_CHECK\",cause=\"missing-\\\"hash\\\"\",verdict=\"refused\"} 5",
            "imara_decision_duration_seconds_bucket{le=\"0.00001\"} 1",
            "imara_decision_duration_seconds_bucket{le=\"0.0015\"} 3",
            "imara_decision_duration_seconds_bucket{le=\"3\"} 6",
            "imara_decision_duration_seconds_bucket{le=\"+Inf\"} 10",
            "imara_decision_duration_seconds_sum 1.5\nimara_decision_duration_seconds_count 10",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}: {text}");
        }
        // Each sample follows its own head, once.
        for head in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            assert_eq!(text.matches(&format!("{head}\n")).count(), 1, "{head}");
        }
    }

    #[test]
    fn without_a_guard_it_says_so() {
        assert!(text(&json!({ "provider": "none" })).ends_with("\nimara_up 0\n"));
    }
}
