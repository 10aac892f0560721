//! The options of a subcommand, made known to clap where the command line names it. A call needs one subcommand of many, and making the options of all takes
//! as long as verifying a small file.

use clap::error::Error;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use std::ffi::OsString;
use std::sync::OnceLock;

/// A subcommand's options, if it is named.
pub struct Named<T>(pub T);

/// The words of the command line, where they decide.
static WORDS: OnceLock<Vec<OsString>> = OnceLock::new();

/// From now on the process's command line decides; before, all options are made, as for man pages and tests.
pub fn by_the_command_line() {
    // The first call counts.
    let _ = WORDS.set(std::env::args_os().skip(1).collect());
}

/// Whether a subcommand's options are needed: not where another is named alone. Help has a line of each.
fn is_needed(words: &[OsString], name: &str) -> bool {
    let asks_for_help = |word: &OsString| match word.as_encoded_bytes() {
        b"help" | b"--help" | b"man" => true,
        [b'-', letter, ..] if *letter != b'-' => word.as_encoded_bytes().contains(&b'h'),
        _ => false,
    };
    words.is_empty() || words.iter().any(|word| word == name || asks_for_help(word))
}

impl<T: FromArgMatches> FromArgMatches for Named<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }

    fn update_from_arg_matches_mut(&mut self, matches: &mut ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches_mut(matches)
    }
}

impl<T: Args> Args for Named<T> {
    fn augment_args(command: Command) -> Command {
        match WORDS.get().is_none_or(|words| is_needed(words, command.get_name())) {
            true => T::augment_args(command),
            false => command,
        }
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_made_of_what_is_named_and_for_help() {
        for (words, needed) in [
            (&[][..], true),
            (&["verify", "-r", "/srv"], true),
            (&["--quiet", "verify"], true),
            (&["sign", "verify"], true),
            (&["sign", "-r", "--key", "k"], false),
            (&["verif"], false),
            (&["--version"], false),
            (&["help"], true),
            (&["help", "sign"], true),
            (&["--help"], true),
            (&["-qh"], true),
            (&["man", "DIR"], true),
        ] {
            let words = words.iter().map(OsString::from).collect::<Vec<_>>();
            assert_eq!(is_needed(&words, "verify"), needed, "{words:?}");
        }
    }
}
