/* SPDX-License-Identifier: MIT */
/* Reads tokenizer.json, or what a GGUF file has in its place, for tokenizer.c. Whatever it asks for
 * that is not done there is refused. */
#include "host/tokenizer.h"
#include "host/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char q3_qwen_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

typedef struct loader {
    q3_json j;
    q3_tokenizer *t;
    uint8_t *text;      /* room for any two strings of the file */
    uint8_t *bytes;     /* the same for what they stand for */
    size_t added_used;  /* of t->added_text */
    uint32_t made;      /* the token that the merge before made */
    q3_error *error;
} loader;

/* "where.key": what messages call a value. */
static q3_status fail(const loader *l, uint32_t node, const char *where, const char *key,
                      const char *expected)
{
    char thing[160];
    const char *dot = where[0] != 0 && key[0] != 0 ? "." : "";
    snprintf(thing, sizeof thing, "%.60s%s%.60s", where, dot, key);
    return q3_json_fail(&l->j, node, thing, expected, l->error);
}

/* The value of a key must be one of the JSON words or strings that `allowed` lists, as in
 * "null|\"BPE\""; "absent" allows that the key is not there. */
static q3_status expect(const loader *l, uint32_t object, const char *where, const char *key,
                        const char *allowed)
{
    uint32_t node = q3_json_find(&l->j, object, key);
    char expected[128];
    size_t out = 0;
    for (const char *p = allowed; *p != 0;) {
        size_t n = strcspn(p, "|");
        const q3_json_node *value = &l->j.nodes[node];
        bool absent = strncmp(p, "absent", n) == 0;
        if (node == 0 ? absent : value->end - value->start == n &&
                                 memcmp(l->j.text + value->start, p, n) == 0)
            return Q3_OK;
        if (!absent)
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
        if (!known) return fail(l, k, where[0] != 0 ? where : "top level", "", expected);
    }
    return Q3_OK;
}

/* A ByteLevel object; splits: as a pre-tokenizer, where its switches matter. */
static q3_status check_byte_level(const loader *l, uint32_t node, const char *where, bool splits)
{
    q3_status s = only_keys(l, node, where, "type add_prefix_space trim_offsets use_regex");
    const char *flag = splits ? "false" : "true|false|absent";
    s = s != Q3_OK ? s : expect(l, node, where, "type", "\"ByteLevel\"");
    s = s != Q3_OK ? s : expect(l, node, where, "add_prefix_space", flag);
    s = s != Q3_OK ? s : expect(l, node, where, "use_regex", flag);
    return s != Q3_OK ? s : expect(l, node, where, "trim_offsets", "true|false|absent");
}

/* The Split object with the Qwen pattern. */
static q3_status check_split(const loader *l, uint32_t node, const char *where)
{
    q3_status s = only_keys(l, node, where, "type pattern behavior invert");
    s = s != Q3_OK ? s : expect(l, node, where, "type", "\"Split\"");
    s = s != Q3_OK ? s : expect(l, node, where, "behavior", "\"Isolated\"");
    s = s != Q3_OK ? s : expect(l, node, where, "invert", "false");
    if (s != Q3_OK) return s;
    uint32_t pattern = q3_json_find(&l->j, node, "pattern");
    uint32_t regex = pattern != 0 ? q3_json_find(&l->j, pattern, "Regex") : 0;
    if (regex == 0 || !q3_json_equal(&l->j, regex, q3_qwen_pattern))
        return regex != 0 ? fail(l, regex, where, "pattern.Regex", "the Qwen pattern")
                          : fail(l, pattern, where, "pattern", "{\"Regex\": the Qwen pattern}");
    return only_keys(l, pattern, "pre_tokenizer.pretokenizers[0].pattern", "Regex");
}

