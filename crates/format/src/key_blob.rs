//! The texts that the kernel's `encrypted` and `trusted` key types take and give.
//!
//! A key of these types is made by a command (`new`, `load`, `update`, see [`encrypted::Command`]) that is handed to
//! add_key(2) or `keyctl update` as the payload; reading the key gives its blob, which `load` takes back.

pub use crate::key::Errno;

pub mod encrypted;
pub mod sealed_key;
pub mod sealed_record;
pub mod trusted;

/// Text that somebody gave, as an error shows it: escaped, and only its length where it is long enough to hold a key.
pub(crate) fn shown(text: &[u8]) -> String {
    if text.len() > LONGEST_SHOWN {
        return format!("a word of {} characters", text.len());
    }
    format!("`{}`", text.escape_ascii())
}

/// The shortest key has 20 bytes, which are 40 digits; what is shorter than a part of it that matters may be shown.
const LONGEST_SHOWN: usize = 24;

/// A whole number as `kstrtol` takes it with base 10: a sign, leading zeros and one newline at the end. What does not fit is
/// the nearest that does; nothing is returned for what is no number.
pub(crate) fn decimal(word: &[u8]) -> Option<i64> {
    let digits = word.strip_suffix(b"\n").unwrap_or(word);
    let negative = digits.first() == Some(&b'-');
    let digits = digits.strip_prefix(b"+").or_else(|| digits.strip_prefix(b"-")).unwrap_or(digits);
    let magnitude = digits_value(digits, 10)?;
    let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
    Some(if negative { magnitude.saturating_neg() } else { magnitude })
}

/// A number without a sign of its own as `kstrtoul` takes it: a `+`, for base 16 a `0x`, leading zeros and one newline at the
/// end. None also for what does not fit.
pub(crate) fn unsigned(word: &[u8], base: u32) -> Option<u64> {
    let digits = word.strip_suffix(b"\n").unwrap_or(word);
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let prefixed = digits.strip_prefix(b"0x").or_else(|| digits.strip_prefix(b"0X"));
    let digits = prefixed.filter(|_| base == 16).unwrap_or(digits);
    digits_value(digits, base).and_then(|value| u64::try_from(value).ok())
}

/// Nothing but digits; what has too many of them is as large as can be said.
fn digits_value(digits: &[u8], base: u32) -> Option<u128> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u128, |value, digit| {
        let digit = char::from(*digit).to_digit(base)?;
        Some(value.saturating_mul(base.into()).saturating_add(digit.into()))
    })
}

/// As many bytes as there are pairs of digits, of either case, as `hex2bin` reads them; an odd last digit counts for nothing.
///
/// The error is the offset of the first character that is no digit.
pub(crate) fn pairs_of_digits(text: &[u8]) -> Result<Vec<u8>, usize> {
    let pairs = text.chunks_exact(2);
    let whole = text.len().saturating_sub(pairs.remainder().len());
    if let Some(offset) = text.iter().take(whole).position(|byte| !byte.is_ascii_hexdigit()) {
        return Err(offset);
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    Ok(pairs.map(|pair| pair.iter().fold(0, |byte, text| byte << 4 | digit(text))).collect())
}
