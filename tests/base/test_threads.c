// The thread pool; a program of its own so that it runs under ThreadSanitizer (tools/check --sanitize).
#include "tests/base/helper.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/threads.h"

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static thread_pool *pool_create(int n_threads) {
    flute_error err = {0};
    thread_pool *pool = threads_create(n_threads, &err);
    if (!pool) fail_msg("%s", err.message);
    return pool;
}

// Plain ints on purpose: the pool alone must order these writes with the caller's reads.
typedef struct visit {
    int count[64];
    int n_workers;
} visit;

static void visit_task(void *argument, int worker, int n_workers) {
    visit *v = argument;
    v->count[worker]++;
    if (worker == 0) v->n_workers = n_workers;
}

static void test_every_worker_runs_once(void **state) {
    (void)state;
    for (int n = 1; n <= 5; n++) {
        thread_pool *pool = pool_create(n);
        assert_int_equal(threads_count(pool), n);
        visit v = {0};
        for (int round = 1; round <= 500; round++) {
            threads_run(pool, visit_task, &v);
            assert_int_equal(v.n_workers, n);
            for (int i = 0; i < 64; i++) assert_int_equal(v.count[i], i < n ? round : 0);
            // Now and then longer than the workers spin, so that they sleep and are woken.
            if (round % 100 == 0) usleep(2000);
        }
        threads_free(pool);
    }
}

static void slow_task(void *argument, int worker, int n_workers) {
    visit *v = argument;
    // Longer than the caller spins: it sleeps and the last worker wakes it.
    if (worker == n_workers - 1) usleep(2000);
    v->count[worker]++;
}

static void test_caller_sleeps(void **state) {
    (void)state;
    thread_pool *pool = pool_create(3);
    visit v = {0};
    for (int round = 1; round <= 50; round++) {
        threads_run(pool, slow_task, &v);
        for (int i = 0; i < 3; i++) assert_int_equal(v.count[i], round);
    }
    threads_free(pool);
}

static void test_no_pool(void **state) {
    (void)state;
    visit v = {0};
    threads_run(NULL, visit_task, &v);
    assert_int_equal(v.count[0], 1);
    assert_int_equal(v.n_workers, 1);
    assert_int_equal(threads_count(NULL), 1);
    threads_free(NULL);
}

static void test_create_refusals(void **state) {
    (void)state;
    flute_error err = {0};
    assert_null(threads_create(-1, &err));
    assert_int_equal(err.code, FLUTE_EINVAL);
    assert_says(err.message, "-1", "1 to");
    assert_null(threads_create(INT_MAX, &err));
    assert_null(threads_create(INT_MAX, NULL));
    thread_pool *pool = pool_create(0);
    assert_true(threads_count(pool) >= 1);
    threads_free(pool);
}

typedef struct coverage {
    unsigned char *seen;
    int64_t n;
    int64_t grain;
    int n_workers;
    atomic_int n_bad;
    atomic_llong n_chunks;
} coverage;

static void cover(void *argument, int64_t begin, int64_t end, int worker) {
    coverage *c = argument;
    bool whole = end - begin == c->grain || end == c->n;
    if (begin < 0 || end > c->n || begin >= end || begin % c->grain || !whole || worker < 0 ||
        worker >= c->n_workers) {
        atomic_fetch_add(&c->n_bad, 1);
        return;
    }
    if (c->seen) {
        for (int64_t i = begin; i < end; i++) c->seen[i]++;
    }
    atomic_fetch_add(&c->n_chunks, 1);
}

