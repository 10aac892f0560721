//! The command line, read as GNU's getopt_long(3) reads it: options and words in any order, long names abbreviated as long as
//! they stay clear, `--` before words alone.

use super::hash_name::{Named, look_up};
use super::{Ending, Failed, key, tell};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A command line that is wrong; how has been told.
#[derive(Debug)]
pub struct Told;

/// What the command line asks for.
pub enum Invocation {
    Help,
    Version,
    /// A command with its words, its name first.
    Command(Box<Options>, Vec<PathBuf>),
}

/// The options. What the file itself says counts where one is `None`.
#[derive(Default)]
pub struct Options {
    pub verbose: u32,
    pub no_xattr: bool,
    hash: Option<String>,
    pub ima_signature: bool,
    pub ima_hash: bool,
    pub sigfile: bool,
    pub version_1: bool,
    pub key: Option<OsString>,
    pub key_id: Option<[u8; 4]>,
    pub passphrase: Option<Zeroizing<Vec<u8>>>,
    pub portable: bool,
    pub immutable: bool,
    pub recursive: bool,
    pub types: Option<String>,
    pub uuid: Option<Uuid>,
    pub smack: bool,
    pub bits: Option<Bits>,
    pub inode: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<u16>,
    pub generation: Option<u32>,
    pub ima: Option<Vec<u8>>,
    pub selinux: Option<Vec<u8>>,
    /// An empty one: none is counted.
    pub caps: Option<Vec<u8>>,
    pub verify_signatures: bool,
    engine: Option<String>,
    provider: Option<String>,
    pub xattr_user: bool,
    pub ignore_violations: bool,
    pub pcrs: Vec<OsString>,
    pub verify_bank: Option<String>,
    pub verity_signature: bool,
    pub hardware_tpm: bool,
    pub hmac_key: Option<PathBuf>,
}

/// The filesystem's UUID, for EVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uuid {
    /// None is counted.
    Without,
    /// This one.
    Given(String),
}

/// Of which kernel EVM's `misc` is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    B32,
    B64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Argument,
    /// Attached, or none.
    Maybe,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Help,
    Version,
    ImaSignature,
    ImaHash,
    Hash,
    Passphrase,
    Sigfile,
    Uuid,
    VersionOne,
    Key,
    Types,
    Recursive,
    Portable,
    Immutable,
    M32,
    M64,
    Smack,
    NoXattr,
    Verbose,
    Inode,
    Uid,
    Gid,
    Mode,
    Generation,
    Ima,
    Selinux,
    Caps,
    VerifySignatures,
    Engine,
    Provider,
    XattrUser,
    IgnoreViolations,
    Pcrs,
    VerifyBank,
    KeyId,
    KeyIdFromCertificate,
    VeritySignature,
    HardwareTpm,
    HmacKey,
}

const LONG: &[(&str, Takes, Name)] = &[
    ("help", Takes::Nothing, Name::Help),
    ("imasig", Takes::Nothing, Name::ImaSignature),
    ("imahash", Takes::Nothing, Name::ImaHash),
    ("hashalgo", Takes::Argument, Name::Hash),
    ("pass", Takes::Maybe, Name::Passphrase),
    ("sigfile", Takes::Nothing, Name::Sigfile),
    ("uuid", Takes::Maybe, Name::Uuid),
    ("rsa", Takes::Nothing, Name::VersionOne),
    ("key", Takes::Argument, Name::Key),
    ("type", Takes::Argument, Name::Types),
    ("recursive", Takes::Nothing, Name::Recursive),
    ("m32", Takes::Nothing, Name::M32),
    ("m64", Takes::Nothing, Name::M64),
    ("portable", Takes::Nothing, Name::Portable),
    ("smack", Takes::Nothing, Name::Smack),
    ("version", Takes::Nothing, Name::Version),
    ("inode", Takes::Argument, Name::Inode),
    ("uid", Takes::Argument, Name::Uid),
    ("gid", Takes::Argument, Name::Gid),
    ("mode", Takes::Argument, Name::Mode),
    ("generation", Takes::Argument, Name::Generation),
    ("ima", Takes::Argument, Name::Ima),
    ("selinux", Takes::Argument, Name::Selinux),
    ("caps", Takes::Maybe, Name::Caps),
    ("verify-sig", Takes::Nothing, Name::VerifySignatures),
    ("engine", Takes::Argument, Name::Engine),
    ("provider", Takes::Argument, Name::Provider),
    ("xattr-user", Takes::Nothing, Name::XattrUser),
    ("ignore-violations", Takes::Nothing, Name::IgnoreViolations),
    ("pcrs", Takes::Argument, Name::Pcrs),
    ("verify-bank", Takes::Maybe, Name::VerifyBank),
    ("keyid", Takes::Argument, Name::KeyId),
    ("keyid-from-cert", Takes::Argument, Name::KeyIdFromCertificate),
    ("veritysig", Takes::Nothing, Name::VeritySignature),
    ("hwtpm", Takes::Nothing, Name::HardwareTpm),
    ("hmackey", Takes::Argument, Name::HmacKey),
];

