//! What a quote proves: PCR values that a TPM has signed, with a nonce.
//!
//! | check | passes when |
//! |---|---|
//! | `signature` | it is the key's, over the message |
//! | `message` | it is a quote that a TPM made |
//! | `key` | the key signs nothing else: restricted, fixed to its TPM. A bare public key does not say |
//! | `nonce` | it is the one that was asked with |
//! | `pcr-values` | their hash, by the signature's algorithm, is what was signed |
//!
//! The hash is over all values, so it does not tell which one differs. Where other values of the same PCRs are at hand (what a
//! firmware's event log or a measurement list comes to), [`Examination::blame`] finds out by putting them in each other's place.
//!
//! Source: TCG TPM 2.0 Library, part 2, TPMS_ATTEST; part 3, `TPM2_Quote`.

use imara_engine::crypto::PublicKey;
use imara_engine::tpm::pcr_digest;
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::pcr::PcrValues;
use imara_format::tpm::{PcrSelection, PublicArea, QuoteAttestation, TpmSignature};
use serde::Serialize;

/// A quote, as somebody handed it over.
pub struct Evidence<'a> {
    /// What is signed.
    pub message: &'a [u8],
    /// The signature.
    pub signature: &'a TpmSignature,
    /// The key that it is said to be by.
    pub key: &'a PublicKey,
    /// The key's public area, where that is known: it says what the key may sign.
    pub area: Option<&'a PublicArea>,
    /// The nonce that was asked with.
    pub nonce: Option<&'a [u8]>,
    /// The values that are said to be quoted.
    pub values: Option<&'a PcrValues>,
}

/// One of the checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, as in the table above.
    pub check: &'static str,
    /// What came out.
    pub result: CheckResult,
    /// In words.
    pub detail: String,
}

/// What came out of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckResult {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// What it needs was not given.
    NotChecked,
}

/// A quote that was examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    /// The checks, in order.
    pub checks: Vec<Check>,
    /// The quote; none where the message is no quote.
    pub quote: Option<QuoteAttestation>,
    hash: HashAlgorithm,
    values: Option<PcrValues>,
}

/// A value that is not the one that was quoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blamed {
    /// The bank.
    pub bank: String,
    /// The PCR.
    pub pcr: u32,
    /// The value that is said to be quoted.
    pub given: String,
    /// The value with which the quote is met.
    pub quoted: String,
}

impl Examination {
    /// Examines a quote.
    pub fn new(evidence: &Evidence<'_>) -> Self {
        let mut checks = Vec::new();
        let mut check = |check, result: Result<String, String>| {
            let (result, detail) = match result {
                Ok(detail) => (CheckResult::Passed, detail),
                Err(detail) => (CheckResult::Failed, detail),
            };
            checks.push(Check { check, result, detail });
        };
        let hash = evidence.signature.hash();
        let by = format!("by the key, {}, over {hash}", evidence.key.kind());
        let signature = evidence.key.verify_tpm(evidence.message, evidence.signature);
        check(
            "signature",
            signature
                .map(|()| by)
                .map_err(|error| format!("{error}: another key made it, or the message or the signature was changed")),
        );
        let quote = QuoteAttestation::parse(evidence.message);
        check(
            "message",
            quote.as_ref().map(|quote| format!("a TPM's quote of {}", quote.selection)).map_err(ToString::to_string),
        );
        if let Some(area) = evidence.area {
            let attributes = area.attributes;
            check(
                "key",
                match area.is_attestation_key() {
                    true => Ok(format!("{area}, signs nothing but what its TPM made ({attributes})")),
                    false => Err(format!(
                        "{area} is no attestation key ({attributes}): restricted, sign and fixedTPM are needed, else anything \
                         can be signed with it"
                    )),
                },
            );
        }
        let quote = quote.ok();
        if let (Some(quote), Some(nonce)) = (&quote, evidence.nonce) {
            check(
                "nonce",
                match quote.nonce == nonce {
                    true => Ok(to_hex(nonce)),
                    false => Err(format!(
                        "the quote has {}, {} was asked with: an old quote, or another's",
                        shown(&quote.nonce),
                        shown(nonce)
                    )),
                },
            );
        }
        if let (Some(quote), Some(values)) = (&quote, evidence.values) {
            check("pcr-values", values_match(quote, values, hash));
        }
        let mut missing = |check, present: bool, detail: &str| {
            if !present {
                checks.push(Check { check, result: CheckResult::NotChecked, detail: detail.to_owned() });
            }
        };
        missing("key", evidence.area.is_some(), "a bare public key does not say what else it may sign");
        missing("nonce", evidence.nonce.is_some(), "none was given: the quote may be an old one");
        missing("pcr-values", evidence.values.is_some(), "none were given: what is quoted is not known");
        // Values that were not quoted are nobody's word.
        let values = quote.as_ref().zip(evidence.values).map(|(quote, values)| selected(&quote.selection, values));
        Self { checks, quote, hash, values }
    }

