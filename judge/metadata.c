/* SPDX-License-Identifier: MIT */
/* metadata.c - what a file's metadata says of the run: the model's config, the dtype, the first
 * position. */
#include "judge/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== config ================================================================================== */

static void put_comma(q3_text *t)
{
    if (t->size > 0 && t->data[t->size - 1] != '{') q3_text_add(t, ",");
}

/* A member of an object as it is written: the key's node, the value's is the next. */
static void put_member(q3_text *t, const q3_json *j, uint32_t key)
{
    put_comma(t);
    q3_text_bytes(t, (const char *)j->text + j->nodes[key].start,
                  j->nodes[key + 1].end - j->nodes[key].start);
}

/* The key's name; a name that does not fit is none of a config's. */
static void key_name(char name[64], const q3_json *j, uint32_t key)
{
    size_t n = j->nodes[key].end - j->nodes[key].start - 2;
    snprintf(name, 64, "%.*s", (int)(n < 64 ? n : 63),
             (const char *)j->text + j->nodes[key].start + 1);
}

static bool is_object(const q3_json *j, uint32_t node)
{
    return node != 0 && q3_json_type_of(j, node) == Q3_JSON_OBJECT;
}

/* Whether a config says something of this key, in the spelling of transformers 4.x (ours) or of
 * 5.x. */
static bool gives(const q3_json *j, const char *key)
{
    if (q3_json_find(j, 0, key) != 0) return true;
    if (strcmp(key, "rope_theta") == 0 || strcmp(key, "rope_scaling") == 0)
        return is_object(j, q3_json_find(j, 0, "rope_parameters"));
    return strcmp(key, "num_experts") == 0 && q3_json_find(j, 0, "num_local_experts") != 0;
}

/* Their rope_scaling or rope_parameters, and what ours has beside it. */
static void put_rope(q3_text *t, const q3_json *theirs, uint32_t object, const q3_json *ours,
                     bool parameters)
{
    char name[64];
    uint32_t scaling = q3_json_find(ours, 0, "rope_scaling"), k = object + 1;
    bool theta = !parameters || q3_json_find(theirs, object, "rope_theta") != 0 ||
                 q3_json_find(theirs, 0, "rope_theta") != 0;
    q3_text_add(t, "{");
    for (uint32_t i = 0; i < theirs->nodes[object].count; i++, k = theirs->nodes[k + 1].next)
        put_member(t, theirs, k);
    if (!theta) put_member(t, ours, q3_json_find(ours, 0, "rope_theta") - 1);
    k = scaling + 1;
    for (uint32_t i = 0; is_object(ours, scaling) && i < ours->nodes[scaling].count;
         i++, k = ours->nodes[k + 1].next) {
        key_name(name, ours, k);
        bool there = q3_json_find(theirs, object, name) != 0 ||
                     (strcmp(name, "rope_type") == 0 && q3_json_find(theirs, object, "type") != 0);
        if (!there) put_member(t, ours, k);
    }
    q3_text_add(t, "}");
}

/* Their config with our values for the keys that it lacks; but no null for a window: where they
 * only say that they use one, that is what contradicts. */
static void complete(q3_text *t, const q3_json *theirs, const q3_json *ours)
{
    char name[64];
    uint32_t k = 1;
    q3_text_add(t, "{");
    for (uint32_t i = 0; i < theirs->nodes[0].count; i++, k = theirs->nodes[k + 1].next) {
        bool parameters = q3_json_equal(theirs, k, "rope_parameters");
        bool rope = parameters || q3_json_equal(theirs, k, "rope_scaling");
        if (!rope || !is_object(theirs, k + 1)) {
            put_member(t, theirs, k);
            continue;
        }
        put_comma(t);
        q3_text_add(t, parameters ? "\"rope_parameters\":" : "\"rope_scaling\":");
        put_rope(t, theirs, k + 1, ours, parameters);
    }
    k = 1;
    for (uint32_t i = 0; i < ours->nodes[0].count; i++, k = ours->nodes[k + 1].next) {
        key_name(name, ours, k);
        bool no_window = strcmp(name, "sliding_window") == 0 &&
                         q3_json_type_of(ours, k + 1) == Q3_JSON_NULL;
        if (!gives(theirs, name) && !no_window) put_member(t, ours, k);
    }
    q3_text_add(t, "}");
}

/* The first of the keys that they give (`given`) that has another value than ours. Both are
 * written by q3_config_read, sorted, and equal values as equal texts. A key that is written only
 * where it is not the default, and that their line does not have, is not compared. */
