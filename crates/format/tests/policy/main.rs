//! Text that real kernels have judged, changed at random, and text that no policy has: it is read or refused with its
//! place, and what is read prints as the same. CI runs this in place of the fuzzer (`make fuzz`).

mod properties;

use imara_format::policy::{PolicyErrorKind, Target};
use properties::{check, targets};
use proptest::prelude::*;

/// The lines that kernels were given.
fn corpus() -> Vec<&'static str> {
    let tables = [
        include_str!("../../../../tests/vectors/policy/lines-apparmor/result.tsv"),
        include_str!("../../../../tests/vectors/policy/lines-linux-6.12/result.tsv"),
    ];
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.map(|row| row.splitn(3, '\t').nth(2).expect("verdict, error number, line")).collect()
}

#[test]
fn the_corpus_is_read_or_refused_with_its_place() {
    let lines = corpus();
    assert_eq!(lines.len(), 406);
    let all = lines.join("\n");
    for target in targets() {
        assert!(check(all.as_bytes(), &target).is_err());
        let taken = lines.iter().filter(|line| check(line.as_bytes(), &target).is_ok()).count();
        assert!((100..lines.len()).contains(&taken), "{taken} lines taken");
    }
}

#[test]
fn hostile_lines_are_refused_with_their_place() {
    const LENGTH: usize = 10 << 20;
    let long = |unit: &[u8]| unit.iter().copied().cycle().take(LENGTH).collect::<Vec<_>>();
    let refused = |text: &[u8]| {
        for target in targets() {
            check(text, &target).expect_err("refused");
        }
        check(text, &Target::guard()).unwrap_err().remove(0)
    };
    for (name, line, place) in [
        ("a byte 0", b"measure\0".to_vec(), (8, 1)),
        ("a byte 0 in a comment", b"# \0".to_vec(), (3, 1)),
        ("not UTF-8", b"measure fsname=a\xff".to_vec(), (17, 1)),
        ("half a character", b"measure \xc3".to_vec(), (9, 1)),
        ("CR LF", b"measure uid=0\r".to_vec(), (9, 6)),
        ("CR alone", b"\r".to_vec(), (1, 1)),
        ("one token", long(b"x"), (1, LENGTH)),
        ("one token of separators", long(b"="), (1, LENGTH)),
        ("one number", [b"measure uid=", long(b"9").as_slice()].concat(), (9, LENGTH + 4)),
        ("one list", [b"measure keyrings=", long(b"|").as_slice()].concat(), (9, LENGTH + 9)),
        ("one list of algorithms", [b"appraise appraise_algos=", long(b"md5,").as_slice()].concat(), (10, LENGTH + 15)),
        ("one character after another", long("\u{1f512}".as_bytes()), (1, LENGTH)),
        ("many tokens", long(b"permit_directio "), (1, 0)),
        ("blanks before", [long(b" "), b"x".to_vec()].concat(), (LENGTH + 1, 1)),
    ] {
        let error = refused(&line);
        assert_eq!((error.line, (error.column, error.length)), (1, place), "{name}: {error}");
        let after = [b"measure\n# note\n".as_slice(), &line, b"\nmeasure"].concat();
        let error = check(&after, &Target::guard()).unwrap_err().remove(0);
        assert_eq!((error.line, error.column), (3, place.0), "{name}: {error}");
    }
    assert_eq!(refused(b"measure\0").kind, PolicyErrorKind::Nul);
    assert_eq!(refused(b"measure \xff").kind, PolicyErrorKind::NotUtf8(0xff));
}

/// One change of a text at a place: a byte set, inserted, taken out, or another line put in.
#[derive(Clone, Debug)]
enum Change {
    Set(u8),
    Insert(u8),
    Remove,
    Splice(&'static str),
}

fn change() -> impl Strategy<Value = (proptest::sample::Index, Change)> {
    let byte = || prop_oneof![any::<u8>(), proptest::sample::select(b" \t\n\r\0=<>|,^+-_#09\x7f\xff".to_vec())];
    let change = prop_oneof![
        byte().prop_map(Change::Set),
        byte().prop_map(Change::Insert),
        Just(Change::Remove),
        proptest::sample::select(corpus()).prop_map(Change::Splice),
    ];
    (any::<proptest::sample::Index>(), change)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_changed_corpus_is_read_or_refused_with_its_place(
        lines in proptest::collection::vec(proptest::sample::select(corpus()), 1..4),
        changes in proptest::collection::vec(change(), 0..6),
        target in proptest::sample::select(targets()),
    ) {
        let mut text = lines.join("\n").into_bytes();
        for (place, change) in changes {
            let at = place.index(text.len() + 1);
            match change {
                Change::Set(byte) => text[at..].iter_mut().take(1).for_each(|old| *old = byte),
                Change::Insert(byte) => text.insert(at, byte),
                Change::Remove => drop(text.drain(at..(at + 1).min(text.len()))),
                Change::Splice(line) => drop(text.splice(at..at, format!(" {line}").into_bytes())),
            }
        }
        let _ = check(&text, &target);
    }
}
