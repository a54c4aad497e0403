// Tables that codes index: built in, or read from a file.
#include <math.h>
#include <stdlib.h>

#include "engine/base/fail.h"
#include "engine/base/file.h"
#include "kernels/quantize.h"

// Learned tables for groups of 32, 64, 128, 256: where Lloyd's algorithm settles on Gaussian weights, with
// the search over scales and signs inside the loop. (The table depends on the group, since scales follow the
// largest weight: up to 1.2 % of the squared error at 32.)
static const float opt2[4][4] = {{-0.727f, -0.157f, 0.338f, 1},
                                 {-0.773f, -0.175f, 0.344f, 1},
                                 {-0.812f, -0.190f, 0.348f, 1},
                                 {-0.848f, -0.205f, 0.346f, 1}};
static const float opt3[4][8] = {{-0.820f, -0.496f, -0.258f, -0.052f, 0.146f, 0.357f, 0.613f, 1},
                                 {-0.805f, -0.490f, -0.256f, -0.053f, 0.145f, 0.355f, 0.609f, 1},
                                 {-0.824f, -0.498f, -0.260f, -0.053f, 0.146f, 0.359f, 0.613f, 1},
                                 {-0.848f, -0.512f, -0.270f, -0.056f, 0.148f, 0.365f, 0.621f, 1}};
static const float opt4[4][16] = {{-0.941f, -0.719f, -0.555f, -0.418f, -0.305f, -0.203f, -0.110f, -0.020f,
                                   0.069f, 0.160f, 0.254f, 0.355f, 0.469f, 0.598f, 0.762f, 1},
                                  {-0.922f, -0.699f, -0.539f, -0.412f, -0.299f, -0.200f, -0.108f, -0.019f,
                                   0.069f, 0.158f, 0.250f, 0.350f, 0.461f, 0.586f, 0.746f, 1},
                                  {-0.895f, -0.691f, -0.535f, -0.404f, -0.293f, -0.194f, -0.104f, -0.018f,
                                   0.068f, 0.156f, 0.247f, 0.346f, 0.453f, 0.578f, 0.742f, 1},
                                  {-0.887f, -0.680f, -0.527f, -0.400f, -0.291f, -0.193f, -0.104f, -0.017f,
                                   0.068f, 0.155f, 0.245f, 0.342f, 0.447f, 0.574f, 0.738f, 1}};

static const float *learned_table(int bits, int group_size) {
    const int row = group_size <= 32 ? 0 : group_size <= 64 ? 1 : group_size <= 128 ? 2 : 3;
    return bits == 2 ? opt2[row] : bits == 3 ? opt3[row] : opt4[row];
}

// The quantile function of the standard normal distribution for 0.5 ≤ p < 1, by Newton's method on erfc.
static double normal_quantile(double p) {
    double x = 0;
    for (int i = 0; i < 100; i++) {
        double step = (0.5 * erfc(-x * M_SQRT1_2) - p) * sqrt(2 * M_PI) * exp(0.5 * x * x);
        x -= step;
        if (fabs(step) < 1e-14) break;
    }
    return x;
}

// NormalFloat (Dettmers et al. 2023, appendix E; the same offset at every width, as FLUTE has it): 2^(b-1)
// quantiles on the positive side, one fewer on the negative, and zero.
static void normal_float(int bits, float *table) {
    const double offset = 0.9677083;
    const int half = 1 << (bits - 1);
    const double largest = normal_quantile(offset);
    for (int i = 0; i < half - 1; i++)
        table[i] = (float)(-normal_quantile(offset + (0.5 - offset) * i / (half - 1)) / largest);
    table[half - 1] = 0;
    for (int i = 0; i < half; i++)
        table[2 * half - 1 - i] = (float)(normal_quantile(offset + (0.5 - offset) * i / half) / largest);
}

void quantize_builtin_table(quantize_table which, weight_type type, int group_size, bf16 table[16]) {
    const int bits = weight_type_bits(type), n = 1 << bits;
    float values[16] = {0};
    if (which == QUANTIZE_NF)
        normal_float(bits, values);
    else if (which == QUANTIZE_INT)
        for (int i = 0; i < n; i++) values[i] = (float)(2 * i - n) / (float)n;
    else
        memcpy(values, learned_table(bits, group_size), (size_t)n * sizeof *values);
    for (int i = 0; i < 16; i++) table[i] = bf16_from_float(values[i]);
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int parse_table(const char *text, const char *path, int n, float *values, flute_error *err) {
    int found = 0;
    for (const char *at = text;;) {
        at += strspn(at, " \t\r\n,");
        if (!*at) break;
        char *end;
        float value = strtof(at, &end);
        if (end == at || !isfinite(value))
            return fail(err, FLUTE_EFORMAT, "%s: '%.20s' is not a number", path, at);
        if (found < n) values[found] = value;
        found++;
        at = end;
    }
    if (found != n)
        return fail(err, FLUTE_EFORMAT, "%s: a table for these weights has %d numbers, this file has %d",
                    path, n, found);
    return FLUTE_OK;
}

int quantize_read_table(const char *path, weight_type type, bf16 table[16], flute_error *err) {
    const int n = 1 << weight_type_bits(type);
    float values[16], largest = 0;
    char *text;
    size_t size;
    int code = file_read(path, &text, &size, err);
    if (code) return code;
    code = parse_table(text, path, n, values, err);
    free(text);
    if (code) return code;
    for (int i = 0; i < n; i++) largest = fmaxf(largest, fabsf(values[i]));
    if (!(largest > 0)) return fail(err, FLUTE_EFORMAT, "%s: all numbers of the table are zero", path);
    qsort(values, (size_t)n, sizeof *values, compare_floats);
    for (int i = 0; i < 16; i++) table[i] = i < n ? bf16_from_float(values[i] / largest) : 0;
    return FLUTE_OK;
}
