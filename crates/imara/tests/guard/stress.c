/*
 * stress DIRECTORY STATE PROGRAMS: 64 threads that open, execute, write, change, mount and unmount in DIRECTORY, until they are told to end.
 *
 * STATE is two 64-bit numbers that whoever started this writes: the first is odd as long as a guard is certainly in force, and another one
 * for each guard; the second is no longer 0 when it is time to end. What was let go on while one guard was in force from before the
 * access until after it is claimed to be listed, and told at the end on standard output:
 *
 *     read FILE VERSION       a file whose content is `FILE VERSION\n`, 64 times
 *     ran FILE                a program
 *     unverified FILE         a program that must not run, did
 *     refused FILE ERRNO      a program that must run, did not
 *     count NAME NUMBER       what was done
 *     slowest NAME MILLISECONDS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Of the signed programs the first few are opened for writing, which has them refused meanwhile. */
enum { THREADS = 64, DATA = 120, SIGNED = 24, WRITTEN = 12, UNSIGNED = 6, SHARED = 6, OWN = 8, LINES = 64, PATIENCE = 60 };

static const char *directory;
static volatile uint64_t *state;
static char *program_bytes;
static ssize_t program_size;

struct thread {
    pthread_t thread;
    int number;
    unsigned seed;
    const char *kind;
    const char *volatile doing;
    char *claims;
    size_t claimed, room;
    long done, slowest;
    char known[DATA], ran[SIGNED];
};

static struct thread threads[THREADS];

static void claim(struct thread *self, const char *format, ...) {
    if (self->room - self->claimed < 256) {
        self->room += 1 << 16;
        self->claims = realloc(self->claims, self->room);
        if (!self->claims) abort();
    }
    va_list arguments;
    va_start(arguments, format);
    self->claimed += vsnprintf(self->claims + self->claimed, 256, format, arguments);
    va_end(arguments);
}

static int ending(void) { return state[1] != 0; }

static uint64_t epoch(void) { return __atomic_load_n(&state[0], __ATOMIC_SEQ_CST); }

/* Whether one guard was in force from `before` until now. */
static int guarded(uint64_t before) { return before % 2 == 1 && epoch() == before; }

static void rest(int milliseconds) {
    struct timespec time = { 0, milliseconds * 1000000L };
    nanosleep(&time, 0);
}

static void path_of(char *path, const char *kind, int number) { snprintf(path, 256, "%s/%s%d", directory, kind, number); }

static void begin(struct thread *self, struct timespec *begun, const char *what) {
    self->doing = what;
    clock_gettime(CLOCK_MONOTONIC, begun);
}

static void end(struct thread *self, const struct timespec *begun) {
    struct timespec done;
    clock_gettime(CLOCK_MONOTONIC, &done);
    long took = (done.tv_sec - begun->tv_sec) * 1000 + (done.tv_nsec - begun->tv_nsec) / 1000000;
    if (took > self->slowest) self->slowest = took;
}

/* Reads a file to its end; how much it holds, or -1. */
static ssize_t take(struct thread *self, const char *path, char *bytes, size_t room) {
    struct timespec begun;
    begin(self, &begun, "open to read");
    int file = open(path, O_RDONLY | O_CLOEXEC);
    end(self, &begun);
    if (file < 0) return -1;
    ssize_t size = 0, more;
    while ((more = read(file, bytes + size, room - size)) > 0) size += more;
    close(file);
    return more < 0 ? -1 : size;
}

static void reads(struct thread *self) {
    char path[256], bytes[1 << 14];
    int number = rand_r(&self->seed) % DATA;
    path_of(path, "d", number);
    uint64_t before = epoch();
    if (take(self, path, bytes, sizeof bytes) < 0 || !guarded(before) || self->known[number]) return;
    self->known[number] = 1;
    claim(self, "read d%d 0\n", number);
}

static int put(struct thread *self, const char *path, const char *bytes, size_t size) {
    self->doing = "open to write";
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) return -1;
    ssize_t written = write(file, bytes, size);
    self->doing = "close";
    close(file);
    return written == (ssize_t)size ? 0 : -1;
}

