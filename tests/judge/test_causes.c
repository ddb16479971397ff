/* SPDX-License-Identifier: MIT */
/* report_causes.c and what the last lines of a report say: how much was judged, which mistakes
 * there are, two sides, how a free run drifts; the text of tokens, and JUnit's XML. */
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of report_lines.h */
#endif
#include "report_lines.h"

/* ==== A report from a few findings ============================================================ */

/* Lines of a run of three layers: these findings, and all else missing. */
static void write_run(q3_text *lines, const q3_judged_run *run, const q3_finding *f, size_t count)
{
    q3_judged_run whole = *run;
    q3_text own = {0};
    whole.model = "m";
    whole.file = "f";
    whole.layers = 3;
    if (whole.end_layer == 0) whole.end_layer = 3;
    if (whole.T == 0) whole.T = 4;
    q3_report_put_run(&own, &whole);
    for (size_t i = 0; i < count; i++) {
        q3_finding one = f[i];
        q3_tap_id id;
        if (!q3_tap_find(one.name, &id, &one.layer)) CHECKF(false, "%s", one.name);
        memcpy(one.side, run->side, sizeof one.side);
        q3_report_put_finding(&own, &one);
    }
    add_rest(&own, whole.first_layer, whole.end_layer, 3);
    if (run->side[0] != 0) { /* add_rest knows of no side */
        char *p = own.data;
        while ((p = strstr(p, "\"side\":\"\"")) != NULL) {
            q3_text_add(lines, "");
            char *end = p + strlen("\"side\":\"");
            *end = 0;
            q3_text_add(lines, own.data);
            q3_text_add(lines, run->side);
            *end = '"';
            memmove(own.data, end, strlen(end) + 1);
            p = own.data;
        }
    }
    q3_text_add(lines, own.data);
    release(&own);
}

static q3_report *read(const char *lines, q3_error *error)
{
    q3_report_part part = {"lines", lines, strlen(lines)};
    q3_report *r;
    q3_error line = {""};
    q3_status status = q3_report_read(&r, &part, 1, false, error != NULL ? error : &line);
    CHECKF(status == Q3_OK || error != NULL, "%s", line.text);
    return r;
}

static q3_report *report_of(const q3_judged_run *run, const q3_finding *f, size_t count)
{
    q3_text lines = {0};
    write_run(&lines, run, f, count);
    q3_report *r = read(lines.data, NULL);
    release(&lines);
    return r;
}

/* The report's text has these lines, one behind the other. */
static void holds(const q3_report *r, unsigned flags, const char *piece)
{
    char *text;
    size_t length;
    CHECK(q3_report_text(r, flags, &text, &length, NULL) == Q3_OK);
    CHECKF(text != NULL && strstr(text, piece) != NULL, "\"%s\" is not in \"%s\"", piece, text);
    free(text);
}

/* ==== Causes ================================================================================== */

#define WRONG(tap, what, l2) \
    {.name = tap, .verdict = Q3_VERDICT_DIFFERS, .cause = what, .looks_like = what, \
     .relative_l2 = l2, .elements = 12}

/* A tensor, and how many of the run's mistakes have that many tensors; in the order of gravity. */
typedef struct cause_case {
    q3_finding f[6];
    bool strict, free_running;
    struct { const char *first; size_t count; } want[4];
} cause_case;

