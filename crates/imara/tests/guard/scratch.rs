//! A file system of its own for each test, and guards that watch nothing else.

use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use imara_format::label::encode_digest;
use imara_linux::files;
pub use rustix::process::Signal;
use rustix::process::{Pid, Resource, Rlimit, kill_process};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No single command or access may take longer, in a machine that QEMU translates either.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A guard that is older is killed.
pub const LIFETIME: Duration = Duration::from_secs(900);
/// A file that changed longer ago than this can be remembered by its times.
pub const SETTLED: Duration = Duration::from_millis(60);
/// The user who is nobody in particular.
pub const USER: u32 = 1000;
pub const EPERM: i32 = 1;
pub const IMARA: &str = env!("CARGO_BIN_EXE_imara");

pub const SIGNED_PROGRAMS: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK appraise_type=imasig\n";

/// What programs written in Rust or shell cannot do, or not for another user.
const TOOL: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* open FLAGS FILE TIMES: the first errno, or 0. */
static int opens(int flags, const char *path, int times) {
    while (times-- > 0) {
        int file = open(path, flags);
        if (file < 0) return errno;
        close(file);
    }
    return 0;
}

/* map FILE: a shared mapping that can be written; every line changes the last byte to and fro. */
static int map(const char *path) {
    struct stat stat;
    int file = open(path, O_RDWR);
    if (file < 0 || fstat(file, &stat)) return errno;
    char *bytes = mmap(0, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) return errno;
    close(file);
    puts("mapped");
    fflush(stdout);
    for (char line[80]; fgets(line, sizeof line, stdin);) {
        bytes[stat.st_size - 1] ^= 1;
        puts("changed");
        fflush(stdout);
    }
    return 0;
}

/* execute FILE: a mapping that can be executed; protect FILE: one that is made so afterwards. */
static int execute(const char *path, int afterwards) {
    int file = open(path, O_RDONLY);
    if (file < 0) return errno;
    char *bytes = mmap(0, 4096, afterwards ? PROT_READ : PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED || (afterwards && mprotect(bytes, 4096, PROT_READ | PROT_EXEC))) return errno;
    return 0;
}

/* Whether errno is a refusal; level 2 says EACCES as well. */
static int is_refused(void) {
    const char *level = getenv("IMARA_TEST_LEVEL");
    return errno == EPERM || (errno == EACCES && level && !strcmp(level, "2"));
}

/* make nameless|lock|node FILE: a new file, otherwise than by writing to it. */
static int make(const char *way, const char *path) {
    char descriptor[64], directory[4096];
    if (!strcmp(way, "node")) return mknod(path, S_IFREG | 0644, 0) ? errno : 0;
    if (!strcmp(way, "lock")) return open(path, O_RDONLY | O_CREAT, 0644) < 0 ? errno : 0;
    snprintf(directory, sizeof directory, "%s", path);
    *strrchr(directory, '/') = 0;
    int file = open(directory, O_TMPFILE | O_RDWR, 0644);
    if (file < 0 || write(file, "x", 1) != 1) return errno;
    snprintf(descriptor, sizeof descriptor, "/proc/self/fd/%d", file);
    if (linkat(AT_FDCWD, descriptor, AT_FDCWD, path, AT_SYMLINK_FOLLOW)) return errno;
    return open(path, O_RDONLY) < 0 ? errno : 0;
}

/* mix DIRECTORY FILES TIMES SEED: reads and runs its files; being refused is as good as not. */
static int mix(const char *directory, int files, int times, unsigned seed) {
    char path[4096], byte;
    for (int i = 0; i < times; i++) {
        snprintf(path, sizeof path, "%s/f%d", directory, rand_r(&seed) % files);
        if (rand_r(&seed) % 8) {
            int file = open(path, O_RDONLY);
            if (file < 0 ? !is_refused() : read(file, &byte, 1) != 1) return 1;
            if (file >= 0) close(file);
            continue;
        }
        pid_t child = vfork();
        if (child < 0) return 2;
        if (!child) {
            execl(path, path, (char *)0);
            _exit(is_refused() ? 0 : 3);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) return 4;
    }
    return 0;
}

