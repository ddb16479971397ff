/* SPDX-License-Identifier: MIT */
/* report_summary.c - what text and page say alike: the outcome, the sentence, places, taps. */
#include "judge/report.h"

#include <stdio.h>
#include <string.h>

const verdict_words q3_verdict_words[Q3_VERDICT_COUNT] = {
    [Q3_VERDICT_EXACT] = {'=', "the same bits", NULL},
    [Q3_VERDICT_WITHIN] = {'~', "inside its bound; strong colour: near it", NULL},
    [Q3_VERDICT_ROUNDING] = {'r', "rounded at another place, inside the bound",
                             " is rounded elsewhere"},
    [Q3_VERDICT_NEAR_TIE] = {'t', "other experts, as good as equal", NULL},
    [Q3_VERDICT_DIFFERS] = {'X', "outside what is allowed", " is wrong"},
    [Q3_VERDICT_NON_FINITE] = {'N', "not finite where ours is", " is not finite where ours is"},
    [Q3_VERDICT_MISSING] = {'.', "not in the file", " is missing"},
    [Q3_VERDICT_SHAPE] = {'S', "another shape", " has another shape"},
    [Q3_VERDICT_UNJUDGED] = {'?', "bounds too wide to say", " is unjudged"},
};

/* ==== The outcome ============================================================================= */

static bool is_diff(const q3_report *r)
{
    return r->run.layers == 0;
}

bool q3_report_is_bad(const q3_report *r, const q3_finding *f)
{
    switch (f->verdict) {
    case Q3_VERDICT_DIFFERS:
    case Q3_VERDICT_NON_FINITE:
    case Q3_VERDICT_SHAPE: return true;
    case Q3_VERDICT_ROUNDING: return r->run.strict;
    case Q3_VERDICT_MISSING: return is_diff(r);
    case Q3_VERDICT_EXACT:
    case Q3_VERDICT_WITHIN:
    case Q3_VERDICT_NEAR_TIE:
    case Q3_VERDICT_UNJUDGED:
    case Q3_VERDICT_COUNT: break;
    }
    return false;
}

bool q3_report_is_judged(const q3_finding *f)
{
    return f->verdict != Q3_VERDICT_MISSING && f->verdict != Q3_VERDICT_UNJUDGED;
}

static size_t count_judged(const q3_report *r)
{
    size_t count = 0;
    for (size_t i = 0; i < r->count; i++) count += q3_report_is_judged(&r->entries[i].f);
    return count;
}

bool q3_report_is_required(const q3_report *r, const q3_finding *f)
{
    for (size_t i = 0; i < r->run.require.count; i++)
        if (q3_tap_fits(r->run.require.items[i], f->name)) return true;
    return false;
}

/* Two files without a tensor in common differ in nothing that could be said. */
void q3_report_decide(q3_report *r)
{
    bool comparable = !is_diff(r) || count_judged(r) > 0;
    for (size_t i = r->count; i-- > 0;) {
        const report_entry *e = &r->entries[i];
        if (comparable && q3_report_is_bad(r, &e->f)) r->first_bad = e;
        if (q3_report_is_judged(&e->f) || !q3_report_is_required(r, &e->f)) continue;
        r->first_required = e;
        r->required++;
    }
}

/* What stands before the layers agrees where nothing of the model was computed: embeddings that are
 * copied, tables. */
static bool says_something(const q3_report *r)
{
    q3_coverage c = q3_report_coverage(r);
    if (is_diff(r)) return count_judged(r) > 0;
    return (c.layer_taps_judged > 0 || c.head_judged) && r->required == 0;
}

q3_outcome q3_report_own_outcome(const q3_report *r)
{
    if (r->first_bad != NULL) return Q3_OUTCOME_DIFFERS;
    return says_something(r) ? Q3_OUTCOME_AGREES : Q3_OUTCOME_UNJUDGED;
}

bool q3_report_is_quiet(const q3_report *r, const q3_finding *f)
{
    return f->verdict == Q3_VERDICT_EXACT || f->verdict == Q3_VERDICT_WITHIN ||
           (f->verdict == Q3_VERDICT_MISSING && !is_diff(r));
}

