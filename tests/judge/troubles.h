/* SPDX-License-Identifier: MIT */
/* troubles.h - a mistake made in plain loops (plain.h), and the name that the diagnosis must give
 * it: what the tests of the diagnosis share. The bound is a few ulp. */
#ifndef Q3_TESTS_TROUBLES_H
#define Q3_TESTS_TROUBLES_H

#include "judge/diagnose.h"
#include "plain.h"

typedef struct trouble {
    const char *want, *world; /* the name's beginning; a folder of golden/hf */
    q3_dtype dtype;
    q3_tap_id id;
    uint64_t hidden;          /* taps that were not given */
    void (*make)(const world *w, float *y, int variant);
    int variant;
} trouble;

#define HIDE(a, b) (((uint64_t)1 << ((b) + 1)) - ((uint64_t)1 << (a)))
#define INNER HIDE(Q3_TAP_INPUT_LAYERNORM, Q3_TAP_MLP)

/* What the diagnosis says of theirs; the taps before it were given, but for the hidden ones. */
static inline void ask_within(char text[200], const world *w, q3_tap_id id, uint64_t hidden,
                              const float *theirs, double *budget)
{
    q3_error error;
    char cause[160];
    size_t n = w->row[id];
    double *bound = memory(T * n, sizeof *bound);
    q3_dtype stored = id == Q3_TAP_ROUTER_PROBS ? Q3_F32 : w->dtype;
    bool head = id == Q3_TAP_NORM || id == Q3_TAP_LM_HEAD;
    evidence e = {.config = w->c, .weights = w->f.weights, .dtype = w->dtype, .T = T,
                  .start = START, .ids = w->ids, .input = head ? w->last
                      : w->tap[Q3_TAP_EMBED_TOKENS], .id = id, .row = n, .ours = w->tap[id],
                          .theirs = theirs, .bound = bound, .budget = budget};
    for (size_t t = 0; t < T; t++) {
        double square = 0;
        for (size_t i = t * n; i < (t + 1) * n; i++)
            square += pow((double)e.ours[i], 2) / (double)n;
        for (size_t i = 0; i < n; i++) {
            double x = (double)e.ours[t * n + i];
            bool never = id == Q3_TAP_TOPK_INDICES || id == Q3_TAP_EMBED_TOKENS ||
                         (x == 0 && (id == Q3_TAP_SCORES || id == Q3_TAP_PROBS));
            bound[t * n + i] = never ? 0 : 2 * ulp(x, stored) + 0x1p-22 * sqrt(square);
        }
    }
    for (size_t i = 0; i < id; i++) {
        bool square = i == Q3_TAP_SCORES || i == Q3_TAP_PROBS;
        bool dense = i >= Q3_TAP_DENSE_GATE_PROJ && i <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
        e.given[i] = !(hidden >> i & 1) && !dense;
        if (!dense && (e.given[i] || !square)) e.tap[i] = w->tap[i];
    }
    CHECK(q3_diagnose(text, cause, &e, NULL, &error) == Q3_OK);
    CHECK(memchr(text, 0, 200) != NULL);
    free(bound);
}

static inline void ask(char text[200], const world *w, q3_tap_id id, uint64_t hidden,
                       const float *theirs)
{
    ask_within(text, w, id, hidden, theirs, NULL);
}

/* Each case's tensor, made wrong, must be explained by a text that begins as wanted. */
static inline void test_troubles(const char *golden, const trouble *troubles, size_t count)
{
    world w = {0};
    const char *open = "";
    q3_dtype dtype = Q3_AUTO;
    for (size_t i = 0; i < count; i++) {
        const trouble *c = &troubles[i];
        char text[200];
        if (strcmp(open, c->world) != 0 || dtype != c->dtype) {
            if (open[0] != 0) world_close(&w);
            world_open(&w, golden, open = c->world, dtype = c->dtype);
        }
        size_t elements = T * w.row[c->id];
        float *y = memory(elements, sizeof *y);
        memcpy(y, w.tap[c->id], elements * sizeof *y);
        c->make(&w, y, c->variant);
        ask(text, &w, c->id, c->hidden, y);
        CHECKF(strncmp(text, c->want, strlen(c->want)) == 0,
               "%s, variant %d: got \"%s\", want \"%s...\"", c->world, c->variant, text, c->want);
        printf("%-64.64s | %s\n", c->want, text);
        free(y);
    }
    world_close(&w);
}

#endif
