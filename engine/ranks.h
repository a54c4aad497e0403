// The ranks of a tensor-parallel model as one of them sees them: connections, commands from rank 0 to the
// others, and the watch over all.
//
// Rank 0 leads: what it is about to do with backend and cache it tells the others, who do the same, each with
// its part of the weights. They meet in the collectives of the verbs. lead.h and follow.c are the two ends.
#ifndef FLUTE_RANKS_H
#define FLUTE_RANKS_H

#include <stdint.h>

#include "engine/flute.h"
#include "engine/rendezvous.h"
#include "kernels/comm.h"

typedef enum ranks_command {
    RANKS_OPEN = 1,   // open_message, the path; with scatter the file's header. Reply: digests
    RANKS_JOIN,       // nothing; with scatter the weights follow by the comm. Reply
    RANKS_CLOSE,      // nothing
    RANKS_GROW,       // the cache: number of blocks, then blocks to keep. Reply
    RANKS_COPY_BLOCK, // from, to
    RANKS_RESERVE,    // reserve_message. Reply
    RANKS_STEP,       // step_message, then the arrays of the batch
    RANKS_MEASURE,    // measure_message
    RANKS_QUIT,       // nothing
} ranks_command;

typedef struct ranks_header {
    uint32_t command;
    int32_t model; // which one
    uint64_t size; // bytes that follow
} ranks_header;

// Part of a message.
typedef struct ranks_part {
    const void *data;
    size_t size;
} ranks_part;

int ranks_size(const flute_ranks *ranks);                        // 1 for NULL
int ranks_local_rank(const flute_ranks *ranks);                  // among those of this host; 0 for NULL
int ranks_local_size(const flute_ranks *ranks);                  // 1 for NULL
const rank_link *ranks_peer(const flute_ranks *ranks, int rank); // at rank 0: any; elsewhere 0 or oneself
int ranks_new_model(flute_ranks *ranks);                         // a number for a model

// The kind of communication for host memory: the one that is wanted, or what suits. NULL: it cannot be had.
const comm_kind *ranks_host_comm(const flute_ranks *ranks, flute_comm wanted, flute_error *err);
// Between these two a comm is watched, and aborted when a rank fails.
void ranks_watch_comm(flute_ranks *ranks, comm *c);
void ranks_forget_comm(flute_ranks *ranks, comm *c);

// Fails with what made the ranks fail, if they have; else with code.
int ranks_failure(flute_ranks *ranks, int code, flute_error *err);

// Rank 0: a command to all others.
int ranks_tell(flute_ranks *ranks, ranks_command command, int model, const ranks_part *parts, int n_parts,
               flute_error *err);
// Rank 0: waits for the replies of all others. The first failure is the result, with the rank's name. What
// comes with a reply goes to place(user, rank, size), which returns room for size bytes or NULL.
typedef void *ranks_place(void *user, int rank, size_t size);
int ranks_collect(flute_ranks *ranks, ranks_place *place, void *user, flute_error *err);

// Rank 0 cannot go on, and the others may be in the middle of what takes all.
void ranks_end_all(flute_ranks *ranks, const flute_error *cause);

// The others.
int ranks_receive(flute_ranks *ranks, void *data, size_t size, flute_error *err);
int ranks_reply(flute_ranks *ranks, const flute_error *result, const void *data, size_t size,
                flute_error *err);
// Tells rank 0 that this rank can not go on.
void ranks_give_up(flute_ranks *ranks, const flute_error *cause);

#endif
