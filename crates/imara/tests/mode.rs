//! `imara mode` with a guard that takes a request and never answers: made of a socket, as no real one can be brought to hang
//! just between the two.

use imara_linux::process_handle::ProcessHandle;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_switch_that_is_not_answered_goes_back_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("control.sock")).unwrap();
    // In the guard's place, to be ended.
    let mut sleeper = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let pid = sleeper.id();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            let answer = match request.contains("status") {
                true => format!("{{\"taken\":{pid}}}\n{{\"ok\":{{\"mode\":\"log\",\"pid\":{pid}}}}}\n"),
                // Who is going to undo the switch says so first.
                false if request.contains("will") => format!("{{\"taken\":{pid}}}\n{{\"ok\":{{}}}}\n"),
                // It may have switched already.
                false => format!("{{\"taken\":{pid}}}\n"),
            };
            // Who asked may have gone.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let mut imara = Command::new(env!("CARGO_BIN_EXE_imara"));
    imara.args(["mode", "enforce", "--for", "1s", "--runtime-dir"]).arg(directory.path());
    let done = imara.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("it goes back to log all the same"), "{said}");
    let handle = ProcessHandle::open(pid.cast_signed()).unwrap();
    let ended = handle.wait(Duration::from_secs(30));
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    assert!(ended, "what does not answer is ended");
}
