#include "engine/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/fail.h"

// A read or write call moves at most 2 GiB - 4 KiB anyway; smaller steps stay interruptible.
#define MAX_TRANSFER ((size_t)1 << 30)
// Pipes and devices have no size: more than this is a mistake (/dev/zero), not a prompt.
#define MAX_STREAM ((size_t)1 << 30)

// What went wrong, and what to do about it.
static const char *explain(int errnum) {
    switch (errnum) {
    case ENOENT:
        return "no such file or directory; check the path";
    case EACCES:
    case EPERM:
        return "permission denied; check the owner and mode of it and of its folder (ls -l)";
    case ENOTDIR:
        return "a part of the path is not a directory; check the path";
    case EISDIR:
        return "is a directory; give a file";
    case EROFS:
        return "the file system is read-only; choose another place";
    case ENAMETOOLONG:
        return "the name is too long; choose a shorter one";
    case ELOOP:
        return "symbolic links go round in a circle; give the file itself";
    case EMFILE:
    case ENFILE:
        return "too many open files; raise the limit (ulimit -n)";
    case EIO:
        return "the device reports an error; check the disk (dmesg)";
    default:
        return strerror(errnum);
    }
}

static int fail_io(flute_error *err, const char *path, const char *action, int errnum) {
    return fail(err, FLUTE_EIO, "%s: cannot %s: %s", *path ? path : "(empty file name)", action,
                explain(errnum));
}

// ---- reading ----

int file_map_open(file_map *map, const char *path, flute_error *err) {
    *map = (file_map){0};
    // Without O_NONBLOCK a FIFO would wait here for a writer.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail_io(err, path, "open", errno);
    int code = FLUTE_OK;
    struct stat status;
    if (fstat(fd, &status) != 0) {
        code = fail_io(err, path, "open", errno);
    } else if (S_ISDIR(status.st_mode)) {
        code = fail_io(err, path, "open", EISDIR);
    } else if (!S_ISREG(status.st_mode)) {
        code = fail(err, FLUTE_EIO, "%s: is a pipe or a device; save it as a file first", path);
    } else if ((uintmax_t)status.st_size > SIZE_MAX) {
        code = fail(err, FLUTE_ENOMEM, "%s: %lld bytes are more than this machine can address", path,
                    (long long)status.st_size);
    } else if (status.st_size > 0) {
        void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            code = fail(err, errno == ENOMEM ? FLUTE_ENOMEM : FLUTE_EIO, "%s: cannot map %lld bytes: %s",
                        path, (long long)status.st_size,
                        errno == ENOMEM ? "not enough address space (ulimit -v)" : explain(errno));
        } else {
            *map = (file_map){.data = data, .size = (size_t)status.st_size};
        }
    }
    close(fd); // the mapping keeps the file
    return code;
}

void file_map_close(file_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (file_map){0};
}

static ssize_t read_some(int fd, void *data, size_t size) {
    ssize_t n;
    do n = read(fd, data, size < MAX_TRANSFER ? size : MAX_TRANSFER);
    while (n < 0 && errno == EINTR);
    return n;
}

// Reads until the end, whatever fstat said: files of /proc claim 0 bytes, and a file may still be growing.
static int read_all(int fd, const char *path, size_t expected, bool regular, char **data, size_t *size,
                    flute_error *err) {
    size_t capacity = expected + 2; // the NUL, and one byte more to meet the end without growing
    size_t used = 0;
    char *buffer = malloc(capacity);
    if (!buffer) return fail_memory(err, capacity, path);
    for (;;) {
        ssize_t n = read_some(fd, buffer + used, capacity - used - 1);
        if (n < 0) {
            int code = fail_io(err, path, "read", errno);
            free(buffer);
            return code;
        }
        if (n == 0) break;
        used += (size_t)n;
        if (!regular && used > MAX_STREAM) {
            free(buffer);
            return fail(err, FLUTE_EIO, "%s: more than %zu bytes come from it; save what you need as a file",
                        path, MAX_STREAM);
        }
        if (used < capacity - 1) continue;
        size_t larger = capacity < SIZE_MAX / 2 ? capacity * 2 : SIZE_MAX;
        if (larger < 4096) larger = 4096;
        char *grown = larger > capacity ? realloc(buffer, larger) : NULL;
        if (!grown) {
            free(buffer);
            return fail_memory(err, larger, path);
        }
        buffer = grown;
        capacity = larger;
    }
    buffer[used] = '\0';
    *data = buffer;
    *size = used;
    return FLUTE_OK;
}

