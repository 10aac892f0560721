// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// What all hooks need: whether a file's verdict is still good, and how a refusal is told.

#pragma once

#include "kernel.h"
#include "shared.h"

struct map {
	int unused;
};
struct map settings SEC(".maps");
// Its one value, where it lies: this is asked at each open.
volatile struct alive alive SEC(".maps");
struct map verdicts SEC(".maps");
struct map changed SEC(".maps");
struct map watched SEC(".maps");
struct map processes SEC(".maps");
struct map records SEC(".maps");
struct map counts SEC(".maps");

INLINE struct settings *in_force(void)
{
	u32 zero = 0;
	return map_lookup(&settings, &zero);
}

INLINE u32 guard_process(void)
{
	return alive.process;
}

// Whether anything is refused: there is a guard, or what it left goes on without it. A guard that was killed has its programs for as long as
// the kernel needs to take them away, and where it does not let go of a thread for longer.
INLINE int is_in_force(struct settings *set)
{
	return guard_process() || set->flags & CLOSED;
}

INLINE u32 this_process(void)
{
	return current_pid_tgid() >> 32;
}

INLINE u32 role_of(u32 process)
{
	u32 *role = map_lookup(&processes, &process);
	return role ? *role : 0;
}

INLINE int is_guard(void)
{
	u32 process = this_process();
	return process == guard_process() || role_of(process) & SOFTWARE_TPM;
}

// The guard; or its program, which root starts again after it has died.
INLINE int acts_for_guard(u32 guard)
{
	return is_guard() || (!guard && !(u32)current_uid_gid() && role_of(this_process()) & OWN_PROGRAM);
}

INLINE void count(u32 which)
{
	u64 *value = map_lookup(&counts, &which);
	if (value)
		__sync_fetch_and_add(value, 1);
}

INLINE int refuse_label(u32 asked, u32 why, struct inode *inode, struct dentry *dentry, u32 algorithm)
{
	// As IMA and EVM answer.
	int error = asked && !(asked & MPROTECT) ? -EACCES : -EPERM;
	count(0);
	struct record *record = ring_reserve(&records, sizeof(*record), 0);
	if (!record) {
		count(1);
		return error;
	}
	record->asked = asked;
	record->why = why;
	u64 task = current_pid_tgid();
	record->process = task >> 32;
	record->thread = (u32)task;
	record->uid = (u32)current_uid_gid();
	record->algorithm = algorithm;
	record->unused = 0;
	record->device = 0;
	record->inode = 0;
	if (inode) {
		record->device = inode->i_sb->s_dev;
		record->inode = inode->i_ino;
	}
	current_comm(record->command, sizeof(record->command));
	record->name[0] = 0;
	if (dentry)
		probe_read_str(record->name, sizeof(record->name), dentry->d_name.name);
	ring_submit(record, 0);
	return error;
}

INLINE int refuse(u32 asked, u32 why, struct inode *inode, struct dentry *dentry)
{
	return refuse_label(asked, why, inode, dentry, 0);
}

INLINE int is_regular(struct inode *inode)
{
	return (inode->i_mode & S_IFMT) == S_IFREG;
}

INLINE int is_same_state(struct inode *inode, struct verdict *verdict)
{
	s64 seconds = 0;
	u32 nanoseconds = 0;
	if (EXISTS(((struct inode___now *)inode)->i_mtime_sec)) {
		seconds = ((struct inode___now *)inode)->i_mtime_sec;
		nanoseconds = ((struct inode___now *)inode)->i_mtime_nsec;
	} else if (EXISTS(((struct inode___before_6_11 *)inode)->__i_mtime)) {
		seconds = ((struct inode___before_6_11 *)inode)->__i_mtime.tv_sec;
		nanoseconds = ((struct inode___before_6_11 *)inode)->__i_mtime.tv_nsec;
	} else if (EXISTS(((struct inode___before_6_7 *)inode)->i_mtime)) {
		seconds = ((struct inode___before_6_7 *)inode)->i_mtime.tv_sec;
		nanoseconds = ((struct inode___before_6_7 *)inode)->i_mtime.tv_nsec;
	}
	return inode->i_size == verdict->size && seconds == verdict->modified && nanoseconds == verdict->modified_nsec;
}

