//! The guard's own files on what it watches: no access waits for one of its own.

use crate::scratch::*;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};

/// `listener DIRECTORY PROCESS`: names, until its input ends, every file of DIRECTORY's file system that the process opens.
const LISTENER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <unistd.h>

int main(int count, char **arguments) {
    alarm(60);
    int group = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_NONBLOCK, O_RDONLY);
    if (count != 3 || group < 0) return 1;
    if (fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN | FAN_OPEN_EXEC, AT_FDCWD, arguments[1])) return 2;
    puts("listening");
    fflush(stdout);
    struct pollfd both[2] = {{.fd = 0, .events = POLLIN}, {.fd = group, .events = POLLIN}};
    for (int ending = 0;;) {
        char buffer[65536] __attribute__((aligned(8))), link[64], path[4096];
        if (!ending && poll(both, 2, -1) > 0 && both[0].revents) ending = 1;
        ssize_t size = read(group, buffer, sizeof buffer);
        if (size <= 0 && ending) return 0;
        struct fanotify_event_metadata *event = (void *)buffer;
        for (; size > 0 && FAN_EVENT_OK(event, size); event = FAN_EVENT_NEXT(event, size)) {
            if (event->fd < 0) return 3;
            snprintf(link, sizeof link, "/proc/self/fd/%d", event->fd);
            ssize_t length = readlink(link, path, sizeof path);
            if (event->pid == atoi(arguments[2])) printf("%.*s\n", (int)length, path);
            close(event->fd);
        }
    }
}
"#;

/// What a process opens of a file system.
struct Listener {
    child: Child,
    names: BufReader<ChildStdout>,
}

impl Listener {
    fn new(scratch: &Scratch, process: u32) -> Self {
        let program = scratch.path("listener");
        if !program.exists() {
            fs::write(scratch.path("listener.c"), LISTENER).unwrap();
            must(command("cc").arg("-o").arg(&program).arg(scratch.path("listener.c")));
        }
        let mut listener = command(&program);
        listener.arg(&scratch.mnt).arg(process.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = start(&mut listener).unwrap();
        let mut names = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        names.read_line(&mut first).unwrap();
        assert_eq!(first, "listening\n");
        Self { child, names }
    }

    fn end(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let mut names = String::new();
        self.names.read_to_string(&mut names).unwrap();
        assert!(ended(&mut self.child, PATIENCE).expect("it ends").success());
        names.lines().map(str::to_owned).collect()
    }
}

#[test]
fn no_file_but_the_one_in_question_is_opened_for_a_decision() {
    let mut scratch = scratch!("no_file_but_the_one_in_question_is_opened_for_a_decision");
    // Everything that the guard has lies on what it watches: its program, its configuration, policy and keys, its list and audit
    // log, its state, and the software TPM's socket and state.
    scratch.run = scratch.on("run");
    scratch.imara = scratch.on("imara");
    copy(IMARA, &scratch.imara);
    must(command("cp").arg("-r").arg(scratch.path("keys")).arg(scratch.on("keys")));
    let (imara, key, policy) = (scratch.imara.clone(), scratch.on("keys/x509_ima.der"), scratch.on("policy"));
    let (config, state) = (scratch.on("imara.toml"), scratch.on("state"));
    let lists = scratch.on("block-list");
    fs::write(&lists, "").unwrap();
    fs::write(
        &config,
        format!("template = \"ima-ng\"\nstate-dir = {state:?}\nblock-list = [{lists:?}]\nkeys = [{key:?}]\n"),
    )
    .unwrap();
    fs::write(&policy, "measure\nappraise func=BPRM_CHECK appraise_type=imasig\naudit\n").unwrap();
    scratch.sign(&[&imara, &policy]);
    let program = |scratch: &Scratch, name: &str| scratch.program(name);
    let signed: Vec<PathBuf> = (0..20).map(|number| program(&scratch, &format!("signed-{number}"))).collect();
    let unsigned: Vec<PathBuf> = (0..20).map(|number| program(&scratch, &format!("unsigned-{number}"))).collect();
    let users: Vec<PathBuf> = (0..20).map(|number| scratch.data(&format!("data-{number}"), USER)).collect();
    scratch.sign(&signed.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    settle();
    let mnt = scratch.mnt.clone();
    let more = [["--config", config.to_str().unwrap()], level()].concat();
    if let Err(failed) = scratch.launch_with(&mnt, &policy, &key, "enforce", &more) {
        panic!("{}", failed.stderr);
    }
    assert!(scratch.swtpm().is_some(), "with a TPM whose state is there, too");
    let listener = Listener::new(&scratch, scratch.pid());
    for _ in 0..2 {
        assert!(signed.iter().all(|path| runs(path)));
        assert!(!unsigned.iter().any(|path| runs(path)));
        assert!(users.iter().all(|path| opens(path)));
    }
    shell(&format!("echo more >> '{}'", users[0].display()));
    assert!(opens(&users[0]));
    let opened = listener.end();
    // But the files that others may write, by a mount that nobody sees, to keep writers away; and for no decision, but once a second, the one
    // that tells whether the software TPM lives.
    let is_due = |name: &String| name.starts_with("/data-") || name.ends_with("/run/tpm/pid");
    let others: Vec<&String> = opened.iter().filter(|name| !is_due(name)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(!opened.is_empty(), "the listener hears");
    assert_eq!(scratch.listed(&signed[0]), 1);
    scratch.proven();
}
