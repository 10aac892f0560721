/* A file system that answers, or does not: `fuse DIRECTORY`, until it is killed. Every name is a file of ten bytes; `open-*`
   is never opened, `read-*` never read. Spoken in the kernel's own words (include/uapi/linux/fuse.h), without a library. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int device;
static char names[4096][64];
static int known = 1;

static void reply(unsigned long long unique, int error, const void *body, size_t size) {
    char buffer[8192];
    struct fuse_out_header header = {.len = sizeof header + (error ? 0 : size), .error = -error, .unique = unique};
    memcpy(buffer, &header, sizeof header);
    if (!error && size) memcpy(buffer + sizeof header, body, size);
    if (write(device, buffer, header.len) < 0 && errno != ENOENT) exit(1);
}

static struct fuse_attr attributes(unsigned long long node) {
    struct fuse_attr attr = {.ino = node, .nlink = 1, .size = 10, .blksize = 4096, .mode = S_IFREG | 0755};
    if (node == 1) attr.mode = S_IFDIR | 0755;
    return attr;
}

int main(int count, char **arguments) {
    if (count != 2) return 99;
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) return 98;
    char options[200];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("imara-test", arguments[1], "fuse", 0, options)) return 97;
    puts("mounted");
    fflush(stdout);
    static char request[1 << 20];
    for (;;) {
        ssize_t size = read(device, request, sizeof request);
        if (size < 0 && (errno == EINTR || errno == ENOENT)) continue;
        if (size < 0) return 0;
        struct fuse_in_header *in = (void *)request;
        char *body = request + sizeof *in;
        const char *name = names[in->nodeid % 4096];
        switch (in->opcode) {
        case FUSE_INIT: {
            struct fuse_init_out out = {.major = 7, .minor = 31, .max_write = 4096, .max_readahead = 4096};
            reply(in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_LOOKUP: {
            int node = 2;
            while (node <= known && strcmp(names[node], body)) node++;
            if (node > known) {
                if (known + 1 >= 4096) { reply(in->unique, ENOENT, 0, 0); break; }
                snprintf(names[++known], sizeof names[0], "%s", body);
                node = known;
            }
            struct fuse_entry_out out = {.nodeid = node, .entry_valid = 100, .attr_valid = 0, .attr = attributes(node)};
            reply(in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_GETATTR: {
            struct fuse_attr_out out = {.attr_valid = 0, .attr = attributes(in->nodeid)};
            reply(in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_OPEN:
            if (!strncmp(name, "open-", 5)) break;
        /* fall through */
        case FUSE_OPENDIR: {
            struct fuse_open_out out = {.fh = 1, .open_flags = FOPEN_KEEP_CACHE};
            reply(in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_READ:
            if (!strncmp(name, "read-", 5)) break;
            reply(in->unique, 0, "ten bytes\n", ((struct fuse_read_in *)body)->offset ? 0 : 10);
            break;
        case FUSE_STATFS: {
            struct fuse_statfs_out out = {.st = {.bsize = 4096, .namelen = 60}};
            reply(in->unique, 0, &out, sizeof out);
            break;
        }
        case FUSE_READDIR:
        case FUSE_FLUSH:
        case FUSE_RELEASE:
        case FUSE_RELEASEDIR:
            reply(in->unique, 0, 0, 0);
            break;
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT:
            break;
        default:
            reply(in->unique, ENOSYS, 0, 0);
        }
    }
}
