//! A BPF object: the programs in an ELF file, and what in their instructions depends on the kernel that they are loaded into.
//!
//! | section | what |
//! |---|---|
//! | `lsm/HOOK`, `tp_btf/NAME` | a program's instructions, 8 bytes each; `lsm/HOOK@N` for kernels where that hook has N parameters |
//! | `.rel` + that | which instructions load a map, by the map's symbol |
//! | `license` | the licence |
//! | `.BTF` | types, see `btf.rs` |
//! | `.BTF.ext` | which instructions name a field or constant of the kernel (CO-RE) |
//!
//! `.BTF.ext` begins as `.BTF` does (magic, version, length of its header at 4); the offset of the CO-RE records, from the header's
//! end, is at 24, their length at 28. They are the size of a record (4), then for each section its name (4), the number of
//! its records (4) and these: offset of the instruction (4, bytes), type (4), the way to the field as a string of numbers (4),
//! what is asked (4).
//!
//! Source: the System V ABI; Documentation/bpf/btf.rst and llvm_reloc.rst.

use crate::btf::{Btf, BtfError};

/// An instruction, as the kernel takes it.
pub type Instruction = [u8; 8];

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A hook of the security modules.
    Lsm {
        /// Its name.
        hook: String,
        /// How many parameters it must have, where that matters.
        parameters: Option<u32>,
    },
    /// A tracepoint.
    Tracepoint(String),
}

/// What of the kernel an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Where a field begins, in bytes.
    FieldOffset,
    /// Whether there is such a field.
    FieldExists,
    /// A constant's value.
    Constant,
}

/// An instruction that depends on the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Which, counted from 0.
    pub instruction: usize,
    /// The type that it begins with, in the object's own BTF.
    pub root: u32,
    /// The way from there: places of members.
    pub path: Vec<u32>,
    /// What is asked.
    pub wanted: Wanted,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The name of its function.
    pub name: String,
    /// Where it is attached.
    pub attachment: Attachment,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
    /// Instructions that load a map, with its name.
    pub maps: Vec<(usize, String)>,
    /// Instructions that depend on the kernel.
    pub relocations: Vec<Relocation>,
}

/// An object.
#[derive(Clone, Debug)]
pub struct BpfObject<'a> {
    /// Its licence.
    pub license: String,
    /// Its programs.
    pub programs: Vec<Program>,
    /// Its types.
    pub types: Btf<'a>,
}

/// Why it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BpfObjectError {
    /// Not a 64-bit little-endian ELF file for BPF.
    #[error("no little-endian ELF file for BPF")]
    Format,
    /// Something lies outside the file.
    #[error("the BPF object is cut short: {0}")]
    Truncated(&'static str),
    /// A section is missing.
    #[error("the BPF object has no section {0}")]
    Missing(&'static str),
    /// Its types cannot be read.
    #[error("the BPF object's types: {0}")]
    Types(#[from] BtfError),
    /// A relocation that is not known here.
    #[error("the BPF object's program {program} has a relocation of an unknown kind {kind}")]
    Relocation {
        /// The program's section.
        program: String,
        /// The kind.
        kind: u32,
    },
}

struct Section<'a> {
    name: &'a str,
    kind: u32,
    bytes: &'a [u8],
    /// The section that it leans on: the symbols of relocations, the strings of symbols.
    link: usize,
    /// For relocations: the section that they are about.
    about: usize,
}

const SYMBOLS: u32 = 2;
const WITHOUT_CONTENT: u32 = 8;
const RELOCATIONS: u32 = 9;
/// An instruction that takes 64 bits, here a map.
const R_BPF_64_64: u32 = 1;

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn long(bytes: &[u8], offset: usize) -> Option<usize> {
    let chunk = bytes.get(offset..)?.first_chunk()?;
    usize::try_from(u64::from_le_bytes(*chunk)).ok()
}

fn text(strings: &[u8], offset: u32) -> Option<&str> {
    std::str::from_utf8(strings.get(offset as usize..)?.split(|byte| *byte == 0).next()?).ok()
}

fn sections(bytes: &[u8]) -> Option<Vec<Section<'_>>> {
    let (table, size) = (long(bytes, 40)?, usize::from(half(bytes, 58)?));
    let (number, names) = (usize::from(half(bytes, 60)?), usize::from(half(bytes, 62)?));
    let header = |index: usize| {
        let from = table.checked_add(index.checked_mul(size)?)?;
        bytes.get(from..from.checked_add(64)?)
    };
    let content = |header: &[u8]| {
        let from = long(header, 24)?;
        bytes.get(from..from.checked_add(long(header, 32)?)?)
    };
    let names = content(header(names)?)?;
    (0..number)
        .map(|index| {
            let header = header(index)?;
            let kind = word(header, 4)?;
            Some(Section {
                name: text(names, word(header, 0)?)?,
                kind,
                bytes: if kind == 0 || kind == WITHOUT_CONTENT { &[] } else { content(header)? },
                link: word(header, 40)? as usize,
                about: word(header, 44)? as usize,
            })
        })
        .collect()
}