int file_read(const char *path, char **data, size_t *size, flute_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_io(err, path, "open", errno);
    int code;
    struct stat status;
    if (fstat(fd, &status) != 0) {
        code = fail_io(err, path, "open", errno);
    } else if (S_ISDIR(status.st_mode)) {
        code = fail_io(err, path, "open", EISDIR);
    } else if ((uintmax_t)status.st_size > SIZE_MAX - 2) {
        code = fail_memory(err, (unsigned long long)status.st_size, path);
    } else {
        bool regular = S_ISREG(status.st_mode);
        code = read_all(fd, path, regular ? (size_t)status.st_size : 0, regular, data, size, err);
    }
    close(fd);
    return code;
}

// ---- temporary files and their registry ----

// Names of the temporary files of open writers. Whoever takes a name out of its slot removes that file: a
// signal handler and the writer's owner cannot both do so, nor can one free a string that the other reads.
#define MAX_WRITERS 64
static _Atomic(char *) temporaries[MAX_WRITERS];
// Names that file_writer_remove_all took: free is not async-signal-safe, so they are kept.
static _Atomic(char *) removed[MAX_WRITERS];

struct file_writer {
    int fd;
    int slot;        // of temporaries, -1 before it has one
    char *path;      // where the file will stand
    char *temporary; // where it is written; the registry's once it is in its slot
    uint64_t size;
};

static int register_temporary(char *name) {
    for (int slot = 0; slot < MAX_WRITERS; slot++) {
        char *empty = NULL;
        if (atomic_compare_exchange_strong(&temporaries[slot], &empty, name)) return slot;
    }
    return -1;
}

void file_writer_remove_all(void) {
    int saved_errno = errno;
    for (int slot = 0; slot < MAX_WRITERS; slot++) {
        char *name = atomic_exchange(&temporaries[slot], NULL);
        if (!name) continue;
        unlink(name);
        atomic_store(&removed[slot], name);
    }
    errno = saved_errno;
}

// Fills the six X at the end with letters and digits that nobody can guess.
static void randomize_suffix(char *suffix) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    uint8_t bytes[6];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) {
        // Old kernels: unique among the processes of this machine, and O_EXCL catches the rest.
        static atomic_uint n_calls;
        unsigned value = (unsigned)getpid() * 2654435761u + atomic_fetch_add(&n_calls, 1);
        for (size_t i = 0; i < sizeof bytes; i++, value = value * 1664525u + 1013904223u) {
            bytes[i] = (uint8_t)(value >> 24);
        }
    }
    for (size_t i = 0; i < sizeof bytes; i++) suffix[i] = letters[bytes[i] % (sizeof letters - 1)];
}

// "DIR/NAME" to "DIR/.NAME.XXXXXX", malloc'd. Very long names are cut, so that eight more bytes fit.
static char *temporary_name(const char *path) {
    const char *slash = strrchr(path, '/');
    size_t directory_length = slash ? (size_t)(slash - path) + 1 : 0;
    const char *name = path + directory_length;
    size_t name_length = strlen(name);
    if (name_length > NAME_MAX - 8) name_length = NAME_MAX - 8;
    char *temporary = malloc(directory_length + name_length + 9);
    if (!temporary) return NULL;
    char *end = temporary;
    memcpy(end, path, directory_length);
    end += directory_length;
    *end++ = '.';
    memcpy(end, name, name_length);
    memcpy(end + name_length, ".XXXXXX", 8);
    return temporary;
}

