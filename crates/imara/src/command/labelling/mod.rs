//! Runs that change labels: `imara hash`, `sign` and `clear` say what each file's labels are to be, and this does the rest.
//!
//! ```text
//! Labeller ─ plan ─▶ work: a batch of files, open ─▶ journal: what is about to change ─▶ set ─▶ journal: done ─▶ told, in order
//! ```
//!
//! | file | concept |
//! |---|---|
//! | `work.rs` | a batch of files from their opening to their labels |
//! | `journal.rs` | a run's journal, by which it is gone on with or undone |
//! | `resume.rs` | what a run that was ended had done |
//! | `refusal.rs` | why a label could not be set, and what to do |
//!
//! A file may get several labels ([`Labeller::places`]), in the order in which they are given; if one cannot be set, those set
//! before it are put back.

pub mod journal;
pub mod refusal;
pub mod resume;
mod work;

use super::CommandResult;
use super::paths::Paths;
use super::progress::Progress;
use super::telling::{Form, Telling, Told, amount, counted, grouped, tell_if_interrupted, took};
use crate::output::{Failure, Outcome};
use imara_format::hash::Digest;
use imara_format::journal::Place;
use imara_linux::interruption;
use imara_linux::tree::{Batch, TreeFile};
use journal::{Folder, Journal, ReadJournal};
use resume::Before;
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::time::Instant;
use work::Work;

/// What a command makes of the labels of a file.
pub trait Labeller: Sync {
    /// What each thread has for itself, e.g. a key object.
    type Thread;

    /// Where it puts labels, in the order in which they are written.
    fn places(&self) -> &[Place];

    /// By what a run that was ended is found to have written the same, e.g. the hash and the key.
    fn purpose(&self) -> String;

    /// What a file that is done was: `hashed`, `signed`.
    fn done(&self) -> &'static str;

    /// Whether the labels depend on the content: then a change of it meanwhile is noticed.
    fn reads_content(&self) -> bool {
        true
    }

    /// What a thread begins with.
    fn begin(&self) -> Self::Thread;

    /// What the labels of a file are to be. `old` are its labels at [`Labeller::places`]; `step` is told of bytes that were read.
    ///
    /// # Errors
    /// Why they cannot be made.
    fn plan(
        &self,
        thread: &mut Self::Thread,
        file: &TreeFile<'_>,
        old: &[Option<Vec<u8>>],
        step: &mut dyn FnMut(u64),
    ) -> Result<Plan, Failure>;

    /// What is told of a file that is done, after its path and [`Labeller::done`].
    fn details(&self, digest: Option<&Digest>) -> String;

    /// What JSON tells of the whole run.
    fn numbers(&self, _: &mut Map<String, Value>) {}
}

/// What the labels of a file are to be.
#[derive(Debug)]
pub enum Plan {
    /// One for each place, or none there.
    Set {
        /// What they are.
        labels: Vec<Option<Vec<u8>>>,
        /// What they were made from.
        digest: Option<Digest>,
        /// Whether labels that are the same already are written, too.
        even_if_equal: bool,
    },
    /// They are what they should be.
    Right {
        /// What they were made from.
        digest: Option<Digest>,
    },
    /// They are left alone, although they are not what would be made; why: `signed`.
    Left(&'static str),
}

/// What the commands that label have in common.
#[derive(clap::Args)]
pub struct Labelling {
    /// Which files
    #[command(flatten)]
    pub paths: Paths,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Keep no journal: the run can then neither be gone on with nor undone
    #[arg(long, conflicts_with = "resume")]
    no_journal: bool,
    /// Go on with a run that was ended; the other words are those of that command (`imara undo --list` shows them)
    #[arg(long, value_name = "RUN", conflicts_with = "dry_run")]
    resume: Option<OsString>,
    #[command(flatten)]
    journals: Folder,
    /// Print JSON: of files that are named a document, with -r or --files-from a line for each file, and at last a summary
    #[arg(long)]
    pub json: bool,
    /// With -r or --files-from, print a line for each file, too
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// How many files came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    done: u64,
    right: u64,
    left: u64,
    failed: u64,
    /// Not tried, since the journal could not be written, or the run was interrupted.
    untried: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.done += more.done;
        self.right += more.right;
        self.left += more.left;
        self.failed += more.failed;
        self.untried += more.untried;
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    fn files(&self) -> u64 {
        self.done + self.right + self.left + self.failed + self.untried
    }