/// A symbol: its name, the section that it is in, and whether it is a function.
fn symbol<'a>(sections: &[Section<'a>], symbols: &Section<'a>, index: u32) -> Option<(&'a str, usize, bool)> {
    let entry = symbols.bytes.get((index as usize).checked_mul(24)?..)?;
    let strings = sections.get(symbols.link)?;
    Some((text(strings.bytes, word(entry, 0)?)?, usize::from(half(entry, 6)?), entry.get(4)? & 15 == 2))
}

fn attachment(section: &str) -> Option<Attachment> {
    if let Some(name) = section.strip_prefix("tp_btf/") {
        return Some(Attachment::Tracepoint(name.to_owned()));
    }
    let hook = section.strip_prefix("lsm/")?;
    let (hook, parameters) = match hook.split_once('@') {
        Some((hook, parameters)) => (hook, Some(parameters.parse().ok()?)),
        None => (hook, None),
    };
    Some(Attachment::Lsm { hook: hook.to_owned(), parameters })
}

/// The instructions of `program` that load a map, with its name.
fn maps(sections: &[Section<'_>], program: usize) -> Option<Vec<(usize, String)>> {
    let mut all = Vec::new();
    for relocations in sections.iter().filter(|section| section.kind == RELOCATIONS && section.about == program) {
        let symbols = sections.get(relocations.link)?;
        for entry in relocations.bytes.chunks(16) {
            if word(entry, 8)? == R_BPF_64_64 {
                let (name, _, _) = symbol(sections, symbols, word(entry, 12)?)?;
                all.push((long(entry, 0)? / 8, name.to_owned()));
            }
        }
    }
    Some(all)
}

/// The CO-RE records, with the section that each is about.
fn records<'a>(types: &Btf<'a>, extension: &[u8]) -> Option<Vec<(&'a str, [u32; 4])>> {
    let from = (word(extension, 4)? as usize).checked_add(word(extension, 24)? as usize)?;
    let mut rest = extension.get(from..from.checked_add(word(extension, 28)? as usize)?)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let size = (word(rest, 0)? as usize).max(16);
    rest = rest.get(4..)?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (section, number) = (types.string_at(word(rest, 0)?)?, word(rest, 4)? as usize);
        rest = rest.get(8..)?;
        for record in rest.get(..number.checked_mul(size)?)?.chunks(size) {
            all.push((section, [word(record, 0)?, word(record, 4)?, word(record, 8)?, word(record, 12)?]));
        }
        rest = rest.get(number.checked_mul(size)?..)?;
    }
    Some(all)
}

fn relocation(types: &Btf<'_>, section: &str, record: [u32; 4]) -> Result<Relocation, BpfObjectError> {
    let [offset, root, path, kind] = record;
    let wanted = match kind {
        0 => Wanted::FieldOffset,
        2 => Wanted::FieldExists,
        11 => Wanted::Constant,
        _ => return Err(BpfObjectError::Relocation { program: section.to_owned(), kind }),
    };
    let path = types
        .string_at(path)
        .and_then(|path| path.split(':').map(|place| place.parse().ok()).collect::<Option<Vec<u32>>>())
        .ok_or(BpfObjectError::Truncated("the way to a field"))?;
    Ok(Relocation { instruction: offset as usize / 8, root, path, wanted })
}

