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

uint64_t q3_token_hash(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n)
{
    uint64_t h = mix(t->slot_seed, (uint64_t)n << 1 | kind), word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        h = mix(h, word);
    }
    word = 0;
    for (size_t i = 0; i < n; i++) word = word << 8 | p[i];
    return mix(h, word);
}

bool q3_token_is(const q3_tokenizer *t, uint32_t i, uint8_t kind, const uint8_t *p, size_t n)
{
    const uint8_t *have = t->pool + t->offsets[i];
    return t->offsets[i + 1] - t->offsets[i] == n + 1 && have[0] == kind &&
           memcmp(have + 1, p, n) == 0;
}

uint32_t q3_find_token(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n)
{
    uint64_t hash = q3_token_hash(t, kind, p, n);
    size_t s = hash & t->slot_mask;
    while (t->slots[s].token != Q3_NONE && (t->slots[s].tag != (uint32_t)(hash >> 32) ||
                                            !q3_token_is(t, t->slots[s].token, kind, p, n)))
        s = (s + 1) & t->slot_mask;
    return t->slots[s].token;
}

size_t q3_pair_slot(const q3_tokenizer *t, uint32_t left, uint32_t right)
{
    return mix(t->pair_seed, (uint64_t)left << 32 | right) & t->pair_mask;
}

/* What left and right make: the rank of the merge in the high half, the token in the low one;
 * Q3_NO_MERGE if they are not merged. Most pairs are not, and the first two looks say so. */
