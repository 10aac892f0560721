//! The programs and their maps, on their way into the kernel.
//!
//! | map | kind | written by |
//! |---|---|---|
//! | `settings` | one value | the guard |
//! | `alive` | one value: the guard's process | both |
//! | `verdicts` | beside an inode: what it has passed | the guard |
//! | `changed` | beside an inode: how often it has begun to change | the programs; the guard makes it |
//! | `watched` | by device: what is refused without a verdict | the guard |
//! | `processes` | by number: what a process is to the guard | the guard, and the programs |
//! | `records` | refusals, to be read once | the programs |
//! | `counts` | refusals, and those that nobody could be told of | the programs |

use super::layout::{Changes, Settings, Verdict};
use super::relocate::{self, Kernel};
use crate::sys::bpf::{self, Map, MapKind, ProgramKind};
use imara_format::bpf_object::{Attachment, BpfObject, Program};
use imara_format::btf::{Btf, Kind};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Compiled by `make bpf` from `bpf/imara.bpf.c` and what it includes.
const OBJECT: &[u8] = include_bytes!("../../../bpf/imara.bpf.o");

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// The ring's size in bytes.
pub(super) const RING: u32 = 1 << 18;

const MAPS: [(&str, MapKind, u32, u32, u32); 8] = [
    ("settings", MapKind::Array, 4, Settings::SIZE as u32, 1),
    ("alive", MapKind::Array, 4, 8, 1),
    ("verdicts", MapKind::InodeStorage, 4, Verdict::SIZE as u32, 0),
    ("changed", MapKind::InodeStorage, 4, Changes::SIZE as u32, 0),
    ("watched", MapKind::Hash, 4, 4, 4096),
    ("processes", MapKind::Hash, 4, 4, 1024),
    ("records", MapKind::Ring, 0, 0, RING),
    ("counts", MapKind::Array, 4, 8, 2),
];

/// Without these there is no level 2: each lets something be executed or mapped that was not judged, or lets a change be missed.
const NEEDED: [&str; 7] = [
    "file_open",
    "bprm_check_security",
    "mmap_file",
    "file_mprotect",
    "inode_setattr",
    "inode_setxattr",
    "sched_process_exit",
];

/// The maps.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) settings: Map,
    pub(super) alive: Map,
    pub(super) verdicts: Map,
    pub(super) changed: Map,
    pub(super) watched: Map,
    pub(super) processes: Map,
    pub(super) records: Map,
    pub(super) counts: Map,
}

impl Maps {
    fn all(&self) -> [(&'static str, &Map); 8] {
        [
            ("settings", &self.settings),
            ("alive", &self.alive),
            ("verdicts", &self.verdicts),
            ("changed", &self.changed),
            ("watched", &self.watched),
            ("processes", &self.processes),
            ("records", &self.records),
            ("counts", &self.counts),
        ]
    }

    fn each(mut make: impl FnMut(&str, MapKind, u32, u32, u32) -> io::Result<Map>) -> Result<Self, Reason> {
        let mut made = MAPS.into_iter().map(|(name, kind, key, value, entries)| {
            make(name, kind, key, value, entries).map_err(|error| Reason::Map { name, error })
        });
        let mut next = || made.next().expect("there are as many as fields");
        Ok(Self {
            settings: next()?,
            alive: next()?,
            verdicts: next()?,
            changed: next()?,
            watched: next()?,
            processes: next()?,
            records: next()?,
            counts: next()?,
        })
    }

    /// The kernel's numbers of them.
    pub(super) fn numbers(&self) -> io::Result<[u32; 8]> {
        let mut numbers = [0; 8];
        for (number, (_, map)) in numbers.iter_mut().zip(self.all()) {
            *number = map.id()?;
        }
        Ok(numbers)
    }
}

/// Why level 2 cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Nobody would call the programs.
    #[error("BPF is not among the active LSMs ({0}): boot with lsm=…,bpf")]
    NotActive(String),
    /// It cannot be told.
    #[error("securityfs is not mounted, so it cannot be told whether BPF is among the active LSMs")]
    NoSecurityfs,
    /// The kernel does not let BPF programs read.
    #[error("lockdown is in confidentiality mode, which keeps BPF programs from reading kernel memory")]
    Lockdown,
    /// The kernel does not tell its types.
    #[error("the kernel does not tell its types ({KERNEL_TYPES}: {0}): it needs CONFIG_DEBUG_INFO_BTF")]
    NoTypes(io::Error),
    /// Its types cannot be read.
    #[error("{KERNEL_TYPES}: {0}")]
    Types(#[from] imara_format::btf::BtfError),
    /// A map cannot be made.
    #[error("the kernel does not make the map {name}: {error}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What bpf(2) says.
        error: io::Error,
    },
    /// A program that must be there is not.
    #[error("{0}")]
    Program(String),
    /// They were attached, and nobody calls them.
    #[error("the kernel took the programs and does not call them")]
    NotCalled,
    /// Something else.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What can be told without trying.
pub fn foreseeable() -> Vec<Reason> {
    let mut reasons = Vec::new();
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if modules.is_empty() {
        reasons.push(Reason::NoSecurityfs);
    } else if !modules.trim().split(',').any(|module| module == "bpf") {
        reasons.push(Reason::NotActive(modules.trim().to_owned()));
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        reasons.push(Reason::Lockdown);
    }
    if let Err(error) = std::fs::metadata(KERNEL_TYPES) {
        reasons.push(Reason::NoTypes(error));
    }
    reasons
}

/// Programs that are attached, with their maps.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) maps: Maps,
    pub(super) links: Vec<(String, OwnedFd)>,
    /// What this kernel has no place for, or does not take.
    pub(super) left_out: Vec<String>,
}

