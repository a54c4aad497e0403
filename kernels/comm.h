// Collectives: what the ranks of a tensor-parallel model do together. Where the device has a stream they are
// part of what goes on there, in its order; implementations for host memory take the stream NULL and have
// ended when the call returns.
//
// A single rank has no comm (NULL). All ranks call the same collectives in the same order with the same
// sizes. Functions that can fail return a code and fill *err; after a failure, or after abort, a comm only
// fails. One thread at a time uses a comm, but for abort and error, which may come from another.
#ifndef FLUTE_COMM_H
#define FLUTE_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct comm comm;

typedef struct comm_ops {
    // data: (n) becomes the sum over all ranks, on every rank, in an order that does not vary from run to
    // run.
    int (*all_reduce)(comm *c, float *data, size_t n, void *stream, flute_error *err);
    // all: (size, bytes) receives each rank's `own`: (bytes), in the order of ranks. own may be its place in
    // all.
    int (*all_gather)(comm *c, const void *own, void *all, size_t bytes, void *stream, flute_error *err);
    // data: (bytes) of host memory becomes what it is on rank root. Has ended when it returns.
    int (*broadcast)(comm *c, void *data, size_t bytes, int root, flute_error *err);
    // Seconds of one all-reduce, the mean of `repeats`, in the way that decoding uses it: in a graph. data is
    // of alloc. NULL where collectives end when they return: a clock will do.
    int (*time_all_reduce)(comm *c, float *data, size_t n, int repeats, double *seconds, flute_error *err);
    // Returns when all ranks have called it, and what they queued before has ended.
    int (*barrier)(comm *c, void *stream, flute_error *err);
    // Memory that collectives are fastest on, zeroed; collective, with the same size everywhere. Any other
    // memory of the device will do, too.
    int (*alloc)(comm *c, void **out, size_t bytes, flute_error *err);
    void (*release)(comm *c, void *memory); // accepts NULL
    // What went wrong behind the caller's back; FLUTE_OK while nothing has.
    int (*error)(comm *c, flute_error *err);
    // Ends collectives that wait for other ranks, here: they fail.
    void (*abort)(comm *c);
    void (*free)(comm *c);
} comm_ops;

struct comm {
    const comm_ops *ops;
    int rank, size;
    bool queued;    // collectives return at once, and can be captured into a graph
    char name[48];  // for people: "NCCL 2.28.3", "shared memory"
    bool timed;     // the owner wants to know how long collectives of a device take, which costs time itself
    double seconds; // spent in sums and gathers so far, waiting included; of a device only in those timed
};

// A way to communicate. The first rank makes a ticket and hands it to the others by other means
// (engine/ranks.h does); then all join, which is collective.
typedef struct comm_ticket {
    char bytes[128]; // the size of NCCL's unique id
} comm_ticket;

typedef struct comm_kind {
    const char *name; // "local", "mpi", "nccl"
    int (*ticket)(comm_ticket *out, flute_error *err);
    int (*join)(comm **out, const comm_ticket *ticket, int rank, int size, flute_error *err);
} comm_kind;

// Ranks are threads or processes of one host that share memory. Sums run in the order of ranks.
extern const comm_kind comm_kind_local;
// Ranks were started by MPI, on any hosts; host memory. NULL in a build without MPI.
const comm_kind *comm_kind_mpi(void);
// One process per GPU, on the device that is current at join; declared where the build has NCCL.
extern const comm_kind comm_kind_nccl;
// Makes of a comm of host memory one of the current CUDA device's, through the host; it takes `host` over
// unless it fails. Declared where the build has CUDA.
int comm_stage(comm **out, comm *host, flute_error *err);

static inline void comm_free(comm *c) { // accepts NULL
    if (c) c->ops->free(c);
}

#ifdef __cplusplus
}
#endif
#endif
