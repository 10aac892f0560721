//! What is running now, judged by a policy and keys that are not in force yet: the programs of all processes and the libraries they
//! have mapped, as far as they are on watched file systems. A policy that would refuse these would stop the machine at the
//! next restart of a service.

use imara_engine::check::{Checker, File, Hook};
use imara_engine::explain::explain;
use imara_engine::keyring::Keyring;
use imara_engine::policy::{CompiledPolicy, Event};
use imara_format::policy::{Func, Mask};
use imara_linux::files;
use imara_linux::hooks::fanotify::Guard;
use imara_linux::opened::{OpenedFile, OpeningTask};
use serde::Serialize;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long is looked; what is left then is counted, not judged.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the policy would do to what is running.
#[derive(Debug, Default, Serialize)]
pub struct Running {
    /// Files judged.
    pub judged: usize,
    /// Files that could not be judged, in time or at all.
    pub not_judged: usize,
    /// What would be refused.
    pub refused: Vec<Refused>,
}

/// A file that runs now and would be refused.
#[derive(Debug, Serialize)]
pub struct Refused {
    /// The file.
    pub path: String,
    /// A process that uses it.
    pub pid: i32,
    /// The hook that would ask.
    pub func: &'static str,
    /// The rule, from 1.
    pub rule: usize,
    /// Why, in the kernel's words.
    pub cause: &'static str,
}

/// Judges what is running.
pub fn judge(checker: &Checker, policy: &CompiledPolicy, keys: &Keyring, guard: &Guard) -> Running {
    let mut running = Running::default();
    let mut seen = HashSet::new();
    let begun = Instant::now();
    for pid in processes() {
        for (func, place) in used_by(pid) {
            if !policy.wants(func) {
                continue;
            }
            // A process that has ended, or a mapping that is gone, runs no longer.
            let Ok(Some(file)) = files::open_regular_on(&place, |device| guard.watches(device)) else {
                continue;
            };
            let Ok(opened) = OpenedFile::new(file.as_fd()) else {
                continue;
            };
            let id = opened.id();
            if !seen.insert((id, func)) {
                continue;
            }
            if begun.elapsed() > PATIENCE {
                running.not_judged += 1;
                continue;
            }
            match refused(checker, policy, keys, &opened, pid, func) {
                Ok(refused) => {
                    running.judged += 1;
                    running.refused.extend(refused);
                }
                Err(_) => running.not_judged += 1,
            }
        }
    }
    running
}

fn refused(
    checker: &Checker,
    policy: &CompiledPolicy,
    keys: &Keyring,
    file: &OpenedFile<'_>,
    pid: i32,
    func: Func,
) -> std::io::Result<Option<Refused>> {
    let hook = Hook { func, mask: Mask::MAY_EXEC.bits() };
    let task = OpeningTask::new(pid);
    let facts = file.facts();
    let event = Event { func, mask: hook.mask, file: &facts, subject: &task, data: None };
    let decision = policy.decide(&event);
    let Some(rule) = decision.appraise else {
        return Ok(None);
    };
    let algorithms = decision.allowed_algorithms.as_ref();
    // What is known went by the keys in force.
    let known = checker.cache().lookup(file.id(), &file.stamp()?).filter(|_| keys.is_the_same(&checker.keys()));
    if known.is_some_and(|record| record.passes(decision.appraise_slot, decision.flags.requirement(), algorithms)) {
        return Ok(None);
    }
    let (evm, hash) = (checker.evm().map(|evm| &**evm), checker.log().hash());
    let explanation = explain(policy, keys, evm, hash, file, &task, hook)?;
    Ok(explanation.cause().map(|cause| Refused {
        path: String::from_utf8_lossy(&file.path()).into_owned(),
        pid,
        func: func.name(),
        rule: rule + 1,
        cause: cause.words(),
    }))
}

/// All processes but our own.
fn processes() -> impl Iterator<Item = i32> {
    let own = std::process::id().cast_signed();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != own)
}

/// What a process runs: its program, and what it has mapped executable.
fn used_by(pid: i32) -> Vec<(Func, PathBuf)> {
    let mut used = vec![(Func::BprmCheck, PathBuf::from(format!("/proc/{pid}/exe")))];
    let maps = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    let mut inodes = HashSet::new();
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(access), Some(_), Some(device), Some(inode)) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        if access.contains('x') && inode != "0" && inodes.insert((device.to_owned(), inode.to_owned())) {
            used.push((Func::MmapCheck, PathBuf::from(format!("/proc/{pid}/map_files/{range}"))));
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_its_program_and_its_libraries() {
        let used = used_by(std::process::id().cast_signed());
        assert_eq!(used[0].0, Func::BprmCheck);
        let program = std::env::current_exe().unwrap();
        assert_eq!(std::fs::read_link(&used[0].1).unwrap(), program);
        let mapped: Vec<_> = used.iter().filter_map(|(_, place)| std::fs::read_link(place).ok()).collect();
        assert!(mapped.iter().any(|path| path.to_string_lossy().contains("libc")), "{mapped:?}");
    }
}
