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
//! | `{"command":"evm-mode","bits":B,…}` | EVM's mode before and now |
//! | `{"command":"evm-xattrs","write":W}` | the attributes that EVM protects, with what was written to the list |
//! | `{"command":"evm-changes","path":P}` | what has been seen of a file's metadata |
//! | `{"command":"pcrs"}` | the TPM's PCR values, `sha256:10 HEX` a line |
//! | `{"command":"report","forget":B}` | what `imara report --json` prints |
//! | `{"command":"events","recent":N}` | an empty document, then an event a line, and `null` from time to time |
//!
//! First comes `{"taken":PROCESS}`, at once, so that a guard that hangs is not waited for; then the answer, `{"ok":…}` or
//! `{"error":{"what":…,"next":…,"outcome":…}}`. The directory that holds the socket is its owner's alone.

use super::live_policy::Load;
use super::runtime::SOCKET;
use super::tracing;
use crate::output::{Failure, Outcome, tell};
use imara_linux::local_socket;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest request, in bytes.
const MOST: u64 = 64 << 10;
/// How long a command waits for the guard to take its request.
const PROMPT: Duration = Duration::from_secs(10);
/// How often one who listens is told that nothing happened.
const ALIVE: Duration = Duration::from_secs(1);
/// How long it then waits for the answer; explaining a large file takes as long as hashing it.
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
    /// Who asks is going to undo a switch of the mode, and to end a guard that does not answer then.
    WillRollBack,
    /// The rules in force.
    Policy,
    /// Puts other rules in force.
    LoadPolicy(Load),
    /// Writes down every decision.
    Trace(tracing::Wanted),
    /// No longer.
    StopTrace,
    /// Writes to EVM's mode.
    EvmMode {
        /// What is written.
        bits: String,
        /// Say what would be.
        dry_run: bool,
    },
    /// Shows the attributes that EVM protects, or writes to that list.
    EvmXattrs {
        /// What is written.
        write: Option<String>,
    },
    /// What has been seen of a file's metadata.
    EvmChanges {
        /// The file.
        path: PathBuf,
    },
    /// The TPM's PCR values.
    Pcrs,
    /// Everything that did not pass; and whether it is to be forgotten then.
    Report {
        /// Forget it.
        forget: bool,
    },
    /// What happens from now on, after this many of the last failures.
    Events {
        /// How many.
        recent: usize,
    },
}

/// What a request is answered with.
#[derive(Debug)]
pub enum Reply {
    /// A document.
    Once(Value),
    /// Documents, one a line, until the one who asked goes away.
    Stream(Receiver<Value>),
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        Self::Once(value)
    }
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The request has been read by this process; what comes of it follows.
    Taken(u32),
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

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens there.
    NoGuard(Failure),
    /// There is a guard, and whether it has done what was asked for is not known.
    Silent(Failure),
    /// It has not, and says why.
    Refused(Failure),
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NoGuard(failure) | AskError::Silent(failure) | AskError::Refused(failure) => failure,
        }
    }
}

/// Asks the guard whose runtime directory this is.
///
/// # Errors
/// [`AskError`]: there is none, it does not answer, or it could not do what was asked.
pub fn ask(directory: &Path, request: &Request) -> Result<Value, AskError> {
    ask_within(directory, request, PROMPT)
}

/// Asks for what goes on; each document that comes is given to `take`, until it says that it has enough. Between two there is
/// a `null` each second at the latest.
///
/// # Errors
/// As [`ask`]; and that the guard has ended.
pub fn follow(
    directory: &Path,
    request: &Request,
    mut take: impl FnMut(Value) -> ControlFlow<()>,
) -> Result<(), AskError> {
    let (_, mut answers) = converse(directory, request, PROMPT)?;
    let pid = local_socket::listener(answers.get_ref()).ok();
    loop {
        let mut line = String::new();
        match answers.read_line(&mut line) {
            Ok(0) => return Err(AskError::NoGuard(Failure::lacking("the guard has ended"))),
            Ok(_) => {}
            Err(error) => return Err(silent(pid, &error)),
        }
        let event = serde_json::from_str(&line)
            .map_err(|error| silent(pid, &format_args!("what it tells cannot be read: {error}")))?;
        if take(event).is_break() {
            return Ok(());
        }
    }
}

