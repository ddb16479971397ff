/* report_summary.c - what the text and the page say alike: verdict of the whole, the sentence, places, numbers. */
#include "host/json.h"
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char q3_report_glyphs[Q3_VERDICT_COUNT] = {
    [Q3_VERDICT_EXACT] = '=', [Q3_VERDICT_WITHIN] = '~', [Q3_VERDICT_ROUNDING] = 'r', [Q3_VERDICT_NEAR_TIE] = 't',
    [Q3_VERDICT_DIFFERS] = 'X', [Q3_VERDICT_NON_FINITE] = 'N', [Q3_VERDICT_MISSING] = '.', [Q3_VERDICT_SHAPE] = 'S',
    [Q3_VERDICT_UNJUDGED] = '?',
};

static bool is_bad(const q3_report *r, const q3_finding *f)
{
    return f->verdict == Q3_VERDICT_DIFFERS || f->verdict == Q3_VERDICT_NON_FINITE || f->verdict == Q3_VERDICT_SHAPE ||
           (r->run.strict && f->verdict == Q3_VERDICT_ROUNDING) ||
           (r->run.layers == 0 && f->verdict == Q3_VERDICT_MISSING); /* a diff */
}

const report_entry *q3_report_first_bad(const q3_report *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (is_bad(r, &r->entries[i].f)) return &r->entries[i];
    return NULL;
}

q3_outcome q3_report_outcome(const q3_report *r)
{
    if (q3_report_first_bad(r) != NULL) return Q3_OUTCOME_DIFFERS;
    if (r->run.layers == 0) return Q3_OUTCOME_AGREES;
    for (size_t i = 0; i < r->count; i++)
        if (r->entries[i].f.verdict != Q3_VERDICT_MISSING && r->entries[i].f.verdict != Q3_VERDICT_UNJUDGED)
            return Q3_OUTCOME_AGREES;
    return Q3_OUTCOME_UNJUDGED;
}

static void add_number(q3_text *out, const char *before, uint64_t value)
{
    q3_text_add(out, before);
    q3_text_uint(out, value);
}

void q3_report_place(q3_text *out, const report_entry *e, const size_t place[3])
{
    bool scores = e->known && (e->id == Q3_TAP_SCORES || e->id == Q3_TAP_PROBS);
    bool expert = e->known && e->id >= Q3_TAP_EXPERTS_GATE_PROJ && e->id <= Q3_TAP_EXPERTS_DOWN_PROJ;
    bool slot = e->known && (e->id == Q3_TAP_TOPK_INDICES || e->id == Q3_TAP_TOPK_WEIGHTS);
    add_number(out, "token ", place[0]);
    if (e->f.rank == 2) add_number(out, slot ? ", slot " : ", channel ", place[1]);
    if (e->f.rank < 3) return;
    add_number(out, expert ? ", slot " : ", head ", place[1]);
    add_number(out, scores ? ", key " : ", channel ", place[2]);
}

void q3_report_operator(char name[Q3_TAP_NAME_SIZE], q3_tap_id id)
{
    char full[Q3_TAP_NAME_SIZE];
    q3_tap_name(full, id, 0);
    const char *start = full;
    if (strncmp(full, "model.layers.0.", 15) == 0)
        start += 15;
    else if (strncmp(full, "model.", 6) == 0)
        start += 6;
    size_t length = strlen(start), end = sizeof ".output" - 1;
    if (length > end && strcmp(start + length - end, ".output") == 0) length -= end;
    snprintf(name, Q3_TAP_NAME_SIZE, "%.*s", (int)length, start);
}

void q3_report_operators(q3_text *out, const q3_finding *f)
{
    char name[Q3_TAP_NAME_SIZE];
    for (size_t i = 0; i < f->between_count && i < Q3_TAP_COUNT; i++) {
        const q3_layer_tap *tap = &f->between[i];
        q3_text_add(out, i == 0 ? "" : ", ");
        if (tap->id > Q3_TAP_SIN && tap->layer != f->layer) {
            q3_text_add(out, "layers.");
            q3_text_uint(out, tap->layer);
            q3_text_add(out, ".");
        }
        q3_report_operator(name, tap->id);
        q3_text_add(out, name);
    }
    if (f->between_count > Q3_TAP_COUNT) add_number(out, " and more, ", f->between_count), q3_text_add(out, " in all");
}

static void add_blame(q3_text *out, const q3_report *r, const report_entry *e)
{
    static const char *const verbs[Q3_VERDICT_COUNT] = {
        [Q3_VERDICT_ROUNDING] = " is rounded elsewhere", [Q3_VERDICT_DIFFERS] = " is wrong",
        [Q3_VERDICT_NON_FINITE] = " is not finite where ours is", [Q3_VERDICT_MISSING] = " is missing",
        [Q3_VERDICT_SHAPE] = " has another shape",
    };
    const q3_finding *f = &e->f;
    q3_text_add(out, f->name);
    q3_text_add(out, r->run.layers == 0 && f->verdict == Q3_VERDICT_DIFFERS ? " differs" : verbs[f->verdict]);
    if (f->looks_like[0] != 0)
        q3_text_add(out, ": looks like "), q3_text_add(out, f->looks_like);
    else if (f->reason[0] != 0)
        q3_text_add(out, ": "), q3_text_add(out, f->reason);
    if (f->between_count == 0) return;
    if (f->between_count <= 3) {
        q3_text_add(out, "; judged together with ");
        q3_report_operators(out, f);
    } else {
        add_number(out, "; judged together with the ", f->between_count);
        q3_text_add(out, " operators before it");
    }
    q3_text_add(out, f->between_count == 1 ? ", which is not given" : ", which are not given");
}

void q3_report_sentence(q3_text *out, const q3_report *r)
{
    const report_entry *bad = q3_report_first_bad(r), *rounded = NULL;
    size_t roundings = 0;
    for (size_t i = r->count; i-- > 0;) {
        if (r->entries[i].f.verdict != Q3_VERDICT_ROUNDING) continue;
        roundings++;
        rounded = &r->entries[i];
    }
    if (bad != NULL) {
        add_blame(out, r, bad);
    } else if (roundings > 0) {
        q3_text_uint(out, roundings);
        q3_text_add(out, roundings == 1 ? " tensor has" : " tensors have");
        q3_text_add(out, " another rounding point, inside the bound (--strict counts that); the first: ");
        q3_text_add(out, rounded->f.name);
    } else {
        bool agrees = q3_report_outcome(r) == Q3_OUTCOME_AGREES;
        q3_text_add(out, r->run.layers == 0 ? "both files hold the same tensors with equal values"
                         : agrees ? "every tensor that could be judged is within its bound"
                                  : "no tensor could be judged");
    }
}
