// The KV cache of a model: one pool of fixed-size blocks of tokens, from which its sequences draw. A sequence
// maps its tokens to blocks by a table, so that sequences of any length sit side by side in one forward step,
// and two sequences may share the blocks of a common prefix (reference counts, copied on write).
//
// Every sequence reserves room for its whole context when it is made: afterwards it never runs out of blocks
// in the middle of a text. The caller serializes all calls on one cache and its sequences.
#ifndef FLUTE_KV_CACHE_H
#define FLUTE_KV_CACHE_H

#include "kernels/kernels.h"

// 32 tokens: at most 31 are wasted per sequence, and a table of 128 Ki tokens is 16 KiB.
enum { KV_BLOCK_TOKENS = 32 };

typedef struct kv_cache {
    backend *be;
    kernel_dims dims;
    kv_pool pool;         // n_blocks == 0 before the first reservation
    int32_t *references;  // (pool.n_blocks) sequences that hold the block
    int32_t *free_blocks; // (n_free) a stack
    int n_free;
    int64_t n_reserved;      // blocks promised to sequences, at most pool.n_blocks
    const struct lead *lead; // tells the other ranks; NULL: there are none
} kv_cache;

typedef struct kv_sequence {
    kv_cache *cache;
    int32_t *blocks; // (max_blocks) the table, n_blocks of it in use
    int n_blocks, max_blocks;
    int length;  // tokens
    int context; // most tokens
} kv_sequence;

// be must outlive the cache. dims: max_rows and max_logits do not matter.
void kv_cache_init(kv_cache *cache, backend *be, const kernel_dims *dims);
void kv_cache_free(kv_cache *cache); // accepts a zeroed one; its sequences must be gone

// The cache of a rank that follows: its pool becomes n_blocks large, blocks: (n) keep what they hold.
int kv_cache_follow_grow(kv_cache *cache, int n_blocks, const int32_t *blocks, int n, flute_error *err);

// Makes an empty sequence of at most context ≥ 1 tokens and grows the pool where that is needed: blocks in
// use move along and keep their numbers. available: bytes of memory that the pool may take, all of it.
// FLUTE_ENOMEM says how many tokens would fit.
int kv_sequence_create(kv_sequence *sequence, kv_cache *cache, int context, uint64_t available,
                       flute_error *err);
void kv_sequence_free(kv_sequence *sequence); // accepts a zeroed one

// Makes room for n more tokens and counts them; length + n ≤ context. The last block is private afterwards.
void kv_sequence_append(kv_sequence *sequence, int n);
// Keeps the first length tokens, 0 ≤ length ≤ sequence->length.
void kv_sequence_truncate(kv_sequence *sequence, int length);
// Makes an empty sequence hold the first length tokens of another one of the same cache by sharing blocks.
void kv_sequence_share(kv_sequence *sequence, const kv_sequence *from, int length);

#endif
