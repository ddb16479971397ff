/* SPDX-License-Identifier: MIT */
/* backend.c - what the other implementation gives: of which run, and which of its tensors are
 * taps. */
#include "judge/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== The run: tokens and positions =========================================================== */

static const q3_entry *find_entry(const backend *b, const char *name)
{
    for (size_t i = 0; i < b->count; i++)
        if (strcmp(b->entries[i].name, name) == 0) return &b->entries[i];
    return NULL;
}

/* Integers, one a token: [T], or with axes of 1 too. Their number must be that of what was read
 * before. */
static q3_status open_integers(backend *b, const char *name, const q3_entry **entry,
                               q3_error *error)
{
    const q3_entry *e = *entry = find_entry(b, name);
    uint64_t count = 1, longest = 1;
    if (e == NULL) return Q3_OK;
    for (size_t i = 0; i < e->rank; i++) {
        count *= e->shape[i];
        longest = e->shape[i] > longest ? e->shape[i] : longest;
    }
    if (e->rank == 0 || count != longest || (e->dtype != Q3_I64 && e->dtype != Q3_I32))
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: %s: found another shape or no integers, expected integers [T]", b->name,
                       name);
    if (count > Q3_MAX_POSITIONS || (b->T != 0 && count != b->T))
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s: found %llu, expected %zu%s", b->name, name,
                    (unsigned long long)count, b->T != 0 ? b->T : Q3_MAX_POSITIONS,
                    b->T != 0 ? " as in input_ids" : " at most");
    b->T = (size_t)count;
    return Q3_OK;
}

static q3_status read_ids(backend *b, q3_error *error)
{
    const q3_entry *entry;
    q3_status status = open_integers(b, "input_ids", &entry, error);
    if (status != Q3_OK || entry == NULL) return status;
    b->ids = malloc(b->T * sizeof *b->ids);
    if (b->ids == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", b->T);
    for (size_t t = 0; t < b->T; t++) {
        int64_t id;
        q3_entry_integers(&id, entry, t, 1);
        if (id < 0 || (uint64_t)id >= b->config->vocab_size)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: input_ids: token %zu: found %lld, expected 0 to %zu", b->name, t,
                           (long long)id, b->config->vocab_size - 1);
        b->ids[t] = (int32_t)id;
    }
    return Q3_OK;
}

/* Positions must follow one another; the first is where the run starts. */
static q3_status read_positions(backend *b, q3_error *error)
{
    const q3_entry *entry;
    int64_t first = 0, position;
    q3_status status = open_integers(b, "position_ids", &entry, error);
    if (status != Q3_OK || entry == NULL) return status;
    q3_entry_integers(&first, entry, 0, 1);
    if (first < 0 || (uint64_t)first > Q3_MAX_POSITIONS - b->T)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: position_ids: token 0: found %lld, expected 0 to %zu", b->name,
                       (long long)first, Q3_MAX_POSITIONS - b->T);
    for (size_t t = 1; t < b->T; t++) {
        q3_entry_integers(&position, entry, t, 1);
        if (position != first + (int64_t)t)
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: position_ids: token %zu: found %lld, expected %lld", b->name, t,
                           (long long)position, (long long)first + (long long)t);
    }
    if (b->has_start && b->start != (size_t)first)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: position_ids: token 0: found %lld, expected %zu as metadata's"
                       " start",
                       b->name, (long long)first, b->start);
    b->start = (size_t)first;
    b->has_start = true;
    return Q3_OK;
}

/* ==== Names =================================================================================== */

/* Bytes of a tensor's elements; false if its dtype is none of a file's, or its size does not fit 63
 * bits. */
static bool entry_size(const q3_entry *e, uint64_t *bytes)
{
    if (e->dtype >= Q3_F8 || e->rank > sizeof e->shape / sizeof e->shape[0]) return false;
    uint64_t n = q3_dtype_size(e->dtype);
    for (size_t i = 0; i < e->rank; i++) {
        if (e->shape[i] != 0 && n > INT64_MAX / e->shape[i]) return false;
        n *= e->shape[i];
    }
    *bytes = n;
    return true;
}

/* The same values twice, as a module and as what it is made of, say. */
static bool same_values(const q3_entry *a, const q3_entry *b)
{
    uint64_t n, m;
    return a->dtype == b->dtype && entry_size(a, &n) && entry_size(b, &m) && n == m &&
           memcmp(a->data, b->data, (size_t)n) == 0;
}

/* Gives the entry to the tap, unless a better name has it. */
static q3_status place(backend *b, const q3_entry *entry, const q3_alias *alias, q3_tap_id id,
                       q3_error *error)
{
    char tap[Q3_TAP_NAME_SIZE];
    q3_alias other = {.id = Q3_TAP_COUNT, .count = 1};
    backend_tensor *tensor = &b->tensors[alias->layer * Q3_TAP_COUNT + (size_t)id];
    if (alias->added) {
        if (tensor->residual == NULL) tensor->residual = entry;
        return Q3_OK;
    }
    if (tensor->entry != NULL) q3_tap_alias(&other, b->config, tensor->entry->name);
    bool better = alias->sum != other.sum ? alias->sum : other.weak && !alias->weak;
    if (tensor->entry == NULL || better) {
        tensor->entry = entry;
        return Q3_OK;
    }
    if (alias->sum != other.sum || alias->weak != other.weak ||
        (alias->count == other.count && same_values(entry, tensor->entry)))
        return Q3_OK;
    q3_tap_name(tap, id, alias->layer);
    return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.100s and %.100s, expected one tensor for %s",
                   b->name, tensor->entry->name, entry->name, tap);
}

