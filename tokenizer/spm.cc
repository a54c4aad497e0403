#include "tokenizer/spm.h"

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

#include "engine/base/fail.h"

// The library decides about the dummy prefix when it loads a model, so a model with one is loaded twice: as
// it is for the start of a text, and without the prefix for what follows a special token. (Gemma's, with
// 256,000 pieces the only large ones, have none and are loaded once.)
struct spm {
    sentencepiece::SentencePieceProcessor start;
    std::unique_ptr<sentencepiece::SentencePieceProcessor> inner; // null: start serves both
};

namespace {

// Runs body, which returns a flute code, and turns whatever it throws into one.
template <typename Body> int guarded(const char *doing, flute_error *err, Body body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(err, FLUTE_ENOMEM, "out of memory while %s", doing);
    } catch (const std::exception &e) {
        return fail(err, FLUTE_EFORMAT, "sentencepiece failed while %s: %s", doing, e.what());
    } catch (...) {
        return fail(err, FLUTE_EFORMAT, "sentencepiece failed while %s", doing);
    }
}

int load(sentencepiece::SentencePieceProcessor &processor, const char *proto, size_t size, const char *origin,
         flute_error *err) {
    sentencepiece::util::Status status = processor.LoadFromSerializedProto(absl::string_view(proto, size));
    if (status.ok()) return FLUTE_OK;
    return fail(err, FLUTE_EFORMAT, "%s: sentencepiece refuses the model (%s); fetch tokenizer.model again",
                origin, status.ToString().c_str());
}

} // namespace

int spm_create(spm **out, const spm_model *model, const char *origin, flute_error *err) {
    *out = nullptr;
    return guarded("loading the sentencepiece model", err, [&]() -> int {
        std::unique_ptr<spm> sp(new spm);
        int code = load(sp->start, model->proto, model->proto_size, origin, err);
        if (code == FLUTE_OK && model->add_dummy_prefix) {
            sp->inner.reset(new sentencepiece::SentencePieceProcessor);
            code = load(*sp->inner, model->proto, model->proto_size + SPM_NO_PREFIX_SIZE, origin, err);
        }
        if (code == FLUTE_OK) *out = sp.release();
        return code;
    });
}

void spm_free(spm *sp) {
    delete sp;
}

int32_t spm_bos(const spm *sp) {
    return sp->start.bos_id();
}

int32_t spm_eos(const spm *sp) {
    return sp->start.eos_id();
}

int32_t spm_find(const spm *sp, const char *spelling) {
    int32_t id = -1;
    (void)guarded("looking up a token", nullptr, [&]() -> int {
        // PieceToId answers with the unknown piece for what it does not know.
        int found = sp->start.PieceToId(spelling);
        if (found >= 0 && sp->start.IdToPiece(found) == spelling) id = found;
        return FLUTE_OK;
    });
    return id;
}

int spm_encode(const spm *sp, const char *text, size_t size, bool at_start, id_sink *sink, flute_error *err) {
    return guarded("encoding a text", err, [&]() -> int {
        const sentencepiece::SentencePieceProcessor &processor =
            at_start || !sp->inner ? sp->start : *sp->inner;
        std::vector<int> ids;
        sentencepiece::util::Status status = processor.Encode(absl::string_view(text, size), &ids);
        if (!status.ok())
            return fail(err, FLUTE_EFORMAT, "sentencepiece cannot encode the text: %s",
                        status.ToString().c_str());
        for (int id : ids) id_sink_push(sink, id);
        return FLUTE_OK;
    });
}
