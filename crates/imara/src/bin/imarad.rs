//! `imarad`, the daemon.
fn main() -> std::process::ExitCode {
    imara::command::daemon()
}
