/* SPDX-License-Identifier: MIT */
/* Text <-> token ids, as Hugging Face tokenizers 0.23 does it with the Qwen tokenizer.json: added
 * tokens, NFC (nfc.c), the Qwen split, byte-level BPE. tokenizer_file.c reads the file. */
#include "host/tokenizer.h"
#include "host/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Tables and tokens ======================================================================= */

/* Writes what a token's text (UTF-8) stands for to out, which has room for n bytes, and its
 * length to *length. Returns 0, or 1 if the text has to stand for itself. */
uint8_t q3_token_bytes(const q3_tokenizer *t, const uint8_t *text, size_t n, uint8_t *out,
                        size_t *length)
{
    size_t m = 0;
    for (size_t i = 0; i < n;) {
        uint32_t code = text[i];
        i += code < 0x80 ? 1 : q3_take(text + i, &code);
        if (code >= 324 || t->byte_of[code] < 0) {
            memcpy(out, text, n);
            *length = n;
            return 1;
        }
        out[m++] = (uint8_t)t->byte_of[code];
    }
    *length = m;
    return 0;
}

/* One step of a hash (odd multiplier, high bits folded down). */
static uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 29;
}

size_t q3_token_slot(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n)
{
    uint64_t h = mix(t->slot_seed, (uint64_t)n << 1 | kind), word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        h = mix(h, word);
    }
    word = 0;
    for (size_t i = 0; i < n; i++) word = word << 8 | p[i];
    return mix(h, word) & t->slot_mask;
}

bool q3_token_is(const q3_tokenizer *t, uint32_t i, uint8_t kind, const uint8_t *p, size_t n)
{
    const uint8_t *have = t->pool + t->offsets[i];
    return t->offsets[i + 1] - t->offsets[i] == n + 1 && have[0] == kind &&
           memcmp(have + 1, p, n) == 0;
}

uint32_t q3_find_token(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n)
{
    size_t s = q3_token_slot(t, kind, p, n);
    while (t->slots[s] != Q3_NONE && !q3_token_is(t, t->slots[s], kind, p, n))
        s = (s + 1) & t->slot_mask;
    return t->slots[s];
}

size_t q3_pair_slot(const q3_tokenizer *t, uint32_t left, uint32_t right)
{
    return mix(t->pair_seed, (uint64_t)left << 32 | right) & t->pair_mask;
}

/* The slot of a pair; an empty one if it is not merged. */
static const q3_pair *find_pair(const q3_tokenizer *t, uint32_t left, uint32_t right)
{
    for (size_t s = q3_pair_slot(t, left, right);; s = (s + 1) & t->pair_mask) {
        const q3_pair *p = &t->pairs[s];
        if ((p->left == left && p->right == right) || p->result == Q3_NONE) return p;
    }
}

/* The index from low to high - 1 with this id, or Q3_NONE. */
uint32_t q3_find_id(const q3_tokenizer *t, size_t low, size_t high, int32_t id)
{
    if (id >= 0 && (size_t)id >= low && (size_t)id < high && t->ids[id] == id) return (uint32_t)id;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->ids[middle] == id) return (uint32_t)middle;
        if (t->ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return Q3_NONE;
}

/* What one call of encode needs; every array grows as far as the text makes it. */
typedef struct cached {
    uint64_t key[3];
    int32_t ids[8];
    uint8_t length, count;
} cached;

typedef struct work {
    const q3_tokenizer *t;
    q3_nfc nfc;
    q3_buffer ids;       /* int32_t: the result */
    q3_buffer symbols;   /* symbol: a piece while it is merged */
    q3_buffer ranks;     /* uint32_t: beside symbols */
    q3_buffer heap;      /* uint64_t */
    cached *cache;    /* [cache_size], or NULL */
    size_t cache_size;
} work;

/* ==== Split =================================================================================== */

/* The end of the run of one class at p. */
static inline const uint8_t *run(const uint16_t *properties, const uint8_t *p, const uint8_t *end,
                                 uint32_t class)
{
    uint32_t code;
    while (p < end) {
        size_t step = q3_take(p, &code);
        if ((properties[code] & Q3_CLASS) != class) break;
        p += step;
    }
    return p;
}

