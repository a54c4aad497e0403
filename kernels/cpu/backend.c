// The CPU as a backend: what the processor is, and which functions are its verbs.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef FLUTE_CPU_X86
#include <cpuid.h>
#endif

#include "engine/base/fail.h"
#include "kernels/cpu/state.h"
#include "kernels/cpu/step_ops.h"

// The device.

static const char *cpu_describe(backend *be) {
    return ((cpu_backend *)be)->description;
}

static void describe(char *out, size_t size, int n_threads, cpu_isa isa) {
    char brand[49] = "CPU";
#ifdef FLUTE_CPU_X86
    uint32_t words[12] = {0};
    if (__get_cpuid_max(0x80000000u, NULL) >= 0x80000004u) {
        for (unsigned i = 0; i < 3; i++)
            __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                        &words[4 * i + 3]);
        memcpy(brand, words, sizeof words);
        for (size_t n = strlen(brand); n > 0 && brand[n - 1] == ' '; n--) brand[n - 1] = 0;
    }
#endif
    snprintf(out, size, "%s, %d thread%s, %s", brand + strspn(brand, " "), n_threads,
             n_threads == 1 ? "" : "s", cpu_isa_name(isa));
}

static double cpu_read_bandwidth(backend *be) {
    return host_read_bandwidth(((cpu_backend *)be)->pool);
}

static const backend_ops cpu_ops = {
    .name = "cpu",
    .batch_rows = 128,
    .free = host_free,
    .describe = cpu_describe,
    .read_bandwidth = cpu_read_bandwidth,
    .weight_place = host_weight_place,
    .weight_release = host_weight_release,
    .kv_bytes = cpu_kv_bytes,
    .kv_create = cpu_kv_create,
    .kv_free = host_kv_free,
    .kv_copy_block = cpu_kv_copy_block,
    .state_create = cpu_state_create,
    .state_free = cpu_state_free,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .qkv = cpu_qkv,
    .attend = cpu_attend,
    .project_add = cpu_project_add,
    .gate_up = cpu_gate_up,
    .head = cpu_head,
    .sample = host_sample,
    .finish = host_finish,
    .tokens = host_tokens,
    .logits = host_logits,
};

int backend_create_cpu_isa(thread_pool *pool, cpu_isa isa, backend **out, flute_error *err) {
    const cpu_kernels *kernels = cpu_kernels_of(isa);
    if (!kernels)
        return fail(err, FLUTE_EDEVICE, "this processor does not run the %s kernels; use %s",
                    cpu_isa_name(isa), cpu_isa_name(cpu_isa_best()));
    cpu_backend *be = calloc(1, sizeof *be);
    if (!be) return fail_memory(err, sizeof *be, "the CPU backend");
    *be = (cpu_backend){.base = {.ops = &cpu_ops}, .pool = pool, .kernels = kernels};
    describe(be->description, sizeof be->description, threads_count(pool), isa);
    *out = &be->base;
    return FLUTE_OK;
}

int backend_create_cpu(thread_pool *pool, backend **out, flute_error *err) {
    return backend_create_cpu_isa(pool, cpu_isa_best(), out, err);
}
