//! A batch of files, from their opening to their labels.

use super::journal::Journal;
use super::refusal::{name, refused, unsupported};
use super::resume::Before;
use super::{Labeller, Labelling, Plan, Results};
use crate::command::paths::{holds_a_signature, printable};
use crate::command::progress::Progress;
use crate::command::telling::{Form, failure_json};
use crate::output::Failure;
use imara_format::hash::{Digest, to_hex};
use imara_format::journal::{Change, File, Place};
use imara_linux::files::Xattr;
use imara_linux::interruption;
use imara_linux::tree::{Batch, TreeFile};
use serde_json::{Map, Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A file of at least this size is not waited for by those that were read before it.
const LARGE: u64 = 16 << 20;

/// The longest path that a journal takes.
const LONGEST_PATH: usize = 65535;

/// What the threads share.
pub(super) struct Work<'w, L> {
    pub labeller: &'w L,
    pub arguments: &'w Labelling,
    pub form: Form,
    pub journal: Option<&'w Journal>,
    pub before: &'w Before,
    pub progress: &'w Progress,
}

/// What a thread has for itself.
pub(super) struct Thread<T> {
    labeller: T,
    paths: Vec<PathBuf>,
}

/// A file whose labels are about to be changed.
struct Ready<'b> {
    index: usize,
    file: TreeFile<'b>,
    changes: Vec<Change>,
    digest: Option<Digest>,
}

/// What came of a file.
enum Fate {
    Done { changes: Vec<Change>, digest: Option<Digest> },
    Right(Option<Digest>),
    Left(&'static str),
    Failed(Failure),
    Untried,
}

/// What is known of a file before anything is changed.
enum Looked<'b> {
    Ready(Ready<'b>),
    Settled(Fate),
}

impl<L: Labeller> Work<'_, L> {
    pub(super) fn begin(&self) -> Thread<L::Thread> {
        Thread { labeller: self.labeller.begin(), paths: Vec::new() }
    }

