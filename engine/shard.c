#include "engine/shard.h"

#include <string.h>

// Feed-forward channels are dealt out in whole units of down_proj, so that no two ranks read the same unit:
// 11008 channels on 8 ranks are 11 or 10 units of 128. Where there are fewer units than ranks, in the eight
// channels of a panel of gate_up.
static layout_run share_channels(const arch *a, const weight *tensors, int rank, int size) {
    enum { PANEL_CHANNELS = PANEL_ROWS / 2 };
    int64_t grain = PANEL_CHANNELS;
    for (int layer = 0; layer < a->n_layers; layer++) {
        const weight *down = &tensors[arch_layer_tensor(layer, SLOT_DOWN_PROJ)];
        if (!weight_is_quantized(down->type)) continue;
        const int unit = layout_unit_cols(down->group_size);
        if (unit > grain) grain = unit;
    }
    if (a->n_ff < grain * size) grain = PANEL_CHANNELS;
    layout_run run = layout_share((a->n_ff + grain - 1) / grain, rank, size);
    run.first *= grain;
    run.n *= grain;
    if (run.n > 0 && run.first + run.n > a->n_ff) run.n = a->n_ff - run.first;
    return run;
}

static void share_heads(shard *s, const arch *a) {
    const int n_queries = a->n_heads / a->n_kv_heads;
    if (s->size <= a->n_kv_heads) {
        s->kv_heads = layout_share(a->n_kv_heads, s->rank, s->size);
        s->heads = (layout_run){s->kv_heads.first * n_queries, s->kv_heads.n * n_queries};
        return;
    }
    // Ranks [first, end) share this KV head and deal its queries out.
    const int kv_head = (int)((int64_t)s->rank * a->n_kv_heads / s->size);
    const int first = (kv_head * s->size + a->n_kv_heads - 1) / a->n_kv_heads;
    const int end = ((kv_head + 1) * s->size + a->n_kv_heads - 1) / a->n_kv_heads;
    s->heads = layout_share(n_queries, s->rank - first, end - first);
    s->heads.first += (int64_t)kv_head * n_queries;
    s->kv_heads = (layout_run){kv_head, s->heads.n > 0 ? 1 : 0};
}

void shard_init(shard *out, const arch *a, const weight *tensors, int rank, int size) {
    *out = (shard){.rank = rank, .size = size};
    share_heads(out, a);
    out->ff = share_channels(a, tensors, rank, size);
}

void shard_kernel_dims(const shard *s, const arch *a, int max_rows, int max_logits, kernel_dims *out) {
    arch_kernel_dims(a, max_rows, max_logits, out);
    out->n_heads = (int)s->heads.n;
    out->n_kv_heads = (int)s->kv_heads.n;
    out->n_ff = (int)s->ff.n;
}

// The rows of qkv: one run of whole groups; or some queries of a group, and its k and v, which stand behind
// the last query.
static int qkv_rows(const shard *s, const arch *a, layout_run rows[2]) {
    const int64_t n_queries = a->n_heads / a->n_kv_heads, head_dim = a->head_dim;
    const int64_t group = (n_queries + 2) * head_dim, base = s->kv_heads.first * group;
    if (s->heads.n == s->kv_heads.n * n_queries) {
        rows[0] = (layout_run){base, s->kv_heads.n * group};
        return 1;
    }
    const int64_t query = s->heads.first - s->kv_heads.first * n_queries;
    rows[0] = (layout_run){base + query * head_dim, s->heads.n * head_dim};
    rows[1] = (layout_run){base + n_queries * head_dim, 2 * head_dim};
    if (query + s->heads.n < n_queries) return 2;
    rows[0].n += rows[1].n;
    return 1;
}

// The rank's rows and columns of a tensor; returns the number of runs of rows.
static int part_of(const shard *s, const arch *a, int index, const weight *whole, layout_run rows[2],
                   layout_run *cols) {
    rows[0] = (layout_run){0, whole->n_rows};
    *cols = (layout_run){0, whole->n_cols};
    if (index == TENSOR_EMBEDDING || index == TENSOR_HEAD) {
        rows[0] = layout_share_rows(whole->n_rows, s->rank, s->size);
        return 1;
    }
    if (index < N_MODEL_TENSORS) return 1;
    switch ((layer_slot)((index - N_MODEL_TENSORS) % N_LAYER_SLOTS)) {
    case SLOT_QKV:
        return qkv_rows(s, a, rows);
    case SLOT_O_PROJ:
        *cols = (layout_run){s->heads.first * a->head_dim, s->heads.n * a->head_dim};
        return 1;
    case SLOT_GATE_UP:
        rows[0] = (layout_run){2 * s->ff.first, 2 * round_up(s->ff.n, PANEL_ROWS / 2)};
        return 1;
    case SLOT_DOWN_PROJ:
        *cols = s->ff;
        return 1;
    default: // norms: every rank has all of them
        return 1;
    }
}

int shard_weight(const shard *s, const arch *a, int index, const weight *whole, weight *out,
                 layout_span spans[2]) {
    layout_run rows[2], cols, covered = {0, 0};
    int n_spans = part_of(s, a, index, whole, rows, &cols);
    *out = *whole;
    out->data = NULL;
    out->size = 0;
    out->n_rows = 0;
    out->first_row = rows[0].first;
    if (rows[0].n == 0 || cols.n == 0) n_spans = 0;
    for (int i = 0; i < n_spans; i++) {
        spans[i] = layout_cut(whole, rows[i], cols, &covered);
        out->n_rows += rows[i].n;
        out->size += spans[i].bytes * (size_t)spans[i].n;
    }
    out->n_cols = covered.n;
    out->lead_cols = n_spans > 0 ? cols.first - covered.first : 0;
    if (n_spans == 1 && (spans[0].n == 1 || spans[0].bytes == spans[0].stride))
        out->data = (const uint8_t *)whole->data + spans[0].offset;
    return n_spans;
}

void shard_copy(const weight *whole, const layout_span *spans, int n_spans, void *to) {
    uint8_t *at = to;
    for (int i = 0; i < n_spans; i++) {
        const uint8_t *from = (const uint8_t *)whole->data + spans[i].offset;
        for (int64_t piece = 0; piece < spans[i].n; piece++, from += spans[i].stride, at += spans[i].bytes)
            memcpy(at, from, spans[i].bytes);
    }
}

void shard_keep(const layout_span *span, const void *chunk, size_t first, size_t size, void *whole) {
    int64_t piece = 0; // the first one that ends in the chunk or behind it
    if (first >= span->offset + span->bytes)
        piece = (int64_t)((first - span->offset - span->bytes) / span->stride) + 1;
    for (; piece < span->n; piece++) {
        size_t begin = span->offset + (size_t)piece * span->stride, end = begin + span->bytes;
        if (begin >= first + size) break;
        if (begin < first) begin = first;
        if (end > first + size) end = first + size;
        memcpy((uint8_t *)whole + begin, (const uint8_t *)chunk + (begin - first), end - begin);
    }
}
