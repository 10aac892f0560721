//! What guarding costs: opening one file again and again, opening many files, and executing a program, with no guard, with
//! the guard when it sees a file for the first time, with its verdict cached, and under a listener that allows everything
//! (the floor of any guard that is asked). All in one run, as ratios to no guard.
//!
//! Needs root. It makes an ext4 image in the temporary directory and guards nothing else. `IMARA_BENCH_FILES` changes the
//! number of files, `IMARA_BENCH_TPM` (none, swtpm) whether a software TPM is extended for each.

use imara_linux::sys::fanotify::{EventBuffer, Mask, PermissionGroup, Told};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SIZE: usize = 8 << 10;
const PROGRAMS: usize = 200;

fn main() {
    if let Some(directory) = std::env::var_os("IMARA_BENCH_LISTENER") {
        listen(Path::new(&directory));
    }
    // `cargo test` runs benchmarks too, to see that they build.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !root {
        println!("skipped: guard: needs root (it mounts an image and guards it)");
        return;
    }
    let number =
        |name: &str, usual: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let bench = Bench::prepare(number("IMARA_BENCH_FILES", 20_000));
    bench.run();
}

/// Allows everything, until it is ended or two minutes have passed.
fn listen(directory: &Path) -> ! {
    let group = PermissionGroup::open().expect("a permission group");
    let directory = File::open(directory).expect("the directory");
    group.watch_filesystem(directory.as_fd(), Mask::OPEN.and(Mask::OPEN_EXEC)).expect("a mark");
    println!("ready");
    let mut buffer = EventBuffer::new(32);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(120) {
        let result = group.read(&mut buffer, |told| {
            if let Told::Asked(event) = told {
                group.answer(event.file.as_fd(), true).expect("an answer");
            }
        });
        result.expect("events");
    }
    std::process::exit(0);
}

struct Bench {
    directory: tempfile::TempDir,
    files: usize,
}

/// Nanoseconds for each operation.
struct Row {
    name: &'static str,
    open_one: f64,
    open_many: f64,
    execute: f64,
}

