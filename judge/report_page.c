/* SPDX-License-Identifier: MIT */
/* report_page.c - a report as one HTML page: no network, no other file. The top, the map and the
 * table are plain HTML; a small script (page.js) draws the figures of one tensor from the JSON
 * lines, which stand at the end of the page. */
#include "judge/report.h"

#include <stdlib.h>
#include <string.h>

#define CAUSES_SHOWN 20
#define LAYERS_SHOWN 12 /* of a row that stands for many */

/* ==== Pieces ================================================================================== */

static void add_lines(q3_text *out, const char *const *lines)
{
    for (; *lines != NULL; lines++) q3_text_add(out, *lines);
}

static void add_char(q3_text *out, char c)
{
    const char piece[2] = {c, 0};
    q3_text_add(out, piece);
}

/* Text from a file, in an element or between double quotes. */
static void add_escaped(q3_text *out, const char *text)
{
    for (; *text != 0; text++) {
        switch (*text) {
        case '&': q3_text_add(out, "&amp;"); break;
        case '<': q3_text_add(out, "&lt;"); break;
        case '>': q3_text_add(out, "&gt;"); break;
        case '"': q3_text_add(out, "&quot;"); break;
        default: add_char(out, *text);
        }
    }
}

/* The same of a text that a summary made; frees it. */
static void add_summary(q3_text *out, q3_text *plain)
{
    if (plain->failed) out->failed = true;
    if (plain->data != NULL) add_escaped(out, plain->data);
    free(plain->data);
}

/* The class of a cell's colour; within its bound in three shades. */
static const char *cell_class(q3_verdict v, double bound_ratio)
{
    if (v != Q3_VERDICT_WITHIN) return q3_verdict_name(v);
    return bound_ratio < 0.25 ? "w0" : bound_ratio < 0.5 ? "w1" : "w2";
}

/* A cell that is not to be chosen: in the legend and in the table. */
static void add_still_cell(q3_text *out, q3_verdict v, double bound_ratio)
{
    q3_text_add(out, "<span class=\"c ");
    q3_text_add(out, cell_class(v, bound_ratio));
    q3_text_add(out, "\">");
    add_char(out, q3_verdict_words[v].letter);
    q3_text_add(out, "</span>");
}

/* A side of the report, of which a page of two backends has two. */
typedef struct side {
    const q3_report *r;
    size_t base; /* of its lines in the page's data */
} side;

static uint64_t line_of(const side *s, const report_entry *e)
{
    return s->base + (uint64_t)(e - s->r->entries);
}

/* data-i: the line in the page's data. data-first: where the page begins to look. */
static void add_cell(q3_text *out, const side *s, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_report_add_count(out, "<button type=button data-i=", line_of(s, e), " class=\"c ");
    q3_text_add(out, cell_class(f->verdict, f->max_bound_ratio));
    q3_text_add(out, "\" aria-label=\"");
    add_escaped(out, f->name);
    q3_text_add(out, ": ");
    q3_text_add(out, q3_verdict_name(f->verdict));
    q3_text_add(out, e == s->r->first_bad ? "\" data-first>" : "\">");
    add_char(out, q3_verdict_words[f->verdict].letter);
    q3_text_add(out, "</button>");
}

/* ==== The top ================================================================================= */

static void add_term(q3_text *out, const char *term)
{
    q3_text_add(out, "\n<dt>");
    q3_text_add(out, term);
    q3_text_add(out, "<dd>");
}

static void add_not_judged(q3_text *out, const q3_report *r)
{
    bool any = false;
    for (size_t i = 0; i < r->run.layers; i++) {
        if (r->covered[i]) continue;
        if (!any) add_term(out, "not judged");
        q3_text_count(out, any ? " " : "layers ", i);
        any = true;
    }
}

