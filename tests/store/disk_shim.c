/* Stands between LMDB and the kernel (LD_PRELOAD): notes what is done to one file, and lets it fail on request.
 *
 *     DISK_SHIM_FILE    the end of the file's path, such as /store/data.mdb; files opened by other names are left alone
 *     DISK_SHIM_TRACE   if set: where records are appended, one for each call that changed or synced the file
 *     DISK_SHIM_FAULTS  if set: a file with lines `CALL ERRNO`, such as `sync 5`. While it is there, these calls fail
 *                       without having any effect. CALL is open (for writing), write or sync.
 *
 * A record is a head of 24 bytes in the machine's byte order, call (4), is_synced (4), offset (8), length (8), and for a
 * write the bytes. Calls: 1 write, 2 sync, 3 truncate (to `offset`). `is_synced` tells that the descriptor was opened with
 * O_DSYNC or O_SYNC: such a write is on the disk when it returns. Python writes records of its own into the trace, with
 * higher numbers.
 *
 * Records keep the order of the calls as long as one thread of one process writes, which is how kvp2p uses LMDB.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 3 };
enum { DESCRIPTORS = 4096, IS_FILE = 1, IS_SYNCED = 2 };

static unsigned char known[DESCRIPTORS];

#define REAL(name) ({ if (!real_##name) real_##name = dlsym(RTLD_NEXT, #name); real_##name; })
static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_msync)(void *, size_t, int);

static int is_file(int fd) { return fd >= 0 && fd < DESCRIPTORS && known[fd] & IS_FILE; }

static int fault(const char *call) {
    const char *path = getenv("DISK_SHIM_FAULTS");
    FILE *file = path ? fopen(path, "r") : NULL;
    char name[16];
    int number, found = 0;
    if (!file) return 0;
    while (!found && fscanf(file, "%15s %d", name, &number) == 2)
        if (!strcmp(name, call)) found = number;
    fclose(file);
    return found;
}

static void record(uint32_t call, int fd, uint64_t offset, const struct iovec *parts, int count, uint64_t length) {
    const char *path = getenv("DISK_SHIM_TRACE");
    struct { uint32_t call, is_synced; uint64_t offset, length; } head = {call, 0, offset, length};
    int trace;
    if (!path) return;
    head.is_synced = fd >= 0 && (known[fd] & IS_SYNCED) != 0;
    trace = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace < 0) abort();
    if (REAL(write)(trace, &head, sizeof head) != sizeof head) abort();
    for (int i = 0; i < count && length; i++) {
        size_t part = parts[i].iov_len < length ? parts[i].iov_len : length;
        if (REAL(write)(trace, parts[i].iov_base, part) != (ssize_t)part) abort();
        length -= part;
    }
    REAL(close)(trace);
}

static int opened(const char *path, int flags, int fd) {
    const char *end = getenv("DISK_SHIM_FILE");
    size_t length = strlen(path), end_length = end ? strlen(end) : 0;
    if (fd < 0 || fd >= DESCRIPTORS) return fd;
    known[fd] = 0;
    if (end && length >= end_length && !strcmp(path + length - end_length, end))
        known[fd] = IS_FILE | ((flags & (O_DSYNC | O_SYNC)) ? IS_SYNCED : 0);
    return fd;
}

static int do_open(const char *path, int flags, mode_t mode) {
    const char *end = getenv("DISK_SHIM_FILE");
    size_t length = strlen(path), end_length = end ? strlen(end) : 0;
    if ((flags & O_ACCMODE) != O_RDONLY && end && length >= end_length && !strcmp(path + length - end_length, end)) {
        int number = fault("open");
        if (number) { errno = number; return -1; }
    }
    return opened(path, flags, REAL(open)(path, flags, mode));
}

int open(const char *path, int flags, ...) {
    va_list more;
    mode_t mode = 0;
    va_start(more, flags);
    if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(more, mode_t);
    va_end(more);
    return do_open(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    mode_t mode = 0;
    va_start(more, flags);
    if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(more, mode_t);
    va_end(more);
    return do_open(path, flags, mode);
}

int close(int fd) {
    if (fd >= 0 && fd < DESCRIPTORS) known[fd] = 0;
    return REAL(close)(fd);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    ssize_t done;
    int number = is_file(fd) ? fault("write") : 0;
    if (number) { errno = number; return -1; }
    done = REAL(pwrite)(fd, bytes, length, offset);
    if (is_file(fd) && done > 0)
        record(WRITE, fd, (uint64_t)offset, &(struct iovec){(void *)bytes, length}, 1, (uint64_t)done);
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t offset) { return pwrite(fd, bytes, length, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t done;
    off_t offset;
    int number = is_file(fd) ? fault("write") : 0;
    if (number) { errno = number; return -1; }
    offset = is_file(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    done = REAL(writev)(fd, parts, count);
    if (is_file(fd) && done > 0) record(WRITE, fd, (uint64_t)offset, parts, count, (uint64_t)done);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    if (!is_file(fd)) return REAL(write)(fd, bytes, length);
    return writev(fd, &(struct iovec){(void *)bytes, length}, 1);
}

static int synced(int fd, int (*call)(int)) {
    int result, number = is_file(fd) ? fault("sync") : 0;
    if (number) { errno = number; return -1; }
    result = call(fd);
    if (is_file(fd) && !result) record(SYNC, fd, 0, NULL, 0, 0);
    return result;
}

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

int fsync(int fd) { return synced(fd, REAL(fsync)); }

/* LMDB syncs so only with MDB_WRITEMAP, which kvp2p never asks for. A trace that has it would not tell what was written. */
int msync(void *start, size_t length, int flags) {
    if (getenv("DISK_SHIM_TRACE")) abort();
    return REAL(msync)(start, length, flags);
}

int ftruncate(int fd, off_t length) {
    int result = REAL(ftruncate)(fd, length);
    if (is_file(fd) && !result) record(TRUNCATE, fd, (uint64_t)length, NULL, 0, 0);
    return result;
}
