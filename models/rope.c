#include <math.h>

#include "models/arch.h"

static double scaled(const rope *r, double frequency) {
    switch (r->type) {
    case ROPE_LINEAR:
        return frequency / r->factor;
    case ROPE_LLAMA3: {
        // How often the dimension turned within the context of pre-training decides: often enough, and its
        // frequency stays; too rarely, and it is divided; between the two bounds the share ramps linearly.
        double turns = (double)r->original_context * frequency / (2 * M_PI);
        double keep = (turns - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
        keep = fmin(fmax(keep, 0), 1);
        return keep * frequency + (1 - keep) * frequency / r->factor;
    }
    default:
        return frequency;
    }
}

// In double, then rounded: the float arithmetic of transformers agrees within 1e-6.
void rope_inv_freq(const rope *r, int head_dim, float *inv_freq) {
    for (int i = 0; i < head_dim / 2; i++) {
        inv_freq[i] = (float)scaled(r, pow(r->theta, -2.0 * i / head_dim));
    }
}
