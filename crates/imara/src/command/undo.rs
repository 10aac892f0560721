//! `imara undo`.

use super::CommandResult;
use super::labelling::journal::{Folder, Progress as Came, ReadJournal, is_in_use};
use super::labelling::refusal::{name, refused};
use super::paths::{printable, printable_bytes};
use super::progress::Progress;
use super::telling::{Form, Telling, Told, counted, failure_json, grouped, tell_if_interrupted};
use crate::output::{Failure, Outcome, print, print_json, utc};
use imara_format::journal::{Change, File};
use imara_linux::files::Xattr;
use imara_linux::interruption;
use imara_linux::tree::TreeFile;
use serde_json::{Map, json};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Undo a run of `imara hash`, `sign` or `clear`: every file gets its old label back.
///
/// Runs over trees and lists (-r, --files-from) keep the old labels in a journal. A run that was ended, whatever ended it, is
/// undone as far as it came; it can also be gone on with, by its own command and --resume RUN. A label that somebody has
/// changed since is left alone, and so is a file that is another by now.
///
/// The exit status is 0 when all files have their old labels, 1 when some have not.
#[derive(clap::Args)]
pub struct Arguments {
    /// The run, as the end of the run names it, or its journal
    #[arg(value_name = "RUN", required_unless_present_any = ["list", "forget"])]
    run: Option<OsString>,
    /// List the runs, how far they came, and the command of each
    #[arg(long, conflicts_with = "run")]
    list: bool,
    /// Remove the journal of a run, which can then not be undone any more; may be given several times
    #[arg(long, value_name = "RUN", conflicts_with_all = ["run", "list"])]
    forget: Vec<OsString>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Put old labels back also where somebody has changed the label since, and undo what comes before damage in the journal
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    journals: Folder,
    /// Print JSON: a line for each file, and a last line with the summary
    #[arg(long)]
    json: bool,
    /// Print a line for each file, too
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    if arguments.list {
        return arguments.list();
    }
    for run in &arguments.forget {
        let read = ReadJournal::open(&arguments.journals, run)?;
        if !arguments.dry_run {
            let failure = |error| Failure::failed(format!("{}: {error}", printable(&read.path)));
            std::fs::remove_file(&read.path).map_err(failure)?;
        }
    }
    match &arguments.run {
        Some(run) => arguments.undo(run),
        None => Ok(Outcome::Done),
    }
}

#[derive(Default)]
struct Counts {
    restored: u64,
    /// They have their old labels: the run did not come to them, or they are undone already.
    old: u64,
    failed: u64,
}

/// What is to be done with a file.
enum Fate {
    Restored,
    Old,
}

impl Arguments {
    fn undo(&self, run: &OsStr) -> CommandResult {
        let mut read = ReadJournal::open(&self.journals, run)?;
        if let (Came::Undone(0), false) = (read.progress, self.force) {
            return Err(Failure::failed(format!("the run {} was undone already", read.run)));
        }
        let damage = self.damage(&mut read)?;
        let damaged = damage.is_some();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let same_boot = boot_id.trim() == read.begun.boot_id;
        let base = PathBuf::from(OsStr::from_bytes(&read.begun.folder));
        let form = Form::new(self.json, self.quiet, self.verbose || self.dry_run, true);
        let (mut telling, mut counts) = (Telling::new(form, true), Counts::default());
        let mut numbers = Map::new();
        if let Some(failure) = damage {
            numbers.insert("damage".into(), json!(failure.what));
            let mut told = Told::default();
            told.failure(failure);
            telling.tell(told);
        }
        let progress = Progress::new(self.quiet, "files");
        progress.set_total(read.files, 0);
        // The last change is undone first: a run that was gone on with can have changed a file twice.
        let caught = interruption::catch();
        for number in (0..read.blocks()).rev() {
            if interruption::came().is_some() {
                break;
            }
            let Some((files, _)) = read.block(number)? else { break };
            let mut told = Told::default();
            for file in files.iter().rev() {
                let path = base.join(OsStr::from_bytes(&file.path));
                let fate = self.restore(file, &path, same_boot);
                tell(form, &mut told, &mut counts, &path, fate, self.dry_run);
                progress.count(1);
            }
            progress.tick();
            progress.suspend(|| telling.tell(told));
        }
        drop((progress, caught));
        let interrupted = interruption::came().is_some();
        let run = read.run.clone();
        // A damaged journal stays as it is: that the run was undone is not known, and the rest is not to be cut off.
        if !self.dry_run && !damaged && !interrupted {
            read.undone(counts.failed)?;
        }
        numbers.insert("restored".into(), json!(counts.restored));
        numbers.insert("old".into(), json!(counts.old));
        numbers.insert("failed".into(), json!(counts.failed));
        numbers.insert("dry_run".into(), json!(self.dry_run));
        let would = if self.dry_run { "would get" } else { "got" };
        let summary = || {
            let mut text = format!("{} {would} the old label back", counted(counts.restored, "file"));
            for (count, what) in [(counts.old, "had it"), (counts.failed, "failed")] {
                if count > 0 {
                    text += &format!(", {} {what}", grouped(count));
                }
            }
            text + "\n"
        };
        telling.end(summary, numbers);
        tell_if_interrupted(counts.restored + counts.old + counts.failed, || {
            format!("go on with it: imara undo {run}")
        });
        Ok(if counts.failed == 0 && !damaged { Outcome::Done } else { Outcome::Failed })
    }

