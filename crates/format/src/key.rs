//! What the kernel's key service tells of its keys.
//!
//! `KEYCTL_DESCRIBE` gives `TYPE;UID;GID;PERMISSIONS;DESCRIPTION`, with the permissions as eight hexadecimal digits. A line
//! of `/proc/keys` is
//!
//! ```text
//! 2f5a0a3c I--Q---     1 perm 3f010000     0     0 user      kmk: 32
//! ```
//!
//! | word | meaning |
//! |---|---|
//! | 1 | serial number, hexadecimal |
//! | 2 | instantiated, revoked, dead, counted against a quota, under construction, negative, invalidated: a letter or `-` for each |
//! | 3 | references |
//! | 4 | time left: `perm`, `expd`, or a number and `s`, `m`, `h`, `d` or `w` |
//! | 5 | permissions, hexadecimal |
//! | 6, 7 | owner: user and group |
//! | 8 | type, cut to 9 characters |
//! | rest | the description and what the type tells of the key |
//!
//! Descriptions are whatever their makers chose, also with newlines: a line of `/proc/keys` can be forged by whoever may
//! make keys that its reader sees. Only `KEYCTL_DESCRIBE` can be relied on.
//!
//! Permissions are four times six bits, `alswrv` for set attributes, link, search, write, read, view:
//!
//! | bits | for |
//! |---|---|
//! | 24 to 29 | whoever reaches the key through keyrings of theirs (the possessor), beside one of the next three |
//! | 16 to 21 | the user that owns it |
//! | 8 to 13 | its group |
//! | 0 to 5 | everybody else |
//!
//! Source: `keyctl_describe_key`, security/keys/keyctl.c; `proc_keys_show`, security/keys/proc.c; include/linux/key.h.

use std::fmt;
use std::str::FromStr;

/// The error numbers that the key service and its types give and that mean something of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// A sealed key does not fit.
    E2big,
    /// Not permitted, or never possible; the TPM refuses.
    Eperm,
    /// Not in there; an algorithm that is not there.
    Enoent,
    /// The permissions do not allow it.
    Eacces,
    /// There already.
    Eexist,
    /// The kernel has no such type of key.
    Enodev,
    /// No keyring.
    Enotdir,
    /// The text, the payload or a MAC is wrong.
    Einval,
    /// The keyring is full.
    Enfile,
    /// A keyring would lead to itself.
    Edeadlk,
    /// The kernel has no key service.
    Enosys,
    /// An algorithm that the kernel does not have.
    Enopkg,
    /// Bytes that cannot be read, or a signature that does not verify.
    Ebadmsg,
    /// Not for this type of key.
    Eopnotsupp,
    /// The quota is full.
    Edquot,
    /// No such key, no master key, no key that has signed this one.
    Enokey,
    /// The key has expired.
    Ekeyexpired,
    /// The key was revoked.
    Ekeyrevoked,
    /// The key is on a block list, or a signature does not verify.
    Ekeyrejected,
}

impl Errno {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::E2big,
        Self::Eperm,
        Self::Enoent,
        Self::Eacces,
        Self::Eexist,
        Self::Enodev,
        Self::Enotdir,
        Self::Einval,
        Self::Enfile,
        Self::Edeadlk,
        Self::Enosys,
        Self::Enopkg,
        Self::Ebadmsg,
        Self::Eopnotsupp,
        Self::Edquot,
        Self::Enokey,
        Self::Ekeyexpired,
        Self::Ekeyrevoked,
        Self::Ekeyrejected,
    ];

    /// The number's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::E2big => "E2BIG",
            Self::Eperm => "EPERM",
            Self::Enoent => "ENOENT",
            Self::Eacces => "EACCES",
            Self::Eexist => "EEXIST",
            Self::Enodev => "ENODEV",
            Self::Enotdir => "ENOTDIR",
            Self::Einval => "EINVAL",
            Self::Enfile => "ENFILE",
            Self::Edeadlk => "EDEADLK",
            Self::Enosys => "ENOSYS",
            Self::Enopkg => "ENOPKG",
            Self::Ebadmsg => "EBADMSG",
            Self::Eopnotsupp => "EOPNOTSUPP",
            Self::Edquot => "EDQUOT",
            Self::Enokey => "ENOKEY",
            Self::Ekeyexpired => "EKEYEXPIRED",
            Self::Ekeyrevoked => "EKEYREVOKED",
            Self::Ekeyrejected => "EKEYREJECTED",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key's number; positive for a key, -1 to -8 for the keyrings that every process can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeySerial(pub i32);

