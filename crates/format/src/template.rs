//! Templates: which fields a measurement list entry has, and how each field is stored and shown.
//!
//! | field | stored bytes | in the ascii list |
//! |---|---|---|
//! | `d` | digest: 20 bytes (SHA-1) or 16 (MD5) | hexadecimal |
//! | `d-ng`, `d-modsig` | `ALG:`, NUL, digest | `ALG:` and hexadecimal |
//! | `d-ngv2` | `TYPE:ALG:`, NUL, digest; TYPE is `ima` or `verity` | `TYPE:ALG:` and hexadecimal |
//! | `n` | name, NUL; 255 bytes of name at most | the name |
//! | `n-ng` | name, NUL; any length | the name |
//! | `sig`, `evmsig` | the whole label, its type byte included | hexadecimal |
//! | `modsig`, `buf` | as they are | hexadecimal |
//! | `iuid`, `igid` | 4-byte number | decimal |
//! | `imode` | 2-byte number | decimal |
//! | `xattrnames` | names joined by `\|`, NUL | the names |
//! | `xattrlengths` | a 4-byte number for each | hexadecimal |
//! | `xattrvalues` | values, one after the other | hexadecimal |
//!
//! A field without a value is empty. Numbers are little-endian here; the list's own byte order is the business of
//! [`measurement_list`](crate::measurement_list). In names every space is stored as `_`.
//!
//! Source: security/integrity/ima/ima_template.c, ima_template_lib.c.

use crate::hash::{Digest, HashAlgorithm, from_hex, to_hex};
use std::borrow::Cow;

/// A template: what an entry's fields are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The name; empty for a custom format, which lists then show in the name's place.
    pub name: Cow<'static, str>,
    /// The fields in order.
    pub fields: Cow<'static, [Field]>,
}

/// A field of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `d`: the file's digest, SHA-1 or MD5.
    D,
    /// `n`: the name, 255 bytes at most.
    N,
    /// `d-ng`: the digest with its algorithm's name.
    DNg,
    /// `n-ng`: the name.
    NNg,
    /// `sig`: the signature in `security.ima`.
    Sig,
    /// `buf`: the measured buffer.
    Buf,
    /// `d-ngv2`: the digest with its kind and its algorithm's name.
    DNgV2,
    /// `d-modsig`: the digest without the appended signature.
    DModsig,
    /// `modsig`: the appended signature.
    Modsig,
    /// `evmsig`: the portable signature in `security.evm`.
    Evmsig,
    /// `iuid`: the file's owner.
    Iuid,
    /// `igid`: the file's group.
    Igid,
    /// `imode`: the file's mode.
    Imode,
    /// `xattrnames`: names of the extended attributes that EVM protects.
    Xattrnames,
    /// `xattrlengths`: their lengths.
    Xattrlengths,
    /// `xattrvalues`: their values.
    Xattrvalues,
}

/// The name of the first entry of a boot, whose digest sums up what was measured before the kernel.
pub const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// The most fields that a template can have.
pub const MAX_FIELDS: usize = 15;

/// The longest name, in bytes and without its NUL, that the field `n` holds.
pub const MAX_LEGACY_NAME: usize = 255;

/// Text that names no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A name or field that the kernel does not have.
    #[error("template `{template}` is neither a template's name nor a format: unknown field `{field}`")]
    UnknownField {
        /// The whole text.
        template: String,
        /// The part that names no field.
        field: String,
    },
    /// More fields than a template can have.
    #[error("template `{template}` has {found} fields, {MAX_FIELDS} are the most")]
    TooManyFields {
        /// The whole text.
        template: String,
        /// Fields found.
        found: usize,
    },
}

use Field::{Buf, D, DModsig, DNg, DNgV2, Evmsig, Igid, Imode, Iuid, Modsig, N, NNg, Sig};
use Field::{Xattrlengths, Xattrnames, Xattrvalues};