static void add_run(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    bool diff = run->layers == 0;
    q3_text options = {0}, unknown = {0}, coverage = {0};
    q3_text_add(out, "<dl>");
    add_term(out, diff ? "first" : "model");
    add_escaped(out, run->model);
    if (r->fingerprint[0] != 0) {
        add_term(out, "weights");
        add_escaped(out, r->fingerprint);
    }
    add_term(out, diff ? "second" : "file");
    add_escaped(out, run->file);
    if (!diff) {
        add_term(out, "run");
        q3_text_add(out, q3_dtype_name(run->dtype));
        q3_report_add_count(out, ", ", run->T, " tokens ");
        q3_report_add_options(&options, run);
        add_summary(out, &options);
        add_term(out, "coverage");
        q3_report_add_coverage(&coverage, r);
        add_summary(out, &coverage);
    }
    if (run->dtype_note[0] != 0) {
        add_term(out, "dtype");
        add_escaped(out, run->dtype_note);
    }
    add_not_judged(out, r);
    if (run->unknown > 0) {
        add_term(out, "ignored");
        q3_report_add_unknown(&unknown, run);
        add_summary(out, &unknown);
    }
    for (size_t i = 0; i < run->unknown_count; i++) {
        q3_text_add(out, "<br>");
        add_escaped(out, run->unknowns[i].name);
        q3_text_add(out, " (the nearest known name: ");
        add_escaped(out, run->unknowns[i].nearest);
        q3_text_add(out, ")");
    }
    if (run->command[0] != 0) {
        add_term(out, "command");
        add_escaped(out, run->command);
        if (r->commands.count > 1)
            q3_report_add_count(out, " (and ", r->commands.count - 1, " more)");
    }
    if (run->version[0] != 0) {
        add_term(out, "version");
        q3_text_add(out, "qwen3moe ");
        add_escaped(out, run->version);
    }
    q3_text_add(out, "\n</dl>\n");
}

/* Where there are several mistakes: each, the gravest first. */
static void add_causes(q3_text *out, const q3_report *r)
{
    if (r->cause_count < 2) return;
    q3_report_add_count(out, "<p class=sentence>", r->cause_count,
                        " independent mistakes, the gravest first:</p>\n<ol class=causes>\n");
    for (size_t i = 0; i < r->cause_count && i < CAUSES_SHOWN; i++) {
        q3_text line = {0};
        q3_text_add(out, "<li>");
        q3_report_add_cause(&line, r, &r->causes[i]);
        add_summary(out, &line);
        q3_text_add(out, "\n");
    }
    q3_text_add(out, "</ol>\n");
}

/* Of two sides, both verdicts. */
static void add_verdict(q3_text *out, const q3_report *r)
{
    q3_text verdict = {0};
    if (r->second != NULL) q3_text_add(&verdict, "A ");
    q3_report_add_verdict(&verdict, r);
    if (r->second != NULL) {
        q3_text_add(&verdict, ", B ");
        q3_report_add_verdict(&verdict, r->second);
    }
    add_summary(out, &verdict);
}

/* Nothing is loaded from anywhere: the policy refuses what is not in the page. */
static void add_top(q3_text *out, const q3_report *r)
{
    static const char *const classes[] = {
        [Q3_OUTCOME_AGREES] = "agrees",
        [Q3_OUTCOME_DIFFERS] = "differs",
        [Q3_OUTCOME_UNJUDGED] = "unjudged",
    };
    q3_text_add(out, "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n"
                     "<meta name=viewport content=\"width=device-width,initial-scale=1\">\n"
                     "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';"
                     "style-src 'unsafe-inline';script-src 'unsafe-inline'\">\n"
                     "<title>qwen3moe: ");
    add_verdict(out, r);
    q3_text_add(out, "</title>\n<style>\n");
    add_lines(out, q3_page_style);
    q3_text_add(out, "</style></head>\n<body><main class=");
    q3_text_add(out, classes[q3_report_outcome(r)]);
    q3_text_add(out, ">\n<h1>");
    add_verdict(out, r);
    q3_text_add(out, "</h1>\n");
}

/* What is said of one side as a whole. */
static void add_words(q3_text *out, const q3_report *r)
{
    q3_text sentence = {0};
    if (r->cause_count < 2) {
        q3_text_add(out, "<p class=sentence>");
        q3_report_add_sentence(&sentence, r);
        add_summary(out, &sentence);
        q3_text_add(out, "</p>\n");
    }
    add_causes(out, r);
    add_run(out, r);
}

/* Of two sides, which one follows. */
static void add_title(q3_text *out, const side *s, const char *name, const char *what)
{
    q3_text_add(out, "<h2>");
    add_escaped(out, s->r->run.side);
    q3_text_add(out, s->r->run.side[0] != 0 && name[0] != 0 ? ": " : "");
    q3_text_add(out, name);
    q3_text_add(out, "</h2>\n");
    q3_text_add(out, what);
}

/* ==== The map ================================================================================= */

/* A column for each tap that some layer has. */
static void add_columns(q3_text *out, const bool used[Q3_TAP_COUNT])
{
    q3_text_add(out, "<thead><tr><th><span>layer</span>");
    for (q3_tap_id c = 0; c < Q3_TAP_COUNT; c++) {
        if (!used[c]) continue;
        q3_text_add(out, "<th scope=col><span>");
        q3_text_add(out, q3_tap_short_label(c));
        q3_text_add(out, "</span>");
    }
    q3_text_add(out, "</thead>\n<tbody>\n");
}

