/* SPDX-License-Identifier: MIT */
/* report_map.c - the text report's map: a row for each layer, a sign for each tap; of two sides two
 * signs. */
#include "judge/report.h"

#include <stdio.h>
#include <string.h>

/* ==== Pieces ================================================================================== */

void q3_report_pad(q3_text *out, size_t count)
{
    while (count-- > 0) q3_text_add(out, " ");
}

void q3_report_paint(q3_text *out, const char *text, q3_verdict v, bool colour)
{
    static const char *const colours[Q3_VERDICT_COUNT] = {
        [Q3_VERDICT_EXACT] = "\033[32m",
        [Q3_VERDICT_WITHIN] = "\033[32m",
        [Q3_VERDICT_ROUNDING] = "\033[33m",
        [Q3_VERDICT_NEAR_TIE] = "\033[36m",
        [Q3_VERDICT_DIFFERS] = "\033[1;37;41m",
        [Q3_VERDICT_NON_FINITE] = "\033[1;37;41m",
        [Q3_VERDICT_MISSING] = "\033[2m",
        [Q3_VERDICT_SHAPE] = "\033[1;37;41m",
        [Q3_VERDICT_UNJUDGED] = "\033[2m",
    };
    if (colour) q3_text_add(out, colours[v]);
    q3_text_add(out, text);
    if (colour) q3_text_add(out, "\033[0m");
}

static void add_letter(q3_text *out, q3_verdict v, bool colour)
{
    const char letter[2] = {q3_verdict_words[v].letter, 0};
    q3_report_paint(out, letter, v, colour);
}

/* ==== Rows ==================================================================================== */

typedef struct map {
    const q3_report *side[2];
    size_t sides;
    size_t label; /* columns of a row's label */
    bool colour;
} map;

/* A verdict of each side for each column, or -1. */
typedef struct map_row {
    int cell[Q3_TAP_COUNT][2];
} map_row;

/* A column for each tap of a layer (q3_tap_column: dense and sparse layers share those of the
 * experts), as wide as its head, the tap's code, and its signs. */
static bool is_column(q3_tap_id id)
{
    return q3_tap_in_layer(id) && q3_tap_column(id) == id;
}

static const char *head_of(q3_tap_id id)
{
    return q3_tap_info(id)->code;
}

static size_t width_of(const map *m, q3_tap_id id)
{
    size_t width = strlen(head_of(id));
    return width > m->sides ? width : m->sides;
}

/* The signs of a cell; a side that has none leaves a blank. */
static void add_cell(q3_text *out, const map *m, const int cell[2])
{
    for (size_t s = 0; s < m->sides; s++)
        if (cell[s] >= 0)
            add_letter(out, (q3_verdict)cell[s], m->colour);
        else
            q3_text_add(out, " ");
}

static bool in_layer(const report_entry *e)
{
    return q3_tap_in_layer(e->id);
}

/* The layer that side s's entries from *at on begin with; false: there is none. */
static bool layer_at(const map *m, size_t s, size_t *at, size_t *layer)
{
    const q3_report *r = m->side[s];
    while (*at < r->count && !in_layer(&r->entries[*at])) ++*at;
    if (*at == r->count) return false;
    *layer = r->entries[*at].f.layer;
    return true;
}

/* The row of the next layer that a side has; at goes on to what follows it. False: there is
 * none. */
static bool next_row(const map *m, size_t at[2], size_t *layer, map_row *row)
{
    bool any = false;
    for (size_t s = 0; s < m->sides; s++) {
        size_t own;
        if (!layer_at(m, s, &at[s], &own)) continue;
        if (!any || own < *layer) *layer = own;
        any = true;
    }
    for (size_t c = 0; c < Q3_TAP_COUNT; c++) row->cell[c][0] = row->cell[c][1] = -1;
    for (size_t s = 0; s < m->sides && any; s++)
        for (const q3_report *r = m->side[s]; at[s] < r->count; at[s]++) {
            const report_entry *e = &r->entries[at[s]];
            if (!in_layer(e) || e->f.layer != *layer) break;
            row->cell[q3_tap_column(e->id)][s] = (int)e->f.verdict;
        }
    return any;
}

static void add_label(q3_text *out, const map *m, const char *text)
{
    size_t length = strlen(text);
    q3_report_pad(out, length < m->label ? m->label - length : 0);
    q3_text_add(out, text);
    q3_report_pad(out, 2);
}

static void add_row(q3_text *out, const map *m, const map_row *row)
{
    size_t gap = 0;
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!is_column(c)) continue;
        size_t width = width_of(m, c);
        if (row->cell[c][0] >= 0 || row->cell[c][1] >= 0) {
            q3_report_pad(out, gap);
            add_cell(out, m, row->cell[c]);
            gap = width - m->sides + 1;
        } else {
            gap += width + 1;
        }
    }
    q3_text_add(out, "\n");
}