/* A file of its own that changes, in place or by another one in its place, and is read. */
static void writes(struct thread *self) {
    char name[64], path[256], other[300], bytes[1 << 13], found[1 << 13];
    static _Thread_local int version;
    version++;
    snprintf(name, sizeof name, "w%d-%d", self->number, rand_r(&self->seed) % OWN);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int size = 0;
    for (int line = 0; line < LINES; line++) size += snprintf(bytes + size, sizeof bytes - size, "%s %d\n", name, version);
    if (rand_r(&self->seed) % 2) {
        if (put(self, path, bytes, size)) return;
    } else {
        snprintf(other, sizeof other, "%s.new", path);
        if (put(self, other, bytes, size)) return;
        self->doing = "rename";
        rename(other, path);
    }
    uint64_t before = epoch();
    ssize_t read = take(self, path, found, sizeof found);
    if (read == size && !memcmp(bytes, found, size) && guarded(before)) claim(self, "read %s %d\n", name, version);
    rest(10 + rand_r(&self->seed) % 30);
}

/* 0 when it ran, else why it did not. */
static int run(struct thread *self, const char *path) {
    volatile int error = 0;
    struct timespec begun;
    begin(self, &begun, "execute");
    pid_t child = vfork();
    if (child < 0) return errno;
    if (!child) {
        char *const nothing[] = { (char *)path, 0 };
        execve(path, nothing, nothing + 1);
        error = errno;
        _exit(1);
    }
    end(self, &begun);
    self->doing = "wait";
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return error ? error : status ? ENOEXEC : 0;
}

static void executes(struct thread *self) {
    char path[256];
    int bad = rand_r(&self->seed) % 4 == 0, number = rand_r(&self->seed) % (bad ? UNSIGNED : SIGNED);
    path_of(path, bad ? "u" : "p", number);
    uint64_t before = epoch();
    int error = run(self, path);
    if (!guarded(before)) return;
    if (bad && !error) claim(self, "unverified u%d\n", number);
    /* Level 2 says EACCES. */
    int busy = number < WRITTEN && (error == EPERM || error == EACCES || error == ETXTBSY);
    if (!bad && error && !busy && error != EAGAIN && error != ENOMEM) claim(self, "refused p%d %d\n", number, error);
    if (!bad && !error && !self->ran[number]) {
        self->ran[number] = 1;
        claim(self, "ran p%d\n", number);
    }
}

/* Attributes of what everybody uses, writers that write nothing, and files that several write and read at once. */
static void changes(struct thread *self) {
    char path[256], byte;
    int kind = rand_r(&self->seed) % 6;
    path_of(path, kind % 2 ? "p" : "d", rand_r(&self->seed) % SIGNED);
    if (kind < 2) {
        self->doing = "chmod";
        chmod(path, rand_r(&self->seed) % 2 ? 0755 : 0555);
    } else if (kind < 4) {
        self->doing = "setxattr";
        setxattr(path, "user.stress", "change", rand_r(&self->seed) % 6, 0);
    } else if (kind == 4) {
        self->doing = "open to write nothing";
        path_of(path, "p", rand_r(&self->seed) % WRITTEN);
        int file = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        if (file >= 0) close(file);
    } else {
        path_of(path, "s", rand_r(&self->seed) % SHARED);
        self->doing = "open what others write";
        int file = open(path, O_RDWR | O_CLOEXEC);
        if (file >= 0) {
            self->doing = "store";
            char *mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (mapped != MAP_FAILED) {
                mapped[rand_r(&self->seed) % 4096]++;
                munmap(mapped, 4096);
            }
            self->doing = "close";
            close(file);
        }
        take(self, path, &byte, 1);
    }
    rest(2 + rand_r(&self->seed) % 10);
}

/* Names that come and go. */
static void renames(struct thread *self) {
    char name[256], other[256], byte[16];
    snprintf(name, sizeof name, "%s/n%d-%d", directory, self->number, rand_r(&self->seed) % OWN);
    snprintf(other, sizeof other, "%s/l%d-%d", directory, self->number, rand_r(&self->seed) % OWN);
    /* The same few contents again and again. */
    put(self, name, name, strlen(name));
    self->doing = "link";
    if (link(name, other)) unlink(other);
    take(self, other, byte, sizeof byte);
    self->doing = "truncate";
    if (rand_r(&self->seed) % 2) truncate(name, rand_r(&self->seed) % 8);
    take(self, name, byte, sizeof byte);
    self->doing = "unlink";
    unlink(rand_r(&self->seed) % 2 ? name : other);
    rest(2 + rand_r(&self->seed) % 10);
}

