// config.json (with generation_config.json as its member "generation") and the "arch" object of a .flt
// header. Whatever arch_from_config accepts must survive the way through a header and be safe to walk.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/json.h"
#include "models/arch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
    if (!condition) abort();
}

static char *to_text(const arch *a) {
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_doc_set_root(doc, arch_to_json(a, doc));
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_NOFLAG, NULL);
    yyjson_mut_doc_free(doc);
    require(text != NULL);
    return text;
}

static void walk(const arch *a) {
    float inv_freq[128];
    for (int i = 0; i < a->n_ropes; i++) rope_inv_freq(&a->rope[i], a->head_dim, inv_freq);
    arch_tensor t;
    for (int i = 0; i < arch_n_tensors(a); i++) {
        arch_tensor_at(a, i, &t);
        require((t.role == ROLE_ABSENT) == (t.n_sources == 0));
        if (t.role != ROLE_ABSENT) require(t.n_rows > 0 && t.n_cols > 0);
        for (int k = 0; k < t.n_sources; k++)
            require(t.sources[k].n_rows > 0 && t.sources[k].name[0] != '\0');
    }
}

static void round_trip(const arch *a) {
    arch back;
    flute_error err;
    char *text = to_text(a);
    yyjson_doc *doc = json_parse(text, strlen(text), "header", &err);
    require(doc && arch_from_json(&back, yyjson_doc_get_root(doc), "header", &err) == FLUTE_OK);
    char *again = to_text(&back);
    require(strcmp(text, again) == 0);
    yyjson_doc_free(doc);
    free(text);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    arch a;
    flute_error err;
    yyjson_doc *doc = json_parse((const char *)data, size, "input", &err);
    if (!doc) return 0;
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (arch_from_config(&a, root, yyjson_obj_get(root, "generation"), "input", &err) == FLUTE_OK) {
        walk(&a);
        round_trip(&a);
    }
    if (arch_from_json(&a, root, "input", &err) == FLUTE_OK) {
        walk(&a);
        round_trip(&a);
    }
    yyjson_doc_free(doc);
    return 0;
}
