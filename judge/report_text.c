/* SPDX-License-Identifier: MIT */
/* report_text.c - a report as the text that check, diff and report print. */
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 110  /* columns of a line, names and paths aside */
#define INDENT 12

/* ==== Pieces ================================================================================== */

static void pad(q3_text *out, size_t count)
{
    while (count-- > 0) q3_text_add(out, " ");
}

static void add_number(q3_text *out, const char *before, double value, int digits)
{
    q3_text_add(out, before);
    q3_text_digits(out, value, digits);
}

/* A text that a summary made, in which names from files may stand: as it may be shown. Frees it. */
static void add_summary(q3_text *out, q3_text *plain)
{
    if (plain->failed) out->failed = true;
    if (plain->data != NULL) q3_text_clean(out, plain->data);
    free(plain->data);
}

/* Of the word up to the next blank: a character each. */
static size_t columns_of(const char *word, const char **end)
{
    size_t columns = 0;
    for (; *word != 0 && *word != ' '; word++) columns += ((unsigned char)*word & 0xC0) != 0x80;
    *end = word;
    return columns;
}

/* A line of words, broken before WIDTH; it begins in column INDENT, and so do the lines that
 * follow. Frees it. */
static void add_words(q3_text *out, q3_text *words)
{
    const char *p = words->data != NULL ? words->data : "", *end;
    char shown[5];
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
        while (p < end) {
            p += q3_clean(shown, p);
            q3_text_add(out, shown);
        }
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
    paint(out, letter, v, colour);
}

/* ==== Header ================================================================================== */

/* "layers   not judged: 0 1 24-46": of more than three in a row the ends. */
static void add_not_judged(q3_text *out, const q3_report *r)
{
    bool any = false;
    for (size_t i = 0; i < r->run.layers; i++) {
        size_t end = i;
        while (end < r->run.layers && !r->covered[end]) end++;
        if (end == i) continue;
        if (!any) q3_text_add(out, "layers   not judged:");
        any = true;
        q3_text_count(out, " ", i);
        if (end - i <= 3) continue;
        q3_text_count(out, "-", end - 1);
        i = end - 1;
    }
    q3_text_add(out, any ? "\n" : "");
}

static void add_header(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    bool diff = run->layers == 0;
    q3_text options = {0}, unknown = {0};
    q3_text_add(out, diff ? "first    " : "model    ");
    q3_text_clean(out, run->model);
    q3_text_add(out, diff ? "\nsecond   " : "\nfile     ");
    q3_text_clean(out, run->file);
    q3_text_add(out, "\n");
    if (diff) return;
    q3_text_add(out, "run      ");
    q3_text_add(out, q3_dtype_name(run->dtype));
    q3_report_add_count(out, ", ", run->T, run->T == 1 ? " token " : " tokens ");
    q3_report_add_options(&options, run);
    add_summary(out, &options);
    q3_text_add(out, "\n");
    add_not_judged(out, r);
    if (run->unknown == 0) return;
    q3_text_add(out, "ignored  ");
    q3_report_add_unknown(&unknown, run);
    add_summary(out, &unknown);
    q3_text_add(out, "\n");
}

/* ==== Map ===================================================================================== */

/* A column for each tap of a layer (q3_tap_column: dense and sparse layers share those of the
 * experts), as wide as its head: the tap's code. */
static bool is_column(q3_tap_id id)
{
    return q3_tap_in_layer(id) && q3_tap_column(id) == id;
}

static const char *head_of(q3_tap_id id)
{
    return q3_tap_info(id)->code;
}

/* A row of the map: a verdict for each column, or -1. */
typedef struct map_row {
    int cell[Q3_TAP_COUNT];
} map_row;

static bool in_layer(const report_entry *e)
{
    return q3_tap_in_layer(e->id);
}