fn ask_within(directory: &Path, request: &Request, prompt: Duration) -> Result<Value, AskError> {
    converse(directory, request, prompt).map(|(value, _)| value)
}

fn converse(directory: &Path, request: &Request, prompt: Duration) -> Result<(Value, BufReader<UnixStream>), AskError> {
    let socket = directory.join(SOCKET);
    let mut stream = local_socket::connect(&socket, prompt).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => silent(None, &"it takes no connections"),
        _ => AskError::NoGuard(no_guard(&socket, &error)),
    })?;
    let pid = local_socket::listener(&stream).ok();
    tell(format_args!("asking the guard at {}, process {}", socket.display(), pid.unwrap_or_default()));
    let broken = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock => silent(pid, &format_args!("it has taken no request for {} s", prompt.as_secs())),
        _ => silent(pid, &error),
    };
    let late = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock => silent(pid, &format_args!("it has been at it for {} s", PATIENCE.as_secs())),
        _ => silent(pid, &error),
    };
    let mut line = serde_json::to_string(request).map_err(|error| silent(pid, &error))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(broken)?;
    let mut answers = BufReader::new(stream);
    let mut answer = String::new();
    answers.read_line(&mut answer).map_err(broken)?;
    if matches!(serde_json::from_str(&answer), Ok(Answer::Taken(_))) {
        answers.get_ref().set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        answer.clear();
        answers.read_line(&mut answer).map_err(late)?;
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(value)) => Ok((value, answers)),
        Ok(Answer::Error { what, next, outcome }) => Err(AskError::Refused(Failure { outcome, what, next })),
        Ok(Answer::Taken(_)) => Err(silent(pid, &"it took the request twice")),
        Err(_) if answer.is_empty() => Err(silent(pid, &"it ended before it answered")),
        Err(error) => Err(silent(pid, &format_args!("its answer cannot be read: {error}"))),
    }
}

fn no_guard(socket: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::lacking(format_args!("no guard answers at {}: {error}", socket.display()));
    match error.kind() {
        ErrorKind::PermissionDenied => failure.next("run this as root, as the guard's owner"),
        _ => failure.next(
            "start one (`imara guard --watch DIR --policy FILE --key CERT`, or the service imarad), or name its directory \
             with --runtime-dir",
        ),
    }
}

/// A guard is there, and its answer is not.
fn silent(pid: Option<i32>, why: &dyn std::fmt::Display) -> AskError {
    let (who, pid) = match pid {
        Some(pid) => (format!("the guard (process {pid})"), pid.to_string()),
        None => ("the guard".to_owned(), "PROCESS".to_owned()),
    };
    AskError::Silent(Failure::failed(format_args!("{who} does not answer: {why}")).next(format_args!(
        "ask again; if it hangs, end it: kill -9 {pid} (the kernel then lets every access go on, and the next guard reports \
         the gap)"
    )))
}

