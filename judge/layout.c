/* SPDX-License-Identifier: MIT */
/* layout.c - how a tensor of the other implementation's file lies: which axes it may have, where a
 * tap's row is in it, and, where two readings fit, which is meant. */
#include "judge/backend.h"
#include "judge/graph.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How a file can hold a tap. One token has `lines` lines of `width` elements; the tap is the first
 * `inner` elements from `offset` on of each of `outer` lines. All equal, but where several taps lie
 * one behind the other: then there are more lines (heads of q, k and v), or they are wider (gate
 * and up, which are halves of each). And a padded cache gives scores more keys than there are
 * tokens. */
typedef struct tap_lines {
    uint64_t outer, inner, lines, width, offset;
    bool square; /* scores and probs, for which [H,T,S] is the rule */
    bool heads;  /* lines are heads, which may stand before the tokens */
} tap_lines;

/* A tap's own axes: heads of hd, slots of n, or one line of channels or keys. */
static void tap_axes(tap_lines *row, const q3_config *c, q3_tap_id id, size_t keys)
{
    size_t shape[3], rank = q3_tap_shape(shape, c, id, keys);
    row->square = q3_tap_is_square(id);
    row->heads = q3_tap_has_heads(id) || row->square;
    row->outer = row->square ? shape[0] : rank == 3 ? shape[1] : 1;
    row->inner = shape[rank - 1];
    if (row->heads && rank == 2) {
        row->outer = row->inner / c->head_dim;
        row->inner = c->head_dim;
    }
    row->lines = row->outer;
    row->width = row->inner;
    row->offset = 0;
}

/* The axes of a tensor that may hold more taps than one: qkv lie one behind the other by heads,
 * gate and up by channels. */
static void file_axes(tap_lines *row, const q3_alias *alias, const backend *b,
                      const q3_entry *entry, q3_tap_id id, size_t T)
{
    tap_axes(row, b->config, id, T + b->past);
    if (row->square && entry->rank > 0 && entry->shape[entry->rank - 1] > row->inner)
        row->width = entry->shape[entry->rank - 1];
    for (size_t i = 0; i < alias->count; i++) {
        tap_lines part;
        q3_tap_id other = (q3_tap_id)((size_t)alias->id + i);
        if (other == id) continue;
        tap_axes(&part, b->config, other, T);
        if (other < id) row->offset += row->heads ? part.outer * part.inner : part.inner;
        row->lines += row->heads ? part.outer : 0;
        row->width += row->heads ? 0 : part.inner;
    }
}

/* A way to lay a tap out: its axes, of which number `token` is that of the tokens, each `times`
 * long. */
typedef struct reading {
    const char *name;
    uint64_t axis[3], times;
    size_t rank, token;
    bool outer_first;
} reading;

/* All readings of a tap, the rule (INTERFACE: MODEL.md section 8) first; returns how many. */
static size_t list_readings(reading list[4], const tap_lines *row, size_t rank)
{
    uint64_t lines = row->lines, width = row->width;
    const reading flat = {row->heads ? "[T,H*hd]" : "[T,A*n]", {0, lines * width}, 1, 2, 0, false};
    const reading token_first = {row->square ? "[T,H,S]" : row->heads ? "[T,H,hd]" : "[T,A,n]",
                                 {0, lines, width}, 1, 3, 0, false};
    const reading merged = {row->heads ? "[T*H,hd]" : "[T*A,n]", {0, width}, lines, 2, 0, false};
    const reading outer_first = {
        row->square ? "[H,T,S]" : "[H,T,hd]", {lines, 0, width}, 1, 3, 1, true};
    size_t n = 0;
    list[n++] = row->square ? outer_first : rank == 2 ? flat : token_first;
    if (row->square || rank == 2) list[n++] = token_first;
    if (!row->square && rank == 3) list[n++] = flat;
    if (!row->square) list[n++] = merged;
    if (row->heads && !row->square && row->lines == row->outer) list[n++] = outer_first;
    return n;
}

/* How many tokens a tensor of this shape has under a reading; 0: it does not fit. Axes of 1 do not
 * count, on either side: so the case of one token is another one. */
static uint64_t count_tokens(const reading *r, const uint64_t *shape, size_t rank, size_t T)
{
    for (uint64_t one = 0; one < 2; one++) {
        uint64_t n = one;
        size_t at = 0;
        bool fits = true;
        for (size_t i = 0; i < r->rank && fits; i++) {
            uint64_t axis = i == r->token ? r->times : r->axis[i];
            if (i == r->token && one == 0) {
                fits = at < rank && shape[at] % axis == 0;
                if (fits) n = shape[at++] / axis;
            } else if (axis != 1) {
                fits = at < rank && shape[at++] == axis;
            }
        }
        if (fits && at == rank && n > 1 - one && n <= T) return n;
    }
    return 0;
}

