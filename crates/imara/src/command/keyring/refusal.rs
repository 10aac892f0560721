//! What the kernel's key service means by its error numbers, and the way out.
//!
//! One number has several meanings; which of them it has depends on what was tried and on the keyring.

use super::named::{Keyring, KeyringName};
use crate::command::paths::printable_bytes;
use crate::output::{Failure, Outcome};
use imara_format::key::Errno;
use imara_linux::key_service::errno_of;
use std::io;

/// What was tried.
#[derive(Clone, Copy, Debug)]
pub enum Attempt<'a> {
    /// To find a keyring.
    Find {
        /// Its name.
        keyring: &'a KeyringName,
    },
    /// To read what a keyring holds, or a key.
    Read {
        /// The key.
        key: &'a str,
    },
    /// To make a keyring.
    New {
        /// Its name.
        name: &'a [u8],
        /// Where.
        keyring: &'a Keyring,
    },
    /// To add a certificate.
    Certificate {
        /// Where it came from.
        source: &'a str,
        /// Where to.
        keyring: &'a Keyring,
    },
    /// To add a key of type `user`.
    User {
        /// What it is.
        key: &'a str,
        /// Where to.
        keyring: &'a Keyring,
    },
    /// To add an encrypted or a trusted key.
    Sealed {
        /// What it is.
        key: &'a str,
        /// Where to.
        keyring: &'a Keyring,
    },
    /// To take a key out of a keyring, or all of them.
    Remove {
        /// What it is.
        key: &'a str,
        /// Where from.
        keyring: &'a Keyring,
    },
    /// To restrict a keyring.
    Restrict {
        /// Which one.
        keyring: &'a Keyring,
    },
    /// To set permissions.
    Permissions {
        /// The key.
        key: &'a str,
    },
}

/// What happened, why, and what to do next.
pub fn refused(attempt: Attempt<'_>, error: &io::Error) -> Failure {
    let (why, next, outcome) = explain(attempt, error);
    let number = errno_of(error).map(|number| format!(" ({})", number.name())).unwrap_or_default();
    let what = match attempt {
        Attempt::Find { keyring } => format!("keyring {keyring}"),
        Attempt::Read { key } => format!("{key} cannot be read"),
        Attempt::New { name, keyring } => format!("{} cannot be made in {keyring}", printable_bytes(name)),
        Attempt::Certificate { source: key, keyring }
        | Attempt::User { key, keyring }
        | Attempt::Sealed { key, keyring } => format!("{key} is not taken by {keyring}"),
        Attempt::Remove { key, keyring } => format!("{key} cannot be taken out of {keyring}"),
        Attempt::Restrict { keyring } => format!("{keyring} cannot be restricted"),
        Attempt::Permissions { key } => format!("the permissions of {key} cannot be set"),
    };
    Failure { outcome, what: format!("{what}: {why}{number}"), next }
}

