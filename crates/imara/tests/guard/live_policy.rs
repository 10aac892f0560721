//! The policy replaced while the guard runs, and the mode switched for a time.

use crate::scratch::*;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const UNSIGNED_PROGRAMS: &str = "measure func=BPRM_CHECK\n";

fn write_policy(scratch: &Scratch, name: &str, text: &str) -> String {
    let path = scratch.path(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn load(scratch: &Scratch, arguments: &[&str]) -> (Option<i32>, String) {
    let done = scratch.imara(&[&["policy", "load"], arguments].concat());
    (done.status.code(), format!("{}{}", text(&done.stdout), text(&done.stderr)))
}

fn rules(scratch: &Scratch) -> Vec<(String, u64)> {
    let shown = scratch.json(&["policy", "show", "--json"]);
    let rules = shown["rules"].as_array().unwrap().iter();
    rules.map(|rule| (rule["text"].as_str().unwrap().to_owned(), rule["hits"].as_u64().unwrap())).collect()
}

#[test]
fn a_policy_is_replaced_at_once_for_what_was_let_pass_before_as_well() {
    let mut scratch = scratch!("a_policy_is_replaced_at_once_for_what_was_let_pass_before_as_well");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    settle();
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    for _ in 0..3 {
        assert!(runs(&signed) && runs(&unsigned));
    }
    let strict = write_policy(&scratch, "strict", SIGNED_PROGRAMS);
    assert_eq!(load(&scratch, &[&strict]).0, Some(0));
    assert!(runs(&signed) && !runs(&unsigned));
    // What was measured before is not measured again.
    assert_eq!((scratch.listed(&signed), scratch.listed(&unsigned)), (1, 1));
    let lax = write_policy(&scratch, "lax", UNSIGNED_PROGRAMS);
    assert_eq!(load(&scratch, &[&lax]).0, Some(0));
    assert!(runs(&signed) && runs(&unsigned));
    scratch.proven();
    assert_eq!(scratch.status()["policy"]["path"], lax.as_str());
    let audit = scratch.audit();
    assert!(audit.contains("INTEGRITY_STATUS") && audit.contains("op=policy_update cause=completed"), "{audit}");
}

#[test]
fn a_replaced_policy_is_asked_about_what_has_no_name_any_more_as_well() {
    let mut scratch = scratch!("a_replaced_policy_is_asked_about_what_has_no_name_any_more_as_well");
    let names = ["deleted", "renamed"];
    let [deleted, renamed] = names.map(|name| scratch.data(name, 0));
    settle();
    scratch.guard("measure func=FILE_CHECK mask=MAY_READ\n", "enforce");
    let open: Vec<_> = [&deleted, &renamed].iter().map(|path| fs::File::open(path).unwrap()).collect();
    let again: Vec<_> = open
        .iter()
        .map(|file| std::path::PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file))))
        .collect();
    fs::remove_file(&deleted).unwrap();
    fs::rename(&renamed, scratch.on("elsewhere")).unwrap();
    settle();
    assert!(again.iter().all(|path| opens(path) && opens(path)));
    let before = scratch.events();
    assert!(again.iter().all(|path| opens(path)));
    assert_eq!(scratch.events(), before, "they are let pass unasked");
    let strict = write_policy(&scratch, "strict", "appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n");
    assert_eq!(load(&scratch, &["--force", &strict]).0, Some(0));
    assert!(again.iter().all(|path| !opens(path)));
}

#[test]
fn hooks_that_the_first_policy_did_not_need_are_asked_from_the_load_on_and_no_longer_after_it() {
    let mut scratch =
        scratch!("hooks_that_the_first_policy_did_not_need_are_asked_from_the_load_on_and_no_longer_after_it");
    let data = scratch.data("data", 0);
    settle();
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    assert!(opens(&data));
    let files = write_policy(&scratch, "files", "appraise func=FILE_CHECK appraise_type=imasig\n");
    assert_eq!(load(&scratch, &[&files]).0, Some(0));
    assert!(!opens(&data));
    let programs = write_policy(&scratch, "programs", UNSIGNED_PROGRAMS);
    assert_eq!(load(&scratch, &[&programs]).0, Some(0));
    let before = scratch.events();
    assert!(opens(&data) && opens(&data));
    assert_eq!(scratch.events(), before, "opening is not asked about any more");
}

