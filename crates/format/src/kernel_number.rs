//! Numbers as the kernel takes them from text: `kstrtoull` with base 0, and its relatives.
//!
//! A `+` may stand before it; `0x` before a hexadecimal digit makes it hexadecimal, a leading 0 octal; a line feed may
//! follow, and nothing else.
//!
//! Source: lib/kstrtox.c.

/// Text that is no number, or too large a one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KernelNumberError {
    /// No number (`EINVAL`).
    #[error("not a number as the kernel reads them: decimal, octal after 0, hexadecimal after 0x, and nothing else")]
    Invalid,
    /// A number that does not fit (`ERANGE`).
    #[error("a number that does not fit {0} bits")]
    Range(u32),
}

/// A number of 64 bits.
///
/// # Errors
/// [`KernelNumberError`].
pub fn parse_u64(text: &[u8]) -> Result<u64, KernelNumberError> {
    let text = std::str::from_utf8(text).map_err(|_| KernelNumberError::Invalid)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let (base, digits) = base(text.strip_prefix('+').unwrap_or(text));
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return Err(KernelNumberError::Invalid);
    }
    u64::from_str_radix(digits, base).map_err(|_| KernelNumberError::Range(64))
}

/// A number of 32 bits.
///
/// # Errors
/// [`KernelNumberError`].
pub fn parse_u32(text: &[u8]) -> Result<u32, KernelNumberError> {
    u32::try_from(parse_u64(text)?).map_err(|_| KernelNumberError::Range(32))
}

/// The digits' base and the digits, as C writes numbers.
pub(crate) fn base(text: &str) -> (u32, &str) {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    match hexadecimal.filter(|digits| digits.starts_with(|digit: char| digit.is_ascii_hexdigit())) {
        Some(digits) => (16, digits),
        None if text.starts_with('0') => (8, text),
        None => (10, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_reads_them() {
        use KernelNumberError::{Invalid, Range};
        for (text, expected) in [
            ("0", Ok(0)),
            ("+7\n", Ok(7)),
            ("010", Ok(8)),
            ("0X1f", Ok(31)),
            ("4294967295", Ok(u32::MAX)),
            ("4294967296", Err(Range(32))),
            ("18446744073709551616", Err(Range(64))),
            ("0x", Err(Invalid)),
            ("08", Err(Invalid)),
            ("-1", Err(Invalid)),
            ("++1", Err(Invalid)),
            (" 2", Err(Invalid)),
            ("2\n\n", Err(Invalid)),
            ("0x80000000junk", Err(Invalid)),
            ("", Err(Invalid)),
            ("\n", Err(Invalid)),
        ] {
            assert_eq!(parse_u32(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(parse_u32(&[0xff]), Err(Invalid));
    }
}
