/* A disk that fails on time: a library for LD_PRELOAD that stands between a process and libc.
 *
 *     gcc -std=gnu11 -shared -fPIC -O1 -o disk.so disk.c && LD_PRELOAD=./disk.so python ...
 *
 * After disk_arm(), every operation that changes something in one folder, or below it, is counted,
 * and the one with the number `at` fails, whoever calls libc: Python, SQLite or another library.
 * What changes nothing, as to make a folder that is there, is not counted.
 * A process that is forked from an armed one, or started by it, is not watched.
 *
 * Not seen, for nothing that a run keeps goes through them: stdio (fopen, fwrite), a writable mmap,
 * writev, sendfile, copy_file_range, symlink, io_uring.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KILL, TORN, POWER, ERRNO };

static char folder[PATH_MAX]; /* what is watched; empty until armed */
static char only[256];        /* ",write,sync," or empty for all */
static long at, count;
static int kind, error, log_fd;
static bool tearing;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* libc's own function of that name. */
#define REAL(name)                                                                                 \
    ({                                                                                             \
        static __typeof__(&name) found;                                                            \
        if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                            \
        found;                                                                                     \
    })

static void say(int fd, const char *name, const char *path) {
    char line[PATH_MAX + 64];
    const char *base = strcmp(path, folder) ? strrchr(path, '/') + 1 : ".";
    syscall(SYS_write, fd, line, snprintf(line, sizeof line, "%s %s\n", name, base));
}

/* A test must never go on when what it believes about the disk is not so. */
static _Noreturn void stop(const char *what, const char *path) {
    say(2, what, path);
    abort();
}

static _Noreturn void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* ---- What is watched ------------------------------------------------------------------------ */

static bool is_below(const char *path) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

/* The path of a descriptor of a file or a folder that is watched. */
static bool watched_fd(int fd, char *path) {
    char link[64];
    struct stat status;
    if (!*folder || fstat(fd, &status) || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)))
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return false;
    path[length] = 0;
    return is_below(path);
}

/* The absolute path of a name; `follow` what the name itself links to. */
static bool watched(int dir, const char *name, bool follow, char *path) {
    char whole[PATH_MAX + 32], *slash, *base = whole;
    if (!*folder || !name) return false;
    if (dir == AT_FDCWD || *name == '/') snprintf(whole, sizeof whole, "%s", name);
    else snprintf(whole, sizeof whole, "/proc/self/fd/%d/%s", dir, name);
    if (follow && realpath(whole, path)) return is_below(path);
    while ((slash = strrchr(whole, '/')) && slash > whole && !slash[1]) *slash = 0;
    if (slash) base = slash + 1, *slash = 0;
    if (!realpath(!slash ? "." : *whole ? whole : "/", path)) return false;
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", base);
    return is_below(path);
}

/* ---- What a power cut undoes ---------------------------------------------------------------- */

/* A file that was changed or lost its name. Its descriptor is never closed: that would drop the
 * locks of SQLite, and while it is open no other file gets its inode. */
struct file {
    dev_t dev;
    ino_t ino;
    int fd;
    bool unsynced;
    char *bytes; /* when last synced */
    struct stat status;
    struct file *next;
};
static struct file *files;

/* A name that changed: made (no `from`), lost (no `to`) or both. */
struct change {
    char *from, *to;
    bool from_synced, to_synced;
    struct file *lost; /* the file that lost its name */
    struct change *before;
};
static struct change *changes;

/* One more descriptor of a file. */
static int again(int dir, const char *path, int flags) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    return REAL(openat)(AT_FDCWD, *path ? path : link, flags | O_CLOEXEC);
}

