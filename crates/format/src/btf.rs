//! BTF: the types of a kernel or of a BPF object, so that a field is found by its name wherever a kernel has it.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 2 | `9f eb` |
//! | 2 | 1 | version (1) |
//! | 4 | 4 | length of this header |
//! | 8 | 4 | offset of the types, from the header's end |
//! | 12 | 4 | their length |
//! | 16 | 4 | offset of the strings, from the header's end |
//! | 20 | 4 | their length |
//!
//! A type is its name (4, an offset into the strings), its kind and so on (4: bits 0 to 15 number of members, 24 to 28 kind, 31 a
//! flag), a size or another type (4), and what its kind adds. Types are numbered from 1; 0 is `void`. Only little-endian data
//! is read.
//!
//! Source: Documentation/bpf/btf.rst.

use std::collections::HashMap;

/// What a type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // As the kernel names them.
pub enum Kind {
    Int,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    Forward,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Function,
    FunctionPrototype,
    Variable,
    DataSection,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

/// All kinds, by their numbers from 1 on, with the bytes that each adds: so many, and so many for each member.
const KINDS: [(Kind, usize, usize); 19] = [
    (Kind::Int, 4, 0),
    (Kind::Pointer, 0, 0),
    (Kind::Array, 12, 0),
    (Kind::Struct, 0, 12),
    (Kind::Union, 0, 12),
    (Kind::Enum, 0, 8),
    (Kind::Forward, 0, 0),
    (Kind::Typedef, 0, 0),
    (Kind::Volatile, 0, 0),
    (Kind::Const, 0, 0),
    (Kind::Restrict, 0, 0),
    (Kind::Function, 0, 0),
    (Kind::FunctionPrototype, 0, 8),
    (Kind::Variable, 4, 0),
    (Kind::DataSection, 0, 12),
    (Kind::Float, 0, 0),
    (Kind::DeclTag, 4, 0),
    (Kind::TypeTag, 0, 0),
    (Kind::Enum64, 0, 12),
];

/// Why it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// It does not begin as BTF does.
    #[error("no BTF of this machine's byte order: it begins with {0:02x?}")]
    Magic(Vec<u8>),
    /// It is cut short.
    #[error("BTF is cut short at byte {0}")]
    Truncated(usize),
    /// A kind that is not known, after which nothing can be found.
    #[error("BTF type {id} is of an unknown kind {kind}")]
    Kind {
        /// The type's number.
        id: u32,
        /// Its kind.
        kind: u32,
    },
}

/// A field, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it begins in its structure, in bytes.
    pub offset: u32,
    /// Its size in bytes.
    pub size: u32,
    /// Its type.
    pub kind: u32,
}

/// The types.
#[derive(Clone, Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`.
    offsets: Vec<u32>,
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

