//! UUIDs as text: 32 hexadecimal digits in groups of 8-4-4-4-12, the bytes in their order.

use std::fmt;
use std::str::FromStr;

/// A UUID; shown as its 36 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

/// Text that is no UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID: 8-4-4-4-12 hexadecimal digits with hyphens")]
pub struct UuidError;

impl Uuid {
    /// The UUID that the first 36 characters spell: what follows is not looked at, as in the kernel.
    pub fn starting(text: &str) -> Option<Self> {
        let (mut uuid, mut nibbles) = ([0; 16], 0usize);
        for index in 0..36 {
            let letter = char::from(*text.as_bytes().get(index)?);
            if matches!(index, 8 | 13 | 18 | 23) {
                if letter != '-' {
                    return None;
                }
                continue;
            }
            let digit = u8::try_from(letter.to_digit(16)?).ok()?;
            let byte = uuid.get_mut(nibbles.wrapping_shr(1))?;
            *byte = *byte << 4 | digit;
            nibbles = nibbles.saturating_add(1);
        }
        Some(Self(uuid))
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        Self::starting(text).filter(|_| text.len() == 36).ok_or(UuidError)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_and_shown() {
        let text = "6e1a2b3c-4d5e-4f60-8172-839405162738";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!(uuid.0[..5], [0x6e, 0x1a, 0x2b, 0x3c, 0x4d]);
        assert_eq!(uuid.to_string(), text);
        assert_eq!(Uuid::starting(&format!("{text} and more")), Some(uuid));
        for wrong in ["", "6e1a2b3c", "6e1a2b3c-4d5e-4f60-8172-8394051627381", "6e1a2b3c-4d5e-4f60-8172-83940516273g"] {
            assert_eq!(wrong.parse::<Uuid>(), Err(UuidError), "{wrong}");
        }
    }
}
