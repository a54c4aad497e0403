// Ranks that MPI started, in host memory. Collectives are started and then tested for, so that abort can end
// the wait: MPI itself would wait for a dead rank for ever.
#include "kernels/comm.h"

#ifdef FLUTE_HAVE_MPI

#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "engine/base/fail.h"

typedef struct mpi_comm {
    comm base;
    MPI_Comm world;
    atomic_bool aborted;
} mpi_comm;

static atomic_bool any_aborted; // then MPI_Finalize would wait for those who are gone

static void finalize(void) {
    if (!atomic_load(&any_aborted)) MPI_Finalize();
}

static int failed(int result, const char *what, flute_error *err) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(result, text, &length);
    return fail(err, FLUTE_EDEVICE, "%s: %.*s", what, length, text);
}

static int mpi_error(comm *base, flute_error *err) {
    if (!atomic_load(&((mpi_comm *)base)->aborted)) return FLUTE_OK;
    return fail(err, FLUTE_EDEVICE, "another rank has failed");
}

// Waits for a request that was made with `result`.
static int finish(mpi_comm *c, int result, MPI_Request *request, const char *what, flute_error *err) {
    const double start = MPI_Wtime();
    for (int done = 0; result == MPI_SUCCESS && !done;) {
        int code = mpi_error(&c->base, err);
        if (code) return code;
        result = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (!done) sched_yield();
    }
    c->base.seconds += MPI_Wtime() - start;
    return result == MPI_SUCCESS ? FLUTE_OK : failed(result, what, err);
}

enum { MAX_COUNT = 1 << 30 }; // MPI counts in int

static int mpi_all_reduce(comm *base, float *data, size_t n, void *stream, flute_error *err) {
    mpi_comm *c = (mpi_comm *)base;
    (void)stream;
    for (size_t done = 0; done < n; done += MAX_COUNT) {
        const int count = n - done < MAX_COUNT ? (int)(n - done) : MAX_COUNT;
        MPI_Request request;
        const int result =
            MPI_Iallreduce(MPI_IN_PLACE, data + done, count, MPI_FLOAT, MPI_SUM, c->world, &request);
        int code = finish(c, result, &request, "MPI_Iallreduce", err);
        if (code) return code;
    }
    return FLUTE_OK;
}

static int mpi_all_gather(comm *base, const void *own, void *all, size_t bytes, void *stream,
                          flute_error *err) {
    mpi_comm *c = (mpi_comm *)base;
    uint8_t *place = (uint8_t *)all + (size_t)base->rank * bytes;
    MPI_Request request;
    (void)stream;
    if (bytes > MAX_COUNT)
        return fail(err, FLUTE_EUNSUPPORTED, "gathering %zu bytes from each rank; at most %d go", bytes,
                    MAX_COUNT);
    if (own != place) memcpy(place, own, bytes);
    const int result =
        MPI_Iallgather(MPI_IN_PLACE, 0, MPI_BYTE, all, (int)bytes, MPI_BYTE, c->world, &request);
    return finish(c, result, &request, "MPI_Iallgather", err);
}

static int mpi_broadcast(comm *base, void *data, size_t bytes, int root, flute_error *err) {
    mpi_comm *c = (mpi_comm *)base;
    for (size_t done = 0; done < bytes; done += MAX_COUNT) {
        const int count = bytes - done < MAX_COUNT ? (int)(bytes - done) : MAX_COUNT;
        MPI_Request request;
        const int result = MPI_Ibcast((uint8_t *)data + done, count, MPI_BYTE, root, c->world, &request);
        int code = finish(c, result, &request, "MPI_Ibcast", err);
        if (code) return code;
    }
    return FLUTE_OK;
}

static int mpi_barrier(comm *base, void *stream, flute_error *err) {
    mpi_comm *c = (mpi_comm *)base;
    MPI_Request request;
    (void)stream;
    const int result = MPI_Ibarrier(c->world, &request);
    return finish(c, result, &request, "MPI_Ibarrier", err);
}

static int mpi_alloc(comm *base, void **out, size_t bytes, flute_error *err) {
    (void)base;
    *out = calloc(1, bytes > 0 ? bytes : 1);
    return *out ? FLUTE_OK : fail_memory(err, bytes, "a buffer of collectives");
}

static void mpi_release(comm *base, void *memory) {
    (void)base;
    free(memory);
}

static void mpi_abort(comm *base) {
    atomic_store(&any_aborted, true);
    atomic_store(&((mpi_comm *)base)->aborted, true);
}

static void mpi_free(comm *base) {
    mpi_comm *c = (mpi_comm *)base;
    if (!atomic_load(&any_aborted)) MPI_Comm_free(&c->world);
    free(c);
}

static const comm_ops mpi_ops = {
    .all_reduce = mpi_all_reduce,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .alloc = mpi_alloc,
    .release = mpi_release,
    .error = mpi_error,
    .abort = mpi_abort,
    .free = mpi_free,
};

// MPI takes part once in a process's life, from the first model on.
static int initialize(flute_error *err) {
    int done = 0, level = MPI_THREAD_SINGLE;
    MPI_Initialized(&done);
    if (done) return FLUTE_OK;
    const int result = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level);
    if (result != MPI_SUCCESS) return failed(result, "MPI_Init_thread", err);
    atexit(finalize);
    if (level >= MPI_THREAD_SERIALIZED) return FLUTE_OK;
    return fail(err, FLUTE_EUNSUPPORTED, "this MPI does not allow threads");
}

static int mpi_ticket(comm_ticket *out, flute_error *err) {
    (void)err;
    *out = (comm_ticket){"mpirun"}; // MPI knows its ranks
    return FLUTE_OK;
}

static int mpi_join(comm **out, const comm_ticket *ticket, int rank, int size, flute_error *err) {
    (void)ticket;
    int code = initialize(err), mpi_rank, mpi_size, version, subversion;
    if (code) return code;
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
    if (mpi_rank != rank || mpi_size != size)
        return fail(err, FLUTE_EINVAL, "rank %d of %d is number %d of %d to MPI", rank, size, mpi_rank,
                    mpi_size);
    mpi_comm *c = calloc(1, sizeof *c);
    if (!c) return fail_memory(err, sizeof *c, "a rank");
    c->base = (comm){.ops = &mpi_ops, .rank = rank, .size = size};
    const int result = MPI_Comm_dup(MPI_COMM_WORLD, &c->world);
    if (result != MPI_SUCCESS) {
        free(c);
        return failed(result, "MPI_Comm_dup", err);
    }
    MPI_Comm_set_errhandler(c->world, MPI_ERRORS_RETURN);
    MPI_Get_version(&version, &subversion);
    snprintf(c->base.name, sizeof c->base.name, "MPI %d.%d", version, subversion);
    *out = &c->base;
    return FLUTE_OK;
}

static const comm_kind kind = {"mpi", mpi_ticket, mpi_join};

const comm_kind *comm_kind_mpi(void) {
    return &kind;
}

#else

const comm_kind *comm_kind_mpi(void) {
    return NULL;
}

#endif
