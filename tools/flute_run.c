// flute-run: generates text.
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/clock.h"
#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "tools/run.h"

enum { DEFAULT_CONTEXT = 4096 };

// ---- The prompt

typedef struct prompt {
    const char *origin; // for messages about the text
    char *text;         // NULL for --prompt-ids
    size_t size;
    int32_t *ids; // malloc'd, or those of the options
    size_t n;
} prompt;

static int read_prompt(const run_options *o, prompt *p, flute_error *err) {
    const char *path = o->prompt_file ? o->prompt_file : o->prompt;
    if (!path) return FLUTE_OK;
    if (!o->prompt_file && strcmp(path, "-") != 0) {
        p->origin = "-p";
        p->text = strdup(o->prompt);
        p->size = strlen(o->prompt);
        return p->text ? FLUTE_OK : fail_memory(err, p->size, "the prompt");
    }
    p->origin = cli_input_name(path);
    int code = cli_read_text(path, &p->text, &p->size, err);
    if (!code && p->size > 0 && p->text[p->size - 1] == '\n') p->text[--p->size] = 0;
    if (!code && p->size > 0 && p->text[p->size - 1] == '\r') p->text[--p->size] = 0;
    return code;
}

static int tokenize_prompt(const flute_model *model, const run_options *o, prompt *p, flute_error *err) {
    if (o->prompt_ids) {
        p->ids = o->prompt_ids;
        p->n = o->n_prompt_ids;
        return FLUTE_OK;
    }
    // A chat renders its messages itself; without a tokenizer it should fail before anyone has typed one.
    if (o->chat) return cli_tokenize(model, "--chat", "", 0, 0, &p->ids, &p->n, err);
    int code = cli_tokenize(model, p->origin, p->text, p->size, FLUTE_ADD_BOS, &p->ids, &p->n, err);
    if (!code && p->n == 0)
        code = fail(err, FLUTE_EINVAL,
                    "%s: the prompt is empty, and this model has no BOS token to start with", p->origin);
    return code;
}

// What -c says; without it enough for a prompt that is longer than the default context.
static int choose_context(const run_options *o, const flute_model_info *info, const prompt *p) {
    if (o->context) return (int)o->context;
    int64_t context = (int64_t)p->n + (o->max_tokens > 0 ? o->max_tokens : 0);
    if (context < DEFAULT_CONTEXT) context = DEFAULT_CONTEXT;
    return context < info->max_context ? (int)context : info->max_context;
}

// ---- Logits

typedef struct logits_file {
    file_writer *writer;
    size_t row_bytes;
    flute_error *err;
    int code;
} logits_file;

static int write_row(void *user, size_t i, const float *logits) {
    logits_file *file = user;
    (void)i;
    file->code = file_writer_append(file->writer, logits, file->row_bytes, file->err);
    return file->code;
}

static int write_logits(generator *g, const char *path, const prompt *p, flute_error *err) {
    flute_model_info info;
    flute_model_get_info(g->model, &info);
    logits_file file = {.row_bytes = (size_t)info.n_vocab * sizeof(float)};
    flute_error write_error = {0};
    file.err = &write_error;
    file.writer = file_writer_open(path, err);
    if (!file.writer) return FLUTE_EIO;
    const double start = seconds_now();
    int code = flute_session_score(g->session, p->ids, p->n, write_row, &file, err);
    g->prefill_seconds += seconds_now() - start;
    g->prefill_tokens += (int64_t)p->n;
    if (file.code) {
        code = file.code;
        if (err) *err = write_error;
    }
    if (!code) return file_writer_commit(file.writer, err);
    file_writer_abort(file.writer);
    return code;
}

// ---- Reports

static void print_model(const flute_model_info *info, const run_options *o, int context,
                        double load_seconds) {
    fprintf(stderr, "model    %s (%s), %.1f M parameters, %s", info->name, info->architecture,
            (double)info->n_parameters / 1e6, info->weights);
    if (info->group_size) fprintf(stderr, " in groups of %d", info->group_size);
    fprintf(stderr, ", %.1f MiB\n", (double)info->weight_bytes / 0x1p20);
    if (load_seconds > 0)
        fprintf(stderr, "loaded   %.3f GB in %.3f s, %.2f GB/s\n", (double)info->weight_bytes / 1e9,
                load_seconds, (double)info->weight_bytes / 1e9 / load_seconds);
    fprintf(stderr, "device   %s\n", info->device);
    fprintf(stderr, "context  %d tokens, KV cache %.1f MiB\n", context,
            (double)context * (double)info->kv_token_bytes / 0x1p20);
    fprintf(stderr, "seed     %" PRIu64 "\n", o->sampling.seed);
}