/* The length of 's 't 'm 'd 're 've 'll at p (any case; U+017F is a case of s), or 0. */
static size_t contraction(const uint8_t *p, const uint8_t *end)
{
    if (end - p < 2) return 0;
    uint8_t a = p[1] | 0x20, b = end - p > 2 ? p[2] | 0x20 : 0;
    if (p[1] < 0x80 && (a == 's' || a == 't' || a == 'm' || a == 'd')) return 2;
    if (p[1] == 0xC5 && p[2] == 0xBF) return 3;
    if (p[1] < 0x80 && end - p > 2 && p[2] < 0x80 &&
        (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')))
        return 3;
    return 0;
}

/* The length of the piece at p < end: the first alternative of the pattern that matches. */
static size_t piece_length(const uint16_t *properties, const uint8_t *p, const uint8_t *end)
{
    uint32_t code, next, class;
    const uint8_t *q = p + q3_take(p, &code), *stop, *line = NULL;
    class = properties[code] & Q3_CLASS;
    size_t n = code == '\'' ? contraction(p, end) : 0;
    if (n > 0) return n;
    if (class == Q3_LETTER) return (size_t)(run(properties, q, end, Q3_LETTER) - p);
    if (class == Q3_NUMBER) return (size_t)(q - p);
    if (q < end && code != '\r' && code != '\n') {
        q3_take(q, &next);
        if ((properties[next] & Q3_CLASS) == Q3_LETTER)
            return (size_t)(run(properties, q, end, Q3_LETTER) - p);
        if (code == ' ' && (properties[next] & Q3_CLASS) == Q3_OTHER) class = Q3_OTHER;
    }
    if (class == Q3_OTHER) {
        stop = run(properties, q, end, Q3_OTHER);
        while (stop < end && (*stop == '\r' || *stop == '\n')) stop++;
        return (size_t)(stop - p);
    }
    const uint8_t *last = p;
    for (stop = p; stop < end; stop += n) {
        n = q3_take(stop, &code);
        if ((properties[code] & Q3_CLASS) != Q3_SPACE) break;
        last = stop;
        if (code == '\r' || code == '\n') line = stop + 1;
    }
    if (line != NULL) return (size_t)(line - p);
    return (size_t)((stop == end || last == p ? stop : last) - p);
}

/* ==== Merges ================================================================================== */

typedef struct symbol {
    uint32_t token, previous, next, result;
} symbol;

/* Up to this many symbols the lowest rank is found by looking at all, beyond by a heap. */
#define FEW 32

/* A binary heap of keys, the smallest on top. */
static void heap_push(q3_buffer *heap, uint64_t key)
{
    uint64_t *h = heap->data;
    size_t i = heap->count++;
    for (; i > 0 && h[(i - 1) / 2] > key; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = key;
}

/* Takes the smallest key; the heap is not empty. */
static uint64_t heap_pop(q3_buffer *heap)
{
    uint64_t *h = heap->data, top = h[0], key = h[--heap->count];
    size_t i = 0, n = heap->count;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && h[child + 1] < h[child];
        if (h[child] >= key) break;
        h[i] = h[child];
    }
    h[i] = key;
    return top;
}

/* Looks up the pair that starts at symbol i. Each merge pops one entry of the heap and pushes two
 * at most, so the heap never holds more than twice the symbols. */
static void set_pair(work *w, uint32_t i, bool few)
{
    symbol *s = w->symbols.data;
    uint32_t *ranks = w->ranks.data;
    ranks[i] = Q3_NONE;
    if (s[i].next == Q3_NONE) return;
    const q3_pair *p = find_pair(w->t, s[i].token, s[s[i].next].token);
    if (p->result == Q3_NONE) return;
    ranks[i] = p->rank;
    s[i].result = p->result;
    if (!few) heap_push(&w->heap, (uint64_t)p->rank << 32 | i);
}

/* The symbol whose pair has the lowest rank, the leftmost of equals; Q3_NONE if no pair is left. */
static uint32_t lowest_pair(work *w, bool few)
{
    const uint32_t *ranks = w->ranks.data;
    uint32_t best = Q3_NONE, rank = Q3_NONE;
    if (few) {
        for (uint32_t i = 0; i < w->symbols.count; i++) {
            best = ranks[i] < rank ? i : best;
            rank = ranks[i] < rank ? ranks[i] : rank;
        }
        return best;
    }
    while (w->heap.count > 0) {
        uint64_t key = heap_pop(&w->heap);
        if (ranks[key & Q3_NONE] == key >> 32)  /* otherwise the pair is no more */
            return (uint32_t)(key & Q3_NONE);
    }
    return Q3_NONE;
}

/* Appends the tokens of a piece: its bytes' letters, merged by rank until no pair is left. */
static bool merge_piece(work *w, const uint8_t *p, size_t n)
{
    w->symbols.count = w->ranks.count = w->heap.count = 0;
    if (!q3_reserve(&w->symbols, n, sizeof(symbol)) ||
        !q3_reserve(&w->ranks, n, sizeof(uint32_t)) ||
        (n > FEW && !q3_reserve(&w->heap, 2 * n, sizeof(uint64_t))))
        return false;
    symbol *s = w->symbols.data;
    uint32_t *ranks = w->ranks.data, m = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t token = w->t->letter[p[i]];
        if (token != Q3_NONE) {
            s[m] = (symbol){token, m - 1, m + 1, Q3_NONE};  /* before the first: Q3_NONE */
            m++;
        }
    }
    if (m == 0) return true;
    s[m - 1].next = Q3_NONE;
    w->symbols.count = m;
    bool few = m <= FEW;
    for (uint32_t i = 0; i < m; i++) set_pair(w, i, few);
    for (uint32_t i; (i = lowest_pair(w, few)) != Q3_NONE;) {
        uint32_t gone = s[i].next;
        s[i].token = s[i].result;
        s[i].next = s[gone].next;
        ranks[gone] = Q3_NONE;
        if (s[i].next != Q3_NONE) s[s[i].next].previous = i;
        set_pair(w, i, few);
        if (s[i].previous != Q3_NONE) set_pair(w, s[i].previous, few);
    }
    if (!q3_reserve(&w->ids, m, sizeof(int32_t))) return false;
    for (uint32_t i = 0; i != Q3_NONE; i = s[i].next)
        ((int32_t *)w->ids.data)[w->ids.count++] = w->t->ids[s[i].token];
    return true;
}

/* The ids of one piece of the split: from the cache, whole, or by merges. False without memory. */
static bool encode_piece(work *w, const uint8_t *p, size_t n)
{
    uint64_t key[3] = {0, 0, 0};
    cached *entry = NULL;
    size_t before = w->ids.count;
    if (w->cache != NULL && n <= sizeof key) {
        memcpy(key, p, n);
        entry = &w->cache[mix(mix(mix(n, key[0]), key[1]), key[2]) & (w->cache_size - 1)];
        if (entry->length == n && entry->key[0] == key[0] && entry->key[1] == key[1] &&
            entry->key[2] == key[2]) {
            if (!q3_reserve(&w->ids, entry->count, sizeof(int32_t))) return false;
            memcpy((int32_t *)w->ids.data + before, entry->ids, entry->count * sizeof(int32_t));
            w->ids.count += entry->count;
            return true;
        }
    }
    uint32_t whole = w->t->ignore_merges ? q3_find_token(w->t, 0, p, n) : Q3_NONE;
    if (whole < w->t->vocabulary) {
        if (!q3_reserve(&w->ids, 1, sizeof(int32_t))) return false;
        ((int32_t *)w->ids.data)[w->ids.count++] = w->t->ids[whole];
    } else if (!merge_piece(w, p, n)) {
        return false;
    }
    size_t count = w->ids.count - before;
    if (entry != NULL && count <= 8) {
        memcpy(entry->key, key, sizeof key);
        if (count > 0) memcpy(entry->ids, (int32_t *)w->ids.data + before, count * sizeof(int32_t));
        entry->length = (uint8_t)n;
        entry->count = (uint8_t)count;
    }
    return true;
}

/* ==== Encode and decode ======================================================================= */

/* Encodes the text between two added tokens, which starts and ends the text for NFC and the
 * pattern. */
static bool encode_gap(work *w, const uint8_t *p, size_t n)
{
    if (w->t->nfc && !q3_normalise(&w->nfc, &p, &n)) return false;
    for (size_t length; n > 0; p += length, n -= length) {
        length = piece_length(w->t->properties, p, p + n);
        if (!encode_piece(w, p, length)) return false;
    }
    return true;
}

/* The first of a[low..high) whose byte at depth is at least `byte`; they share what is before. */
static size_t first_with(const q3_added_token *a, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (a[middle].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest added token at p, or NULL: the sorted list is narrowed byte by byte. */
static const q3_added_token *find_added(const q3_tokenizer *t, const uint8_t *p, size_t n)
{
    const q3_added_token *found = NULL, *a = t->added;
    size_t low = 0, high = t->added_count;
    for (size_t depth = 0; low < high; depth++) {
        if (a[low].length == depth) found = &a[low++];
        if (depth == n) break;
        low = first_with(a, low, high, depth, p[depth]);
        high = first_with(a, low, high, depth, p[depth] + 1);
    }
    return found;
}

/* Cuts the added tokens out and encodes what lies between. False without memory. */
static bool encode_text(work *w, const uint8_t *p, size_t n)
{
    const q3_tokenizer *t = w->t;
    size_t start = 0;
    for (size_t i = 0; i < n;) {
        const q3_added_token *a = t->starts_added[p[i]] ? find_added(t, p + i, n - i) : NULL;
        if (a == NULL) {
            i++;
            continue;
        }
        if (!encode_gap(w, p + start, i - start) || !q3_reserve(&w->ids, 1, sizeof(int32_t)))
            return false;
        ((int32_t *)w->ids.data)[w->ids.count++] = t->ids[a->token];
        start = i += a->length;
    }
    return encode_gap(w, p + start, n - start);
}

/* An error that names the first byte that is not UTF-8. */
static q3_status check_utf8(const uint8_t *p, size_t n, q3_error *error)
{
    uint32_t code;
    for (size_t i = 0, step; i < n; i += step) {
        step = q3_ascii_bytes(p + i, n - i);
        if (step == 0) step = q3_utf8_decode(p + i, n - i, &code);
        if (step == 0)
            return q3_fail(error, Q3_ERROR_INPUT, "text: byte %zu: found 0x%02X, expected UTF-8", i,
                           p[i]);
    }
    return Q3_OK;
}

q3_status q3_tokenizer_encode(const q3_tokenizer *tokenizer, const void *text, size_t length,
                              int32_t **ids, size_t *count, q3_error *error)
{
    work w = {.t = tokenizer, .nfc = {.properties = tokenizer->properties}};
    const uint8_t *bytes = length > 0 ? text : (const uint8_t *)"";
    q3_status status = check_utf8(bytes, length, error);
    if (status != Q3_OK) return status;
    if (length >= Q3_NONE)
        return q3_fail(error, Q3_ERROR_INPUT, "text: found 4 GiB or more, expected less");
    /* A short text is not worth a cache; without memory for one there is none. */
    for (w.cache_size = 64; w.cache_size < length / 64 && w.cache_size < 16384;) w.cache_size *= 2;
    if (length > 2048) w.cache = calloc(w.cache_size, sizeof *w.cache);
    bool done = q3_reserve(&w.ids, length / 4 + 1, sizeof(int32_t)) &&
                encode_text(&w, bytes, length);
    free(w.nfc.out.data);
    free(w.nfc.codes.data);
    free(w.nfc.scratch.data);
    free(w.symbols.data);
    free(w.ranks.data);
    free(w.heap.data);
    free(w.cache);
    if (!done) {
        free(w.ids.data);
        return q3_no_memory(error, "tokenizer");
    }
    *ids = w.ids.data;
    *count = w.ids.count;
    return Q3_OK;
}

q3_status q3_tokenizer_decode(const q3_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              uint8_t **bytes, size_t *length, q3_error *error)
{
    const q3_tokenizer *t = tokenizer;
    q3_buffer out = {0};
    bool room = q3_reserve(&out, 1, 1);
    for (size_t i = 0; i < count && room; i++) {
        uint32_t k = q3_find_id(t, 0, t->vocabulary, ids[i]);
        k = k != Q3_NONE ? k : q3_find_id(t, t->vocabulary, t->count, ids[i]);
        if (k == Q3_NONE) {
            free(out.data);
            return q3_fail(error, Q3_ERROR_INPUT,
                           "ids[%zu]: found %ld, expected the id of a token", i, (long)ids[i]);
        }
        size_t n = t->offsets[k + 1] - t->offsets[k] - 1;
        room = q3_reserve(&out, n + 1, 1) && q3_append(&out, t->pool + t->offsets[k] + 1, n);
    }
    if (!room) {
        free(out.data);
        return q3_no_memory(error, "tokenizer");
    }
    ((uint8_t *)out.data)[out.count] = 0;
    *bytes = out.data;
    *length = out.count;
    return Q3_OK;
}

int32_t q3_token_id(const q3_tokenizer *tokenizer, const void *bytes, size_t length)
{
    uint32_t i = q3_find_token(tokenizer, 0, bytes, length);
    if (i == Q3_NONE) i = q3_find_token(tokenizer, 1, bytes, length);
    return i == Q3_NONE ? -1 : tokenizer->ids[i];
}
