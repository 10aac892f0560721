//! The layers, as a table: which crate may lean on which, and on what from outside.
//!
//! ```text
//! format <- engine <- { linux, attest } <- imara
//! ```
//!
//! A change here is a change of the design: ARCHITECTURE.md says what each layer is for, and why each dependency is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// One crate's row.
struct Layer {
    name: &'static str,
    folder: &'static str,
    /// Crates of this workspace that it may use.
    arrows: &'static [&'static str],
    /// Crates from outside that it may use.
    outside: &'static [&'static str],
    /// `unsafe` is refused by the compiler in the whole crate; elsewhere it may stand only in [`UNSAFE_FOLDER`].
    forbids_unsafe: bool,
}

const LAYERS: [Layer; 5] = [
    Layer {
        name: "imara-format",
        folder: "crates/format",
        arrows: &[],
        outside: &["crc32fast", "thiserror"],
        forbids_unsafe: true,
    },
    Layer {
        name: "imara-engine",
        folder: "crates/engine",
        arrows: &["imara-format"],
        outside: &[
            "hmac",
            "md-5",
            "openssl",
            "ripemd",
            "sha1",
            "sha2",
            "sha3",
            "sm3",
            "smallvec",
            "streebog",
            "thiserror",
            "tpm2-protocol",
            "zeroize",
        ],
        forbids_unsafe: true,
    },
    Layer {
        name: "imara-linux",
        folder: "crates/linux",
        arrows: &["imara-engine", "imara-format"],
        outside: &["cryptoki", "libc", "rustix", "smallvec", "thiserror"],
        forbids_unsafe: false,
    },
    // A verifier runs where nothing is guarded: it never links `imara-linux`.
    Layer {
        name: "imara-attest",
        folder: "crates/attest",
        arrows: &["imara-engine", "imara-format"],
        outside: &["serde", "thiserror"],
        forbids_unsafe: true,
    },
    Layer {
        name: "imara",
        folder: "crates/imara",
        arrows: &["imara-attest", "imara-engine", "imara-format", "imara-linux"],
        outside: &[
            "clap",
            "clap_mangen",
            "globset",
            "indicatif",
            "serde",
            "serde_json",
            "thiserror",
            "toml",
            "zeroize",
        ],
        forbids_unsafe: true,
    },
];

/// What tests and benchmarks of every crate may use besides.
const FOR_TESTS: [&str; 5] = ["criterion", "proptest", "rustix", "serde_json", "tempfile"];

/// The one place for system calls that no library wraps safely.
const UNSAFE_FOLDER: &str = "crates/linux/src/sys";

/// A test that counts allocations: an allocator cannot be written without `unsafe`.
const UNSAFE_TEST: &str = "crates/engine/tests/allocation.rs";

/// The cryptographic libraries of `engine`, as paths begin in Rust, and the one place that may name them.
const CRYPTO: [&str; 9] = ["hmac", "md5", "openssl", "ripemd", "sha1", "sha2", "sha3", "sm3", "streebog"];
const CRYPTO_PLACE: [&str; 2] = ["crates/engine/src/crypto.rs", "crates/engine/src/crypto"];

#[test]
fn every_crate_has_a_row_and_every_row_a_crate() {
    let workspace = manifest(&root().join("Cargo.toml"));
    let members: Vec<&str> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|member| member.as_str().unwrap()).collect();
    let folders: Vec<&str> = LAYERS.iter().map(|layer| layer.folder).collect();
    let sorted = |mut list: Vec<&str>| {
        list.sort_unstable();
        list.join(" ")
    };
    assert_eq!(sorted(members), sorted(folders));
    for layer in &LAYERS {
        let manifest = manifest(&root().join(layer.folder).join("Cargo.toml"));
        assert_eq!(manifest["package"]["name"].as_str(), Some(layer.name), "{}", layer.folder);
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{} takes the shared lints", layer.name);
    }
}

#[test]
fn the_manifests_keep_to_the_table() {
    let workspace = manifest(&root().join("Cargo.toml"));
    let problems: Vec<String> = LAYERS
        .iter()
        .flat_map(|layer| problems(layer, &manifest(&root().join(layer.folder).join("Cargo.toml")), &workspace))
        .collect();
    assert!(problems.is_empty(), "not in the table of tests/layering.rs:\n{}", problems.join("\n"));
}

#[test]
fn unsafe_code_is_refused_in_the_crates_that_need_none() {
    for layer in LAYERS.iter().filter(|layer| layer.forbids_unsafe) {
        let path = root().join(layer.folder).join("src/lib.rs");
        let attribute = "#![forbid(unsafe_code)]";
        assert!(read(&path).lines().any(|line| line == attribute), "{} lacks {attribute}", path.display());
    }
}