/* Everything but tokens and merges: what the file asks for must be what this file does. */
static q3_status check_pipeline(const loader *l)
{
    const q3_json *j = &l->j;
    q3_status s = only_keys(l, 0, "", "version truncation padding added_tokens normalizer "
                                      "pre_tokenizer post_processor decoder model");
    s = s != Q3_OK ? s : expect(l, 0, "", "version", "\"1.0\"|absent");
    s = s != Q3_OK ? s : expect(l, 0, "", "truncation", "null|absent");
    s = s != Q3_OK ? s : expect(l, 0, "", "padding", "null|absent");
    if (s != Q3_OK) return s;
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
    if (s != Q3_OK) return s;
    node = q3_json_find(j, 0, "pre_tokenizer");
    s = only_keys(l, node, "pre_tokenizer", "type pretokenizers");
    s = s != Q3_OK ? s : expect(l, node, "pre_tokenizer", "type", "\"Sequence\"");
    if (s != Q3_OK) return s;
    node = q3_json_find(j, node, "pretokenizers");
    if (node == 0 || q3_json_type_of(j, node) != Q3_JSON_ARRAY || j->nodes[node].count != 2)
        return fail(l, node, "pre_tokenizer.pretokenizers", "", "an array of Split and ByteLevel");
    s = check_split(l, node + 1, "pre_tokenizer.pretokenizers[0]");
    return s != Q3_OK ? s : check_byte_level(l, j->nodes[node + 1].next,
                                             "pre_tokenizer.pretokenizers[1]", true);
}

/* Every key of the model that would change what is done here. */
static q3_status check_model(const loader *l, uint32_t model)
{
    static const char *const rules[][2] = {
        {"type", "\"BPE\"|absent"}, {"unk_token", "null|absent"}, {"fuse_unk", "true|false|absent"},
        {"continuing_subword_prefix", "null|\"\"|absent"},
        {"end_of_word_suffix", "null|\"\"|absent"},
        {"byte_fallback", "false|absent"}, {"ignore_merges", "true|false|absent"},
    };
    uint32_t node = q3_json_find(&l->j, model, "dropout");
    double dropout = 0;
    if (model == 0 || q3_json_type_of(&l->j, model) != Q3_JSON_OBJECT)
        return fail(l, model, "model", "", "an object");
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        q3_status s = expect(l, model, "model", rules[i][0], rules[i][1]);
        if (s != Q3_OK) return s;
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
    out[0] = q3_token_bytes(t, l->text, n, out + 1, &length);
    t->offsets[i + 1] = t->offsets[i] + 1 + (uint32_t)length;
    t->ids[i] = id;
}

/* More steps than this to a free slot, and the table is made again with another seed; more than
 * eight seeds takes a file that was made to collide. */
enum { STEPS = 1000, SEEDS = 8 };

/* Adds tokens from .. t->count-1 to the hash table, which has those before; false if they
 * collide. */
static bool index_tokens(q3_tokenizer *t, size_t from)
{
    for (; t->slot_seed < SEEDS; t->slot_seed++, from = 0) {
        size_t i = from, steps = 0;
        if (from == 0) memset(t->slots, 0xFF, (t->slot_mask + 1) * sizeof *t->slots);
        for (; i < t->count && steps < STEPS; i++) {
            const uint8_t *p = t->pool + t->offsets[i];
            size_t n = t->offsets[i + 1] - t->offsets[i] - 1;
            uint64_t hash = q3_token_hash(t, p[0], p + 1, n);
            q3_slot *s = &t->slots[hash & t->slot_mask];
            for (steps = 0; s->token != Q3_NONE && steps < STEPS; steps++)
                s = s < t->slots + t->slot_mask ? s + 1 : t->slots;
            if (steps < STEPS) *s = (q3_slot){(uint32_t)i, (uint32_t)(hash >> 32)};
        }
        if (steps < STEPS) return true;
    }
    return false;
}

/* Puts the merges, in the order of their ranks, into the hash table; a later one replaces the same
 * pair. False if they collide. */
static bool index_pairs(q3_tokenizer *t, const q3_pair *merges, size_t n)
{
    for (; t->pair_seed < SEEDS; t->pair_seed++) {
        size_t i = 0, steps = 0;
        memset(t->pairs, 0xFF, (t->pair_mask + 1) * sizeof *t->pairs); /* Q3_NO_MERGE */
        for (; i < n && steps < STEPS; i++) {
            q3_pair *have = &t->pairs[q3_pair_slot(t, merges[i].left, merges[i].right)];
            for (steps = 0; steps < STEPS && have->merge != Q3_NO_MERGE &&
                            (have->left != merges[i].left || have->right != merges[i].right);
                 steps++)
                have = have < t->pairs + t->pair_mask ? have + 1 : t->pairs;
            if (steps < STEPS) *have = merges[i];
        }
        if (steps < STEPS) return true;
    }
    return false;
}

