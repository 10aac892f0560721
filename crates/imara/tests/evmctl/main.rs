//! `evmctl`, against what ima-evm-utils 1.6.2 printed, returned and did for the same command lines.

mod both_ways;
mod hmac;
mod keys;
mod overrides;
mod tokens;

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const EVMCTL: &str = env!("CARGO_BIN_EXE_evmctl");

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}

/// The folder that the recorded command lines ran in.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let vectors = vectors();
    for (name, vector) in [
        ("k.pem", "key/rsa2048.key"),
        ("c.der", "key/rsa2048.der"),
        ("ek.pem", "key/p256.key"),
        ("ec.der", "key/p256.der"),
        ("enc.pem", "key/rsa2048-enc.key"),
        ("own.der", "key/rsa2048-ownskid.der"),
        ("combined.pem", "key/rsa2048-ownskid-combined.pem"),
        ("pcrs-sha1", "evmctl/pcrs-sha1"),
        ("pcrs-sha256", "evmctl/pcrs-sha256"),
        ("list", "evmctl/list"),
    ] {
        fs::copy(vectors.join(vector), folder.path().join(name)).unwrap_or_else(|error| panic!("{vector}: {error}"));
    }
    fs::create_dir_all(folder.path().join("tree/a/b")).unwrap();
    fs::create_dir(folder.path().join("tree/c")).unwrap();
    for name in ["tree/1", "tree/a/2", "tree/a/b/3", "tree/c/4"] {
        fs::write(folder.path().join(name), format!("{name}\n")).unwrap();
    }
    fs::write(folder.path().join("f"), "hello world\n").unwrap();
    fs::write(folder.path().join("g"), "x").unwrap();
    folder
}

