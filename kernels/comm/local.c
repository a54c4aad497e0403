// Ranks of one host, threads or processes, through shared memory: a header, and for each rank two slots that
// are used in turn. A collective goes in pieces of a slot: everyone writes its piece, waits for the others,
// and reads what it needs. Whoever is in the next but one piece knows that all have left this one, so that
// one barrier a piece is enough.
//
// The memory is an anonymous file; the ticket names it through /proc, so that nothing is left behind, however
// the ranks end.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "kernels/comm.h"

enum {
    MAX_RANKS = 64,
    SLOT_BYTES = 256 << 10, // 16 rows of 4096 floats
    HEADER_BYTES = 4096,
    SPINS = 200, // ranks often outnumber processors: sleep soon
};

typedef struct shared_header {
    _Atomic uint32_t arrived;    // ranks at the barrier
    _Atomic uint32_t generation; // barriers passed; a futex
    _Atomic uint32_t aborted;
} shared_header;

_Static_assert(sizeof(shared_header) <= HEADER_BYTES, "the header has a page");

typedef struct local_comm {
    comm base;
    uint8_t *memory; // header, then (2, size, SLOT_BYTES)
    size_t bytes;
    unsigned piece; // counts pieces; its parity says which slots are in use
    int file;       // the first rank keeps it open until all have joined, and longer; else −1
} local_comm;

static shared_header *header_of(local_comm *c) {
    return (shared_header *)(void *)c->memory;
}

static uint8_t *slot_of(local_comm *c, int rank) {
    return c->memory + HEADER_BYTES +
           ((size_t)(c->piece & 1) * (size_t)c->base.size + (size_t)rank) * SLOT_BYTES;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    const struct timespec nap = {.tv_nsec = 100 * 1000 * 1000}; // an abort may come between check and sleep
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &nap, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, MAX_RANKS, NULL, NULL, 0);
}

static int local_error(comm *base, flute_error *err) {
    if (!atomic_load(&header_of((local_comm *)base)->aborted)) return FLUTE_OK;
    return fail(err, FLUTE_EDEVICE, "another rank has failed");
}

static int wait_for_all(local_comm *c, flute_error *err) {
    shared_header *header = header_of(c);
    const uint32_t generation = atomic_load(&header->generation);
    if (atomic_fetch_add(&header->arrived, 1) + 1 == (uint32_t)c->base.size) {
        atomic_store(&header->arrived, 0);
        atomic_fetch_add(&header->generation, 1);
        futex_wake_all(&header->generation);
    } else {
        for (int i = 0; i < SPINS && atomic_load(&header->generation) == generation; i++)
            __asm__ volatile("" : : : "memory");
        while (atomic_load(&header->generation) == generation && !atomic_load(&header->aborted))
            futex_wait(&header->generation, generation);
    }
    return local_error(&c->base, err);
}

static int local_all_reduce(comm *base, float *data, size_t n, void *stream, flute_error *err) {
    enum { SLOT_FLOATS = SLOT_BYTES / sizeof(float) };
    local_comm *c = (local_comm *)base;
    const double start = seconds_now();
    (void)stream;
    for (size_t done = 0; done < n; done += SLOT_FLOATS, c->piece++) {
        const size_t count = n - done < SLOT_FLOATS ? n - done : SLOT_FLOATS;
        memcpy(slot_of(c, base->rank), data + done, count * sizeof *data);
        int code = wait_for_all(c, err);
        if (code) return code;
        memcpy(data + done, slot_of(c, 0), count * sizeof *data);
        for (int rank = 1; rank < base->size; rank++) {
            const float *other = (const float *)(const void *)slot_of(c, rank);
            for (size_t i = 0; i < count; i++) data[done + i] += other[i];
        }
    }
    base->seconds += seconds_now() - start;
    return FLUTE_OK;
}

static int local_all_gather(comm *base, const void *own, void *all, size_t bytes, void *stream,
                            flute_error *err) {
    local_comm *c = (local_comm *)base;
    const double start = seconds_now();
    (void)stream;
    for (size_t done = 0; done < bytes; done += SLOT_BYTES, c->piece++) {
        const size_t count = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
        memcpy(slot_of(c, base->rank), (const uint8_t *)own + done, count);
        int code = wait_for_all(c, err);
        if (code) return code;
        for (int rank = 0; rank < base->size; rank++)
            memcpy((uint8_t *)all + (size_t)rank * bytes + done, slot_of(c, rank), count);
    }
    base->seconds += seconds_now() - start;
    return FLUTE_OK;
}

