//! `imara evm xattrs`.

use super::provider::{Provider, ProviderOptions, no_kernel_evm};
use crate::command::CommandResult;
use crate::guard::control::{Request, ask};
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::evm::xattrs::ProtectedXattrs;
use imara_format::evm::XATTRS_FILE;
use imara_linux::kernel_evm;
use serde_json::{Value, json};
use std::io::ErrorKind;

/// Show the attributes that EVM protects, add some, or lock the list.
///
/// They can only become more, and until the next start alone. Adding one breaks the labels of files that have it: label them anew
/// afterwards.
#[derive(clap::Args)]
pub struct Arguments {
    /// Attributes to protect, too
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Lock the list until the next start, after NAMEs were added
    #[arg(long)]
    lock: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    provider: ProviderOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let provider = arguments.provider.find()?;
    let mut told = arguments.show(provider)?;
    let writes: Vec<&str> = arguments.names.iter().map(String::as_str).chain(arguments.lock.then_some(".")).collect();
    if arguments.dry_run {
        would_be(&mut told, &writes)?;
    } else {
        for write in &writes {
            arguments.write(provider, write)?;
        }
        if !writes.is_empty() {
            told = arguments.show(provider)?;
        }
    }
    if arguments.json {
        print_json(&told);
    } else {
        let names = told["xattrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut text: String = names.flat_map(|name| [name, "\n"]).collect();
        if told["locked"] == true {
            text.push_str("(locked until the next start)\n");
        }
        print(text);
    }
    Ok(Outcome::Done)
}

impl Arguments {
    fn show(&self, provider: Provider) -> Result<Value, Failure> {
        match provider {
            Provider::Guard => Ok(ask(&self.provider.runtime_dir, &Request::EvmXattrs { write: None })?),
            Provider::Kernel => kernels(),
        }
    }

    fn write(&self, provider: Provider, write: &str) -> Result<(), Failure> {
        match provider {
            Provider::Guard => {
                ask(&self.provider.runtime_dir, &Request::EvmXattrs { write: Some(write.to_owned()) })?;
                Ok(())
            }
            Provider::Kernel => kernel_evm::write_xattrs(write).map_err(|error| {
                let shown = if write == "." { "the list" } else { write };
                let failure = Failure::failed(format_args!("{shown}: the kernel does not take it: {error}"));
                match error.kind() {
                    ErrorKind::PermissionDenied => {
                        failure.next("it takes CAP_SYS_ADMIN; a locked list is locked until the next start")
                    }
                    ErrorKind::AlreadyExists => failure.next("it is protected already"),
                    ErrorKind::InvalidInput => failure.next("EVM protects attributes that begin with security."),
                    _ => failure,
                }
            }),
        }
    }
}

/// What the kernel shows.
///
/// # Errors
/// It shows none.
pub fn kernels() -> Result<Value, Failure> {
    if !super::provider::kernel_has_it() {
        return Err(no_kernel_evm());
    }
    let shown = kernel_evm::xattrs().map_err(|error| Failure::failed(format_args!("{XATTRS_FILE}: {error}")))?;
    let (list, locked) = shown.ok_or_else(|| {
        Failure::lacking(format_args!("the kernel shows no list: there is no {XATTRS_FILE}"))
            .next("a kernel with CONFIG_EVM_ADD_XATTRS has it; without, the list is as the kernel was built: imara evm status")
    })?;
    Ok(json!({ "schema": 1, "provider": "kernel", "xattrs": list.enabled().collect::<Vec<_>>(), "locked": locked }))
}

/// What the list would be.
fn would_be(told: &mut Value, writes: &[&str]) -> Result<(), Failure> {
    let names: Vec<&str> = told["xattrs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut xattrs = ProtectedXattrs {
        list: imara_format::evm::XattrList::from_text(&names.join("\n")),
        locked: told["locked"] == true,
    };
    for write in writes {
        xattrs
            .write(write.as_bytes(), true)
            .map_err(|error| Failure::failed(format_args!("{write}: {error} ({})", error.errno())))?;
    }
    told["xattrs"] = xattrs.list.enabled().collect::<Vec<_>>().into();
    told["locked"] = xattrs.locked.into();
    Ok(())
}