    /// Whether a check failed.
    pub fn is_refused(&self) -> bool {
        self.checks.iter().any(|check| check.result == CheckResult::Failed)
    }

    /// Whether a check of this name passed.
    pub fn passed(&self, name: &str) -> bool {
        self.checks.iter().any(|check| check.check == name && check.result == CheckResult::Passed)
    }

    /// The values that were quoted, once that is sure: signed, and their hash met.
    pub fn proven_values(&self) -> Option<&PcrValues> {
        let sure = ["signature", "message", "pcr-values"].iter().all(|name| self.passed(name));
        self.values.as_ref().filter(|_| sure)
    }

    /// Whether these values are the quoted ones.
    pub fn is_met_by(&self, values: &PcrValues) -> bool {
        self.quote.as_ref().is_some_and(|quote| values_match(quote, values, self.hash).is_ok())
    }

    /// Which of the values given are not the quoted ones, found by trying `others` in their place: one value, or all. Empty when
    /// that explains nothing.
    pub fn blame(&self, others: &PcrValues) -> Vec<Blamed> {
        let (Some(quote), Some(values)) = (&self.quote, &self.values) else { return Vec::new() };
        if self.is_met_by(values) {
            return Vec::new();
        }
        let places = quote.selection.iter().filter_map(|(bank, pcr)| {
            let (given, other) = (values.value(bank?, pcr)?, others.value(bank?, pcr)?);
            (given != other).then_some((pcr, given, other))
        });
        let places: Vec<_> = places.collect();
        let with = |changes: &[(u32, _, _)]| {
            let mut tried = PcrValues::new();
            for (pcr, value) in values.iter() {
                let changed = changes.iter().find(|(other, given, _)| *other == pcr && *given == value);
                let value = changed.map_or(value, |(_, _, other)| *other);
                tried.insert(pcr, value).expect("each PCR of a bank once");
            }
            self.is_met_by(&tried)
        };
        let alone = places.iter().find(|place| with(&[**place]));
        let blamed = match alone {
            Some(place) => vec![*place],
            None if with(&places) => places,
            None => Vec::new(),
        };
        let blamed = blamed.into_iter().map(|(pcr, given, other)| Blamed {
            bank: given.algorithm().to_string(),
            pcr,
            given: given.to_hex(),
            quoted: other.to_hex(),
        });
        blamed.collect()
    }
}

fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() { "none".to_owned() } else { to_hex(bytes) }
}

fn values_match(quote: &QuoteAttestation, values: &PcrValues, hash: HashAlgorithm) -> Result<String, String> {
    let QuoteAttestation { selection, pcr_digest: quoted, .. } = quote;
    if selection.is_empty() {
        return Err("the quote is of no PCR at all".to_owned());
    }
    if let Some((bank, pcr)) =
        selection.iter().find(|(bank, pcr)| bank.is_none_or(|bank| values.value(bank, *pcr).is_none()))
    {
        let bank = bank.map_or_else(|| "a bank that is not known here".to_owned(), |bank| bank.to_string());
        return Err(format!("{bank} PCR {pcr} was quoted, and there is no value of it"));
    }
    match pcr_digest(selection, values, hash) {
        Some(digest) if digest.as_bytes() == quoted.as_slice() => Ok(format!("they are what was quoted, {selection}")),
        Some(digest) => Err(format!(
            "they are not what was quoted: their hash is {}, {} was signed",
            digest.to_hex(),
            to_hex(quoted)
        )),
        None => Err(format!("their hash by {hash} cannot be computed here")),
    }
}

