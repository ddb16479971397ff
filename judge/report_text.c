/* report_text.c - a report as the text that check, diff and report print. */
#include "host/json.h"
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 110  /* columns of a line, names and paths aside */
#define INDENT 12

/* ==== Pieces =================================================================================== */

static void pad(q3_text *out, size_t count)
{
    while (count-- > 0) q3_text_add(out, " ");
}

static void add_number(q3_text *out, const char *before, uint64_t value)
{
    q3_text_add(out, before);
    q3_text_uint(out, value);
}

/* One character of a text that may come from a file, as columns of a terminal: what would steer it becomes '?'.
 * Returns its bytes. */
static size_t add_character(q3_text *out, const char *text)
{
    char piece[8] = {0};
    uint32_t code;
    size_t length = q3_utf8_decode((const uint8_t *)text, strlen(text), &code);
    bool control = length == 0 || code < 0x20 || (code >= 0x7F && code < 0xA0);
    memcpy(piece, control ? "?" : text, control ? 1 : length);
    q3_text_add(out, piece);
    return length > 0 ? length : 1;
}

static void add_clean(q3_text *out, const char *text)
{
    while (*text != 0) text += add_character(out, text);
}

static size_t columns_of(const char *word, const char **end)
{
    size_t columns = 0;
    for (; *word != 0 && *word != ' '; word++) columns += ((unsigned char)*word & 0xC0) != 0x80;
    *end = word;
    return columns;
}

/* A line of words, broken before WIDTH; it begins in column INDENT, and so do the lines that follow. Frees it. */
static void add_words(q3_text *out, q3_text *words)
{
    const char *p = words->data != NULL ? words->data : "", *end;
    size_t column = INDENT;
    if (words->failed) out->failed = true;
    while (*p != 0) {
        size_t columns = columns_of(p, &end);
        if (column > INDENT && column + 1 + columns > WIDTH) {
            q3_text_add(out, "\n");
            pad(out, INDENT);
            column = INDENT;
        } else if (column > INDENT) {
            q3_text_add(out, " ");
            column++;
        }
        while (p < end) p += add_character(out, p);
        column += columns;
        while (*p == ' ') p++;
    }
    q3_text_add(out, "\n");
    free(words->data);
}

static void add_indented(q3_text *out, q3_text *words)
{
    pad(out, INDENT);
    add_words(out, words);
}

static void paint(q3_text *out, const char *text, q3_verdict v, bool colour)
{
    static const char *const colours[Q3_VERDICT_COUNT] = {
        [Q3_VERDICT_EXACT] = "32", [Q3_VERDICT_WITHIN] = "32", [Q3_VERDICT_ROUNDING] = "33", [Q3_VERDICT_NEAR_TIE] = "36",
        [Q3_VERDICT_DIFFERS] = "1;37;41", [Q3_VERDICT_NON_FINITE] = "1;37;41", [Q3_VERDICT_MISSING] = "2",
        [Q3_VERDICT_SHAPE] = "1;37;41", [Q3_VERDICT_UNJUDGED] = "2",
    };
    if (colour) q3_text_add(out, "\033["), q3_text_add(out, colours[v]), q3_text_add(out, "m");
    q3_text_add(out, text);
    if (colour) q3_text_add(out, "\033[0m");
}

static void add_glyph(q3_text *out, q3_verdict v, bool colour)
{
    const char glyph[2] = {q3_report_glyphs[v], 0};
    paint(out, glyph, v, colour);
}

/* ==== Header =================================================================================== */

/* "layers   not judged: 0 1 24-46" */
static void add_not_judged(q3_text *out, const q3_report *r)
{
    bool any = false;
    for (size_t i = 0; i < r->run.layers; i++) {
        size_t end = i;
        while (end < r->run.layers && !r->covered[end]) end++;
        if (end == i) continue;
        if (!any) q3_text_add(out, "layers   not judged:");
        any = true;
        add_number(out, " ", i);
        if (end - i <= 3) continue;
        add_number(out, "-", end - 1);
        i = end - 1;
    }
    q3_text_add(out, any ? "\n" : "");
}

