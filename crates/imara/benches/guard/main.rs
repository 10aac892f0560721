//! What guarding costs, in one run against no guard, against a listener that allows everything (the floor of any guard that is
//! asked each time) and against Debian's fapolicyd, where it is installed: a table of what was measured, what is needed, and whether
//! it is met. How to read and to repeat it: docs/performance.md.
//!
//! Needs root. Each section runs in a mount namespace and a pid namespace of its own, on a scratch image: fapolicyd's marks reach no
//! other process, and whatever hangs there ends with the namespace when the section's time is up.
//!
//! `IMARA_BENCH_ROUNDS` changes how often the subjects take turns, `IMARA_BENCH_SECTION` names the sections that are run.

mod known;
mod many;
mod place;
mod subject;
mod table;
mod turns;
mod work;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use table::{Row, Rows};

/// A part of the benchmark: what is asked of it, how its processes are scheduled, and how long it may take.
struct Section {
    name: &'static str,
    title: &'static str,
    scheduled: &'static [&'static str],
    run: fn(&Path, &mut Rows),
    most: Duration,
}

/// On one processor nobody else delays those who are measured, and nobody is woken elsewhere: what is left is the work.
const ONE_CPU: &[&str] = &["taskset", "-c", "0", "chrt", "-f", "5"];
const ALL_CPUS: &[&str] = &["nice", "-n", "-15"];

const SECTIONS: &[Section] = &[
    Section {
        name: "one-cpu",
        title: "one CPU: no time is spent waking another",
        scheduled: ONE_CPU,
        run: turns::run,
        most: Duration::from_secs(400),
    },
    Section {
        name: "all-cpus",
        title: "all CPUs: the kernel places guard and caller",
        scheduled: ALL_CPUS,
        run: turns::run_light,
        most: Duration::from_secs(300),
    },
    Section {
        name: "compile",
        title: "200 files are compiled, in CPU time of the compilers and the guard",
        scheduled: ONE_CPU,
        run: turns::run_compile,
        most: Duration::from_secs(400),
    },
    Section {
        name: "many",
        title: "many new files at once",
        scheduled: ALL_CPUS,
        run: many::run,
        most: Duration::from_secs(200),
    },
    Section {
        name: "known",
        title: "100,000 files known, and a list of as many entries",
        scheduled: ALL_CPUS,
        run: known::run,
        most: Duration::from_secs(600),
    },
];

/// Names the directory of the section that this process is to run.
const DIRECTORY: &str = "IMARA_BENCH_DIRECTORY";
const CHOICE: &str = "IMARA_BENCH_SECTION";

fn main() {
    if let Some(directory) = std::env::var_os("IMARA_BENCH_LISTENER") {
        subject::listen(Path::new(&directory));
    }
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let chosen = std::env::var(CHOICE).ok();
    let is_chosen =
        |section: &&Section| chosen.as_ref().is_none_or(|names| names.split(',').any(|n| n == section.name));
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let section = SECTIONS.iter().find(is_chosen).expect("a section");
        (section.run)(Path::new(&directory), &mut Rows);
        return;
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !root {
        println!("skipped: guard: needs root (it mounts an image and guards it)");
        return;
    }
    let mut all = Vec::new();
    for section in SECTIONS.iter().filter(is_chosen) {
        println!("\n{}", section.title);
        let mut rows = Vec::new();
        let ended = in_namespaces(section, &mut rows);
        table::print(&rows);
        all.extend(rows);
        if let Err(error) = ended {
            println!("  did not end well: {error}");
        }
    }
    table::summary(&all);
}

/// Runs a section in namespaces of its own, until it ends or its time is up.
fn in_namespaces(section: &Section, rows: &mut Vec<Row>) -> Result<(), String> {
    // Beside the build: a temporary file system could have too little room.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(section.scheduled)
        .arg(std::env::current_exe().map_err(|error| error.to_string())?)
        .env(DIRECTORY, directory.path())
        .env(CHOICE, section.name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("unshare: {error}"))?;
    let stdout = child.stdout.take().expect("a pipe");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + section.most;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => match Row::taken_over(&line) {
                Some(row) => rows.push(row),
                None => println!("  {line}"),
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                // All of its pid namespace ends with it.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it took longer than {} s and was ended", section.most.as_secs()));
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
