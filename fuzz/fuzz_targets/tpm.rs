//! Any bytes as what a TPM and its tools give: public areas, quotes, signatures, selections, files with PCR values.

#![no_main]

use imara_format::hash::HashAlgorithm;
use imara_format::pcr::PcrValues;
use imara_format::tpm::{PcrSelection, PublicArea, QuoteAttestation, TpmSignature};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for public in [PublicArea::parse(bytes), PublicArea::parse_sized(bytes)].into_iter().flatten() {
        assert_eq!(PublicArea::parse(public.as_bytes()).as_ref(), Ok(&public));
        assert_eq!(PublicArea::parse_sized(&public.to_sized()).as_ref(), Ok(&public));
        let _ = (public.to_string(), public.is_storage_key(), public.is_attestation_key(), public.name_hash());
    }
    let _ = QuoteAttestation::parse(bytes);
    if let Ok(signature) = TpmSignature::parse(bytes) {
        let _ = signature.hash();
    }
    if let Some((selection, values)) = PcrValues::from_tpm2_tools(bytes) {
        // Only what the kernel maps is read, so not all of it can be written.
        if let Ok(written) = values.to_tpm2_tools(&selection) {
            assert_eq!(PcrValues::from_tpm2_tools(&written), Some((selection, values)));
        }
    }
    if let Ok(text) = str::from_utf8(bytes) {
        if let Ok(selection) = PcrSelection::parse(text) {
            assert_eq!(PcrSelection::parse(&selection.to_string()), Ok(selection));
        }
        for bank in [HashAlgorithm::Sha1, HashAlgorithm::Sha256] {
            if let Ok(values) = PcrValues::from_text(text, bank) {
                assert_eq!(PcrValues::from_text(&values.to_text(), bank), Ok(values));
            }
        }
    }
});
