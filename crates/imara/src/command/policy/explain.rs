//! `imara policy explain`: which rule decides an event, and why each other one does not.

use super::target::Taker;
use super::{SCHEMA, read_policy, shown_lines};
use crate::command::{CommandResult, RuntimeDirectory};
use crate::guard::control::{AskError, Request, ask};
use crate::output::{Failure, Outcome, print, print_json};
use clap::Args;
use imara_engine::check::File as _;
use imara_engine::policy::{CompiledPolicy, Decision, Why};
use imara_engine::policy_difference::{Done, not_done};
use imara_engine::policy_space::{FILE_SYSTEMS, LOOKUPS, Lookup, Witness, magics_of};
use imara_format::policy::{Class, Func, Mask, Policy, Rule, Target, Uuid, parse_line};
use imara_linux::opened::OpenedFile;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Explain what a policy decides for one event: which rule decides each class, and why each other one does not.
///
/// What is not said of the file is taken from --path, or is that of a file of root's on ext4. Nothing is read but the
/// policy and the file's attributes.
#[derive(Args)]
pub struct Explain {
    #[command(flatten)]
    taker: Taker,
    /// The policy: a file, `-` for standard input, or `builtin:NAME`; without one, the running guard's.
    policy: Option<PathBuf>,
    /// The hook that asks.
    #[arg(long, value_parser = func)]
    func: Func,
    /// The file.
    #[arg(long)]
    path: Option<PathBuf>,
    /// The access; the hooks other than FILE_CHECK pass one only.
    #[arg(long, value_parser = mask, num_args = 1..)]
    mask: Vec<Mask>,
    /// The real user.
    #[arg(long, value_name = "N", default_value_t = 0)]
    uid: u32,
    /// The effective user; else the real one. User 0 has CAP_SETUID.
    #[arg(long, value_name = "N")]
    euid: Option<u32>,
    /// The real group; else the number of the real user.
    #[arg(long, value_name = "N")]
    gid: Option<u32>,
    /// The effective group; else the real one.
    #[arg(long, value_name = "N")]
    egid: Option<u32>,
    /// The file's owner.
    #[arg(long, value_name = "N")]
    fowner: Option<u32>,
    /// The file's group.
    #[arg(long, value_name = "N")]
    fgroup: Option<u32>,
    /// The file system's magic number, hexadecimal.
    #[arg(long, value_name = "HEX", value_parser = fsmagic)]
    fsmagic: Option<u64>,
    /// The file system type's name.
    #[arg(long, value_name = "NAME")]
    fsname: Option<String>,
    /// The file system's UUID.
    #[arg(long, value_name = "UUID", value_parser = fsuuid)]
    fsuuid: Option<Uuid>,
    /// With KEY_CHECK: the keyring's name.
    #[arg(long, value_name = "NAME")]
    keyring: Option<String>,
    /// With CRITICAL_DATA: the data's label.
    #[arg(long, value_name = "NAME", conflicts_with = "keyring")]
    label: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// The policy in force in the running guard, each rule in the line that it has in its file.
fn running(runtime_dir: &Path) -> Result<(PathBuf, Policy), Failure> {
    let document = ask(runtime_dir, &Request::Policy).map_err(|error| match error {
        AskError::NoGuard(failure) => failure.next("name a policy: a file, or a built-in one such as builtin:tcb"),
        AskError::Silent(failure) | AskError::Refused(failure) => failure,
    })?;
    let mut rules = Vec::new();
    for rule in document["rules"].as_array().into_iter().flatten() {
        let text = rule["text"].as_str().unwrap_or_default();
        let line = rule["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
        rules.extend(parse_line(text.as_bytes(), line, &Target::guard()).map_err(Failure::failed)?);
    }
    Ok((document["policy"]["path"].as_str().unwrap_or_default().into(), Policy { rules }))
}

fn func(text: &str) -> Result<Func, String> {
    let names = || LOOKUPS.iter().filter(|lookup| lookup.name == lookup.func.name()).map(|lookup| lookup.name);
    Func::from_name(text)
        .filter(|func| *func != Func::SetxattrCheck)
        .ok_or_else(|| format!("one of {}", names().collect::<Vec<_>>().join(", ")))
}

fn mask(text: &str) -> Result<Mask, String> {
    Mask::from_name(text).ok_or_else(|| "one of MAY_READ, MAY_WRITE, MAY_EXEC, MAY_APPEND".to_owned())
}

/// A condition as the policy language has it.
fn condition(text: &str) -> Result<Rule, String> {
    match parse_line(format!("measure {text}").as_bytes(), 1, &Target::guard()) {
        Ok(rule) => rule.ok_or_else(String::new),
        Err(error) => Err(error.kind.to_string()),
    }
}

fn fsmagic(text: &str) -> Result<u64, String> {
    condition(&format!("fsmagic={text}"))?.fsmagic.ok_or_else(String::new)
}

fn fsuuid(text: &str) -> Result<Uuid, String> {
    condition(&format!("fsuuid={text}"))?.fsuuid.map(Uuid).ok_or_else(String::new)
}

impl Explain {
    /// Runs it.
    ///
    /// # Errors
    /// The policy or the file cannot be read, or no such event can be.
    pub fn run(&self) -> CommandResult {
        let (lookup, mask) = self.lookup()?;
        let witness = self.witness(lookup.func, mask)?;
        let (path, policy) = self.policy()?;
        let file = witness.file();
        let event = witness.event(&file);
        let decision = policy.decide_classes(&event, lookup.classes);
        let rules: Vec<Row> = policy
            .explain(&event)
            .into_iter()
            .filter_map(|explanation| {
                let rule = policy.rules().get(explanation.rule)?;
                let asked = lookup.classes.contains(rule.action.class());
                Some(Row { number: explanation.rule + 1, rule, why: Some(explanation.why).filter(|_| asked) })
            })
            .collect();
        if self.json {
            print_json(&document(&path, &witness, &rules, &decision, lookup, &policy));
        } else {
            print(shown_lines(&for_people(&witness, &rules, &decision, lookup, &policy)));
        }
        Ok(Outcome::Done)
    }

    /// The policy named, else the running guard's, and where it came from.
    fn policy(&self) -> Result<(PathBuf, CompiledPolicy), Failure> {
        let (path, policy) = match &self.policy {
            Some(path) => (path.clone(), read_policy(path, &self.taker.target()?.0)?),
            None => running(&self.runtime.runtime_dir)?,
        };
        Ok((path, CompiledPolicy::new(policy)))
    }

    /// The hook and the access that it passes.
    fn lookup(&self) -> Result<(&'static Lookup, u8), Failure> {
        let asked = self.mask.iter().fold(0, |bits, mask| bits | mask.bits());
        let of_hook = || LOOKUPS.iter().filter(|lookup| lookup.func == self.func);
        let passes = |lookup: &&Lookup| asked == 0 || lookup.masks.contains(&asked);
        let lookup = of_hook().find(passes).ok_or_else(|| {
            let passed = of_hook().flat_map(|lookup| lookup.masks).copied();
            let names =
                Mask::ALL.iter().filter(|mask| passed.clone().any(|bits| bits == mask.bits())).map(|mask| mask.name());
            let names: Vec<&str> = names.collect();
            let passed =
                if names.is_empty() { "no access".to_owned() } else { format!("{} alone", names.join(" or ")) };
            Failure::usage(format_args!("{} never passes this access", self.func))
                .next(format_args!("leave --mask out: {} passes {passed}", self.func))
        })?;
        let first = lookup.masks.first().copied().unwrap_or_default();
        Ok((lookup, if asked == 0 { first } else { asked }))
    }

    fn witness(&self, func: Func, mask: u8) -> Result<Witness, Failure> {
        let is_for = |needed: Func, option: &str, value: &Option<String>| match value {
            Some(_) if func != needed => Err(Failure::usage(format_args!("{option} goes with --func {needed}"))),
            Some(_) | None => Ok(()),
        };
        is_for(Func::KeyCheck, "--keyring", &self.keyring)?;
        is_for(Func::CriticalData, "--label", &self.label)?;
        let (uid, gid) = (self.uid, self.gid.unwrap_or(self.uid));
        let (euid, egid) = (self.euid.unwrap_or(uid), self.egid.unwrap_or(gid));
        let mut witness = Witness {
            func,
            mask,
            fsname: "ext4".into(),
            fsmagic: 0xef53,
            fs_subtype: String::new(),
            fsuuid: None,
            uids: [euid, euid, uid],
            gids: [egid, egid, gid],
            setuid: euid == 0,
            setgid: euid == 0,
            owner: 0,
            group: 0,
            labels: Vec::new(),
            data: self.keyring.clone().or_else(|| self.label.clone()),
        };
        if let Some(path) = &self.path {
            let failed = |error: &dyn std::fmt::Display| Failure::failed(format_args!("{}: {error}", path.display()));
            // What a link leads to is what is used.
            let path = std::fs::canonicalize(path).map_err(|error| failed(&error))?;
            let file = imara_linux::files::open_regular(&path).map_err(|error| Failure::failed(&error))?;
            let file = OpenedFile::new(file.as_fd()).map_err(|error| failed(&error))?;
            let facts = file.facts();
            witness = Witness {
                fsname: facts.fsname.to_owned(),
                fsmagic: facts.fsmagic,
                fs_subtype: facts.fs_subtype.to_owned(),
                fsuuid: facts.fsuuid,
                owner: facts.owner,
                group: facts.group,
                ..witness
            };
        }
        // Of a name and its magic number one is enough, where they are known.
        match (&self.fsname, self.fsmagic) {
            (Some(name), None) => {
                witness.fsmagic = magics_of(name).and_then(|magics| magics.first()).copied().unwrap_or(0);
            }
            (None, Some(magic)) => {
                let known = FILE_SYSTEMS.iter().find(|(_, magics)| magics.first() == Some(&magic));
                witness.fsname = known.map_or_else(String::new, |(name, _)| (*name).to_owned());
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        witness.fsname = self.fsname.clone().unwrap_or(witness.fsname);
        witness.fsmagic = self.fsmagic.unwrap_or(witness.fsmagic);
        witness.fsuuid = self.fsuuid.map(|uuid| uuid.0).or(witness.fsuuid);
        witness.owner = self.fowner.unwrap_or(witness.owner);
        witness.group = self.fgroup.unwrap_or(witness.group);
        Ok(witness)
    }
}

/// One rule and what became of it.
struct Row<'a> {
    number: usize,
    rule: &'a Rule,
    /// `None` where the hook does not ask for its class.
    why: Option<Why>,
}

impl Row<'_> {
    fn decides(&self) -> bool {
        self.why == Some(Why::Decides)
    }

    fn outcome(&self) -> String {
        self.why.as_ref().map_or_else(|| "this hook does not ask for it".to_owned(), Why::to_string)
    }
}

/// The classes that are worth a word: those that some rule does.
fn classes(policy: &CompiledPolicy) -> impl Iterator<Item = Class> {
    Class::ALL.iter().copied().filter(|class| policy.classes().contains(*class))
}

fn document(
    path: &Path,
    witness: &Witness,
    rules: &[Row<'_>],
    decision: &Decision,
    lookup: &Lookup,
    policy: &CompiledPolicy,
) -> Value {
    let decided = |class: Class| {
        let by = decision.decided_by.class(class);
        let done = Done::of(decision, class, lookup.func);
        json!({
            "class": class.name(),
            "does": done.is_some(),
            "words": done.map_or_else(|| not_done(class).to_owned(), |done| done.to_string()),
            "rule": by.map(|by| by + 1),
            "line": by.and_then(|by| policy.rules().get(by)).map(|rule| rule.line),
            "pcr": done.and_then(|done| done.pcr),
            "template": done.and_then(|done| done.template).map(|template| template.name()),
            "signature_required": done.is_some_and(|done| done.flags.signature_required),
            "modsig_allowed": done.is_some_and(|done| done.flags.modsig_allowed),
            "verity": done.is_some_and(|done| done.flags.verity_required),
            "algorithms": done
                .and_then(|done| done.algorithms)
                .map(|set| set.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>()),
        })
    };
    json!({
        "schema": SCHEMA,
        "policy": path.display().to_string(),
        "func": witness.func.name(),
        "event": witness.to_string(),
        "decision": classes(policy).map(decided).collect::<Vec<_>>(),
        "rules": rules.iter().map(|row| json!({
            "rule": row.number,
            "line": row.rule.line,
            "text": row.rule.to_string(),
            "class": row.rule.action.class().name(),
            "decides": row.decides(),
            "outcome": row.outcome(),
        })).collect::<Vec<_>>(),
    })
}

fn for_people(
    witness: &Witness,
    rules: &[Row<'_>],
    decision: &Decision,
    lookup: &Lookup,
    policy: &CompiledPolicy,
) -> String {
    /// Beyond this, what became of a rule is not aligned.
    const WIDEST: usize = 64;
    let texts: Vec<String> = rules.iter().map(|row| row.rule.to_string()).collect();
    let width = texts.iter().map(String::len).filter(|length| *length <= WIDEST).max().unwrap_or(0);
    let mut out = format!("{witness}\n\n");
    // Writing to a string cannot fail.
    for (row, text) in rules.iter().zip(&texts) {
        let mark = if row.decides() { '*' } else { ' ' };
        let place = format!("rule {} (line {})", row.number, row.rule.line);
        let _ = writeln!(out, "{mark} {place:<18} {text:<width$}  {}", row.outcome());
    }
    if !rules.is_empty() {
        out.push('\n');
    }
    for class in classes(policy) {
        let done = Done::of(decision, class, lookup.func);
        let words = done.map_or_else(|| not_done(class).to_owned(), |done| done.to_string());
        let by = match decision.decided_by.class(class) {
            Some(by) => format!("rule {}", by + 1),
            None if !lookup.classes.contains(class) => "this hook does not ask".to_owned(),
            None => "no rule matches".to_owned(),
        };
        let _ = writeln!(out, "{:<9} {words} ({by})", class.name());
    }
    if classes(policy).next().is_none() {
        out.push_str("no rule does anything\n");
    }
    out
}
