//! Spans of time as people write them: `90s`, `10m`, `1h`, `7d`.

use std::time::Duration;

/// Reads one: a whole number greater than 0 and its unit.
///
/// # Errors
/// What was found, and how one is written.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no span of time: a number and s, m, h or d is (90s, 10m, 1h, 7d)");
    let unit = text.chars().next_back().ok_or_else(bad)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(bad()),
    };
    let digits = &text[..text.len() - unit.len_utf8()];
    // parse() alone would take `+5`.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let total = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
    match total {
        Some(0) => Err(format!("`{text}` is no time at all")),
        Some(total) => Ok(Duration::from_secs(total)),
        None => Err(format!("`{text}` is longer than can be counted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_make_a_span_of_time() {
        for (text, seconds) in
            [("90s", 90), ("10m", 600), ("1h", 3600), ("7d", 604_800), ("007s", 7), ("18446744073709551615s", u64::MAX)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_how_one_is_written() {
        for (text, expected) in [
            ("", "(90s, 10m, 1h, 7d)"),
            ("10", "(90s, 10m, 1h, 7d)"),
            ("m", "(90s, 10m, 1h, 7d)"),
            ("-5m", "(90s, 10m, 1h, 7d)"),
            ("+5m", "(90s, 10m, 1h, 7d)"),
            ("1.5h", "(90s, 10m, 1h, 7d)"),
            ("5 m", "(90s, 10m, 1h, 7d)"),
            ("5ü", "(90s, 10m, 1h, 7d)"),
            ("0s", "no time at all"),
            ("18446744073709551615m", "longer than can be counted"),
            ("99999999999999999999s", "longer than can be counted"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected) && error.contains(text), "{error}");
        }
    }
}