// The file that path means, malloc'd: the end of symbolic links, so that a link to a large disk stays one.
static int resolve_target(const char *path, char **target, flute_error *err) {
    struct stat status;
    size_t length = strlen(path);
    if (length == 0) return fail_io(err, path, "write", ENOENT);
    if (path[length - 1] == '/') return fail_io(err, path, "write", EISDIR);
    bool exists = lstat(path, &status) == 0;
    if (exists && S_ISLNK(status.st_mode)) {
        *target = realpath(path, NULL);
        if (!*target) {
            return fail(err, FLUTE_EIO, "%s: is a symbolic link that leads nowhere (%s); remove it", path,
                        strerror(errno));
        }
        exists = stat(*target, &status) == 0;
    } else {
        *target = strdup(path);
        if (!*target) return fail_memory(err, length + 1, "a file name");
    }
    // Renaming onto a device would replace it: "-o /dev/null" as root must not.
    if (exists && !S_ISREG(status.st_mode)) {
        free(*target);
        *target = NULL;
        if (S_ISDIR(status.st_mode)) return fail_io(err, path, "write", EISDIR);
        return fail(err, FLUTE_EIO, "%s: is not a regular file; choose another output", path);
    }
    return FLUTE_OK;
}

static void free_writer(file_writer *writer) {
    free(writer->temporary);
    free(writer->path);
    free(writer);
}

// Empties the writer's slot. False when a signal handler came first: then the string is not ours any more.
static bool take_temporary(file_writer *writer) {
    if (writer->slot < 0) return false;
    char *name = atomic_exchange(&temporaries[writer->slot], NULL);
    writer->slot = -1;
    if (!name) writer->temporary = NULL;
    return name != NULL;
}

