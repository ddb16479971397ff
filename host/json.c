/* SPDX-License-Identifier: MIT */
/* Strict JSON reader: see json.h. UTF-8, parsing, duplicate keys, access. The conversion of numbers
 * with a fraction or an exponent is in decimal.c. */
#include "host/json.h"

#include "host/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== UTF-8 =================================================================================== */

size_t q3_utf8_decode(const uint8_t *p, size_t n, uint32_t *code)
{
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t c = n > 0 ? p[0] : 0xFF;
    size_t length = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    if (length == 0 || length > n) return 0;
    uint32_t value = length == 1 ? c : c & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xC0u) != 0x80) return 0;
        value = value << 6 | (p[i] & 0x3Fu);
    }
    if (value < smallest[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        return 0;
    *code = value;
    return length;
}

size_t q3_utf8_encode(uint32_t code, uint8_t out[4])
{
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length; i-- > 1; code >>= 6) out[i] = (uint8_t)(0x80 | (code & 0x3F));
    out[0] = (uint8_t)(length == 1 ? code : code | (0xF00u >> length & 0xF0u));
    return length;
}

/* ==== Parsing: one pass over the text, an explicit stack of open arrays and objects ========== */

typedef struct parser {
    q3_json j;
    size_t room;  /* of j.nodes, in nodes */
    size_t length, at;
    uint32_t stack[Q3_JSON_DEPTH];
    size_t depth;
    q3_error *error;
} parser;

/* "NAME: byte N: found 'c', expected WHAT". */
static q3_status fail_at(const parser *p, size_t at, const char *expected)
{
    char found[24];
    uint8_t c = at < p->length ? p->j.text[at] : 0;
    if (at >= p->length)
        snprintf(found, sizeof found, "the end of the text");
    else if (c >= 0x20 && c < 0x7F)
        snprintf(found, sizeof found, "'%c'", c);
    else
        snprintf(found, sizeof found, "byte 0x%02X", c);
    return q3_fail(p->error, Q3_ERROR_INPUT, "%.200s: byte %zu: found %s, expected %.200s",
                   p->j.name, at, found, expected);
}

/* Skips blanks (indents by fours); the next byte, -1 at the end. */
static int peek(parser *p)
{
    const uint8_t *text = p->j.text;
    size_t at = p->at, end = p->length;
    for (; at < end && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' ||
                        text[at] == '\t'); at++)
        while (end - at > 4 && memcmp(text + at + 1, "    ", 4) == 0) at += 4;
    p->at = at;
    return at < end ? text[at] : -1;
}

/* Makes room for the nodes of one turn of parse_document: a key and a value. */
static bool reserve_nodes(parser *p)
{
    q3_buffer nodes = {p->j.nodes, p->j.count, p->room};
    bool done = q3_reserve(&nodes, 2, sizeof *p->j.nodes);
    p->j.nodes = nodes.data;
    p->room = nodes.capacity;
    return done;
}

/* The node array has room: reserve_nodes. */
static uint32_t add_node(parser *p, size_t start, size_t end)
{
    uint32_t n = p->j.count++;
    p->j.nodes[n] = (q3_json_node){(uint32_t)start, (uint32_t)end, n + 1, 0};
    return n;
}

/* The four digits after \u at p; -1 if they are not four hexadecimal digits. */
static int32_t hex4(const uint8_t *p, size_t n)
{
    int32_t value = 0;
    for (size_t i = 0; i < 4; i++) {
        int c = i < n ? p[i] : 0;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                  : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Reads the escape whose backslash is at p (n bytes to go): its length (0: none) and code point. */
static size_t read_escape(const uint8_t *p, size_t n, uint32_t *code)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *simple = n >= 2 && p[1] != 0 ? strchr(from, p[1]) : NULL;
    if (simple != NULL) {
        *code = (uint8_t)to[simple - from];
        return 2;
    }
    int32_t high = n >= 6 && p[1] == 'u' ? hex4(p + 2, n - 2) : -1;
    if (high < 0 || (high >= 0xDC00 && high <= 0xDFFF)) return 0;
    *code = (uint32_t)high;
    if (high < 0xD800 || high > 0xDFFF) return 6;
    int32_t low = n >= 12 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, n - 8) : -1;
    if (low < 0xDC00 || low > 0xDFFF) return 0;
    *code = 0x10000 + ((uint32_t)(high - 0xD800) << 10) + (uint32_t)(low - 0xDC00);
    return 12;
}