static const cause_case cause_cases[] = {
    /* a name is one mistake, at whichever taps and layers */
    {{WRONG(TAP(0, "self_attn.q_rope.output"), "theta", 1),
      WRONG(TAP(0, "self_attn.k_rope.output"), "theta", 1),
      WRONG(TAP(1, "self_attn.q_rope.output"), "theta", 1),
      WRONG(TAP(2, "self_attn.k_rope.output"), "theta", 2)}, false, false,
     {{TAP(0, "self_attn.q_rope.output"), 4}}},
    /* the graver one stands first, the earlier one is decisive */
    {{WRONG(TAP(0, "mlp.router_probs.output"), "bf16", 0.002),
      WRONG(TAP(0, "mlp.topk_weights.output"), "not renormalised", 0.7),
      WRONG(TAP(1, "mlp.topk_weights.output"), "not renormalised", 0.7)}, false, false,
     {{TAP(0, "mlp.topk_weights.output"), 2}, {TAP(0, "mlp.router_probs.output"), 1}}},
    /* the worst of its tensors says how grave it is */
    {{WRONG(TAP(0, "mlp.router_probs.output"), "bf16", 0.002),
      WRONG(TAP(1, "mlp.topk_weights.output"), "not renormalised", 0.7),
      WRONG(TAP(2, "mlp.router_probs.output"), "bf16", 0.8)}, false, false,
     {{TAP(0, "mlp.router_probs.output"), 2}, {TAP(1, "mlp.topk_weights.output"), 1}}},
    /* without a name: one function, one mistake; two functions, two */
    {{WRONG(TAP(0, "self_attn.q_norm.output"), "", 0.5),
      WRONG(TAP(0, "self_attn.k_norm.output"), "", 0.5),
      WRONG(TAP(2, "self_attn.q_norm.output"), "", 0.5),
      WRONG(TAP(2, "mlp.output"), "", 0.1)}, false, false,
     {{TAP(0, "self_attn.q_norm.output"), 3}, {TAP(2, "mlp.output"), 1}}},
    {{WRONG("model.rotary_emb.cos", "", 0.5), WRONG("model.rotary_emb.sin", "", 0.4)}, false, false,
     {{"model.rotary_emb.cos", 2}}},
    /* what a named mistake does not explain is another one, at any tap and in any layer */
    {{WRONG(TAP(0, "self_attn.q_proj.output"), "bias left out", 0.1),
      WRONG(TAP(1, "self_attn.q_proj.output"), "bias left out", 0.1),
      WRONG(TAP(2, "self_attn.q_proj.output"), "", 0.9)}, false, false,
     {{TAP(2, "self_attn.q_proj.output"), 1}, {TAP(0, "self_attn.q_proj.output"), 2}}},
    {{WRONG(TAP(0, "self_attn.q_rope.output"), "theta", 1),
      WRONG(TAP(0, "self_attn.k_rope.output"), "", 0.5)}, false, false,
     {{TAP(0, "self_attn.q_rope.output"), 1}, {TAP(0, "self_attn.k_rope.output"), 1}}},
    /* experts' ids are no values: the share of tokens counts */
    {{{.name = TAP(0, "mlp.topk_indices.output"), .verdict = Q3_VERDICT_DIFFERS, .elements = 12,
       .rank = 2, .shape = {4, 3}, .wrong_sets = 1, .relative_l2 = 40},
      WRONG(TAP(1, "mlp.output"), "", 0.5)}, false, false,
     {{TAP(1, "mlp.output"), 1}, {TAP(0, "mlp.topk_indices.output"), 1}}},
    /* what is not finite is graver than any number; a rounding is less grave than any */
    {{{.name = TAP(0, "output"), .verdict = Q3_VERDICT_ROUNDING, .relative_l2 = 9},
      WRONG(TAP(1, "mlp.output"), "", 7),
      {.name = TAP(2, "mlp.gate.output"), .verdict = Q3_VERDICT_NON_FINITE, .relative_l2 = 0.1}},
     true, false,
     {{TAP(2, "mlp.gate.output"), 1}, {TAP(1, "mlp.output"), 1}, {TAP(0, "output"), 1}}},
    {{{.name = TAP(0, "output"), .verdict = Q3_VERDICT_ROUNDING, .relative_l2 = 9},
      WRONG(TAP(1, "mlp.output"), "", 7)}, false, false, {{TAP(1, "mlp.output"), 1}}},
    /* one wrong shape is one mistake, at any tap */
    {{{.name = TAP(0, "mlp.gate.output"), .verdict = Q3_VERDICT_SHAPE, .reason = "found [5]"},
      {.name = TAP(0, "mlp.output"), .verdict = Q3_VERDICT_SHAPE, .reason = "found [5]"},
      {.name = TAP(0, "output"), .verdict = Q3_VERDICT_SHAPE, .reason = "found [7]"}}, false, false,
     {{TAP(0, "mlp.gate.output"), 2}, {TAP(0, "output"), 1}}},
    /* a consequence is no second mistake */
    {{WRONG(TAP(0, "mlp.output"), "", 0.1), WRONG(TAP(0, "output"), "", 0.5),
      WRONG(TAP(1, "output"), "", 0.9)}, false, true, {{TAP(0, "mlp.output"), 1}}},
};

