//! Any bytes as the small texts and tables that kernels and programs have: EVM's files, templates, a command line, a build's
//! options, program headers, type information, BPF objects, dpkg's lists.

#![no_main]

use imara_format::boot_parameters::BootParameters;
use imara_format::bpf_object::BpfObject;
use imara_format::btf::Btf;
use imara_format::dpkg::{self, Diversions};
use imara_format::elf::{Elf, ProgramHeaders};
use imara_format::evm::{EvmMode, XattrList, XattrsRequest};
use imara_format::kernel_config::KernelConfig;
use imara_format::policy::KernelVersion;
use imara_format::reference::References;
use imara_format::template::Template;
use imara_format::uuid::Uuid;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CONFIG: LazyLock<KernelConfig> = LazyLock::new(|| {
    KernelConfig::parse(include_str!("../../tests/vectors/kernel_config/debian-6.12")).expect("Debian's options")
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mode) = EvmMode::parse(bytes) {
        assert_eq!(EvmMode::parse(mode.to_text().as_bytes()), Ok(mode));
    }
    let _ = XattrsRequest::parse(bytes);
    let _ = BootParameters::parse(bytes, KernelVersion::Latest, &CONFIG);
    if let Some(headers) = ProgramHeaders::parse(bytes) {
        let _ = Elf::parse(&headers, bytes);
    }
    if let Ok(btf) = Btf::parse(bytes) {
        for id in 0..20 {
            let _ =
                (btf.kind(id), btf.name(id), btf.size(id), btf.resolve(id), btf.member_at(id, 0), btf.constant(id, 0));
            let _ = (btf.parameters(id), btf.member_named(id, "a"), btf.constant_named(id, "A"));
        }
    }
    let _ = BpfObject::parse(bytes);
    let _ = References::parse(bytes);
    let _ = (dpkg::md5sums(bytes), dpkg::status(bytes), Diversions::parse(bytes));
    let Ok(text) = str::from_utf8(bytes) else { return };
    let list = XattrList::from_text(text);
    assert_eq!(XattrList::from_text(&list.to_text()), list);
    let _ = KernelConfig::parse(text);
    if let Ok(template) = Template::from_name_or_format(text) {
        assert_eq!(Template::from_name_or_format(&template.format()).map(|again| again.fields), Ok(template.fields));
    }
    if let Ok(uuid) = text.parse::<Uuid>() {
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
    }
});