static void test_for_covers_once(void **state) {
    (void)state;
    const int64_t sizes[] = {0, 1, 2, 7, 64, 1000, 4097}, grains[] = {1, 2, 3, 64, 1000, 5000};
    for (int n_threads = 0; n_threads <= 3; n_threads++) { // 0: no pool
        thread_pool *pool = n_threads ? pool_create(n_threads) : NULL;
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (size_t g = 0; g < sizeof grains / sizeof *grains; g++) {
                unsigned char seen[4097] = {0};
                coverage c = {
                    .seen = seen, .n = sizes[s], .grain = grains[g], .n_workers = threads_count(pool)};
                threads_for(pool, c.n, c.grain, cover, &c);
                assert_int_equal(c.n_bad, 0);
                assert_int_equal(c.n_chunks, (c.n + c.grain - 1) / c.grain);
                for (int64_t i = 0; i < 4097; i++) assert_int_equal(seen[i], i < c.n);
            }
        }
        threads_free(pool);
    }
}

static void test_for_huge_range(void **state) {
    (void)state;
    thread_pool *pool = pool_create(3);
    coverage c = {.n = INT64_MAX, .grain = INT64_MAX / 5, .n_workers = 3};
    threads_for(pool, c.n, c.grain, cover, &c);
    assert_int_equal(c.n_bad, 0);
    assert_int_equal(c.n_chunks, 6);
    threads_for(pool, -5, 1, cover, &c);
    assert_int_equal(c.n_chunks, 6);
    threads_free(pool);
}

typedef struct sum {
    const int32_t *values;
    int64_t partial[16]; // per worker: no sharing, plain writes
} sum;

static void sum_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    sum *s = argument;
    for (int64_t i = begin; i < end; i++) s->partial[worker] += s->values[i];
}

static void test_sum(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    int32_t *values = malloc(N * sizeof *values);
    uint64_t seed = 7;
    int64_t expected = 0;
    for (int i = 0; i < N; i++) expected += values[i] = (int32_t)random_next(&seed);
    thread_pool *pool = pool_create(4);
    for (int round = 0; round < 10; round++) {
        sum s = {.values = values};
        threads_for(pool, N, 1000 + round, sum_chunk, &s);
        int64_t total = 0;
        for (int i = 0; i < 16; i++) total += s.partial[i];
        assert_true(total == expected);
    }
    threads_free(pool);
    free(values);
}

// Each dispatch doubles what the one before left: any write that is not seen breaks the chain.
static void mix_task(void *argument, int worker, int n_workers) {
    uint32_t *cells = argument;
    (void)n_workers;
    cells[worker * 2] = cells[worker * 2 + 1] * 2654435761u + 1;
}

static void test_visibility_over_many_dispatches(void **state) {
    (void)state;
    enum { WORKERS = 3 };
    thread_pool *pool = pool_create(WORKERS);
    uint32_t cells[2 * WORKERS] = {0}, expected = 0;
    for (int round = 0; round < 20000; round++) {
        threads_run(pool, mix_task, cells);
        expected = expected * 2654435761u + 1;
        for (int w = 0; w < WORKERS; w++) {
            assert_int_equal(cells[w * 2], expected);
            cells[w * 2 + 1] = expected;
        }
    }
    threads_free(pool);
}

typedef struct client {
    thread_pool *pool;
    int *shared; // one plain counter for all clients: only serialization keeps it right
    int n_rounds;
} client;

static void count_on_worker_0(void *argument, int worker, int n_workers) {
    (void)n_workers;
    client *c = argument;
    if (worker == 0) ++*c->shared;
}

static void count_chunk(void *argument, int64_t begin, int64_t end, int worker) {
    (void)begin, (void)end, (void)worker;
    ++*((client *)argument)->shared;
}

static void *client_main(void *argument) {
    client *c = argument;
    for (int i = 0; i < c->n_rounds; i++) {
        threads_run(c->pool, count_on_worker_0, c);
        threads_for(c->pool, 1, 1, count_chunk, c); // a single chunk is not dispatched, but serialized
    }
    return NULL;
}

static void test_several_callers(void **state) {
    (void)state;
    enum { CLIENTS = 4, ROUNDS = 500 };
    thread_pool *pool = pool_create(2);
    int shared = 0;
    client c = {.pool = pool, .shared = &shared, .n_rounds = ROUNDS};
    pthread_t clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) assert_int_equal(pthread_create(&clients[i], NULL, client_main, &c), 0);
    for (int i = 0; i < CLIENTS; i++) pthread_join(clients[i], NULL);
    assert_int_equal(shared, 2 * CLIENTS * ROUNDS);
    threads_free(pool);
}

