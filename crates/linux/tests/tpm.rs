//! Sessions, objects and quotes, against the `swtpm` that is installed here, which has no resource manager. Without one, each
//! test says so and passes.

use std::{
    io,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use imara_engine::{
    crypto::PublicKey,
    tpm::{
        AuthValue, Hierarchy, LoadedRecord, Object, PcrPolicy, ResponseCode, SealedObject, Sealing, Tpm, TpmError,
        Transport, UnsealPolicy,
        template::{self, KeyKind},
    },
};
use imara_format::{
    hash::{Digest, HashAlgorithm},
    pcr::PcrValues,
    tpm::{ObjectAttributes, PcrSelection, QuoteAttestation, TpmSignature},
};
use imara_linux::tpm_socket::SocketTransport;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// A software TPM of a test's own, without resource manager, which ends with the test.
struct Software {
    dir: TempDir,
}

impl Software {
    fn start(test: &str) -> Option<Self> {
        if Command::new("swtpm").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: {test}: swtpm is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let status = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--daemon"])
            .args(["--tpmstate", &format!("dir={at}"), "--server", &format!("type=unixio,path={at}/socket")])
            .args(["--pid", &format!("file={at}/pid")])
            .status()
            .unwrap();
        assert!(status.success());
        Some(Self { dir })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn tpm(&self) -> Tpm {
        Tpm::new(Box::new(SocketTransport::unix(self.socket()).patient())).unwrap()
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.dir.path().join("pid")).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }
}

/// With `noDA`: a wrong value of what has it not locks the TPM after a few times.
const USER: ObjectAttributes = ObjectAttributes::USER_WITH_AUTH.with(ObjectAttributes::NO_DA);
/// `TPM_RC_BAD_AUTH`, session 1.
const WRONG_VALUE: u32 = 0x9a2;
const SHA256: u16 = 0x000b;

fn value(text: &str) -> AuthValue {
    AuthValue::new(text.as_bytes().to_vec()).unwrap()
}

fn none() -> AuthValue {
    AuthValue::empty()
}

fn sealing<'a>(data: &'a [u8], auth: &'a AuthValue, policy: &'a [u8]) -> Sealing<'a> {
    let attributes = if policy.is_empty() { USER } else { ObjectAttributes::NO_DA };
    Sealing { data, auth, attributes, name_algorithm: SHA256, policy }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, TpmError>) -> u32 {
    match result {
        Err(TpmError::Refused { code, .. }) => code.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_sealed_under_either_storage_key_is_unsealed_with_its_value_alone() {
    let Some(software) = Software::start("what_is_sealed_under_either_storage_key_is_unsealed_with_its_value_alone")
    else {
        return;
    };
    let mut tpm = software.tpm();
    for kind in [KeyKind::P256, KeyKind::Rsa2048] {
        for (data, auth) in
            [(vec![1; 32], none()), (vec![0x5a; 128], value("a value")), (vec![7], value(&"x".repeat(32)))]
        {
            let (sealed, unsealed, wrong) = tpm
                .leaving_nothing(|tpm| {
                    let parent = tpm.storage_key(Hierarchy::Owner.handle(), kind, &none())?;
                    let sealed = tpm.seal(&parent, &none(), &sealing(&data, &auth, &[]))?;
                    let unsealed = tpm.unseal(&parent, &none(), &sealed, &auth, None)?;
                    let wrong = tpm.unseal(&parent, &none(), &sealed, &value("wrong"), None);
                    Ok::<_, TpmError>((sealed, unsealed, wrong))
                })
                .unwrap();
            assert_eq!(*unsealed, data, "{kind:?}");
            assert_eq!(refusal(wrong), WRONG_VALUE, "{kind:?}");
            assert_eq!(sealed.public.attributes, USER);
            assert_eq!(tpm.handles_loaded().unwrap(), []);
        }
    }
}

#[test]
fn what_is_sealed_to_pcrs_is_unsealed_only_with_their_values() {
    let Some(software) = Software::start("what_is_sealed_to_pcrs_is_unsealed_only_with_their_values") else { return };
    let mut tpm = software.tpm();
    let selection = PcrSelection::parse("sha256:16,23").unwrap();
    let now = |tpm: &mut Tpm| {
        let mut values = PcrValues::new();
        for (_, pcr, digest) in tpm.pcr_read_selection(&selection).unwrap() {
            values.insert(pcr, digest).unwrap();
        }
        values
    };
    let extend = |tpm: &mut Tpm| tpm.pcr_extend(23, &[Digest::ones(HashAlgorithm::Sha256)]).unwrap();
    let zero = now(&mut tpm);
    extend(&mut tpm);
    let once = now(&mut tpm);
    extend(&mut tpm);
    let twice = now(&mut tpm);
    tpm.pcr_reset(23).unwrap();
    assert_eq!(now(&mut tpm), zero);

    // Values that the PCRs will have: none, one and two extends of PCR 23.
    for (name, sets, auth, opens) in [
        ("now", vec![zero.clone()], none(), [true, false, false]),
        ("now or after", vec![zero.clone(), once.clone()], none(), [true, true, false]),
        ("after, and a value", vec![once.clone(), twice.clone()], value("v"), [false, true, true]),
    ] {
        let policy = PcrPolicy::new(selection.clone(), &sets, !auth.as_bytes().is_empty()).unwrap();
        let digest = policy.digest(HashAlgorithm::Sha256).unwrap();
        for (extends, opens) in opens.into_iter().enumerate() {
            tpm.pcr_reset(23).unwrap();
            let (unsealed, without_value) = tpm
                .leaving_nothing(|tpm| {
                    let parent = tpm.storage_key(Hierarchy::Owner.handle(), KeyKind::P256, &none())?;
                    let sealed = tpm.seal(&parent, &none(), &sealing(b"secret", &auth, digest.as_bytes()))?;
                    for _ in 0..extends {
                        extend(tpm);
                    }
                    let policy = UnsealPolicy::Pcrs(&policy);
                    let unsealed = tpm.unseal(&parent, &none(), &sealed, &auth, Some(&policy));
                    let without_value = tpm.unseal(&parent, &none(), &sealed, &value("wrong"), Some(&policy));
                    // A policy is the only way in.
                    assert_eq!(refusal(tpm.unseal(&parent, &none(), &sealed, &auth, None)), 0x12f, "{name}");
                    Ok::<_, TpmError>((unsealed, without_value))
                })
                .unwrap();
            match opens {
                true => assert_eq!(**unsealed.as_ref().unwrap(), *b"secret", "{name}, {extends}"),
                false => assert!(matches!(refusal(unsealed), 0x99d | 0x1c4), "{name}, {extends}"),
            }
            if opens && !auth.is_empty() {
                assert_eq!(refusal(without_value), WRONG_VALUE, "{name}, {extends}");
            }
            assert_eq!(tpm.handles_loaded().unwrap(), []);
        }
    }
}

#[test]
fn a_changed_object_and_another_parent_are_refused() {
    let Some(software) = Software::start("a_changed_object_and_another_parent_are_refused") else { return };
    let mut tpm = software.tpm();
    let unseal = |tpm: &mut Tpm, parent: &Object, sealed: &SealedObject| {
        tpm.leaving_nothing(|tpm| tpm.unseal(parent, &none(), sealed, &none(), None))
    };
    let sealed = tpm
        .leaving_nothing(|tpm| {
            let owner = Hierarchy::Owner.handle();
            let ecc = tpm.storage_key(owner, KeyKind::P256, &none())?;
            tpm.evict_control(&none(), &ecc, 0x8100_0001)?;
            let rsa = tpm.storage_key(owner, KeyKind::Rsa2048, &none())?;
            tpm.evict_control(&none(), &rsa, 0x8100_0002)?;
            tpm.seal(&ecc, &none(), &sealing(b"secret", &none(), &[]))
        })
        .unwrap();
    let (ecc, rsa) = (tpm.object(0x8100_0001).unwrap(), tpm.object(0x8100_0002).unwrap());
    assert!(ecc.is_persistent());
    assert_eq!(tpm.persistent_handles().unwrap(), [0x8100_0001, 0x8100_0002]);
    assert_eq!(**unseal(&mut tpm, &ecc, &sealed).as_ref().unwrap(), *b"secret");
    assert_eq!(refusal(unseal(&mut tpm, &rsa, &sealed)), 0x1df);
    let mut changed = sealed.clone();
    changed.private[40] ^= 1;
    assert_eq!(refusal(unseal(&mut tpm, &ecc, &changed)), 0x1df);
    tpm.evict_control(&none(), &rsa, 0x8100_0002).unwrap();
    assert_eq!(tpm.persistent_handles().unwrap(), [0x8100_0001]);
    assert_eq!(refusal(tpm.object(0x8100_0002)), 0x18b);
}

#[test]
fn quotes_verify_under_keys_of_either_kind() {
    let Some(software) = Software::start("quotes_verify_under_keys_of_either_kind") else { return };
    let mut tpm = software.tpm();
    let selection = PcrSelection::parse("sha256:0,10").unwrap();
    for kind in [KeyKind::P256, KeyKind::Rsa2048] {
        let (key, quote) = tpm
            .leaving_nothing(|tpm| {
                let key = tpm.create_primary(Hierarchy::Endorsement, &none(), &template::attestation_key(kind))?;
                let quote = tpm.quote(&key, &none(), b"nonce", &selection)?;
                Ok::<_, TpmError>((key, quote))
            })
            .unwrap();
        let message = QuoteAttestation::parse(&quote.message).unwrap();
        assert_eq!((message.nonce.as_slice(), &message.selection), (b"nonce".as_slice(), &selection));
        assert_eq!(message.signer, key.name().qualified(&Hierarchy::Endorsement.name()).unwrap().as_bytes());
        let public = PublicKey::from_public_area(key.public()).unwrap().unwrap();
        public.verify_tpm(&quote.message, &TpmSignature::parse(&quote.signature).unwrap()).unwrap();
        assert_eq!(tpm.handles_loaded().unwrap(), []);
    }
    assert!(matches!(
        tpm.create_primary(Hierarchy::Owner, &value("wrong"), &template::srk(KeyKind::P256)),
        Err(TpmError::Refused { code, .. }) if code == ResponseCode(0x9a2)
    ));
    tpm.leaving_nothing(|_| Ok::<_, TpmError>(())).unwrap();
    assert_eq!(tpm.handles_loaded().unwrap(), [], "the session of the refused command");
}

/// A record in memory, which outlives its process, and a transport that dies at the Nth command, before or after it is done.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<u8>>>);

impl LoadedRecord for Record {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        *self.0.lock().unwrap() = text.to_vec();
        Ok(())
    }
}

struct Mortal {
    transport: SocketTransport,
    record: Arc<Mutex<Vec<u8>>>,
    left: usize,
    done: bool,
    /// What the record was when it died.
    last: Option<Vec<u8>>,
}

impl Transport for Mortal {
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        let dead = || io::Error::new(io::ErrorKind::BrokenPipe, "dead");
        if let Some(last) = &self.last {
            // What would be recorded by one that is dead is not.
            self.record.lock().unwrap().clone_from(last);
            return Err(dead());
        }
        if self.left > 0 {
            self.left -= 1;
            return self.transport.transmit(command, response);
        }
        if self.done {
            self.transport.transmit(command, response)?;
        }
        self.last = Some(self.record.lock().unwrap().clone());
        Err(dead())
    }
}

