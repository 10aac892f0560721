//! The guard's answers against Linux 6.1's, for every access of the kernel's appraisal table that level 1 is asked about.
//!
//! The files are made as they were there (tests/vectors/appraise), and the accesses come in the same order, as what one leaves behind
//! decides the next. The guard has no EVM here: what the kernel answered without an EVM key (boot 3) is compared whole; of what it answered
//! in log mode (boot 7) and fix mode (boot 8), where it had one, the files whose EVM label was good. A refusal is EPERM and not
//! EACCES, which is all that fanotify can give.

use crate::scratch::*;
use imara_engine::crypto;
use imara_format::hash::{HashAlgorithm, from_hex};
use imara_format::label::encode_digest;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors");

fn vector(name: &str) -> String {
    fs::read_to_string(format!("{VECTORS}/{name}")).unwrap()
}

fn key(name: &str) -> PathBuf {
    format!("{VECTORS}/evm/kernel/keys/{name}").into()
}

fn sha256(content: &[u8]) -> Vec<u8> {
    encode_digest(&crypto::hash(HashAlgorithm::Sha256, &[content]).unwrap())
}

/// Makes the files of the table.
fn make_files(scratch: &Scratch) {
    let zeros = [&[4, 4][..], &[0; 32]].concat();
    for line in vector("appraise/matrix/boot2/stat.jsonl").lines() {
        let file: Value = serde_json::from_str(line).unwrap();
        let name = file["path"].as_str().unwrap().trim_start_matches("/mnt/");
        let path = scratch.on(name);
        let owner = file["uid"].as_u64().unwrap() as u32;
        if name == "lost+found" || name.ends_with(".ko") || name == "evm-key.blob" {
            continue;
        }
        let program = name.starts_with("x-") || name.starts_with("m-");
        if program {
            copy("/bin/true", &path);
        } else {
            let content = match name {
                "sc-ok" => "#!/bin/true\n".to_owned(),
                "sc-bad" => "#!/bin/true\n#\n".to_owned(),
                "sc-badint" => format!("#!{}\n", scratch.on("x-badhash").display()),
                "sc-hash" => format!("#!{}\n", scratch.on("x-hash").display()),
                _ if name.ends_with("empty.good") => String::new(),
                _ => format!("the quick brown fox {name}"),
            };
            // By another process, whose descriptor no child of ours inherits.
            must(command("sh").args(["-ec", "printf %s \"$1\" > \"$2\"", "sh", &content]).arg(&path));
        }
        chown(&path, Some(owner), Some(0)).unwrap();
        let mode = if program || name.starts_with("sc-") { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        // What other programs are than there has labels of its own.
        if let Some(kind) = name.strip_prefix("x-").or(name.strip_prefix("m-")) {
            match kind {
                "hash" => set_label(&path, &digest_label(&path, HashAlgorithm::Sha256)),
                "badhash" => set_label(&path, &zeros),
                "sig" | "unksig" => {
                    let key = key(if kind == "sig" { "ima.pem" } else { "other.pem" });
                    must(command(IMARA).args(["sign", "--quiet", "-k"]).arg(key).arg(&path));
                }
                _ => {}
            }
        } else if name.starts_with("sc-") {
            let label = if name == "sc-bad" { zeros.clone() } else { sha256(&fs::read(&path).unwrap()) };
            set_label(&path, &label);
        } else if let Some(label) = file["xattrs"]["security.ima"].as_str() {
            let mut label = from_hex(label).unwrap();
            if name.ends_with("type9.good") {
                label[0] = 9;
            }
            set_label(&path, &label);
        }
    }
}

/// An access of the table.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Execute,
    Append,
    Truncate,
    Create(&'static str),
    Copy,
    /// Opened for writing while somebody reads it.
    WhileRead,
}

/// What a case is, and of which file; `None` for what level 1 is not asked about (mprotect, modules, labels and attributes).
fn access(number: u32, case: &str) -> Option<(Kind, &str)> {
    let named = |prefix: &str| case.strip_prefix(prefix);
    if let Some(name) = named("read ") {
        return (name != "evm-key.blob").then_some((Kind::Read, name));
    }
    if let Some(name) = named("exec ") {
        return Some((Kind::Execute, name));
    }
    // A mapping is decided on when the file is opened.
    if let Some(name) = named("mmap PROT_EXEC ") {
        return Some((Kind::Read, name));
    }
    Some(match number {
        72 => (Kind::Execute, "sc-ok"),
        73 => (Kind::Execute, "sc-bad"),
        74 => (Kind::Execute, "sc-badint"),
        75 => (Kind::Execute, "sc-hash"),
        76 => (Kind::Read, "sc-bad"),
        100 => (Kind::Append, "w-hash"),
        102 => (Kind::Append, "w-badhash"),
        103 => (Kind::Truncate, "w-badhash"),
        105 => (Kind::Append, "w-none"),
        106 => (Kind::Truncate, "w-none"),
        108 => (Kind::Append, "w-sig"),
        110 => (Kind::Append, "w-port"),
        112 => (Kind::Truncate, "w-trunc"),
        101 => (Kind::Read, "w-hash"),
        104 => (Kind::Read, "w-badhash"),
        107 => (Kind::Read, "w-none"),
        109 => (Kind::Read, "w-sig"),
        111 => (Kind::Read, "w-port"),
        113 => (Kind::Read, "w-trunc"),
        114 => (Kind::Create("data"), "new1"),
        115 => (Kind::Read, "new1"),
        116 => (Kind::Create(""), "new2"),
        117 => (Kind::Read, "new2"),
        118 => (Kind::Copy, "new3"),
        119 => (Kind::Execute, "new3"),
        120 => (Kind::WhileRead, "w-tomtou"),
        121 => (Kind::Read, "w-tomtou"),
        _ => return None,
    })
}

fn perform(kind: Kind, path: &Path) -> io::Result<()> {
    match kind {
        Kind::Read => File::open(path).map(drop),
        Kind::Execute => output(&mut command(path)).map(|done| assert!(done.status.success(), "{path:?}: {done:?}")),
        Kind::Append => OpenOptions::new().append(true).open(path)?.write_all(b"more"),
        Kind::Truncate => OpenOptions::new().write(true).truncate(true).open(path).map(drop),
        Kind::Create(content) => File::create(path)?.write_all(content.as_bytes()),
        Kind::Copy => {
            copy("/bin/true", path);
            chown(path, Some(2011), None)
        }
        Kind::WhileRead => {
            let _reader = File::open(path)?;
            OpenOptions::new().read(true).write(true).open(path).map(drop)
        }
    }
}

/// Whether EVM was content with a file where it had a key, so that IMA alone decided.
fn evm_was_content(name: &str) -> bool {
    let spoiled = name.ends_with("type9.good") || name == "w-port";
    let other_state = name.contains('.') && !name.ends_with(".good");
    !spoiled && !other_state
}

fn compare(scratch: &mut Scratch, boot: &str, mode: &str, least: usize) {
    make_files(scratch);
    let uuid = scratch.uuid();
    let unknown = ["MODULE_CHECK", "SETXATTR_CHECK"];
    let policy: String = vector("appraise/matrix/boot3/policy")
        .lines()
        .filter(|line| !unknown.iter().any(|func| line.contains(func)))
        .map(|line| format!("{}\n", line.replace("6e1a2b3c-4d5e-4f60-8172-839405162738", &uuid)))
        .collect();
    let policy_file = scratch.path("policy");
    fs::write(&policy_file, policy).unwrap();
    let (rsa, evm) = (key("rsa4096.der"), key("evm.der"));
    let more = ["--tpm", "none", "--key", rsa.to_str().unwrap(), "--key", evm.to_str().unwrap()];
    settle();
    let mnt = scratch.mnt.clone();
    if let Err(failed) = scratch.launch_with(&mnt, &policy_file, &key("ima.der"), mode, &more) {
        panic!("{}", failed.stderr);
    }
    let mut failed = 0;
    let mut compared = 0;
    let mut wrong = Vec::new();
    for row in vector("appraise/matrix/matrix.tsv").lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let (number, case) = (columns[0].parse().unwrap(), columns[1]);
        let Some((kind, name)) = access(number, case).filter(|_| columns[2] == boot) else { continue };
        if boot != "boot3" && !evm_was_content(name) {
            continue;
        }
        let result = perform(kind, &scratch.on(name));
        let refused = match &result {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(EPERM) => true,
            Err(error) => panic!("{boot} {row}: {error}"),
        };
        let status = scratch.status();
        let before = std::mem::replace(&mut failed, status["counts"]["failed"].as_u64().unwrap());
        let cause = (failed > before).then(|| status["recent"][0]["cause"].as_str().unwrap().to_owned());
        // Of which the kernel writes no record.
        let cause = cause.filter(|cause| cause != "signed-file-opened-for-writing");
        let expected = columns[4].split("; ").find_map(|record| {
            record.strip_prefix("appraise_data/").or(record.strip_prefix("collect_data/")).map(str::to_owned)
        });
        let expected_refused = columns[3].contains("EACCES");
        if (refused, &cause) != (expected_refused, &expected) {
            wrong.push(format!(
                "{number} {case} ({name}): refused {refused} {cause:?}, the kernel: {expected_refused} {expected:?}"
            ));
        }
        if let Some(there) =
            columns.get(5).filter(|column| column.starts_with('{') && name.starts_with("new") && name != "new3")
        {
            let there: Value = serde_json::from_str(there).unwrap_or_default();
            let expected = there["xattrs"]["security.ima"].as_str().map(|label| from_hex(label).unwrap());
            assert_eq!(label(&scratch.on(name)), expected, "{row}");
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "{boot}:\n{}", wrong.join("\n"));
    assert!(compared >= least, "{compared} accesses of {boot}");
    assert!(scratch.alive());
    scratch.stop();
}

#[test]
fn enforce_mode_answers_as_the_kernel_does() {
    let mut scratch = scratch!("enforce_mode_answers_as_the_kernel_does");
    compare(&mut scratch, "boot3", "enforce", 100);
}

#[test]
fn log_mode_records_what_the_kernel_does() {
    let mut scratch = scratch!("log_mode_records_what_the_kernel_does");
    compare(&mut scratch, "boot7", "log", 70);
}

#[test]
fn fix_mode_mends_what_the_kernel_does() {
    let mut scratch = scratch!("fix_mode_mends_what_the_kernel_does");
    compare(&mut scratch, "boot8", "fix", 70);
}
