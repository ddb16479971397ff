/* SPDX-License-Identifier: MIT */
/* tokenizer.h - what tokenizer.c (encode, decode) and tokenizer_file.c (reading tokenizer.json)
 * share. Private. */
#ifndef Q3_TOKENIZER_H
#define Q3_TOKENIZER_H

#include "host/nfc.h"
#include "qwen3moe.h"

#define Q3_NONE UINT32_MAX

/* merges[left right]: a slot of a hash table, empty if result is Q3_NONE. */
typedef struct q3_pair {
    uint32_t left, right, rank, result;
} q3_pair;

typedef struct q3_added_token {
    const uint8_t *text;  /* into added_text */
    size_t length;
    uint32_t token;
    uint32_t node;        /* in the file, for messages */
} q3_added_token;

/* A token is known by its index: 0 .. vocabulary-1 in order of id, then the added tokens that are
 * not in the vocabulary. Its bytes in the pool follow a byte that is 0 if they are what its
 * letters stand for, 1 if the token has characters that are no letters of the byte table and is
 * kept as it is written. */
struct q3_tokenizer {
    uint16_t *properties;                     /* [0x110000] */
    bool nfc, ignore_merges;
    size_t vocabulary, count;
    int32_t *ids;                             /* [count], ascending in each of the two parts */
    uint32_t *offsets;                        /* [count + 1], into pool */
    uint8_t *pool;
    uint32_t *slots;                          /* hash table of indices, Q3_NONE is empty */
    size_t slot_mask;
    uint64_t slot_seed;
    q3_pair *pairs;
    size_t pair_mask;
    uint64_t pair_seed;
    uint32_t letter[256];                     /* the token of a single byte, or Q3_NONE */
    int16_t byte_of[324];                     /* the byte of a letter (code point), or -1 */
    q3_added_token *added;                     /* sorted by text */
    size_t added_count;
    uint8_t *added_text;
    bool starts_added[256];                   /* whether some added token starts with the byte */
};

/* Writes what a token's text (UTF-8) stands for to out, which has room for n bytes, and its
 * length to *length. Returns 0, or 1 if the text has to stand for itself. */
uint8_t q3_token_bytes(const q3_tokenizer *t, const uint8_t *text, size_t n, uint8_t *out,
                       size_t *length);

/* The hash of a token's bytes and that of a pair, as the tables use them. */
size_t q3_token_slot(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n);
size_t q3_pair_slot(const q3_tokenizer *t, uint32_t left, uint32_t right);

/* Whether token i has these bytes; the index of the token that has them, or Q3_NONE. */
bool q3_token_is(const q3_tokenizer *t, uint32_t i, uint8_t kind, const uint8_t *p, size_t n);
uint32_t q3_find_token(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n);

/* The index from low to high - 1 with this id, or Q3_NONE. */
uint32_t q3_find_id(const q3_tokenizer *t, size_t low, size_t high, int32_t id);

#endif