/* A string whose quote is at p->at; its node says whether it has escapes. */
static q3_status parse_string(parser *p)
{
    const uint8_t *text = p->j.text;
    size_t start = p->at, at = start + 1;
    uint32_t code, escapes = 0;
    for (;;) {
        while (at < p->length && text[at] >= 0x20 && text[at] < 0x80 && text[at] != '"' &&
               text[at] != '\\')
            at++;
        if (at >= p->length || text[at] < 0x20)
            return fail_at(p, at, "the rest of a string (control characters need an escape)");
        if (text[at] == '"') break;
        size_t step = text[at] == '\\' ? read_escape(text + at, p->length - at, &code)
                                       : q3_utf8_decode(text + at, p->length - at, &code);
        if (step == 0)
            return fail_at(p, at, text[at] == '\\' ? "a JSON escape (surrogates only in pairs)"
                                                   : "UTF-8");
        escapes |= text[at] == '\\';
        at += step;
    }
    p->at = at + 1;
    p->j.nodes[add_node(p, start, p->at)].count = escapes;
    return Q3_OK;
}

/* One digit or more. */
static bool take_digits(parser *p)
{
    size_t start = p->at;
    while (p->at < p->length && p->j.text[p->at] >= '0' && p->j.text[p->at] <= '9') p->at++;
    return p->at > start;
}

/* One of two characters, if it is next. */
static bool take_char(parser *p, char a, char b)
{
    int c = p->at < p->length ? p->j.text[p->at] : -1;
    p->at += c == a || c == b;
    return c == a || c == b;
}

/* RFC 8259: no leading zeros, no leading plus, digits on both sides of a point. */
static q3_status parse_number(parser *p)
{
    size_t start = p->at;
    bool exponent = false;
    take_char(p, '-', '-');
    if (!take_char(p, '0', '0') && !take_digits(p)) return fail_at(p, p->at, "a digit");
    if (take_char(p, '.', '.') && !take_digits(p)) return fail_at(p, p->at, "a digit");
    if (take_char(p, 'e', 'E')) {
        exponent = true;
        take_char(p, '+', '-');
        if (!take_digits(p)) return fail_at(p, p->at, "a digit");
    }
    if ((exponent || p->at - start > 300) &&
        q3_decimal_too_large(p->j.text + start, p->j.text + p->at))
        return fail_at(p, start, "a number within the range of a float64");
    add_node(p, start, p->at);
    return Q3_OK;
}

/* A string, number or word; for an array or object its opening, which goes on the stack. */
static q3_status parse_value(parser *p, int c)
{
    static const char *const words[3] = {"null", "false", "true"};
    if (c == '"') return parse_string(p);
    if (c == '-' || (c >= '0' && c <= '9')) return parse_number(p);
    if (c == '{' || c == '[') {
        if (p->depth == Q3_JSON_DEPTH) return fail_at(p, p->at, "at most 128 levels of nesting");
        p->stack[p->depth++] = add_node(p, p->at, p->at);
        p->at++;
        return Q3_OK;
    }
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if (p->length - p->at >= n && memcmp(p->j.text + p->at, words[i], n) == 0) {
            add_node(p, p->at, p->at + n);
            p->at += n;
            return Q3_OK;
        }
    }
    return fail_at(p, p->at, "a value");
}

static q3_status check_keys(const parser *p, uint32_t object);

/* Parses from the document's first value to the end of the text. `empty` says that the innermost
 * array or object has just been opened, `value` that a value must come next. */
