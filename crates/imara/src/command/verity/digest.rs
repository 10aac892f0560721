//! `imara verity digest`.

use super::Tree;
use crate::command::CommandResult;
use crate::command::each_file::EachFile;
use crate::command::paths::{Paths, printable};
use crate::output::Failure;
use imara_linux::verity;
use serde_json::{Map, json};

/// Print the fs-verity digests of files, in the form of `fsverity digest`: ALGORITHM:HEX PATH.
///
/// They are computed from the content, whether fs-verity is enabled for a file or not.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    tree: Tree,
    /// Print the digest that the kernel has, of files for which fs-verity is enabled
    #[arg(long, conflicts_with_all = ["hash", "block_size", "salt"])]
    measured: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> CommandResult {
    arguments.paths.some()?;
    let parameters = arguments.tree.parameters()?;
    let told = EachFile { done: "digested", json: arguments.json, quiet: false, verbose: true };
    told.each(&arguments.paths, |file| {
        let shown = printable(file.path);
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {what}"));
        let digest = if arguments.measured {
            let measured = verity::measure(file).map_err(|error| failure(&error))?;
            measured.ok_or_else(|| failure(&"fs-verity is not enabled for it").next("imara verity enable PATH"))?
        } else {
            verity::compute(file, &parameters).map_err(|error| failure(&error))?
        };
        let document = Map::from_iter([
            ("algorithm".to_owned(), json!(digest.algorithm().name())),
            ("digest".to_owned(), json!(digest.to_hex())),
        ]);
        Ok((format!("{}:{} {shown}\n", digest.algorithm(), digest.to_hex()), document))
    })
}