impl<'a> BpfObject<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// [`BpfObjectError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BpfObjectError> {
        const BPF: u16 = 247;
        if bytes.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) || half(bytes, 18) != Some(BPF) {
            return Err(BpfObjectError::Format);
        }
        let sections = sections(bytes).ok_or(BpfObjectError::Truncated("its sections"))?;
        let named = |name: &'static str| {
            sections.iter().find(|section| section.name == name).ok_or(BpfObjectError::Missing(name))
        };
        let types = Btf::parse(named(".BTF")?.bytes)?;
        let records = records(&types, named(".BTF.ext")?.bytes).ok_or(BpfObjectError::Truncated(".BTF.ext"))?;
        let license = text(named("license")?.bytes, 0).ok_or(BpfObjectError::Missing("license"))?.to_owned();
        let symbols =
            sections.iter().find(|section| section.kind == SYMBOLS).ok_or(BpfObjectError::Missing(".symtab"))?;
        let count = u32::try_from(symbols.bytes.len() / 24).unwrap_or(u32::MAX);
        let mut programs = Vec::new();
        for (index, section) in sections.iter().enumerate() {
            let Some(attachment) = attachment(section.name) else {
                continue;
            };
            let name = (0..count)
                .filter_map(|number| symbol(&sections, symbols, number))
                .find(|(_, place, function)| *place == index && *function)
                .ok_or(BpfObjectError::Truncated("a program without a name"))?;
            let relocations = records
                .iter()
                .filter(|(about, _)| *about == section.name)
                .map(|(about, record)| relocation(&types, about, *record))
                .collect::<Result<Vec<_>, _>>()?;
            programs.push(Program {
                name: name.0.to_owned(),
                attachment,
                instructions: section.bytes.as_chunks().0.to_vec(),
                maps: maps(&sections, index).ok_or(BpfObjectError::Truncated("relocations"))?,
                relocations,
            });
        }
        Ok(Self { license, programs, types })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OBJECT: &[u8] = include_bytes!("../../../tests/vectors/bpf_object/small.bpf.o");

    #[test]
    fn programs_are_read_with_what_depends_on_the_kernel() {
        let object = BpfObject::parse(OBJECT).unwrap();
        assert_eq!(object.license, "Dual MIT/GPL");
        let named: Vec<_> =
            object.programs.iter().map(|program| (program.name.as_str(), program.attachment.clone())).collect();
        let lsm = |hook: &str, parameters| Attachment::Lsm { hook: hook.into(), parameters };
        assert_eq!(
            named,
            [
                ("opens", lsm("file_open", None)),
                ("changes", lsm("inode_setattr", Some(3))),
                ("ends", Attachment::Tracepoint("sched_process_exit".into())),
            ]
        );
        let opens = &object.programs[0];
        assert_eq!(opens.maps.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["kept"]);
        for (instruction, _) in &opens.maps {
            assert_eq!(opens.instructions[*instruction][0], 0x18, "it loads 64 bits");
        }
        let wanted = |program: &Program| program.relocations.iter().map(|one| one.wanted).collect::<Vec<_>>();
        assert!(wanted(opens).contains(&Wanted::FieldExists) && wanted(opens).contains(&Wanted::FieldOffset));
        assert!(wanted(&object.programs[1]).contains(&Wanted::Constant));
        assert!(opens.relocations.iter().all(|one| one.instruction < opens.instructions.len()));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(BpfObject::parse(b"").unwrap_err(), BpfObjectError::Format);
        let mut other = OBJECT.to_vec();
        other[18] = 62;
        assert_eq!(BpfObject::parse(&other).unwrap_err(), BpfObjectError::Format);
        assert_eq!(BpfObject::parse(&OBJECT[..64]).unwrap_err(), BpfObjectError::Truncated("its sections"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0..OBJECT.len(), byte: u8, length in 0..=OBJECT.len()) {
            let mut bytes = OBJECT.to_vec();
            bytes[at] = byte;
            let _ = BpfObject::parse(&bytes);
            let _ = BpfObject::parse(&bytes[..length]);
        }
    }
}
