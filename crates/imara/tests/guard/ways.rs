//! Each way of running code that docs/guard.md lists. By whatever name, mount or mapping: at level 1; `tests/vm/scenarios/level2-reach` and
//! `kernel-reach` try the same ways with the same program where the kernel itself refuses. What is around them: at both levels.

use crate::scratch::*;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the program ends with where the kernel has no such way.
const NO_SUCH_WAY: i32 = 201;

const SIGNED_CODE: &str = "measure func=BPRM_CHECK\nmeasure func=MMAP_CHECK mask=MAY_EXEC\n\
                           appraise func=BPRM_CHECK appraise_type=imasig\nappraise func=MMAP_CHECK appraise_type=imasig\n";

/// By whatever name or mount a file is executed.
const EXECUTED: [&str; 16] = [
    "exec",
    "check",
    "descriptor",
    "proc",
    "root",
    "deleted",
    "nameless",
    "handle",
    "link",
    "symlink",
    "bind",
    "user-bind",
    "file-bind",
    "chroot",
    "pivot",
    "detached",
];
/// However it is mapped.
const MAPPED: [&str; 5] = ["map", "shared", "protect", "implied", "ring"];
/// Its content read, and run where nobody is asked.
const ELSEWHERE: [&str; 5] = ["copy", "mount", "memory", "anonymous", "debugger"];

/// The program that tries the ways, and copies of it on the scratch file system, of which the first is signed.
struct Ways {
    tool: PathBuf,
    signed: PathBuf,
    unsigned: PathBuf,
}

impl Ways {
    fn new(scratch: &Scratch) -> Self {
        let (source, tool) = (scratch.path("reach.c"), scratch.path("reach"));
        fs::write(&source, include_str!("../../../../tests/vm/helpers/reach.c")).unwrap();
        // Without libraries, so that it runs with any root.
        must(command("cc").args(["-O2", "-static", "-o"]).arg(&tool).arg(&source));
        let (signed, unsigned) = (scratch.on("signed"), scratch.on("unsigned"));
        copy(&tool, &signed);
        copy(&tool, &unsigned);
        scratch.sign(&[&signed]);
        settle();
        Self { tool, signed, unsigned }
    }

    fn command(&self, way: &str, file: &Path) -> Command {
        let mut tool = command(&self.tool);
        tool.arg(way).arg(file);
        tool
    }

    /// How trying it ended: 0, or the error's number.
    fn attempt(&self, way: &str, file: &Path) -> i32 {
        let done = output(&mut self.command(way, file)).unwrap();
        let code = done.status.code().unwrap_or_else(|| panic!("{way}: {done:?}"));
        if code == NO_SUCH_WAY {
            println!("{way}: not in this kernel");
        }
        code
    }

    /// The ways of a list that did not end as they should.
    fn others(&self, ways: &[&'static str], file: &Path, expected: i32) -> Vec<(&'static str, i32)> {
        let tried = ways.iter().map(|way| (*way, self.attempt(way, file)));
        tried.filter(|(_, code)| ![expected, NO_SUCH_WAY].contains(code)).collect()
    }
}

#[test]
fn what_is_not_signed_runs_by_no_name_mount_or_mapping() {
    let mut scratch = scratch!("what_is_not_signed_runs_by_no_name_mount_or_mapping");
    let ways = Ways::new(&scratch);
    for list in [&EXECUTED[..], &MAPPED, &ELSEWHERE] {
        assert_eq!(ways.others(list, &ways.unsigned, 0), [], "without a guard");
    }
    scratch.guard_with(SIGNED_CODE, "enforce", &["--level", "1"]);
    for list in [&EXECUTED[..], &MAPPED, &ELSEWHERE] {
        assert_eq!(ways.others(list, &ways.signed, 0), [], "what is signed runs in every way");
    }
    assert_eq!(ways.others(&EXECUTED, &ways.unsigned, EPERM), []);
    assert_eq!(ways.others(&MAPPED, &ways.unsigned, EPERM), []);
    // Where libraries are judged, what could be one cannot even be read.
    assert_eq!(ways.others(&ELSEWHERE[..4], &ways.unsigned, EPERM), []);
    assert_eq!(scratch.listed(&ways.unsigned), 1);
    assert!(scratch.alive());
    scratch.proven();
}

#[test]
fn content_that_is_copied_to_where_nobody_is_asked_is_not_seen_at_level_1() {
    let mut scratch = scratch!("content_that_is_copied_to_where_nobody_is_asked_is_not_seen_at_level_1");
    let ways = Ways::new(&scratch);
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--level", "1"]);
    assert_eq!(ways.others(&EXECUTED, &ways.unsigned, EPERM), []);
    // As docs/guard.md says: should one of these be seen one day, the table is to say so.
    assert_eq!(ways.others(&ELSEWHERE, &ways.unsigned, 0), []);
    assert_eq!(ways.others(&MAPPED, &ways.unsigned, 0), [], "no rule for it");
}

/// Somebody who has something open and goes on when told.
struct Waiting {
    child: Child,
}

impl Waiting {
    fn new(command: &mut Command) -> Self {
        let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Self { child }
    }

