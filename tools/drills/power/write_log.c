/* Logs what a program asks of the file system below one folder, in the order in which it was done.

   Preloaded (LD_PRELOAD) into a program and all it starts. POWER_DRILL_ROOT is the folder, POWER_DRILL_LOG the log.
   A call and its entry in the log are made under one lock, across processes too, so the log has one order. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC, TRUNCATE, CREATE, MKDIR, LINK, RENAME, REMOVE, MARK, EXCHANGE };

struct entry {
    uint32_t kind;
    uint32_t durable; /* of a write: made through a descriptor with O_DSYNC */
    uint64_t inode;
    int64_t offset;
    uint32_t first;  /* bytes of data, or of a path, that follow */
    uint32_t second; /* bytes of another path */
};

static pthread_mutex_t one_thread = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static const char *root;
static size_t root_bytes;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_DRILL_LOG");
    root = getenv("POWER_DRILL_ROOT");
    if (!path || !root) return;
    root_bytes = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static void lock_processes(short how) {
    struct flock whole = {.l_type = how, .l_whence = SEEK_SET};
    while (fcntl(log_fd, F_SETLKW, &whole) < 0 && errno == EINTR) {}
}

static void enter(void) {
    pthread_mutex_lock(&one_thread);
    lock_processes(F_WRLCK);
}

static void leave(void) {
    int kept = errno;
    lock_processes(F_UNLCK);
    pthread_mutex_unlock(&one_thread);
    errno = kept;
}

static void put(struct entry e, const void *first, const void *second) {
    int kept = errno;
    struct iovec parts[] = {{&e, sizeof e}, {(void *)first, e.first}, {(void *)second, e.second}};
    ssize_t size = sizeof e + e.first + e.second;
    if (syscall(SYS_writev, log_fd, parts, 3) != size) {
        fprintf(stderr, "power_log: the log cannot be written\n");
        abort();
    }
    errno = kept;
}

static int is_below(const char *path) { return log_fd >= 0 && !strncmp(path, root, root_bytes); }

/* Whether a path lies below the root; `full` is then the absolute one. */
static int place(int folder, const char *path, char *full) {
    char base[PATH_MAX] = "", link[64];
    if (log_fd < 0 || !path) return 0;
    if (path[0] != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        if (readlink(link, base, sizeof base - 1) < 0) return 0;
    }
    snprintf(full, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", path);
    return is_below(full);
}

/* Whether a descriptor is of a file or folder below the root. */
static int covers(int fd, struct stat *found) {
    char link[64], path[PATH_MAX] = "";
    int kept = errno, ours = 0;
    if (log_fd >= 0 && fd != log_fd && !fstat(fd, found) && (S_ISREG(found->st_mode) || S_ISDIR(found->st_mode))) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ours = readlink(link, path, sizeof path - 1) > 0 && is_below(path);
    }
    errno = kept;
    return ours;
}

static void put_path(uint32_t kind, const char *path) {
    struct stat found = {0};
    fstatat(AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW);
    put((struct entry){kind, 0, found.st_ino, 0, strlen(path), 0}, path, NULL);
}

static void put_paths(uint32_t kind, const char *from, const char *to) {
    put((struct entry){kind, 0, 0, 0, strlen(from), strlen(to)}, from, to);
}

/* --- contents ---------------------------------------------------------------------------------------------------- */

static ssize_t write_at(int fd, const struct iovec *parts, int count, off_t offset, int moves) {
    struct stat found;
    if (!covers(fd, &found)) {
        return moves ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, offset, 0L);
    }
    enter();
    int flags = fcntl(fd, F_GETFL);
    if (moves) {
        fstat(fd, &found);
        offset = flags & O_APPEND ? found.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t done = moves ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, offset, 0L);
    ssize_t left = done;
    for (int i = 0; i < count && left > 0; i++) {
        size_t size = parts[i].iov_len < (size_t)left ? parts[i].iov_len : (size_t)left;
        put((struct entry){WRITE, !!(flags & O_DSYNC), found.st_ino, offset, size, 0}, parts[i].iov_base, NULL);
        offset += size;
        left -= size;
    }
    leave();
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    return write_at(fd, &part, 1, 0, 1);
}