/// The PCRs of a selection that values have, and no others.
fn selected(selection: &PcrSelection, values: &PcrValues) -> PcrValues {
    let mut found = PcrValues::new();
    for (bank, pcr) in selection.iter() {
        if let Some(value) = bank.and_then(|bank| values.value(bank, pcr)) {
            // The same PCR twice in a selection has the same value.
            let _ = found.insert(pcr, value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::Digest;

    macro_rules! vector {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/vectors/tpm/", $name)).as_slice()
        };
    }

    fn examine(change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>, &mut PcrValues)) -> Examination {
        let area = PublicArea::parse_sized(vector!("tpm2_tools/ak.tss")).unwrap();
        let key = PublicKey::from_public_area(&area).unwrap().unwrap();
        let mut message = vector!("tpm2_tools/quote.msg").to_vec();
        let mut nonce = vec![1, 2];
        let (_, mut values) = PcrValues::from_tpm2_tools(vector!("tpm2_tools/quote.pcrs")).unwrap();
        change(&mut message, &mut nonce, &mut values);
        let signature = TpmSignature::parse(vector!("tpm2_tools/quote.sig")).unwrap();
        Examination::new(&Evidence {
            message: &message,
            signature: &signature,
            key: &key,
            area: Some(&area),
            nonce: Some(&nonce),
            values: Some(&values),
        })
    }

    fn failed(examination: &Examination) -> Vec<&'static str> {
        let failed = examination.checks.iter().filter(|check| check.result == CheckResult::Failed);
        failed.map(|check| check.check).collect()
    }

    #[test]
    fn a_quote_of_tpm2_tools_is_proven() {
        let examination = examine(|_, _, _| {});
        assert_eq!(failed(&examination), Vec::<&str>::new(), "{examination:?}");
        assert!(examination.checks.iter().all(|check| check.result == CheckResult::Passed), "{examination:?}");
        assert_eq!(examination.proven_values().unwrap().iter().count(), 3);
    }

    #[test]
    fn whatever_is_changed_is_refused_by_its_check() {
        assert_eq!(failed(&examine(|_, nonce, _| nonce.push(3))), ["nonce"]);
        let change = |values: &mut PcrValues| {
            let mut other = PcrValues::new();
            for (pcr, value) in values.iter() {
                let value = if pcr == 10 { Digest::ones(value.algorithm()) } else { value };
                other.insert(pcr, value).unwrap();
            }
            *values = other;
        };
        let examination = examine(|_, _, values| change(values));
        assert_eq!(failed(&examination), ["pcr-values"]);
        assert_eq!(examination.proven_values(), None);
        for place in 0..vector!("tpm2_tools/quote.msg").len() {
            let examination = examine(|message, _, _| message[place] ^= 1);
            assert!(failed(&examination).contains(&"signature"), "{place}");
            assert_eq!(examination.proven_values(), None, "{place}");
        }
    }

    #[test]
    fn the_value_that_differs_is_found_by_what_a_log_comes_to() {
        let (_, quoted) = PcrValues::from_tpm2_tools(vector!("tpm2_tools/quote.pcrs")).unwrap();
        for changed in [vec![10], vec![0, 10], vec![0, 1, 10]] {
            let examination = examine(|_, _, values| {
                let mut other = PcrValues::new();
                for (pcr, value) in values.iter() {
                    let value = if changed.contains(&pcr) { Digest::ones(value.algorithm()) } else { value };
                    other.insert(pcr, value).unwrap();
                }
                *values = other;
            });
            let mut blamed: Vec<u32> = examination.blame(&quoted).iter().map(|blamed| blamed.pcr).collect();
            blamed.sort_unstable();
            assert_eq!(blamed, changed);
            assert_eq!(examination.blame(&PcrValues::new()), []);
        }
    }

    #[test]
    fn what_is_not_given_is_not_checked_and_said_so() {
        let key = PublicKey::from_bytes(vector!("tpm2_tools/ak.pem")).unwrap();
        let signature = TpmSignature::parse(vector!("tpm2_tools/quote.sig")).unwrap();
        let message = vector!("tpm2_tools/quote.msg");
        let evidence = Evidence { message, signature: &signature, key: &key, area: None, nonce: None, values: None };
        let examination = Examination::new(&evidence);
        let not_checked = examination.checks.iter().filter(|check| check.result == CheckResult::NotChecked);
        assert_eq!(not_checked.map(|check| check.check).collect::<Vec<_>>(), ["key", "nonce", "pcr-values"]);
        assert!(!examination.is_refused());
    }
}
