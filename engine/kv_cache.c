#include "engine/kv_cache.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"
#include "engine/lead.h"

static int blocks_of(int64_t n_tokens) {
    return (int)((n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS);
}

void kv_cache_init(kv_cache *cache, backend *be, const kernel_dims *dims) {
    *cache = (kv_cache){.be = be, .dims = *dims, .pool.block_tokens = KV_BLOCK_TOKENS};
}

void kv_cache_free(kv_cache *cache) {
    assert(cache->n_reserved == 0);
    if (cache->pool.n_blocks) cache->be->ops->kv_free(cache->be, &cache->pool);
    free(cache->references);
    free(cache->free_blocks);
    *cache = (kv_cache){0};
}

static int refuse(const kv_cache *cache, int context, uint64_t bytes, uint64_t available, flute_error *err) {
    const uint64_t per_block = cache->be->ops->kv_bytes(cache->be, &cache->dims, KV_BLOCK_TOKENS);
    const int64_t blocks = (int64_t)(available / per_block) - cache->n_reserved;
    const int64_t fits = blocks > 0 ? blocks * KV_BLOCK_TOKENS : 0;
    return fail(
        err, FLUTE_ENOMEM,
        "a context of %d tokens needs a KV cache of %.1f MiB, but %.1f MiB are free: %lld tokens would "
        "fit",
        context, (double)bytes / 0x1p20, (double)available / 0x1p20, (long long)fits);
}

int kv_cache_follow_grow(kv_cache *cache, int n_blocks, const int32_t *blocks, int n, flute_error *err) {
    const backend_ops *ops = cache->be->ops;
    kv_pool pool = {0};
    int code = ops->kv_create(cache->be, &cache->dims, KV_BLOCK_TOKENS, n_blocks, &pool, err);
    if (code) return code;
    for (int i = 0; i < n; i++)
        ops->kv_copy_block(cache->be, &cache->dims, &cache->pool, blocks[i], &pool, blocks[i]);
    if (cache->pool.n_blocks) ops->kv_free(cache->be, &cache->pool);
    cache->pool = pool;
    return FLUTE_OK;
}

// Moves the cache to a pool of n_blocks, more than it has.
static int grow(kv_cache *cache, int n_blocks, flute_error *err) {
    int32_t *references = realloc(cache->references, (size_t)n_blocks * sizeof *references);
    if (references) cache->references = references;
    int32_t *free_blocks = realloc(cache->free_blocks, (size_t)n_blocks * sizeof *free_blocks);
    if (free_blocks) cache->free_blocks = free_blocks;
    if (!references || !free_blocks)
        return fail_memory(err, 2 * (size_t)n_blocks * sizeof *references, "the blocks of the KV cache");

    // Those in use are listed behind the free ones, where the new ones will stand.
    const int old_blocks = cache->pool.n_blocks;
    int32_t *used = free_blocks + cache->n_free;
    int n_used = 0;
    for (int block = 0; block < old_blocks; block++)
        if (references[block]) used[n_used++] = block;
    int code = lead_grow(cache->lead, n_blocks, used, n_used, err);
    if (!code) code = kv_cache_follow_grow(cache, n_blocks, used, n_used, err);
    if (code) return code;
    // Highest first: a stack then hands out low numbers first, and untouched memory stays untouched.
    memmove(free_blocks + (n_blocks - old_blocks), free_blocks, (size_t)cache->n_free * sizeof *free_blocks);
    for (int i = 0; i < n_blocks - old_blocks; i++) {
        free_blocks[i] = n_blocks - 1 - i;
        references[old_blocks + i] = 0;
    }
    cache->n_free += n_blocks - old_blocks;
    return FLUTE_OK;
}

static int reserve(kv_cache *cache, int context, uint64_t available, flute_error *err) {
    const int64_t wanted = cache->n_reserved + blocks_of(context);
    if (wanted > cache->pool.n_blocks) {
        const int64_t tokens = wanted * KV_BLOCK_TOKENS;
        const uint64_t bytes = cache->be->ops->kv_bytes(cache->be, &cache->dims, tokens);
        if (wanted > INT_MAX / KV_BLOCK_TOKENS || bytes > available)
            return refuse(cache, context, cache->be->ops->kv_bytes(cache->be, &cache->dims, context),
                          available, err);
        int code = grow(cache, (int)wanted, err);
        if (code) return code;
    }
    cache->n_reserved = wanted;
    return FLUTE_OK;
}

int kv_sequence_create(kv_sequence *sequence, kv_cache *cache, int context, uint64_t available,
                       flute_error *err) {
    const int max_blocks = blocks_of(context);
    *sequence = (kv_sequence){0};
    int32_t *blocks = malloc((size_t)max_blocks * sizeof *blocks);
    if (!blocks) return fail_memory(err, (size_t)max_blocks * sizeof *blocks, "a block table");
    int code = reserve(cache, context, available, err);
    if (code) {
        free(blocks);
        return code;
    }
    *sequence = (kv_sequence){.cache = cache, .blocks = blocks, .max_blocks = max_blocks, .context = context};
    return FLUTE_OK;
}

void kv_sequence_free(kv_sequence *sequence) {
    if (!sequence->cache) return;
    kv_sequence_truncate(sequence, 0);
    sequence->cache->n_reserved -= sequence->max_blocks;
    free(sequence->blocks);
    *sequence = (kv_sequence){0};
}

static int32_t take_block(kv_cache *cache) {
    assert(cache->n_free > 0);
    const int32_t block = cache->free_blocks[--cache->n_free];
    assert(cache->references[block] == 0);
    cache->references[block] = 1;
    return block;
}

static void drop_block(kv_cache *cache, int32_t block) {
    assert(cache->references[block] > 0);
    if (--cache->references[block] == 0) cache->free_blocks[cache->n_free++] = block;
}

void kv_sequence_append(kv_sequence *sequence, int n) {
    kv_cache *cache = sequence->cache;
    assert(n >= 0 && n <= sequence->context - sequence->length);
    if (n > 0 && sequence->length % KV_BLOCK_TOKENS) {
        int32_t *last = &sequence->blocks[sequence->n_blocks - 1];
        if (cache->references[*last] > 1) {
            const int32_t own = take_block(cache);
            lead_copy_block(cache->lead, *last, own);
            cache->be->ops->kv_copy_block(cache->be, &cache->dims, &cache->pool, *last, &cache->pool, own);
            drop_block(cache, *last);
            *last = own;
        }
    }
    sequence->length += n;
    while (sequence->n_blocks < blocks_of(sequence->length))
        sequence->blocks[sequence->n_blocks++] = take_block(cache);
}

void kv_sequence_truncate(kv_sequence *sequence, int length) {
    assert(length >= 0 && length <= sequence->length);
    while (sequence->n_blocks > blocks_of(length))
        drop_block(sequence->cache, sequence->blocks[--sequence->n_blocks]);
    sequence->length = length;
}

void kv_sequence_share(kv_sequence *sequence, const kv_sequence *from, int length) {
    assert(sequence->cache == from->cache && sequence->length == 0);
    assert(length <= from->length && length <= sequence->context);
    sequence->n_blocks = blocks_of(length);
    sequence->length = length;
    for (int i = 0; i < sequence->n_blocks; i++) {
        sequence->blocks[i] = from->blocks[i];
        sequence->cache->references[from->blocks[i]]++;
    }
}
