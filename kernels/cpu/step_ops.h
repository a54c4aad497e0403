// The verbs of a forward step on the CPU, as backend_ops says.
#ifndef FLUTE_CPU_STEP_OPS_H
#define FLUTE_CPU_STEP_OPS_H

#include "kernels/kernels.h"

void cpu_embed(backend_state *state, const weight *embedding, float scale);
void cpu_qkv(backend_state *state, const qkv_args *args);
void cpu_attend(backend_state *state, const attend_args *args);
void cpu_project_add(backend_state *state, const project_args *args);
void cpu_gate_up(backend_state *state, const gate_up_args *args);
void cpu_head(backend_state *state, const head_args *args);

#endif
