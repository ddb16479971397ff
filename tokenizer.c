/* Text <-> token ids, as Hugging Face tokenizers 0.23 does it with the Qwen tokenizer.json: added tokens,
 * NFC, the Qwen split, byte-level BPE. Order of this file: tables and tokens; normalisation; split; merges;
 * encode and decode; reading tokenizer.json. */
#include "json.h"
#include "qwen3moe.h"
#include "unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

/* A code point's properties: class in bits 0-1, two flags, the combining class in bits 8-15. */
enum {
    OTHER = 0, LETTER = 1, NUMBER = 2, SPACE = 3, CLASS = 3,
    DECOMPOSES = 4,  /* has a canonical decomposition; Hangul syllables have not: they are computed */
    UNSTABLE = 8,    /* NFC may change it, or move or join it to what stands before it */
    MARK_SHIFT = 8
};

/* merges[left right]: a slot of a hash table, empty if result is NONE. */
typedef struct pair {
    uint32_t left, right, rank, result;
} pair;

typedef struct added_token {
    const uint8_t *text;  /* into added_text */
    size_t length;
    uint32_t token;
    uint32_t node;        /* in the file, for messages */
} added_token;

/* A token is known by its index: 0 .. vocabulary-1 in order of id, then the added tokens that are not in
 * the vocabulary. Its bytes in the pool follow a byte that is 0 if they are what its letters stand for,
 * 1 if the token has characters that are no letters of the byte table and is kept as it is written. */
struct q3_tokenizer {
    uint16_t *properties;                     /* [0x110000] */
    bool nfc, ignore_merges;
    size_t vocabulary, count;
    int32_t *ids;                             /* [count], ascending in each of the two parts */
    uint32_t *offsets;                        /* [count + 1], into pool */
    uint8_t *pool;
    uint32_t *slots;                          /* hash table of token indices, NONE is empty */
    size_t slot_mask;
    uint64_t slot_seed;
    pair *pairs;
    size_t pair_mask;
    uint64_t pair_seed;
    uint32_t letter[256];                     /* the token of a single byte, or NONE */
    int16_t byte_of[324];                     /* the byte that a letter (code point) stands for, or -1 */
    added_token *added;                       /* sorted by text */
    size_t added_count;
    uint8_t *added_text;
    bool starts_added[256];                   /* whether some added token starts with the byte */
};

static q3_status out_of_memory(q3_error *error)
{
    if (error != NULL)
        snprintf(error->text, sizeof error->text, "tokenizer: not enough memory");
    return Q3_ERROR_MEMORY;
}

/* A growing array of elements of one size. */
typedef struct buffer {
    void *data;
    size_t count, capacity;
} buffer;

static bool reserve(buffer *b, size_t more, size_t size)
{
    if (more <= b->capacity - b->count)
        return true;
    if (more > SIZE_MAX / 4 / size - b->count)
        return false;
    size_t capacity = b->count + more + b->capacity;
    void *data = realloc(b->data, capacity * size);
    if (data == NULL)
        return false;
    b->data = data;
    b->capacity = capacity;
    return true;
}

/* ---- tables and tokens ------------------------------------------------------------------------------ */

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

static void set_class(uint16_t *properties, const uint32_t (*ranges)[2], size_t n, uint16_t class)
{
    for (size_t i = 0; i < n; i++)
        for (uint32_t c = ranges[i][0]; c <= ranges[i][1]; c++)
            properties[c] = class;
}

static void fill_properties(uint16_t *properties)
{
    size_t n = sizeof q3_unicode_decompositions / sizeof *q3_unicode_decompositions;
    set_class(properties, q3_unicode_letters, sizeof q3_unicode_letters / 8, LETTER);
    set_class(properties, q3_unicode_numbers, sizeof q3_unicode_numbers / 8, NUMBER);
    set_class(properties, q3_unicode_spaces, sizeof q3_unicode_spaces / 8, SPACE);
    for (size_t i = 0; i < sizeof q3_unicode_marks / sizeof *q3_unicode_marks; i++)
        for (uint32_t c = q3_unicode_marks[i][0]; c <= q3_unicode_marks[i][1]; c++)
            properties[c] |= (uint16_t)(q3_unicode_marks[i][2] << MARK_SHIFT | UNSTABLE);
    for (size_t i = 0; i < n; i++)
        properties[q3_unicode_decompositions[i][0]] |= DECOMPOSES | UNSTABLE;
    /* What composition makes again is stable, unless it is a second element itself. */
    n = sizeof q3_unicode_compositions / sizeof *q3_unicode_compositions;
    for (size_t i = 0; i < n; i++)
        properties[q3_unicode_decompositions[q3_unicode_compositions[i]][0]] &= (uint16_t)~UNSTABLE;
    for (size_t i = 0; i < n; i++)
        properties[q3_unicode_decompositions[q3_unicode_compositions[i]][2]] |= UNSTABLE;
    for (uint32_t c = 0x1161; c <= 0x1175; c++)
        properties[c] |= UNSTABLE;
    for (uint32_t c = 0x11A8; c <= 0x11C2; c++)
        properties[c] |= UNSTABLE;
}

/* The byte table of byte-level BPE: printable Latin-1 stands for itself, the other 68 bytes in ascending
 * order for U+0100 and up. */
