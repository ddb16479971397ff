/* SPDX-License-Identifier: MIT */
/* The judge as a library: tensors in memory, under our names and others', in one call or several;
 * findings, outcome, coverage, the three ways of writing. What was computed comes from Hugging Face
 * (golden/hf/tiny); what is wrong with it is made here.
 *
 *   test_judge GOLDEN */
#include "judge/judge.h"
#include "model.h"

#include <string.h>

enum { MOST = 512 };

/* What is given: Hugging Face's tensors, of which some are exchanged. */
typedef struct given {
    q3_entry entries[MOST];
    size_t count;
    int32_t ids[64];
    size_t T;
} given;

static void take_golden(given *g, const q3_tensors *file)
{
    memset(g, 0, sizeof *g);
    for (size_t i = 0; i < q3_tensors_count(file) && g->count < MOST; i++) {
        const q3_entry *e = q3_tensors_at(file, i);
        if (strcmp(e->name, "input_ids") == 0) {
            int64_t ids[64];
            g->T = (size_t)e->shape[0];
            q3_entry_integers(ids, e, 0, g->T);
            for (size_t t = 0; t < g->T; t++) g->ids[t] = (int32_t)ids[t];
        } else {
            g->entries[g->count++] = *e;
        }
    }
}

static q3_entry *entry_of(given *g, const char *name)
{
    for (size_t i = 0; i < g->count; i++)
        if (strcmp(g->entries[i].name, name) == 0) return &g->entries[i];
    fprintf(stderr, "no tensor %s\n", name);
    exit(1);
}

/* Judges what is given, tokens apart; NULL if that failed: error says why. */
static q3_report *judge(const fixture *f, const given *g, const q3_judge_options *options,
                        q3_error *error)
{
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_dtype dtype = Q3_AUTO;
    q3_status status = q3_judge_open(&j, f->config, options, error);
    if (status == Q3_OK) status = q3_judge_tokens(j, g->ids, g->T, error);
    for (size_t i = 0; i < g->count && status == Q3_OK; i++)
        status = q3_judge_tensor(j, &g->entries[i], error);
    if (status == Q3_OK) status = q3_judge_prepare(j, &dtype, error);
    CHECK(status != Q3_OK || dtype == Q3_F32 || dtype == Q3_AUTO); /* what the values show */
    if (status == Q3_OK) status = q3_judge_run(j, f->weights, Q3_F32, &report, error);
    CHECK((status == Q3_OK) == (report != NULL));
    q3_judge_close(j);
    return report;
}

static const q3_finding *find(const q3_report *report, const char *name)
{
    for (size_t i = 0; i < q3_report_count(report); i++)
        if (strcmp(q3_report_finding(report, i)->name, name) == 0)
            return q3_report_finding(report, i);
    return NULL;
}

/* Everything right: agrees, every tap judged, in the order of computation. */
static void test_agrees(const fixture *f, const given *g)
{
    q3_error error = {""};
    q3_report *report = judge(f, g, NULL, &error);
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) return;
    q3_coverage c = q3_report_coverage(report);
    CHECK(q3_report_outcome(report) == Q3_OUTCOME_AGREES && q3_report_decisive(report) == NULL);
    CHECKF(c.taps_judged == c.taps_expected && c.taps_expected == q3_report_count(report),
           "%zu of %zu, %zu lines", c.taps_judged, c.taps_expected, q3_report_count(report));
    CHECK(c.layers == f->config->num_hidden_layers && c.layers_judged == c.layers);
    CHECK(strcmp(q3_report_finding(report, 0)->name, "model.embed_tokens.output") == 0);
    CHECK(strcmp(q3_report_finding(report, q3_report_count(report) - 1)->name, "lm_head.output") ==
          0);
    q3_report_close(report);
}

/* RoPE is left out in layer 1: keys and queries as they were before it. The finding names the first
 * of the two, says what it looks like, and stands in the text, the lines and the page; the lines
 * read again say the same. */
