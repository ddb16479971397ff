/* SPDX-License-Identifier: MIT */
/* report_merge.c: lines of several runs over parts of the layers are the report of one run, or one
 * line says what is lost. */
#include "report_lines.h"

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void random_finding(q3_text *lines, q3_tap_id id, size_t layer, q3_verdict v,
                           uint64_t *state)
{
    char name[Q3_TAP_NAME_SIZE];
    q3_tap_name(name, id, layer);
    q3_finding f = {.name = name, .layer = layer, .verdict = v,
                    .given_as = v == Q3_VERDICT_MISSING ? NULL : name, .rank = 2,
                    .shape = {240, 2048}, .elements = 491520, .judged = 491520, .gain = 1};
    if (v != Q3_VERDICT_EXACT && v != Q3_VERDICT_MISSING) {
        f.token_bins = f.channel_bins = Q3_PROFILE_BINS;
        for (size_t i = 0; i < Q3_PROFILE_BINS; i++) {
            f.token_profile[i] = (float)(next(state) % 3);
            f.channel_profile[i] = (float)(next(state) % 3);
        }
        f.differ = next(state) % 4096 + 1;
        f.max_ulp = v == Q3_VERDICT_DIFFERS ? 300.0 : 2.0;
        f.max_at[0] = next(state) % 240;
        f.max_bound_ratio = v == Q3_VERDICT_DIFFERS ? 60.0 : (double)(next(state) % 1000) / 1000;
        f.expected = 5000;
    }
    if (id == Q3_TAP_TOPK_INDICES) {
        f.margin_bins = Q3_PROFILE_BINS;
        for (size_t i = 0; i < Q3_PROFILE_BINS; i++)
            f.margins[i] = (float)(next(state) % 1000 + 1) / 65536;
    }
    if (v == Q3_VERDICT_DIFFERS)
        snprintf(f.reason, sizeof f.reason, "some elements outside the bound");
    q3_report_put_finding(lines, &f);
}

/* A run over layers [first, end); q_rope of one layer is wrong. Front tensors are judged by every
 * run. */
static void write_many(q3_text *lines, size_t layers, size_t first, size_t end)
{
    q3_judged_run run = {.model = "Qwen3-235B-A22B", .file = "backend.safetensors",
                         .dtype = Q3_BF16, .T = 240, .layers = layers, .first_layer = first,
                         .end_layer = end};
    uint64_t state = 7;
    q3_report_put_run(lines, &run);
    for (q3_tap_id id = first == 0 ? Q3_TAP_EMBED_TOKENS : Q3_TAP_COS; id <= Q3_TAP_SIN; id++)
        random_finding(lines, id, 0, Q3_VERDICT_EXACT, &state);
    for (size_t layer = first; layer < end; layer++) {
        state = 1000 + layer;
        for (q3_tap_id id = Q3_TAP_INPUT_LAYERNORM; id <= Q3_TAP_LAYER; id++) {
            bool dense = id >= Q3_TAP_DENSE_GATE_PROJ && id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
            q3_verdict v = next(&state) % 4 == 0 ? Q3_VERDICT_WITHIN : Q3_VERDICT_EXACT;
            if (layer >= 30 && layer < 50)
                v = id == Q3_TAP_LAYER ? Q3_VERDICT_EXACT : Q3_VERDICT_MISSING;
            if (layer == layers * 2 / 3 && id == Q3_TAP_Q_ROPE) v = Q3_VERDICT_DIFFERS;
            if (!dense) random_finding(lines, id, layer, v, &state);
        }
    }
    if (end < layers) return;
    random_finding(lines, Q3_TAP_NORM, 0, Q3_VERDICT_EXACT, &state);
    random_finding(lines, Q3_TAP_LM_HEAD, 0, Q3_VERDICT_WITHIN, &state);
}

static void check_same(const char *lines, const q3_text *text, const q3_text *html)
{
    q3_text other = {0}, page = {0};
    q3_error error = {""};
    CHECK(good_text(&other, lines, true, false) == Q3_OUTCOME_DIFFERS);
    CHECK(read_html(&page, lines, &error) == Q3_OK);
    CHECK(other.size == text->size && memcmp(other.data, text->data, text->size) == 0);
    CHECK(page.size == html->size && memcmp(page.data, html->data, html->size) == 0);
    release(&other);
    release(&page);
}