static void fill_bytes(int16_t byte_of[324])
{
    int16_t next = 256;
    for (int i = 0; i < 324; i++)
        byte_of[i] = -1;
    for (int16_t b = 0; b < 256; b++)
        byte_of[(b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : next++] = b;
}

/* Writes what a token's text (UTF-8) stands for to out, which has room for n bytes, and its length to
 * *length. Returns 0, or 1 if the text has to stand for itself. */
static uint8_t to_bytes(const q3_tokenizer *t, const uint8_t *text, size_t n, uint8_t *out,
                        size_t *length)
{
    size_t m = 0;
    for (size_t i = 0; i < n;) {
        uint32_t code = text[i];
        i += code < 0x80 ? 1 : q3_utf8_decode(text + i, n - i, &code);
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

static uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 29;
}

static uint64_t hash_bytes(uint64_t seed, uint8_t kind, const uint8_t *p, size_t n)
{
    uint64_t h = mix(seed, (uint64_t)n << 1 | kind), word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        h = mix(h, word);
    }
    word = 0;
    for (size_t i = 0; i < n; i++)
        word = word << 8 | p[i];
    return mix(h, word);
}

/* The index of the token with these bytes, or NONE. */
static uint32_t find_token(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n)
{
    for (size_t s = hash_bytes(t->slot_seed, kind, p, n) & t->slot_mask;; s = (s + 1) & t->slot_mask) {
        uint32_t i = t->slots[s];
        if (i == NONE)
            return NONE;
        const uint8_t *have = t->pool + t->offsets[i];
        if (t->offsets[i + 1] - t->offsets[i] == n + 1 && have[0] == kind && memcmp(have + 1, p, n) == 0)
            return i;
    }
}

static size_t hash_pair(const q3_tokenizer *t, uint32_t left, uint32_t right)
{
    return mix(t->pair_seed, (uint64_t)left << 32 | right) & t->pair_mask;
}

/* The slot of a pair; an empty one if it is not merged. */
static const pair *find_pair(const q3_tokenizer *t, uint32_t left, uint32_t right)
{
    for (size_t s = hash_pair(t, left, right);; s = (s + 1) & t->pair_mask) {
        const pair *p = &t->pairs[s];
        if ((p->left == left && p->right == right) || p->result == NONE)
            return p;
    }
}

/* The index from low to high - 1 with this id, or NONE. */
static uint32_t find_id(const q3_tokenizer *t, size_t low, size_t high, int32_t id)
{
    if (id >= 0 && (size_t)id >= low && (size_t)id < high && t->ids[id] == id)
        return (uint32_t)id;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->ids[middle] == id)
            return (uint32_t)middle;
        if (t->ids[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NONE;
}

/* ---- normalisation: NFC by decomposition, ordering, composition ------------------------------------- */

/* What one call of encode needs; every array grows as far as the text makes it. */
typedef struct cached {
    uint64_t key[3];
    int32_t ids[8];
    uint8_t length, count;
} cached;

typedef struct work {
    const q3_tokenizer *t;
    buffer ids;       /* int32_t: the result */
    buffer normal;    /* uint8_t: a normalised gap */
    buffer codes;     /* uint32_t: code points, combining class in bits 24-31 */
    buffer scratch;   /* uint32_t: for ordering */
    buffer symbols;   /* symbol: a piece while it is merged */
    buffer ranks;     /* uint32_t: beside symbols */
    buffer heap;      /* uint64_t */
    cached *cache;    /* [cache_size], or NULL */
    size_t cache_size;
} work;

/* Reads a code point of text that is known to be UTF-8; returns its length. */
static inline size_t take(const uint8_t *p, uint32_t *code)
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

/* How many whole groups of eight bytes at p are ASCII, in bytes. */
static size_t ascii_bytes(const uint8_t *p, size_t n)
{
    size_t i = 0;
    for (uint64_t word; n - i >= 8; i += 8) {
        memcpy(&word, p + i, 8);
        if (word & UINT64_C(0x8080808080808080))
            break;
    }
    return i;
}

static bool append_bytes(buffer *b, const uint8_t *p, size_t n)
{
    if (!reserve(b, n, 1))
        return false;
    if (n > 0)
        memcpy((uint8_t *)b->data + b->count, p, n);
    b->count += n;
    return true;
}

/* Appends the full canonical decomposition to w->codes, which has room for it (4 at most). */
static void decompose(work *w, uint32_t code)
{
    uint32_t property = w->t->properties[code], syllable = code - 0xAC00;
    uint32_t *codes = w->codes.data;
    if (syllable < 11172) {
        codes[w->codes.count++] = 0x1100 + syllable / 588;
        codes[w->codes.count++] = 0x1161 + syllable % 588 / 28;
        if (syllable % 28 != 0)
            codes[w->codes.count++] = 0x11A7 + syllable % 28;
    } else if (property & DECOMPOSES) {
        const uint32_t *d = find_decomposition(code);
        decompose(w, d[1]);
        if (d[2] != 0)
            decompose(w, d[2]);
    } else {
        codes[w->codes.count++] = code | property >> MARK_SHIFT << 24;
    }
}

/* Puts each run of marks in the order of their combining classes; equal classes keep their order. */
static bool order_marks(work *w)
{
    uint32_t *codes = w->codes.data;
    for (size_t i = 0, end; i < w->codes.count; i = end) {
        bool sorted = true;
        size_t place[256] = {0};
        for (end = i + 1; end < w->codes.count && codes[i] >> 24 != 0 && codes[end] >> 24 != 0; end++)
            sorted = sorted && codes[end - 1] >> 24 <= codes[end] >> 24;
        if (sorted)
            continue;
        w->scratch.count = 0;
        if (!reserve(&w->scratch, end - i, sizeof *codes))
            return false;
        uint32_t *scratch = w->scratch.data;
        for (size_t k = i; k < end; k++)
            place[codes[k] >> 24]++;
        for (size_t c = 0, sum = 0; c < 256; c++) {
            size_t n = place[c];
            place[c] = sum;
            sum += n;
        }
        for (size_t k = i; k < end; k++)
            scratch[place[codes[k] >> 24]++] = codes[k];
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
        if (d[1] == first && d[2] == second)
            return d[0];
        if (d[1] < first || (d[1] == first && d[2] < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Composes w->codes in place. A code point joins the last starter if nothing stands between them, or only
 * marks of lower classes. */
static void compose(work *w)
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
            if (class == 0)
                starter = out;
            codes[out++] = codes[i];
        }
    }
    w->codes.count = out;
}

/* Normalises text[0..n), which starts at a stable code point or at the gap's start, into w->normal. */
static bool normalise_segment(work *w, const uint8_t *text, size_t n)
{
    uint32_t code;
    w->codes.count = 0;
    for (size_t i = 0; i < n;) {
        if (!reserve(&w->codes, 4, sizeof code))
            return false;
        i += take(text + i, &code);
        decompose(w, code);
    }
    if (!order_marks(w))
        return false;
    compose(w);
    if (!reserve(&w->normal, 4 * w->codes.count, 1))
        return false;
    for (size_t i = 0; i < w->codes.count; i++)
        w->normal.count += q3_utf8_encode(((uint32_t *)w->codes.data)[i] & 0xFFFFFF,
                                          (uint8_t *)w->normal.data + w->normal.count);
    return true;
}

/* NFC of a gap: *text and *n stay as they are if nothing can change, otherwise they become w->normal. Only
 * unstable code points and the stable one before them are worked on. */
static bool normalise(work *w, const uint8_t **text, size_t *n)
{
    const uint8_t *p = *text;
    size_t length = *n, done = 0, before = 0;
    uint32_t code;
    w->normal.count = 0;
    for (size_t i = 0; i < length;) {
        size_t skip = ascii_bytes(p + i, length - i);
        if (skip > 0) {
            i += skip;
            before = i - 1;
            continue;
        }
        size_t end = i + take(p + i, &code);
        if (!(w->t->properties[code] & UNSTABLE)) {
            before = i;
            i = end;
            continue;
        }
        while (end < length) {
            size_t step = take(p + end, &code);
            if (!(w->t->properties[code] & UNSTABLE))
                break;
            end += step;
        }
        if (!append_bytes(&w->normal, p + done, before - done) ||
            !normalise_segment(w, p + before, end - before))
            return false;
        i = before = done = end;
    }
    if (done == 0)
        return true;
    if (!append_bytes(&w->normal, p + done, length - done))
        return false;
    *text = w->normal.data;
    *n = w->normal.count;
    return true;
}

/* ---- split ------------------------------------------------------------------------------------------ */

static const char qwen_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* The end of the run of one class at p. */
static inline const uint8_t *run(const uint16_t *properties, const uint8_t *p, const uint8_t *end,
                                 uint32_t class)
{
    uint32_t code;
    while (p < end) {
        size_t step = take(p, &code);
        if ((properties[code] & CLASS) != class)
            break;
        p += step;
    }
    return p;
}

/* The length of 's 't 'm 'd 're 've 'll at p (any case; U+017F is a case of s), or 0. */
static size_t contraction(const uint8_t *p, const uint8_t *end)
{
    if (end - p < 2)
        return 0;
    uint8_t a = p[1] | 0x20, b = end - p > 2 ? p[2] | 0x20 : 0;
    if (p[1] < 0x80 && (a == 's' || a == 't' || a == 'm' || a == 'd'))
        return 2;
    if (p[1] == 0xC5 && p[2] == 0xBF)
        return 3;
    if (p[1] < 0x80 && end - p > 2 && p[2] < 0x80 &&
        (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')))
        return 3;
    return 0;
}

/* The length of the piece at p < end: the first alternative of the pattern that matches. */
static size_t piece_length(const uint16_t *properties, const uint8_t *p, const uint8_t *end)
{
    uint32_t code, next, class;
    const uint8_t *q = p + take(p, &code), *stop, *line = NULL;
    class = properties[code] & CLASS;
    size_t n = code == '\'' ? contraction(p, end) : 0;
    if (n > 0)
        return n;
    if (class == LETTER)
        return (size_t)(run(properties, q, end, LETTER) - p);
    if (class == NUMBER)
        return (size_t)(q - p);
    if (q < end && code != '\r' && code != '\n') {
        take(q, &next);
        if ((properties[next] & CLASS) == LETTER)
            return (size_t)(run(properties, q, end, LETTER) - p);
        if (code == ' ' && (properties[next] & CLASS) == OTHER)
            class = OTHER;
    }
    if (class == OTHER) {
        for (stop = run(properties, q, end, OTHER); stop < end && (*stop == '\r' || *stop == '\n');)
            stop++;
        return (size_t)(stop - p);
    }
    const uint8_t *last = p;
    for (stop = p; stop < end; stop += n) {
        n = take(stop, &code);
        if ((properties[code] & CLASS) != SPACE)
            break;
        last = stop;
        if (code == '\r' || code == '\n')
            line = stop + 1;
    }
    if (line != NULL)
        return (size_t)(line - p);
    return (size_t)((stop == end || last == p ? stop : last) - p);
}

/* ---- merges ----------------------------------------------------------------------------------------- */

typedef struct symbol {
    uint32_t token, previous, next, result;
} symbol;

/* Up to this many symbols the lowest rank is found by looking at all, beyond by a heap. */
#define FEW 32

static void heap_push(buffer *heap, uint64_t key)
{
    uint64_t *h = heap->data;
    size_t i = heap->count++;
    for (; i > 0 && h[(i - 1) / 2] > key; i = (i - 1) / 2)
        h[i] = h[(i - 1) / 2];
    h[i] = key;
}

static uint64_t heap_pop(buffer *heap)
{
    uint64_t *h = heap->data, top = h[0], key = h[--heap->count];
    size_t i = 0, n = heap->count;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && h[child + 1] < h[child];
        if (h[child] >= key)
            break;
        h[i] = h[child];
    }
    h[i] = key;
    return top;
}

/* Looks up the pair that starts at symbol i. Each merge pops one entry of the heap and pushes two at most,
 * so the heap never holds more than twice the symbols. */
static void set_pair(work *w, uint32_t i, bool few)
{
    symbol *s = w->symbols.data;
    uint32_t *ranks = w->ranks.data;
    ranks[i] = NONE;
    if (s[i].next == NONE)
        return;
    const pair *p = find_pair(w->t, s[i].token, s[s[i].next].token);
    if (p->result == NONE)
        return;
    ranks[i] = p->rank;
    s[i].result = p->result;
    if (!few)
        heap_push(&w->heap, (uint64_t)p->rank << 32 | i);
}

/* The symbol whose pair has the lowest rank, the leftmost of equals; NONE if no pair is left. */
static uint32_t lowest_pair(work *w, bool few)
{
    const uint32_t *ranks = w->ranks.data;
    uint32_t best = NONE, rank = NONE;
    if (few) {
        for (uint32_t i = 0; i < w->symbols.count; i++) {
            best = ranks[i] < rank ? i : best;
            rank = ranks[i] < rank ? ranks[i] : rank;
        }
        return best;
    }
    while (w->heap.count > 0) {
        uint64_t key = heap_pop(&w->heap);
        if (ranks[key & NONE] == key >> 32)  /* otherwise the pair is no more */
            return (uint32_t)(key & NONE);
    }
    return NONE;
}

/* Appends the tokens of a piece: its bytes' letters, merged by rank until no pair is left. */
static bool merge_piece(work *w, const uint8_t *p, size_t n)
{
    w->symbols.count = w->ranks.count = w->heap.count = 0;
    if (!reserve(&w->symbols, n, sizeof(symbol)) || !reserve(&w->ranks, n, sizeof(uint32_t)) ||
        (n > FEW && !reserve(&w->heap, 2 * n, sizeof(uint64_t))))
        return false;
    symbol *s = w->symbols.data;
    uint32_t *ranks = w->ranks.data, m = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t token = w->t->letter[p[i]];
        if (token != NONE) {
            s[m] = (symbol){token, m - 1, m + 1, NONE};  /* before the first: NONE */
            m++;
        }
    }
    if (m == 0)
        return true;
    s[m - 1].next = NONE;
    w->symbols.count = m;
    bool few = m <= FEW;
    for (uint32_t i = 0; i < m; i++)
        set_pair(w, i, few);
    for (uint32_t i; (i = lowest_pair(w, few)) != NONE;) {
        uint32_t gone = s[i].next;
        s[i].token = s[i].result;
        s[i].next = s[gone].next;
        ranks[gone] = NONE;
        if (s[i].next != NONE)
            s[s[i].next].previous = i;
        set_pair(w, i, few);
        if (s[i].previous != NONE)
            set_pair(w, s[i].previous, few);
    }
    if (!reserve(&w->ids, m, sizeof(int32_t)))
        return false;
    for (uint32_t i = 0; i != NONE; i = s[i].next)
        ((int32_t *)w->ids.data)[w->ids.count++] = w->t->ids[s[i].token];
    return true;
}

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
            if (!reserve(&w->ids, entry->count, sizeof(int32_t)))
                return false;
            memcpy((int32_t *)w->ids.data + before, entry->ids, entry->count * sizeof(int32_t));
            w->ids.count += entry->count;
            return true;
        }
    }
    uint32_t whole = w->t->ignore_merges ? find_token(w->t, 0, p, n) : NONE;
    if (whole < w->t->vocabulary) {
        if (!reserve(&w->ids, 1, sizeof(int32_t)))
            return false;
        ((int32_t *)w->ids.data)[w->ids.count++] = w->t->ids[whole];
    } else if (!merge_piece(w, p, n)) {
        return false;
    }
    size_t count = w->ids.count - before;
    if (entry != NULL && count <= 8) {
        memcpy(entry->key, key, sizeof key);
        if (count > 0)
            memcpy(entry->ids, (int32_t *)w->ids.data + before, count * sizeof(int32_t));
        entry->length = (uint8_t)n;
        entry->count = (uint8_t)count;
    }
    return true;
}

