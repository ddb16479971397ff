/* report_page.c - a report as one HTML page: no network, no other file. The top, the map and the table are plain HTML; a
 * small script draws the figures of one tensor from the JSON lines, which stand at the end of the page. */
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Pieces =================================================================================== */

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
        if (*text == '&')
            q3_text_add(out, "&amp;");
        else if (*text == '<')
            q3_text_add(out, "&lt;");
        else if (*text == '>')
            q3_text_add(out, "&gt;");
        else if (*text == '"')
            q3_text_add(out, "&quot;");
        else
            add_char(out, *text);
    }
}

/* What report.c writes as plain text. */
static void add_plain(q3_text *out, q3_text *plain)
{
    if (plain->failed) out->failed = true;
    if (plain->data != NULL) add_escaped(out, plain->data);
    free(plain->data);
}

static void add_count(q3_text *out, const char *before, uint64_t value, const char *after)
{
    q3_text_add(out, before);
    q3_text_uint(out, value);
    q3_text_add(out, after);
}

/* A tap's name without its layer, ".output", "self_attn." and "mlp.". */
static void short_name(char name[Q3_TAP_NAME_SIZE], q3_tap_id id)
{
    static const char *const fronts[] = {"model.layers.0.", "model.", "self_attn.", "mlp."};
    char full[Q3_TAP_NAME_SIZE];
    q3_tap_name(full, id, 0);
    char *start = full;
    for (size_t i = 0; i < sizeof fronts / sizeof fronts[0]; i++) {
        if (strncmp(start, fronts[i], strlen(fronts[i])) == 0) start += strlen(fronts[i]);
        char *end = strstr(start, ".output");
        if (end != NULL) *end = 0;
    }
    snprintf(name, Q3_TAP_NAME_SIZE, "%s", start);
}

/* The class of a cell's colour; within its bound in three shades. */
static const char *cell_class(const q3_finding *f)
{
    if (f->verdict != Q3_VERDICT_WITHIN) return q3_verdict_name(f->verdict);
    return f->max_bound_ratio < 0.25 ? "w0" : f->max_bound_ratio < 0.5 ? "w1" : "w2";
}

static void add_cell(q3_text *out, const q3_report *r, const report_entry *e)
{
    add_count(out, "<button type=button data-i=", (uint64_t)(e - r->entries), " class=\"c ");
    q3_text_add(out, cell_class(&e->f));
    q3_text_add(out, "\" aria-label=\"");
    add_escaped(out, e->f.name);
    q3_text_add(out, ": ");
    q3_text_add(out, q3_verdict_name(e->f.verdict));
    q3_text_add(out, e == q3_report_first_bad(r) ? "\" data-first>" : "\">");
    add_char(out, q3_report_glyphs[e->f.verdict]);
    q3_text_add(out, "</button>");
}

/* ==== The top ================================================================================== */

static void add_term(q3_text *out, const char *term)
{
    q3_text_add(out, "\n<dt>");
    q3_text_add(out, term);
    q3_text_add(out, "<dd>");
}

static void add_run(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    bool all = true;
    q3_text_add(out, "<dl>");
    add_term(out, run->layers > 0 ? "model" : "ours");
    add_escaped(out, run->model);
    add_term(out, run->layers > 0 ? "file" : "theirs");
    add_escaped(out, run->file);
    if (run->layers > 0) {
        add_term(out, "run");
        q3_text_add(out, q3_dtype_name(run->dtype));
        add_count(out, ", ", run->T, " tokens");
        add_count(out, " from position ", run->start, run->free_running ? ", free-running" : ", teacher-forced");
        q3_text_add(out, run->strict ? ", strict" : "");
        if (run->accumulate[0] != 0) q3_text_add(out, ", --accumulate "), add_escaped(out, run->accumulate);
        if (run->kv[0] != 0) q3_text_add(out, ", --kv "), add_escaped(out, run->kv);
    }
    for (size_t i = 0; i < run->layers; i++) {
        if (r->covered[i]) continue;
        if (all) add_term(out, "not judged");
        add_count(out, all ? "layers " : " ", i, "");
        all = false;
    }
    if (run->unknown > 0) {
        add_term(out, "ignored");
        add_count(out, "", run->unknown,
                  run->unknown == 1 ? " tensor that is no tap: " : " tensors that are no taps, the first: ");
        add_escaped(out, run->unknown_name != NULL ? run->unknown_name : "");
    }
    q3_text_add(out, "\n</dl>\n");
}

static void add_verdict(q3_text *out, const q3_report *r)
{
    static const char *const texts[] = {
        [Q3_OUTCOME_AGREES] = "agrees", [Q3_OUTCOME_DIFFERS] = "differs: ", [Q3_OUTCOME_UNJUDGED] = "could not judge",
    };
    q3_outcome result = q3_report_outcome(r);
    q3_text_add(out, texts[result]);
    if (result == Q3_OUTCOME_DIFFERS) add_escaped(out, q3_report_first_bad(r)->f.name);
}

