//! `imara`, the tool.
fn main() -> std::process::ExitCode {
    imara::command::main()
}
