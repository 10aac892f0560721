//! `imara evm explain`.

use super::states;
use super::verify::{Means, With, document, good};
use crate::command::paths::{open_failure, path_json, printable};
use crate::command::show::label_text;
use crate::command::{CommandResult, RuntimeDirectory, duration};
use crate::guard::control::{AskError, Request, ask};
use crate::guard::evm::difference_json;
use crate::output::{Failure, Outcome, print, print_json, utc};
use imara_engine::evm::explain::{Candidates, Cause, search};
use imara_engine::evm::verify::Reason;
use imara_engine::evm::{Difference, Found, PORTABLE_TYPE, SIGNATURE_TYPE, Snapshot};
use imara_format::evm::Form;
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::label::Label;
use imara_format::uuid::Uuid;
use imara_linux::files::{self, OpenError};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Explain what EVM makes of a file: what its label covers, and which attribute no longer agrees.
///
/// A label does not say what it was made over. What was changed is known where the running guard saw it, or where the file's state was
/// kept (`imara evm verify --record F`); otherwise likely states are tried: every mode, the users and groups of this machine, attributes
/// taken away, security.ima as a digest of the content, other kernels' rules. The exit status is 1 when the label does not verify.
#[derive(clap::Args)]
pub struct Arguments {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    with: With,
    /// States that verified, from `imara evm verify --record F`
    #[arg(long, value_name = "F")]
    recorded: Option<PathBuf>,
    /// How long states may be tried
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "20s")]
    time: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    runtime: RuntimeDirectory,
}

/// How it is known what was changed.
enum Known {
    /// The running guard tells, and which commands change it back.
    Guard { changes: Vec<Value>, back: Vec<String> },
    /// It differs from the state that was recorded.
    Recorded(Vec<Difference>),
    /// With that changed back the label fits.
    Fits(Vec<Difference>, u64),
    /// The label fits by other rules.
    Rules(&'static str),
    /// Nothing that was tried fits.
    Nothing { tried: u64, cut_short: bool },
}

/// Runs it.
///
/// # Errors
/// The file cannot be read; what is needed cannot be had.
pub fn run(arguments: &Arguments) -> CommandResult {
    let means = arguments.with.find()?;
    let path = &arguments.file;
    let (file, snapshot) = match files::open_regular(path) {
        Ok(file) => {
            let snapshot = means.looker.look(&file, path)?;
            (Some(file), snapshot)
        }
        Err(OpenError::System { error, .. }) if error.kind() == ErrorKind::PermissionDenied => {
            (None, means.looker.look_named(path)?)
        }
        Err(error) => return Err(open_failure(&error, false)),
    };
    let found = means.verifier().status(&snapshot);
    let known = match &found.reason {
        Some(Reason::HmacDiffers | Reason::Signature(_)) => {
            Some(arguments.changes(file.as_ref(), &snapshot, &means)?)
        }
        // There is nothing to search for; what was seen tells who took an attribute away.
        Some(_) => arguments.seen(&snapshot)?,
        None => None,
    };
    let shown = printable(path);
    let next = next_steps(&snapshot, &found, known.as_ref(), &means, &shown);
    if arguments.json {
        let mut object = path_json(path);
        object.insert("schema".into(), json!(1));
        object.extend(document(&snapshot, &found));
        object.insert("reason".into(), json!(found.reason.as_ref().map(ToString::to_string)));
        object.insert("label".into(), json!(snapshot.label.value().map(to_hex)));
        object.insert("covers".into(), covers_json(&snapshot, &means));
        object.insert("changed".into(), known.as_ref().map_or(Value::Null, known_json));
        object.insert("next".into(), json!(next));
        print_json(&Value::Object(object));
    } else {
        print(for_people(&shown, &snapshot, &found, known.as_ref(), &means, &next));
    }
    Ok(if found.status.passes() { Outcome::Done } else { Outcome::Failed })
}

impl Arguments {
    fn changes(&self, file: Option<&OwnedFd>, now: &Snapshot, means: &Means) -> Result<Known, Failure> {
        if let Some(seen) = self.seen(now)? {
            return Ok(seen);
        }
        let until = Instant::now() + self.time;
        let searched = search(&means.verifier(), now, &candidates(file), &mut || Instant::now() < until);
        Ok(match searched {
            None => Known::Nothing { tried: 0, cut_short: false },
            Some(search) => match search.cause {
                Some(Cause::Changed(differences)) => Known::Fits(differences, search.tried),
                Some(Cause::Rules(what)) => Known::Rules(what),
                None => Known::Nothing { tried: search.tried, cut_short: search.cut_short },
            },
        })
    }

