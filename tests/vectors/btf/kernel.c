// Stands for a kernel: the structures have other fields around the ones that are looked for; see README.md.
typedef unsigned int fmode_t;
struct super_block { void *s_list[2]; unsigned int s_dev; };
struct inode { unsigned short i_mode; unsigned short i_opflags; void *i_op; struct super_block *i_sb; const unsigned long i_ino; };
struct file {
	union { void *f_list; struct { long one, two; }; };
	int f_lock;
	fmode_t f_mode;
	unsigned long f_pos;
	struct inode *f_inode;
};
enum kernel_read_file_id { READING_UNKNOWN, READING_FIRMWARE, READING_MODULE = 3 };
struct mnt_idmap;
struct dentry;
struct iattr;
__attribute__((noinline, used)) int bpf_lsm_inode_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr) { return 0; }
__attribute__((noinline, used)) int bpf_lsm_file_open(struct file *file) { return file->f_inode->i_sb->s_dev; }
__attribute__((noinline, used)) int reads(enum kernel_read_file_id id) { return id == READING_MODULE; }
typedef void (*btf_trace_sched_process_exit)(void *data);
btf_trace_sched_process_exit tracepoint = 0;
struct inode some_inode;
