//! Any bytes as what RPM keeps: a header, a database of either kind, a database's log; and as OpenPGP's keys and signatures.

#![no_main]

use imara_engine::package_keys::PackageKeys;
use imara_format::openpgp;
use imara_format::rpm::header::{Header, Part, Tag};
use imara_format::rpm::ndb::Ndb;
use imara_format::rpm::package::Package;
use imara_format::sqlite::Sqlite;
use libfuzzer_sys::fuzz_target;

const DATABASE: &[u8] = include_bytes!("../../tests/vectors/rpm/installed/rpmdb.sqlite");

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        for part in [Part::Immutable, Part::Added] {
            let _ = (header.texts(part, Tag::BaseNames), header.bytes(part, Tag::FileStates));
            let _ = header.numbers(part, Tag::FileModes);
        }
        assert!(header.signed().concat().len() <= bytes.len() + 16);
    }
    if let Ok(package) = Package::parse(bytes) {
        assert!(package.files.iter().all(|file| file.path.starts_with(b"/")));
    }
    let signatures = openpgp::signatures(bytes).unwrap_or_default();
    assert!(signatures.iter().all(|signature| signature.carried().count() <= signature.embedded.len()));
    for certificate in openpgp::certificates(bytes).into_iter().flatten() {
        let mut keys = PackageKeys::default();
        keys.add(&certificate);
        assert_eq!(keys.keys().len(), 1 + certificate.subkeys.len());
        // Nobody makes a signature of this by chance.
        assert!(keys.verify(&signatures, &[bytes], 2_000_000_000).is_err());
    }
    if let Ok(ndb) = Ndb::open(bytes) {
        assert!(ndb.headers().flatten().map(|(_, header)| header.len()).sum::<usize>() <= bytes.len());
    }
    for (file, log) in [(bytes, None), (DATABASE, Some(bytes))] {
        let Ok(database) = Sqlite::open(file, log) else { continue };
        let Ok(rows) = database.rows("Packages") else { continue };
        // However pages are mixed up, each page is read once, and holds a row in two bytes at least.
        assert!(rows.count() <= 1 + (file.len() + bytes.len()) / 2);
    }
});
