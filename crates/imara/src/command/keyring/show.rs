//! `imara keyring show`.

use super::certificates::{Source, Sources};
use super::named::KeyringName;
use super::refusal::{Attempt, refused};
use super::{SCHEMA, key_json, key_words};
use crate::command::CommandResult;
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_format::key::{KeyDescription, KeyLine, KeySerial};
use imara_linux::key_service::{self as keys, KeyType, errno_of};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// Show keyrings as trees, with who may do what with each key.
///
/// Without arguments the session's keyring, the user's, and those that IMA, EVM and the kernel's trust in certificates rest on, as
/// far as they are there and may be seen. The permissions are four times `alswrv` (set attributes, link, search, write, read,
/// view): for whoever reaches the key through keyrings of theirs, for its user, its group, and others. The kernel does not give a
/// certificate back: what it says is read from the file in /etc/keys (or --certificates) that the kernel knows by the same id.
#[derive(clap::Args)]
pub struct Show {
    /// Keyrings, or numbers of keys
    #[arg(value_name = "KEYRING")]
    keyrings: Vec<KeyringName>,
    /// Look for certificates here: files and folders [default: /etc/keys]
    #[arg(short, long, value_name = "PATH")]
    certificates: Vec<PathBuf>,
    /// Print all that a certificate says
    #[arg(short, long)]
    verbose: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The keyrings that integrity rests on, beside the session's own.
const INTEGRITY: [&str; 11] = [
    ".ima",
    ".evm",
    "_ima",
    "_evm",
    ".ima_blacklist",
    ".builtin_trusted_keys",
    ".secondary_trusted_keys",
    ".machine",
    ".platform",
    ".blacklist",
    ".fs-verity",
];

/// Keyrings may lead to each other six deep; what is deeper is not searched, and not shown.
const DEEPEST: usize = 6;

impl Show {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let sources = match self.certificates.is_empty() {
            true => Sources::of_this_machine(),
            false => Sources::read(&self.certificates)?,
        };
        let mut tree = Tree { lines: lines(), seen: HashSet::new(), text: String::new(), verbose: self.verbose };
        let mut documents = Vec::new();
        let mut outcome = Outcome::Done;
        if self.keyrings.is_empty() {
            for root in here()? {
                if !tree.seen.contains(&root) {
                    documents.push(tree.grow(root, 0, &sources.in_keyring(root)));
                }
            }
        }
        for name in &self.keyrings {
            match name.find_key() {
                Ok((serial, _)) => documents.push(tree.grow(serial, 0, &sources.in_keyring(serial))),
                Err(failure) => {
                    complain(&failure);
                    outcome = outcome.max(failure.outcome);
                    documents.push(json!({ "name": name.to_string(), "error": failure.what, "next": failure.next }));
                }
            }
        }
        if self.json {
            print_json(&json!({ "schema": SCHEMA, "keyrings": documents }));
        } else if !tree.text.is_empty() {
            let names = format!("{:>10}  {:<24} {:>5} {:>5}  key\n", "number", "permissions", "uid", "gid");
            print(format_args!("{names}{}", tree.text));
        }
        Ok(outcome)
    }
}

/// The keyrings that are shown where none is named.
fn here() -> Result<Vec<KeySerial>, Failure> {
    let session = keys::special_keyring(keys::SESSION_KEYRING, false)
        .map_err(|error| refused(Attempt::Find { keyring: &KeyringName::from("@s") }, &error))?;
    let user = keys::special_keyring(keys::USER_KEYRING, true).ok();
    let named = INTEGRITY.into_iter().filter_map(|name| keys::keyring_named(name.as_bytes()).ok());
    Ok([session].into_iter().chain(user).chain(named).collect())
}

/// The lines of `/proc/keys` by number; those whose number stands there twice, one of them forged, are left out.
fn lines() -> HashMap<KeySerial, Option<KeyLine>> {
    let mut lines = HashMap::new();
    for line in keys::visible_keys().unwrap_or_default() {
        lines.entry(line.serial).and_modify(|line| *line = None).or_insert(Some(line));
    }
    lines
}

struct Tree {
    lines: HashMap<KeySerial, Option<KeyLine>>,
    seen: HashSet<KeySerial>,
    text: String,
    verbose: bool,
}

