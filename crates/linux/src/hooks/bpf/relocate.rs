//! A program's instructions, made to fit the kernel that is to run them: fields and constants are found by their names in the
//! kernel's BTF (CO-RE).
//!
//! What a kernel does not have is not an error yet: such an instruction becomes a call of a function that does not exist, which
//! the kernel's verifier refuses only where the program can come there.
//!
//! Source: Documentation/bpf/llvm_reloc.rst, "CO-RE Relocations".

use imara_format::bpf_object::{Instruction, Program, Relocation, Wanted};
use imara_format::btf::{Btf, Field, Kind};
use std::collections::{HashMap, HashSet};

/// The types of a kernel, and where those are that the object names.
pub(super) struct Kernel<'a> {
    types: Btf<'a>,
    found: HashMap<(Kind, String), Vec<u32>>,
}

impl<'a> Kernel<'a> {
    /// Looks up the types with these names, once for all programs.
    pub(super) fn new(types: Btf<'a>, names: &[(Kind, String)]) -> Self {
        let wanted: HashSet<(Kind, &str)> = names.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        let found = types.find(&wanted).into_iter().map(|((kind, name), ids)| ((kind, name.to_owned()), ids)).collect();
        Self { types, found }
    }

    /// All types of that kind and name.
    pub(super) fn all(&self, kind: Kind, name: &str) -> &[u32] {
        self.found.get(&(kind, name.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// How many parameters a function has.
    pub(super) fn parameters(&self, function: u32) -> Option<u32> {
        self.types.parameters(function)
    }

    fn field(&self, root: &str, names: &[&str]) -> Option<Field> {
        self.all(Kind::Struct, root).iter().find_map(|id| {
            names.iter().try_fold(Field { offset: 0, size: 0, kind: *id }, |within, name| {
                let field = self.types.member_named(within.kind, name)?;
                Some(Field { offset: within.offset + field.offset, ..field })
            })
        })
    }

    fn constant(&self, root: &str, name: &str) -> Option<u64> {
        [Kind::Enum, Kind::Enum64]
            .iter()
            .flat_map(|kind| self.all(*kind, root))
            .find_map(|id| self.types.constant_named(*id, name))
    }
}

/// The kernel's name for one of the object's own types: what follows three underscores tells apart what kernels have had by
/// one name.
fn kernels_name(own: &str) -> &str {
    own.split("___").next().unwrap_or(own)
}

/// What the relocations of a program look for in a kernel.
pub(super) fn names(program: &Program, own: &Btf<'_>) -> Vec<(Kind, String)> {
    let named = |relocation: &Relocation| {
        let kind = own.kind(relocation.root)?;
        Some((kind, kernels_name(own.name(relocation.root)?).to_owned()))
    };
    let both = |(kind, name): (Kind, String)| match kind {
        Kind::Enum | Kind::Enum64 => vec![(Kind::Enum, name.clone()), (Kind::Enum64, name)],
        _ => vec![(kind, name)],
    };
    program.relocations.iter().filter_map(named).flat_map(both).collect()
}

/// What an instruction is to hold, or the name of what the kernel does not have.
fn value(relocation: &Relocation, own: &Btf<'_>, kernel: &Kernel<'_>) -> Result<u64, String> {
    let root = own.name(relocation.root).map_or("", kernels_name);
    if relocation.wanted == Wanted::Constant {
        let place = relocation.path.first().copied().unwrap_or_default();
        let name = own.constant(relocation.root, place).map_or("", |(name, _)| name);
        return kernel.constant(root, name).ok_or_else(|| format!("enum {root}: {name}"));
    }
    let mut names = Vec::new();
    let mut kind = relocation.root;
    for place in relocation.path.iter().skip(1) {
        let (name, next) = own.member_at(kind, *place).unwrap_or_default();
        names.extend(Some(name).filter(|name| !name.is_empty()));
        kind = next;
    }
    // One of another size would be read wrongly.
    let field = kernel.field(root, &names).filter(|field| Some(field.size) == own.size(kind));
    match (relocation.wanted, field) {
        (Wanted::FieldExists, field) => Ok(field.is_some().into()),
        (_, Some(field)) => Ok(field.offset.into()),
        (_, None) => Err(format!("struct {root}: {}", names.join("."))),
    }
}

/// Loads 64 bits, which takes two instructions.
pub(super) const LOAD_64: u8 = 0x18;
/// A call of a function that does not exist.
const NOWHERE: Instruction = [0x85, 0, 0, 0, 0x10, 0x23, 0xad, 0x0b];

/// The instructions for this kernel, and what it does not have.
pub(super) fn relocated(program: &Program, own: &Btf<'_>, kernel: &Kernel<'_>) -> (Vec<Instruction>, Vec<String>) {
    let mut instructions = program.instructions.clone();
    let mut missing = Vec::new();
    for relocation in &program.relocations {
        let value = value(relocation, own, kernel);
        let at = relocation.instruction;
        let Some(instruction) = instructions.get_mut(at) else {
            continue;
        };
        let code = instruction[0];
        let fits = match (&value, code & 7) {
            // A load or store: where from or to.
            (Ok(value), 1..=3) => {
                i16::try_from(*value).map(|offset| instruction[2..4].copy_from_slice(&offset.to_le_bytes())).is_ok()
            }
            (Ok(value), _) => {
                u32::try_from(*value).map(|number| instruction[4..].copy_from_slice(&number.to_le_bytes())).is_ok()
            }
            (Err(_), _) => false,
        };
        if !fits {
            *instruction = NOWHERE;
            if code == LOAD_64
                && let Some(second) = instructions.get_mut(at + 1)
            {
                *second = NOWHERE;
            }
            let name = value.err().unwrap_or_else(|| "a field that lies too far in its structure".into());
            if !missing.contains(&name) {
                missing.push(name);
            }
        }
    }
    (instructions, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::bpf_object::BpfObject;

    const OBJECT: &[u8] = include_bytes!("../../../../../tests/vectors/bpf_object/small.bpf.o");
    const KERNEL: &[u8] = include_bytes!("../../../../../tests/vectors/btf/kernel.btf");

    #[test]
    fn fields_and_constants_become_those_of_the_kernel_and_what_it_lacks_is_named() {
        let object = BpfObject::parse(OBJECT).unwrap();
        let wanted: Vec<_> = object.programs.iter().flat_map(|program| names(program, &object.types)).collect();
        let kernel = Kernel::new(Btf::parse(KERNEL).unwrap(), &wanted);
        let (opens, missing) = relocated(&object.programs[0], &object.types, &kernel);
        assert_eq!(missing, ["struct inode: i_none"]);
        let program = &object.programs[0];
        for relocation in &program.relocations {
            let (before, after) = (program.instructions[relocation.instruction], opens[relocation.instruction]);
            let path: Vec<&str> = vec![object.types.name(relocation.root).unwrap()];
            let expected = match (path[0], relocation.path.as_slice(), relocation.wanted) {
                ("file", [0, 0], Wanted::FieldOffset) => Some(20),
                ("file", [0, 1], Wanted::FieldOffset) => Some(32),
                ("inode", [0, 0], Wanted::FieldOffset) => Some(24),
                _ => None,
            };
            match (expected, relocation.wanted) {
                (Some(offset), _) => assert_eq!(u16::from_le_bytes([after[2], after[3]]), offset, "{relocation:?}"),
                (None, Wanted::FieldExists) => assert_eq!(after[4..], [0; 4], "{relocation:?}"),
                (None, _) => assert_eq!(after, NOWHERE, "{relocation:?} was {before:?}"),
            }
        }
        let changes = &object.programs[1];
        let (instructions, missing) = relocated(changes, &object.types, &kernel);
        assert!(missing.is_empty());
        assert_eq!(instructions[changes.relocations[0].instruction][4..], [3, 0, 0, 0]);
    }
}
