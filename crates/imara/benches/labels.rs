//! What labels on trees cost, against evmctl and AIDE in the same run on the same tree: wall time and CPU time of each, and how
//! many times the peer's wall time is ours.
//!
//! Needs evmctl; what needs root or AIDE is left out without them. `IMARA_BENCH_FILES` changes the number of files: 20,000, of
//! 20 KB in the middle. The times are the best of three, in turns; where a peer takes long, of one.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

const IMARA: &str = env!("CARGO_BIN_EXE_imara");

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

/// What is compared: the peer, ours, what is done before each, and how often.
struct Job<'j> {
    name: &'j str,
    /// How many times as fast it is to be.
    goal: f64,
    turns: u32,
    before: &'j dyn Fn(),
    peer: &'j dyn Fn(),
    ours: &'j dyn Fn(),
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
            let folder = bench.path(&format!("tree/{}", number / 100));
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
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn imara(&self, arguments: &[&str]) -> Command {
        let mut command = imara();
        let (verb, rest) = arguments.split_first().expect("a verb");
        command.args([verb, "-r", "--quiet"]).args(self.namespace()).args(rest).arg(self.path("tree"));
        command.env("IMARA_JOURNAL_DIR", self.path("runs"));
        command
    }

    fn namespace(&self) -> &'static [&'static str] {
        if self.root { &[] } else { &["--xattr-user"] }
    }

    fn evmctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("evmctl");
        command.args(arguments).args(self.namespace());
        command
    }

    /// Runs it with all files, as few times as the command line allows.
    fn with_all_files(&self, make: impl Fn() -> Command) {
        let mut paths = Vec::new();
        for folder in fs::read_dir(self.path("tree")).expect("the tree") {
            let folder = fs::read_dir(folder.expect("a folder").path()).expect("a folder");
            paths.extend(folder.map(|file| file.expect("a file").path()));
        }
        paths.chunks(8000).for_each(|paths| done(make().args(paths)));
    }

    fn run(&self) {
        let tree = self.path("tree");
        let clear = || done(&mut self.imara(&["clear", "--no-journal"]));
        let nothing = || {};
        println!(
            "{:<44} {:>16} {:>16} {:>8} {:>6}",
            format!("{} files", self.files),
            "peer",
            "imara",
            "faster",
            "goal"
        );
        let evmctl_hash = || done(self.evmctl(&["ima_hash", "-a", "sha256", "-r"]).arg(&tree));
        let hash = || done(&mut self.imara(&["hash"]));
        let (goal, turns) = (1.8, 3);
        row(&Job { name: "hash labels, warm: evmctl", goal, turns, before: &clear, peer: &evmctl_hash, ours: &hash });
        if self.root && fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
            let cold = || {
                clear();
                done(&mut Command::new("sync"));
                fs::write("/proc/sys/vm/drop_caches", "3").expect("root may");
            };
            let name = "hash labels, cold: evmctl";
            row(&Job { name, goal: 2.5, turns, before: &cold, peer: &evmctl_hash, ours: &hash });
        } else {
            println!("{:<44} skipped: caches cannot be dropped here", "hash labels, cold: evmctl");
        }
        self.aide(&nothing);
        for (kind, name, sign_goal, verify_goal) in [("rsa2048", "RSA-2048", 7.5, 2.5), ("p256", "P-256", 24.0, 2.2)] {
            let file = |name| self.path(kind).join(name).to_str().expect("text").to_owned();
            let (private, certificate) = (file("privkey_ima.pem"), file("x509_ima.der"));
            let theirs = || done(self.evmctl(&["ima_sign", "-a", "sha256", "-k", &private, "-r"]).arg(&tree));
            let ours = || done(&mut self.imara(&["sign", "-k", &private]));
            let (name, sign) = (format!("verify signatures, {name}: evmctl"), format!("sign, {name}: evmctl"));
            row(&Job { name: &sign, goal: sign_goal, turns: 1, before: &clear, peer: &theirs, ours: &ours });
            let theirs = || self.with_all_files(|| self.evmctl(&["ima_verify", "-k", &certificate]));
            let ours = || done(&mut self.imara(&["verify", "-k", &certificate]));
            row(&Job { name: &name, goal: verify_goal, turns, before: &nothing, peer: &theirs, ours: &ours });
        }
        self.evm();
    }

    /// A check that finds nothing changed.
    fn aide(&self, nothing: &dyn Fn()) {
        let name = "check against digests, unchanged: aide";
        if !has("aide") {
            return println!("{name:<44} skipped: aide is not installed");
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
        done(&mut self.imara(&["hash"]));
        let (peer, ours) = (|| aide("--check"), || done(&mut self.imara(&["verify"])));
        row(&Job { name, goal: 4.0, turns: 3, before: nothing, peer: &peer, ours: &ours });
    }

    /// evmctl verifies one file a process, so a part of the tree says it.
    fn evm(&self) {
        let name = "verify portable EVM signatures: evmctl";
        if !self.root {
            return println!("{name:<44} skipped: needs root");
        }
        let part = self.path("tree").join("0");
        let file = |name| self.path("p256").join(name).to_str().expect("text").to_owned();
        let (private, certificate) = (file("privkey_ima.pem"), file("x509_ima.der"));
        let evmctl = || self.evmctl(&["sign", "-o", "-a", "sha256", "--imahash", "-k", &private]);
        let files = || fs::read_dir(&part).expect("a folder").map(|file| file.expect("a file").path());
        files().for_each(|path| done(evmctl().arg(path)));
        let theirs = || files().for_each(|path| done(self.evmctl(&["verify", "-k", &certificate]).arg(path)));
        let ours = || done(imara().args(["evm", "verify", "-r", "--quiet", "-k", &certificate]).arg(&part));
        row(&Job { name, goal: 50.0, turns: 3, before: &|| {}, peer: &theirs, ours: &ours });
    }
}

fn imara() -> Command {
    Command::new(IMARA)
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
        for (cost, act) in [(&mut peer, job.peer), (&mut ours, job.ours)] {
            (job.before)();
            let new = measured(act);
            let better = cost.is_none_or(|old: Cost| new.wall < old.wall);
            *cost = if better { Some(new) } else { *cost };
        }
    }
    let (Some(peer), Some(ours)) = (peer, ours) else { return };
    let shown = |cost: Cost| format!("{:.2} s ({:.2})", cost.wall, cost.cpu);
    let times = peer.wall / ours.wall;
    let (peer, ours) = (shown(peer), shown(ours));
    println!("{:<44} {peer:>16} {ours:>16} {times:>7.1}x {:>5}x", job.name, job.goal);
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