int main(int count, char **arguments) {
    alarm(240);
    if (count == 5 && !strcmp(arguments[1], "open")) return opens(atoi(arguments[2]), arguments[3], atoi(arguments[4]));
    if (count == 3 && !strcmp(arguments[1], "map")) return map(arguments[2]);
    if (count == 3 && !strcmp(arguments[1], "execute")) return execute(arguments[2], 0);
    if (count == 3 && !strcmp(arguments[1], "protect")) return execute(arguments[2], 1);
    if (count == 4 && !strcmp(arguments[1], "make")) return make(arguments[2], arguments[3]);
    if (count == 6 && !strcmp(arguments[1], "mix"))
        return mix(arguments[2], atoi(arguments[3]), atoi(arguments[4]), atoi(arguments[5]));
    if (count == 3 && !strcmp(arguments[1], "load")) {
        if (dlopen(arguments[2], RTLD_NOW)) return 0;
        const char *why = dlerror();
        /* Refused when it was opened, or when it was to be mapped. */
        return strstr(why, strerror(EPERM)) || strstr(why, "failed to map segment") ? EPERM : 98;
    }
    return 99;
}
"#;

/// A file system of its own under a directory of its own, a key, and at most one guard.
pub struct Scratch {
    pub directory: tempfile::TempDir,
    pub mnt: PathBuf,
    pub run: PathBuf,
    pub imara: PathBuf,
    pub guards: Vec<Guard>,
    pub started: usize,
}

/// A guard that was started and is killed at the latest when this is dropped.
pub struct Guard {
    pub child: Arc<Mutex<Child>>,
    pub pid: u32,
    pub stderr: PathBuf,
    _life: Sender<()>,
}

/// How a start ended that should not succeed.
pub struct NoGuard {
    pub status: ExitStatus,
    pub stderr: String,
}

/// The scratch file system, or `return` with the reason why there is none.
macro_rules! scratch {
    ($name:literal) => {
        match $crate::scratch::Scratch::new() {
            Ok(scratch) => scratch,
            Err(reason) => {
                println!("skipped: {}: {reason}", $name);
                return;
            }
        }
    };
}

/// What every test needs and this machine lacks.
pub fn lacks() -> Option<String> {
    static LACKS: OnceLock<Option<String>> = OnceLock::new();
    LACKS
        .get_or_init(|| {
            if fs::metadata("/proc/self").map_or(1, |process| process.uid()) != 0 {
                return Some("needs root".into());
            }
            let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
            for program in ["mkfs.ext4", "mount", "umount", "cc", "setpriv", "swtpm", "sh"] {
                if !std::env::split_paths(&paths).any(|folder| folder.join(program).exists()) {
                    return Some(format!("needs {program}"));
                }
            }
            if !Path::new("/dev/loop-control").exists() {
                return Some("needs loop devices".into());
            }
            // That /proc cannot be guarded is found out only where fanotify gives permission events.
            let directory = tempfile::tempdir().ok()?;
            let policy = directory.path().join("policy");
            fs::write(&policy, "measure func=BPRM_CHECK\n").ok()?;
            let mut command = command(IMARA);
            command.args(["guard", "--watch", "/proc", "--tpm", "none", "--policy"]).arg(&policy);
            let tried = output(command.arg("--runtime-dir").arg(directory.path().join("run"))).ok()?;
            (tried.status.code() == Some(3)).then(|| format!("needs permission events: {}", text(&tried.stderr)))
        })
        .clone()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    command.env("PATH", paths).env_remove("IMARA_KEY_PASSPHRASE").env_remove("EVMCTL_KEY_PASSWORD");
    command.stdin(Stdio::null());
    command
}

/// Starts a program. Another test's thread that is between fork and exec can hold a descriptor for writing of a program
/// that has just been made, hence more than one try.
pub fn start(command: &mut Command) -> io::Result<Child> {
    let begun = Instant::now();
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && begun.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// Runs a program to its end, which must come within [`PATIENCE`].
pub fn output(command: &mut Command) -> io::Result<Output> {
    pub fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
        let mut stream = stream.unwrap();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            bytes
        })
    }
    let mut child = start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = ended(&mut child, PATIENCE);
    if status.is_none() {
        child.kill().unwrap();
    }
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let Some(status) = status else {
        let _ = child.wait();
        panic!("{command:?} hangs: {}{}", text(&stdout), text(&stderr));
    };
    Ok(Output { status, stdout, stderr })
}

