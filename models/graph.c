#include "models/graph.h"

static norm_args norm_of(const arch *a, const weight *w) {
    return (norm_args){.weight = w->data ? w : NULL, .eps = a->norm_eps, .offset = a->norm_offset};
}

static void forward_layer(const arch *a, const model_weights *weights, const backend_ops *ops,
                          backend_state *state, int layer) {
    const weight *tensors = weights->tensors + arch_layer_tensor(layer, (layer_slot)0);
    const arch_layer *kind = &a->layers[layer];

    ops->qkv(state, &(qkv_args){.layer = layer,
                                .norm = norm_of(a, &tensors[SLOT_ATTN_NORM]),
                                .weight = &tensors[SLOT_QKV],
                                .q_norm = norm_of(a, &tensors[SLOT_Q_NORM]),
                                .k_norm = norm_of(a, &tensors[SLOT_K_NORM]),
                                .inv_freq = weights->inv_freq[kind->rope],
                                .q_scale = a->q_scale});
    ops->attend(state, &(attend_args){.layer = layer, .window = kind->window, .softcap = a->attn_softcap});
    ops->project_add(state, &(project_args){.input = PROJECT_ATTENTION,
                                            .weight = &tensors[SLOT_O_PROJ],
                                            .post_norm = norm_of(a, &tensors[SLOT_POST_ATTN_NORM])});
    ops->gate_up(state, &(gate_up_args){.norm = norm_of(a, &tensors[SLOT_FF_NORM]),
                                        .weight = &tensors[SLOT_GATE_UP],
                                        .act = a->act});
    ops->project_add(state, &(project_args){.input = PROJECT_FF,
                                            .weight = &tensors[SLOT_DOWN_PROJ],
                                            .post_norm = norm_of(a, &tensors[SLOT_POST_FF_NORM])});
}

int graph_forward(const arch *a, const model_weights *weights, backend *be, backend_state *state,
                  kv_pool *pool, const kernel_batch *batch, const sample_args *samples, flute_error *err) {
    const backend_ops *ops = be->ops;
    const weight *tensors = weights->tensors;

    ops->begin(state, batch, pool);
    ops->embed(state, &tensors[TENSOR_EMBEDDING], a->embed_scale);
    for (int layer = 0; layer < a->n_layers; layer++) forward_layer(a, weights, ops, state, layer);
    if (batch->n_logits > 0) {
        ops->head(state, &(head_args){.norm = norm_of(a, &tensors[TENSOR_FINAL_NORM]),
                                      .weight = &tensors[a->tied ? TENSOR_EMBEDDING : TENSOR_HEAD],
                                      .softcap = a->final_softcap});
        if (samples) ops->sample(state, samples);
    }
    return ops->finish(state, err);
}
