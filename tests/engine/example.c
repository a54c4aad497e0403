// The smallest useful program on the public API: continues a prompt greedily.
//   example MODEL.flt "Once upon a time"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <flute.h>

static int generate(flute_model *model, flute_session *session, const char *prompt, flute_error *err) {
    int32_t ids[512], id;
    flute_detokenizer *detok = NULL;
    flute_sampling greedy = flute_sampling_default();
    greedy.temperature = 0;

    int64_t n = flute_tokenize(model, prompt, strlen(prompt), FLUTE_ADD_BOS, ids, 512, err);
    int code = n < 0     ? (int)n
               : n > 512 ? FLUTE_ECONTEXT
                         : flute_session_prefill(session, ids, (size_t)n, err);
    if (!code) code = flute_detokenizer_create(&detok, model, err);
    for (int i = 0; !code && i < 32; i++) {
        if ((code = flute_session_sample(session, &greedy, &id, err)) || flute_token_is_eos(model, id)) break;
        fputs(flute_detokenizer_push(detok, id, NULL), stdout);
        code = flute_session_decode(session, id, err);
    }
    if (!code) puts(flute_detokenizer_flush(detok, NULL));
    flute_detokenizer_free(detok);
    return code;
}

int main(int argc, char **argv) {
    flute_error err = {0};
    flute_model *model = NULL;
    flute_session *session = NULL;
    if (argc != 3) return fprintf(stderr, "usage: example MODEL.flt PROMPT\n"), 2;
    int code = flute_model_open(&model, argv[1], NULL, &err);
    if (!code) code = flute_session_create(&session, model, NULL, &err);
    if (!code) code = generate(model, session, argv[2], &err);
    if (code) fprintf(stderr, "example: %s\n", err.message);
    flute_session_free(session);
    flute_model_free(model);
    return code ? EXIT_FAILURE : EXIT_SUCCESS;
}