#[test]
fn only_what_a_change_is_about_is_asked_about_again() {
    let mut scratch = scratch!("only_what_a_change_is_about_is_asked_about_again");
    let program = scratch.signed_program("program");
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    for _ in 0..3 {
        assert!(runs(&program));
    }
    let before = scratch.events();
    let elsewhere = format!("# another file system\nappraise fsname=xfs\n{SIGNED_PROGRAMS}");
    let elsewhere = write_policy(&scratch, "elsewhere", &elsewhere);
    let loaded = scratch.json(&["policy", "load", "--json", &elsewhere]);
    assert_eq!(loaded["asked_again"], false, "{loaded}");
    assert!(runs(&program));
    assert_eq!(scratch.events(), before, "nothing watched is decided differently");
    let here = write_policy(&scratch, "here", &format!("audit func=BPRM_CHECK\n{SIGNED_PROGRAMS}"));
    let loaded = scratch.json(&["policy", "load", "--json", &here]);
    assert_eq!(loaded["asked_again"], true, "{loaded}");
    assert!(runs(&program));
    assert!(scratch.events() > before);
    eventually("the audit rule is heard", PATIENCE, || scratch.audit().contains("INTEGRITY_RULE"));
}

#[test]
fn a_policy_that_is_wrong_or_would_stop_what_runs_leaves_the_one_before_in_force() {
    let mut scratch = scratch!("a_policy_that_is_wrong_or_would_stop_what_runs_leaves_the_one_before_in_force");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.on("sleep"));
    copy("/bin/sleep", &unsigned);
    settle();
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    let in_force = rules(&scratch).into_iter().map(|(rule, _)| rule).collect::<Vec<_>>();
    let same = |scratch: &Scratch| {
        let now = rules(scratch).into_iter().map(|(rule, _)| rule).collect::<Vec<_>>();
        assert_eq!(now, in_force);
    };
    for (name, content, said) in [
        ("typo", "appraise fnc=BPRM_CHECK\n", "fnc=BPRM_CHECK"),
        ("debug", "measure func=BPRM_CHECK pcr=16\n", "PCR 16"),
        ("empty", "# nothing\n", "no rule"),
        ("nul", "measure\0\n", "byte 0"),
    ] {
        let (status, output) = load(&scratch, &[&write_policy(&scratch, name, content)]);
        assert_eq!(status, Some(1), "{name}: {output}");
        assert!(output.contains(said) && output.contains("stays in force"), "{name}: {output}");
        same(&scratch);
    }
    let (status, output) = load(&scratch, &["/does/not/exist"]);
    assert!(status == Some(1) && output.contains("/does/not/exist"), "{output}");
    // It runs now, and would not be let run again.
    let mut sleeper = start(command(&unsigned).arg("60")).unwrap();
    let strict = write_policy(&scratch, "strict", SIGNED_PROGRAMS);
    let (status, output) = load(&scratch, &[&strict, "--dry-run"]);
    assert!(status == Some(1) && output.contains(unsigned.to_str().unwrap()), "{output}");
    let (status, output) = load(&scratch, &[&strict]);
    assert!(status == Some(1) && output.contains("--force") && output.contains(&sleeper.id().to_string()), "{output}");
    same(&scratch);
    assert!(runs(&scratch.program("other")));
    assert_eq!(load(&scratch, &[&strict, "--force"]).0, Some(0));
    assert!(runs(&signed) && !runs(&scratch.on("other")));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[test]