    fn go_on(mut self) -> i32 {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        ended(&mut self.child, PATIENCE).expect("it ends").code().unwrap()
    }
}

#[test]
fn what_was_open_or_running_before_the_guard_goes_on_and_is_asked_about_anew() {
    let mut scratch = scratch!("what_was_open_or_running_before_the_guard_goes_on_and_is_asked_about_anew");
    let ways = Ways::new(&scratch);
    let data = scratch.data("data", 0);
    scratch.sign(&[&data]);
    settle();
    let mut writer = OpenOptions::new().append(true).open(&data).unwrap();
    let held = Waiting::new(&mut ways.command("held", &ways.unsigned));
    let running = Waiting::new(command(&ways.unsigned).arg("held").arg(&ways.signed));
    let policy = format!("{SIGNED_CODE}appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n");
    scratch.guard_with(&policy, "enforce", &level());
    assert!(is_refused(ways.attempt("exec", &ways.unsigned)));
    // By a descriptor from before: not seen at level 1; at level 2 it takes a verdict, and nobody has judged it yet.
    for (mapping, who) in [(held, "what is unsigned"), (running, "who is unsigned, what is signed")] {
        let code = mapping.go_on();
        assert!(if level_2() { is_refused(code) } else { code == 0 }, "{who}: {code}");
    }
    assert!(is_refused(ways.attempt("exec", &ways.unsigned)) && ways.attempt("map", &ways.signed) == 0);
    assert!(opens(&data) && opens(&data));
    writer.write_all(b"by a descriptor from before\n").unwrap();
    assert!(!opens(&data), "changed by a descriptor from before");
    drop(writer);
    assert!(!opens(&data));
}

/// A script of this content that may be executed.
fn script(path: &Path, content: &str) -> PathBuf {
    // By another process, whose descriptor no child of ours inherits.
    must(command("sh").args(["-c", "printf %s \"$1\" > \"$2\"", "sh", content]).arg(path));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}

#[test]
fn each_script_of_a_chain_of_interpreters_is_asked_about() {
    let mut scratch = scratch!("each_script_of_a_chain_of_interpreters_is_asked_about");
    // The kernel takes four interpreters that are scripts themselves, and no more.
    let mut chain = vec![script(&scratch.on("script-0"), "#!/bin/true\n")];
    for number in 1..6 {
        let named = format!("#!{}\n", chain.last().unwrap().display());
        chain.push(script(&scratch.on(&format!("script-{number}")), &named));
    }
    let all: Vec<&Path> = chain.iter().map(PathBuf::as_path).collect();
    scratch.sign(&all);
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &level());
    assert!(runs(&chain[4]));
    let too_long = output(&mut command(&chain[5])).expect_err("one too many");
    assert_eq!(too_long.raw_os_error(), Some(40), "{too_long}: the kernel's own ELOOP");
    for (number, link) in chain[..5].iter().enumerate() {
        must(command("setfattr").args(["-x", "security.ima"]).arg(link));
        eventually("the script is refused", PATIENCE, || !runs(link));
        assert!(!runs(&chain[4]), "its interpreter {number} is not signed");
        scratch.sign(&[link]);
        eventually("signed again", PATIENCE, || runs(link));
    }
    assert!(runs(&chain[4]));
}

