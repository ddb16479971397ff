/* SPDX-License-Identifier: MIT */
/* Correctly rounded values from MPFR. A function is enclosed between two MPFR numbers of rising
 * precision until both round to the same result; rounding is monotonic, so that is the right
 * one. */
#ifndef Q3_REFERENCE_H
#define Q3_REFERENCE_H

#include <mpfr.h>
#include <stdint.h>

typedef enum function { F_EXP, F_SILU, F_SIN, F_COS, F_LOG, F_POW, F_SQRT, F_RSQRT, F_ID } function;

/* A number format: significant bits, exponents of the smallest and the largest normal number. */
typedef struct format { int precision, emin, emax; } format;

extern const format F32, BF16, F16, F64;

/* f(x), or x^y for F_POW, rounded to nearest even in a format, returned as a double (exact). */
double correct(function f, double x, double y, format to);

/* |(high + low) * 2^k - f(x)| in units of the last place of a double at f(x). */
double error_in_ulp(function f, double x, double high, double low, int k);
/* The same error relative to f(x), as its base-2 logarithm; -1000 if there is none. */
double error_log2(function f, double x, double high, double low, int k);

/* How close f(x) lies to the middle of two float32 neighbours: log2(|f(x) - middle| / |middle|). */
double hardness(function f, double x);

/* Bits of a number and back; the rule of pseudo-random numbers (splitmix64). */
uint64_t bits64(double x);
double from64(uint64_t u);
uint32_t bits32(float x);
float from32(uint32_t u);
uint64_t next_random(uint64_t *state);
/* Uniform in [low, high). */
double random_between(uint64_t *state, double low, double high);

/* Seconds of a clock that only goes forward. */
double seconds(void);

#endif