void q3_report_tally(const q3_report *r, size_t counts[Q3_VERDICT_COUNT])
{
    memset(counts, 0, Q3_VERDICT_COUNT * sizeof *counts);
    for (size_t i = 0; i < r->count; i++) counts[r->entries[i].f.verdict]++;
}

/* ==== Words =================================================================================== */

void q3_report_add_count(q3_text *out, const char *before, uint64_t value, const char *after)
{
    q3_text_count(out, before, value);
    q3_text_add(out, after);
}

void q3_report_add_verdict(q3_text *out, const q3_report *r)
{
    static const char *const texts[] = {
        [Q3_OUTCOME_AGREES] = "agrees",
        [Q3_OUTCOME_DIFFERS] = "differs: ",
        [Q3_OUTCOME_UNJUDGED] = "could not judge",
    };
    q3_text_add(out, texts[q3_report_own_outcome(r)]);
    if (r->first_bad != NULL) q3_text_add(out, r->first_bad->f.name);
}

void q3_report_add_options(q3_text *out, const q3_judged_run *run)
{
    q3_text_count(out, "from position ", run->start);
    q3_text_add(out, run->free_running ? ", free-running" : ", teacher-forced");
    if (run->strict) q3_text_add(out, ", strict");
    if (run->accumulate[0] != 0) {
        q3_text_add(out, ", --accumulate ");
        q3_text_add(out, run->accumulate);
    }
    if (run->kv[0] != 0) {
        q3_text_add(out, ", --kv ");
        q3_text_add(out, run->kv);
    }
    if (run->router[0] != 0) {
        q3_text_add(out, ", --router ");
        q3_text_add(out, run->router);
    }
}

/* A run whose layers are not the last ones has no head. */
static bool has_head(const q3_report *r)
{
    return r->run.layers > 0 && r->covered[r->run.layers - 1];
}

void q3_report_add_coverage(q3_text *out, const q3_report *r)
{
    q3_coverage c = q3_report_coverage(r);
    q3_report_add_count(out, "", c.layer_taps_judged, " of ");
    q3_report_add_count(out, "", c.layer_taps_expected, " taps of the layers judged, ");
    q3_report_add_count(out, "", c.layers_reached, " of ");
    q3_report_add_count(out, "", c.layers_run, " layers reached");
    if (has_head(r)) q3_text_add(out, c.head_judged ? ", lm_head judged" : ", lm_head not judged");
}

void q3_report_add_unknown(q3_text *out, const q3_judged_run *run)
{
    q3_report_add_count(out, "", run->unknown,
                        run->unknown == 1 ? " tensor that is no tap: "
                                          : " tensors that are no taps, the first: ");
    if (run->unknown_name != NULL) q3_text_add(out, run->unknown_name);
}

#define TOKEN_SHOWN 24 /* characters of a token's text */

void q3_report_add_token(q3_text *out, const char *text)
{
    static const char escapes[] = "\nn\tt\rr\"\"\\\\";
    char shown[5], code[8];
    size_t count = 0;
    q3_text_add(out, " \"");
    for (; *text != 0 && count < TOKEN_SHOWN; count++) {
        unsigned char c = (unsigned char)*text;
        const char *escape = escapes;
        while (*escape != 0 && *escape != *text) escape += 2;
        if (*escape != 0)
            snprintf(code, sizeof code, "\\%c", escape[1]);
        else if (c < 0x20 || c == 0x7F)
            snprintf(code, sizeof code, "\\x%02x", c);
        bool plain = *escape == 0 && c >= 0x20 && c != 0x7F;
        text += plain ? q3_clean(shown, text) : 1;
        q3_text_add(out, plain ? shown : code);
    }
    q3_text_add(out, *text != 0 ? "...\"" : "\"");
}

void q3_report_add_place(q3_text *out, const q3_report *r, const report_entry *e,
                         const size_t place[3])
{
    for (size_t i = 0; i < e->f.rank || i == 0; i++) {
        q3_text_add(out, i > 0 ? ", " : "");
        q3_text_add(out, q3_tap_axis(e->id, e->f.rank, i));
        q3_text_count(out, " ", place[i]);
        if (i == 0 && place[0] < r->run.token_text.count)
            q3_report_add_token(out, r->run.token_text.items[place[0]]);
    }
}