static q3_status parse_document(parser *p)
{
    bool empty = false, value = true;
    for (;;) {
        if (!reserve_nodes(p)) return Q3_ERROR_MEMORY;
        q3_json_node *top = p->depth > 0 ? &p->j.nodes[p->stack[p->depth - 1]] : NULL;
        bool object = top != NULL && p->j.text[top->start] == '{';
        int c = peek(p);
        if (value) {
            q3_status status = parse_value(p, c);
            if (status != Q3_OK) return status;
            value = false;
            empty = c == '{' || c == '[';
        } else if (top == NULL) {
            return c < 0 ? Q3_OK : fail_at(p, p->at, "the end of the text");
        } else if (c == (object ? '}' : ']')) {
            top->end = (uint32_t)++p->at;
            top->next = p->j.count;
            p->depth--;
            empty = false;
            q3_status status = object ? check_keys(p, p->stack[p->depth]) : Q3_OK;
            if (status != Q3_OK)
                return status;
        } else {
            if (!empty && c != ',') return fail_at(p, p->at, object ? "',' or '}'" : "',' or ']'");
            p->at += !empty;
            c = peek(p);
            if (object && c != '"') return fail_at(p, p->at, empty ? "a key or '}'" : "a key");
            if (object && parse_string(p) != Q3_OK) return Q3_ERROR_INPUT;
            if (object && peek(p) != ':') return fail_at(p, p->at, "':'");
            p->at += object;
            top->count++;
            value = true;
        }
    }
}

q3_status q3_json_parse(q3_json *j, const char *name, const uint8_t *text, size_t length,
                        q3_error *error)
{
    parser p = {.j = {.name = name, .text = text}, .length = length, .error = error};
    if (length >= UINT32_MAX) return fail_at(&p, UINT32_MAX, "less than 4 GiB");
    q3_status status = parse_document(&p);
    if (status == Q3_ERROR_MEMORY) q3_no_memory(error, name);
    if (status == Q3_OK)
        *j = p.j;
    else
        free(p.j.nodes);
    return status;
}

void q3_json_free(q3_json *j)
{
    free(j->nodes);
    j->nodes = NULL;
    j->count = 0;
}

/* ==== Strings and keys ======================================================================== */

/* The bytes of a string after unescaping, one at a time. */
typedef struct reader {
    const uint8_t *at, *end;
    uint8_t out[4];
    size_t have, used;
} reader;

/* A reader at the first byte behind the quote. */
static reader read_string(const q3_json *j, uint32_t node)
{
    const q3_json_node *n = &j->nodes[node];
    return (reader){.at = j->text + n->start + 1, .end = j->text + n->end - 1};
}

/* The next byte of the unescaped string, -1 at its end. */
static int next_byte(reader *r)
{
    uint32_t code = 0;
    if (r->used < r->have) return r->out[r->used++];
    if (r->at == r->end) return -1;
    if (*r->at != '\\') return *r->at++;
    r->at += read_escape(r->at, (size_t)(r->end - r->at), &code);
    r->have = q3_utf8_encode(code, r->out);
    r->used = 1;
    return r->out[0];
}

/* FNV-1a of the bytes of a string. */
static uint64_t hash_string(const q3_json *j, uint32_t node)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    reader r = read_string(j, node);
    if (j->nodes[node].count == 0)
        for (; r.at < r.end; r.at++) hash = (hash ^ *r.at) * UINT64_C(0x100000001B3);
    for (int c = next_byte(&r); c >= 0; c = next_byte(&r))
        hash = (hash ^ (uint64_t)c) * UINT64_C(0x100000001B3);
    return hash;
}

/* As strcmp, of the unescaped bytes; zeros are bytes like others. */
static int compare_strings(const q3_json *j, uint32_t a, uint32_t b)
{
    reader left = read_string(j, a), right = read_string(j, b);
    for (;;) {
        int x = next_byte(&left), y = next_byte(&right);
        if (x != y || x < 0) return x - y;
    }
}

