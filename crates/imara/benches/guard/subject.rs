//! What stands between a file and whoever opens it: nothing, a listener that allows everything, Imara, or fapolicyd.

use super::place::{Place, imara, libraries_of};
use super::work;
use imara_linux::sys::fanotify::{EventBuffer, Mask, PermissionGroup, Told};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Allows everything, until it is ended.
pub fn listen(directory: &Path) -> ! {
    let group = PermissionGroup::open().expect("a permission group");
    let directory = File::open(directory).expect("the directory");
    group.watch_filesystem(directory.as_fd(), Mask::OPEN.and(Mask::OPEN_EXEC)).expect("a mark");
    println!("ready");
    let mut buffer = EventBuffer::new(32);
    loop {
        let result = group.read(&mut buffer, |told| {
            if let Told::Asked(event) = told {
                group.answer(event.file.as_fd(), true).expect("an answer");
            }
        });
        result.expect("events");
    }
}

/// One that runs, until it is dropped.
pub struct Running {
    pid: u32,
    child: Child,
}

/// Starts the listener that allows everything.
pub fn floor(place: &Place) -> Running {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.env("IMARA_BENCH_LISTENER", place.mount());
    Running::once_ready(command)
}

/// Starts Imara with a policy.
pub fn guard(place: &Place, policy: &Path, more: &[&str]) -> Running {
    let mut command = imara();
    command.args(["guard", "--level", "1", "--mode", "enforce", "--watch"]).arg(place.mount());
    command.arg("--policy").arg(policy).arg("--key").arg(place.at("keys/x509_ima.der"));
    command.arg("--runtime-dir").arg(place.at("run")).arg("--state-dir").arg(place.at("state"));
    command.args(if more.is_empty() { &["--tpm", "none"] } else { more });
    Running::once_ready(command)
}

impl Running {
    fn once_ready(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "{command:?}");
        Self { pid: child.id(), child }
    }

    /// Seconds of CPU that it took so far.
    pub fn cpu(&self) -> f64 {
        work::cpu_of(self.pid)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn is_alive(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        status.rsplit(')').next().is_some_and(|fields| !matches!(fields.trim().chars().next(), None | Some('Z' | 'X')))
    }

    fn end(&mut self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.pid.to_string()]).status();
        let _ = self.child.wait();
    }

    /// Ends it as a crash would.
    pub fn crash(mut self) {
        self.end("-KILL");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_alive() {
            self.end("-TERM");
        }
    }
}

/// fapolicyd as Debian ships it, with its sample rules and a trust database of what lies on the guarded file system. It finds
/// its files where it always does, in this mount namespace alone, and marks mounts of this namespace alone.
pub struct Fapolicyd;

impl Fapolicyd {
    /// # Errors
    /// Why it cannot be measured here.
    pub fn prepare(place: &Place) -> Result<Self, String> {
        if !Path::new("/usr/sbin/fapolicyd").exists() {
            return Err("fapolicyd is not installed (Debian's package fapolicyd)".into());
        }
        let rules = Path::new("/usr/share/fapolicyd/sample-rules");
        let names = [
            "10-languages",
            "20-dracut",
            "21-updaters",
            "30-patterns",
            "40-bad-elf",
            "41-shared-obj",
            "42-trusted-elf",
            "70-trusted-lang",
            "72-shell",
            "90-deny-execute",
            "95-allow-open",
        ];
        let mut compiled = String::new();
        for name in names {
            let text = fs::read_to_string(rules.join(format!("{name}.rules")))
                .map_err(|error| format!("its sample rules: {error}"))?;
            text.lines().filter(|line| !line.starts_with('#')).for_each(|line| compiled += &format!("{line}\n"));
        }
        let config = place.at("fapolicyd/etc");
        fs::create_dir_all(config.join("trust.d")).expect("a folder");
        fs::create_dir_all(place.at("fapolicyd/lib")).expect("a folder");
        fs::write(config.join("compiled.rules"), compiled).expect("rules");
        // Marks on mounts, which end with this namespace; on file systems they would hold up the whole machine. It stays root,
        // because changing the user needs what a container may lack.
        let settings = "permissive = 0\nnice_val = 14\nq_size = 640\nuid = 0\ngid = 0\ndo_stat_report = 0\ndetailed_report = 0\n\
            db_max_size = 50\nsubj_cache_size = 1549\nobj_cache_size = 8191\nwatch_fs = ext2,ext3,ext4,xfs,btrfs\ntrust = file\n\
            integrity = sha256\nsyslog_format = rule,dec,perm,auid,pid,exe,:,path,ftype,trust\nallow_filesystem_mark = 0\n";
        fs::write(config.join("fapolicyd.conf"), settings).expect("a configuration");
        let mut trusted = place.files();
        // What ends it must run while it runs; and the dynamic loader's copy is seen in the place of its original.
        let kill = PathBuf::from("/usr/bin/kill");
        trusted.extend(libraries_of(&kill));
        trusted.push(kill);
        let trusted: Vec<PathBuf> = trusted.into_iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
        let mut list = File::create(config.join("fapolicyd.trust")).expect("a list");
        for some in trusted.chunks(1000) {
            let sums = Command::new("sha256sum").args(some).output().map_err(|error| format!("sha256sum: {error}"))?;
            for (line, path) in String::from_utf8_lossy(&sums.stdout).lines().zip(some) {
                let sum = line.split_whitespace().next().unwrap_or_default();
                let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
                writeln!(list, "{} {size} {sum}", path.display()).expect("a line");
            }
        }
        for (from, to) in [("etc", "/etc/fapolicyd"), ("lib", "/var/lib/fapolicyd")] {
            let from = place.at("fapolicyd").join(from);
            let mounted = Command::new("mount").arg("--bind").arg(from).arg(to).status();
            if !mounted.is_ok_and(|status| status.success()) {
                return Err(format!("{to} is not there"));
            }
        }
        fs::create_dir_all("/run/fapolicyd").expect("a folder");
        Ok(Self)
    }

    /// Starts it, and waits until it has marked its mounts.
    pub fn start(&self, place: &Place) -> Result<Running, String> {
        for entry in fs::read_dir(place.at("fapolicyd/lib")).expect("a folder").map_while(Result::ok) {
            let _ = fs::remove_file(entry.path());
        }
        let log = File::create(place.at("fapolicyd/log")).expect("a log");
        // In the foreground it says what it refuses, and works as the daemon does.
        let mut command = Command::new("/usr/sbin/fapolicyd");
        command.arg("--debug-deny").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|error| format!("it does not start: {error}"))?;
        let running = Running { pid: child.id(), child };
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if !running.is_alive() {
                let log = fs::read_to_string(place.at("fapolicyd/log")).unwrap_or_default();
                return Err(format!("it does not start: {}", log.lines().next_back().unwrap_or_default()));
            }
            if has_marks(running.pid) {
                // It marks one mount after the other.
                std::thread::sleep(Duration::from_millis(500));
                return Ok(running);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("it marked no mount within 30 s".into())
    }

    /// What it refused first, in its own words.
    pub fn refused(place: &Place) -> String {
        let log = fs::read_to_string(place.at("fapolicyd/log")).unwrap_or_default();
        log.lines().find(|line| line.contains("dec=deny")).unwrap_or("nothing that it tells").into()
    }
}

/// Whether a process has a fanotify group with marks.
fn has_marks(pid: u32) -> bool {
    let folder = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten();
    folder.map_while(Result::ok).any(|entry| {
        fs::read_to_string(entry.path()).is_ok_and(|text| text.lines().any(|line| line.starts_with("fanotify mnt_id")))
    })
}
