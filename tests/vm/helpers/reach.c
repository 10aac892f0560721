/* reach WAY FILE: tries to run FILE, or to get its content executable, in one of the ways below. Ends with the error's number,
 * 0 when it could be done (FILE is a copy of this program, which does nothing without arguments, or made by `make`), 201 when
 * this kernel has no such way, 202 when the way fails before anything is run. What a way makes beside FILE has its label, and is
 * gone afterwards.
 *
 * At level 1 live in crates/imara/tests/guard/ways.rs; at level 2 and with the kernel's IMA in scenarios/level2-reach and
 * scenarios/kernel-reach. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NO_SUCH_WAY 201
#define BEFORE 202
#ifndef AT_EXECVE_CHECK
#define AT_EXECVE_CHECK 0x10000
#endif

static const char *path;	/* of FILE */
static char folder[4096];	/* that it is in */
static char name[256];		/* its last part */
static char made[4200];		/* what is removed at the end */

static void stop(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(BEFORE);
}

#define must(call) ({ long got_ = (long)(call); if (got_ == -1) stop(#call); got_; })

static int failed(void) { return errno ? errno : 255; }

static void in_a_child(void)
{
	/* What was made is removed by the parent, whatever becomes of the child. */
	fflush(stdout);
	int status;
	pid_t child = must(fork());
	if (!child)
		return;
	must(waitpid(child, &status, 0));
	if (made[0] && unlink(made))
		rmdir(made);
	exit(WIFEXITED(status) ? WEXITSTATUS(status) : 255);
}

/* Executes a file below a descriptor, or the descriptor's own where there is no name. */
static int execute(int at, const char *what)
{
	char *arguments[] = {name, 0}, *nothing[] = {0};
	syscall(SYS_execveat, at, what, arguments, nothing, *what ? 0 : AT_EMPTY_PATH);
	return failed();
}

/* Opened for reading; being refused is an answer. */
static int opened(void)
{
	int file = open(path, O_RDONLY);
	if (file < 0)
		exit(failed());
	return file;
}

static int map(int file, int protection, int flags)
{
	return mmap(0, 4096, protection, flags, file, 0) == MAP_FAILED ? failed() : 0;
}

/* The content and the label of FILE in an open file. */
static void fill(int to)
{
	static char label[1024];
	int from = opened();
	struct stat stat;
	must(fstat(from, &stat));
	for (off_t left = stat.st_size; left;) {
		ssize_t sent = must(sendfile(to, from, 0, left));
		left -= sent;
	}
	ssize_t size = fgetxattr(from, "security.ima", label, sizeof(label));
	if (size > 0 && fsetxattr(to, "security.ima", label, size, 0) && errno != EOPNOTSUPP)
		stop("the label");
	must(fchmod(to, 0755));
	must(fchown(to, 4711, 4711)); /* by which a policy can tell it */
	close(from);
}

/* A copy of FILE beside it, which is removed at the end. */
static const char *copied(void)
{
	snprintf(made, sizeof(made), "%s/reach-%d", folder, getpid());
	int to = must(open(made, O_CREAT | O_EXCL | O_WRONLY, 0755));
	fill(to);
	close(to);
	usleep(50000);
	return made;
}

static void write_to(const char *file, const char *text)
{
	int to = must(open(file, O_WRONLY));
	must(write(to, text, strlen(text)));
	close(to);
}