static void test_causes(void)
{
    for (size_t i = 0; i < COUNT(cause_cases); i++) {
        const cause_case *c = &cause_cases[i];
        q3_judged_run run = {.strict = c->strict, .free_running = c->free_running};
        size_t given = 0, want = 0;
        while (given < 6 && c->f[given].name != NULL) given++;
        while (want < 4 && c->want[want].first != NULL) want++;
        q3_report *r = report_of(&run, c->f, given);
        if (r == NULL) continue;
        CHECKF(r->cause_count == want, "case %zu: %zu causes", i, r->cause_count);
        for (size_t k = 0; k < want && k < r->cause_count; k++)
            CHECKF(strcmp(r->causes[k].first->f.name, c->want[k].first) == 0 &&
                       r->causes[k].count == c->want[k].count,
                   "case %zu: %s in %zu", i, r->causes[k].first->f.name, r->causes[k].count);
        q3_report_close(r);
    }
}

/* The last lines: of several mistakes one each, the graver first, and the first tap last of all. */
static void test_last_lines(void)
{
    q3_error line;
    q3_report *r = report_of(&(q3_judged_run){.T = 4}, cause_cases[1].f, 3);
    holds(r, 0, "\ncoverage    3 of 75 taps of the layers judged, 2 of 3 layers reached, "
                "lm_head not judged\n"
                "2 independent mistakes, the gravest first:\n"
                "  model.layers.0.mlp.topk_weights.output is wrong: looks like not renormalised; "
                "2 tensors show it\n"
                "  model.layers.0.mlp.router_probs.output is wrong: looks like bf16\n"
                "differs: model.layers.0.mlp.router_probs.output\n");
    q3_report_sentence(r, &line);
    CHECK_TEXT(line.text, "model.layers.0.mlp.topk_weights.output is wrong: looks like not "
                          "renormalised; 2 tensors show it");
    q3_report_close(r);
    r = report_of(&(q3_judged_run){.T = 4}, cause_cases[0].f, 4);
    holds(r, 0, "lm_head not judged\n"
                "model.layers.0.self_attn.q_rope.output is wrong: looks like theta; 4 tensors show "
                "it\ndiffers: model.layers.0.self_attn.q_rope.output\n");
    q3_report_close(r);
}

/* ==== Coverage ================================================================================ */

typedef struct coverage_case {
    const char *judged[3], *require[2];
    q3_verdict verdict; /* of the first */
    q3_outcome outcome;
    const char *says;   /* in the text's last lines */
} coverage_case;

