/* SPDX-License-Identifier: MIT */
/* Decimal text to float64 and back, exactly: by large integers, not by the C library's conversions,
 * so that no bit depends on it or on the locale. Declared in json.h. */
#include "host/json.h"

#include <stdio.h>
#include <string.h>

#define DIGITS 64

/* digits[0] ... digits[count-1] times 10^exponent, no leading zero. longer: there were more. */
typedef struct decimal {
    uint8_t digits[DIGITS];
    size_t count;
    int64_t exponent;
    bool longer;
} decimal;

/* The first 64 significant digits and the power of ten. The text is a JSON number. */
static decimal read_decimal(const uint8_t *p, const uint8_t *end)
{
    decimal d = {.count = 0};
    bool point = false;
    for (p += *p == '-'; p < end && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.') {
            point = true;
        } else if (d.count == DIGITS) {
            d.longer = true;
            d.exponent += !point;
        } else {
            if (d.count > 0 || *p != '0') d.digits[d.count++] = (uint8_t)(*p - '0');
            d.exponent -= point;
        }
    }
    if (p < end) {
        int64_t e = 0, sign = p[1] == '-' ? -1 : 1;
        for (p += p[1] == '-' || p[1] == '+' ? 2 : 1; p < end; p++)
            e = e < INT64_C(1) << 40 ? e * 10 + (*p - '0') : e;
        d.exponent += sign * e;
    }
    return d;
}

/* At or above 2^1024 - 2^970, whose 309 digits start like this, the nearest float64 is infinity. */
bool q3_decimal_too_large(const uint8_t *p, const uint8_t *end)
{
    static const char limit[] = "1797693134862315807937289714053034150799341327100378269361737789";
    decimal d = read_decimal(p, end);
    if (d.count == 0 || (int64_t)d.count + d.exponent != 309)
        return d.count > 0 && (int64_t)d.count + d.exponent > 309;
    for (size_t i = 0; i < DIGITS; i++)
        if (d.digits[i] != limit[i] - '0') return d.digits[i] > limit[i] - '0';
    return true;
}

/* A large integer: its n words, least significant first, the last of them not 0. 2048 bits:
 * 10^64 * 10^400 and 2^1129 fit well. */
typedef struct big {
    uint32_t w[64];
    size_t n;
} big;

/* b = b * factor + carry. */
static void multiply_add(big *b, uint32_t factor, uint32_t carry)
{
    uint64_t sum = carry;
    for (size_t i = 0; i < b->n; i++, sum >>= 32) {
        sum += (uint64_t)b->w[i] * factor;
        b->w[i] = (uint32_t)sum;
    }
    if (sum != 0) b->w[b->n++] = (uint32_t)sum;
}

/* Negative, 0 or positive, as a is less than, equal to or greater than b. */
static int compare_big(const big *a, const big *b)
{
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (size_t i = a->n; i-- > 0;)
        if (a->w[i] != b->w[i]) return a->w[i] < b->w[i] ? -1 : 1;
    return 0;
}

/* a is not less than b. */
static void subtract(big *a, const big *b)
{
    uint64_t borrow = 0;
    for (size_t i = 0; i < a->n; i++) {
        uint64_t difference = (uint64_t)a->w[i] - (i < b->n ? b->w[i] : 0) - borrow;
        a->w[i] = (uint32_t)difference;
        borrow = difference >> 63;
    }
    while (a->n > 0 && a->w[a->n - 1] == 0) a->n--;
}

/* The nearest float64 of a decimal below that limit, as its bits: the quotient of two integers,
 * scaled by a power of two into [1, 2), gives one bit at a time; what is left decides the
 * rounding. */
static uint64_t nearest(const decimal *d)
{
    big num = {{0}, 0}, den = {{1}, 1};
    uint64_t q = 0;
    int exponent = 0;
    if (d->count == 0) return 0; /* whatever its exponent */
    for (size_t i = 0; i < d->count; i++) multiply_add(&num, 10, d->digits[i]);
    for (int64_t i = 0; i < d->exponent; i++) multiply_add(&num, 10, 0);
    for (int64_t i = 0; i > d->exponent; i--) multiply_add(&den, 10, 0);
    for (; compare_big(&num, &den) >= 0; exponent++) multiply_add(&den, 2, 0);
    for (; compare_big(&num, &den) < 0; exponent--) multiply_add(&num, 2, 0);
    int bits = exponent >= -1022 ? 53 : 53 + exponent + 1022;
    if (bits < 0) return 0;
    for (int i = 0; i < bits; i++, multiply_add(&num, 2, 0)) {
        bool one = compare_big(&num, &den) >= 0;
        q = q << 1 | one;
        if (one) subtract(&num, &den);
    }
    int rest = compare_big(&num, &den);
    q += rest > 0 || (rest == 0 && (q & 1));
    return exponent >= -1022 ? ((uint64_t)(exponent + 1022) << 52) + q : q;
}

