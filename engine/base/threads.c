// The pool: one epoch counter that workers watch, one count of workers that are still busy. Waiting is a
// bounded spin, then a futex. Everything that the two sides share goes through these atomics; there are no
// stand-alone fences, so that ThreadSanitizer sees every edge.
#include "engine/base/threads.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/fail.h"

// To sleep and be woken costs 5-60 us on the machines measured. Spinning for about that long is at most twice
// as expensive as the better choice made with foresight, and it bridges the gaps between the dispatches of a
// token (below 1 us) and the sampling between tokens (about 30 us), while an idle pool is silent after it.
#define SPIN_NS 60000
// Pauses between two looks at the clock: a pause takes 5-45 ns, the clock about 25 ns.
#define PAUSES_PER_LOOK 16
#define MAX_THREADS 1024
#define CACHE_LINE 64

struct thread_pool {
    pthread_mutex_t callers; // held by the caller for the whole dispatch
    pthread_t *threads;      // n_threads - 1, the caller is not one of them
    int n_threads;
    int n_started;   // threads that exist; below n_threads - 1 only while creating
    int64_t spin_ns; // 0 where the pool alone has more threads than there are processors
    bool stop;       // written before an epoch, read after it, as are the next two
    threads_task *task;
    void *argument;
    alignas(CACHE_LINE) atomic_uint epoch; // grows by one with each dispatch: workers wait for that
    atomic_uint n_sleeping;                // workers that sleep on epoch, or are about to
    alignas(CACHE_LINE)
        atomic_uint n_busy; // workers that have not ended this dispatch: the caller waits for 0
    atomic_uint caller_sleeping;
};

typedef struct worker_start {
    thread_pool *pool;
    int worker;
} worker_start;

static inline void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Sleeps while *word == value. May return for no reason: callers look again.
static void futex_wait(atomic_uint *word, unsigned value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n_waiters) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n_waiters, NULL, NULL, 0);
}

// Spins until *word differs from value; false when the time is up.
static bool spin_while_equal(atomic_uint *word, unsigned value, int64_t spin_ns) {
    if (atomic_load_explicit(word, memory_order_acquire) != value) return true;
    if (spin_ns == 0) return false;
    int64_t deadline = now_ns() + spin_ns;
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            cpu_pause();
            if (atomic_load_explicit(word, memory_order_acquire) != value) return true;
        }
    } while (now_ns() < deadline);
    return false;
}

// n_sleeping is raised before the kernel compares epoch with seen, and the caller reads it after it has moved
// epoch on, all in one sequentially consistent order: one of the two notices the other.
static void wait_for_dispatch(thread_pool *pool, unsigned seen) {
    if (spin_while_equal(&pool->epoch, seen, pool->spin_ns)) return;
    atomic_fetch_add(&pool->n_sleeping, 1);
    while (atomic_load(&pool->epoch) == seen) futex_wait(&pool->epoch, seen);
    atomic_fetch_sub(&pool->n_sleeping, 1);
}

// The same handshake the other way round, with caller_sleeping as the flag.
static void wait_for_workers(thread_pool *pool) {
    unsigned n_busy;
    int64_t deadline = pool->spin_ns ? now_ns() + pool->spin_ns : 0;
    while ((n_busy = atomic_load_explicit(&pool->n_busy, memory_order_acquire)) != 0) {
        int64_t left = pool->spin_ns ? deadline - now_ns() : 0;
        if (left > 0) {
            spin_while_equal(&pool->n_busy, n_busy, left);
            continue;
        }
        atomic_store(&pool->caller_sleeping, 1);
        n_busy = atomic_load(&pool->n_busy);
        if (n_busy != 0) futex_wait(&pool->n_busy, n_busy);
        atomic_store(&pool->caller_sleeping, 0);
    }
}

static void *worker_main(void *start_argument) {
    worker_start start = *(worker_start *)start_argument;
    free(start_argument);
    thread_pool *pool = start.pool;
    for (unsigned seen = 0;; seen++) {
        wait_for_dispatch(pool, seen);
        if (pool->stop) return NULL;
        pool->task(pool->argument, start.worker, pool->n_threads);
        // The last one wakes the caller. The pool cannot be freed under it: threads_free joins.
        if (atomic_fetch_sub(&pool->n_busy, 1) == 1 && atomic_load(&pool->caller_sleeping)) {
            futex_wake(&pool->n_busy, 1);
        }
    }
}

// Publishes task, argument and stop to the workers.
static void dispatch(thread_pool *pool) {
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->n_sleeping) != 0) futex_wake(&pool->epoch, INT_MAX);
}