static const coverage_case coverage_cases[] = {
    {{"model.embed_tokens.output", "model.rotary_emb.cos"}, {NULL}, Q3_VERDICT_EXACT,
     Q3_OUTCOME_UNJUDGED,
     "coverage    0 of 75 taps of the layers judged, 0 of 3 layers reached, lm_head not judged\n"
     "nothing inside the layers and no lm_head could be judged\ncould not judge\n"},
    {{"model.norm.output"}, {NULL}, Q3_VERDICT_EXACT, Q3_OUTCOME_UNJUDGED,
     "nothing inside the layers and no lm_head could be judged\ncould not judge\n"},
    {{TAP(1, "mlp.output")}, {NULL}, Q3_VERDICT_UNJUDGED, Q3_OUTCOME_UNJUDGED,
     "no tensor could be judged\ncould not judge\n"},
    {{"lm_head.output"}, {NULL}, Q3_VERDICT_WITHIN, Q3_OUTCOME_AGREES,
     "coverage    0 of 75 taps of the layers judged, 0 of 3 layers reached, lm_head judged\n"
     "every tensor that could be judged is within its bound\nagrees\n"},
    {{TAP(1, "output"), TAP(2, "mlp.gate.output")}, {NULL}, Q3_VERDICT_EXACT, Q3_OUTCOME_AGREES,
     "coverage    2 of 75 taps of the layers judged, 2 of 3 layers reached, lm_head not judged\n"},
    /* what is required: all that fits, by any pattern */
    {{TAP(1, "mlp.gate.output")}, {"*.1.mlp.gate.output"}, Q3_VERDICT_EXACT, Q3_OUTCOME_AGREES,
     "\nagrees\n"},
    {{TAP(1, "mlp.gate.output")}, {"*.1.mlp.gate.output", "*.mlp.gate.*"}, Q3_VERDICT_EXACT,
     Q3_OUTCOME_UNJUDGED,
     "2 required taps are not judged (--require), the first: model.layers.0.mlp.gate.output is "
     "missing\ncould not judge\n"},
    {{TAP(1, "mlp.gate.output"), TAP(0, "output")}, {"model.layers.1.mlp.g*"},
     Q3_VERDICT_UNJUDGED, Q3_OUTCOME_UNJUDGED,
     "1 required tap is not judged (--require), the first: model.layers.1.mlp.gate.output is "
     "unjudged\ncould not judge\n"},
    /* a difference is said all the same, and is exit status 1 */
    {{TAP(1, "mlp.gate.output")}, {"lm_head.output"}, Q3_VERDICT_DIFFERS, Q3_OUTCOME_DIFFERS,
     "1 required tap is not judged (--require), the first: lm_head.output is missing\n"
     "model.layers.1.mlp.gate.output is wrong\ndiffers: model.layers.1.mlp.gate.output\n"},
};

static void test_coverage(void)
{
    for (size_t i = 0; i < COUNT(coverage_cases); i++) {
        const coverage_case *c = &coverage_cases[i];
        const char *globs[2] = {c->require[0], c->require[1]};
        size_t count = 0;
        q3_finding f[3] = {{0}};
        for (; count < 3 && c->judged[count] != NULL; count++) {
            f[count].name = c->judged[count];
            f[count].verdict = count == 0 ? c->verdict : Q3_VERDICT_EXACT;
        }
        q3_judged_run run = {
            .T = 4, .require = {globs, (globs[0] != NULL) + (size_t)(globs[1] != NULL)}};
        q3_report *r = report_of(&run, f, count);
        if (r == NULL) continue;
        CHECKF(q3_report_outcome(r) == c->outcome, "case %zu: %d", i, (int)q3_report_outcome(r));
        holds(r, 0, c->says);
        q3_report_close(r);
    }
}

/* The coverage of parts is that of the whole: one of them may reach no layer. */
static void test_parts(void)
{
    static const char *globs[] = {"*.mlp.gate.output"};
    const q3_finding gates[] = {
        {.name = TAP(0, "mlp.gate.output")}, {.name = TAP(1, "mlp.gate.output")},
        {.name = TAP(2, "mlp.gate.output")}};
    q3_text lines = {0};
    q3_judged_run run = {.T = 4, .require = {globs, 1}, .end_layer = 2};
    write_run(&lines, &run, gates, 2);
    q3_report *r = read(lines.data, NULL);
    CHECK(q3_report_outcome(r) == Q3_OUTCOME_AGREES);
    holds(r, 0, "coverage    2 of 50 taps of the layers judged, 2 of 2 layers reached\nevery");
    q3_report_close(r);
    run.first_layer = 2;
    run.end_layer = 3;
    write_run(&lines, &run, gates, 0);
    r = read(lines.data, NULL);
    CHECK(q3_report_outcome(r) == Q3_OUTCOME_UNJUDGED);
    holds(r, 0, "1 required tap is not judged (--require), the first: "
                "model.layers.2.mlp.gate.output is missing\n");
    q3_report_close(r);
    release(&lines);
    run = (q3_judged_run){.T = 4, .end_layer = 2};
    write_run(&lines, &run, gates, 2);
    run.require = (q3_text_list){globs, 1};
    run.first_layer = 2;
    run.end_layer = 3;
    write_run(&lines, &run, gates + 2, 1);
    q3_error error = {""};
    CHECK(read(lines.data, &error) == NULL); /* two runs ask for different taps */
    CHECK(strstr(error.text, "found another run") != NULL);
    release(&lines);
}