/* ---- encode and decode ------------------------------------------------------------------------------ */

/* Encodes the text between two added tokens, which starts and ends the text for NFC and the pattern. */
static bool encode_gap(work *w, const uint8_t *p, size_t n)
{
    if (w->t->nfc && !normalise(w, &p, &n))
        return false;
    for (size_t length; n > 0; p += length, n -= length) {
        length = piece_length(w->t->properties, p, p + n);
        if (!encode_piece(w, p, length))
            return false;
    }
    return true;
}

/* The longest added token at p, or NULL: the sorted list is narrowed byte by byte. */
static const added_token *find_added(const q3_tokenizer *t, const uint8_t *p, size_t n)
{
    const added_token *found = NULL, *a = t->added;
    size_t low = 0, high = t->added_count;
    for (size_t depth = 0; low < high; depth++) {
        if (a[low].length == depth)
            found = &a[low++];
        if (depth == n)
            break;
        /* a[low..high) share depth bytes and are longer: keep those whose next byte is p's. */
        for (size_t bound = 0; bound < 2; bound++) {
            size_t left = low, right = high;
            while (left < right) {
                size_t middle = (left + right) / 2;
                if (a[middle].text[depth] < p[depth] + bound)
                    left = middle + 1;
                else
                    right = middle;
            }
            *(bound == 0 ? &low : &high) = left;
        }
    }
    return found;
}

