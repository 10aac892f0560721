//! PCR values from files and folders, in every form that they are kept in.

use super::paths::{printable, read as read_bytes};
use crate::output::Failure;
use imara_format::hash::HashAlgorithm;
use imara_format::pcr::PcrValues;
use std::io;
use std::path::{Path, PathBuf};

/// Reads the name of a bank on the command line.
///
/// # Errors
/// There is no such algorithm.
pub fn algorithm(name: &str) -> Result<HashAlgorithm, String> {
    HashAlgorithm::from_name(name).ok_or_else(|| format!("no such hash algorithm: {name}"))
}

/// PCR values from a file, a folder or standard input: text, what `tpm2_quote -o` wrote, sysfs. A file may be given as evmctl
/// takes it, `ALGORITHM,FILE`. Values whose form names no bank are of `bank`.
///
/// # Errors
/// They cannot be read.
pub fn read(path: &Path, bank: HashAlgorithm) -> Result<PcrValues, Failure> {
    let split = path.to_str().and_then(|text| text.split_once(','));
    let (path, bank) = match split.and_then(|(name, file)| Some((HashAlgorithm::from_name(name)?, file))) {
        Some((bank, file)) if !path.exists() => (Path::new(file), bank),
        _ => (path, bank),
    };
    if path.is_dir() {
        return read_folder(path);
    }
    let bytes = read_bytes(path).map_err(|error| unreadable(path, &error))?;
    if let Some((_, values)) = PcrValues::from_tpm2_tools(&bytes) {
        return Ok(values);
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Failure::failed(format!("{}: the byte at offset {place} is not UTF-8 text", printable(path)))
    })?;
    PcrValues::from_text(&text, bank).map_err(|error| Failure::failed(format!("{}, {error}", printable(path))))
}

/// PCR values from a folder of sysfs: `pcr-ALG` or one that has such folders.
///
/// # Errors
/// They cannot be read.
pub fn read_folder(folder: &Path) -> Result<PcrValues, Failure> {
    let bank_of = |path: &Path| HashAlgorithm::from_name(path.file_name()?.to_str()?.strip_prefix("pcr-")?);
    let mut values = PcrValues::new();
    let banks = match bank_of(folder) {
        Some(_) => vec![folder.to_owned()],
        None => children(folder)?,
    };
    for path in banks {
        let Some(bank) = bank_of(&path) else { continue };
        for file in children(&path)? {
            let content = std::fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            values
                .add_sysfs(bank, [(name.as_ref(), content.as_str())])
                .map_err(|error| Failure::failed(format!("{}, {error}", printable(folder))))?;
        }
    }
    Ok(values)
}

/// What a folder holds; nothing if it is not there.
fn children(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let read = || std::fs::read_dir(folder)?.map(|child| Ok(child?.path())).collect::<io::Result<Vec<_>>>();
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(folder, &error)),
        Ok(children) => Ok(children),
    }
}

/// Why a file cannot be read, and what to do.
pub fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::failed(format!("{}: {error}", printable(path)));
    match error.kind() {
        io::ErrorKind::PermissionDenied => failure.next("run this as root"),
        _ => failure,
    }
}
