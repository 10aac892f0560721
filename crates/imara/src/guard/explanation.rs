//! What `imara explain` says: which rule, which digest, which label, which key, and what would make it pass.

use imara_engine::appraise::{Appraisal, Cause};
use imara_engine::check::{Checker, File, Hook, Mode};
use imara_engine::evm::Evm;
use imara_engine::explain::{Explanation, User, explain};
use imara_engine::keyring::{Keyring, VerifyError};
use imara_engine::policy::CompiledPolicy;
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::label::Label;
use imara_format::policy::{AlgorithmSet, Func};
use imara_format::signature::Signature;
use imara_linux::opened::OpenedFile;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The hooks that a file can meet at level 1, with what each means to people.
const HOOKS: [(Func, u8, &str); 3] =
    [(Func::BprmCheck, 1, "executed"), (Func::MmapCheck, 1, "mapped as a library"), (Func::FileCheck, 4, "read")];

/// What a file is judged by.
#[derive(Clone, Copy)]
pub struct By<'a> {
    /// The policy.
    pub policy: &'a CompiledPolicy,
    /// What labels are verified with.
    pub keys: &'a Keyring,
    /// EVM, where there is one.
    pub evm: Option<&'a Evm>,
    /// The default hash.
    pub hash: HashAlgorithm,
    /// The mode.
    pub mode: Mode,
    /// Who has seen what was done to it.
    pub checker: Option<&'a Checker>,
}

/// Explains a file: a JSON document with a schema number.
///
/// # Errors
/// What opening or reading the file says, as text.
pub fn explain_file(by: By<'_>, path: &Path, uid: u32) -> Result<Value, String> {
    let By { policy, keys, evm, hash, mode, checker } = by;
    let file = imara_linux::files::open_regular(path).map_err(|error| error.to_string())?;
    let opened = OpenedFile::new(file.as_fd()).map_err(|error| format!("{}: {error}", path.display()))?;
    let mappable = opened.elf().is_some_and(|elf| elf.executable_segment);
    let mut hooks = Vec::new();
    let mut denied = false;
    for (func, mask, used) in HOOKS {
        if func == Func::MmapCheck && !mappable {
            continue;
        }
        let mut explanation = explain(policy, keys, evm, hash, &opened, &User(uid), Hook { func, mask })
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let label = explanation.label.as_deref();
        explanation.not_to_be_written =
            checker.and_then(|checker| checker.label_not_to_be_written(opened.id(), label, false));
        let verdict = verdict(&explanation, mode);
        denied |= verdict == "deny";
        hooks.push(describe(policy, keys, &explanation, verdict, used, path));
    }
    Ok(json!({
        "schema": 1,
        "path": path.to_string_lossy(),
        "uid": uid,
        "mode": mode.name(),
        "verdict": if denied { "deny" } else { "allow" },
        "hooks": hooks,
    }))
}

fn verdict(explanation: &Explanation, mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce if explanation.cause().is_some() => "deny",
        Mode::Enforce | Mode::Log | Mode::Fix | Mode::Off => "allow",
    }
}

fn describe(
    policy: &CompiledPolicy,
    keys: &Keyring,
    explanation: &Explanation,
    verdict: &str,
    used: &str,
    path: &Path,
) -> Value {
    let rule = |index: Option<usize>| index.and_then(|index| rule_json(policy, index));
    let decision = &explanation.decision;
    let cause = explanation.cause();
    json!({
        "func": explanation.hook.func.name(),
        "when": used,
        "verdict": verdict,
        "measure": rule(decision.measure),
        "appraise": rule(decision.appraise),
        "audit": rule(decision.audit),
        "hash": rule(decision.hash),
        "digest": explanation.digest.to_string(),
        "verity": explanation.verity,
        "label": label_json(explanation.label.as_deref(), keys),
        "evm": explanation.evm.as_ref().map(|evm| json!({
            "status": evm.status.words(),
            "reason": evm.reason.as_ref().map(ToString::to_string),
        })),
        "cause": cause.map(Cause::words),
        "why": explanation.appraisal.as_ref().map(|appraisal| why(appraisal, cause, explanation)),
        "to_pass": cause.map(|cause| remedy(cause, path, allowed(explanation, policy))),
        "rules": explanation.rules.iter().map(|rule| json!({
            "rule": rule.rule + 1,
            "line": policy.rules().get(rule.rule).map(|rule| rule.line),
            "outcome": rule.why.to_string(),
        })).collect::<Vec<_>>(),
    })
}