#[test]
fn a_script_that_is_given_to_an_interpreter_is_read_and_not_executed() {
    let mut scratch = scratch!("a_script_that_is_given_to_an_interpreter_is_read_and_not_executed");
    let ways = Ways::new(&scratch);
    let unsigned = script(&scratch.on("script"), "exit 7\n");
    let by_hand = |how: &str| shell_status(&format!("{how} '{}'", unsigned.display()));
    for (policy, named, is_told) in
        [(SIGNED_PROGRAMS, 7, true), ("appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n", 2, false)]
    {
        scratch.guard_with(policy, "enforce", &level());
        // What /bin/sh says when it cannot open its script.
        assert_eq!(by_hand("/bin/sh"), named, "{policy}");
        assert_eq!(by_hand("/bin/sh <"), named, "{policy}");
        // An interpreter that asks the kernel about its script (AT_EXECVE_CHECK) is told what executing it would be.
        let code = ways.attempt("check", &unsigned);
        assert!(code == NO_SUCH_WAY || if is_told { is_refused(code) } else { code == 0 }, "{policy}: {code}");
        assert_eq!(shell_status("echo exit 7 | /bin/sh"), 7, "no file: not seen");
        scratch.stop();
    }
}

fn shell_status(script: &str) -> i32 {
    output(command("sh").args(["-c", script])).unwrap().status.code().unwrap()
}

#[test]
fn the_dynamic_loader_loads_nothing_that_is_not_signed_however_it_is_told_to() {
    let mut scratch = scratch!("the_dynamic_loader_loads_nothing_that_is_not_signed_however_it_is_told_to");
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let Some(loader) = loaders.iter().find(|loader| Path::new(loader).exists()) else {
        println!("skipped: the_dynamic_loader_loads_nothing…: needs the loader of this machine");
        return;
    };
    let file = |name: &str, content: &str| {
        fs::write(scratch.path(name), content).unwrap();
        scratch.path(name)
    };
    // Ends with 7 where the library that was slipped in answers.
    let good = file("good.c", "int answer(void) { return 0; }\n");
    let evil = file(
        "evil.c",
        "#include <unistd.h>\nint answer(void) { return 7; }\nunsigned la_version(unsigned v) { _exit(7); }\n\
         __attribute__((constructor)) static void loaded(void) { _exit(7); }\n",
    );
    let main = file("main.c", "int answer(void);\nint main(void) { return answer(); }\n");
    let (libraries, evils) = (scratch.on("lib"), scratch.on("evil"));
    for folder in [&libraries, &evils] {
        fs::create_dir(folder).unwrap();
    }
    let (library, other) = (libraries.join("libanswer.so"), evils.join("libanswer.so"));
    must(command("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&good));
    must(command("cc").args(["-shared", "-fPIC", "-o"]).arg(&other).arg(&evil));
    let program = scratch.on("program");
    let runpath = format!("-Wl,--enable-new-dtags,-rpath,{}", libraries.display());
    must(command("cc").arg("-o").arg(&program).arg(&main).arg("-L").arg(&libraries).args(["-lanswer", &runpath]));
    let unsigned = scratch.program("unsigned");
    let outside = scratch.path("outside");
    copy(&program, &outside);
    let ends = |command: &mut Command| output(command).unwrap().status.code();
    let with = |name: &str, value: &Path, program: &Path| ends(command(program).env(name, value));
    let by_hand = |program: &Path| ends(command(loader).arg(program));
    let ways = [("LD_PRELOAD", &other), ("LD_LIBRARY_PATH", &evils), ("LD_AUDIT", &other)];
    for (name, value) in ways {
        assert_eq!(with(name, value, &program), Some(7), "{name} without a guard");
    }
    scratch.sign(&[&program, &library]);
    settle();
    scratch.guard_with(SIGNED_CODE, "enforce", &level());
    assert_eq!(ends(&mut command(&program)), Some(0));
    assert_eq!(by_hand(&program), Some(0), "by the loader, called by hand");
    assert_ne!(by_hand(&unsigned), Some(0), "it is mapped, and not executed");
    for program in [&program, &outside] {
        for (name, value) in ways {
            assert_ne!(with(name, value, program), Some(7), "{name} for {}", program.display());
        }
    }
    scratch.sign(&[&other]);
    eventually("what is signed is loaded", PATIENCE, || with("LD_PRELOAD", &other, &program) == Some(7));
    // With rules for programs alone the loader is a program that maps what it likes, as under the kernel's IMA.
    scratch.stop();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &level());
    assert_eq!(by_hand(&unsigned), Some(0));
    assert!(!runs(&unsigned));
    drop(File::open(&unsigned).unwrap());
}

#[test]
fn an_interpreter_of_binfmt_misc_is_asked_about_also_where_the_kernel_has_opened_it_ahead() {
    let mut scratch =
        scratch!("an_interpreter_of_binfmt_misc_is_asked_about_also_where_the_kernel_has_opened_it_ahead");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    let place = scratch.path("binfmt");
    fs::create_dir(&place).unwrap();
    let document = script(&scratch.path("document"), "IMARA-TEST");
    settle();
    // In a user namespace of its own, so that the machine's formats stay as they are. F opens the interpreter at once.
    let registering = |interpreter: &Path, flags: &str| {
        let script = format!(
            "mount -t binfmt_misc none '{place}' && echo ':imara:M::IMARA-TEST::{}:{flags}' > '{place}/register' || exit 201\n\
             echo open; read line; exec '{}'",
            interpreter.display(),
            document.display(),
            place = place.display()
        );
        let mut unshare = command("unshare");
        unshare.args(["-Urm", "sh", "-c", &script]).stderr(Stdio::null());
        unshare
    };
    let probe = output(registering(&signed, "F").stdin(Stdio::null())).unwrap();
    if probe.status.code() == Some(NO_SUCH_WAY) {
        println!(
            "skipped: an_interpreter_of_binfmt_misc…: needs binfmt_misc in user namespaces (Linux 6.7): {probe:?}"
        );
        return;
    }
    let ahead = Waiting::new(&mut registering(&unsigned, "F"));
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &level());
    assert_eq!(ahead.go_on(), 126, "opened before the guard came");
    assert_eq!(Waiting::new(&mut registering(&unsigned, "")).go_on(), 126);
    for flags in ["", "F"] {
        assert_eq!(Waiting::new(&mut registering(&signed, flags)).go_on(), 0, "{flags}");
    }
    assert_eq!(output(&mut registering(&unsigned, "F")).unwrap().status.code(), Some(NO_SUCH_WAY), "opened under it");
}