static void test_merge(void)
{
    q3_text whole = {0}, text = {0}, html = {0};
    const size_t layers = 14;
    q3_error error = {""};
    uint64_t state = 1;
    write_many(&whole, layers, 0, layers);
    CHECK(good_text(&text, whole.data, true, false) == Q3_OUTCOME_DIFFERS);
    CHECK(read_html(&html, whole.data, &error) == Q3_OK);
    for (int round = 0; round < 12; round++) {
        q3_text merged = {0}, parts[8] = {{0}};
        size_t cuts[9] = {0}, count = 1 + next(&state) % 6;
        for (size_t i = 1; i < count; i++) cuts[i] = cuts[i - 1] + 1 + next(&state) % 2;
        cuts[count] = layers;
        for (size_t i = 0; i < count; i++) /* some overlap */
            write_many(&parts[i], layers, cuts[i], cuts[i + 1] + (i + 1 < count && round % 3 == 0));
        for (size_t left = count; left > 0; left--) { /* in any order, one of them twice */
            size_t pick = next(&state) % left;
            q3_text_add(&merged, parts[pick].data);
            if (left == 1) q3_text_add(&merged, parts[pick].data);
            q3_text part = parts[pick];
            parts[pick] = parts[left - 1];
            release(&part);
        }
        check_same(merged.data, &text, &html);
        release(&merged);
    }
    release(&whole);
    release(&text);
    release(&html);
}

/* A run of layers [first, end) of 3, with the same trouble in each: the first `told` say what it
 * looks like. */
static void write_trouble(q3_text *lines, size_t first, size_t end, size_t told)
{
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 3,
                         .first_layer = first, .end_layer = end};
    char name[Q3_TAP_NAME_SIZE];
    q3_report_put_run(lines, &run);
    for (size_t layer = first; layer < end; layer++) {
        q3_finding f = {.name = name, .layer = layer, .verdict = Q3_VERDICT_DIFFERS,
                        .cause = "a mistake"};
        q3_tap_name(name, Q3_TAP_LAYER, layer);
        if (layer < first + told) snprintf(f.looks_like, sizeof f.looks_like, "a mistake");
        q3_report_put_finding(lines, &f);
    }
    add_rest(lines, first, end, 3);
}

/* One run tells a mistake that stands in every layer once; so do its parts, also where they
 * overlap. */
static void test_told_once(void)
{
    q3_text whole = {0}, text = {0}, html = {0};
    q3_error error = {""};
    write_trouble(&whole, 0, 3, 1);
    CHECK(good_text(&text, whole.data, true, false) == Q3_OUTCOME_DIFFERS);
    CHECK(read_html(&html, whole.data, &error) == Q3_OK);
    for (int overlap = 0; overlap < 2; overlap++) {
        q3_text merged = {0};
        write_trouble(&merged, 1, 3, 1);
        write_trouble(&merged, 2, 3, 1);
        write_trouble(&merged, 0, overlap ? 2 : 1, 1);
        check_same(merged.data, &text, &html);
        release(&merged);
    }
    release(&whole);
    release(&text);
    write_trouble(&whole, 0, 3, 3);
    memcpy(strstr(strstr(whole.data, "layers.1"), "a mistake"), "another", 7);
    write_trouble(&whole, 1, 2, 1);
    refused(whole.data,
            "lines: model.layers.1.output: found two findings that differ, expected one");
    release(&whole);
    release(&html);
}

/* A run of layers [first, end) of 8, where a tensor has its layer's cause: a letter, or '-' for
 * none. It looks as a run of these layers alone has it: each cause told once, four searches. */
static void write_causes(q3_text *lines, const char *causes, size_t first, size_t end,
                         const char *told)
{
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 8,
                         .first_layer = first, .end_layer = end};
    char name[Q3_TAP_NAME_SIZE];
    q3_report_put_run(lines, &run);
    for (size_t layer = first; layer < end; layer++) {
        q3_finding f = {.name = name, .layer = layer, .verdict = Q3_VERDICT_DIFFERS};
        q3_tap_name(name, Q3_TAP_LAYER, layer);
        char known = causes[layer], text = told[layer - first];
        if (known != '-') snprintf(f.cause, sizeof f.cause, "cause %c", known);
        if (text == 't') snprintf(f.looks_like, sizeof f.looks_like, "looks %c", known);
        q3_report_put_finding(lines, &f);
    }
    add_rest(lines, first, end, 8);
}

