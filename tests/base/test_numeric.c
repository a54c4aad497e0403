// Conversions of 16-bit floats against exact arithmetic: every value, every halfway point, and the compiler's
// own _Float16 on random patterns.
#include "tests/base/helper.h"

#include <math.h>

#include "engine/base/numeric.h"

// The value of a finite binary16 pattern, from its definition.
static double f16_exact(uint16_t bits) {
    int exponent = (bits >> 10) & 31;
    int mantissa = bits & 1023;
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return bits & 0x8000 ? -magnitude : magnitude;
}

static void test_f16_every_value(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = f16_to_float((f16)bits);
        if ((bits & 0x7fff) > 0x7c00) { // NaN stays NaN, with its sign
            assert_true(isnan(value));
            f16 back = f16_from_float(value);
            assert_true((back & 0x7fff) > 0x7c00);
            assert_int_equal(back & 0x8000, bits & 0x8000);
            continue;
        }
        if ((bits & 0x7fff) == 0x7c00) {
            assert_true(isinf(value) && !signbit(value) == !(bits & 0x8000));
        } else {
            assert_true((double)value == f16_exact((uint16_t)bits));
            assert_int_equal(!!signbit(value), bits >> 15);
        }
        assert_int_equal(f16_from_float(value), bits);
    }
}

// Between two neighbours a < b: the middle goes to the even one, a hair to either side to the nearer one.
static void test_f16_every_halfway_point(void **state) {
    (void)state;
    for (uint32_t a = 0; a < 0x7c00; a++) {
        uint32_t b = a + 1; // 0x7c00, infinity, stands for 65536 here
        double upper = b == 0x7c00 ? 65536.0 : f16_exact((uint16_t)b);
        float middle = (float)((f16_exact((uint16_t)a) + upper) / 2);
        uint32_t even = a & 1 ? b : a;
        assert_int_equal(f16_from_float(middle), even);
        assert_int_equal(f16_from_float(nextafterf(middle, 0.0f)), a);
        assert_int_equal(f16_from_float(nextafterf(middle, INFINITY)), b);
        assert_int_equal(f16_from_float(-middle), even | 0x8000);
        assert_int_equal(f16_from_float(-nextafterf(middle, 0.0f)), a | 0x8000);
        assert_int_equal(f16_from_float(-nextafterf(middle, INFINITY)), b | 0x8000);
    }
}

static void test_f16_extremes(void **state) {
    (void)state;
    assert_int_equal(f16_from_float(3.4e38f), 0x7c00);
    assert_int_equal(f16_from_float(-INFINITY), 0xfc00);
    assert_int_equal(f16_from_float(1.4e-45f), 0);
    assert_int_equal(f16_from_float(-1.4e-45f), 0x8000);
    assert_int_equal(f16_from_float(-0.0f), 0x8000);
}

#ifdef __FLT16_MAX__
__extension__ typedef _Float16 native_f16; // not ISO C, and -Wpedantic says so

static void test_f16_like_the_compiler(void **state) {
    (void)state;
    uint64_t seed = 20261124;
    print_message("# seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 4000000; i++) {
        uint32_t bits = (uint32_t)(random_next(&seed) >> 32);
        // Half of them in the range of binary16, where rounding happens; all exponents in the rest.
        if (i & 1) bits = (bits & 0x807fffffu) | (100u + (bits >> 23) % 45u) << 23;
        float value = float_from_bits(bits);
        if (isnan(value)) continue;
        native_f16 expected = (native_f16)value;
        uint16_t pattern;
        memcpy(&pattern, &expected, sizeof pattern);
        if (f16_from_float(value) != pattern) {
            fail_msg("%a: %04x, not %04x", (double)value, f16_from_float(value), pattern);
        }
    }
}
#endif

static void test_bf16_every_value(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float value = bf16_to_float((bf16)bits);
        assert_int_equal(float_to_bits(value), bits << 16);
        bf16 back = bf16_from_float(value);
        if (isnan(value)) {
            assert_true(isnan(bf16_to_float(back)));
            assert_int_equal(back & 0x8000, bits & 0x8000);
        } else {
            assert_int_equal(back, bits);
        }
    }
}

static void test_bf16_every_halfway_point(void **state) {
    (void)state;
    for (uint32_t a = 0; a < 0x7f80; a++) {
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            uint32_t low = (a | sign) << 16; // the bits of a float grow with its magnitude
            assert_int_equal(bf16_from_float(float_from_bits(low + 0x7fff)), a | sign);
            assert_int_equal(bf16_from_float(float_from_bits(low + 0x8000)), (a + (a & 1)) | sign);
            assert_int_equal(bf16_from_float(float_from_bits(low + 0x8001)), (a + 1) | sign);
        }
    }
}

// A NaN whose payload lies only in the lower half must not become infinity.
static void test_bf16_nan(void **state) {
    (void)state;
    for (uint32_t payload = 1; payload < 0x800000; payload += payload < 0x20000 ? 1 : 4099) {
        assert_true(isnan(bf16_to_float(bf16_from_float(float_from_bits(0x7f800000u | payload)))));
        assert_true(isnan(f16_to_float(f16_from_float(float_from_bits(0xff800000u | payload)))));
    }
}

static void test_round_up(void **state) {
    (void)state;
    assert_int_equal(round_up(0, 64), 0);
    assert_int_equal(round_up(1, 64), 64);
    assert_int_equal(round_up(64, 64), 64);
    assert_int_equal(round_up(777, 128), 896);
    assert_true(round_up((int64_t)1 << 40, 128) == (int64_t)1 << 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_every_value),
        cmocka_unit_test(test_f16_every_halfway_point),
        cmocka_unit_test(test_f16_extremes),
#ifdef __FLT16_MAX__
        cmocka_unit_test(test_f16_like_the_compiler),
#endif
        cmocka_unit_test(test_bf16_every_value),
        cmocka_unit_test(test_bf16_every_halfway_point),
        cmocka_unit_test(test_bf16_nan),
        cmocka_unit_test(test_round_up),
    };
    return cmocka_run_group_tests_name("numeric", tests, NULL, NULL);
}