static bool encode_text(work *w, const uint8_t *p, size_t n)
{
    const q3_tokenizer *t = w->t;
    size_t start = 0;
    for (size_t i = 0; i < n;) {
        const added_token *a = t->starts_added[p[i]] ? find_added(t, p + i, n - i) : NULL;
        if (a == NULL) {
            i++;
            continue;
        }
        if (!encode_gap(w, p + start, i - start) || !reserve(&w->ids, 1, sizeof(int32_t)))
            return false;
        ((int32_t *)w->ids.data)[w->ids.count++] = t->ids[a->token];
        start = i += a->length;
    }
    return encode_gap(w, p + start, n - start);
}

static q3_status check_utf8(const uint8_t *p, size_t n, q3_error *error)
{
    uint32_t code;
    for (size_t i = 0, step; i < n; i += step) {
        step = ascii_bytes(p + i, n - i);
        if (step == 0)
            step = q3_utf8_decode(p + i, n - i, &code);
        if (step == 0) {
            if (error != NULL)
                snprintf(error->text, sizeof error->text,
                         "text: byte %llu: found 0x%02X, expected UTF-8", (unsigned long long)i, p[i]);
            return Q3_ERROR_INPUT;
        }
    }
    return Q3_OK;
}

q3_status q3_tokenizer_encode(const q3_tokenizer *tokenizer, const void *text, size_t length,
                              int32_t **ids, size_t *count, q3_error *error)
{
    work w = {.t = tokenizer};
    const uint8_t *bytes = length > 0 ? text : (const uint8_t *)"";
    q3_status status = check_utf8(bytes, length, error);
    if (status != Q3_OK)
        return status;
    if (length >= NONE) {
        if (error != NULL)
            snprintf(error->text, sizeof error->text, "text: found 4 GiB or more, expected less");
        return Q3_ERROR_INPUT;
    }
    /* A short text is not worth a cache; without memory for one there is none. */
    for (w.cache_size = 64; w.cache_size < length / 64 && w.cache_size < 16384;)
        w.cache_size *= 2;
    if (length > 2048)
        w.cache = calloc(w.cache_size, sizeof *w.cache);
    bool done = reserve(&w.ids, length / 4 + 1, sizeof(int32_t)) && encode_text(&w, bytes, length);
    free(w.normal.data);
    free(w.codes.data);
    free(w.scratch.data);
    free(w.symbols.data);
    free(w.ranks.data);
    free(w.heap.data);
    free(w.cache);
    if (!done) {
        free(w.ids.data);
        return out_of_memory(error);
    }
    *ids = w.ids.data;
    *count = w.ids.count;
    return Q3_OK;
}

q3_status q3_tokenizer_decode(const q3_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              uint8_t **bytes, size_t *length, q3_error *error)
{
    const q3_tokenizer *t = tokenizer;
    buffer out = {0};
    bool room = reserve(&out, 1, 1);
    for (size_t i = 0; i < count && room; i++) {
        uint32_t k = find_id(t, 0, t->vocabulary, ids[i]);
        k = k != NONE ? k : find_id(t, t->vocabulary, t->count, ids[i]);
        if (k == NONE) {
            free(out.data);
            if (error != NULL)
                snprintf(error->text, sizeof error->text,
                         "ids[%llu]: found %ld, expected the id of a token", (unsigned long long)i,
                         (long)ids[i]);
            return Q3_ERROR_INPUT;
        }
        size_t n = t->offsets[k + 1] - t->offsets[k] - 1;
        room = reserve(&out, n + 1, 1) && append_bytes(&out, t->pool + t->offsets[k] + 1, n);
    }
    if (!room) {
        free(out.data);
        return out_of_memory(error);
    }
    ((uint8_t *)out.data)[out.count] = 0;
    *bytes = out.data;
    *length = out.count;
    return Q3_OK;
}

