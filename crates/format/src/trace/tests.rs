use super::*;
use proptest::prelude::*;

fn header() -> Header {
    Header {
        started: 1_760_000_000,
        boot_id: "8a1f1f0e-2c1d-4b0a-9f43-3d6c0d7e5b11".into(),
        hash: HashAlgorithm::Sha256,
        pcr: 10,
        template: "ima-sig".into(),
        mode: "enforce".into(),
        policy: "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK\n".into(),
        banks: 2,
    }
}

fn event(time: u64) -> Event {
    Event {
        time,
        func: Func::BprmCheck,
        mask: 1,
        path: b"/usr/bin/true".to_vec(),
        device: 0x801,
        inode: 4711,
        size: 35_664,
        modified: 1_759_999_999_123_456_789,
        changed: -1,
        owner: 0,
        group: 0,
        filesystem: Arc::new(FilesystemFacts {
            magic: 0xef53,
            name: "ext4".into(),
            subtype: String::new(),
            uuid: Some([7; 16]),
        }),
        subject: Arc::new(SubjectFacts {
            uid: 1000,
            euids: [0, 0, 1000],
            can_setgid: true,
            command: b"sh".to_vec(),
            ..SubjectFacts::default()
        }),
        label: LabelFacts::Some(vec![4, 4, 1, 2, 3]),
        digest: Some(Digest::ones(HashAlgorithm::Sha256)),
        writes: false,
        created: false,
        measured: Some(0),
        appraised: Some(1),
        audited: None,
        hashed: None,
        entry: true,
        cause: Some("invalid-hash".into()),
        denied: true,
    }
}

fn written(events: &[Event]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    for event in events {
        writer.event(event).unwrap();
    }
    let size = writer.written();
    let bytes = writer.finish().unwrap();
    assert_eq!(size + 2 + "stopped".len() as u64, bytes.len() as u64);
    bytes
}

/// Everything that can be read, and what kept the rest from it.
fn read(bytes: &[u8]) -> Result<(Vec<Event>, Option<TraceError>), TraceError> {
    let (_, mut reader) = TraceReader::new(bytes)?;
    let mut events = Vec::new();
    let mut failed = None;
    for event in reader.by_ref() {
        match event {
            Ok(event) => events.push(event),
            Err(error) => failed = Some(error),
        }
    }
    assert!(reader.next().is_none(), "it ends after the first error");
    Ok((events, failed))
}

#[test]
fn a_repeated_access_costs_a_few_bytes() {
    let once = written(&[event(0)]).len();
    let twice = written(&[event(0), event(1_000_000_000)]).len();
    assert!(twice - once <= 20, "{}", twice - once);
}

#[test]
fn the_beginning_and_the_end_are_told() {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    writer.event(&event(5)).unwrap();
    writer.lost(3).unwrap();
    writer.lost(4).unwrap();
    let bytes = writer.finish_because("the time was over").unwrap();
    let (found, mut reader) = TraceReader::new(&bytes[..]).unwrap();
    assert_eq!(found, header());
    assert_eq!(reader.ended(), None);
    assert_eq!(reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap(), [event(5)]);
    assert_eq!((reader.lost(), reader.ended()), (7, Some("the time was over")));
}

#[test]
fn records_of_unknown_types_are_passed_over() {
    let whole = written(&[event(0), event(1)]);
    let (_, mut reader) = TraceReader::new(&whole[..]).unwrap();
    reader.next().unwrap().unwrap();
    let at = usize::try_from(reader.offset).unwrap();
    let unknown = [&whole[..at], &[200, 3, 1, 2, 3, 201, 0], &whole[at..]].concat();
    assert_eq!(read(&unknown).unwrap().0, [event(0), event(1)]);
}

#[test]
fn what_is_no_trace_is_refused_with_what_was_found() {
    for (name, bytes, expected) in [
        ("empty", &b""[..], "the trace is cut off within the record at offset 0"),
        ("text", b"IMA trace\n", "this is no trace: it begins with \"IMA trac\", where `IMATRACE` was needed"),
        ("newer", b"IMATRACE\x02\x00", "the trace is of version 2; this program reads version 1"),
        ("no header", b"IMATRACE\x01\x00", "the trace is cut off within the record at offset 10"),
        (
            "another record first",
            b"IMATRACE\x01\x00\x02\x00",
            "record at offset 10: the first record's type is 2, 1 (the header) needed",
        ),
        (
            "a length that no record has",
            b"IMATRACE\x01\x00\x01\xff\xff\xff\xff\x7f",
            "record at offset 10: the length is 34359738367, 16777216 at most needed",
        ),
        (
            "an integer without end",
            &[b"IMATRACE\x01\x00\x01", &[0xff; 40][..]].concat(),
            "record at offset 10: the length is longer, an integer of at most 128 bits needed",
        ),
    ] {
        assert_eq!(TraceReader::new(bytes).map(|_| ()).unwrap_err().to_string(), expected, "{name}");
    }
}

