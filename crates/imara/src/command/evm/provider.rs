//! Whose EVM is meant: the running guard's, or the kernel's.

use crate::guard::control::{AskError, Request, ask};
use crate::output::Failure;
use imara_format::evm::MODE_FILE;
use std::path::{Path, PathBuf};

/// Whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    /// The running guard's
    Guard,
    /// The kernel's
    Kernel,
}

/// Which is meant, and where the guard is.
#[derive(clap::Args)]
pub struct ProviderOptions {
    /// Whose EVM [default: the guard's, where one runs]
    #[arg(long, value_enum)]
    provider: Option<Provider>,
    /// The running guard's runtime directory
    #[arg(long, value_name = "DIR", default_value = crate::guard::config::DEFAULT_RUNTIME_DIRECTORY)]
    pub runtime_dir: PathBuf,
}

impl ProviderOptions {
    /// Whose it is.
    ///
    /// # Errors
    /// There is neither; a guard does not answer.
    pub fn find(&self) -> Result<Provider, Failure> {
        if let Some(provider) = self.provider {
            return Ok(provider);
        }
        match ask(&self.runtime_dir, &Request::EvmXattrs { write: None }) {
            Ok(_) => Ok(Provider::Guard),
            Err(AskError::NoGuard(_)) if kernel_has_it() => Ok(Provider::Kernel),
            Err(AskError::NoGuard(failure)) => {
                Err(Failure::lacking(format_args!("{}, and the kernel has no EVM that is shown", failure.what))
                    .next(failure.next))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether this kernel has an EVM that is shown.
pub fn kernel_has_it() -> bool {
    Path::new(MODE_FILE).exists()
}

/// What is said where it has none.
pub fn no_kernel_evm() -> Failure {
    let mounted = Path::new("/sys/kernel/security/lsm").exists();
    let next = match mounted {
        true => {
            "a kernel with CONFIG_EVM has it (Debian's does, with integrity in lsm=); the guard has its own: imara guard --evm …"
        }
        false => "mount -t securityfs securityfs /sys/kernel/security, to see whether it has",
    };
    Failure::lacking(format_args!("the kernel shows no EVM: there is no {MODE_FILE}")).next(next)
}