static void print_speed(const generator *g, const flute_model_info *info, double bandwidth) {
    const double decode = generator_decode_speed(g);
    const double bytes = decode * (double)info->decode_bytes;
    fprintf(stderr, "prompt %" PRId64 " tokens, %.1f tokens/s", g->prefill_tokens,
            generator_prefill_speed(g));
    if (g->decode_steps > 0)
        fprintf(stderr,
                "; decode %" PRId64
                " tokens, %.1f tokens/s, %.2f GB/s, %.0f %% of the %.1f GB/s that this machine reads",
                g->decode_steps, decode, bytes / 1e9, 100 * bytes / bandwidth, bandwidth / 1e9);
    fputc('\n', stderr);
}

static int print_json(const generator *g, const run_options *o, const flute_model_info *info,
                      double bandwidth, flute_error *err) {
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    if (!doc) return fail(err, FLUTE_ENOMEM, "out of memory for the JSON output");
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_strn(doc, root, "text", g->text ? g->text : "", g->text_size);
    yyjson_mut_obj_add_val(doc, root, "tokens", yyjson_mut_arr_with_sint32(doc, g->ids, g->n_ids));
    yyjson_mut_obj_add_int(doc, root, "prompt_tokens", g->prompt_tokens);
    yyjson_mut_obj_add_real(doc, root, "prefill_tokens_per_second", generator_prefill_speed(g));
    yyjson_mut_obj_add_real(doc, root, "decode_tokens_per_second", generator_decode_speed(g));
    yyjson_mut_obj_add_real(doc, root, "decode_bytes_per_second",
                            generator_decode_speed(g) * (double)info->decode_bytes);
    yyjson_mut_obj_add_real(doc, root, "read_bytes_per_second", bandwidth);
    yyjson_mut_obj_add_str(doc, root, "finish", finish_name(g->finish));
    yyjson_mut_obj_add_uint(doc, root, "seed", o->sampling.seed);
    yyjson_mut_obj_add_str(doc, root, "model", info->name);
    yyjson_mut_obj_add_str(doc, root, "weights", info->weights);
    yyjson_mut_obj_add_str(doc, root, "device", info->device);
    int code = cli_put_json(doc, err);
    yyjson_mut_doc_free(doc);
    return code;
}

// ---- The run

static int complete(generator *g, const run_options *o, const prompt *p, flute_error *err) {
    int code = o->logits_out ? write_logits(g, o->logits_out, p, err) : FLUTE_OK;
    if (!code) code = generate(g, p->ids, p->n, err);
    if (code || !g->stream || g->max_tokens == 0) return code;
    putchar('\n');
    if ((code = cli_flush(err))) return code;
    if (g->finish == FINISH_CONTEXT)
        fprintf(stderr, "[the context of %d tokens is full]\n", flute_session_context(g->session));
    return FLUTE_OK;
}

static int run(const run_options *o, flute_error *err) {
    char default_path[PATH_MAX];
    generator g = {.sampling = o->sampling,
                   .stops = o->stops,
                   .n_stops = o->n_stops,
                   .ignore_eos = o->ignore_eos,
                   .max_tokens = o->max_tokens,
                   .stream = !o->json,
                   .safe = isatty(STDOUT_FILENO)};
    prompt p = {0};
    flute_model_info info;
    flute_session_options session_options = {0};
    double load_seconds = 0;

    int code = read_prompt(o, &p, err);
    const char *path = o->model_path;
    if (!code && !path) {
        code = cli_default_model(default_path, sizeof default_path, err);
        path = default_path;
    }
    if (!code) code = cli_open_model(&g.model, path, &o->model, &load_seconds, err);
    if (!code) code = tokenize_prompt(g.model, o, &p, err);
    if (code) goto done;
    flute_model_get_info(g.model, &info);
    session_options.context = choose_context(o, &info, &p);
    if ((code = flute_session_create(&g.session, g.model, &session_options, err))) goto done;
    if (o->verbose) print_model(&info, o, session_options.context, load_seconds);
    code = o->chat ? run_chat(&g, o, p.text, err) : complete(&g, o, &p, err);
    if (code) goto done;
    if (!o->json && g.prefill_tokens == 0) goto done;   // a chat without a message
    const bool decoded = o->json || g.decode_steps > 0; // else there is nothing to compare with
    const double bandwidth = decoded ? flute_model_measure_bandwidth(g.model) : 0;
    if (o->json) code = print_json(&g, o, &info, bandwidth, err);
    if (!code) print_speed(&g, &info, bandwidth);
done:
    flute_session_free(g.session);
    flute_model_free(g.model);
    generator_free(&g);
    free(p.text);
    if (!o->prompt_ids) free(p.ids);
    return code;
}

int main(int argc, char **argv) {
    run_options options;
    flute_error err = {0};
    bool done;
    cli_set_signals();
    int code = run_parse_options(&options, argc, argv, &done, &err);
    int status = CLI_OK;
    if (code) {
        status = cli_fail("flute-run", &err, !done);
    } else if (!done && ranks_begin("flute-run", &options.ranks, &options.model, &status)) {
        status = run(&options, &err) ? cli_fail("flute-run", &err, false) : CLI_OK;
        ranks_end(&options.model);
    }
    free(options.prompt_ids);
    return status;
}