/* Whether the key of entry x (the hash above, the node below) comes behind that of y. */
static bool behind(const q3_json *j, uint64_t x, uint64_t y)
{
    return x >> 32 != y >> 32 ? x > y : compare_strings(j, (uint32_t)x, (uint32_t)y) > 0;
}

/* Bottom-up merge sort, stable; the result is in *a, *b is scratch of the same size. */
static void sort_keys(const q3_json *j, uint64_t **a, uint64_t **b, size_t n)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t low = 0, out = 0; low < n; low += 2 * width) {
            size_t mid = low + width < n ? low + width : n;
            size_t end = mid + width < n ? mid + width : n, left = low, right = mid;
            while (left < mid && right < end) {
                bool swap = behind(j, (*a)[left], (*a)[right]);
                (*b)[out++] = swap ? (*a)[right] : (*a)[left];
                right += swap;
                left += !swap;
            }
            while (left < mid) (*b)[out++] = (*a)[left++];
            while (right < end) (*b)[out++] = (*a)[right++];
        }
        uint64_t *other = *a;
        *a = *b;
        *b = other;
    }
}

/* Of a key given twice. */
static q3_status fail_twice(const parser *p, uint32_t key)
{
    const q3_json_node *n = &p->j.nodes[key];
    bool fits = n->end - n->start <= 80;
    return q3_fail(p->error, Q3_ERROR_INPUT,
                   "%.200s: byte %lu: found the key %.*s again, expected each key once", p->j.name,
                   (unsigned long)n->start, fits ? (int)(n->end - n->start) : 5,
                   fits ? (const char *)p->j.text + n->start : "\"...\"");
}

/* Sorts the n entries of a into b by way of buckets of their hashes' highest bits, about one entry
 * in each; a is scratch. False without memory. */
static bool sort_buckets(const q3_json *j, uint64_t *a, uint64_t *b, size_t n)
{
    unsigned shift = 63;
    while (shift > 32 && UINT64_MAX >> shift < n) shift--;
    size_t count = (size_t)(UINT64_MAX >> shift) + 1, *end = calloc(count, sizeof *end);
    if (end == NULL) return false;
    for (size_t i = 0; i < n; i++) end[a[i] >> shift]++;
    for (size_t k = 1; k < count; k++) end[k] += end[k - 1];
    for (size_t i = n; i-- > 0;) b[--end[a[i] >> shift]] = a[i]; /* end becomes start */
    for (size_t k = 0; k < count; k++) {
        size_t from = end[k], m = (k + 1 < count ? end[k + 1] : n) - from;
        uint64_t *sorted = b + from, *scratch = a + from;
        if (m > 1) sort_keys(j, &sorted, &scratch, m);
        if (m > 1 && sorted != b + from) memcpy(b + from, sorted, m * sizeof *b);
    }
    free(end);
    return true;
}

/* Refuses an object that has a key twice: sorted by a hash, equal hashes by their bytes, so that no
 * choice of keys makes it slow. */
static q3_status check_keys(const parser *p, uint32_t object)
{
    const q3_json *j = &p->j;
    size_t n = j->nodes[object].count;
    uint32_t twice = 0, k = object + 1;
    uint64_t few[16], *all = n > 8 ? malloc(2 * n * sizeof *all) : few;
    if (all == NULL) return Q3_ERROR_MEMORY;
    uint64_t *a = all, *b = all + n;
    for (size_t i = 0; i < n; i++, k = j->nodes[k + 1].next)
        a[i] = hash_string(j, k) >> 32 << 32 | k;
    bool sorted = sort_buckets(j, a, b, n);
    for (size_t i = 1; i < n && sorted; i++) {
        uint32_t second = (uint32_t)b[i];
        if (!behind(j, b[i], b[i - 1]) && (twice == 0 || second < twice)) twice = second;
    }
    if (all != few) free(all);
    if (!sorted) return Q3_ERROR_MEMORY;
    return twice == 0 ? Q3_OK : fail_twice(p, twice);
}

