/* Tries to run content that nobody verified: changes a program while it is executed over and over.
 *
 *     race KIND PROGRAM OTHER MILLISECONDS
 *
 * A program that ends with 0 is the signed one; one that ends with 42 is the other. Prints how often each ran. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

static const char *program, *other;
static char content[1 << 20];
static long size, place = -1;
static volatile int over, failed;

/* The byte that decides how the program ends stands behind this. */
static const char marker[] = "IMARA-RACE-";

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void read_content(void) {
    int file = open(program, O_RDONLY | O_CLOEXEC);
    size = file < 0 ? -1 : read(file, content, sizeof content);
    close(file);
    for (long i = 0; i + (long)sizeof marker < size; i++)
        if (!memcmp(content + i, marker, sizeof marker - 1)) place = i + sizeof marker - 1;
    if (place < 0) {
        fprintf(stderr, "%s: no marker in %ld bytes\n", program, size);
        exit(3);
    }
}

/* Waits for none to some 2 ms, so that the executions meet every moment of a change. */
static void rest(void) {
    static unsigned seed = 1;
    unsigned number = rand_r(&seed);
    if (number & 1) usleep((number >> 1) % 2000);
}

/* Opens for writing; busy while it is executed, refused while it is signed. */
static int writable(int flags) {
    for (;;) {
        int file = open(program, O_RDWR | O_CLOEXEC | flags);
        if (file >= 0 || over) return file;
        if (errno != ETXTBSY && errno != EPERM && errno != EACCES) {
            perror(program);
            failed = 1;
            return -1;
        }
    }
}

static void store(int file, char byte) {
    if (pwrite(file, &byte, 1, place) != 1) failed = 1;
}

static void by_rename(void) {
    if (renameat2(AT_FDCWD, program, AT_FDCWD, other, RENAME_EXCHANGE)) failed = 1;
    rest();
}

static void by_link(void) {
    char name[4096];
    snprintf(name, sizeof name, "%s.link", program);
    char good[4096];
    snprintf(good, sizeof good, "%s.good", program);
    const char *from[] = {other, good};
    for (int i = 0; i < 2; i++) {
        unlink(name);
        if (link(from[i], name) || rename(name, program)) failed = 1;
        rest();
    }
}

static void by_write(void) {
    int file = writable(0);
    if (file < 0) return;
    rest();
    store(file, '1');
    store(file, '0');
    rest();
    close(file);
    for (char byte = '1'; byte >= '0'; byte--) {
        if ((file = writable(0)) < 0) return;
        store(file, byte);
        close(file);
        rest();
    }
}

static void by_mapping(void) {
    for (char byte = '1'; byte >= '0'; byte--) {
        int file = writable(0);
        if (file < 0) return;
        char *bytes = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (bytes == MAP_FAILED) {
            failed = 1;
            return;
        }
        bytes[place] = byte;
        munmap(bytes, size);
        rest();
    }
}

static void by_truncate(void) {
    for (char byte = '1'; byte >= '0'; byte--) {
        int file = writable(O_TRUNC);
        if (file < 0) return;
        if (pwrite(file, content, size, 0) != size) failed = 1;
        store(file, byte);
        close(file);
        rest();
    }
}

/* The first change of a lower file copies it up; without the upper one the lower is back. */
static void by_copy_up(void) {
    char name[4096];
    snprintf(name, sizeof name, "%s.new", program);
    /* A new name for the lower file, which is copied up when that is opened for writing. */
    unlink(name);
    if (link(other, name) || rename(name, program)) failed = 1;
    rest();
    int file = writable(0);
    if (file < 0) return;
    store(file, '1');
    close(file);
    rest();
}

static void (*change)(void);

static void *changes(void *nothing) {
    (void)nothing;
    for (unsigned turn = 0; !over && !failed; turn++) {
        change();
        /* Now and then it rests, so that the good one can be judged and run. */
        if (turn % 4 == 3) usleep(30000);
    }
    return NULL;
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*change)(void);
    } kinds[] = {
        {"rename", by_rename},     {"link", by_link},         {"write", by_write},
        {"mapping", by_mapping}, {"truncate", by_truncate}, {"copy-up", by_copy_up},
    };
    alarm(60);
    if (count != 5) return 2;
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(kinds[i].name, arguments[1])) change = kinds[i].change;
    if (!change) return 2;
    program = arguments[2];
    other = arguments[3];
    read_content();
    pthread_t thread;
    long ran = 0, refused = 0, busy = 0, unverified = 0, until = now() + atol(arguments[4]);
    if (pthread_create(&thread, NULL, changes, NULL)) return 3;
    while (now() < until && !failed) {
        volatile int error = 0; /* set by the child, in the same memory */
        pid_t child = vfork();
        if (!child) {
            execl(program, program, (char *)0);
            error = errno;
            _exit(1);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child) return 3;
        if (error == EPERM || error == EACCES)
            refused++;
        else if (error)
            busy++;
        else if (WIFEXITED(status) && WEXITSTATUS(status) == 42)
            unverified++;
        else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            ran++;
        else
            busy++; /* torn: killed by what it read */
    }
    over = 1;
    pthread_join(thread, NULL);
    printf("%ld %ld %ld %ld\n", ran, refused, busy, unverified);
    return failed ? 3 : 0;
}