// The kernel keeps a flag of its own there since 6.13.
#define NANOSECONDS 0x7fffffff

INLINE int has_same_attributes(struct inode *inode, struct verdict *verdict)
{
	s64 seconds = 0;
	u32 nanoseconds = 0;
	if (EXISTS(((struct inode___now *)inode)->i_ctime_sec)) {
		seconds = ((struct inode___now *)inode)->i_ctime_sec;
		nanoseconds = ((struct inode___now *)inode)->i_ctime_nsec & NANOSECONDS;
	} else if (EXISTS(((struct inode___before_6_11 *)inode)->__i_ctime)) {
		seconds = ((struct inode___before_6_11 *)inode)->__i_ctime.tv_sec;
		nanoseconds = ((struct inode___before_6_11 *)inode)->__i_ctime.tv_nsec;
	} else if (EXISTS(((struct inode___before_6_6 *)inode)->i_ctime)) {
		seconds = ((struct inode___before_6_6 *)inode)->i_ctime.tv_sec;
		nanoseconds = ((struct inode___before_6_6 *)inode)->i_ctime.tv_nsec;
	}
	return seconds == verdict->altered && nanoseconds == verdict->altered_nsec;
}

// The inode that the guard has judged: an overlay's, also where the one that holds the data is mapped. Since Linux 6.8 that one goes by a
// path of its own, and since 7.0 an inode that was found by a path has no storage.
INLINE struct inode *judged(struct file *file)
{
	if (EXISTS(((struct file___since_6_13 *)file)->f_ref))
		return file->f_inode;
	struct inode *inode = file->f_inode, *named = file->f_path.dentry->d_inode;
	if (named && named != inode && named->i_sb->s_magic == OVERLAYFS_SUPER_MAGIC)
		return named;
	return inode;
}

// An overlay's inode knows nothing of what is done to the layers beneath. The inode that holds the data cannot be had there, but be
// read: an open file of an overlay has the one that it reads from in `private_data`, since Linux 6.13 at the beginning of a structure of
// its own (`struct ovl_file`). What is mapped is that one itself, which up to Linux 6.7 goes by the overlay's path.
INLINE u32 judge_below(struct file *file, struct verdict *verdict)
{
	struct file *real = file->private_data;
	struct inode *inode = file->f_inode;
	if (inode == judged(file)) {
		if (EXISTS(((struct file___since_6_13 *)file)->f_ref) && probe_read(&real, sizeof(real), real))
			return CHANGED;
		if (READ(inode, real, f_inode))
			return CHANGED;
	}
	s64 size = 0, seconds = 0;
	u32 nanoseconds = 0;
	int writers = 0;
	if (READ(size, inode, i_size) || READ(writers, inode, i_writecount.counter))
		return CHANGED;
	if (EXISTS(((struct inode___now *)inode)->i_mtime_sec)) {
		READ(seconds, (struct inode___now *)inode, i_mtime_sec);
		READ(nanoseconds, (struct inode___now *)inode, i_mtime_nsec);
	} else if (EXISTS(((struct inode___before_6_11 *)inode)->__i_mtime)) {
		READ(seconds, (struct inode___before_6_11 *)inode, __i_mtime.tv_sec);
		READ(nanoseconds, (struct inode___before_6_11 *)inode, __i_mtime.tv_nsec);
	} else if (EXISTS(((struct inode___before_6_7 *)inode)->i_mtime)) {
		READ(seconds, (struct inode___before_6_7 *)inode, i_mtime.tv_sec);
		READ(nanoseconds, (struct inode___before_6_7 *)inode, i_mtime.tv_nsec);
	}
	if (writers > 0)
		return WRITERS;
	return size == verdict->size && seconds == verdict->modified && nanoseconds == verdict->modified_nsec ? 0 : CHANGED;
}

// How long a change of attributes may be on its way to the guard, in nanoseconds.
#define ON_ITS_WAY 250000000