/* The file that has a name, or that a descriptor is of (`dir`, ""). */
static struct file *file_at(int dir, const char *path) {
    struct stat status;
    if (kind != POWER || fstatat(dir, path, &status, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
        return NULL;
    if (!S_ISREG(status.st_mode)) return NULL;
    for (struct file *file = files; file; file = file->next)
        if (file->dev == status.st_dev && file->ino == status.st_ino) return file;
    struct file *file = calloc(1, sizeof *file);
    file->dev = status.st_dev, file->ino = status.st_ino;
    file->fd = again(dir, path, O_RDONLY);
    if (file->fd < 0) stop("cannot be kept:", path);
    file->next = files;
    return files = file;
}

/* Before the bytes of a file change. */
static void keep(struct file *file) {
    if (!file || file->unsynced) return;
    fstat(file->fd, &file->status);
    file->bytes = malloc(file->status.st_size + 1);
    if (pread(file->fd, file->bytes, file->status.st_size, 0) != file->status.st_size)
        stop("cannot be kept:", folder);
    file->unsynced = true;
}

/* After a name changed. */
static void changed(const char *from, const char *to, struct file *lost) {
    if (kind != POWER) return;
    struct change *change = malloc(sizeof *change);
    *change = (struct change){from ? strdup(from) : NULL, to ? strdup(to) : NULL, !from, !to, lost,
                              changes};
    changes = change;
}

static bool is_in(const char *path, const char *parent) {
    size_t length = strlen(parent);
    return path && !strncmp(path, parent, length) && path + length == strrchr(path, '/');
}

/* After a file or a folder was synced. */
static void synced(int fd, const char *path) {
    struct file *file = file_at(fd, "");
    if (file && file->unsynced) free(file->bytes), file->unsynced = false;
    if (!file)
        for (struct change *change = changes; change; change = change->before) {
            change->from_synced |= is_in(change->from, path);
            change->to_synced |= is_in(change->to, path);
        }
}

static void fill(int fd, const char *bytes, off_t size) {
    if (fd < 0 || REAL(ftruncate)(fd, size) || REAL(pwrite)(fd, bytes, size, 0) != size)
        stop("cannot be restored:", folder);
}

/* Give a lost file its name again; it may be gone, so it is made anew. */
static void bring_back(struct file *file, const char *path) {
    file->unsynced = false, keep(file);
    int fd = REAL(openat)(AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL, file->status.st_mode);
    fill(fd, file->bytes, file->status.st_size);
}

static int drop(const char *path, const struct stat *status, int type, struct FTW *at_) {
    (void)status, (void)at_;
    return REAL(unlinkat)(AT_FDCWD, path, type == FTW_DP ? AT_REMOVEDIR : 0);
}

static void lose(void) {
    for (struct file *file = files; file; file = file->next)
        if (file->unsynced)
            fill(again(file->fd, "", O_WRONLY), file->bytes, file->status.st_size);
    for (struct change *last = changes; last; last = last->before) {
        int failed = 0;
        if (last->from_synced && last->to_synced) continue;
        if (last->from && last->to)
            failed = REAL(renameat)(AT_FDCWD, last->to, AT_FDCWD, last->from);
        else if (last->to) failed = nftw(last->to, drop, 8, FTW_DEPTH | FTW_PHYS);
        else if (!last->lost) failed = REAL(mkdirat)(AT_FDCWD, last->from, 0777);
        if (failed) stop("cannot be undone:", last->to ? last->to : last->from);
        if (last->lost) bring_back(last->lost, last->to ? last->to : last->from);
    }
}

/* ---- When it fails -------------------------------------------------------------------------- */

/* Every operation is between begin() and end(); it must not happen if begin() says so. */
static bool begin(const char *name, const char *path) {
    char word[32];
    pthread_mutex_lock(&mutex);
    snprintf(word, sizeof word, ",%s,", name);
    if (*only && !strstr(only, word)) return true;
    if (log_fd >= 0) say(log_fd, name, path);
    bool fails = at >= 0 && count >= at;
    count++;
    if (!fails) return true;
    if (kind == ERRNO) return errno = error, false;
    if (kind == POWER) lose();
    tearing = kind == TORN && !strcmp(name, "write");
    if (!tearing) die();
    return true;
}

static long end(long result) {
    int number = errno;
    pthread_mutex_unlock(&mutex);
    errno = number;
    return result;
}

static void forked(void) {
    pthread_mutex_init(&mutex, NULL);
    *folder = 0;
}

void disk_arm(const char *where, long at_, int kind_, int error_, const char *only_, int log_fd_) {
    at = at_, count = 0, kind = kind_, error = error_, log_fd = log_fd_;
    snprintf(only, sizeof only, *only_ ? ",%s," : "", only_);
    pthread_atfork(NULL, NULL, forked);
    if (!realpath(where, folder)) stop("cannot be watched:", where);
}

long disk_count(void) { return count; }

/* ---- The functions of libc ------------------------------------------------------------------ */

static ssize_t put(int fd, const void *data, size_t size, const off_t *offset) {
    return offset ? REAL(pwrite)(fd, data, size, *offset) : REAL(write)(fd, data, size);
}

static ssize_t do_write(int fd, const void *data, size_t size, const off_t *offset) {
    char path[PATH_MAX];
    if (!watched_fd(fd, path)) return put(fd, data, size, offset);
    if (!begin("write", path)) return end(-1);
    if (tearing) put(fd, data, size / 2, offset), die();
    keep(file_at(fd, ""));
    return end(put(fd, data, size, offset));
}

static int do_sync(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    if (!watched_fd(fd, path)) return real(fd);
    if (!begin("sync", path)) return end(-1);
    int result = real(fd);
    if (!result) synced(fd, path);
    return end(result);
}

static int do_truncate(int fd, off_t size) {
    char path[PATH_MAX];
    if (!watched_fd(fd, path)) return REAL(ftruncate)(fd, size);
    if (!begin("truncate", path)) return end(-1);
    keep(file_at(fd, ""));
    return end(REAL(ftruncate)(fd, size));
}

static int do_truncate_at(const char *name, off_t size) {
    char path[PATH_MAX];
    if (!watched(AT_FDCWD, name, true, path)) return REAL(truncate)(name, size);
    if (!begin("truncate", path)) return end(-1);
    keep(file_at(AT_FDCWD, path));
    return end(REAL(truncate)(name, size));
}

static bool is_there(const char *path) {
    struct stat status;
    return !lstat(path, &status);
}

static int do_open(int dir, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct stat status;
    bool may = (flags & (O_CREAT | O_TRUNC)) && watched(dir, name, true, path);
    bool there = may && !stat(path, &status);
    bool does = !there ? flags & O_CREAT : (flags & O_TRUNC) && !(flags & O_EXCL) && status.st_size;
    if (!may || !does) return REAL(openat)(dir, name, flags, mode);
    if (!begin(there ? "truncate" : "create", path)) return end(-1);
    if (there) keep(file_at(AT_FDCWD, path));
    int fd = REAL(openat)(dir, name, flags, mode);
    if (fd >= 0 && !there) changed(NULL, path, NULL);
    return end(fd);
}

int renameat2(int dir, const char *name, int to_dir, const char *to_name, unsigned flags) {
    char from[PATH_MAX], to[PATH_MAX];
    if (!watched(dir, name, false, from) || !watched(to_dir, to_name, false, to) || !is_there(from))
        return REAL(renameat2)(dir, name, to_dir, to_name, flags);
    if (!begin("rename", to)) return end(-1);
    struct file *lost = file_at(AT_FDCWD, to);
    int result = REAL(renameat2)(dir, name, to_dir, to_name, flags);
    if (!result) changed(from, to, lost);
    return end(result);
}

int unlinkat(int dir, const char *name, int flags) {
    char path[PATH_MAX];
    bool is_folder = flags & AT_REMOVEDIR;
    if (!watched(dir, name, false, path) || !is_there(path))
        return REAL(unlinkat)(dir, name, flags);
    if (!begin(is_folder ? "rmdir" : "unlink", path)) return end(-1);
    struct file *lost = file_at(AT_FDCWD, path);
    int result = REAL(unlinkat)(dir, name, flags);
    if (!result && kind == POWER && !is_folder && !lost) stop("cannot be kept:", path);
    if (!result) changed(path, NULL, lost);
    return end(result);
}

int linkat(int dir, const char *name, int to_dir, const char *to_name, int flags) {
    char to[PATH_MAX];
    if (!watched(to_dir, to_name, false, to) || is_there(to))
        return REAL(linkat)(dir, name, to_dir, to_name, flags);
    if (!begin("link", to)) return end(-1);
    int result = REAL(linkat)(dir, name, to_dir, to_name, flags);
    if (!result) changed(NULL, to, NULL);
    return end(result);
}

int mkdirat(int dir, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!watched(dir, name, false, path) || is_there(path)) return REAL(mkdirat)(dir, name, mode);
    if (!begin("mkdir", path)) return end(-1);
    int result = REAL(mkdirat)(dir, name, mode);
    if (!result) changed(NULL, path, NULL);
    return end(result);
}

int rename(const char *a, const char *b) { return renameat2(AT_FDCWD, a, AT_FDCWD, b, 0); }
int renameat(int d, const char *a, int e, const char *b) { return renameat2(d, a, e, b, 0); }
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int fsync(int fd) { return do_sync(fd, REAL(fsync)); }
int fdatasync(int fd) { return do_sync(fd, REAL(fdatasync)); }
ssize_t write(int fd, const void *data, size_t n) { return do_write(fd, data, n, NULL); }

/* On a 64-bit machine, a function and the one with 64 behind its name are the same. */
_Static_assert(sizeof(off_t) == 8, "64-bit file offsets");
#define BOTH(result, name, parameters, call)                                                       \
    result name parameters { return call; }                                                        \
    result name##64 parameters { return call; }
BOTH(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t to), do_write(fd, data, n, &to))
BOTH(int, ftruncate, (int fd, off_t size), do_truncate(fd, size))
BOTH(int, truncate, (const char *name, off_t size), do_truncate_at(name, size))

#define OPEN(name, dir, ...)                                                                       \
    int name(__VA_ARGS__, int flags, ...) {                                                        \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                  \
        va_end(rest);                                                                              \
        return do_open(dir, path, flags, mode);                                                    \
    }
OPEN(open, AT_FDCWD, const char *path)
OPEN(open64, AT_FDCWD, const char *path)
OPEN(openat, dir, int dir, const char *path)
OPEN(openat64, dir, int dir, const char *path)