/* The next larger number of as many digits. */
static decimal step_up(decimal d)
{
    size_t i = d.count;
    while (i > 0 && d.digits[i - 1] == 9) d.digits[--i] = 0;
    if (i > 0) {
        d.digits[i - 1]++;
    } else {
        d.digits[0] = 1;
        d.exponent++;
    }
    return d;
}

/* The shortest decimal that reads back as the positive number with these bits, and of those the
 * nearest. The candidates of each length are the neighbours below and above: a power of two can be
 * nearer to a neighbour that does not read back than to one that does. */
static decimal shortest(uint64_t bits)
{
    int e = (int)(bits >> 52);
    uint64_t m = bits & ((UINT64_C(1) << 52) - 1);
    big num = {{0}, 0}, den = {{1}, 1};
    decimal d = {.exponent = 1};
    m += e > 0 ? UINT64_C(1) << 52 : 0;
    num.w[0] = (uint32_t)m;
    num.w[1] = (uint32_t)(m >> 32);
    num.n = num.w[1] != 0 ? 2 : 1;
    for (e = (e > 0 ? e : 1) - 1075; e != 0; e += e < 0 ? 1 : -1)
        multiply_add(e < 0 ? &den : &num, 2, 0);
    for (; compare_big(&num, &den) >= 0; d.exponent++) multiply_add(&den, 10, 0);
    for (; compare_big(&num, &den) < 0; d.exponent--) multiply_add(&num, 10, 0);
    for (;;) {
        uint8_t digit = 0;
        for (; compare_big(&num, &den) >= 0; digit++) subtract(&num, &den);
        d.digits[d.count++] = digit;
        d.exponent--;
        multiply_add(&num, 10, 0);
        big half = den;
        multiply_add(&half, 5, 0);
        int rest = compare_big(&num, &half);
        bool up = rest > 0 || (rest == 0 && (digit & 1));
        decimal above = step_up(d), first = up ? above : d, second = up ? d : above;
        if (nearest(&first) == bits) return first;
        if (nearest(&second) == bits) return second;
    }
}

bool q3_decimal_to_double(const uint8_t *p, const uint8_t *end, double *out)
{
    decimal d = read_decimal(p, end);
    if (d.longer || (d.count > 0 && (d.exponent > 400 || d.exponent < -400))) return false;
    uint64_t bits = nearest(&d) | (uint64_t)(*p == '-') << 63;
    memcpy(out, &bits, sizeof bits);
    return true;
}

size_t q3_json_repr(double value, char out[32])
{
    uint64_t bits;
    size_t n = 0;
    memcpy(&bits, &value, sizeof bits);
    if (bits >> 63) out[n++] = '-';
    bits &= UINT64_MAX >> 1;
    decimal d = {.count = 1};
    if (bits != 0) d = shortest(bits);
    while (d.count > 1 && d.digits[d.count - 1] == 0) {
        d.count--;
        d.exponent++;
    }
    int e = (int)d.exponent + (int)d.count - 1;  /* of the first digit */
    bool plain = e >= -4 && e < 16;
    int before = !plain ? 1 : e >= 0 ? e + 1 : 1;            /* digits before the point */
    int skip = plain && e < 0 ? e : 0;                       /* zeros before the first digit */
    int last = plain && (int)d.count + -skip < before + 1 ? before + 1 : (int)d.count - skip;
    for (int i = 0; i < last; i++) {
        int at = i + skip;
        if (i == before) out[n++] = '.';
        out[n++] = (char)('0' + (at >= 0 && at < (int)d.count ? d.digits[at] : 0));
    }
    if (!plain) n += (size_t)snprintf(out + n, 8, "e%c%02d", e < 0 ? '-' : '+', e < 0 ? -e : e);
    out[n] = 0;
    return n;
}