/// A shell command in the folder, with our evmctl.
fn shell(folder: &Path, command: &str) -> String {
    let path = format!("{}:{}", Path::new(EVMCTL).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh").args(["-c", command]).current_dir(folder).env("PATH", path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of standard error that are the tool's own: not OpenSSL's, not of places in the original's sources, and without the
/// reasons that ours adds.
fn told(stderr: &str) -> Vec<&str> {
    let source_line = |line: &str| {
        line.split_once(' ').is_some_and(|(place, _)| {
            place.split_once(':').is_some_and(|(function, number)| {
                function.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
                    && number.parse::<u32>().is_ok()
            })
        })
    };
    let foreign = |line: &str| ["openssl: ", "reason: ", ": errno: "].iter().any(|begin| line.starts_with(begin));
    stderr.lines().filter(|line| !foreign(line) && !source_line(line)).collect()
}

/// Where ours differs on purpose.
const DIFFERENT: [&[&str]; 2] = [
    // A relative path of a key holds, too, when a directory is walked: the original signs nothing, and says 0.
    &["ima_sign", "--xattr-user", "--key", "k.pem", "-r", "tree"],
    // A hash that no label can name is refused before the content is hashed.
    &["ima_sign", "--xattr-user", "--key", "k.pem", "-n", "-a", "SHA256", "f"],
];

#[test]
fn the_recorded_command_lines_print_return_and_do_the_same() {
    let vectors: Value = serde_json::from_slice(&fs::read(vectors().join("evmctl/cases.json")).unwrap()).unwrap();
    let mut problems = Vec::new();
    for case in vectors["cases"].as_array().unwrap() {
        let arguments = case["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>();
        if DIFFERENT.contains(&arguments.as_slice()) {
            continue;
        }
        let folder = folder();
        for command in case["before"].as_array().into_iter().flatten() {
            shell(folder.path(), command.as_str().unwrap());
        }
        let mut command = Command::new(EVMCTL);
        command
            .args(&arguments)
            .current_dir(folder.path())
            .env_remove("EVMCTL_KEY_PASSWORD")
            .env_remove("EVMCTL_SIGV1");
        for (name, value) in case["env"].as_object().into_iter().flatten() {
            command.env(name, value.as_str().unwrap());
        }
        std::os::unix::process::CommandExt::arg0(&mut command, "evmctl");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(case["stdin"].as_str().unwrap_or_default().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let mut differs = |what: &str, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            problems.push(format!("{arguments:?}: {what}\n   found    {found:?}\n   recorded {expected:?}"));
        };
        if output.status.code() != case["rc"].as_i64().map(|code| code as i32) {
            differs("exit status", &output.status.code(), &case["rc"]);
        }
        if let Some(expected) = case["stdout"].as_str() {
            // An ECDSA signature is another one each time: header and length alone can be compared.
            let random = case["random_signature"].as_bool() == Some(true);
            // What a command does is told in other words.
            let (stdout, expected) = match arguments.first() {
                Some(&"help") => {
                    (stdout.lines().next().unwrap_or_default(), expected.lines().next().unwrap_or_default())
                }
                _ => (stdout.as_str(), expected),
            };
            let same = if random { stdout.get(..14) == expected.get(..14) } else { stdout == expected };
            if !same {
                differs("stdout", &stdout, &expected);
            }
        }
        for word in case["stdout_words_the_tests_look_for"].as_array().into_iter().flatten() {
            if !stdout.contains(word.as_str().unwrap()) {
                differs("stdout", &stdout, word);
            }
        }
        let (found, expected) = (told(&stderr), told(case["stderr"].as_str().unwrap_or_default()));
        if found != expected && case["random_signature"].as_bool() != Some(true) {
            differs("stderr", &found, &expected);
        }
        for (command, expected) in case["after"].as_object().into_iter().flatten() {
            let found = shell(folder.path(), command);
            if found != expected.as_str().unwrap() {
                differs(command, &found, expected);
            }
        }
    }
    assert!(problems.is_empty(), "{} differences:\n{}", problems.len(), problems.join("\n"));
}

/// What a command line printed, in the folder: exit status, standard output, standard error.
fn evmctl(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(EVMCTL)
        .args(arguments)
        .current_dir(folder)
        .env_remove("EVMCTL_KEY_PASSWORD")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_relative_key_holds_when_a_directory_is_walked() {
    let folder = folder();
    let (status, ..) =
        evmctl(folder.path(), &["ima_sign", "--xattr-user", "--key", "k.pem", "--sigfile", "-r", "tree"]);
    assert_eq!(status, Some(0));
    for file in ["tree/1", "tree/a/2", "tree/a/b/3", "tree/c/4"] {
        let verify = |more: &[&str]| evmctl(folder.path(), &[&["ima_verify", "-k", "c.der"], more, &[file]].concat()).0;
        assert_eq!((verify(&["--xattr-user"]), verify(&["--sigfile"])), (Some(0), Some(0)), "{file}");
    }
    let (status, _, told) = evmctl(folder.path(), &["ima_verify", "--xattr-user", "-k", "c.der", "-r", "tree"]);
    // The signature files themselves have none.
    assert_eq!((status, told.matches("verification is OK").count()), (Some(1), 4), "{told}");
}

#[test]
fn a_file_that_fails_in_a_directory_makes_the_command_fail() {
    let folder = folder();
    fs::create_dir(folder.path().join("tree/a/2.sig")).unwrap();
    let signing = ["ima_sign", "--xattr-user", "--key", "k.pem", "--sigfile", "-r", "tree"];
    let (status, printed, told) = evmctl(folder.path(), &signing);
    assert_eq!((status, printed.lines().count()), (Some(1), 4), "{told}");
    let (status, printed, told) = evmctl(folder.path(), &["ima_sign", "--key", "nokey", "-r", "tree"]);
    assert_eq!((status, printed.as_str()), (Some(125), ""));
    assert!(told.starts_with("Failed to open keyfile: nokey\n"), "{told}");
}

#[test]
fn verify_looks_at_every_file() {
    let folder = folder();
    let sign = ["sign", "--xattr-user", "--uuid", "--generation", "0", "--key", "k.pem", "f"];
    assert_eq!(evmctl(folder.path(), &sign).0, Some(0));
    let verify = ["verify", "--xattr-user", "--uuid", "--generation", "0", "--key", "c.der"];
    assert_eq!(evmctl(folder.path(), &[&verify[..], &["f"]].concat()).0, Some(0));
    for files in [["f", "g"], ["g", "f"]] {
        let (status, _, told) = evmctl(folder.path(), &[&verify[..], &files].concat());
        assert_eq!(status, Some(125), "{told}");
        assert!(told.contains("f: verification is OK") && told.contains("getxattr failed: g"), "{told}");
    }
}

#[test]
fn what_crashes_the_original_is_said() {
    let folder = folder();
    fs::copy(vectors().join("key/rsa2048-noskid.key"), folder.path().join("noskid.pem")).unwrap();
    fs::copy(vectors().join("key/rsa2048-noskid.der"), folder.path().join("noskid.der")).unwrap();
    assert_eq!(evmctl(folder.path(), &["ima_sign", "--xattr-user", "-k", "noskid.pem", "f"]).0, Some(0));
    for (arguments, status, said) in [
        (&["ima_measurement", "--pcrs", "pcrs-sha1", "nolist"][..], 125, "Failed to open measurement file: nolist"),
        (&["ima_verify", "--xattr-user", "-k", "noskid.der", "f"], 0, "f: verification is OK"),
        (&["ima_sign", "-n", "-k", "k.pem", "--keyid-from-cert", "noskid.der", "f"], 1, "Error reading keyid."),
        (&["sign", "-n", "-k", "k.pem", "--uuid", "--generation", "0", "--ima", "zz", "f"], 1, "Invalid --ima value"),
        (&["sign", "-n", "-k", "k.pem", "--uuid", "--generation", "0", "-a", "foo", "f"], 1, "foo"),
        (&["ima_hash", "-n", "--engine", "nope", "f"], 1, "setup_engine failed"),
        (&["ima_hash", "-n", "--provider", "nope", "f"], 1, "setup_provider failed"),
        (&["ima_verify", "-k", "/dev/zero", "f"], 1, "Failed to d2i_X509_fp key file: /dev/zero"),
        (&["ima_sign", "-n", "-k", "pkcs11:token=none", "f"], 125, "you must provide the keyid"),
    ] {
        let (found, _, told) = evmctl(folder.path(), arguments);
        assert_eq!(found, Some(status), "{arguments:?}: {told}");
        assert!(told.contains(said), "{arguments:?}: {told}");
    }
    let signed = shell(folder.path(), "printf 'zz f\\n' | evmctl sign_hash -k k.pem 2>&1; echo $?");
    assert!(signed.contains("reason: ") && signed.ends_with("\n125\n"), "{signed}");
}

#[test]
fn version_1_is_made_where_it_is_asked_for() {
    let folder = folder();
    let (status, _, told) = evmctl(folder.path(), &["ima_sign", "--rsa", "-n", "-k", "k.pem", "f"]);
    assert!(status == Some(125) && told.contains("Signature version 1 deprecated."), "{told}");
    shell(folder.path(), "openssl pkey -in k.pem -pubout -out pub.pem");
    let signed = "EVMCTL_SIGV1=1 evmctl ima_sign --rsa --xattr-user -k k.pem f 2>/dev/null | cut -c 1-4; \
                  evmctl ima_verify --rsa --xattr-user -k pub.pem f 2>&1";
    assert_eq!(shell(folder.path(), signed), "0301\nf: verification is OK\n");

    // The key as the kernel is given it, with its description.
    assert_eq!(evmctl(folder.path(), &["convert", "pub.pem"]).0, Some(125), "there is no such command without it");
    let converted = shell(folder.path(), "EVMCTL_SIGV1=1 evmctl convert pub.pem 2>&1; cat pub.pem.keyid");
    assert_eq!(converted, "Writing to pub.pem.bin\nWriting to pub.pem.keyid\n5185D8F2553EB1CA");
    let made: Value =
        serde_json::from_slice(&fs::read(vectors().join("signature/signatures_other.json")).unwrap()).unwrap();
    let made = made.as_array().unwrap().iter().find(|case| case["key_description"] == "5185D8F2553EB1CA").unwrap();
    let payload = fs::read(folder.path().join("pub.pem.bin")).unwrap();
    let payload = payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(made["pubkey_blob"], payload.as_str());
    for file in ["k.pem", "c.der", "nowhere"] {
        let line = format!("EVMCTL_SIGV1=1 evmctl convert {file} 2>&1; echo $?");
        assert!(shell(folder.path(), &line).ends_with("1\n"), "{file}");
    }
}

/// A software TPM behind a TCP socket, as ima-evm-utils' tests start one.
struct TcpTpm {
    process: std::process::Child,
    port: u16,
    _state: tempfile::TempDir,
}

impl TcpTpm {
    fn start() -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let state = tempfile::tempdir().unwrap();
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
        command.arg(format!("dir={}", state.path().display()));
        command.args(["--server", &format!("type=tcp,port={port}")]);
        let process = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let tpm = Self { process, port, _state: state };
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(tpm);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("swtpm does not answer at port {port}");
    }
}

impl Drop for TcpTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_boot_aggregate_is_read_from_the_tpm_that_the_environment_names() {
    let name = "the_boot_aggregate_is_read_from_the_tpm_that_the_environment_names";
    if fs::exists("/sys/class/tpm/tpm0").unwrap_or(true) {
        println!("skipped: {name}: this machine has a TPM, which is asked first");
        return;
    }
    let Some(tpm) = TcpTpm::start() else {
        println!("skipped: {name}: no swtpm: apt install swtpm");
        return;
    };
    let ask = |kind: &str, port: u16| {
        let mut command = Command::new(EVMCTL);
        command.arg("ima_boot_aggregate").stdin(Stdio::null());
        command.env("TPM_INTERFACE_TYPE", "socsim").env("TPM_SERVER_TYPE", kind);
        command.env("TPM_SERVER_NAME", "127.0.0.1").env("TPM_COMMAND_PORT", port.to_string());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // SHA-1 of 160 zeros, SHA-256 of 320.
    let aggregates = "sha1:9797edf8d0eed36b1cf92547816051c8af4e45ee\n\
                      sha256:7b6436b0c98f62380866d9432c2af0ee08ce16a171bda6951aecd95ee1307d61\n";
    assert_eq!(ask("raw", tpm.port), (Some(0), aggregates.to_owned(), String::new()));
    let (status, printed, told) = ask("mssim", tpm.port);
    assert_eq!((status, printed.as_str()), (Some(125), ""), "{told}");
    assert!(told.contains("TPM_SERVER_TYPE is mssim") && told.contains("Failed to read any TPM PCRs"), "{told}");
    drop(tpm);
    let (status, _, told) = ask("raw", 1);
    assert!(status == Some(125) && told.contains("reason: "), "{told}");
}
