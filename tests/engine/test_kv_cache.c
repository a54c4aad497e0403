// The block pool and its tables, with the reference backend's memory underneath.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "engine/kv_cache.h"

static const kernel_dims dims = {.hidden = 64,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 32,
                                 .n_ff = 64,
                                 .n_vocab = 32,
                                 .n_layers = 2,
                                 .max_rows = 1,
                                 .max_logits = 1};
static const uint64_t plenty = 1ull << 30;

typedef struct fixture {
    backend *be;
    kv_cache cache;
} fixture;

static int setup(void **state) {
    static fixture f;
    flute_error err;
    memset(&f, 0, sizeof f);
    if (backend_create_ref(NULL, &f.be, &err)) return -1;
    kv_cache_init(&f.cache, f.be, &dims);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    kv_cache_free(&f->cache);
    f->be->ops->free(f->be);
    return 0;
}

static kv_sequence create(kv_cache *cache, int context) {
    kv_sequence sequence;
    flute_error err = {0};
    if (kv_sequence_create(&sequence, cache, context, plenty, &err)) fail_msg("%s", err.message);
    return sequence;
}

static void test_blocks_come_and_go(void **state) {
    kv_cache *cache = &((fixture *)*state)->cache;
    kv_sequence a = create(cache, 100); // 4 blocks of 32
    assert_int_equal(a.max_blocks, 4);
    assert_int_equal(cache->pool.n_blocks, 4);
    assert_int_equal(cache->n_free, 4);
    kv_sequence_append(&a, 1);
    assert_int_equal(a.n_blocks, 1);
    kv_sequence_append(&a, 31);
    assert_int_equal(a.n_blocks, 1);
    kv_sequence_append(&a, 1);
    assert_int_equal(a.n_blocks, 2);
    kv_sequence_append(&a, 67);
    assert_int_equal(a.n_blocks, 4);
    assert_int_equal(cache->n_free, 0);
    kv_sequence_truncate(&a, 64);
    assert_int_equal(a.n_blocks, 2);
    assert_int_equal(cache->n_free, 2);
    kv_sequence_truncate(&a, 0);
    assert_int_equal(cache->n_free, 4);
    kv_sequence_free(&a);
    assert_int_equal(cache->n_reserved, 0);
}

static void test_every_sequence_can_fill_its_context(void **state) {
    kv_cache *cache = &((fixture *)*state)->cache;
    enum { N = 5 };
    kv_sequence sequences[N];
    for (int i = 0; i < N; i++) { // the pool grows while earlier sequences are full
        sequences[i] = create(cache, 33 + 32 * i);
        kv_sequence_append(&sequences[i], sequences[i].context);
    }
    char taken[64] = {0};
    for (int i = 0; i < N; i++)
        for (int b = 0; b < sequences[i].n_blocks; b++) {
            const int block = sequences[i].blocks[b];
            assert_in_range(block, 0, cache->pool.n_blocks - 1);
            assert_false(taken[block]);
            taken[block] = 1;
        }
    for (int i = 0; i < N; i++) kv_sequence_free(&sequences[i]);
    assert_int_equal(cache->n_free, cache->pool.n_blocks);
    // A later sequence uses what is there.
    const int n_blocks = cache->pool.n_blocks;
    kv_sequence again = create(cache, 32 * n_blocks);
    assert_int_equal(cache->pool.n_blocks, n_blocks);
    kv_sequence_free(&again);
}

static void test_shared_blocks_are_copied_on_write(void **state) {
    kv_cache *cache = &((fixture *)*state)->cache;
    kv_sequence a = create(cache, 96), b = create(cache, 96), c = create(cache, 96);
    kv_sequence_append(&a, 40);
    kv_sequence_share(&b, &a, 40);
    kv_sequence_share(&c, &a, 32);
    assert_int_equal(b.length, 40);
    assert_int_equal(c.n_blocks, 1);
    assert_int_equal(b.blocks[1], a.blocks[1]);
    assert_int_equal(cache->references[a.blocks[0]], 3);
    assert_int_equal(cache->references[a.blocks[1]], 2);

    kv_sequence_append(&b, 1); // writes into the shared last block: gets its own
    assert_int_not_equal(b.blocks[1], a.blocks[1]);
    assert_int_equal(b.blocks[0], a.blocks[0]);
    kv_sequence_append(&c, 1); // starts a new block: nothing to copy
    assert_int_equal(cache->references[c.blocks[1]], 1);
    kv_sequence_append(&a, 1); // its last block is its own again
    assert_int_equal(cache->references[a.blocks[1]], 1);

    // Cutting back into a shared block and writing there leaves the others alone.
    const int shared = a.blocks[0];
    kv_sequence_truncate(&a, 10);
    kv_sequence_append(&a, 5);
    assert_int_not_equal(a.blocks[0], shared);
    assert_int_equal(b.blocks[0], shared);
    assert_int_equal(cache->references[shared], 2);

    // All three fill their contexts.
    kv_sequence_append(&a, 96 - a.length);
    kv_sequence_append(&b, 96 - b.length);
    kv_sequence_append(&c, 96 - c.length);
    kv_sequence_free(&a);
    kv_sequence_free(&b);
    kv_sequence_free(&c);
    assert_int_equal(cache->n_free, cache->pool.n_blocks);
}

static void test_memory_is_refused_with_what_fits(void **state) {
    kv_cache *cache = &((fixture *)*state)->cache;
    backend *be = cache->be;
    const uint64_t available = be->ops->kv_bytes(be, &dims, 10 * KV_BLOCK_TOKENS);
    kv_sequence a, b;
    flute_error err = {0};
    assert_int_equal(kv_sequence_create(&a, cache, 10 * KV_BLOCK_TOKENS + 1, available, &err), FLUTE_ENOMEM);
    assert_non_null(strstr(err.message, "320 tokens would fit"));
    assert_int_equal(cache->pool.n_blocks, 0);
    assert_int_equal(kv_sequence_create(&a, cache, 7 * KV_BLOCK_TOKENS, available, &err), FLUTE_OK);
    assert_int_equal(kv_sequence_create(&b, cache, 4 * KV_BLOCK_TOKENS, available, &err), FLUTE_ENOMEM);
    assert_non_null(strstr(err.message, " 96 tokens would fit"));
    assert_int_equal(kv_sequence_create(&b, cache, 3 * KV_BLOCK_TOKENS, available, &err), FLUTE_OK);
    kv_sequence_free(&a);
    kv_sequence_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_blocks_come_and_go, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_sequence_can_fill_its_context, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shared_blocks_are_copied_on_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_is_refused_with_what_fits, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