/* The row of the layer that entry i begins; returns the first entry behind it. */
static size_t add_layer(q3_text *out, const side *s, size_t i, const bool used[Q3_TAP_COUNT])
{
    const q3_report *r = s->r;
    const report_entry *cells[Q3_TAP_COUNT] = {NULL};
    size_t layer = r->entries[i].f.layer;
    for (; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (!q3_tap_in_layer(e->id) || e->f.layer != layer) break;
        cells[e->id] = e;
    }
    q3_text_count(out, "<tr><th scope=row>", layer);
    for (size_t c = 0; c < Q3_TAP_COUNT; c++) {
        if (!used[c]) continue;
        q3_text_add(out, "<td>");
        if (cells[c] != NULL) add_cell(out, s, cells[c]);
    }
    q3_text_add(out, "\n");
    return i;
}

static void add_layers(q3_text *out, const side *s)
{
    const q3_report *r = s->r;
    bool used[Q3_TAP_COUNT] = {false}, any = false;
    for (size_t i = 0; i < r->count; i++)
        if (q3_tap_in_layer(r->entries[i].id)) any = used[r->entries[i].id] = true;
    if (!any) return;
    q3_text_add(out, "<div class=\"scroll tall\"><table class=map>");
    add_columns(out, used);
    for (size_t i = 0; i < r->count;) {
        if (q3_tap_in_layer(r->entries[i].id))
            i = add_layer(out, s, i, used);
        else
            i++;
    }
    q3_text_add(out, "</tbody></table></div>\n");
}

/* What stands before the layers, behind them, or (Q3_PLACE_NONE) is no tap and has no name here. */
static void add_ends(q3_text *out, const side *s, q3_tap_place place)
{
    const q3_report *r = s->r;
    bool any = false, taps = place != Q3_PLACE_NONE;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (q3_tap_info(e->id)->place != place) continue;
        if (!any)
            q3_text_add(out, taps ? "<div class=ends>"
                                  : "<h2>Other tensors</h2>\n<div class=\"ends many\">");
        any = true;
        q3_text_add(out, "<span>");
        add_cell(out, s, e);
        if (taps) {
            q3_text_add(out, " ");
            q3_text_add(out, q3_tap_short_label(e->id));
        }
        q3_text_add(out, "</span>\n");
    }
    if (any) q3_text_add(out, "</div>\n");
}

static void add_legend(q3_text *out, const q3_report *r)
{
    size_t counts[Q3_VERDICT_COUNT];
    q3_report_tally(r, counts);
    q3_text_add(out, "<ul class=legend>\n");
    for (q3_verdict v = 0; v < Q3_VERDICT_COUNT; v++) {
        q3_text_add(out, "<li>");
        add_still_cell(out, v, 0.3);
        q3_report_add_count(out, "<span>", counts[v], " ");
        q3_text_add(out, q3_verdict_name(v));
        q3_text_add(out, ": ");
        q3_text_add(out, q3_verdict_words[v].meaning);
        q3_text_add(out, "</span>\n");
    }
    q3_text_add(out, "</ul>\n");
}

/* ==== The table =============================================================================== */

/* Whether two layers show the same: the same tap, verdict and cause. One row has them all. */
static bool alike(const report_entry *a, const report_entry *b)
{
    return a->id == b->id && q3_tap_in_layer(a->id) && a->f.verdict == b->f.verdict &&
           strcmp(a->f.cause, b->f.cause) == 0;
}

static bool has_row(const q3_report *r, const report_entry *e)
{
    for (const report_entry *k = r->entries; k < e && q3_tap_in_layer(e->id); k++)
        if (alike(k, e)) return true;
    return false;
}

/* "in 5 layers: 0, 1, 2, 3, 4", where there are several. */
static void add_alike(q3_text *out, const q3_report *r, const report_entry *e)
{
    const report_entry *end = r->entries + r->count;
    size_t count = 0, shown = 0;
    for (const report_entry *k = e; k < end; k++) count += alike(e, k);
    if (count < 2) return;
    q3_report_add_count(out, "<br>in ", count, " layers: ");
    for (const report_entry *k = e; k < end && shown < LAYERS_SHOWN; k++)
        if (alike(e, k)) q3_report_add_count(out, shown++ > 0 ? ", " : "", k->f.layer, "");
    q3_text_add(out, count > LAYERS_SHOWN ? ", ..." : "");
}