static void add_top(q3_text *out, const q3_report *r)
{
    static const char *const classes[] = {
        [Q3_OUTCOME_AGREES] = "agrees", [Q3_OUTCOME_DIFFERS] = "differs", [Q3_OUTCOME_UNJUDGED] = "unjudged",
    };
    q3_text sentence = {0};
    q3_text_add(out, "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n"
                     "<meta name=viewport content=\"width=device-width,initial-scale=1\">\n"
                     "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';"
                     "style-src 'unsafe-inline';script-src 'unsafe-inline'\">\n<title>qwen3moe: ");
    add_verdict(out, r);
    q3_text_add(out, "</title>\n<style>\n");
    add_lines(out, q3_page_style);
    q3_text_add(out, "</style></head>\n<body><main class=");
    q3_text_add(out, classes[q3_report_outcome(r)]);
    q3_text_add(out, ">\n<h1>");
    add_verdict(out, r);
    q3_text_add(out, "</h1>\n<p class=sentence>");
    q3_report_sentence(&sentence, r);
    add_plain(out, &sentence);
    q3_text_add(out, "</p>\n");
    add_run(out, r);
}

/* ==== The map ================================================================================== */

/* Taps of a layer in the order of computation; dense and sparse layers share a column. */
static size_t column_of(q3_tap_id id)
{
    bool dense = id >= Q3_TAP_DENSE_GATE_PROJ && id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
    return (size_t)id - (dense ? (size_t)Q3_TAP_DENSE_GATE_PROJ - (size_t)Q3_TAP_EXPERTS_GATE_PROJ : 0);
}

static bool in_layer(const report_entry *e)
{
    return e->known && e->rank != 0 && e->rank != SIZE_MAX - 1;
}

static void add_columns(q3_text *out, const bool used[Q3_TAP_COUNT])
{
    char name[Q3_TAP_NAME_SIZE];
    q3_text_add(out, "<thead><tr><th><span>layer</span>");
    for (int c = 0; c < Q3_TAP_COUNT; c++) {
        if (!used[c]) continue;
        short_name(name, (q3_tap_id)c);
        q3_text_add(out, "<th scope=col><span>");
        q3_text_add(out, name);
        q3_text_add(out, "</span>");
    }
    q3_text_add(out, "</thead>\n<tbody>\n");
}

static void add_layers(q3_text *out, const q3_report *r)
{
    bool used[Q3_TAP_COUNT] = {false}, any = false;
    for (size_t i = 0; i < r->count; i++)
        if (in_layer(&r->entries[i])) any = used[column_of(r->entries[i].id)] = true;
    if (!any) return;
    q3_text_add(out, "<div class=\"scroll tall\"><table class=map>");
    add_columns(out, used);
    for (size_t i = 0; i < r->count;) {
        const report_entry *cells[Q3_TAP_COUNT] = {NULL}, *first = &r->entries[i];
        if (!in_layer(first)) {
            i++;
            continue;
        }
        for (; i < r->count && r->entries[i].rank == first->rank; i++)
            cells[column_of(r->entries[i].id)] = &r->entries[i];
        add_count(out, "<tr><th scope=row>", first->rank - 1, "");
        for (size_t c = 0; c < Q3_TAP_COUNT; c++) {
            if (!used[c]) continue;
            q3_text_add(out, "<td>");
            if (cells[c] != NULL) add_cell(out, r, cells[c]);
        }
        q3_text_add(out, "\n");
    }
    q3_text_add(out, "</tbody></table></div>\n");
}

/* What stands before the layers (rank 0), behind them, or is no tap. */
static void add_ends(q3_text *out, const q3_report *r, size_t rank)
{
    char name[Q3_TAP_NAME_SIZE];
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (e->rank != rank) continue;
        if (!any)
            q3_text_add(out, e->known ? "<div class=ends>" : "<h2>Other tensors</h2>\n<div class=\"ends many\">");
        any = true;
        q3_text_add(out, "<span>");
        add_cell(out, r, e);
        if (e->known) {
            short_name(name, e->id);
            q3_text_add(out, " ");
            q3_text_add(out, name);
        }
        q3_text_add(out, "</span>\n");
    }
    if (any) q3_text_add(out, "</div>\n");
}