fn rules_count_what_they_decide_and_appending_is_as_the_kernel_does_it() {
    let mut scratch = scratch!("rules_count_what_they_decide_and_appending_is_as_the_kernel_does_it");
    let program = scratch.program("program");
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    assert!(runs(&program));
    let shown = rules(&scratch);
    assert_eq!(shown.len(), 1);
    assert!(shown[0].1 > 0, "{shown:?}");
    let one = write_policy(&scratch, "one", "measure func=FILE_CHECK uid=4242\n");
    let two = write_policy(&scratch, "two", "audit func=FILE_CHECK uid=4242\n");
    let count = |arguments: &[&str]| {
        assert_eq!(load(&scratch, arguments).0, Some(0));
        rules(&scratch).len()
    };
    assert_eq!(count(&["--as-kernel", &one]), 1, "the first load replaces");
    assert_eq!(count(&["--as-kernel", &two]), 2, "later ones append");
    assert_eq!(count(&["--append", &one]), 3);
    assert_eq!(count(&[&two]), 1);
    let text_of = text(&scratch.imara(&["policy", "show", "--text"]).stdout);
    assert_eq!(text_of, "audit func=FILE_CHECK uid=4242\n");
}

#[test]
fn a_signed_policy_is_demanded_and_an_older_one_refused_also_by_the_next_guard() {
    let mut scratch = scratch!("a_signed_policy_is_demanded_and_an_older_one_refused_also_by_the_next_guard");
    let state = scratch.path("state").to_str().unwrap().to_owned();
    let demanded = ["--require-signed-policy", "--state-dir", &state];
    // A policy that is not signed.
    let failed = scratch.launch(SIGNED_PROGRAMS, "enforce", &demanded).unwrap_err();
    assert!(failed.status.code() == Some(1) && failed.stderr.contains("not signed"), "{}", failed.stderr);
    let versioned = |name: &str, version: &str| {
        let path = write_policy(&scratch, name, &format!("# policy-version: {version}\n{SIGNED_PROGRAMS}"));
        scratch.sign(&[Path::new(&path)]);
        path
    };
    let (first, second, older) = (versioned("first", "4"), versioned("second", "5"), versioned("older", "3"));
    let key = scratch.certificate();
    let mnt = scratch.mnt.clone();
    if scratch.launch_with(&mnt, Path::new(&first), &key, "enforce", &demanded).is_err() {
        panic!("a signed policy is not taken");
    }
    let status = scratch.status();
    assert_eq!(status["policy"]["version"], 4);
    assert!(status["policy"]["signed_by"].as_str().is_some_and(|key| key.len() == 8), "{status}");
    let refused = |scratch: &Scratch, path: &str, said: &str| {
        let (status, output) = load(scratch, &[path]);
        assert!(status == Some(1) && output.contains(said), "{output}");
    };
    assert_eq!(load(&scratch, &[&second]).0, Some(0));
    refused(&scratch, &first, "older");
    refused(&scratch, &older, "older");
    // Changed after it was signed; by a key that nobody knows; not signed at all; the same version with other rules.
    fs::write(&second, format!("# policy-version: 5\n{UNSIGNED_PROGRAMS}")).unwrap();
    refused(&scratch, &second, "signature is not good");
    scratch.make_key("stranger");
    let stranger = scratch.path("stranger/privkey_ima.pem");
    must(command(&scratch.imara).args(["sign", "--quiet", "-k"]).arg(stranger).arg(&second));
    refused(&scratch, &second, "signature is not good");
    scratch.sign(&[Path::new(&second)]);
    refused(&scratch, &second, "another content");
    let bare = write_policy(&scratch, "bare", SIGNED_PROGRAMS);
    refused(&scratch, &bare, "not signed");
    scratch.sign(&[Path::new(&bare)]);
    refused(&scratch, &bare, "states no version");
    // The next guard remembers.
    scratch.stop();
    let failed = scratch.launch_with(&mnt, Path::new(&first), &key, "enforce", &demanded).unwrap_err();
    assert!(failed.stderr.contains("older"), "{}", failed.stderr);
    // A detached signature is as good, and takes the label's place.
    let sixth = write_policy(&scratch, "sixth", &format!("# policy-version: 6\n{SIGNED_PROGRAMS}"));
    let mut sign = command(&scratch.imara);
    must(sign.args(["sign", "--quiet", "--sigfile", "-k"]).arg(scratch.private_key()).arg(&sixth));
    assert!(scratch.launch_with(&mnt, Path::new(&sixth), &key, "enforce", &demanded).is_ok());
    assert_eq!(scratch.status()["policy"]["version"], 6);
}