const fn built_in(name: &'static str, fields: &'static [Field]) -> Template {
    Template { name: Cow::Borrowed(name), fields: Cow::Borrowed(fields) }
}

impl Template {
    /// The templates that every kernel has, in the kernel's order.
    pub const BUILT_IN: &'static [Self] = &[
        built_in("ima", &[D, N]),
        built_in("ima-ng", &[DNg, NNg]),
        built_in("ima-sig", &[DNg, NNg, Sig]),
        built_in("ima-ngv2", &[DNgV2, NNg]),
        built_in("ima-sigv2", &[DNgV2, NNg, Sig]),
        built_in("ima-buf", &[DNg, NNg, Buf]),
        built_in("ima-modsig", &[DNg, NNg, Sig, DModsig, Modsig]),
        built_in("evm-sig", &[DNg, NNg, Evmsig, Xattrnames, Xattrlengths, Xattrvalues, Iuid, Igid, Imode]),
    ];

    /// The template that a list entry names: a built-in by its name, or else a format of fields joined by `|`.
    ///
    /// A format is a template without a name, even where a built-in has the same fields: `d|n` is not laid out as
    /// `ima`.
    ///
    /// # Errors
    /// [`TemplateError`] when the text is neither.
    pub fn from_name_or_format(text: &str) -> Result<Self, TemplateError> {
        if let Some(template) = Self::BUILT_IN.iter().find(|template| template.name == text) {
            return Ok(template.clone());
        }
        let field = |id: &str| {
            Field::from_id(id)
                .ok_or_else(|| TemplateError::UnknownField { template: text.to_owned(), field: id.to_owned() })
        };
        let fields = text.split('|').map(field).collect::<Result<Vec<_>, _>>()?;
        if fields.len() > MAX_FIELDS {
            return Err(TemplateError::TooManyFields { template: text.to_owned(), found: fields.len() });
        }
        Ok(Self { name: Cow::Borrowed(""), fields: Cow::Owned(fields) })
    }

    /// The template that a policy rule or boot parameter names: a built-in by its name or by its format, as the kernel
    /// looks it up.
    pub fn built_in(name_or_format: &str) -> Option<&'static Self> {
        Self::BUILT_IN.iter().find(|template| template.name == name_or_format || template.format() == name_or_format)
    }

    /// The format: field names joined by `|`.
    pub fn format(&self) -> String {
        self.fields.iter().map(|field| field.id()).collect::<Vec<_>>().join("|")
    }

    /// What a list shows: the name, or the format of a template without one.
    pub fn listed_name(&self) -> Cow<'_, str> {
        if self.name.is_empty() { Cow::Owned(self.format()) } else { Cow::Borrowed(&self.name) }
    }

    /// Whether it is `ima`, the one template that lists and hashes differently from all others.
    pub fn is_legacy(&self) -> bool {
        self.name == "ima"
    }
}

macro_rules! fields {
    ($($variant:ident = $id:literal,)*) => {
        impl Field {
            /// Every field.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in formats.
            pub const fn id(self) -> &'static str { match self { $(Self::$variant => $id,)* } }

            /// The field of that name.
            pub fn from_id(id: &str) -> Option<Self> { match id { $($id => Some(Self::$variant),)* _ => None } }
        }
    };
}

fields! {
    D = "d",
    N = "n",
    DNg = "d-ng",
    NNg = "n-ng",
    Sig = "sig",
    Buf = "buf",
    DNgV2 = "d-ngv2",
    DModsig = "d-modsig",
    Modsig = "modsig",
    Evmsig = "evmsig",
    Iuid = "iuid",
    Igid = "igid",
    Imode = "imode",
    Xattrnames = "xattrnames",
    Xattrlengths = "xattrlengths",
    Xattrvalues = "xattrvalues",
}

/// How a field is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Digest,
    Text,
    Hex,
    Number,
}