impl fmt::Display for KeySerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who may do what with a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyPermissions(pub u32);

/// What a subject may do with a key, a bit in each of the four groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum KeyPermission {
    /// See that it is there, its type, description and owner.
    View = 0x01,
    /// Read its payload, or a keyring's keys.
    Read = 0x02,
    /// Change its payload, or a keyring's keys.
    Write = 0x04,
    /// Be found by a search, or a keyring be searched.
    Search = 0x08,
    /// Be linked into a keyring.
    Link = 0x10,
    /// Change owner and permissions.
    SetAttributes = 0x20,
}

/// The groups of permissions, by the bit that each begins at.
const GROUPS: [u32; 4] = [24, 16, 8, 0];
/// The bits of a group and their letters, the highest first.
const LETTERS: [(KeyPermission, char); 6] = [
    (KeyPermission::SetAttributes, 'a'),
    (KeyPermission::Link, 'l'),
    (KeyPermission::Search, 's'),
    (KeyPermission::Write, 'w'),
    (KeyPermission::Read, 'r'),
    (KeyPermission::View, 'v'),
];
/// Every bit that means something.
const ALL_PERMISSIONS: u32 = 0x3f3f_3f3f;

impl KeyPermissions {
    /// Whether the user who owns the key may do this with it, possessing it or not.
    pub const fn owner_may(self, permission: KeyPermission) -> bool {
        self.0 >> 16 & permission as u32 != 0
    }

    /// Whether a possessor may do this with it.
    pub const fn possessor_may(self, permission: KeyPermission) -> bool {
        self.0 >> 24 & permission as u32 != 0
    }
}

impl fmt::Display for KeyPermissions {
    /// `alswrv-----v------------`, as keyctl prints them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in GROUPS {
            for (permission, letter) in LETTERS {
                let set = self.0.checked_shr(group).unwrap_or(0) & permission as u32 != 0;
                write!(f, "{}", if set { letter } else { '-' })?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KeyPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no set of permissions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no set of permissions: a number as 0x3f010000 or 24 letters as alswrv-----v------------ is needed \
     (possessor, user, group, others; set attributes, link, search, write, read, view)"
)]
pub struct PermissionsError(pub String);

impl FromStr for KeyPermissions {
    type Err = PermissionsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PermissionsError(text.chars().take(40).collect());
        if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            let signed = digits.starts_with(['+', '-']);
            let bits = u32::from_str_radix(digits, 16).map_err(|_| error())?;
            return if signed || bits & !ALL_PERMISSIONS != 0 { Err(error()) } else { Ok(Self(bits)) };
        }
        // As C has numbers: octal after a zero.
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let base = if text.starts_with('0') { 8 } else { 10 };
            let bits = u32::from_str_radix(text, base).map_err(|_| error())?;
            return if bits & !ALL_PERMISSIONS != 0 { Err(error()) } else { Ok(Self(bits)) };
        }
        let mut letters = text.chars();
        let mut bits = 0;
        for group in GROUPS {
            for (permission, letter) in LETTERS {
                match letters.next() {
                    Some('-') => {}
                    Some(found) if found == letter => {
                        bits |= (permission as u32).checked_shl(group).unwrap_or(0);
                    }
                    Some(_) | None => return Err(error()),
                }
            }
        }
        if letters.next().is_some() { Err(error()) } else { Ok(Self(bits)) }
    }
}

/// What `KEYCTL_DESCRIBE` tells of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// The type's name: `keyring`, `user`, `encrypted`, `asymmetric` …
    pub kind: String,
    /// The user that owns it.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Who may do what with it.
    pub permissions: KeyPermissions,
    /// The description: any bytes but NUL.
    pub description: Vec<u8>,
}

