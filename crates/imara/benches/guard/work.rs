//! What is done again and again, and how it is timed: in chunks, of which the one in the middle counts.

use super::place::Place;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value below which so many hundredths of them lie.
pub fn percentile(mut values: Vec<f64>, hundredths: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * hundredths / 100).copied().unwrap_or(f64::NAN)
}

/// Nanoseconds for each of `count` operations: the median of chunks of so many.
fn chunks(count: usize, each: usize, mut operation: impl FnMut(usize)) -> f64 {
    let mut times = Vec::with_capacity(count / each);
    for chunk in 0..count / each {
        let start = Instant::now();
        for index in 0..each {
            operation(chunk * each + index);
        }
        times.push(start.elapsed().as_nanos() as f64 / each as f64);
    }
    median(times)
}

fn open(path: &Path) {
    drop(File::open(path).expect("an open"));
}

/// Opens and closes one file.
pub fn open_one(path: &Path) -> f64 {
    chunks(40_000, 1000, |_| open(path))
}

/// Opens and closes each file once.
pub fn open_each(paths: &[PathBuf]) -> f64 {
    chunks(paths.len(), 50, |index| open(&paths[index]))
}

/// How long each open took, in nanoseconds.
pub fn opens_one_by_one(paths: &[PathBuf]) -> Vec<f64> {
    let timed = |path: &PathBuf| {
        let start = Instant::now();
        open(path);
        start.elapsed().as_nanos() as f64
    };
    paths.iter().map(timed).collect()
}

/// Forks and executes a program whose libraries lie beside it.
pub fn execute(place: &Place, count: usize) -> f64 {
    let mut command = Command::new(place.inside("bin/true"));
    command.env("LD_LIBRARY_PATH", place.inside("lib"));
    chunks(count, 10, |_| assert!(command.status().expect("an exec").success()))
}

/// Compiles the project; seconds of CPU that the compilers took, or `None` where one could not do its work.
pub fn compile(place: &Place, include_folders: &[PathBuf]) -> Option<f64> {
    let cpu = cpu_of_children();
    for index in 0..200 {
        if !place.compile(index, include_folders).status().is_ok_and(|status| status.success()) {
            return None;
        }
    }
    Some(cpu_of_children() - cpu)
}

/// Seconds of CPU that the children which have ended took.
fn cpu_of_children() -> f64 {
    // Behind the name in parentheses; fields 16 and 17.
    ticks("/proc/self/stat", 13)
}

/// Seconds of CPU that a process took so far: fields 14 and 15.
pub fn cpu_of(pid: u32) -> f64 {
    ticks(&format!("/proc/{pid}/stat"), 11)
}

/// Two fields of proc_pid_stat(5) in hundredths of a second, the first so many behind the name.
fn ticks(path: &str, skipped: usize) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(skipped).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