fn rule_json(policy: &CompiledPolicy, index: usize) -> Option<Value> {
    let rule = policy.rules().get(index)?;
    Some(json!({ "rule": index + 1, "line": rule.line, "text": rule.to_string() }))
}

fn label_json(label: Option<&[u8]>, keys: &Keyring) -> Value {
    let Some(label) = label else {
        return Value::Null;
    };
    let key = |id: &[u8; 4]| {
        let known = keys.find(id);
        json!({
            "id": to_hex(id),
            "known": known.is_some(),
            "subject": known.and_then(|key| key.subject()),
        })
    };
    match Label::parse_ima(label) {
        Ok(Label::Digest { digest, .. }) => json!({ "type": "digest", "digest": digest.to_string() }),
        Ok(Label::Signature(Signature::V2(signature))) => json!({
            "type": "signature",
            "version": 2,
            "algorithm": signature.algorithm.name(),
            "key": key(&signature.key_id),
        }),
        Ok(Label::VeritySignature(Signature::V3(signature))) => json!({
            "type": "verity-signature",
            "version": 3,
            "algorithm": signature.algorithm.name(),
            "key": key(&signature.key_id),
        }),
        Ok(Label::Signature(other) | Label::VeritySignature(other) | Label::EvmPortable(other)) => json!({
            "type": "signature",
            "version": other.version(),
            "key": { "id": to_hex(other.key_id()), "known": false },
        }),
        Ok(Label::EvmHmac(_)) => json!({ "type": "evm-hmac" }),
        Err(error) => json!({ "type": "unreadable", "error": error.to_string(), "bytes": to_hex(label) }),
    }
}

fn why(appraisal: &Appraisal, cause: Option<Cause>, explanation: &Explanation) -> String {
    let Some(cause) = cause else {
        return "the label matches the content".into();
    };
    match (cause, &appraisal.signature_error) {
        (Cause::InvalidSignature | Cause::InvalidVeritySignature, Some(VerifyError::UnknownKey { key_id })) => {
            format!("it is signed with the key {}, which the guard was not given", to_hex(key_id))
        }
        (Cause::InvalidSignature | Cause::InvalidVeritySignature, Some(VerifyError::RevokedKey { key_id })) => {
            format!("it is signed with the key {}, which is revoked", to_hex(key_id))
        }
        (Cause::InvalidSignature, Some(VerifyError::Rejected { key_id, .. })) => format!(
            "the signature by the key {} is over other content: the file was changed after it was signed, or the label \
             belongs to another file",
            to_hex(key_id)
        ),
        (
            Cause::InvalidSignature | Cause::InvalidVeritySignature,
            Some(error @ VerifyError::AlgorithmMismatch { .. }),
        ) => error.to_string(),
        (Cause::InvalidSignature, None) => match explanation.label.as_deref().map(Label::parse_ima) {
            Some(Err(error)) => format!("the signature cannot be read: {error}"),
            _ => "the signature's version is not one that is verified here".into(),
        },
        (Cause::Blocked, _) => {
            let digest = appraisal.blocked.map_or_else(String::new, |digest| format!(" as {digest}"));
            format!("its content is on the block list{digest}, whatever it is labelled with")
        }
        (Cause::MissingHash, _) => "it has no label (security.ima)".into(),
        (Cause::ImaSignatureRequired, _) => "the rule wants a signature, and the label holds none".into(),
        (Cause::NoVerityDigest, _) => {
            "the rule goes by the fs-verity digest, and fs-verity is not enabled for it".into()
        }
        (Cause::VeritySignatureRequired, _) => "the rule wants a signature over the fs-verity digest".into(),
        (Cause::MissingHmac | Cause::InvalidHmac | Cause::InvalidFailImmutable, _) => {
            let reason = explanation.evm.as_ref().and_then(|evm| evm.reason.as_ref());
            format!("EVM: {}", reason.map_or_else(|| cause.words().to_owned(), ToString::to_string))
        }
        (Cause::InvalidHash, _) => "the digest in the label is not the content's: the file was changed".into(),
        (Cause::DeniedHashAlgorithm, _) if explanation.not_to_be_written.is_some() => format!(
            "the label uses {}, which the rule for SETXATTR_CHECK does not let be written",
            explanation.digest.algorithm()
        ),
        (Cause::DeniedHashAlgorithm, _) => {
            format!("the label uses {}, which the rule does not allow", explanation.digest.algorithm())
        }
        (Cause::UnknownImaData, _) => match explanation.label.as_deref().map(Label::parse_ima) {
            Some(Err(error)) => format!("the label cannot be read: {error}"),
            _ => "the label is of a type that does not belong there".into(),
        },
        (Cause::InvalidVeritySignature, Some(VerifyError::Rejected { key_id, .. })) => format!(
            "the signature by the key {} is over another fs-verity digest: the file is another one, or fs-verity was enabled with \
             another hash, block size or salt",
            to_hex(key_id)
        ),
        (
            Cause::InvalidSignatureVersion
            | Cause::InvalidVeritySignature
            | Cause::InvalidVerityDigest
            | Cause::Unknown
            | Cause::CollectFailed
            | Cause::MeasureFailed
            | Cause::Immutable
            | Cause::Writers
            | Cause::Overdue
            | Cause::NoVerdict
            | Cause::FailedMprotect
            | Cause::Protected
            | Cause::UnavailableHashAlgorithm,
            _,
        ) => cause.words().into(),
    }
}

