//! `imara tpm status`.

use super::SCHEMA;
use super::target::Target;
use crate::command::CommandResult;
use crate::output::{Outcome, print, print_json};
use imara_engine::tpm::template::{self, KeyKind};
use imara_engine::tpm::{Clock, Lockout, Name, Properties, Room, Specification, Tpm, TpmError};
use imara_format::hash::HashAlgorithm;
use imara_format::tpm::{ObjectAttributes, PcrSelection, PublicArea};
use serde_json::{Value, json};
use std::fmt::{self, Write as _};

/// Show the state of the TPM: make, PCR banks, failed authorisations, what is kept and what is loaded in it.
///
/// Exit status: 0 shown, 1 the TPM refused, 2 wrong command line, 3 there is no TPM, or it does not answer.
#[derive(clap::Args)]
pub struct Status {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
struct Found {
    properties: Properties,
    specification: Specification,
    allocation: PcrSelection,
    lockout: Lockout,
    clock: Clock,
    room: Room,
    persistent: Vec<Kept>,
    loaded: Vec<u32>,
    nv_indices: Vec<u32>,
}

/// A persistent object.
struct Kept {
    handle: u32,
    name: Name,
    public: PublicArea,
}

impl Status {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let found = self.target.with(|tpm| Ok(Found::look(tpm)?))?;
        let managed = self.target.tpm.has_resource_manager();
        let name = self.target.tpm.to_string();
        match self.json {
            true => print_json(&found.document(&name, managed)),
            false => print(found.text(&name, managed)),
        }
        Ok(Outcome::Done)
    }
}

impl Found {
    fn look(tpm: &mut Tpm) -> Result<Self, TpmError> {
        let mut persistent = Vec::new();
        for handle in tpm.persistent_handles()? {
            match tpm.object(handle) {
                Ok(object) => {
                    persistent.push(Kept { handle, name: object.name().clone(), public: object.public().clone() });
                }
                // Another program has taken it away since.
                Err(TpmError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            properties: tpm.properties()?,
            specification: tpm.specification()?,
            allocation: tpm.pcr_allocation()?,
            lockout: tpm.lockout()?,
            clock: tpm.clock()?,
            room: tpm.room()?,
            persistent,
            loaded: tpm.handles_loaded()?,
            nv_indices: tpm.nv_indices()?,
        })
    }

    fn text(&self, tpm: &str, managed: bool) -> String {
        let Self { properties, specification, lockout, clock, room, .. } = self;
        let mut text = String::new();
        let mut line = |arguments: fmt::Arguments<'_>| {
            // Writing into memory does not fail.
            let _ = writeln!(text, "{arguments}");
        };
        line(format_args!(
            "{tpm}: TPM 2.0 of {} ({}), firmware {}, specification {}.{:02} of {}",
            properties.manufacturer,
            properties.vendor,
            firmware(properties.firmware),
            specification.revision / 100,
            specification.revision % 100,
            specification.year,
        ));
        let (with, without): (Vec<_>, Vec<_>) = self.allocation.maps().iter().partition(|(_, pcrs)| *pcrs != 0);
        let allocated = PcrSelection::from_maps(with);
        line(format_args!(
            "PCR banks       {}",
            if allocated.is_empty() { "none".to_owned() } else { allocated.to_string() }
        ));
        if !without.is_empty() {
            let names: Vec<_> = without.iter().map(|(id, _)| bank_name(*id)).collect();
            line(format_args!("                implemented, but without PCRs: {}", names.join(", ")));
        }
        line(format_args!("lock-out        {}", lockout_words(lockout)));
        let set = |is| if is { "set" } else { "not set" };
        line(format_args!(
            "authorisations  owner {}, endorsement {}, lockout {}",
            set(lockout.owner_auth_set),
            set(lockout.endorsement_auth_set),
            set(lockout.lockout_auth_set)
        ));
        line(format_args!(
            "clock           {}.{:03} s, resets {}, restarts since {}{}",
            clock.clock / 1000,
            clock.clock % 1000,
            clock.reset_count,
            clock.restart_count,
            if clock.safe { "" } else { "; after an unorderly shutdown it may have gone back" }
        ));
        line(format_args!(
            "kept            {} objects, room for {} more at least",
            self.persistent.len(),
            room.persistent
        ));
        for kept in &self.persistent {
            line(format_args!("  {:#010x}    {}, {}", kept.handle, kept.public, role(kept.handle, &kept.public)));
        }
        line(format_args!("NV indices      {}", self.nv_indices.len()));
        for index in &self.nv_indices {
            line(format_args!("  {index:#010x}    {}", nv_words(*index)));
        }
        let whose =
            if managed { " of this command (the kernel keeps each program's apart)" } else { " of other programs" };
        line(format_args!(
            "loaded          {}{whose}; room for {} objects and {} sessions",
            loaded_words(&self.loaded),
            room.objects,
            room.sessions
        ));
        text
    }

