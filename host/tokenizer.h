/* SPDX-License-Identifier: MIT */
/* tokenizer.h - what tokenizer.c (encode, decode) and tokenizer_file.c (reading tokenizer.json)
 * share. Private. */
#ifndef Q3_TOKENIZER_H
#define Q3_TOKENIZER_H

#include "host/nfc.h"
#include "qwen3moe.h"

#define Q3_NONE UINT32_MAX

/* A merge is its rank, in the high half, and the token that it makes: of two merges the lower
 * number goes first. */
#define Q3_NO_MERGE UINT64_MAX

/* A slot of a hash table of merges, empty if merge is Q3_NO_MERGE. */
typedef struct q3_pair {
    uint32_t left, right;
    uint64_t merge;
} q3_pair;

/* A slot of a hash table of tokens, empty if token is Q3_NONE. */
typedef struct q3_slot {
    uint32_t token, tag; /* the high half of the hash tells most others apart */
} q3_slot;

typedef struct q3_added_token {
    const uint8_t *text;  /* into added_text */
    size_t length;
    uint32_t token;
    uint32_t node;        /* in the file, for messages */
} q3_added_token;

/* A node of a trie: some added tokens end in its bytes, read backwards from the last. */
typedef struct q3_added_node {
    uint32_t child, sibling;  /* its first child, its parent's next child; 0: none */
    uint32_t shorter;         /* the node of as many of its last bytes as some node has; 0: none */
    uint32_t longest;         /* of the added tokens that its last bytes are, or Q3_NONE */
    uint8_t byte;
} q3_added_node;

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
    q3_slot *slots;                           /* [slot_mask + 1] */
    size_t slot_mask;
    uint64_t slot_seed;
    q3_pair *pairs;
    size_t pair_mask;
    uint64_t pair_seed;
    uint64_t *first_pairs;                    /* [256 * 256]: merges of the first tokens */
    uint32_t *joins;                          /* [vocabulary]: the bits of what they go with */
    uint32_t letter[256];                     /* the token of a single byte, or Q3_NONE */
    int16_t byte_of[324];                     /* the byte of a letter (code point), or -1 */
    q3_added_token *added;                    /* in the order of the file */
    size_t added_count;
    uint8_t *added_text;
    q3_added_node *added_nodes;               /* the trie of added; node 0 is its root */
    uint32_t added_root[256];                 /* the children of node 0 */
};

/* The pattern that texts are split by, as tokenizer.json has it. */
extern const char q3_qwen_pattern[];

/* Writes what a token's text (UTF-8) stands for to out, which has room for n bytes, and its
 * length to *length. Returns 0, or 1 if the text has to stand for itself. */
uint8_t q3_token_bytes(const q3_tokenizer *t, const uint8_t *text, size_t n, uint8_t *out,
                       size_t *length);

/* The hash of a token's bytes and that of a pair, as the tables use them. */
uint64_t q3_token_hash(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n);
size_t q3_pair_slot(const q3_tokenizer *t, uint32_t left, uint32_t right);

/* One of 32 bits: most pairs that are not merged are told from t->joins[left] alone. */
static inline uint32_t q3_join_bit(uint32_t right)
{
    return UINT32_C(1) << (right * UINT32_C(0x9E3779B1) >> 27);
}

/* Whether token i has these bytes; the index of the token that has them, or Q3_NONE. */
bool q3_token_is(const q3_tokenizer *t, uint32_t i, uint8_t kind, const uint8_t *p, size_t n);
uint32_t q3_find_token(const q3_tokenizer *t, uint8_t kind, const uint8_t *p, size_t n);

/* The child of a node for one more byte, 0 if it has none; the node of the longest known end of its
 * bytes and this one, 0 if no end is known. */
uint32_t q3_added_child(const q3_tokenizer *t, uint32_t node, uint8_t byte);
uint32_t q3_added_step(const q3_tokenizer *t, uint32_t node, uint8_t byte);

/* The index from low to high - 1 with this id, or Q3_NONE. */
uint32_t q3_find_id(const q3_tokenizer *t, size_t low, size_t high, int32_t id);

#endif