/* The row of the layer that entry *i begins; *i goes on to what follows the layer. */
static map_row read_row(const q3_report *r, size_t *i)
{
    map_row row;
    size_t layer = r->entries[*i].f.layer;
    for (size_t c = 0; c < Q3_TAP_COUNT; c++) row.cell[c] = -1;
    for (; *i < r->count; ++*i) {
        const report_entry *e = &r->entries[*i];
        if (!in_layer(e) || e->f.layer != layer) break;
        row.cell[q3_tap_column(e->id)] = (int)e->f.verdict;
    }
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
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!is_column(c)) continue;
        if (row->cell[c] >= 0) {
            pad(out, gap);
            add_letter(out, (q3_verdict)row->cell[c], colour);
            gap = strlen(head_of(c));
        } else {
            gap += 1 + strlen(head_of(c));
        }
    }
    q3_text_add(out, "\n");
}

static bool in_layer_up_to(const q3_report *r, size_t i, size_t last)
{
    return i < r->count && in_layer(&r->entries[i]) && r->entries[i].f.layer <= last;
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
        size_t first = r->entries[i].f.layer, last = first;
        map_row row = read_row(r, &i);
        for (size_t ahead = i; ahead < r->count && in_layer(&r->entries[ahead]);) {
            size_t layer = r->entries[ahead].f.layer;
            map_row next = read_row(r, &ahead);
            if (layer != last + 1 || memcmp(&next, &row, sizeof row) != 0) break;
            last = layer;
        }
        bool folded = last >= first + 2;
        while (folded && in_layer_up_to(r, i, last)) i++;
        if (folded)
            snprintf(label, sizeof label, "%zu-%zu", first, last);
        else
            snprintf(label, sizeof label, "%zu", first);
        add_label(out, label, width);
        add_row(out, &row, colour);
    }
}

/* What stands before the layers or behind them, on one line. */
static void add_ends(q3_text *out, const q3_report *r, q3_tap_place place, const char *label,
                     size_t width, bool colour)
{
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (q3_tap_info(e->id)->place != place) continue;
        if (any)
            pad(out, 3);
        else
            add_label(out, label, width);
        any = true;
        add_letter(out, e->f.verdict, colour);
        q3_text_add(out, " ");
        q3_text_add(out, q3_tap_info(e->id)->label);
    }
    if (any) q3_text_add(out, "\n");
}

/* The names of the groups, each over its first column, and the heads of the columns. */
static void add_heads(q3_text *out, size_t width)
{
    static const char *const names[] = {
        [Q3_GROUP_NONE] = "",
        [Q3_GROUP_ATTENTION] = "attention",
        [Q3_GROUP_ROUTER] = "router",
        [Q3_GROUP_MLP] = "experts",
    };
    size_t at = 0, written = 0;
    q3_tap_group group = Q3_GROUP_NONE;
    add_label(out, "", width);
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!is_column(c)) continue;
        if (q3_tap_info(c)->group != group) {
            group = q3_tap_info(c)->group;
            pad(out, at - written);
            q3_text_add(out, names[group]);
            written = at + strlen(names[group]);
        }
        at += strlen(head_of(c)) + 1;
    }
    q3_text_add(out, "\n");
    add_label(out, "layer", width);
    at = 0;
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!is_column(c)) continue;
        q3_text_add(out, at++ > 0 ? " " : "");
        q3_text_add(out, head_of(c));
    }
    q3_text_add(out, "\n");
}

/* The letters of the verdicts, and the heads that are no names. */
static void add_legend(q3_text *out, bool layers, bool colour)
{
    for (q3_verdict v = 0; v < Q3_VERDICT_COUNT; v++) {
        q3_text_add(out, v == 0 ? "\n" : "  ");
        add_letter(out, v, colour);
        q3_text_add(out, " ");
        q3_text_add(out, q3_verdict_name(v));
    }
    q3_text_add(out, "\n");
    if (layers)
        q3_text_add(out, "qn kn: q_norm, k_norm  qr kr: q_rope, k_rope  qk: scores  p: probs  "
                         "pv: o_proj.input  res: residual sum\n"
                         "rout: gate  rp: router_probs  ids w: topk_indices, topk_weights  "
                         "mul: down_proj.input\n");
}

