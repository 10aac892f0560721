/* attempt WHAT FILE: tries one thing on a file and ends with the error's number, 0 when it could be done.
 *
 *   read, write, truncate, map (executable), protect (mapped, then made executable), store (through a shared mapping)
 *   held: opens, says so on standard output, and maps executable when a line comes on standard input
 *   writing: opens for writing, says so, and closes when a line comes
 *   memory: copies the file into memory without a name, and executes that
 *   module: loads it as a module from the file; buffer: from memory
 *   chmod: changes its mode; user: the same as nobody in particular; label: gives it an HMAC label of EVM, made up
 *   write-label FILE NAME VALUE: gives it that attribute, VALUE being hexadecimal
 *   clone FILE COPY: makes a copy that shares its blocks
 *   user-label: gives it a digest label, and takes it away, as whoever owns it
 *   kexec FILE [FILE]: loads it as another kernel, with its first file system; kexec-buffer: from memory, nothing
 *   attach: to the process with that number, as a debugger does
 *   forge PROGRAM PROCESS: says that it runs that program, and kills the process; 200 if it cannot say so
 *   opens, executes: how long each takes in nanoseconds, on standard output */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static int failed(void) { return errno ? errno : 255; }

static int opened(const char *path, int flags)
{
	int file = open(path, flags);
	if (file < 0)
		exit(failed());
	return file;
}

static void *mapped(int file, int protection, int flags)
{
	void *at = mmap(0, 4096, protection, flags, file, 0);
	if (at == MAP_FAILED)
		exit(failed());
	return at;
}

static void wait_for_a_line(void)
{
	char line[8];
	puts("open");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(255);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static inline __attribute__((always_inline)) long call(long number, long a, long b, long c, long d, long e)
{
	register long fourth __asm__("r10") = d;
	register long fifth __asm__("r8") = e;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth) : "rcx", "r11", "memory");
	return result;
}

/* Runs in a copy: a task can say that it runs another program only when nothing of its own is mapped any more. */
static __attribute__((noinline, used, section("forged"), optimize("no-stack-protector"))) void forgery(long from, long size, long file, long process)
{
	call(SYS_munmap, from, size, 0, 0, 0);
	if (call(SYS_prctl, PR_SET_MM, PR_SET_MM_EXE_FILE, file, 0, 0))
		call(SYS_exit_group, 200, 0, 0, 0, 0);
	call(SYS_exit_group, -call(SYS_kill, process, 9, 0, 0, 0), 0, 0, 0, 0);
}

extern const char __executable_start, __start_forged, __stop_forged;

static void forge(const char *program, long process)
{
	int file = opened(program, O_RDONLY);
	void *copy = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		exit(failed());
	memcpy(copy, &__start_forged, &__stop_forged - &__start_forged);
	/* From its beginning to the end of what is initialised; what comes after it is memory. */
	long from = (long)&__executable_start, until = 0, end;
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%*x-%lx", &end) == 1 && strstr(line, "/attempt"))
			until = end;
	((void (*)(long, long, long, long))copy)(from & -4096L, until - (from & -4096L), file, process);
}

