// flute.h for a C++ caller, who links the installed library: it sees every function that this names.
#include "engine/flute.h"

#include <cstdio>
#include <cstring>

int main(int argc, char **argv) {
    flute_error err = {};
    flute_model *model = nullptr;
    flute_session *session = nullptr;
    flute_sampling sampling = flute_sampling_default();
    sampling.temperature = 0;
    int32_t ids[3] = {1, 2, 3}, next = -1;
    if (argc != 2) return 2;
    int code = flute_model_open(&model, argv[1], nullptr, &err);
    if (code == FLUTE_OK) code = flute_session_create(&session, model, nullptr, &err);
    if (code == FLUTE_OK) code = flute_session_prefill(session, ids, 3, &err);
    if (code == FLUTE_OK) code = flute_session_sample(session, &sampling, &next, &err);
    if (code == FLUTE_OK) code = flute_session_step(session, next, &sampling, &next, &err);
    flute_session_free(session);
    flute_model_free(model);
    if (code != FLUTE_OK) std::fprintf(stderr, "%s: %s\n", flute_code_text(code), err.message);
    return code != FLUTE_OK || next < 0 || std::strlen(flute_version()) == 0;
}