/* ==== What parts have of their own ============================================================ */

/* Commands differ, and are one line in any order; weights of a layer must not; texts of tokens are
 * a part's that has them; an older program's lines say no version. */
static void test_own(void)
{
    static const char *first[] = {"aa", "bb"}, *second[] = {"bb", "cc"}, *other[] = {"bc", "cc"};
    static const char *words[] = {"In", " the", " end", "\xc3"};
    for (int order = 0; order < 2; order++) {
        q3_text lines = {0};
        q3_judged_run runs[2] = {
            {.T = 4, .end_layer = 2, .command = "z", .weights = {first, 2}, .version = "1"},
            {.T = 4, .first_layer = 1, .end_layer = 3, .command = "y", .weights = {second, 2},
             .token_text = {words, 4}}};
        write_run(&lines, &runs[order], NULL, 0);
        write_run(&lines, &runs[1 - order], NULL, 0);
        q3_report *r = read(lines.data, NULL);
        if (r != NULL) { /* printf aabbcc | sha256sum */
            CHECK_TEXT(r->fingerprint, "a5b432ee0307be7fa23aa00461f54eee");
            CHECK(r->run.token_text.count == 4 && r->commands.count == 2);
            holds(r, 0, "\ncommand  y (and 1 more)\nversion  qwen3moe 1\n");
        }
        q3_report_close(r);
        runs[1].weights.items = other;
        release(&lines);
        write_run(&lines, &runs[0], NULL, 0);
        write_run(&lines, &runs[1], NULL, 0);
        q3_error error = {""};
        CHECK(read(lines.data, &error) == NULL);
        CHECKF(strstr(error.text, ": layer 1: found weights bc, expected bb as in another part"),
               "%s", error.text);
        release(&lines);
    }
}

/* ==== Two sides =============================================================================== */

static void test_sides(void)
{
    const q3_finding a = WRONG(TAP(1, "self_attn.q_proj.output"), "", 0.5);
    const q3_finding b[] = {{.name = TAP(1, "self_attn.q_proj.output")},
                            {.name = "lm_head.output", .verdict = Q3_VERDICT_WITHIN}};
    q3_text lines = {0}, alone = {0};
    write_run(&lines, &(q3_judged_run){.T = 4, .side = "B", .dtype = Q3_BF16}, b, 2);
    q3_text_add(&alone, lines.data);
    write_run(&lines, &(q3_judged_run){.T = 4, .side = "A"}, &a, 1);
    q3_report *r = read(lines.data, NULL);
    if (r == NULL) return;
    const q3_report *second = q3_report_second(r);
    CHECK(q3_report_outcome(r) == Q3_OUTCOME_DIFFERS);
    CHECK(second != NULL && q3_report_outcome(second) == Q3_OUTCOME_AGREES);
    CHECK(q3_report_decisive(r) != NULL && q3_report_count(r) == q3_report_count(second));
    holds(r, 0, "\nA        f\nB        f\nrun A    float32, 4 tokens from position 0, "
                "teacher-forced\nrun B    bfloat16, ");
    holds(r, 0, "\n    1  ..   X= .. ..");
    holds(r, 0, "\n  end  .. norm   .~ lm_head\n");
    holds(r, 0, "is wrong\n\n---- B\n");
    holds(r, 0, "\n\nA differs: model.layers.1.self_attn.q_proj.output\nB agrees\n");
    q3_report_close(r);
    r = read(alone.data, NULL); /* one side alone is a report like others */
    CHECK(r != NULL && q3_report_second(r) == NULL && q3_report_outcome(r) == Q3_OUTCOME_AGREES);
    q3_report_close(r);
    release(&lines);
    /* the worse of two: here the second, which was not judged */
    write_run(&lines, &(q3_judged_run){.T = 4, .side = "A"}, b, 2);
    write_run(&lines, &(q3_judged_run){.T = 4, .side = "B"}, NULL, 0);
    r = read(lines.data, NULL);
    q3_error line;
    q3_report_sentence(r, &line);
    CHECK(q3_report_outcome(r) == Q3_OUTCOME_UNJUDGED);
    CHECK_TEXT(line.text, "no tensor could be judged");
    q3_report_close(r);
    release(&lines);
    /* a line of no side among those of one */
    write_run(&lines, &(q3_judged_run){.T = 4, .side = "A"}, b, 2);
    char *side = strstr(strchr(lines.data, '\n'), "\"side\":\"A\"");
    memmove(side + 8, side + 9, strlen(side + 9) + 1);
    q3_error error = {""};
    CHECK(read(lines.data, &error) == NULL);
    CHECKF(strstr(error.text, "found a line of side \"\", expected side \"A\", the run's"), "%s",
           error.text);
    release(&lines);
    release(&alone);
}

