// The CPU backend from inside: instruction sets, and the table of kernels that each of them fills. Tests and
// flute-bench take an instruction set by name; everyone else calls backend_create_cpu (kernels/kernels.h).
#ifndef FLUTE_KERNELS_CPU_H
#define FLUTE_KERNELS_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// X(NAME, "name"), each better than those before it.
#define CPU_ISAS(X)                                                                                          \
    X(PORTABLE, "portable")                                                                                  \
    X(AVX2, "AVX2")                                                                                          \
    X(AVX512, "AVX-512")                                                                                     \
    X(AVX512_BF16, "AVX-512 BF16")

typedef enum cpu_isa {
#define CPU_ISA_ENUM(NAME, text) CPU_##NAME,
    CPU_ISAS(CPU_ISA_ENUM)
#undef CPU_ISA_ENUM
        CPU_N_ISAS
} cpu_isa;

const char *cpu_isa_name(cpu_isa isa);
// Whether this build has the kernels and this processor runs them.
bool cpu_isa_available(cpu_isa isa);
cpu_isa cpu_isa_best(void);

// backend_create_cpu with the kernels of one instruction set. FLUTE_EDEVICE where it is not available.
int backend_create_cpu_isa(thread_pool *pool, cpu_isa isa, backend **out, flute_error *err);

// The cached keys and values of one KV head of one sequence, bf16. A block holds its tokens padded to
// CPU_KV_TOKENS: keys (head_dim / 2, tokens, 2) and behind them values (tokens / 2, head_dim, 2), so that a
// 32-bit lane is two channels of one token, or two tokens of one channel, and becomes two floats by a shift
// and a mask. Keys are in the stored order of ROWS_QKV.
enum { CPU_KV_TOKENS = 16 };
typedef struct cpu_kv {
    bf16 *data;            // of this head in block 0
    int64_t block_stride;  // elements from one block to the next
    const int32_t *blocks; // block table of the sequence
    int block_tokens;      // a block's tokens
    int padded_tokens;     // the same, rounded up to CPU_KV_TOKENS
    int head_dim;
} cpu_kv;

// Query heads that one call of attention takes at most.
enum { CPU_ATTENTION_HEADS = 4 };

// The kernels of one instruction set. All are re-entrant, allocate nothing and accept any alignment. Rows
// and columns are as in `weight`; activations are rounded to bf16 before they meet a weight matrix, except
// where a comment says otherwise, and sums are kept in float.
typedef struct cpu_kernels {
    // Activations are prepared in tiles of so many rows.
    int tile_rows;
    // Bytes that prepared activations (n_rows, n_cols) take at most, for weights of any type.
    size_t (*prepared_bytes)(int n_rows, int64_t n_cols);
    // Rounds the rows of one tile of x: (n_rows, w->n_cols) and writes them in the order that gemm wants for
    // this weight and this n_rows. Every tile (0 … ceil(n_rows / tile_rows) − 1) must be prepared.
    void (*prepare)(const weight *w, const float *x, int n_rows, int tile, void *prepared);
    // out[m·stride + n − 16·first] = Σ_k x[m][k] · W[n][k] for the rows n of panels [first, last) of w.
    // stride is at least 16 · (last − first); columns past the last row of w are garbage.
    void (*gemm)(const weight *w, const void *prepared, int n_rows, int64_t first, int64_t last, float *out,
                 int64_t stride);

    // As ref_rms_norm: x, out: (width), may be the same.
    void (*rms_norm)(const norm_args *norm, const float *x, int width, float *out);
    // out[i] = act(gate) · up for whole runs of eight: gate_up: (2·n) in ROWS_GATE_UP order, out: (n), n a
    // multiple of 8.
    void (*activate)(activation act, const float *gate_up, int64_t n, float *out);
    // x += y.
    void (*add)(float *x, const float *y, int64_t n);
    // In place: cap · tanh(x / cap).
    void (*softcap)(float *x, int64_t n, float cap);
    // Rotates one head in stored order, in place, and multiplies by scale. cosines, sines: (head_dim / 2).
    void (*rotate)(float *x, int head_dim, const float *cosines, const float *sines, float scale);
    // n_heads (at most CPU_ATTENTION_HEADS) query heads over tokens first … last of one KV head: q, out:
    // (n_heads, head_dim), q already scaled. In float throughout but for the cache.
    void (*attention)(const cpu_kv *kv, const float *q, int n_heads, int first, int last, float softcap,
                      float *out);
} cpu_kernels;

// NULL where cpu_isa_available is false.
const cpu_kernels *cpu_kernels_of(cpu_isa isa);

// Writes key and value: (head_dim) each, at the place of `token` in the sequence.
void cpu_kv_append(const cpu_kv *kv, int token, const float *key, const float *value);

// One row of a weight matrix of any type in float, times scale; out: (n_cols). Exactly weight_row().
void cpu_weight_row(const weight *w, int64_t row, float scale, float *out);

// The tables behind cpu_kernels_of. Calling into one that the processor does not have is a crash.
extern const cpu_kernels cpu_kernels_portable, cpu_kernels_avx2, cpu_kernels_avx512, cpu_kernels_avx512_bf16;

#ifdef __cplusplus
}
#endif
#endif
