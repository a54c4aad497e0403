// Architectures as data. Whatever distinguishes one LLaMA or Gemma from another is a field of arch; engine
// and kernels never ask for a name.
#ifndef FLUTE_ARCH_H
#define FLUTE_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <yyjson.h>

#include "engine/base/error.h"
#include "kernels/kernels.h"
#include "kernels/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ARCH_MAX_LAYERS = 512, ARCH_MAX_EOS = 16 };

// Rotary position embedding. Frequencies are theta^(-2i/head_dim), then scaled.
typedef enum rope_type {
    ROPE_DEFAULT,
    ROPE_LINEAR, // all frequencies divided by factor
    ROPE_LLAMA3, // Llama 3.1: long wavelengths divided by factor, a smooth ramp between
} rope_type;

typedef struct rope {
    rope_type type;
    double theta;
    double factor;                            // linear and llama3
    double low_freq_factor, high_freq_factor; // llama3
    int64_t original_context;                 // llama3
} rope;

// Fills inv_freq: (head_dim / 2).
void rope_inv_freq(const rope *r, int head_dim, float *inv_freq);

typedef struct arch_layer {
    int window; // sliding window in tokens, the token itself included; 0: global
    int rope;   // index into arch.rope
} arch_layer;

// Which chat template applies. arch_from_config knows CHAT_GEMMA; whether a Llama is CHAT_LLAMA3 only its
// tokenizer can tell: the converter sets it where that has a token <|start_header_id|>.
typedef enum chat_style { CHAT_PLAIN, CHAT_LLAMA3, CHAT_GEMMA } chat_style;

typedef struct arch {
    char name[32]; // "llama", "gemma", "gemma2", "gemma3"; for people
    int n_layers;
    int hidden;
    int n_heads, n_kv_heads, head_dim;
    int n_ff;
    int n_vocab;
    int max_context; // positions the model was made for
    bool tied;       // the head is the embedding
    float norm_eps;
    float norm_offset;  // 1: norm weights are stored minus one
    bool qk_norm;       // norms on q and k heads
    bool post_norms;    // norms after attention and feed-forward, before the residual add
    float embed_scale;  // multiplies embeddings: 1, or sqrt(hidden) for Gemma
    float q_scale;      // multiplies q·k
    float attn_softcap; // 0: none
    float final_softcap;
    activation act;
    chat_style chat;
    int n_ropes;
    rope rope[2];                       // [0] global layers, [1] local ones
    arch_layer layers[ARCH_MAX_LAYERS]; // n_layers of them
    int32_t bos;                        // -1: none
    int n_eos;
    int32_t eos[ARCH_MAX_EOS]; // any of them ends a generation
} arch;

// Builds the descriptor from a checkpoint's config.json and, unless NULL, generation_config.json, as
// transformers 4 or 5 write them. A field that is absent has the value that transformers gives it. Refuses
// architectures, RoPE types and options that it does not know, naming them.
int arch_from_config(arch *out, yyjson_val *config, yyjson_val *generation, const char *origin,
                     flute_error *err);

// The descriptor as the "arch" object of a .flt header, and back. Reading validates every field.
yyjson_mut_val *arch_to_json(const arch *a, yyjson_mut_doc *doc);
int arch_from_json(arch *out, yyjson_val *object, const char *origin, flute_error *err);

// The shapes that --random knows: "llama-3-8b", "llama-3.2-1b", "llama-3-70b", "gemma-2-9b", "gemma-2-27b".
// FLUTE_EINVAL, listing them, for another name.
int arch_from_name(arch *out, const char *name, flute_error *err);

void arch_kernel_dims(const arch *a, int max_rows, int max_logits, kernel_dims *out);

// The tensors of a model. Index i runs over the model-wide ones, then layer by layer over the slots.
enum { TENSOR_EMBEDDING, TENSOR_FINAL_NORM, TENSOR_HEAD, N_MODEL_TENSORS };
typedef enum layer_slot {
    SLOT_ATTN_NORM,
    SLOT_QKV,
    SLOT_Q_NORM,
    SLOT_K_NORM,
    SLOT_O_PROJ,
    SLOT_POST_ATTN_NORM,
    SLOT_FF_NORM,
    SLOT_GATE_UP,
    SLOT_DOWN_PROJ,
    SLOT_POST_FF_NORM,
    N_LAYER_SLOTS
} layer_slot;

typedef enum tensor_role {
    ROLE_ABSENT, // this architecture has no such tensor
    ROLE_NORM,   // a vector, always dense
    ROLE_PROJECTION,
    ROLE_EMBEDDING, // also the head, where tied
    ROLE_HEAD,
} tensor_role;

typedef struct arch_tensor {
    tensor_role role;
    char name[48];          // in the .flt file: "layers.3.qkv"
    int64_t n_rows, n_cols; // vectors are (1, n)
    row_order order;
    row_order_dims dims;
    int n_sources;
    struct {
        char name[80]; // in the checkpoint: "model.layers.3.self_attn.q_proj.weight"; safetensors_find also
                       // knows the prefixes of multimodal checkpoints
        int64_t n_rows;
    } sources[3]; // in the order of row_source.source; all have n_cols columns
} arch_tensor;

int arch_n_tensors(const arch *a);
void arch_tensor_at(const arch *a, int index, arch_tensor *out);
static inline int arch_layer_tensor(int layer, layer_slot slot) {
    return N_MODEL_TENSORS + layer * N_LAYER_SLOTS + (int)slot;
}

#ifdef __cplusplus
}
#endif
#endif
