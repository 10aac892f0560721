//! How commands tell what they did of each file: a line, a document, and the failures with a sum at the end.

use super::CommandResult;
use super::paths::{Paths, path_json};
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};
use std::path::Path;

/// How it is told.
pub struct Told<'a> {
    /// What is done to a file, for the sum: `enabled`.
    pub done: &'a str,
    /// As JSON.
    pub json: bool,
    /// Failures alone.
    pub quiet: bool,
}

/// What is told of a file: a line for people, or why it did not pass; and the same for programs.
pub type OfFile = (Result<String, Failure>, Map<String, Value>);

impl Told<'_> {
    /// Does `work` for every file; it gives what is to be printed, and the same for programs.
    ///
    /// # Errors
    /// As [`Paths::for_each`].
    pub fn each(
        &self,
        paths: &Paths,
        work: impl Fn(&TreeFile<'_>) -> Result<(String, Map<String, Value>), Failure> + Sync,
    ) -> CommandResult {
        self.each_of(paths, |file| work(file).map(|(line, document)| (Ok(line), document)))
    }

    /// The same, where also of a file that does not pass there is something to say to programs.
    ///
    /// # Errors
    /// As [`Paths::for_each`].
    pub fn each_of(
        &self,
        paths: &Paths,
        work: impl Fn(&TreeFile<'_>) -> Result<OfFile, Failure> + Sync,
    ) -> CommandResult {
        let (mut done, mut failed) = (0_u64, 0_u64);
        let mut documents = Vec::new();
        paths.for_each(self.quiet, work, |path: &Path, result: Result<OfFile, Failure>| {
            let mut document = path_json(path);
            let line = result.and_then(|(line, more)| {
                document.extend(more);
                line
            });
            match line {
                Ok(line) => {
                    done += 1;
                    if !self.json && !self.quiet {
                        print(line);
                    }
                }
                Err(failure) => {
                    failed += 1;
                    complain(&failure);
                    document.insert("error".into(), json!(failure.what));
                    document.insert("next".into(), json!(failure.next));
                }
            }
            if self.json {
                documents.push(Value::Object(document));
            }
        })?;
        if self.json {
            let mut document = Map::from_iter([("schema".to_owned(), json!(1))]);
            document.insert(self.done.to_owned(), json!(done));
            document.insert("failed".to_owned(), json!(failed));
            document.insert("files".to_owned(), json!(documents));
            print_json(&Value::Object(document));
        } else if failed > 0 && failed + done > 1 {
            complain(&Failure::failed(format!("{failed} of {} files were not {}", failed + done, self.done)));
        }
        Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
    }
}
