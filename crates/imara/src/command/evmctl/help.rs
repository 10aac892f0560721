//! `evmctl help`, and `--help`.

use super::{Ending, Evmctl, Failed, commands, tell_out};
use std::path::PathBuf;

pub fn run(_: &Evmctl, words: &[PathBuf]) -> Ending {
    let Some(name) = words.first() else {
        tell_out("usage: help <command>\n");
        return Ok(());
    };
    match commands().find(|command| name.as_os_str() == command.name) {
        Some(command) => {
            let does = if command.does.is_empty() { String::new() } else { format!("{}\n", command.does) };
            tell_out(format_args!("usage: {} {}\n{does}", command.name, command.arguments));
            Ok(())
        }
        None => {
            tell_out(format_args!("invalid command: {}\n", name.display()));
            Err(Failed::Negative)
        }
    }
}

/// What there is, on standard output.
pub fn everything() {
    let mut text = "Usage: evmctl [-v] <command> [OPTIONS]\ncommands:\n --version\n".to_owned();
    for command in commands() {
        text += &format!(" {} {}\n", command.name, command.arguments);
    }
    tell_out(format_args!("{text}\n{OPTIONS}"));
}

const OPTIONS: &str = "\
  -a, --hashalgo NAME    the hash: sha1, sha224, sha256, sha384, sha512, sha3-256, sm3,
                         streebog256, ... (default: sha256)
  -s, --imasig           sign, hmac: sign the content first
  -d, --imahash          sign, hmac: label the content with its digest first
      --veritysig        sign_hash: the digests are of fs-verity
  -f, --sigfile          keep the signature in FILE.sig too, or take it from there
      --xattr-user       user.ima and user.evm in place of security.ima and security.evm
  -k, --key KEY          the key to sign with, or certificates to verify with, by commas
                         (default: /etc/keys/privkey_evm.pem, /etc/keys/x509_evm.der);
                         a pkcs11: URI names a key in a token
      --keyid HEX        the key id to write into the signature
      --keyid-from-cert CERT
                         the same, out of a certificate
  -o, --portable         a portable EVM signature
  -p, --pass[=WORD]      the key's passphrase; without WORD it is asked for
  -r, --recursive        the files of a directory
  -t, --type TYPES       of f (files), x (not those that have both labels),
                         m (one filesystem)
  -n                     change no attribute; the result is printed
  -u, --uuid[=UUID]      the filesystem's UUID for EVM; without UUID none is used
      --smack            count the further attributes of Smack for EVM
      --m32, --m64       EVM for a kernel of 32 or 64 bits
      --ino, --uid, --gid, --mode, --generation NUMBER
                         in place of the file's, for EVM
      --ima HEX, --selinux TEXT, --caps[=TEXT]
                         in place of the file's attribute, for EVM
      --verify-sig       ima_measurement: verify the signatures in the list
      --ignore-violations
                         ima_measurement: take violations as the TPM has them
      --pcrs [HASH,]FILE PCR values in place of the TPM's
      --verify-bank=HASH one bank alone
      --hwtpm            the hardware TPM's PCRs
      --engine NAME, --provider NAME
                         pkcs11, for a key in a token; others are not to be had here
      --hmackey FILE     the HMAC key (default: /etc/keys/evm-key-plain)
      --rsa              version 1 signatures; with EVMCTL_SIGV1=1 in the environment
  -v                     tell more
  -h, --help             this

Environment:
  EVMCTL_KEY_PASSWORD    the key's passphrase, where -p gives none
  EVMCTL_SIGV1           1: make version 1 signatures for --rsa, and have the command convert
";