/* Tokens in the order of their ids: index i is the i-th id. */
static q3_status load_vocabulary(loader *l, uint32_t vocab)
{
    const q3_json *j = &l->j;
    q3_tokenizer *t = l->t;
    size_t n = j->nodes[vocab].count;
    uint64_t *keys = malloc((2 * n + 1) * sizeof *keys), *a = keys, *b = keys + n, id;
    bool sorted = true;
    if (keys == NULL) return q3_no_memory(l->error, l->j.name);
    uint32_t k = vocab + 1;
    for (size_t i = 0; i < n; i++, k++, k++) {
        if (!q3_json_uint(j, k + 1, &id) || id > INT32_MAX) break;
        a[i] = id << 32 | k;
        sorted = sorted && (i == 0 || a[i - 1] < a[i]);
    }
    uint32_t wrong = k < j->nodes[vocab].next ? k : 0;
    if (wrong == 0 && !sorted) sort_numbers(&a, &b, n);
    for (size_t i = 0; i < n && wrong == 0; i++) {
        store_token(l, i, (uint32_t)(a[i] & Q3_NONE), (int32_t)(a[i] >> 32));
        if (i > 0 && a[i - 1] >> 32 == a[i] >> 32) wrong = (uint32_t)(a[i] & Q3_NONE);
    }
    free(keys);
    t->vocabulary = t->count = n;
    if (wrong == 0) return Q3_OK;
    char thing[64];
    int shown = (int)(j->nodes[wrong].end - j->nodes[wrong].start);
    snprintf(thing, sizeof thing, "model.vocab[%.*s]", shown < 40 ? shown : 0,
             (const char *)j->text + j->nodes[wrong].start);
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
    if (space == NULL) return false;
    n[0] = (size_t)(space - l->text);
    n[1] = length - n[0] - 1;
    if (n[1] > 0 && memchr(space + 1, ' ', n[1]) != NULL) return false;
    memmove(space, space + 1, n[1]);
    return true;
}

/* left + right = result, all three in the vocabulary. */
static bool resolve_merge(loader *l, const size_t n[2], uint64_t rank, q3_pair *p)
{
    const q3_tokenizer *t = l->t;
    size_t left, right;
    uint8_t kind[2] = {q3_token_bytes(t, l->text, n[0], l->bytes, &left), 0};
    kind[1] = q3_token_bytes(t, l->text + n[0], n[1], l->bytes + left, &right);
    p->left = q3_find_token(t, kind[0], l->bytes, left);
    p->right = q3_find_token(t, kind[1], l->bytes + left, right);
    bool written = kind[0] != 0 || kind[1] != 0;
    /* Most files have the results in the order of their ids: a look at the next saves a search. */
    const uint8_t *joined = written ? l->text : l->bytes;
    size_t length = written ? n[0] + n[1] : left + right;
    uint32_t made = l->made + 1;
    if (made >= t->vocabulary || !q3_token_is(t, made, written, joined, length))
        made = q3_find_token(t, written, joined, length);
    if (p->left == Q3_NONE || p->right == Q3_NONE || made == Q3_NONE) return false;
    l->made = made;
    p->merge = rank << 32 | made;
    return true;
}

/* All strings or all pairs, to pairs[*count]. Lines of a merges.txt that start with #version may be
 * among the strings. */
static q3_status read_merges(loader *l, uint32_t merges, q3_pair *pairs, size_t *count)
{
    const q3_json *j = &l->j;
    uint32_t node = merges + 1, rank = 0;
    size_t n[2];
    bool strings = j->nodes[merges].count > 0 && q3_json_type_of(j, node) == Q3_JSON_STRING;
    for (size_t i = 0; i < j->nodes[merges].count; i++, node = j->nodes[node].next) {
        const char *wrong = NULL;
        if (strings && q3_json_type_of(j, node) == Q3_JSON_STRING &&
            q3_json_string(j, node, l->text) >= 8 && memcmp(l->text, "#version", 8) == 0)
            continue;
        if (q3_json_type_of(j, node) != (strings ? Q3_JSON_STRING : Q3_JSON_ARRAY))
            wrong = strings ? "a string as before" : "a pair of strings";
        else if (!read_merge(l, node, n))
            wrong = strings ? "two tokens with one space between" : "a pair of strings";
        else if (!resolve_merge(l, n, rank, &pairs[rank]))
            wrong = "two tokens that are in vocab, as their join is";
        if (wrong != NULL) {
            char thing[48];
            snprintf(thing, sizeof thing, "model.merges[%lu]", (unsigned long)i);
            return fail(l, node, thing, "", wrong);
        }
        rank++;
    }
    *count = rank;
    return Q3_OK;
}

