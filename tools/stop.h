// Stop strings in a stream of text that arrives piece by piece: none of their bytes is ever let through.
#ifndef FLUTE_STOP_H
#define FLUTE_STOP_H

#include <stdbool.h>
#include <stddef.h>

typedef struct stop_filter {
    const char *const *strings; // (n), none empty; the caller's
    int n;
    char *held; // text not yet let through
    size_t held_size, capacity;
    size_t ready; // bytes at the start of held that may go out
    bool stopped;
} stop_filter;

void stop_init(stop_filter *filter, const char *const *strings, int n);
void stop_free(stop_filter *filter);

// Adds text, and looks for the first stop string in what has come. What may go out now lies at filter->held,
// filter->ready bytes, until the next call: everything before a stop string (filter->stopped is set then and
// all later text is dropped), or up to where one may just be beginning. False: out of memory.
bool stop_push(stop_filter *filter, const char *text, size_t size);
// The stream has ended: what was held back may go out.
void stop_flush(stop_filter *filter);

#endif
