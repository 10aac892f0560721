/* race FILE SECONDS: changes a signed copy of this program in every way there is while others execute it, and tells how often it ran
 * as it was signed, how often it was refused, and how often it ran changed, which is to be never (status 1 then).
 *
 * FILE run: ends with the status that stands behind the mark in the file: 0 as it is signed, 42 when it was changed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const volatile char mark[] = "the status stands here:\0";
#define STATUS (sizeof(mark) - 2)

struct counts {
	long good, refused, bad, changed;
};

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void rest(unsigned round) { usleep(round * 7919 % 3000); }

static int set(const char *path, off_t place, char status, int way)
{
	int file = open(path, way == 2 ? O_RDWR : O_WRONLY), done = 0;
	if (file < 0)
		return 0;
	if (way == 2) {
		off_t page = place & ~4095L;
		char *at = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, page);
		if (at != MAP_FAILED) {
			at[place - page] = status;
			munmap(at, 8192);
			done = 1;
		}
	} else
		done = pwrite(file, &status, 1, place) == 1;
	close(file);
	return done;
}

/* Until it can be done: what is being executed cannot be written to. */
static void insist(const char *path, off_t place, char status, int way, double end)
{
	while (!set(path, place, status, way) && now() < end + 2)
		usleep(200);
}

static void change(const char *path, const char *other, off_t place, struct counts *counts, double end)
{
	for (unsigned round = 0; now() < end; round++) {
		int way = round % 4;
		if (way == 3) { /* another file in its place, with the same label */
			if (rename(path, "kept") || rename(other, path))
				continue;
			rest(round);
			if (rename(path, other) || rename("kept", path))
				exit(254);
		} else {
			if (way == 1)
				usleep(200000); /* long enough for a verdict that is remembered */
			if (!set(path, place, 42, way))
				continue;
			rest(round);
			insist(path, place, 0, way, end);
		}
		__sync_fetch_and_add(&counts->changed, 1);
	}
}

static void execute(const char *path, struct counts *counts, double end)
{
	while (now() < end) {
		pid_t child = vfork();
		if (!child) {
			execl(path, path, "run", NULL);
			_exit(126);
		}
		int status;
		waitpid(child, &status, 0);
		long *count = !WIFEXITED(status) || WEXITSTATUS(status) == 126 ? &counts->refused
			: WEXITSTATUS(status) == 0 ? &counts->good : &counts->bad;
		__sync_fetch_and_add(count, 1);
	}
}

int main(int count, char **arguments)
{
	if (count == 2 && !strcmp(arguments[1], "run"))
		return mark[STATUS];
	if (count < 3)
		return 255;
	const char *path = arguments[1];
	char other[256], label[1024];
	int file = open(path, O_RDONLY);
	struct stat stat;
	if (file < 0 || fstat(file, &stat))
		return 255;
	char *content = malloc(stat.st_size);
	if (!content || read(file, content, stat.st_size) != stat.st_size)
		return 255;
	char *at = memmem(content, stat.st_size, (const char *)mark, STATUS);
	if (!at)
		return 255;
	off_t place = at - content + STATUS;
	ssize_t size = getxattr(path, "security.ima", label, sizeof(label));
	snprintf(other, sizeof(other), "%s.other", path);
	int changed = open(other, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	content[place] = 42;
	if (size < 0 || changed < 0 || write(changed, content, stat.st_size) != stat.st_size ||
	    fsetxattr(changed, "security.ima", label, size, 0))
		return 255;
	close(changed);
	close(file);
	struct counts *counts = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double end = now() + atof(arguments[2]);
	pid_t children[3];
	for (int number = 0; number < 3; number++)
		if (!(children[number] = fork())) {
			if (number)
				execute(path, counts, end);
			else
				change(path, other, place, counts, end);
			_exit(0);
		}
	int failed = 0;
	for (int number = 0; number < 3; number++) {
		int status;
		waitpid(children[number], &status, 0);
		failed |= status;
	}
	printf("%ld changes, %ld times as signed, %ld times refused, %ld times changed\n", counts->changed, counts->good,
	       counts->refused, counts->bad);
	return failed || counts->bad ? 1 : 0;
}
