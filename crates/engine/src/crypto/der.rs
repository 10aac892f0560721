//! As much of DER as telling a cut-off file from a foreign one takes; OpenSSL reads the rest.
//!
//! An element is a tag (1 byte), a length (1 byte below 128, or 0x80 + n and then n bytes, big-endian) and its contents.
//!
//! Source: ITU-T X.690, 8.1 and 10.1.

/// An element at the beginning of some bytes.
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    /// As much of its contents as there is.
    pub(super) contents: &'a [u8],
    /// The size of the whole element that its header states.
    pub(super) size: usize,
    /// What follows it.
    pub(super) rest: &'a [u8],
}

pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

impl<'a> Element<'a> {
    /// Reads the header; `None` for bytes that are none, e.g. with a length of more than four bytes.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match usize::from(*first) {
            short @ 0..=0x7f => (short, rest),
            // 0x80 alone would be BER's length without an end.
            long @ 0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(long - 0x80)?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let size = (bytes.len() - rest.len()).checked_add(length)?;
        let (contents, rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        Some(Self { tag: *tag, contents, size, rest })
    }
}

/// The size that a SEQUENCE at the beginning states, when that is more than there is.
pub(super) fn missing(bytes: &[u8]) -> Option<usize> {
    let element = Element::parse(bytes).filter(|element| element.tag == SEQUENCE)?;
    (element.size > bytes.len()).then_some(element.size)
}

/// What bytes are instead that do not begin as DER; `None` for those that do. Nothing of them is told, for they may be a key
/// in another form.
pub(super) fn instead(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("it is empty"),
        [SEQUENCE, ..] => None,
        [0x7f, b'E', b'L', b'F', ..] => Some("it is an ELF file"),
        _ if bytes.starts_with(b"ssh-") || bytes.starts_with(b"ecdsa-sha2-") => Some("it is an OpenSSH key"),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains(|letter: char| letter.is_control() && !letter.is_whitespace()) => {
                Some("it is text without a BEGIN line")
            }
            _ => Some("it does not begin with a SEQUENCE, as DER does"),
        },
    }
}

/// An element with these contents.
pub(super) fn element(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let length = contents.len().to_be_bytes();
    let mut bytes = vec![tag];
    match u8::try_from(contents.len()) {
        Ok(short @ 0..=0x7f) => bytes.push(short),
        _ => {
            let length = &length[contents.len().leading_zeros() as usize / 8..];
            // At most the eight bytes of a length.
            bytes.push(0x80 + length.len() as u8);
            bytes.extend_from_slice(length);
        }
    }
    bytes.extend_from_slice(&contents);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_cut_off_is_told_from_what_is_whole() {
        for (name, bytes, expected) in [
            ("whole", &[0x30, 2, 1, 1][..], None),
            ("followed", &[0x30, 1, 1, 1], None),
            ("cut", &[0x30, 3, 1, 1], Some(5)),
            ("cut, long", &[0x30, 0x82, 1, 0, 1], Some(260)),
            ("cut in its header", &[0x30, 0x82, 1], None),
            ("another tag", &[0x31, 3, 1, 1], None),
            ("endless", &[0x30, 0x88, 1, 1, 1, 1, 1, 1, 1, 1], None),
            ("nothing", &[], None),
        ] {
            assert_eq!(missing(bytes), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_element_is_read_back(tag in any::<u8>(), contents in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let bytes = element(tag, &[&contents, &[1]]);
            let read = Element::parse(&bytes).unwrap();
            prop_assert_eq!((read.tag, read.size, read.contents.len()), (tag, bytes.len(), contents.len() + 1));
            prop_assert!(read.contents.starts_with(&contents) && read.rest.is_empty());
        }

        #[test]
        fn any_bytes_are_an_element_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = Element::parse(&bytes);
        }
    }
}