static void add_header(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    bool diff = run->layers == 0;
    q3_text_add(out, diff ? "first    " : "model    ");
    add_clean(out, run->model);
    q3_text_add(out, diff ? "\nsecond   " : "\nfile     ");
    add_clean(out, run->file);
    q3_text_add(out, "\n");
    if (diff) return;
    q3_text_add(out, "run      ");
    q3_text_add(out, q3_dtype_name(run->dtype));
    add_number(out, ", ", run->T);
    add_number(out, run->T == 1 ? " token from position " : " tokens from position ", run->start);
    q3_text_add(out, run->free_running ? ", free-running" : ", teacher-forced");
    q3_text_add(out, run->strict ? ", strict" : "");
    if (run->accumulate[0] != 0) q3_text_add(out, ", --accumulate "), add_clean(out, run->accumulate);
    if (run->kv[0] != 0) q3_text_add(out, ", --kv "), add_clean(out, run->kv);
    q3_text_add(out, "\n");
    add_not_judged(out, r);
    if (run->unknown > 0) {
        add_number(out, "ignored  ", run->unknown);
        q3_text_add(out, run->unknown == 1 ? " tensor that is no tap: "
                                           : " tensors that are no taps, the first: ");
        add_clean(out, run->unknown_name != NULL ? run->unknown_name : "");
        q3_text_add(out, "\n");
    }
}

/* ==== Map ====================================================================================== */

/* Dense and sparse layers share the columns of the experts. */
static const struct { q3_tap_id id, dense; const char *head, *group; } columns[] = {
    {Q3_TAP_INPUT_LAYERNORM, Q3_TAP_COUNT, "norm", "attention"}, {Q3_TAP_Q_PROJ, Q3_TAP_COUNT, "q", NULL},
    {Q3_TAP_K_PROJ, Q3_TAP_COUNT, "k", NULL}, {Q3_TAP_V_PROJ, Q3_TAP_COUNT, "v", NULL},
    {Q3_TAP_Q_NORM, Q3_TAP_COUNT, "qn", NULL}, {Q3_TAP_K_NORM, Q3_TAP_COUNT, "kn", NULL},
    {Q3_TAP_Q_ROPE, Q3_TAP_COUNT, "qr", NULL}, {Q3_TAP_K_ROPE, Q3_TAP_COUNT, "kr", NULL},
    {Q3_TAP_SCORES, Q3_TAP_COUNT, "qk", NULL}, {Q3_TAP_PROBS, Q3_TAP_COUNT, "p", NULL},
    {Q3_TAP_O_PROJ_INPUT, Q3_TAP_COUNT, "pv", NULL}, {Q3_TAP_O_PROJ, Q3_TAP_COUNT, "o", NULL},
    {Q3_TAP_POST_ATTENTION_INPUT, Q3_TAP_COUNT, "res", NULL},
    {Q3_TAP_POST_ATTENTION_LAYERNORM, Q3_TAP_COUNT, "norm", "router"}, {Q3_TAP_GATE, Q3_TAP_COUNT, "rout", NULL},
    {Q3_TAP_ROUTER_PROBS, Q3_TAP_COUNT, "rp", NULL}, {Q3_TAP_TOPK_INDICES, Q3_TAP_COUNT, "ids", NULL},
    {Q3_TAP_TOPK_WEIGHTS, Q3_TAP_COUNT, "w", NULL},
    {Q3_TAP_EXPERTS_GATE_PROJ, Q3_TAP_DENSE_GATE_PROJ, "gate", "experts"},
    {Q3_TAP_EXPERTS_UP_PROJ, Q3_TAP_DENSE_UP_PROJ, "up", NULL},
    {Q3_TAP_EXPERTS_ACT_FN, Q3_TAP_DENSE_ACT_FN, "act", NULL},
    {Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, Q3_TAP_DENSE_DOWN_PROJ_INPUT, "mul", NULL},
    {Q3_TAP_EXPERTS_DOWN_PROJ, Q3_TAP_COUNT, "down", NULL}, {Q3_TAP_MLP, Q3_TAP_COUNT, "mlp", NULL},
    {Q3_TAP_LAYER, Q3_TAP_COUNT, "out", NULL},
};
#define COLUMNS (sizeof columns / sizeof columns[0])

/* A row of the map: a verdict for each column, or -1. */
typedef struct map_row {
    int cell[COLUMNS];
} map_row;

static bool in_layer(const report_entry *e)
{
    return e->known && e->rank != 0 && e->rank != SIZE_MAX - 1;
}

/* The row of the layer that entry *i begins; *i goes on to the next layer's. */
static map_row read_row(const q3_report *r, size_t *i)
{
    map_row row;
    size_t rank = r->entries[*i].rank;
    for (size_t c = 0; c < COLUMNS; c++) row.cell[c] = -1;
    for (; *i < r->count && r->entries[*i].rank == rank; ++*i)
        for (size_t c = 0; c < COLUMNS; c++)
            if (columns[c].id == r->entries[*i].id || columns[c].dense == r->entries[*i].id)
                row.cell[c] = (int)r->entries[*i].f.verdict;
    return row;
}