fn command(name: &str, arguments: &[&str]) {
    let status = Command::new(name).args(arguments).stdout(Stdio::null()).status().expect(name);
    assert!(status.success(), "{name} {arguments:?}: {status}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

impl Bench {
    fn mount(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    fn imara() -> Command {
        Command::new(env!("CARGO_BIN_EXE_imara"))
    }

    fn prepare(files: usize) -> Self {
        let bench = Self { directory: tempfile::tempdir().expect("a temporary directory"), files };
        let at = |name: &str| bench.directory.path().join(name);
        let bytes = (files * (SIZE + 4096) + PROGRAMS * (64 << 10) + (64 << 20)) as u64;
        File::create(at("image")).and_then(|image| image.set_len(bytes)).expect("an image");
        let inodes = (files + PROGRAMS + 1000).to_string();
        command("mkfs.ext4", &["-q", "-F", "-N", &inodes, text(&at("image"))]);
        std::fs::create_dir(bench.mount()).expect("a mount point");
        command("mount", &["-o", "loop", text(&at("image")), text(&bench.mount())]);
        println!("preparing {files} files of {SIZE} bytes and {PROGRAMS} programs, signed with RSA-2048 …");
        for index in 0..files {
            let mut content = vec![0; SIZE];
            content[..8].copy_from_slice(&index.to_le_bytes());
            std::fs::write(bench.file(index), content).expect("a file");
        }
        for index in 0..PROGRAMS {
            std::fs::copy("/bin/true", bench.program(index)).expect("a program");
            // Each its own content, so that nothing is known of one from another.
            File::options()
                .append(true)
                .open(bench.program(index))
                .and_then(|mut program| program.write_all(&index.to_le_bytes()))
                .expect("a program");
        }
        let status = Self::imara().args(["key", "generate", "--out", text(&at("keys"))]).stdout(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "a key");
        let key = at("keys/privkey_ima.pem");
        let status = Self::imara().args(["sign", "-q", "-r", "-k", text(&key), text(&bench.mount())]).status();
        assert!(status.is_ok_and(|status| status.success()), "signatures");
        let tpm = std::env::var("IMARA_BENCH_TPM").unwrap_or_else(|_| "none".into());
        let measure = if tpm == "none" { "" } else { "measure func=FILE_CHECK\nmeasure func=BPRM_CHECK\n" };
        let appraise = "appraise func=FILE_CHECK appraise_type=imasig\nappraise func=BPRM_CHECK appraise_type=imasig\n";
        std::fs::write(at("policy"), format!("{measure}{appraise}")).expect("a policy");
        // A file that changed a moment ago is not cached: let all of them settle.
        std::thread::sleep(Duration::from_millis(100));
        bench
    }

    fn file(&self, index: usize) -> PathBuf {
        self.mount().join(format!("f{index}"))
    }

    fn program(&self, index: usize) -> PathBuf {
        self.mount().join(format!("p{index}"))
    }

    fn open(path: &Path) {
        drop(File::open(path).expect("an open"));
    }

    fn execute(path: &Path) {
        assert!(Command::new(path).status().expect("an exec").success());
    }

    /// Nanoseconds for each of `count` operations.
    fn time(count: usize, mut operation: impl FnMut(usize)) -> f64 {
        let start = Instant::now();
        for index in 0..count {
            operation(index);
        }
        start.elapsed().as_nanos() as f64 / count as f64
    }

    /// Every file and program once, in order: what is new to the guard, or not.
    fn pass(&self, name: &'static str, one: bool) -> Row {
        let files: Vec<PathBuf> = (0..self.files).map(|index| self.file(index)).collect();
        let programs: Vec<PathBuf> = (0..PROGRAMS).map(|index| self.program(index)).collect();
        let open_many = Self::time(self.files, |index| Self::open(&files[index]));
        let execute = Self::time(PROGRAMS, |index| Self::execute(&programs[index]));
        let open_one = if one { Self::time(20_000, |_| Self::open(&files[0])) } else { f64::NAN };
        Row { name, open_one, open_many, execute }
    }

    /// The best of five passes: what else the machine does only ever adds.
    fn passes(&self, name: &'static str) -> Row {
        let rows: Vec<Row> = (0..5).map(|_| self.pass(name, true)).collect();
        let best = |value: fn(&Row) -> f64| rows.iter().map(value).fold(f64::INFINITY, f64::min);
        Row {
            name,
            open_one: best(|row| row.open_one),
            open_many: best(|row| row.open_many),
            execute: best(|row| row.execute),
        }
    }

    fn run(&self) {
        // Whatever the page cache lacks is read now.
        self.pass("warm up", true);
        let none = self.passes("no guard");
        let listener = Command::new(std::env::current_exe().expect("our own path"))
            .env("IMARA_BENCH_LISTENER", self.mount())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the listener");
        let listener = Running::new(listener);
        let floor = self.passes("floor: a listener that allows everything");
        drop(listener);
        let tpm = std::env::var("IMARA_BENCH_TPM").unwrap_or_else(|_| "none".into());
        let at = |name: &str| self.directory.path().join(name);
        let guard = Self::imara()
            .args(["guard", "--watch", text(&self.mount()), "--policy", text(&at("policy"))])
            .args(["--key", text(&at("keys/x509_ima.der")), "--tpm", &tpm, "--runtime-dir", text(&at("run"))])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the guard");
        let guard = Running::new(guard);
        let cold = self.pass("guard, first time (hash, RSA-2048)", false);
        let cached = self.passes("guard, verdict cached");
        drop(guard);
        println!("\nnanoseconds for each operation (times no guard), TPM {tpm}\n");
        println!("{:<42} {:>18} {:>18} {:>20}", "", "open+close, one", format!("{} files", self.files), "fork+exec");
        for row in [&none, &floor, &cold, &cached] {
            let cell = |value: f64, base: f64| {
                if value.is_nan() { "–".into() } else { format!("{value:.0} ({:.2})", value / base) }
            };
            println!(
                "{:<42} {:>18} {:>18} {:>20}",
                row.name,
                cell(row.open_one, none.open_one),
                cell(row.open_many, none.open_many),
                cell(row.execute, none.execute),
            );
        }
        let above = cold.open_many - floor.open_many;
        println!("\nfirst open above the floor: {above:.0} ns for {SIZE} bytes hashed and one signature verified");
        println!("a cached open costs {:.2} times a bare one", cached.open_many / none.open_many);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left mounted keeps the image alive; there is nothing more that could be done.
        let _ = Command::new("umount").arg(self.mount()).status();
    }
}

/// A process that has said `ready`; it is ended in order when dropped, and its software TPM with it.
struct Running(Child);

impl Running {
    fn new(mut child: Child) -> Self {
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The listener has no order to end in; the guard has.
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}
