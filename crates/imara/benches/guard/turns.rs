//! The subjects take turns, each between two turns without a guard, so that whatever else the machine does meets them alike: every
//! figure is a ratio to the two turns beside it, and the median over the rounds.

use super::place::{Place, SIZE};
use super::subject::{self, Fapolicyd, Running};
use super::table::{Row, Rows};
use super::work;
use imara_engine::crypto::{self, PublicKey, SigningKey};
use imara_format::hash::HashAlgorithm;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Nanoseconds for each operation.
#[derive(Debug, Clone, Copy)]
struct Cost {
    one: f64,
    each: f64,
    execute: f64,
}

impl Cost {
    /// Between two.
    fn between(self, other: Self) -> Self {
        let middle = |one: f64, two: f64| f64::midpoint(one, two);
        Self {
            one: middle(self.one, other.one),
            each: middle(self.each, other.each),
            execute: middle(self.execute, other.execute),
        }
    }
}

/// What the rounds gave, a value a round.
#[derive(Debug, Default)]
struct Series(Vec<f64>);

impl Series {
    fn median(&self) -> f64 {
        work::median(self.0.clone())
    }

    /// The half of the rounds in the middle.
    fn spread(&self) -> (f64, f64) {
        (work::percentile(self.0.clone(), 25), work::percentile(self.0.clone(), 75))
    }

    fn ratio(&self) -> String {
        let (low, high) = self.spread();
        format!("{:.3} x ({low:.3} to {high:.3})", self.median())
    }

    fn microseconds(&self) -> String {
        let (low, high) = self.spread();
        format!("{:.2} µs ({:.2} to {:.2})", self.median() / 1e3, low / 1e3, high / 1e3)
    }
}

/// What is opened and executed.
struct Work {
    place: Place,
    /// Opened first, by whoever has just been started.
    warm_up: Vec<PathBuf>,
    digests: Vec<PathBuf>,
    signed: Vec<PathBuf>,
    policy: PathBuf,
    executions: usize,
}

impl Work {
    fn prepare(directory: &Path, files: usize, executions: usize) -> Self {
        let place = Place::new(directory, (3 * files * (SIZE + 4096) + (256 << 20)) as u64, 3 * files + 4000);
        let warm_up = place.small_files("warm-up", files, SIZE);
        let digests = place.small_files("digests", files, SIZE);
        let signed = place.small_files("signed", files, SIZE);
        place.programs(&["/usr/bin/true".into()]);
        ["warm-up", "digests"].iter().for_each(|folder| place.hash(folder));
        ["signed", "bin", "lib"].iter().for_each(|folder| place.sign(folder));
        let policy = place.policy(
            "policy",
            &[
                "appraise func=BPRM_CHECK appraise_type=imasig",
                "appraise func=MMAP_CHECK appraise_type=imasig",
                "appraise func=FILE_CHECK",
            ],
        );
        place.settle();
        Self { place, warm_up, digests, signed, policy, executions }
    }

    /// Reads all content: whoever opens it next, or hashes it, finds it where the others found it. A hypervisor can take a page away that was not used
    /// for a while, and bringing one back lasts longer than all that is measured here.
    fn touch(&self) {
        for path in self.warm_up.iter().chain(&self.digests).chain(&self.signed) {
            std::hint::black_box(std::fs::read(path).expect("its content"));
        }
    }

    /// What was opened and executed before already.
    fn again(&self) -> Cost {
        let each = work::open_each(&self.signed);
        Cost { one: work::open_one(&self.signed[0]), each, execute: work::execute(&self.place, self.executions) }
    }
}

