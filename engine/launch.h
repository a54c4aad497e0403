// Where the ranks of a model come from: a launcher that has started this process as one of several (mpirun,
// srun, torchrun or whoever sets the same environment variables), or a fork of this process.
#ifndef FLUTE_LAUNCH_H
#define FLUTE_LAUNCH_H

#include <stdbool.h>

#include "engine/rendezvous.h"

typedef struct launch {
    rank_place place;
    const char *launcher; // "Open MPI", "Slurm", …; "flute": this process was forked; NULL: it is alone
    bool mpi;             // MPI has started this process and knows its rank
} launch;

// What the environment says. Fills place but for listener and timeout_s; launcher is NULL where it says
// nothing of several ranks.
int launch_read_environment(launch *out, flute_error *err);

// Forks n ranks on this host, which return with *out filled. In the calling process it returns when all have
// ended, *status ≥ 0 being what the process should exit with; a rank that ends in another way than by itself
// with 0 ends all of them, and so does the end of the calling process, however it comes. SIGTERM, SIGHUP and
// SIGINT that are sent to the calling process go to rank 0.
int launch_fork(launch *out, int n, int *status, flute_error *err);

#endif