/* vLLM's and SGLang's act_fn, behind a fused gate_up_proj, multiplies too: its output is what
 * down_proj reads. */
static void move_products(backend *b)
{
    for (size_t layer = 0; layer < b->config->num_hidden_layers; layer++) {
        backend_tensor *of = b->tensors + layer * Q3_TAP_COUNT, *act = &of[Q3_TAP_DENSE_ACT_FN];
        const q3_entry *gate = of[Q3_TAP_DENSE_GATE_PROJ].entry;
        q3_alias alias;
        if (act->entry == NULL || gate == NULL || !q3_tap_alias(&alias, b->config, gate->name) ||
            alias.count != 2)
            continue;
        if (of[Q3_TAP_DENSE_DOWN_PROJ_INPUT].entry == NULL) of[Q3_TAP_DENSE_DOWN_PROJ_INPUT] = *act;
        act->entry = NULL;
    }
}

/* Each tensor to the taps that its name means; the others are counted. */
static q3_status find_taps(backend *b, q3_error *error)
{
    size_t L = b->config->num_hidden_layers;
    b->tensors = calloc(L * Q3_TAP_COUNT, sizeof *b->tensors);
    if (b->tensors == NULL)
        return q3_fail(error, Q3_ERROR_MEMORY, "no memory for the names of %zu layers", L);
    for (size_t i = 0; i < b->count; i++) {
        const q3_entry *entry = &b->entries[i];
        q3_alias alias;
        size_t cached;
        bool values;
        if (q3_past_name(entry->name, &cached, &values)) continue;
        if (strcmp(entry->name, "input_ids") == 0 || strcmp(entry->name, "position_ids") == 0 ||
            strcmp(entry->name, "logit_positions") == 0)
            continue;
        if (!q3_tap_alias(&alias, b->config, entry->name) ||
            !q3_tap_exists(b->config, 0, L, alias.id, alias.layer)) {
            q3_note_unknown(b, entry->name);
            continue;
        }
        for (size_t part = 0; part < alias.count; part++) {
            q3_status status = place(b, entry, &alias, (q3_tap_id)((size_t)alias.id + part), error);
            if (status != Q3_OK) return status;
        }
    }
    move_products(b);
    return Q3_OK;
}

/* ==== What is given =========================================================================== */

q3_status q3_backend_init(backend *b, const q3_config *config, const char *name, q3_error *error)
{
    *b = (backend){.name = name, .config = config, .dtype = Q3_AUTO};
    if (config->num_hidden_layers > 0) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "config.json: num_hidden_layers: found 0, expected layers to check");
}

void q3_backend_close(backend *b)
{
    free(b->ids);
    free(b->logit_rows);
    free(b->tensors);
    free(b->entries);
    q3_tensors_close(b->file);
    memset(b, 0, sizeof *b);
}

static q3_status reserve(backend *b, size_t more, q3_error *error)
{
    if (b->count + more <= b->room) return Q3_OK;
    size_t room = 2 * b->room + more;
    q3_entry *grown = realloc(b->entries, room * sizeof *grown);
    if (grown == NULL)
        return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory for %zu tensors", b->name, room);
    b->entries = grown;
    b->room = room;
    return Q3_OK;
}

q3_status q3_backend_add_file(backend *b, const char *path, q3_error *error)
{
    if (b->file != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found a second file, expected one", path);
    q3_status status = q3_tensors_open_any(&b->file, path, error);
    if (status != Q3_OK) {
        b->file = NULL;
        return status;
    }
    size_t count = q3_tensors_count(b->file);
    status = q3_backend_metadata(b, error);
    if (status == Q3_OK) status = reserve(b, count, error);
    for (size_t i = 0; i < count && status == Q3_OK; i++)
        b->entries[b->count++] = *q3_tensors_at(b->file, i);
    return status;
}

q3_status q3_backend_add_tensor(backend *b, const q3_entry *entry, q3_error *error)
{
    uint64_t bytes = 0;
    if (entry->name == NULL || entry->name[0] == 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found a tensor without a name, expected one",
                       b->name);
    if (!entry_size(entry, &bytes) || bytes > SIZE_MAX)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: %.100s: found another dtype or too large a shape, expected a "
                       "tensor that lies in memory",
                       b->name, entry->name);
    if (entry->data == NULL && bytes > 0)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %.100s: found no data, expected %llu bytes",
                       b->name, entry->name, (unsigned long long)bytes);
    if (find_entry(b, entry->name) != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %.100s: found it twice, expected it once",
                       b->name, entry->name);
    q3_status status = reserve(b, 1, error);
    if (status == Q3_OK) b->entries[b->count++] = *entry;
    return status;
}

q3_status q3_backend_read(backend *b, q3_error *error)
{
    free(b->ids); /* of a call that failed */
    free(b->tensors);
    b->ids = NULL;
    b->tensors = NULL;
    b->T = b->unknown = b->unknown_count = b->kind_count = 0;
    q3_status status = read_ids(b, error);
    if (status == Q3_OK) status = read_positions(b, error);
    if (status == Q3_OK) status = find_taps(b, error);
    return status;
}

const backend_tensor *q3_backend_find(const backend *b, q3_tap_id id, size_t layer)
{
    const backend_tensor *tensor = &b->tensors[layer * Q3_TAP_COUNT + (size_t)id];
    return tensor->entry != NULL ? tensor : NULL;
}
