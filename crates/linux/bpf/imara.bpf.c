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

#include "kernel.h"
#include "shared.h"

char _license[] SEC("license") = "Dual MIT/GPL";

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

// ---- what all hooks need

INLINE struct settings *in_force(void)
{
	u32 zero = 0;
	return map_lookup(&settings, &zero);
}

INLINE u32 guard_process(void)
{
	return alive.process;
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
	int error = asked ? -EACCES : -EPERM;
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

// The inode that the guard has judged: an overlay's, also where the one that holds the data is mapped.
INLINE struct inode *judged(struct file *file)
{
	struct inode *inode = file->f_inode, *named = file->f_path.dentry->d_inode;
	if (named && named != inode && named->i_sb->s_magic == OVERLAYFS_SUPER_MAGIC)
		return named;
	return inode;
}

// An overlay's inode knows nothing of what is done to the layers beneath. The inode that holds the data cannot be had there, but be
// read: an open file of an overlay has the one that it reads from in `private_data`, until Linux 6.13 puts that into a structure
// of its own. What is mapped is that one itself, which up to Linux 6.7 goes by the overlay's path.
INLINE u32 judge_below(struct file *file, struct verdict *verdict)
{
	struct file *real = file->private_data;
	struct inode *inode = file->f_inode;
	if (inode == judged(file)) {
		if (EXISTS(((struct file___since_6_13 *)file)->f_ref))
			return 0;
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

INLINE int check(struct file *file, u32 asked)
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
	if (!process && !(set->flags & CLOSED))
		return 0;
	if (acts_for_guard(process))
		return 0;
	if (wanted & ELSEWHERE)
		return refuse(asked, NOT_WATCHED, inode, file->f_path.dentry);
	u32 why = judge(set, file, inode, asked, process);
	if (!why)
		return 0;
	return refuse(asked, why, inode, file->f_path.dentry);
}

// Whether it is the guard's own, one of `kinds`, and somebody else is about to change it.
INLINE int is_protected(struct settings *set, struct inode *inode, u32 kinds)
{
	if (!(set->flags & PROTECT))
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
	    asked_on(set, inode, OPEN) && (guard_process() || set->flags & CLOSED) && verdict->content == now->content &&
	    verdict->attributes == now->attributes && verdict->epoch == set->epoch)
		return refuse(OPEN, SIGNED, inode, dentry);
	__sync_fetch_and_add(&now->content, 1);
	return 0;
}

// ---- the guard's program

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

// ---- files

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
	return check(file, MMAP);
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
	if (!set || !(set->flags & ENFORCE) || (!guard_process() && !(set->flags & CLOSED)))
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

// ---- attributes and labels

// Whether a portable signature of EVM covers the attributes, so that they may not change.
INLINE int is_portable(struct settings *set, struct inode *inode)
{
	if ((set->flags & (EVM | ENFORCE)) != (EVM | ENFORCE) || is_guard() || (!guard_process() && !(set->flags & CLOSED)))
		return 0;
	struct verdict *verdict = storage_get(&verdicts, inode, 0, 0);
	// What could make it void is refused, so that it holds whatever the policy.
	return verdict && verdict->bits & PORTABLE;
}

INLINE int attributes_change(struct dentry *dentry)
{
	struct inode *inode = dentry->d_inode;
	struct changes *now = storage_get(&changed, inode, 0, 0);
	if (!now)
		return 0;
	struct settings *set = in_force();
	if (!set)
		return 0;
	if (is_protected(set, inode, GUARDS_OWN))
		return refuse(0, PROTECTED, inode, dentry);
	// Labels that the guard itself writes are those of what it has judged.
	if (is_guard())
		return 0;
	now->when = monotonic();
	__sync_fetch_and_add(&now->attributes, 1);
	return 0;
}

// Source: evm_inode_setattr and evm_attr_change, security/integrity/evm/evm_main.c.
INLINE int changes_owner_or_mode(struct inode *inode, struct iattr *attributes)
{
	u32 what = attributes->ia_valid;
	return (what & ATTR_MODE && attributes->ia_mode != inode->i_mode) ||
	       (what & ATTR_UID && attributes->ia_uid.val != inode->i_uid.val) ||
	       (what & ATTR_GID && attributes->ia_gid.val != inode->i_gid.val);
}

INLINE int set_attributes(struct dentry *dentry, struct iattr *attributes)
{
	struct settings *set = in_force();
	if (set && changes_owner_or_mode(dentry->d_inode, attributes) && is_portable(set, dentry->d_inode))
		return refuse(0, PORTABLE_LABEL, dentry->d_inode, dentry);
	if (attributes->ia_valid & ATTR_SIZE) {
		struct inode *inode = dentry->d_inode;
		int refused = content_changes(inode, dentry);
		if (refused)
			return refused;
	}
	return attributes_change(dentry);
}

SEC("lsm/inode_setattr@2") int inode_setattr_2(u64 *arguments)
{
	return set_attributes((struct dentry *)arguments[0], (struct iattr *)arguments[1]);
}

SEC("lsm/inode_setattr@3") int inode_setattr_3(u64 *arguments)
{
	return set_attributes((struct dentry *)arguments[1], (struct iattr *)arguments[2]);
}

#define NAME_SECURITY(words) (words[0] == 0x7974697275636573ull /* security */ && (words[1] & 0xff) == '.')
#define NAME_SECURITY_EVM(words) (NAME_SECURITY(words) && (words[1] & 0xffffffffffull) == 0x006d76652eull /* .evm */)
#define NAME_SECURITY_IMA(words) (NAME_SECURITY(words) && (words[1] & 0xffffffffffull) == 0x00616d692eull /* .ima */)
#define NAME_ACL(words)                                                                                                          \
	(words[0] == 0x702e6d6574737973ull /* system.p */ && words[1] == 0x6c63615f7869736full /* osix_acl */ &&                 \
	 (words[2] & 0xff) == '_')

#define MOST_ENTRIES 32

// Whether an ACL goes with the mode that the file has. Entries are the same in the kernel and in the attribute's value: a tag and
// permissions of 16 bits each, and whom they are for.
// Source: posix_acl_equiv_mode, fs/posix_acl.c; evm_xattr_acl_change, security/integrity/evm/evm_main.c.
INLINE int keeps_mode(struct inode *inode, const void *entries, u32 count)
{
	u32 mode = 0, group = 0, mask = 0, masked = 0;
	if (!count || count > MOST_ENTRIES || inode->i_mode & S_ISGID)
		return 0;
	for (u32 i = 0; i < MOST_ENTRIES && i < count; i++) {
		u32 entry = 0;
		if (probe_read(&entry, sizeof(entry), entries + i * sizeof(struct posix_acl_entry)))
			return 0;
		u32 tag = entry & 0xffff, allowed = entry >> 16 & 7;
		if (tag == ACL_USER_OBJ)
			mode |= allowed << 6;
		else if (tag == ACL_GROUP_OBJ)
			group = allowed << 3;
		else if (tag == ACL_OTHER)
			mode |= allowed;
		else if (tag == ACL_MASK) {
			masked = 1;
			mask = allowed << 3;
		}
	}
	return (mode | (masked ? mask : group)) == (inode->i_mode & 0777u);
}

// Whether this task may change labels, as IMA and EVM ask where the kernel has them.
// Source: ima_protect_xattr, security/integrity/ima/ima_appraise.c.
INLINE int may_label(void)
{
	struct task_struct *task = current_task();
	struct cred *cred = 0;
	struct user_namespace *within = 0;
	u64 capabilities = 0;
	int level = 1;
	if (READ(cred, task, cred) || READ(capabilities, cred, cap_effective) || READ(within, cred, user_ns) ||
	    READ(level, within, level))
		return 0;
	return !level && capabilities >> CAP_SYS_ADMIN & 1;
}

#define IMA_XATTR_LAST 7

// Source: ima_get_hash_algo, security/integrity/ima/ima_appraise.c.
INLINE u32 algorithm_of(const u64 *label, u64 size)
{
	// In registers: of bytes in memory the compiler would choose addresses, in a way that the verifier does not follow.
	u64 first = label[0], last = label[2];
	u32 start = first & 0xffff, algorithm = NO_ALGORITHM;
	if (size > 9 && (start == 0x0203 || start == 0x0306))
		algorithm = first >> 16 & 0xff;
	else if (size > 1 && (start & 0xff) == 4)
		algorithm = start >> 8;
	else if (size == 21 && (start & 0xff) == 1)
		algorithm = last & 0xffffffff00ull ? 2 : 1; // SHA-1, MD5
	else if (size == 17 && (start & 0xff) == 1)
		algorithm = 1;
	return algorithm < NO_ALGORITHM ? algorithm : NO_ALGORITHM;
}

// Whether security.ima may be written; that it may not is as independent of a policy's other rules as in the kernel.
// Source: ima_inode_setxattr, validate_hash_algo, security/integrity/ima/ima_appraise.c.
INLINE int writes_label(struct settings *set, struct dentry *dentry, const void *value, u64 size)
{
	struct inode *inode = dentry->d_inode;
	if (!asked_on(set, inode, LABEL) || (!guard_process() && !(set->flags & CLOSED)))
		return 0;
	u64 label[4] = {};
	u32 most = size < 24 ? size : 24;
	KEEP(most);
	if (!size || probe_read(label, most & 31, value) || (label[0] & 0xff) >= IMA_XATTR_LAST)
		return -EINVAL;
	u32 algorithm = algorithm_of(label, size);
	if (set->labels >> algorithm & 1)
		return 0;
	return refuse_label(LABEL, set->flags & LABELS_BY_RULE ? LABEL_DENIED : LABEL_UNAVAILABLE, inode, dentry, algorithm);
}

// security.evm with an HMAC is made by whoever has the key, and by nobody else; a signature anybody may bring.
// Source: evm_inode_setxattr, security/integrity/evm/evm_main.c.
SEC("lsm/inode_setxattr") int inode_setxattr(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct settings *set = in_force();
	if (set && set->flags & ENFORCE && !is_guard()) {
		u64 words[3] = {};
		probe_read_str(words, sizeof(words), (const void *)arguments[2]);
		// Not read as an argument: the verifier knows no type for it.
		const void *value = 0;
		probe_read(&value, sizeof(value), &arguments[3]);
		u64 size = arguments[4];
		if ((NAME_SECURITY_IMA(words) || NAME_SECURITY_EVM(words)) && !may_label())
			return -EPERM;
		if (NAME_SECURITY_IMA(words)) {
			int refused = writes_label(set, dentry, value, size);
			if (refused)
				return refused;
		}
		if (NAME_SECURITY_EVM(words) && set->flags & EVM) {
			u8 type = 0;
			if (!size)
				return -EINVAL;
			probe_read(&type, 1, value);
			if (type != 3 && type != 5)
				return refuse(0, EVM_LABEL, dentry->d_inode, dentry);
		}
		if (NAME_SECURITY(words) && is_portable(set, dentry->d_inode))
			return refuse(0, PORTABLE_LABEL, dentry->d_inode, dentry);
		// Since 6.2 ACLs have hooks of their own. In the value a version of 32 bits comes first.
		if (NAME_ACL(words) && is_portable(set, dentry->d_inode) &&
		    !keeps_mode(dentry->d_inode, value + 4, ((u32)size - 4) / sizeof(struct posix_acl_entry)))
			return refuse(0, PORTABLE_LABEL, dentry->d_inode, dentry);
	}
	return attributes_change(dentry);
}

SEC("lsm/inode_removexattr") int inode_removexattr(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct settings *set = in_force();
	if (set && set->flags & ENFORCE && !is_guard()) {
		u64 words[3] = {};
		probe_read_str(words, sizeof(words), (const void *)arguments[2]);
		if ((NAME_SECURITY_IMA(words) || NAME_SECURITY_EVM(words)) && !may_label())
			return -EPERM;
		if ((NAME_SECURITY(words) || NAME_ACL(words)) && is_portable(set, dentry->d_inode))
			return refuse(0, PORTABLE_LABEL, dentry->d_inode, dentry);
	}
	return attributes_change(dentry);
}

SEC("lsm/inode_set_acl") int inode_set_acl(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct posix_acl *acl = (struct posix_acl *)arguments[3];
	struct settings *set = in_force();
	if (set && is_portable(set, dentry->d_inode) &&
	    (!acl || !keeps_mode(dentry->d_inode, (const void *)acl + OFFSET(acl->a_entries), acl->a_count)))
		return refuse(0, PORTABLE_LABEL, dentry->d_inode, dentry);
	return attributes_change(dentry);
}

SEC("lsm/inode_remove_acl") int inode_remove_acl(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct settings *set = in_force();
	if (set && is_portable(set, dentry->d_inode))
		return refuse(0, PORTABLE_LABEL, dentry->d_inode, dentry);
	return attributes_change(dentry);
}

// ---- the guard itself

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
	if (!set || !(set->flags & PROTECT))
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
