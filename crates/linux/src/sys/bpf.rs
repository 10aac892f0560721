//! bpf(2): maps, programs, what keeps them attached, and where these are kept.
//!
//! | command | of the attributes, by offset |
//! |---|---|
//! | map create (0) | type 0, key size 4, value size 8, entries 12, flags 16, name 28 (16), BTF 48, type of key 52 and value 56 |
//! | lookup (1), update (2), delete (3) | map 0, key 8, value 16, flags 24 |
//! | program load (5) | type 0, number of instructions 4, these 8, licence 16, log level 24, size 28, log 32, name 48 (16), attach type 68, BTF of what it is attached to 108 |
//! | pin (6), open what is pinned (7) | path 0, descriptor 8 |
//! | information (15) | descriptor 0, length 4, room 8 |
//! | attach (17) | name 0, program 8 |
//! | BTF load (18) | it 0, log 8, size 16 |
//!
//! Source: bpf(2), include/uapi/linux/bpf.h.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const PROGRAM_LOAD: libc::c_long = 5;
const PIN: libc::c_long = 6;
const OPEN_PINNED: libc::c_long = 7;
const INFORMATION: libc::c_long = 15;
const ATTACH: libc::c_long = 17;
const BTF_LOAD: libc::c_long = 18;

/// `union bpf_attr`, as far as it is used here.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Attributes {
    const fn new() -> Self {
        Self([0; 128])
    }

    fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn word(self, offset: usize, value: u32) -> Self {
        self.put(offset, &value.to_ne_bytes())
    }

    fn descriptor(self, offset: usize, file: BorrowedFd<'_>) -> Self {
        self.word(offset, file.as_raw_fd().cast_unsigned())
    }

    fn pointer<T>(self, offset: usize, pointer: *const T) -> Self {
        self.put(offset, &(pointer as u64).to_ne_bytes())
    }

    /// The first 15 bytes of a name, of the characters that the kernel takes.
    fn name(self, offset: usize, name: &str) -> Self {
        let name: Vec<u8> =
            name.bytes().filter(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').take(15).collect();
        self.put(offset, &name)
    }

    /// # Safety
    /// What the attributes point at must be as large as they say, and outlive the call.
    unsafe fn call(&mut self, command: libc::c_long) -> io::Result<i32> {
        // SAFETY: the structure is as large as is said; the rest is the caller's part.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    /// # Safety
    /// As [`Attributes::call`], of a command that opens a descriptor.
    unsafe fn open(&mut self, command: libc::c_long) -> io::Result<OwnedFd> {
        // SAFETY: the caller's part.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the kernel has just opened it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Values by any key.
    Hash = 1,
    /// Values by number.
    Array = 2,
    /// Records that are read once.
    Ring = 27,
    /// A value beside each inode.
    InodeStorage = 28,
}

/// A map.
#[derive(Debug)]
pub struct Map {
    file: OwnedFd,
    value_size: usize,
}

/// Types that say no more than how large they are: 1 `int`, 2 an array of 4 such bytes each.
fn types_for(value_size: u32) -> Vec<u8> {
    let strings = b"\0int\0";
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    // int: 4 bytes, 32 bits; an array of it.
    let types = words(&[1, 1 << 24, 4, 32, 0, 3 << 24, 0, 1, 1, value_size / 4]);
    let mut all = Vec::new();
    all.extend(0xeb9f_u16.to_ne_bytes());
    all.extend([1, 0]);
    all.extend(words(&[24, 0, types.len() as u32, types.len() as u32, strings.len() as u32]));
    all.extend(types);
    all.extend(strings);
    all
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::new().pointer(0, types.as_ptr()).word(16, types.len() as u32);
    // SAFETY: reads as many bytes as are there.
    unsafe { attributes.open(BTF_LOAD) }
}

impl Map {
    /// Makes one.
    ///
    /// # Errors
    /// EPERM without CAP_BPF (or CAP_SYS_ADMIN), EINVAL where the kernel has no such maps.
    pub fn create(kind: MapKind, name: &str, key_size: u32, value_size: u32, entries: u32) -> io::Result<Self> {
        const NO_PREALLOCATION: u32 = 1;
        let mut attributes = Attributes::new()
            .word(0, kind as u32)
            .word(4, key_size)
            .word(8, value_size)
            .word(12, entries)
            .name(28, name);
        let types;
        if kind == MapKind::InodeStorage {
            types = load_types(&types_for(value_size))?;
            attributes = attributes.word(16, NO_PREALLOCATION).descriptor(48, types.as_fd()).word(52, 1).word(56, 2);
        }
        // SAFETY: points at nothing.
        let file = unsafe { attributes.open(MAP_CREATE)? };
        Ok(Self { file, value_size: value_size as usize })
    }

    /// One that is kept at `path`, whose values are so large.
    ///
    /// # Errors
    /// ENOENT where there is none; EINVAL where it is another.
    pub fn open_pinned(path: &Path, value_size: u32) -> io::Result<Self> {
        let map = Self { file: open_pinned(path)?, value_size: value_size as usize };
        // type, id, key size, value size
        let about = information(map.file.as_fd())?;
        if about[3] == value_size { Ok(map) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// The kernel's number of it.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn id(&self) -> io::Result<u32> {
        Ok(information(self.file.as_fd())?[1])
    }

    /// The value for a key; `None` where there is none.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size.next_multiple_of(8)];
        let mut attributes =
            Attributes::new().descriptor(0, self.file.as_fd()).pointer(8, key.as_ptr()).pointer(16, value.as_mut_ptr());
        // SAFETY: the map's keys are as long as its users' (this module's callers make and use it with one type), and there
        // is room for a value.
        match unsafe { attributes.call(MAP_LOOKUP) } {
            Ok(_) => {
                value.truncate(self.value_size);
                Ok(Some(value))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a value, in place of what is there, or only where nothing is.
    ///
    /// # Errors
    /// EEXIST when something is there and `only_new` was asked; what bpf(2) says.
    pub fn put(&self, key: &[u8], value: &[u8], only_new: bool) -> io::Result<()> {
        if value.len() != self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = Attributes::new()
            .descriptor(0, self.file.as_fd())
            .pointer(8, key.as_ptr())
            .pointer(16, value.as_ptr())
            .word(24, only_new.into());
        // SAFETY: as for lookup; the value is as large as the map's.
        unsafe { attributes.call(MAP_UPDATE).map(drop) }
    }

    /// Removes a key; one that is not there is no error.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        let mut attributes = Attributes::new().descriptor(0, self.file.as_fd()).pointer(8, key.as_ptr());
        // SAFETY: as for lookup.
        match unsafe { attributes.call(MAP_DELETE) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// The value beside the inode behind a descriptor.
    ///
    /// # Errors
    /// As [`Map::lookup`].
    pub fn beside(&self, file: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
        self.lookup(&file.as_raw_fd().to_ne_bytes())
    }

    /// Puts a value beside the inode behind a descriptor.
    ///
    /// # Errors
    /// As [`Map::put`].
    pub fn put_beside(&self, file: BorrowedFd<'_>, value: &[u8], only_new: bool) -> io::Result<()> {
        self.put(&file.as_raw_fd().to_ne_bytes(), value, only_new)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The first words of what the kernel tells of a map, program or link.
fn information(file: BorrowedFd<'_>) -> io::Result<[u32; 8]> {
    let mut about = [0u32; 8];
    let mut attributes =
        Attributes::new().descriptor(0, file).word(4, size_of_val(&about) as u32).pointer(8, about.as_mut_ptr());
    // SAFETY: no more is written than there is said to be room.
    unsafe { attributes.call(INFORMATION)? };
    Ok(about)
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// To a hook of the security modules.
    Lsm,
    /// To a tracepoint.
    Tracepoint,
}

/// Why a program was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", self.last_lines())]
pub struct LoadError {
    /// What bpf(2) says.
    #[source]
    pub error: io::Error,
    /// What the kernel's verifier says.
    pub log: String,
}

impl LoadError {
    fn last_lines(&self) -> String {
        // The last line tells how much was looked at, those before it what was wrong.
        let lines: Vec<&str> = self.log.trim_end().lines().rev().take(3).collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!(": {}", lines.into_iter().rev().collect::<Vec<_>>().join("; "))
        }
    }
}

/// Loads a program to be attached to the function or tracepoint with this number in the kernel's BTF.
///
/// # Errors
/// [`LoadError`], with what the verifier says.
pub fn load(
    kind: ProgramKind,
    name: &str,
    instructions: &[[u8; 8]],
    license: &str,
    target: u32,
) -> Result<OwnedFd, LoadError> {
    let failed = |error: io::Error, log: &[u8]| {
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        LoadError { error, log: String::from_utf8_lossy(text).into_owned() }
    };
    let license = CString::new(license).map_err(|error| failed(error.into(), &[]))?;
    let (kind, attached) = match kind {
        ProgramKind::Lsm => (29, 27),
        ProgramKind::Tracepoint => (26, 23),
    };
    let attributes = || {
        Attributes::new()
            .word(0, kind)
            .word(4, instructions.len() as u32)
            .pointer(8, instructions.as_ptr())
            .pointer(16, license.as_ptr())
            .name(48, name)
            .word(68, attached)
            .word(108, target)
    };
    // SAFETY: as many instructions as are said, and a C string; both outlive the call.
    match unsafe { attributes().open(PROGRAM_LOAD) } {
        Ok(program) => Ok(program),
        // Only now, as writing the log takes the verifier more time than its work.
        Err(first) => {
            let mut log = vec![0u8; 1 << 20];
            let mut again = attributes().word(24, 1).word(28, log.len() as u32).pointer(32, log.as_mut_ptr());
            // SAFETY: as above, and there is as much room for the log as is said.
            match unsafe { again.open(PROGRAM_LOAD) } {
                Ok(program) => Ok(program),
                Err(_) => Err(failed(first, &log)),
            }
        }
    }
}

/// Attaches a program where it was loaded for, as long as what is returned, or a pin of it, lives.
///
/// # Errors
/// What bpf(2) says.
pub fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::new().descriptor(8, program);
    // SAFETY: points at nothing.
    unsafe { attributes.open(ATTACH) }
}

/// Keeps a map, program or link at `path`, on a bpf file system.
///
/// # Errors
/// What bpf(2) says.
pub fn pin(file: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::new().pointer(0, path.as_ptr()).descriptor(8, file);
    // SAFETY: a C string that outlives the call.
    unsafe { attributes.call(PIN).map(drop) }
}

/// Opens what is kept at `path`.
///
/// # Errors
/// What bpf(2) says.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::new().pointer(0, path.as_ptr());
    // SAFETY: a C string that outlives the call.
    unsafe { attributes.open(OPEN_PINNED) }
}

/// The reader of a ring of records: a page with the place up to which was read, one with that up to which was written, and the
/// records' pages, which are there twice, one after the other, so that none is ever split.
#[derive(Debug)]
pub struct Ring {
    map: OwnedFd,
    consumer: *mut libc::c_void,
    producer: *mut libc::c_void,
    page: usize,
    size: usize,
}

// SAFETY: the pages are the kernel's and ours; `read` takes the ring mutably, so that one thread at a time reads.
unsafe impl Send for Ring {}

const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const RECORD_HEADER: usize = 8;

impl Ring {
    /// Maps a ring of `size` bytes, a power of two and of pages.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(map: OwnedFd, size: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let map_pages = |length: usize, access: libc::c_int, offset: usize| {
            // SAFETY: a new mapping, which nobody else has.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    length,
                    access,
                    libc::MAP_SHARED,
                    map.as_raw_fd(),
                    offset as libc::off_t,
                )
            };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at) }
        };
        let consumer = map_pages(page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        match map_pages(page + 2 * size, libc::PROT_READ, page) {
            Ok(producer) => Ok(Self { map, consumer, producer, page, size }),
            Err(error) => {
                // SAFETY: mapped above, and of no use any more.
                unsafe { libc::munmap(consumer, page) };
                Err(error)
            }
        }
    }

    /// The map, to wait for it to become readable.
    pub const fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// Tells every record that is there.
    pub fn read(&mut self, mut tell: impl FnMut(&[u8])) {
        // SAFETY: the page begins with a 64-bit counter that the kernel, too, reads and writes atomically.
        let consumed = unsafe { &*self.consumer.cast::<AtomicU64>() };
        // SAFETY: as above.
        let produced = unsafe { &*self.producer.cast::<AtomicU64>() };
        let mut at = consumed.load(Ordering::Relaxed);
        while at < produced.load(Ordering::Acquire) {
            let place = self.page + (at as usize & (self.size - 1));
            // SAFETY: within the pages, as the place is below `size` and these are there twice; the length is written last.
            let header =
                unsafe { &*self.producer.wrapping_byte_add(place).cast::<AtomicU32>() }.load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let length = (header & !(BUSY | DISCARDED)) as usize;
            if header & DISCARDED == 0 && length <= self.size {
                let begin = self.producer.wrapping_byte_add(place + RECORD_HEADER).cast::<u8>();
                // SAFETY: a record that has been written to its end, and that the kernel leaves alone until it is consumed.
                tell(unsafe { std::slice::from_raw_parts(begin, length) });
            }
            at += (length + RECORD_HEADER).next_multiple_of(8) as u64;
            consumed.store(at, Ordering::Release);
            // Before looking again, as the kernel wakes only who has read all.
            fence(Ordering::SeqCst);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, of this length; nobody has a reference any more.
        unsafe { libc::munmap(self.consumer, self.page) };
        // SAFETY: as above.
        unsafe { libc::munmap(self.producer, self.page + 2 * self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_of_a_value_are_ones_that_can_be_read() {
        let types = types_for(40);
        let btf = imara_format::btf::Btf::parse(&types).unwrap();
        assert_eq!((btf.name(1), btf.size(1)), (Some("int"), Some(4)));
        assert_eq!(btf.kind(2), Some(imara_format::btf::Kind::Array));
    }

    #[test]
    fn a_map_keeps_values() {
        let map = match Map::create(MapKind::Hash, "imara-test", 4, 8, 16) {
            Ok(map) => map,
            Err(error) => {
                eprintln!("skipped: a_map_keeps_values: bpf(2) says {error}");
                return;
            }
        };
        let key = 7u32.to_ne_bytes();
        assert_eq!(map.lookup(&key).unwrap(), None);
        map.put(&key, &[1; 8], true).unwrap();
        assert_eq!(map.put(&key, &[2; 8], true).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        map.put(&key, &[3; 8], false).unwrap();
        assert_eq!(map.lookup(&key).unwrap(), Some(vec![3; 8]));
        assert_eq!(map.put(&key, &[1; 4], false).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(map.id().unwrap() > 0);
        map.remove(&key).unwrap();
        map.remove(&key).unwrap();
        assert_eq!(map.lookup(&key).unwrap(), None);
    }
}