static void mounts(struct thread *self) {
    char place[256], path[300], bytes[64];
    snprintf(place, sizeof place, "%s/m%d", directory, self->number);
    mkdir(place, 0755);
    int another = rand_r(&self->seed) % 2;
    self->doing = "mount";
    if (another ? mount("stress", place, "tmpfs", 0, "size=4m") : mount(directory, place, 0, MS_BIND, 0)) {
        claim(self, "refused mount %d\n", errno);
        rest(100);
        return;
    }
    if (another) {
        snprintf(path, sizeof path, "%s/program", place);
        self->doing = "make a program";
        int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
        if (file >= 0) {
            if (write(file, program_bytes, program_size) < 0) perror(path);
            close(file);
        }
        /* Whether it is asked about yet depends on when. Another thread's child may have it open for writing still. */
        run(self, path);
    } else {
        snprintf(path, sizeof path, "%s/d%d", place, rand_r(&self->seed) % DATA);
        take(self, path, bytes, sizeof bytes);
        snprintf(path, sizeof path, "%s/p%d", place, rand_r(&self->seed) % SIGNED);
        run(self, path);
    }
    take(self, path, bytes, sizeof bytes);
    self->doing = "unmount";
    /* Children of other threads that are between vfork and execve(2) hold nothing; a lease on a program goes in a second. */
    while (umount2(place, 0)) {
        if (errno != EBUSY) {
            claim(self, "refused umount %d\n", errno);
            return;
        }
        rest(5);
    }
    rest(10 + rand_r(&self->seed) % 40);
}

static const struct kind {
    const char *name;
    void (*work)(struct thread *);
    int threads;
} kinds[] = {
    { "reads", reads, 16 }, { "writes", writes, 16 }, { "executes", executes, 12 },
    { "changes", changes, 8 }, { "renames", renames, 6 }, { "mounts", mounts, 6 },
};

static void *life(void *argument) {
    struct thread *self = argument;
    void (*work)(struct thread *) = 0;
    int first = 0;
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; first += kinds[kind++].threads)
        if (self->number >= first && self->number < first + kinds[kind].threads) work = kinds[kind].work, self->kind = kinds[kind].name;
    while (!ending()) {
        work(self);
        self->done++;
        sched_yield();
    }
    self->doing = "ended";
    return 0;
}

int main(int count, char **arguments) {
    if (count != 4) return 99;
    directory = arguments[1];
    int file = open(arguments[2], O_RDONLY | O_CLOEXEC);
    state = mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0);
    if (state == MAP_FAILED) return perror(arguments[2]), 98;
    file = open(arguments[3], O_RDONLY | O_CLOEXEC);
    program_bytes = malloc(1 << 20);
    program_size = read(file, program_bytes, 1 << 20);
    if (program_size <= 0) return perror(arguments[3]), 97;
    for (int number = 0; number < THREADS; number++) {
        threads[number].number = number;
        threads[number].seed = number * 7919 + 1;
        if (pthread_create(&threads[number].thread, 0, life, &threads[number])) return 96;
    }
    puts("started");
    fflush(stdout);
    while (!ending()) rest(20);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE;
    int hang = 0;
    for (int number = 0; number < THREADS; number++) {
        struct thread *self = &threads[number];
        if (!pthread_timedjoin_np(self->thread, 0, &until)) continue;
        hang++;
        printf("hangs %s %d: %s\n", self->kind, number, self->doing);
    }
    for (int number = 0; number < THREADS; number++) fwrite(threads[number].claims, 1, threads[number].claimed, stdout);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        long done = 0, slowest = 0;
        for (int number = 0; number < THREADS; number++) {
            if (!threads[number].kind || strcmp(threads[number].kind, kinds[kind].name)) continue;
            done += threads[number].done;
            if (threads[number].slowest > slowest) slowest = threads[number].slowest;
        }
        printf("count %s %ld\nslowest %s %ld\n", kinds[kind].name, done, kinds[kind].name, slowest);
    }
    fflush(stdout);
    _exit(hang ? 9 : 0);
}
