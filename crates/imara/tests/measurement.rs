//! `imara measurement`, run as a program on lists from a real kernel.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn vector(case: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/measurement_list").join(case).join(file)
}

fn imara(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_imara"))
        .arg("measurement")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A program that needs no input may be gone before it is written.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn show_prints_the_kernels_own_bytes() {
    for case in ["tcb", "tpl-ima", "fmt-many", "tpl-evm-sig", "buf", "verity"] {
        let (list, lines) = (vector(case, "binary"), vector(case, "ascii"));
        for (arguments, input, expected) in [
            (vec!["show", path(&list)], None, &lines),
            (vec!["show", "--ascii", path(&list)], None, &lines),
            (vec!["show", "--binary", path(&list)], None, &list),
            (vec!["show", "--binary", path(&lines)], None, &list),
            (vec!["show", "--ascii", "-"], Some(&list), &lines),
            (vec!["convert", path(&list), "--to", "binary"], None, &list),
            (vec!["convert", path(&lines), "--to", "binary"], None, &list),
        ] {
            let input = input.map_or_else(Vec::new, |file: &PathBuf| std::fs::read(file).unwrap());
            let output = imara(&arguments, &input);
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
            assert!(output.stdout == std::fs::read(expected).unwrap(), "{arguments:?}");
        }
    }
}

#[test]
fn conversion_to_the_other_byte_order_and_back_changes_nothing() {
    let list = std::fs::read(vector("fmt-many", "binary")).unwrap();
    let big = imara(&["convert", "-", "--to", "binary-be"], &list).stdout;
    assert_ne!(big, list);
    assert!(imara(&["convert", "-", "--to", "binary"], &big).stdout == big);
    assert!(imara(&["convert", "-", "--to", "binary-le"], &big).stdout == list);
    let output = imara(&["verify", "-", "--pcrs", path(&vector("fmt-many", "pcrs"))], &big);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn json_has_every_entry_and_a_schema_number() {
    let output = imara(&["show", "--json", path(&vector("tcb", "binary"))], b"");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&list["schema"], list["entries"].as_array().unwrap().len()), (&1.into(), 27));
    let signed = &list["entries"][12];
    assert_eq!((&signed["entry"], &signed["pcr"]), (&13.into(), &10.into()));
    assert_eq!(signed["path"], "/mnt/signed-alpha");
    assert!(signed["signature"].as_str().unwrap().starts_with("030204703bdeef"));
    assert_eq!(signed["fields"][0]["field"], "d-ng");
    let whole = std::fs::read(vector("tcb", "binary")).unwrap();
    for (input, entries) in [(&b""[..], 0), (b"no list", 0), (&whole[..150], 1)] {
        let output = imara(&["show", "--json", "-"], input);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(list["entries"].as_array().unwrap().len(), entries);
        assert_eq!(list.get("error").is_some(), output.status.code() == Some(1));
    }
}

#[test]
fn verify_proves_kernel_lists_in_either_form() {
    for case in ["tcb", "tcb-sha1", "tcb-sha512", "tcb-sha512-nomod", "tpl-ima", "custom", "fmt-d-n", "ramfs-root"] {
        for file in ["binary", "ascii"] {
            let output = imara(&["verify", path(&vector(case, file)), "--pcrs", path(&vector(case, "pcrs"))], b"");
            assert_eq!(output.status.code(), Some(0), "{case} {file}: {}", text(&output.stderr));
            assert!(text(&output.stdout).contains("\nproven: all "), "{case} {file}");
        }
    }
}

#[test]
fn verify_says_what_it_cannot_prove() {
    let alone = imara(&["verify", path(&vector("tcb", "binary"))], b"");
    assert_eq!(alone.status.code(), Some(0));
    assert!(text(&alone.stdout).contains("NOT proven: no PCR values were given."));

    let grown = ["tcb", "tpl-ima"].map(|case| std::fs::read(vector(case, "binary")).unwrap()).concat();
    let pcrs = vector("tcb", "pcrs");
    let accepted = imara(&["verify", "-", "--prefix", "--pcrs", path(&pcrs)], &grown);
    assert_eq!(accepted.status.code(), Some(0), "{}", text(&accepted.stderr));
    let said = text(&accepted.stdout);
    assert!(said.contains("proven: entries 1 to 27; NOT proven: the 27 after them"), "{said}");
    let whole = imara(&["verify", "-", "--pcrs", path(&pcrs)], &grown);
    assert_eq!(whole.status.code(), Some(1));
    assert!(text(&whole.stderr).contains("prove only the first 27 of 54 entries"));
}