impl Field {
    const fn form(self) -> Form {
        match self {
            DNg | DNgV2 | DModsig => Form::Digest,
            N | NNg | Xattrnames => Form::Text,
            D | Sig | Buf | Modsig | Evmsig | Xattrlengths | Xattrvalues => Form::Hex,
            Iuid | Igid | Imode => Form::Number,
        }
    }

    /// Whether it is the entry's name, the one kind of field whose text may hold anything but a space.
    pub const fn is_name(self) -> bool {
        matches!(self, N | NNg)
    }

    /// Whether it tells of the file's attributes, and not of its content, name or signatures.
    pub const fn is_attribute(self) -> bool {
        matches!(self, Iuid | Igid | Imode | Xattrnames | Xattrlengths | Xattrvalues)
    }

    /// The size in bytes of the numbers that it consists of, where it consists of numbers: these follow the list's byte
    /// order.
    pub(crate) const fn number_size(self) -> Option<usize> {
        match self {
            Iuid | Igid | Xattrlengths => Some(4),
            Imode => Some(2),
            D | N | DNg | NNg | Sig | Buf | DNgV2 | DModsig | Modsig | Evmsig | Xattrnames | Xattrvalues => None,
        }
    }

    /// Appends the text that the ascii list has for the field's stored bytes.
    pub fn write_ascii(self, stored: &[u8], out: &mut Vec<u8>) {
        match self.form() {
            Form::Text => out.extend_from_slice(until_nul(stored)),
            Form::Hex => write_hex(stored, out),
            Form::Digest => match split_digest(stored) {
                Some((prefix, digest)) => {
                    // A lone `:` stands for a digest without an algorithm, and the kernel leaves it out.
                    if prefix != b":" {
                        out.extend_from_slice(prefix);
                    }
                    write_hex(digest, out);
                }
                None => write_hex(stored, out),
            },
            Form::Number => match stored.len() {
                0 => {}
                1 | 2 | 4 | 8 => {
                    let number = stored.iter().rev().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
                    out.extend_from_slice(number.to_string().as_bytes());
                }
                _ => write_hex(stored, out),
            },
        }
    }

    /// The stored bytes for the text that the ascii list has, or `None` when the text is not of the field's form.
    pub fn read_ascii(self, text: &[u8]) -> Option<Vec<u8>> {
        let hex = |text: &[u8]| from_hex(std::str::from_utf8(text).ok()?).ok();
        match self.form() {
            Form::Text if text.is_empty() && !self.is_name() => Some(Vec::new()),
            Form::Text => Some([text, &[0]].concat()),
            Form::Hex => hex(text),
            Form::Digest if text.is_empty() => Some(Vec::new()),
            Form::Digest => {
                let colon = text.iter().rposition(|byte| *byte == b':')?;
                let (prefix, digest) = text.split_at_checked(colon.checked_add(1)?)?;
                Some([prefix, &[0], &hex(digest)?].concat())
            }
            Form::Number if text.is_empty() => Some(Vec::new()),
            Form::Number => {
                let number: u32 = std::str::from_utf8(text).ok()?.parse().ok()?;
                match self {
                    Imode => Some(u16::try_from(number).ok()?.to_le_bytes().to_vec()),
                    _ => Some(number.to_le_bytes().to_vec()),
                }
            }
        }
    }

    /// The digest in the stored bytes of a digest field; `None` for other fields and for bytes that hold none.
    pub fn digest(self, stored: &[u8]) -> Option<Digest> {
        match self {
            D => match stored.len() {
                20 => Digest::new(HashAlgorithm::Sha1, stored).ok(),
                16 => Digest::new(HashAlgorithm::Md5, stored).ok(),
                _ => None,
            },
            DNg | DModsig | DNgV2 => {
                let (prefix, digest) = split_digest(stored)?;
                let mut names = prefix.strip_suffix(b":")?.split(|byte| *byte == b':');
                if self == DNgV2 {
                    names.next().filter(|kind| matches!(*kind, b"ima" | b"verity"))?;
                }
                let algorithm = HashAlgorithm::from_name(std::str::from_utf8(names.next()?).ok()?)?;
                if names.next().is_some() {
                    return None;
                }
                Digest::new(algorithm, digest).ok()
            }
            N | NNg | Sig | Buf | Modsig | Evmsig | Iuid | Igid | Imode | Xattrnames | Xattrlengths | Xattrvalues => {
                None
            }
        }
    }
}

