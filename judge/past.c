/* SPDX-License-Identifier: MIT */
/* past.c - the keys that came before the file's first token: how many there were, and their values
 * where the file has them (MODEL.md 12.11). */
#include "judge/backend.h"

#include "host/taps.h"

#include <stdio.h>
#include <string.h>

/* What Hugging Face and its exports call the cache of layer #: first the keys, then the values. */
static const char *const names[][2] = {
    {"past_key_values.#.key", "past_key_values.#.value"},                 /* ONNX */
    {"past_key_values.layers.#.keys", "past_key_values.layers.#.values"}, /* 5.x */
    {"past_key_values.key_cache.#", "past_key_values.value_cache.#"},     /* 4.x */
};

bool q3_past_name(const char *name, size_t *layer, bool *values)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        for (size_t k = 0; k < 2; k++) {
            if (!q3_name_fits(names[i][k], name, layer)) continue;
            *values = k == 1;
            return true;
        }
    return false;
}

/* ==== Whose rows ============================================================================== */

/* Where the rows of a tensor [K,R,hd], [R,K,hd] or [1,K,R,hd] lie. False: another shape, or one
 * that can be read in two ways. */
static bool read_shape(past_rows *rows, const q3_config *c, const q3_entry *e)
{
    uint64_t K = c->num_key_value_heads, hd = c->head_dim;
    size_t skip = e->rank == 4 && e->shape[0] == 1;
    const uint64_t *shape = e->shape + skip;
    bool first = shape[0] == K, second = shape[1] == K;
    bool floats = e->dtype != Q3_I32 && e->dtype != Q3_I64 && e->dtype != Q3_AUTO;
    if (!floats || e->rank - skip != 3 || shape[2] != hd || (!first && !second)) return false;
    if (skip == 0 && first && second && K > 1) return false;
    first = first && (skip == 1 || !second || K == 1);
    if (skip == 1 && !first) return false;
    rows->entry = e;
    rows->count = first ? shape[1] : shape[0];
    rows->row = first ? hd : K * hd;
    rows->head = first ? rows->count * hd : hd;
    return rows->count <= 2 * Q3_MAX_POSITIONS;
}

/* The layer's keys or values as the file has them; entry NULL: it has none. */
static past_rows find_rows(const backend *b, size_t layer, bool values)
{
    past_rows rows = {NULL, 0, 0, 0};
    for (size_t i = 0; i < b->count && rows.entry == NULL; i++) {
        size_t of;
        bool these;
        if (q3_past_name(b->entries[i].name, &of, &these) && of == layer && these == values)
            read_shape(&rows, b->config, &b->entries[i]);
    }
    return rows;
}

past_rows q3_past_find(const backend *b, size_t layer, bool values)
{
    past_rows rows = find_rows(b, layer, values), none = {NULL, 0, 0, 0};
    bool before = rows.count == b->past, after = rows.count >= b->past + b->T;
    return before || after ? rows : none;
}

void q3_past_row(float *row, const backend *b, const past_rows *rows, size_t t)
{
    size_t hd = b->config->head_dim;
    for (size_t k = 0; k < b->config->num_key_value_heads; k++)
        q3_entry_floats(row + k * hd, rows->entry, t * rows->row + k * rows->head, hd);
}

/* ==== How many ================================================================================ */

/* Whether a cache of all that came before may have so many rows: a sliding one keeps what its
 * window reaches. */
static bool is_whole(const backend *b, uint64_t rows)
{
    size_t window = b->config->sliding_window;
    return rows == b->start || (window > 0 && window <= b->start && rows == window - 1);
}

/* By scores or probabilities, which have a column for each key. */
static bool count_by_columns(backend *b)
{
    for (size_t i = 0; i < b->config->num_hidden_layers * Q3_TAP_COUNT; i++) {
        const q3_entry *e = b->tensors[i].entry;
        if (e == NULL || e->rank == 0 || !q3_tap_is_square((q3_tap_id)(i % Q3_TAP_COUNT))) continue;
        uint64_t keys = e->shape[e->rank - 1];
        if (keys < b->T || (keys > b->T && !is_whole(b, keys - b->T))) continue;
        b->past = (size_t)(keys - b->T);
        return true;
    }
    return false;
}

/* By the rows of the cache, which was recorded before the run or behind it. A sliding one looks the
 * same in both cases. */
static bool count_by_cache(backend *b)
{
    for (size_t i = 0; i < 2 * b->config->num_hidden_layers; i++) {
        past_rows rows = find_rows(b, i / 2, i % 2 == 1);
        bool before = rows.count == b->start, after = rows.count == b->start + b->T;
        bool empty = rows.count == 0 || rows.count == b->T;
        if (rows.entry == NULL || (before && empty) || !(before || after || empty)) continue;
        b->past = empty ? 0 : b->start;
        return true;
    }
    return false;
}

/* metadata's past, or what is known of dump's files: each of its runs begins with an empty cache.
 * *found: it is said. */
static q3_status read_metadata(backend *b, bool *found, q3_error *error)
{
    const char *text = b->file == NULL ? NULL : q3_tensors_metadata(b->file, "past");
    const char *producer = b->file == NULL ? NULL : q3_tensors_metadata(b->file, "producer");
    size_t digits = text == NULL ? 0 : strspn(text, "0123456789"), past = 0;
    const size_t most = Q3_MAX_POSITIONS - 1;
    *found = text != NULL || (producer != NULL && strcmp(producer, "qwen3moe") == 0);
    for (size_t i = 0; i < digits && past <= Q3_MAX_POSITIONS; i++)
        past = past * 10 + (size_t)(text[i] - '0');
    if (text != NULL && !b->has_start) b->start = past;
    if (text != NULL && (digits == 0 || text[digits] != 0 || past > b->start ||
                         b->start > most))
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: metadata past: found %.40s, expected 0 to %zu keys before the run",
                       b->name, text, b->start < most ? b->start : most);
    b->past = past;
    return Q3_OK;
}

q3_status q3_past_read(backend *b, q3_error *error)
{
    bool found;
    b->past_unknown = false;
    q3_status status = read_metadata(b, &found, error);
    if (status != Q3_OK || found || b->start == 0) return status;
    b->past_unknown = !count_by_columns(b) && !count_by_cache(b);
    return Q3_OK;
}
