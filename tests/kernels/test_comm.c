// The collectives among threads of one process: sums in the order of ranks, whatever the timing; pieces
// larger than the slots; and the end of a wait when a rank is gone.
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/comm.h"

enum { MAX_RANKS = 8, LARGEST = 200000 }; // floats: more than three slots

typedef struct member member;
typedef int member_body(member *m); // 0: as it should be
struct member {
    comm_ticket ticket;
    int rank, size;
    comm *c;
    member_body *body;
    int result;
};

static void *member_main(void *argument) {
    member *m = argument;
    flute_error err = {0};
    m->result = comm_kind_local.join(&m->c, &m->ticket, m->rank, m->size, &err);
    if (m->result) return NULL;
    m->result = m->body(m);
    comm_free(m->c);
    return NULL;
}

static void run(int size, member_body *body) {
    member members[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    comm_ticket ticket;
    flute_error err = {0};
    assert_int_equal(comm_kind_local.ticket(&ticket, &err), FLUTE_OK);
    for (int i = 0; i < size; i++) {
        members[i] = (member){.ticket = ticket, .rank = i, .size = size, .body = body};
        assert_int_equal(pthread_create(&threads[i], NULL, member_main, &members[i]), 0);
    }
    for (int i = 0; i < size; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < size; i++) assert_int_equal(members[i].result, 0);
}

// Values whose sum depends on the order of adding.
static float value_of(int rank, size_t i) {
    return (float)((rank * 7919 + i * 104729) % 100003) * (rank % 2 ? 1e-3f : 1e4f) / (float)(rank + 1);
}

static int reduce_body(member *m) {
    static const size_t sizes[] = {1, 3, 4096, 65536, 65537, LARGEST};
    float *data = malloc(LARGEST * sizeof *data);
    int wrong = 0;
    for (size_t s = 0; data && s < sizeof sizes / sizeof *sizes && !wrong; s++) {
        for (size_t i = 0; i < sizes[s]; i++) data[i] = value_of(m->rank, i);
        if (m->rank == (int)s % m->size) usleep(2000); // someone is late
        wrong = m->c->ops->all_reduce(m->c, data, sizes[s], NULL, NULL);
        for (size_t i = 0; i < sizes[s]; i++) {
            float sum = value_of(0, i);
            for (int rank = 1; rank < m->size; rank++) sum += value_of(rank, i);
            wrong |= data[i] != sum; // to the bit
        }
    }
    wrong |= !data;
    free(data);
    return wrong;
}

static int gather_body(member *m) {
    static const size_t sizes[] = {1, 1000, 262144, 300001};
    enum { LARGEST_PART = 300001 };
    uint8_t *all = malloc((size_t)m->size * LARGEST_PART), *own = malloc(LARGEST_PART);
    int wrong = !all || !own;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes && !wrong; s++) {
        for (int in_place = 0; in_place < 2; in_place++) {
            uint8_t *from = in_place ? all + (size_t)m->rank * sizes[s] : own;
            for (size_t i = 0; i < sizes[s]; i++) from[i] = (uint8_t)(i * 3 + (size_t)m->rank);
            wrong |= m->c->ops->all_gather(m->c, from, all, sizes[s], NULL, NULL);
            for (size_t i = 0; i < sizes[s] * (size_t)m->size; i++)
                wrong |= all[i] != (uint8_t)(i % sizes[s] * 3 + i / sizes[s]);
            wrong |= m->c->ops->barrier(m->c, NULL, NULL); // the next round writes what others read
        }
    }
    free(all);
    free(own);
    return wrong;
}

static int broadcast_body(member *m) {
    enum { SIZE = 600000 };
    uint8_t *data = malloc(SIZE);
    int wrong = !data;
    for (int root = 0; root < m->size && !wrong; root++) {
        memset(data, m->rank, SIZE);
        wrong = m->c->ops->broadcast(m->c, data, SIZE, root, NULL);
        for (size_t i = 0; i < SIZE; i++) wrong |= data[i] != root;
    }
    free(data);
    return wrong;
}

static int alloc_body(member *m) {
    float *memory;
    if (m->c->ops->alloc(m->c, (void **)&memory, 64 * sizeof *memory, NULL)) return 1;
    int wrong = m->c->ops->all_reduce(m->c, memory, 64, NULL, NULL);
    for (int i = 0; i < 64; i++) wrong |= memory[i] != 0;
    m->c->ops->release(m->c, memory);
    m->c->ops->release(m->c, NULL);
    return wrong;
}

// The last rank never comes to the sum; it aborts instead.
static int abort_body(member *m) {
    float data[16] = {0};
    flute_error err = {0};
    if (m->c->ops->error(m->c, &err)) return 1;
    if (m->rank == m->size - 1) {
        usleep(50000); // the others sleep by now
        m->c->ops->abort(m->c);
    }
    const int code = m->c->ops->all_reduce(m->c, data, 16, NULL, &err);
    return !(code == FLUTE_EDEVICE && strstr(err.message, "another rank") && m->c->ops->error(m->c, NULL));
}

static void run_all(member_body *body) {
    static const int sizes[] = {1, 2, 3, 5, 8};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) run(sizes[i], body);
}

static void test_reduce(void **state) {
    (void)state;
    run_all(reduce_body);
}

static void test_gather(void **state) {
    (void)state;
    run_all(gather_body);
}

static void test_broadcast(void **state) {
    (void)state;
    run_all(broadcast_body);
}

static void test_alloc(void **state) {
    (void)state;
    run_all(alloc_body);
}

static void test_abort(void **state) {
    (void)state;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    run_all(abort_body);
    clock_gettime(CLOCK_MONOTONIC, &end);
    assert_true(end.tv_sec - begin.tv_sec < 3);
}

static void test_refusals(void **state) {
    (void)state;
    comm *c;
    comm_ticket ticket = {"/proc/1/fd/999999"};
    flute_error err = {0};
    assert_int_equal(comm_kind_local.join(&c, &ticket, 1, 2, &err), FLUTE_EDEVICE);
    assert_non_null(strstr(err.message, "/proc/1/fd/999999"));
    assert_int_equal(comm_kind_local.join(&c, &ticket, 0, 65, &err), FLUTE_EUNSUPPORTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reduce), cmocka_unit_test(test_gather), cmocka_unit_test(test_broadcast),
        cmocka_unit_test(test_alloc),  cmocka_unit_test(test_abort),  cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
