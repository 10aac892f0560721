//! What evmctl does wrong with trees and lists, and Imara must not: success that is none, files that are not looked at.

use crate::scratch::{Scratch, text};
use std::fs;

#[test]
fn a_relative_key_signs_a_tree() {
    let scratch = Scratch::new();
    scratch.key("p256");
    let files = ["a", "inner/b"].map(|name| scratch.file(name, name));
    let signed = scratch.label(&["sign", "-r", "-k", "key-p256/privkey_ima.pem", "tree"]);
    assert_eq!(signed.code, 0, "{}", signed.err);
    assert!(files.iter().all(|path| scratch.label_of(path).starts_with("0302")));
    let missing = scratch.label(&["sign", "-r", "-k", "key-p256/none.pem", "tree"]);
    assert!(missing.code > 0 && missing.err.contains("none.pem"), "{}", missing.err);
}

#[test]
fn every_file_that_is_named_is_verified() {
    let scratch = Scratch::new();
    let (key, certificate) = scratch.key("p256");
    let [good, unsigned] = ["good", "unsigned"].map(|name| scratch.file(name, name));
    assert_eq!(scratch.label(&["sign", "-k", &key, text(&good)]).code, 0);
    let verified = scratch.label(&["verify", "-k", &certificate, text(&good), text(&unsigned)]);
    assert!(verified.code == 1 && verified.err.contains("unsigned: not labelled"), "{}", verified.err);
}

#[test]
fn a_list_that_is_missing_or_has_no_end_is_named() {
    let scratch = Scratch::new();
    let missing = scratch.label(&["hash", "--files-from", "none"]);
    assert_eq!((missing.code, &*missing.err), (1, "imara: none: No such file or directory (os error 2)\n"));
    fs::write(scratch.path("list"), vec![b'x'; 1 << 20]).unwrap();
    let endless = scratch.label(&["hash", "--files-from", "list"]);
    assert!(endless.code > 0 && endless.err.contains("a path of more than 65536 bytes"), "{}", endless.err);
    fs::write(scratch.path("empty"), "").unwrap();
    assert_eq!(scratch.label(&["hash", "--files-from", "empty"]).code, 4);
}
