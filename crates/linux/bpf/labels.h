// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Attributes and labels: their changes are counted, and those are refused that IMA and EVM refuse.

#pragma once

#include "verdict.h"

// Whether a portable signature of EVM covers the attributes, so that they may not change.
INLINE int is_portable(struct settings *set, struct inode *inode)
{
	if ((set->flags & (EVM | ENFORCE)) != (EVM | ENFORCE) || is_guard() || !is_in_force(set))
		return 0;
	struct verdict *verdict = storage_get(&verdicts, inode, 0, 0);
	// What could make it void is refused, so that it holds whatever the policy.
	return verdict && verdict->bits & PORTABLE;
}

INLINE int attributes_change(struct inode *inode, struct dentry *dentry)
{
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
	struct inode *inode = dentry->d_inode;
	// Always there, which the verifier does not know (since Linux 7.0).
	if (!inode)
		return 0;
	if (set && changes_owner_or_mode(inode, attributes) && is_portable(set, inode))
		return refuse(0, PORTABLE_LABEL, inode, dentry);
	if (attributes->ia_valid & ATTR_SIZE) {
		int refused = content_changes(inode, dentry);
		if (refused)
			return refused;
	}
	return attributes_change(inode, dentry);
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
INLINE int writes_label(struct settings *set, struct inode *inode, struct dentry *dentry, const void *value, u64 size)
{
	if (!asked_on(set, inode, LABEL))
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
	struct inode *inode = dentry->d_inode;
	if (!inode)
		return 0;
	if (set && set->flags & ENFORCE && !is_guard() && is_in_force(set)) {
		u64 words[3] = {};
		probe_read_str(words, sizeof(words), (const void *)arguments[2]);
		// Not read as an argument: the verifier knows no type for it.
		const void *value = 0;
		probe_read(&value, sizeof(value), &arguments[3]);
		u64 size = arguments[4];
		if ((NAME_SECURITY_IMA(words) || NAME_SECURITY_EVM(words)) && !may_label())
			return -EPERM;
		if (NAME_SECURITY_IMA(words)) {
			int refused = writes_label(set, inode, dentry, value, size);
			if (refused)
				return refused;
		}
		if (NAME_SECURITY_EVM(words) && set->flags & EVM) {
			u8 type = 0;
			if (!size)
				return -EINVAL;
			probe_read(&type, 1, value);
			if (type != 3 && type != 5)
				return refuse(0, EVM_LABEL, inode, dentry);
		}
		if (NAME_SECURITY(words) && is_portable(set, inode))
			return refuse(0, PORTABLE_LABEL, inode, dentry);
		// Since 6.2 ACLs have hooks of their own. In the value a version of 32 bits comes first.
		if (NAME_ACL(words) && is_portable(set, inode) &&
		    !keeps_mode(inode, value + 4, ((u32)size - 4) / sizeof(struct posix_acl_entry)))
			return refuse(0, PORTABLE_LABEL, inode, dentry);
	}
	return attributes_change(inode, dentry);
}

SEC("lsm/inode_removexattr") int inode_removexattr(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct settings *set = in_force();
	struct inode *inode = dentry->d_inode;
	if (!inode)
		return 0;
	if (set && set->flags & ENFORCE && !is_guard() && is_in_force(set)) {
		u64 words[3] = {};
		probe_read_str(words, sizeof(words), (const void *)arguments[2]);
		if ((NAME_SECURITY_IMA(words) || NAME_SECURITY_EVM(words)) && !may_label())
			return -EPERM;
		if ((NAME_SECURITY(words) || NAME_ACL(words)) && is_portable(set, inode))
			return refuse(0, PORTABLE_LABEL, inode, dentry);
	}
	return attributes_change(inode, dentry);
}

SEC("lsm/inode_set_acl") int inode_set_acl(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct posix_acl *acl = (struct posix_acl *)arguments[3];
	struct settings *set = in_force();
	struct inode *inode = dentry->d_inode;
	if (!inode)
		return 0;
	if (set && is_portable(set, inode) &&
	    (!acl || !keeps_mode(inode, (const void *)acl + OFFSET(acl->a_entries), acl->a_count)))
		return refuse(0, PORTABLE_LABEL, inode, dentry);
	return attributes_change(inode, dentry);
}

SEC("lsm/inode_remove_acl") int inode_remove_acl(u64 *arguments)
{
	struct dentry *dentry = (struct dentry *)arguments[1];
	struct settings *set = in_force();
	struct inode *inode = dentry->d_inode;
	if (!inode)
		return 0;
	if (set && is_portable(set, inode))
		return refuse(0, PORTABLE_LABEL, inode, dentry);
	return attributes_change(inode, dentry);
}