int32_t q3_token_id(const q3_tokenizer *tokenizer, const void *bytes, size_t length)
{
    uint32_t i = find_token(tokenizer, 0, bytes, length);
    if (i == NONE)
        i = find_token(tokenizer, 1, bytes, length);
    return i == NONE ? -1 : tokenizer->ids[i];
}

/* ---- reading tokenizer.json ------------------------------------------------------------------------- */

typedef struct loader {
    q3_json j;
    q3_tokenizer *t;
    uint8_t *text;      /* room for any two strings of the file */
    uint8_t *bytes;     /* the same for what they stand for */
    size_t added_used;  /* of t->added_text */
    q3_error *error;
} loader;

/* "where.key": what messages call a value. */
static q3_status fail(const loader *l, uint32_t node, const char *where, const char *key,
                      const char *expected)
{
    char thing[160];
    snprintf(thing, sizeof thing, "%.60s%s%.60s", where, where[0] != 0 && key[0] != 0 ? "." : "", key);
    return q3_json_fail(&l->j, node, thing, expected, l->error);
}

/* The value of a key must be one of the JSON words or strings that `allowed` lists, as in "null|\"BPE\"";
 * "absent" allows that the key is not there. */
static q3_status expect(const loader *l, uint32_t object, const char *where, const char *key,
                        const char *allowed)
{
    uint32_t node = q3_json_find(&l->j, object, key);
    char expected[128];
    size_t out = 0;
    for (const char *p = allowed; *p != 0;) {
        size_t n = strcspn(p, "|");
        const q3_json_node *value = &l->j.nodes[node];
        if (node == 0 ? strncmp(p, "absent", n) == 0
                      : value->end - value->start == n && memcmp(l->j.text + value->start, p, n) == 0)
            return Q3_OK;
        if (strncmp(p, "absent", n) != 0)
            out += (size_t)snprintf(expected + out, sizeof expected - out, "%s%.*s",
                                    out > 0 ? " or " : "", (int)n, p);
        p += n + (p[n] == '|');
    }
    return fail(l, node, where, key, expected);
}

/* Refuses an object that has other keys than the words of `keys`, and what is no object. */
static q3_status only_keys(const loader *l, uint32_t node, const char *where, const char *keys)
{
    char expected[128];
    if (q3_json_type_of(&l->j, node) != Q3_JSON_OBJECT || (node == 0 && where[0] != 0))
        return fail(l, node, where, "", "an object");
    uint32_t k = node + 1;
    for (uint32_t i = 0; i < l->j.nodes[node].count; i++, k = l->j.nodes[k + 1].next) {
        bool known = false;
        for (const char *p = keys; *p != 0 && !known;) {
            size_t n = strcspn(p, " ");
            char word[32];
            snprintf(word, sizeof word, "%.*s", (int)n, p);
            known = q3_json_equal(&l->j, k, word);
            p += n + (p[n] == ' ');
        }
        snprintf(expected, sizeof expected, "only the keys %.100s", keys);
        if (!known)
            return fail(l, k, where[0] != 0 ? where : "top level", "", expected);
    }
    return Q3_OK;
}

static q3_status check_byte_level(const loader *l, uint32_t node, const char *where, bool splits)
{
    q3_status s = only_keys(l, node, where, "type add_prefix_space trim_offsets use_regex");
    const char *flag = splits ? "false" : "true|false|absent";
    s = s != Q3_OK ? s : expect(l, node, where, "type", "\"ByteLevel\"");
    s = s != Q3_OK ? s : expect(l, node, where, "add_prefix_space", flag);
    s = s != Q3_OK ? s : expect(l, node, where, "use_regex", flag);
    return s != Q3_OK ? s : expect(l, node, where, "trim_offsets", "true|false|absent");
}

static q3_status check_split(const loader *l, uint32_t node, const char *where)
{
    q3_status s = only_keys(l, node, where, "type pattern behavior invert");
    s = s != Q3_OK ? s : expect(l, node, where, "type", "\"Split\"");
    s = s != Q3_OK ? s : expect(l, node, where, "behavior", "\"Isolated\"");
    s = s != Q3_OK ? s : expect(l, node, where, "invert", "false");
    if (s != Q3_OK)
        return s;
    uint32_t pattern = q3_json_find(&l->j, node, "pattern");
    uint32_t regex = pattern != 0 ? q3_json_find(&l->j, pattern, "Regex") : 0;
    if (regex == 0 || !q3_json_equal(&l->j, regex, qwen_pattern))
        return fail(l, regex != 0 ? regex : pattern, where, regex != 0 ? "pattern.Regex" : "pattern",
                    regex != 0 ? "the Qwen pattern" : "{\"Regex\": the Qwen pattern}");
    return only_keys(l, pattern, "pre_tokenizer.pretokenizers[0].pattern", "Regex");
}

/* Everything but tokens and merges: what the file asks for must be what this file does. */
static q3_status check_pipeline(const loader *l)
{
    const q3_json *j = &l->j;
    q3_status s = only_keys(l, 0, "", "version truncation padding added_tokens normalizer pre_tokenizer "
                                      "post_processor decoder model");
    s = s != Q3_OK ? s : expect(l, 0, "", "version", "\"1.0\"|absent");
    s = s != Q3_OK ? s : expect(l, 0, "", "truncation", "null|absent");
    s = s != Q3_OK ? s : expect(l, 0, "", "padding", "null|absent");
    if (s != Q3_OK)
        return s;
    uint32_t node = q3_json_find(j, 0, "normalizer");
    l->t->nfc = node != 0 && q3_json_type_of(j, node) != Q3_JSON_NULL;
    if (l->t->nfc) {
        s = only_keys(l, node, "normalizer", "type");
        s = s != Q3_OK ? s : expect(l, node, "normalizer", "type", "\"NFC\"");
    }
    node = q3_json_find(j, 0, "post_processor");
    if (s == Q3_OK && node != 0 && q3_json_type_of(j, node) != Q3_JSON_NULL)
        s = check_byte_level(l, node, "post_processor", false);
    s = s != Q3_OK ? s : check_byte_level(l, q3_json_find(j, 0, "decoder"), "decoder", false);
    if (s != Q3_OK)
        return s;
    node = q3_json_find(j, 0, "pre_tokenizer");
    s = only_keys(l, node, "pre_tokenizer", "type pretokenizers");
    s = s != Q3_OK ? s : expect(l, node, "pre_tokenizer", "type", "\"Sequence\"");
    if (s != Q3_OK)
        return s;
    node = q3_json_find(j, node, "pretokenizers");
    if (node == 0 || q3_json_type_of(j, node) != Q3_JSON_ARRAY || j->nodes[node].count != 2)
        return fail(l, node, "pre_tokenizer.pretokenizers", "", "an array of Split and ByteLevel");
    s = check_split(l, node + 1, "pre_tokenizer.pretokenizers[0]");
    return s != Q3_OK ? s : check_byte_level(l, j->nodes[node + 1].next,
                                             "pre_tokenizer.pretokenizers[1]", true);
}

