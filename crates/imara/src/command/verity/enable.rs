//! `imara verity enable`.

use super::Tree;
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::each_file::EachFile;
use crate::command::paths::{Paths, printable, read};
use crate::output::Failure;
use imara_linux::verity;
use serde_json::{Map, json};
use std::path::PathBuf;

/// Enable fs-verity for files. From then on nobody can change them, root neither; nothing undoes it but deleting the file.
///
/// The kernel builds a tree of hashes, and checks what is read against it, each time that it comes from the disk.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(flatten)]
    tree: Tree,
    /// A PKCS#7 signature of the digest, in DER, that the kernel checks against its .fs-verity keyring; IMA has its own, see
    /// `imara verity sign`
    #[arg(long, value_name = "F")]
    signature: Option<PathBuf>,
    #[command(flatten)]
    change: Change,
}

pub fn run(arguments: &Arguments) -> CommandResult {
    arguments.paths.some()?;
    let parameters = arguments.tree.parameters()?;
    let signature = match &arguments.signature {
        Some(path) => read(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?,
        None => Vec::new(),
    };
    let Change { dry_run, json, quiet } = arguments.change;
    EachFile { done: "enabled", json, quiet, verbose: true }.each(&arguments.paths, |file| {
        let shown = printable(file.path);
        let failure = |what: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {what}"));
        if !dry_run {
            verity::enable(file, &parameters, &signature).map_err(|error| match error.raw_os_error() {
                Some(EEXIST) => failure(&"fs-verity is enabled for it already")
                    .next("see its digest with `imara verity digest --measured`"),
                Some(ETXTBSY) => failure(&"somebody has it open for writing").next("end that, and try again"),
                Some(EOPNOTSUPP | ENOTTY) => failure(&"its filesystem has no fs-verity").next(
                    "ext4 has it once `tune2fs -O verity DEVICE` has been run, f2fs with `mkfs.f2fs -O verity`, Btrfs always",
                ),
                Some(EINVAL) => failure(&"the kernel does not take these parameters").next(
                    "kernels before 6.3 take blocks of their page size alone; the filesystem's own may not be smaller",
                ),
                Some(EACCES | EPERM) => failure(&error).next("run as root, or as the file's owner"),
                _ => failure(&error),
            })?;
        }
        let digest = match dry_run {
            true => verity::compute(file, &parameters),
            false => verity::measure(file).and_then(|measured| {
                measured.ok_or_else(|| std::io::Error::other("the kernel tells no digest, though it is enabled"))
            }),
        };
        let digest = digest.map_err(|error| failure(&error))?;
        let would = if dry_run { "would be " } else { "" };
        let document = Map::from_iter([
            ("algorithm".to_owned(), json!(digest.algorithm().name())),
            ("digest".to_owned(), json!(digest.to_hex())),
            ("written".to_owned(), json!(!dry_run)),
        ]);
        Ok((format!("{shown}: fs-verity {would}enabled, {}:{}\n", digest.algorithm(), digest.to_hex()), document))
    })
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;
const ETXTBSY: i32 = 26;
const EOPNOTSUPP: i32 = 95;
