/* SPDX-License-Identifier: MIT */
/* report_text.c - a report as the text that check, diff and report print. */
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 110  /* columns of a line, names and paths aside */
#define INDENT 12
#define CAUSES_SHOWN 10
#define LABEL 9    /* columns of a label in the header */

/* ==== Pieces ================================================================================== */

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
            q3_report_pad(out, INDENT);
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
    q3_report_pad(out, INDENT);
    add_words(out, words);
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

#define UNKNOWN_SHOWN 8

/* Names that look like a tap's, each with the tap that may be meant. */
static void add_unknown_names(q3_text *out, const q3_judged_run *run)
{
    for (size_t i = 0; i < run->unknown_count && i < UNKNOWN_SHOWN; i++) {
        const q3_unknown *u = &run->unknowns[i];
        q3_text_add(out, "         ");
        q3_text_clean(out, u->name);
        q3_text_add(out, u->nearest[0] != 0 ? ": the nearest tap is " : ": looks like a tap");
        q3_text_clean(out, u->nearest);
        q3_text_add(out, "\n");
    }
    if (run->unknown_count > UNKNOWN_SHOWN)
        q3_report_add_count(out, "         and ", run->unknown_count - UNKNOWN_SHOWN,
                            " more names that look like taps\n");
}

/* A label and a text from a file or a caller, on a line. */
static void add_field(q3_text *out, const char *label, const char *text)
{
    q3_text_add(out, label);
    q3_report_pad(out, LABEL - strlen(label));
    q3_text_clean(out, text);
    q3_text_add(out, "\n");
}

static void add_run(q3_text *out, const char *label, const q3_judged_run *run)
{
    q3_text options = {0};
    q3_text_add(out, label);
    q3_report_pad(out, LABEL - strlen(label));
    q3_text_add(out, q3_dtype_name(run->dtype));
    q3_report_add_count(out, ", ", run->T, run->T == 1 ? " token " : " tokens ");
    q3_report_add_options(&options, run);
    add_summary(out, &options);
    q3_text_add(out, "\n");
}

/* What the file has besides tensors that are judged, and how its dtype was found. */
static void add_remarks(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    q3_text unknown = {0};
    add_not_judged(out, r);
    if (run->dtype_note[0] != 0) add_field(out, "dtype", run->dtype_note);
    if (run->unknown == 0) return;
    q3_text_add(out, "ignored  ");
    q3_report_add_unknown(&unknown, run);
    add_summary(out, &unknown);
    q3_text_add(out, "\n");
    add_unknown_names(out, run);
}

/* Who says it: for whoever wants to run it again. */
static void add_program(q3_text *out, const q3_report *r)
{
    q3_text command = {0}, version = {0};
    q3_text_add(&command, r->run.command);
    if (r->commands.count > 1)
        q3_report_add_count(&command, " (and ", r->commands.count - 1, " more)");
    q3_text_add(&version, "qwen3moe ");
    q3_text_add(&version, r->run.version);
    if (r->run.command[0] != 0 && command.data != NULL) add_field(out, "command", command.data);
    if (r->run.version[0] != 0 && version.data != NULL) add_field(out, "version", version.data);
    free(command.data);
    free(version.data);
}

static void add_header(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    bool diff = run->layers == 0;
    add_field(out, diff ? "first" : "model", run->model);
    if (r->fingerprint[0] != 0) add_field(out, "weights", r->fingerprint);
    add_field(out, diff ? "second" : run->side[0] != 0 ? run->side : "file", run->file);
    if (r->second != NULL) add_field(out, "B", r->second->run.file);
    if (!diff) add_run(out, r->second != NULL ? "run A" : "run", run);
    if (r->second != NULL) add_run(out, "run B", &r->second->run);
    add_program(out, r);
    if (diff) return;
    add_remarks(out, r);
    if (r->second != NULL) add_remarks(out, r->second);
}

/* ==== Table =================================================================================== */

static void add_share(q3_text *out, const char *before, double part, double all)
{
    add_number(out, before, all > 0 ? 100 * part / all : 0, 3);
    q3_text_add(out, " %");
}

/* One element: its place, both values, how far they are apart. Of experts' ids an ulp says
 * nothing. */
static void add_element(q3_text *out, const q3_report *r, const report_entry *e, const char *label,
                        const q3_element *x, int digits)
{
    q3_text line = {0};
    bool ids = e->id == Q3_TAP_TOPK_INDICES, diff = r->run.layers == 0;
    bool finite = x->ours - x->ours == 0 && x->theirs - x->theirs == 0;
    q3_text_add(&line, label);
    q3_report_add_place(&line, r, e, x->at);
    add_number(&line, diff ? ": " : ": ours ", x->ours, digits);
    add_number(&line, diff ? " in the first file, " : ", theirs ", x->theirs, digits);
    q3_text_add(&line, diff ? " in the second" : "");
    if (finite && !ids) {
        add_number(&line, ", ", x->ulp, 3);
        q3_text_add(&line, " ulp apart");
    }
    if (finite && !ids && e->f.judged > 0) {
        add_number(&line, ", bound ", x->bound_ulp, 3);
        q3_text_add(&line, " ulp");
    }
    add_indented(out, &line);
}