#[test]
fn the_policy_in_force_says_which_policies_may_follow_it_and_measures_them() {
    let mut scratch = scratch!("the_policy_in_force_says_which_policies_may_follow_it_and_measures_them");
    let strict =
        format!("measure func=POLICY_CHECK\nappraise func=POLICY_CHECK appraise_type=imasig\n{SIGNED_PROGRAMS}");
    scratch.guard(&strict, "enforce");
    assert!(scratch.said().contains("POLICY_CHECK"), "its own lack of a signature is told: {}", scratch.said());
    let next = write_policy(&scratch, "next", &strict);
    let (status, output) = load(&scratch, &[&next]);
    assert!(status == Some(1) && output.contains("IMA-signature-required"), "{output}");
    assert_eq!(scratch.listed(Path::new(&next)), 1, "measured before it was refused");
    scratch.sign(&[Path::new(&next)]);
    assert_eq!(load(&scratch, &[&next]).0, Some(0));
    scratch.proven();
}

#[test]
fn a_missing_policy_halts_or_not_as_it_was_told() {
    let mut scratch = scratch!("a_missing_policy_halts_or_not_as_it_was_told");
    let (mnt, key, missing) = (scratch.mnt.clone(), scratch.certificate(), scratch.path("missing"));
    let failed = scratch.launch_with(&mnt, &missing, &key, "enforce", &[]).unwrap_err();
    assert!(failed.status.code() == Some(1) && failed.stderr.contains("there is no policy"), "{}", failed.stderr);
    assert!(scratch.launch_with(&mnt, &missing, &key, "enforce", &["--missing-policy", "continue"]).is_ok());
    let unsigned = scratch.program("unsigned");
    assert!(runs(&unsigned) && rules(&scratch).is_empty());
    fs::write(&missing, SIGNED_PROGRAMS).unwrap();
    assert_eq!(load(&scratch, &[]).0, Some(0), "the file that was missing is read");
    assert!(!runs(&unsigned));
}

#[test]
fn policies_replaced_under_load_lose_no_access_and_hang_nobody() {
    let mut scratch = scratch!("policies_replaced_under_load_lose_no_access_and_hang_nobody");
    for number in 0..20 {
        let program = scratch.program(&format!("f{number}"));
        if number % 2 == 0 {
            scratch.sign(&[&program]);
        }
    }
    settle();
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    let strict =
        write_policy(&scratch, "strict", &format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=^MAY_READ\n"));
    let lax = write_policy(&scratch, "lax", UNSIGNED_PROGRAMS);
    let mnt = scratch.mnt.to_str().unwrap().to_owned();
    let mut busy: Vec<_> = (0..3)
        .map(|seed: u32| start(&mut scratch.tool(&["mix", &mnt, "20", "1500", &seed.to_string()])).unwrap())
        .collect();
    let mut loads = 0;
    while busy.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        let policy = if loads % 2 == 0 { &strict } else { &lax };
        let (status, output) = load(&scratch, &[policy, "--force"]);
        assert_eq!(status, Some(0), "{output}");
        loads += 1;
    }
    for mut child in busy {
        assert!(child.wait().unwrap().success());
    }
    assert!(loads >= 2, "{loads} loads");
    assert_eq!(load(&scratch, &[&strict, "--force"]).0, Some(0));
    for number in 0..20 {
        assert_eq!(runs(&scratch.on(&format!("f{number}"))), number % 2 == 0, "f{number}");
    }
    scratch.proven();
}

fn mode(scratch: &Scratch) -> String {
    scratch.status()["mode"].as_str().unwrap().to_owned()
}

fn rollback(scratch: &Scratch) -> Value {
    scratch.json(&["mode", "--json"])["rollback"].clone()
}