pub fn ended(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return Some(status),
            None if begun.elapsed() > patience => return None,
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Runs a program that must succeed.
pub fn must(command: &mut Command) -> Output {
    let done = output(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}{}{}", done.status, text(&done.stdout), text(&done.stderr));
    done
}

/// Unmounts a file system, on which somebody may have a file open for a moment still: the guard, whose descriptor of an access is closed
/// after its answer, or a process that is being started.
pub fn unmount(place: impl AsRef<OsStr>) {
    let unmounted = || output(command("umount").arg(place.as_ref())).is_ok_and(|done| done.status.success());
    eventually("unmounted", PATIENCE, unmounted);
}

pub fn shell(script: &str) -> Output {
    must(command("sh").args(["-ec", script]))
}

/// Waits until something holds.
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether guards reach level 2, as `tests/vm/scenarios/level2-suite` says where they do: what is asked at level 1 is refused in the kernel then.
pub fn level_2() -> bool {
    std::env::var_os("IMARA_TEST_LEVEL").is_some_and(|level| level == "2")
}

/// How long something takes at most that waits for nothing slow: in a machine that QEMU translates all is slower.
pub fn soon(seconds: u64) -> Duration {
    Duration::from_secs(if level_2() { seconds * 6 } else { seconds })
}

/// The level of [`level_2`] for a guard whose answers are to be that level's, whatever the machine has.
pub fn level() -> [&'static str; 2] {
    ["--level", if level_2() { "2" } else { "1" }]
}

/// Whether this error's number is a refusal: by fanotify, which can say `EPERM` alone, or by the programs of level 2, which say `EACCES` as
/// IMA does.
pub fn is_refused(errno: i32) -> bool {
    const EACCES: i32 = 13;
    errno == EPERM || level_2() && errno == EACCES
}

pub fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(is_refused)
}

