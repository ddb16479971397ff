/* SPDX-License-Identifier: MIT */
/* report*.c: lines of JSON, merged, asked, as text and as a page. What the page does in a browser:
 * scripts/ci/check_html.sh.
 *
 *   test_report            the tests
 *   test_report --page     the page of 94 layers on standard output */
#include "judge/report.h"
#include "t.h"

#include <math.h>

#define TAP(layer, rest) "model.layers." #layer "." rest
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static const char hostile[] = "a\"b\\</script><img src=x>&\x1b[31m\x7f\xc2\x9b\n\r\tz";

static void release(q3_text *text)
{
    free(text->data);
    memset(text, 0, sizeof *text);
}

static q3_status read_text(q3_text *text, q3_outcome *result, const char *lines, bool all,
                           bool colour, q3_error *error)
{
    q3_report_part part = {"lines", lines, strlen(lines)};
    q3_report *report;
    release(text);
    q3_status status = q3_report_read(&report, &part, 1, false, error);
    CHECK((status == Q3_OK) == (report != NULL));
    if (status != Q3_OK) return status;
    unsigned flags = (all ? Q3_REPORT_ALL : 0) | (colour ? Q3_REPORT_COLOUR : 0);
    status = q3_report_text(report, flags, &text->data, &text->size, error);
    CHECK(status == Q3_OK && text->data[text->size] == 0);
    *result = q3_report_outcome(report);
    q3_report_close(report);
    return status;
}

/* What a run of layers [first, end) of `layers`, none of them dense, writes a line for, too:
 * missing. */
static void add_rest(q3_text *lines, size_t first, size_t end, size_t layers)
{
    for (int id = 0; id < Q3_TAP_COUNT; id++) {
        bool front = id <= Q3_TAP_SIN, head = id >= Q3_TAP_NORM;
        if (id >= Q3_TAP_DENSE_GATE_PROJ && id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT) continue;
        if ((id == Q3_TAP_EMBED_TOKENS && first > 0) || (head && end < layers)) continue;
        for (size_t layer = front || head ? 0 : first; layer < (front || head ? 1 : end); layer++) {
            char name[Q3_TAP_NAME_SIZE], key[Q3_TAP_NAME_SIZE + 10];
            q3_tap_name(name, (q3_tap_id)id, layer);
            snprintf(key, sizeof key, "{\"tap\":\"%s\"", name);
            if (strstr(lines->data, key) == NULL)
                q3_report_put_finding(
                    lines,
                    &(q3_finding){.name = name, .layer = layer, .verdict = Q3_VERDICT_MISSING});
        }
    }
}

static q3_status read_html(q3_text *html, const char *lines, q3_error *error)
{
    q3_report_part part = {"lines", lines, strlen(lines)};
    q3_report *report;
    q3_status status = q3_report_read(&report, &part, 1, false, error);
    if (status != Q3_OK) return status;
    status = q3_report_html(report, &html->data, &html->size, error);
    q3_report_close(report);
    return status;
}

/* The text of lines that are a report. */
static q3_outcome good_text(q3_text *text, const char *lines, bool all, bool colour)
{
    q3_outcome result = Q3_OUTCOME_UNJUDGED;
    q3_error error = {""};
    q3_status status = read_text(text, &result, lines, all, colour, &error);
    CHECKF(status == Q3_OK && text->data != NULL && !text->failed, "status %d: %s", (int)status,
           error.text);
    return result;
}

/* The message of lines that are none. */
static void refused(const char *lines, const char *message)
{
    q3_text text = {0};
    q3_outcome result;
    q3_error error = {""};
    q3_status status = read_text(&text, &result, lines, false, false, &error);
    CHECKF(status == Q3_ERROR_INPUT && strcmp(error.text, message) == 0 && text.data == NULL,
           "status %d, \"%s\", expected \"%s\"", (int)status, error.text, message);
    release(&text);
}

/* "lines" ends with this line, and the one before begins so. */
static void ends(const q3_text *text, const char *before, const char *line)
{
    char end[512];
    snprintf(end, sizeof end, "\n%s\n", line);
    size_t n = strlen(end);
    const char *p = text->size > n ? text->data + text->size - n : text->data;
    CHECKF(strcmp(p, end) == 0, "expected \"%s\" at the end of \"%s\"", line, text->data);
    while (p > text->data && p[-1] != '\n') p--;
    bool begins = strncmp(p, before, strlen(before)) == 0;
    CHECKF(begins, "expected \"%s\" before the end of \"%s\"", before, text->data);
}

/* ==== Findings by hand ======================================================================== */

static const q3_judged_run run_of_three = {
    "golden/tiny", "theirs.safetensors", Q3_BF16, 24, 3, 3, 0, 3, false, false,
    "bf16", "float16", 2, "evil\x1b[31m",
};