static q3_status check_model(const loader *l, uint32_t model)
{
    static const char *const rules[][2] = {
        {"type", "\"BPE\"|absent"}, {"unk_token", "null|absent"}, {"fuse_unk", "true|false|absent"},
        {"continuing_subword_prefix", "null|\"\"|absent"}, {"end_of_word_suffix", "null|\"\"|absent"},
        {"byte_fallback", "false|absent"}, {"ignore_merges", "true|false|absent"},
    };
    uint32_t node = q3_json_find(&l->j, model, "dropout");
    double dropout = 0;
    if (model == 0 || q3_json_type_of(&l->j, model) != Q3_JSON_OBJECT)
        return fail(l, model, "model", "", "an object");
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        q3_status s = expect(l, model, "model", rules[i][0], rules[i][1]);
        if (s != Q3_OK)
            return s;
    }
    if (node != 0 && q3_json_type_of(&l->j, node) != Q3_JSON_NULL &&
        (!q3_json_double(&l->j, node, &dropout) || dropout != 0))
        return fail(l, node, "model", "dropout", "null or 0");
    node = q3_json_find(&l->j, model, "ignore_merges");
    l->t->ignore_merges = node != 0 && q3_json_type_of(&l->j, node) == Q3_JSON_TRUE;
    return Q3_OK;
}

/* Stable merge sort of numbers; the result is in *a, *b is scratch of the same size. */
static void sort_numbers(uint64_t **a, uint64_t **b, size_t n)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0, out = 0; low < n; low += 2 * width) {
            size_t middle = low + width < n ? low + width : n;
            size_t end = middle + width < n ? middle + width : n;
            for (size_t x = low, y = middle; out < end; out++)
                (*b)[out] = y == end || (x < middle && (*a)[x] <= (*a)[y]) ? (*a)[x++] : (*a)[y++];
        }
        uint64_t *swap = *a;
        *a = *b;
        *b = swap;
    }
}

/* Puts token i, the string `node`, behind the tokens before it. */
static void store_token(loader *l, size_t i, uint32_t node, int32_t id)
{
    q3_tokenizer *t = l->t;
    uint8_t *out = t->pool + t->offsets[i];
    size_t length, n = q3_json_string(&l->j, node, l->text);
    out[0] = to_bytes(t, l->text, n, out + 1, &length);
    t->offsets[i + 1] = t->offsets[i] + 1 + (uint32_t)length;
    t->ids[i] = id;
}

/* More steps than this to a free slot, and the table is made again with another seed; more than eight
 * seeds takes a file that was made to collide. */
enum { STEPS = 1000, SEEDS = 8 };

/* Adds tokens from .. t->count-1 to the hash table, which has those before; false if they collide. */
static bool index_tokens(q3_tokenizer *t, size_t from)
{
    for (; t->slot_seed < SEEDS; t->slot_seed++, from = 0) {
        size_t i = from, steps = 0;
        if (from == 0)
            memset(t->slots, 0xFF, (t->slot_mask + 1) * sizeof *t->slots);
        for (; i < t->count && steps < STEPS; i++) {
            const uint8_t *p = t->pool + t->offsets[i];
            size_t n = t->offsets[i + 1] - t->offsets[i] - 1;
            size_t s = hash_bytes(t->slot_seed, p[0], p + 1, n) & t->slot_mask;
            for (steps = 0; t->slots[s] != NONE && steps < STEPS; steps++)
                s = (s + 1) & t->slot_mask;
            t->slots[s] = steps < STEPS ? (uint32_t)i : t->slots[s];
        }
        if (steps < STEPS)
            return true;
    }
    return false;
}

/* The same for the merges in list[n]; a pair that comes again replaces the one before. */
static bool index_pairs(q3_tokenizer *t, const pair *list, size_t n)
{
    for (; t->pair_seed < SEEDS; t->pair_seed++) {
        size_t i = 0, steps = 0;
        for (size_t s = 0; s <= t->pair_mask; s++)
            t->pairs[s].result = NONE;
        for (; i < n && steps < STEPS; i++) {
            size_t s = hash_pair(t, list[i].left, list[i].right);
            for (steps = 0; steps < STEPS && t->pairs[s].result != NONE &&
                 (t->pairs[s].left != list[i].left || t->pairs[s].right != list[i].right); steps++)
                s = (s + 1) & t->pair_mask;
            t->pairs[s] = steps < STEPS ? list[i] : t->pairs[s];
        }
        if (steps < STEPS)
            return true;
    }
    return false;
}

static q3_status load_vocabulary(loader *l, uint32_t vocab)
{
    const q3_json *j = &l->j;
    q3_tokenizer *t = l->t;
    size_t n = j->nodes[vocab].count;
    uint64_t *keys = malloc((2 * n + 1) * sizeof *keys), *a = keys, *b = keys + n, id;
    bool sorted = true;
    if (keys == NULL)
        return out_of_memory(l->error);
    uint32_t k = vocab + 1;
    for (size_t i = 0; i < n; i++, k++, k++) {
        if (!q3_json_uint(j, k + 1, &id) || id > INT32_MAX)
            break;
        a[i] = id << 32 | k;
        sorted = sorted && (i == 0 || a[i - 1] < a[i]);
    }
    uint32_t wrong = k < j->nodes[vocab].next ? k : 0;
    if (wrong == 0 && !sorted)
        sort_numbers(&a, &b, n);
    for (size_t i = 0; i < n && wrong == 0; i++) {
        store_token(l, i, (uint32_t)(a[i] & NONE), (int32_t)(a[i] >> 32));
        if (i > 0 && a[i - 1] >> 32 == a[i] >> 32)
            wrong = (uint32_t)(a[i] & NONE);
    }
    free(keys);
    t->vocabulary = t->count = n;
    if (wrong == 0)
        return Q3_OK;
    char thing[64];
    int shown = j->nodes[wrong].end - j->nodes[wrong].start < 40
              ? (int)(j->nodes[wrong].end - j->nodes[wrong].start) : 0;
    snprintf(thing, sizeof thing, "model.vocab[%.*s]", shown, (const char *)j->text + j->nodes[wrong].start);
    return fail(l, wrong + 1, thing, "", "an id from 0 to 2147483647 that no other token has");
}