q3_json_type q3_json_type_of(const q3_json *j, uint32_t node)
{
    switch (j->text[j->nodes[node].start]) {
    case '{': return Q3_JSON_OBJECT;
    case '[': return Q3_JSON_ARRAY;
    case '"': return Q3_JSON_STRING;
    case 'n': return Q3_JSON_NULL;
    case 'f': return Q3_JSON_FALSE;
    case 't': return Q3_JSON_TRUE;
    default: return Q3_JSON_NUMBER;
    }
}

q3_status q3_json_fail(const q3_json *j, uint32_t node, const char *thing, const char *expected,
                       q3_error *error)
{
    const q3_json_node *n = &j->nodes[node];
    q3_json_type type = q3_json_type_of(j, node);
    const char *kind = node == 0 ? "nothing" : type == Q3_JSON_OBJECT ? "an object"
                     : type == Q3_JSON_ARRAY ? "an array" : NULL;
    const char *text = kind != NULL ? kind : (const char *)j->text + n->start;
    size_t length = kind != NULL ? strlen(kind) : n->end - n->start;
    bool whole = length <= 80;
    for (length = whole ? length : 80; !whole && ((uint8_t)text[length] & 0xC0u) == 0x80; length--)
        continue;
    return q3_fail(error, Q3_ERROR_INPUT, "%.120s: %.120s: found %.*s%s, expected %.140s", j->name,
                   thing, (int)length, text, whole ? "" : "...", expected);
}

uint32_t q3_json_find(const q3_json *j, uint32_t object, const char *key)
{
    uint32_t k = object + 1;
    if (q3_json_type_of(j, object) != Q3_JSON_OBJECT) return 0;
    for (uint32_t i = 0; i < j->nodes[object].count; i++, k = j->nodes[k + 1].next)
        if (q3_json_equal(j, k, key)) return k + 1;
    return 0;
}

bool q3_json_equal(const q3_json *j, uint32_t node, const char *text)
{
    if (q3_json_type_of(j, node) != Q3_JSON_STRING) return false;
    reader r = read_string(j, node);
    int c = next_byte(&r);
    for (; c > 0 && c == (uint8_t)*text; text++) c = next_byte(&r);
    return c < 0 && *text == 0;
}

size_t q3_json_string(const q3_json *j, uint32_t string, uint8_t *out)
{
    reader r = read_string(j, string);
    size_t n = j->nodes[string].count != 0 ? 0 : (size_t)(r.end - r.at);
    if (n > 0 && out != NULL) memcpy(out, r.at, n);
    if (j->nodes[string].count != 0)
        for (int c = next_byte(&r); c >= 0; c = next_byte(&r), n++)
            if (out != NULL) out[n] = (uint8_t)c;
    return n;
}

const char *q3_json_keep(const q3_json *j, uint32_t string, char **at)
{
    char *text = *at;
    size_t length = q3_json_string(j, string, (uint8_t *)text);
    text[length] = 0;
    *at += length + 1;
    return memchr(text, 0, length) == NULL ? text : NULL;
}

bool q3_json_is_integer(const q3_json *j, uint32_t node)
{
    const q3_json_node *n = &j->nodes[node];
    if (q3_json_type_of(j, node) != Q3_JSON_NUMBER) return false;
    for (size_t i = n->start; i < n->end; i++)
        if (j->text[i] == '.' || j->text[i] == 'e' || j->text[i] == 'E') return false;
    return true;
}

bool q3_json_uint(const q3_json *j, uint32_t node, uint64_t *out)
{
    const q3_json_node *n = &j->nodes[node];
    uint64_t value = 0;
    for (size_t i = n->start; i < n->end; i++) {
        uint64_t digit = (uint64_t)j->text[i] - '0';
        if (digit > 9 || value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

bool q3_json_double(const q3_json *j, uint32_t node, double *out)
{
    return q3_json_type_of(j, node) == Q3_JSON_NUMBER &&
           q3_decimal_to_double(j->text + j->nodes[node].start, j->text + j->nodes[node].end, out);
}