static void add_label(q3_text *out, const char *text, size_t width)
{
    size_t length = strlen(text);
    pad(out, length < width ? width - length : 0);
    q3_text_add(out, text);
    pad(out, 2);
}

static void add_row(q3_text *out, const map_row *row, bool colour)
{
    size_t gap = 0;
    for (size_t c = 0; c < COLUMNS; c++) {
        if (row->cell[c] >= 0) {
            pad(out, gap);
            add_glyph(out, (q3_verdict)row->cell[c], colour);
            gap = strlen(columns[c].head);
        } else {
            gap += 1 + strlen(columns[c].head);
        }
    }
    q3_text_add(out, "\n");
}

/* Three and more layers that look the same stand in one row. */
static void add_rows(q3_text *out, const q3_report *r, size_t width, bool colour)
{
    char label[48];
    for (size_t i = 0; i < r->count;) {
        if (!in_layer(&r->entries[i])) {
            i++;
            continue;
        }
        size_t first = r->entries[i].rank - 1, last = first;
        map_row row = read_row(r, &i);
        for (size_t ahead = i; ahead < r->count && in_layer(&r->entries[ahead]);) {
            size_t layer = r->entries[ahead].rank - 1;
            map_row next = read_row(r, &ahead);
            if (layer != last + 1 || memcmp(&next, &row, sizeof row) != 0) break;
            last = layer;
        }
        bool folded = last >= first + 2;
        while (folded && i < r->count && in_layer(&r->entries[i]) && r->entries[i].rank <= last + 1) i++;
        if (folded)
            snprintf(label, sizeof label, "%zu-%zu", first, last);
        else
            snprintf(label, sizeof label, "%zu", first);
        add_label(out, label, width);
        add_row(out, &row, colour);
    }
}

/* What stands before the layers (rank 0) or behind them, on one line. */
static void add_ends(q3_text *out, const q3_report *r, size_t rank, const char *label, size_t width, bool colour)
{
    char name[Q3_TAP_NAME_SIZE];
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (!e->known || e->rank != rank) continue;
        if (any)
            pad(out, 3);
        else
            add_label(out, label, width);
        any = true;
        add_glyph(out, e->f.verdict, colour);
        q3_report_operator(name, e->id);
        q3_text_add(out, " ");
        q3_text_add(out, name);
    }
    if (any) q3_text_add(out, "\n");
}

static void add_heads(q3_text *out, size_t width)
{
    size_t at = 0, written = 0;
    add_label(out, "", width);
    for (size_t c = 0; c < COLUMNS; c++) {
        if (columns[c].group != NULL) {
            pad(out, at - written);
            q3_text_add(out, columns[c].group);
            written = at + strlen(columns[c].group);
        }
        at += strlen(columns[c].head) + 1;
    }
    q3_text_add(out, "\n");
    add_label(out, "layer", width);
    for (size_t c = 0; c < COLUMNS; c++) {
        q3_text_add(out, c > 0 ? " " : "");
        q3_text_add(out, columns[c].head);
    }
    q3_text_add(out, "\n");
}

static void add_map(q3_text *out, const q3_report *r, bool colour)
{
    size_t last = 0, width = 5;
    char label[48];
    bool layers = false, taps = false;
    for (size_t i = 0; i < r->count; i++) {
        taps = taps || r->entries[i].known;
        if (!in_layer(&r->entries[i])) continue;
        layers = true;
        last = r->entries[i].rank - 1;
    }
    if (!taps) return;
    snprintf(label, sizeof label, "%zu-%zu", last, last);
    if (strlen(label) > width) width = strlen(label);
    q3_text_add(out, "\n");
    add_ends(out, r, 0, "front", width, colour);
    if (layers) add_heads(out, width);
    add_rows(out, r, width, colour);
    add_ends(out, r, SIZE_MAX - 1, "end", width, colour);
    for (int v = 0; v < Q3_VERDICT_COUNT; v++) {
        q3_text_add(out, v == 0 ? "\n" : "  ");
        add_glyph(out, (q3_verdict)v, colour);
        q3_text_add(out, " ");
        q3_text_add(out, q3_verdict_name(v));
    }
    q3_text_add(out, "\n");
    if (layers)
        q3_text_add(out, "qn kn: q_norm, k_norm  qr kr: q_rope, k_rope  qk: scores  p: probs  pv: o_proj.input  "
                         "res: residual sum\nrout: gate  rp: router_probs  ids w: topk_indices, topk_weights  "
                         "mul: down_proj.input\n");
}

