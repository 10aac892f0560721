//! A software TPM of a test's own, without resource manager, which ends with the test; and the programs that talk to it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

pub struct Software {
    pub dir: TempDir,
}

impl Software {
    /// Starts one with the banks sha1 and sha256; says why not where the machine has none.
    pub fn start(test: &str) -> Option<Self> {
        for program in ["swtpm", "swtpm_setup"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                println!("skipped: {test}: {program} is not installed");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let made = Command::new("swtpm_setup")
            .args(["--tpm2", "--tpmstate", &at.to_string(), "--pcr-banks", "sha1,sha256"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made.stdout));
        let software = Self { dir };
        software.run(true);
        Some(software)
    }

    /// Runs it on its state: PCRs begin at zero, and nothing is loaded.
    pub fn run(&self, started: bool) {
        self.run_at(&format!("type=unixio,path={}", self.file("tpm")), started);
    }

    /// The same behind another socket.
    pub fn run_at(&self, server: &str, started: bool) {
        let at = self.dir.path().display();
        let flags = if started { "not-need-init,startup-clear" } else { "not-need-init" };
        let status = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", flags, "--daemon", "--tpmstate", &format!("dir={at}")])
            .args(["--server", server])
            .args(["--ctrl", &format!("type=unixio,path={at}/tpm.ctrl")])
            .args(["--pid", &format!("file={at}/pid")])
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.file(name)
    }

    /// `imara tpm` with these arguments and this TPM.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = imara(arguments);
        command.args(["--tpm", &self.file("tpm")]);
        command
    }

    /// Runs it.
    pub fn imara(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it; it must end as told. Returns what it printed.
    pub fn expect(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.imara(arguments);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(if status == 0 { &output.stdout } else { &output.stderr })
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        serde_json::from_str(&self.expect(0, &arguments)).unwrap()
    }

    /// One of tpm2-tools with this TPM; none where they are not installed.
    pub fn tpm2(&self, test: &str, arguments: &[&str]) -> Option<Output> {
        let output = Command::new(arguments[0])
            .args(&arguments[1..])
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.file("tpm")))
            .current_dir(self.dir.path())
            .output();
        if output.is_err() {
            println!("skipped: {test}: {} is not installed", arguments[0]);
        }
        output.ok()
    }

    /// The same, which must succeed.
    pub fn tpm2_done(&self, test: &str, arguments: &[&str]) -> Option<String> {
        let output = self.tpm2(test, arguments)?;
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        Some(text(&output.stdout))
    }

    /// That nothing is loaded in it.
    pub fn nothing_is_loaded(&self) {
        assert_eq!(self.json(&["status"])["loaded"], serde_json::json!([]));
    }

    pub fn stop(&self) {
        let pid = std::fs::read_to_string(self.path("pid")).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.filter(|pid: &i32| *pid > 1) {
            let _ = Command::new("kill").arg(pid.to_string()).stderr(Stdio::null()).status();
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        self.stop();
        // What imara has recorded of this TPM, which there never is again.
        let record = self.file("tpm").replace('/', "%2f");
        let _ = std::fs::remove_file(PathBuf::from("/run/imara-tpm").join(record));
    }
}

/// `imara tpm` with these arguments.
pub fn imara(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.arg("tpm").args(arguments);
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
