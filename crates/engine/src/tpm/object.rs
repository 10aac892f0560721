//! Objects: keys and sealed data, made, loaded, used, kept and flushed.
//!
//! What is secret of an object that is made (its authorisation value, the data to be sealed) goes to the TPM encrypted, and
//! what is unsealed comes back so, in a session that is salted with the parent key.
//!
//! Source: TCG TPM 2.0 Library, part 3, "Object Commands", "Hierarchy Commands".

use imara_format::tpm::{ObjectAttributes, PcrSelection, PublicArea, Reader};
use tpm2_protocol::{
    basic::TpmHandle,
    data::TpmCc,
    frame::{TpmEvictControlCommand, TpmReadPublicCommand, TpmUnsealCommand},
};
use zeroize::Zeroizing;

use super::{
    AuthValue, Name, Tpm, TpmError,
    command::{Assembled, Authorisation, Request},
    loaded::Making,
    policy::PcrPolicy,
    session::{Session, SessionKind},
    template,
};

/// Where the handles of objects begin that go with a reset.
pub(super) const TRANSIENT: u32 = 0x8000_0000;
/// Where the handles of objects begin that stay.
const PERSISTENT: u32 = 0x8100_0000;

/// Whether a handle is an object's, and not a session's.
pub(super) fn is_object(handle: u32) -> bool {
    handle >> 24 == TRANSIENT >> 24
}

/// A tree of keys with a seed of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hierarchy {
    /// The owner's: storage keys. `TPM2_Clear` changes its seed.
    Owner,
    /// The manufacturer's: what tells one TPM from another.
    Endorsement,
}

impl Hierarchy {
    /// Its handle.
    pub const fn handle(self) -> u32 {
        match self {
            Self::Owner => 0x4000_0001,
            Self::Endorsement => 0x4000_000b,
        }
    }

    /// The qualified name of its primary keys' parent.
    pub fn name(self) -> Name {
        Name::of_handle(self.handle())
    }
}

/// An object in the TPM: loaded until it is flushed, or persistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    handle: u32,
    public: PublicArea,
    name: Name,
}

impl Object {
    #[cfg(test)]
    pub(super) fn invented(handle: u32, public: PublicArea) -> Self {
        let name = Name::of_object(&public).unwrap();
        Self { handle, public, name }
    }

    /// Its handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// What it is.
    pub fn public(&self) -> &PublicArea {
        &self.public
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Whether it stays in the TPM when the power goes.
    pub fn is_persistent(&self) -> bool {
        self.handle >> 24 == PERSISTENT >> 24
    }
}

/// A sealed object, as it is kept outside of the TPM: only the TPM that made it can load it, under the same parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedObject {
    /// Its public area.
    pub public: PublicArea,
    /// The rest, encrypted by the parent.
    pub private: Vec<u8>,
}

/// What is sealed, and how.
pub struct Sealing<'a> {
    /// The data, 1 to 128 bytes.
    pub data: &'a [u8],
    /// The authorisation value to unseal it with.
    pub auth: &'a AuthValue,
    /// Attributes beyond what data that is sealed always has.
    pub attributes: ObjectAttributes,
    /// The TPM's identifier of the hash of its name, and of its policy.
    pub name_algorithm: u16,
    /// The digest of the policy to unseal it by; empty for none.
    pub policy: &'a [u8],
}

/// What unseals an object that has a policy.
#[derive(Debug)]
pub enum UnsealPolicy<'a> {
    /// The values of PCRs, now; and its authorisation value too, if the policy has that.
    Pcrs(&'a PcrPolicy),
    /// A policy session that somebody else has started, and satisfied, in this TPM.
    Session(u32),
}

