#include "models/arch.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/fail.h"
#include "models/arch_internal.h"

// Upper bounds are several times what has been published; they keep every product of two within 64 bits and
// every allocation that a hostile file can ask for within reason.
const arch_size arch_sizes[ARCH_N_SIZES] = {
    {"n_layers", "num_hidden_layers", 1, ARCH_MAX_LAYERS, offsetof(arch, n_layers)},
    {"hidden", "hidden_size", 16, 1 << 17, offsetof(arch, hidden)},
    {"n_heads", "num_attention_heads", 1, 1024, offsetof(arch, n_heads)},
    {"n_kv_heads", "num_key_value_heads", 1, 1024, offsetof(arch, n_kv_heads)},
    {"head_dim", "head_dim", 32, 256, offsetof(arch, head_dim)},
    {"n_ff", "intermediate_size", 16, 1 << 20, offsetof(arch, n_ff)},
    {"n_vocab", "vocab_size", 2, 1 << 22, offsetof(arch, n_vocab)},
    {"max_context", "max_position_embeddings", 1, 1 << 24, offsetof(arch, max_context)},
};

const arch_scalar arch_scalars[ARCH_N_SCALARS] = {
    {"norm_eps", 0, 0.1, true, offsetof(arch, norm_eps)},
    {"norm_offset", 0, 1, false, offsetof(arch, norm_offset)},
    {"embed_scale", 0, 1e4, true, offsetof(arch, embed_scale)},
    {"q_scale", 0, 1e2, true, offsetof(arch, q_scale)},
    {"attn_softcap", 0, 1e6, false, offsetof(arch, attn_softcap)},
    {"final_softcap", 0, 1e6, false, offsetof(arch, final_softcap)},
};

// ---- Checking

static int check_numbers(const arch *a, const char *origin, flute_error *err) {
    arch copy = *a; // the accessors want it writable
    for (int i = 0; i < ARCH_N_SIZES; i++) {
        const arch_size *field = &arch_sizes[i];
        int value = *arch_size_of(&copy, field);
        if (value < field->min || value > field->max) {
            return fail(err, FLUTE_ERANGE, "%s: %s is %d; it must be %d to %d", origin, field->name, value,
                        field->min, field->max);
        }
    }
    for (int i = 0; i < ARCH_N_SCALARS; i++) {
        const arch_scalar *field = &arch_scalars[i];
        double value = *arch_scalar_of(&copy, field);
        // Written so that NaN fails.
        if (!(value >= field->min && value <= field->max) || (field->positive && value <= 0)) {
            return fail(err, FLUTE_ERANGE, "%s: %s is %g; it must be %s %g and at most %g", origin,
                        field->name, value, field->positive ? "more than" : "at least", field->min,
                        field->max);
        }
    }
    return FLUTE_OK;
}

static int check_rope(const rope *r, const char *origin, flute_error *err) {
    if (!(r->theta >= 1 && r->theta <= 1e12)) {
        return fail(err, FLUTE_ERANGE, "%s: the RoPE base is %g; it must be 1 to 1e12", origin, r->theta);
    }
    if (r->type == ROPE_DEFAULT) return FLUTE_OK;
    if (!(r->factor >= 1 && r->factor <= 1e6)) {
        return fail(err, FLUTE_ERANGE, "%s: the RoPE factor is %g; it must be 1 to 1e6", origin, r->factor);
    }
    if (r->type == ROPE_LINEAR) return FLUTE_OK;
    if (!(r->low_freq_factor > 0 && r->low_freq_factor < r->high_freq_factor && r->high_freq_factor <= 1e6)) {
        return fail(
            err, FLUTE_ERANGE,
            "%s: the RoPE's low_freq_factor (%g) must be positive and less than high_freq_factor (%g)",
            origin, r->low_freq_factor, r->high_freq_factor);
    }
    if (r->original_context < 1 || r->original_context > 1 << 24) {
        return fail(err, FLUTE_ERANGE, "%s: the RoPE's original context is %lld; it must be 1 to %d", origin,
                    (long long)r->original_context, 1 << 24);
    }
    return FLUTE_OK;
}