// The name is registered before the file exists: a signal in between then leaves nothing behind. Plain open
// instead of mkstemp, which would give mode 0600 rather than what the umask says.
static int create_temporary(file_writer *writer, const char *path, flute_error *err) {
    char *suffix = writer->temporary + strlen(writer->temporary) - 6;
    for (int attempt = 0; attempt < 100; attempt++) {
        randomize_suffix(suffix);
        writer->slot = register_temporary(writer->temporary);
        if (writer->slot < 0) {
            return fail(err, FLUTE_EINVAL, "%s: more than %d files are being written; finish some first",
                        path, MAX_WRITERS);
        }
        writer->fd = open(writer->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (writer->fd >= 0) return FLUTE_OK;
        int errnum = errno;
        if (!take_temporary(writer)) return fail(err, FLUTE_ECANCELED, "%s: canceled", path);
        if (errnum == EEXIST) continue;
        if (errnum == ENOENT) {
            return fail(err, FLUTE_EIO, "%s: its folder does not exist; create it first (mkdir -p)", path);
        }
        return fail_io(err, path, "write", errnum);
    }
    return fail(err, FLUTE_EIO, "%s: no free name for a temporary file; remove those that start with a dot",
                path);
}

// ---- writing ----

file_writer *file_writer_open(const char *path, flute_error *err) {
    file_writer *writer = calloc(1, sizeof *writer);
    if (!writer) {
        fail_memory(err, sizeof *writer, "a file writer");
        return NULL;
    }
    writer->fd = -1;
    writer->slot = -1;
    if (resolve_target(path, &writer->path, err) != FLUTE_OK) goto error;
    writer->temporary = temporary_name(writer->path);
    if (!writer->temporary) {
        fail_memory(err, strlen(path) + 9, "a file name");
        goto error;
    }
    if (create_temporary(writer, path, err) != FLUTE_OK) goto error;
    return writer;

error:
    free_writer(writer);
    return NULL;
}

// pwrite without the death by SIGXFSZ that a file-size limit brings: it fails with EFBIG instead. The signal
// is for the writing thread, so blocking it here and taking it away concerns nobody else.
static ssize_t write_some(int fd, const void *data, size_t size, uint64_t offset) {
    sigset_t limit, before;
    sigemptyset(&limit);
    sigaddset(&limit, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &limit, &before);
    ssize_t n;
    do n = pwrite(fd, data, size < MAX_TRANSFER ? size : MAX_TRANSFER, (off_t)offset);
    while (n < 0 && errno == EINTR);
    int errnum = errno;
    if (n < 0 && errnum == EFBIG) sigtimedwait(&limit, NULL, &(struct timespec){0});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = errnum;
    return n;
}

// missing is 0 when all bytes were taken and only the disk has not confirmed them.
static int fail_write(flute_error *err, const file_writer *writer, uint64_t missing, int errnum) {
    const char *reason;
    switch (errnum) {
    case ENOSPC:
        reason = "the disk is full; free some space or choose another place";
        break;
    case EDQUOT:
        reason = "your disk quota is used up; remove some files or choose another place";
        break;
    case EFBIG:
        reason = "larger than the file-size limit (ulimit -f) or the file system allows; raise it or choose "
                 "another place";
        break;
    default:
        reason = explain(errnum);
    }
    if (missing == 0) {
        return fail(err, FLUTE_EIO, "%s: cannot bring its %llu bytes to the disk: %s", writer->path,
                    (unsigned long long)writer->size, reason);
    }
    return fail(err, FLUTE_EIO, "%s: cannot write: %llu more bytes were needed after %llu: %s", writer->path,
                (unsigned long long)missing, (unsigned long long)writer->size, reason);
}

int file_writer_at(file_writer *writer, uint64_t offset, const void *data, size_t size, flute_error *err) {
    const char *bytes = data;
    if (offset > INT64_MAX || size > INT64_MAX - offset) return fail_write(err, writer, size, EFBIG);
    while (size > 0) {
        ssize_t n = write_some(writer->fd, bytes, size, offset);
        if (n <= 0) return fail_write(err, writer, size, n < 0 ? errno : EIO);
        bytes += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
        if (offset > writer->size) writer->size = offset;
    }
    return FLUTE_OK;
}

int file_writer_append(file_writer *writer, const void *data, size_t size, flute_error *err) {
    return file_writer_at(writer, writer->size, data, size, err);
}

uint64_t file_writer_size(const file_writer *writer) {
    return writer->size;
}

// Makes the new name survive a power cut. The file is whole and in place by now, and some file systems cannot
// sync a folder or let us open it: not an error.
static void sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

int file_writer_commit(file_writer *writer, flute_error *err) {
    int code = FLUTE_OK;
    // Disks that allocate late, and file servers, report a full disk only now.
    if (fsync(writer->fd) != 0 && errno != EINVAL) code = fail_write(err, writer, 0, errno);
    int closed = close(writer->fd);
    writer->fd = -1;
    if (closed != 0 && errno != EINTR && code == FLUTE_OK) code = fail_write(err, writer, 0, errno);
    // The name leaves the registry after the rename: until then a signal removes the file, and afterwards
    // there is nothing of that name.
    if (code == FLUTE_OK && rename(writer->temporary, writer->path) != 0) {
        code = errno == ENOENT ? fail(err, FLUTE_EIO, "%s: its temporary file %s was removed; write it again",
                                      writer->path, writer->temporary)
                               : fail_io(err, writer->path, "write", errno);
    }
    if (code != FLUTE_OK) {
        file_writer_abort(writer);
        return code;
    }
    take_temporary(writer);
    sync_folder(writer->path);
    free_writer(writer);
    return FLUTE_OK;
}

void file_writer_abort(file_writer *writer) {
    if (!writer) return;
    if (writer->fd >= 0) close(writer->fd);
    if (take_temporary(writer)) unlink(writer->temporary);
    free_writer(writer);
}