/// Text of the key service that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's description of a key lacks its {0}")]
pub struct KeyTextError(&'static str);

impl KeyDescription {
    /// Reads the kernel's text, with or without the NUL that ends it.
    ///
    /// # Errors
    /// [`KeyTextError`] with the part that cannot be read.
    pub fn parse(text: &[u8]) -> Result<Self, KeyTextError> {
        let mut fields = text.strip_suffix(b"\0").unwrap_or(text).splitn(5, |byte| *byte == b';');
        let mut next = |what| fields.next().ok_or(KeyTextError(what));
        let kind = String::from_utf8_lossy(next("type")?).into_owned();
        let uid = id(next("user")?).ok_or(KeyTextError("user"))?;
        let gid = id(next("group")?).ok_or(KeyTextError("group"))?;
        let permissions = hexadecimal(next("permissions")?).ok_or(KeyTextError("permissions"))?;
        let description = next("description")?.to_vec();
        Ok(Self { kind, uid, gid, permissions: KeyPermissions(permissions), description })
    }
}

/// A line of `/proc/keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLine {
    /// The serial number.
    pub serial: KeySerial,
    /// The flags, as they stand there.
    pub flags: String,
    /// References to it.
    pub usage: u32,
    /// The time left, as it stands there.
    pub timeout: String,
    /// Who may do what with it.
    pub permissions: KeyPermissions,
    /// The user that owns it.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The type's name, cut to 9 characters.
    pub kind: String,
    /// The description and what the type tells of the key.
    pub text: Vec<u8>,
}

impl KeyLine {
    /// Reads a line.
    ///
    /// # Errors
    /// [`KeyTextError`] with the part that cannot be read.
    pub fn parse(line: &[u8]) -> Result<Self, KeyTextError> {
        let mut rest = line;
        let mut next = |what| {
            let text = rest.trim_ascii_start();
            let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
            let (word, after) = text.split_at_checked(end).ok_or(KeyTextError(what))?;
            rest = after;
            if word.is_empty() { Err(KeyTextError(what)) } else { Ok(word) }
        };
        let text = |word| String::from_utf8_lossy(word).into_owned();
        let serial = hexadecimal(next("serial number")?).and_then(|serial| i32::try_from(serial).ok());
        let serial = KeySerial(serial.ok_or(KeyTextError("serial number"))?);
        let flags = text(next("flags")?);
        let usage = id(next("references")?).ok_or(KeyTextError("references"))?;
        let timeout = text(next("time left")?);
        let permissions = hexadecimal(next("permissions")?).ok_or(KeyTextError("permissions"))?;
        let uid = id(next("user")?).ok_or(KeyTextError("user"))?;
        let gid = id(next("group")?).ok_or(KeyTextError("group"))?;
        // The type is padded to nine characters, and a blank follows. A description may begin with blanks of its own.
        let rest = rest.strip_prefix(b" ").ok_or(KeyTextError("type"))?;
        let (kind, description) = rest.split_at_checked(9).ok_or(KeyTextError("type"))?;
        let description = description.strip_prefix(b" ").ok_or(KeyTextError("description"))?;
        Ok(Self {
            serial,
            flags,
            usage,
            timeout,
            permissions: KeyPermissions(permissions),
            uid,
            gid,
            kind: text(kind.trim_ascii_end()),
            text: description.to_vec(),
        })
    }

    /// What the type tells of the key behind its `description`: a keyring's count of keys, a certificate's algorithm and
    /// the end of its id. None where the line is of a key of another description.
    pub fn told_by_type(&self, description: &[u8]) -> Option<&[u8]> {
        self.text.strip_prefix(description)?.strip_prefix(b": ")
    }

    /// Whether the key is there and can be used: neither revoked, dead, negative, invalidated nor still being made.
    pub fn is_usable(&self) -> bool {
        self.flags.starts_with('I') && !self.flags.contains(['R', 'D', 'U', 'N', 'i'])
    }
}

/// A user or group: decimal, and negative where it has no place in this user namespace.
fn id(word: &[u8]) -> Option<u32> {
    let number: i64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    u32::try_from(number).ok().or_else(|| Some(i32::try_from(number).ok()?.cast_unsigned()))
}