/* Adds the reading's layout, unless it is one that is there already. */
static bool add_layout(backend_tensor *tensor, const tap_lines *row, const reading *r, uint64_t n,
                       size_t T)
{
    backend_layout layout = {row->offset, 0, {0, 1}};
    if (n > 1) layout.token = r->outer_first ? row->width : row->lines * row->width;
    if (row->outer > 1) layout.stride[0] = r->outer_first ? n * row->width : row->width;
    bool known = tensor->layouts > 0 && memcmp(&layout, &tensor->layout[0], sizeof layout) == 0;
    if (known || tensor->layouts == 2) return false;
    tensor->first = T - (size_t)n;
    tensor->layout[tensor->layouts++] = layout;
    return true;
}

/* ---- what is said of it ---------------------------------------------------------------------- */

static void add_note(backend_tensor *tensor, const char *format, ...) Q3_PRINTF(2, 3);

/* One more remark for the report, behind a comma. */
static void add_note(backend_tensor *tensor, const char *format, ...)
{
    size_t used = strlen(tensor->note), room = sizeof tensor->note - used;
    va_list arguments;
    va_start(arguments, format);
    if (used > 0 && room > 2) {
        memcpy(tensor->note + used, ", ", 3);
        used += 2;
    }
    vsnprintf(tensor->note + used, sizeof tensor->note - used, format, arguments);
    va_end(arguments);
}

static void note_wrong_shape(backend_tensor *tensor, const tap_lines *row, size_t rank, size_t T)
{
    char found[64], expected[64];
    const uint64_t flat[2] = {T, row->lines * row->width}, wide[3] = {T, row->lines, row->width},
                   square[3] = {row->outer, T, row->inner};
    q3_shape_text(found, sizeof found, tensor->entry->shape, tensor->entry->rank);
    q3_shape_text(expected, sizeof expected, row->square ? square : rank == 2 ? flat : wide, rank);
    add_note(tensor, "found %.60s, expected %.60s", found, expected);
}

static void note_layout(backend_tensor *tensor, const tap_lines *row, const char *const names[2],
                        size_t rank, size_t T)
{
    const q3_entry *e = tensor->entry;
    uint64_t flat = row->lines * row->width;
    if (e->rank > rank && e->shape[0] == 1) add_note(tensor, "batch axis");
    if (tensor->layouts == 2)
        add_note(tensor, "axes %s or %s", names[0], names[1]);
    else if (names[0] != NULL)
        add_note(tensor, "axes %s", names[0]);
    if (row->square && row->width > row->inner)
        add_note(tensor, "keys 0:%llu of %llu", (unsigned long long)row->inner,
                 (unsigned long long)row->width);
    if (row->lines > row->outer)
        add_note(tensor, "columns %llu:%llu of %llu", (unsigned long long)row->offset,
                 (unsigned long long)(row->offset + row->outer * row->inner),
                 (unsigned long long)flat);
    else if (!row->square && row->width > row->inner)
        add_note(tensor, "columns %llu:%llu of %llu", (unsigned long long)row->offset,
                 (unsigned long long)(row->offset + row->inner), (unsigned long long)row->width);
    if (tensor->first > 0) add_note(tensor, "rows %zu:%zu of %zu", tensor->first, T, T);
}

/* ---- binding --------------------------------------------------------------------------------- */

/* A tensor's axes without those of 1, which say nothing; returns how many. */
static size_t squeeze(uint64_t axes[8], const q3_entry *e)
{
    size_t n = 0;
    for (size_t i = 0; i < e->rank; i++)
        if (e->shape[i] != 1) axes[n++] = e->shape[i];
    return n;
}

/* How many rows of `width` the tensor has, if they lie along one axis; else 0. */
static uint64_t rows_in_one_axis(const uint64_t *axes, size_t rank, uint64_t width)
{
    size_t before = width == 1 ? rank : rank - 1;
    if (width != 1 && (rank == 0 || axes[rank - 1] != width)) return 0;
    return before == 0 ? 1 : before == 1 ? axes[0] : 0;
}

/* What a hook on packed experts' act_fn sees (Hugging Face 5): the rows of the last expert alone,
 * one a token at most, so never more than T. With more axes ([1,N,n]) a number of rows that tokens
 * may have is theirs. */
static bool of_one_expert(const q3_entry *e, const tap_lines *row, uint64_t rows, size_t T)
{
    return rows > 0 && rows <= T && rows != T * row->lines &&
           (e->rank == 2 || rows % row->lines != 0);
}

/* Whether experts' rows may lie expert by expert (q3_read_rows): all of them along one axis,
 * as grouped_mm and mlx-lm's SwitchGLU ([T*A,1,n], from 64 slots on) have them. [1,A,n] of one
 * token has an axis for the slots. */
