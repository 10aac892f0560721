//! One command sent and its response received, again while the TPM asks for that; with a password, or with sessions that
//! authenticate both and encrypt the first parameter of one or both.
//!
//! With sessions, each is signed for: the command by an HMAC over the hash of its code, the names of its handles and its
//! parameters; the response by one over the hash of its code and parameters. What a name means is in `name.rs`, how the
//! HMAC is made in `session.rs`.
//!
//! Source: TCG TPM 2.0 Library, part 1, "Session-based authorizations".

use std::{fmt, time::Duration};

use imara_format::{hash::HashAlgorithm, tpm::Reader};
use tpm2_protocol::{
    TpmMarshal, TpmResult, TpmSized, TpmWriter,
    basic::{TpmBuffer, TpmHandle},
    data::{TpmCc, TpmSt, TpmaSession, TpmsAuthCommand},
    frame::{TpmFrame, TpmMarshalBody, tpm_marshal_command},
};
use zeroize::Zeroize;

use super::{
    Name, ResponseCode, Tpm, TpmError,
    response::{NO_SESSIONS, Parts, SESSIONS, parts, reader, response_code},
    session::{AuthValue, NONCE, Session},
};
use crate::crypto;

/// Room for the largest command: what the Linux device takes.
pub(super) const COMMAND_ROOM: usize = 4096;
/// How long a TPM may ask for the same command again: a self-test of all algorithms takes a slow chip two seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A command that loads something, or needs more than passwords.
pub(super) struct Request<'a, C> {
    /// Its name in the standard.
    pub(super) name: &'static str,
    /// Its handles and parameters.
    pub(super) command: &'a C,
    /// What the handles stand for, in order.
    pub(super) names: &'a [&'a Name],
    /// Whether the response begins with a handle.
    pub(super) returns_handle: bool,
}

/// What a command is authorised with, a handle each, and sessions that only encrypt behind them.
pub(super) enum Authorisation<'a> {
    /// A password, in clear.
    Password(&'a AuthValue),
    /// A session, and the authorisation value of what it authorises.
    Session(&'a mut Session, &'a AuthValue),
    /// A policy session of somebody else's, which is kept, and the value as a password, for a policy that asks for one.
    ForeignPolicy(u32, &'a AuthValue),
}

/// A command of parts that are in the TPM's form already.
pub(super) struct Assembled<'a> {
    pub(super) code: TpmCc,
    pub(super) handles: &'a [u32],
    pub(super) parameters: &'a [&'a [u8]],
}

impl fmt::Debug for Assembled<'_> {
    /// Without the parameters, of which some are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:x?}", self.code, self.handles)
    }
}

impl TpmSized for Assembled<'_> {
    const SIZE: usize = COMMAND_ROOM;

    fn len(&self) -> usize {
        4 * self.handles.len() + self.parameters.iter().map(|part| part.len()).sum::<usize>()
    }
}

impl TpmMarshal for Assembled<'_> {
    fn marshal(&self, writer: &mut TpmWriter) -> TpmResult<()> {
        self.marshal_handles(writer)?;
        self.marshal_parameters(writer)
    }
}

impl TpmMarshalBody for Assembled<'_> {
    fn marshal_handles(&self, writer: &mut TpmWriter) -> TpmResult<()> {
        self.handles.iter().try_for_each(|handle| TpmHandle::new(*handle).marshal(writer))
    }

    fn marshal_parameters(&self, writer: &mut TpmWriter) -> TpmResult<()> {
        self.parameters.iter().try_for_each(|part| writer.write_bytes(part))
    }
}

impl TpmFrame for Assembled<'_> {
    fn cc(&self) -> TpmCc {
        self.code
    }

    fn handles(&self) -> usize {
        self.handles.len()
    }
}

