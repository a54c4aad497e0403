// What rank 0 tells the others, so that they do what it does. Every call is a step that all ranks take; with
// a NULL lead, or one without ranks, nothing is told. follow.c is the other end.
#ifndef FLUTE_LEAD_H
#define FLUTE_LEAD_H

#include "engine/ranks.h"
#include "kernels/kernels.h"

typedef struct lead {
    flute_ranks *ranks; // NULL: a single rank
    int model;          // its number
} lead;

// The first part of RANKS_OPEN.
typedef struct open_message {
    int32_t device, kernels, n_threads, comm; // as in flute_model_options
    bool verify, scatter;
    char comm_kind[16];
    comm_ticket ticket;
    uint64_t identity; // flt_identity of rank 0's file
    uint64_t file_size, header_size;
    int64_t n_chunks; // of the file
    char path[4096];
} open_message;

typedef struct reserve_message {
    int32_t max_rows, max_logits, max_sequences, max_blocks;
} reserve_message;

// Arrays follow: ids, positions, sequences (n_rows each), logits_rows (n_logits), block_tables (n_sequences,
// max_blocks).
typedef struct step_message {
    int32_t n_rows, n_sequences, max_blocks, n_logits;
} step_message;

typedef struct measure_message {
    uint64_t n_floats;
    int32_t repeats;
} measure_message;

struct flute_model;

// The others open the model, rank 0's being read already, and join its communication: model->comm. With
// scatter they receive their parts. The contents of the file are verified by all ranks of a host together.
int lead_open(struct flute_model *model, const flute_model_options *options, flute_error *err);
// Waits until the others have placed their weights.
int lead_placed(const lead *l, flute_error *err);
void lead_close(const lead *l);

// blocks: (n_blocks) numbers of those in use.
int lead_grow(const lead *l, int n_blocks_new, const int32_t *blocks, int n_blocks, flute_error *err);
void lead_copy_block(const lead *l, int from, int to);
// The others begin, and rank 0 must do the same: buffers may be a matter of all ranks. lead_reserved waits
// for them; own is what became of it at rank 0, which if it failed is the end of all.
int lead_reserve(const lead *l, const reserve_message *sizes, flute_error *err);
int lead_reserved(const lead *l, int own, flute_error *err);
int lead_step(const lead *l, const kernel_batch *batch, flute_error *err);
// All ranks: that many all-reduces; the time of one.
int lead_measure(const lead *l, comm *c, const measure_message *what, double *seconds, flute_error *err);
int measure_all_reduce(comm *c, const measure_message *what, double *seconds, flute_error *err);
// The error of a step, or what is behind it.
int lead_failure(const lead *l, int code, flute_error *err);

#endif