#[test]
fn a_mode_for_a_time_goes_back_by_itself_unless_it_is_confirmed() {
    let mut scratch = scratch!("a_mode_for_a_time_goes_back_by_itself_unless_it_is_confirmed");
    let unsigned = scratch.program("unsigned");
    scratch.guard(SIGNED_PROGRAMS, "log");
    assert_eq!(scratch.imara(&["mode", "--confirm"]).status.code(), Some(1), "nothing waits");
    must(&mut scratch.command(&["mode", "enforce", "--for", "2s"]));
    assert!(!runs(&unsigned) && rollback(&scratch)["to"] == "log");
    let again = scratch.imara(&["mode", "enforce", "--for", "10s"]);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("waits"), "{again:?}");
    eventually("it goes back", PATIENCE, || mode(&scratch) == "log");
    assert!(runs(&unsigned) && rollback(&scratch).is_null());
    eventually("how it ended is told", PATIENCE, || scratch.status()["rollback"]["ended"] == "rolled back");

    must(&mut scratch.command(&["mode", "enforce", "--for", "2s"]));
    must(&mut scratch.command(&["mode", "--confirm"]));
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(mode(&scratch), "enforce");

    // Whoever switches by hand has decided.
    scratch.switch("log");
    must(&mut scratch.command(&["mode", "enforce", "--for", "2s"]));
    scratch.switch("fix");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(mode(&scratch), "fix");
}

#[test]
fn a_guard_that_hangs_does_not_keep_the_mode_from_going_back() {
    let mut scratch = scratch!("a_guard_that_hangs_does_not_keep_the_mode_from_going_back");
    let unsigned = scratch.program("unsigned");
    // Nothing else is to end it.
    scratch.guard_with(SIGNED_PROGRAMS, "log", &["--sentinel", "none"]);
    must(&mut scratch.command(&["mode", "enforce", "--for", "1s"]));
    signal(Signal::STOP, scratch.pid());
    // Nobody answers: whoever opens or runs something waits, until the second process ends the guard.
    assert!(runs(&unsigned));
    let run = scratch.run.clone();
    eventually("how it ended is told", PATIENCE, || {
        fs::read_to_string(run.join("rollback.json")).is_ok_and(|state| state.contains("did not answer"))
    });
}

#[test]
fn whoever_asks_a_guard_that_hangs_is_told_so() {
    let mut scratch = scratch!("whoever_asks_a_guard_that_hangs_is_told_so");
    let file = scratch.program("program");
    // Nothing else is to end it.
    scratch.guard_with(SIGNED_PROGRAMS, "log", &["--sentinel", "none"]);
    let pid = scratch.pid();
    signal(Signal::STOP, pid);
    let commands: [&[&str]; 4] =
        [&["status"], &["mode", "enforce"], &["mode", "enforce", "--for", "1h"], &["policy", "show"]];
    std::thread::scope(|scope| {
        let asked = commands.map(|arguments| {
            let scratch = &scratch;
            scope.spawn(move || (arguments, scratch.imara(arguments)))
        });
        for thread in asked {
            let (arguments, done) = thread.join().unwrap();
            let said = text(&done.stderr);
            assert_eq!(done.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(said.contains(&format!("process {pid}")) && said.contains("kill -9"), "{arguments:?}: {said}");
        }
    });
    signal(Signal::CONT, pid);
    // What was asked meanwhile is done now; who asked has gone.
    eventually("the mode is switched", PATIENCE, || mode(&scratch) == "enforce");
    assert!(rollback(&scratch).is_null(), "{}", rollback(&scratch));
    assert!(!runs(&file));
}

#[test]
fn a_dry_run_of_a_mode_switches_nothing() {
    let mut scratch = scratch!("a_dry_run_of_a_mode_switches_nothing");
    let unsigned = scratch.program("unsigned");
    scratch.guard(SIGNED_PROGRAMS, "log");
    assert!(runs(&unsigned));
    let would = scratch.json(&["mode", "enforce", "--for", "10m", "--dry-run", "--json"]);
    assert_eq!((&would["from"], &would["mode"]), (&"log".into(), &"enforce".into()));
    assert_eq!((&would["switched"], &would["did_not_pass"]), (&false.into(), &1.into()));
    assert_eq!((mode(&scratch).as_str(), rollback(&scratch)), ("log", Value::Null));
    assert!(runs(&unsigned));
}

/// Runs a command in a thread of its own, for what may hang.
fn in_background(mut command: std::process::Command) -> std::process::Child {
    start(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null())).unwrap()
}

