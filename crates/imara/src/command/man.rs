//! `imara man`: the man pages, made from the commands themselves.

use super::{CommandResult, Imara, Imarad};
use crate::output::{Failure, Outcome, print};
use clap::CommandFactory;
use std::path::PathBuf;

/// What scripts rely on, for each page: what a command has beyond that stands in its text.
const EXIT_STATUS: &str = "\
.SH \"EXIT STATUS\"
.TP
0
as asked, and all of it verified
.TP
1
done, but something did not verify, was refused or failed; each is named
.TP
2
the command line is wrong
.TP
3
the machine lacks what is needed, which is named with the next step
.TP
4
of trees and lists nothing was done: they hold no file, or every one failed
.TP
130, 143
as a shell tells it: a run over trees or lists was ended by SIGINT or SIGTERM, and has said how far it came
";

/// Write the man pages of all commands into a directory.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory.
    directory: PathBuf,
}

/// Runs it.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(arguments: &Arguments) -> CommandResult {
    let failed = |error| Failure::failed(format_args!("{}: {error}", arguments.directory.display()));
    std::fs::create_dir_all(&arguments.directory).map_err(failed)?;
    for command in [Imara::command(), Imarad::command()] {
        clap_mangen::generate_to(command, &arguments.directory).map_err(failed)?;
    }
    for entry in std::fs::read_dir(&arguments.directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("imara") && name.ends_with(".1") {
            let page = std::fs::read_to_string(&path).map_err(failed)?;
            std::fs::write(&path, with_exit_status(&page)).map_err(failed)?;
        }
    }
    print(format_args!("{}: the man pages of imara and imarad\n", arguments.directory.display()));
    Ok(Outcome::Done)
}

/// The page with that section before the last.
fn with_exit_status(page: &str) -> String {
    let (body, last) = page.split_at(page.rfind(".SH VERSION").unwrap_or(page.len()));
    if page.contains("EXIT STATUS") { page.to_owned() } else { format!("{body}{EXIT_STATUS}{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_that_says_how_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = Arguments { directory: folder.path().to_owned() };
        // Again, as a package is built again.
        for _ in 0..2 {
            run(&arguments).unwrap();
            for name in ["imara", "imarad", "imara-key-trusted-new", "imara-tpm-verify-quote"] {
                let page = std::fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
                assert_eq!(page.matches(".SH \"EXIT STATUS\"").count(), 1, "{name}");
                assert!(page.find("EXIT STATUS") < page.find(".SH VERSION"), "{name}");
            }
        }
    }
}
