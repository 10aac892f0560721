//! A tree of its own, and a folder for the journals beside it.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Ended, and removed, with the test.
pub struct Scratch(tempfile::TempDir);

/// What a command came to.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The objects of JSON lines.
    pub fn lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }

    /// The last object's `summary`.
    pub fn summary(&self) -> Value {
        self.lines().pop().unwrap_or_default()["summary"].clone()
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Whether attributes in the `security` namespace can be set.
pub fn privileged() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The attribute of labels, and the option for it.
pub fn attribute() -> (&'static str, &'static [&'static str]) {
    if privileged() { ("security.ima", &[]) } else { ("user.ima", &["--xattr-user"]) }
}

impl Scratch {
    pub fn new() -> Self {
        // Beside the build, since a temporary file system may keep no attributes.
        let scratch = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        fs::create_dir(scratch.path("tree")).unwrap();
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn tree(&self) -> PathBuf {
        self.path("tree")
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.tree().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a key, and returns its private half and its certificate.
    pub fn key(&self, kind: &str) -> (String, String) {
        let folder = self.path(&format!("key-{kind}"));
        let made = self.run(&["key", "generate", "--quiet", "--type", kind, "--out", text(&folder)]);
        assert_eq!(made.code, 0, "{}", made.err);
        let name = |name| text(&folder.join(name)).to_owned();
        (name("privkey_ima.pem"), name("x509_ima.der"))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("IMARA_JOURNAL_DIR", self.path("runs")).env_remove("IMARA_KEY_PASSPHRASE");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    /// A command that changes labels, in the namespace that can be written.
    pub fn label(&self, arguments: &[&str]) -> Ran {
        self.run(&[arguments, attribute().1].concat())
    }

    /// The runs that have a journal.
    pub fn runs(&self) -> Vec<Value> {
        let listed: Value = serde_json::from_str(&self.run(&["undo", "--list", "--json"]).out).unwrap();
        listed["runs"].as_array().unwrap().clone()
    }

    /// A file's label, in hexadecimal; empty without one.
    pub fn label_of(&self, path: &Path) -> String {
        let shown = self.run(&["show", "--json", "--xattr-user", text(path)]);
        let shown: Value = serde_json::from_str(&shown.out).unwrap();
        shown["files"][0][attribute().0]["raw"].as_str().unwrap_or_default().to_owned()
    }
}

pub fn ran(output: Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// What another program prints; `None`, and a line that says so, where it does not run.
pub fn other(test: &str, program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {test}: {program}: {error}");
            None
        }
    }
}
