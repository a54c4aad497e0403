#include "kernels/sample.h"

#include <math.h>
#include <string.h>

#include "engine/base/fail.h"

void sample_philox(const uint32_t key[2], uint32_t counter[4]) {
    uint32_t key0 = key[0], key1 = key[1];
    for (int round = 0; round < 10; round++, key0 += 0x9e3779b9u, key1 += 0xbb67ae85u) {
        uint64_t product0 = (uint64_t)0xd2511f53u * counter[0], product1 = (uint64_t)0xcd9e8d57u * counter[2];
        uint32_t next0 = (uint32_t)(product1 >> 32) ^ counter[1] ^ key0;
        uint32_t next2 = (uint32_t)(product0 >> 32) ^ counter[3] ^ key1;
        counter[0] = next0;
        counter[1] = (uint32_t)product1;
        counter[2] = next2;
        counter[3] = (uint32_t)product0;
    }
}

double sample_uniform(uint64_t seed, uint64_t position) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    sample_philox(key, words);
    return (double)(((uint64_t)words[1] << 32 | words[0]) >> 11) * 0x1p-53;
}

typedef struct sampler {
    float *logits;  // (n_vocab) after penalties
    float *weights; // (n_vocab) exp((logit − largest) / temperature)
    int32_t *ids;   // (n_vocab) occurrences in history first, later the tokens in the order of selection
    int n_vocab;
} sampler;

size_t sample_scratch_bytes(int n_vocab) {
    return (size_t)n_vocab * (2 * sizeof(float) + sizeof(int32_t));
}

// The larger logit ranks first, the lower id among equals.
static int ranks_before(const sampler *s, int32_t a, int32_t b) {
    float la = s->logits[a], lb = s->logits[b];
    return la > lb || (la == lb && a < b);
}

static void apply_penalties(sampler *s, const sample_args *args) {
    int32_t *counts = s->ids;
    const float repeat = args->repeat_penalty > 0 ? args->repeat_penalty : 1;
    for (int i = 0; i < args->n_history; i++)
        if ((uint32_t)args->history[i] < (uint32_t)s->n_vocab) counts[args->history[i]] = 0;
    for (int i = 0; i < args->n_history; i++)
        if ((uint32_t)args->history[i] < (uint32_t)s->n_vocab) counts[args->history[i]]++;
    for (int i = 0; i < args->n_history; i++) {
        const int32_t id = args->history[i];
        if ((uint32_t)id >= (uint32_t)s->n_vocab || counts[id] == 0) continue;
        float logit = s->logits[id];
        logit = logit > 0 ? logit / repeat : logit * repeat;
        s->logits[id] = logit - args->presence_penalty - (float)counts[id] * args->frequency_penalty;
        counts[id] = 0; // once for each token
    }
}

// The first of the largest logits; −1 unless it is finite and none is NaN.
static int32_t largest(const float *logits, int n_vocab) {
    int32_t best = 0;
    int n_nan = 0;
    for (int32_t id = 0; id < n_vocab; id++) {
        n_nan += isnan(logits[id]);
        if (logits[id] > logits[best]) best = id;
    }
    return n_nan == 0 && isfinite(logits[best]) ? best : -1;
}

// Moves the tokens of ids[begin, end) that rank before the one of middle rank among three to the front, that
// one behind them, and returns its place.
static int partition(sampler *s, int begin, int end) {
    int32_t *ids = s->ids;
    int a = begin, b = begin + (end - begin) / 2, c = end - 1, pivot = b;
    if (ranks_before(s, ids[a], ids[b]) != ranks_before(s, ids[a], ids[c]))
        pivot = a;
    else if (ranks_before(s, ids[c], ids[a]) != ranks_before(s, ids[c], ids[b]))
        pivot = c;
    const int32_t chosen = ids[pivot];
    ids[pivot] = ids[c];
    int place = begin;
    for (int i = begin; i < c; i++) {
        if (!ranks_before(s, ids[i], chosen)) continue;
        int32_t moved = ids[i];
        ids[i] = ids[place];
        ids[place++] = moved;
    }
    ids[c] = ids[place];
    ids[place] = chosen;
    return place;
}

// What a token adds to the amount that a filter collects: its weight for top-p, 1 for top-k.
static double share(const sampler *s, int32_t id, int by_weight) {
    return by_weight ? s->weights[id] : 1.0;
}

