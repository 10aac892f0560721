//! What labels on trees cost, against evmctl and AIDE in the same run on the same tree: wall time and CPU time of each, how many
//! times the peer's are ours, and whether that is what is asked for.
//!
//! Needs evmctl; what needs root or AIDE is left out without them. `IMARA_BENCH_FILES` changes the number of files: 20,000, of
//! 20 KB in the middle; `IMARA_BENCH_PROGRAM` measures another build. The times are the best of three, in turns, and for each file: of what
//! takes a peer long it is given a fifth of the tree or less, and Imara all of it. As root all runs at a high priority, so that what else the machine does
//! counts for little.
//!
//! What is asked for is wall time on two cores. The ratio of the CPU times is what a busy machine changes least; evmctl and AIDE use one
//! core, so on idle ones the ratio of the wall times is as many times that as there are cores, at most.

use imara_format::hash::HashAlgorithm;
use imara_format::label::encode_digest;
use imara_linux::files;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

fn main() {
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if !has("evmctl") {
        println!("skipped: labels: evmctl is not installed");
        return;
    }
    let files = std::env::var("IMARA_BENCH_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    Bench::prepare(files).run();
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A tree, and keys.
struct Bench {
    directory: tempfile::TempDir,
    files: usize,
    root: bool,
}

/// Seconds that pass, and seconds of CPU.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

/// With how many files what is done.
type Side<'s> = (usize, &'s dyn Fn());

/// What is compared: the peer and ours, what is done before each, and how often.
struct Job<'j> {
    name: &'j str,
    /// How many times as fast it is to be.
    needed: f64,
    turns: u32,
    before: &'j dyn Fn(),
    peer: Side<'j>,
    ours: Side<'j>,
}

impl Bench {
    fn prepare(files: usize) -> Self {
        // Beside the build: a temporary file system may keep no attributes.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
        let bench = Self { directory, files, root };
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let pool = (0..1 << 20).flat_map(|_| next().to_le_bytes()).collect::<Vec<u8>>();
        for number in 0..files {
            let part = if number < bench.part() { "part" } else { "rest" };
            let folder = bench.path(&format!("tree/{part}/{}", number / 100));
            fs::create_dir_all(&folder).expect("a folder");
            // Log-normal, as files are: 2^10 to 2^16 bytes, 2^14 in the middle.
            let bell = (0..6).map(|_| (next() % 1000) as f64 / 1000.0).sum::<f64>() / 6.0;
            let size = 2_f64.powf(10.0 + 8.0 * bell).min(65536.0) as usize;
            let start = next() as usize % (pool.len() - size);
            fs::write(folder.join(number.to_string()), &pool[start..start + size]).expect("a file");
        }
        for kind in ["rsa2048", "p256"] {
            done(imara().args(["key", "generate", "--quiet", "--type", kind, "--out"]).arg(bench.path(kind)));
        }
        if root {
            // What fails costs some exactness alone.
            let _ = Command::new("renice").args(["-n", "-15", "-p", &std::process::id().to_string()]).output();
        }
        bench
    }

    /// How many files are enough for what takes long.
    fn part(&self) -> usize {
        (self.files / 5).next_multiple_of(100).min(self.files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key(&self, kind: &str, name: &str) -> String {
        self.path(kind).join(name).to_str().expect("text").to_owned()
    }

    fn imara(&self, arguments: &[&str], tree: &Path) {
        let mut command = imara();
        let (verb, rest) = arguments.split_first().expect("a verb");
        command.args([verb, "-r", "--quiet"]).args(self.namespace()).args(rest).arg(tree);
        done(command.env("IMARA_JOURNAL_DIR", self.path("runs")));
    }

    fn namespace(&self) -> &'static [&'static str] {
        if self.root { &[] } else { &["--xattr-user"] }
    }

    fn evmctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("evmctl");
        command.args(arguments).args(self.namespace());
        command
    }

    /// The files of the tree, or of a part of it, in some order.
    fn paths(&self, tree: &Path) -> Vec<PathBuf> {
        let (mut paths, mut folders) = (Vec::with_capacity(self.files), vec![tree.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() { &mut folders } else { &mut paths }.push(path);
            }
        }
        paths
    }

