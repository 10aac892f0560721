// Three programs, each with something that depends on the kernel; see README.md.
#define SEC(name) __attribute__((section(name), used))
#define KERNEL __attribute__((preserve_access_index))
struct inode { unsigned long i_ino; } KERNEL;
struct inode___other { unsigned int i_none; } KERNEL;
struct file { unsigned int f_mode; struct inode *f_inode; } KERNEL;
enum kernel_read_file_id { READING_MODULE = 2 };
struct { int unused; } kept SEC(".maps");
char _license[] SEC("license") = "Dual MIT/GPL";
static void *(*lookup)(void *map, const void *key) = (void *)1;
SEC("lsm/file_open") int opens(unsigned long long *arguments)
{
	struct file *file = (struct file *)arguments[0];
	unsigned int key = file->f_mode;
	if (__builtin_preserve_field_info(((struct inode___other *)file->f_inode)->i_none, 2))
		key = ((struct inode___other *)file->f_inode)->i_none;
	return lookup(&kept, &key) && file->f_inode->i_ino ? 0 : -1;
}
SEC("lsm/inode_setattr@3") int changes(unsigned long long *arguments)
{
	return arguments[1] == __builtin_preserve_enum_value(*(typeof(enum kernel_read_file_id) *)READING_MODULE, 1) ? -1 : 0;
}
SEC("tp_btf/sched_process_exit") int ends(unsigned long long *arguments)
{
	return 0;
}