// Quickselect: brings the fewest best tokens that hold `amount` together to the front of ids[0, n), in no
// order, and returns how many (1 to n).
static int select_best(sampler *s, int n, double amount, int by_weight) {
    int begin = 0, end = n;
    while (end - begin > 1) {
        int place = partition(s, begin, end);
        double held = 0;
        for (int i = begin; i < place; i++) held += share(s, s->ids[i], by_weight);
        double with_pivot = held + share(s, s->ids[place], by_weight);
        if (place > begin && held >= amount) {
            end = place;
        } else if (with_pivot >= amount || place == end - 1) {
            return place + 1;
        } else {
            amount -= with_pivot;
            begin = place + 1;
        }
    }
    return end;
}

// The best k tokens (or all that have any weight, if these are fewer) to the front of ids; returns how many,
// and what they weigh.
// Whenever twice k have gathered, the lesser half leaves, and later tokens must beat all that stayed: few do,
// so this is one quick walk through the logits.
static int select_top_k(sampler *s, int k, double *total) {
    float bound = -INFINITY;
    int n = 0;
    for (int32_t id = 0; id < s->n_vocab; id++) {
        if (!(s->logits[id] > bound && s->weights[id] > 0)) continue;
        s->ids[n++] = id;
        if (n < 2 * (int64_t)k) continue;
        n = select_best(s, n, k, 0);
        bound = s->logits[s->ids[0]];
        for (int i = 1; i < n; i++) bound = fminf(bound, s->logits[s->ids[i]]);
    }
    if (n > k) n = select_best(s, n, k, 0);
    *total = 0;
    for (int i = 0; i < n; i++) *total += s->weights[s->ids[i]];
    return n;
}

// The tokens that top-p may keep to the front of ids; returns how many, and what all tokens weigh. Those
// below the mean share of what top-p drops hold less than all of it together, so that none of them is kept.
static int select_likely(sampler *s, double top_p, double *total) {
    int n = 0;
    *total = 0;
    for (int32_t id = 0; id < s->n_vocab; id++) *total += s->weights[id];
    const double least = (1 - top_p) * *total / s->n_vocab * 0.999; // sums round
    for (int32_t id = 0; id < s->n_vocab; id++)
        if (s->weights[id] > 0 && s->weights[id] >= least) s->ids[n++] = id;
    return n;
}

// The last token in rank that top-k and top-p keep; −1 when they keep all.
static int32_t find_cut(sampler *s, const sample_args *args) {
    const int has_top_k = args->top_k > 0 && args->top_k < s->n_vocab, has_top_p = args->top_p < 1;
    if (!has_top_k && !has_top_p) return -1;
    const double top_p = fmax(args->top_p, 0);
    double total;
    int n = has_top_k ? select_top_k(s, args->top_k, &total) : select_likely(s, top_p, &total);
    if (has_top_p) n = select_best(s, n, top_p * total, 1);
    int32_t cut = s->ids[0];
    for (int i = 1; i < n; i++)
        if (ranks_before(s, cut, s->ids[i])) cut = s->ids[i];
    return cut;
}

static int32_t draw(const sampler *s, const sample_args *args, int32_t cut) {
    const float least = fminf(args->min_p, 1.0f); // the best has weight 1
    double total = 0, sum = 0;
    for (int pass = 0; pass < 2; pass++) {
        const double target = pass ? sample_uniform(args->seed, args->position) * total : INFINITY;
        sum = 0;
        for (int32_t id = 0; id < s->n_vocab; id++) {
            if (s->weights[id] < least || (cut >= 0 && ranks_before(s, cut, id))) continue;
            sum += s->weights[id];
            if (sum > target) return id;
        }
        total = sum;
    }
    return -1; // not reached: u < 1, and both passes sum alike
}

int sample_token(const sample_args *args, const float *logits, int n_vocab, void *scratch, int32_t *token,
                 flute_error *err) {
    sampler s = {.logits = (float *)scratch, .n_vocab = n_vocab};
    s.weights = s.logits + n_vocab;
    s.ids = (int32_t *)(s.weights + n_vocab);
    memcpy(s.logits, logits, (size_t)n_vocab * sizeof *logits);
    apply_penalties(&s, args);

    const int32_t best = largest(s.logits, n_vocab);
    if (best < 0)
        return fail(err, FLUTE_ERANGE,
                    "the model's logits are not finite: its weights are damaged, or not those of this "
                    "architecture; convert the checkpoint again");
    if (!(args->temperature > 0)) {
        *token = best;
        return FLUTE_OK;
    }
    for (int32_t id = 0; id < n_vocab; id++) {
        const float below = s.logits[id] - s.logits[best];
        s.weights[id] = below > -INFINITY ? expf(below / args->temperature) : 0;
    }
    *token = draw(&s, args, find_cut(&s, args));
    return FLUTE_OK;
}