static void test_finds(const fixture *f, const given *g)
{
    static const char tap[] = "model.layers.1.self_attn.q_rope.output";
    given wrong = *g;
    q3_error error = {""};
    char *text[3] = {NULL, NULL, NULL};
    size_t length[3] = {0, 0, 0};
    entry_of(&wrong, tap)->data = entry_of(&wrong, "model.layers.1.self_attn.q_norm.output")->data;
    entry_of(&wrong, "model.layers.1.self_attn.k_rope.output")->data =
        entry_of(&wrong, "model.layers.1.self_attn.k_norm.output")->data;
    const q3_judge_options options = {.model = "A model", .name = "what was given"};
    q3_report *report = judge(f, &wrong, &options, &error), *again = NULL;
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) return;
    const q3_finding *decisive = q3_report_decisive(report);
    CHECK(q3_report_outcome(report) == Q3_OUTCOME_DIFFERS && decisive != NULL);
    if (decisive == NULL) return;
    CHECKF(strcmp(decisive->name, tap) == 0 && decisive->verdict == Q3_VERDICT_DIFFERS &&
               decisive->layer == 1,
           "found %s, %s", decisive->name, q3_verdict_name(decisive->verdict));
    CHECKF(strncmp(decisive->looks_like, "RoPE missing", 12) == 0, "looks like %s",
           decisive->looks_like);
    CHECK(decisive->has_bad && decisive->outside > 0 && strcmp(decisive->given_as, tap) == 0);
    CHECK(find(report, "model.layers.1.self_attn.scores.output")->verdict <= Q3_VERDICT_WITHIN ||
          find(report, "model.layers.1.self_attn.scores.output")->verdict == Q3_VERDICT_DIFFERS);
    CHECK(q3_report_text(report, Q3_REPORT_ALL, &text[0], &length[0], &error) == Q3_OK);
    CHECK(q3_report_lines(report, &text[1], &length[1], &error) == Q3_OK);
    CHECK(q3_report_html(report, &text[2], &length[2], &error) == Q3_OK);
    for (size_t i = 0; i < 3; i++)
        CHECKF(text[i] != NULL && strlen(text[i]) == length[i] &&
                   strstr(text[i], "RoPE missing") != NULL &&
                   strstr(text[i], "what was given") != NULL &&
                   strstr(text[i], "A model") != NULL,
               "writer %zu", i);
    q3_report_part part = {"lines", text[1], length[1]};
    CHECKF(q3_report_read(&again, &part, 1, true, &error) == Q3_OK, "%s", error.text);
    CHECK(again != NULL && strcmp(q3_report_decisive(again)->name, tap) == 0);
    q3_report_close(again);
    q3_report_close(report);
    for (size_t i = 0; i < 3; i++) free(text[i]);
}

/* One tensor under another system's name, with a batch axis; nothing else. Then no tensor at
 * all. */
static void test_few(const fixture *f, const given *g)
{
    given few = {.count = 1, .T = g->T};
    q3_error error = {""};
    memcpy(few.ids, g->ids, sizeof few.ids);
    given all = *g;
    q3_entry *e = entry_of(&all, "model.layers.0.output");
    few.entries[0] = (q3_entry){
        "blocks.0.hook_resid_post", e->dtype, 3, {1, e->shape[0], e->shape[1]}, e->data};
    q3_report *report = judge(f, &few, NULL, &error);
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) return;
    const q3_finding *found = find(report, "model.layers.0.output");
    q3_coverage c = q3_report_coverage(report);
    CHECK(found != NULL && strcmp(found->given_as, "blocks.0.hook_resid_post") == 0 &&
          c.taps_judged == 1);
    CHECK(c.layers_judged == 0); /* a layer's output alone says nothing of what is inside */
    CHECK(found != NULL && found->between_count > 0);
    q3_report_close(report);
    few.count = 0;
    report = judge(f, &few, NULL, &error);
    CHECK(report != NULL && q3_report_outcome(report) == Q3_OUTCOME_UNJUDGED);
    q3_report_close(report);
}

/* A range of layers, from the output of the layer before. */
static void test_layers(const fixture *f, const given *g)
{
    const q3_judge_options options = {.first_layer = 1, .end_layer = 2};
    q3_error error = {""};
    q3_report *report = judge(f, g, &options, &error);
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) return;
    CHECK(q3_report_outcome(report) == Q3_OUTCOME_AGREES &&
          q3_report_coverage(report).layers_judged == 1);
    CHECK(find(report, "model.layers.0.output") == NULL &&
          find(report, "model.layers.1.output") != NULL);
    q3_report_close(report);
}

/* Which experts a token has is not given, and rounding may have decided it for some: nothing is
 * said of those tokens' experts. golden/tiny in bfloat16 has such tokens. */
