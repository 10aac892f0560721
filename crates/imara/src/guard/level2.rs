//! Level 2 in this guard: tried where it is wanted, and told in the status, with the reasons where it could not be had.

use super::config::{Config, Level};
use super::runtime;
use crate::output::Failure;
use imara_linux::hooks::bpf::{self, Level2, OnDeath, Options};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The bpf file system.
const BPF: &str = "/sys/fs/bpf";

/// The programs in the kernel; or why there are none.
#[derive(Debug)]
pub enum Programs {
    /// They decide.
    Level2(Arc<Level2>),
    /// There are none, with each reason.
    None(Vec<String>),
}

impl Programs {
    /// Has them loaded, or taken over, as the configuration wants.
    ///
    /// # Errors
    /// [`Failure`] where level 2 is demanded and cannot be had.
    pub fn start(config: &Config, directory: &Path, software_tpm: i32) -> Result<Self, Failure> {
        if config.level == Level::One {
            return Ok(Self::None(vec!["level 1 is configured".into()]));
        }
        let options =
            Options { on_death: config.on_death, pins: pins(directory), protect: config.protection, software_tpm };
        match Level2::start(options) {
            Ok(level2) => Ok(Self::Level2(Arc::new(level2))),
            Err(reason) if config.level == Level::Two || config.on_death == OnDeath::Refuse => {
                Err(Failure::lacking(format_args!("level 2 cannot be had: {reason}"))
                    .next("let the guard start at level 1 (--level auto, without --on-death refuse)"))
            }
            Err(reason) => Ok(Self::None(vec![reason.to_string()])),
        }
    }

    /// For the guard.
    pub fn level2(&self) -> Option<Arc<Level2>> {
        match self {
            Self::Level2(level2) => Some(Arc::clone(level2)),
            Self::None(_) => None,
        }
    }

    /// Has them outlive this guard where that is wanted; the guard is in force.
    ///
    /// # Errors
    /// [`Failure`] with what keeps them from it.
    pub fn keep(&self, directory: &Path) -> Result<(), Failure> {
        let Self::Level2(level2) = self else {
            return Ok(());
        };
        let files: Vec<PathBuf> = [runtime::LIST, runtime::AUDIT_LOG, runtime::SOCKET, "state.json", "lock"]
            .iter()
            .map(|name| directory.join(name))
            .collect();
        level2.keep(&files).map_err(|reason| {
            Failure::failed(reason).next(format_args!(
                "have a bpf file system on {BPF} (mount -t bpf bpf {BPF}), or start without --on-death refuse"
            ))
        })
    }

    /// The level that is reached.
    pub const fn level(&self) -> u32 {
        match self {
            Self::Level2(_) => 2,
            Self::None(_) => 1,
        }
    }

    /// Why it is not more; at level 2, what this kernel has no place for.
    pub fn why_not_higher(&self) -> Vec<String> {
        match self {
            Self::Level2(level2) => level2.left_out().iter().map(|what| format!("left out: {what}")).collect(),
            Self::None(reasons) => reasons.clone(),
        }
    }

    /// For the status.
    pub fn status(&self) -> Value {
        let Self::Level2(level2) = self else {
            return Value::Null;
        };
        let (refused, untold) = level2.counts();
        json!({
            "refused": refused,
            "untold": untold,
            "on_death": if level2.on_death() == OnDeath::Refuse { "refuse" } else { "allow" },
            "protection": level2.protects(),
            "taken_over": level2.taken_over(),
            "left_out": level2.left_out(),
        })
    }
}

/// Where the programs of the guard with this runtime directory are kept.
fn pins(directory: &Path) -> PathBuf {
    // What a name on a bpf file system cannot have: anything but these, above all dots.
    let name: String = directory
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| if byte.is_ascii_alphanumeric() { (*byte as char).to_string() } else { format!("_{byte:02x}") })
        .collect();
    Path::new(BPF).join(format!("imara{name}"))
}

/// Why this machine does not reach level 2, as far as that shows without trying.
pub fn why_not_higher() -> Vec<String> {
    bpf::foreseeable().iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runtime_directory_has_pins_of_its_own() {
        assert_eq!(pins(Path::new("/run/imara")), Path::new("/sys/fs/bpf/imara_2frun_2fimara"));
        assert_ne!(pins(Path::new("/run/a.b")), pins(Path::new("/run/a_b")));
    }
}
