//! How commands ask the running guard: one JSON request a line over a Unix socket, one JSON answer a line back.
//!
//! | request | answer |
//! |---|---|
//! | `{"command":"status"}` | what `imara status --json` prints |
//! | `{"command":"explain","path":P,"uid":N}` | what `imara explain --json` prints |
//! | `{"command":"mode","mode":M}` | the mode before and now |
//! | `{"command":"policy"}` | what `imara policy show --json` prints |
//! | `{"command":"load-policy","path":P,…}` | what `imara policy load --json` prints |
//! | `{"command":"trace","path":P,…}` | the trace that was begun, as `imara status --json` shows it |
//! | `{"command":"stop-trace"}` | the same, ended |
//! | `{"command":"pcrs"}` | the TPM's PCR values, `sha256:10 HEX` a line |
//!
//! An answer is `{"ok":…}`, or `{"error":{"what":…,"next":…,"outcome":…}}`. The directory that holds the socket is its
//! owner's alone.

use super::live_policy::Load;
use super::runtime::SOCKET;
use super::tracing;
use crate::output::{Failure, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The longest request, in bytes.
const MOST: u64 = 64 << 10;
/// How long a command waits for the guard; explaining a large file takes as long as hashing it.
const PATIENCE: Duration = Duration::from_secs(600);

/// A request.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// What is going on.
    Status,
    /// Why a file is let through or refused.
    Explain {
        /// The file.
        path: PathBuf,
        /// The user who would use it.
        uid: u32,
    },
    /// Switches the mode.
    Mode {
        /// Its name.
        mode: String,
    },
    /// The rules in force.
    Policy,
    /// Puts other rules in force.
    LoadPolicy(Load),
    /// Writes down every decision.
    Trace(tracing::Wanted),
    /// No longer.
    StopTrace,
    /// The TPM's PCR values.
    Pcrs,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Error {
        /// What happened.
        what: String,
        /// What to do next.
        next: String,
        /// How the command that asked is to end.
        outcome: Outcome,
    },
}

/// Asks the guard whose runtime directory this is.
///
/// # Errors
/// [`Failure`]: there is none, or it could not do what was asked.
pub fn ask(directory: &Path, request: &Request) -> Result<Value, Failure> {
    let socket = directory.join(SOCKET);
    let no_guard = |error: std::io::Error| {
        Failure::lacking(format_args!("no guard answers at {}: {error}", socket.display())).next(
            "start one (`imara guard --watch DIR --policy FILE --key CERT`, or the service imarad), or name its directory \
             with --runtime-dir",
        )
    };
    let mut stream = UnixStream::connect(&socket).map_err(no_guard)?;
    let broken = |error: std::io::Error| Failure::failed(format_args!("the guard did not answer: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    let mut line = serde_json::to_string(request).map_err(Failure::failed)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(broken)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(broken)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error { what, next, outcome }) => Err(Failure { outcome, what, next }),
        Err(error) => Err(Failure::failed(format_args!("the guard's answer cannot be read: {error}"))),
    }
}

/// Binds the socket, in place of one that an earlier guard left.
///
/// # Errors
/// What bind(2) says.
pub fn listen(directory: &Path) -> std::io::Result<UnixListener> {
    let path = directory.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Connections answered at the same time.
const CONNECTIONS: usize = 16;

/// Answers connections, each in a thread of its own: explaining a huge file must not keep `imara mode` waiting.
pub fn serve<F>(listener: &UnixListener, answer: F)
where
    F: Fn(Request) -> Result<Value, Failure> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let under_way = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            continue;
        };
        // A client that went away, or sends nothing, must not hold its thread for ever.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
        while under_way.load(Ordering::Relaxed) >= CONNECTIONS {
            std::thread::sleep(Duration::from_millis(10));
        }
        under_way.fetch_add(1, Ordering::Relaxed);
        let answer = Arc::clone(&answer);
        let place = Place(Arc::clone(&under_way));
        // Where no thread can be started the place is free again, as at its end.
        let _ = std::thread::Builder::new().name("answer".into()).spawn(move || {
            let _place = place;
            let _ = answer_one(stream, &*answer);
        });
    }
}

/// One of the connections that are answered at the same time; free again however that ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer_one(
    mut stream: UnixStream,
    answer: &(impl Fn(Request) -> Result<Value, Failure> + ?Sized),
) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?.take(MOST)).read_line(&mut line)?;
    let result = serde_json::from_str::<Request>(&line)
        .map_err(|error| Failure::failed(format_args!("the request cannot be read: {error}")))
        .and_then(answer);
    let answer = match result {
        Ok(value) => Answer::Ok(value),
        Err(Failure { what, next, outcome }) => Answer::Error { what, next, outcome },
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_and_nonsense_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(directory.path()).unwrap();
        std::thread::spawn(move || {
            serve(&listener, |request| match request {
                Request::Status => Ok(serde_json::json!({"level": 1})),
                other => Err(Failure::failed(format_args!("{other:?}")).next("nothing")),
            });
        });
        assert_eq!(ask(directory.path(), &Request::Status).unwrap()["level"], 1);
        let failure = ask(directory.path(), &Request::Mode { mode: "log".into() }).unwrap_err();
        assert!(failure.what.contains("log") && failure.next == "nothing" && failure.outcome == Outcome::Failed);
        for nonsense in ["\n", "{}\n", "{\"command\":\"explode\"}\n", "\u{0}\u{1}\n"] {
            let mut stream = UnixStream::connect(directory.path().join(SOCKET)).unwrap();
            stream.write_all(nonsense.as_bytes()).unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            assert!(answer.contains("cannot be read"), "{nonsense:?}: {answer}");
        }
    }

    #[test]
    fn a_request_with_a_field_that_is_not_known_is_refused() {
        for (request, good) in [
            (r#"{"command":"load-policy","path":null,"placement":"as-kernel","dry_run":true,"force":false}"#, true),
            (r#"{"command":"load-policy","placement":"replace","dry_run":false,"force":false,"dry-run":true}"#, false),
            (r#"{"command":"trace","path":"/t","seconds":1,"most":1,"force":false}"#, true),
            (r#"{"command":"trace","path":"/t","seconds":1,"most":1,"force":false,"uid":0}"#, false),
        ] {
            assert_eq!(serde_json::from_str::<Request>(request).is_ok(), good, "{request}");
        }
    }

    #[test]
    fn without_a_guard_the_next_step_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let failure = ask(directory.path(), &Request::Status).unwrap_err();
        assert_eq!(failure.outcome, Outcome::Lacking);
        assert!(failure.next.contains("imara guard"));
    }
}