/* The first element outside its bound. */
static void add_bad(q3_text *out, const q3_report *r, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_element bad = {.ours = f->bad_ours, .theirs = f->bad_theirs, .ulp = f->bad_ulp,
                      .bound_ulp = f->bad_bound_ulp};
    memcpy(bad.at, f->bad_at, sizeof bad.at);
    add_element(out, r, e, "first: ", &bad, 3);
}

#define WORST_SHOWN 5

/* Where to look first: of the first tensor that is wrong. */
static void add_worst(q3_text *out, const q3_report *r, const report_entry *e)
{
    for (size_t i = 0; i < e->f.worst_count && i < WORST_SHOWN; i++)
        add_element(out, r, e, "worst: ", &e->f.worst[i], 6);
}

static void add_router(q3_text *out, const q3_report *r, const q3_finding *f)
{
    bool diff = r->run.layers == 0;
    q3_text line = {0};
    double least = 1; /* probabilities differ by no more */
    for (size_t i = 0; i < f->margin_bins; i++)
        if ((double)f->margins[i] < least) least = (double)f->margins[i];
    q3_report_add_count(&line, "tokens: ", f->wrong_sets,
                        diff ? " with other experts, " : " with wrong experts, ");
    if (!diff)
        q3_report_add_count(&line, "", f->near_ties,
                            f->near_ties == 1 ? " near-tie, " : " near-ties, ");
    q3_report_add_count(&line, "", f->other_order, " in another order");
    if (f->margin_bins > 0) add_number(&line, "; smallest margin ", least, 3);
    add_indented(out, &line);
}

/* How much differs, on three lines: the largest difference, the whole tensor, how many elements. */
static void add_differences(q3_text *out, const q3_report *r, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text most = {0}, whole = {0}, share = {0};
    add_number(&most, "most: ", f->max_ulp, 3);
    q3_text_add(&most, " ulp at ");
    q3_report_add_place(&most, r, e, f->max_at);
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

static void add_entry(q3_text *out, const q3_report *r, const report_entry *e, bool colour)
{
    const q3_finding *f = &e->f;
    q3_text between = {0};
    q3_report_paint(out, q3_verdict_name(f->verdict), f->verdict, colour);
    q3_report_pad(out, INDENT - strlen(q3_verdict_name(f->verdict)));
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
    if (f->has_bad) add_bad(out, r, e);
    if (e == r->first_bad) add_worst(out, r, e);
    if (e->id == Q3_TAP_TOPK_INDICES)
        add_router(out, r, f);
    else if (f->differ > 0)
        add_differences(out, r, e);
    if (f->between_count > 0 && f->verdict != Q3_VERDICT_UNJUDGED) {
        q3_text_add(&between, "judged together with: ");
        q3_report_add_between(&between, f);
        add_indented(out, &between);
    }
    add_fact(out, "looks like ", f->looks_like);
}

/* What stands for many: of one tap and verdict the first three; in a diff, where one fault makes
 * all that follows differ, of each verdict the first, and three names that one file lacks. */
static bool is_one_of_many(const q3_report *r, const report_entry *e,
                           size_t shown[Q3_TAP_COUNT + 1][Q3_VERDICT_COUNT])
{
    bool diff = r->run.layers == 0, missing = e->f.verdict == Q3_VERDICT_MISSING;
    return shown[diff ? Q3_TAP_COUNT : e->id][e->f.verdict]++ >= (diff && !missing ? 1u : 3u);
}

/* What is not as it should be. */
static void add_table(q3_text *out, const q3_report *r, bool all, bool colour)
{
    size_t shown[Q3_TAP_COUNT + 1][Q3_VERDICT_COUNT] = {{0}}, left = 0;
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (!all && q3_report_is_quiet(r, &e->f)) continue;
        if (!all && is_one_of_many(r, e, shown)) {
            left++;
            continue;
        }
        q3_text_add(out, any ? "" : "\n");
        any = true;
        add_entry(out, r, e, colour);
    }
    if (left > 0)
        q3_report_add_count(out, "and ", left,
                            r->run.layers == 0
                                ? " more tensors (--all shows them)\n"
                                : " more of the same taps in later layers (--all shows them)\n");
}

/* ==== Drift =================================================================================== */

/* Also where a bound is too wide to judge by: in such a run most are. */
static bool has_error(const report_entry *e)
{
    return e->f.elements > 0 && e->id != Q3_TAP_TOPK_INDICES && e->id != Q3_TAP_COUNT;
}

#define JUMP 4.0

/* A layer of a run that goes on from our own values: how far its output is off, and the first tap
 * that is much farther off than all before it in the layer, than what the layer started from, and
 * than a rounding. Entry *i begins the layer; *i goes on to what follows. */