/// Whether a program is let run; it must succeed then.
pub fn runs(path: &Path) -> bool {
    let mut command = command(path);
    match output(&mut command) {
        Ok(done) => {
            assert!(done.status.success(), "{command:?}: {done:?}");
            true
        }
        Err(error) if is_refusal(&error) => false,
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// Whether a file may be opened.
pub fn opens(path: &Path) -> bool {
    match File::open(path) {
        Ok(_) => true,
        Err(error) if is_refusal(&error) => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

pub fn set_label(path: &Path, label: &[u8]) {
    files::set_xattr(File::open(path).unwrap(), "security.ima", label).unwrap();
}

/// Writes a label of whatever type; `false` where the kernel has IMA itself, which lets nobody write one of a type that nobody knows.
pub fn set_any_label(path: &Path, label: &[u8]) -> bool {
    match files::set_xattr(File::open(path).unwrap(), "security.ima", label) {
        Err(error) if level_2() && error.kind() == io::ErrorKind::InvalidInput => false,
        result => result.map(|()| true).unwrap(),
    }
}

pub fn label(path: &Path) -> Option<Vec<u8>> {
    files::xattr(File::open(path).unwrap(), "security.ima").unwrap()
}

pub fn digest_label(path: &Path, algorithm: HashAlgorithm) -> Vec<u8> {
    encode_digest(&crypto::hash(algorithm, &[&fs::read(path).unwrap()]).unwrap())
}

pub fn copy(from: impl AsRef<Path>, to: &Path) {
    // By another process, whose descriptor no child of ours inherits.
    must(command("cp").arg(from.as_ref()).arg(to));
}

pub fn change_a_byte(path: &Path) {
    let offset = fs::metadata(path).unwrap().len() - 100;
    let path = path.display();
    shell(&format!("printf '\\220' | dd of='{path}' bs=1 seek={offset} conv=notrunc status=none"));
}

/// Writes something over the first place in a file where that stands, as whoever may write a disk can.
pub fn write_over(file: &Path, old: &str, new: &str) {
    let file = file.display();
    let found = shell(&format!("grep -abo -m 1 '{old}' '{file}'"));
    let at = text(&found.stdout).split(':').next().unwrap().to_owned();
    shell(&format!("printf '{new}' | dd of='{file}' bs=1 seek={at} conv=notrunc status=none"));
}

pub fn settle() {
    thread::sleep(SETTLED);
}

/// The gap of a guard that is started again has times of its own.
pub fn next_second() {
    thread::sleep(Duration::from_millis(1010));
}

fn process(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Sends a signal by this process itself, which has started the guards: at level 2 nobody else may stop or kill one.
pub fn signal(signal: Signal, pid: u32) {
    kill_process(process(pid), signal).unwrap_or_else(|error| panic!("{signal:?} to process {pid}: {error}"));
}

/// Lets a process have no more memory, by this process itself: at level 2 nobody else may limit a guard.
pub fn leave_no_memory(pid: u32) {
    let limit = Rlimit { current: Some(4096), maximum: Some(4096) };
    rustix::process::prlimit(Some(process(pid)), Resource::As, limit).unwrap();
}

/// Whether a process may kill another one, although it is neither the guard, nor what that has started, nor who has started it.
pub fn is_killed_by_a_stranger(pid: u32) -> bool {
    let done = output(command("sh").args(["-c", &format!("kill -KILL {pid}")])).unwrap();
    assert!(done.status.success() || text(&done.stderr).contains("not permitted"), "{done:?}");
    done.status.success()
}

impl Scratch {
    pub fn new() -> Result<Self, String> {
        if let Some(reason) = lacks() {
            return Err(reason);
        }
        let directory = tempfile::Builder::new().prefix("imara-guard-").tempdir().unwrap();
        let mnt = directory.path().join("mnt");
        let image = directory.path().join("image");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&mnt).unwrap();
        File::create(&image).and_then(|file| file.set_len(512 << 20)).unwrap();
        must(command("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&image));
        let mounted = output(command("mount").args(["-o", "loop"]).arg(&image).arg(&mnt)).unwrap();
        if !mounted.status.success() {
            return Err(format!("a loop mount: {}", text(&mounted.stderr).trim()));
        }
        let run = directory.path().join("run");
        let scratch = Self { directory, mnt, run, imara: IMARA.into(), guards: Vec::new(), started: 0 };
        scratch.make_key("keys");
        scratch.make_tool();
        Ok(scratch)
    }

    /// The tool, which is compiled once.
    fn make_tool(&self) {
        static COMPILED: Mutex<Option<Vec<u8>>> = Mutex::new(None);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let (source, tool) = (self.path("tool.c"), self.path("tool"));
        if let Some(bytes) = compiled.as_ref() {
            fs::write(&tool, bytes).unwrap();
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
            return;
        }
        fs::write(&source, TOOL).unwrap();
        must(command("cc").arg("-o").arg(&tool).arg(&source).arg("-ldl"));
        *compiled = Some(fs::read(&tool).unwrap());
    }

    /// A name outside of what is watched.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A name on the scratch file system.
    pub fn on(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    pub fn make_key(&self, folder: &str) {
        let mut imara = command(IMARA);
        must(imara.args(["key", "generate", "--quiet", "--type", "p256", "--out"]).arg(self.path(folder)));
    }

    pub fn private_key(&self) -> PathBuf {
        self.path("keys/privkey_ima.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.path("keys/x509_ima.der")
    }

    pub fn uuid(&self) -> String {
        let shown = must(command("blkid").args(["-s", "UUID", "-o", "value"]).arg(self.path("image")));
        text(&shown.stdout).trim().to_owned()
    }

    /// A program that succeeds, on the scratch file system.
    pub fn program(&self, name: &str) -> PathBuf {
        copy("/bin/true", &self.on(name));
        self.on(name)
    }

    pub fn signed_program(&self, name: &str) -> PathBuf {
        let path = self.program(name);
        self.sign(&[&path]);
        path
    }

    pub fn data(&self, name: &str, owner: u32) -> PathBuf {
        let path = self.on(name);
        fs::write(&path, format!("what {name} holds\n").repeat(20)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        path
    }

    pub fn sign(&self, paths: &[&Path]) {
        must(command(&self.imara).args(["sign", "--quiet", "-k"]).arg(self.private_key()).args(paths));
    }

    pub fn tool(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.path("tool"));
        command.args(arguments);
        command
    }

    /// Opens a file as another user: 0, or errno.
    pub fn open_as(&self, user: u32, flags: i32, path: &Path, times: u32) -> i32 {
        let mut tool = self.tool(&["open", &flags.to_string(), path.to_str().unwrap(), &times.to_string()]);
        output(tool.uid(user).gid(user)).unwrap().status.code().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.imara);
        command.args(arguments).arg("--runtime-dir").arg(&self.run);
        command
    }

    pub fn imara(&self, arguments: &[&str]) -> Output {
        output(&mut self.command(arguments)).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let done = self.imara(arguments);
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {done:?}"))
    }

    pub fn status(&self) -> Value {
        self.json(&["status", "--json"])
    }

    /// The same, asked of the guard by this process itself, for who asks hundreds of times.
    pub fn asked_for_status(&self) -> Value {
        let mut guard = UnixStream::connect(self.run.join("control.sock")).unwrap();
        guard.set_read_timeout(Some(PATIENCE)).unwrap();
        guard.write_all(b"{\"command\":\"status\"}\n").unwrap();
        let mut lines = BufReader::new(guard).lines();
        let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
        assert!(next()["taken"].is_u64(), "first of all");
        next()["ok"].take()
    }

    pub fn events(&self) -> u64 {
        self.status()["kernel"]["events"].as_u64().unwrap()
    }

    pub fn switch(&self, mode: &str) {
        must(&mut self.command(&["mode", mode]));
    }

    /// The ascii list's lines.
    pub fn list(&self) -> Vec<String> {
        let shown = must(&mut self.command(&["measurement", "show", "--ascii"]));
        text(&shown.stdout).lines().map(str::to_owned).collect()
    }

    /// How often a file is listed.
    pub fn listed(&self, path: &Path) -> usize {
        let path = path.to_str().unwrap();
        self.list().iter().filter(|line| line.split(' ').nth(4) == Some(path)).count()
    }

    /// That the list comes to what the TPM holds, in every bank.
    pub fn proven(&self) {
        // A guard that measures the reading of its own list makes it grow by that.
        let own = self.run.starts_with(&self.mnt);
        let verified = self.imara(&["measurement", "verify", "--json"]);
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
        let report: Value = serde_json::from_slice(&verified.stdout).unwrap();
        assert!(own || report["entries"] == report["proven"], "{report}");
        let banks = self.status()["tpm"]["banks"].as_array().unwrap().len();
        assert!(banks > 0 && report["pcrs"].as_array().unwrap().len() >= banks, "{report}");
    }

    pub fn audit(&self) -> String {
        fs::read_to_string(self.run.join("audit.log")).unwrap_or_default()
    }

    pub fn launch(&mut self, policy: &str, mode: &str, more: &[&str]) -> Result<(), NoGuard> {
        let path = self.path("policy");
        fs::write(&path, policy).unwrap();
        let (certificate, mnt) = (self.certificate(), self.mnt.clone());
        self.launch_with(&mnt, &path, &certificate, mode, more)
    }

    /// Starts a guard, and waits until it is in force or has ended.
    pub fn launch_with(
        &mut self,
        watch: &Path,
        policy: &Path,
        key: &Path,
        mode: &str,
        more: &[&str],
    ) -> Result<(), NoGuard> {
        self.started += 1;
        let stderr = self.path(&format!("guard-{}.log", self.started));
        // Its end comes with this thread's, whatever becomes of the test.
        let mut setpriv = command("setpriv");
        setpriv.args(["--pdeathsig", "KILL"]).arg(&self.imara).args(["guard", "--watch"]).arg(watch);
        setpriv.arg("--policy").arg(policy).arg("--key").arg(key).args(["--mode", mode]);
        setpriv.arg("--runtime-dir").arg(&self.run).args(more);
        if !more.contains(&"--tpm") {
            setpriv.args(["--tpm", "swtpm"]);
        }
        let mut child = start(setpriv.stdout(Stdio::piped()).stderr(File::create(&stderr).unwrap())).unwrap();
        let pid = child.id();
        let (first, ready) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Only the first line is waited for.
                let _ = first.send(line);
            }
        });
        let child = Arc::new(Mutex::new(child));
        let (life, over) = channel::<()>();
        let watched = Arc::clone(&child);
        thread::spawn(move || {
            if over.recv_timeout(LIFETIME) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("guard {pid} has outlived its test and is killed");
                let _ = watched.lock().unwrap().kill();
            }
        });
        let guard = Guard { child, pid, stderr, _life: life };
        match ready.recv_timeout(PATIENCE) {
            Ok(line) => assert_eq!(line, "ready", "the first line on standard output"),
            Err(_) => {
                let status = guard.end().unwrap_or_else(|| panic!("the guard does not start: {}", guard.said()));
                return Err(NoGuard { status, stderr: guard.said() });
            }
        }
        self.guards.push(guard);
        if level_2() && !more.contains(&"--level") {
            let status = self.status();
            assert_eq!(status["level"], 2, "{status}");
        }
        Ok(())
    }

    /// Starts a guard that must come up.
    pub fn guard(&mut self, policy: &str, mode: &str) {
        self.guard_with(policy, mode, &[]);
    }

    pub fn guard_with(&mut self, policy: &str, mode: &str, more: &[&str]) {
        if let Err(failed) = self.launch(policy, mode, more) {
            panic!("the guard did not start: {}: {}", failed.status, failed.stderr);
        }
    }

    pub fn pid(&self) -> u32 {
        self.guards.last().unwrap().pid
    }

    pub fn alive(&self) -> bool {
        let guard = self.guards.last().unwrap();
        let running = guard.child.lock().unwrap().try_wait().unwrap().is_none();
        running && self.imara(&["status", "--json"]).status.success()
    }

    /// What the last guard said on standard error.
    pub fn said(&self) -> String {
        self.guards.last().unwrap().said()
    }

    /// Ends the guard in order.
    pub fn stop(&mut self) {
        signal(Signal::TERM, self.pid());
        let guard = self.guards.last().unwrap();
        let status = guard.end().unwrap_or_else(|| panic!("the guard does not end: {}", guard.said()));
        assert_eq!(status.code(), Some(0), "{}", guard.said());
        assert!(!guard.said().contains("panicked"), "{}", guard.said());
    }

    /// Ends the guard without warning.
    pub fn kill(&mut self) {
        let guard = self.guards.last().unwrap();
        guard.child.lock().unwrap().kill().unwrap();
        guard.end().expect("a killed guard ends");
    }

    pub fn swtpm(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.run.join("tpm/pid")).ok()?.trim().parse().ok()?;
        // One that has ended and whose parent has not looked yet is none.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.contains(" (swtpm) ") && !stat.contains(") Z ")).then_some(pid)
    }

    pub fn kill_swtpm(&self) {
        if let Some(pid) = self.swtpm() {
            signal(Signal::KILL, pid);
            eventually("the software TPM ends", PATIENCE, || self.swtpm().is_none());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("what the guards said:");
            self.guards.iter().for_each(|guard| eprintln!("process {}: {}", guard.pid, guard.said()));
        }
        // Each ends by being killed at the latest.
        self.guards.clear();
        if let Some(pid) = self.swtpm() {
            let _ = kill_process(process(pid), Signal::KILL);
        }
        for attempt in 0..100 {
            let how: &[&str] = if attempt < 99 { &[] } else { &["-l"] };
            if output(command("umount").args(how).arg(&self.mnt)).is_ok_and(|done| done.status.success()) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Guard {
    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn end(&self) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.lock().unwrap().try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Somebody who holds a shared mapping of a file that can be written.
pub struct Mapping {
    pub child: Child,
    pub stdin: ChildStdin,
    pub said: Receiver<String>,
}

impl Mapping {
    pub fn new(scratch: &Scratch, user: u32, path: &Path) -> Self {
        let mut tool = scratch.tool(&["map", path.to_str().unwrap()]);
        let mut child = start(tool.uid(user).gid(user).stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        let (sender, said) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody may wait any more.
                let _ = sender.send(line);
            }
        });
        let mapping = Self { child, stdin, said };
        mapping.expect("mapped");
        mapping
    }

    pub fn expect(&self, line: &str) {
        assert_eq!(self.said.recv_timeout(PATIENCE).as_deref(), Ok(line));
    }

    pub fn store(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
        self.expect("changed");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// open(2)'s flags have the same numbers wherever this runs.
pub fn libc_flags(name: &str) -> i32 {
    match name {
        "O_RDONLY" => 0,
        "O_WRONLY" => 1,
        "O_RDWR" => 2,
        "O_TRUNC" => 0o1000,
        other => panic!("{other}"),
    }
}