static int start_workers(thread_pool *pool, flute_error *err) {
    // Signals belong to the program's own threads: handlers of a tool then never run on a worker.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = FLUTE_OK;
    while (code == FLUTE_OK && pool->n_started < pool->n_threads - 1) {
        worker_start *start = malloc(sizeof *start);
        if (!start) {
            code = fail_memory(err, sizeof *start, "a worker thread");
            break;
        }
        *start = (worker_start){.pool = pool, .worker = pool->n_started + 1};
        int errnum = pthread_create(&pool->threads[pool->n_started], NULL, worker_main, start);
        if (errnum == 0) {
            pool->n_started++;
        } else {
            free(start);
            code = fail(err, FLUTE_ENOMEM,
                        "cannot start thread %d of %d (%s); use fewer threads or raise the limit (ulimit -u)",
                        pool->n_started + 2, pool->n_threads, strerror(errnum));
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

thread_pool *threads_create(int n_threads, flute_error *err) {
    int n_available = threads_available();
    if (n_threads == 0) n_threads = n_available < MAX_THREADS ? n_available : MAX_THREADS;
    if (n_threads < 0 || n_threads > MAX_THREADS) {
        fail(err, FLUTE_EINVAL, "%d threads; give a number from 1 to %d, or 0 for one per processor",
             n_threads, MAX_THREADS);
        return NULL;
    }
    thread_pool *pool = aligned_alloc(CACHE_LINE, sizeof *pool);
    if (!pool) {
        fail_memory(err, sizeof *pool, "a thread pool");
        return NULL;
    }
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->callers, NULL);
    pool->n_threads = n_threads;
    pool->spin_ns = n_threads <= n_available ? SPIN_NS : 0;
    pool->threads = calloc((size_t)n_threads, sizeof *pool->threads);
    if (!pool->threads) {
        fail_memory(err, (size_t)n_threads * sizeof *pool->threads, "a thread pool");
        goto error;
    }
    if (start_workers(pool, err) != FLUTE_OK) goto error;
    return pool;

error:
    threads_free(pool);
    return NULL;
}

void threads_free(thread_pool *pool) {
    if (!pool) return;
    pool->stop = true;
    dispatch(pool);
    for (int i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    free(pool->threads);
    pthread_mutex_destroy(&pool->callers);
    free(pool);
}

int threads_count(const thread_pool *pool) {
    return pool ? pool->n_threads : 1;
}

void threads_run(thread_pool *pool, threads_task *task, void *argument) {
    if (!pool) {
        task(argument, 0, 1);
        return;
    }
    pthread_mutex_lock(&pool->callers);
    if (pool->n_threads > 1) {
        pool->task = task;
        pool->argument = argument;
        atomic_store_explicit(&pool->n_busy, (unsigned)pool->n_threads - 1, memory_order_relaxed);
        dispatch(pool);
    }
    task(argument, 0, pool->n_threads);
    if (pool->n_threads > 1) wait_for_workers(pool);
    pthread_mutex_unlock(&pool->callers);
}

typedef struct chunked_loop {
    alignas(CACHE_LINE) atomic_llong next; // index of the next chunk that nobody has taken
    alignas(CACHE_LINE) int64_t n;
    int64_t grain;
    int64_t n_chunks;
    threads_chunk *chunk;
    void *argument;
} chunked_loop;

// Counting chunks rather than elements keeps begin below n: no overflow near INT64_MAX.
static void take_chunks(void *argument, int worker, int n_workers) {
    (void)n_workers;
    chunked_loop *loop = argument;
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&loop->next, 1, memory_order_relaxed);
        if (index >= loop->n_chunks) return;
        int64_t begin = index * loop->grain;
        int64_t end = loop->n - begin > loop->grain ? begin + loop->grain : loop->n;
        loop->chunk(loop->argument, begin, end, worker);
    }
}

void threads_for(thread_pool *pool, int64_t n, int64_t grain, threads_chunk *chunk, void *argument) {
    assert(grain > 0);
    if (n <= 0) return;
    chunked_loop loop = {.n = n,
                         .grain = grain,
                         .n_chunks = n / grain + (n % grain != 0),
                         .chunk = chunk,
                         .argument = argument};
    if (pool && loop.n_chunks == 1) { // not worth a dispatch, but still one caller at a time
        pthread_mutex_lock(&pool->callers);
        chunk(argument, 0, n, 0);
        pthread_mutex_unlock(&pool->callers);
        return;
    }
    threads_run(pool, take_chunks, &loop);
}