#[test]
fn references_to_nothing_or_to_something_else_are_refused() {
    let mut bytes = TraceWriter::new(Vec::new(), &header()).unwrap().finish().unwrap();
    let at = bytes.len();
    for (name, records, expected) in [
        ("no definition", &[EVENT, 3, 0, 0, 5][..], "the hook is reference 5, the number of such a definition among 0"),
        (
            "another kind",
            &[SUBJECT, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, EVENT, 3, 0, 0, 0],
            "the hook is reference 0, the number of such a definition among 1",
        ),
        ("no hook", &[BYTES, 1, b'X', EVENT, 3, 0, 0, 0], "the hook is `X`, the name of one"),
        ("forgotten", &[BYTES, 1, b'X', FORGET, 0, EVENT, 3, 0, 0, 0], "among 0"),
        ("a time before the beginning", &[EVENT, 1, 1], "the time is -1, 0 or more"),
        ("cut off within", &[EVENT, 1, 0], "the flags is cut off, an integer"),
        ("a file without a path", &[FILE, 1, 0], "the path is reference 0"),
        ("half a UUID", &[FILESYSTEM, 6, 0, 0, 0, 2, 1, 2], "the UUID's length is 2, 0 or 16"),
        ("a text beyond the record", &[FILESYSTEM, 3, 0, 9, 0], "cut off: 1 bytes are left, 9 are needed"),
    ] {
        bytes.truncate(at);
        bytes.extend(records);
        let (events, error) = read(&bytes).unwrap();
        let error = error.unwrap_or_else(|| panic!("{name}: {events:?}")).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn definitions_are_forgotten_before_they_are_too_many() {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    let events: Vec<Event> = (0..40)
        .map(|index| Event { label: LabelFacts::Some(vec![index; MAX_FIELD]), ..event(u64::from(index)) })
        .collect();
    for event in &events {
        writer.event(event).unwrap();
        assert!(writer.defined < MAX_DEFINED);
    }
    let bytes = writer.finish().unwrap();
    let (found, error) = read(&bytes).unwrap();
    assert!(error.is_none(), "{error:?}");
    assert!(found == events);
}

#[test]
fn a_reader_takes_no_more_definitions_than_the_limit() {
    let mut bytes = TraceWriter::new(Vec::new(), &header()).unwrap().finish().unwrap();
    bytes.extend([BYTES, 0].repeat(MAX_DEFINITIONS + 1));
    let error = read(&bytes).unwrap().1.unwrap().to_string();
    assert!(error.contains("the number of definitions is 131073"), "{error}");
}

#[test]
fn a_field_that_cannot_be_read_back_is_not_written() {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    let long = Event { path: vec![b'x'; MAX_FIELD + 1], ..event(0) };
    assert_eq!(writer.event(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    writer.event(&event(0)).unwrap();
    assert_eq!(read(&writer.finish().unwrap()).unwrap().0, [event(0)]);
}

prop_compose! {
    fn facts()(magic in any::<u64>(), name in ".{0,6}", subtype in ".{0,6}", uuid in any::<Option<[u8; 16]>>(),
        ids in any::<[u32; 8]>(), can in any::<(bool, bool)>(), command in prop::collection::vec(any::<u8>(), 0..16))
        -> (Arc<FilesystemFacts>, Arc<SubjectFacts>) {
        let [uid, gid, a, b, c, d, e, f] = ids;
        let subject = SubjectFacts { uid, gid, euids: [a, b, c], egids: [d, e, f], can_setuid: can.0, can_setgid: can.1, command };
        (Arc::new(FilesystemFacts { magic, name, subtype, uuid }), Arc::new(subject))
    }
}

prop_compose! {
    fn any_event()(
        numbers in any::<(u64, u8, u64, u64, u64, i128, i128, u32, u32)>(),
        func in prop::sample::select(Func::ALL),
        path in prop::collection::vec(any::<u8>(), 0..40),
        (filesystem, subject) in facts(),
        label in prop_oneof![
            Just(LabelFacts::NotRead),
            Just(LabelFacts::None),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(LabelFacts::Some)
        ],
        digest in prop::option::of(prop::sample::select(HashAlgorithm::ALL).prop_map(Digest::ones)),
        rules in any::<[Option<u32>; 4]>(),
        flags in any::<[bool; 4]>(),
        cause in prop::option::of(".{0,12}"),
    ) -> Event {
        let (time, mask, device, inode, size, modified, changed, owner, group) = numbers;
        let [measured, appraised, audited, hashed] = rules;
        let [writes, created, entry, denied] = flags;
        Event { time, func, mask, path, device, inode, size, modified, changed, owner, group, filesystem, subject, label,
            digest, writes, created, measured, appraised, audited, hashed, entry, cause, denied }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(mut events in prop::collection::vec(any_event(), 0..12)) {
        events.extend(events.clone());
        let (found, error) = read(&written(&events)).unwrap();
        prop_assert!(error.is_none(), "{error:?}");
        prop_assert_eq!(found, events);
    }

    #[test]
    fn a_cut_trace_reads_up_to_its_last_whole_record(events in prop::collection::vec(any_event(), 1..6), at in any::<prop::sample::Index>()) {
        let whole = written(&events);
        let cut = &whole[..at.index(whole.len())];
        match read(cut) {
            Ok((found, error)) => {
                prop_assert!(events.starts_with(&found));
                match error {
                    None => {}
                    Some(TraceError::Truncated { offset }) => {
                        prop_assert!(usize::try_from(offset).unwrap() < cut.len());
                        // What is before the record that is cut off is whole.
                        let before = read(&whole[..usize::try_from(offset).unwrap()]).unwrap();
                        prop_assert_eq!(before.0, found);
                        prop_assert!(before.1.is_none());
                    }
                    Some(error) => prop_assert!(false, "{error}"),
                }
            }
            Err(error) => prop_assert!(matches!(error, TraceError::Truncated { .. }), "{error}"),
        }
    }

    #[test]
    fn no_changed_byte_makes_it_panic(
        events in prop::collection::vec(any_event(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = written(&events);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn no_bytes_make_it_panic(records in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [TraceWriter::new(Vec::new(), &header()).unwrap().finish().unwrap(), records].concat();
        let _ = read(&bytes);
    }
}