impl Tpm {
    /// Makes a primary key.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn create_primary(
        &mut self,
        hierarchy: Hierarchy,
        hierarchy_auth: &AuthValue,
        template: &PublicArea,
    ) -> Result<Object, TpmError> {
        self.about_to_load(Making::Primary(template.as_bytes().to_vec()))?;
        let sensitive = [&[0, 4], [0; 4].as_slice()].concat();
        let public = template.to_sized();
        let no_data = [0; 2];
        let no_pcrs = PcrSelection::default().to_bytes();
        let command = Assembled {
            code: TpmCc::CreatePrimary,
            handles: &[hierarchy.handle()],
            parameters: &[&sensitive, &public, &no_data, &no_pcrs],
        };
        let request = Request {
            name: "TPM2_CreatePrimary",
            command: &command,
            names: &[&hierarchy.name()],
            returns_handle: true,
        };
        let (handle, public, given) = self.authorised(&request, hierarchy_auth, |handle, reader| {
            let public = sized_public(reader)?;
            skip_creation(reader)?;
            Ok((handle, public, Name::from_bytes(reader.sized("name", MAX_NAME)?)))
        })?;
        self.loaded_object(request.name, handle, public, &given)
    }

    /// An object that is loaded or persistent.
    ///
    /// # Errors
    /// [`TpmError::Refused`] where there is none.
    pub fn object(&mut self, handle: u32) -> Result<Object, TpmError> {
        let (public, name) = self.read_public(handle)?;
        Ok(Object { handle, public, name })
    }

    /// An object's public area and its name, which is made of it.
    pub(super) fn read_public(&mut self, handle: u32) -> Result<(PublicArea, Name), TpmError> {
        let command = TpmReadPublicCommand { handles: [TpmHandle::new(handle)] };
        let mut reader = self.run("TPM2_ReadPublic", &command, &[])?;
        let public = sized_public(&mut reader)?;
        let at = reader.offset();
        let given = Name::from_bytes(reader.sized("name", MAX_NAME)?);
        reader.sized("qualified name", MAX_NAME)?;
        reader.end()?;
        match Name::of_object(&public) {
            // One whose algorithm cannot be computed is believed: it is only looked at.
            Some(name) if name != given => Err(reader.malformed("name", at, 0, 1).into()),
            Some(_) | None => Ok((public, given)),
        }
    }

    /// Handles of persistent objects.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn persistent_handles(&mut self) -> Result<Vec<u32>, TpmError> {
        self.handles(PERSISTENT)
    }

    /// Keeps a loaded object at a persistent handle, or takes the one away that is there.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn evict_control(&mut self, owner_auth: &AuthValue, object: &Object, persistent: u32) -> Result<(), TpmError> {
        let owner = Hierarchy::Owner;
        let command = TpmEvictControlCommand {
            handles: [TpmHandle::new(owner.handle()), TpmHandle::new(object.handle)],
            persistent_handle: TpmHandle::new(persistent),
        };
        let request = Request {
            name: "TPM2_EvictControl",
            command: &command,
            names: &[&owner.name(), &object.name],
            returns_handle: false,
        };
        self.authorised(&request, owner_auth, |_, _| Ok(()))
    }

    /// Seals data under a parent.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn seal(
        &mut self,
        parent: &Object,
        parent_auth: &AuthValue,
        sealing: &Sealing<'_>,
    ) -> Result<SealedObject, TpmError> {
        self.create_under(parent, parent_auth, &sealing.template(), sealing.auth, sealing.data)
    }

    /// Makes an object under a parent. Its authorisation value and data go to the TPM encrypted.
    pub(super) fn create_under(
        &mut self,
        parent: &Object,
        parent_auth: &AuthValue,
        template: &PublicArea,
        auth: &AuthValue,
        data: &[u8],
    ) -> Result<SealedObject, TpmError> {
        let sensitive = sized_sensitive(auth.as_bytes(), data);
        let public = template.to_sized();
        let no_data = [0; 2];
        let no_pcrs = PcrSelection::default().to_bytes();
        let command = Assembled {
            code: TpmCc::Create,
            handles: &[parent.handle],
            parameters: &[&sensitive, &public, &no_data, &no_pcrs],
        };
        let request = Request { name: "TPM2_Create", command: &command, names: &[&parent.name], returns_handle: false };
        self.leaving_nothing(|tpm| {
            let mut session = tpm.start_session(SessionKind::Hmac, Some(parent))?;
            session.encrypting(true, false);
            let (_, mut reader) = tpm.request(&request, &mut [Authorisation::Session(&mut session, parent_auth)])?;
            let private = reader.sized("private part", MAX_PRIVATE)?.to_vec();
            let public = sized_public(&mut reader)?;
            skip_creation(&mut reader)?;
            reader.end()?;
            Ok(SealedObject { public, private })
        })
    }

    /// Loads an object under its parent.
    pub(super) fn load_in(
        &mut self,
        session: &mut Session,
        parent: &Object,
        parent_auth: &AuthValue,
        object: &SealedObject,
    ) -> Result<Object, TpmError> {
        let unknown = || TpmError::UnknownNameAlgorithm(object.public.name_algorithm);
        let name = Name::of_object(&object.public).ok_or_else(unknown)?;
        self.about_to_load(Making::Object(name))?;
        let (private, public) = (sized(&object.private), object.public.to_sized());
        let command = Assembled { code: TpmCc::Load, handles: &[parent.handle], parameters: &[&private, &public] };
        let request = Request { name: "TPM2_Load", command: &command, names: &[&parent.name], returns_handle: true };
        session.encrypting(false, false);
        let (handle, mut reader) = self.request(&request, &mut [Authorisation::Session(session, parent_auth)])?;
        let handle = handle.expect("asked for");
        let given = Name::from_bytes(reader.sized("name", MAX_NAME)?);
        reader.end()?;
        self.loaded_object(request.name, handle, object.public.clone(), &given)
    }

    /// Whether a parent takes an object for its own: it is loaded, and flushed again.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn try_load(
        &mut self,
        parent: &Object,
        parent_auth: &AuthValue,
        object: &SealedObject,
    ) -> Result<(), TpmError> {
        self.leaving_nothing(|tpm| {
            let mut session = tpm.start_session(SessionKind::Hmac, Some(parent))?;
            tpm.load_in(&mut session, parent, parent_auth, object).map(|_| ())
        })
    }

    /// Loads sealed data and unseals it. The answer is encrypted on its way here.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn unseal(
        &mut self,
        parent: &Object,
        parent_auth: &AuthValue,
        object: &SealedObject,
        auth: &AuthValue,
        policy: Option<&UnsealPolicy<'_>>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.leaving_nothing(|tpm| {
            let mut session = tpm.start_session(SessionKind::Hmac, Some(parent))?;
            let loaded = tpm.load_in(&mut session, parent, parent_auth, object)?;
            let command = TpmUnsealCommand { handles: [TpmHandle::new(loaded.handle)] };
            let request =
                Request { name: "TPM2_Unseal", command: &command, names: &[&loaded.name], returns_handle: false };
            let none = AuthValue::empty();
            let (_, mut reader) = match policy {
                None => {
                    session.encrypting(false, true);
                    tpm.request(&request, &mut [Authorisation::Session(&mut session, auth)])?
                }
                Some(UnsealPolicy::Pcrs(policy)) => {
                    session = tpm.start_session(SessionKind::Policy, Some(parent))?;
                    tpm.satisfy(&mut session, policy)?;
                    session.encrypting(false, true);
                    tpm.request(&request, &mut [Authorisation::Session(&mut session, auth)])?
                }
                Some(UnsealPolicy::Session(handle)) => {
                    session.encrypting(false, true);
                    let authorised = Authorisation::ForeignPolicy(*handle, auth);
                    tpm.request(&request, &mut [authorised, Authorisation::Session(&mut session, &none)])?
                }
            };
            let data = Zeroizing::new(reader.sized("sealed data", MAX_SEALED)?.to_vec());
            reader.end()?;
            Ok(data)
        })
    }

    /// Sends a command that is authorised by one value: by a password when it is empty, else in a session, so that it does
    /// not go over the wire.
    pub(super) fn authorised<C: tpm2_protocol::frame::TpmFrame, T>(
        &mut self,
        request: &Request<'_, C>,
        value: &AuthValue,
        read: impl FnOnce(u32, &mut Reader<'_>) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        if value.is_empty() {
            let (handle, mut reader) = self.request(request, &mut [Authorisation::Password(value)])?;
            let result = read(handle.unwrap_or_default(), &mut reader)?;
            reader.end()?;
            return Ok(result);
        }
        let mut session = self.start_session(SessionKind::Hmac, None)?;
        let answer = self.request(request, &mut [Authorisation::Session(&mut session, value)]);
        let result = answer.and_then(|(handle, mut reader)| {
            let result = read(handle.unwrap_or_default(), &mut reader)?;
            reader.end()?;
            Ok(result)
        });
        // Not what the command has loaded: that is what it was for.
        self.flush(session.handle())?;
        result
    }

    /// What was loaded, once it is sure that it is what was asked for.
    fn loaded_object(
        &mut self,
        command: &'static str,
        handle: u32,
        public: PublicArea,
        given: &Name,
    ) -> Result<Object, TpmError> {
        let name = Name::of_object(&public).ok_or(TpmError::UnknownNameAlgorithm(public.name_algorithm))?;
        if name != *given {
            return Err(TpmError::Forged { command });
        }
        self.note_name(handle, &name)?;
        Ok(Object { handle, public, name })
    }
}

