//! `imara clear`.

use super::CommandResult;
use super::labelling::{self, Labeller, Labelling, Plan};
use crate::output::Failure;
use imara_format::hash::Digest;
use imara_format::journal::Place;
use imara_linux::tree::TreeFile;

/// Remove the labels of files: security.ima and security.evm.
///
/// With -r the old labels are kept in the journal of the run, from which `imara undo` brings them back.
///
/// The exit status is 0 when no file has such a label any more, 1 when some failed, 4 when of trees and lists nothing was done.
/// A run over trees and lists that SIGINT or SIGTERM ends says how far it came and how to go on, and ends by the signal: a shell sees 130 or 143.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: Labelling,
    /// Remove security.ima, and leave security.evm
    #[arg(long, conflicts_with = "evm")]
    ima: bool,
    /// Remove security.evm, and leave security.ima
    #[arg(long)]
    evm: bool,
    /// Remove user.ima and user.evm, not the security attributes
    #[arg(long)]
    xattr_user: bool,
    /// Remove PATH.sig, and no attribute
    #[arg(long, conflicts_with_all = ["xattr_user", "ima", "evm"])]
    sigfile: bool,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let Arguments { ima, evm, xattr_user, sigfile, .. } = *arguments;
    let [content, metadata] = match xattr_user {
        true => [Place::UserIma, Place::UserEvm],
        false => [Place::SecurityIma, Place::SecurityEvm],
    };
    let places = match (sigfile, ima, evm) {
        (true, ..) => vec![Place::SignatureFile],
        (false, true, _) => vec![content],
        (false, false, true) => vec![metadata],
        // Metadata first: it is signed together with the other.
        (false, false, false) => vec![metadata, content],
    };
    labelling::run(&arguments.run, &Clear { places })
}

struct Clear {
    places: Vec<Place>,
}

impl Labeller for Clear {
    type Thread = ();

    fn places(&self) -> &[Place] {
        &self.places
    }

    fn purpose(&self) -> String {
        let names = self.places.iter().map(|place| place.attribute().unwrap_or("FILE.sig"));
        std::iter::once("clear").chain(names).collect::<Vec<_>>().join(" ")
    }

    fn done(&self) -> &'static str {
        "cleared"
    }

    fn reads_content(&self) -> bool {
        false
    }

    fn begin(&self) {}

    fn plan(
        &self,
        (): &mut (),
        _: &TreeFile<'_>,
        old: &[Option<Vec<u8>>],
        _: &mut dyn FnMut(u64),
    ) -> Result<Plan, Failure> {
        Ok(Plan::Set { labels: vec![None; old.len()], digest: None, even_if_equal: false })
    }

    fn details(&self, _: Option<&Digest>) -> String {
        String::new()
    }
}