#[test]
fn verify_refuses_and_names_the_entry() {
    let list = std::fs::read(vector("tcb", "binary")).unwrap();
    let pcrs = vector("tcb", "pcrs");
    let mut edited = list.clone();
    let at = edited.windows(6).position(|bytes| bytes == b"empty-").unwrap();
    edited[at] = b'E';
    for (name, input, expected) in [
        ("edited", &edited[..], "entry 6 (/mnt/Empty-alpha), at offset "),
        ("cut", &list[..list.len() - 5], "the list ends within the fields: "),
        ("first entry missing", &list[106..], "but the list gives"),
        ("empty", b"", "not proven: the list has no entries"),
        ("no list", b"\x7fELF", "this is no measurement list: it begins with 7f454c46"),
    ] {
        let output = imara(&["verify", "-", "--pcrs", path(&pcrs)], input);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(text(&output.stderr).contains(expected), "{name}: {}", text(&output.stderr));
        let report = imara(&["verify", "--json", "-", "--pcrs", path(&pcrs)], input);
        assert_eq!(report.status.code(), Some(1), "{name}");
        let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
        assert_eq!((&report["schema"], &report["verdict"]), (&1.into(), &"refused".into()), "{name}");
    }
}

#[test]
fn pcr_values_are_taken_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let sysfs = folder.path().join("tpm0");
    std::fs::create_dir_all(sysfs.join("pcr-sha1")).unwrap();
    let (mut tpm2_pcrread, mut evmctl) = ("  sha1:\n".to_owned(), String::new());
    for line in std::fs::read_to_string(vector("tcb", "pcrs")).unwrap().lines() {
        let Some((pcr, value)) = line.strip_prefix("sha1:").and_then(|line| line.split_once(' ')) else { continue };
        std::fs::write(sysfs.join("pcr-sha1").join(pcr), format!("{value}\n")).unwrap();
        tpm2_pcrread += &format!("    {pcr:<2}: 0x{value}\n");
        evmctl += &format!("PCR-{pcr:0>2}: {value}\n");
    }
    for (name, content) in [("tpm2_pcrread", tpm2_pcrread), ("evmctl", evmctl)] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let list = vector("tcb", "binary");
    for pcrs in
        [folder.path().join("tpm2_pcrread"), folder.path().join("evmctl"), sysfs.clone(), sysfs.join("pcr-sha1")]
    {
        let output = imara(&["verify", path(&list), "--pcrs", path(&pcrs)], b"");
        assert_eq!(output.status.code(), Some(0), "{pcrs:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("sha1 PCR 10, entries 27: matches\nboot_aggregate: not checked"));
    }
    let sha256 = format!("sha256,{}", path(&folder.path().join("evmctl")));
    let output = imara(&["verify", path(&list), "--pcrs", &sha256], b"");
    assert!(text(&output.stderr).contains("sha256 PCR value has 20 bytes, 32 needed"), "{}", text(&output.stderr));
}

#[test]
fn wrong_command_lines_and_missing_things_have_their_own_statuses() {
    let folder = tempfile::tempdir().unwrap();
    let list = vector("tcb", "binary");
    for (arguments, status, expected) in [
        (vec!["convert", path(&list), "--to", "xml"], 2, "xml"),
        (vec!["show", "--json", "--binary", path(&list)], 2, "cannot be used with"),
        (vec!["verify", "-", "--pcrs", "-"], 2, "cannot both come from standard input"),
        (vec!["verify", "/nonexistent/list"], 1, "/nonexistent/list: No such file"),
        (vec!["verify", path(&list), "--pcrs", "/nonexistent/pcrs"], 1, "/nonexistent/pcrs: No such file"),
        (vec!["verify", path(&list), "--pcrs", path(&list)], 1, "binary"),
    ] {
        let output = imara(&arguments, b"");
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    }
    if !Path::new("/sys/kernel/security/ima").exists() {
        let output = imara(&["show", "--runtime-dir", path(folder.path())], b"");
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    }
    std::fs::copy(&list, folder.path().join("measurements")).unwrap();
    let output = imara(&["show", "--binary", "--runtime-dir", path(folder.path())], b"");
    assert!(output.stdout == std::fs::read(&list).unwrap());
}

/// What each entry of a list has as its content, as `sha256sum` would write it: `{ALGORITHM:HEX}  {PATH}`.
fn contents(case: &str) -> String {
    let shown = imara(&["show", "--json", path(&vector(case, "binary"))], b"");
    let list: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let mut lines = String::from("# what ran\n");
    for entry in list["entries"].as_array().unwrap() {
        let (Some(digest), Some(name)) = (entry["digest"].as_str(), entry["path"].as_str()) else { continue };
        if entry["violation"] == false {
            // A name with a newline is escaped in such lists.
            lines += &match name.contains('\n') {
                true => format!("\\{digest}  {}\n", name.replace('\n', "\\n")),
                false => format!("{digest}  {name}\n"),
            };
        }
    }
    lines
}