/* ==== Table ==================================================================================== */

static void add_share(q3_text *out, double part, double all)
{
    q3_text_digits(out, all > 0 ? 100 * part / all : 0, 3);
    q3_text_add(out, " %");
}

static void add_bad(q3_text *out, const report_entry *e, bool ids)
{
    const q3_finding *f = &e->f;
    q3_text line = {0};
    q3_text_add(&line, "first: ");
    q3_report_place(&line, e, f->bad_at);
    q3_text_add(&line, ": ours "), q3_text_digits(&line, f->bad_ours, 3);
    q3_text_add(&line, ", theirs "), q3_text_digits(&line, f->bad_theirs, 3);
    bool finite = f->bad_ours - f->bad_ours == 0 && f->bad_theirs - f->bad_theirs == 0;
    if (finite && !ids) {
        q3_text_add(&line, ", "), q3_text_digits(&line, f->bad_ulp, 3);
        q3_text_add(&line, " ulp apart");
    }
    if (finite && !ids && f->judged > 0) {
        q3_text_add(&line, ", bound "), q3_text_digits(&line, f->bad_bound_ulp, 3);
        q3_text_add(&line, " ulp");
    }
    add_indented(out, &line);
}

static void add_router(q3_text *out, const q3_finding *f)
{
    q3_text line = {0};
    double least = 1;
    for (size_t i = 0; i < f->margin_bins; i++)
        if ((double)f->margins[i] < least) least = (double)f->margins[i];
    add_number(&line, "tokens: ", f->wrong_sets);
    add_number(&line, " with wrong experts, ", f->near_ties);
    add_number(&line, " near-ties, ", f->other_order);
    q3_text_add(&line, " in another order");
    if (f->margin_bins > 0) q3_text_add(&line, "; smallest margin "), q3_text_digits(&line, least, 3);
    add_indented(out, &line);
}

static void add_figures(q3_text *out, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text most = {0}, whole = {0}, share = {0};
    q3_text_add(&most, "most: "), q3_text_digits(&most, f->max_ulp, 3);
    q3_text_add(&most, " ulp at "), q3_report_place(&most, e, f->max_at);
    if (f->judged > 0) {
        q3_text_add(&most, "; up to "), q3_text_digits(&most, f->max_bound_ratio, 3);
        q3_text_add(&most, " times the bound");
    }
    add_indented(out, &most);
    q3_text_add(&whole, "relative L2 "), q3_text_digits(&whole, f->relative_l2, 3);
    q3_text_add(&whole, ", gain "), q3_text_digits(&whole, f->gain, 6);
    q3_text_add(&whole, ", offset "), q3_text_digits(&whole, f->offset, 3);
    add_number(&whole, "; worst token ", f->worst_token);
    add_number(&whole, ", worst channel ", f->worst_channel);
    add_indented(out, &whole);
    q3_text_add(&share, "differ: "), add_share(&share, (double)f->differ, (double)f->elements);
    if (f->judged > 0) {
        q3_text_add(&share, ", at most "), add_share(&share, f->expected, (double)f->judged);
        q3_text_add(&share, " expected");
    }
    q3_text_add(&share, "; by more than 1 ulp: "), add_share(&share, (double)f->over_1_ulp, (double)f->elements);
    add_indented(out, &share);
}

static void add_fact(q3_text *out, const char *label, const char *text)
{
    q3_text line = {0};
    if (text[0] == 0) return;
    q3_text_add(&line, label);
    q3_text_add(&line, text);
    add_indented(out, &line);
}

static void add_entry(q3_text *out, const report_entry *e, bool colour)
{
    const q3_finding *f = &e->f;
    bool ids = e->known && e->id == Q3_TAP_TOPK_INDICES;
    q3_text between = {0};
    paint(out, q3_verdict_name(f->verdict), f->verdict, colour);
    pad(out, INDENT - strlen(q3_verdict_name(f->verdict)));
    add_clean(out, f->name);
    if (f->given_as != NULL && strcmp(f->given_as, f->name) != 0) {
        q3_text_add(out, " (as ");
        add_clean(out, f->given_as);
        q3_text_add(out, ")");
    }
    q3_text_add(out, "\n");
    add_fact(out, "", f->reason);
    add_fact(out, "read as: ", f->note);
    if (f->verdict == Q3_VERDICT_MISSING || f->verdict == Q3_VERDICT_SHAPE) return;
    if (f->has_bad) add_bad(out, e, ids);
    if (ids)
        add_router(out, f);
    else if (f->differ > 0)
        add_figures(out, e);
    if (f->between_count > 0 && f->verdict != Q3_VERDICT_UNJUDGED) {
        q3_text_add(&between, "judged together with: ");
        q3_report_operators(&between, f);
        add_indented(out, &between);
    }
    add_fact(out, "looks like ", f->looks_like);
}