impl Sealing<'_> {
    /// The public area that is asked for.
    fn template(&self) -> PublicArea {
        const KEYED_HASH: u16 = 0x0008;
        const NULL: u16 = 0x0010;
        let bytes = [
            &KEYED_HASH.to_be_bytes(),
            &self.name_algorithm.to_be_bytes(),
            &self.attributes.0.to_be_bytes()[..],
            &sized(self.policy),
            &NULL.to_be_bytes(),
            &[0, 0],
        ]
        .concat();
        PublicArea::parse(&bytes).expect("a template of sealed data is a public area")
    }
}

/// The longest name: SHA-512's.
const MAX_NAME: usize = 66;
/// The longest private part.
const MAX_PRIVATE: usize = 1408;
/// The most that can be sealed, by the standard's structures; TPMs take 128.
const MAX_SEALED: usize = 256;

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// TPM2B_SENSITIVE_CREATE.
fn sized_sensitive(auth: &[u8], data: &[u8]) -> Zeroizing<Vec<u8>> {
    // Made at its full size, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(6 + auth.len() + data.len()));
    bytes.extend_from_slice(&((4 + auth.len() + data.len()) as u16).to_be_bytes());
    for part in [auth, data] {
        bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn sized_public(reader: &mut Reader<'_>) -> Result<PublicArea, TpmError> {
    let bytes = reader.sized("public area", 1024)?;
    Ok(PublicArea::parse(bytes)?)
}

/// Creation data, its hash, and a ticket: nothing here needs proof of how something was made.
fn skip_creation(reader: &mut Reader<'_>) -> Result<(), TpmError> {
    reader.sized("creation data", 1024)?;
    reader.sized("creation hash", 64)?;
    reader.u16("ticket's tag")?;
    reader.u32("ticket's hierarchy")?;
    reader.sized("ticket", 64)?;
    Ok(())
}

/// The parents that a stored object can have.
impl Tpm {
    /// A primary storage key: the persistent one at `handle` or, for the owner hierarchy's handle, one that is made by the
    /// SRK's template.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn storage_key(
        &mut self,
        handle: u32,
        kind: template::KeyKind,
        owner_auth: &AuthValue,
    ) -> Result<Object, TpmError> {
        if handle == Hierarchy::Owner.handle() {
            return self.create_primary(Hierarchy::Owner, owner_auth, &template::srk(kind));
        }
        self.object(handle)
    }
}
