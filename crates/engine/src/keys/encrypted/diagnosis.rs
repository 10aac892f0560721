//! Why a blob does not authenticate: another master key, or a damaged blob?
//!
//! A MAC alone does not tell the two apart. But a master key is the right one if the blob authenticates once one thing about
//! it is put back: one digit, the format, the key's length, the master key's type. It is the right one, too, if the MAC
//! comes out as the blob has it but for some digits, or if what decrypts ends in the zeros that fill the last block. What is
//! left may be either.

use super::{DerivedKeys, KeyMaterial};
use crate::crypto::KeyError;
use imara_format::hash::to_hex;
use imara_format::key_blob::encrypted::{Blob, KeyLength, MasterType, PayloadFormat};
use std::fmt;

/// What can be told of a blob that does not authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The master key is right; the blob was sealed with another format word, or with none.
    Format {
        /// The format that it was sealed with.
        sealed: Option<PayloadFormat>,
    },
    /// The master key is right; the key was sealed with another length, or the same in another spelling.
    Length {
        /// The length that it was sealed with.
        sealed: KeyLength,
    },
    /// The master key is right; the blob says another type of it.
    MasterType {
        /// The type that it was sealed with.
        sealed: MasterType,
    },
    /// The master key is right; one digit of the blob is another.
    Digit {
        /// The digit's offset in the last word.
        offset: usize,
    },
    /// The master key is right; most of the MAC is as it should be.
    Mac {
        /// How many of its 64 digits are wrong.
        wrong: usize,
    },
    /// The master key is right, and the blob is damaged somewhere: the key's padding comes out as it should.
    Somewhere,
    /// Another master key, or damage in more than one place; nothing tells which.
    Unknown,
}

impl Damage {
    /// Whether the master key is known to be the right one.
    pub fn master_is_right(&self) -> bool {
        *self != Self::Unknown
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format { sealed: Some(format) } => {
                write!(f, "the master key is right, but the text was changed: it was sealed with the format word {format}")
            }
            Self::Format { sealed: None } => f.write_str(
                "the master key is right, but the text was changed: it was sealed without a format word (before Linux 3.1)",
            ),
            Self::Length { sealed } => write!(
                f,
                "the master key is right, but the text was changed: it was sealed with the length {sealed}"
            ),
            Self::MasterType { sealed } => write!(
                f,
                "the master key is right, but the text was changed: it was sealed with a master key of type {}",
                sealed.name()
            ),
            Self::Digit { offset } => {
                write!(f, "the master key is right, but the digit at offset {offset} of the blob was changed")
            }
            Self::Mac { wrong } => write!(
                f,
                "the master key is right, but {wrong} digits of the MAC at the blob's end were changed"
            ),
            Self::Somewhere => f.write_str("the master key is right, but the blob is damaged in several places"),
            Self::Unknown => f.write_str("it is another key than the one it was sealed with, or the blob is damaged"),
        }
    }
}

/// What can be told of a blob that does not authenticate under `master`; none where it does.
///
/// # Errors
/// [`KeyError::Library`].
pub fn diagnose(blob: &Blob, master: &KeyMaterial) -> Result<Option<Damage>, KeyError> {
    let keys = DerivedKeys::new(master)?;
    Ok((!keys.authenticates(blob)).then(|| of(blob, &keys)))
}

pub(super) fn of(blob: &Blob, keys: &DerivedKeys) -> Damage {
    another_word(blob, keys)
        .or_else(|| most_of_the_mac(blob, keys))
        .or_else(|| one_digit(blob, keys))
        .or_else(|| padding(blob, keys))
        .unwrap_or(Damage::Unknown)
}

fn another_word(blob: &Blob, keys: &DerivedKeys) -> Option<Damage> {
    let formats = PayloadFormat::ALL.into_iter().map(Some).chain([None]);
    let with_format = formats.map(|sealed| (Damage::Format { sealed }, Blob { format: sealed, ..blob.clone() }));
    // Another length of the same number of blocks; a leading zero or a sign is a spelling that people use.
    let blocks = blob.length.sealed_bytes();
    let spelled = blob.length.bytes();
    let spellings = [format!("0{spelled}"), format!("+{spelled}"), format!("{spelled}\n")];
    let lengths = (blocks.saturating_sub(15)..=blocks).map(|bytes| bytes.to_string()).chain(spellings);
    let with_length = lengths.filter_map(|text| {
        let sealed = KeyLength::parse(text.as_bytes()).ok()?;
        Some((Damage::Length { sealed: sealed.clone() }, Blob { length: sealed, ..blob.clone() }))
    });
    let with_kind = MasterType::ALL
        .into_iter()
        .map(|sealed| (Damage::MasterType { sealed }, Blob { master: blob.master.with_kind(sealed), ..blob.clone() }));
    let mut tried = with_format.chain(with_length).chain(with_kind);
    tried.find(|(_, blob)| keys.authenticates(blob)).map(|(damage, _)| damage)
}

/// Of 64 digits by chance four agree; that half of them do so is out of the question.
fn most_of_the_mac(blob: &Blob, keys: &DerivedKeys) -> Option<Damage> {
    let (found, right) = (to_hex(&blob.mac), to_hex(&keys.mac(blob)));
    let wrong = found.bytes().zip(right.bytes()).filter(|(found, right)| found != right).count();
    (wrong <= 32).then_some(Damage::Mac { wrong })
}

fn one_digit(blob: &Blob, keys: &DerivedKeys) -> Option<Damage> {
    let mut tried = blob.clone();
    for offset in 0..blob.digits() - 2 * blob.mac.len() {
        let shift = if offset % 2 == 0 { 4 } else { 0 };
        for change in 1..16 {
            let Some(byte) = tried.byte_of_digit(offset) else { break };
            *byte ^= change << shift;
            if keys.authenticates(&tried) {
                return Some(Damage::Digit { offset });
            }
            if let Some(byte) = tried.byte_of_digit(offset) {
                *byte ^= change << shift;
            }
        }
    }
    None
}

/// Four zero bytes come out by chance once in four thousand million times.
fn padding(blob: &Blob, keys: &DerivedKeys) -> Option<Damage> {
    let padding = blob.length.sealed_bytes() - blob.length.bytes();
    if padding < 4 {
        return None;
    }
    let whole = KeyLength::new(blob.length.sealed_bytes()).ok()?;
    let padded = keys.decrypt(&Blob { length: whole, ..blob.clone() }).ok()?;
    let zeros = padded.as_bytes().iter().rev().take(padding).all(|byte| *byte == 0);
    zeros.then_some(Damage::Somewhere)
}
