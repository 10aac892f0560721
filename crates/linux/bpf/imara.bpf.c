// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The guard at level 2: what the kernel itself refuses, from verdicts that the guard has put beside each inode.
//
// A BPF program cannot wait for a process; a fanotify permission event can. So the guard is asked by fanotify, judges, and puts
// the verdict into inode storage before it lets the access go on; what is executed, mapped or loaded then passes here only with
// a verdict that is still good. Where no verdict is, nothing was asked, and the answer is a refusal.
//
// A verdict is good as long as
//   1. it is of the policy and mode in force (`epoch`),
//   2. nobody has begun to write since it was made, nobody can write now, and size and time of change are as they were,
//   3. attributes and labels are as they were, but for a moment in which the guard is being told of a change.
// Counts of changes are kept here and never written by the guard, so that no change is lost between its look and its verdict.
//
// Compiled by `make bpf`; needs no kernel headers. A section `lsm/HOOK@N` is for kernels where that hook takes N arguments.

#include "guard.h"
#include "labels.h"
#include "verdict.h"

char _license[] SEC("license") = "Dual MIT/GPL";

SEC("lsm/file_open") int file_open(u64 *arguments)
{
	struct file *file = (struct file *)arguments[0];
	if (file->f_mode & FMODE_WRITE) {
		struct inode *inode = file->f_inode;
		return is_regular(inode) ? content_changes(inode, file->f_path.dentry) : 0;
	}
	// As long as the guard lives, fanotify asks it, or was told that it need not.
	if (guard_process())
		return 0;
	return check(file, OPEN);
}

SEC("lsm/bprm_check_security") int execute(u64 *arguments)
{
	struct linux_binprm *program = (struct linux_binprm *)arguments[0];
	return check(program->file, EXEC);
}

SEC("lsm/mmap_file") int map_file(u64 *arguments)
{
	struct file *file = (struct file *)arguments[0];
	if (!file || !(arguments[2] & PROT_EXEC))
		return 0;
	comes_into_process(file->f_inode);
	return check(file, MMAP);
}

SEC("lsm/file_mprotect") int protect_mapping(u64 *arguments)
{
	struct vm_area_struct *area = (struct vm_area_struct *)arguments[0];
	if (!(arguments[2] & PROT_EXEC) || area->vm_flags & VM_EXEC)
		return 0;
	struct file *file = area->vm_file;
	if (!file)
		return 0;
	comes_into_process(file->f_inode);
	return check_as(file, MMAP, MMAP | MPROTECT);
}

SEC("lsm/kernel_read_file") int kernel_reads(u64 *arguments)
{
	struct file *file = (struct file *)arguments[0];
	u32 what = (u32)arguments[1];
	if (!file)
		return 0;
	u32 asked = 0;
	if (what == ENUM(kernel_read_file_id, READING_MODULE))
		asked = MODULE;
	else if (what == ENUM(kernel_read_file_id, READING_FIRMWARE))
		asked = FIRMWARE;
	else if (what == ENUM(kernel_read_file_id, READING_KEXEC_IMAGE))
		asked = KEXEC_IMAGE;
	else if (what == ENUM(kernel_read_file_id, READING_KEXEC_INITRAMFS))
		asked = KEXEC_INITRAMFS;
	return asked ? check(file, asked) : 0;
}

// Content that no file holds: init_module(2), the firmware loader's user helper, kexec_load(2).
SEC("lsm/kernel_load_data") int kernel_loads(u64 *arguments)
{
	u32 what = (u32)arguments[0];
	struct settings *set = in_force();
	if (!set || !(set->flags & ENFORCE) || !is_in_force(set))
		return 0;
	u32 flag = 0, asked = 0;
	if (what == ENUM(kernel_load_data_id, LOADING_MODULE)) {
		flag = LOAD_MODULE;
		asked = MODULE;
	} else if (what == ENUM(kernel_load_data_id, LOADING_FIRMWARE)) {
		flag = LOAD_FIRMWARE;
		asked = FIRMWARE;
	} else if (what == ENUM(kernel_load_data_id, LOADING_KEXEC_IMAGE)) {
		flag = LOAD_KEXEC;
		asked = KEXEC_IMAGE;
	} else if (what == ENUM(kernel_load_data_id, LOADING_KEXEC_INITRAMFS)) {
		flag = LOAD_KEXEC;
		asked = KEXEC_INITRAMFS;
	}
	return set->flags & flag ? refuse(asked, NO_FILE, 0, 0) : 0;
}