static const q3_finding three_layers[] = {
    {.name = "model.embed_tokens.output", .verdict = Q3_VERDICT_EXACT,
     .given_as = "model.embed_tokens.output", .rank = 2, .shape = {24, 120}, .elements = 2880,
     .judged = 2880, .gain = 1},
    {.name = TAP(0, "self_attn.q_proj.output"), .verdict = Q3_VERDICT_WITHIN, .given_as = "Qcur-0",
     .note = "batch axis", .rank = 2, .shape = {24, 96}, .elements = 2304, .judged = 2304,
     .differ = 23, .over_1_ulp = 0, .expected = 115.2, .max_ulp = 1, .max_at = {2, 7},
     .max_bound_ratio = 0.75, .relative_l2 = 0.00012346, .gain = 0.99999949, .offset = -1e-7,
     .worst_token = 2, .worst_channel = 7},
    {.name = TAP(0, "mlp.topk_indices.output"), .verdict = Q3_VERDICT_NEAR_TIE,
     .given_as = TAP(0, "mlp.topk_indices.output"), .rank = 2, .shape = {24, 4}, .elements = 96,
     .judged = 96, .differ = 1, .gain = 1, .near_ties = 1, .other_order = 2, .margin_bins = 3,
     .margins = {0.5f, 0.0009765625f, 0.25f}},
    {.name = TAP(0, "output"), .verdict = Q3_VERDICT_EXACT, .given_as = "l_out-0", .rank = 2,
     .shape = {24, 120}, .elements = 2880, .judged = 2880, .gain = 1},
    {.name = TAP(1, "self_attn.q_rope.output"), .layer = 1, .verdict = Q3_VERDICT_DIFFERS,
     .given_as = TAP(1, "self_attn.q_rope.output"),
     .reason = "2016 of 2304 elements outside the bound", .rank = 3, .shape = {24, 6, 16},
     .elements = 2304, .judged = 2304, .differ = 2304, .over_1_ulp = 2016, .outside = 2016,
     .expected = 115.2, .max_ulp = 1234567, .max_at = {23, 5, 15}, .max_bound_ratio = 4096,
     .relative_l2 = 1.25, .gain = -0.123456789, .offset = 0.5, .worst_token = 23,
     .worst_channel = 15, .has_bad = true, .bad_at = {1, 0, 2}, .bad_ours = 0.75,
     .bad_theirs = -1.5, .bad_ulp = 288, .bad_bound_ulp = 1.5, .between_count = 1,
     .between = &(const q3_layer_tap){Q3_TAP_Q_NORM, 1},
     .looks_like = "RoPE interleaved, pairs (2i, 2i+1), explains 100 % of elements",
     .token_bins = 2, .token_profile = {0, 1234567}, .channel_bins = 1,
     .channel_profile = {1234567}},
    {.name = TAP(1, "output"), .layer = 1, .verdict = Q3_VERDICT_NON_FINITE,
     .given_as = TAP(1, "output"), .reason = "1 of 2880 elements outside the bound", .rank = 2,
     .shape = {24, 120}, .elements = 2880, .judged = 2880, .differ = 1, .over_1_ulp = 1,
     .outside = 1, .expected = 0, .max_ulp = 0x1p100, .max_at = {4, 20},
     .max_bound_ratio = (double)INFINITY, .relative_l2 = 0x1p100, .gain = (double)NAN,
     .offset = -(double)INFINITY, .worst_token = 4, .worst_channel = 20, .has_bad = true,
     .bad_at = {4, 20}, .bad_ours = 2, .bad_theirs = (double)INFINITY},
    {.name = TAP(2, "mlp.gate.output"), .layer = 2, .verdict = Q3_VERDICT_ROUNDING,
     .given_as = TAP(2, "mlp.gate.output"),
     .reason = "200 of 336 elements differ, at most 12 expected", .rank = 2, .shape = {24, 14},
     .elements = 336, .judged = 336, .differ = 200, .expected = 12, .max_ulp = 1, .max_at = {0, 0},
     .max_bound_ratio = 0.999, .relative_l2 = 0.002, .gain = 1, .offset = 0},
    {.name = TAP(2, "output"), .layer = 2, .verdict = Q3_VERDICT_UNJUDGED,
     .given_as = TAP(2, "output"), .reason = "the bound says something of 7 of 2880 elements only",
     .rank = 2, .shape = {24, 120}, .elements = 2880, .judged = 7, .differ = 1440,
     .over_1_ulp = 288, .expected = 7, .max_ulp = 12, .max_at = {1, 2}, .max_bound_ratio = 0.5,
     .relative_l2 = 0.01, .gain = 1, .between_count = 2,
     .between = (const q3_layer_tap[]){{Q3_TAP_EXPERTS_DOWN_PROJ, 2}, {Q3_TAP_MLP, 2}}},
    {.name = "lm_head.output", .verdict = Q3_VERDICT_MISSING, .rank = 2, .shape = {24, 2048}},
};