/// Makes the maps, and loads and attaches the programs.
pub(super) fn load() -> Result<Loaded, Reason> {
    let object = BpfObject::parse(OBJECT).expect("a test reads it");
    let types = std::fs::read(KERNEL_TYPES).map_err(Reason::NoTypes)?;
    let kernel = kernel(&object, Btf::parse(&types)?);
    let maps = Maps::each(|name, kind, key, value, entries| Map::create(kind, name, key, value, entries))?;
    let (mut links, mut left_out) = (Vec::new(), Vec::new());
    let mut attached = Vec::new();
    for program in &object.programs {
        match attach(program, &object, &kernel, &maps) {
            Ok(None) => {}
            Ok(Some(link)) => {
                attached.push(place(program));
                links.push((program.name.clone(), link));
            }
            Err(why) => left_out.push(format!("{}: {why}", place(program))),
        }
    }
    let left_out = without_them(&attached, left_out)?;
    Ok(Loaded { maps, links, left_out })
}

/// What remains left out when these places have a program; the reason why there is no level 2 where one is missing that is needed.
fn without_them(attached: &[&str], mut left_out: Vec<String>) -> Result<Vec<String>, Reason> {
    // Of those for other numbers of parameters one is enough.
    left_out.retain(|what| !attached.iter().any(|place| what.starts_with(&format!("{place}:"))));
    match NEEDED.iter().find(|place| !attached.contains(place)) {
        None => Ok(left_out),
        Some(place) => {
            let why = left_out.iter().find(|what| what.starts_with(&format!("{place}:")));
            Err(Reason::Program(why.cloned().unwrap_or_else(|| format!("{place}: this kernel has no such hook"))))
        }
    }
}

fn place(program: &Program) -> &str {
    match &program.attachment {
        Attachment::Lsm { hook, .. } => hook,
        Attachment::Tracepoint(name) => name,
    }
}

/// What a program is attached to, by its name in the kernel's types.
fn target(program: &Program) -> (Kind, String) {
    match &program.attachment {
        Attachment::Lsm { hook, .. } => (Kind::Function, format!("bpf_lsm_{hook}")),
        Attachment::Tracepoint(name) => (Kind::Typedef, format!("btf_trace_{name}")),
    }
}

fn kernel<'a>(object: &BpfObject<'_>, types: Btf<'a>) -> Kernel<'a> {
    let wanted: Vec<_> = object
        .programs
        .iter()
        .flat_map(|program| {
            let mut names = relocate::names(program, &object.types);
            names.push(target(program));
            names
        })
        .collect();
    Kernel::new(types, &wanted)
}

