//! What this machine's kernel is and was built with.

use super::read;
use crate::output::Failure;
use imara_format::kernel_config::{DEBIAN, KernelConfig};
use imara_format::policy::KernelVersion;
use std::fs;
use std::path::{Path, PathBuf};

/// The running kernel's release, such as `6.12.1-amd64`; empty where nobody tells.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The kernel known that is nearest to `release`; the language grew (`dont_audit`, `fs_subtype=`) in 6.12 and 6.19.
pub fn nearest(release: &str) -> KernelVersion {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (6_u32, 12_u32) => KernelVersion::V6_1,
        (Some(6), Some(minor)) if minor < 19 => KernelVersion::V6_12,
        (_, _) => KernelVersion::Latest,
    }
}

/// A kernel's build options.
///
/// # Errors
/// The file cannot be read, or is no kernel configuration.
pub fn parse_config(file: &Path) -> Result<KernelConfig, Failure> {
    let text = read(file)?;
    KernelConfig::parse(&String::from_utf8_lossy(&text)).map_err(|error| {
        let next = match text.starts_with(&[0x1f, 0x8b]) {
            true => "it is compressed: `zcat` it into a file, and name that",
            false => "name a file such as /boot/config-VERSION",
        };
        Failure::failed(format!("{}: {error}", file.display())).next(next)
    })
}

/// Where this machine keeps its kernel's build options; `None` where it does not.
pub fn config_place() -> Option<PathBuf> {
    let release = release();
    let places = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    places.map(PathBuf::from).into_iter().find(|place| place.exists())
}

/// This machine's build options and where they were found; Debian's where there are none.
///
/// # Errors
/// As [`parse_config`].
pub fn config() -> Result<(KernelConfig, String), Failure> {
    match config_place() {
        Some(place) => Ok((parse_config(&place)?, place.display().to_string())),
        None => {
            let config = KernelConfig::parse(DEBIAN).expect("a test reads this text of ours");
            let unread =
                if Path::new("/proc/config.gz").exists() { "; zcat /proc/config.gz has the real ones" } else { "" };
            Ok((
                config,
                format!("assumed to be those of Debian's kernels, as there is no /boot/config-{}{unread}", release()),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_kernel_is_found_by_the_release() {
        for (release, kernel) in [
            ("5.15.0-91-generic", KernelVersion::V6_1),
            ("6.1.0-56-amd64", KernelVersion::V6_1),
            ("6.11.9", KernelVersion::V6_1),
            ("6.12.117+deb12-amd64", KernelVersion::V6_12),
            ("6.18.5-fc", KernelVersion::V6_12),
            ("6.19-rc1", KernelVersion::Latest),
            ("7.1-rc1", KernelVersion::Latest),
            ("", KernelVersion::Latest),
        ] {
            assert_eq!(nearest(release), kernel, "{release}");
        }
    }
}