static void add_legend(q3_text *out, const q3_report *r)
{
    static const char *const meaning[Q3_VERDICT_COUNT] = {
        [Q3_VERDICT_EXACT] = "the same bits", [Q3_VERDICT_WITHIN] = "inside its bound; strong colour: near it",
        [Q3_VERDICT_ROUNDING] = "rounded at another place, inside the bound",
        [Q3_VERDICT_NEAR_TIE] = "other experts, as good as equal", [Q3_VERDICT_DIFFERS] = "outside what is allowed",
        [Q3_VERDICT_NON_FINITE] = "not finite where ours is", [Q3_VERDICT_MISSING] = "not in the file",
        [Q3_VERDICT_SHAPE] = "another shape", [Q3_VERDICT_UNJUDGED] = "bounds too wide to say",
    };
    size_t counts[Q3_VERDICT_COUNT] = {0};
    for (size_t i = 0; i < r->count; i++) counts[r->entries[i].f.verdict]++;
    q3_text_add(out, "<ul class=legend>\n");
    for (size_t v = 0; v < Q3_VERDICT_COUNT; v++) {
        const q3_finding sample = {.verdict = (q3_verdict)v, .max_bound_ratio = 0.3};
        q3_text_add(out, "<li><span class=\"c ");
        q3_text_add(out, cell_class(&sample));
        q3_text_add(out, "\">");
        add_char(out, q3_report_glyphs[v]);
        add_count(out, "</span><span>", counts[v], " ");
        q3_text_add(out, q3_verdict_name(v));
        q3_text_add(out, ": ");
        q3_text_add(out, meaning[v]);
        q3_text_add(out, "</span>\n");
    }
    q3_text_add(out, "</ul>\n");
}

/* ==== The table ================================================================================ */

static void add_row(q3_text *out, const q3_report *r, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text plain = {0};
    q3_text_add(out, "<tr><td><span class=\"c ");
    q3_text_add(out, cell_class(f));
    q3_text_add(out, "\">");
    add_char(out, q3_report_glyphs[f->verdict]);
    q3_text_add(out, "</span> ");
    q3_text_add(out, q3_verdict_name(f->verdict));
    add_count(out, "<td><button type=button class=name data-i=", (uint64_t)(e - r->entries), ">");
    add_escaped(out, f->name);
    q3_text_add(out, "</button><td>");
    add_escaped(out, f->reason);
    if (f->looks_like[0] != 0) q3_text_add(out, "<br>looks like "), add_escaped(out, f->looks_like);
    q3_text_add(out, "<td>");
    if (f->differ > 0 && f->max_ulp > 0) {
        q3_text_digits(&plain, f->max_ulp, 3);
        q3_text_add(&plain, " ulp at ");
        q3_report_place(&plain, e, f->max_at);
    }
    add_plain(out, &plain);
    q3_text_add(out, "\n");
}

/* What is neither exact nor within; what was not recorded stands in the map. */
static void add_table(q3_text *out, const q3_report *r)
{
    size_t rows = 0;
    for (size_t i = 0; i < r->count; i++) {
        q3_verdict v = r->entries[i].f.verdict;
        if (v == Q3_VERDICT_EXACT || v == Q3_VERDICT_WITHIN || (v == Q3_VERDICT_MISSING && r->run.layers > 0)) continue;
        if (rows++ == 0)
            q3_text_add(out, "<h2>Neither exact nor within</h2>\n<div class=scroll><table class=table><thead><tr>"
                             "<th>verdict<th>tensor<th>why<th>largest difference</thead>\n<tbody>\n");
        add_row(out, r, &r->entries[i]);
    }
    q3_text_add(out, rows > 0 ? "</tbody></table></div>\n" : "");
}

/* ==== The page ================================================================================= */

/* The lines in the order of computation. No "</script>" in them: report_string escapes '<'. */
static void add_data(q3_text *out, const q3_report *r)
{
    q3_text_add(out, "<script type=application/json id=data>[\n");
    for (size_t i = 0; i < r->count; i++) {
        if (i > 0) q3_text_add(out, ",");
        q3_report_put_finding(out, &r->entries[i].f);
    }
    q3_text_add(out, "]</script>\n");
}

q3_status q3_report_html(const q3_report *r, char **html, size_t *length, q3_error *error)
{
    q3_text out = {0};
    add_top(&out, r);
    q3_text_add(&out, "<div class=parts>\n<div>\n<h2>Layers and operators</h2>\n"
                      "<p class=hint>Choose a cell to see its figures"
                      "<noscript> (needs JavaScript)</noscript>.</p>\n");
    add_ends(&out, r, 0);
    add_layers(&out, r);
    add_ends(&out, r, SIZE_MAX - 1);
    add_ends(&out, r, SIZE_MAX);
    add_legend(&out, r);
    q3_text_add(&out, "</div>\n<section id=detail aria-live=polite hidden></section>\n</div>\n");
    add_table(&out, r);
    q3_text_add(&out, "</main>\n");
    add_data(&out, r);
    q3_text_add(&out, "<script>\n");
    add_lines(&out, q3_page_script);
    q3_text_add(&out, "</script></body></html>\n");
    return q3_report_give(&out, html, length, r, error);
}