/* ==== Drift, tokens, names ==================================================================== */

/* Each layer's output, and the first tap that is over four times as far off as all before it. */
static void test_drift(void)
{
#define OFF(tap, l2) \
    {.name = tap, .verdict = Q3_VERDICT_UNJUDGED, .elements = 12, .differ = 1, .relative_l2 = l2}
    const q3_finding f[] = {
        OFF(TAP(0, "self_attn.q_proj.output"), 0.015), /* 4 times 2^-8 is more */
        OFF(TAP(0, "output"), 0.01),
        OFF(TAP(1, "self_attn.q_proj.output"), 0.03),
        OFF(TAP(1, "self_attn.probs.output"), 0.125), /* 0.12 would be allowed */
        OFF(TAP(1, "mlp.output"), 0.8),
        OFF(TAP(1, "output"), 0.5),
        OFF(TAP(2, "mlp.topk_indices.output"), 90),
        OFF(TAP(2, "mlp.output"), 1.9),
    };
    q3_judged_run run = {.T = 4, .dtype = Q3_BF16, .free_running = true};
    q3_report *r = report_of(&run, f, COUNT(f));
    holds(r, 0, "\n\ndrift       layer  output's L2  first jump\n"
                "            0      0.01\n"
                "            1      0.5          self_attn.probs, 0.125\n"
                "            2\n\n");
    q3_report_close(r);
    run.free_running = false;
    r = report_of(&run, f, COUNT(f));
    char *text;
    size_t length;
    CHECK(q3_report_text(r, 0, &text, &length, NULL) == Q3_OK && strstr(text, "drift") == NULL);
    free(text);
    q3_report_close(r);
}

/* A token's text stands behind its number, on one line whatever it holds. */
static void test_tokens(void)
{
    static const char *words[] = {"In", "\n\t\"\\\x1b[31m\x7f", " abcdefghijklmnopqrstuvwxyz",
                                  "caf\xc3\xa9 \xc2\x9b\xff"};
    static const char *const shown[] = {
        "token 0 \"In\"", "token 1 \"\\n\\t\\\"\\\\\\x1b[31m\\x7f\"",
        "token 2 \" abcdefghijklmnopqrstuvw...\"", "token 3 \"caf\xc3\xa9 ?\xef\xbf\xbd\""};
    q3_judged_run run = {.T = 4, .token_text = {words, 4}};
    for (size_t t = 0; t < 4; t++) {
        char piece[128];
        const q3_finding f = {.name = TAP(0, "output"), .verdict = Q3_VERDICT_DIFFERS, .rank = 2,
                              .shape = {4, 9}, .has_bad = true, .bad_at = {t, 3}};
        q3_report *r = report_of(&run, &f, 1);
        snprintf(piece, sizeof piece, "\n            first: %s, channel 3: ours 0", shown[t]);
        holds(r, 0, piece);
        q3_report_close(r);
    }
}

