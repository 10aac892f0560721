//! Users and groups by name, of the system below a root: `/etc/passwd` and `/etc/group`, and those in `/usr/lib` that some systems add to them.

use crate::command::paths::read_all;
use imara_linux::tree::InRoot;
use std::collections::HashMap;
use std::path::Path;

/// Their numbers.
pub struct Owners {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Owners {
    /// Reads what is there. Names that a network knows are not known here.
    pub fn read(root: &InRoot) -> Self {
        let read = |name: &str| {
            let mut numbers = HashMap::from([("root".to_owned(), 0)]);
            for folder in ["etc", "usr/lib"] {
                let text = root.content(&Path::new(folder).join(name)).and_then(read_all).unwrap_or_default();
                for line in String::from_utf8_lossy(&text).lines() {
                    let mut fields = line.split(':');
                    if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) {
                        numbers.entry(name.to_owned()).or_insert(number);
                    }
                }
            }
            numbers
        };
        Self { users: read("passwd"), groups: read("group") }
    }

    /// A user's number.
    pub fn user(&self, name: &str) -> Option<u32> {
        self.users.get(name).copied()
    }

    /// A group's number.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }
}