static const char text_of_three[] =
    "model    golden/tiny\n"
    "file     theirs.safetensors\n"
    "run      bfloat16, 24 tokens from position 3, teacher-forced, --accumulate bf16, --kv "
    "float16\n"
    "ignored  2 tensors that are no taps, the first: evil?[31m\n"
    "\n"
    "front  = embed_tokens   . rotary_emb.cos   . rotary_emb.sin\n"
    "       attention                            router             experts\n"
    "layer  norm q k v qn kn qr kr qk p pv o res norm rout rp ids w gate up act mul down mlp out\n"
    "    0  .    ~ . . .  .  .  .  .  . .  . .   .    .    .  t   . .    .  .   .   .    .   =\n"
    "    1  .    . . . .  .  X  .  .  . .  . .   .    .    .  .   . .    .  .   .   .    .   N\n"
    "    2  .    . . . .  .  .  .  .  . .  . .   .    r    .  .   . .    .  .   .   .    .   ?\n"
    "  end  . norm   . lm_head\n"
    "\n"
    "= exact  ~ within  r rounding  t near-tie  X differs  N non-finite  . missing  S shape  ? "
    "unjudged\n"
    "qn kn: q_norm, k_norm  qr kr: q_rope, k_rope  qk: scores  p: probs  pv: o_proj.input  res: "
    "residual sum\n"
    "rout: gate  rp: router_probs  ids w: topk_indices, topk_weights  mul: down_proj.input\n"
    "\n"
    "near-tie    model.layers.0.mlp.topk_indices.output\n"
    "            tokens: 0 with wrong experts, 1 near-ties, 2 in another order; smallest margin "
    "0.000977\n"
    "differs     model.layers.1.self_attn.q_rope.output\n"
    "            2016 of 2304 elements outside the bound\n"
    "            first: token 1, head 0, channel 2: ours 0.75, theirs -1.5, 288 ulp apart, bound "
    "1.5 ulp\n"
    "            most: 1.23e+06 ulp at token 23, head 5, channel 15; up to 4100 times the bound\n"
    "            relative L2 1.25, gain -0.123457, offset 0.5; worst token 23, worst channel 15\n"
    "            differ: 100 %, at most 5 % expected; by more than 1 ulp: 87.5 %\n"
    "            judged together with: self_attn.q_norm\n"
    "            looks like RoPE interleaved, pairs (2i, 2i+1), explains 100 % of elements\n"
    "non-finite  model.layers.1.output\n"
    "            1 of 2880 elements outside the bound\n"
    "            first: token 4, channel 20: ours 2, theirs inf\n"
    "            most: inf ulp at token 4, channel 20; up to inf times the bound\n"
    "            relative L2 inf, gain nan, offset -inf; worst token 4, worst channel 20\n"
    "            differ: 0.0347 %, at most 0 % expected; by more than 1 ulp: 0.0347 %\n"
    "rounding    model.layers.2.mlp.gate.output\n"
    "            200 of 336 elements differ, at most 12 expected\n"
    "            most: 1 ulp at token 0, channel 0; up to 0.999 times the bound\n"
    "            relative L2 0.002, gain 1, offset 0; worst token 0, worst channel 0\n"
    "            differ: 59.5 %, at most 3.57 % expected; by more than 1 ulp: 0 %\n"
    "unjudged    model.layers.2.output\n"
    "            the bound says something of 7 of 2880 elements only\n"
    "            most: 12 ulp at token 1, channel 2; up to 0.5 times the bound\n"
    "            relative L2 0.01, gain 1, offset 0; worst token 0, worst channel 0\n"
    "            differ: 50 %, at most 100 % expected; by more than 1 ulp: 10 %\n"
    "\n"
    "2 exact, 1 within, 1 rounding, 1 near-tie, 1 differs, 1 non-finite, 72 missing, 1 unjudged\n"
    "unjudged    1 tensor; to judge it, record some of: mlp.experts.down_proj, mlp\n"
    "model.layers.1.self_attn.q_rope.output is wrong: looks like RoPE interleaved, pairs (2i, "
    "2i+1), explains "
    "100 % of elements; judged together with self_attn.q_norm, which is not given\n"
    "differs: model.layers.1.self_attn.q_rope.output\n";

static const char lines_of_two[] =
    "{\"run\":{\"format\":\"qwen3moe-report-1\",\"model\":\"golden/tiny\","
    "\"file\":\"theirs.safetensors\","
    "\"dtype\":\"bfloat16\",\"tokens\":24,\"start\":3,\"num_hidden_layers\":3,\"first_layer\":0,"
    "\"end_layer\":3,"
    "\"free\":0,\"strict\":0,\"accumulate\":\"bf16\",\"kv\":\"float16\",\"unknown\":2,"
    "\"unknown_name\":\"evil\\u001b[31m\"}}\n"
    "{\"tap\":\"model.layers.1.self_attn.q_rope.output\",\"verdict\":\"differs\","
    "\"given_as\":\"model.layers.1.self_attn.q_rope.output\",\"note\":\"\","
    "\"reason\":\"2016 of 2304 elements outside the bound\","
    "\"looks_like\":\"RoPE interleaved, pairs (2i, 2i+1), explains 100 % of elements\","
    "\"shape\":[24,6,16],"
    "\"layer\":1,"
    "\"elements\":2304,\"judged\":2304,\"differ\":2304,\"over_1_ulp\":2016,\"outside\":2016,"
    "\"worst_token\":23,"
    "\"worst_channel\":15,\"near_ties\":0,\"wrong_sets\":0,\"other_order\":0,\"expected\":115.2,"
    "\"max_ulp\":1234567.0,"
    "\"max_ours\":0.0,\"max_theirs\":0.0,\"max_bound_ratio\":4096.0,\"relative_l2\":1.25,"
    "\"gain\":-0.123456789,"
    "\"offset\":0.5,\"max_at\":[23,5,15],\"bad\":{\"ours\":0.75,\"theirs\":-1.5,\"ulp\":288.0,"
    "\"bound_ulp\":1.5,"
    "\"at\":[1,0,2]},\"operators\":[\"model.layers.1.self_attn.q_norm.output\"],"
    "\"token_profile\":[0,1.23e+06],"
    "\"channel_profile\":[1.23e+06],\"margins\":[]}\n";

static void write_three(q3_text *lines, const q3_judged_run *run)
{
    q3_report_put_run(lines, run);
    for (size_t i = 0; i < COUNT(three_layers); i++) q3_report_put_finding(lines, &three_layers[i]);
    add_rest(lines, 0, 3, 3);
}

static void test_by_hand(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = run_of_three;
    q3_report_put_run(&lines, &run);
    q3_report_put_finding(&lines, &three_layers[4]);
    CHECK_TEXT(lines.data, lines_of_two);
    release(&lines);
    write_three(&lines, &run);
    CHECK(good_text(&text, lines.data, false, false) == Q3_OUTCOME_DIFFERS);
    CHECK_TEXT(text.data, text_of_three);
    CHECK(good_text(&text, lines.data, true, false) == Q3_OUTCOME_DIFFERS);
    CHECK(strstr(text.data, "within      model.layers.0.self_attn.q_proj.output (as Qcur-0)\n"
                            "            read as: batch axis\n") != NULL);
    CHECK(strstr(text.data, "missing     lm_head.output\n") != NULL);
    CHECK(strstr(text.data, "gain 0.999999, offset -1e-07; ") != NULL);
    release(&lines);
    release(&text);
}