    /// The exit status: all done, some failed, or nothing done.
    fn outcome(&self, many: bool) -> Outcome {
        match self {
            _ if many && self.done + self.right + self.left == 0 => Outcome::Nothing,
            Self { failed: 0, untried: 0, .. } => Outcome::Done,
            _ => Outcome::Failed,
        }
    }
}

/// What a batch came to.
#[derive(Default)]
struct Results {
    counts: Counts,
    why_left: Option<&'static str>,
    told: Told,
}

/// Does a run.
///
/// # Errors
/// What the command could not do.
pub fn run<L: Labeller>(arguments: &Labelling, labeller: &L) -> CommandResult {
    let Labelling { paths, dry_run, .. } = arguments;
    paths.some()?;
    let many = paths.are_many();
    let form = Form::new(arguments.json, arguments.quiet, arguments.verbose || *dry_run, many);
    if !dry_run {
        may_set(labeller.places())?;
    }
    let (before, journal) = arguments.journal(labeller)?;
    let progress = Progress::new(arguments.quiet, "files");
    let started = Instant::now();
    let work = Work { labeller, arguments, form, journal: journal.as_ref(), before: &before, progress: &progress };
    let (mut counts, mut why_left) = (Counts::default(), None);
    let mut telling = Telling::new(form, many);
    let walked = paths.for_each_batch(
        &progress,
        || work.begin(),
        |thread, batch: &Batch| work.batch(thread, batch),
        |results: Results| {
            counts.add(results.counts);
            why_left = why_left.or(results.why_left);
            telling.tell(results.told);
        },
    );
    drop(progress);
    let run = journal.as_ref().map(|journal| journal.run().to_owned());
    // The journal ends also where the walk did not begin, and then is none.
    let kept = journal.map_or(Ok(false), |journal| match interruption::came() {
        Some(_) => journal.leave(),
        None => journal.end(counts.failed + counts.untried),
    });
    let skipped = walked?;
    let run = run.filter(|_| !matches!(kept, Ok(false)));
    let summary = || {
        let mut parts =
            vec![format!("{} {}{}", grouped(counts.done), if *dry_run { "would be " } else { "" }, labeller.done())];
        let mut part = |count: u64, what: &str| {
            if count > 0 {
                parts.push(format!("{} {what}", grouped(count)));
            }
        };
        part(counts.right, "right already");
        part(counts.left, &format!("left alone: {}", why_left.unwrap_or_default()));
        part(counts.failed, "failed");
        part(counts.untried, "not tried");
        let read = if counts.bytes > 0 { format!("{} read in ", amount(counts.bytes)) } else { String::new() };
        let mut text =
            format!("{}: {}; {read}{}\n", counted(counts.files(), "file"), parts.join(", "), took(started.elapsed()));
        if counts.files() == 0 {
            text = "no file was found\n".to_owned();
        }
        if let Some(run) = &run {
            text += &format!("to undo it: imara undo {run}\n");
        }
        text
    };
    let mut numbers = Map::new();
    let mut number = |name: &str, value: Value| numbers.insert(name.into(), value);
    number(labeller.done(), json!(counts.done));
    number("right", json!(counts.right));
    number("left", json!(counts.left));
    number("failed", json!(counts.failed));
    number("untried", json!(counts.untried));
    number("bytes", json!(counts.bytes));
    number("dry_run", json!(dry_run));
    number("run", json!(run));
    number(
        "skipped",
        json!({
            "symbolic_links": skipped.symbolic_links, "special": skipped.special, "hard_links": skipped.hard_links,
            "mounts": skipped.mounts,
        }),
    );
    labeller.numbers(&mut numbers);
    telling.end(summary, numbers);
    tell_if_interrupted(counts.files() - counts.untried, || match &run {
        Some(run) => format!("go on with it: the same command with --resume {run}; or undo it: imara undo {run}"),
        None if *dry_run || counts.done == 0 => "nothing was changed: begin again".to_owned(),
        None => "no journal was kept, so that it can only be begun again, which does all of it again".to_owned(),
    });
    kept?;
    Ok(counts.outcome(many))
}

impl Labelling {
    /// The journal of this run, and what it had done before.
    fn journal<L: Labeller>(&self, labeller: &L) -> Result<(Before, Option<Journal>), Failure> {
        if let Some(run) = &self.resume {
            let mut read = ReadJournal::open(&self.journals, run)?;
            resume::check(&read, &labeller.purpose())?;
            let before = Before::read(&mut read)?;
            return Ok((before, Some(Journal::go_on(read)?)));
        }
        let wanted = self.paths.are_many() && !self.no_journal && !self.dry_run;
        let journal = if wanted { Some(Journal::begin(&self.journals, labeller.purpose())?) } else { None };
        Ok((Before::default(), journal))
    }
}

/// Told at once, rather than for each file after it was read.
fn may_set(places: &[Place]) -> Result<(), Failure> {
    let security = |place: &&Place| matches!(place, Place::SecurityIma | Place::SecurityEvm);
    match places.iter().find(security) {
        Some(place) if !imara_linux::process::can_administer() => {
            let name = place.attribute().unwrap_or_default();
            Err(Failure::lacking(format!("{name} cannot be set: this process lacks CAP_SYS_ADMIN"))
                .next("run as root; --xattr-user and, for signatures, --sigfile need no privilege"))
        }
        _ => Ok(()),
    }
}

/// A place for labels of content: `user.ima` rather than `security.ima`, or a file beside it.
pub const fn content_place(xattr_user: bool, sigfile: bool) -> Place {
    match (sigfile, xattr_user) {
        (true, _) => Place::SignatureFile,
        (false, true) => Place::UserIma,
        (false, false) => Place::SecurityIma,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_tells_all_done_from_some_failed_from_nothing_done() {
        let counts = |done, right, failed| Counts { done, right, failed, ..Counts::default() };
        for (many, counts, outcome) in [
            (true, counts(5, 0, 0), Outcome::Done),
            (true, counts(0, 5, 0), Outcome::Done),
            (true, counts(5, 0, 1), Outcome::Failed),
            (true, counts(0, 1, 1), Outcome::Failed),
            (true, counts(0, 0, 5), Outcome::Nothing),
            (true, counts(0, 0, 0), Outcome::Nothing),
            (false, counts(0, 0, 1), Outcome::Failed),
            (true, Counts { untried: 1, done: 1, ..Counts::default() }, Outcome::Failed),
        ] {
            assert_eq!(counts.outcome(many), outcome, "{counts:?}");
        }
    }
}