static int check_token(int32_t id, const char *what, int n_vocab, const char *origin, flute_error *err) {
    if (id >= 0 && id < n_vocab) return FLUTE_OK;
    return fail(err, FLUTE_ERANGE, "%s: the %s token is %d, outside the vocabulary of %d", origin, what, id,
                n_vocab);
}

int arch_check(const arch *a, const char *origin, flute_error *err) {
    int code = check_numbers(a, origin, err);
    if (code) return code;
    if (a->n_heads % a->n_kv_heads != 0) {
        return fail(err, FLUTE_ESHAPE, "%s: %d attention heads do not divide among %d key/value heads",
                    origin, a->n_heads, a->n_kv_heads);
    }
    if (a->head_dim % 16 != 0) {
        return fail(err, FLUTE_EUNSUPPORTED,
                    "%s: a head_dim of %d is not supported; it must be a multiple of 16 from 32 to 256",
                    origin, a->head_dim);
    }
    assert(a->n_ropes == 1 || a->n_ropes == 2);
    for (int i = 0; i < a->n_ropes; i++) {
        if ((code = check_rope(&a->rope[i], origin, err))) return code;
    }
    for (int i = 0; i < a->n_layers; i++) {
        assert(a->layers[i].rope >= 0 && a->layers[i].rope < a->n_ropes && a->layers[i].window >= 0);
    }
    if (a->bos != -1 && (code = check_token(a->bos, "BOS", a->n_vocab, origin, err))) return code;
    for (int i = 0; i < a->n_eos; i++) {
        if ((code = check_token(a->eos[i], "EOS", a->n_vocab, origin, err))) return code;
    }
    return FLUTE_OK;
}

void arch_kernel_dims(const arch *a, int max_rows, int max_logits, kernel_dims *out) {
    *out = (kernel_dims){.hidden = a->hidden,
                         .n_heads = a->n_heads,
                         .n_kv_heads = a->n_kv_heads,
                         .head_dim = a->head_dim,
                         .n_ff = a->n_ff,
                         .n_vocab = a->n_vocab,
                         .n_layers = a->n_layers,
                         .max_rows = max_rows,
                         .max_logits = max_logits};
}

// ---- Tensors

// What a slot is called in a .flt file, and its sources in a checkpoint. Checkpoints with post-norms give
// the name "post_attention_layernorm" to the norm after attention; those without, to the one before the
// feed-forward block.
typedef struct slot_names {
    const char *name;
    tensor_role role;
    row_order order;
    const char *sources[3];
    const char *source_with_post_norms; // where it differs
} slot_names;

