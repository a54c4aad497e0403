// --load scatter: rank 0 alone has the file, whose header the others have from RANKS_OPEN.
#ifndef FLUTE_SCATTER_H
#define FLUTE_SCATTER_H

#include "engine/model.h"

// Room for rank 0's file, of which only what will be written takes memory: model->map.
int scatter_make_room(flute_model *model, size_t file_size, flute_error *err);
// All ranks, once model->comm is there: each receives its part of every tensor, to where it lies in the file.
int scatter_weights(flute_model *model, flute_error *err);

#endif