static bool may_be_sorted(const q3_entry *e, const tap_lines *row, uint64_t rows, size_t T)
{
    bool slots = e->rank == 3 && e->shape[0] == T && e->shape[1] == row->lines && row->lines > 1;
    return rows == T * row->lines && !slots;
}

/* A residual is added if it has the same rows, and if it is not in the tensor already. */
static void bind_residual(backend_tensor *tensor, const q3_alias *alias, size_t M, size_t T)
{
    const q3_entry *e = tensor->residual;
    uint64_t axes[8], count = 1;
    if (e == NULL) return;
    for (size_t i = squeeze(axes, e); i > 0; i--) count *= axes[i - 1];
    bool integers = e->dtype == Q3_I32 || e->dtype == Q3_I64 || e->dtype == Q3_AUTO;
    bool whole = e->rank > 0 && e->shape[e->rank - 1] == M && count == (T - tensor->first) * M;
    if (alias->sum || integers || !whole || tensor->layouts != 1) tensor->residual = NULL;
    else add_note(tensor, "plus %.80s", e->name);
}

/* Which readings the tensor's shape allows. None: the note says what was found and expected. */
static void bind_tensor(backend_tensor *tensor, backend *b, q3_tap_id id, size_t T)
{
    const q3_entry *e = tensor->entry;
    bool integers = e->dtype == Q3_I32 || e->dtype == Q3_I64;
    size_t shape[3], rank = q3_tap_shape(shape, b->config, id, T);
    uint64_t axes[8];
    size_t squeezed = squeeze(axes, e);
    bool by_rule = false;
    const char *names[2] = {NULL, NULL};
    reading list[4];
    tap_lines row;
    q3_alias alias;
    tensor->layouts = tensor->first = 0;
    tensor->merged = false;
    tensor->note[0] = 0;
    if (e->dtype == Q3_AUTO) {
        add_note(tensor, "found another dtype, expected %s",
                 id == Q3_TAP_TOPK_INDICES ? "I32 or I64" : "F64, F32, BF16 or F16");
        return;
    }
    if (integers != (id == Q3_TAP_TOPK_INDICES)) {
        add_note(tensor,
                 integers ? "found integers, expected floats" : "found floats, expected integers");
        return;
    }
    q3_tap_alias(&alias, b->config, e->name);
    if (alias.count == 1) alias.id = id; /* see move_products */
    file_axes(&row, &alias, b, e, id, T);
    uint64_t rows = q3_tap_of_experts(id) ? rows_in_one_axis(axes, squeezed, row.width) : 0;
    if (of_one_expert(e, &row, rows, T)) {
        if (b->unknown++ == 0) b->unknown_name = e->name;
        tensor->entry = NULL;
        return;
    }
    tensor->merged = may_be_sorted(e, &row, rows, T);
    size_t count = list_readings(list, &row, rank);
    for (size_t i = 0; i < count; i++) {
        uint64_t n = count_tokens(&list[i], axes, squeezed, T);
        if (n == 0 || !add_layout(tensor, &row, &list[i], n, T)) continue;
        names[tensor->layouts - 1] = list[i].name;
        by_rule = by_rule || i == 0;
    }
    bind_residual(tensor, &alias, shape[rank - 1], T);
    if (by_rule && tensor->layouts == 1) names[0] = NULL;
    if (tensor->layouts == 0)
        note_wrong_shape(tensor, &row, rank, T);
    else
        note_layout(tensor, &row, names, rank, T);
}

q3_status q3_backend_bind(backend *b, size_t T, q3_error *error)
{
    if (b->T != 0 && b->T != T)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found %zu tokens, expected %zu", b->name, b->T,
                       T);
    b->T = T;
    q3_status status = q3_past_read(b, error);
    if (status != Q3_OK) return status;
    for (size_t i = 0; i < b->config->num_hidden_layers * Q3_TAP_COUNT; i++)
        if (b->tensors[i].entry != NULL)
            bind_tensor(&b->tensors[i], b, (q3_tap_id)(i % Q3_TAP_COUNT), T);
    return q3_rows_read(b, error);
}

/* row[n] and the residual's elements from `at` on, rounded as the run rounds its sums. */
static void add_residual(float *row, const backend *b, const backend_tensor *tensor, uint64_t at,
                         uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        float more;
        q3_entry_floats(&more, tensor->residual, at + i, 1);
        row[i] = q3_round((double)row[i] + (double)more, b->run);
    }
}

