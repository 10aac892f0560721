//! Commands that do one thing to each file and tell of each by itself: a line and a document, or why not; and how many of what.

use super::CommandResult;
use super::paths::Paths;
use super::progress::Progress;
use super::telling::{Form, Telling, Told, counted, failure_json, grouped, look_again, tell_if_interrupted, took};
use crate::output::{Failure, Outcome, complain};
use imara_linux::interruption;
use imara_linux::tree::{Batch, TreeFile};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// How it is told.
pub struct EachFile<'a> {
    /// What is done to a file, for the sum: `enabled`.
    pub done: &'a str,
    /// As JSON.
    pub json: bool,
    /// Failures alone.
    pub quiet: bool,
    /// Of trees and lists a line for each file, too.
    pub verbose: bool,
}

/// What is told of a file.
pub struct OfFile {
    /// What it came to, in a word, to be counted; none where done or failed is all.
    pub class: Option<&'static str>,
    /// A line for people, or why it did not pass.
    pub line: Result<String, Failure>,
    /// The same for programs.
    pub document: Map<String, Value>,
}

/// How many files came to what.
#[derive(Default)]
struct Counts {
    done: u64,
    failed: u64,
    classes: BTreeMap<&'static str, u64>,
}

impl EachFile<'_> {
    /// Does `work` for every file; it gives what is to be printed, and the same for programs.
    ///
    /// # Errors
    /// As [`Paths::for_each_batch`].
    pub fn each(
        &self,
        paths: &Paths,
        work: impl Fn(&TreeFile<'_>) -> Result<(String, Map<String, Value>), Failure> + Sync,
    ) -> CommandResult {
        let of_file = |(line, document)| Some(OfFile { class: None, line: Ok(line), document });
        self.each_of(paths, |file| work(file).map(of_file))
    }

    /// The same, where also of a file that does not pass there is something to say to programs, and some files are none of the run's (`None`).
    ///
    /// # Errors
    /// As [`Paths::for_each_batch`].
    pub fn each_of(
        &self,
        paths: &Paths,
        work: impl Fn(&TreeFile<'_>) -> Result<Option<OfFile>, Failure> + Sync,
    ) -> CommandResult {
        let many = paths.are_many();
        let form = Form::new(self.json, self.quiet, self.verbose, many);
        let (mut counts, mut telling) = (Counts::default(), Telling::new(form, many));
        let (progress, started) = (Progress::new(self.quiet, "files"), Instant::now());
        let batch = |path: &mut PathBuf, batch: &Batch| {
            let (mut counts, mut told) = (Counts::default(), Told::default());
            for index in 0..batch.len() {
                if interruption::came().is_some() {
                    break;
                }
                batch.path(index, path);
                let found = match batch.open(index, path) {
                    Ok(Some(file)) => work(&file),
                    Ok(None) => continue,
                    Err(error) => Err(paths.open_failure(&error)),
                };
                let failed = |failure| Some(OfFile { class: None, line: Err(failure), document: Map::new() });
                if let Some(found) = found.unwrap_or_else(failed) {
                    counts.tell(form, path, found, &mut told);
                }
            }
            (counts, told)
        };
        paths.for_each_batch(&progress, PathBuf::new, batch, |(more, told): (Counts, Told)| {
            counts.add(more);
            telling.tell(told);
        })?;
        drop(progress);
        let Counts { done, failed, classes } = counts;
        let summary = || {
            if done + failed == 0 {
                return "no file was found\n".to_owned();
            }
            let mut parts = vec![format!("{} {}", grouped(done), self.done)];
            parts.extend(classes.iter().map(|(class, count)| format!("{} {class}", grouped(*count))));
            if failed > 0 {
                parts.push(format!("{} not", grouped(failed)));
            }
            format!("{}: {}; in {}\n", counted(done + failed, "file"), parts.join(", "), took(started.elapsed()))
        };
        let mut numbers = Map::new();
        numbers.insert(self.done.to_owned(), json!(done));
        numbers.insert("failed".to_owned(), json!(failed));
        numbers.extend(classes.iter().map(|(class, count)| ((*class).to_owned(), json!(count))));
        telling.end(summary, numbers);
        tell_if_interrupted(done + failed, look_again);
        if !many && !self.json && failed > 0 && done + failed > 1 {
            complain(&Failure::failed(format!("{failed} of {} files were not {}", done + failed, self.done)));
        }
        Ok(match (done, failed) {
            (0, 0) if many => Outcome::Nothing,
            (_, 0) => Outcome::Done,
            _ => Outcome::Failed,
        })
    }
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.done += more.done;
        self.failed += more.failed;
        for (class, count) in more.classes {
            *self.classes.entry(class).or_default() += count;
        }
    }

    fn tell(&mut self, form: Form, path: &std::path::Path, found: OfFile, told: &mut Told) {
        let OfFile { class, line, document } = found;
        *(if line.is_ok() { &mut self.done } else { &mut self.failed }) += 1;
        if let Some(class) = class {
            *self.classes.entry(class).or_default() += 1;
        }
        told.object(form, path, |object| {
            object.extend(document);
            if let Err(failure) = &line {
                failure_json(object, failure);
            }
        });
        match line {
            Ok(line) => told.line(form, || line),
            Err(failure) => told.failure(failure),
        }
    }
}