static void add_map(q3_text *out, const q3_report *r, bool colour)
{
    size_t last = 0, width = sizeof "layer" - 1;
    char label[48];
    bool layers = false, taps = false;
    for (size_t i = 0; i < r->count; i++) {
        taps = taps || r->entries[i].id != Q3_TAP_COUNT;
        if (!in_layer(&r->entries[i])) continue;
        layers = true;
        last = r->entries[i].f.layer;
    }
    if (!taps) return;
    snprintf(label, sizeof label, "%zu-%zu", last, last);
    if (strlen(label) > width) width = strlen(label);
    q3_text_add(out, "\n");
    add_ends(out, r, Q3_PLACE_FRONT, "front", width, colour);
    if (layers) add_heads(out, width);
    add_rows(out, r, width, colour);
    add_ends(out, r, Q3_PLACE_HEAD, "end", width, colour);
    add_legend(out, layers, colour);
}

/* ==== Table =================================================================================== */

static void add_share(q3_text *out, const char *before, double part, double all)
{
    add_number(out, before, all > 0 ? 100 * part / all : 0, 3);
    q3_text_add(out, " %");
}

/* The first element outside its bound. Of experts' ids an ulp says nothing. */
static void add_bad(q3_text *out, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text line = {0};
    bool ids = e->id == Q3_TAP_TOPK_INDICES;
    bool finite = f->bad_ours - f->bad_ours == 0 && f->bad_theirs - f->bad_theirs == 0;
    q3_text_add(&line, "first: ");
    q3_report_add_place(&line, e, f->bad_at);
    add_number(&line, ": ours ", f->bad_ours, 3);
    add_number(&line, ", theirs ", f->bad_theirs, 3);
    if (finite && !ids) {
        add_number(&line, ", ", f->bad_ulp, 3);
        q3_text_add(&line, " ulp apart");
    }
    if (finite && !ids && f->judged > 0) {
        add_number(&line, ", bound ", f->bad_bound_ulp, 3);
        q3_text_add(&line, " ulp");
    }
    add_indented(out, &line);
}

static void add_router(q3_text *out, const q3_finding *f)
{
    q3_text line = {0};
    double least = 1; /* probabilities differ by no more */
    for (size_t i = 0; i < f->margin_bins; i++)
        if ((double)f->margins[i] < least) least = (double)f->margins[i];
    q3_report_add_count(&line, "tokens: ", f->wrong_sets, " with wrong experts, ");
    q3_report_add_count(&line, "", f->near_ties, " near-ties, ");
    q3_report_add_count(&line, "", f->other_order, " in another order");
    if (f->margin_bins > 0) add_number(&line, "; smallest margin ", least, 3);
    add_indented(out, &line);
}

/* How much differs, on three lines: the largest difference, the whole tensor, how many elements. */
static void add_differences(q3_text *out, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text most = {0}, whole = {0}, share = {0};
    add_number(&most, "most: ", f->max_ulp, 3);
    q3_text_add(&most, " ulp at ");
    q3_report_add_place(&most, e, f->max_at);
    if (f->judged > 0) {
        add_number(&most, "; up to ", f->max_bound_ratio, 3);
        q3_text_add(&most, " times the bound");
    }
    add_indented(out, &most);
    add_number(&whole, "relative L2 ", f->relative_l2, 3);
    add_number(&whole, ", gain ", f->gain, 6);
    add_number(&whole, ", offset ", f->offset, 3);
    q3_text_count(&whole, "; worst token ", f->worst_token);
    q3_text_count(&whole, ", worst channel ", f->worst_channel);
    add_indented(out, &whole);
    add_share(&share, "differ: ", (double)f->differ, (double)f->elements);
    if (f->judged > 0) {
        add_share(&share, ", at most ", f->expected, (double)f->judged);
        q3_text_add(&share, " expected");
    }
    add_share(&share, "; by more than 1 ulp: ", (double)f->over_1_ulp, (double)f->elements);
    add_indented(out, &share);
}

