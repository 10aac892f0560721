//! How commands over many files tell what they found: text, a JSON document, or JSON lines.
//!
//! | form | of files that were named | of trees and lists |
//! |---|---|---|
//! | text | a line each | a line each with `-v`; failures; how many of what at the end |
//! | JSON | one document: `schema`, `files`, how many of what | a line for each file, and a last line with `summary` |
//!
//! Nothing is kept in memory but what to do next, each once.

use super::paths::path_json;
use crate::output::{Failure, complain, print};
use imara_linux::interruption;
use serde_json::{Map, Value, json};
use std::path::Path;

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Errors alone.
    Quiet,
    /// Errors, and how many of what.
    Summary,
    /// A line for each file.
    Each,
    /// A JSON document.
    Document,
    /// A JSON object a line.
    Lines,
}

impl Form {
    /// The form that was asked for. `many` says that more may be meant than what is named one by one.
    pub fn new(json: bool, quiet: bool, verbose: bool, many: bool) -> Self {
        match (json, quiet) {
            (true, _) if many => Self::Lines,
            (true, _) => Self::Document,
            (false, true) => Self::Quiet,
            (false, false) if many && !verbose => Self::Summary,
            (false, false) => Self::Each,
        }
    }

    /// Whether it is JSON.
    pub fn is_json(self) -> bool {
        matches!(self, Self::Document | Self::Lines)
    }
}

/// What some files have to tell, made by whoever worked on them.
#[derive(Debug, Default)]
pub struct Told {
    text: String,
    failures: Vec<Failure>,
}

impl Told {
    /// A line of text, where each file has one; `line` ends with a newline.
    pub fn line(&mut self, form: Form, line: impl FnOnce() -> String) {
        if form == Form::Each {
            self.text += &line();
        }
    }

    /// A JSON object about a file, whose path comes first.
    pub fn object(&mut self, form: Form, path: &Path, fields: impl FnOnce(&mut Map<String, Value>)) {
        if !form.is_json() {
            return;
        }
        let mut object = path_json(path);
        fields(&mut object);
        self.text += &Value::Object(object).to_string();
        self.text.push('\n');
    }

    /// A file that failed.
    pub fn failure(&mut self, failure: Failure) {
        self.failures.push(failure);
    }
}

/// The fields of a failure.
pub fn failure_json(object: &mut Map<String, Value>, failure: &Failure) {
    object.insert("error".into(), json!(failure.what));
    object.insert("next".into(), json!(failure.next));
}

/// So many different next steps are told at the end.
const NEXT_STEPS: usize = 6;

/// Tells what was found as it comes.
pub struct Telling {
    form: Form,
    many: bool,
    begun: bool,
    next: Vec<String>,
}

impl Telling {
    /// Nothing told yet.
    pub fn new(form: Form, many: bool) -> Self {
        Self { form, many, begun: false, next: Vec::new() }
    }

    /// In which form.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Tells of some files.
    pub fn tell(&mut self, told: Told) {
        for failure in told.failures {
            self.fail(failure);
        }
        if told.text.is_empty() {
            return;
        }
        if self.form != Form::Document {
            return print(told.text);
        }
        let mut text = String::new();
        for line in told.text.lines() {
            text += if std::mem::replace(&mut self.begun, true) { ",\n    " } else { DOCUMENT };
            text += line;
        }
        print(text);
    }

    /// A failure: of many files a line each, and what to do next at the end.
    fn fail(&mut self, failure: Failure) {
        let Failure { outcome, what, next } = failure;
        if !self.many {
            return complain(&Failure { outcome, what, next });
        }
        if !next.is_empty() && self.next.len() < NEXT_STEPS && !self.next.contains(&next) {
            self.next.push(next);
        }
        complain(&Failure { outcome, what, next: String::new() });
    }

    /// The end: `summary` in words, and its numbers.
    pub fn end(self, summary: impl FnOnce() -> String, mut numbers: Map<String, Value>) {
        if self.many {
            numbers.insert("interrupted".to_owned(), json!(interruption::came().is_some()));
        }
        match self.form {
            Form::Quiet => {}
            Form::Summary => print(summary()),
            Form::Each if self.many => print(summary()),
            Form::Each => {}
            Form::Document => {
                let fields = numbers.into_iter().map(|(name, value)| format!(",\n  {}: {value}", json!(name)));
                let begin = if self.begun { "" } else { DOCUMENT.trim_end() };
                let end = if self.begun { "\n  " } else { "" };
                print(format_args!("{begin}{end}]{}\n}}\n", fields.collect::<String>()));
            }
            Form::Lines => print(format_args!("{}\n", json!({ "schema": 1, "summary": numbers }))),
        }
        if !self.form.is_json() {
            for next in self.next {
                let mut stderr = std::io::stderr().lock();
                // Nothing is left to tell anybody when standard error is gone.
                let _ = std::io::Write::write_fmt(&mut stderr, format_args!("imara: next: {next}\n"));
            }
        }
    }
}

/// Tells of a run that a signal has ended before its end: how far it came, and what to do next.
pub fn tell_if_interrupted(files: u64, next: impl FnOnce() -> String) {
    let Some(signal) = interruption::came() else { return };
    let name = if signal == interruption::SIGTERM { "SIGTERM" } else { "SIGINT" };
    complain(&Failure::failed(format!("interrupted by {name} after {}", counted(files, "file"))).next(next()));
}

/// What to do next where nothing was changed.
pub fn look_again() -> String {
    "nothing is known of the files that come after them: begin again".to_owned()
}

const DOCUMENT: &str = "{\n  \"schema\": 1,\n  \"files\": [\n    ";

/// A number of things with its noun: `1 file`, `2,345 files`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A number with its thousands apart.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An amount of bytes: `17 bytes`, `1.2 MiB`.
pub fn amount(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "bytes" { counted(bytes, "byte") } else { format!("{value:.1} {unit}") }
}

/// A time that something took: `0.3 s`, `2 min 5 s`.
pub fn took(time: std::time::Duration) -> String {
    match time.as_secs() {
        0..=59 => format!("{:.1} s", time.as_secs_f64()),
        60..=3599 => format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn amounts_are_told_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "file"), counted(0, "file")], ["1 file", "0 files"]);
        assert_eq!(
            [0, 1, 1023, 1024, 1_300_000].map(amount),
            ["0 bytes", "1 byte", "1,023 bytes", "1.0 KiB", "1.2 MiB"]
        );
        assert_eq!(took(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(took(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(took(Duration::from_secs(7260)), "2 h 1 min");
    }

    #[test]
    fn the_form_follows_what_was_asked_and_how_many_are_meant() {
        for (json, quiet, verbose, many, form) in [
            (false, false, false, false, Form::Each),
            (false, false, false, true, Form::Summary),
            (false, false, true, true, Form::Each),
            (false, true, false, true, Form::Quiet),
            (true, false, false, false, Form::Document),
            (true, true, false, true, Form::Lines),
        ] {
            assert_eq!(Form::new(json, quiet, verbose, many), form);
        }
    }
}