static uint64_t find_merge(const q3_tokenizer *t, uint32_t left, uint32_t right)
{
    if ((left | right) < 256) return t->first_pairs[left << 8 | right];
    if ((t->joins[left] & q3_join_bit(right)) == 0) return Q3_NO_MERGE;
    for (size_t s = q3_pair_slot(t, left, right);; s = (s + 1) & t->pair_mask) {
        const q3_pair *p = &t->pairs[s];
        if (p->merge == Q3_NO_MERGE || (p->left == left && p->right == right)) return p->merge;
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

/* A short piece of few ids. */
#define CACHED_IDS 7

typedef struct cached {
    uint64_t key[2];  /* the bytes, zeros, and how many bytes in the last: 0, an empty entry */
    int32_t ids[CACHED_IDS];
    uint32_t count;
} cached;

/* What one call of encode needs; every array grows as far as the text makes it. */
typedef struct work {
    const q3_tokenizer *t;
    q3_nfc nfc;
    q3_buffer ids;       /* int32_t: the result */
    q3_buffer matches;   /* match: where added tokens are */
    q3_buffer symbols;   /* symbol: a long piece while it is merged */
    q3_buffer heap;      /* uint64_t */
    cached *cache;    /* [cache_size], or NULL */
    size_t cache_size;
    bool *merged;     /* [vocabulary], or NULL: merges are known to make this token of its bytes */
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

/* A piece of up to this many bytes is merged in two short arrays, a longer one in a list with a
 * heap of its pairs. */
#define FEW 32

/* Merges tokens[n], n <= FEW, in place; returns how many are left. */
static size_t merge_few(const q3_tokenizer *t, uint32_t *tokens, size_t n)
{
    uint64_t merges[FEW]; /* [i]: of tokens i and i + 1; Q3_NO_MERGE behind the last */
    for (size_t i = 0; i + 1 < n; i++) merges[i] = find_merge(t, tokens[i], tokens[i + 1]);
    if (n > 0) merges[n - 1] = Q3_NO_MERGE;
    for (;;) {
        uint64_t lowest = Q3_NO_MERGE;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            at = merges[i] < lowest ? i : at;
            lowest = merges[i] < lowest ? merges[i] : lowest;
        }
        if (lowest == Q3_NO_MERGE) return n;
        n--;
        tokens[at] = (uint32_t)lowest;
        for (size_t i = at + 1; i < n; i++) {
            tokens[i] = tokens[i + 1];
            merges[i] = merges[i + 1];
        }
        if (at + 1 < n) merges[at] = find_merge(t, tokens[at], tokens[at + 1]);
        if (at > 0) merges[at - 1] = find_merge(t, tokens[at - 1], tokens[at]);
    }
}

typedef struct symbol {
    uint64_t merge; /* with the next */
    uint32_t token, previous, next;
} symbol;

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
static void set_pair(work *w, uint32_t i)
{
    symbol *s = w->symbols.data;
    uint32_t next = s[i].next;
    s[i].merge = next == Q3_NONE ? Q3_NO_MERGE : find_merge(w->t, s[i].token, s[next].token);
    if (s[i].merge != Q3_NO_MERGE)
        heap_push(&w->heap, (s[i].merge & ~(uint64_t)Q3_NONE) | i);
}

/* Merges symbols 0 .. count-1, which are linked from 0. */
static void merge_many(work *w)
{
    symbol *s = w->symbols.data;
    for (uint32_t i = 0; i < w->symbols.count; i++) set_pair(w, i);
    while (w->heap.count > 0) {
        uint64_t key = heap_pop(&w->heap);
        uint32_t i = key & Q3_NONE;
        if (s[i].merge >> 32 != key >> 32) continue; /* the pair is no more */
        uint32_t gone = s[i].next;
        s[i].token = s[i].merge & Q3_NONE;
        s[i].next = s[gone].next;
        s[gone].merge = Q3_NO_MERGE;
        if (s[i].next != Q3_NONE) s[s[i].next].previous = i;
        set_pair(w, i);
        if (s[i].previous != Q3_NONE) set_pair(w, s[i].previous);
    }
}

/* Appends the tokens of a piece: its bytes' letters, merged by rank until no pair is left. */
static bool merge_piece(work *w, const uint8_t *p, size_t n)
{
    const q3_tokenizer *t = w->t;
    uint32_t few[FEW], m = 0;
    w->symbols.count = w->heap.count = 0;
    if (!q3_reserve(&w->ids, n, sizeof(int32_t)) ||
        (n > FEW && (!q3_reserve(&w->symbols, n, sizeof(symbol)) ||
                     !q3_reserve(&w->heap, 2 * n, sizeof(uint64_t)))))
        return false;
    int32_t *ids = (int32_t *)w->ids.data + w->ids.count;
    symbol *s = w->symbols.data;
    for (size_t i = 0; i < n; i++) {
        uint32_t token = t->letter[p[i]];
        if (token == Q3_NONE) continue;
        if (n <= FEW)
            few[m] = token;
        else
            s[m] = (symbol){Q3_NO_MERGE, token, m - 1, m + 1}; /* before the first: Q3_NONE */
        m++;
    }
    if (n <= FEW) {
        size_t left = merge_few(t, few, m);
        for (size_t i = 0; i < left; i++) ids[i] = t->ids[few[i]];
        w->ids.count += left;
    } else if (m > 0) {
        s[m - 1].next = Q3_NONE;
        w->symbols.count = m;
        merge_many(w);
        for (uint32_t i = 0; i != Q3_NONE; i = s[i].next) {
            *ids++ = t->ids[s[i].token];
            w->ids.count++;
        }
    }
    return true;
}

/* The ids of one piece of the split: from the cache, whole, or by merges. False without memory. */
static bool encode_piece(work *w, const uint8_t *p, size_t n)
{
    cached *entry = NULL, new = {.key = {0, 0}};
    size_t before = w->ids.count;
    if (w->cache != NULL && n < sizeof new.key) {
        memcpy(new.key, p, n);
        ((uint8_t *)new.key)[sizeof new.key - 1] = (uint8_t)n;
        entry = &w->cache[mix(mix(0, new.key[0]), new.key[1]) & (w->cache_size - 1)];
        if (entry->key[0] == new.key[0] && entry->key[1] == new.key[1]) {
            if (!q3_reserve(&w->ids, CACHED_IDS, sizeof(int32_t))) return false;
            memcpy((int32_t *)w->ids.data + before, entry->ids, sizeof entry->ids);
            w->ids.count += entry->count;
            return true;
        }
    }
    bool ask = w->t->ignore_merges || (w->merged != NULL && n <= FEW);
    uint32_t whole = ask ? q3_find_token(w->t, 0, p, n) : Q3_NONE;
    bool known = whole < w->t->vocabulary;
    if (known && (w->t->ignore_merges || w->merged[whole])) {
        if (!q3_reserve(&w->ids, 1, sizeof(int32_t))) return false;
        ((int32_t *)w->ids.data)[w->ids.count++] = w->t->ids[whole];
    } else if (!merge_piece(w, p, n)) {
        return false;
    }
    new.count = (uint32_t)(w->ids.count - before);
    if (known && w->merged != NULL)
        w->merged[whole] = new.count == 1 && ((int32_t *)w->ids.data)[before] == w->t->ids[whole];
    if (entry != NULL && new.count <= CACHED_IDS) {
        if (new.count > 0)
            memcpy(new.ids, (int32_t *)w->ids.data + before, new.count * sizeof *new.ids);
        *entry = new;
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

uint32_t q3_added_child(const q3_tokenizer *t, uint32_t node, uint8_t byte)
{
    if (node == 0) return t->added_root[byte];
    uint32_t child = t->added_nodes[node].child;
    while (child != 0 && t->added_nodes[child].byte != byte) child = t->added_nodes[child].sibling;
    return child;
}

uint32_t q3_added_step(const q3_tokenizer *t, uint32_t node, uint8_t byte)
{
    uint32_t child;
    while ((child = q3_added_child(t, node, byte)) == 0 && node != 0)
        node = t->added_nodes[node].shorter;
    return child;
}

typedef struct match {
    uint32_t at, added;
} match;

/* For every place where an added token starts the longest that does, the last place first. Time is
 * linear whatever the tokens are, since the text is read once, from its end (Aho and Corasick). */
static bool find_added(work *w, const uint8_t *p, size_t n)
{
    const q3_tokenizer *t = w->t;
    uint32_t node = 0;
    for (size_t i = n; i-- > 0;) {
        if (node == 0 && t->added_root[p[i]] == 0) continue; /* nearly all bytes of a text */
        node = q3_added_step(t, node, p[i]);
        if (node == 0 || t->added_nodes[node].longest == Q3_NONE) continue;
        if (!q3_reserve(&w->matches, 1, sizeof(match))) return false;
        ((match *)w->matches.data)[w->matches.count++] =
            (match){(uint32_t)i, t->added_nodes[node].longest};
    }
    return true;
}

/* Cuts the added tokens out and encodes what lies between. False without memory. */
static bool encode_text(work *w, const uint8_t *p, size_t n)
{
    const q3_tokenizer *t = w->t;
    size_t start = 0;
    if (!find_added(w, p, n)) return false;
    for (size_t i = w->matches.count; i-- > 0;) {
        const match *m = &((match *)w->matches.data)[i];
        if (m->at < start) continue; /* inside the one before */
        if (!encode_gap(w, p + start, m->at - start) || !q3_reserve(&w->ids, 1, sizeof(int32_t)))
            return false;
        ((int32_t *)w->ids.data)[w->ids.count++] = t->ids[t->added[m->added].token];
        start = m->at + t->added[m->added].length;
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
    if (length > 2048) w.merged = calloc(tokenizer->vocabulary + 1, sizeof *w.merged);
    bool done = q3_reserve(&w.ids, length / 4 + 1, sizeof(int32_t)) &&
                encode_text(&w, bytes, length);
    free(w.nfc.out.data);
    free(w.nfc.codes.data);
    free(w.nfc.scratch.data);
    free(w.matches.data);
    free(w.symbols.data);
    free(w.heap.data);
    free(w.cache);
    free(w.merged);
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