// Why what is asked may not be; 0 when it may.
INLINE u32 judge(struct settings *set, struct file *file, struct inode *inode, u32 asked, u32 process)
{
	struct verdict *verdict = storage_get(&verdicts, inode, 0, 0);
	if (!verdict)
		return NO_VERDICT;
	u32 bits = verdict->bits;
	if (!(bits & LASTING) && verdict->epoch != set->epoch &&
	    !(verdict->epoch == set->epoch_before && monotonic() < set->before_until))
		return OTHER_EPOCH;
	if (inode->i_writecount.counter > 0)
		return WRITERS;
	struct changes *now = storage_get(&changed, inode, 0, 0);
	if (!now || now->content != verdict->content)
		return CHANGED;
	if (bits & STAMPED && !is_same_state(inode, verdict))
		return CHANGED;
	// When it is opened nothing is there yet to be read from.
	u32 below = bits & BELOW && asked != OPEN ? judge_below(file, verdict) : 0;
	if (below)
		return below;
	// An attempt that failed is counted as well, and leaves the time as it is; a new name changes the time, and no attribute.
	if ((now->attributes != verdict->attributes || bits & UNSETTLED) && !(bits & STAMPED && has_same_attributes(inode, verdict)) &&
	    (!process || monotonic() - now->when > ON_ITS_WAY))
		return CHANGED;
	if ((bits & asked) != asked)
		return NOT_ASKED;
	if (!process && !(bits & EVERYBODY))
		return GUARD_DEAD;
	return 0;
}

#define ELSEWHERE 0x80000000

// Whether there is anything to ask about a file system.
INLINE u32 asked_on(struct settings *set, struct inode *inode, u32 asked)
{
	u32 device = inode->i_sb->s_dev;
	u32 *wanted = map_lookup(&watched, &device);
	if (wanted)
		return *wanted & asked;
	return set->elsewhere & asked ? ELSEWHERE : 0;
}

// `told` is what a record of a refusal says that was asked.
INLINE int check_as(struct file *file, u32 asked, u32 told)
{
	struct settings *set = in_force();
	if (!set || !(set->flags & ENFORCE))
		return 0;
	struct inode *inode = judged(file);
	if (!is_regular(inode))
		return 0;
	u32 wanted = asked_on(set, inode, asked);
	if (!wanted)
		return 0;
	u32 process = guard_process();
	if (!is_in_force(set))
		return 0;
	if (acts_for_guard(process))
		return 0;
	if (wanted & ELSEWHERE)
		return refuse(told, NOT_WATCHED, inode, file->f_path.dentry);
	u32 why = judge(set, file, inode, asked, process);
	if (!why)
		return 0;
	return refuse(told, why, inode, file->f_path.dentry);
}

INLINE int check(struct file *file, u32 asked)
{
	return check_as(file, asked, asked);
}

// Whether it is the guard's own, one of `kinds`, and somebody else is about to change it.
INLINE int is_protected(struct settings *set, struct inode *inode, u32 kinds)
{
	if (!(set->flags & PROTECT) || !is_in_force(set))
		return 0;
	struct verdict *verdict = storage_get(&verdicts, inode, 0, 0);
	return verdict && verdict->bits & kinds && !acts_for_guard(guard_process());
}

INLINE int content_changes(struct inode *inode, struct dentry *dentry)
{
	struct changes *now = storage_get(&changed, inode, 0, 0);
	if (!now)
		return 0;
	struct settings *set = in_force();
	if (!set)
		return 0;
	// A program may be replaced by another one, and not be written to while it runs.
	if (is_protected(set, inode, GUARDS_OWN | GUARDS_PROGRAM))
		return refuse(0, PROTECTED, inode, dentry);
	struct verdict *verdict = storage_get(&verdicts, inode, 0, 0);
	if (verdict && verdict->bits & IMMUTABLE && set->flags & ENFORCE && !is_guard() &&
	    asked_on(set, inode, OPEN) && is_in_force(set) && verdict->content == now->content &&
	    verdict->attributes == now->attributes && verdict->epoch == set->epoch)
		return refuse(OPEN, SIGNED, inode, dentry);
	__sync_fetch_and_add(&now->content, 1);
	return 0;
}