static const slot_names slots[N_LAYER_SLOTS] = {
    [SLOT_ATTN_NORM] = {.name = "attn_norm", .role = ROLE_NORM, .sources = {"input_layernorm"}},
    [SLOT_QKV] = {.name = "qkv",
                  .role = ROLE_PROJECTION,
                  .order = ROWS_QKV,
                  .sources = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    [SLOT_Q_NORM] = {.name = "q_norm", .role = ROLE_NORM, .sources = {"self_attn.q_norm"}},
    [SLOT_K_NORM] = {.name = "k_norm", .role = ROLE_NORM, .sources = {"self_attn.k_norm"}},
    [SLOT_O_PROJ] = {.name = "o_proj", .role = ROLE_PROJECTION, .sources = {"self_attn.o_proj"}},
    [SLOT_POST_ATTN_NORM] = {.name = "post_attn_norm",
                             .role = ROLE_NORM,
                             .sources = {"post_attention_layernorm"}},
    [SLOT_FF_NORM] = {.name = "ff_norm",
                      .role = ROLE_NORM,
                      .sources = {"post_attention_layernorm"},
                      .source_with_post_norms = "pre_feedforward_layernorm"},
    [SLOT_GATE_UP] = {.name = "gate_up",
                      .role = ROLE_PROJECTION,
                      .order = ROWS_GATE_UP,
                      .sources = {"mlp.gate_proj", "mlp.up_proj"}},
    [SLOT_DOWN_PROJ] = {.name = "down_proj", .role = ROLE_PROJECTION, .sources = {"mlp.down_proj"}},
    [SLOT_POST_FF_NORM] = {.name = "post_ff_norm",
                           .role = ROLE_NORM,
                           .sources = {"post_feedforward_layernorm"}},
};

static bool has_slot(const arch *a, layer_slot slot) {
    if (slot == SLOT_Q_NORM || slot == SLOT_K_NORM) return a->qk_norm;
    if (slot == SLOT_POST_ATTN_NORM || slot == SLOT_POST_FF_NORM) return a->post_norms;
    return true;
}

// Rows of each source and columns of all of them.
static void slot_shape(const arch *a, layer_slot slot, arch_tensor *out) {
    int64_t q = (int64_t)a->n_heads * a->head_dim, kv = (int64_t)a->n_kv_heads * a->head_dim;
    out->n_cols = a->hidden;
    switch (slot) {
    case SLOT_QKV:
        out->sources[0].n_rows = q;
        out->sources[1].n_rows = out->sources[2].n_rows = kv;
        break;
    case SLOT_O_PROJ:
        out->sources[0].n_rows = a->hidden;
        out->n_cols = q;
        break;
    case SLOT_GATE_UP:
        out->sources[0].n_rows = out->sources[1].n_rows = a->n_ff;
        break;
    case SLOT_DOWN_PROJ:
        out->sources[0].n_rows = a->hidden;
        out->n_cols = a->n_ff;
        break;
    case SLOT_Q_NORM:
    case SLOT_K_NORM:
        out->sources[0].n_rows = 1;
        out->n_cols = a->head_dim;
        break;
    default:
        out->sources[0].n_rows = 1;
        break;
    }
}

static void layer_tensor(const arch *a, int layer, layer_slot slot, arch_tensor *out) {
    const slot_names *names = &slots[slot];
    snprintf(out->name, sizeof out->name, "layers.%d.%s", layer, names->name);
    if (!has_slot(a, slot)) return;
    out->role = names->role;
    out->order = names->order;
    slot_shape(a, slot, out);
    for (; out->n_sources < 3 && names->sources[out->n_sources]; out->n_sources++) {
        const char *source = names->sources[out->n_sources];
        if (a->post_norms && names->source_with_post_norms) source = names->source_with_post_norms;
        snprintf(out->sources[out->n_sources].name, sizeof out->sources[0].name, "model.layers.%d.%s.weight",
                 layer, source);
    }
}

static void model_tensor(const arch *a, int index, arch_tensor *out) {
    static const struct {
        const char *name, *source;
        tensor_role role;
    } tensors[N_MODEL_TENSORS] = {
        [TENSOR_EMBEDDING] = {"embedding", "model.embed_tokens.weight", ROLE_EMBEDDING},
        [TENSOR_FINAL_NORM] = {"final_norm", "model.norm.weight", ROLE_NORM},
        [TENSOR_HEAD] = {"head", "lm_head.weight", ROLE_HEAD},
    };
    snprintf(out->name, sizeof out->name, "%s", tensors[index].name);
    if (index == TENSOR_HEAD && a->tied) return;
    out->role = tensors[index].role;
    out->n_cols = a->hidden;
    out->n_sources = 1;
    out->sources[0].n_rows = out->role == ROLE_NORM ? 1 : a->n_vocab;
    snprintf(out->sources[0].name, sizeof out->sources[0].name, "%s", tensors[index].source);
}

int arch_n_tensors(const arch *a) {
    return N_MODEL_TENSORS + a->n_layers * N_LAYER_SLOTS;
}

void arch_tensor_at(const arch *a, int index, arch_tensor *out) {
    assert(index >= 0 && index < arch_n_tensors(a));
    *out = (arch_tensor){.role = ROLE_ABSENT, .order = ROWS_PLAIN};
    if (index < N_MODEL_TENSORS) {
        model_tensor(a, index, out);
    } else {
        int i = index - N_MODEL_TENSORS;
        layer_tensor(a, i / N_LAYER_SLOTS, (layer_slot)(i % N_LAYER_SLOTS), out);
    }
    if (out->role == ROLE_ABSENT) return;
    out->dims = (row_order_dims){.n_heads = a->n_heads,
                                 .n_kv_heads = a->n_kv_heads,
                                 .head_dim = a->head_dim,
                                 .n_rows_source = out->sources[0].n_rows};
    out->n_rows = layout_row_count(out->order, &out->dims);
}
