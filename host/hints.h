/* SPDX-License-Identifier: MIT */
/* hints.h - where the weights of each layer lie in their files, so that the system can be told
 * which of them a run needs next. Private to host/. */
#ifndef Q3_HINTS_H
#define Q3_HINTS_H

#include "host/files.h"

typedef struct q3_hints {
    q3_buffer places;    /* in the order of the layers */
    size_t *first;       /* [layers + 1]: of each layer, whose experts' come last */
    size_t *experts;     /* [layers + 1]: the first of its experts; dense: the next layer's */
    size_t begin, end;   /* the layers that are known */
    size_t expert_count; /* of a layer */
} q3_hints;

/* {0} becomes hints for layers [begin, end). False, here and below: no memory. */
bool q3_hints_init(q3_hints *hints, size_t begin, size_t end, size_t expert_count);
void q3_hints_free(q3_hints *hints);
/* What is added from here on belongs to this layer (end: to none), or to its experts in turn. */
void q3_hints_layer(q3_hints *hints, size_t layer);
void q3_hints_experts(q3_hints *hints, size_t layer);
/* A weight of so many bytes, or a part of one. */
bool q3_hints_add(q3_hints *hints, const q3_mapping *mapping, const void *data, size_t size);

/* A run comes to this layer; these experts of it were chosen. */
void q3_hints_turn(const q3_hints *hints, size_t layer);
void q3_hints_chosen(const q3_hints *hints, size_t layer, const int32_t *ids, size_t count);

#endif