    fn document(&self, tpm: &str, managed: bool) -> Value {
        let Self { properties, specification, lockout, clock, room, .. } = self;
        let banks = self.allocation.maps().iter().map(|(id, pcrs)| {
            let pcrs: Vec<u32> = (0..u32::BITS).filter(|pcr| pcrs >> pcr & 1 == 1).collect();
            json!({ "bank": bank_name(*id), "tpm_id": id, "pcrs": pcrs })
        });
        let kept = self.persistent.iter().map(|kept| {
            json!({
                "handle": format!("{:#010x}", kept.handle),
                "type": kept.public.to_string(),
                "attributes": kept.public.attributes.to_string(),
                "role": role(kept.handle, &kept.public),
                "name": kept.name.to_string(),
            })
        });
        let nv =
            self.nv_indices.iter().map(|index| json!({ "index": format!("{index:#010x}"), "is": nv_words(*index) }));
        json!({
            "schema": SCHEMA,
            "tpm": tpm,
            "resource_manager": managed,
            "manufacturer": properties.manufacturer,
            "vendor": properties.vendor,
            "firmware": firmware(properties.firmware),
            "specification": { "revision": specification.revision, "year": specification.year },
            "banks": banks.collect::<Vec<_>>(),
            "lockout": {
                "locked": lockout.locked,
                "failures": lockout.counter,
                "max_failures": lockout.max_tries,
                "forgets_one_after_s": lockout.interval,
                "lockout_auth_recovers_after_s": lockout.recovery,
            },
            "authorisations_set": {
                "owner": lockout.owner_auth_set,
                "endorsement": lockout.endorsement_auth_set,
                "lockout": lockout.lockout_auth_set,
            },
            "clock": {
                "ms": clock.clock,
                "resets": clock.reset_count,
                "restarts": clock.restart_count,
                "safe": clock.safe,
            },
            "room": {
                "objects": room.objects,
                "sessions": room.sessions,
                "active_sessions": room.active_sessions,
                "persistent": room.persistent,
            },
            "persistent": kept.collect::<Vec<_>>(),
            "nv_indices": nv.collect::<Vec<_>>(),
            "loaded": self.loaded.iter().map(|handle| format!("{handle:#010x}")).collect::<Vec<_>>(),
        })
    }
}

/// As firmware updaters write it: four numbers.
fn firmware((high, low): (u32, u32)) -> String {
    format!("{}.{}.{}.{}", high >> 16, high & 0xffff, low >> 16, low & 0xffff)
}

fn bank_name(id: u16) -> String {
    HashAlgorithm::from_tpm_id(id).map_or_else(|| format!("{id:#06x}"), |bank| bank.name().to_owned())
}

fn lockout_words(lockout: &Lockout) -> String {
    let Lockout { counter, max_tries, interval, .. } = lockout;
    let forgets = match interval {
        0 => "none is ever forgotten".to_owned(),
        _ => format!("one is forgotten every {interval} s"),
    };
    match lockout.locked {
        true => format!(
            "LOCKED: failed authorisations {counter} of {max_tries}, {forgets}. Whatever failures count for is refused; \
             who has the lockout authorisation ends it with `tpm2_dictionarylockout -c`"
        ),
        false => format!("no; failed authorisations {counter} of {max_tries}, {forgets}"),
    }
}

/// What a persistent object is for.
fn role(handle: u32, public: &PublicArea) -> &'static str {
    /// The first half of the handles that the TCG's registry has for endorsement keys.
    const ENDORSEMENT: u32 = 0x8101;
    let srk = [KeyKind::Rsa2048, KeyKind::P256].map(template::srk);
    if srk.iter().any(|srk| template::is_made_by(public, srk)) {
        return "storage root key (by its template)";
    }
    if public.attributes == template::endorsement_key().attributes && public.is_storage_key() {
        return "endorsement key (by its template)";
    }
    if public.is_attestation_key() {
        return "attestation key";
    }
    if public.is_storage_key() {
        return if handle >> 16 == ENDORSEMENT { "endorsement key (by its handle)" } else { "storage key" };
    }
    let signs = public.attributes.contains(ObjectAttributes::SIGN);
    match (signs, public.attributes.contains(ObjectAttributes::DECRYPT)) {
        (true, true) => "key that signs and decrypts",
        (true, false) => "signing key",
        (false, true) => "decryption key",
        (false, false) => "data",
    }
}

/// What is usually at an NV index.
///
/// Source: TCG EK Credential Profile, 2.2.1.4; TCG Registry of Reserved TPM 2.0 Handles, 2.2.
fn nv_words(index: u32) -> &'static str {
    match index {
        0x01c0_0002 => "certificate of the RSA-2048 endorsement key",
        0x01c0_000a => "certificate of the P-256 endorsement key",
        0x01c0_0003 | 0x01c0_000b => "nonce of an endorsement key's template",
        0x01c0_0004 | 0x01c0_000c => "template of an endorsement key",
        0x01c0_0012..=0x01c0_001f => "certificate of an endorsement key",
        0x01c0_0100..=0x01c0_01ff => "certificates of those who certify endorsement keys",
        0x0100_0000..=0x013f_ffff => "of the manufacturer",
        0x0140_0000..=0x017f_ffff => "of the platform",
        0x0180_0000..=0x01bf_ffff => "of the owner",
        0x01c0_0000..=0x01ff_ffff => "reserved by the TCG",
        _ => "of an unknown kind",
    }
}

fn loaded_words(handles: &[u32]) -> String {
    /// The first byte of a transient object's handle.
    const TRANSIENT: u32 = 0x80;
    let (objects, sessions): (Vec<u32>, Vec<u32>) = handles.iter().partition(|handle| **handle >> 24 == TRANSIENT);
    let words = |handles: &[u32], noun: &str| match handles {
        [] => format!("no {noun}s"),
        [one] => format!("1 {noun} ({one:#010x})"),
        several => format!("{} {noun}s ({})", several.len(), super::target::handles(several)),
    };
    format!("{}, {}", words(&objects, "object"), words(&sessions, "session"))
}
