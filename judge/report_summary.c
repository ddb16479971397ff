/* SPDX-License-Identifier: MIT */
/* report_summary.c - what text and page say alike: the outcome, the sentence, places, taps. */
#include "judge/report.h"

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
    [Q3_VERDICT_UNJUDGED] = {'?', "bounds too wide to say", NULL},
};

/* ==== The outcome ============================================================================= */

static bool is_diff(const q3_report *r)
{
    return r->run.layers == 0;
}

/* Whether the verdict makes exit status 1. */
static bool is_bad(const q3_report *r, const q3_finding *f)
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

const report_entry *q3_report_find_bad(const q3_report *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (is_bad(r, &r->entries[i].f)) return &r->entries[i];
    return NULL;
}

/* Two files without a tensor agree; a run that judged none says nothing. */
q3_outcome q3_report_outcome(const q3_report *r)
{
    size_t counts[Q3_VERDICT_COUNT];
    if (r->first_bad != NULL) return Q3_OUTCOME_DIFFERS;
    q3_report_tally(r, counts);
    size_t judged = r->count - counts[Q3_VERDICT_MISSING] - counts[Q3_VERDICT_UNJUDGED];
    return judged > 0 || is_diff(r) ? Q3_OUTCOME_AGREES : Q3_OUTCOME_UNJUDGED;
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
    const q3_finding *decisive = q3_report_decisive(r);
    q3_text_add(out, texts[q3_report_outcome(r)]);
    if (decisive != NULL) q3_text_add(out, decisive->name);
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

void q3_report_add_unknown(q3_text *out, const q3_judged_run *run)
{
    q3_report_add_count(out, "", run->unknown,
                        run->unknown == 1 ? " tensor that is no tap: "
                                          : " tensors that are no taps, the first: ");
    if (run->unknown_name != NULL) q3_text_add(out, run->unknown_name);
}

void q3_report_add_place(q3_text *out, const report_entry *e, const size_t place[3])
{
    for (size_t i = 0; i < e->f.rank || i == 0; i++) {
        q3_text_add(out, i > 0 ? ", " : "");
        q3_text_add(out, q3_tap_axis(e->id, e->f.rank, i));
        q3_text_count(out, " ", place[i]);
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

/* What is wrong with the decisive tensor, and what was judged together with it. */
static void add_blame(q3_text *out, const q3_report *r, const q3_finding *f)
{
    bool differs = is_diff(r) && f->verdict == Q3_VERDICT_DIFFERS;
    q3_text_add(out, f->name);
    q3_text_add(out, differs ? " differs" : q3_verdict_words[f->verdict].blame);
    if (f->looks_like[0] != 0) {
        q3_text_add(out, ": looks like ");
        q3_text_add(out, f->looks_like);
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

static void add_roundings(q3_text *out, const q3_report *r, size_t count)
{
    size_t first = 0;
    while (r->entries[first].f.verdict != Q3_VERDICT_ROUNDING) first++;
    q3_report_add_count(out, "", count, count == 1 ? " tensor has" : " tensors have");
    q3_text_add(out, " another rounding point, inside the bound (--strict counts that); "
                     "the first: ");
    q3_text_add(out, r->entries[first].f.name);
}

void q3_report_add_sentence(q3_text *out, const q3_report *r)
{
    const q3_finding *decisive = q3_report_decisive(r);
    size_t counts[Q3_VERDICT_COUNT];
    q3_report_tally(r, counts);
    if (decisive != NULL)
        add_blame(out, r, decisive);
    else if (counts[Q3_VERDICT_ROUNDING] > 0)
        add_roundings(out, r, counts[Q3_VERDICT_ROUNDING]);
    else if (is_diff(r))
        q3_text_add(out, "both files hold the same tensors with equal values");
    else if (q3_report_outcome(r) == Q3_OUTCOME_AGREES)
        q3_text_add(out, "every tensor that could be judged is within its bound");
    else
        q3_text_add(out, "no tensor could be judged");
}