/// How often the subjects take turns.
fn rounds(usual: usize) -> usize {
    std::env::var("IMARA_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// On one CPU: all rows.
pub fn run(directory: &Path, rows: &mut Rows) {
    opens_and_executions(directory, rows, rounds(9), true);
}

/// On all CPUs.
pub fn run_light(directory: &Path, rows: &mut Rows) {
    opens_and_executions(directory, rows, rounds(5), false);
}

fn opens_and_executions(directory: &Path, rows: &mut Rows, rounds: usize, one_cpu: bool) {
    let work = Work::prepare(directory, 2000, 200);
    let place = &work.place;
    let fapolicyd = Fapolicyd::prepare(place);
    let verification = verification(place);
    work.again();
    let [mut floor_one, mut floor_each, mut floor_execute] = [(); 3].map(|()| Series::default());
    let [mut cached_one, mut cached_each, mut executed] = [(); 3].map(|()| Series::default());
    let [mut first_digest, mut first_signed, mut floor_first] = [(); 3].map(|()| Series::default());
    let mut hashing = Series::default();
    let [mut peer_one, mut peer_execute, mut less] = [(); 3].map(|()| Series::default());
    let mut without_peer = fapolicyd.as_ref().err().cloned();
    let mut bare = work.again();
    let mut bares = Series::default();
    for _ in 0..rounds {
        work.touch();
        let guard = subject::guard(place, &work.policy, &[]);
        work::open_each(&work.warm_up);
        let digest = work::open_each(&work.digests);
        let signature = work::open_each(&work.signed);
        // Twice: a file of the first pass may not have been let pass yet.
        work.again();
        let cached = work.again();
        drop(guard);
        let after = work.again();
        let beside = bare.between(after);
        bares.0.push(after.one);
        work.touch();
        hashing.0.push(read_and_hash(&work.digests));
        cached_one.0.push(cached.one / beside.one);
        cached_each.0.push(cached.each / beside.each);
        executed.0.push(cached.execute / beside.execute);
        first_digest.0.push(digest);
        first_signed.0.push(signature);
        let added = cached.one - beside.one;
        bare = after;

        work.touch();
        let listener = subject::floor(place);
        work::open_each(&work.warm_up);
        floor_first.0.push(work::open_each(&work.digests));
        let floor = work.again();
        drop(listener);
        let after = work.again();
        let beside = bare.between(after);
        floor_one.0.push(floor.one / beside.one);
        floor_each.0.push(floor.each / beside.each);
        floor_execute.0.push(floor.execute / beside.execute);
        bare = after;

        if let Ok(fapolicyd) = &fapolicyd
            && without_peer.is_none()
        {
            match fapolicyd.start(place) {
                Ok(running) => {
                    work.again();
                    let peer = work.again();
                    drop(running);
                    let after = work.again();
                    let beside = bare.between(after);
                    peer_one.0.push(peer.one / beside.one);
                    peer_execute.0.push(peer.execute / beside.execute);
                    // Less than a nanosecond cannot be told from nothing.
                    less.0.push((peer.one - beside.one) / added.max(1.0));
                    bare = after;
                }
                Err(why) => without_peer = Some(why),
            }
        }
    }
    rows.push(Row::told("open and close of one file, no guard", bares.microseconds()));
    let met = cached_one.median() <= 1.2;
    rows.push(Row::held_to("the same, judged before, under Imara", cached_one.ratio(), "≤ 1.20 x".into(), met));
    rows.push(Row::told("the same, 2,000 files", cached_each.ratio()));
    rows.push(Row::told("the same, one file, under a listener that allows all", floor_one.ratio()));
    rows.push(Row::told("the same, 2,000 files, under that listener", floor_each.ratio()));
    match &without_peer {
        None => {
            rows.push(Row::told("the same, one file, under fapolicyd", peer_one.ratio()));
            let measured = format!("{:.0} x less ({:.0} to {:.0})", less.median(), less.spread().0, less.spread().1);
            let met = less.median() >= 40.0;
            rows.push(Row::held_to("what Imara adds to it, against fapolicyd", measured, "≥ 40 x less".into(), met));
        }
        Some(why) => rows.push(Row::told("under fapolicyd", format!("skipped: {why}"))),
    }
    rows.push(Row::told("first open of 8 KiB under that listener", floor_first.microseconds()));
    for (name, first, limit) in [
        ("first open of 8 KiB, digest label", &first_digest, hashing.median()),
        ("first open of 8 KiB, RSA-2048 signature", &first_signed, hashing.median() + verification),
    ] {
        let most = 1.5 * floor_first.median() + limit / 0.8;
        let (needed, met) = (format!("≤ {:.1} µs", most / 1e3), first.median() <= most);
        rows.push(Row::held_to(name, first.microseconds(), needed, met));
    }
    rows.push(Row::told("  the limit: reading and SHA-256", hashing.microseconds()));
    rows.push(Row::told("  the limit: RSA-2048", format!("{:.2} µs", verification / 1e3)));
    let (name, measured) = ("fork and exec of a known program", executed.ratio());
    // On all CPUs the kernel's placing of parent and child is all that is seen.
    if one_cpu {
        rows.push(Row::held_to(name, measured, "≤ 1.03 x".into(), executed.median() <= 1.03));
    } else {
        rows.push(Row::told(name, measured));
    }
    rows.push(Row::told("the same under a listener that allows all", floor_execute.ratio()));
    if without_peer.is_none() {
        rows.push(Row::told("the same under fapolicyd", peer_execute.ratio()));
    }
}

/// Nanoseconds for reading and hashing a small file that is in the page cache, and not in the caches of its processor.
fn read_and_hash(paths: &[PathBuf]) -> f64 {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; SIZE];
    let mut times = Vec::new();
    for some in paths.chunks(50) {
        let files: Vec<_> = some.iter().map(|path| std::fs::File::open(path).expect("a file")).collect();
        let start = Instant::now();
        for file in &files {
            file.read_exact_at(&mut buffer, 0).expect("its content");
            std::hint::black_box(crypto::hash(HashAlgorithm::Sha256, &[&buffer]).expect("SHA-256"));
        }
        times.push(start.elapsed().as_nanos() as f64 / files.len() as f64);
    }
    work::median(times)
}

/// Nanoseconds for verifying a signature.
fn verification(place: &Place) -> f64 {
    let key = std::fs::read(place.at("keys/privkey_ima.pem")).expect("a key");
    let key = SigningKey::from_pem(&key, None).expect("a key");
    let digest = crypto::hash(HashAlgorithm::Sha256, &[b"some"]).expect("SHA-256");
    let signature = key.sign(&digest).expect("a signature");
    let certificate = std::fs::read(place.at("keys/x509_ima.der")).expect("a certificate");
    let public = PublicKey::from_bytes(&certificate).expect("a certificate");
    timed(|| public.verify(&digest, &signature).expect("a good signature"))
}

/// Nanoseconds that something takes.
fn timed(mut act: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        (0..20).for_each(|_| act());
        start.elapsed().as_nanos() as f64 / 20.0
    };
    work::median((0..50).map(once).collect())
}