/* A second mistake at the same tap in a later layer is told, too; a mistake that was told is
 * recognised in any layer; behind four searches that named no other, no new one is looked for. */
static void test_causes_told(void)
{
    static const struct { const char *whole, *text, *part, *part_text; size_t from; } cases[] = {
        {"AABABBCA", "t.t...t.", "AABABBCA", "tt..t.", 2}, /* part: of layers 2 to 7 */
        {"AABABBCA", "t.t...t.", "AABABBCA", "t.t.", 4},
        {"ABCDADCB", "tttt....", "ABCDADCB", "tttt..", 2},
        {"ABCD-A-B", "tttt....", "ABCDEAFB", "tttt", 4},   /* E and F are beyond the four */
        {"---A-AA-", "tttt....", "---ABAA-", "tt.t", 4},   /* three that nothing explains */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        q3_text whole = {0}, merged = {0}, text = {0}, html = {0};
        q3_error error = {""};
        write_causes(&whole, cases[i].whole, 0, 8, cases[i].text);
        CHECK(good_text(&text, whole.data, true, false) == Q3_OUTCOME_DIFFERS);
        CHECK(read_html(&html, whole.data, &error) == Q3_OK);
        write_causes(&merged, cases[i].part, cases[i].from, 8, cases[i].part_text);
        write_causes(&merged, cases[i].whole, 0, cases[i].from, cases[i].text);
        check_same(merged.data, &text, &html);
        release(&whole);
        release(&merged);
        release(&text);
        release(&html);
    }
}

/* A rounding and a wrong value of one tap are two kinds of trouble: each is told. Taps of another
 * layer say which; two layers that look the same are two rows. */
static void test_two_layers(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 4,
                         .end_layer = 4};
    q3_finding f = {.name = TAP(0, "output"), .verdict = Q3_VERDICT_ROUNDING,
                    .looks_like = "a rounding", .cause = "one cause"};
    q3_report_put_run(&lines, &run);
    q3_report_put_finding(&lines, &f);
    f = (q3_finding){.name = TAP(1, "output"), .layer = 1, .verdict = Q3_VERDICT_DIFFERS,
                     .looks_like = "a mistake", .cause = "one cause", .between_count = 2,
                     .between = (const q3_layer_tap[]){{Q3_TAP_MLP, 0}, {Q3_TAP_MLP, 1}}};
    q3_report_put_finding(&lines, &f);
    add_rest(&lines, 0, 4, 4);
    CHECK(good_text(&text, lines.data, false, false) == Q3_OUTCOME_DIFFERS);
    CHECK(strstr(text.data, "looks like a rounding\n") != NULL);
    CHECK(strstr(text.data, "            looks like a mistake\n") != NULL);
    CHECK(strstr(text.data, "judged together with: layers.0.mlp, mlp\n") != NULL);
    CHECK(strstr(text.data, "\n    2  ") != NULL && strstr(text.data, "\n    3  ") != NULL);
    release(&lines);
    release(&text);
}

static void test_many_layers(void)
{
    q3_text lines = {0}, few = {0};
    write_many(&lines, 94, 0, 94);
    good_text(&few, lines.data, false, false);
    CHECK(strstr(few.data, "\n30-49  ") != NULL && strstr(few.data, "\n   40") == NULL);
    CHECK(strstr(few.data, "\n   29  ") != NULL && strstr(few.data, "\n   50  ") != NULL);
    for (const char *p = few.data, *end; *p != 0; p = end + 1) {
        end = strchr(p, '\n');
        CHECKF(end - p <= 110, "%.*s", (int)(end - p), p);
    }
    ends(&few, "model.layers.62.self_attn.q_rope.output is wrong: ",
         "differs: model.layers.62.self_attn.q_rope.output");
    CHECK(strstr(few.data, "more of the same") == NULL);
    release(&lines);
    write_many(&lines, 94, 40, 45); /* layers that look the same, and a gap */
    write_many(&lines, 94, 30, 35);
    good_text(&few, lines.data, false, false);
    CHECK(strstr(few.data, "\n30-34  ") != NULL && strstr(few.data, "\n40-44  ") != NULL);
    release(&lines);
    release(&few);
}

