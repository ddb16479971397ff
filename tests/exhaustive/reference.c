/* SPDX-License-Identifier: MIT */
/* Correctly rounded values from MPFR; see reference.h. */
#define _POSIX_C_SOURCE 200809L
#include "reference.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const format F32 = {24, -126, 127}, BF16 = {8, -126, 127}, F16 = {11, -14, 15};
const format F64 = {53, -1022, 1023};

/* x / (1 + exp(-x)), rounded down or up: the denominator is rounded the way that moves the quotient
 * there. */
static void silu(mpfr_t result, const mpfr_t x, mpfr_rnd_t direction)
{
    int up = (direction == MPFR_RNDU) == (mpfr_sgn(x) < 0);
    mpfr_rnd_t inner = up ? MPFR_RNDU : MPFR_RNDD;
    mpfr_neg(result, x, MPFR_RNDN);
    mpfr_exp(result, result, inner);
    mpfr_add_ui(result, result, 1, inner);
    mpfr_div(result, x, result, direction);
}

/* The greatest number of result's precision below f(x), or the least above. x and y are exact. */
static void enclose(mpfr_t result, function f, const mpfr_t x, const mpfr_t y, mpfr_rnd_t direction)
{
    switch (f) {
    case F_EXP: mpfr_exp(result, x, direction); break;
    case F_SILU: silu(result, x, direction); break;
    case F_SIN: mpfr_sin(result, x, direction); break;
    case F_COS: mpfr_cos(result, x, direction); break;
    case F_LOG: mpfr_log(result, x, direction); break;
    case F_POW: mpfr_pow(result, x, y, direction); break;
    case F_SQRT: mpfr_sqrt(result, x, direction); break;
    case F_RSQRT: mpfr_rec_sqrt(result, x, direction); break;
    case F_ID: mpfr_set(result, x, direction); break;
    }
}

/* value rounded to nearest even in a format. Changes value. */
static double round_to_format(mpfr_t value, format to)
{
    if (mpfr_nan_p(value)) return NAN;
    if (mpfr_inf_p(value)) return mpfr_sgn(value) > 0 ? INFINITY : -INFINITY;
    if (mpfr_zero_p(value)) return mpfr_signbit(value) ? -0.0 : 0.0;
    long exponent = (long)mpfr_get_exp(value) - 1; /* value is in [2^exponent, 2^(exponent + 1)) */
    long unit = (exponent < to.emin ? to.emin : exponent) - (to.precision - 1);
    mpfr_mul_2si(value, value, -unit, MPFR_RNDN);
    mpfr_rint(value, value, MPFR_RNDN);
    double whole = mpfr_get_d(value, MPFR_RNDN); /* below 2^54, exact */
    if (fabs(whole) >= ldexp(1.0, to.precision) && exponent == to.emax)
        return copysign(INFINITY, whole);
    if (exponent > to.emax) return copysign(INFINITY, whole);
    return ldexp(whole, (int)unit);
}

double correct(function f, double x, double y, format to)
{
    for (mpfr_prec_t precision = 128; precision <= 8192; precision *= 2) {
        mpfr_t low, high, argument, second;
        mpfr_init2(low, precision);
        mpfr_init2(high, precision);
        mpfr_init2(argument, 53);
        mpfr_init2(second, 53);
        mpfr_set_d(argument, x, MPFR_RNDN);
        mpfr_set_d(second, y, MPFR_RNDN);
        enclose(low, f, argument, second, MPFR_RNDD);
        enclose(high, f, argument, second, MPFR_RNDU);
        double a = round_to_format(low, to), b = round_to_format(high, to);
        mpfr_clears(low, high, argument, second, (mpfr_ptr)0);
        if (a == 0.0 && b == 0.0) return f == F_SILU ? copysign(0.0, x) : a;
        if (bits64(a) == bits64(b)) return a;
        if (a != a && b != b) return a;
    }
    fprintf(stderr, "reference: no decision at 8192 bits for function %d of %a\n", (int)f, x);
    exit(2);
}

/* error = ((high + low) * 2^k - f(x)), f(x) in value; both of 200 bits. */
static void difference(mpfr_t error, mpfr_t value, function f, double x, double high, double low,
                       int k)
{
    mpfr_t argument;
    mpfr_init2(argument, 53);
    mpfr_set_d(argument, x, MPFR_RNDN);
    enclose(value, f, argument, argument, MPFR_RNDN);
    mpfr_set_d(error, high, MPFR_RNDN);
    mpfr_add_d(error, error, low, MPFR_RNDN);
    mpfr_mul_2si(error, error, k, MPFR_RNDN);
    mpfr_sub(error, error, value, MPFR_RNDN);
    mpfr_clear(argument);
}

double error_in_ulp(function f, double x, double high, double low, int k)
{
    mpfr_t error, value;
    mpfr_init2(error, 200);
    mpfr_init2(value, 200);
    difference(error, value, f, x, high, low, k);
    long unit = mpfr_zero_p(value) ? -1074 : (long)mpfr_get_exp(value) - 53;
    mpfr_mul_2si(error, error, -(unit < -1074 ? -1074 : unit), MPFR_RNDN);
    double result = fabs(mpfr_get_d(error, MPFR_RNDN));
    mpfr_clears(error, value, (mpfr_ptr)0);
    return result;
}

double error_log2(function f, double x, double high, double low, int k)
{
    mpfr_t error, value;
    mpfr_init2(error, 200);
    mpfr_init2(value, 200);
    difference(error, value, f, x, high, low, k);
    double result = -1000.0;
    if (!mpfr_zero_p(error)) {
        mpfr_div(error, error, value, MPFR_RNDN);
        mpfr_abs(error, error, MPFR_RNDN);
        mpfr_log2(error, error, MPFR_RNDN);
        result = mpfr_get_d(error, MPFR_RNDN);
    }
    mpfr_clears(error, value, (mpfr_ptr)0);
    return result;
}

double hardness(function f, double x)
{
    mpfr_t value, argument;
    mpfr_init2(value, 400);
    mpfr_init2(argument, 53);
    mpfr_set_d(argument, x, MPFR_RNDN);
    enclose(value, f, argument, argument, MPFR_RNDN);
    double rounded = correct(f, x, 0.0, F32);
    bool above = mpfr_cmp_d(value, rounded) > 0;
    float beside = nextafterf((float)rounded, above ? INFINITY : -INFINITY);
    double middle = (rounded + (double)beside) / 2.0;
    mpfr_sub_d(value, value, middle, MPFR_RNDN);
    mpfr_div_d(value, value, middle, MPFR_RNDN);
    mpfr_abs(value, value, MPFR_RNDN);
    mpfr_log2(value, value, MPFR_RNDN);
    bool none = mpfr_zero_p(value) || mpfr_inf_p(value);
    double result = none ? -1000.0 : mpfr_get_d(value, MPFR_RNDN);
    mpfr_clears(value, argument, (mpfr_ptr)0);
    return result;
}

uint64_t bits64(double x)
{
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

double from64(uint64_t u)
{
    double x;
    memcpy(&x, &u, 8);
    return x;
}

uint32_t bits32(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

float from32(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double random_between(uint64_t *state, double low, double high)
{
    return low + (high - low) * ldexp((double)(next_random(state) >> 11), -53);
}

double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