#[test]
fn what_a_killed_process_has_left_is_flushed_by_the_next_and_nothing_else_is() {
    let test = "what_a_killed_process_has_left_is_flushed_by_the_next_and_nothing_else_is";
    let Some(software) = Software::start(test) else { return };
    // Another program's key stays loaded all the time.
    let mut other = software.tpm();
    let others = other.create_primary(Hierarchy::Owner, &none(), &template::attestation_key(KeyKind::P256)).unwrap();
    drop(other);

    let selection = PcrSelection::parse("sha256:23").unwrap();
    let record = Record::default();
    let mut alive = false;
    for left in 0.. {
        for done in [false, true] {
            let mortal = Mortal {
                transport: SocketTransport::unix(software.socket()).patient(),
                record: record.0.clone(),
                left,
                done,
                last: None,
            };
            let work = || -> Result<(), TpmError> {
                let mut tpm = Tpm::new(Box::new(mortal))?;
                tpm.record_loaded(Box::new(record.clone()))?;
                tpm.leaving_nothing(|tpm| {
                    let policy = PcrPolicy::new(
                        selection.clone(),
                        &[PcrValues::from_text(&format!("sha256:23 {}", "00".repeat(32)), HashAlgorithm::Sha256)
                            .unwrap()],
                        false,
                    )
                    .unwrap();
                    let digest = policy.digest(HashAlgorithm::Sha256).unwrap();
                    let parent = tpm.storage_key(Hierarchy::Owner.handle(), KeyKind::P256, &none())?;
                    let sealed = tpm.seal(&parent, &none(), &sealing(b"secret", &none(), digest.as_bytes()))?;
                    let policy = UnsealPolicy::Pcrs(&policy);
                    tpm.unseal(&parent, &none(), &sealed, &none(), Some(&policy))?;
                    let mut pieces = vec![vec![7; 3000], Vec::new()].into_iter();
                    tpm.hash(HashAlgorithm::Sha256, None, || Ok(pieces.next().unwrap_or_default())).map(|_| ())
                })
            };
            alive = work().is_ok();
            let mut next = software.tpm();
            let recovered = next.record_loaded(Box::new(record.clone())).unwrap();
            assert_eq!(next.handles_loaded().unwrap(), [others.handle()], "{left} {done} {recovered:?}");
            assert_eq!(recovered.doubtful, [], "{left} {done}");
        }
        if alive {
            assert!(left > 15, "{left} commands");
            break;
        }
    }
}

#[test]
fn a_lockout_after_wrong_values_is_told_with_the_way_out() {
    let Some(software) = Software::start("a_lockout_after_wrong_values_is_told_with_the_way_out") else { return };
    let mut tpm = software.tpm();
    let result = tpm.leaving_nothing(|tpm| {
        let parent = tpm.storage_key(Hierarchy::Owner.handle(), KeyKind::P256, &none())?;
        let auth = value("right");
        let counted = Sealing { attributes: ObjectAttributes::USER_WITH_AUTH, ..sealing(b"secret", &auth, &[]) };
        let sealed = tpm.seal(&parent, &none(), &counted)?;
        for _ in 0..40 {
            match tpm.unseal(&parent, &none(), &sealed, &value("wrong"), None) {
                Err(TpmError::Refused { code, .. }) if code.0 == 0x98e => {}
                other => return other,
            }
        }
        tpm.unseal(&parent, &none(), &sealed, &auth, None)
    });
    let error = result.unwrap_err();
    assert!(matches!(error, TpmError::Refused { code: ResponseCode::LOCKOUT, .. }), "{error}");
    let lockout = tpm.lockout().unwrap();
    assert!(lockout.locked && lockout.counter >= lockout.max_tries, "{lockout:?}");
}