static void test_unknown(void)
{
    q3_unknown names[10] = {{"model.layers.0.self_atn.q_proj.output",
                             "model.layers.0.self_attn.q_proj.output"}};
    for (size_t i = 1; i < 10; i++) names[i].name = "model.layers.0.else";
    q3_judged_run run = {.T = 4, .unknown = 12, .unknown_name = "x", .unknowns = names,
                         .unknown_count = 10, .dtype_note = "of the tensors"};
    q3_report *r = report_of(&run, NULL, 0);
    holds(r, 0, "\ndtype    of the tensors\n"
                "ignored  12 tensors that are no taps, the first: x\n"
                "         model.layers.0.self_atn.q_proj.output: the nearest tap is "
                "model.layers.0.self_attn.q_proj.output\n"
                "         model.layers.0.else: looks like a tap\n");
    holds(r, 0, "\n         and 2 more names that look like taps\n");
    q3_report_close(r);
}

/* ==== JUnit =================================================================================== */

static void test_junit(void)
{
    static const char *globs[] = {"model.layers.2.output"};
    const q3_finding f[] = {
        {.name = TAP(0, "output")},
        {.name = TAP(1, "output"), .verdict = Q3_VERDICT_DIFFERS,
         .reason = "<b>\"&'\x01\xef\xbf\xbe\xff"},
        {.name = TAP(1, "mlp.output"), .verdict = Q3_VERDICT_ROUNDING},
    };
    q3_judged_run run = {.T = 4, .require = {globs, 1}, .command = "a <b>", .version = "1"};
    q3_report *r = report_of(&run, f, COUNT(f));
    char *xml;
    size_t length;
    CHECK(q3_report_junit(r, &xml, &length, NULL) == Q3_OK && strlen(xml) == length);
    static const char begin[] =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
        "<testsuite name=\"f\" tests=\"80\" failures=\"2\" errors=\"0\" skipped=\"76\">\n"
        "<properties>\n<property name=\"version\" value=\"1\"/>\n"
        "<property name=\"command\" value=\"a &lt;b&gt;\"/>\n"
        "<property name=\"weights\" value=\"\"/>\n</properties>\n"
        "<testcase classname=\"qwen3moe\" name=\"model.embed_tokens.output\"><skipped "
        "message=\"model.embed_tokens.output is missing\"/></testcase>\n";
    static const char *const pieces[] = {
        "\n<testcase classname=\"qwen3moe.layers.0\" name=\"model.layers.0.output\"/>\n",
        "\n<testcase classname=\"qwen3moe.layers.1\" name=\"model.layers.1.mlp.output\"/>\n",
        ("\n<testcase classname=\"qwen3moe.layers.1\" name=\"model.layers.1.output\"><failure "
         "type=\"differs\" message=\"model.layers.1.output is wrong: &lt;b&gt;&quot;&amp;'??"
         "\xef\xbf\xbd\"/></testcase>\n"),
        ("\n<testcase classname=\"qwen3moe.layers.2\" name=\"model.layers.2.output\"><failure "
         "type=\"missing\" message=\"model.layers.2.output is missing\"/></testcase>\n"),
        "lm_head.output is missing\"/></testcase>\n</testsuite>\n</testsuites>\n",
    };
    CHECKF(strncmp(xml, begin, strlen(begin)) == 0, "%s", xml);
    for (size_t i = 0; i < COUNT(pieces); i++)
        CHECKF(strstr(xml, pieces[i]) != NULL, "no %s in %s", pieces[i], xml);
    free(xml);
    q3_report_close(r);
    r = report_of(&(q3_judged_run){.T = 4}, NULL, 0); /* nothing judged has not passed */
    CHECK(q3_report_junit(r, &xml, &length, NULL) == Q3_OK);
    CHECK(strstr(xml, " tests=\"81\" failures=\"1\" errors=\"0\" skipped=\"80\">") != NULL);
    CHECK(strstr(xml, "\n<testcase classname=\"qwen3moe\" name=\"coverage\"><failure type=\"could "
                      "not judge\" message=\"no tensor could be judged\"/></testcase>\n") != NULL);
    free(xml);
    q3_report_close(r);
}

int main(void)
{
    test_causes();
    test_last_lines();
    test_coverage();
    test_parts();
    test_own();
    test_sides();
    test_drift();
    test_tokens();
    test_unknown();
    test_junit();
    return t_done("test_causes");
}