/// The compile: CPU time of all that take part, because other load does not change it.
pub fn run_compile(directory: &Path, rows: &mut Rows) {
    if !Path::new("/usr/bin/gcc").exists() {
        rows.push(Row::told("200 files compiled", "skipped: gcc is not installed".into()));
        return;
    }
    let place = Place::new(directory, 512 << 20, 20_000);
    let include_folders = place.project();
    for folder in ["bin", "lib"] {
        place.sign(folder);
    }
    place.settle();
    let policy = place.policy(
        "policy",
        &["appraise func=BPRM_CHECK appraise_type=imasig", "appraise func=MMAP_CHECK appraise_type=imasig"],
    );
    let fapolicyd = Fapolicyd::prepare(&place);
    let mut without_peer = fapolicyd.as_ref().err().cloned();
    let with = |running: Option<Running>| {
        let before = running.as_ref().map_or(0.0, Running::cpu);
        let cpu = work::compile(&place, &include_folders);
        let guard = running.as_ref().map_or(0.0, Running::cpu) - before;
        cpu.map(|cpu| cpu + guard)
    };
    let bare_turn = || with(None).expect("the compiler works without a guard");
    bare_turn();
    let [mut ours, mut floor, mut peer, mut bares] = [(); 4].map(|()| Series::default());
    let mut bare = bare_turn();
    for _ in 0..rounds(5) {
        let mut turn = |running: Running, series: &mut Series| {
            let cost = with(Some(running));
            let after = bare_turn();
            series.0.extend(cost.map(|cost| cost / f64::midpoint(bare, after)));
            bares.0.push(after * 1e9);
            bare = after;
            cost.is_some()
        };
        assert!(turn(subject::guard(&place, &policy, &[]), &mut ours), "Imara refuses a part of the compiler");
        assert!(turn(subject::floor(&place), &mut floor), "the compiler works where everything is allowed");
        if let Ok(fapolicyd) = &fapolicyd
            && without_peer.is_none()
        {
            match fapolicyd.start(&place) {
                Ok(running) => {
                    if !turn(running, &mut peer) {
                        let why = Fapolicyd::refused(&place);
                        without_peer = Some(format!("it refuses a part of the compiler: {why}"));
                    }
                }
                Err(why) => without_peer = Some(why),
            }
        }
    }
    rows.push(Row::told("200 files compiled, no guard", format!("{:.2} s of CPU", bares.median() / 1e9)));
    rows.push(Row::held_to("the same under Imara", ours.ratio(), "≤ 1.04 x".into(), ours.median() <= 1.04));
    rows.push(Row::told("the same under a listener that allows all", floor.ratio()));
    match without_peer {
        None => rows.push(Row::told("the same under fapolicyd", peer.ratio())),
        Some(why) => rows.push(Row::told("under fapolicyd", format!("skipped: {why}"))),
    }
}