#[test]
fn signatures_of_a_list_are_verified_with_the_keys_given() {
    let key = |name: &str| vector("../measurement_list_keys", name);
    let keys = [key("ima.der"), key("rsa4096.der"), key("evm.der")];
    let (list, pcrs) = (vector("tcb", "binary"), vector("tcb", "pcrs"));
    let run = |keys: &[PathBuf], json: bool| {
        let mut arguments = vec!["verify", path(&list), "--pcrs", path(&pcrs)];
        arguments.extend(keys.iter().flat_map(|key| ["--key", path(key)]));
        arguments.extend(json.then_some("--json"));
        imara(&arguments, b"")
    };
    let all = run(&keys, false);
    assert_eq!(all.status.code(), Some(0), "{}", text(&all.stderr));
    assert!(text(&all.stdout).contains("signatures: verified 3, failed 0; unsigned 19, over metadata too 1, "));
    // Without one of the keys its entries are named, although the list is proven.
    let one = run(&keys[..1], false);
    assert_eq!(one.status.code(), Some(1));
    assert!(text(&one.stdout).contains("proven: all 27 entries"));
    assert!(text(&one.stderr).contains("entry 14 (/mnt/signed512-alpha): unknown key id 6d693838"));
    let report: serde_json::Value = serde_json::from_slice(&run(&keys[..1], true).stdout).unwrap();
    assert_eq!(report["verdict"], "proven");
    assert_eq!(report["contents"]["signatures"]["failed"], 2);
    assert_eq!(report["contents"]["findings"][0]["entry"], 14);
}

#[test]
fn contents_that_no_reference_names_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let reference = folder.path().join("reference");
    let (list, pcrs) = (vector("tcb", "binary"), vector("tcb", "pcrs"));
    let run = |lines: &str| {
        std::fs::write(&reference, lines).unwrap();
        imara(&["verify", path(&list), "--pcrs", path(&pcrs), "--reference", path(&reference)], b"")
    };
    let meant = contents("tcb");
    let all = run(&meant);
    assert_eq!(all.status.code(), Some(0), "{}", text(&all.stderr));
    assert!(text(&all.stdout).contains("another content 0, not named 0;"), "{}", text(&all.stdout));

    let gone: String = meant.split_inclusive('\n').filter(|line| !line.ends_with(" /mnt/cat\n")).collect();
    let unlisted = run(&gone);
    assert_eq!(unlisted.status.code(), Some(1));
    assert!(text(&unlisted.stderr).contains("(/mnt/cat): no reference names it; its content is sha256:3d9f2889"));

    let other = meant.replace(
        "3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6  /mnt/cat",
        &format!("{}  /mnt/cat", "00".repeat(32)),
    );
    let changed = run(&other.replace("sha256:00", "00"));
    assert_eq!(changed.status.code(), Some(1));
    assert!(text(&changed.stderr).contains("(/mnt/cat): its content is sha256:3d9f2889"), "{}", text(&changed.stderr));
    assert!(text(&changed.stderr).contains("1 entry did not pass by the keys and references given"));

    let wrong = run("nothing\n");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("line 1: `nothing` is no digest"));
}

#[test]
fn the_firmwares_event_log_is_held_against_the_pcrs_and_the_first_entry() {
    let log = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/tpm/event_log").join(name);
    let folder = tempfile::tempdir().unwrap();
    // A proof as some have it: PCR 10 alone.
    let only = folder.path().join("pcr10");
    let pcrs = vector("tcb", "pcrs");
    let lines = std::fs::read_to_string(&pcrs).unwrap();
    let ten: String = lines.split_inclusive('\n').filter(|line| line.contains(":10 ")).collect();
    std::fs::write(&only, ten).unwrap();
    let list = vector("tcb", "binary");
    for (name, pcrs, log, status, said) in [
        ("all PCRs", &pcrs, log("debian-seabios.bin"), 0, "event log: events 14; 20 of 20 PCR values given agree"),
        ("PCR 10", &only, log("debian-seabios.bin"), 0, "boot_aggregate: sums up the PCRs that the event log comes to"),
        (
            "another machine's log",
            &pcrs,
            log("debian-ovmf.bin"),
            1,
            "the event log has 4 events for sha1 PCR 0 and comes to",
        ),
        ("another's, PCR 10", &only, log("debian-ovmf.bin"), 1, "boot_aggregate does not sum up"),
        ("no log", &pcrs, list.clone(), 1, "--event-log takes the firmware's log"),
    ] {
        let output = imara(&["verify", path(&list), "--pcrs", path(pcrs), "--event-log", path(&log)], b"");
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{name}: {all}");
        assert!(all.contains(said), "{name}: {all}");
    }
}