/* Splits a merge into l->text: left and right, one behind the other, with lengths n[0] and n[1]. */
static bool read_merge(loader *l, uint32_t node, size_t n[2])
{
    const q3_json *j = &l->j;
    if (q3_json_type_of(j, node) == Q3_JSON_ARRAY) {
        uint32_t left = node + 1, right = node + 2;
        if (j->nodes[node].count != 2 || q3_json_type_of(j, left) != Q3_JSON_STRING ||
            q3_json_type_of(j, right) != Q3_JSON_STRING)
            return false;
        n[0] = q3_json_string(j, left, l->text);
        n[1] = q3_json_string(j, right, l->text + n[0]);
        return true;
    }
    size_t length = q3_json_string(j, node, l->text);
    uint8_t *space = length > 0 ? memchr(l->text, ' ', length) : NULL;
    if (space == NULL)
        return false;
    n[0] = (size_t)(space - l->text);
    n[1] = length - n[0] - 1;
    if (n[1] > 0 && memchr(space + 1, ' ', n[1]) != NULL)
        return false;
    memmove(space, space + 1, n[1]);
    return true;
}

/* left + right = result, all three in the vocabulary. */
static bool resolve_merge(loader *l, const size_t n[2], pair *p)
{
    const q3_tokenizer *t = l->t;
    size_t left, right;
    uint8_t kind[2] = {to_bytes(t, l->text, n[0], l->bytes, &left), 0};
    kind[1] = to_bytes(t, l->text + n[0], n[1], l->bytes + left, &right);
    p->left = find_token(t, kind[0], l->bytes, left);
    p->right = find_token(t, kind[1], l->bytes + left, right);
    bool written = kind[0] != 0 || kind[1] != 0;
    p->result = written ? find_token(t, 1, l->text, n[0] + n[1]) : find_token(t, 0, l->bytes, left + right);
    return p->left != NONE && p->right != NONE && p->result != NONE;
}

/* All strings or all pairs. Lines of a merges.txt that start with #version may be among the strings. */
static q3_status read_merges(loader *l, uint32_t merges, pair *list, size_t *count)
{
    const q3_json *j = &l->j;
    bool strings = q3_json_type_of(j, merges + 1) == Q3_JSON_STRING;
    uint32_t node = merges + 1;
    size_t out = 0, n[2];
    for (size_t i = 0; i < j->nodes[merges].count; i++, node = j->nodes[node].next) {
        char thing[48];
        snprintf(thing, sizeof thing, "model.merges[%lu]", (unsigned long)i);
        if (q3_json_type_of(j, node) != (strings ? Q3_JSON_STRING : Q3_JSON_ARRAY))
            return fail(l, node, thing, "", strings ? "a string as before" : "a pair of strings");
        if (strings && q3_json_string(j, node, l->text) >= 8 && memcmp(l->text, "#version", 8) == 0)
            continue;
        if (!read_merge(l, node, n))
            return fail(l, node, thing, "", strings ? "two tokens with one space between"
                                                    : "a pair of strings");
        if (!resolve_merge(l, n, &list[out]))
            return fail(l, node, thing, "", "two tokens that are in vocab, as their join is");
        list[out].rank = (uint32_t)out;
        out++;
    }
    *count = out;
    return Q3_OK;
}

static q3_status load_merges(loader *l, uint32_t merges)
{
    q3_tokenizer *t = l->t;
    size_t n = l->j.nodes[merges].count;
    for (t->pair_mask = 15; t->pair_mask / 4 * 3 <= n;)
        t->pair_mask = 2 * t->pair_mask + 1;
    t->pairs = malloc((t->pair_mask + 1) * sizeof *t->pairs);
    pair *list = malloc((n + 1) * sizeof *list);
    q3_status status = t->pairs != NULL && list != NULL ? read_merges(l, merges, list, &n)
                                                        : out_of_memory(l->error);
    if (status == Q3_OK && !index_pairs(t, list, n))
        status = fail(l, merges, "model.merges", "", "pairs that do not collide in a hash table");
    free(list);
    return status;
}

static int compare_added(const void *a, const void *b)
{
    const added_token *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    return order != 0 ? order : (x->length > y->length) - (x->length < y->length);
}

/* One entry of added_tokens. Its id must be what Hugging Face would give it: the vocabulary's, or the next
 * free one counted from the number of the vocabulary's entries. An empty content is dropped. */
static q3_status load_added(loader *l, uint32_t node, const char *where, uint64_t *next)
{
    static const char *const flags[4] = {"single_word", "lstrip", "rstrip", "normalized"};
    q3_tokenizer *t = l->t;
    if (q3_json_type_of(&l->j, node) != Q3_JSON_OBJECT)
        return fail(l, node, where, "", "an object");
    for (size_t i = 0; i < 4; i++) {
        q3_status s = expect(l, node, where, flags[i], "false");
        if (s != Q3_OK)
            return s;
    }
    q3_status s = expect(l, node, where, "special", "true|false");
    if (s != Q3_OK)
        return s;
    uint32_t content = q3_json_find(&l->j, node, "content"), id_node = q3_json_find(&l->j, node, "id");
    if (content == 0 || q3_json_type_of(&l->j, content) != Q3_JSON_STRING)
        return fail(l, content, where, "content", "a string");
    uint64_t id = 0;
    if (id_node == 0 || !q3_json_uint(&l->j, id_node, &id) || id > INT32_MAX)
        return fail(l, id_node, where, "id", "an id from 0 to 2147483647");
    added_token *a = &t->added[t->added_count];
    a->length = q3_json_string(&l->j, content, t->added_text + l->added_used);
    a->text = t->added_text + l->added_used;
    a->node = content;
    l->added_used += a->length;
    if (a->length == 0)
        return Q3_OK;
    size_t n;
    uint8_t kind = to_bytes(t, a->text, a->length, l->bytes, &n);
    a->token = find_token(t, kind, l->bytes, n);
    if (a->token == NONE) {
        a->token = (uint32_t)t->count++;
        store_token(l, a->token, content, (int32_t)id);
        if (id != *next || find_id(t, 0, t->vocabulary, (int32_t)id) != NONE)
            return fail(l, id_node, where, "id", "the next id after the vocabulary's, not in use");
    } else if ((uint64_t)t->ids[a->token] != id) {
        return fail(l, id_node, where, "id", "the id that the vocabulary gives this content");
    }
    *next = id >= *next ? id + 1 : *next;
    t->starts_added[a->text[0]] = true;
    t->added_count++;
    return Q3_OK;
}