    fn run(&self) {
        let (tree, part) = (self.path("tree"), self.path("tree/part"));
        let (all, some) = (self.files, self.part());
        let clear = || self.imara(&["clear", "--no-journal"], &tree);
        let head = format!("{all} files; µs for each, and of CPU");
        println!("{head:<42} {:>15} {:>15} {:>6} {:>6} {:>7} {:>4}", "peer", "imara", "wall", "CPU", "needed", "met");
        let evmctl_hash = || done(self.evmctl(&["ima_hash", "-a", "sha256", "-r"]).arg(&tree));
        let hash = || self.imara(&["hash"], &tree);
        let (peer, ours, turns): (Side<'_>, Side<'_>, _) = ((all, &evmctl_hash), (all, &hash), 3);
        row(&Job { name: "hash labels, warm: evmctl", needed: 1.8, turns, before: &clear, peer, ours });
        if self.root && fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
            let cold = || {
                clear();
                done(&mut Command::new("sync"));
                fs::write("/proc/sys/vm/drop_caches", "3").expect("root may");
            };
            row(&Job { name: "hash labels, cold: evmctl", needed: 2.5, turns, before: &cold, peer, ours });
        } else {
            println!("{:<42} skipped: caches cannot be dropped here", "hash labels, cold: evmctl");
        }
        self.limit(&clear, &hash);
        self.aide();
        for (kind, name, sign_needed, verify_needed) in
            [("rsa2048", "RSA-2048", 7.5, 2.5), ("p256", "P-256", 24.0, 2.2)]
        {
            let (private, certificate) = (self.key(kind, "privkey_ima.pem"), self.key(kind, "x509_ima.der"));
            let theirs = || done(self.evmctl(&["ima_sign", "-a", "sha256", "-k", &private, "-r"]).arg(&part));
            let ours = || self.imara(&["sign", "-k", &private], &tree);
            let (verify, sign) = (format!("verify signatures, {name}: evmctl"), format!("sign, {name}: evmctl"));
            let (peer, ours): (Side<'_>, Side<'_>) = ((some, &theirs), (all, &ours));
            row(&Job { name: &sign, needed: sign_needed, turns: 2, before: &clear, peer, ours });
            let paths = self.paths(&tree);
            // As many as a command line holds.
            let verified = |paths: &[PathBuf]| done(self.evmctl(&["ima_verify", "-k", &certificate]).args(paths));
            let theirs = || paths.chunks(8000).for_each(verified);
            let ours = || self.imara(&["verify", "-k", &certificate], &tree);
            let (peer, ours): (Side<'_>, Side<'_>) = ((all, &theirs), (all, &ours));
            row(&Job { name: &verify, needed: verify_needed, turns, before: &|| {}, peer, ours });
        }
        self.evm(&clear);
    }

    /// How near one core comes to what the hash and the system calls that cannot be done without leave possible.
    fn limit(&self, clear: &dyn Fn(), hash: &dyn Fn()) {
        if !self.root {
            return println!("{:<42} skipped: needs root", "hash labels: share of one core's limit");
        }
        let paths = self.paths(&self.path("tree"));
        let bare = || {
            for path in &paths {
                let file = fs::File::open(path).expect("a file");
                let digest = files::digest(&file, HashAlgorithm::Sha256).expect("a digest");
                files::set_xattr(&file, "security.ima", &encode_digest(&digest)).expect("root may");
            }
        };
        let (mut limit, mut ours) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..3 {
            clear();
            let before = cpu_of_this_thread();
            bare();
            limit = limit.min(cpu_of_this_thread() - before);
            clear();
            ours = ours.min(measured(hash).cpu);
        }
        let (limit_each, ours_each) = (micros(limit, self.files), micros(ours, self.files));
        let (share, met) = (limit / ours * 100.0, if limit / ours >= 0.8 { "yes" } else { "no" });
        let name = "hash labels: CPU, share of the limit";
        println!("{name:<42} {limit_each:>15} {ours_each:>15} {:>6} {share:>5.0}% {:>7} {met:>4}", "", "80%");
    }

    /// A check that finds nothing changed.
    fn aide(&self) {
        let name = "check against digests, unchanged: aide";
        if !has("aide") {
            return println!("{name:<42} skipped: aide is not installed");
        }
        let (tree, folder) = (self.path("tree"), self.path("aide"));
        fs::create_dir(&folder).expect("a folder");
        let [config, database] = ["conf", "db"].map(|name| folder.join(name));
        let (shown, new) = (database.display(), folder.join("db.new"));
        let text = format!(
            "database_in=file:{shown}\ndatabase_out=file:{}\ngzip_dbout=no\nreport_url=stdout\n{} sha256\n",
            new.display(),
            tree.display()
        );
        fs::write(&config, text).expect("a file");
        let aide = |what: &str| done(Command::new("aide").arg("-c").arg(&config).arg(what));
        aide("--init");
        fs::rename(&new, &database).expect("aide made it");
        self.imara(&["hash"], &tree);
        let (peer, ours) = (|| aide("--check"), || self.imara(&["verify"], &tree));
        let (peer, ours): (Side<'_>, Side<'_>) = ((self.files, &peer), (self.files, &ours));
        row(&Job { name, needed: 4.0, turns: 3, before: &|| {}, peer, ours });
    }

    /// Contents and metadata.
    fn evm(&self, clear: &dyn Fn()) {
        let (sign, verify) = ("sign IMA and portable EVM, RSA-2048: evmctl", "verify portable EVM, RSA-2048: evmctl");
        if !self.root {
            return [sign, verify].iter().for_each(|name| println!("{name:<42} skipped: needs root"));
        }
        let (tree, part, some) = (self.path("tree"), self.path("tree/part"), self.part());
        let (private, certificate) = (self.key("rsa2048", "privkey_ima.pem"), self.key("rsa2048", "x509_ima.der"));
        let theirs = || done(self.evmctl(&["sign", "-o", "-a", "sha256", "--imasig", "-k", &private, "-r"]).arg(&part));
        let ours = || self.imara(&["sign", "--evm=portable", "-k", &private], &tree);
        let (peer, ours): (Side<'_>, Side<'_>) = ((some, &theirs), (self.files, &ours));
        row(&Job { name: sign, needed: 10.0, turns: 2, before: clear, peer, ours });
        // It verifies one file a process, so a few say it.
        let files = self.paths(&self.path("tree/part/0"));
        let theirs = || files.iter().for_each(|path| done(self.evmctl(&["verify", "-k", &certificate]).arg(path)));
        let ours = || done(imara().args(["evm", "verify", "-r", "--quiet", "-k", &certificate]).arg(&tree));
        let (peer, ours): (Side<'_>, Side<'_>) = ((files.len(), &theirs), (self.files, &ours));
        row(&Job { name: verify, needed: 50.0, turns: 3, before: &|| {}, peer, ours });
    }
}