    /// Damage in the journal, to be told; what follows it is kept beside before anything is changed.
    fn damage(&self, read: &mut ReadJournal) -> Result<Option<Failure>, Failure> {
        let Some(damage) = read.damage() else { return Ok(None) };
        let (what, end, run) = (format!("{}: {damage}", printable(&read.path)), read.end, &read.run);
        if !self.force {
            return Err(Failure::failed(format!(
                "{what}; what the run changed after that cannot be undone, and nothing was changed"
            ))
            .next(format_args!(
                "put the journal back from a backup, or undo what comes before the damage with `imara undo --force {run}`, \
                 which puts old labels back also where somebody has changed the label since"
            )));
        }
        let kept = if self.dry_run { None } else { read.keep_tail()? };
        let kept = kept.map(|kept| format!("; all from offset {end} on was kept in {}", printable(&kept)));
        let failure = Failure::failed(format!(
            "{what}; what the run changed after that is not undone{}",
            kept.unwrap_or_default()
        ));
        Ok(Some(failure.next(
            "files of the run that --verbose does not list have its labels still: label them anew, or from a backup",
        )))
    }

    fn restore(&self, announced: &File, path: &Path, same_boot: bool) -> Result<Fate, Failure> {
        let problem = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", printable(path)));
        let file = TreeFile::named(path).map_err(|error| problem(&error.reason()))?;
        let state = file.state();
        // The numbers of devices can be others after a restart.
        let same = state.inode == announced.state.inode && (!same_boot || state.device == announced.state.device);
        if !same {
            return Err(problem(&"another file has this name by now; its label was left alone"));
        }
        let mut fate = Fate::Old;
        for Change { place, old, new } in announced.changes.iter().rev() {
            let name = name(*place, path);
            let found = match file.label(*place).map_err(|error| problem(&format_args!("{name}: {error}")))? {
                Xattr::Value(label) => Some(label),
                Xattr::Absent | Xattr::Unsupported => None,
            };
            if found == *old {
                continue;
            }
            if found != *new && !self.force {
                return Err(problem(&format_args!("{name} was changed after the run; it was left alone"))
                    .next("--force puts the old labels back all the same"));
            }
            if !self.dry_run {
                file.set_label(*place, old.as_deref()).map_err(|error| refused(&file, *place, &error))?;
            }
            fate = Fate::Restored;
        }
        Ok(fate)
    }

    fn list(&self) -> CommandResult {
        let (mut text, mut documents) = (String::new(), Vec::new());
        for run in self.journals.runs()? {
            let path = self.journals.journal(OsStr::new(&run))?;
            if is_in_use(&path) {
                text += &format!("{run}  still going on\n");
                documents.push(json!({ "run": run, "state": "running" }));
                continue;
            }
            let read = match ReadJournal::open(&self.journals, OsStr::new(&run)) {
                Ok(read) => read,
                Err(failure) => {
                    text += &format!("{run}  {}\n", failure.what);
                    documents.push(json!({ "run": run, "state": "unreadable", "error": failure.what }));
                    continue;
                }
            };
            let (state, failed, told) = match read.progress {
                Came::Interrupted => ("interrupted", 0, "ended before its end".to_owned()),
                Came::Ended(0) => ("ended", 0, "came to its end".to_owned()),
                Came::Ended(failed) => ("ended", failed, format!("came to its end, {} failed", grouped(failed))),
                Came::Undone(0) => ("undone", 0, "undone".to_owned()),
                Came::Undone(failed) => ("undone", failed, format!("undone, but for {}", counted(failed, "file"))),
            };
            let (begun, files) = (&read.begun, counted(read.files, "file"));
            let folder = printable_bytes(&begun.folder);
            text += &format!("{run}  {}, {files}, {told}\n    in {folder}: {}\n", utc(begun.started), begun.command);
            if let Some(damage) = read.damage() {
                text += &format!("    {damage}; what follows is not known\n");
            } else if let Came::Interrupted = read.progress {
                text += &format!("    go on with it: add --resume {run} to that command\n");
            }
            documents.push(json!({
                "run": run, "state": state, "failed": failed, "started": begun.started, "files": read.files,
                "purpose": begun.purpose, "folder": folder, "command": begun.command, "damage": read.tail.map(|tail| tail.to_string()),
            }));
        }
        if self.json {
            print_json(&json!({ "schema": 1, "runs": documents }));
        } else if !self.quiet {
            print(if text.is_empty() { "no runs\n" } else { &text });
        }
        Ok(Outcome::Done)
    }
}

fn tell(form: Form, told: &mut Told, counts: &mut Counts, path: &Path, fate: Result<Fate, Failure>, dry_run: bool) {
    let would = if dry_run { "would get" } else { "got" };
    let state = match &fate {
        Ok(Fate::Restored) => {
            counts.restored += 1;
            told.line(form, || format!("{}: {would} its old label back\n", printable(path)));
            "restored"
        }
        Ok(Fate::Old) => {
            counts.old += 1;
            told.line(form, || format!("{}: has its old label\n", printable(path)));
            "old"
        }
        Err(_) => {
            counts.failed += 1;
            "failed"
        }
    };
    told.object(form, path, |object| {
        object.insert("state".into(), json!(state));
        if let Err(failure) = &fate {
            failure_json(object, failure);
        }
    });
    if let Err(failure) = fate {
        told.failure(failure);
    }
}
