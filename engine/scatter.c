// The weights go to all ranks by broadcasts, of which each keeps what is its own. Rank 0 sends every byte
// once that way, as it would with a message for each, and the ranks pass it on by whatever connects them.
#include "engine/scatter.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "engine/base/fail.h"

enum { CHUNK_BYTES = 4 << 20 };

int scatter_make_room(flute_model *model, size_t file_size, flute_error *err) {
    void *room =
        mmap(NULL, file_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return fail_memory(err, file_size, "the parts of a file");
    model->map = (file_map){.data = room, .size = file_size};
    return FLUTE_OK;
}

// chunk: (CHUNK_BYTES), but for rank 0, which sends from the file itself.
static int scatter_tensor(const flute_model *model, int index, uint8_t *chunk, flute_error *err) {
    const weight *whole = &model->file.tensors[index];
    uint8_t *data = (uint8_t *)(uintptr_t)whole->data; // rank 0 only reads it; else scatter_make_room's
    comm *c = model->comm;
    weight own;
    layout_span spans[2];
    const int n_spans = shard_weight(&model->shard, &model->file.arch, index, whole, &own, spans);
    for (size_t done = 0; done < whole->size; done += CHUNK_BYTES) {
        const size_t n = whole->size - done < CHUNK_BYTES ? whole->size - done : CHUNK_BYTES;
        int code = c->ops->broadcast(c, c->rank == 0 ? data + done : chunk, n, 0, err);
        if (code) return code;
        for (int s = 0; s < n_spans && c->rank != 0; s++) shard_keep(&spans[s], chunk, done, n, data);
    }
    return FLUTE_OK;
}

int scatter_weights(flute_model *model, flute_error *err) {
    uint8_t *chunk = NULL;
    int code = FLUTE_OK;
    if (model->comm->rank != 0 && !(chunk = malloc(CHUNK_BYTES)))
        return fail_memory(err, CHUNK_BYTES, "a piece of the weights");
    for (int i = 0; i < arch_n_tensors(&model->file.arch) && !code; i++)
        if (model->file.tensors[i].data) code = scatter_tensor(model, i, chunk, err);
    free(chunk);
    return code;
}
