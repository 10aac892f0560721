//! The guard's answers against Linux 6.1's, for every access of the kernel's appraisal table that level 1 is asked about.
//!
//! The files are made as they were there (tests/vectors/appraise), and the accesses come in the same order, as what one leaves behind
//! decides the next. The guard has no EVM here: what the kernel answered without an EVM key (boot 3) is compared whole; of what it answered
//! in log mode (boot 7) and fix mode (boot 8), where it had one, the files whose EVM label was good. A refusal is EPERM and not
//! EACCES, which is all that fanotify can give.
//!
//! `tests/vm/scenarios/level2-suite` has the same compared at level 2, where mappings are refused when they are made, and labels when they
//! are written.
//!
//! Changes of labels and attributes (boot 3) level 1 sees afterwards: what the kernel lets be done is done, and what comes after is
//! compared; of what it refuses `OTHERWISE` says what level 1 makes of it. Each row of the table is compared or stands there.

use crate::scratch::*;
use imara_engine::crypto;
use imara_format::hash::{HashAlgorithm, from_hex, to_hex};
use imara_format::label::encode_digest;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
            if !set_any_label(&path, &label) {
                fs::remove_file(&path).unwrap();
            }
        }
    }
}

/// An access of the table.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Execute,
    /// Mapped executable; at level 1 that is decided when it is opened.
    Map,
    /// Mapped, and then made executable.
    Protect,
    Append,
    Truncate,
    Create(&'static str),
    Copy,
    /// Opened for writing while somebody reads it.
    WhileRead,
    Attributes(&'static str),
    Elsewhere(&'static str),
}

/// Rows of which level 1 says something else than the kernel, or nothing, and why. docs/divergences.md has the same.
const OTHERWISE: [(std::ops::RangeInclusive<u32>, &str); 10] = [
    (4..=4, "the key's blob is the table's own"),
    (78..=78, "mprotect: level 2"),
    (80..=80, "mprotect: level 2"),
    (82..=82, "mprotect: level 2"),
    (84..=84, "mprotect: level 2"),
    (86..=91, "mprotect, modules: level 2"),
    (97..=99, "O_DIRECT is as any open"),
    (122..=122, "a mapping made after the open: level 2"),
    (151..=153, "labels that may not be written are, and do not pass: refused at level 2"),
    // The capability that the kernel asks for whoever measures.
    (183..=186, "another user, whom the kernel refuses without asking IMA"),
];

/// The same of level 2, which can be asked about more.
const OTHERWISE_AT_LEVEL_2: [(std::ops::RangeInclusive<u32>, &str); 7] = [
    (4..=4, "the key's blob is the table's own"),
    (80..=80, "mprotect: a verdict can be looked up there, which the kernel cannot make"),
    (84..=84, "as above"),
    (87..=91, "modules: tests/vm/scenarios/level2"),
    (97..=99, "O_DIRECT is as any open"),
    (122..=122, "not mapped as long as anybody can write: tests/vm/scenarios/level2"),
    (183..=186, "another user, whom the kernel refuses without asking IMA"),
];

/// Rows in which the kernel refuses a value that could never pass, which level 1 sees written: types that nobody knows, an HMAC for
/// `security.evm` where nobody may bring one.
const WRITTEN: [u32; 6] = [156, 161, 162, 175, 176, 177];

const CAPABILITY: &str = "setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 $F";

/// Changes of labels and attributes, by row: what a shell does, `$F` being the file.
fn change(number: u32) -> Option<(&'static str, &'static str)> {
    Some(match number {
        123 => ("w-md", "chmod 600 $F"),
        124 => ("w-md", "chown 0:5 $F"),
        126 => ("hash.bad", "chmod 600 $F"),
        127 => ("hash.none", "chmod 600 $F"),
        128 => ("none.none", "chmod 600 $F"),
        129 => ("w-imm", "chmod 600 $F"),
        130 => ("w-imm", "chmod 644 $F"),
        131 => ("w-imm", "chown 7:7 $F"),
        132 => ("w-imm", "chown 0:0 $F"),
        133 => ("w-imm", "setfattr -n security.ima -v 0x0404$(printf 'ee%.0s' $(seq 32)) $F"),
        134 => ("w-imm", "setfattr -n security.ima -v 0x0404$(printf 'ee%.0s' $(seq 32)) $F"),
        135 => ("w-imm", "setfattr -x security.ima $F"),
        136 => ("w-imm", "setfattr -n user.x -v y $F"),
        137 | 187 => (if number == 137 { "w-imm" } else { "w-cap" }, CAPABILITY),
        139 => ("w-imm", "setfattr -n security.evm -v 0x05 $F && setfattr -x security.evm $F"),
        140 => ("w-imm", "chmod 600 $F"),
        142 => ("w-port2", "chmod 600 $F"),
        143 => ("w-sigmeta", "chmod 600 $F"),
        145 | 149 => ("w-md2", "setfattr -n security.ima -v 0x0404$HASH $F"),
        147 => ("w-md2", "setfattr -n security.ima -v 0x0404$(printf '77%.0s' $(seq 32)) $F"),
        151 => ("w-md2", "setfattr -n security.ima -v 0x01$HASH1 $F"),
        152 => ("w-md2", "setfattr -n security.ima -v 0x0402$HASH1 $F"),
        153 => ("w-md2", "setfattr -n security.ima -v 0x0405$HASH384 $F"),
        154 => ("w-md2", "setfattr -n security.ima -v 0x0406$HASH512 $F"),
        156 => ("w-md2", "setfattr -n security.ima -v 0x0900 $F"),
        157 => ("w-md2", "setfattr -n security.ima -v 0x00 $F"),
        158 => ("w-md2", "setfattr -n security.ima -v 0x02aa $F"),
        159 => ("w-md2", "setfattr -n security.ima -v 0x05aa $F"),
        160 => ("w-md2", "setfattr -n security.ima -v 0x0602aa $F"),
        161 => ("w-md2", "setfattr -n security.ima -v 0x07aa $F"),
        162 => ("w-md2", "setfattr -n security.ima $F"),
        163 => ("w-md2", "setfattr -n security.ima -v 0x04ffaabb $F"),
        164 => ("w-md2", "setfattr -n security.ima -v 0x0404aabb $F"),
        165 => ("w-md2", "setfattr -n security.ima -v 0x04 $F"),
        166 => ("w-md2", "setfattr -n security.ima -v 0x03 $F"),
        167 => ("w-md2", "setfattr -n security.ima -v 0x030204aabbccdd0002ffff $F"),
        168 => ("w-md2", "setfattr -n security.ima -v 0x030263aabbccdd0002ffff $F"),
        170 => ("w-rm", "setfattr -x security.ima $F"),
        172 => ("w-rm", "setfattr -n security.evm -v 0x05 $F && setfattr -x security.evm $F"),
        174 => ("w-rm", "chmod 600 $F"),
        175 => ("w-md3", "setfattr -n security.evm -v 0x02$(printf '00%.0s' $(seq 20)) $F"),
        176 => ("w-md3", "setfattr -n security.evm -v 0x01aa $F"),
        177 => ("w-md3", "setfattr -n security.evm $F"),
        178 => ("w-md3", "setfattr -n security.evm -v 0x030204aabbccdd0002ffff $F"),
        179 => ("w-md3", "setfattr -n security.evm -v 0x050204aabbccdd0002ffff $F"),
        181 => ("w-md3", "chmod 600 $F"),
        182 => ("w-md3", "setfattr -n security.ima -v 0x0404$HASH $F"),
        189 => ("hash.bad", "setfattr -n security.selinux -v q $F"),
        _ => return None,
    })
}

/// What a case is, and of which file; `None` for what stands in `OTHERWISE`.
fn access(number: u32, case: &str) -> Option<(Kind, &str)> {
    let named = |prefix: &str| case.strip_prefix(prefix);
    if let Some(name) = named("read ") {
        return (name != "evm-key.blob").then_some((Kind::Read, name));
    }
    if let Some(name) = named("exec ") {
        return Some((Kind::Execute, name));
    }
    if let Some(name) = named("mmap PROT_EXEC ") {
        return Some((Kind::Map, name));
    }
    if let (Some(name), true) = (named("mprotect PROT_EXEC "), level_2()) {
        return (!matches!(number, 80 | 84)).then_some((Kind::Protect, name));
    }
    if let Some((name, command)) = change(number).filter(|_| level_2() || !(151..=153).contains(&number)) {
        return Some((Kind::Attributes(command), name));
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
        125 => (Kind::Read, "w-md"),
        138 | 141 => (Kind::Read, "w-imm"),
        144 => (Kind::Read, "w-sigmeta"),
        146 | 148 | 150 | 155 | 169 => (Kind::Read, "w-md2"),
        171 | 173 => (Kind::Read, "w-rm"),
        180 => (Kind::Read, "w-md3"),
        188 => (Kind::Read, "w-cap"),
        190 => (Kind::Elsewhere("mv $F $D/moved"), "badhash.good"),
        191 => (Kind::Read, "moved"),
        192 => (Kind::Elsewhere("rm $F"), "moved"),
        _ => return None,
    })
}

fn perform(scratch: &Scratch, kind: Kind, path: &Path) -> io::Result<()> {
    let by_tool = |what| match output(&mut scratch.tool(&[what, path.to_str().unwrap()]))?.status.code() {
        Some(0) => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.unwrap())),
    };
    match kind {
        Kind::Read => File::open(path).map(drop),
        Kind::Map => by_tool("execute"),
        Kind::Protect => by_tool("protect"),
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
        Kind::Attributes(script) | Kind::Elsewhere(script) => {
            // What is to be hashed may be read by nobody now; it is what the table's file is called.
            let content = format!("the quick brown fox {}", path.file_name().unwrap().to_str().unwrap());
            let hex = |algorithm| to_hex(crypto::hash(algorithm, &[content.as_bytes()]).unwrap().as_bytes());
            let mut shell = command("sh");
            shell.args(["-ec", script]).env("F", path).env("D", path.parent().unwrap());
            shell.env("HASH", hex(HashAlgorithm::Sha256)).env("HASH512", hex(HashAlgorithm::Sha512));
            shell.env("HASH1", hex(HashAlgorithm::Sha1)).env("HASH384", hex(HashAlgorithm::Sha384));
            let done = output(&mut shell)?;
            let refused = level_2() && !done.status.success();
            assert!(refused || done.status.success(), "{done:?}");
            if refused { Err(io::Error::from_raw_os_error(EPERM)) } else { Ok(()) }
        }
    }
}

