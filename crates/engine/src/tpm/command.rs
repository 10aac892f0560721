//! One command sent and its response received, again while the TPM asks for that.

use std::time::Duration;

use tpm2_protocol::{
    TpmWriter,
    basic::TpmHandle,
    data::{TpmSt, TpmsAuthCommand},
    frame::{TpmFrame, tpm_marshal_command},
};

use super::{
    ResponseCode, Tpm, TpmError,
    response::{Reader, parameters, response_code},
};

/// Room for the largest command that is sent here: an extend of eight banks has 559 bytes.
pub(super) const COMMAND_ROOM: usize = 1024;
/// How long a TPM may ask for the same command again: a self-test of all algorithms takes a slow chip two seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

impl Tpm {
    /// Sends a command, again while the TPM asks for that, and hands out the response's parameters.
    pub(super) fn run<C: TpmFrame>(
        &mut self,
        name: &'static str,
        command: &C,
        authorisations: &[TpmsAuthCommand],
    ) -> Result<Reader<'_>, TpmError> {
        let tag = if authorisations.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        let mut writer = TpmWriter::new(self.command.as_mut_slice());
        tpm_marshal_command(command, tag, authorisations, &mut writer).expect("every command here fits its room");
        let length = writer.len();
        let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(1));
        loop {
            self.response.clear();
            self.transport
                .transmit(&self.command[..length], &mut self.response)
                .map_err(|source| TpmError::Transport { command: name, source })?;
            let code = response_code(name, &self.response)?;
            if code == ResponseCode::SUCCESS {
                break;
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
        parameters(name, tag, &self.response)
    }
}

/// The password authorisation with an empty password.
pub(super) fn empty_password() -> TpmsAuthCommand {
    const TPM_RS_PW: u32 = 0x4000_0009;
    TpmsAuthCommand { session_handle: TpmHandle::new(TPM_RS_PW), ..TpmsAuthCommand::default() }
}