/// Loads and attaches one; nothing where it is for a kernel whose hook has another number of parameters.
fn attach(
    program: &Program,
    object: &BpfObject<'_>,
    kernel: &Kernel<'_>,
    maps: &Maps,
) -> Result<Option<OwnedFd>, String> {
    let (kind, name) = target(program);
    let Some(target) = kernel.all(kind, &name).first().copied() else {
        return Err("this kernel has no such hook".into());
    };
    let (kind, wanted) = match &program.attachment {
        Attachment::Lsm { parameters, .. } => (ProgramKind::Lsm, *parameters),
        Attachment::Tracepoint(_) => (ProgramKind::Tracepoint, None),
    };
    if wanted.is_some() && wanted != kernel.parameters(target) {
        return Ok(None);
    }
    let (mut instructions, missing) = relocate::relocated(program, &object.types, kernel);
    for (at, name) in &program.maps {
        const BY_DESCRIPTOR: u8 = 1;
        const VALUE_BY_DESCRIPTOR: u8 = 2;
        let map = maps.all().into_iter().find(|(own, _)| own == name).map(|(_, map)| map);
        let (Some(map), Some(instruction)) = (map, instructions.get_mut(*at)) else {
            return Err(format!("there is no map {name}"));
        };
        // The one value of `alive` is used as it lies there.
        let meant = if name == "alive" { VALUE_BY_DESCRIPTOR } else { BY_DESCRIPTOR };
        instruction[1] = instruction[1] & 15 | meant << 4;
        instruction[4..].copy_from_slice(&std::os::fd::AsRawFd::as_raw_fd(&map.as_fd()).to_le_bytes());
    }
    let loaded = bpf::load(kind, &program.name, &instructions, &object.license, target).map_err(|error| {
        let lacks = if missing.is_empty() { String::new() } else { format!(" (it lacks {})", missing.join(", ")) };
        format!("this kernel does not take it{lacks}: {error}")
    })?;
    bpf::attach(loaded.as_fd()).map(Some).map_err(|error| format!("it cannot be attached: {error}"))
}