/// Labels by algorithms that the policy does not let be written: the kernel refuses them, level 1 sees them and lets nothing pass by them.
fn write_what_may_not_be(scratch: &Scratch, number: u32) {
    use HashAlgorithm::{Sha1, Sha384};
    let path = scratch.on("w-md2");
    let content = b"the quick brown fox w-md2";
    let of = |algorithm| crypto::hash(algorithm, &[content]).unwrap();
    let label = match number {
        151 => encode_digest(&of(Sha1)),
        152 => [&[4, Sha1.id()][..], of(Sha1).as_bytes()].concat(),
        _ => encode_digest(&of(Sha384)),
    };
    let told = scratch.audit().matches("op=set_data cause=denied-hash-algorithm").count();
    must(command("setfattr").args(["-n", "security.ima", "-v", &format!("0x{}", to_hex(&label))]).arg(&path));
    eventually("the notice has been seen to", PATIENCE, || !opens(&path));
    assert!(!opens(&path), "{number}: it stays so");
    let explained = scratch.json(&["explain", "--json", path.to_str().unwrap()]);
    let read = explained["hooks"].as_array().unwrap().iter().find(|hook| hook["func"] == "FILE_CHECK").unwrap();
    assert_eq!(read["cause"], "denied-hash-algorithm", "{explained}");
    eventually("it is told", PATIENCE, || {
        let audit = scratch.audit();
        audit.matches("op=set_data cause=denied-hash-algorithm").count() > told
            && audit.contains("op=collect_data cause=denied-hash-algorithm")
    });
}