#[test]
fn what_is_no_file_is_no_policy_and_holds_up_nobody() {
    let mut scratch = scratch!("what_is_no_file_is_no_policy_and_holds_up_nobody");
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    let (fifo, policy) = (scratch.path("fifo"), write_policy(&scratch, "policy-with-fifo", SIGNED_PROGRAMS));
    must(command("mkfifo").arg(&fifo).arg(scratch.path("policy-with-fifo.sig")));
    for (path, said) in [(fifo.to_str().unwrap(), "not a regular file"), (&policy, "not a regular file")] {
        let (status, output) = load(&scratch, &[path]);
        assert!(status == Some(1) && output.contains(said), "{path}: {output}");
    }
    let large = write_policy(&scratch, "large", SIGNED_PROGRAMS);
    std::fs::File::create(scratch.path("large.sig")).and_then(|file| file.set_len(1 << 40)).unwrap();
    let (status, output) = load(&scratch, &[&large]);
    assert!(status == Some(1) && output.contains("longer than"), "{output}");
    assert!(scratch.alive());
}

#[test]
fn whoever_asks_or_switches_the_mode_does_not_wait_for_a_policy_that_is_being_loaded() {
    let mut scratch = scratch!("whoever_asks_or_switches_the_mode_does_not_wait_for_a_policy_that_is_being_loaded");
    let policy = write_policy(&scratch, "next", "appraise func=BPRM_CHECK\naudit func=BPRM_CHECK\n");
    // Hashing it takes a while, and it is judged before the load, as it runs. Whoever waited for the load would find it at
    // its end whatever the size; a machine that is fast, or busy, needs the larger one.
    let sizes = if level_2() { ["256M", "1G"] } else { ["3G", "12G"] };
    let answered_meanwhile = sizes.into_iter().any(|size| {
        let running = scratch.on(size);
        copy("/bin/sleep", &running);
        must(command("truncate").args(["--size", size]).arg(&running));
        scratch.guard("measure func=FILE_CHECK uid=4242\n", "log");
        let mut sleeper = start(command(&running).arg("60")).unwrap();
        let mut loading = in_background(scratch.command(&["policy", "load", &policy]));
        std::thread::sleep(Duration::from_millis(300));
        let before = (scratch.status()["policy"]["rules"].clone(), rules(&scratch).len());
        scratch.switch("off");
        let meanwhile = loading.try_wait().unwrap().is_none();
        assert!(!meanwhile || before == (1.into(), 1), "{before:?}");
        // Hashing takes as long as it takes, on a machine that has other things to do as well.
        assert_eq!(ended(&mut loading, LIFETIME).and_then(|status| status.code()), Some(0));
        assert_eq!((mode(&scratch).as_str(), rules(&scratch).len()), ("off", 2));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        scratch.stop();
        meanwhile
    });
    assert!(answered_meanwhile, "everybody waits for the load");
}