static void test_uncertain(const fixture *f, const q3_tensors *file)
{
    static given g;
    q3_error error = {""};
    q3_judge *j = NULL;
    q3_report *report = NULL;
    size_t unsure = 0;
    take_golden(&g, file);
    CHECK(q3_judge_open(&j, f->config, NULL, &error) == Q3_OK);
    CHECK(q3_judge_tokens(j, g.ids, g.T, &error) == Q3_OK);
    for (size_t i = 0; i < g.count; i++)
        if (strstr(g.entries[i].name, "topk_indices") == NULL)
            CHECK(q3_judge_tensor(j, &g.entries[i], &error) == Q3_OK);
    CHECK(q3_judge_run(j, f->weights, Q3_BF16, &report, &error) == Q3_OK);
    for (size_t i = 0; report != NULL && i < q3_report_count(report); i++) {
        const q3_finding *x = q3_report_finding(report, i);
        if (strstr(x->name, "experts.gate_proj.output") == NULL) continue;
        size_t row = x->shape[1] * x->shape[2]; /* whole tokens are left out */
        CHECK(x->elements == g.T * row && x->judged % row == 0);
        unsure += (size_t)(x->elements - x->judged) / row;
    }
    CHECKF(unsure > 0, "no token is unsure");
    CHECK(report != NULL && q3_report_outcome(report) == Q3_OUTCOME_AGREES);
    q3_report_close(report);
    q3_judge_close(j);
}

/* A file: its path names it, unless a name is given. */
static void test_file(const fixture *f, const char *path)
{
    for (int named = 0; named < 2; named++) {
        const q3_judge_options options = {.end_layer = 1, .name = named ? "a dump" : NULL};
        q3_error error = {""};
        q3_judge *j = NULL;
        q3_report *report = NULL;
        char *text = NULL;
        size_t length;
        q3_dtype dtype = Q3_AUTO;
        CHECK(q3_judge_open(&j, f->config, &options, &error) == Q3_OK);
        CHECKF(q3_judge_file(j, path, &error) == Q3_OK, "%s", error.text);
        CHECK(q3_judge_file(j, path, &error) == Q3_ERROR_INPUT);
        CHECK(q3_judge_prepare(j, &dtype, &error) == Q3_OK && dtype == Q3_F32);
        CHECK(q3_judge_run(j, f->weights, dtype, &report, &error) == Q3_OK);
        CHECK(q3_report_text(report, 0, &text, &length, &error) == Q3_OK);
        CHECK(text != NULL && (strstr(text, "a dump") != NULL) == (named == 1));
        CHECK(text != NULL && (strstr(text, path) != NULL) == (named == 0));
        free(text);
        q3_report_close(report);
        q3_judge_close(j);
    }
}

static void count_calls(void *user, const char *what, size_t done, size_t all)
{
    CHECK(what[0] != 0 && done <= all);
    ++*(size_t *)user;
}

