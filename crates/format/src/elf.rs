//! ELF headers: what says that a file can be mapped executable, and which interpreter it names.
//!
//! Only what is needed of the file header and the program headers is read:
//!
//! | 32-bit offset | 64-bit offset | size | meaning |
//! |---|---|---|---|
//! | 0 | 0 | 4 | `7f 45 4c 46` |
//! | 4 | 4 | 1 | class: 1 = 32 bits, 2 = 64 bits |
//! | 5 | 5 | 1 | byte order: 1 = little, 2 = big |
//! | 28 | 32 | 4 / 8 | offset of the program headers |
//! | 42 | 54 | 2 | size of a program header |
//! | 44 | 56 | 2 | number of program headers |
//!
//! Program header: type (4, offset 0); flags (4, offset 24 / 4); file offset (4 / 8, offset 4 / 8); size in the file
//! (4 / 8, offset 16 / 32). Type 1 is a segment to load, 3 the interpreter's path; flag 1 is "execute".
//!
//! Source: System V ABI, chapter 4; elf(5).

/// What the headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Elf {
    /// Whether a segment is to be mapped executable.
    pub executable_segment: bool,
    /// Where the interpreter's path stands: offset and length in bytes, with its NUL.
    pub interpreter: Option<(u64, u64)>,
}

/// Where the program headers of a file are, so that a caller knows how much of it [`Elf::parse`] needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramHeaders {
    wide: bool,
    big: bool,
    /// Offset of the first, in bytes.
    pub offset: u64,
    /// Size of each, in bytes.
    pub size: u16,
    /// How many there are.
    pub count: u16,
}

/// The bytes of a file header that [`ProgramHeaders::parse`] wants.
pub const FILE_HEADER: usize = 64;

/// The most bytes of program headers that the kernel reads.
const MOST: usize = 64 << 10;

fn number(bytes: &[u8], offset: usize, size: usize, big: bool) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(size)?)?;
    let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
    Some(if big { field.iter().fold(0, fold) } else { field.iter().rev().fold(0, fold) })
}

impl ProgramHeaders {
    /// Reads the file header, the file's first bytes; `None` when it is no ELF file or cut short.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (class, order) = match header {
            [0x7f, b'E', b'L', b'F', class, order, ..] => (*class, *order),
            _ => return None,
        };
        let (wide, big) = match (class, order) {
            (1, 1) => (false, false),
            (1, 2) => (false, true),
            (2, 1) => (true, false),
            (2, 2) => (true, true),
            _ => return None,
        };
        let small = |offset| number(header, offset, 2, big).and_then(|value| u16::try_from(value).ok());
        let (headers, size) = if wide {
            (Self { wide, big, offset: number(header, 32, 8, big)?, size: small(54)?, count: small(56)? }, 56)
        } else {
            (Self { wide, big, offset: number(header, 28, 4, big)?, size: small(42)?, count: small(44)? }, 32)
        };
        // As the kernel: it loads no file with headers of another size, or with more than 64 KiB of them.
        (headers.count == 0 || (headers.size == size && headers.length() <= MOST)).then_some(headers)
    }

    /// How many bytes they take.
    pub const fn length(&self) -> usize {
        (self.size as usize).saturating_mul(self.count as usize)
    }
}

impl Elf {
    /// Reads the program headers, the bytes from [`ProgramHeaders::offset`] on. What is cut short or has a size of zero is
    /// not there.
    pub fn parse(headers: &ProgramHeaders, bytes: &[u8]) -> Self {
        let mut elf = Self::default();
        if headers.size == 0 {
            return elf;
        }
        for header in bytes.chunks_exact(usize::from(headers.size)).take(usize::from(headers.count)) {
            let field = |offset, size| number(header, offset, size, headers.big);
            let (flags, place, size) = if headers.wide {
                (field(4, 4), field(8, 8), field(32, 8))
            } else {
                (field(24, 4), field(4, 4), field(16, 4))
            };
            match (field(0, 4), flags, place, size) {
                (Some(1), Some(flags), _, _) => elf.executable_segment |= flags & 1 == 1,
                (Some(3), _, Some(place), Some(size)) => elf.interpreter = Some((place, size)),
                _ => {}
            }
        }
        elf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wide(segments: &[(u32, u32, u64, u64)]) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1];
        file.resize(64, 0);
        file[32] = 64;
        file[54] = 56;
        file[56] = segments.len() as u8;
        for (kind, flags, offset, size) in segments {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&flags.to_le_bytes());
            header[8..16].copy_from_slice(&offset.to_le_bytes());
            header[32..40].copy_from_slice(&size.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn segments_say_whether_a_file_can_run_and_which_interpreter_it_names() {
        for (name, segments, expected) in [
            ("program", vec![(3, 4, 0x318, 0x1c), (1, 5, 0, 100)], (true, Some((0x318, 0x1c)))),
            ("library", vec![(1, 4, 0, 9), (1, 5, 0, 100)], (true, None)),
            ("data only", vec![(1, 6, 0, 100)], (false, None)),
            ("nothing", vec![], (false, None)),
        ] {
            let file = wide(&segments);
            let headers = ProgramHeaders::parse(&file).unwrap();
            let elf = Elf::parse(&headers, &file[64..]);
            assert_eq!((elf.executable_segment, elf.interpreter), expected, "{name}");
        }
    }

    #[test]
    fn this_very_program_can_run_and_others_are_no_elf() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let headers = ProgramHeaders::parse(&file).unwrap();
        let elf = Elf::parse(&headers, &file[headers.offset as usize..]);
        assert!(elf.executable_segment);
        assert_eq!(ProgramHeaders::parse(b"#!/bin/sh"), None);
        assert_eq!(ProgramHeaders::parse(&file[..20]), None);
        let mut large = wide(&[(1, 5, 0, 100)]);
        large[56..58].fill(0xff);
        assert_eq!(ProgramHeaders::parse(&large), None, "more headers than the kernel reads");
        large[54..56].fill(0xff);
        assert_eq!(ProgramHeaders::parse(&large), None, "headers of another size");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(header in proptest::collection::vec(any::<u8>(), 0..80), rest: Vec<u8>) {
            let mut bytes = b"\x7fELF".to_vec();
            bytes.extend(header);
            if let Some(headers) = ProgramHeaders::parse(&bytes) {
                Elf::parse(&headers, &rest);
            }
        }
    }
}
