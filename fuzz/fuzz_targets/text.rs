//! Any bytes as the small texts and tables that kernels and programs have: EVM's files, templates, a command line, a build's
//! options, what dpkg keeps, lists of blocked keys, program headers, type information, BPF objects.

#![no_main]

use imara_format::base64;
use imara_format::block_list;
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
        // The kernel does not show the bit that locks the mode.
        let shown = mode.to_text();
        assert_eq!(EvmMode::parse(shown.as_bytes()).map(EvmMode::to_text), Ok(shown));
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
    let _ = (References::parse(bytes), dpkg::md5sums(bytes));
    for package in dpkg::status(bytes).into_iter().flatten() {
        let _ = package.lists();
    }
    if let Ok(diversions) = Diversions::parse(bytes) {
        let _ = diversions.place(b"/bin/sh", "dash");
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    let list = XattrList::from_text(text);
    assert_eq!(XattrList::from_text(&list.to_text()), list);
    let _ = (KernelConfig::parse(text), block_list::parse(text));
    if let Some(decoded) = base64::decode(text) {
        assert_eq!(base64::decode(&base64::encode(&decoded)), Some(decoded));
    }
    if let Ok(template) = Template::from_name_or_format(text) {
        assert_eq!(Template::from_name_or_format(&template.format()).map(|again| again.fields), Ok(template.fields));
    }
    if let Ok(uuid) = text.parse::<Uuid>() {
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
    }
});