impl<'a> Btf<'a> {
    /// Reads them.
    ///
    /// # Errors
    /// [`BtfError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if bytes.get(..3) != Some(&[0x9f, 0xeb, 1]) {
            return Err(BtfError::Magic(bytes.iter().take(3).copied().collect()));
        }
        let part = |offset: usize| {
            let header = word(bytes, 4)? as usize;
            let from = header.checked_add(word(bytes, offset)? as usize)?;
            bytes.get(from..from.checked_add(word(bytes, offset.checked_add(4)?)? as usize)?)
        };
        let truncated = BtfError::Truncated(bytes.len());
        let types = part(8).ok_or(truncated.clone())?;
        let strings = part(16).ok_or(truncated)?;
        let mut offsets = vec![0];
        let mut offset = 0usize;
        while offset < types.len() {
            let truncated = BtfError::Truncated(offset);
            let info = offset.checked_add(4).and_then(|at| word(types, at)).ok_or(truncated.clone())?;
            let (members, number) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
            let kind = (number as usize).checked_sub(1).and_then(|index| KINDS.get(index));
            let id = u32::try_from(offsets.len()).unwrap_or(u32::MAX);
            let (_, fixed, each) = kind.ok_or(BtfError::Kind { id, kind: number })?;
            offsets.push(u32::try_from(offset).map_err(|_| truncated.clone())?);
            let size = members.checked_mul(*each).and_then(|size| size.checked_add(12)?.checked_add(*fixed));
            offset = size.and_then(|size| offset.checked_add(size)).ok_or(truncated)?;
        }
        if offset != types.len() {
            return Err(BtfError::Truncated(offset));
        }
        Ok(Self { types, strings, offsets })
    }

    fn field(&self, id: u32, offset: usize) -> Option<u32> {
        let begin = *self.offsets.get(id as usize).filter(|_| id != 0)? as usize;
        word(self.types, begin.checked_add(offset)?)
    }

    /// What a type is; `None` for `void` and for what is not there.
    pub fn kind(&self, id: u32) -> Option<Kind> {
        let number = self.field(id, 4)? >> 24 & 0x1f;
        KINDS.get((number as usize).checked_sub(1)?).map(|(kind, _, _)| *kind)
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        std::str::from_utf8(rest.split(|byte| *byte == 0).next()?).ok()
    }

    /// A string of the section's own, as relocations name them.
    pub fn string_at(&self, offset: u32) -> Option<&'a str> {
        self.string(offset)
    }

    /// A type's name, which may be empty.
    pub fn name(&self, id: u32) -> Option<&'a str> {
        self.string(self.field(id, 0)?)
    }

    fn target(&self, id: u32) -> Option<u32> {
        self.field(id, 8)
    }

    fn members(&self, id: u32) -> u32 {
        self.field(id, 4).map_or(0, |info| info & 0xffff)
    }

    /// All types of these kinds and names.
    pub fn find<'n>(&self, wanted: &[(Kind, &'n str)]) -> HashMap<(Kind, &'n str), Vec<u32>> {
        let wanted: HashMap<&[u8], Vec<(Kind, &'n str)>> = wanted.iter().fold(HashMap::new(), |mut all, one| {
            all.entry(one.1.as_bytes()).or_default().push(*one);
            all
        });
        let mut found: HashMap<(Kind, &'n str), Vec<u32>> = HashMap::new();
        for id in 1..u32::try_from(self.offsets.len()).unwrap_or(u32::MAX) {
            let name = self.field(id, 0).and_then(|offset| self.strings.get(offset as usize..));
            let name = name.and_then(|rest| rest.split(|byte| *byte == 0).next());
            let Some(candidates) = name.and_then(|name| wanted.get(name)) else {
                continue;
            };
            for one in candidates.iter().filter(|(kind, _)| self.kind(id) == Some(*kind)) {
                found.entry(*one).or_default().push(id);
            }
        }
        found
    }

    /// The type behind names and qualifiers.
    pub fn resolve(&self, mut id: u32) -> u32 {
        // A chain that is longer goes in a circle.
        for _ in 0..32 {
            match (self.kind(id), self.target(id)) {
                (Some(Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag), Some(target)) => {
                    id = target
                }
                _ => return id,
            }
        }
        id
    }

    /// A type's size in bytes; `None` where it has none.
    pub fn size(&self, id: u32) -> Option<u32> {
        self.size_within(id, 8)
    }

    /// `depth`: arrays in arrays at most.
    fn size_within(&self, id: u32, depth: u32) -> Option<u32> {
        let id = self.resolve(id);
        match self.kind(id)? {
            Kind::Pointer => Some(8),
            Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => self.field(id, 8),
            Kind::Array => {
                // Each one's type, the index's, how many; none for an array that the structure ends with.
                let each = self.size_within(self.field(id, 12)?, depth.checked_sub(1)?)?;
                each.checked_mul(self.field(id, 20)?)
            }
            Kind::Forward
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::Function
            | Kind::FunctionPrototype
            | Kind::Variable
            | Kind::DataSection
            | Kind::DeclTag
            | Kind::TypeTag => None,
        }
    }

    /// The member of a structure or union by its place: name, type, and where it begins, in bits.
    fn member(&self, id: u32, index: u32) -> Option<(&'a str, u32, u32)> {
        if !matches!(self.kind(id)?, Kind::Struct | Kind::Union) || index >= self.members(id) {
            return None;
        }
        let at = (index as usize).checked_mul(12)?.checked_add(12)?;
        let offset = self.field(id, at.checked_add(8)?)?;
        // With the flag set, the upper byte is the size of a bit field.
        let offset = if self.field(id, 4)? >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
        Some((self.string(self.field(id, at)?)?, self.field(id, at.checked_add(4)?)?, offset))
    }

    /// The name and type of a structure's member by its place.
    pub fn member_at(&self, id: u32, index: u32) -> Option<(&'a str, u32)> {
        self.member(self.resolve(id), index).map(|(name, kind, _)| (name, kind))
    }

    /// A structure's member by its name, also where it stands in a part without a name.
    pub fn member_named(&self, id: u32, name: &str) -> Option<Field> {
        self.member_within(id, name, 8)
    }

    fn member_within(&self, id: u32, name: &str, depth: u32) -> Option<Field> {
        let id = self.resolve(id);
        (0..self.members(id)).find_map(|index| {
            let (own, kind, bits) = self.member(id, index)?;
            if own == name {
                return Some(Field { offset: bits / 8, size: self.size(kind)?, kind });
            }
            if !own.is_empty() {
                return None;
            }
            let within = self.member_within(kind, name, depth.checked_sub(1)?)?;
            Some(Field { offset: within.offset.checked_add(bits / 8)?, ..within })
        })
    }

    /// The name and value of an enumeration's constant by its place.
    pub fn constant(&self, id: u32, index: u32) -> Option<(&'a str, u64)> {
        let id = self.resolve(id);
        if index >= self.members(id) {
            return None;
        }
        let each = match self.kind(id)? {
            Kind::Enum => 8usize,
            Kind::Enum64 => 12,
            _ => return None,
        };
        let at = (index as usize).checked_mul(each)?.checked_add(12)?;
        let low = u64::from(self.field(id, at.checked_add(4)?)?);
        let high = if each == 12 { u64::from(self.field(id, at.checked_add(8)?)?) } else { 0 };
        Some((self.string(self.field(id, at)?)?, high << 32 | low))
    }

    /// The value of an enumeration's constant by its name.
    pub fn constant_named(&self, id: u32, name: &str) -> Option<u64> {
        let id = self.resolve(id);
        (0..self.members(id))
            .find_map(|index| self.constant(id, index).filter(|(own, _)| *own == name).map(|(_, value)| value))
    }

    /// How many parameters a function has.
    pub fn parameters(&self, function: u32) -> Option<u32> {
        (self.kind(function)? == Kind::Function).then_some(())?;
        let prototype = self.target(function)?;
        (self.kind(prototype)? == Kind::FunctionPrototype).then(|| self.members(prototype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KERNEL: &[u8] = include_bytes!("../../../tests/vectors/btf/kernel.btf");

    fn one(btf: &Btf<'_>, kind: Kind, name: &str) -> u32 {
        btf.find(&[(kind, name)])[&(kind, name)][0]
    }

    #[test]
    fn fields_are_found_by_name_also_within_parts_without_a_name() {
        let btf = Btf::parse(KERNEL).unwrap();
        let file = one(&btf, Kind::Struct, "file");
        for (name, expected) in [("f_mode", Some((20, 4))), ("f_inode", Some((32, 8))), ("f_none", None)] {
            let found = btf.member_named(file, name).map(|field| (field.offset, field.size));
            assert_eq!(found, expected, "{name}");
        }
        let inode = btf.member_named(file, "f_inode").unwrap();
        assert_eq!(btf.kind(btf.resolve(inode.kind)), Some(Kind::Pointer));
    }

    #[test]
    fn constants_and_parameters_are_read() {
        let btf = Btf::parse(KERNEL).unwrap();
        let reads = one(&btf, Kind::Enum, "kernel_read_file_id");
        assert_eq!(btf.constant_named(reads, "READING_MODULE"), Some(3));
        assert_eq!(btf.constant(reads, 1), Some(("READING_FIRMWARE", 1)));
        assert_eq!(btf.constant_named(reads, "READING_NOTHING"), None);
        assert_eq!(btf.parameters(one(&btf, Kind::Function, "bpf_lsm_inode_setattr")), Some(3));
    }

    #[test]
    fn an_array_is_as_large_as_what_is_in_it() {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let array = |of: u32, count: u32| [0, 3 << 24, 0, of, 1, count];
        // 1 an int of 4 bytes, 2 three of them, 3 none of them, 4 two of 2, 5 of itself.
        let int = [1, 1 << 24, 4, 32].to_vec();
        let types =
            words(&[int, array(1, 3).into(), array(1, 0).into(), array(2, 2).into(), array(5, 2).into()].concat());
        let mut bytes = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat();
        bytes.extend(words(&[24, 0, types.len() as u32, types.len() as u32, 5]));
        bytes.extend(types);
        bytes.extend(b"\0int\0");
        let btf = Btf::parse(&bytes).unwrap();
        for (id, expected) in [(1, Some(4)), (2, Some(12)), (3, Some(0)), (4, Some(24)), (5, None)] {
            assert_eq!(btf.size(id), expected, "{id}");
        }
    }

    #[test]
    fn what_is_no_btf_or_cut_short_is_refused() {
        assert!(matches!(Btf::parse(b"\x7fELF"), Err(BtfError::Magic(_))));
        assert!(matches!(Btf::parse(b""), Err(BtfError::Magic(_))));
        for length in 3..KERNEL.len() {
            assert!(Btf::parse(&KERNEL[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0..KERNEL.len(), byte: u8, id: u32, index in 0u32..20) {
            let mut bytes = KERNEL.to_vec();
            bytes[at] = byte;
            if let Ok(btf) = Btf::parse(&bytes) {
                for id in (0..200).chain([id]) {
                    let _ = (btf.name(id), btf.size(id), btf.member_at(id, index), btf.constant(id, index));
                    let _ = (btf.member_named(id, "f_inode"), btf.constant_named(id, "x"), btf.parameters(id));
                }
            }
        }
    }
}
