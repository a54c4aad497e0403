#include "tools/stop.h"

#include <stdlib.h>
#include <string.h>

void stop_init(stop_filter *filter, const char *const *strings, int n) {
    *filter = (stop_filter){.strings = strings, .n = n};
}

void stop_free(stop_filter *filter) {
    free(filter->held);
    *filter = (stop_filter){0};
}

static void drop_ready(stop_filter *filter) {
    filter->held_size -= filter->ready;
    memmove(filter->held, filter->held + filter->ready, filter->held_size);
    filter->ready = 0;
}

// Bytes at the end of text that are a beginning of string, but not all of it.
static size_t beginning_at_end(const char *text, size_t size, const char *string) {
    size_t length = strlen(string) - 1;
    if (length > size) length = size;
    while (length > 0 && memcmp(text + size - length, string, length) != 0) length--;
    return length;
}

bool stop_push(stop_filter *filter, const char *text, size_t size) {
    if (filter->ready) drop_ready(filter);
    if (filter->stopped || size == 0) return true;
    if (filter->capacity - filter->held_size < size) {
        const size_t capacity = 2 * filter->capacity + size + 256;
        char *held = realloc(filter->held, capacity);
        if (!held) return false;
        filter->held = held;
        filter->capacity = capacity;
    }
    memcpy(filter->held + filter->held_size, text, size);
    filter->held_size += size;

    size_t keep = 0, first = filter->held_size;
    for (int i = 0; i < filter->n; i++) {
        const char *string = filter->strings[i];
        const char *at = memmem(filter->held, filter->held_size, string, strlen(string));
        if (at && (size_t)(at - filter->held) < first) first = (size_t)(at - filter->held);
        filter->stopped = filter->stopped || at;
        const size_t begun = beginning_at_end(filter->held, filter->held_size, string);
        if (begun > keep) keep = begun;
    }
    if (filter->stopped) filter->held_size = first;
    filter->ready = filter->stopped ? first : filter->held_size - keep;
    return true;
}

void stop_flush(stop_filter *filter) {
    if (filter->ready) drop_ready(filter);
    filter->ready = filter->held_size;
}