    /// What was seen: by the running guard, or in the states that were recorded.
    fn seen(&self, now: &Snapshot) -> Result<Option<Known>, Failure> {
        if let Some(seen) = self.guard_saw() {
            return Ok(Some(seen));
        }
        let Some(place) = &self.recorded else { return Ok(None) };
        let Some(was) = states::lookup(place, &self.file)? else { return Ok(None) };
        // Of another label it says nothing.
        let differences = was.differences(now);
        Ok((was.label == now.label && !differences.is_empty()).then_some(Known::Recorded(differences)))
    }

    /// What the running guard has seen change, if there is one that has.
    fn guard_saw(&self) -> Option<Known> {
        let path = std::path::absolute(&self.file).ok()?;
        let told = match ask(&self.runtime.runtime_dir, &Request::EvmChanges { path }) {
            Ok(told) => told,
            // There need not be one; one that is there and silent is no reason not to look otherwise.
            Err(AskError::NoGuard(_) | AskError::Silent(_) | AskError::Refused(_)) => return None,
        };
        let changes = told["changes"].as_array()?.clone();
        let back = told["back"].as_array().into_iter().flatten();
        let back = back.filter_map(|step| step.as_str().map(str::to_owned)).collect();
        (!changes.is_empty()).then_some(Known::Guard { changes, back })
    }
}

/// What is likely on this machine; of a file that may not be opened nothing is known of its content.
fn candidates(file: Option<&OwnedFd>) -> Candidates {
    let ids = |list: &str| {
        let text = std::fs::read_to_string(list).unwrap_or_default();
        let listed = text.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok());
        let mut ids: Vec<u32> = std::iter::once(0).chain(listed).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let size = |file: &OwnedFd| File::from(file.try_clone().ok()?).metadata().ok().map(|metadata| metadata.len());
    let large = file.and_then(size).is_some_and(|size| size > 64 << 20);
    let algorithms = [HashAlgorithm::Sha256, HashAlgorithm::Sha1, HashAlgorithm::Sha512, HashAlgorithm::Sha384];
    let algorithms = algorithms.into_iter().take(if large { 1 } else { 4 });
    let digests = algorithms.filter_map(|algorithm| files::digest(file?, algorithm).ok()).collect();
    Candidates { uids: ids("/etc/passwd"), gids: ids("/etc/group"), digests }
}

fn form(snapshot: &Snapshot) -> Form {
    match snapshot.label.kind() {
        Some(PORTABLE_TYPE) => Form::Portable,
        Some(SIGNATURE_TYPE) => Form::Signature,
        _ => Form::Hmac,
    }
}

/// What the label is made over: names and values, for people.
fn covers(snapshot: &Snapshot, means: &Means) -> Vec<(String, String)> {
    let (form, rules, inode) = (form(snapshot), &means.looker.rules, &snapshot.inode);
    let mut covers: Vec<(String, String)> = rules
        .xattrs
        .covered(form)
        .filter(|name| rules.xattrs.protects(name) || snapshot.xattrs.contains_key(*name))
        .map(|name| {
            (
                name.to_owned(),
                imara_engine::evm::difference::value_text(name, snapshot.xattrs.get(name).map(Vec::as_slice)),
            )
        })
        .collect();
    let mut say = |name: &str, value: String| covers.push((name.to_owned(), value));
    say("mode", format!("{:06o}", inode.mode));
    say("uid", inode.uid.to_string());
    say("gid", inode.gid.to_string());
    if form.is_bound() {
        say("inode", inode.inode.to_string());
        say("generation", inode.generation.to_string());
        if rules.fs_uuid {
            say("fsuuid", Uuid(snapshot.fs_uuid).to_string());
        }
    }
    covers
}

fn covers_json(snapshot: &Snapshot, means: &Means) -> Value {
    covers(snapshot, means)
        .into_iter()
        .map(|(name, value)| json!({ "attribute": name, "value": value, "raw": snapshot.xattrs.get(&name).map(|raw| to_hex(raw)) }))
        .collect()
}

fn known_json(known: &Known) -> Value {
    let list = |differences: &[Difference]| differences.iter().map(difference_json).collect::<Value>();
    match known {
        Known::Guard { changes, .. } => json!({ "known_by": "guard", "changes": changes }),
        Known::Recorded(differences) => json!({ "known_by": "recorded", "differences": list(differences) }),
        Known::Fits(differences, tried) => {
            json!({ "known_by": "search", "tried": tried, "differences": list(differences) })
        }
        Known::Rules(what) => json!({ "known_by": "search", "rules": what }),
        Known::Nothing { tried, cut_short } => {
            json!({ "known_by": null, "tried": tried, "cut_short": cut_short })
        }
    }
}

/// A change that the guard saw, for people.
fn change_text(change: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let what: Vec<String> = change["differences"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| format!("{} was {}, is {}", text(&one["attribute"]), text(&one["was"]), text(&one["is"])))
        .collect();
    let who = match &change["by"] {
        Value::Null => String::new(),
        by => format!(", by {} (process {}, user {})", text(&by["command"]), by["pid"], by["uid"]),
    };
    let followed = if change["followed"] == true { "; the label followed" } else { "" };
    format!("{}: {}{who}{followed}", utc(change["time"].as_u64().unwrap_or_default()), what.join("; "))
}

fn for_people(
    shown: &str,
    snapshot: &Snapshot,
    found: &Found<'_>,
    known: Option<&Known>,
    means: &Means,
    next: &[String],
) -> String {
    let mut out = format!("{shown}: {}\n\n", found.status);
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<9} {}", printable(Path::new(value)));
    };
    let label = match snapshot.label.value() {
        Some(value) => Label::parse_evm(value).map_or_else(|error| error.to_string(), |label| label_text(&label)),
        None => "none".to_owned(),
    };
    line("label", &label);
    for (index, (name, value)) in covers(snapshot, means).iter().enumerate() {
        line(if index == 0 { "covers" } else { "" }, &format!("{name:<20} {value}"));
    }
    match &found.reason {
        Some(reason) => line("why", &reason.to_string()),
        None => line("verified", &good(snapshot, found)),
    }
    match known {
        None => {}
        Some(Known::Guard { changes, .. }) => {
            for change in changes {
                line("seen", &change_text(change));
            }
        }
        Some(Known::Recorded(differences)) => {
            for difference in differences {
                line("changed", &format!("{difference}    (against the recorded state)"));
            }
        }
        Some(Known::Fits(differences, tried)) => {
            for difference in differences {
                line("changed", &format!("{difference}    (changed back, the label fits; {tried} states tried)"));
            }
        }
        Some(Known::Rules(what)) => line("rules", what),
        Some(Known::Nothing { tried: 0, .. }) => {}
        Some(Known::Nothing { tried, cut_short }) => {
            let ended = if *cut_short { ", not all in the time given (--time)" } else { "" };
            line(
                "changed",
                &format!(
                    "not to be told: no single likely change makes the label fit ({tried} states tried{ended}); more than one thing \
                     changed, an attribute's value is another, or another key made the label"
                ),
            );
        }
    }
    for (index, step) in next.iter().enumerate() {
        line(if index == 0 { "to pass" } else { "" }, step);
    }
    out
}