/// Binds the socket, in place of one that an earlier guard left.
///
/// # Errors
/// What bind(2) says.
pub fn listen(directory: &Path) -> std::io::Result<UnixListener> {
    let path = directory.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Requests under way at the same time, before more connections are taken up.
const REQUESTS: usize = 16;

/// Connections whose request has not come yet. Where there are more the oldest is ended: who asks sends a request at once.
const SILENT: usize = 64;

/// Answers connections, each in a thread of its own: explaining a huge file must not keep `imara mode` waiting, and whoever says
/// nothing must keep nobody waiting. `answer` is given the request and the process that asks.
pub fn serve<F>(listener: &UnixListener, answer: F)
where
    F: Fn(Request, i32) -> Result<Reply, Failure> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let (under_way, silent) = (Arc::new(AtomicUsize::new(0)), Arc::<Silent>::default());
    for (number, stream) in listener.incoming().enumerate() {
        let Ok(stream) = stream else {
            // No descriptor is left, say.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        // A client that went away, or sends nothing, must not hold its thread for ever.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(5)));
        while under_way.load(Ordering::Relaxed) >= REQUESTS {
            std::thread::sleep(Duration::from_millis(10));
        }
        let waits = Waits::begin(&silent, number, &stream);
        let (answer, under_way) = (Arc::clone(&answer), Arc::clone(&under_way));
        // Where no thread can be started the connection ends.
        let _ = std::thread::Builder::new().name("answer".into()).spawn(move || {
            let line = read_request(&stream);
            drop(waits);
            let _place = Place::taken(under_way);
            line.and_then(|line| answer_one(&stream, &line, &*answer))
        });
    }
}

/// Connections whose request has not come yet, the oldest first.
#[derive(Default)]
struct Silent(Mutex<VecDeque<(usize, UnixStream)>>);

/// One of them, until its request has come.
struct Waits {
    all: Arc<Silent>,
    number: usize,
}

impl Waits {
    fn begin(all: &Arc<Silent>, number: usize, stream: &UnixStream) -> Self {
        let mut silent = all.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.extend(stream.try_clone().map(|stream| (number, stream)));
        if silent.len() > SILENT
            && let Some((_, oldest)) = silent.pop_front()
        {
            // What it has sent already is still read, and answered.
            let _ = oldest.shutdown(Shutdown::Read);
        }
        Self { all: Arc::clone(all), number }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(number, _)| *number != self.number);
    }
}

/// One of the requests that are under way; over however that ends.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn taken(all: Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn read_request(stream: &UnixStream) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MOST)).read_line(&mut line)?;
    Ok(line)
}

