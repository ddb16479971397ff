/* SPDX-License-Identifier: MIT */
/* json.h - strict JSON reader (RFC 8259), UTF-8, decimal numbers. Private.
 *
 * The text stays where it is; a document is one array of nodes that point into it, in the order of
 * the text, so a node's children follow it. An object's children are key, value, key, value, ...
 *
 *     for (uint32_t i = 0, k = object + 1; i < j.nodes[object].count; i++, k = j.nodes[k + 1].next)
 *         ... key is node k, its value is node k + 1 ...
 *     for (uint32_t i = 0, v = array + 1; i < j.nodes[array].count; i++, v = j.nodes[v].next)
 *         ... element is node v ...
 *
 * Refused, each with one line that has the byte offset: anything RFC 8259 does not allow, a byte
 * order mark, bytes that are not UTF-8, escapes that make half a surrogate pair, numbers beyond a
 * float64's range, the same key twice in one object (compared after unescaping), nesting deeper
 * than Q3_JSON_DEPTH, texts of 4 GiB and more. Time is O(n log n) in the worst case. */
#ifndef Q3_JSON_H
#define Q3_JSON_H

#include "qwen3moe.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define Q3_JSON_DEPTH 128

typedef enum q3_json_type {
    Q3_JSON_NULL, Q3_JSON_FALSE, Q3_JSON_TRUE, Q3_JSON_NUMBER, Q3_JSON_STRING, Q3_JSON_ARRAY,
    Q3_JSON_OBJECT
} q3_json_type;

typedef struct q3_json_node {
    uint32_t start;  /* offset of its first byte: a string's opening quote */
    uint32_t end;    /* offset after its last byte */
    uint32_t next;   /* the node after it and all its children */
    uint32_t count;  /* elements of an array, members of an object; 1 for a string with escapes */
} q3_json_node;

typedef struct q3_json {
    const char *name;     /* what messages call the text; the caller's */
    const uint8_t *text;  /* the caller's, must live as long as the document */
    q3_json_node *nodes;  /* [count], owned; node 0 is the whole document */
    uint32_t count;
} q3_json;

/* Reads text[0..length) into *j, to be released by q3_json_free. On an error (Q3_ERROR_INPUT,
 * Q3_ERROR_MEMORY) *j is left as it was and error, where not NULL, says what is wrong:
 * "NAME: byte 17: found '}', expected a value". */
Q3_PRIVATE_API q3_status q3_json_parse(q3_json *j, const char *name, const uint8_t *text,
                                       size_t length, q3_error *error);
Q3_PRIVATE_API void q3_json_free(q3_json *j);

/* Writes "NAME: thing: found <the node's text, shortened>, expected <expected>"; node 0 as
 * "nothing", since 0 is what q3_json_find gives for an absent key. Returns Q3_ERROR_INPUT. */
Q3_PRIVATE_API q3_status q3_json_fail(const q3_json *j, uint32_t node, const char *thing,
                                      const char *expected, q3_error *error);

Q3_PRIVATE_API q3_json_type q3_json_type_of(const q3_json *j, uint32_t node);

/* The value of a key; 0 if the object has no such key or the node is no object. Linear. */
Q3_PRIVATE_API uint32_t q3_json_find(const q3_json *j, uint32_t object, const char *key);

/* Whether the node is a string and, unescaped, equals the text. */
Q3_PRIVATE_API bool q3_json_equal(const q3_json *j, uint32_t node, const char *text);

/* Unescapes a string into out and returns its length in bytes; no zero is added, and the text may
 * hold zeros. With out NULL only the length. It is never more than end - start - 2. */
Q3_PRIVATE_API size_t q3_json_string(const q3_json *j, uint32_t string, uint8_t *out);

/* Unescapes a string to *at, puts a zero behind it and moves *at behind that. Returns the
 * string; NULL if it holds a zero itself. */
Q3_PRIVATE_API const char *q3_json_keep(const q3_json *j, uint32_t string, char **at);

/* A number spelled as an integer: no fraction, no exponent; -1 and -0 are. */
Q3_PRIVATE_API bool q3_json_is_integer(const q3_json *j, uint32_t node);

/* A non-negative integer, spelled as one: false for anything else (5.0, 1e2, -1, "5", 2^64). */
Q3_PRIVATE_API bool q3_json_uint(const q3_json *j, uint32_t node, uint64_t *out);

/* A number as the nearest float64, ties to even; independent of the locale and of the C library.
 * False if the node is no number, has more than 64 significant digits, or a power of ten (of its
 * last digit) beyond +-400. */
Q3_PRIVATE_API bool q3_json_double(const q3_json *j, uint32_t node, double *out);

/* A finite float64 as Python's repr and json write it: the shortest digits that read back as the
 * same number, "1e-06", "1000000.0", "0.1". Returns the length; out ends with a zero. */
Q3_PRIVATE_API size_t q3_json_repr(double value, char out[32]);

/* Length 1..4 of the UTF-8 sequence at p, which has n bytes to go, and its code point; 0 if it is
 * none. */
Q3_PRIVATE_API size_t q3_utf8_decode(const uint8_t *p, size_t n, uint32_t *code);

/* Writes a code point as UTF-8; returns its length 1..4. */
Q3_PRIVATE_API size_t q3_utf8_encode(uint32_t code, uint8_t out[4]);

/* decimal.c: a number in JSON's spelling at [p, end). Whether it is beyond the float64 range; its
 * nearest float64, with q3_json_double's limits. */
Q3_PRIVATE_API bool q3_decimal_too_large(const uint8_t *p, const uint8_t *end);
Q3_PRIVATE_API bool q3_decimal_to_double(const uint8_t *p, const uint8_t *end, double *out);

#endif