fn imara() -> Command {
    let other = std::env::var_os("IMARA_BENCH_PROGRAM");
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_imara").into()))
}

fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next_back().unwrap_or_default();
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
}

/// Does a job in turns, and prints what it cost at best.
fn row(job: &Job<'_>) {
    let (mut peer, mut ours) = (None, None);
    for _ in 0..job.turns {
        for (cost, (_, act)) in [(&mut peer, job.peer), (&mut ours, job.ours)] {
            (job.before)();
            let new = measured(act);
            let best: &mut Cost = cost.get_or_insert(new);
            *best = Cost { wall: best.wall.min(new.wall), cpu: best.cpu.min(new.cpu) };
        }
    }
    let (Some(peer), Some(ours)) = (peer, ours) else { return };
    let shown = |cost: Cost, files| format!("{} ({})", micros(cost.wall, files), micros(cost.cpu, files));
    let scale = job.ours.0 as f64 / job.peer.0 as f64;
    let (wall, cpu) = (peer.wall / ours.wall * scale, peer.cpu / ours.cpu * scale);
    let (name, needed, met) = (job.name, job.needed, if wall >= job.needed { "yes" } else { "no" });
    let (peer, ours) = (shown(peer, job.peer.0), shown(ours, job.ours.0));
    println!("{name:<42} {peer:>15} {ours:>15} {wall:>5.1}x {cpu:>5.1}x {needed:>6}x {met:>4}");
}

/// For each file.
fn micros(seconds: f64, files: usize) -> String {
    format!("{:.0}", seconds * 1e6 / files as f64)
}

fn measured(act: &dyn Fn()) -> Cost {
    let (cpu, start) = (cpu_of_children(), Instant::now());
    act();
    Cost { wall: start.elapsed().as_secs_f64(), cpu: cpu_of_children() - cpu }
}

/// Seconds that the children that have ended spent computing.
fn cpu_of_children() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses; fields 16 and 17, in hundredths of a second.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Seconds that the calling thread has spent computing.
fn cpu_of_this_thread() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}
