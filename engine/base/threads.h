// A pool of threads for short parallel regions. Workers spin for a bounded time, then sleep on a futex, so
// that a dispatch costs about a microsecond while tokens flow and nothing when they do not.
#ifndef FLUTE_THREADS_H
#define FLUTE_THREADS_H

#include <stdint.h>

#include "engine/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct thread_pool thread_pool;

// The number of processors that this process may use (affinity and cgroup quota counted), at least 1.
int threads_available(void);

// The processors that CPU quotas of cgroups (version 2 or 1) leave to a process, rounded down; 0 for no
// limit. membership is its /proc/PID/cgroup, mount where cgroups are mounted; threads_available() passes the
// real ones.
int threads_quota(const char *membership, const char *mount);

// n_threads counts the caller: n_threads - 1 threads are started. 0 means threads_available().
thread_pool *threads_create(int n_threads, flute_error *err);
void threads_free(thread_pool *pool); // accepts NULL
int threads_count(const thread_pool *pool);

// Runs task(argument, worker, n_workers) on every worker, the caller being worker 0, and returns when all
// have ended. What tasks wrote is visible to the caller. A NULL pool runs it once, as the only worker.
// Calls from several threads on one pool are serialized. A task must not call it on its own pool.
typedef void threads_task(void *argument, int worker, int n_workers);
void threads_run(thread_pool *pool, threads_task *task, void *argument);

// Splits [0, n) into chunks of grain >= 1 (the last may be shorter) which workers take from a shared counter.
// Which worker takes which chunk varies from run to run: results must not depend on it.
typedef void threads_chunk(void *argument, int64_t begin, int64_t end, int worker);
void threads_for(thread_pool *pool, int64_t n, int64_t grain, threads_chunk *chunk, void *argument);

#ifdef __cplusplus
}
#endif
#endif