/* Of a layer's taps, those of another layer than the tensor's say which. A long list, as after many
 * layers without a tensor, is cut off. */
void q3_report_add_between(q3_text *out, const q3_finding *f)
{
    for (size_t i = 0; i < f->between_count && i < Q3_TAP_COUNT; i++) {
        const q3_layer_tap *tap = &f->between[i];
        q3_text_add(out, i == 0 ? "" : ", ");
        if (q3_tap_in_layer(tap->id) && tap->layer != f->layer)
            q3_report_add_count(out, "layers.", tap->layer, ".");
        q3_text_add(out, q3_tap_info(tap->id)->label);
    }
    if (f->between_count > Q3_TAP_COUNT)
        q3_report_add_count(out, " and more, ", f->between_count, " in all");
}

/* ==== The sentence ============================================================================ */

void q3_report_add_looks(q3_text *out, const q3_finding *f)
{
    q3_text_add(out, "looks like ");
    q3_text_add(out, f->looks_like);
}

void q3_report_add_blame(q3_text *out, const q3_report *r, const q3_finding *f)
{
    bool differs = is_diff(r) && f->verdict == Q3_VERDICT_DIFFERS;
    q3_text_add(out, f->name);
    q3_text_add(out, differs ? " differs" : q3_verdict_words[f->verdict].blame);
    if (f->looks_like[0] != 0) {
        q3_text_add(out, ": ");
        q3_report_add_looks(out, f);
    } else if (f->reason[0] != 0) {
        q3_text_add(out, ": ");
        q3_text_add(out, f->reason);
    }
    if (f->between_count == 0) return;
    if (f->between_count <= 3) {
        q3_text_add(out, "; judged together with ");
        q3_report_add_between(out, f);
    } else {
        q3_report_add_count(out, "; judged together with the ", f->between_count,
                            " operators before it");
    }
    q3_text_add(out, f->between_count == 1 ? ", which is not given" : ", which are not given");
}

void q3_report_add_cause(q3_text *out, const q3_report *r, const report_cause *c)
{
    q3_report_add_blame(out, r, &c->first->f);
    if (c->count > 1) q3_report_add_count(out, "; ", c->count, " tensors show it");
}

static void add_roundings(q3_text *out, const q3_report *r, size_t count)
{
    size_t first = 0;
    while (r->entries[first].f.verdict != Q3_VERDICT_ROUNDING) first++;
    q3_report_add_count(out, "", count, count == 1 ? " tensor has" : " tensors have");
    q3_text_add(out, " another rounding point, inside the bound (--strict counts that); "
                     "the first: ");
    q3_text_add(out, r->entries[first].f.name);
}

void q3_report_add_silence(q3_text *out, const q3_report *r)
{
    if (is_diff(r)) {
        q3_text_add(out, "the two files have no tensor in common");
    } else if (r->required > 0) {
        q3_report_add_count(out, "", r->required,
                            r->required == 1 ? " required tap is" : " required taps are");
        q3_text_add(out, " not judged (--require), the first: ");
        q3_text_add(out, r->first_required->f.name);
        q3_text_add(out, q3_verdict_words[r->first_required->f.verdict].blame);
    } else if (count_judged(r) > 0) {
        q3_text_add(out, "nothing inside the layers and no lm_head could be judged");
    } else {
        q3_text_add(out, "no tensor could be judged");
    }
}

void q3_report_add_sentence(q3_text *out, const q3_report *r)
{
    size_t counts[Q3_VERDICT_COUNT];
    q3_report_tally(r, counts);
    if (r->cause_count > 0)
        q3_report_add_cause(out, r, &r->causes[0]);
    else if (q3_report_own_outcome(r) == Q3_OUTCOME_UNJUDGED)
        q3_report_add_silence(out, r);
    else if (counts[Q3_VERDICT_ROUNDING] > 0)
        add_roundings(out, r, counts[Q3_VERDICT_ROUNDING]);
    else if (is_diff(r))
        q3_text_add(out, "both files hold the same tensors with equal values");
    else
        q3_text_add(out, "every tensor that could be judged is within its bound");
}