typedef struct nest {
    thread_pool *inner[3];
    visit visits[3];
} nest;

static void nest_task(void *argument, int worker, int n_workers) {
    (void)n_workers;
    nest *n = argument;
    for (int i = 0; i < 20; i++) threads_run(n->inner[worker], visit_task, &n->visits[worker]);
}

static void test_pools_inside_pools(void **state) {
    (void)state;
    thread_pool *outer = pool_create(3);
    nest n = {0};
    for (int i = 0; i < 3; i++) n.inner[i] = pool_create(2);
    threads_run(outer, nest_task, &n);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(n.visits[i].count[0], 20);
        assert_int_equal(n.visits[i].count[1], 20);
        threads_free(n.inner[i]);
    }
    threads_free(outer);
}

static atomic_int n_signals_on_workers;
static pthread_t main_thread;

static void note_thread(int signal_number) {
    (void)signal_number;
    if (!pthread_equal(pthread_self(), main_thread)) atomic_fetch_add(&n_signals_on_workers, 1);
}

static void mask_task(void *argument, int worker, int n_workers) {
    (void)n_workers;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    ((int *)argument)[worker] = sigismember(&mask, SIGINT);
}

static void test_signals_stay_away(void **state) {
    (void)state;
    main_thread = pthread_self();
    thread_pool *pool = pool_create(3);
    int blocked[3] = {-1, -1, -1};
    threads_run(pool, mask_task, blocked);
    assert_int_equal(blocked[0], 0); // the caller's own mask is as it was
    assert_int_equal(blocked[1], 1);
    assert_int_equal(blocked[2], 1);
    signal(SIGINT, note_thread);
    for (int i = 0; i < 100; i++) kill(getpid(), SIGINT);
    signal(SIGINT, SIG_DFL);
    assert_int_equal(n_signals_on_workers, 0);
    threads_free(pool);
}

static void nothing(void *argument, int worker, int n_workers) {
    (void)argument, (void)worker, (void)n_workers;
}