void q3_backend_row(float *row, const backend *b, const backend_tensor *tensor, q3_tap_id id,
                    size_t layout, size_t t)
{
    const backend_layout *at = &tensor->layout[layout];
    tap_lines lines;
    tap_axes(&lines, b->config, id, b->past + b->T);
    float *first = row;
    for (uint64_t j = 0; j < lines.outer; j++, row += lines.inner) {
        uint64_t begin = at->offset + (t - tensor->first) * at->token + j * at->stride[0];
        if (id != Q3_TAP_TOPK_INDICES) {
            q3_entry_floats(row, tensor->entry, begin, (size_t)lines.inner);
            continue;
        }
        for (size_t k = 0; k < lines.inner; k++) {
            int64_t value;
            q3_entry_integers(&value, tensor->entry, begin + k, 1);
            row[k] = (float)value;
        }
    }
    if (tensor->residual != NULL)
        add_residual(first, b, tensor, (t - tensor->first) * lines.inner, lines.inner);
}

/* ==== Which reading is meant ================================================================== */

/* The squared distance of two rows, or more than `most`; what is not finite does not count. */
static double apart(const float *a, const float *b, size_t n, double most)
{
    double sum = 0;
    for (size_t i = 0; i < n && sum <= most; i++) {
        double d = (double)a[i] - (double)b[i];
        if (d - d == 0) sum += d * d;
    }
    return sum;
}

#define ANY_DISTANCE 1e100

size_t q3_closer_layout(float *scratch, const backend *b, const backend_tensor *tensor,
                        q3_tap_id id, const float *ours)
{
    double away[2] = {0, 0};
    size_t n = q3_tap_row_size(b->config, id, b->past + b->T);
    for (size_t l = 0; l < 2; l++)
        for (size_t t = tensor->first; t < b->T; t++) {
            q3_backend_row(scratch, b, tensor, id, l, t);
            away[l] += apart(scratch, ours + t * n, n, ANY_DISTANCE);
        }
    return away[1] < away[0];
}

/* What take_nearest needs: each group's rows that are not taken lie from begin to end of `left`. A
 * group is an expert, or without choice a token. */
typedef struct expert_rows {
    const float *choice; /* [T*A] the expert of each slot; NULL: groups are tokens */
    size_t slots;        /* A */
    size_t *begin, *end; /* [E] or [T] */
    float *left;         /* [T*A,n] as the file has them */
} expert_rows;

static size_t group_of(const expert_rows *r, size_t slot)
{
    return r->choice != NULL ? (size_t)r->choice[slot] : slot / r->slots;
}

/* Where each group's rows lie, if they lie group by group. */
static void find_groups(expert_rows *r, size_t slots, size_t groups)
{
    for (size_t i = 0; i < slots; i++) r->end[group_of(r, i)]++;
    for (size_t e = 0, all = 0; e < groups; e++) r->begin[e] = all, r->end[e] = all += r->end[e];
}

/* Each slot gets the nearest of its group's rows that are left. Returns the sum of the squared
 * distances. */
static double take_nearest(float *sorted, expert_rows *r, const float *ours, size_t slots, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < slots; i++) {
        size_t e = group_of(r, i), best = r->begin[e];
        double least = apart(r->left + best * n, ours + i * n, n, ANY_DISTANCE);
        for (size_t k = best + 1; k < r->end[e]; k++) {
            double distance = apart(r->left + k * n, ours + i * n, n, least);
            if (distance < least) least = distance, best = k;
        }
        sum += least;
        memcpy(sorted + i * n, r->left + best * n, n * sizeof *sorted);
        /* the last one takes its place */
        memmove(r->left + best * n, r->left + --r->end[e] * n, n * sizeof *sorted);
    }
    return sum;
}

bool q3_read_rows(float **sorted, const backend *b, const backend_tensor *tensor, q3_tap_id id,
                  const float *choice, const float *ours)
{
    size_t T = b->T, A = b->config->num_experts_per_tok;
    size_t groups = choice != NULL ? b->config->num_experts : T;
    size_t row = q3_tap_row_size(b->config, id, T);
    expert_rows r = {choice, A, calloc(groups + 1, sizeof *r.begin),
                     calloc(groups + 1, sizeof *r.end), calloc(T, row * sizeof *r.left)};
    float *rows = calloc(T, row * sizeof *rows);
    bool memory = r.begin != NULL && r.end != NULL && r.left != NULL && rows != NULL;
    double as_it_is = 0, by_group = 0;
    for (size_t t = 0; t < T && memory; t++) {
        q3_backend_row(r.left + t * row, b, tensor, id, 0, t);
        as_it_is += apart(r.left + t * row, ours + t * row, row, ANY_DISTANCE);
    }
    if (memory) {
        find_groups(&r, T * A, groups);
        by_group = take_nearest(rows, &r, ours, T * A, row / A);
    }
    free(r.begin);
    free(r.end);
    free(r.left);
    *sorted = rows;
    if (memory && by_group * 256 < as_it_is) return true;
    free(rows);
    *sorted = NULL;
    return memory;
}
