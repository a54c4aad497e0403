#include "kernels/batch.h"

#include "engine/base/fail.h"

// Every block that attention of this row will read, unless the row before it has been checked for them.
static int check_blocks(const kernel_batch *batch, int row, const kv_pool *pool, flute_error *err) {
    const int32_t sequence = batch->sequences[row], position = batch->positions[row];
    const int32_t *table = batch->block_tables + (int64_t)sequence * batch->max_blocks;
    const int last = position / pool->block_tokens;
    const bool first_row = row == 0 || batch->sequences[row - 1] != sequence;
    for (int i = first_row ? 0 : last; i <= last; i++)
        if (table[i] < 0 || table[i] >= pool->n_blocks)
            return fail(err, FLUTE_ERANGE, "position %d of sequence %d has no block in the KV cache",
                        i * pool->block_tokens, (int)sequence);
    return FLUTE_OK;
}

int kernel_batch_check(const kernel_batch *batch, const kernel_dims *dims, const kv_pool *pool,
                       flute_error *err) {
    if (batch->n_rows > dims->max_rows || batch->n_logits > dims->max_logits)
        return fail(err, FLUTE_ERANGE, "%d rows and %d logits in a step planned for %d and %d", batch->n_rows,
                    batch->n_logits, dims->max_rows, dims->max_logits);
    for (int row = 0; row < batch->n_rows; row++) {
        if (batch->ids[row] < 0 || batch->ids[row] >= dims->n_vocab)
            return fail(err, FLUTE_ERANGE, "token id %d is outside the vocabulary of %d tokens",
                        (int)batch->ids[row], dims->n_vocab);
        if (batch->sequences[row] < 0 || batch->sequences[row] >= batch->n_sequences)
            return fail(err, FLUTE_ERANGE, "row %d names sequence %d of %d", row, (int)batch->sequences[row],
                        batch->n_sequences);
        if (batch->positions[row] < 0 || batch->positions[row] / pool->block_tokens >= batch->max_blocks)
            return fail(err, FLUTE_ECONTEXT, "position %d is outside the %d blocks of its sequence",
                        (int)batch->positions[row], batch->max_blocks);
        if (check_blocks(batch, row, pool, err)) return err ? err->code : FLUTE_ERANGE;
    }
    return FLUTE_OK;
}