static int compare_times(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// Median time of an empty dispatch.
static int64_t dispatch_ns(int n_threads, int n_rounds) {
    thread_pool *pool = pool_create(n_threads);
    int64_t *times = malloc((size_t)n_rounds * sizeof *times);
    for (int i = 0; i < n_rounds; i++) {
        int64_t start = now_ns();
        threads_run(pool, nothing, NULL);
        times[i] = now_ns() - start;
    }
    qsort(times, (size_t)n_rounds, sizeof *times, compare_times);
    int64_t median = times[n_rounds / 2];
    print_message("# %d threads: a dispatch takes %.2f us (median), 90%% below %.2f us\n", n_threads,
                  (double)median / 1e3, (double)times[n_rounds / 10 * 9] / 1e3);
    free(times);
    threads_free(pool);
    return median;
}

// Pure spinning takes 14 ms a dispatch here, as the threads that hold the processors wait for those that do
// not. The bound leaves room for a machine that others use too.
static void test_oversubscription(void **state) {
    (void)state;
    int n = threads_available();
    int n_threads = n <= 16 ? 4 * n : 64;
    dispatch_ns(n < 2 ? 2 : n, 20000);
    assert_true(dispatch_ns(n_threads, 500) < (int64_t)n_threads * 500000);
}

// An idle pool sleeps.
static void test_idle_pool_uses_no_time(void **state) {
    (void)state;
    thread_pool *pool = pool_create(2);
    threads_run(pool, nothing, NULL);
    usleep(20000); // the spin is over
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    usleep(200000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    int64_t used = (after.tv_sec - before.tv_sec) * (int64_t)1000000000 + after.tv_nsec - before.tv_nsec;
    assert_true(used < 50000000);
    threads_free(pool);
}

static void put(const char *folder, const char *name, const char *text) {
    char *path = path_join(folder, name);
    write_text(path, text);
    free(path);
}

static void make(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    assert_int_equal(mkdir(path, 0700), 0);
    free(path);
}

static int quota_of(const char *folder, const char *membership) {
    put(folder, "membership", membership);
    char *path = path_join(folder, "membership");
    int n = threads_quota(path, folder);
    free(path);
    return n;
}

static void test_quota(void **state) {
    (void)state;
    char *folder = folder_create();
    assert_int_equal(threads_quota("/nonexistent", folder), 0);
    make(folder, "a");
    make(folder, "a/b");
    make(folder, "cpu");
    make(folder, "cpu/g");
    assert_int_equal(quota_of(folder, "0::/a/b\n"), 0); // no cpu.max anywhere
    put(folder, "a/b/cpu.max", "max 100000\n");
    assert_int_equal(quota_of(folder, "0::/a/b\n"), 0);
    put(folder, "a/b/cpu.max", "350000 100000\n");
    assert_int_equal(quota_of(folder, "0::/a/b\n"), 3); // rounded down
    put(folder, "a/b/cpu.max", "50000 100000\n");
    assert_int_equal(quota_of(folder, "0::/a/b\n"), 1); // but at least one
    put(folder, "a/b/cpu.max", "800000 100000\n");
    put(folder, "a/cpu.max", "200000 100000\n");
    assert_int_equal(quota_of(folder, "0::/a/b\n"), 2); // an ancestor's limit binds
    put(folder, "a/cpu.max", "max 100000\n");
    put(folder, "cpu.max", "500000 100000\n");
    assert_int_equal(quota_of(folder, "0::/not/visible/here\n"), 5); // a container sees only the root
    assert_int_equal(quota_of(folder, "0::/\n"), 5);
    put(folder, "cpu.max", "nonsense\n");
    assert_int_equal(quota_of(folder, "0::/\n"), 0);
    put(folder, "cpu/g/cpu.cfs_quota_us", "-1\n");
    put(folder, "cpu/g/cpu.cfs_period_us", "100000\n");
    assert_int_equal(quota_of(folder, "8:pids:/g\n4:cpuset:/g\n1:cpu,cpuacct:/g\n"), 0);
    put(folder, "cpu/g/cpu.cfs_quota_us", "600000\n");
    assert_int_equal(quota_of(folder, "8:pids:/g\n4:cpuset:/g\n1:cpuacct,cpu:/g\n"), 6);
    assert_int_equal(quota_of(folder, "8:pids:/g\n4:cpuset:/g\n"), 0);
    const char *entries[] = {"cpu/g/cpu.cfs_quota_us",
                             "cpu/g/cpu.cfs_period_us",
                             "cpu/g",
                             "cpu",
                             "a/b/cpu.max",
                             "a/b",
                             "a/cpu.max",
                             "a",
                             "cpu.max",
                             "membership"};
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        char *path = path_join(folder, entries[i]);
        assert_int_equal(remove(path), 0);
        free(path);
    }
    assert_int_equal(rmdir(folder), 0);
    free(folder);
    assert_true(threads_available() >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_worker_runs_once),
        cmocka_unit_test(test_caller_sleeps),
        cmocka_unit_test(test_no_pool),
        cmocka_unit_test(test_create_refusals),
        cmocka_unit_test(test_for_covers_once),
        cmocka_unit_test(test_for_huge_range),
        cmocka_unit_test(test_sum),
        cmocka_unit_test(test_visibility_over_many_dispatches),
        cmocka_unit_test(test_several_callers),
        cmocka_unit_test(test_pools_inside_pools),
        cmocka_unit_test(test_signals_stay_away),
        cmocka_unit_test(test_oversubscription),
        cmocka_unit_test(test_idle_pool_uses_no_time),
        cmocka_unit_test(test_quota),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
