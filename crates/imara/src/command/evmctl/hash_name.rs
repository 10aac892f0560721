//! Names of hashes, as evmctl takes them: OpenSSL's and the kernel's, in the case that they have there.

use imara_format::hash::HashAlgorithm;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A hash that labels can name.
    Hash(HashAlgorithm),
    /// One that OpenSSL knows by this name, and labels do not.
    Unlabelled,
    /// None.
    Unknown,
}

/// Looks a name up.
pub fn look_up(name: &str) -> Named {
    use HashAlgorithm as H;
    // Where OpenSSL and the kernel have different names, both count.
    let hash = match name {
        "sm3" | "sm3-256" => Some(H::Sm3),
        "rmd160" | "ripemd160" => Some(H::Rmd160),
        "md_gost12_256" | "streebog256" => Some(H::Streebog256),
        "md_gost12_512" | "streebog512" => Some(H::Streebog512),
        name => H::from_name(name),
    };
    if let Some(hash) = hash {
        return Named::Hash(hash);
    }
    let lower = name.to_ascii_lowercase();
    let unlabelled =
        ["sha512-224", "sha512-256", "md5-sha1", "blake2b512", "blake2s256", "shake128", "shake256", "sha3-224"];
    match unlabelled.contains(&lower.as_str()) || (lower != name && look_up(&lower) != Named::Unknown) {
        true => Named::Unlabelled,
        false => Named::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels_and_openssls_in_their_own_case() {
        for (name, expected) in [
            ("sha256", Named::Hash(HashAlgorithm::Sha256)),
            ("ripemd160", Named::Hash(HashAlgorithm::Rmd160)),
            ("rmd160", Named::Hash(HashAlgorithm::Rmd160)),
            ("sm3", Named::Hash(HashAlgorithm::Sm3)),
            ("streebog512", Named::Hash(HashAlgorithm::Streebog512)),
            ("md_gost12_256", Named::Hash(HashAlgorithm::Streebog256)),
            ("SHA1", Named::Unlabelled),
            ("sha512-224", Named::Unlabelled),
            ("foo", Named::Unknown),
            ("", Named::Unknown),
        ] {
            assert_eq!(look_up(name), expected, "{name}");
        }
    }
}
