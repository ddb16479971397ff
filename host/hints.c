/* SPDX-License-Identifier: MIT */
/* hints.c - which weights come next and which are done with. No value depends on it: the system
 * fetches the ones while others are computed with, and takes back the others' room first. */
#include "host/hints.h"

#include <stdlib.h>

typedef struct place {
    const q3_mapping *mapping;
    const uint8_t *data;
    size_t size;
} place;

bool q3_hints_init(q3_hints *hints, size_t begin, size_t end, size_t expert_count)
{
    hints->first = calloc(end + 1, sizeof *hints->first);
    hints->experts = calloc(end + 1, sizeof *hints->experts);
    hints->begin = begin;
    hints->end = end;
    hints->expert_count = expert_count;
    return hints->first != NULL && hints->experts != NULL;
}

void q3_hints_free(q3_hints *hints)
{
    free(hints->places.data);
    free(hints->first);
    free(hints->experts);
    *hints = (q3_hints){0};
}

void q3_hints_layer(q3_hints *hints, size_t layer)
{
    hints->first[layer] = hints->places.count;
    if (layer > hints->begin && hints->experts[layer - 1] == 0)
        hints->experts[layer - 1] = hints->places.count; /* a dense one */
}

void q3_hints_experts(q3_hints *hints, size_t layer)
{
    hints->experts[layer] = hints->places.count;
}

bool q3_hints_add(q3_hints *hints, const q3_mapping *mapping, const void *data, size_t size)
{
    if (!q3_reserve(&hints->places, 1, sizeof(place))) return false;
    ((place *)hints->places.data)[hints->places.count++] = (place){mapping, data, size};
    return true;
}

/* What every token reads of the layer and of the next one, whose experts nobody knows yet. */
void q3_hints_turn(const q3_hints *hints, size_t layer)
{
    const place *all = hints->places.data;
    if (layer > hints->begin && layer <= hints->end)
        for (size_t i = hints->first[layer - 1]; i < hints->first[layer]; i++)
            q3_done_with(all[i].mapping, all[i].data, all[i].size);
    for (size_t next = layer; next < hints->end && next < layer + 2; next++)
        for (size_t i = hints->first[next]; i < hints->experts[next]; i++)
            q3_will_need(all[i].mapping, all[i].data, all[i].size);
}

static bool is_among(const int32_t *ids, size_t count, size_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= 0 && (size_t)ids[i] == id) return true;
    return false;
}

/* Each expert has as many places of its own, or an equal part of each: [E,...] tensors. */
void q3_hints_chosen(const q3_hints *hints, size_t layer, const int32_t *ids, size_t count)
{
    const place *all = hints->places.data;
    size_t E = hints->expert_count, first = hints->experts[layer];
    size_t places = hints->first[layer + 1] - first, own = E > 0 ? places / E : 0;
    bool apart = E > 0 && places % E == 0;
    for (size_t e = 0; e < E; e++) {
        if (!is_among(ids, count, e)) continue;
        for (size_t i = 0; i < (apart ? own : places); i++) {
            const place *p = &all[apart ? first + e * own + i : first + i];
            size_t size = apart ? p->size : p->size / E;
            q3_will_need(p->mapping, p->data + (apart ? 0 : e * size), size);
        }
    }
}
