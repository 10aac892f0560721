//! Hashing by the TPM: of little at once, of more in a sequence, which is an object that is loaded until it is complete.
//!
//! What the TPM hashes it gives a *ticket* for, by which it knows later that it has hashed this itself: a restricted key signs
//! nothing else. Data that begin like something that only a TPM makes (ff544347) get none.
//!
//! Source: TCG TPM 2.0 Library, part 3, `TPM2_Hash`, `TPM2_HashSequenceStart`, `TPM2_SequenceUpdate`, `TPM2_SequenceComplete`.

use imara_format::{
    hash::{Digest, HashAlgorithm},
    tpm::Reader,
};
use tpm2_protocol::{
    basic::{TpmBuffer, TpmHandle},
    data::{TpmAlgId, TpmRh},
    frame::{TpmHashCommand, TpmHashSequenceStartCommand, TpmSequenceCompleteCommand, TpmSequenceUpdateCommand},
};

use super::{
    Hierarchy, Tpm, TpmError,
    command::{Request, empty_password},
    loaded::Making,
};

/// What a TPM has hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// The digest.
    pub digest: Digest,
    /// TPMT_TK_HASHCHECK, as commands take it.
    pub ticket: Vec<u8>,
    /// Whether the ticket says that a restricted key may sign the digest.
    pub may_be_signed: bool,
}

/// The most bytes that every TPM takes in one command.
pub const HASH_AT_ONCE: usize = 1024;

impl Tpm {
    /// Hashes what `next` gives, piece by piece, until that is empty. The ticket is of a hierarchy, or of none.
    ///
    /// # Errors
    /// [`TpmError::NoIdentifier`]; [`TpmError`] as the TPM answers; what `next` says.
    pub fn hash<E: From<TpmError>>(
        &mut self,
        algorithm: HashAlgorithm,
        hierarchy: Option<Hierarchy>,
        mut next: impl FnMut() -> Result<Vec<u8>, E>,
    ) -> Result<Hashed, E> {
        let id = algorithm.tpm_id().and_then(|id| TpmAlgId::try_from(id).ok());
        let id = id.ok_or(TpmError::NoIdentifier(algorithm))?;
        let mut pieces = Pieces { next: &mut next, rest: Vec::new(), ended: false };
        let first = pieces.take()?;
        let second = pieces.take()?;
        let hierarchy = match hierarchy {
            Some(Hierarchy::Owner) => TpmRh::Owner,
            Some(Hierarchy::Endorsement) => TpmRh::Endorsement,
            None => TpmRh::Null,
        };
        if second.is_empty() {
            let command = TpmHashCommand { handles: [], data: buffer(&first), hash_alg: id, hierarchy };
            return Ok(hashed(self.run("TPM2_Hash", &command, &[])?, algorithm)?);
        }
        self.leaving_nothing(|tpm| {
            tpm.about_to_load(Making::Sequence)?;
            let command = TpmHashSequenceStartCommand { handles: [], auth: TpmBuffer::default(), hash_alg: id };
            let request =
                Request { name: "TPM2_HashSequenceStart", command: &command, names: &[], returns_handle: true };
            let (handle, reader) = tpm.request(&request, &mut [])?;
            reader.end().map_err(TpmError::from)?;
            let handle = handle.expect("asked for");
            tpm.write_record(None)?;
            let (mut current, mut after) = (first, second);
            while !after.is_empty() {
                let handles = [TpmHandle::new(handle)];
                let command = TpmSequenceUpdateCommand { handles, buffer: buffer(&current) };
                let reader = tpm.run("TPM2_SequenceUpdate", &command, &[empty_password()])?;
                reader.end().map_err(TpmError::from)?;
                current = std::mem::replace(&mut after, pieces.take()?);
            }
            let handles = [TpmHandle::new(handle)];
            let command = TpmSequenceCompleteCommand { handles, buffer: buffer(&current), hierarchy };
            let result = hashed(tpm.run("TPM2_SequenceComplete", &command, &[empty_password()])?, algorithm)?;
            tpm.gone(handle)?;
            Ok(result)
        })
    }
}

/// What is to be hashed, in pieces that fit a command.
struct Pieces<'a, E> {
    next: &'a mut dyn FnMut() -> Result<Vec<u8>, E>,
    rest: Vec<u8>,
    ended: bool,
}

impl<E> Pieces<'_, E> {
    /// The next piece, a full one unless it is the last; empty at the end.
    fn take(&mut self) -> Result<Vec<u8>, E> {
        while self.rest.len() < HASH_AT_ONCE && !self.ended {
            let more = (self.next)()?;
            self.ended = more.is_empty();
            self.rest.extend_from_slice(&more);
        }
        let piece = self.rest.drain(..self.rest.len().min(HASH_AT_ONCE));
        Ok(piece.collect())
    }
}

fn buffer<const N: usize>(piece: &[u8]) -> TpmBuffer<N> {
    TpmBuffer::try_from(piece).expect("a piece fits a command")
}

fn hashed(mut reader: Reader<'_>, algorithm: HashAlgorithm) -> Result<Hashed, TpmError> {
    let at = reader.offset();
    let bytes = reader.sized("digest", imara_format::hash::MAX_DIGEST_SIZE)?;
    let digest = Digest::new(algorithm, bytes)
        .map_err(|error| reader.malformed("digest's size", at, error.found as u64, error.needed as u64))?;
    let ticket = reader.rest().to_vec();
    reader.u16("ticket's tag")?;
    let hierarchy = reader.u32("ticket's hierarchy")?;
    let proof = reader.sized("ticket", 64)?;
    reader.end()?;
    let may_be_signed = hierarchy != TpmRh::Null.value() && !proof.is_empty();
    Ok(Hashed { digest, ticket, may_be_signed })
}
