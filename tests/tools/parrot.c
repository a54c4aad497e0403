// Writes a checkpoint that says what we want: the fixture of tests that need a model with a tokenizer whose
// words are known.
//   parrot DIR START ANSWER END
// DIR holds config.json and a tokenizer; model.safetensors is added. After the last token of START the model
// says ANSWER and then the token that is spelled END. After any other token it says that token again.
//
// How: token t is a vector e(t) of random signs, +1 in channel 0; attention is zero. Where token j of the
// chain comes in, unit j of the first feed-forward layer fires: its gate and up rows are e(j), the gate less
// a threshold that chance does not reach. It adds a multiple of e(next). The head is the embedding, so the
// largest logit is that of next.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/json.h"
#include "models/arch.h"
#include "tokenizer/tokenizer.h"

enum { MAX_CHAIN = 64 };

typedef struct parrot {
    arch arch;
    int32_t chain[MAX_CHAIN]; // each is followed by the next one
    int n;
} parrot;

__attribute__((format(printf, 1, 2), noreturn)) static void give_up(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("parrot: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(EXIT_FAILURE);
}

// +1 or -1, the same for the same token and channel.
static float sign(int32_t token, int64_t channel) {
    if (channel == 0) return 1;
    uint64_t x = ((uint64_t)(uint32_t)token << 32 | (uint64_t)channel) + 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (x ^ x >> 31) & 1 ? 1.0f : -1.0f;
}

static void read_config(parrot *p, const char *folder) {
    char path[4096];
    flute_error err;
    snprintf(path, sizeof path, "%s/config.json", folder);
    yyjson_doc *doc = json_parse_file(path, &err);
    if (!doc || arch_from_config(&p->arch, yyjson_doc_get_root(doc), NULL, path, &err))
        give_up("%s", err.message);
    yyjson_doc_free(doc);
}

static int encode(const tokenizer *tok, const char *text, int32_t *ids) {
    flute_error err;
    const int64_t n = tokenizer_encode(tok, text, strlen(text), SPECIAL_AS_TEXT, ids, MAX_CHAIN - 2, &err);
    if (n < 1 || n > MAX_CHAIN - 2) give_up("'%s' must have 1 to %d tokens", text, MAX_CHAIN - 2);
    return (int)n;
}

static void read_chain(parrot *p, char **argv) {
    flute_error err;
    tokenizer *tok;
    tokenizer_kind kind;
    char *blob;
    size_t size;
    int32_t start[MAX_CHAIN];
    if (tokenizer_find(argv[1], &kind, &blob, &size, &err) ||
        tokenizer_create(&tok, kind, blob, size, argv[1], &err))
        give_up("%s", err.message);
    p->chain[0] = start[encode(tok, argv[2], start) - 1];
    p->n = 1 + encode(tok, argv[3], p->chain + 1);
    p->chain[p->n++] = tokenizer_find_token(tok, argv[4]);
    if (p->chain[p->n - 1] < 0) give_up("there is no token %s", argv[4]);
    for (int i = 0; i < p->n; i++)
        for (int j = 0; j < i; j++)
            if (p->chain[i] == p->chain[j]) give_up("token %d is in the chain twice", p->chain[i]);
    tokenizer_free(tok);
    free(blob);
}

// Weight (row, column) of source number `source` of a tensor.
static float value(const parrot *p, int tensor, int source, int64_t row, int64_t column) {
    const int n_links = p->n - 1, slot = (tensor - N_MODEL_TENSORS) % N_LAYER_SLOTS;
    if (tensor == TENSOR_EMBEDDING || tensor == TENSOR_HEAD) return sign((int32_t)row, column);
    if (tensor == arch_layer_tensor(0, SLOT_GATE_UP)) {
        const bool threshold = source == 0 && column == 0; // the gate's
        return row < n_links ? sign(p->chain[row], column) - (threshold ? 0.6f * (float)p->arch.hidden : 0)
                             : 0;
    }
    if (tensor == arch_layer_tensor(0, SLOT_DOWN_PROJ))
        return column < n_links ? sign(p->chain[column + 1], row) : 0;
    // Louder than the embedding, which Gemma scales by the root of its width.
    if (tensor > N_MODEL_TENSORS && slot == SLOT_POST_FF_NORM) return 30;
    arch_tensor t;
    arch_tensor_at(&p->arch, tensor, &t);
    return t.role == ROLE_NORM ? 1 - p->arch.norm_offset : 0;
}

// Calls each for every source of every tensor, in one order.
static void for_each(const parrot *p, void (*each)(const parrot *, int, int, const arch_tensor *, void *),
                     void *user) {
    arch_tensor t;
    for (int i = 0; i < arch_n_tensors(&p->arch); i++) {
        arch_tensor_at(&p->arch, i, &t);
        for (int k = 0; k < t.n_sources; k++) each(p, i, k, &t, user);
    }
}

typedef struct output {
    char header[1 << 16];
    size_t used;
    uint64_t offset;
    FILE *file;
} output;

static void describe(const parrot *p, int tensor, int source, const arch_tensor *t, void *user) {
    (void)p;
    (void)tensor;
    output *out = user;
    const uint64_t bytes = (uint64_t)(t->sources[source].n_rows * t->n_cols) * sizeof(float);
    char shape[64];
    if (t->role == ROLE_NORM)
        snprintf(shape, sizeof shape, "%lld", (long long)t->n_cols);
    else
        snprintf(shape, sizeof shape, "%lld,%lld", (long long)t->sources[source].n_rows,
                 (long long)t->n_cols);
    out->used += (size_t)snprintf(out->header + out->used, sizeof out->header - out->used,
                                  "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
                                  out->used > 1 ? "," : "", t->sources[source].name, shape,
                                  (unsigned long long)out->offset, (unsigned long long)(out->offset + bytes));
    out->offset += bytes;
    if (out->used + 2 >= sizeof out->header) give_up("too many tensors");
}

static void write_rows(const parrot *p, int tensor, int source, const arch_tensor *t, void *user) {
    output *out = user;
    for (int64_t row = 0; row < t->sources[source].n_rows; row++) {
        for (int64_t column = 0; column < t->n_cols; column++) {
            const float x = value(p, tensor, source, row, column);
            fwrite(&x, sizeof x, 1, out->file);
        }
    }
}

int main(int argc, char **argv) {
    static parrot p;
    static output out = {.header = "{", .used = 1};
    char path[4096];
    if (argc != 5) give_up("usage: parrot DIR START ANSWER END");
    read_config(&p, argv[1]);
    read_chain(&p, argv);
    if (p.n > p.arch.n_ff)
        give_up("the chain has %d tokens, the feed-forward layer %d units", p.n, p.arch.n_ff);
    for_each(&p, describe, &out);
    out.header[out.used++] = '}';
    snprintf(path, sizeof path, "%s/model.safetensors", argv[1]);
    out.file = fopen(path, "wb");
    if (!out.file) give_up("%s: cannot write", path);
    const uint64_t size = out.used; // little-endian, as the machines that we support
    fwrite(&size, sizeof size, 1, out.file);
    fwrite(out.header, 1, out.used, out.file);
    for_each(&p, write_rows, &out);
    if (ferror(out.file) || fclose(out.file) != 0) give_up("%s: cannot write", path);
    return EXIT_SUCCESS;
}
