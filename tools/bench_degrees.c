// flute-bench --tp 1,2,4: each degree in a process of its own, one after the other, and how they scale. A
// process says what it measured as it does to other programs, in JSON.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/fail.h"
#include "tools/bench.h"
#include "tools/cli.h"

// What one process writes until it ends.
static int read_all(int file, char **out, size_t *size, flute_error *err) {
    char piece[4096];
    FILE *text = open_memstream(out, size);
    if (!text) return fail(err, FLUTE_ENOMEM, "out of memory for the results");
    for (ssize_t n; (n = read(file, piece, sizeof piece)) > 0;) fwrite(piece, 1, (size_t)n, text);
    return fclose(text) ? fail(err, FLUTE_ENOMEM, "out of memory for the results") : FLUTE_OK;
}

// Measures in a process of its own. *status: how it ended; unless with CLI_OK, it has said why.
static int run_degree(const bench_options *options, int degree, bench_main *run, yyjson_doc **out,
                      int *status, flute_error *err) {
    int ends[2];
    char *text = NULL;
    size_t size = 0;
    if (pipe(ends)) return fail(err, FLUTE_EIO, "no pipe for the results");
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        bench_options own = *options;
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        close(ends[0]);
        own.ranks.n = degree;
        own.results = fdopen(ends[1], "w");
        exit(own.results ? run(&own) : CLI_FAILED);
    }
    close(ends[1]);
    int code = child > 0 ? read_all(ends[0], &text, &size, err)
                         : fail(err, FLUTE_ENOMEM, "cannot start a process for %d ranks", degree);
    close(ends[0]);
    if (child > 0 && waitpid(child, status, 0) == child)
        *status = WIFEXITED(*status) ? WEXITSTATUS(*status) : CLI_FAILED;
    if (!code && *status == CLI_OK && !(*out = yyjson_read(text, size, 0)))
        code = fail(err, FLUTE_EIO, "the results of %d ranks are no JSON", degree);
    free(text);
    return code;
}

// ---- How they scale

// Prints record i of a part, or adds it to the array. The first degree is what the others are compared with.
static void scale_record(const bench_options *options, yyjson_doc *const *docs, const char *part, size_t i,
                         yyjson_mut_doc *doc, yyjson_mut_val *array) {
    double first = 0; // tokens per second and rank
    for (int d = 0; d < options->degrees.n; d++) {
        yyjson_val *record = yyjson_arr_get(yyjson_obj_get(yyjson_doc_get_root(docs[d]), part), i);
        const int ranks = options->degrees.values[d];
        const double tokens = yyjson_get_num(yyjson_obj_get(record, "tokens_per_second"));
        const bool decode = strcmp(part, "decode") == 0;
        const int context = yyjson_get_int(yyjson_obj_get(record, decode ? "context" : "prompt"));
        const int batch = decode ? yyjson_get_int(yyjson_obj_get(record, "batch")) : 1;
        if (d == 0) first = tokens / ranks;
        const double efficiency = tokens / ranks / first;
        if (!array) {
            printf("%8s %8d %6d %6d %12.1f %9.1f\n", part, context, batch, ranks, tokens, 100 * efficiency);
            continue;
        }
        yyjson_mut_val *out = yyjson_mut_arr_add_obj(doc, array);
        yyjson_mut_obj_add_strcpy(doc, out, "part", part);
        yyjson_mut_obj_add_int(doc, out, "tokens", context);
        yyjson_mut_obj_add_int(doc, out, "batch", batch);
        yyjson_mut_obj_add_int(doc, out, "ranks", ranks);
        yyjson_mut_obj_add_real(doc, out, "tokens_per_second", tokens);
        yyjson_mut_obj_add_real(doc, out, "efficiency", efficiency);
    }
}

static void scale_all(const bench_options *options, yyjson_doc *const *docs, yyjson_mut_doc *doc,
                      yyjson_mut_val *array) {
    static const char *const parts[] = {"prefill", "decode"};
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++) {
        const size_t n = yyjson_arr_size(yyjson_obj_get(yyjson_doc_get_root(docs[0]), parts[part]));
        for (size_t i = 0; i < n; i++) scale_record(options, docs, parts[part], i, doc, array);
    }
}

static int report(const bench_options *options, yyjson_doc *const *docs, flute_error *err) {
    if (!options->json) {
        printf("\nscaling: a rank's tokens/s, in %% of a rank's with --tp %d\n%8s %8s %6s %6s %12s %9s\n",
               options->degrees.values[0], "", "tokens", "batch", "tp", "tokens/s", "%");
        scale_all(options, docs, NULL, NULL);
        return cli_flush(err);
    }
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    if (!doc) return fail(err, FLUTE_ENOMEM, "out of memory for the results");
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_val *degrees = yyjson_mut_obj_add_arr(doc, root, "degrees");
    for (int d = 0; d < options->degrees.n; d++)
        yyjson_mut_arr_append(degrees, yyjson_val_mut_copy(doc, yyjson_doc_get_root(docs[d])));
    scale_all(options, docs, doc, yyjson_mut_obj_add_arr(doc, root, "scaling"));
    const int code = cli_put_json(doc, err);
    yyjson_mut_doc_free(doc);
    return code;
}

int bench_degrees(const bench_options *options, bench_main *run) {
    yyjson_doc *docs[BENCH_MAX_VALUES] = {0};
    flute_error err = {0};
    int status = CLI_OK, code = FLUTE_OK;
    if (options->plot_path)
        code = fail(&err, FLUTE_EINVAL, "--plot draws one degree: give --tp a single number");
    for (int d = 0; d < options->degrees.n && !code && status == CLI_OK; d++) {
        if (!options->json) printf("%s--tp %d\n", d ? "\n" : "", options->degrees.values[d]);
        code = run_degree(options, options->degrees.values[d], run, &docs[d], &status, &err);
    }
    if (!code && status == CLI_OK) code = report(options, docs, &err);
    for (int d = 0; d < options->degrees.n; d++) yyjson_doc_free(docs[d]);
    return code ? cli_fail("flute-bench", &err, code == FLUTE_EINVAL) : status;
}
