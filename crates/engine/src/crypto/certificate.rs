//! What a certificate says beside its key.

use super::der::Element;
use super::key::KeyError;
use imara_format::hash::to_hex;
use openssl::asn1::Asn1Time;
use openssl::x509::X509Ref;

/// What a certificate says beside the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject, `O=…, CN=…`.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The end of its validity as OpenSSL prints it. Neither the kernel nor Imara refuses a signature for it.
    pub not_after: String,
    /// Whether that end has passed.
    pub expired: bool,
    /// Serial number, then the issuer's name without its SEQUENCE header: the kernel's first id of the key.
    pub serial_and_issuer: Vec<u8>,
    /// The subject key identifier, if it has one: the kernel's second id of the key.
    pub subject_key_id: Option<Vec<u8>>,
}

impl Certificate {
    pub(super) fn new(certificate: &X509Ref) -> Result<Self, KeyError> {
        let mut serial = certificate.serial_number().to_bn()?.to_vec();
        // An INTEGER has a sign: a leading zero keeps a high first bit positive, and zero has one byte.
        if serial.first().is_none_or(|byte| byte & 0x80 != 0) {
            serial.insert(0, 0);
        }
        let issuer = certificate.issuer_name().to_der()?;
        serial.extend_from_slice(Element::parse(&issuer).map(|name| name.contents).unwrap_or_default());
        let now = Asn1Time::days_from_now(0)?;
        Ok(Self {
            subject: name_text(certificate.subject_name()),
            issuer: name_text(certificate.issuer_name()),
            not_after: certificate.not_after().to_string(),
            expired: certificate.not_after().compare(&now)? == std::cmp::Ordering::Less,
            serial_and_issuer: serial,
            subject_key_id: certificate.subject_key_id().map(|id| id.as_slice().to_vec()),
        })
    }
}

fn name_text(name: &openssl::x509::X509NameRef) -> String {
    let entries = name.entries().map(|entry| {
        let value = entry.data().to_string().map_or_else(|_| to_hex(entry.data().as_slice()), |text| text.to_string());
        format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    });
    entries.collect::<Vec<_>>().join(", ")
}
