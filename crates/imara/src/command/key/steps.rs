//! What a command with several steps tells: each step, whether it was done, was there already, or failed.

use crate::command::change::Change;
use crate::output::{Failure, Outcome, complain, print, print_json};
use serde_json::{Value, json};

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was there before, and is left as it is.
    There,
    /// It is done; with `--dry-run`: it would be.
    Done,
}

/// The steps so far.
pub struct Steps<'c> {
    change: &'c Change,
    documents: Vec<Value>,
    outcome: Outcome,
}

impl<'c> Steps<'c> {
    /// None yet.
    pub const fn new(change: &'c Change) -> Self {
        Self { change, documents: Vec::new(), outcome: Outcome::Done }
    }

    /// Whether nothing is to be done.
    pub const fn dry_run(&self) -> bool {
        self.change.dry_run
    }

    /// Tells of a step: `verb` is what was done with `what` (`made`, `loaded`).
    pub fn tell(&mut self, what: &str, state: State, verb: &str, detail: &str) {
        let detail_text = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        let done = match (state, self.change.dry_run) {
            (State::There, _) => "is there already".to_owned(),
            (State::Done, true) => format!("would be {verb}"),
            (State::Done, false) => verb.to_owned(),
        };
        self.documents.push(json!({
            "what": what,
            "state": match (state, self.change.dry_run) {
                (State::There, _) => "there",
                (State::Done, true) => "would",
                (State::Done, false) => "done",
            },
            "verb": verb,
            "detail": detail,
        }));
        if !self.change.json && !self.change.quiet {
            print(format_args!("{what} {done}{detail_text}\n"));
        }
    }

    /// Tells of a step that failed; the others go on.
    pub fn fail(&mut self, what: &str, failure: &Failure) {
        complain(failure);
        self.outcome = self.outcome.max(failure.outcome);
        self.documents.push(json!({ "what": what, "state": "failed", "error": failure.what, "next": failure.next }));
    }

    /// Tells of a step by its result.
    pub fn take(&mut self, what: &str, verb: &str, result: Result<(State, String), Failure>) -> bool {
        match result {
            Ok((state, detail)) => {
                self.tell(what, state, verb, &detail);
                true
            }
            Err(failure) => {
                self.fail(what, &failure);
                false
            }
        }
    }

    /// What was done so far, or would be.
    pub fn told(&self) -> Vec<String> {
        let done = self.documents.iter().filter(|step| matches!(step["state"].as_str(), Some("done" | "would")));
        done.filter_map(|step| step["what"].as_str().map(str::to_owned)).collect()
    }

    /// Whether any was told.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// How it ended, with `more` in the JSON document.
    pub fn finish(self, mut more: Value) -> Outcome {
        if self.change.json {
            more["steps"] = Value::Array(self.documents);
            print_json(&more);
        }
        self.outcome
    }
}
