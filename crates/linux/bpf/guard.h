// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The guard itself: its process, its files, its maps, and which process runs its program.

#pragma once

#include "verdict.h"

// What a file is that is executed or mapped: part of the guard's program, as it was when that was started.
INLINE int is_guards_program(struct inode *inode)
{
	struct verdict *verdict = storage_get(&verdicts, inode, 0, 0);
	struct changes *now = storage_get(&changed, inode, 0, 0);
	return verdict && now && verdict->bits & GUARDS_PROGRAM && verdict->content == now->content;
}

// Something is to be executed in this process that may not belong to the guard's program.
INLINE void comes_into_process(struct inode *inode)
{
	u32 process = this_process();
	u32 *role = map_lookup(&processes, &process);
	if (role && *role & OWN_PROGRAM && !is_guards_program(inode))
		__sync_fetch_and_and(role, ~OWN_PROGRAM);
}

INLINE int keeps_its_name(struct dentry *dentry)
{
	struct inode *inode = dentry->d_inode;
	struct settings *set = in_force();
	if (!inode || !set || !is_protected(set, inode, GUARDS_OWN))
		return 0;
	return refuse(0, PROTECTED, inode, dentry);
}

SEC("lsm/inode_unlink") int inode_unlink(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	return keeps_its_name(dentry);
}

SEC("lsm/inode_rename") int inode_rename(u64 *arguments)
{
	struct dentry *from = (struct dentry *)arguments[1];
	struct dentry *to = (struct dentry *)arguments[3];
	int refused = keeps_its_name(from);
	return refused ? refused : keeps_its_name(to);
}

// Who may end the guard: itself, its sentinel, who undoes a switch of the mode, who has started it, and the first process. What
// these do cannot be had by a debugger, either.
#define MAY_END (SENTINEL | ROLLS_BACK | STARTER)

SEC("lsm/ptrace_access_check") int ptrace(u64 *arguments)
{
	struct task_struct *task = (struct task_struct *)arguments[0];
	struct settings *set = in_force();
	if (!(arguments[1] & PTRACE_MODE_ATTACH) || !set || !(set->flags & (PROTECT | CLOSED)))
		return 0;
	u32 traced = task->tgid, process = this_process(), guard = guard_process();
	u32 *role = map_lookup(&processes, &traced);
	if (process == traced || process == 1 || process == guard)
		return 0;
	if (set->flags & PROTECT && guard && (traced == guard || traced == 1 || (role && *role & (MAY_END | SOFTWARE_TPM))))
		return refuse(0, PROTECTED, 0, 0);
	// He may, and from now on it is whatever he makes of it.
	if (role)
		__sync_fetch_and_and(role, ~OWN_PROGRAM);
	return 0;
}

// Whether a signal lets the one that gets it say good-bye, or does nothing at all.
INLINE int is_harmless(u32 signal)
{
	return !signal || signal == SIGHUP || signal == SIGINT || signal == SIGTERM || signal == SIGCHLD || signal == SIGCONT ||
	       signal == SIGURG || signal == SIGWINCH;
}

// Refuses to everybody else what would end or stop one of them.
INLINE int is_ended(struct task_struct *task)
{
	struct settings *set = in_force();
	if (!set || !(set->flags & PROTECT))
		return 0;
	u32 to = task->tgid, process = this_process(), guard = guard_process();
	if (!guard || (to != guard && !(role_of(to) & (SENTINEL | SOFTWARE_TPM))))
		return 0;
	if (process == to || process == 1 || process == guard || role_of(process) & MAY_END)
		return 0;
	return refuse(0, PROTECTED, 0, 0);
}

SEC("lsm/task_kill") int task_kill(u64 *arguments)
{
	u32 signal = (u32)arguments[2];
	return is_harmless(signal) ? 0 : is_ended((struct task_struct *)arguments[0]);
}

// Those that come from a file (F_SETSIG, F_SETOWN). The guard has its leases told so.
SEC("lsm/file_send_sigiotask") int file_sends_signal(u64 *arguments)
{
	u32 signal = (u32)arguments[2];
	return is_harmless(signal) || signal == SIGIO || signal >= SIGRTMIN ? 0 : is_ended((struct task_struct *)arguments[0]);
}

// A limit on its processor's time kills it as well.
SEC("lsm/task_setrlimit") int task_setrlimit(u64 *arguments)
{
	return is_ended((struct task_struct *)arguments[0]);
}

// A process is told by what it has executed, and by all that it maps from then on: which program it says that it runs
// (PR_SET_MM_EXE_FILE) and what it was given on its way (LD_PRELOAD) does not count. Past the point of no return, before the
// first mapping.
SEC("lsm/bprm_committed_creds") int executed(u64 *arguments)
{
	struct linux_binprm *program = (struct linux_binprm *)arguments[0];
	struct settings *set = in_force();
	if (!set)
		return 0;
	u32 process = this_process(), own = OWN_PROGRAM;
	struct task_struct *task = current_task();
	struct inode *inode = program->file->f_inode;
	u64 number = inode->i_ino, device = inode->i_sb->s_dev;
	int is_own = (set->programs[1] == number && set->programs[0] == device) ||
		     (set->programs[3] == number && set->programs[2] == device);
	if (is_own && set->flags & CLOSED && !(u32)current_uid_gid() && !task->ptrace && is_guards_program(inode))
		map_update(&processes, &process, &own, 0);
	else if (map_lookup(&processes, &process))
		map_delete(&processes, &process);
	return 0;
}

SEC("lsm/bpf_map") int bpf_map(u64 *arguments)
{
	struct bpf_map *map = (struct bpf_map *)arguments[0];
	struct settings *set = in_force();
	if (!set || !(set->flags & PROTECT) || !is_in_force(set))
		return 0;
	u32 id = map->id, ours = 0;
	for (int i = 0; i < 8; i++)
		ours |= id && set->maps[i] == id;
	if (!ours || acts_for_guard(guard_process()))
		return 0;
	return refuse(0, PROTECTED, 0, 0);
}

SEC("lsm/sb_umount") int sb_umount(u64 *arguments)
{
	struct vfsmount *mount = (struct vfsmount *)arguments[0];
	struct settings *set = in_force();
	u32 process = this_process(), guard = guard_process();
	if (!set || !(set->flags & PROTECT) || !set->pins || mount->mnt_sb->s_dev != set->pins || process == 1 ||
	    role_of(process) & STARTER || acts_for_guard(guard))
		return 0;
	return refuse(0, PROTECTED, 0, 0);
}

// The guard ends: its last thread, or the first of all that were killed together. That is before fanotify lets everything go on,
// and also where another thread stays in the kernel.
SEC("tp_btf/sched_process_exit") int guard_ends(u64 *arguments)
{
	struct task_struct *task = (struct task_struct *)arguments[0];
	u32 process = task->tgid;
	struct signal_struct *group = task->signal;
	if (group->live.counter != 0 && !(group->flags & SIGNAL_GROUP_EXIT))
		return 0;
	if (process && alive.process == process) {
		alive.ended = process;
		alive.process = 0;
	}
	// Its number may be another's next.
	if (map_lookup(&processes, &process))
		map_delete(&processes, &process);
	return 0;
}