/// Makes a program name another as its interpreter.
fn set_interpreter(path: &Path, interpreter: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let header = (0..count).map(|index| table + index * size).find(|at| number(*at, 4) == 3).unwrap();
    let name = [interpreter.to_str().unwrap().as_bytes(), b"\0"].concat();
    let (offset, length) = (bytes.len() as u64, name.len() as u64);
    bytes[header + 8..header + 16].copy_from_slice(&offset.to_le_bytes());
    bytes[header + 32..header + 40].copy_from_slice(&length.to_le_bytes());
    bytes.extend(name);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_program_from_before_a_replacement_excuses_no_interpreter_after_it() {
    let mut scratch = scratch!("a_program_from_before_a_replacement_excuses_no_interpreter_after_it");
    let strict = write_policy(&scratch, "strict", SIGNED_PROGRAMS);
    for (mode, rules) in [("enforce", UNSIGNED_PROGRAMS), ("log", SIGNED_PROGRAMS)] {
        // Long to hash, so that it is judged while the rules, or the mode, change; longer where that was not enough.
        let sizes = if level_2() { ["256M", "1G"] } else { ["2G", "8G"] };
        let judged_meanwhile = sizes.into_iter().any(|size| {
            let name = format!("{mode}-{size}");
            let (program, interpreter) = (scratch.program(&format!("{name}-program")), scratch.program(&name));
            set_interpreter(&program, &interpreter);
            must(command("truncate").args(["--size", size]).arg(&program));
            scratch.guard(rules, mode);
            let mut shell = command("sh");
            shell.arg("-c").arg(&program);
            let mut slow = in_background(shell);
            std::thread::sleep(Duration::from_millis(300));
            match mode {
                "log" => scratch.switch("enforce"),
                _ => assert_eq!(load(&scratch, &[&strict, "--force"]).0, Some(0)),
            }
            let meanwhile = slow.try_wait().unwrap().is_none();
            // What becomes of it is all the same; its interpreter is no program.
            assert!(ended(&mut slow, PATIENCE).is_some());
            assert!(!runs(&interpreter), "{mode}");
            scratch.stop();
            meanwhile
        });
        assert!(judged_meanwhile, "{mode}: it is judged too soon");
    }
}

#[test]
fn the_next_policy_is_for_a_file_system_that_is_mounted_over_and_for_what_is_mounted_over_it() {
    let mut scratch =
        scratch!("the_next_policy_is_for_a_file_system_that_is_mounted_over_and_for_what_is_mounted_over_it");
    scratch.data("data", 0);
    settle();
    let beside = scratch.path("beside");
    fs::create_dir(&beside).unwrap();
    must(command("mount").arg("--bind").arg(&scratch.mnt).arg(&beside));
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    must(command("mount").args(["-t", "tmpfs", "none"]).arg(&scratch.mnt));
    let policy = write_policy(&scratch, "files", "appraise func=FILE_CHECK appraise_type=imasig\n");
    let loaded = load(&scratch, &[&policy]);
    let refused = !opens(&beside.join("data"));
    fs::write(scratch.on("above"), "on what the named directory holds now\n").unwrap();
    let above = !opens(&scratch.on("above"));
    unmount(&scratch.mnt);
    scratch.stop();
    unmount(&beside);
    assert!(loaded.0 == Some(0) && refused && above, "{loaded:?} {refused} {above}");
}

#[test]
fn a_confirmation_that_comes_while_the_mode_goes_back_is_too_late_and_says_so() {
    let mut scratch = scratch!("a_confirmation_that_comes_while_the_mode_goes_back_is_too_late_and_says_so");
    // Nothing else is to end it.
    scratch.guard_with(SIGNED_PROGRAMS, "log", &["--sentinel", "none"]);
    must(&mut scratch.command(&["mode", "enforce", "--for", "1s"]));
    signal(Signal::STOP, scratch.pid());
    std::thread::sleep(Duration::from_secs(2));
    let confirmed = scratch.imara(&["mode", "--confirm"]);
    let said = text(&confirmed.stderr);
    assert!(confirmed.status.code() == Some(1) && said.contains("did not answer and was ended"), "{confirmed:?}");
    assert!(scratch.guards.last().unwrap().end().is_some(), "the guard that hangs is still there");
}

#[test]
fn a_mode_for_longer_than_can_be_counted_waits_all_the_same() {
    let mut scratch = scratch!("a_mode_for_longer_than_can_be_counted_waits_all_the_same");
    scratch.guard(SIGNED_PROGRAMS, "log");
    must(&mut scratch.command(&["mode", "enforce", "--for", "18446744073709551615s"]));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(rollback(&scratch)["to"], "log");
    must(&mut scratch.command(&["mode", "--confirm"]));
}

#[test]
fn the_name_of_a_program_does_nothing_to_the_terminal_of_whoever_looks() {
    let mut scratch = scratch!("the_name_of_a_program_does_nothing_to_the_terminal_of_whoever_looks");
    let program = scratch.on("\u{1b}[2Jname");
    copy("/bin/sleep", &program);
    scratch.guard(UNSIGNED_PROGRAMS, "enforce");
    let mut sleeper = start(command(&program).arg("60")).unwrap();
    let strict = write_policy(&scratch, "strict", SIGNED_PROGRAMS);
    let outputs = [
        load(&scratch, &["--dry-run", &strict]).1,
        load(&scratch, &[&strict]).1,
        load(&scratch, &["--force", &strict]).1,
        {
            assert!(!runs(&program));
            text(&scratch.imara(&["status"]).stdout)
        },
    ];
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    for output in outputs {
        assert!(output.contains("[2Jname") && !output.contains('\u{1b}'), "{output:?}");
    }
}