/// Why, what to do next, and whether the machine lacks something.
fn explain(attempt: Attempt<'_>, error: &io::Error) -> (String, String, Outcome) {
    let failed = |why: &str, next: &str| (why.to_owned(), next.to_owned(), Outcome::Failed);
    let lacking = |why: &str, next: &str| (why.to_owned(), next.to_owned(), Outcome::Lacking);
    let Some(number) = errno_of(error) else { return failed(&system_words(error), "") };
    match (number, attempt) {
        (Errno::Enosys, _) => lacking(
            "this kernel has no key service",
            "a kernel with CONFIG_KEYS; in a container, a seccomp profile that lets add_key and keyctl pass",
        ),
        (Errno::Enodev, Attempt::Certificate { .. }) => lacking(
            "this kernel has no asymmetric keys",
            "a kernel with CONFIG_ASYMMETRIC_KEY_TYPE and CONFIG_X509_CERTIFICATE_PARSER",
        ),
        (Errno::Enodev, Attempt::Sealed { .. }) => lacking(
            "this kernel has no keys of that type",
            "modprobe encrypted-keys or trusted; else a kernel with CONFIG_ENCRYPTED_KEYS or CONFIG_TRUSTED_KEYS",
        ),
        (Errno::Edquot, _) => failed(
            "the user's quota of keys is full",
            "see /proc/key-users; raise it with sysctl kernel.keys.root_maxkeys and root_maxbytes (maxkeys and maxbytes for \
             users), or remove keys",
        ),
        (Errno::Ekeyrevoked, _) => failed("it was revoked", "remove it and make it again"),
        (Errno::Ekeyexpired, _) => failed("it has expired", "remove it and make it again"),
        (Errno::Enotdir, _) => failed("it is no keyring", "imara keyring show lists keyrings"),

        (Errno::Enokey, Attempt::Find { keyring }) => match keyring {
            KeyringName::Description(name) if name == ".ima" || name == ".evm" => lacking(
                "there is none: this kernel was built without it",
                "use _ima and _evm, which any kernel with IMA and EVM searches; or a kernel with CONFIG_INTEGRITY_TRUSTED_KEYRING",
            ),
            KeyringName::Description(name) if name.to_string_lossy().starts_with('.') => {
                lacking("there is none: this kernel was built without it", "imara keyring show lists what it has")
            }
            KeyringName::Description(name) => failed(
                "there is none that this session leads to or that may be seen",
                &format!("imara keyring new {}", name.to_string_lossy()),
            ),
            KeyringName::Special(_) | KeyringName::Serial(_) => {
                failed("there is none", "imara keyring show lists keyrings")
            }
        },
        (Errno::Eacces, Attempt::Find { .. } | Attempt::Read { .. }) => {
            failed("it may not be seen or read by this user", "imara keyring show prints who may")
        }
        (Errno::Enokey, Attempt::Read { .. }) => {
            failed("it is not there, or the master key that it is sealed with is not", "imara key load")
        }
        (Errno::Eopnotsupp, Attempt::Read { .. }) => {
            failed("keys of this type cannot be read, or the type of its master key is not built into this kernel", "")
        }

        (Errno::Eperm, Attempt::New { name, .. }) if name.starts_with(b".") => failed(
            "only the kernel makes keyrings whose names begin with a dot",
            "kernels with CONFIG_INTEGRITY_TRUSTED_KEYRING make .ima and .evm; others search _ima and _evm, which you can make",
        ),
        (Errno::Eexist, Attempt::New { .. }) => failed("it is there already", "imara keyring show"),

        (Errno::Enokey, Attempt::Certificate { keyring, .. }) => match keyring.is_the_kernels() {
            true => failed(
                &format!("no key that {keyring} trusts has signed it"),
                &format!(
                    "have it signed by a key of {}; a certificate signed by itself is never taken",
                    trusted_by(keyring)
                ),
            ),
            false => failed(
                "no key that the keyring's restriction trusts has signed it",
                "have it signed by one of them; a certificate signed by itself is not taken",
            ),
        },
        (Errno::Ekeyrejected, Attempt::Certificate { .. }) => failed(
            "it, its key or its issuer is on the kernel's blacklist, or its issuer's signature does not verify",
            "imara keyring show .blacklist; have the key certified anew by the issuer that the kernel has",
        ),
        // Another padding than a signature's own comes out as one of these, too.
        (Errno::Ebadmsg | Errno::Einval, Attempt::Certificate { .. }) => failed(
            "its issuer's signature does not verify, or the kernel cannot read it",
            "have it certified anew by the issuer that the kernel has; openssl x509 -noout -text -in FILE shows what it is",
        ),
        (Errno::Enopkg | Errno::Enoent, Attempt::Certificate { .. }) => lacking(
            "this kernel cannot verify with its algorithm, or with its issuer's",
            "load the module (ecdsa_generic, sha512_generic); or use RSA with SHA-256, which every kernel has",
        ),
        (Errno::Eopnotsupp, Attempt::User { keyring, .. } | Attempt::Sealed { keyring, .. }) => failed(
            "it takes certificates alone",
            match keyring.is_the_kernels() {
                true => {
                    "sign with a certificate (imara key generate, imara sign); bare RSA keys and version 1 signatures need _ima or \
                         _evm, which only kernels without CONFIG_INTEGRITY_TRUSTED_KEYRING search"
                }
                false => "use another keyring: it was restricted to certificates for good",
            },
        ),
        (
            Errno::Eacces,
            Attempt::Certificate { keyring, .. } | Attempt::User { keyring, .. } | Attempt::Sealed { keyring, .. },
        ) => match filled_by(keyring) {
            Some((who, next)) => failed(&format!("nobody may add to it: {who}"), next),
            None => failed(
                "this user may not write to it",
                "imara keyring show prints who may; the owner can change that with imara keyring permissions",
            ),
        },
        (
            Errno::Eperm,
            Attempt::Certificate { .. } | Attempt::User { .. } | Attempt::Sealed { .. } | Attempt::New { .. },
        ) => failed("it is restricted for good and takes nothing more", "make another keyring: imara keyring new"),

        (Errno::Enoent | Errno::Enokey, Attempt::Remove { .. }) => {
            failed("it is not in there", "imara keyring show lists what is")
        }
        (Errno::Eperm, Attempt::Remove { keyring, .. }) if keyring.is_the_kernels() => {
            failed("the kernel never lets a key go from there", "what it blocks stays blocked until the next boot")
        }
        (Errno::Eperm, Attempt::Remove { .. }) => failed("the kernel keeps it there", ""),
        (Errno::Eacces, Attempt::Remove { keyring, .. }) => match filled_by(keyring) {
            Some((who, next)) => failed(&format!("nobody may change it: {who}"), next),
            None => failed("this user may not write to it", "imara keyring show prints who may"),
        },

        (Errno::Eexist, Attempt::Restrict { .. }) => {
            failed("it is restricted already, for good", "make another keyring: imara keyring new")
        }
        (Errno::Einval | Errno::Enokey | Errno::Enoent, Attempt::Restrict { .. }) => failed(
            "the rule is not one that this kernel has, or names a keyring that is not there",
            "builtin_trusted, builtin_and_secondary_trusted, key_or_keyring:SERIAL or key_or_keyring:SERIAL:chain",
        ),
        (Errno::Edeadlk, Attempt::Restrict { .. }) => {
            failed("the keyring that it would be checked with leads back to it", "name another one")
        }
        (Errno::Eacces, Attempt::Restrict { keyring }) if keyring.is_the_kernels() => {
            failed("the kernel has set its rule", "its rule is fixed when the kernel is built")
        }
        (Errno::Eacces, Attempt::Permissions { .. } | Attempt::Restrict { .. }) => failed(
            "this user may not set its attributes; nobody may for the kernel's own keyrings",
            "imara keyring show prints who may",
        ),
        (Errno::Enokey, Attempt::Permissions { .. }) => failed("it is not there", "imara keyring show"),
        (Errno::Einval, Attempt::Permissions { .. }) => failed("the kernel does not take this set", ""),
        (Errno::Enfile, _) => failed("the keyring is full", "remove keys from it"),
        _ => failed(&system_words(error), ""),
    }
}