int main(int count, char **arguments)
{
	if (count < 3)
		return 0;
	const char *what = arguments[1], *path = arguments[2];
	if (!strcmp(what, "read"))
		opened(path, O_RDONLY);
	else if (!strcmp(what, "write"))
		opened(path, O_WRONLY);
	else if (!strcmp(what, "truncate"))
		return truncate(path, 1) ? failed() : 0;
	else if (!strcmp(what, "map"))
		mapped(opened(path, O_RDONLY), PROT_READ | PROT_EXEC, MAP_PRIVATE);
	else if (!strcmp(what, "protect")) {
		void *at = mapped(opened(path, O_RDONLY), PROT_READ, MAP_PRIVATE);
		return mprotect(at, 4096, PROT_READ | PROT_EXEC) ? failed() : 0;
	} else if (!strcmp(what, "store")) {
		char *at = mapped(opened(path, O_RDWR), PROT_READ | PROT_WRITE, MAP_SHARED);
		at[100] ^= 1;
		munmap(at, 4096);
	} else if (!strcmp(what, "held")) {
		int file = opened(path, O_RDONLY);
		wait_for_a_line();
		mapped(file, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	} else if (!strcmp(what, "writing")) {
		opened(path, O_RDWR);
		wait_for_a_line();
	} else if (!strcmp(what, "memory")) {
		int file = opened(path, O_RDONLY), memory = memfd_create("memory", MFD_CLOEXEC);
		char buffer[65536];
		for (ssize_t size; (size = read(file, buffer, sizeof(buffer))) > 0;)
			if (write(memory, buffer, size) != size)
				return failed();
		char *none[] = {(char *)path, 0}, *nothing[] = {0};
		fexecve(memory, none, nothing);
		return failed();
	} else if (!strcmp(what, "module"))
		return syscall(SYS_finit_module, opened(path, O_RDONLY), "", 0) ? failed() : 0;
	else if (!strcmp(what, "buffer")) {
		int file = opened(path, O_RDONLY);
		struct stat stat;
		fstat(file, &stat);
		char *module = malloc(stat.st_size);
		if (!module || read(file, module, stat.st_size) != stat.st_size)
			return failed();
		return syscall(SYS_init_module, module, stat.st_size, "") ? failed() : 0;
	} else if (!strcmp(what, "chmod"))
		return chmod(path, 0700) ? failed() : 0;
	else if (!strcmp(what, "user"))
		return setuid(4711) || chmod(path, 0777) ? failed() : 0;
	else if (!strcmp(what, "label"))
		return setxattr(path, "security.evm", "\2aaaaaaaaaaaaaaaaaaaa", 21, 0) ? failed() : 0;
	else if (!strcmp(what, "write-label") && count > 4) {
		unsigned char value[256];
		size_t size = 0;
		for (; size < sizeof(value) && sscanf(arguments[4] + 2 * size, "%2hhx", &value[size]) == 1; size++)
			;
		return setxattr(path, arguments[3], value, size, 0) ? failed() : 0;
	} else if (!strcmp(what, "clone") && count > 3) {
		int copy = open(arguments[3], O_WRONLY | O_CREAT | O_EXCL, 0755);
		return copy < 0 || ioctl(copy, FICLONE, opened(path, O_RDONLY)) ? failed() : 0;
	} else if (!strcmp(what, "user-label")) {
		struct stat stat;
		unsigned char label[34] = {4, 4};
		if (lstat(path, &stat) || setuid(stat.st_uid))
			return 255;
		if (!removexattr(path, "security.ima") || errno != EPERM)
			return 254;
		return setxattr(path, "security.ima", label, sizeof(label), 0) ? failed() : 0;
	} else if (!strcmp(what, "kexec")) {
		int kernel = opened(path, O_RDONLY), first = count > 3 ? opened(arguments[3], O_RDONLY) : -1;
		return syscall(SYS_kexec_file_load, kernel, first, 1, "", count > 3 ? 0 : 4) ? failed() : 0;
	} else if (!strcmp(what, "kexec-buffer"))
		return syscall(SYS_kexec_load, 0, 0, 0, 0) ? failed() : 0;
	else if (!strcmp(what, "forge") && count > 3) {
		forge(path, atol(arguments[3]));
		return 255;
	} else if (!strcmp(what, "attach"))
		return ptrace(PTRACE_SEIZE, atoi(path), 0, 0) ? failed() : 0;
	else if (!strcmp(what, "opens") || !strcmp(what, "executes")) {
		int opens = what[0] == 'o', times = opens ? 5000 : 40;
		double best = 1e18;
		for (int round = 0; round < 3; round++) {
			double begun = now();
			for (int time = 0; time < times; time++) {
				if (opens) {
					close(opened(path, O_RDONLY));
					continue;
				}
				pid_t child = vfork();
				if (!child) {
					execl(path, "true", NULL);
					_exit(255);
				}
				int status;
				waitpid(child, &status, 0);
				if (status)
					return 255;
			}
			double took = (now() - begun) / times;
			best = took < best ? took : best;
		}
		printf("%.0f\n", best);
	} else
		return 255;
	return 0;
}