ssize_t writev(int fd, const struct iovec *parts, int count) { return write_at(fd, parts, count, 0, 1); }

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    struct iovec part = {(void *)data, size};
    return write_at(fd, &part, 1, offset, 0);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_at(fd, parts, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_at(fd, parts, count, offset, 0);
}

static int sync_logged(int fd, long call) {
    struct stat found;
    if (!covers(fd, &found)) return syscall(call, fd);
    enter();
    int done = syscall(call, fd);
    if (!done) put((struct entry){SYNC, 0, found.st_ino, 0, 0, 0}, NULL, NULL);
    leave();
    return done;
}

int fsync(int fd) { return sync_logged(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_logged(fd, SYS_fdatasync); }

int ftruncate(int fd, off_t size) {
    struct stat found;
    if (!covers(fd, &found)) return syscall(SYS_ftruncate, fd, size);
    enter();
    int done = syscall(SYS_ftruncate, fd, size);
    if (!done) put((struct entry){TRUNCATE, 0, found.st_ino, size, 0, 0}, NULL, NULL);
    leave();
    return done;
}

int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

/* Programs fall back to write where these are not there. */
ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    struct stat found;
    if (!covers(out, &found)) return syscall(SYS_sendfile, out, in, offset, count);
    errno = EINVAL;
    return -1;
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t count) { return sendfile(out, in, offset, count); }

ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t count, unsigned flags) {
    struct stat found;
    if (!covers(out, &found)) return syscall(SYS_copy_file_range, in, from, out, to, count, flags);
    errno = ENOSYS;
    return -1;
}

/* --- names ------------------------------------------------------------------------------------------------------- */

static int open_logged(int folder, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat found;
    if (!(flags & (O_CREAT | O_TRUNC)) || !place(folder, path, full)) {
        return syscall(SYS_openat, folder, path, flags, mode);
    }
    enter();
    int existed = !fstatat(AT_FDCWD, full, &found, 0);
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && !existed) put_path(CREATE, full);
    if (fd >= 0 && existed && flags & O_TRUNC) {
        put((struct entry){TRUNCATE, 0, found.st_ino, 0, 0, 0}, NULL, NULL);
    }
    leave();
    return fd;
}

#define OPEN_BODY(folder)                                                   \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                           \
    return open_logged(folder, path, flags, mode)

int open(const char *path, int flags, ...) { OPEN_BODY(AT_FDCWD); }
int open64(const char *path, int flags, ...) { OPEN_BODY(AT_FDCWD); }
int openat(int folder, const char *path, int flags, ...) { OPEN_BODY(folder); }
int openat64(int folder, const char *path, int flags, ...) { OPEN_BODY(folder); }

int mkdirat(int folder, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!place(folder, path, full)) return syscall(SYS_mkdirat, folder, path, mode);
    enter();
    int done = syscall(SYS_mkdirat, folder, path, mode);
    if (!done) put_path(MKDIR, full);
    leave();
    return done;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int folder, const char *path, int flags) {
    char full[PATH_MAX];
    if (!place(folder, path, full)) return syscall(SYS_unlinkat, folder, path, flags);
    enter();
    int done = syscall(SYS_unlinkat, folder, path, flags);
    if (!done) put_paths(REMOVE, full, "");
    leave();
    return done;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char full_from[PATH_MAX], full_to[PATH_MAX];
    if (!place(from_folder, from, full_from) || !place(to_folder, to, full_to)) {
        return syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    }
    enter();
    int done = syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    if (!done) put_paths(LINK, full_from, full_to);
    leave();
    return done;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char full_from[PATH_MAX], full_to[PATH_MAX];
    if (!place(from_folder, from, full_from) || !place(to_folder, to, full_to)) {
        return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    }
    enter();
    int done = syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    if (!done) put_paths(flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, full_from, full_to);
    leave();
    return done;
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return renameat2(from_folder, from, to_folder, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* --- what the program says --------------------------------------------------------------------------------------- */

void power_drill_mark(const char *text, size_t size) {
    enter();
    put((struct entry){MARK, 0, 0, 0, size, 0}, text, NULL);
    leave();
}
