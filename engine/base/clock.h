// How long things take.
#ifndef FLUTE_CLOCK_H
#define FLUTE_CLOCK_H

#include <time.h>

// Seconds of a clock that never goes back, since some time in the past.
static inline double seconds_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