impl Tree {
    /// Writes a key and what it leads to, and returns the same in JSON.
    fn grow(&mut self, serial: KeySerial, depth: usize, certificates: &HashMap<KeySerial, &Source>) -> Value {
        let branch = match depth {
            0 => String::new(),
            _ => format!("{}\\_ ", "    ".repeat(depth - 1)),
        };
        let told = match keys::describe(serial) {
            Ok(told) => told,
            Err(error) => {
                let why = refused(Attempt::Read { key: &format!("key {serial}") }, &error);
                self.text += &format!("{:>10}  {:<24} {:>5} {:>5}  {branch}{}\n", serial.0, "", "", "", why.what);
                return json!({ "serial": serial.0, "error": why.what });
            }
        };
        let mut document = key_json(serial, &told);
        let again = !self.seen.insert(serial);
        let mut notes = self.state(serial);
        let found = certificates.get(&serial);
        if told.kind == KeyType::Asymmetric.name() {
            let (algorithm, id) = self.asymmetric(serial, &told);
            let id = found.map(|source| imara_format::hash::to_hex(&source.key.key_id())).or(id);
            let kind = found.map(|source| source.key.kind().to_string()).or(algorithm);
            notes.extend(kind.clone());
            notes.extend(id.as_ref().map(|id| format!("key id {id}")));
            notes.extend(found.map(|source| crate::command::paths::printable(&source.path)));
            document.insert("algorithm".into(), json!(kind));
            document.insert("key_id".into(), json!(id));
            document.insert("certificate".into(), found.map_or(Value::Null, |source| source.json()));
        }
        let is_keyring = told.kind == KeyType::Keyring.name();
        if again && is_keyring {
            notes.push("shown above".into());
        }
        let held = if is_keyring && !again { keys::keys_of(serial) } else { Ok(Vec::new()) };
        if let Err(error) = &held {
            notes.push(
                errno_of(error).map_or_else(|| error.to_string(), |number| format!("may not be read ({number})")),
            );
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        let (permissions, uid, gid) = (told.permissions, owner(told.uid), owner(told.gid));
        self.text +=
            &format!("{:>10}  {permissions} {uid:>5} {gid:>5}  {branch}{}{notes}\n", serial.0, key_words(&told));
        if self.verbose
            && let Some(source) = found
        {
            for line in source.lines() {
                self.text += &format!("{:>14}{}{line}\n", "", "    ".repeat(depth));
            }
        }
        if is_keyring {
            let children = match held {
                Ok(held) if depth < DEEPEST => {
                    held.into_iter().map(|key| self.grow(key, depth + 1, certificates)).collect()
                }
                Ok(_) | Err(_) => Vec::new(),
            };
            document.insert("keys".into(), Value::Array(children));
            document.insert("repeated".into(), json!(again));
        }
        Value::Object(document)
    }

    /// What is not as usual with a key: revoked, or about to expire.
    fn state(&self, serial: KeySerial) -> Vec<String> {
        let Some(Some(line)) = self.lines.get(&serial) else { return Vec::new() };
        let mut notes = Vec::new();
        if line.flags.contains('R') {
            notes.push("revoked".to_owned());
        }
        if line.flags.contains(['D', 'i']) {
            notes.push("invalidated".to_owned());
        }
        if line.flags.contains('N') {
            notes.push("negative: asked for and not found".to_owned());
        }
        match line.timeout.as_str() {
            "perm" => {}
            "expd" => notes.push("expired".to_owned()),
            left => notes.push(format!("expires in {left}")),
        }
        notes
    }

    /// The algorithm and the end of the id that the kernel tells of a certificate's key.
    fn asymmetric(&self, serial: KeySerial, told: &KeyDescription) -> (Option<String>, Option<String>) {
        let Some(Some(line)) = self.lines.get(&serial) else { return (None, None) };
        let Some(text) = line.told_by_type(&told.description) else { return (None, None) };
        let text = String::from_utf8_lossy(text);
        let mut words = text.split(' ');
        let algorithm = words.next().map(|word| word.trim_start_matches("X509.").to_owned());
        (algorithm, words.next().filter(|word| !word.starts_with('[')).map(str::to_owned))
    }
}

/// A user or group; one that has no place in this user namespace is `-1`, as keyctl shows it.
fn owner(id: u32) -> String {
    if id == u32::MAX { "-1".to_owned() } else { id.to_string() }
}