#[test]
fn unsafe_code_stands_in_the_system_call_layer_alone() {
    let allowed = [UNSAFE_FOLDER, UNSAFE_TEST].map(|path| root().join(path));
    let mut problems = Vec::new();
    for path in sources().into_iter().filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))) {
        for (number, line) in code_lines(&read(&path)) {
            if has_unsafe(&line) {
                problems.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(problems.is_empty(), "unsafe outside {UNSAFE_FOLDER}:\n{}", problems.join("\n"));
}

#[test]
fn cryptographic_libraries_are_named_in_one_place() {
    let engine = root().join("crates/engine/src");
    let allowed = CRYPTO_PLACE.map(|path| root().join(path));
    let mut problems = Vec::new();
    let elsewhere =
        |path: &PathBuf| path.starts_with(&engine) && !allowed.iter().any(|allowed| path.starts_with(allowed));
    for path in sources().into_iter().filter(elsewhere) {
        for (number, line) in code_lines(&read(&path)) {
            if let Some(library) = CRYPTO.iter().find(|library| names_crate(&line, library)) {
                problems.push(format!("{}:{number}: {library}", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "cryptographic libraries outside {CRYPTO_PLACE:?}:\n{}", problems.join("\n"));
}

#[test]
fn what_is_not_in_the_table_is_found() {
    let workspace: Table = toml::from_str(
        "[workspace.dependencies]\nimara-linux = { path = \"crates/linux\" }\nharmless = { package = \"aya\", version = \"1\" }",
    )
    .unwrap();
    let attest = &LAYERS[3];
    for (name, text, expected) in [
        ("as allowed", "[dependencies]\nimara-engine.workspace = true\nserde = \"1\"", None),
        ("a test's crate", "[dev-dependencies]\nproptest = \"1\"", None),
        ("a test's crate in the program", "[dependencies]\nproptest = \"1\"", Some("proptest")),
        ("an arrow upward", "[dependencies]\nimara-linux.workspace = true", Some("imara-linux")),
        ("an arrow upward in tests", "[dev-dependencies]\nimara-linux.workspace = true", Some("imara-linux")),
        ("for one target", "[target.'cfg(unix)'.dependencies]\nnix = \"1\"", Some("nix")),
        ("at build time", "[build-dependencies]\ncc = \"1\"", Some("cc")),
        ("under another name", "[dependencies]\nserde = { package = \"tokio\", version = \"1\" }", Some("tokio")),
        ("under another name of the workspace", "[dependencies]\nharmless.workspace = true", Some("aya")),
    ] {
        let found = problems(attest, &toml::from_str(text).unwrap(), &workspace);
        let expected = expected.map(|package| format!("imara-attest: {package}"));
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn code_is_told_from_text_about_it() {
    // In capitals, for this file is searched as well.
    for (line, expected) in [
        ("Unsafe { call() }", true),
        ("    pub Unsafe fn call()", true),
        ("let x = Unsafe{ 1 };", true),
        ("Unsafe impl Send for Group {}", true),
        ("#[Unsafe(no_mangle)]", true),
        ("// Unsafe { call() }", false),
        ("#![forbid(Unsafe_code)]", false),
        ("let Unsafely = 1;", false),
    ] {
        let found = code_lines(&line.to_lowercase()).iter().any(|(_, line)| has_unsafe(line));
        assert_eq!(found, expected, "{line}");
    }
    for (line, expected) in [
        ("use openssl::pkey::PKey;", true),
        ("use openssl;", true),
        ("crypto::openssl_error()", false),
        ("Sha1", false),
    ] {
        assert_eq!(names_crate(line, "openssl"), expected, "{line}");
    }
}

/// The packages that a manifest names and the table does not, as `crate: package`.
fn problems(layer: &Layer, manifest: &Table, workspace: &Table) -> Vec<String> {
    let mut sections = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        sections.extend(targets.values().filter_map(Value::as_table));
    }
    let mut found = BTreeMap::new();
    for section in sections {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for (key, value) in section.get(kind).and_then(Value::as_table).into_iter().flatten() {
                let package = package_name(key, value, workspace);
                let allowed = layer.arrows.contains(&package)
                    || layer.outside.contains(&package)
                    || kind == "dev-dependencies" && FOR_TESTS.contains(&package);
                if !allowed {
                    found.insert(package.to_owned(), format!("{}: {package}", layer.name));
                }
            }
        }
    }
    found.into_values().collect()
}

/// A dependency's real name: what `package =` says here or in the workspace, else its key.
fn package_name<'a>(key: &'a str, value: &'a Value, workspace: &'a Table) -> &'a str {
    let renamed = |value: &'a Value| value.get("package").and_then(Value::as_str);
    let shared = || workspace.get("workspace")?.get("dependencies")?.get(key);
    renamed(value).or_else(|| shared().and_then(renamed)).unwrap_or(key)
}

/// The lines of a source with their numbers, without what stands after `//`.
fn code_lines(source: &str) -> Vec<(usize, String)> {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    source.lines().map(code).enumerate().map(|(index, line)| (index + 1, line)).collect()
}

/// Whether the keyword stands in the line, and not only the word.
fn has_unsafe(line: &str) -> bool {
    line.match_indices("unsafe").any(|(at, word)| {
        let after = line[at + word.len()..].trim_start();
        !line[..at].ends_with(is_name)
            && (after.starts_with(['{', '('])
                || ["fn ", "impl", "extern", "trait "].iter().any(|next| after.starts_with(next)))
    })
}

/// Whether the line names a crate, as the beginning of a path or in a `use`.
fn names_crate(line: &str, library: &str) -> bool {
    line.match_indices(library).any(|(at, word)| {
        let before = &line[..at];
        let after = &line[at + word.len()..];
        !before.ends_with(is_name)
            && !before.ends_with("::")
            && (after.starts_with("::") || before.trim_start() == "use " && after.starts_with(';'))
    })
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Every Rust file of the crates.
fn sources() -> Vec<PathBuf> {
    let mut folders = vec![root().join("crates")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn manifest(path: &Path) -> Table {
    toml::from_str(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}
