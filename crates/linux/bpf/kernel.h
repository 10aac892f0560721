// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// What is used of the kernel: fields and constants, found by their names when a program is loaded (CO-RE), and helpers.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define KERNEL __attribute__((preserve_access_index))
#define INLINE static __attribute__((always_inline))

// ---- what is used of the kernel's structures

typedef struct {
	int counter;
} KERNEL atomic_t;

typedef struct {
	u32 val;
} KERNEL kuid_t;

typedef struct {
	u32 val;
} KERNEL kgid_t;

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
} KERNEL;

struct timespec64 {
	s64 tv_sec;
	long tv_nsec;
} KERNEL;

struct inode {
	u16 i_mode;
	kuid_t i_uid;
	kgid_t i_gid;
	struct super_block *i_sb;
	unsigned long i_ino;
	s64 i_size;
	atomic_t i_writecount;
} KERNEL;

struct inode___before_6_6 {
	struct timespec64 i_ctime;
} KERNEL;

struct inode___before_6_7 {
	struct timespec64 i_mtime;
} KERNEL;

struct inode___before_6_11 {
	struct timespec64 __i_mtime;
	struct timespec64 __i_ctime;
} KERNEL;

struct inode___now {
	s64 i_mtime_sec;
	s64 i_ctime_sec;
	u32 i_mtime_nsec;
	u32 i_ctime_nsec;
} KERNEL;

struct qstr {
	const unsigned char *name;
} KERNEL;

struct dentry {
	struct inode *d_inode;
	struct qstr d_name;
} KERNEL;

struct path {
	struct dentry *dentry;
} KERNEL;

struct file {
	u32 f_mode;
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
} KERNEL;

struct file___since_6_13 {
	long f_ref;
} KERNEL;

struct linux_binprm {
	struct file *file;
} KERNEL;

struct vm_area_struct {
	unsigned long vm_flags;
	struct file *vm_file;
} KERNEL;

struct iattr {
	u32 ia_valid;
	u16 ia_mode;
	kuid_t ia_uid;
	kgid_t ia_gid;
} KERNEL;

struct signal_struct {
	atomic_t live;
	u32 flags;
} KERNEL;

struct user_namespace {
	int level;
} KERNEL;

// One number by now, two halves of it before Linux 6.3.
typedef struct {
	u64 capabilities;
} kernel_cap_t;

struct cred {
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
} KERNEL;

struct task_struct {
	int tgid;
	u32 ptrace;
	struct signal_struct *signal;
	struct cred *cred;
} KERNEL;

struct posix_acl_entry {
	short e_tag;
	u16 e_perm;
	kuid_t e_uid;
};

struct posix_acl {
	u32 a_count;
	struct posix_acl_entry a_entries[0];
} KERNEL;

struct bpf_map {
	u32 id;
} KERNEL;

struct vfsmount {
	struct super_block *mnt_sb;
} KERNEL;

enum kernel_read_file_id {
	READING_FIRMWARE = 1,
	READING_MODULE = 2,
	READING_KEXEC_IMAGE = 3,
	READING_KEXEC_INITRAMFS = 4,
};

enum kernel_load_data_id {
	LOADING_FIRMWARE = 1,
	LOADING_MODULE = 2,
	LOADING_KEXEC_IMAGE = 3,
	LOADING_KEXEC_INITRAMFS = 4,
};

// Has what follows be computed from this as it is, as the verifier knows nothing of what the compiler has concluded.
#define KEEP(value) __asm__ volatile("" : "+r"(value))
// Reads a field by a pointer that the verifier knows no type for.
#define READ(to, from, field) probe_read(&(to), sizeof(to), &(from)->field)
#define OFFSET(field) __builtin_preserve_field_info(field, 0)
#define EXISTS(field) __builtin_preserve_field_info(field, 2)
#define ENUM(type, value) ((u32)__builtin_preserve_enum_value(*(typeof(enum type) *)value, 1))

#define OVERLAYFS_SUPER_MAGIC 0x794c7630
#define FMODE_WRITE 2
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_ISGID 02000
#define ACL_USER_OBJ 1
#define ACL_GROUP_OBJ 4
#define ACL_MASK 16
#define ACL_OTHER 32
#define PROT_EXEC 4
#define VM_EXEC 4
#define ATTR_MODE 1
#define ATTR_UID 2
#define ATTR_GID 4
#define ATTR_SIZE 8
#define PTRACE_MODE_ATTACH 2
#define CAP_SYS_ADMIN 21
#define EPERM 1
#define EACCES 13
#define EINVAL 22
#define SIGNAL_GROUP_EXIT 4
#define SIGHUP 1
#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define SIGCONT 18
#define SIGURG 23
#define SIGWINCH 28
#define SIGIO 29
#define SIGRTMIN 32

// ---- helpers of the kernel, by their numbers

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static long (*probe_read)(void *to, u32 size, const void *from) = (void *)113;
static long (*probe_read_str)(void *to, u32 size, const void *from) = (void *)115;
static u64 (*monotonic)(void) = (void *)5;
static u64 (*current_pid_tgid)(void) = (void *)14;
static u64 (*current_uid_gid)(void) = (void *)15;
static long (*current_comm)(void *to, u32 size) = (void *)16;
static void *(*ring_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ring_submit)(void *record, u64 flags) = (void *)132;
static void *(*storage_get)(void *map, void *inode, void *value, u64 flags) = (void *)145;
static void *(*current_task)(void) = (void *)158;