static void add_drift_row(q3_text *out, const q3_report *r, size_t *i, double *level)
{
    size_t layer = r->entries[*i].f.layer, before = out->size;
    const report_entry *jump = NULL, *output = NULL;
    double most = *level;
    for (; *i < r->count && q3_tap_in_layer(r->entries[*i].id); ++*i) {
        const report_entry *e = &r->entries[*i];
        if (e->f.layer != layer) break;
        if (!has_error(e)) continue;
        if (jump == NULL && !(e->f.relative_l2 <= JUMP * most)) jump = e;
        if (e->f.relative_l2 > most) most = e->f.relative_l2;
        if (e->id == Q3_TAP_LAYER) output = e;
    }
    q3_text_count(out, "            ", layer);
    if (output != NULL) {
        q3_report_pad(out, before + 19 > out->size ? before + 19 - out->size : 1);
        add_number(out, "", output->f.relative_l2, 3);
    }
    if (jump != NULL) {
        q3_report_pad(out, before + 32 > out->size ? before + 32 - out->size : 1);
        q3_text_add(out, q3_tap_info(jump->id)->label);
        add_number(out, ", ", jump->f.relative_l2, 3);
    }
    q3_text_add(out, "\n");
    if (output != NULL && output->f.relative_l2 > *level) *level = output->f.relative_l2;
}

/* With --free a difference stays in all that follows: what counts is where it grows. */
static void add_drift(q3_text *out, const q3_report *r)
{
    double level = r->run.dtype == Q3_F32 ? 0x1p-24 : r->run.dtype == Q3_F16 ? 0x1p-11 : 0x1p-8;
    bool any = false;
    for (size_t i = 0; i < r->count && r->run.free_running;) {
        const report_entry *e = &r->entries[i];
        if (e->id == Q3_TAP_EMBED_TOKENS && has_error(e) && e->f.relative_l2 > level)
            level = e->f.relative_l2;
        if (!q3_tap_in_layer(e->id)) {
            i++;
            continue;
        }
        if (!any) q3_text_add(out, "\ndrift       layer  output's L2  first jump\n");
        any = true;
        add_drift_row(out, r, &i, &level);
    }
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

/* What is wrong, a line for each mistake, the gravest first; or why nothing is. */
static void add_reasons(q3_text *out, const q3_report *r)
{
    size_t most = r->cause_count < CAUSES_SHOWN ? r->cause_count : CAUSES_SHOWN;
    bool several = r->cause_count > 1;
    if (r->cause_count == 0 || r->required > 0) {
        q3_text line = {0};
        if (r->cause_count == 0)
            q3_report_add_sentence(&line, r);
        else
            q3_report_add_silence(&line, r);
        add_summary(out, &line);
        q3_text_add(out, "\n");
    }
    if (several)
        q3_report_add_count(out, "", r->cause_count,
                            " independent mistakes, the gravest first:\n");
    for (size_t i = 0; i < most; i++) {
        q3_text line = {0};
        q3_report_add_cause(&line, r, &r->causes[i]);
        q3_text_add(out, several ? "  " : "");
        add_summary(out, &line);
        q3_text_add(out, "\n");
    }
    if (r->cause_count > most)
        q3_report_add_count(out, "  and ", r->cause_count - most, " more\n");
}

static void add_side(q3_text *out, const q3_report *r, bool all, bool colour)
{
    add_table(out, r, all, colour);
    add_drift(out, r);
    add_totals(out, r);
    add_missing_taps(out, r);
    if (r->run.layers > 0) {
        q3_text_add(out, "coverage    ");
        q3_report_add_coverage(out, r);
        q3_text_add(out, "\n");
    }
    add_reasons(out, r);
}

/* The last line; of two sides one each. */
static void add_last(q3_text *out, const q3_report *r, const char *side)
{
    q3_text verdict = {0};
    q3_report_add_verdict(&verdict, r);
    q3_text_add(out, side);
    add_summary(out, &verdict);
    q3_text_add(out, "\n");
}

q3_status q3_report_text(const q3_report *r, unsigned flags, char **text, size_t *length,
                         q3_error *error)
{
    q3_text out = {0};
    bool all = (flags & Q3_REPORT_ALL) != 0, colour = (flags & Q3_REPORT_COLOUR) != 0;
    add_header(&out, r);
    q3_report_add_map(&out, r, colour);
    if (r->second != NULL) q3_text_add(&out, "\n---- A\n");
    add_side(&out, r, all, colour);
    if (r->second != NULL) {
        q3_text_add(&out, "\n---- B\n");
        add_side(&out, r->second, all, colour);
    }
    if (r->second != NULL) q3_text_add(&out, "\n");
    add_last(&out, r, r->second != NULL ? "A " : "");
    if (r->second != NULL) add_last(&out, r->second, "B ");
    return q3_report_give(&out, text, length, r, error);
}