/* The hash table of merges. */
static q3_status load_merges(loader *l, uint32_t merges)
{
    q3_tokenizer *t = l->t;
    size_t n = l->j.nodes[merges].count;
    for (t->pair_mask = 15; t->pair_mask / 4 * 3 <= n;) t->pair_mask = 2 * t->pair_mask + 1;
    t->pairs = malloc((t->pair_mask + 1) * sizeof *t->pairs);
    q3_pair *pairs = malloc((n + 1) * sizeof *pairs);
    t->first_pairs = malloc(256 * 256 * sizeof *t->first_pairs);
    t->joins = calloc(t->count + 1, sizeof *t->joins);
    if (t->pairs == NULL || pairs == NULL || t->first_pairs == NULL || t->joins == NULL) {
        free(pairs);
        return q3_no_memory(l->error, l->j.name);
    }
    q3_status status = read_merges(l, merges, pairs, &n);
    if (status == Q3_OK && !index_pairs(t, pairs, n))
        status = fail(l, merges, "model.merges", "", "pairs that do not collide when hashed");
    memset(t->first_pairs, 0xFF, 256 * 256 * sizeof *t->first_pairs);
    for (size_t i = 0; i < n && status == Q3_OK; i++) {
        uint32_t left = pairs[i].left, right = pairs[i].right;
        if ((left | right) < 256) t->first_pairs[left << 8 | right] = pairs[i].merge;
        t->joins[left] |= q3_join_bit(right);
    }
    free(pairs);
    return status;
}

/* One entry of added_tokens. Its id must be what Hugging Face would give it: the vocabulary's, or
 * the next free one counted from the number of the vocabulary's entries. An empty content is
 * dropped. */
static q3_status load_added(loader *l, uint32_t node, const char *where, uint64_t *next)
{
    static const char *const flags[4] = {"single_word", "lstrip", "rstrip", "normalized"};
    q3_tokenizer *t = l->t;
    if (q3_json_type_of(&l->j, node) != Q3_JSON_OBJECT)
        return fail(l, node, where, "", "an object");
    for (size_t i = 0; i < 4; i++) {
        q3_status s = expect(l, node, where, flags[i], "false");
        if (s != Q3_OK) return s;
    }
    q3_status s = expect(l, node, where, "special", "true|false");
    if (s != Q3_OK) return s;
    uint32_t content = q3_json_find(&l->j, node, "content");
    uint32_t id_node = q3_json_find(&l->j, node, "id");
    if (content == 0 || q3_json_type_of(&l->j, content) != Q3_JSON_STRING)
        return fail(l, content, where, "content", "a string");
    uint64_t id = 0;
    if (id_node == 0 || !q3_json_uint(&l->j, id_node, &id) || id > INT32_MAX)
        return fail(l, id_node, where, "id", "an id from 0 to 2147483647");
    q3_added_token *a = &t->added[t->added_count];
    a->length = q3_json_string(&l->j, content, t->added_text + l->added_used);
    a->text = t->added_text + l->added_used;
    a->node = content;
    l->added_used += a->length;
    if (a->length == 0) return Q3_OK;
    size_t n;
    uint8_t kind = q3_token_bytes(t, a->text, a->length, l->bytes, &n);
    a->token = q3_find_token(t, kind, l->bytes, n);
    if (a->token == Q3_NONE) {
        a->token = (uint32_t)t->count++;
        store_token(l, a->token, content, (int32_t)id);
        if (id != *next || q3_find_id(t, 0, t->vocabulary, (int32_t)id) != Q3_NONE)
            return fail(l, id_node, where, "id", "the next id after the vocabulary's, not in use");
    } else if ((uint64_t)t->ids[a->token] != id) {
        return fail(l, id_node, where, "id", "the id that the vocabulary gives this content");
    }
    *next = id >= *next ? id + 1 : *next;
    t->added_count++;
    return Q3_OK;
}