static q3_status compare_keys(const char *path, const q3_json *ours, const q3_json *theirs,
                              const q3_json *given, q3_error *error)
{
    char key[64], text[2][100];
    for (uint32_t i = 0, k = 1; i < theirs->nodes[0].count; i++, k = theirs->nodes[k + 1].next) {
        key_name(key, theirs, k);
        uint32_t found = q3_json_find(ours, 0, key);
        if (!gives(given, key)) continue;
        const q3_json *j[2] = {theirs, ours};
        const uint32_t node[2] = {k + 1, found};
        for (int side = 0; side < 2; side++) {
            const q3_json_node *at = &j[side]->nodes[node[side]];
            int length = node[side] == 0 ? 0 : (int)(at->end - at->start);
            snprintf(text[side], sizeof text[side], "%.*s", length,
                     (const char *)j[side]->text + at->start);
        }
        const q3_json_node *a = &theirs->nodes[k + 1], *b = &ours->nodes[found];
        if (found != 0 && a->end - a->start == b->end - b->start &&
            memcmp(theirs->text + a->start, ours->text + b->start, a->end - a->start) == 0)
            continue;
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: metadata config: %s: found %s, expected %s as in the model", path, key,
                       text[0], found != 0 ? text[1] : "no such key");
    }
    return Q3_OK;
}

static q3_status parse(q3_json *j, const char *text, size_t length, q3_error *error)
{
    return q3_json_parse(j, "config", (const uint8_t *)text, length, error);
}

/* metadata's config, if there is one: it contradicts the model nowhere. Any spelling that a
 * config.json may have will do, and keys may be missing: its writer may not know them. */
static q3_status check_config(const backend *b, const char *text, q3_error *error)
{
    char *expected = text != NULL ? q3_config_json(b->config) : NULL;
    q3_json raw = {0}, whole = {0}, ours = {0}, theirs = {0};
    q3_text completed = {0};
    q3_config_file config = {0};
    q3_error inner;
    if (text == NULL) return Q3_OK;
    if (expected == NULL) return q3_no_memory(error, b->name);
    q3_status status = parse(&raw, text, strlen(text), &inner);
    if (status == Q3_OK && q3_json_type_of(&raw, 0) != Q3_JSON_OBJECT)
        status = q3_json_fail(&raw, 0, "file", "a JSON object", &inner);
    if (status == Q3_OK) status = parse(&ours, expected, strlen(expected), &inner);
    if (status == Q3_OK) complete(&completed, &raw, &ours);
    if (completed.failed) status = q3_no_memory(&inner, "config");
    if (status == Q3_OK) status = parse(&whole, completed.data, completed.size, &inner);
    if (status == Q3_OK) status = q3_config_read(&config, &whole, &inner);
    if (status == Q3_OK) status = parse(&theirs, config.json, strlen(config.json), &inner);
    if (status != Q3_OK) q3_fail(error, status, "%s: metadata: %.400s", b->name, inner.text);
    else status = compare_keys(b->name, &ours, &theirs, &raw, error);
    free(expected);
    free(completed.data);
    q3_json_free(&ours);
    q3_json_free(&theirs);
    q3_json_free(&whole);
    q3_json_free(&raw);
    q3_config_free(&config);
    return status;
}

/* ==== dtype and start ========================================================================= */

/* metadata's dtype: the run's, whatever the tensors are stored as. */
static q3_status read_dtype(backend *b, const char *text, q3_error *error)
{
    if (text == NULL) return Q3_OK;
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++)
        if (strcmp(text, q3_dtype_name(d)) == 0) b->dtype = d;
    if (b->dtype != Q3_AUTO) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "%s: metadata dtype: found %.40s, expected float32, bfloat16 or float16",
                   b->name, text);
}

/* metadata's start: the position of the first token, as `dump --start` writes it. */
static q3_status read_start(backend *b, const char *text, q3_error *error)
{
    if (text == NULL) return Q3_OK;
    size_t digits = strspn(text, "0123456789");
    for (size_t i = 0; i < digits && b->start < Q3_MAX_POSITIONS; i++)
        b->start = b->start * 10 + (size_t)(text[i] - '0');
    if (digits == 0 || text[digits] != 0 || b->start >= Q3_MAX_POSITIONS)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: metadata start: found %.40s, expected 0 to %zu",
                       b->name, text, Q3_MAX_POSITIONS - 1);
    b->has_start = true;
    return Q3_OK;
}

q3_status q3_backend_metadata(backend *b, q3_error *error)
{
    q3_status status = check_config(b, q3_tensors_metadata(b->file, "config"), error);
    if (status == Q3_OK) status = read_dtype(b, q3_tensors_metadata(b->file, "dtype"), error);
    if (status == Q3_OK) status = read_start(b, q3_tensors_metadata(b->file, "start"), error);
    return status;
}