/// A hash algorithm that the rules allow.
fn allowed(explanation: &Explanation, policy: &CompiledPolicy) -> Option<HashAlgorithm> {
    let sets = [explanation.decision.allowed_algorithms, policy.setxattr_algorithms()];
    sets.into_iter().flatten().reduce(AlgorithmSet::intersection)?.iter().next()
}

/// What would make it pass, as a command to type. `allowed` is a hash algorithm that the rule allows, where it matters.
pub fn remedy(cause: Cause, path: &Path, allowed: Option<HashAlgorithm>) -> String {
    let file = quoted(path);
    match cause {
        Cause::MissingHash | Cause::InvalidHash => {
            format!("imara sign -k /etc/keys/privkey_ima.pem {file}    # if its content is what you meant")
        }
        Cause::DeniedHashAlgorithm | Cause::UnavailableHashAlgorithm => match allowed {
            Some(allowed) => format!("imara sign -k /etc/keys/privkey_ima.pem -a {} {file}", allowed.name()),
            None => format!("imara explain {file}    # tells which hash algorithm the rule takes"),
        },
        Cause::Immutable => format!("setfattr -x security.ima {file}    # then change it, and sign it again"),
        Cause::Writers => format!("fuser -v {file}    # tells who has it open for writing"),
        Cause::CollectFailed => format!("sha256sum {file}    # tells why it cannot be read"),
        Cause::MeasureFailed => "imara status    # tells where the list is: is its file system full?".into(),
        Cause::Overdue => "imara status    # tells what is waited for".into(),
        Cause::FailedMprotect => format!("imara explain {file}    # tells what it lacks"),
        Cause::NoVerdict => format!("imara explain {file}    # and try it again: the guard has judged it meanwhile"),
        Cause::Protected => "imara status    # it is the guard's own, which nobody else may change".into(),
        Cause::MissingHmac => {
            format!("imara evm hmac --write {file}    # if its owner, mode and attributes are what you meant")
        }
        Cause::InvalidHmac | Cause::InvalidFailImmutable => {
            format!("imara evm explain {file}    # tells what was changed, where that can be known")
        }
        Cause::Blocked => "another content; or, if the entry is not meant, a guard without it in its block list".into(),
        Cause::VeritySignatureRequired | Cause::InvalidVeritySignature | Cause::InvalidVerityDigest => {
            format!("imara verity sign -k /etc/keys/privkey_ima.pem {file}    # if its content is what you meant")
        }
        Cause::NoVerityDigest => format!("imara verity enable {file}    # and sign it: imara verity sign"),
        Cause::ImaSignatureRequired
        | Cause::InvalidSignature
        | Cause::InvalidSignatureVersion
        | Cause::UnknownImaData
        | Cause::Unknown => format!(
            "imara sign -k /etc/keys/privkey_ima.pem {file}    # with the key of a certificate that the guard has"
        ),
    }
}