/* Bad input: a line, no object, nothing lost. NULL for error is allowed. */
static void test_refuses(const fixture *f, const given *g)
{
    q3_error error = {""};
    q3_judge *j = NULL;
    const int32_t outside[] = {0, (int32_t)f->config->vocab_size};
    const float one[1] = {0};
    const q3_entry unnamed = {"", Q3_F32, 1, {1}, one}, empty = {"x", Q3_F32, 1, {3}, NULL},
                   wide = {"x", Q3_F32, 3, {1u << 31, 1u << 31, 1u << 31}, one},
                   other = {"x", Q3_AUTO, 1, {1}, one}, good = {"x", Q3_F32, 1, {1}, one};
    const q3_judge_options ranges[] = {{.first_layer = 1, .end_layer = 1},
                                       {.end_layer = f->config->num_hidden_layers + 1}};
    for (size_t i = 0; i < 2; i++)
        CHECK(q3_judge_open(&j, f->config, &ranges[i], &error) == Q3_ERROR_INPUT);
    const q3_judge_options kv = {.kv = Q3_F64};
    CHECK(q3_judge_open(&j, f->config, &kv, NULL) == Q3_ERROR_INPUT && j == NULL);
    size_t calls = 0;
    const q3_judge_options named = {.name = "given", .progress = count_calls, .user = &calls};
    CHECK(q3_judge_open(&j, f->config, &named, &error) == Q3_OK);
    if (j == NULL) return;
    CHECK(q3_judge_tokens(j, outside, 2, &error) == Q3_ERROR_INPUT &&
          q3_judge_tokens(j, g->ids, 0, NULL) != Q3_OK);
    CHECK(q3_judge_prepare(j, NULL, &error) == Q3_ERROR_INPUT &&
          strcmp(error.text,
                 "given: input_ids: found none, expected them, or --tokens or --prompt") == 0);
    const q3_entry *bad[] = {&unnamed, &empty, &wide, &other};
    for (size_t i = 0; i < 4; i++)
        CHECKF(q3_judge_tensor(j, bad[i], &error) == Q3_ERROR_INPUT, "tensor %zu", i);
    CHECK(q3_judge_tensor(j, &good, &error) == Q3_OK &&
          q3_judge_tensor(j, &good, &error) == Q3_ERROR_INPUT);
    CHECK(strcmp(error.text, "given: x: found it twice, expected it once") == 0);
    CHECK(q3_judge_file(j, "no such file", NULL) != Q3_OK);
    CHECK(q3_judge_tokens(j, g->ids, g->T, &error) == Q3_OK &&
          q3_judge_prepare(j, NULL, &error) == Q3_OK);
    CHECK(q3_judge_tensor(j, &empty, &error) == Q3_ERROR_INPUT &&
          strstr(error.text, "before") != NULL);
    q3_report *report = NULL;
    CHECK(q3_judge_run(j, f->weights, Q3_AUTO, &report, &error) == Q3_ERROR_INPUT &&
          report == NULL);
    CHECK(q3_judge_run(j, f->weights, Q3_F32, &report, &error) == Q3_OK && report != NULL);
    CHECK(calls == f->config->num_hidden_layers);
    q3_report_close(report);
    q3_judge_close(j);
    q3_judge_close(NULL);
}

/* Two judges at once, each with its own objects, and one run twice: the same lines. */
static void test_independent(const fixture *f, const given *g)
{
    q3_error error;
    char *lines[3];
    size_t length[3];
    q3_judge *j[2];
    q3_report *report[3] = {NULL, NULL, NULL};
    for (size_t i = 0; i < 2; i++) {
        CHECK(q3_judge_open(&j[i], f->config, NULL, &error) == Q3_OK);
        CHECK(q3_judge_tokens(j[i], g->ids, g->T, &error) == Q3_OK);
    }
    for (size_t k = 0; k < 2 * g->count; k++)
        CHECK(q3_judge_tensor(j[k % 2], &g->entries[k / 2], &error) == Q3_OK);
    for (size_t i = 0; i < 3; i++)
        CHECK(q3_judge_run(j[i % 2], f->weights, Q3_F32, &report[i], &error) == Q3_OK);
    for (size_t i = 0; i < 3; i++)
        CHECK(q3_report_lines(report[i], &lines[i], &length[i], &error) == Q3_OK);
    for (size_t i = 1; i < 3; i++)
        CHECK(length[0] == length[i] && memcmp(lines[0], lines[i], length[0]) == 0);
    for (size_t i = 0; i < 3; i++) free(lines[i]), q3_report_close(report[i]);
    q3_judge_close(j[0]);
    q3_judge_close(j[1]);
}

int main(int argc, char **argv)
{
    char path[512];
    q3_error error;
    q3_tensors *file;
    static fixture f;
    static given g;
    if (argc != 2) return 2;
    snprintf(path, sizeof path, "%s/tiny", argv[1]);
    fixture_from_folder(&f, path);
    snprintf(path, sizeof path, "%s/hf/tiny/taps-float32.safetensors", argv[1]);
    if (q3_tensors_open(&file, path, &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    take_golden(&g, file);
    test_agrees(&f, &g);
    test_finds(&f, &g);
    test_few(&f, &g);
    test_layers(&f, &g);
    test_file(&f, path);
    test_refuses(&f, &g);
    test_independent(&f, &g);
    q3_tensors_close(file);
    snprintf(path, sizeof path, "%s/hf/tiny/taps-bfloat16.safetensors", argv[1]);
    CHECK(q3_tensors_open(&file, path, &error) == Q3_OK);
    test_uncertain(&f, file);
    q3_tensors_close(file);
    fixture_close(&f);
    return t_done("test_judge");
}
