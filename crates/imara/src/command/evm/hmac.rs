//! `imara evm hmac`.

use super::metadata::{Looker, Overrides};
use super::rules::{RulesOptions, protected_text};
use crate::command::CommandResult;
use crate::command::each_file::EachFile;
use crate::command::hmac_key::HmacKeyOptions;
use crate::command::labelling::{self, Labeller, Labelling, Plan};
use crate::command::paths::printable;
use crate::output::{Failure, Outcome, print, print_json, warn};
use imara_engine::evm::{HMAC_TYPE, HmacKey, Snapshot};
use imara_format::evm::Form;
use imara_format::hash::{Digest, to_hex};
use imara_format::journal::Place;
use imara_linux::tree::TreeFile;
use serde_json::{Map, json};

/// Print the HMACs that EVM makes over files' metadata, or write them.
///
/// Without a file it is over what --ino, --generation, --uid, --gid, --mode, --fsuuid and --xattr say, and needs no privilege; with
/// files these replace what a file has, as for the image of another machine. A good HMAC lets the file pass on this machine under
/// every EVM with that key: be sure that the file is what you mean before --write.
///
/// The exit status is 0 when all is done, 1 when some files failed, 4 when --write of trees and lists did nothing.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: Labelling,
    #[command(flatten)]
    key: HmacKeyOptions,
    /// Write the label to each file's security.evm
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    rules: RulesOptions,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let mut rules = arguments.rules.find()?;
    if arguments.run.paths.some().is_err() {
        if arguments.write {
            return Err(Failure::usage("--write takes files").next("imara evm hmac --write FILE…"));
        }
        // Said in full: what is not said does not count.
        rules.fs_uuid = arguments.rules.fsuuid.is_some();
        let snapshot = arguments.overrides.describe(&rules, &arguments.rules)?;
        let left_out = arguments.overrides.left_out(&rules);
        if !left_out.is_empty() {
            warn(format_args!(
                "left out, as an HMAC does not cover them here: {}; covered are {} (--protect NAME adds one)",
                left_out.join(", "),
                protected_text(&rules)
            ));
        }
        let key = arguments.key.find()?;
        let hmac = snapshot.hmac(&rules, &*key).map_err(Failure::failed)?;
        if arguments.run.json {
            print_json(&json!({
                "schema": 1,
                "hmac": to_hex(&hmac),
                "label": to_hex(&[&[HMAC_TYPE], &hmac[..]].concat()),
                "input": to_hex(&snapshot.stream(Form::Hmac, &rules)),
            }));
        } else {
            print(format_args!("{}\n", to_hex(&hmac)));
        }
        return Ok(Outcome::Done);
    }
    let key = arguments.key.find()?;
    let looker = Looker::new(rules);
    if arguments.write {
        return labelling::run(&arguments.run, &Write { arguments, looker, key });
    }
    let Labelling { json, quiet, .. } = arguments.run;
    EachFile { done: "computed", json, quiet, verbose: true }.each(&arguments.run.paths, |file| {
        let label = arguments.label(file, &looker, &*key)?;
        let hmac = to_hex(label.get(1..).unwrap_or_default());
        let line = format!("{hmac}  {}\n", printable(file.path));
        let document = Map::from_iter([("hmac".to_owned(), json!(hmac)), ("label".to_owned(), json!(to_hex(&label)))]);
        Ok((line, document))
    })
}

impl Arguments {
    fn label(&self, file: &TreeFile<'_>, looker: &Looker, key: &dyn HmacKey) -> Result<Vec<u8>, Failure> {
        let snapshot = looker.look_and_override(file, file.path, &self.rules, &self.overrides)?;
        hmac_label(&snapshot, looker, key)
            .map_err(|error| Failure::failed(format!("{}: {error}", printable(file.path))))
    }
}

/// Writes the labels.
struct Write<'a> {
    arguments: &'a Arguments,
    looker: Looker,
    key: Box<dyn HmacKey>,
}

impl Labeller for Write<'_> {
    type Thread = ();

    fn places(&self) -> &[Place] {
        &[Place::SecurityEvm]
    }

    fn purpose(&self) -> String {
        // Another key would make other labels, and is not to be told here.
        "hmac security.evm".to_owned()
    }

    fn done(&self) -> &'static str {
        "labelled"
    }

    fn reads_content(&self) -> bool {
        false
    }

    fn begin(&self) {}

    fn plan(
        &self,
        (): &mut (),
        file: &TreeFile<'_>,
        _: &[Option<Vec<u8>>],
        _: &mut dyn FnMut(u64),
    ) -> Result<Plan, Failure> {
        let label = self.arguments.label(file, &self.looker, &*self.key)?;
        Ok(Plan::Set { labels: vec![Some(label)], digest: None, even_if_equal: false })
    }

    fn details(&self, _: Option<&Digest>) -> String {
        "HMAC".to_owned()
    }
}

/// The label with the HMAC, of a file that has something to protect.
fn hmac_label(snapshot: &Snapshot, looker: &Looker, key: &dyn HmacKey) -> Result<Vec<u8>, String> {
    if !snapshot.is_covered(Form::Hmac, &looker.rules) {
        return Err(format!(
            "it has none of the attributes that an HMAC covers ({}), so a label would protect nothing and never verify",
            protected_text(&looker.rules)
        ));
    }
    if let Some(why) = &snapshot.unbound {
        return Err(format!("{why}; --generation and --fsuuid can say it"));
    }
    snapshot.hmac_label(&looker.rules, key).map_err(|error| error.to_string())
}