/* A line, if there is something to say. */
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
    q3_text between = {0};
    paint(out, q3_verdict_name(f->verdict), f->verdict, colour);
    pad(out, INDENT - strlen(q3_verdict_name(f->verdict)));
    q3_text_clean(out, f->name);
    if (f->given_as != NULL && strcmp(f->given_as, f->name) != 0) {
        q3_text_add(out, " (as ");
        q3_text_clean(out, f->given_as);
        q3_text_add(out, ")");
    }
    q3_text_add(out, "\n");
    add_fact(out, "", f->reason);
    add_fact(out, "read as: ", f->note);
    if (f->verdict == Q3_VERDICT_MISSING || f->verdict == Q3_VERDICT_SHAPE) return;
    if (f->has_bad) add_bad(out, e);
    if (e->id == Q3_TAP_TOPK_INDICES)
        add_router(out, f);
    else if (f->differ > 0)
        add_differences(out, e);
    if (f->between_count > 0 && f->verdict != Q3_VERDICT_UNJUDGED) {
        q3_text_add(&between, "judged together with: ");
        q3_report_add_between(&between, f);
        add_indented(out, &between);
    }
    add_fact(out, "looks like ", f->looks_like);
}

/* What is not as it should be; of many of one kind of tap the first three. */
static void add_table(q3_text *out, const q3_report *r, bool all, bool colour)
{
    size_t shown[Q3_TAP_COUNT][Q3_VERDICT_COUNT] = {{0}}, left = 0;
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (!all && q3_report_is_quiet(r, &e->f)) continue;
        if (!all && e->id != Q3_TAP_COUNT && shown[e->id][e->f.verdict]++ >= 3) {
            left++;
            continue;
        }
        q3_text_add(out, any ? "" : "\n");
        any = true;
        add_entry(out, e, colour);
    }
    if (left > 0)
        q3_report_add_count(out, "and ", left,
                            " more of the same taps in later layers (--all shows them)\n");
}

/* ==== Totals ================================================================================== */

static void add_totals(q3_text *out, const q3_report *r)
{
    size_t counts[Q3_VERDICT_COUNT];
    q3_report_tally(r, counts);
    q3_text_add(out, "\n");
    const char *before = "";
    for (q3_verdict v = 0; v < Q3_VERDICT_COUNT; v++) {
        if (counts[v] == 0) continue;
        q3_report_add_count(out, before, counts[v], " ");
        q3_text_add(out, q3_verdict_name(v));
        before = ", ";
    }
    q3_text_add(out, r->count == 0 ? "no tensors\n" : "\n");
}

/* The taps between the last given tensor and the unjudged ones: those to record too. */
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
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT; id++)
        if (wanted[id]) taps[all.between_count++] = (q3_layer_tap){id, 0};
    if (all.between_count == 0) return;
    q3_text_add(out, "unjudged    ");
    q3_report_add_count(&line, "", unjudged,
                        unjudged == 1 ? " tensor; to judge it, record some of: "
                                      : " tensors; to judge them, record some of: ");
    q3_report_add_between(&line, &all);
    add_words(out, &line);
}

q3_status q3_report_text(const q3_report *r, unsigned flags, char **text, size_t *length,
                         q3_error *error)
{
    q3_text out = {0}, sentence = {0}, verdict = {0};
    bool all = (flags & Q3_REPORT_ALL) != 0, colour = (flags & Q3_REPORT_COLOUR) != 0;
    add_header(&out, r);
    add_map(&out, r, colour);
    add_table(&out, r, all, colour);
    add_totals(&out, r);
    add_missing_taps(&out, r);
    q3_report_add_sentence(&sentence, r);
    add_summary(&out, &sentence);
    q3_text_add(&out, "\n");
    q3_report_add_verdict(&verdict, r);
    add_summary(&out, &verdict);
    q3_text_add(&out, "\n");
    return q3_report_give(&out, text, length, r, error);
}