/* Puts the bytes of added token i, from the last to the first, into the trie; false if they are
 * there. */
static bool add_to_trie(q3_tokenizer *t, uint32_t i, uint32_t *count)
{
    const q3_added_token *a = &t->added[i];
    uint32_t node = 0;
    for (size_t k = a->length; k-- > 0;) {
        uint32_t *first = node == 0 ? &t->added_root[a->text[k]] : &t->added_nodes[node].child;
        uint32_t child = q3_added_child(t, node, a->text[k]);
        if (child == 0) {
            child = (*count)++;
            t->added_nodes[child] = (q3_added_node){0, *first, 0, Q3_NONE, a->text[k]};
            *first = child;
        }
        node = child;
    }
    if (t->added_nodes[node].longest != Q3_NONE) return false;
    t->added_nodes[node].longest = i;
    return true;
}

/* Sets `shorter` of all nodes, those of fewer bytes first, and `longest` of those that are no added
 * token themselves; queue has room for all. */
static void link_trie(q3_tokenizer *t, uint32_t *queue)
{
    q3_added_node *nodes = t->added_nodes;
    size_t count = 0;
    for (size_t b = 0; b < 256; b++)
        if (t->added_root[b] != 0) queue[count++] = t->added_root[b];
    for (size_t i = 0; i < count; i++) {
        for (uint32_t c = nodes[queue[i]].child; c != 0; c = nodes[c].sibling) {
            nodes[c].shorter = q3_added_step(t, nodes[queue[i]].shorter, nodes[c].byte);
            if (nodes[c].longest == Q3_NONE && nodes[c].shorter != 0)
                nodes[c].longest = nodes[nodes[c].shorter].longest;
            queue[count++] = c;
        }
    }
}

/* The trie of the added tokens: 20 bytes for each of theirs at most. */
static q3_status index_added(loader *l)
{
    q3_tokenizer *t = l->t;
    uint32_t count = 1;
    t->added_nodes = malloc((l->added_used + 1) * sizeof *t->added_nodes);
    uint32_t *queue = malloc((l->added_used + 1) * sizeof *queue);
    q3_status s = t->added_nodes == NULL || queue == NULL ? q3_no_memory(l->error, l->j.name)
                                                          : Q3_OK;
    for (uint32_t i = 0; i < t->added_count && s == Q3_OK; i++)
        if (!add_to_trie(t, i, &count))
            s = fail(l, t->added[i].node, "added_tokens", "", "each content once");
    if (s == Q3_OK) link_trie(t, queue);
    free(queue);
    return s;
}

/* added_tokens, and the trie that finds them. */
static q3_status load_all_added(loader *l, uint32_t list)
{
    q3_tokenizer *t = l->t;
    uint64_t next = t->vocabulary;
    uint32_t node = list + 1;
    char where[48];
    if (list == 0) return Q3_OK;
    for (size_t i = 0; i < l->j.nodes[list].count; i++, node = l->j.nodes[node].next) {
        snprintf(where, sizeof where, "added_tokens[%lu]", (unsigned long)i);
        q3_status s = load_added(l, node, where, &next);
        if (s != Q3_OK) return s;
    }
    return index_added(l);
}