    pub(super) fn batch(&self, thread: &mut Thread<L::Thread>, batch: &Batch) -> Results {
        let Thread { labeller, paths } = thread;
        if paths.len() < batch.len() {
            paths.resize_with(batch.len(), PathBuf::new);
        }
        for (index, path) in paths.iter_mut().enumerate().take(batch.len()) {
            batch.path(index, path);
        }
        let paths = &*paths;
        let mut results = Results::default();
        let mut fates = Vec::with_capacity(batch.len());
        let mut ready = Vec::new();
        for (index, path) in paths.iter().enumerate().take(batch.len()) {
            if self.journal.is_some_and(Journal::has_failed) || interruption::came().is_some() {
                results.counts.untried += 1;
                continue;
            }
            // Signatures beside files come and go with the run, and are not signed in their turn.
            if self.beside() && holds_a_signature(path) {
                continue;
            }
            let file = match batch.open(index, path) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(error) => {
                    fates.push((index, Fate::Failed(self.arguments.paths.open_failure(&error))));
                    continue;
                }
            };
            if self.journal.is_some() && path.as_os_str().len() > LONGEST_PATH {
                let what = format!(
                    "a path of more than {LONGEST_PATH} bytes does not fit into the journal: {}",
                    printable(path)
                );
                fates.push((index, Fate::Failed(Failure::failed(what).next("label it from a folder nearer to it"))));
                continue;
            }
            if file.state().size >= LARGE {
                self.make(std::mem::take(&mut ready), &mut fates, &mut results);
                // Reading it may take minutes, in which a power failure would find labels that the journal on the disk lacks.
                if let Some(journal) = self.journal {
                    journal.sync();
                }
            }
            match self.look(labeller, file, index, &mut results.counts.bytes) {
                Looked::Ready(file) => ready.push(file),
                Looked::Settled(fate) => fates.push((index, fate)),
            }
        }
        self.make(ready, &mut fates, &mut results);
        fates.sort_unstable_by_key(|(index, _)| *index);
        for (index, fate) in fates {
            self.tell(&paths[index], fate, &mut results);
        }
        results
    }

    /// Whether the files of trees get signatures beside them.
    fn beside(&self) -> bool {
        self.arguments.paths.are_many() && self.labeller.places().contains(&Place::SignatureFile)
    }

    /// Finds out what a file's labels are and are to be.
    fn look<'b>(&self, thread: &mut L::Thread, mut file: TreeFile<'b>, index: usize, bytes: &mut u64) -> Looked<'b> {
        let failed = |failure| Looked::Settled(Fate::Failed(failure));
        let path = file.path;
        let problem = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", printable(path)));
        let places = self.labeller.places();
        let (mut old, mut keeps_none) = (Vec::with_capacity(places.len()), None);
        for place in places {
            old.push(match file.label(*place) {
                Ok(Xattr::Value(label)) => Some(label),
                Ok(Xattr::Absent) => None,
                Ok(Xattr::Unsupported) => {
                    keeps_none = Some(*place);
                    None
                }
                Err(error) => return failed(problem(&format_args!("{}: {error}", name(*place, path)))),
            });
        }
        if let (Some(place), true) = (keeps_none, self.labeller.reads_content()) {
            return failed(unsupported(path, place));
        }
        let labels = || places.iter().copied().zip(old.iter().map(Option::as_deref));
        if self.before.has(&file.state(), labels()) {
            return Looked::Settled(Fate::Right(None));
        }
        if self.labeller.reads_content()
            && let Err(error) = file.settle()
        {
            return failed(problem(&error));
        }
        let mut step = |more| {
            *bytes += more;
            self.progress.bytes(more);
        };
        match self.labeller.plan(thread, &file, &old, &mut step) {
            Ok(Plan::Right { digest }) => Looked::Settled(Fate::Right(digest)),
            Ok(Plan::Left(why)) => Looked::Settled(Fate::Left(why)),
            Ok(Plan::Set { labels, digest, even_if_equal }) => {
                let changes = places.iter().zip(old.into_iter().zip(labels));
                let changes = changes.map(|(place, (old, new))| Change { place: *place, old, new });
                let changes = changes.filter(|change| even_if_equal || change.old != change.new).collect::<Vec<_>>();
                match changes.is_empty() {
                    true => Looked::Settled(Fate::Right(digest)),
                    false => Looked::Ready(Ready { index, file, changes, digest }),
                }
            }
            // It was not read to its end.
            Err(_) if interruption::came().is_some() => Looked::Settled(Fate::Untried),
            Err(failure) => failed(failure),
        }
    }

    /// Announces changes and makes them.
    fn make(&self, ready: Vec<Ready<'_>>, fates: &mut Vec<(usize, Fate)>, results: &mut Results) {
        if ready.is_empty() {
            return;
        }
        let mut place = None;
        if let (Some(journal), false) = (self.journal, self.arguments.dry_run) {
            let files = ready.iter().map(|Ready { file, changes, .. }| File {
                path: file.path.as_os_str().as_bytes().to_vec(),
                state: file.state(),
                changes: changes.clone(),
            });
            place = journal.announce(&files.collect::<Vec<_>>());
            if place.is_none() {
                results.counts.untried += ready.len() as u64;
                return;
            }
        }
        for Ready { index, file, changes, digest } in ready {
            let fate = match self.set(&file, &changes) {
                Ok(()) => Fate::Done { changes, digest },
                Err(failure) => Fate::Failed(failure),
            };
            fates.push((index, fate));
        }
        if let (Some(journal), Some(place)) = (self.journal, place) {
            journal.made(place);
        }
    }

    fn set(&self, file: &TreeFile<'_>, changes: &[Change]) -> Result<(), Failure> {
        let problem = |what: &dyn std::fmt::Display| Failure::failed(format!("{}: {what}", printable(file.path)));
        let content = self.labeller.reads_content();
        if content && !file.is_unchanged().map_err(|error| problem(&error))? {
            return Err(problem(&"changed while it was read; its label was left as it was")
                .next("label it when nobody writes to it any more"));
        }
        if self.arguments.dry_run {
            return Ok(());
        }
        let back = |changes: &[Change]| {
            for change in changes.iter().rev() {
                if let Err(error) = file.set_label(change.place, change.old.as_deref()) {
                    let name = name(change.place, file.path);
                    return Err(problem(&format_args!("{name} could not be put back to what it was: {error}")));
                }
            }
            Ok(())
        };
        for (number, change) in changes.iter().enumerate() {
            if let Err(error) = file.set_label(change.place, change.new.as_deref()) {
                back(changes.get(..number).unwrap_or_default())?;
                return Err(refused(file, change.place, &error));
            }
        }
        if content && !file.has_its_content().map_err(|error| problem(&error))? {
            back(changes)?;
            return Err(problem(&"changed while it was labelled; its old label was put back")
                .next("label it when nobody writes to it any more"));
        }
        Ok(())
    }

    fn tell(&self, path: &Path, fate: Fate, results: &mut Results) {
        let (form, counts, told) = (self.form, &mut results.counts, &mut results.told);
        let dry_run = self.arguments.dry_run;
        let digest_json = |object: &mut Map<String, Value>, digest: &Option<Digest>| {
            if let Some(digest) = digest {
                object.insert("algorithm".into(), json!(digest.algorithm().name()));
                object.insert("digest".into(), json!(digest.to_hex()));
            }
        };
        match fate {
            Fate::Done { changes, digest } => {
                counts.done += 1;
                told.line(form, || {
                    let would = if dry_run { "would be " } else { "" };
                    let targets = changes.iter().map(|change| name(change.place, path)).collect::<Vec<_>>();
                    let (done, details) = (self.labeller.done(), self.labeller.details(digest.as_ref()));
                    let comma = if details.is_empty() { "" } else { ", " };
                    format!("{}: {would}{done}{comma}{details}, in {}\n", printable(path), targets.join(" and "))
                });
                told.object(form, path, |object| {
                    object.insert("state".into(), json!(self.labeller.done()));
                    digest_json(object, &digest);
                    let hex = |label: &Option<Vec<u8>>| json!(label.as_deref().map(to_hex));
                    if let Some(first) = changes.first() {
                        object.insert("label".into(), hex(&first.new));
                        object.insert("target".into(), json!(name(first.place, path)));
                    }
                    let labels = changes.iter().map(|change| {
                        let labels = json!({ "old": hex(&change.old), "new": hex(&change.new) });
                        (name(change.place, path), labels)
                    });
                    object.insert("labels".into(), Value::Object(labels.collect()));
                    object.insert("written".into(), json!(!dry_run));
                });
            }
            Fate::Untried => counts.untried += 1,
            Fate::Right(digest) => {
                counts.right += 1;
                told.line(form, || format!("{}: right already\n", printable(path)));
                told.object(form, path, |object| {
                    object.insert("state".into(), json!("right"));
                    digest_json(object, &digest);
                });
            }
            Fate::Left(why) => {
                counts.left += 1;
                results.why_left = Some(why);
                told.line(form, || format!("{}: left alone: {why}\n", printable(path)));
                told.object(form, path, |object| {
                    object.insert("state".into(), json!("left"));
                    object.insert("reason".into(), json!(why));
                });
            }
            Fate::Failed(failure) => {
                counts.failed += 1;
                told.object(form, path, |object| {
                    object.insert("state".into(), json!("failed"));
                    failure_json(object, &failure);
                });
                told.failure(failure);
            }
        }
    }
}
