#include "tokenizer/spm_model.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/fail.h"

// Field numbers of sentencepiece_model.proto.
enum {
    MODEL_PIECES = 1,
    MODEL_TRAINER = 2,
    MODEL_NORMALIZER = 3,
    MODEL_SELF_TEST = 4,
    MODEL_DENORMALIZER = 5
};
enum { PIECE_TEXT = 1, PIECE_TYPE = 3 };
enum { TRAINER_MODEL_TYPE = 3, TRAINER_SUFFIX = 24 };
enum { NORMALIZER_CHARSMAP = 2, NORMALIZER_DUMMY_PREFIX = 3, NORMALIZER_ESCAPE = 5 };
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };
enum { MODEL_TYPE_UNIGRAM = 1, MODEL_TYPE_BPE = 2 };
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct reader {
    const uint8_t *at;
    const uint8_t *end;
} reader;

typedef struct field {
    uint32_t number;
    int wire;
    uint64_t value;       // of a varint
    const uint8_t *bytes; // of WIRE_BYTES
    size_t size;
    const uint8_t *begin; // the whole field, tag included
} field;

static bool read_varint(reader *in, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
        uint8_t byte = *in->at++;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

// Reads the next field; false at a malformed one. Call while in->at < in->end.
static bool read_field(reader *in, field *out) {
    uint64_t tag;
    *out = (field){.begin = in->at};
    if (!read_varint(in, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) return false;
    out->number = (uint32_t)(tag >> 3);
    out->wire = (int)(tag & 7);
    uint64_t size = out->wire == WIRE_64 ? 8 : out->wire == WIRE_32 ? 4 : 0;
    switch (out->wire) {
    case WIRE_VARINT:
        return read_varint(in, &out->value);
    case WIRE_BYTES:
        if (!read_varint(in, &size)) return false;
        break;
    case WIRE_64:
    case WIRE_32:
        break;
    default: // groups, which no ModelProto has
        return false;
    }
    if (size > (uint64_t)(in->end - in->at)) return false;
    out->bytes = in->at;
    out->size = (size_t)size;
    in->at += size;
    return true;
}

bool spm_model_probe(const void *blob, size_t size) {
    reader in = {blob, (const uint8_t *)blob + size};
    field first, second;
    return size > 0 && read_field(&in, &first) && first.number == MODEL_PIECES && first.wire == WIRE_BYTES &&
           first.size > 0 && in.at < in.end && read_field(&in, &second);
}

typedef struct piece {
    const char *text;
    size_t size;
    uint64_t type;
} piece;

static int read_piece(piece *out, const field *message, int32_t id, const char *origin, flute_error *err) {
    *out = (piece){.type = TYPE_NORMAL};
    reader in = {message->bytes, message->bytes + message->size};
    while (in.at < in.end) {
        field f;
        if (!read_field(&in, &f))
            return fail(err, FLUTE_EFORMAT,
                        "%s: piece %d of the sentencepiece model is damaged; fetch it again", origin,
                        (int)id);
        if (f.number == PIECE_TEXT && f.wire == WIRE_BYTES) {
            out->text = (const char *)f.bytes;
            out->size = f.size;
        } else if (f.number == PIECE_TYPE && f.wire == WIRE_VARINT) {
            out->type = f.value;
        }
    }
    // An embedded NUL would end the spelling in the library's tries and not here.
    if (out->size == 0 || memchr(out->text, '\0', out->size))
        return fail(err, FLUTE_EFORMAT, "%s: piece %d of the sentencepiece model is empty or contains a NUL",
                    origin, (int)id);
    if (out->type < TYPE_NORMAL || out->type > TYPE_BYTE)
        return fail(err, FLUTE_EFORMAT, "%s: piece %d of the sentencepiece model has the unknown type %llu",
                    origin, (int)id, (unsigned long long)out->type);
    return FLUTE_OK;
}

static bool is_turn_marker(const piece *p) {
    static const char *const markers[] = {"<start_of_turn>", "<end_of_turn>"};
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++)
        if (strlen(markers[i]) == p->size && memcmp(markers[i], p->text, p->size) == 0) return true;
    return false;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// The byte that "<0xNN>" stands for, or -1.
static int piece_byte(const piece *p) {
    if (p->size != 6 || memcmp(p->text, "<0x", 3) != 0 || p->text[5] != '>') return -1;
    int high = hex_digit(p->text[3]), low = hex_digit(p->text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// Appends the text that the piece stands for; ▁ (U+2581, three bytes) shrinks to a space in place.
static int append_token(token_table *tokens, const piece *p, const char *origin, flute_error *err) {
    static const char unknown[] = " \xE2\x81\x87 "; // sentencepiece's own rendering, " ⁇ "
    if (p->type == TYPE_UNKNOWN) {
        token_table_append(tokens, unknown, sizeof unknown - 1, false);
        return FLUTE_OK;
    }
    if (p->type == TYPE_BYTE) {
        int byte = piece_byte(p);
        if (byte < 0)
            return fail(err, FLUTE_EFORMAT,
                        "%s: byte piece %d of the sentencepiece model is spelled '%s', not <0xNN>", origin,
                        (int)tokens->n, token_quote(p->text, p->size).text);
        char c = (char)byte;
        token_table_append(tokens, &c, 1, false);
        return FLUTE_OK;
    }
    if (p->type == TYPE_CONTROL) {
        token_table_append(tokens, p->text, p->size, true);
        return FLUTE_OK;
    }
    char *out = tokens->bytes + tokens->start[tokens->n];
    size_t n = 0;
    for (size_t i = 0; i < p->size;) {
        bool space = p->size - i >= 3 && memcmp(p->text + i, "\xE2\x96\x81", 3) == 0;
        out[n++] = space ? ' ' : p->text[i];
        i += space ? 3 : 1;
    }
    token_table_append(tokens, out, n, false);
    return FLUTE_OK;
}

static void put_bytes(spm_model *model, const uint8_t *bytes, size_t size) {
    memcpy(model->proto + model->proto_size, bytes, size);
    model->proto_size += size;
}

// Copies a piece's field with a second type behind the first: the last one wins.
static void put_control_piece(spm_model *model, const field *f) {
    static const uint8_t type[] = {PIECE_TYPE << 3 | WIRE_VARINT, TYPE_CONTROL};
    uint8_t head[11] = {MODEL_PIECES << 3 | WIRE_BYTES};
    size_t n = 1;
    for (uint64_t size = f->size + sizeof type; size; size >>= 7)
        head[n++] = (uint8_t)((size & 0x7F) | (size > 0x7F ? 0x80 : 0));
    put_bytes(model, head, n);
    put_bytes(model, f->bytes, f->size);
    put_bytes(model, type, sizeof type);
}

static int take_piece(spm_model *model, token_table *tokens, const field *f, const uint8_t *end,
                      const char *origin, flute_error *err) {
    piece p;
    int code = read_piece(&p, f, tokens->n, origin, err);
    if (code) return code;
    if ((p.type == TYPE_USER_DEFINED || p.type == TYPE_NORMAL) && is_turn_marker(&p)) {
        p.type = TYPE_CONTROL;
        put_control_piece(model, f);
    } else {
        put_bytes(model, f->begin, (size_t)(end - f->begin));
    }
    return append_token(tokens, &p, origin, err);
}

static int check_trainer(const field *f, uint64_t *model_type, const char *origin, flute_error *err) {
    reader in = {f->bytes, f->bytes + f->size};
    while (in.at < in.end) {
        field option;
        if (!read_field(&in, &option))
            return fail(err, FLUTE_EFORMAT, "%s: the trainer section of the sentencepiece model is damaged",
                        origin);
        if (option.number == TRAINER_MODEL_TYPE && option.wire == WIRE_VARINT) *model_type = option.value;
        if (option.number == TRAINER_SUFFIX && option.wire == WIRE_VARINT && option.value)
            return fail(err, FLUTE_EUNSUPPORTED, "%s: treat_whitespace_as_suffix is not supported", origin);
    }
    return FLUTE_OK;
}

// A character map is a trie that the library follows without bounds checks, and no Llama or Gemma model has
// one (their normalizer is "identity"), so it is refused in either direction.
static int check_normalizer(spm_model *model, const field *f, const char *origin, flute_error *err) {
    reader in = {f->bytes, f->bytes + f->size};
    while (in.at < in.end) {
        field option;
        if (!read_field(&in, &option))
            return fail(err, FLUTE_EFORMAT,
                        "%s: the normalizer section of the sentencepiece model is damaged", origin);
        if (option.number == NORMALIZER_CHARSMAP && option.size > 0)
            return fail(err, FLUTE_EUNSUPPORTED,
                        "%s: the sentencepiece model normalizes characters; only the identity normalizer of "
                        "Llama and Gemma is supported",
                        origin);
        if (option.number == NORMALIZER_ESCAPE && option.wire == WIRE_VARINT && !option.value)
            return fail(err, FLUTE_EUNSUPPORTED, "%s: escape_whitespaces = false is not supported", origin);
        if (f->number == MODEL_NORMALIZER && option.number == NORMALIZER_DUMMY_PREFIX &&
            option.wire == WIRE_VARINT)
            model->add_dummy_prefix = option.value != 0;
    }
    return FLUTE_OK;
}

// Counts the pieces, so that the table can be reserved; the texts together are no longer than the blob, the
// unknown piece's aside (" ⁇ " may be longer than its spelling).
static bool count_pieces(const void *blob, size_t size, size_t *n) {
    reader in = {blob, (const uint8_t *)blob + size};
    *n = 0;
    while (in.at < in.end) {
        field f;
        if (!read_field(&in, &f)) return false;
        *n += f.number == MODEL_PIECES && f.wire == WIRE_BYTES;
    }
    return true;
}

int spm_model_parse(spm_model *model, token_table *tokens, const void *blob, size_t size, const char *origin,
                    flute_error *err) {
    static const uint8_t no_prefix[SPM_NO_PREFIX_SIZE] = {MODEL_NORMALIZER << 3 | WIRE_BYTES, 2,
                                                          NORMALIZER_DUMMY_PREFIX << 3 | WIRE_VARINT, 0};
    *model = (spm_model){.add_dummy_prefix = true};
    size_t n;
    if (!count_pieces(blob, size, &n))
        return fail(err, FLUTE_EFORMAT,
                    "%s: not a sentencepiece model, or cut short; fetch tokenizer.model again", origin);
    int code = token_table_reserve(tokens, n, size + 5 * n, err);
    if (code) return code;
    // A promoted turn marker grows by at most 3 of its at least 17 bytes.
    model->proto = malloc(size + size / 4 + SPM_NO_PREFIX_SIZE);
    if (!model->proto) return fail_memory(err, size, "the sentencepiece model");
    uint64_t model_type = MODEL_TYPE_UNIGRAM; // sentencepiece's default
    reader in = {blob, (const uint8_t *)blob + size};
    while (in.at < in.end && code == FLUTE_OK) {
        field f;
        (void)read_field(&in, &f); // count_pieces has read it before
        bool message = f.wire == WIRE_BYTES;
        if (message && f.number == MODEL_PIECES) {
            code = take_piece(model, tokens, &f, in.at, origin, err);
            continue;
        }
        if (message && f.number == MODEL_TRAINER) code = check_trainer(&f, &model_type, origin, err);
        if (message && (f.number == MODEL_NORMALIZER || f.number == MODEL_DENORMALIZER))
            code = check_normalizer(model, &f, origin, err);
        if (f.number != MODEL_SELF_TEST) put_bytes(model, f.begin, (size_t)(in.at - f.begin));
    }
    if (code == FLUTE_OK && model_type != MODEL_TYPE_BPE)
        code = fail(err, FLUTE_EUNSUPPORTED,
                    "%s: sentencepiece model type %llu; only BPE (2), as in Llama and Gemma, is supported",
                    origin, (unsigned long long)model_type);
    if (code == FLUTE_OK) memcpy(model->proto + model->proto_size, no_prefix, sizeof no_prefix);
    return code;
}

void spm_model_clear(spm_model *model) {
    free(model->proto);
    *model = (spm_model){0};
}
