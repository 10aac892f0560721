//! `imara policy check`, `diff` and `explain`, run as programs.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A directory of policies.
struct Policies(TempDir);

impl Policies {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `imara policy` there.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
        command.arg("policy").args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.run(arguments);
        let document: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output.stderr)));
        assert_eq!(document["schema"], 1, "{arguments:?}");
        (output.status.code(), document)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const SHADOWED: &str = "# a comment\nmeasure func=BPRM_CHECK uid<10\nmeasure func=BPRM_CHECK uid=9\n";

#[test]
fn a_warning_names_its_line_and_what_to_do() {
    let policies = Policies::new(&[("p", SHADOWED), ("last", "measure func=BPRM_CHECK")]);
    let output = policies.run(&["check", "p"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "p: 2 rules, taken by the latest Linux, with a warning\n");
    assert_eq!(
        text(&output.stderr),
        "p:3: warning: it never decides: line 2 decides all that it matches\n  \
           3 | measure func=BPRM_CHECK uid=9\n    \
             = move it up, or leave it out\n"
    );
    let (code, document) = policies.json(&["check", "p", "--json"]);
    assert_eq!((code, &document["verdict"]), (Some(0), &"accept".into()));
    assert_eq!(
        document["warnings"],
        serde_json::json!([{
            "line": 3,
            "kind": "shadowed",
            "message": "it never decides: line 2 decides all that it matches",
            "hint": "move it up, or leave it out",
        }])
    );
    let (_, document) = policies.json(&["check", "last", "--json"]);
    assert_eq!(
        (&document["warnings"][0]["line"], &document["warnings"][0]["kind"]),
        (&1.into(), &"no-last-newline".into())
    );
    let (_, document) = policies.json(&["check", "--guard", "last", "--json"]);
    assert_eq!(document["warnings"], serde_json::json!([]));
}

#[test]
fn warnings_change_the_exit_status_where_they_are_denied() {
    let policies = Policies::new(&[
        ("p", SHADOWED),
        ("signed", "appraise func=BPRM_CHECK appraise_type=imasig\n"),
        ("guarded", "measure func=BPRM_CHECK pcr=16\n"),
        ("wrong", "measur\n"),
        ("key", "no key\n"),
    ]);
    for (arguments, expected) in [
        (&["check", "p"][..], 0),
        (&["check", "p", "--deny-warnings"], 1),
        (&["check", "p", "--deny-warnings", "--json"], 1),
        (&["check", "builtin:tcb", "--deny-warnings"], 0),
        (&["check", "builtin:appraise_tcb", "--deny-warnings", "--kernel", "6.1"], 0),
        (&["check", "builtin:none"], 2),
        (&["check", "signed", "--deny-warnings"], 0),
        // No key at all.
        (&["check", "signed", "--deny-warnings", "--key"], 1),
        (&["check", "signed", "--key"], 0),
        (&["check", "signed", "--key", "key"], 1),
        (&["check", "guarded", "--deny-warnings"], 0),
        // The guard does not measure into this PCR.
        (&["check", "guarded", "--deny-warnings", "--guard"], 1),
        // The guard sees no modules.
        (&["check", "builtin:secure_boot", "--deny-warnings", "--guard"], 1),
        (&["check", "builtin:secure_boot", "--deny-warnings"], 0),
        (&["check", "wrong"], 1),
        (&["check", "p", "--deny-warnings", "--each-line"], 2),
        (&["check", "p", "--here", "--guard"], 2),
        (&["check", "absent"], 1),
    ] {
        let output = policies.run(arguments);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn lines_judged_alone_are_told_as_ever() {
    let policies = Policies::new(&[("p", &format!("{SHADOWED}measure uid<0\nfnc=BPRM_CHECK\n"))]);
    let output = policies.run(&["check", "--each-line", "--json", "p"]);
    assert_eq!(output.status.code(), Some(1));
    let accept = |line| format!("{{\"line\":{line},\"verdict\":\"accept\",\"errno\":null,\"message\":null}}\n");
    let reject = "{\"line\":5,\"verdict\":\"reject\",\"errno\":\"EINVAL\",\
                  \"message\":\"`fnc=BPRM_CHECK` is not a word of the policy language\"}\n";
    assert_eq!(text(&output.stdout), [1, 2, 3, 4].map(accept).concat() + reject);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn what_this_machines_kernel_was_built_with_is_asked_or_said_to_be_unknown() {
    let policies = Policies::new(&[("p", "measure func=BPRM_CHECK\n")]);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let release = release.trim();
    let config = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    let readable = config.iter().find_map(|path| std::fs::read_to_string(path).ok());
    let output = policies.run(&["check", "--here", "p", "--deny-warnings"]);
    let expected = match readable {
        None => 3,
        Some(config) if config.lines().any(|line| line == "CONFIG_IMA=y") => 0,
        Some(_) => 1,
    };
    assert_eq!(output.status.code(), Some(expected), "{}", text(&output.stderr));
}

#[test]
fn policies_are_compared_by_their_rules_and_by_their_meaning() {
    let policies = Policies::new(&[
        ("a", "dont_appraise fsname=ext4\nappraise func=BPRM_CHECK\nmeasure func=MMAP_CHECK\n"),
        (
            "b",
            "measure func=MMAP_CHECK mask=MAY_EXEC\nappraise func=BPRM_CHECK uid=0 fsname=ext4 appraise_type=imasig\n\
             dont_appraise fsname=ext4\nappraise func=BPRM_CHECK\n",
        ),
        ("moved", "measure func=MMAP_CHECK\ndont_appraise fsname=ext4\nappraise func=BPRM_CHECK\n"),
        ("wrong", "measur\n"),
    ]);
    let (code, document) = policies.json(&["diff", "a", "b", "--json"]);
    assert_eq!(code, Some(1));
    assert_eq!((&document["verdict"], &document["complete"]), (&"different".into(), &true.into()));
    let changes: Vec<_> = document["rules"].as_array().unwrap().iter().map(|rule| &rule["change"]).collect();
    assert_eq!(changes, ["added", "added", "removed"]);
    let meaning = document["meaning"].as_array().unwrap();
    assert_eq!(meaning.len(), 1, "{meaning:#?}");
    assert_eq!(meaning[0]["when"], serde_json::json!(["BPRM_CHECK|POST_SETATTR, ext4, uid 0"]));
    assert_eq!(meaning[0]["before"], serde_json::json!({ "done": "not appraised", "line": 1 }));
    assert_eq!(meaning[0]["after"], serde_json::json!({ "done": "appraised with a signature", "line": 2 }));

    let (code, document) = policies.json(&["diff", "a", "moved", "--json"]);
    assert_eq!((code, &document["verdict"]), (Some(0), &"same".into()));
    assert_eq!(
        document["rules"],
        serde_json::json!([{ "change": "moved", "a_line": 3, "b_line": 1, "text": "measure func=MMAP_CHECK" }])
    );
    for (arguments, expected, said) in [
        (&["diff", "a", "a"][..], 0, "They decide every event alike."),
        (&["diff", "a", "moved"], 0, "~ A 3 to B 1   measure func=MMAP_CHECK"),
        (&["diff", "a", "b"], 1, "before  not appraised (A line 1: dont_appraise fsname=ext4)"),
        (&["diff", "builtin:tcb", "builtin:ima_tcb"], 1, "POLICY_CHECK"),
        (&["diff", "a", "wrong"], 1, ""),
        (&["diff", "-", "-"], 2, ""),
    ] {
        let output = policies.run(arguments);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains(said), "{arguments:?}: {}", text(&output.stdout));
    }
}

#[test]
fn a_decision_is_explained_rule_by_rule() {
    let policies = Policies::new(&[(
        "p",
        "# who\ndont_appraise fsname=xfs\nappraise func=BPRM_CHECK uid=5 appraise_type=imasig\n\
         measure func=BPRM_CHECK pcr=11 template=ima-sig\nmeasure\n",
    )]);
    let (code, document) = policies.json(&["explain", "p", "--func", "BPRM_CHECK", "--uid", "5", "--json"]);
    assert_eq!(code, Some(0));
    let outcomes: Vec<_> =
        document["rules"].as_array().unwrap().iter().map(|rule| rule["outcome"].as_str().unwrap()).collect();
    assert_eq!(
        outcomes,
        [
            "fsname does not hold: found ext4",
            "matches first and decides",
            "matches first and decides",
            "rule 3 has decided already",
        ]
    );
    let decision = &document["decision"];
    assert_eq!((&decision[0]["class"], &decision[0]["pcr"]), (&"measure".into(), &11.into()));
    assert_eq!((&decision[0]["template"], &decision[0]["line"]), (&"ima-sig".into(), &4.into()));
    assert_eq!((&decision[1]["class"], &decision[1]["signature_required"]), (&"appraise".into(), &true.into()));

    let output = policies.run(&["explain", "p", "--func", "BPRM_CHECK", "--fsname", "xfs"]);
    let said = text(&output.stdout);
    assert!(said.contains("on xfs (0x58465342)"), "{said}");
    assert!(said.contains("* rule 1 (line 2)    dont_appraise fsname=xfs "), "{said}");
    assert!(said.contains("\nappraise  not appraised (rule 1)\n"), "{said}");
    assert!(said.contains("\nmeasure   measured into PCR 11 with template ima-sig (rule 3)\n"), "{said}");
}

#[test]
fn facts_that_are_not_given_are_the_files() {
    let policies = Policies::new(&[("p", "measure fowner=4000\n"), ("file", "content")]);
    std::os::unix::fs::symlink("file", policies.path("link")).unwrap();
    for path in ["file", "link"] {
        let (_, document) = policies.json(&["explain", "p", "--func", "FILE_CHECK", "--path", path, "--json"]);
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(policies.path("file")).unwrap());
        assert_eq!(document["rules"][0]["outcome"], format!("fowner does not hold: found {owner}"), "{path}");
    }
    let given = ["explain", "p", "--func", "FILE_CHECK", "--path", "file", "--fowner", "4000", "--json"];
    let (_, document) = policies.json(&given);
    assert_eq!(document["decision"][0]["does"], true);
}

#[test]
fn an_event_that_cannot_be_is_refused() {
    let policies = Policies::new(&[("p", "measure\nmeasure func=KEY_CHECK keyrings=.ima\n")]);
    for (arguments, expected) in [
        (&["--func", "FILE_CHECK"][..], 0),
        (&["--func", "PATH_CHECK"], 0),
        (&["--func", "FILE_CHECK", "--mask", "MAY_READ", "MAY_WRITE"], 0),
        (&["--func", "BPRM_CHECK", "--mask", "MAY_EXEC"], 0),
        (&["--func", "BPRM_CHECK", "--mask", "MAY_READ"], 2),
        (&["--func", "KEY_CHECK", "--mask", "MAY_READ"], 2),
        (&["--func", "KEY_CHECK", "--keyring", ".ima"], 0),
        (&["--func", "FILE_CHECK", "--keyring", ".ima"], 2),
        (&["--func", "KEY_CHECK", "--label", "selinux"], 2),
        (&["--func", "SETXATTR_CHECK"], 2),
        (&["--func", "NO_CHECK"], 2),
        (&["--func", "FILE_CHECK", "--fsmagic", "0xef53", "--fsuuid", "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6"], 0),
        (&["--func", "FILE_CHECK", "--fsmagic", "ext4"], 2),
        (&["--func", "FILE_CHECK", "--fsuuid", "8bcbe394"], 2),
        (&["--func", "FILE_CHECK", "--path", "absent"], 1),
    ] {
        let output = policies.run(&[&["explain", "p"], arguments].concat());
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", text(&output.stderr));
    }
    // Without a policy the running guard's is meant, and there is none.
    let output = policies.run(&["explain", "--func", "FILE_CHECK", "--runtime-dir", "absent"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("name a policy"), "{}", text(&output.stderr));
    let (_, document) = policies.json(&["explain", "p", "--func", "KEY_CHECK", "--keyring", ".ima", "--json"]);
    assert_eq!(
        (&document["decision"][0]["line"], &document["rules"][0]["outcome"]),
        (&2.into(), &"func does not hold: found KEY_CHECK".into())
    );
}

#[test]
fn what_a_policy_says_does_not_reach_the_terminal_as_a_command() {
    let policies = Policies::new(&[
        ("a", "measure fsname=\u{1b}[31m\nmeasure fsname=\u{1b}[31m\n"),
        ("b", "measure fsname=xfs\n"),
        ("wrong", "measure \u{1b}[31m\n"),
    ]);
    for arguments in [
        &["check", "a"][..],
        &["check", "wrong"],
        &["diff", "a", "b"],
        &["diff", "a", "wrong"],
        &["explain", "a", "--func", "FILE_CHECK", "--fsname", "\u{1b}[31m"],
    ] {
        let output = policies.run(arguments);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains("\u{fffd}[31m") && !said.contains('\u{1b}'), "{arguments:?}: {said:?}");
    }
}