static q3_status load_all_added(loader *l, uint32_t list)
{
    q3_tokenizer *t = l->t;
    uint64_t next = t->vocabulary;
    uint32_t node = list + 1;
    char where[48];
    if (list == 0)
        return Q3_OK;
    for (size_t i = 0; i < l->j.nodes[list].count; i++, node = l->j.nodes[node].next) {
        snprintf(where, sizeof where, "added_tokens[%lu]", (unsigned long)i);
        q3_status s = load_added(l, node, where, &next);
        if (s != Q3_OK)
            return s;
    }
    if (t->added_count > 0)
        qsort(t->added, t->added_count, sizeof *t->added, compare_added);
    for (size_t i = 1; i < t->added_count; i++)
        if (compare_added(&t->added[i - 1], &t->added[i]) == 0)
            return fail(l, t->added[i].node, "added_tokens", "", "each content once");
    return Q3_OK;
}

static q3_status load(loader *l, size_t length)
{
    q3_tokenizer *t = l->t;
    q3_status s = check_pipeline(l);
    uint32_t model = q3_json_find(&l->j, 0, "model"), added = q3_json_find(&l->j, 0, "added_tokens");
    s = s != Q3_OK ? s : check_model(l, model);
    if (s != Q3_OK)
        return s;
    uint32_t vocab = q3_json_find(&l->j, model, "vocab"), merges = q3_json_find(&l->j, model, "merges");
    if (vocab == 0 || q3_json_type_of(&l->j, vocab) != Q3_JSON_OBJECT)
        return fail(l, vocab, "model.vocab", "", "an object");
    if (merges == 0 || q3_json_type_of(&l->j, merges) != Q3_JSON_ARRAY)
        return fail(l, merges, "model.merges", "", "an array");
    if (added != 0 && q3_json_type_of(&l->j, added) != Q3_JSON_ARRAY)
        return fail(l, added, "added_tokens", "", "an array");
    size_t extra = added != 0 ? l->j.nodes[added].count : 0, all = l->j.nodes[vocab].count + extra;
    for (t->slot_mask = 15; t->slot_mask / 4 * 3 <= all;)
        t->slot_mask = 2 * t->slot_mask + 1;
    /* Each string is at least two quotes shorter than it is in the file. */
    t->pool = malloc(length + 1);
    t->offsets = calloc(all + 1, sizeof *t->offsets);
    t->ids = malloc((all + 1) * sizeof *t->ids);
    t->slots = malloc((t->slot_mask + 1) * sizeof *t->slots);
    t->added = malloc((extra + 1) * sizeof *t->added);
    t->added_text = malloc(length + 1);
    if (t->pool == NULL || t->offsets == NULL || t->ids == NULL || t->slots == NULL ||
        t->added == NULL || t->added_text == NULL)
        return out_of_memory(l->error);
    s = load_vocabulary(l, vocab);
    if (s == Q3_OK && !index_tokens(t, 0))
        s = fail(l, vocab, "model.vocab", "", "keys that do not collide in a hash table");
    for (size_t i = 0; i < 256 && s == Q3_OK; i++) {
        uint8_t byte = (uint8_t)i;
        t->letter[i] = find_token(t, 0, &byte, 1);
    }
    s = s != Q3_OK ? s : load_merges(l, merges);
    s = s != Q3_OK ? s : load_all_added(l, added);
    if (s == Q3_OK && !index_tokens(t, t->vocabulary))
        s = fail(l, added, "added_tokens", "", "contents that do not collide in a hash table");
    return s;
}

q3_status q3_tokenizer_parse(q3_tokenizer **tokenizer, const char *name, const void *text,
                             size_t length, q3_error *error)
{
    loader l = {.error = error};
    q3_status s = q3_json_parse(&l.j, name, text, length, error);
    if (s != Q3_OK)
        return s;
    l.t = calloc(1, sizeof *l.t);
    l.text = malloc(length + 1);
    l.bytes = malloc(length + 1);
    if (l.t != NULL)
        l.t->properties = calloc(0x110000, sizeof *l.t->properties);
    if (l.t == NULL || l.text == NULL || l.bytes == NULL || l.t->properties == NULL) {
        s = out_of_memory(error);
    } else {
        fill_properties(l.t->properties);
        fill_bytes(l.t->byte_of);
        s = load(&l, length);
    }
    free(l.text);
    free(l.bytes);
    q3_json_free(&l.j);
    if (s == Q3_OK)
        *tokenizer = l.t;
    else
        q3_tokenizer_free(l.t);
    return s;
}

void q3_tokenizer_free(q3_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    free(tokenizer->properties);
    free(tokenizer->ids);
    free(tokenizer->offsets);
    free(tokenizer->pool);
    free(tokenizer->slots);
    free(tokenizer->pairs);
    free(tokenizer->added);
    free(tokenizer->added_text);
    free(tokenizer);
}

q3_status q3_tokenizer_open(q3_tokenizer **tokenizer, const char *path, q3_error *error)
{
    buffer text = {0};
    FILE *file = fopen(path, "rb");
    bool room = true, good = file != NULL;
    for (size_t got = 1; room && good && got > 0; text.count += got) {
        room = reserve(&text, 65536, 1);
        got = room ? fread((uint8_t *)text.data + text.count, 1, text.capacity - text.count, file) : 0;
        good = !ferror(file);
    }
    if (file != NULL)
        fclose(file);
    q3_status s = Q3_ERROR_FILE;
    if (!room)
        s = out_of_memory(error);
    else if (good)
        s = q3_tokenizer_parse(tokenizer, path, text.data, text.count, error);
    else if (error != NULL)
        snprintf(error->text, sizeof error->text, "%.200s: found no file that can be read, expected a "
                 "tokenizer.json", path);
    free(text.data);
    return s;
}