const SHORT: &[(u8, Takes, Name)] = &[
    (b'h', Takes::Nothing, Name::Help),
    (b'v', Takes::Nothing, Name::Verbose),
    (b'n', Takes::Nothing, Name::NoXattr),
    (b's', Takes::Nothing, Name::ImaSignature),
    (b'd', Takes::Nothing, Name::ImaHash),
    (b'a', Takes::Argument, Name::Hash),
    (b'o', Takes::Nothing, Name::Portable),
    (b'p', Takes::Maybe, Name::Passphrase),
    (b'f', Takes::Nothing, Name::Sigfile),
    (b'u', Takes::Maybe, Name::Uuid),
    (b'k', Takes::Argument, Name::Key),
    (b't', Takes::Argument, Name::Types),
    (b'r', Takes::Nothing, Name::Recursive),
    (b'i', Takes::Nothing, Name::Immutable),
];

impl Invocation {
    /// Reads the arguments after the program's name. What is wrong has been told.
    pub fn parse(program: &str, arguments: Vec<OsString>) -> Result<Self, Told> {
        let mut options = Options::default();
        let mut words = Vec::new();
        let mut arguments = arguments.into_iter();
        let wrong = |what: String| {
            tell(format_args!("{program}: {what}\n"));
            Told
        };
        while let Some(argument) = arguments.next() {
            let bytes = argument.as_bytes();
            if bytes == b"--" {
                words.extend(arguments.by_ref().map(PathBuf::from));
            } else if let Some(long) = bytes.strip_prefix(b"--") {
                let (name, value) = match long.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]).to_owned())),
                    None => (long, None),
                };
                let (name, takes, meant) = long_option(&String::from_utf8_lossy(name), &argument).map_err(wrong)?;
                let value = match (takes, value) {
                    (Takes::Nothing, Some(_)) => {
                        return Err(wrong(format!("option '--{name}' doesn't allow an argument")));
                    }
                    (Takes::Argument, None) => match arguments.next() {
                        Some(value) => Some(value),
                        None => return Err(wrong(format!("option '--{name}' requires an argument"))),
                    },
                    (_, value) => value,
                };
                if let Some(ended) = options.take(meant, value)? {
                    return Ok(ended);
                }
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                let mut at = 1;
                while let Some(letter) = bytes.get(at) {
                    at += 1;
                    let Some((_, takes, meant)) = SHORT.iter().find(|(known, ..)| known == letter) else {
                        return Err(wrong(format!("invalid option -- '{}'", char::from(*letter))));
                    };
                    let attached = (at < bytes.len()).then(|| OsStr::from_bytes(&bytes[at..]).to_owned());
                    let value = match (takes, attached) {
                        (Takes::Nothing, _) => None,
                        (Takes::Argument, None) => match arguments.next() {
                            Some(value) => Some(value),
                            None => {
                                return Err(wrong(format!("option requires an argument -- '{}'", char::from(*letter))));
                            }
                        },
                        (Takes::Argument | Takes::Maybe, attached) => attached,
                    };
                    if *takes != Takes::Nothing {
                        at = bytes.len();
                    }
                    if let Some(ended) = options.take(*meant, value)? {
                        return Ok(ended);
                    }
                }
            } else {
                words.push(PathBuf::from(argument));
            }
        }
        if options.passphrase.is_none()
            && let Some(passphrase) = std::env::var_os("EVMCTL_KEY_PASSWORD")
        {
            options.passphrase = Some(Zeroizing::new(passphrase.into_vec()));
        }
        Ok(Self::Command(Box::new(options), words))
    }
}

fn long_option(name: &str, argument: &OsStr) -> Result<(&'static str, Takes, Name), String> {
    let argument = argument.to_string_lossy();
    if let Some(exact) = LONG.iter().find(|(known, ..)| *known == name) {
        return Ok(*exact);
    }
    let begun = LONG.iter().filter(|(known, ..)| known.starts_with(name)).collect::<Vec<_>>();
    match begun.as_slice() {
        [] => Err(format!("unrecognized option '{}'", argument.split('=').next().unwrap_or_default())),
        [one] => Ok(**one),
        several => {
            let names = several.iter().map(|(known, ..)| format!(" '--{known}'")).collect::<String>();
            Err(format!("option '--{name}' is ambiguous; possibilities:{names}"))
        }
    }
}