fn hexadecimal(word: &[u8]) -> Option<u32> {
    if word.starts_with(b"+") {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn permissions_read_as_they_print() {
        for (bits, text) in [
            (0x3f01_0000, "alswrv-----v------------"),
            (0x1f0b_0000, "-lswrv--s-rv------------"),
            (0, "------------------------"),
            (0x3f3f_3f3f, "alswrvalswrvalswrvalswrv"),
        ] {
            assert_eq!(KeyPermissions(bits).to_string(), text);
            assert_eq!(text.parse(), Ok(KeyPermissions(bits)));
            assert_eq!(format!("{bits:#010x}").parse(), Ok(KeyPermissions(bits)));
            assert_eq!(bits.to_string().parse(), Ok(KeyPermissions(bits)));
            assert_eq!(format!("0{bits:o}").parse(), Ok(KeyPermissions(bits)));
        }
        let may = KeyPermissions(0x1f0b_0000);
        assert!(may.owner_may(KeyPermission::Search) && !may.owner_may(KeyPermission::Write));
        assert!(may.possessor_may(KeyPermission::Link) && !may.possessor_may(KeyPermission::SetAttributes));
        for wrong in [
            "",
            "3f010000",
            "08",
            "4294967296",
            "1073741824",
            "-1",
            "0x",
            "0x+1",
            "0x40000000",
            "0x123456789",
            "alswrv",
            "vrwsla------------------",
            "ü",
        ] {
            assert_eq!(wrong.parse::<KeyPermissions>(), Err(PermissionsError(wrong.into())), "{wrong}");
        }
        let long = "alswrv-----v-------------";
        assert!(long.parse::<KeyPermissions>().is_err());
    }

    #[test]
    fn what_the_type_tells_is_behind_the_description() {
        let line = b"0a807686 I--Q---     1 perm 39010000     0     0 asymmetri O: CN: 17b2: X509.rsa 17b23e51 []";
        let line = KeyLine::parse(line).unwrap();
        assert_eq!(line.told_by_type(b"O: CN: 17b2"), Some(&b"X509.rsa 17b23e51 []"[..]));
        for other in [&b"O: CN: 17b"[..], b"P: CN: 17b2", b"O: CN: 17b2: X509.rsa 17b23e51 []"] {
            assert_eq!(line.told_by_type(other), None);
        }
    }

    #[test]
    fn what_the_kernel_tells_of_a_key_is_read() {
        let text = b"keyring;0;-1;1f0f0000;.ima;x\0";
        let expected = KeyDescription {
            kind: "keyring".into(),
            uid: 0,
            gid: u32::MAX,
            permissions: KeyPermissions(0x1f0f_0000),
            description: b".ima;x".to_vec(),
        };
        assert_eq!(KeyDescription::parse(text), Ok(expected));
        for (text, missing) in [
            (&b""[..], "user"),
            (b"user;0", "group"),
            (b"user;0;x;3f010000;a", "group"),
            (b"user;0;0;3f01000g;a", "permissions"),
            (b"user;0;0;3f010000", "description"),
        ] {
            assert_eq!(KeyDescription::parse(text), Err(KeyTextError(missing)));
        }
    }

    #[test]
    fn every_line_of_a_kernels_proc_keys_is_read() {
        let lines = include_str!("../../../tests/vectors/encrypted_key/linux-6.1/proc-keys");
        for line in lines.lines() {
            let line = line.replacen("ID", "0098f1a2", 1);
            let read = KeyLine::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
            let text = String::from_utf8_lossy(&read.text).into_owned();
            assert!(line.ends_with(&format!("{:<9} {text}", read.kind)), "{line}");
        }
    }

    #[test]
    fn lines_of_proc_keys_are_read_to_the_description() {
        let line = b"098f1a2c I--Q---     2 perm 1f3f0000     0 65534 keyring   _uid.0: 45";
        let read = KeyLine::parse(line).unwrap();
        assert_eq!((read.serial, read.usage, read.gid), (KeySerial(0x098f_1a2c), 2, 65534));
        assert_eq!((read.kind.as_str(), read.text.as_slice()), ("keyring", &b"_uid.0: 45"[..]));
        assert!(read.is_usable());
        // A description may begin with blanks and have any in it.
        let line = b"098f1a2c IR-Q---    12  59s 3f010000     0     0 asymmetri   a  b: X509.rsa 0f44e507 []";
        let read = KeyLine::parse(line).unwrap();
        assert_eq!((read.kind.as_str(), read.timeout.as_str()), ("asymmetri", "59s"));
        assert_eq!(read.text, b"  a  b: X509.rsa 0f44e507 []");
        assert!(!read.is_usable());
        for (line, missing) in [
            (&b""[..], "serial number"),
            (b"xyz I------ 1 perm 1f0b0000 0 0 keyring   a: empty", "serial number"),
            (b"098f1a2c I------ 1 perm 1f0b0000 0", "group"),
            (b"098f1a2c I------ 1 perm 1f0b0000 0 0 keyring", "type"),
        ] {
            assert_eq!(KeyLine::parse(line), Err(KeyTextError(missing)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, letters in "[0-9a-fIQ -;]{0,80}") {
            let _ = (KeyDescription::parse(&bytes), KeyLine::parse(&bytes));
            let _ = (KeyDescription::parse(letters.as_bytes()), KeyLine::parse(letters.as_bytes()));
            let _ = letters.parse::<KeyPermissions>();
        }
    }
}