/* What is not as it should be; of many of one kind of tap the first three. */
static void add_table(q3_text *out, const q3_report *r, bool all, bool colour)
{
    size_t shown[Q3_TAP_COUNT + 1][Q3_VERDICT_COUNT] = {{0}}, left = 0;
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const q3_finding *f = &r->entries[i].f;
        bool quiet = f->verdict == Q3_VERDICT_EXACT || f->verdict == Q3_VERDICT_WITHIN ||
                     (f->verdict == Q3_VERDICT_MISSING && r->run.layers != 0);
        if (!all && quiet) continue;
        if (!all && r->entries[i].known && shown[r->entries[i].id][f->verdict]++ >= 3) {
            left++;
            continue;
        }
        q3_text_add(out, any ? "" : "\n");
        any = true;
        add_entry(out, &r->entries[i], colour);
    }
    if (left == 0) return;
    add_number(out, "and ", left);
    q3_text_add(out, " more of the same taps in later layers (--all shows them)\n");
}

/* ==== Totals =================================================================================== */

static void add_totals(q3_text *out, const q3_report *r)
{
    size_t counts[Q3_VERDICT_COUNT] = {0};
    bool first = true;
    for (size_t i = 0; i < r->count; i++) counts[r->entries[i].f.verdict]++;
    q3_text_add(out, "\n");
    for (size_t v = 0; v < Q3_VERDICT_COUNT; v++) {
        if (counts[v] == 0) continue;
        q3_text_add(out, first ? "" : ", ");
        q3_text_uint(out, counts[v]);
        q3_text_add(out, " ");
        q3_text_add(out, q3_verdict_name(v));
        first = false;
    }
    q3_text_add(out, first ? "no tensors\n" : "\n");
}

/* The taps between the last given tensor and the unjudged ones. */
static void add_missing_taps(q3_text *out, const q3_report *r)
{
    q3_layer_tap taps[Q3_TAP_COUNT];
    q3_finding all = {.between = taps};
    bool wanted[Q3_TAP_COUNT] = {false};
    size_t unjudged = 0;
    q3_text line = {0};
    for (size_t i = 0; i < r->count; i++) {
        const q3_finding *f = &r->entries[i].f;
        if (f->verdict != Q3_VERDICT_UNJUDGED) continue;
        unjudged++;
        for (size_t k = 0; k < f->between_count; k++) wanted[f->between[k].id] = true;
    }
    for (int id = 0; id < Q3_TAP_COUNT; id++)
        if (wanted[id]) taps[all.between_count++] = (q3_layer_tap){(q3_tap_id)id, 0};
    if (all.between_count == 0) return;
    q3_text_add(out, "unjudged    ");
    q3_text_uint(&line, unjudged);
    q3_text_add(&line, unjudged == 1 ? " tensor; to judge it, record some of: "
                                     : " tensors; to judge them, record some of: ");
    q3_report_operators(&line, &all);
    add_words(out, &line);
}

q3_status q3_report_text(const q3_report *r, unsigned flags, char **text, size_t *length, q3_error *error)
{
    q3_text out = {0}, sentence = {0};
    bool all = (flags & Q3_REPORT_ALL) != 0, colour = (flags & Q3_REPORT_COLOUR) != 0;
    q3_outcome outcome = q3_report_outcome(r);
    add_header(&out, r);
    add_map(&out, r, colour);
    add_table(&out, r, all, colour);
    add_totals(&out, r);
    add_missing_taps(&out, r);
    q3_report_sentence(&sentence, r);
    if (sentence.data != NULL) add_clean(&out, sentence.data);
    out.failed = out.failed || sentence.failed;
    free(sentence.data);
    bool differs = outcome == Q3_OUTCOME_DIFFERS;
    q3_text_add(&out, differs ? "\ndiffers: " : outcome == Q3_OUTCOME_AGREES ? "\nagrees" : "\ncould not judge");
    if (differs) add_clean(&out, q3_report_decisive(r)->name);
    q3_text_add(&out, "\n");
    return q3_report_give(&out, text, length, r, error);
}
