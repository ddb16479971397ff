/* SPDX-License-Identifier: MIT */
/* An exact accumulator for sums of products of two float32 values (test code only): a fixed-point
 * number in two's complement, whose lowest bit is 2^-298 (the smallest product) and which has room
 * for 2^60 of the largest. Rounding happens once, at the end, on integers. */
#ifndef Q3_EXACT_H
#define Q3_EXACT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { EXACT_LIMBS = 20, EXACT_LOWEST = -298 };

typedef struct exact { uint32_t limb[EXACT_LIMBS]; } exact; /* limb 0 is the lowest */

/* Significand and exponent of a finite float32: |x| = significand * 2^exponent. */
static inline uint32_t exact_split(float x, int *exponent, bool *negative)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    int e = (int)(u >> 23 & 0xFF);
    *negative = u >> 31 != 0;
    *exponent = (e == 0 ? 1 : e) - 150;
    return (u & 0x7FFFFF) | (e == 0 ? 0 : 0x800000u);
}

static inline void exact_add_shifted(exact *sum, uint64_t value, unsigned shift, bool negative)
{
    uint32_t part[3];
    unsigned first = shift / 32, bit = shift % 32;
    part[0] = (uint32_t)(value << bit);
    part[1] = (uint32_t)(value >> (32 - bit)); /* value is below 2^48, so 32 - 0 is a valid shift */
    part[2] = bit == 0 ? 0 : (uint32_t)(value >> 32 >> (32 - bit));
    uint64_t carry = 0;
    for (unsigned i = first; i < EXACT_LIMBS; i++) {
        uint64_t p = i - first < 3 ? part[i - first] : 0;
        if (negative) {
            uint64_t d = (uint64_t)sum->limb[i] - p - carry;
            sum->limb[i] = (uint32_t)d;
            carry = d >> 63;
        } else {
            uint64_t s = (uint64_t)sum->limb[i] + p + carry;
            sum->limb[i] = (uint32_t)s;
            carry = s >> 32;
        }
    }
}

/* sum += a * b */
static inline void exact_add(exact *sum, float a, float b)
{
    int ea, eb;
    bool na, nb;
    uint64_t product = (uint64_t)exact_split(a, &ea, &na);
    product *= exact_split(b, &eb, &nb);
    exact_add_shifted(sum, product, (unsigned)(ea + eb - EXACT_LOWEST), na != nb);
}

static inline bool exact_bit(const exact *m, int i)
{
    return i >= 0 && (m->limb[i / 32] >> (i % 32) & 1) != 0;
}

/* The sum rounded to nearest, ties to even, to a format of `precision` significant bits and normal
 * exponents from emin to emax (emin >= -1022), as a double, which holds it exactly. */
static inline double exact_round(const exact *sum, int precision, int emin, int emax)
{
    exact m = *sum;
    bool negative = m.limb[EXACT_LIMBS - 1] >> 31 != 0;
    if (negative) {
        uint64_t carry = 1;
        for (int i = 0; i < EXACT_LIMBS; i++) {
            carry += (uint32_t)~m.limb[i];
            m.limb[i] = (uint32_t)carry;
            carry >>= 32;
        }
    }
    int top = 32 * EXACT_LIMBS - 1;
    while (top >= 0 && !exact_bit(&m, top)) top--;
    uint64_t result = 0;
    if (top >= 0) {
        int exponent = top + EXACT_LOWEST;
        int unit = (exponent < emin ? emin : exponent) - precision + 1; /* of the result */
        int low = unit - EXACT_LOWEST;                                  /* its bit here */
        uint64_t q = 0;
        bool rest = false;
        for (int i = top; i >= low; i--) q = q << 1 | exact_bit(&m, i);
        for (int i = low - 2; i >= 0 && !rest; i--) rest = exact_bit(&m, i);
        if (low - 1 <= top && exact_bit(&m, low - 1) && (rest || (q & 1) != 0)) q++;
        for (; q != 0 && q >> 52 == 0; unit--) q <<= 1;
        if (q >> 53 != 0) {
            q >>= 1;
            unit++;
        }
        if (q != 0 && unit + 52 > emax)
            result = (uint64_t)0x7FF << 52;
        else if (q != 0)
            result = (uint64_t)(unit + 52 + 1023) << 52 | (q & 0xFFFFFFFFFFFFFu);
    }
    result |= (uint64_t)negative << 63;
    double x;
    memcpy(&x, &result, 8);
    return x;
}

#endif