/// The error in the system's words, without its number.
fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Whose signature a certificate needs.
fn trusted_by(keyring: &Keyring) -> &'static str {
    if keyring.is(".secondary_trusted_keys") {
        ".builtin_trusted_keys, .secondary_trusted_keys or .machine (CONFIG_SYSTEM_TRUSTED_KEYS, keys enrolled with mokutil)"
    } else {
        ".builtin_trusted_keys (or, with CONFIG_IMA_KEYRINGS_PERMIT_SIGNED_BY_BUILTIN_OR_SECONDARY, .secondary_trusted_keys or .machine)"
    }
}

/// Who fills a keyring that nobody may write to, and the way to get a key in there.
fn filled_by(keyring: &Keyring) -> Option<(&'static str, &'static str)> {
    Some(match keyring.name.as_slice() {
        b".builtin_trusted_keys" => (
            "its certificates are built into the kernel",
            "build them in (CONFIG_SYSTEM_TRUSTED_KEYS), or add yours, signed by one of them, to .secondary_trusted_keys",
        ),
        b".platform" => ("the firmware's db fills it at boot", "enrol the certificate in the firmware's db"),
        b".machine" => (
            "shim's MOK list fills it at boot",
            "mokutil --import CERT, and mokutil --trust-mok; then reboot and confirm",
        ),
        b".blacklist" => (
            "the firmware's dbx and the kernel fill it",
            "a file of digests and keys for the guard: block-list in its configuration",
        ),
        _ => return None,
    })
}
