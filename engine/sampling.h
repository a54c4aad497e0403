// From the public sampling parameters to the arguments of the sample verb.
#ifndef FLUTE_SAMPLING_H
#define FLUTE_SAMPLING_H

#include "engine/flute.h"
#include "kernels/kernels.h"
#include "kernels/sample.h"

// How the token at position n_tokens is drawn; tokens: (n_tokens) ids before it, which *args points into.
void sampling_args(const flute_sampling *sampling, const int32_t *tokens, int n_tokens, sample_args *args);

#endif