impl Options {
    fn take(&mut self, name: Name, value: Option<OsString>) -> Result<Option<Invocation>, Told> {
        let text = || value.as_ref().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        let bytes = || value.as_ref().map(|value| value.as_bytes().to_vec()).unwrap_or_default();
        match name {
            Name::Help => return Ok(Some(Invocation::Help)),
            Name::Version => return Ok(Some(Invocation::Version)),
            Name::Verbose => self.verbose += 1,
            Name::NoXattr => self.no_xattr = true,
            Name::Hash => self.hash = Some(text()),
            Name::ImaSignature => self.ima_signature = true,
            Name::ImaHash => self.ima_hash = true,
            Name::Sigfile => self.sigfile = true,
            Name::VersionOne => self.version_1 = true,
            Name::Key => self.key = value,
            Name::Passphrase => {
                self.passphrase = Some(Zeroizing::new(match value {
                    Some(value) => value.into_vec(),
                    None => match imara_linux::terminal::ask_secret("PEM password: ") {
                        Ok(passphrase) => passphrase,
                        Err(error) => {
                            tell(format_args!("the passphrase cannot be asked for: {error}; use --pass=WORD\n"));
                            return Err(Told);
                        }
                    },
                }));
            }
            // Once there is to be none, another one changes nothing.
            Name::Uuid if self.uuid == Some(Uuid::Without) => {}
            Name::Uuid => self.uuid = Some(value.as_ref().map_or(Uuid::Without, |_| Uuid::Given(text()))),
            Name::Types => self.types = Some(text()),
            Name::Recursive => self.recursive = true,
            Name::Portable if self.immutable => tell(IGNORING_PORTABLE),
            Name::Portable => self.portable = true,
            Name::Immutable if self.portable => tell(IGNORING_IMMUTABLE),
            Name::Immutable => self.immutable = true,
            Name::M32 => self.bits = Some(Bits::B32),
            Name::M64 => self.bits = Some(Bits::B64),
            Name::Smack => self.smack = true,
            Name::Inode => self.inode = Some(number(&text(), "inode")?),
            Name::Uid => self.uid = Some(number(&text(), "uid")? as u32),
            Name::Gid => self.gid = Some(number(&text(), "gid")? as u32),
            // As the original does: what is above the 16 bits of a mode is lost.
            Name::Mode => self.mode = Some(number(&text(), "mode")? as u16),
            Name::Generation => self.generation = Some(number(&text(), "generation")? as u32),
            Name::Ima => match imara_format::hash::from_hex(&text()) {
                Ok(value) => self.ima = Some(value),
                Err(error) => {
                    tell(format_args!("Invalid --ima value: {error}\n"));
                    return Err(Told);
                }
            },
            Name::Selinux => {
                let mut value = bytes();
                value.push(0);
                self.selinux = Some(value);
            }
            Name::Caps => self.caps = Some(bytes()),
            Name::VerifySignatures => self.verify_signatures = true,
            Name::Engine => self.engine = Some(text()),
            Name::Provider => self.provider = Some(text()),
            Name::XattrUser => self.xattr_user = true,
            Name::IgnoreViolations => self.ignore_violations = true,
            Name::Pcrs => match (self.pcrs.len(), value) {
                (0 | 1, Some(value)) => self.pcrs.push(value),
                _ => {
                    tell("too many --pcrfile options\n");
                    return Err(Told);
                }
            },
            Name::VerifyBank => self.verify_bank = Some(text()),
            Name::KeyId => match key_id(&text()) {
                Some(key_id) => self.key_id = Some(key_id),
                None => {
                    tell("Invalid keyid value.\n");
                    return Err(Told);
                }
            },
            Name::KeyIdFromCertificate => match key::key_id_of_certificate(Path::new(&value.unwrap_or_default())) {
                Some(key_id) => self.key_id = Some(key_id),
                None => {
                    tell("Error reading keyid.\n");
                    return Err(Told);
                }
            },
            Name::VeritySignature => self.verity_signature = true,
            Name::HardwareTpm => self.hardware_tpm = true,
            Name::HmacKey => self.hmac_key = value.map(PathBuf::from),
        }
        Ok(None)
    }

