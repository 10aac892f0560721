//! What a decision costs, against a plain loop over the rules in the same run, and what reading a long policy costs.
//!
//! Each policy decides 64 events in turn, so that the processor cannot learn one event by heart. Goals, on one core of a
//! machine of 2020: 1,000,000 decisions a second with 100 rules, 10,000 rules read in 100 ms.

#[path = "../tests/policy/first_match.rs"]
mod first_match;

use criterion::{BatchSize, Criterion, Throughput};
use first_match::FirstMatch;
use imara_engine::policy::{CompiledPolicy, Event, FileFacts, Subject};
use imara_format::policy::{Func, Policy, Target, builtin};
use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

const EVENTS: usize = 64;
const LONG: usize = 10_000;
const COMPILED: &str = "compiled";
const LOOP: &str = "plain loop";

fn main() {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("criterion");
    let mut criterion = Criterion::default()
        .output_directory(&output)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    let policies = policies();
    for (name, policy) in &policies {
        decide(&mut criterion, name, policy);
    }
    read(&mut criterion);
    criterion.final_summary();
    // `cargo test` runs benchmarks too, to see that they work; nothing is measured then.
    if std::env::args().any(|argument| argument == "--bench") {
        report(&output, &policies);
    }
}

struct Task {
    id: u32,
}

impl Subject for Task {
    fn uid(&self) -> u32 {
        self.id
    }
    fn gid(&self) -> u32 {
        self.id
    }
    fn euids(&self) -> [u32; 3] {
        [self.id; 3]
    }
    fn egids(&self) -> [u32; 3] {
        [self.id; 3]
    }
    fn can_setuid(&self) -> bool {
        self.id == 0
    }
    fn can_setgid(&self) -> bool {
        self.id == 0
    }
}

fn policies() -> Vec<(&'static str, Policy)> {
    let parse = |text: String| Policy::parse(text.as_bytes(), &Target::guard()).expect("rules of ours");
    let built_in = |name| builtin(name).expect("the kernel has it");
    vec![
        ("tcb", built_in("tcb")),
        ("appraise_tcb", built_in("appraise_tcb")),
        ("100 rules, typical", parse(typical())),
        ("100 rules, near the worst", parse(near_worst())),
    ]
}

/// Filesystems left out, then what some users, owners and hooks get, then the rest: most events are decided on the way.
fn typical() -> String {
    let mut text = builtin("tcb").expect("the kernel has it").to_string();
    for name in ["tmpfs", "overlay", "nfs", "cifs", "fuse", "squashfs", "iso9660", "vfat"] {
        writeln!(text, "dont_appraise fsname={name}\ndont_hash fsname={name}").expect("a string");
    }
    for id in 0..20 {
        writeln!(text, "dont_measure func=FILE_CHECK fowner={} uid={}", 2000 + id, 2000 + id).expect("a string");
        writeln!(text, "audit func=BPRM_CHECK mask=MAY_EXEC uid={} fowner>{id}", 1000 + id).expect("a string");
    }
    for func in ["BPRM_CHECK", "MMAP_CHECK", "MODULE_CHECK", "FIRMWARE_CHECK"] {
        writeln!(text, "appraise func={func} fsname=ext4 appraise_type=imasig").expect("a string");
    }
    text += &"appraise fowner=0 fsuuid=6e1a2b3c-4d5e-4f60-8172-839405162738\n".repeat(19);
    text + "hash func=FILE_CHECK fowner=0\n"
}

/// Rules of all classes whose last condition alone fails, for every event.
fn near_worst() -> String {
    (0..100).fold(String::new(), |mut text, number| {
        let action = ["measure", "appraise", "audit", "hash"][number % 4];
        writeln!(
            text,
            "{action} func=FILE_CHECK mask=^MAY_READ fsmagic=0xef53 fsname=ext4 fsuuid=07070707-0707-0707-0707-070707070707 \
             fowner<65534 fgroup<65534 euid<65534 egid={}",
            5000 + number
        )
        .expect("a string");
        text
    })
}