/* The whole file, in the order that each step needs: vocabulary, merges, added tokens. */
static q3_status load(loader *l, size_t length)
{
    q3_tokenizer *t = l->t;
    q3_status s = check_pipeline(l);
    uint32_t model = q3_json_find(&l->j, 0, "model");
    uint32_t added = q3_json_find(&l->j, 0, "added_tokens");
    s = s != Q3_OK ? s : check_model(l, model);
    if (s != Q3_OK) return s;
    uint32_t vocab = q3_json_find(&l->j, model, "vocab");
    uint32_t merges = q3_json_find(&l->j, model, "merges");
    if (vocab == 0 || q3_json_type_of(&l->j, vocab) != Q3_JSON_OBJECT)
        return fail(l, vocab, "model.vocab", "", "an object");
    if (merges == 0 || q3_json_type_of(&l->j, merges) != Q3_JSON_ARRAY)
        return fail(l, merges, "model.merges", "", "an array");
    if (added != 0 && q3_json_type_of(&l->j, added) != Q3_JSON_ARRAY)
        return fail(l, added, "added_tokens", "", "an array");
    size_t extra = added != 0 ? l->j.nodes[added].count : 0, all = l->j.nodes[vocab].count + extra;
    for (t->slot_mask = 15; t->slot_mask / 4 * 3 <= all;) t->slot_mask = 2 * t->slot_mask + 1;
    /* Each string is at least two quotes shorter than it is in the file. */
    t->pool = malloc(length + 1);
    t->offsets = calloc(all + 1, sizeof *t->offsets);
    t->ids = malloc((all + 1) * sizeof *t->ids);
    t->slots = malloc((t->slot_mask + 1) * sizeof *t->slots);
    t->added = malloc((extra + 1) * sizeof *t->added);
    t->added_text = malloc(length + 1);
    if (t->pool == NULL || t->offsets == NULL || t->ids == NULL || t->slots == NULL ||
        t->added == NULL || t->added_text == NULL)
        return q3_no_memory(l->error, l->j.name);
    s = load_vocabulary(l, vocab);
    if (s == Q3_OK && !index_tokens(t, 0))
        s = fail(l, vocab, "model.vocab", "", "keys that do not collide in a hash table");
    for (size_t i = 0; i < 256 && s == Q3_OK; i++) {
        uint8_t byte = (uint8_t)i;
        t->letter[i] = q3_find_token(t, 0, &byte, 1);
    }
    s = s != Q3_OK ? s : load_merges(l, merges);
    s = s != Q3_OK ? s : load_all_added(l, added);
    if (s == Q3_OK && !index_tokens(t, t->vocabulary))
        s = fail(l, added, "added_tokens", "", "contents that do not collide in a hash table");
    return s;
}

/* The byte table of byte-level BPE: printable Latin-1 stands for itself, the other 68 bytes in
 * ascending order for U+0100 and up. */
static void fill_bytes(int16_t byte_of[324])
{
    int16_t next = 256;
    for (int i = 0; i < 324; i++) byte_of[i] = -1;
    for (int16_t b = 0; b < 256; b++)
        byte_of[(b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : next++] = b;
}

q3_status q3_tokenizer_parse(q3_tokenizer **tokenizer, const char *name, const void *text,
                             size_t length, q3_error *error)
{
    loader l = {.error = error};
    q3_status s = q3_json_parse(&l.j, name, text, length, error);
    if (s != Q3_OK) return s;
    l.t = calloc(1, sizeof *l.t);
    l.text = malloc(length + 1);
    l.bytes = malloc(length + 1);
    if (l.t != NULL) l.t->properties = q3_properties();
    if (l.t == NULL || l.text == NULL || l.bytes == NULL || l.t->properties == NULL) {
        s = q3_no_memory(error, name);
    } else {
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
    if (tokenizer == NULL) return;
    free(tokenizer->properties);
    free(tokenizer->ids);
    free(tokenizer->offsets);
    free(tokenizer->pool);
    free(tokenizer->slots);
    free(tokenizer->pairs);
    free(tokenizer->first_pairs);
    free(tokenizer->joins);
    free(tokenizer->added);
    free(tokenizer->added_nodes);
    free(tokenizer->added_text);
    free(tokenizer);
}

/* The tokenizer of a GGUF file; messages on the text that is made of it follow its path. */
static q3_status open_gguf(q3_tokenizer **tokenizer, const char *path, q3_error *error)
{
    q3_gguf *gguf;
    char *json = NULL, *name = q3_join(path, ": tokenizer", "");
    if (name == NULL) return q3_no_memory(error, path);
    q3_status s = q3_gguf_open(&gguf, path, true, error);
    if (s == Q3_OK) {
        s = q3_gguf_tokenizer(&json, gguf, error);
        q3_gguf_close(gguf);
    }
    if (s == Q3_OK) s = q3_tokenizer_parse(tokenizer, name, json, strlen(json), error);
    free(json);
    free(name);
    return s;
}

q3_status q3_tokenizer_open(q3_tokenizer **tokenizer, const char *path, q3_error *error)
{
    q3_mapping file = {0};
    q3_status s = q3_map(&file, path, error);
    if (s != Q3_OK) return s;
    bool gguf = q3_is_gguf(path, &file);
    if (!gguf) s = q3_tokenizer_parse(tokenizer, path, file.data, file.size, error);
    q3_unmap(&file);
    return gguf ? open_gguf(tokenizer, path, error) : s;
}