    /// The name of the hash.
    pub fn hash_name(&self) -> &str {
        self.hash.as_deref().unwrap_or("sha256")
    }

    /// What it stands for.
    pub fn hash(&self) -> Named {
        look_up(self.hash_name())
    }

    /// The attribute of IMA's label.
    pub fn ima_attribute(&self) -> &'static str {
        if self.xattr_user { "user.ima" } else { "security.ima" }
    }

    /// The attribute of EVM's label.
    pub fn evm_attribute(&self) -> &'static str {
        if self.xattr_user { "user.evm" } else { "security.evm" }
    }

    /// Refuses what cannot be had. Tokens need neither an engine nor a provider of OpenSSL here.
    pub fn set_up(&self) -> Ending {
        for (kind, name) in [("engine", &self.engine), ("provider", &self.provider)] {
            if let Some(name) = name.as_ref().filter(|name| *name != "pkcs11") {
                tell(format_args!(
                    "{kind} {name} isn't available\nsetup_{kind} failed: pkcs11 is the only {kind} that is known here\n"
                ));
                return Err(Failed::Positive);
            }
        }
        Ok(())
    }
}

const IGNORING_PORTABLE: &str = "Portable and immutable options are exclusive, ignoring portable option.";
const IGNORING_IMMUTABLE: &str = "Portable and immutable options are exclusive, ignoring immutable option.";

/// A decimal number; a negative one wraps, as in C.
fn number(text: &str, option: &str) -> Result<u64, Told> {
    let number = text.parse::<u64>().or_else(|_| text.parse::<i64>().map(|number| number as u64));
    number.map_err(|_| {
        tell(format_args!("Invalid --{option} value: {text} is no decimal number\n"));
        Told
    })
}

fn key_id(text: &str) -> Option<[u8; 4]> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(digits)?;
    let number = u32::from_str_radix(digits, 16).ok().filter(|number| *number != 0)?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Option<(Options, Vec<PathBuf>)> {
        match Invocation::parse("evmctl", line.iter().map(OsString::from).collect()) {
            Ok(Invocation::Command(options, words)) => Some((*options, words)),
            Ok(Invocation::Help | Invocation::Version) | Err(Told) => None,
        }
    }

    #[test]
    fn options_stand_anywhere_and_may_be_cut_short() {
        let (options, words) =
            parse(&["ima_sign", "-nvk", "k", "f", "--hash", "sha1", "--ino=5", "--", "-r", "--help"]).unwrap();
        assert_eq!((options.no_xattr, options.verbose, options.key.as_deref()), (true, 1, Some(OsStr::new("k"))));
        assert_eq!((options.hash_name(), options.inode, options.recursive), ("sha1", Some(5), false));
        assert_eq!(words, ["ima_sign", "f", "-r", "--help"].map(PathBuf::from));
        let (options, words) = parse(&["-u", "x", "-pw", "--caps", "--uid=-1", "--mode", "98724"]).unwrap();
        assert_eq!((options.uuid, options.caps, words.len()), (Some(Uuid::Without), Some(vec![]), 1));
        assert_eq!((options.uid, options.mode), (Some(u32::MAX), Some(33188)));
        assert_eq!(options.passphrase.as_deref().map(Vec::as_slice), Some(&b"w"[..]));
        let (options, _) = parse(&["-i", "-o", "--selinux", "a", "--uuid="]).unwrap();
        assert_eq!((options.immutable, options.portable), (true, false));
        assert_eq!((options.selinux, options.uuid), (Some(b"a\0".to_vec()), Some(Uuid::Given(String::new()))));
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for line in [
            &["--bogus"][..],
            &["-x"],
            &["-a"],
            &["--key"],
            &["--i"],
            &["--sigfile=x"],
            &["--keyid", "0"],
            &["--keyid", "100000000"],
            &["--keyid", "+1"],
            &["--pcrs", "a", "--pcrs", "b", "--pcrs", "c"],
            &["--uid", "x"],
            &["--ima", "zz"],
            &["--keyid-from-cert", "/nonexistent"],
        ] {
            assert!(parse(line).is_none(), "{line:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_arguments_are_read_or_refused(line in proptest::collection::vec("(--?[a-z]{0,8}(=.{0,4})?|.{0,6})", 0..6)) {
            // Of these two one asks on the terminal, the other reads a file.
            let line = line.into_iter().filter(|word| !word.contains('p') && !word.contains("keyid-"));
            let _ = Invocation::parse("evmctl", line.map(OsString::from).collect());
        }
    }
}