/// Events of several hooks, users, owners and filesystems; for the worst policy of one hook and one filesystem.
fn decide(criterion: &mut Criterion, name: &str, policy: &Policy) {
    let worst = name.ends_with("worst");
    let other = |number: usize| !worst && number.is_multiple_of(3);
    let files: Vec<_> = (0..EVENTS)
        .map(|number| FileFacts {
            owner: [0, 1000, 2007][number % 3],
            group: [0, 1000][number % 2],
            fsmagic: if other(number) { 0x0102_1994 } else { 0xef53 },
            fsname: if other(number) { "tmpfs" } else { "ext4" },
            fs_subtype: "",
            fsuuid: Some([7; 16]),
        })
        .collect();
    let tasks: Vec<_> = (0..EVENTS).map(|number| Task { id: [0, 1000, 1011, 2007, 3000][number % 5] }).collect();
    let hooks = [(Func::FileCheck, 4), (Func::BprmCheck, 1), (Func::MmapCheck, 1), (Func::FileCheck, 6)];
    let events: Vec<_> = (0..EVENTS)
        .map(|number| {
            let (func, mask) = if worst { (Func::FileCheck, 4) } else { hooks[number / 3 % hooks.len()] };
            Event { func, mask, file: &files[number], subject: &tasks[number], data: None }
        })
        .collect();
    let compiled = CompiledPolicy::new(policy.clone());
    let plain = FirstMatch::new(policy, false, false);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function(COMPILED, |bencher| {
        bencher.iter(|| {
            for event in &events {
                black_box(compiled.decide(black_box(event)));
            }
        });
    });
    group.bench_function(LOOP, |bencher| {
        bencher.iter(|| {
            for event in &events {
                black_box(plain.decide(black_box(event)));
            }
        });
    });
    group.finish();
}

fn read(criterion: &mut Criterion) {
    let text = long();
    let policy = Policy::parse(text.as_bytes(), &Target::guard()).expect("rules of ours");
    assert_eq!(policy.rules.len(), LONG);
    let mut group = criterion.benchmark_group("10000 rules");
    group.throughput(Throughput::Elements(LONG as u64)).sample_size(20);
    group.bench_function("read", |bencher| {
        bencher.iter(|| Policy::parse(black_box(text.as_bytes()), &Target::guard()));
    });
    group.bench_function(COMPILED, |bencher| {
        bencher.iter_batched(|| policy.clone(), CompiledPolicy::new, BatchSize::LargeInput);
    });
    group.finish();
}

fn long() -> String {
    let rules: Vec<_> =
        [typical(), near_worst()].iter().flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    rules.iter().cycle().take(LONG).fold(String::new(), |text, rule| text + rule + "\n")
}

/// What was just measured, side by side: the fastest sample of each, which other work of the machine disturbed least.
fn report(output: &Path, policies: &[(&str, Policy)]) {
    let nanoseconds = |group: &str, function: &str| {
        let text = std::fs::read(output.join(group).join(function).join("new/sample.json")).ok()?;
        let sample: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let numbers = |key: &str| sample[key].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64);
        numbers("times").zip(numbers("iters")).map(|(time, iterations)| time / iterations).min_by(f64::total_cmp)
    };
    println!("{:28}{:>12}{:>14}{:>16}{:>10}", "a decision", COMPILED, LOOP, "decisions/s", "ratio");
    for (name, _) in policies {
        let (Some(compiled), Some(plain)) = (nanoseconds(name, COMPILED), nanoseconds(name, LOOP)) else { continue };
        let (compiled, plain) = (compiled / EVENTS as f64, plain / EVENTS as f64);
        println!("{name:28}{compiled:>9.0} ns{plain:>11.0} ns{:>16.0}{:>9.1}x", 1e9 / compiled, plain / compiled);
    }
    let group = "10000 rules";
    if let (Some(read), Some(compile)) = (nanoseconds(group, "read"), nanoseconds(group, COMPILED)) {
        println!("10000 rules: read in {:.1} ms, compiled in {:.1} ms", read / 1e6, compile / 1e6);
    }
}