/* ==== What they say together ================================================================== */

/* A run of one layer, whose tensors have these verdicts. */
static q3_outcome said(q3_text *text, q3_verdict layer, q3_verdict head, bool strict, bool colour)
{
    q3_text lines = {0};
    q3_judged_run run = {"m", "f", Q3_F32, 1, 0, 1, 0, 1, false, strict, "", "", 0, NULL};
    q3_finding f[2] = {{.name = TAP(0, "output"), .verdict = layer, .rank = 2, .shape = {1, 2},
                        .reason = "because"},
                       {.name = "lm_head.output", .verdict = head, .rank = 2, .shape = {1, 2}}};
    q3_report_put_run(&lines, &run);
    for (size_t i = 0; i < 2; i++) q3_report_put_finding(&lines, &f[i]);
    add_rest(&lines, 0, 1, 1);
    q3_outcome result = good_text(text, lines.data, false, colour);
    release(&lines);
    return result;
}

static void test_outcomes(void)
{
    static const char agrees[] = "every tensor that could be judged is within its bound";
    q3_text text = {0};
    CHECK(said(&text, Q3_VERDICT_EXACT, Q3_VERDICT_WITHIN, true, false) == Q3_OUTCOME_AGREES);
    ends(&text, agrees, "agrees");
    CHECK(strstr(text.data,
                 "\nrun      float32, 1 token from position 0, teacher-forced, strict\n") != NULL);
    CHECK(said(&text, Q3_VERDICT_NEAR_TIE, Q3_VERDICT_MISSING, true, false) == Q3_OUTCOME_AGREES);
    ends(&text, agrees, "agrees");
    CHECK(said(&text, Q3_VERDICT_UNJUDGED, Q3_VERDICT_MISSING, false, false) ==
          Q3_OUTCOME_UNJUDGED);
    ends(&text, "no tensor could be judged", "could not judge");
    CHECK(said(&text, Q3_VERDICT_MISSING, Q3_VERDICT_SHAPE, false, false) == Q3_OUTCOME_DIFFERS);
    ends(&text, "lm_head.output has another shape", "differs: lm_head.output");
    CHECK(said(&text, Q3_VERDICT_ROUNDING, Q3_VERDICT_DIFFERS, false, false) == Q3_OUTCOME_DIFFERS);
    ends(&text, "lm_head.output is wrong", "differs: lm_head.output");
    CHECK(said(&text, Q3_VERDICT_ROUNDING, Q3_VERDICT_DIFFERS, true, false) == Q3_OUTCOME_DIFFERS);
    ends(&text, "model.layers.0.output is rounded elsewhere: because",
         "differs: model.layers.0.output");
    CHECK(said(&text, Q3_VERDICT_ROUNDING, Q3_VERDICT_ROUNDING, false, false) == Q3_OUTCOME_AGREES);
    ends(&text,
         "2 tensors have another rounding point, inside the bound (--strict counts that); the "
         "first: model.layers.0.output",
         "agrees");
    CHECK(said(&text, Q3_VERDICT_NON_FINITE, Q3_VERDICT_DIFFERS, false, false) ==
          Q3_OUTCOME_DIFFERS);
    ends(&text, "model.layers.0.output is not finite where ours is: because",
         "differs: model.layers.0.output");
    CHECK(strchr(text.data, '\033') == NULL);
    CHECK(said(&text, Q3_VERDICT_NON_FINITE, Q3_VERDICT_EXACT, false, true) == Q3_OUTCOME_DIFFERS);
    ends(&text, "model.layers.0.output is not", "differs: model.layers.0.output");
    CHECK(strstr(text.data, "\033[1;37;41mN\033[0m") != NULL);
    CHECK(strstr(text.data, "\033[32m=\033[0m lm_head\n") != NULL);
    release(&text);
}

