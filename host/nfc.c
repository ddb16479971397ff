/* SPDX-License-Identifier: MIT */
/* Unicode for the tokenizer: see nfc.h. The tables are in unicode.h. NFC is decomposition,
 * ordering of marks, composition; only what can change is worked on. */
#include "host/nfc.h"
#include "host/json.h"
#include "host/unicode.h"

#include <stdlib.h>
#include <string.h>

size_t q3_ascii_bytes(const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (uint64_t word; n - i >= 8; i += 8) {
        memcpy(&word, p + i, 8);
        if (word & UINT64_C(0x8080808080808080)) break;
    }
    return i;
}

/* The row of a code point that has one (Q3_DECOMPOSES). */
static const uint32_t *find_decomposition(uint32_t code)
{
    size_t low = 0, high = sizeof q3_unicode_decompositions / sizeof *q3_unicode_decompositions;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (q3_unicode_decompositions[middle][0] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return q3_unicode_decompositions[low];
}

/* Sets the class of all code points of the ranges. */
static void set_class(uint16_t *properties, const uint32_t (*ranges)[2], size_t bytes,
                      uint16_t class)
{
    for (size_t i = 0; i < bytes / sizeof *ranges; i++)
        for (uint32_t c = ranges[i][0]; c <= ranges[i][1]; c++) properties[c] = class;
}

static void fill_properties(uint16_t *properties)
{
    size_t n = sizeof q3_unicode_decompositions / sizeof *q3_unicode_decompositions;
    set_class(properties, q3_unicode_letters, sizeof q3_unicode_letters, Q3_LETTER);
    set_class(properties, q3_unicode_numbers, sizeof q3_unicode_numbers, Q3_NUMBER);
    set_class(properties, q3_unicode_spaces, sizeof q3_unicode_spaces, Q3_SPACE);
    for (size_t i = 0; i < sizeof q3_unicode_marks / sizeof *q3_unicode_marks; i++)
        for (uint32_t c = q3_unicode_marks[i][0]; c <= q3_unicode_marks[i][1]; c++)
            properties[c] |= (uint16_t)(q3_unicode_marks[i][2] << Q3_MARK_SHIFT | Q3_UNSTABLE);
    for (size_t i = 0; i < n; i++)
        properties[q3_unicode_decompositions[i][0]] |= Q3_DECOMPOSES | Q3_UNSTABLE;
    /* What composition makes again is stable, unless it is a second element itself. */
    n = sizeof q3_unicode_compositions / sizeof *q3_unicode_compositions;
    for (size_t i = 0; i < n; i++) {
        uint32_t composed = q3_unicode_decompositions[q3_unicode_compositions[i]][0];
        properties[composed] &= (uint16_t)~Q3_UNSTABLE;
    }
    for (size_t i = 0; i < n; i++)
        properties[q3_unicode_decompositions[q3_unicode_compositions[i]][2]] |= Q3_UNSTABLE;
    for (uint32_t c = 0x1161; c <= 0x1175; c++) properties[c] |= Q3_UNSTABLE;
    for (uint32_t c = 0x11A8; c <= 0x11C2; c++) properties[c] |= Q3_UNSTABLE;
}

uint16_t *q3_properties(void)
{
    uint16_t *properties = calloc(0x110000, sizeof *properties);
    if (properties != NULL) fill_properties(properties);
    return properties;
}

/* Appends the full canonical decomposition to w->codes, which has room for it (4 at most). */
static void decompose(q3_nfc *w, uint32_t code)
{
    uint32_t property = w->properties[code], syllable = code - 0xAC00;
    uint32_t *codes = w->codes.data;
    if (syllable < 11172) {
        codes[w->codes.count++] = 0x1100 + syllable / 588;
        codes[w->codes.count++] = 0x1161 + syllable % 588 / 28;
        if (syllable % 28 != 0)
            codes[w->codes.count++] = 0x11A7 + syllable % 28;
    } else if (property & Q3_DECOMPOSES) {
        const uint32_t *d = find_decomposition(code);
        decompose(w, d[1]);
        if (d[2] != 0)
            decompose(w, d[2]);
    } else {
        codes[w->codes.count++] = code | property >> Q3_MARK_SHIFT << 24;
    }
}

/* Orders each run of marks by combining class; equal classes keep their order. */
static bool order_marks(q3_nfc *w)
{
    uint32_t *codes = w->codes.data;
    for (size_t i = 0, end; i < w->codes.count; i = end) {
        bool sorted = true;
        end = i + 1;
        for (; end < w->codes.count && codes[i] >> 24 != 0 && codes[end] >> 24 != 0; end++)
            sorted = sorted && codes[end - 1] >> 24 <= codes[end] >> 24;
        if (sorted) continue;
        size_t place[256] = {0};
        w->scratch.count = 0;
        if (!q3_reserve(&w->scratch, end - i, sizeof *codes)) return false;
        uint32_t *scratch = w->scratch.data;
        for (size_t k = i; k < end; k++) place[codes[k] >> 24]++;
        for (size_t c = 0, sum = 0; c < 256; c++) {
            size_t n = place[c];
            place[c] = sum;
            sum += n;
        }
        for (size_t k = i; k < end; k++) scratch[place[codes[k] >> 24]++] = codes[k];
        memcpy(codes + i, scratch, (end - i) * sizeof *codes);
    }
    return true;
}

/* The composition of two code points, 0 if there is none. */
static uint32_t compose_pair(uint32_t first, uint32_t second)
{
    if (first - 0x1100 < 19 && second - 0x1161 < 21)
        return 0xAC00 + ((first - 0x1100) * 21 + second - 0x1161) * 28;
    if (first - 0xAC00 < 11172 && (first - 0xAC00) % 28 == 0 && second - 0x11A8 < 27)
        return first + second - 0x11A7;
    size_t low = 0, high = sizeof q3_unicode_compositions / sizeof *q3_unicode_compositions;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t *d = q3_unicode_decompositions[q3_unicode_compositions[middle]];
        if (d[1] == first && d[2] == second) return d[0];
        if (d[1] < first || (d[1] == first && d[2] < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Composes w->codes in place. A code point joins the last starter if nothing stands between them,
 * or only marks of lower classes. */
static void compose(q3_nfc *w)
{
    uint32_t *codes = w->codes.data;
    size_t starter = SIZE_MAX, out = 0;
    for (size_t i = 0; i < w->codes.count; i++) {
        uint32_t class = codes[i] >> 24, joined = 0;
        if (starter != SIZE_MAX && (out - 1 == starter || codes[out - 1] >> 24 < class))
            joined = compose_pair(codes[starter], codes[i] & 0xFFFFFF);
        if (joined != 0) {
            codes[starter] = joined;
        } else {
            if (class == 0) starter = out;
            codes[out++] = codes[i];
        }
    }
    w->codes.count = out;
}

/* Normalises text[0..n), which starts at a stable code point or at the gap's start, into w->out. */
static bool normalise_segment(q3_nfc *w, const uint8_t *text, size_t n)
{
    uint32_t code;
    w->codes.count = 0;
    for (size_t i = 0; i < n;) {
        if (!q3_reserve(&w->codes, 4, sizeof code)) return false;
        i += q3_take(text + i, &code);
        decompose(w, code);
    }
    if (!order_marks(w)) return false;
    compose(w);
    if (!q3_reserve(&w->out, 4 * w->codes.count, 1)) return false;
    for (size_t i = 0; i < w->codes.count; i++)
        w->out.count += q3_utf8_encode(((uint32_t *)w->codes.data)[i] & 0xFFFFFF,
                                       (uint8_t *)w->out.data + w->out.count);
    return true;
}

/* NFC of a gap: *text and *n stay as they are if nothing can change, otherwise they become
 * w->out. Only unstable code points and the stable one before them are worked on. */
bool q3_normalise(q3_nfc *w, const uint8_t **text, size_t *n)
{
    const uint8_t *p = *text;
    size_t length = *n, done = 0, before = 0;
    uint32_t code;
    w->out.count = 0;
    for (size_t i = 0; i < length;) {
        size_t skip = q3_ascii_bytes(p + i, length - i);
        if (skip > 0) {
            i += skip;
            before = i - 1;
            continue;
        }
        size_t end = i + q3_take(p + i, &code);
        if (!(w->properties[code] & Q3_UNSTABLE)) {
            before = i;
            i = end;
            continue;
        }
        while (end < length) {
            size_t step = q3_take(p + end, &code);
            if (!(w->properties[code] & Q3_UNSTABLE)) break;
            end += step;
        }
        if (!q3_append(&w->out, p + done, before - done) ||
            !normalise_segment(w, p + before, end - before))
            return false;
        i = before = done = end;
    }
    if (done == 0) return true;
    if (!q3_append(&w->out, p + done, length - done)) return false;
    *text = w->out.data;
    *n = w->out.count;
    return true;
}