/// How to get back, one step a line.
fn next_steps(
    snapshot: &Snapshot,
    found: &Found<'_>,
    known: Option<&Known>,
    means: &Means,
    shown: &str,
) -> Vec<String> {
    let Some(reason) = &found.reason else { return Vec::new() };
    let again = match snapshot.label.kind() {
        Some(PORTABLE_TYPE) => format!("imara evm sign --portable {shown}    # if it is what you mean now"),
        Some(SIGNATURE_TYPE) => format!("imara evm sign {shown}    # if it is what you mean now"),
        _ => format!("imara evm hmac --write {shown}    # if it is what you mean now"),
    };
    match known {
        Some(Known::Recorded(differences) | Known::Fits(differences, _)) => {
            let mut steps = undo_all(differences, shown);
            steps.push(again);
            steps
        }
        Some(Known::Guard { back, .. }) => back.iter().cloned().chain([again]).collect(),
        Some(Known::Rules(_) | Known::Nothing { tried: 1.., .. }) => vec![again],
        Some(Known::Nothing { .. }) | None => {
            Some(means.remedy(reason, shown)).filter(|step| !step.is_empty()).into_iter().collect()
        }
    }
}

/// The commands that change it all back; none where one cannot be.
pub fn undo_all(differences: &[Difference], shown: &str) -> Vec<String> {
    let steps: Option<Vec<String>> = differences.iter().map(|difference| undo(difference, shown)).collect();
    steps.unwrap_or_default()
}

/// The command that changes it back; none where nothing can.
fn undo(difference: &Difference, shown: &str) -> Option<String> {
    Some(match difference {
        Difference::Mode { was, .. } => format!("chmod {:04o} {shown}", was & 0o7777),
        Difference::Uid { was, .. } => format!("chown {was} {shown}"),
        Difference::Gid { was, .. } => format!("chgrp {was} {shown}"),
        Difference::Xattr { name, was: None, .. } => format!("setfattr -x {name} {shown}"),
        Difference::Xattr { name, was: Some(was), .. } => format!("setfattr -n {name} -v 0x{} {shown}", to_hex(was)),
        Difference::Inode { .. } | Difference::Generation { .. } | Difference::FsUuid { .. } => return None,
    })
}