static void test_numbers(void)
{
    static const struct { double value; int digits; const char *text; } cases[] = {
        {0, 3, "0"}, {-0.0, 3, "0"}, {1, 3, "1"}, {-2.5, 3, "-2.5"}, {0.125, 3, "0.125"},
        {100, 3, "100"}, {12345, 3, "12300"}, {999.5, 3, "1000"}, {99.949, 3, "99.9"},
        {0.9996, 3, "1"}, {0.0001, 3, "0.0001"}, {0.000099996, 3, "0.0001"},
        {0.00001234, 3, "1.23e-05"}, {999499, 3, "999000"}, {999500, 3, "1e+06"},
        {1234567, 3, "1.23e+06"}, {1234567, 6, "1.23457e+06"}, {1e22, 3, "1e+22"},
        {5e-324, 3, "5e-324"}, {1.005e-300, 3, "1.01e-300"}, {0.99999949, 6, "0.999999"},
        {123456.5, 6, "123457"}, {1000000, 3, "1e+06"}, {2.5004, 3, "2.5"}, {42, 1, "40"},
        {0x1p99, 3, "6.34e+29"}, {0x1p100, 3, "inf"}, {-0x1p100, 3, "-inf"},
        {(double)INFINITY, 3, "inf"}, {-(double)INFINITY, 3, "-inf"}, {(double)NAN, 3, "nan"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        q3_text text = {0};
        q3_text_digits(&text, cases[i].value, cases[i].digits);
        CHECK_TEXT(text.data, cases[i].text);
        release(&text);
    }
}

/* ==== The report as an object ================================================================= */

static void test_asking(void)
{
    q3_text lines = {0};
    q3_report *r = NULL;
    q3_error error = {""};
    char *again = NULL;
    size_t length = 0;
    write_three(&lines, &run_of_three);
    size_t half = (size_t)(strchr(strchr(lines.data, '\n') + 1, '\n') - lines.data);
    const q3_report_part parts[] = {
        {"first", lines.data, half}, {"empty", NULL, 0},
        {"second", lines.data + half + 1, lines.size - half - 1},
    };
    CHECKF(q3_report_read(&r, parts, 3, true, &error) == Q3_OK, "%s", error.text);
    if (r == NULL) return;
    CHECK(q3_report_outcome(r) == Q3_OUTCOME_DIFFERS && q3_report_count(r) == 80);
    CHECK_TEXT(q3_report_finding(r, 0)->name, "model.embed_tokens.output");
    CHECK_TEXT(q3_report_finding(r, 79)->name, "lm_head.output");
    CHECK(q3_report_decisive(r) != NULL &&
          strcmp(q3_report_decisive(r)->name, three_layers[4].name) == 0);
    /* Judged are all of three_layers but the unjudged output of layer 2 and the missing lm_head. */
    q3_coverage all = q3_report_coverage(r);
    CHECK(all.taps_judged == 7 && all.taps_expected == 80 && all.layers_judged == 3 &&
          all.layers == 3);
    CHECK(q3_report_lines(r, &again, &length, NULL) == Q3_OK && length == lines.size);
    CHECK_TEXT(again, lines.data);
    free(again);
    q3_report_close(r);
    q3_report_close(NULL);
    CHECK(q3_report_read(&r, parts, 1, true, NULL) == Q3_ERROR_INPUT && r == NULL);
    release(&lines);
}

/* The layer's output alone says nothing of what is inside it. */
static void test_coverage(void)
{
    q3_text lines = {0};
    q3_report *r = NULL;
    q3_judged_run run = {"m", "f", Q3_F32, 1, 0, 4, 1, 3, false, false, "", "", 0, NULL};
    const q3_finding given[] = {
        {.name = TAP(1, "output"), .layer = 1, .verdict = Q3_VERDICT_EXACT},
        {.name = TAP(2, "mlp.output"), .layer = 2, .verdict = Q3_VERDICT_SHAPE},
        {.name = TAP(2, "output"), .layer = 2, .verdict = Q3_VERDICT_UNJUDGED},
    };
    q3_report_put_run(&lines, &run);
    for (size_t i = 0; i < COUNT(given); i++) q3_report_put_finding(&lines, &given[i]);
    add_rest(&lines, 1, 3, 4);
    const q3_report_part part = {"lines", lines.data, lines.size};
    CHECK(q3_report_read(&r, &part, 1, false, NULL) == Q3_OK);
    if (r == NULL) return;
    q3_coverage all = q3_report_coverage(r);
    CHECK(all.taps_judged == 2 && all.taps_expected == 52 && all.layers_judged == 1 &&
          all.layers == 4);
    q3_report_close(r);
    q3_error error = {""};
    CHECK(q3_report_read(&r, &part, 1, true, &error) == Q3_ERROR_INPUT && r == NULL);
    CHECK_TEXT(error.text, "lines: layer 0: found no report of it, expected one");
    release(&lines);
}

/* Read back bit for bit, what is not finite too. */
static void test_round_trip(void)
{
    static const double values[] = {
        0.1, -0.0, 5e-324, 1.7976931348623157e308, -1.0 / 3, (double)INFINITY, -(double)INFINITY,
    };
    static const float profile[] = {0, 0.5f, 12.5f, 300, 0.125f, INFINITY, 250000};
    q3_text lines = {0};
    q3_error error = {""};
    q3_report *r;
    q3_judged_run run = {"m", "f", Q3_F16, 5, 7, 0, 0, 0, true, true, "", "", 0, NULL};
    q3_finding f = {
        .name = "x", .rank = 1, .shape = {9}, .max_at = {8}, .token_bins = Q3_PROFILE_BINS};
    q3_report_put_run(&lines, &run);
    for (size_t i = 0; i < Q3_PROFILE_BINS; i++)
        f.token_profile[i] = profile[i % COUNT(profile)]; /* three digits */
    f.expected = values[0], f.max_ulp = values[1], f.max_ours = values[2], f.max_theirs = values[3];
    f.relative_l2 = values[4], f.gain = values[5], f.offset = values[6],
    f.max_bound_ratio = (double)NAN;
    f.elements = SIZE_MAX;
    q3_report_put_finding(&lines, &f);
    q3_report_part part = {"lines", lines.data, lines.size};
    q3_status status = q3_report_read(&r, &part, 1, false, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    if (status == Q3_OK) {
        const q3_finding *g = q3_report_finding(r, 0);
        const double got[] = {
            g->expected, g->max_ulp, g->max_ours, g->max_theirs, g->relative_l2, g->gain, g->offset,
        };
        CHECK(memcmp(got, values, sizeof got) == 0 && g->max_bound_ratio != g->max_bound_ratio);
        CHECK(memcmp(g->token_profile, f.token_profile, sizeof f.token_profile) == 0);
        CHECK(g->token_bins == Q3_PROFILE_BINS && g->channel_bins == 0);
        CHECK(g->elements == SIZE_MAX && g->max_at[0] == 8 && g->rank == 1 && g->given_as == NULL);
        CHECK(r->run.dtype == Q3_F16 && r->run.T == 5 && r->run.start == 7 && r->run.free_running &&
              r->run.strict);
    }
    q3_report_close(r);
    release(&lines);
}

/* ==== The page ================================================================================ */

static size_t count_of(const char *text, const char *piece)
{
    size_t count = 0;
    for (; (text = strstr(text, piece)) != NULL; text++) count++;
    return count;
}

static void test_page(void)
{
    q3_text lines = {0}, html = {0};
    q3_error error = {""};
    write_three(&lines, &run_of_three);
    CHECK(read_html(&html, lines.data, &error) == Q3_OK);
    CHECK(count_of(html.data, " class=\"c w2\" aria-label=\"" TAP(0, "self_attn.q_proj.output")
                              ": within\">~<") == 1);
    CHECK(count_of(html.data, "\" data-first>") == 1);
    CHECK(strstr(html.data, TAP(1, "self_attn.q_rope.output") ": differs\" data-first>X<") != NULL);
    CHECK(count_of(html.data, "class=name data-i=") == 5); /* neither exact, within nor missing */
    CHECK(strstr(html.data, "<dt>not judged") == NULL);
    release(&lines);
    release(&html);
}

/* A dense layer's taps stand in the columns of the experts'; a layer that no run judged is said. */
static void test_dense_page(void)
{
    q3_text lines = {0}, html = {0};
    q3_error error = {""};
    q3_judged_run run = {"m", "f", Q3_F32, 1, 0, 3, 0, 2, false, false, "", "", 0, NULL};
    q3_report_put_run(&lines, &run);
    for (q3_tap_id id = 0; id < Q3_TAP_COUNT; id++) {
        char name[Q3_TAP_NAME_SIZE];
        q3_finding f = {.name = name, .layer = 1, .verdict = Q3_VERDICT_MISSING};
        if (!q3_tap_in_layer(id) || q3_tap_info(id)->place == Q3_PLACE_SPARSE) continue;
        q3_tap_name(name, id, 1);
        q3_report_put_finding(&lines, &f);
    }
    add_rest(&lines, 0, 1, 3);
    CHECKF(read_html(&html, lines.data, &error) == Q3_OK, "%s", error.text);
    if (html.data != NULL) {
        CHECK(count_of(html.data, "<th scope=col>") == 25);
        CHECK(count_of(html.data, "aria-label=\"" TAP(1, "mlp.gate_proj.output")) == 1);
        CHECK(strstr(html.data, "<dt>not judged<dd>layers 2\n") != NULL);
    }
    release(&lines);
    release(&html);
}

/* ==== Names from files ======================================================================== */

static void test_hostile(void)
{
    q3_text lines = {0}, text = {0}, html = {0};
    q3_error error = {""};
    q3_judged_run run = {
        "caf\xc3\xa9 \xff", hostile, Q3_F32, 1, 0, 1, 0, 1, false, false, "", "", 1, hostile};
    q3_finding f[2] = {
        {.name = TAP(0, "output"), .verdict = Q3_VERDICT_DIFFERS, .given_as = hostile},
        {.name = "lm_head.output", .verdict = Q3_VERDICT_EXACT}};
    snprintf(f[0].note, sizeof f[0].note, "%s", hostile);
    snprintf(f[0].reason, sizeof f[0].reason, "%s", hostile);
    snprintf(f[0].looks_like, sizeof f[0].looks_like, "%s", hostile);
    q3_report_put_run(&lines, &run);
    for (size_t i = 0; i < 2; i++) q3_report_put_finding(&lines, &f[i]);
    size_t newlines = 0;
    for (size_t i = 0; i < lines.size; i++) newlines += lines.data[i] == '\n';
    add_rest(&lines, 0, 1, 1);
    CHECK(newlines == 3 && strchr(lines.data, '<') == NULL && strchr(lines.data, '\t') == NULL);
    good_text(&text, lines.data, true, false);
    for (size_t i = 0; i < text.size; i++) {
        unsigned char c = (unsigned char)text.data[i];
        CHECKF((c >= 0x20 || c == '\n') && c != 0x7F && c != 0x9B, "byte %d", c);
    }
    static const char start[] = "model    caf\xc3\xa9 \xef\xbf\xbd\n"
                                "file     a\"b\\</script><img src=x>&?[31m?????z\n";
    CHECK(strncmp(text.data, start, strlen(start)) == 0);
    CHECK(strstr(text.data, "???z\ndiffers: model.layers.0.output\n") != NULL);
    CHECK(read_html(&html, lines.data, &error) == Q3_OK);
    size_t scripts = 0;
    for (const char *p = html.data; (p = strstr(p, "</script")) != NULL; p++) scripts++;
    CHECK(scripts == 2 && strstr(html.data, "<img") == NULL);
    CHECK(strstr(html.data, "&lt;img src=x&gt;&amp;") != NULL);
    release(&lines);
    release(&text);
    release(&html);
}

/* Tensors of a diff that are no taps stand behind the taps, in the order of the lines. */
static void test_diff(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = {"a", "b", Q3_F32, 0, 0, 0, 0, 0, false, false, "", "", 0, NULL};
    q3_report_put_run(&lines, &run);
    CHECK(good_text(&text, lines.data, false, false) == Q3_OUTCOME_AGREES);
    CHECK_TEXT(text.data, "first    a\nsecond   b\n\nno tensors\n"
                          "both files hold the same tensors with equal values\nagrees\n");
    q3_finding f = {.name = "zebra", .verdict = Q3_VERDICT_EXACT, .rank = 1, .shape = {3}};
    q3_report_put_finding(&lines, &f);
    f = (q3_finding){
        .name = "ape", .verdict = Q3_VERDICT_MISSING, .reason = "only in the first file"};
    q3_report_put_finding(&lines, &f);
    f = (q3_finding){.name = TAP(7, "output"), .layer = 7, .verdict = Q3_VERDICT_EXACT};
    q3_report_put_finding(&lines, &f);
    f = (q3_finding){
        .name = "zebra", .verdict = Q3_VERDICT_EXACT, .rank = 1, .shape = {3}}; /* again */
    q3_report_put_finding(&lines, &f);
    CHECK(good_text(&text, lines.data, true, false) == Q3_OUTCOME_DIFFERS);
    const char *tap =
        strstr(text.data, "exact       model.layers.7.output\nexact       zebra\nmissing     ape\n"
                          "            only in the first file\n\n2 exact, 1 missing\n");
    CHECKF(tap != NULL, "%s", text.data);
    ends(&text, "ape is missing: only in the first file", "differs: ape");
    good_text(&text, lines.data, false, false);
    CHECK(strstr(text.data, "\n\nmissing     ape\n            only in the first file\n\n2 exact") !=
          NULL);
    CHECK(strstr(text.data, "\n    7  ") != NULL);
    release(&lines);
    release(&text);
}

/* ==== Lines that are no report ================================================================ */

static size_t value_length(const char *p)
{
    size_t n = 0, depth = 0;
    bool text = false;
    for (; p[n] != 0; n++) {
        if (p[n] == '"' && (n == 0 || p[n - 1] != '\\')) text = !text;
        if (text) continue;
        if (depth == 0 && (p[n] == ',' || p[n] == '}' || p[n] == ']')) break;
        depth += p[n] == '{' || p[n] == '[';
        depth -= p[n] == '}' || p[n] == ']';
    }
    return n;
}

/* The line with this key called otherwise (value NULL), or with another value. */
static void change(char *out, size_t size, const char *line, const char *key, const char *value)
{
    char quoted[40];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *p = strstr(line, quoted);
    CHECKF(p != NULL, "%s is not there", key);
    if (p == NULL) return;
    const char *rest = p + strlen(quoted);
    size_t skip = value != NULL ? value_length(rest) : 0;
    snprintf(out, size, "%.*s\"%s%s\":%s%s", (int)(p - line), line, value != NULL ? "" : "no_", key,
             value != NULL ? value : "", rest + skip);
}

/* Keys of the second line of lines_of_two, and of its first; values that are wrong beside a missing
 * one. */
static const struct { const char *key, *values[4]; } keys[] = {
    {"tap", {"5", "null", "\"a\\u0000b\""}}, {"verdict", {"\"good\"", "3"}}, {"given_as", {"5"}},
    {"note", {"null", "[]"}}, {"reason", {"null", "{}"}}, {"looks_like", {"7"}},
    {"shape", {"[24,6,16,1]", "[24,-6,16]", "24"}}, {"layer", {"2", "-1", "1.5"}},
    {"elements", {"\"5\"", "18446744073709551616"}}, {"judged", {"1e3"}}, {"differ", {"null"}},
    {"over_1_ulp", {"true"}}, {"outside", {"[]"}}, {"worst_token", {"0.0"}},
    {"worst_channel", {"{}"}}, {"near_ties", {"null"}}, {"wrong_sets", {"-1"}},
    {"other_order", {"\"1\""}}, {"expected", {"\"many\"", "null"}}, {"max_ulp", {"\"Infinity\""}},
    {"max_ours", {"[]"}}, {"max_theirs", {"null"}}, {"max_bound_ratio", {"true"}},
    {"relative_l2", {"\"\""}}, {"gain", {"{}"}}, {"offset", {"\"-nan\""}},
    {"max_at", {"[23,5]", "[23,5,15,1]", "5", "[0,0,\"\"]"}}, {"bad", {"5", "[]"}},
    {"ours", {"null"}}, {"theirs", {"\"x\""}}, {"ulp", {"[]"}}, {"bound_ulp", {"null"}},
    {"at", {"[1]", "null"}}, {"operators", {"null", "[5]", "[\"model.layers.1.nothing\"]"}},
    {"token_profile", {"[\"\"]", "5"}}, {"channel_profile", {"{}"}}, {"margins", {"null"}},
};
static const struct { const char *key, *values[4]; } run_keys[] = {
    {"format", {"null", "1"}}, {"model", {"null", "5"}}, {"file", {"[]"}},
    {"dtype", {"\"int8\"", "5"}}, {"tokens", {"-1"}}, {"start", {"\"0\""}},
    {"num_hidden_layers", {"65536", "null"}}, {"first_layer", {"1.0"}}, {"end_layer", {"4", "0"}},
    {"free", {"true"}}, {"strict", {"null"}}, {"accumulate", {"null"}}, {"kv", {"5"}},
    {"unknown", {"\"\""}}, {"unknown_name", {"5"}},
};

static void refused_key(const char *run, const char *line, const char *key, const char *value,
                        int number)
{
    static char changed[4096], lines[8192];
    char message[128];
    change(changed, sizeof changed, number == 1 ? run : line, key, value);
    snprintf(lines, sizeof lines, "%s%s", number == 1 ? changed : run,
             number == 1 ? line : changed);
    snprintf(message, sizeof message,
             "lines: line %d: found no %s of the right type, expected a line of a report", number,
             key);
    refused(lines, message);
}

static void test_malformed(void)
{
    static char run[1024], line[2048], lines[8192];
    const char *second = strchr(lines_of_two, '\n') + 1;
    snprintf(run, sizeof run, "%.*s", (int)(second - lines_of_two), lines_of_two);
    snprintf(line, sizeof line, "%s", second);
    for (size_t i = 0; i < COUNT(keys); i++) {
        refused_key(run, line, keys[i].key, NULL, 2);
        for (size_t k = 0; k < 4 && keys[i].values[k] != NULL; k++)
            refused_key(run, line, keys[i].key, keys[i].values[k], 2);
    }
    for (size_t i = 0; i < COUNT(run_keys); i++) {
        refused_key(run, line, run_keys[i].key, NULL, 1);
        for (size_t k = 0; k < 4 && run_keys[i].values[k] != NULL; k++)
            refused_key(run, line, run_keys[i].key, run_keys[i].values[k], 1);
    }
    change(lines, sizeof lines, run, "format", "\"qwen3moe-report-2\"");
    refused(lines, "lines: line 1: format: found qwen3moe-report-2, expected qwen3moe-report-1");
    refused("", "lines: found no line of a run, expected reports that check or diff wrote");
    refused(line, "lines: found no line of a run, expected reports that check or diff wrote");
    refused("\n\n5\n",
            "lines: line 3: found no tap of the right type, expected a line of a report");
    snprintf(lines, sizeof lines, "%s%.50s", run, line);
    refused(lines, "lines: line 2: byte 50: found the end of the text, expected the rest of a "
                   "string (control characters need an escape)");
}

/* ==== Merging ================================================================================= */

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
    q3_judged_run run = {"Qwen3-235B-A22B", "backend.safetensors", Q3_BF16, 240, 0, layers, first,
                         end, false, false, "", "", 0, NULL};
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
    q3_judged_run run = {"m", "f", Q3_F32, 1, 0, 3, first, end, false, false, "", "", 0, NULL};
    char name[Q3_TAP_NAME_SIZE];
    q3_report_put_run(lines, &run);
    for (size_t layer = first; layer < end; layer++) {
        q3_finding f = {.name = name, .layer = layer, .verdict = Q3_VERDICT_DIFFERS};
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

/* A rounding and a wrong value of one tap are two kinds of trouble: each is told. Taps of another
 * layer say which; two layers that look the same are two rows. */
static void test_two_layers(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = {"m", "f", Q3_F32, 1, 0, 4, 0, 4, false, false, "", "", 0, NULL};
    q3_finding f = {.name = TAP(0, "output"), .verdict = Q3_VERDICT_ROUNDING,
                    .looks_like = "a rounding"};
    q3_report_put_run(&lines, &run);
    q3_report_put_finding(&lines, &f);
    f = (q3_finding){.name = TAP(1, "output"), .layer = 1, .verdict = Q3_VERDICT_DIFFERS,
                     .looks_like = "a mistake", .between_count = 2,
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

/* Long texts are broken between words; of one tap and verdict three are shown. */
static void test_long(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = {"m", "f", Q3_F32, 1, 0, 5, 0, 5, false, false, "", "", 0, NULL};
    char name[Q3_TAP_NAME_SIZE];
    q3_report_put_run(&lines, &run);
    for (size_t layer = 0; layer < 5; layer++) {
        q3_tap_name(name, Q3_TAP_LAYER, layer);
        q3_finding f = {.name = name, .layer = layer, .verdict = Q3_VERDICT_SHAPE};
        memset(f.reason, 'a', 120); /* 98 columns fit behind the first 12 */
        memcpy(f.reason, "b c", 3);
        f.reason[98 + (layer == 1)] = f.reason[101] = ' '; /* layer 1: a column too many */
        q3_report_put_finding(&lines, &f);
    }
    q3_report_put_finding(&lines,
                          &(q3_finding){.name = "lm_head.output", .verdict = Q3_VERDICT_SHAPE});
    add_rest(&lines, 0, 5, 5);
    good_text(&text, lines.data, false, false);
    const char *line = strstr(text.data, "            b c");
    CHECK(line != NULL && strcspn(line, "\n") == 110);
    CHECK(line != NULL && strncmp(line + 110, "\n            aa aaaaaaaaaaaaaaaaaa\n", 35) == 0);
    CHECK(strstr(text.data, "model.layers.1.output\n            b\n            caaa") != NULL);
    CHECK(strstr(text.data, "shape       model.layers.2.output\n") != NULL);
    CHECK(strstr(text.data, "shape       model.layers.3.output\n") == NULL);
    CHECK(strstr(text.data,
                 "shape       lm_head.output\nand 2 more of the same taps in later layers "
                 "(--all shows them)\n\n124 missing, 6 shape\n") != NULL);
    good_text(&text, lines.data, true, false);
    CHECK(strstr(text.data, "shape       model.layers.4.output\n") != NULL &&
          strstr(text.data, "more") == NULL);
    release(&lines);
    release(&text);
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
    q3_judged_run run = {"Qwen3-235B-A22B", "backend.safetensors", Q3_F16, 240, 0, 9, 0, 1,
                      false, false, "", "", 0, NULL};
    q3_report_put_run(&more, &run);
    refused_parts(
        8, 9, NULL, more.data, /* the run, 2, 25 and 2 lines stand before it */
        "lines: line 31: found another run (model, file, dtype or options), expected parts of one");
    release(&more);
    release(&text);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--page") == 0) {
        q3_text lines = {0}, html = {0};
        q3_error error;
        write_many(&lines, 94, 0, 94);
        if (read_html(&html, lines.data, &error) != Q3_OK) return 1;
        fwrite(html.data, 1, html.size, stdout);
        release(&lines);
        release(&html);
        return 0;
    }
    test_by_hand();
    test_outcomes();
    test_numbers();
    test_asking();
    test_coverage();
    test_round_trip();
    test_page();
    test_dense_page();
    test_hostile();
    test_diff();
    test_malformed();
    test_merge();
    test_told_once();
    test_two_layers();
    test_many_layers();
    test_long();
    test_parts();
    return t_done("test_report");
}