static int local_broadcast(comm *base, void *data, size_t bytes, int root, flute_error *err) {
    local_comm *c = (local_comm *)base;
    for (size_t done = 0; done < bytes; done += SLOT_BYTES, c->piece++) {
        const size_t count = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
        if (base->rank == root) memcpy(slot_of(c, root), (uint8_t *)data + done, count);
        int code = wait_for_all(c, err);
        if (code) return code;
        if (base->rank != root) memcpy((uint8_t *)data + done, slot_of(c, root), count);
    }
    return FLUTE_OK;
}

static int local_barrier(comm *base, void *stream, flute_error *err) {
    (void)stream;
    return wait_for_all((local_comm *)base, err);
}

static int local_alloc(comm *base, void **out, size_t bytes, flute_error *err) {
    (void)base;
    *out = calloc(1, bytes > 0 ? bytes : 1);
    return *out ? FLUTE_OK : fail_memory(err, bytes, "a buffer of collectives");
}

static void local_release(comm *base, void *memory) {
    (void)base;
    free(memory);
}

static void local_abort(comm *base) {
    shared_header *header = header_of((local_comm *)base);
    atomic_store(&header->aborted, 1);
    futex_wake_all(&header->generation);
}

static void local_free(comm *base) {
    local_comm *c = (local_comm *)base;
    if (c->memory) munmap(c->memory, c->bytes);
    if (c->file >= 0) close(c->file);
    free(c);
}

static const comm_ops local_ops = {
    .all_reduce = local_all_reduce,
    .all_gather = local_all_gather,
    .broadcast = local_broadcast,
    .barrier = local_barrier,
    .alloc = local_alloc,
    .release = local_release,
    .error = local_error,
    .abort = local_abort,
    .free = local_free,
};

static int local_ticket(comm_ticket *out, flute_error *err) {
    const int file = memfd_create("flute-ranks", MFD_CLOEXEC);
    if (file < 0) return fail(err, FLUTE_EDEVICE, "no memory to share among ranks: %s", strerror(errno));
    snprintf(out->bytes, sizeof out->bytes, "/proc/%ld/fd/%d", (long)getpid(), file);
    return FLUTE_OK;
}

static int open_shared(local_comm *c, const char *path, flute_error *err) {
    const int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return fail(err, FLUTE_EDEVICE, "cannot open the shared memory of rank 0 (%s): %s", path,
                    strerror(errno));
    // Whoever comes first gives the file its size: the same for all.
    if (ftruncate(file, (off_t)c->bytes) == 0) {
        void *memory = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (memory != MAP_FAILED) c->memory = memory;
    }
    const int error = errno;
    close(file);
    if (c->memory) return FLUTE_OK;
    return fail(err, FLUTE_ENOMEM, "cannot map %zu bytes to share among ranks: %s", c->bytes,
                strerror(error));
}

static int local_join(comm **out, const comm_ticket *ticket, int rank, int size, flute_error *err) {
    if (size > MAX_RANKS)
        return fail(err, FLUTE_EUNSUPPORTED, "%d ranks on one host; at most %d work", size, MAX_RANKS);
    local_comm *c = calloc(1, sizeof *c);
    if (!c) return fail_memory(err, sizeof *c, "a rank");
    *c = (local_comm){.base = {.ops = &local_ops, .rank = rank, .size = size},
                      .bytes = HEADER_BYTES + 2 * (size_t)size * SLOT_BYTES,
                      .file = -1};
    snprintf(c->base.name, sizeof c->base.name, "shared memory");
    if (rank == 0) sscanf(ticket->bytes, "/proc/%*d/fd/%d", &c->file);
    int code = open_shared(c, ticket->bytes, err);
    if (!code) code = wait_for_all(c, err);
    if (code) {
        local_free(&c->base);
        return code;
    }
    *out = &c->base;
    return FLUTE_OK;
}

const comm_kind comm_kind_local = {"local", local_ticket, local_join};
