//! `evmctl`, for scripts written for ima-evm-utils.
fn main() -> std::process::ExitCode {
    imara::command::evmctl::main()
}