impl Tpm {
    /// Sends a command without sessions, and hands out the response's parameters.
    pub(super) fn run<C: TpmFrame>(
        &mut self,
        name: &'static str,
        command: &C,
        authorisations: &[TpmsAuthCommand],
    ) -> Result<Reader<'_>, TpmError> {
        let (tag, number) =
            if authorisations.is_empty() { (TpmSt::NoSessions, NO_SESSIONS) } else { (TpmSt::Sessions, SESSIONS) };
        let mut writer = TpmWriter::new(self.command.as_mut_slice());
        tpm_marshal_command(command, tag, authorisations, &mut writer).expect("every command here fits its room");
        let length = writer.len();
        self.exchange(name, length)?;
        let parts = parts(name, number, false, &self.response)?;
        Ok(reader(name, &self.response, &parts.parameters))
    }

    /// Sends a command with authorisations, and hands out the response's handle and parameters. What it loaded is noted,
    /// so that it is flushed. The command and what was encrypted of the response are wiped by [`Tpm::leaving_nothing`].
    pub(super) fn request<C: TpmFrame>(
        &mut self,
        request: &Request<'_, C>,
        authorisations: &mut [Authorisation<'_>],
    ) -> Result<(Option<u32>, Reader<'_>), TpmError> {
        let Request { name, command, .. } = *request;
        let mut parameters = [0; COMMAND_ROOM];
        let mut writer = TpmWriter::new(&mut parameters);
        command.marshal_parameters(&mut writer).expect("every command here fits its room");
        let length = writer.len();
        let result = self.request_with(request, authorisations, &mut parameters[..length]);
        parameters.zeroize();
        let Parts { handle, parameters, .. } = result?;
        Ok((handle, reader(name, &self.response, &parameters)))
    }

    fn request_with<C: TpmFrame>(
        &mut self,
        request: &Request<'_, C>,
        authorisations: &mut [Authorisation<'_>],
        parameters: &mut [u8],
    ) -> Result<Parts, TpmError> {
        let name = request.name;
        let code = request.command.cc().value();
        for authorisation in authorisations.iter_mut() {
            if let Authorisation::Session(session, value) = authorisation {
                session.begin_exchange()?;
                session.encrypt_command(value, parameters)?;
            }
        }
        let code_bytes = code.to_be_bytes();
        let mut hashed: Vec<&[u8]> = vec![&code_bytes];
        hashed.extend(request.names.iter().map(|name| name.as_bytes()));
        hashed.push(parameters);
        let hash = crypto::hash(HashAlgorithm::Sha256, &hashed).expect("SHA-256 can be computed");
        let commands: Vec<_> = authorisations
            .iter()
            .map(|authorisation| match authorisation {
                Authorisation::Password(value) => password(PASSWORD, value),
                Authorisation::ForeignPolicy(handle, value) => {
                    TpmsAuthCommand { session_attributes: TpmaSession::CONTINUE_SESSION, ..password(*handle, value) }
                }
                Authorisation::Session(session, value) => session.command(value, hash.as_bytes()),
            })
            .collect();

        let mut writer = TpmWriter::new(self.command.as_mut_slice());
        let tag = if commands.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        let number = if commands.is_empty() { NO_SESSIONS } else { SESSIONS };
        tpm_marshal_command(request.command, tag, &commands, &mut writer).expect("every command here fits its room");
        let length = writer.len();
        // The codec wrote the parameters in clear.
        self.command[length - parameters.len()..length].copy_from_slice(parameters);
        self.exchange(name, length)?;

        let parts = parts(name, number, request.returns_handle, &self.response)?;
        if let Some(handle) = parts.handle {
            self.note_loaded(handle);
        }
        if commands.is_empty() {
            return Ok(parts);
        }
        let success = ResponseCode::SUCCESS.0.to_be_bytes();
        let hashed = [&success, &code_bytes, &self.response[parts.parameters.clone()]];
        let hash = crypto::hash(HashAlgorithm::Sha256, &hashed).expect("SHA-256 can be computed");
        let mut reader = reader(name, &self.response, &parts.sessions);
        for authorisation in authorisations.iter_mut() {
            let nonce = reader.sized("nonce", NONCE)?;
            let attributes = reader.u8("session attributes")?;
            let hmac = reader.sized("HMAC", NONCE)?;
            if let Authorisation::Session(session, value) = authorisation {
                session.end_exchange(name, value, hash.as_bytes(), nonce, attributes, hmac)?;
            }
        }
        reader.end()?;
        for authorisation in authorisations.iter_mut() {
            if let Authorisation::Session(session, value) = authorisation {
                session.decrypt_response(value, &mut self.response[parts.parameters.clone()])?;
            }
        }
        Ok(parts)
    }

    /// Sends the first `length` bytes of the command's room, again while the TPM asks for that.
    fn exchange(&mut self, name: &'static str, length: usize) -> Result<(), TpmError> {
        let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(1));
        loop {
            self.response.clear();
            self.transport
                .transmit(&self.command[..length], &mut self.response)
                .map_err(|source| TpmError::Transport { command: name, source })?;
            let code = response_code(name, &self.response)?;
            if code == ResponseCode::SUCCESS {
                return Ok(());
            }
            if !code.asks_to_resubmit() {
                return Err(TpmError::Refused { command: name, code });
            }
            if waited >= PATIENCE {
                return Err(TpmError::Busy { command: name, code, waited });
            }
            (self.pause)(pause);
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Overwrites what the last command and its response left in memory.
    pub(super) fn wipe(&mut self) {
        self.command.zeroize();
        // Past its length too: an earlier response may have been longer.
        self.response.resize(self.response.capacity(), 0);
        self.response.zeroize();
    }
}

/// `TPM_RS_PW`, in a session's place.
const PASSWORD: u32 = 0x4000_0009;

/// An authorisation value in clear.
fn password(handle: u32, value: &AuthValue) -> TpmsAuthCommand {
    TpmsAuthCommand {
        session_handle: TpmHandle::new(handle),
        hmac: TpmBuffer::try_from(value.as_bytes()).expect("an authorisation value fits"),
        ..TpmsAuthCommand::default()
    }
}

/// The password authorisation with an empty password.
pub(super) fn empty_password() -> TpmsAuthCommand {
    password(PASSWORD, &AuthValue::empty())
}
