// --tp in the tools: the ranks of tensor parallelism, from the command line to the end of the process.
#ifndef FLUTE_TOOLS_RANKS_H
#define FLUTE_TOOLS_RANKS_H

#include <getopt.h>

#include "tools/cli.h"

enum { RANKS_OPT_TP = 1000, RANKS_OPT_TIMEOUT, RANKS_OPT_LOAD, RANKS_OPT_COMM };

// For a table of options, and for --help.
#define RANKS_LONG_OPTIONS                                                                                   \
    {"tp", required_argument, NULL, RANKS_OPT_TP},                                                           \
        {"tp-timeout", required_argument, NULL, RANKS_OPT_TIMEOUT},                                          \
        {"load", required_argument, NULL, RANKS_OPT_LOAD}, {                                                 \
        "comm", required_argument, NULL, RANKS_OPT_COMM                                                      \
    }
#define RANKS_USAGE                                                                                          \
    "      --tp N               tensor parallelism: N ranks share the model; they are started here, "        \
    "unless\n"                                                                                               \
    "                           mpirun, srun or a launcher that sets RANK and WORLD_SIZE has done so\n"      \
    "      --tp-timeout S       seconds in which all ranks must have come (default 60)\n"                    \
    "      --load NAME          map: every rank reads its part of the file; scatter: only the first rank "   \
    "has\n"                                                                                                  \
    "                           it, and sends the others their parts (default map)\n"                        \
    "      --comm NAME          how ranks communicate: nccl (GPUs), mpi, local (shared memory of one "       \
    "host);\n"                                                                                               \
    "                           mpi and local take data of GPUs through the host, and let ranks share one "  \
    "GPU\n"                                                                                                  \
    "                           (default auto: nccl among GPUs, else mpi where it started them, else "       \
    "local)\n"

typedef struct ranks_options {
    int n, timeout_s; // 0: not given
} ranks_options;

// Takes one of the four; false for another option. *code says how it went.
bool ranks_parse_option(int option, const char *text, ranks_options *out, flute_model_options *model,
                        int *code, flute_error *err);

// Starts the ranks. True: this process goes on as rank 0 (or alone) with model->ranks set, and ranks_end
// comes last. False: it is done, and should exit with *status.
bool ranks_begin(const char *tool, const ranks_options *options, flute_model_options *model, int *status);
void ranks_end(const flute_model_options *model);

#endif
