//! The scratch file system that is guarded: small files with labels, a program, and a compiler with a project.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The size of the small files.
pub const SIZE: usize = 8 << 10;

pub const IMARA: &str = env!("CARGO_BIN_EXE_imara");

/// Where everything is; nothing of it is seen outside the namespace.
pub struct Place {
    pub directory: PathBuf,
}

/// Runs a command that must succeed.
pub fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        said.lines().next_back().unwrap_or_default()
    );
}

fn lines(command: &mut Command) -> Vec<String> {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// What the dynamic loader loads for a program, itself included.
pub fn libraries_of(program: &Path) -> Vec<PathBuf> {
    let said = lines(Command::new("ldd").arg(program));
    said.iter()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

impl Place {
    /// An image of so many bytes with so many inodes, mounted.
    pub fn new(directory: &Path, bytes: u64, inodes: usize) -> Self {
        let place = Self { directory: directory.into() };
        let image = place.at("image");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
        // Nothing is to be made ready later, while something is measured.
        let now = "lazy_itable_init=0,lazy_journal_init=0";
        done(Command::new("mkfs.ext4").args(["-q", "-F", "-E", now, "-N", &inodes.to_string()]).arg(&image));
        fs::create_dir(place.mount()).expect("a mount point");
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(place.mount()));
        // Whatever runs here must not meet another of its kind.
        done(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]));
        done(imara().args(["key", "generate", "--out"]).arg(place.at("keys")));
        place
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is guarded.
    pub fn mount(&self) -> PathBuf {
        self.at("mnt")
    }

    pub fn inside(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    /// Small files, each with content of its own.
    pub fn small_files(&self, folder: &str, count: usize, size: usize) -> Vec<PathBuf> {
        let folder = self.inside(folder);
        fs::create_dir_all(&folder).expect("a folder");
        let mut content = vec![0; size];
        let mut file = |index: usize| {
            let path = folder.join(format!("f{index}"));
            content[..8].copy_from_slice(&index.to_le_bytes());
            fs::write(&path, &content).expect("a file");
            path
        };
        (0..count).map(&mut file).collect()
    }

    /// Gives what is in a folder labels with its digest.
    pub fn hash(&self, folder: &str) {
        done(imara().args(["hash", "-q", "-r", "--no-journal"]).arg(self.inside(folder)));
    }

    /// Gives what is in a folder signatures.
    pub fn sign(&self, folder: &str) {
        let key = self.at("keys/privkey_ima.pem");
        done(imara().args(["sign", "-q", "-r", "--no-journal", "-k"]).arg(key).arg(self.inside(folder)));
    }

    /// Programs and the libraries that they load; the dynamic loader's copy takes its place in this namespace, so that nothing
    /// that an execution opens lies elsewhere.
    pub fn programs(&self, programs: &[PathBuf]) {
        for folder in ["bin", "lib"] {
            fs::create_dir_all(self.inside(folder)).expect("a folder");
        }
        let mut libraries = BTreeSet::new();
        for program in programs {
            let name = program.file_name().expect("a name");
            fs::copy(program, self.inside("bin").join(name)).expect("a program");
            libraries.extend(libraries_of(program));
        }
        for library in libraries {
            let name = library.file_name().expect("a name").to_owned();
            fs::copy(&library, self.inside("lib").join(&name)).expect("a library");
            if name.to_string_lossy().starts_with("ld-") {
                done(Command::new("mount").arg("--bind").arg(self.inside("lib").join(&name)).arg(&library));
            }
        }
    }

    /// A C compiler and a project of 200 files, with all that they include; the folders where the compiler is to look for that.
    pub fn project(&self) -> Vec<PathBuf> {
        let program = |name: &str| {
            let found = lines(Command::new("gcc").arg(format!("-print-prog-name={name}"))).concat();
            let found = if found.starts_with('/') { found } else { format!("/usr/bin/{found}") };
            fs::canonicalize(found).expect("a part of gcc")
        };
        let gcc = fs::canonicalize("/usr/bin/gcc").expect("gcc");
        let (compiler, assembler) = (program("cc1"), program("as"));
        self.programs(&[gcc.clone(), compiler.clone(), assembler.clone(), "/usr/bin/true".into()]);
        for (from, to) in [(&gcc, "gcc"), (&compiler, "cc1"), (&assembler, "as")] {
            let name = from.file_name().expect("a name");
            if name != to {
                fs::rename(self.inside("bin").join(name), self.inside("bin").join(to)).expect("a program");
            }
        }
        let folder = self.inside("project");
        fs::create_dir_all(&folder).expect("a folder");
        fs::create_dir_all(self.inside("tmp")).expect("a folder");
        for index in 0..200 {
            let mut text =
                "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n".to_owned();
            for number in 0..12 {
                text += &format!(
                    "int f{index}_{number}(int x) {{ char b[64]; int s = 0; for (int k = 0; k < x; k++) s += snprintf(b, sizeof b, \
                     \"%d\", k * {number}) + (int)strlen(b); return s; }}\n"
                );
            }
            fs::write(folder.join(format!("f{index}.c")), text).expect("a file");
        }
        for header in lines(Command::new("gcc").args(["-M", "-O1"]).arg(folder.join("f0.c"))) {
            for path in header.split_whitespace().filter(|word| word.starts_with("/usr/")) {
                let to = self.mount().join(path.trim_start_matches('/'));
                fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
                fs::copy(path, to).expect("a header");
            }
        }
        self.include_folders()
    }

    /// The command that compiles the file of this number.
    pub fn compile(&self, index: usize, include_folders: &[PathBuf]) -> Command {
        let mut command = Command::new(self.inside("bin/gcc"));
        command.env("LD_LIBRARY_PATH", self.inside("lib")).env("TMPDIR", self.inside("tmp"));
        command.arg("-B").arg(self.inside("bin")).args(["-O1", "-nostdinc"]);
        for folder in include_folders {
            command.arg("-isystem").arg(folder);
        }
        let file = |kind: &str| self.inside(&format!("project/f{index}.{kind}"));
        command.arg("-c").arg("-o").arg(file("o")).arg(file("c"));
        command
    }

    /// The copies of those where gcc looks.
    fn include_folders(&self) -> Vec<PathBuf> {
        let output = Command::new("gcc").args(["-E", "-v", "-x", "c", "/dev/null"]).output().expect("gcc");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let folders = said.lines().skip_while(|line| !line.starts_with("#include <")).skip(1);
        let folders = folders.take_while(|line| line.starts_with(' '));
        folders
            .filter_map(|line| fs::canonicalize(line.trim()).ok())
            .map(|folder| self.mount().join(folder.strip_prefix("/").expect("from the root")))
            .filter(|folder| folder.exists())
            .collect()
    }

    /// Writes a policy.
    pub fn policy(&self, name: &str, rules: &[&str]) -> PathBuf {
        let path = self.at(name);
        let mut file = File::create(&path).expect("a policy");
        rules.iter().for_each(|rule| writeln!(file, "{rule}").expect("a rule"));
        path
    }

    /// A file that changed a moment ago is not cached: lets all of them settle, on the disk too.
    pub fn settle(&self) {
        done(&mut Command::new("sync"));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }

    /// All files of the file system.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.mount()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder").map_while(Result::ok) {
                let kind = entry.file_type().expect("a type");
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
        files
    }
}

pub fn imara() -> Command {
    Command::new(IMARA)
}