/// Whether EVM was content with a file where it had a key, so that IMA alone decided.
fn evm_was_content(name: &str) -> bool {
    let spoiled = name.ends_with("type9.good") || name == "w-port";
    let other_state = name.contains('.') && !name.ends_with(".good");
    !spoiled && !other_state
}

fn compare(scratch: &mut Scratch, boot: &str, mode: &str, least: usize) {
    make_files(scratch);
    // What is empty and not a second old is taken for new, as these were not.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let uuid = scratch.uuid();
    let policy: String = vector("appraise/matrix/boot3/policy")
        .lines()
        .filter(|line| !line.contains("MODULE_CHECK"))
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
        if columns[2] != boot {
            continue;
        }
        let mut otherwise = if level_2() { &OTHERWISE_AT_LEVEL_2[..] } else { &OTHERWISE[..] }.iter();
        let otherwise = otherwise.any(|(rows, _)| rows.contains(&number));
        let Some((kind, name)) = access(number, case) else {
            assert!(otherwise, "{row}: neither compared nor told");
            if boot == "boot3" && (151..=153).contains(&number) {
                write_what_may_not_be(scratch, number);
                failed = scratch.status()["counts"]["failed"].as_u64().unwrap();
            }
            continue;
        };
        assert!(!otherwise, "{row}: compared, and told");
        if boot != "boot3" && (!evm_was_content(name) || number > 121) {
            continue;
        }
        // The kernel refuses it in whatever mode, as it cannot appraise there.
        if boot != "boot3" && matches!(kind, Kind::Protect) {
            continue;
        }
        if level_2()
            && name.contains(".good")
            && !name.starts_with("badhash")
            && matches!(kind, Kind::Read)
            && !scratch.on(name).exists()
        {
            continue;
        }
        let expected = columns[4].split("; ").find_map(|record| {
            let kinds = ["appraise_data/", "collect_data/", "set_data/"].into_iter();
            kinds.filter_map(|kind| record.strip_prefix(kind)).next().map(str::to_owned)
        });
        let expected_refused = columns[3].contains("-1 E") && (level_2() || !WRITTEN.contains(&number));
        let mut attempt = || {
            let refused = match perform(scratch, kind, &scratch.on(name)) {
                Ok(()) => false,
                Err(error) if is_refusal(&error) => true,
                Err(error) => panic!("{boot} {row}: {error}"),
            };
            // What the programs of level 2 refuse is told a moment later.
            if let (true, Some(_)) = (level_2(), &expected) {
                eventually(row, PATIENCE, || scratch.asked_for_status()["counts"]["failed"].as_u64().unwrap() > failed);
            }
            let status = scratch.asked_for_status();
            let before = std::mem::replace(&mut failed, status["counts"]["failed"].as_u64().unwrap());
            let cause = (failed > before).then(|| match status["recent"][0]["cause"].as_str() {
                Some(cause) => cause.to_owned(),
                None => panic!("{boot} {row}: {}", status["recent"][0]),
            });
            // Of which the kernel writes no record.
            (refused, cause.filter(|cause| cause != "signed-file-opened-for-writing"))
        };
        let mut answer = attempt();
        // A change of attributes takes effect when its notice has been read.
        let begun = Instant::now();
        while matches!(kind, Kind::Read) && number > 122 && answer.0 != expected_refused && begun.elapsed() < PATIENCE {
            answer = attempt();
        }
        let (refused, cause) = answer;
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
    compare(&mut scratch, "boot3", "enforce", 160);
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