fn answer_one(
    stream: &UnixStream,
    line: &str,
    answer: &(impl Fn(Request, i32) -> Result<Reply, Failure> + ?Sized),
) -> std::io::Result<()> {
    let tell = |mut stream: &UnixStream, answer: &Answer| {
        let mut text = serde_json::to_string(answer)?;
        text.push('\n');
        stream.write_all(text.as_bytes())
    };
    let request = serde_json::from_str::<Request>(line)
        .map_err(|error| Failure::failed(format_args!("the request cannot be read: {error}")));
    // Whoever went away meanwhile wants it done all the same.
    let _ = tell(stream, &Answer::Taken(std::process::id()));
    let peer = local_socket::listener(stream).unwrap_or(0);
    match request.and_then(|request| answer(request, peer)) {
        Ok(Reply::Once(value)) => tell(stream, &Answer::Ok(value)),
        Ok(Reply::Stream(events)) => {
            tell(stream, &Answer::Ok(json!({ "schema": 1 })))?;
            loop {
                // A line now and then, without which it would not show that nobody listens any more.
                let event = match events.recv_timeout(ALIVE) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => Value::Null,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                };
                let mut stream = stream;
                stream.write_all(format!("{event}\n").as_bytes())?;
            }
        }
        Err(Failure { what, next, outcome }) => tell(stream, &Answer::Error { what, next, outcome }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_and_nonsense_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(directory.path()).unwrap();
        std::thread::spawn(move || {
            serve(&listener, |request, peer| match request {
                Request::Status => Ok(json!({"level": 1, "peer": peer}).into()),
                Request::Events { recent } => {
                    let (sender, events) = std::sync::mpsc::channel();
                    (0..recent).for_each(|number| sender.send(json!(number)).unwrap());
                    Ok(Reply::Stream(events))
                }
                other => Err(Failure::failed(format_args!("{other:?}")).next("nothing")),
            });
        });
        let status = ask(directory.path(), &Request::Status).unwrap();
        assert_eq!((status["level"].as_u64(), status["peer"].as_u64()), (Some(1), Some(std::process::id().into())));
        let mut told = Vec::new();
        let enough = follow(directory.path(), &Request::Events { recent: 5 }, |event| {
            told.push(event);
            if told.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(enough.is_ok() && told == [json!(0), json!(1), json!(2)], "{enough:?} {told:?}");
        let ended = follow(directory.path(), &Request::Events { recent: 1 }, |_| ControlFlow::Continue(()));
        assert!(matches!(ended, Err(AskError::NoGuard(_))), "{ended:?}");
        let refused = ask(directory.path(), &Request::Mode { mode: "log".into() }).unwrap_err();
        assert!(matches!(refused, AskError::Refused(_)), "{refused:?}");
        let failure = Failure::from(refused);
        assert!(failure.what.contains("log") && failure.next == "nothing" && failure.outcome == Outcome::Failed);
        for nonsense in ["\n", "{}\n", "{\"command\":\"explode\"}\n", "\u{0}\u{1}\n"] {
            let mut stream = UnixStream::connect(directory.path().join(SOCKET)).unwrap();
            stream.write_all(nonsense.as_bytes()).unwrap();
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            assert!(answers.starts_with("{\"taken\":"), "{nonsense:?}: {answers}");
            assert!(answers.contains("cannot be read"), "{nonsense:?}: {answers}");
        }
    }

    #[test]
    fn who_says_nothing_keeps_nobody_waiting_and_who_has_said_something_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(directory.path()).unwrap();
        std::thread::spawn(move || serve(&listener, |_, _| Ok(json!({}).into())));
        let socket = directory.path().join(SOCKET);
        let connect = |request: &[u8]| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(request).unwrap();
            stream
        };
        let half = connect(b"{\"comm");
        let answered = |mut stream: UnixStream| {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut answers = String::new();
            // Reset where something was sent that nobody has read.
            let _ = stream.read_to_string(&mut answers);
            answers.contains("\"ok\"")
        };
        let silent: Vec<UnixStream> = (0..4 * SILENT).map(|_| connect(b"")).collect();
        let asking: Vec<UnixStream> = (0..2 * REQUESTS).map(|_| connect(b"{\"command\":\"status\"}\n")).collect();
        let more: Vec<UnixStream> = (0..2 * SILENT).map(|_| connect(b"")).collect();
        assert!(ask(directory.path(), &Request::Status).is_ok());
        assert!(asking.into_iter().all(answered), "also those before others who say nothing");
        assert!(!answered(half), "it was ended");
        drop((silent, more));
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
        assert!(matches!(failure, AskError::NoGuard(_)), "{failure:?}");
        let failure = Failure::from(failure);
        assert_eq!(failure.outcome, Outcome::Lacking);
        assert!(failure.next.contains("imara guard"));
    }

    #[test]
    fn a_guard_that_hangs_is_not_waited_for_and_one_that_ends_meanwhile_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(directory.path()).unwrap();
        let ask = || ask_within(directory.path(), &Request::Status, Duration::from_millis(100)).unwrap_err();
        // Nobody takes the connection, as when the guard is stopped.
        let hung = ask();
        assert!(
            matches!(&hung, AskError::Silent(failure) if failure.what.contains("has taken no request")),
            "{hung:?}"
        );
        let next = Failure::from(hung).next;
        assert!(next.contains(&format!("kill -9 {}", std::process::id())), "{next}");
        // Take those two, and the next one, and say nothing.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for answer in ["", "", "{\"taken\":1}\n", "{\"taken\":1}\nnonsense\n"] {
                    let (mut stream, _) = listener.accept().unwrap();
                    let _ = stream.write_all(answer.as_bytes());
                    let mut line = String::new();
                    let _ = BufReader::new(&stream).read_line(&mut line);
                }
            });
            for why in ["ended before it answered", "ended before it answered", "its answer cannot be read"] {
                let told = ask();
                assert!(matches!(&told, AskError::Silent(failure) if failure.what.contains(why)), "{told:?}");
            }
        });
    }
}