/// The stored bytes of `d`: the bare digest, which the kernel has as SHA-1 or MD5 only.
pub fn encode_d(digest: &Digest) -> Vec<u8> {
    digest.as_bytes().to_vec()
}

/// The stored bytes of `n`: a name longer than 255 bytes gives its last component instead, cut to 255 bytes.
pub fn encode_n(path: &[u8]) -> Vec<u8> {
    let name =
        if path.len() > MAX_LEGACY_NAME { path.rsplit(|byte| *byte == b'/').next().unwrap_or(path) } else { path };
    encode_n_ng(name.get(..MAX_LEGACY_NAME).unwrap_or(name))
}

/// The stored bytes of `d-ng`.
pub fn encode_d_ng(digest: &Digest) -> Vec<u8> {
    [digest.algorithm().name().as_bytes(), b":\0", digest.as_bytes()].concat()
}

/// The stored bytes of `d-ngv2`; `verity` for a file digest made by fs-verity.
pub fn encode_d_ngv2(digest: &Digest, verity: bool) -> Vec<u8> {
    [if verity { b"verity:".as_slice() } else { b"ima:" }, &encode_d_ng(digest)].concat()
}

/// The stored bytes of `n-ng`: spaces become `_`, so that the ascii list can be split.
pub fn encode_n_ng(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b' ' { b'_' } else { *byte }).chain([0]).collect()
}

/// The stored bytes of `sig`: the whole `security.ima` if it is a signature (type 3 or 6), else nothing.
///
/// Where the file has a portable `security.evm` (see [`encode_evmsig`]) the kernel puts that in the empty place.
pub fn encode_sig(label: &[u8]) -> Vec<u8> {
    label_of_type(label, &[3, 6])
}

/// The stored bytes of `evmsig`: the whole `security.evm` if it is a portable signature (type 5), else nothing.
pub fn encode_evmsig(label: &[u8]) -> Vec<u8> {
    label_of_type(label, &[5])
}

fn label_of_type(label: &[u8], types: &[u8]) -> Vec<u8> {
    match label.first() {
        Some(kind) if types.contains(kind) => label.to_vec(),
        _ => Vec::new(),
    }
}

/// Bytes up to the first NUL.
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

/// `ALG:` or `TYPE:ALG:`, and the digest after the NUL.
fn split_digest(stored: &[u8]) -> Option<(&[u8], &[u8])> {
    let prefix = until_nul(stored);
    let digest = stored.strip_prefix(prefix)?.strip_prefix(&[0])?;
    prefix.ends_with(b":").then_some((prefix, digest))
}

fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(to_hex(bytes).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn templates_are_found_by_name_and_formats_read() {
        for template in Template::BUILT_IN {
            assert_eq!(Template::from_name_or_format(&template.name).as_ref(), Ok(template));
            assert_eq!(Template::built_in(&template.format()), Some(template));
            let custom = Template::from_name_or_format(&template.format()).unwrap();
            assert_eq!((custom.name.as_ref(), &custom.fields), ("", &template.fields));
            assert_eq!(custom.listed_name(), template.format());
        }
        assert!(!Template::from_name_or_format("d|n").unwrap().is_legacy());
        let error = Template::from_name_or_format("d-ng|nothing").unwrap_err();
        assert_eq!(
            error.to_string(),
            "template `d-ng|nothing` is neither a template's name nor a format: unknown field `nothing`"
        );
        assert!(matches!(
            Template::from_name_or_format(&["n"; 16].join("|")),
            Err(TemplateError::TooManyFields { found: 16, .. })
        ));
        assert!(Template::from_name_or_format("").is_err());
    }

    #[test]
    fn names_are_stored_as_the_kernel_stores_them() {
        let long = [b"/a/".as_slice(), &[b'x'; 300]].concat();
        for (name, path, n, n_ng) in [
            ("plain", b"/bin/ls".to_vec(), b"/bin/ls\0".to_vec(), b"/bin/ls\0".to_vec()),
            ("space and newline", b"/a b\nc".to_vec(), b"/a_b\nc\0".to_vec(), b"/a_b\nc\0".to_vec()),
            (
                "last component of a long path",
                [&[b'/'; 300], b"end".as_slice()].concat(),
                b"end\0".to_vec(),
                [&[b'/'; 300], b"end\0".as_slice()].concat(),
            ),
            (
                "long last component",
                long.clone(),
                [&[b'x'; 255], b"\0".as_slice()].concat(),
                [&long, b"\0".as_slice()].concat(),
            ),
        ] {
            assert_eq!(encode_n(&path), n, "{name}");
            assert_eq!(encode_n_ng(&path), n_ng, "{name}");
        }
    }

    #[test]
    fn only_signatures_are_listed() {
        for (label, sig, evmsig) in [
            (&[3, 2, 4][..], &[3, 2, 4][..], &[][..]),
            (&[6, 3], &[6, 3], &[]),
            (&[4, 4], &[], &[]),
            (&[5, 2], &[], &[5, 2]),
            (&[], &[], &[]),
        ] {
            assert_eq!(encode_sig(label), sig);
            assert_eq!(encode_evmsig(label), evmsig);
        }
    }

    #[test]
    fn digest_fields_are_shown_and_read_back() {
        let digest = Digest::ones(HashAlgorithm::Sha1);
        let hex = "ff".repeat(20);
        for (field, stored, text) in [
            (D, encode_d(&digest), hex.clone()),
            (DNg, encode_d_ng(&digest), format!("sha1:{hex}")),
            (DNgV2, encode_d_ngv2(&digest, false), format!("ima:sha1:{hex}")),
            (DNgV2, encode_d_ngv2(&digest, true), format!("verity:sha1:{hex}")),
        ] {
            let mut shown = Vec::new();
            field.write_ascii(&stored, &mut shown);
            assert_eq!(shown, text.as_bytes());
            assert_eq!(field.read_ascii(&shown), Some(stored.clone()));
            assert_eq!(field.digest(&stored), Some(digest));
        }
        for (field, stored) in [
            (DNg, &b"sha1:\0short"[..]),
            (DNg, b"sha1\0"),
            (DNg, b""),
            (DNgV2, b"sha1:\0"),
            (D, &[0; 19]),
            (NNg, b"a\0"),
        ] {
            assert_eq!(field.digest(stored), None, "{field:?} {stored:?}");
        }
    }

    #[test]
    fn numbers_are_shown_in_decimal() {
        let mut shown = Vec::new();
        Imode.write_ascii(&[0xed, 0x81], &mut shown);
        assert_eq!(shown, b"33261");
        assert_eq!(Imode.read_ascii(b"33261"), Some(vec![0xed, 0x81]));
        assert_eq!(Imode.read_ascii(b"65536"), None);
        assert_eq!(Iuid.read_ascii(b"-1"), None);
        assert_eq!(Iuid.read_ascii(b""), Some(vec![]));
    }

    proptest! {
        #[test]
        fn no_stored_bytes_and_no_text_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            for field in Field::ALL {
                assert_eq!(Field::from_id(field.id()), Some(*field));
                field.write_ascii(&bytes, &mut Vec::new());
                field.digest(&bytes);
                if let Some(stored) = field.read_ascii(&bytes) {
                    field.digest(&stored);
                }
            }
        }
    }
}