/// A path as a shell takes it; one with control characters, or that is not UTF-8, as bash and its kin do.
fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
        Ok(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', "'\\''")),
        _ => {
            let escape = |byte: &u8| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
                0x20..=0x7e => char::from(*byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            };
            format!("$'{}'", bytes.iter().map(escape).collect::<String>())
        }
    }
}

/// The same for people.
pub fn for_people(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{}: {} (mode {}, user {})",
        text(&document["path"]),
        if document["verdict"] == "deny" { "refused" } else { "let through" },
        text(&document["mode"]),
        document["uid"]
    );
    for hook in document["hooks"].as_array().into_iter().flatten() {
        let verdict = if hook["verdict"] == "deny" { "refused" } else { "let through" };
        let _ = write!(out, "\n  when {} ({}): {verdict}", text(&hook["when"]), text(&hook["func"]));
        let _ = match hook["cause"].as_str() {
            Some(cause) => writeln!(out, ", {cause}"),
            None => writeln!(out),
        };
        for class in ["measure", "appraise", "audit", "hash"] {
            let rule = &hook[class];
            if !rule.is_null() {
                let _ = writeln!(
                    out,
                    "    {class:<9} rule {} (line {}): {}",
                    rule["rule"],
                    rule["line"],
                    text(&rule["text"])
                );
            }
        }
        let of = if hook["verity"] == true { "fs-verity" } else { "content" };
        let _ = writeln!(out, "    {of:<9} {}", text(&hook["digest"]));
        let _ = writeln!(out, "    {:<9} {}", "label", label_for_people(&hook["label"]));
        if let Some(status) = hook["evm"]["status"].as_str() {
            let _ = writeln!(out, "    {:<9} {status}", "EVM");
        }
        if let Some(why) = hook["why"].as_str() {
            let _ = writeln!(out, "    {:<9} {why}", "why");
        }
        if let Some(remedy) = hook["to_pass"].as_str() {
            let _ = writeln!(out, "    {:<9} {remedy}", "to pass");
        }
    }
    out
}

fn label_for_people(label: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match label["type"].as_str() {
        None => "none".into(),
        Some("digest") => format!("digest {}", text(&label["digest"])),
        Some(kind @ ("signature" | "verity-signature")) => {
            let kind = if kind == "signature" { kind } else { "fs-verity signature" };
            let key = &label["key"];
            let whose = match key["subject"].as_str() {
                Some(subject) => format!("({subject})"),
                None if key["known"] == true => "(known)".into(),
                None => "(unknown here)".into(),
            };
            let version = &label["version"];
            format!("{kind} v{version}, {}, key {} {whose}", text(&label["algorithm"]), text(&key["id"]))
        }
        Some("unreadable") => format!("unreadable: {}", text(&label["error"])),
        Some(other) => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_for_the_shell_and_does_nothing_to_a_terminal() {
        for (path, expected) in [
            (&b"/srv/app/x-1.2"[..], "/srv/app/x-1.2"),
            (b"/a b", "'/a b'"),
            (b"/it's", "'/it'\\''s'"),
            (b"", "''"),
            ("/ä".as_bytes(), "'/ä'"),
            (b"/a\x1b'\\\n", "$'/a\\x1b\\'\\\\\\x0a'"),
            (b"/\xff", "$'/\\xff'"),
        ] {
            assert_eq!(quoted(Path::new(std::ffi::OsStr::from_bytes(path))), expected, "{path:?}");
        }
    }
}
