/* SPDX-License-Identifier: MIT */
/* nfc.h - Unicode for tokenizer.c: properties of code points (classes of Unicode 16.0) and
 * normalisation (NFC of Unicode 9.0). Private. */
#ifndef Q3_NFC_H
#define Q3_NFC_H

#include "host/text.h"

/* The properties of a code point: class in bits 0-1, two flags, combining class in bits 8-15. */
enum {
    Q3_OTHER = 0, Q3_LETTER = 1, Q3_NUMBER = 2, Q3_SPACE = 3, Q3_CLASS = 3,
    Q3_DECOMPOSES = 4,  /* has a canonical decomposition in the table (Hangul is computed) */
    Q3_UNSTABLE = 8,    /* NFC may change it, or move or join it to what stands before it */
    Q3_MARK_SHIFT = 8
};

/* The properties of all code points, [0x110000]; a new block, NULL without memory. */
uint16_t *q3_properties(void);

/* Reads a code point of text that is known to be UTF-8; returns its length. */
static inline size_t q3_take(const uint8_t *p, uint32_t *code)
{
    uint32_t c = p[0];
    if (c < 0x80) {
        *code = c;
        return 1;
    }
    if (c < 0xE0) {
        *code = (c & 0x1F) << 6 | (p[1] & 0x3Fu);
        return 2;
    }
    if (c < 0xF0) {
        *code = (c & 0xF) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
        return 3;
    }
    *code = (c & 7) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
    return 4;
}

/* How many bytes at p are ASCII, counted in whole groups of eight. */
size_t q3_ascii_bytes(const uint8_t *p, size_t n);

/* What normalisation needs, to be kept from call to call; all zero at first. */
typedef struct q3_nfc {
    const uint16_t *properties;
    q3_buffer out;      /* uint8_t */
    q3_buffer codes;    /* uint32_t: code points, combining class in bits 24-31 */
    q3_buffer scratch;  /* uint32_t */
} q3_nfc;

/* NFC of the UTF-8 text (*text)[*n]: both stay as they are if nothing can change, otherwise they
 * become w->out, valid until the next call. False without memory. Time is linear. */
bool q3_normalise(q3_nfc *w, const uint8_t **text, size_t *n);

#endif