/* An empty directory outside of FILE's file system, in a mount namespace of its own. */
static const char *place(int user)
{
	snprintf(made, sizeof(made), "/tmp/reach-%d", getpid());
	must(mkdir(made, 0755));
	in_a_child();
	must(unshare(CLONE_NEWNS | (user ? CLONE_NEWUSER : 0)));
	if (user) {
		write_to("/proc/self/setgroups", "deny");
		write_to("/proc/self/uid_map", "0 0 1");
		write_to("/proc/self/gid_map", "0 0 1");
	}
	must(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
	return made;
}

static int below(const char *where)
{
	char at[8400];
	snprintf(at, sizeof(at), "%s/%s", where, name);
	return execute(AT_FDCWD, at);
}

static void fill_at(int at)
{
	int to = must(openat(at, name, O_CREAT | O_WRONLY, 0755));
	fill(to);
	close(to);
}

/* Opened by a request in a ring instead of open(2). */
static int opened_by_a_ring(void)
{
	struct io_uring_params params = {0};
	int ring = syscall(SYS_io_uring_setup, 1, &params);
	if (ring < 0)
		return -NO_SUCH_WAY;
	char *queue = mmap(0, params.sq_off.array + params.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *done = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED,
			  ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *request = mmap(0, sizeof(*request), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (queue == MAP_FAILED || done == MAP_FAILED || request == MAP_FAILED)
		stop("the ring");
	*request = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)path, .open_flags = O_RDONLY};
	*(uint32_t *)(queue + params.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	must(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0));
	int result = ((struct io_uring_cqe *)(done + params.cq_off.cqes))->res;
	return result;
}

static int attempt(const char *way)
{
	int is(const char *other) { return !strcmp(way, other); }

	if (is("make")) {
		/* The smallest FILE: exit(0), of x86-64. */
		static const unsigned char program[] = {
			0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0, 0x78, 0, 0x40, 0, 0, 0, 0, 0,
			64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0,
			1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
			0x81, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
			0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
		};
		int file = must(open(path, O_CREAT | O_EXCL | O_WRONLY, 0755));
		must(write(file, program, sizeof(program)));
		return 0;
	}

	/* Executed, by whatever name. */
	if (is("exec"))
		return execute(AT_FDCWD, path);
	if (is("check")) {
		char *arguments[] = {name, 0};
		int file = must(open(path, O_PATH));
		if (!syscall(SYS_execveat, file, "", arguments, arguments + 1, AT_EMPTY_PATH | AT_EXECVE_CHECK))
			return 0;
		return errno == EINVAL ? NO_SUCH_WAY : failed();
	}
	if (is("descriptor"))
		return execute(must(open(path, O_PATH)), "");
	if (is("proc")) {
		char at[64];
		snprintf(at, sizeof(at), "/proc/self/fd/%ld", must(open(path, O_PATH)));
		return execute(AT_FDCWD, at);
	}
	if (is("root")) {
		char at[4200];
		snprintf(at, sizeof(at), "/proc/self/root%s", path);
		return execute(AT_FDCWD, at);
	}
	if (is("deleted")) {
		int file = must(open(copied(), O_PATH));
		must(unlink(made));
		return execute(file, "");
	}
	if (is("nameless")) {
		char at[64];
		int file = must(open(folder, O_TMPFILE | O_RDWR, 0755));
		fill(file);
		snprintf(at, sizeof(at), "/proc/self/fd/%d", file);
		int run = must(open(at, O_PATH));
		close(file);
		return execute(run, "");
	}
	if (is("handle")) {
		struct { struct file_handle handle; char bytes[MAX_HANDLE_SZ]; } file = {.handle.handle_bytes = MAX_HANDLE_SZ};
		int mount;
		if (name_to_handle_at(AT_FDCWD, path, &file.handle, &mount, 0))
			return NO_SUCH_WAY;
		return execute(must(open_by_handle_at(must(open(folder, O_RDONLY)), &file.handle, O_PATH)), "");
	}
	if (is("link") || is("symlink")) {
		snprintf(made, sizeof(made), "%s/reach-%d", folder, getpid());
		must((is("link") ? link : symlink)(path, made));
		in_a_child();
		return execute(AT_FDCWD, made);
	}

	/* Executed on another mount of its file system. */
	if (is("bind") || is("user-bind")) {
		const char *where = place(is("user-bind"));
		must(mount(folder, where, 0, MS_BIND, 0));
		return below(where);
	}
	if (is("file-bind")) {
		const char *where = place(0);
		must(mount("reach", where, "tmpfs", 0, 0));
		must(chdir(where));
		close(must(open("other", O_CREAT | O_WRONLY, 0755)));
		must(mount(path, "other", 0, MS_BIND, 0));
		return execute(AT_FDCWD, "other");
	}
	if (is("chroot")) {
		must(chroot(folder));
		must(chdir("/"));
		return below("");
	}
	if (is("pivot")) {
		const char *where = place(0);
		must(mount(folder, where, 0, MS_BIND, 0));
		must(chdir(where));
		if (syscall(SYS_pivot_root, ".", ".")) {
			/* Of the first of all file systems. */
			must(mount(".", "/", 0, MS_MOVE, 0));
			must(chroot("."));
		} else
			must(umount2(".", MNT_DETACH));
		must(chdir("/"));
		return below("");
	}
	if (is("detached") || is("moved")) {
		const char *where = is("moved") ? place(0) : 0;
		int tree = must(syscall(SYS_open_tree, AT_FDCWD, folder, 1 /* OPEN_TREE_CLONE */));
		if (!where)
			return execute(tree, name);
		must(syscall(SYS_move_mount, tree, "", AT_FDCWD, where, 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
		return below(where);
	}
	if (is("overlay") || is("user-overlay")) {
		char options[8500];
		const char *where = place(is("user-overlay"));
		must(mount("reach", where, "tmpfs", 0, 0));
		must(chdir(where));
		must(mkdir("upper", 0755) | mkdir("work", 0755) | mkdir("merged", 0755));
		snprintf(options, sizeof(options), "lowerdir=%s,upperdir=upper,workdir=work", folder);
		if (mount("reach", "merged", "overlay", 0, options))
			return NO_SUCH_WAY;
		return below("merged");
	}

	/* Mapped executable: what ld.so does with a library, or with a program that is given to it by hand. */
	if (is("map"))
		return map(opened(), PROT_READ | PROT_EXEC, MAP_PRIVATE);
	if (is("shared"))
		return map(opened(), PROT_READ | PROT_EXEC, MAP_SHARED);
	if (is("protect")) {
		void *at = mmap(0, 4096, PROT_READ, MAP_PRIVATE, opened(), 0);
		return at == MAP_FAILED || mprotect(at, 4096, PROT_READ | PROT_EXEC) ? failed() : 0;
	}
	if (is("implied")) {
		must(personality(READ_IMPLIES_EXEC));
		return map(opened(), PROT_READ, MAP_PRIVATE);
	}
	if (is("ring")) {
		int file = opened_by_a_ring();
		return file < 0 ? -file : map(file, PROT_READ | PROT_EXEC, MAP_PRIVATE);
	}
	if (is("held")) {
		int file = opened();
		char line[8];
		puts("open");
		fflush(stdout);
		return fgets(line, sizeof(line), stdin) ? map(file, PROT_READ | PROT_EXEC, MAP_PRIVATE) : BEFORE;
	}

	/* Its content somewhere else. */
	if (is("copy")) {
		const char *where = place(0);
		must(mount("reach", where, "tmpfs", 0, 0));
		must(chdir(where));
		fill_at(AT_FDCWD);
		return below(".");
	}
	if (is("mount")) {
		int new = syscall(SYS_fsopen, "tmpfs", 0);
		if (new < 0)
			return NO_SUCH_WAY;
		must(syscall(SYS_fsconfig, new, 6 /* FSCONFIG_CMD_CREATE */, 0, 0, 0));
		int tree = must(syscall(SYS_fsmount, new, 0, 0));
		fill_at(tree);
		return execute(tree, name);
	}
	if (is("memory")) {
		int memory = must(memfd_create("memory", MFD_CLOEXEC));
		fill(memory);
		return execute(memory, "");
	}
	if (is("anonymous")) {
		void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (at == MAP_FAILED)
			return BEFORE;
		must(read(opened(), at, 4096));
		return mprotect(at, 4096, PROT_READ | PROT_EXEC) ? failed() : 0;
	}
	if (is("debugger")) {
		/* Another's program, changed in its memory. */
		int status;
		pid_t child = must(fork());
		if (!child) {
			must(ptrace(PTRACE_TRACEME, 0, 0, 0));
			raise(SIGSTOP);
			_exit(0);
		}
		must(waitpid(child, &status, 0));
		long result = ptrace(PTRACE_POKETEXT, child, attempt, 0);
		int error = result ? failed() : 0;
		kill(child, SIGKILL);
		return error;
	}
	return 255;
}

int main(int count, char **arguments)
{
	if (count != 3)
		return 0;
	alarm(30);
	path = arguments[2];
	snprintf(name, sizeof(name), "%s", basename(strdup(path)));
	snprintf(folder, sizeof(folder), "%s", dirname(strdup(path)));
	int error = attempt(arguments[1]);
	if (made[0])
		unlink(made);
	return error;
}