/* The lines of a run over 9 layers, but for those that hold `without`; then `with`. */
static void refused_parts(size_t first, size_t end, const char *without, const char *with,
                          const char *message)
{
    q3_text lines = {0}, kept = {0};
    write_many(&lines, 9, first, end);
    for (char *p = lines.data, *line; *p != 0; p = line + 1) {
        line = strchr(p, '\n');
        *line = 0;
        if (without != NULL && strstr(p, without) != NULL) continue;
        q3_text_add(&kept, p);
        q3_text_add(&kept, "\n");
    }
    q3_text_add(&kept, with);
    refused(kept.data, message);
    release(&lines);
    release(&kept);
}

static void test_parts(void)
{
    q3_text lines = {0}, text = {0}, more = {0};
    write_many(&lines, 20, 0, 3);
    write_many(&lines, 20, 8, 9);
    write_many(&lines, 20, 11, 16);
    CHECK(good_text(&text, lines.data, false, false) == Q3_OUTCOME_DIFFERS);
    CHECK(strstr(text.data, "\nlayers   not judged: 3-7 9 10 16-19\n") != NULL);
    CHECK(strstr(text.data, "lm_head") == NULL);
    release(&lines);
#define LOST ": found no line, expected one: part of a report is lost"
#define NO_RUN ".self_attn.q_proj.output: found a line, expected none: no run judged this layer"
    refused_parts(0, 9, "lm_head", "", "lines: lm_head.output" LOST);
    refused_parts(5, 9, "layers.8.output", "", "lines: model.layers.8.output" LOST);
    refused_parts(5, 7, "layers.5.", "", "lines: model.layers.5.input_layernorm.output" LOST);
    refused_parts(0, 9, "layers.3.self_attn.k_norm", "",
                  "lines: model.layers.3.self_attn.k_norm.output" LOST);
    refused_parts(0, 9, "layers.4.mlp.gate.", "", "lines: model.layers.4.mlp.gate.output" LOST);
    refused_parts(2, 9, "rotary_emb.sin", "", "lines: model.rotary_emb.sin" LOST);
    random_finding(&more, Q3_TAP_Q_PROJ, 9, Q3_VERDICT_EXACT, &(uint64_t){1});
    refused_parts(0, 9, NULL, more.data, "lines: model.layers.9" NO_RUN);
    release(&more);
    random_finding(&more, Q3_TAP_Q_PROJ, 1000000000, Q3_VERDICT_EXACT, &(uint64_t){1});
    refused_parts(0, 9, NULL, more.data, "lines: model.layers.1000000000" NO_RUN);
    release(&more);
    random_finding(&more, Q3_TAP_Q_PROJ, 3, Q3_VERDICT_SHAPE, &(uint64_t){1});
    refused_parts(4, 7, NULL, more.data, "lines: model.layers.3" NO_RUN);
#define TWO ".output: found two findings that differ, expected one"
    refused_parts(3, 7, NULL, more.data, "lines: model.layers.3.self_attn.q_proj" TWO);
    release(&more);
    random_finding(&more, Q3_TAP_LAYER, 40, Q3_VERDICT_EXACT, &(uint64_t){1});
    char *digit = strstr(more.data, "\"elements\":491520");
    CHECK(digit != NULL);
    if (digit != NULL) digit[16] = '9'; /* a line of the same length */
    write_many(&lines, 94, 40, 41);
    q3_text_add(&more, lines.data);
    refused(more.data, "lines: model.layers.40" TWO);
    release(&lines);
    release(&more);
    q3_judged_run run = {.model = "Qwen3-235B-A22B", .file = "backend.safetensors",
                         .dtype = Q3_F16, .T = 240, .layers = 9, .end_layer = 1};
    q3_report_put_run(&more, &run);
    refused_parts(
        8, 9, NULL, more.data, /* the run, 2, 25 and 2 lines stand before it */
        "lines: line 31: found another run (model, file, dtype or options), expected parts of one");
    release(&more);
    release(&text);
}

int main(void)
{
    test_merge();
    test_told_once();
    test_causes_told();
    test_two_layers();
    test_many_layers();
    test_parts();
    return t_done("test_merge");
}