#[test]
fn what_is_changed_beneath_the_file_system_is_seen_once_nobody_remembers_the_file() {
    let mut scratch = scratch!("what_is_changed_beneath_the_file_system_is_seen_once_nobody_remembers_the_file");
    let (file, image) = (scratch.on("file"), scratch.path("image"));
    fs::write(&file, "the content that was signed\n").unwrap();
    scratch.sign(&[&file]);
    must(command("sync").arg("-f").arg(&file));
    settle();
    let policy = "appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n";
    scratch.guard_with(policy, "enforce", &level());
    assert!(opens(&file));
    // As whoever may write the disk can, with the page that the kernel still has dropped.
    write_over(&image, "the content that ", "what nobody ever ");
    let (other, path) = ("what nobody ever was signed\n", file.display());
    let read = || text(&shell(&format!("dd if='{path}' iflag=nocache count=0 status=none; cat '{path}' 2>&1")).stdout);
    eventually("the file shows what was written beneath", PATIENCE, || read() == other);
    scratch.stop();
    scratch.guard_with(policy, "enforce", &level());
    assert!(!opens(&file), "another guard remembers nothing");
}

#[test]
fn what_did_not_pass_in_another_mount_namespace_is_not_taken_for_what_has_its_path_here() {
    let mut scratch = scratch!("what_did_not_pass_in_another_mount_namespace_is_not_taken_for_what_has_its_path_here");
    let (inside, here) = (scratch.on("container"), scratch.on("usr"));
    for folder in [&inside, &here] {
        fs::create_dir(folder).unwrap();
        copy("/bin/true", &folder.join("program"));
    }
    let (named, plain) = (here.join("program"), scratch.program("plain"));
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "log", &level());
    let script = format!("mount --bind '{}' '{}' && exec '{}'", inside.display(), here.display(), named.display());
    must(command("unshare").args(["-m", "sh", "-c", &script]));
    assert!(runs(&plain));
    assert_eq!(scratch.listed(&named), 1, "as it is named there");
    let list = scratch.imara(&["report", "--paths"]);
    assert_eq!(text(&list.stdout).lines().collect::<Vec<_>>(), [plain.to_str().unwrap()], "{list:?}");
    let left_out = format!("left out: 1 file, such as {}", named.display());
    assert!(text(&list.stderr).contains(&left_out), "{list:?}");
    assert!(text(&scratch.imara(&["report"]).stdout).contains("not to be labelled by these paths: 1 file"));
    eventually("it is said on standard error", PATIENCE, || {
        scratch
            .said()
            .lines()
            .any(|line| line.contains(named.to_str().unwrap()) && line.contains("its mount namespace"))
    });
    assert!(!scratch.said().lines().any(|line| line.contains("plain") && line.contains("mount namespace")));
}