static void add_row(q3_text *out, const side *s, const report_entry *e)
{
    const q3_report *r = s->r;
    const q3_finding *f = &e->f;
    q3_text largest = {0}, looks = {0};
    q3_text_add(out, "<tr><td>");
    add_still_cell(out, f->verdict, f->max_bound_ratio);
    q3_text_add(out, " ");
    q3_text_add(out, q3_verdict_name(f->verdict));
    q3_report_add_count(out, "<td><button type=button class=name data-i=", line_of(s, e), ">");
    add_escaped(out, f->name);
    q3_text_add(out, "</button><td>");
    add_escaped(out, f->reason);
    if (f->looks_like[0] != 0) {
        q3_text_add(out, "<br>");
        q3_report_add_looks(&looks, f);
        add_summary(out, &looks);
    }
    add_alike(out, r, e);
    q3_text_add(out, "<td>");
    if (f->differ > 0 && f->max_ulp > 0) {
        q3_text_digits(&largest, f->max_ulp, 3);
        q3_text_add(&largest, " ulp at ");
        q3_report_add_place(&largest, r, e, f->max_at);
    }
    add_summary(out, &largest);
    q3_text_add(out, "\n");
}

/* What is neither exact nor within; what was not recorded stands in the map. */
static void add_table(q3_text *out, const side *s)
{
    const q3_report *r = s->r;
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        if (q3_report_is_quiet(r, &r->entries[i].f) || has_row(r, &r->entries[i])) continue;
        if (!any)
            add_title(out, s, "neither exact nor within",
                      "<div class=scroll><table class=table><thead><tr>"
                      "<th>verdict<th>tensor<th>why<th>largest difference</thead>\n<tbody>\n");
        any = true;
        add_row(out, s, &r->entries[i]);
    }
    q3_text_add(out, any ? "</tbody></table></div>\n" : "");
}

/* ==== The page ================================================================================ */

/* What the script asks of the run, the same whether the lines are those of one run or of many. The
 * tokens are written as the table's places write them; second: where side B's lines begin. */
static void add_run_data(q3_text *out, const q3_judged_run *run, size_t second)
{
    q3_text_add(out, "<script type=application/json id=run>{\"free\":");
    q3_text_add(out, run->free_running ? "1" : "0");
    q3_report_add_count(out, ",\"second\":", second, ",\"token_text\":[");
    for (size_t t = 0; t < run->token_text.count; t++) {
        q3_text shown = {0};
        q3_report_add_token(&shown, run->token_text.items[t]);
        if (t > 0) q3_text_add(out, ",");
        if (shown.failed) out->failed = true;
        if (shown.data != NULL) q3_text_string(out, shown.data, shown.size);
        free(shown.data);
    }
    q3_text_add(out, "]}</script>\n");
}

/* No "</script>" in the lines: report_lines.c escapes '<'. */
static void add_side_data(q3_text *out, const side *s)
{
    for (size_t i = 0; i < s->r->count; i++) {
        if (s->base + i > 0) q3_text_add(out, ",");
        q3_report_put_finding(out, &s->r->entries[i].f);
    }
}

/* The map of one side. */
static void add_map(q3_text *out, const side *s)
{
    add_ends(out, s, Q3_PLACE_FRONT);
    add_layers(out, s);
    add_ends(out, s, Q3_PLACE_HEAD);
    add_ends(out, s, Q3_PLACE_NONE);
}

q3_status q3_report_html(const q3_report *r, char **html, size_t *length, q3_error *error)
{
    static const char hint[] = "<p class=hint>Choose a cell to see its figures"
                               "<noscript> (needs JavaScript)</noscript>.</p>\n";
    q3_text out = {0};
    const side sides[2] = {{r, 0}, {r->second, r->count}};
    size_t count = r->second != NULL ? 2 : 1;
    add_top(&out, r);
    for (size_t i = 0; i < count; i++) {
        if (count > 1) add_title(&out, &sides[i], "", "");
        add_words(&out, sides[i].r);
    }
    q3_text_add(&out, "<div class=parts>\n<div>\n");
    for (size_t i = 0; i < count; i++) {
        add_title(&out, &sides[i], "Layers and operators", i == 0 ? hint : "");
        add_map(&out, &sides[i]);
        add_legend(&out, sides[i].r);
    }
    q3_text_add(&out, "<section id=heat hidden></section>\n<section id=drift hidden></section>\n"
                      "</div>\n<section id=detail aria-live=polite hidden></section>\n</div>\n");
    for (size_t i = 0; i < count; i++) add_table(&out, &sides[i]);
    q3_text_add(&out, "</main>\n");
    add_run_data(&out, &r->run, r->count);
    q3_text_add(&out, "<script type=application/json id=data>[\n");
    for (size_t i = 0; i < count; i++) add_side_data(&out, &sides[i]);
    q3_text_add(&out, "]</script>\n<script>\n");
    add_lines(&out, q3_page_script);
    q3_text_add(&out, "</script></body></html>\n");
    return q3_report_give(&out, html, length, r, error);
}