/* Three and more layers that look the same stand in one row. */
static void add_rows(q3_text *out, const map *m)
{
    size_t at[2] = {0, 0}, first;
    map_row row, next;
    char label[48];
    while (next_row(m, at, &first, &row)) {
        size_t ahead[2] = {at[0], at[1]}, after[2] = {at[0], at[1]}, last = first, layer;
        while (next_row(m, ahead, &layer, &next) && layer == last + 1 &&
               memcmp(&next, &row, sizeof row) == 0) {
            last = layer;
            memcpy(after, ahead, sizeof ahead);
        }
        bool folded = last >= first + 2;
        if (folded) memcpy(at, after, sizeof at);
        if (folded)
            snprintf(label, sizeof label, "%zu-%zu", first, last);
        else
            snprintf(label, sizeof label, "%zu", first);
        add_label(out, m, label);
        add_row(out, m, &row);
    }
}

/* ==== Ends, heads, legend ===================================================================== */

/* A tap outside the layers, in each side: its verdict, or -1. */
static bool find_end(const map *m, q3_tap_id id, int cell[2])
{
    bool any = false;
    for (size_t s = 0; s < 2; s++) cell[s] = -1;
    for (size_t s = 0; s < m->sides; s++)
        for (size_t i = 0; i < m->side[s]->count; i++)
            if (m->side[s]->entries[i].id == id) {
                cell[s] = (int)m->side[s]->entries[i].f.verdict;
                any = true;
            }
    return any;
}

/* What stands before the layers or behind them, on one line. */
static void add_ends(q3_text *out, const map *m, q3_tap_place place, const char *label)
{
    bool any = false;
    int cell[2];
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT; id++) {
        if (q3_tap_info(id)->place != place || !find_end(m, id, cell)) continue;
        if (any)
            q3_report_pad(out, 3);
        else
            add_label(out, m, label);
        any = true;
        add_cell(out, m, cell);
        q3_text_add(out, " ");
        q3_text_add(out, q3_tap_info(id)->label);
    }
    if (any) q3_text_add(out, "\n");
}

/* The names of the groups, each over its first column, and the heads of the columns. */
static void add_heads(q3_text *out, const map *m)
{
    static const char *const names[] = {
        [Q3_GROUP_NONE] = "",
        [Q3_GROUP_ATTENTION] = "attention",
        [Q3_GROUP_ROUTER] = "router",
        [Q3_GROUP_MLP] = "experts",
    };
    size_t at = 0, written = 0;
    q3_tap_group group = Q3_GROUP_NONE;
    add_label(out, m, "");
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!is_column(c)) continue;
        if (q3_tap_info(c)->group != group) {
            group = q3_tap_info(c)->group;
            q3_report_pad(out, at - written);
            q3_text_add(out, names[group]);
            written = at + strlen(names[group]);
        }
        at += width_of(m, c) + 1;
    }
    q3_text_add(out, "\n");
    add_label(out, m, "layer");
    size_t gap = 0;
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!is_column(c)) continue;
        q3_report_pad(out, gap);
        q3_text_add(out, head_of(c));
        gap = width_of(m, c) - strlen(head_of(c)) + 1;
    }
    q3_text_add(out, "\n");
}

/* The letters of the verdicts, and the heads that are no names. */
static void add_legend(q3_text *out, const map *m, bool layers)
{
    for (q3_verdict v = 0; v < Q3_VERDICT_COUNT; v++) {
        q3_text_add(out, v == 0 ? "\n" : "  ");
        add_letter(out, v, m->colour);
        q3_text_add(out, " ");
        q3_text_add(out, q3_verdict_name(v));
    }
    q3_text_add(out, "\n");
    if (m->sides > 1) q3_text_add(out, "of each two signs the first is A's and the second B's\n");
    if (layers)
        q3_text_add(out, "qn kn: q_norm, k_norm  qr kr: q_rope, k_rope  qk: scores  p: probs  "
                         "pv: o_proj.input  res: residual sum\n"
                         "rout: gate  rp: router_probs  ids w: topk_indices, topk_weights  "
                         "mul: down_proj.input\n");
}

void q3_report_add_map(q3_text *out, const q3_report *r, bool colour)
{
    map m = {{r, r->second}, r->second != NULL ? 2 : 1, sizeof "layer" - 1, colour};
    size_t last = 0;
    char label[48];
    bool layers = false, taps = false;
    for (size_t s = 0; s < m.sides; s++)
        for (size_t i = 0; i < m.side[s]->count; i++) {
            const report_entry *e = &m.side[s]->entries[i];
            taps = taps || e->id != Q3_TAP_COUNT;
            if (!in_layer(e)) continue;
            layers = true;
            if (e->f.layer > last) last = e->f.layer;
        }
    if (!taps) return;
    snprintf(label, sizeof label, "%zu-%zu", last, last);
    if (strlen(label) > m.label) m.label = strlen(label);
    q3_text_add(out, "\n");
    add_ends(out, &m, Q3_PLACE_FRONT, "front");
    if (layers) add_heads(out, &m);
    add_rows(out, &m);
    add_ends(out, &m, Q3_PLACE_HEAD, "end");
    add_legend(out, &m, layers);
}