/// Tells one build of the programs from another: FNV-1a over the object.
pub(super) fn version() -> String {
    let hash = OBJECT
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

impl Loaded {
    /// Keeps maps and links in a new folder of a bpf file system, so that they outlive us. What is in it already is taken away.
    pub(super) fn pin(&self, folder: &Path) -> io::Result<()> {
        unpin(folder)?;
        std::fs::create_dir_all(folder)?;
        for (name, map) in self.maps.all() {
            bpf::pin(map.as_fd(), &folder.join(format!("map_{name}")))?;
        }
        for (name, link) in &self.links {
            bpf::pin(link.as_fd(), &folder.join(format!("link_{name}")))?;
        }
        Ok(())
    }

    /// What is kept in such a folder by the same build.
    pub(super) fn pinned(folder: &Path) -> Result<Self, Reason> {
        let maps = Maps::each(|name, _, _, value, _| Map::open_pinned(&folder.join(format!("map_{name}")), value))?;
        let object = BpfObject::parse(OBJECT).expect("a test reads it");
        let mut links = Vec::new();
        let mut left_out = Vec::new();
        for program in &object.programs {
            let path = folder.join(format!("link_{}", program.name));
            match bpf::open_pinned(&path) {
                Ok(link) => links.push((program.name.clone(), link)),
                Err(_) => left_out.push(place(program).to_owned()),
            }
        }
        let there: Vec<&str> = object
            .programs
            .iter()
            .filter(|program| links.iter().any(|(name, _)| *name == program.name))
            .map(place)
            .collect();
        if let Some(needed) = NEEDED.iter().find(|needed| !there.contains(needed)) {
            return Err(Reason::Program(format!("{needed}: its link is not kept any more")));
        }
        left_out.retain(|place| !there.contains(&place.as_str()));
        left_out.dedup();
        Ok(Self { maps, links, left_out })
    }
}

/// Everything in a folder of pins.
pub(super) fn pins(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Takes a folder of pins away; none is no error.
pub(super) fn unpin(folder: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    for pin in pins(folder) {
        gone(std::fs::remove_file(pin))?;
    }
    gone(std::fs::remove_dir(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_programs_that_are_needed_and_knows_no_map_that_is_not_made() {
        let object = BpfObject::parse(OBJECT).unwrap();
        for needed in NEEDED {
            assert!(object.programs.iter().any(|program| place(program) == needed), "{needed}");
        }
        for program in &object.programs {
            for (_, map) in &program.maps {
                assert!(MAPS.iter().any(|(name, ..)| name == map), "{}: {map}", program.name);
            }
            for (at, map) in &program.maps {
                // The descriptor is put there, and what is read of a value lies as far beyond its beginning as the load says.
                assert_eq!(program.instructions[*at][4..], [0; 4], "{}: {map}", program.name);
            }
        }
        assert_eq!(object.license, "Dual MIT/GPL");
    }

    /// The places that Linux 5.15 has none of. Source: include/linux/lsm_hook_defs.h.
    const SINCE_5_15: [&str; 2] = ["inode_set_acl", "inode_remove_acl"];

    #[test]
    fn an_older_kernel_reaches_level_2_without_what_it_lacks_which_is_named_and_not_without_what_is_needed() {
        let object = BpfObject::parse(OBJECT).unwrap();
        let places: Vec<&str> = object.programs.iter().map(place).collect();
        for needed in NEEDED {
            assert!(!SINCE_5_15.contains(&needed), "{needed}");
        }
        let lacks = |place: &str| format!("{place}: this kernel has no such hook");
        let without = |missing: &[&str]| {
            let attached: Vec<&str> = places.iter().copied().filter(|place| !missing.contains(place)).collect();
            // The program for another number of parameters was not taken, either.
            let left_out = missing.iter().copied().chain(["inode_setattr"]).map(lacks).collect();
            without_them(&attached, left_out)
        };
        assert_eq!(without(&[]).unwrap(), [""; 0]);
        assert_eq!(without(&SINCE_5_15).unwrap(), SINCE_5_15.map(lacks));
        for needed in NEEDED {
            let reason = without(&[needed]).unwrap_err().to_string();
            assert_eq!(reason, lacks(needed));
        }
    }

    #[test]
    fn the_object_is_made_from_the_sources_beside_it() {
        let files: [(&str, &[u8]); 7] = [
            ("imara.bpf.c", include_bytes!("../../../bpf/imara.bpf.c")),
            ("guard.h", include_bytes!("../../../bpf/guard.h")),
            ("kernel.h", include_bytes!("../../../bpf/kernel.h")),
            ("labels.h", include_bytes!("../../../bpf/labels.h")),
            ("shared.h", include_bytes!("../../../bpf/shared.h")),
            ("verdict.h", include_bytes!("../../../bpf/verdict.h")),
            ("imara.bpf.o", OBJECT),
        ];
        let noted = include_str!("../../../bpf/imara.bpf.sha256");
        assert_eq!(noted.lines().count(), files.len());
        for (name, bytes) in files {
            let digest = imara_engine::crypto::hash(imara_format::hash::HashAlgorithm::Sha256, &[bytes]).unwrap();
            let line = format!("{}  {name}", imara_format::hash::to_hex(digest.as_bytes()));
            assert!(
                noted.lines().any(|noted| noted == line),
                "bpf/{name} was changed: run `make bpf`, which needs clang and llvm, and commit what it makes"
            );
        }
    }

    #[test]
    fn this_kernels_fields_are_found() {
        let Ok(types) = std::fs::read(KERNEL_TYPES) else {
            eprintln!("skipped: this_kernels_fields_are_found: there is no {KERNEL_TYPES}");
            return;
        };
        let object = BpfObject::parse(OBJECT).unwrap();
        let kernel = kernel(&object, Btf::parse(&types).unwrap());
        for program in &object.programs {
            let (_, missing) = relocate::relocated(program, &object.types, &kernel);
            // Of the ways to a time of change a kernel has one.
            let is_time = |name: &str| name.contains("i_mtime") || name.contains("i_ctime");
            let other: Vec<_> = missing.iter().filter(|name| !is_time(name)).collect();
            assert!(other.is_empty(), "{}: {other:?}", program.name);
            let each = |time: &str| missing.iter().filter(|name| name.contains(time)).count();
            // Three ways, the older ones two fields each.
            assert!(each("i_mtime") <= 4 && each("i_ctime") <= 4, "{}: {missing:?}", program.name);
        }
    }
}
