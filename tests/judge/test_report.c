/* SPDX-License-Identifier: MIT */
/* report*.c: lines of JSON, read, asked, as text and as a page. Several runs: test_merge.c. What
 * the page does in a browser: scripts/ci/check_html.sh. */
#include "report_lines.h"

#include <math.h>
#include <time.h>

static const char hostile[] = "a\"b\\</script><img src=x>&\x1b[31m\x7f\xc2\x9b\n\r\tz";

/* ==== Findings by hand ======================================================================== */

static const char *three_hashes[] = {"0a", "0b", "0c"};
static const char *globs[] = {"*.mlp.*"};
static const q3_judged_run run_of_three = {.model = "golden/tiny", .file = "theirs.safetensors",
                                           .dtype = Q3_BF16, .T = 24, .start = 3, .layers = 3,
                                           .end_layer = 3, .accumulate = "bf16", .kv = "float16",
                                           .unknown = 2, .unknown_name = "evil\x1b[31m",
                                           .router = "float16",
                                           .version = "1.2", .command = "qwen3moe check",
                                           .weights = {three_hashes, 3}, .require = {globs, 1},
                                           .unknowns = &(q3_unknown){"evil\x1b[31m", ""},
                                           .unknown_count = 1};

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
     .cause = "RoPE interleaved, pairs (2i, 2i+1)", .worst_count = 1,
     .worst = {{{1, 0, 2}, 0.75, -1.5, 288, 1.5}},
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
    "weights  f13ce41c44f9234dea9cab3f0d64ebcb\n" /* printf 0a0b0c | sha256sum */
    "file     theirs.safetensors\n"
    "run      bfloat16, 24 tokens from position 3, teacher-forced, --accumulate bf16, --kv "
    "float16, --router float16\n"
    "command  qwen3moe check\n"
    "version  qwen3moe 1.2\n"
    "ignored  2 tensors that are no taps, the first: evil?[31m\n"
    "         evil?[31m: looks like a tap\n"
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
    "            tokens: 0 with wrong experts, 1 near-tie, 2 in another order; smallest margin "
    "0.000977\n"
    "differs     model.layers.1.self_attn.q_rope.output\n"
    "            2016 of 2304 elements outside the bound\n"
    "            first: token 1, head 0, channel 2: ours 0.75, theirs -1.5, 288 ulp apart, bound "
    "1.5 ulp\n"
    "            worst: token 1, head 0, channel 2: ours 0.75, theirs -1.5, 288 ulp apart, bound "
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
    "coverage    6 of 75 taps of the layers judged, 3 of 3 layers reached, lm_head not judged\n"
    "28 required taps are not judged (--require), the first: model.layers.0.mlp.gate.output is "
    "missing\n"
    "2 independent mistakes, the gravest first:\n"
    "  model.layers.1.output is not finite where ours is: 1 of 2880 elements outside the bound\n"
    "  model.layers.1.self_attn.q_rope.output is wrong: looks like RoPE interleaved, pairs (2i, "
    "2i+1), explains "
    "100 % of elements; judged together with self_attn.q_norm, which is not given\n"
    "differs: model.layers.1.self_attn.q_rope.output\n";

static const char lines_of_two[] =
    "{\"run\":{\"format\":\"qwen3moe-report-1\",\"model\":\"golden/tiny\","
    "\"file\":\"theirs.safetensors\","
    "\"dtype\":\"bfloat16\",\"tokens\":24,\"start\":3,\"num_hidden_layers\":3,\"first_layer\":0,"
    "\"end_layer\":3,"
    "\"free\":0,\"strict\":0,\"accumulate\":\"bf16\",\"kv\":\"float16\",\"unknown\":2,"
    "\"unknown_name\":\"evil\\u001b[31m\",\"router\":\"float16\",\"version\":\"1.2\","
    "\"command\":\"qwen3moe check\",\"dtype_note\":\"\",\"weights\":[\"0a\",\"0b\",\"0c\"],"
    "\"token_text\":[],\"require\":[\"*.mlp.*\"],"
    "\"unknown_names\":[{\"name\":\"evil\\u001b[31m\",\"nearest\":\"\"}],\"side\":\"\"}}\n"
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
    "\"channel_profile\":[1.23e+06],\"margins\":[],"
    "\"cause\":\"RoPE interleaved, pairs (2i, 2i+1)\","
    "\"worst\":[{\"ours\":0.75,\"theirs\":-1.5,\"ulp\":288.0,\"bound_ulp\":1.5,\"at\":[1,0,2]}],"
    "\"side\":\"\"}\n";

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
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 1,
                         .end_layer = 1, .strict = strict};
    q3_finding f[2] = {{.name = TAP(0, "output"), .verdict = layer, .rank = 2, .shape = {1, 2},
                        .reason = "because"},
                       {.name = "lm_head.output", .verdict = head, .rank = 2, .shape = {1, 2},
                        .reason = "because"}};
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
    ends(&text, "lm_head.output has another shape: because", "differs: lm_head.output");
    CHECK(said(&text, Q3_VERDICT_ROUNDING, Q3_VERDICT_DIFFERS, false, false) == Q3_OUTCOME_DIFFERS);
    ends(&text, "lm_head.output is wrong: because", "differs: lm_head.output");
    CHECK(said(&text, Q3_VERDICT_ROUNDING, Q3_VERDICT_DIFFERS, true, false) == Q3_OUTCOME_DIFFERS);
    ends(&text, "  model.layers.0.output is rounded elsewhere: because",
         "differs: model.layers.0.output");
    CHECK(strstr(text.data, "\n2 independent mistakes, the gravest first:\n"
                            "  lm_head.output is wrong: because\n"
                            "  model.layers.0.output is rounded elsewhere: because\n") != NULL);
    CHECK(said(&text, Q3_VERDICT_ROUNDING, Q3_VERDICT_ROUNDING, false, false) == Q3_OUTCOME_AGREES);
    ends(&text,
         "2 tensors have another rounding point, inside the bound (--strict counts that); the "
         "first: model.layers.0.output",
         "agrees");
    CHECK(said(&text, Q3_VERDICT_NON_FINITE, Q3_VERDICT_DIFFERS, false, false) ==
          Q3_OUTCOME_DIFFERS);
    CHECK(strstr(text.data, "\n2 independent mistakes, the gravest first:\n"
                            "  model.layers.0.output is not finite where ours is: because\n"
                            "  lm_head.output is wrong: because\n"
                            "differs: model.layers.0.output\n") != NULL);
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

/* Long texts are broken between words; of one tap and verdict three are shown. */
static void test_long(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 5,
                         .end_layer = 5};
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
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 4,
                         .first_layer = 1, .end_layer = 3};
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
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F16, .T = 5, .start = 7,
                         .free_running = true, .strict = true};
    q3_finding f = {
        .name = "x", .rank = 1, .shape = {9}, .max_at = {8}, .token_bins = Q3_PROFILE_BINS};
    q3_report_put_run(&lines, &run);
    for (size_t i = 0; i < Q3_PROFILE_BINS; i++)
        f.token_profile[i] = profile[i % COUNT(profile)]; /* three digits */
    f.expected = values[0], f.max_ulp = values[1], f.max_ours = values[2], f.max_theirs = values[3];
    f.relative_l2 = values[4], f.gain = values[5], f.offset = values[6],
    f.max_bound_ratio = (double)NAN;
    f.elements = UINT64_MAX; /* more than a size_t may hold */
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
        CHECK(g->elements == UINT64_MAX && g->given_as == NULL);
        CHECK(g->max_at[0] == 8 && g->rank == 1);
        CHECK(r->run.dtype == Q3_F16 && r->run.T == 5 && r->run.start == 7 && r->run.free_running &&
              r->run.strict);
    }
    q3_report_close(r);
    release(&lines);
}

/* Keys that came later: a line without them says nothing of them; with them it is read as written.
 * One of the wrong kind is refused. */
static void test_added_keys(void)
{
    static const char *const bad[][3] = {
        {"\"weights\":[\"0a\",", "\"weights\":[", "lines: line 1: found no weights"},
        {"\"require\":[\"*.mlp.*\"", "\"require\":[7", "lines: line 1: found no require"},
        {"\"nearest\":\"\"", "\"nearest\":null", "lines: line 1: found no nearest"},
        {"\"token_text\":[]", "\"token_text\":[\"\"]", "lines: line 1: found no token_text"},
        {"\"cause\":\"", "\"cause\":[],\"x\":\"", "lines: line 2: found no cause"},
        {"\"worst\":[", "\"worst\":[{},", "lines: line 2: found no ours"},
        {"\"worst\":[", "\"worst\":[5,", "lines: line 2: found no worst"},
    };
    q3_report *r = NULL;
    q3_error error = {""};
    const char *run = strstr(lines_of_two, ",\"router\""), *tap = strstr(run, "}}\n");
    const char *cause = strstr(tap, ",\"cause\"");
    char old[sizeof lines_of_two];
    snprintf(old, sizeof old, "%.*s%.*s}\n", (int)(run - lines_of_two), lines_of_two,
             (int)(cause - tap), tap);
    for (int added = 0; added < 2; added++) {
        q3_text all = {0};
        q3_text_add(&all, added ? lines_of_two : old);
        add_rest(&all, 0, 3, 3);
        q3_report_part part = {"lines", all.data, all.size};
        CHECKF(q3_report_read(&r, &part, 1, false, &error) == Q3_OK, "%s", error.text);
        if (r == NULL) return;
        const q3_finding *f = q3_report_decisive(r);
        CHECK_TEXT(r->run.router, added ? "float16" : "");
        CHECK_TEXT(r->run.command, added ? "qwen3moe check" : "");
        CHECK_TEXT(f->cause, added ? "RoPE interleaved, pairs (2i, 2i+1)" : "");
        CHECK(f->worst_count == (size_t)added && r->run.unknown_count == (size_t)added);
        CHECK(r->run.weights.count == (added ? 3 : 0) && r->run.require.count == (size_t)added);
        if (added)
            CHECK(f->worst[0].at[2] == 2 && f->worst[0].theirs == -1.5 &&
                  strcmp(r->run.weights.items[2], "0c") == 0);
        q3_report_close(r);
        release(&all);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        q3_text all = {0};
        const char *at = strstr(lines_of_two, bad[i][0]);
        CHECK(at != NULL);
        if (at == NULL) continue;
        char head[sizeof lines_of_two], message[200];
        snprintf(head, sizeof head, "%.*s", (int)(at - lines_of_two), lines_of_two);
        q3_text_add(&all, head);
        q3_text_add(&all, bad[i][1]);
        q3_text_add(&all, at + strlen(bad[i][0]));
        snprintf(message, sizeof message, "%s of the right type, expected a line of a report",
                 bad[i][2]);
        refused(all.data, message);
        release(&all);
    }
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
    q3_judged_run run = {.model = "m", .file = "f", .dtype = Q3_F32, .T = 1, .layers = 3,
                         .end_layer = 2};
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
        CHECK(count_of(html.data, "<th scope=col>") == 29);
        CHECK(count_of(html.data, "aria-label=\"" TAP(1, "mlp.gate_proj.output")) == 1);
        CHECK(strstr(html.data, "<dt>not judged<dd>layers 2\n") != NULL);
        /* behind the 14 of attention and norms and the 9 that a sparse layer alone has */
        char *row = strstr(html.data, "<th scope=row>1");
        char *gate = strstr(row, "mlp.gate_proj.output");
        *gate = 0;
        CHECK(count_of(row, "<td>") == 24);
        CHECK(count_of(row, "<button") == 15);
    }
    release(&lines);
    release(&html);
}

/* ==== Names from files ======================================================================== */

static void test_hostile(void)
{
    q3_text lines = {0}, text = {0}, html = {0};
    q3_error error = {""};
    q3_judged_run run = {.model = "caf\xc3\xa9 \xff", .file = hostile, .dtype = Q3_F32, .T = 1,
                         .layers = 1, .end_layer = 1, .unknown = 1, .unknown_name = hostile};
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
    CHECK(scripts == 3 && strstr(html.data, "<img") == NULL);
    CHECK(strstr(html.data, "&lt;img src=x&gt;&amp;") != NULL);
    release(&lines);
    release(&text);
    release(&html);
}

/* Tensors of a diff that are no taps stand behind the taps, in the order of the lines. */
static void test_diff(void)
{
    q3_text lines = {0}, text = {0};
    q3_judged_run run = {.model = "a", .file = "b", .dtype = Q3_F32};
    q3_report_put_run(&lines, &run);
    CHECK(good_text(&text, lines.data, false, false) == Q3_OUTCOME_UNJUDGED);
    CHECK_TEXT(text.data, "first    a\nsecond   b\n\nno tensors\n"
                          "the two files have no tensor in common\ncould not judge\n");
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
    {"other_order", {"\"1\""}}, {"expected", {"\"many\"", "null", "1e-999"}},
    {"max_ulp", {"\"Infinity\""}}, {"max_ours", {"[]"}}, {"max_theirs", {"null"}},
    {"max_bound_ratio", {"true"}},
    {"relative_l2", {"\"\""}}, {"gain", {"{}"}}, {"offset", {"\"-nan\""}},
    {"max_at", {"[23,5]", "[23,5,15,1]", "5", "[0,0,\"\"]"}}, {"bad", {"5", "[]"}},
    {"ours", {"null"}}, {"theirs", {"\"x\""}}, {"ulp", {"[]"}}, {"bound_ulp", {"null"}},
    {"at", {"[1]", "null"}}, {"operators", {"null", "[5]", "[\"model.layers.1.nothing\"]"}},
    {"token_profile", {"[\"\"]", "5", "[-1]"}}, {"channel_profile", {"{}", "[0,\"-inf\"]"}},
    {"margins", {"null", "[-0.5]"}},
};
static const struct { const char *key, *values[4]; } run_keys[] = {
    {"model", {"null", "5"}}, {"file", {"[]"}},
    {"dtype", {"\"int8\"", "5"}}, {"tokens", {"-1"}}, {"start", {"\"0\""}},
    {"num_hidden_layers", {"65536", "null", "1152921504606846976", "18446744073709551615"}},
    {"first_layer", {"1.0"}}, {"end_layer", {"4", "0", "18446744073709551615"}},
    {"free", {"true", "2"}}, {"strict", {"null", "2"}}, {"accumulate", {"null"}}, {"kv", {"5"}},
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

/* Another version's lines, or those of a program before there were versions. */
static void refused_format(const char *run, const char *format, const char *found)
{
    char lines[1024], message[128];
    change(lines, sizeof lines, run, "format", format);
    snprintf(message, sizeof message,
             "lines: line 1: format: found %s, expected qwen3moe-report-1", found);
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
    refused_format(run, "\"qwen3moe-report-2\"", "\"qwen3moe-report-2\"");
    refused_format(run, "null", "null");
    refused_format(run, "1", "1");
    refused_format(run, NULL, "nothing");
    refused("", "lines: found no line of a run, expected reports that check or diff wrote");
    refused(line, "lines: found no line of a run, expected reports that check or diff wrote");
    refused("\n\n5\n",
            "lines: line 3: found no tap of the right type, expected a line of a report");
    snprintf(lines, sizeof lines, "%s%.50s", run, line);
    refused(lines, "lines: line 2: byte 50: found the end of the text, expected the rest of a "
                   "string (control characters need an escape)");
    change(line, sizeof line, second, "gain", "1e999");
    snprintf(lines, sizeof lines, "%s%s", run, line);
    char message[128];
    snprintf(message, sizeof message,
             "lines: line 2: byte %zu: found '1', expected a number within the range of a float64",
             (size_t)(strstr(line, "1e999") - line));
    refused(lines, message);
}

/* A later program may write more keys in the same format. */
static void test_later_keys(void)
{
    q3_text lines = {0}, later = {0}, text = {0};
    write_three(&lines, &run_of_three);
    for (char *line = lines.data, *end; *line != 0; line = end + 1) {
        bool run = line == lines.data;
        end = strchr(line, '\n');
        *end = 0;
        q3_text_add(&later, run ? "{\"run\":{\"later\":[2]," : "{\"later\":{\"tap\":3},");
        q3_text_add(&later, line + (run ? strlen("{\"run\":{") : 1));
        q3_text_add(&later, "\n");
    }
    CHECK(good_text(&text, later.data, false, false) == Q3_OUTCOME_DIFFERS);
    CHECK_TEXT(text.data, text_of_three);
    release(&lines);
    release(&later);
    release(&text);
}

/* ==== Large reports =========================================================================== */

/* Reads lines of a diff and writes text and page: neither takes more than `factor` times as long as
 * reading, as it would if its time grew with the square of what it writes; `more`: ticks that are
 * too few to tell. */
static void check_time(const q3_text *lines, const char *what, clock_t factor, clock_t more)
{
    const q3_report_part part = {"lines", lines->data, lines->size};
    clock_t at[4] = {clock()};
    q3_report *r = NULL;
    q3_error error = {""};
    char *text = NULL, *html = NULL;
    size_t length = 0;
    CHECKF(q3_report_read(&r, &part, 1, true, &error) == Q3_OK, "%s", error.text);
    if (r == NULL) return;
    at[1] = clock();
    CHECK(q3_report_text(r, Q3_REPORT_ALL, &text, &length, &error) == Q3_OK);
    at[2] = clock();
    CHECK(q3_report_html(r, &html, &length, &error) == Q3_OK);
    at[3] = clock();
    for (int i = 1; i < 3; i++)
        CHECKF(at[i + 1] - at[i] <= factor * (at[1] - at[0]) + more,
               "%s: %.3f s, read in %.3f s", what,
               (double)(at[i + 1] - at[i]) / CLOCKS_PER_SEC,
               (double)(at[1] - at[0]) / CLOCKS_PER_SEC);
    free(text);
    free(html);
    q3_report_close(r);
}

static void test_large(void)
{
    static char name[1000001];
    q3_text lines = {0};
    q3_judged_run run = {.model = "a", .file = "b", .dtype = Q3_F32};
    q3_finding f = {.name = name, .verdict = Q3_VERDICT_DIFFERS, .given_as = "a"};
    memset(name, 'n', sizeof name - 1);
    q3_report_put_run(&lines, &run);
    q3_report_put_finding(&lines, &f);
    /* A tenth of a second, read in one of a thousand; with the square 1500 times that */
    check_time(&lines, "a long name", 200, CLOCKS_PER_SEC / 4);
    release(&lines);
    q3_report_put_run(&lines, &run);
    f.verdict = Q3_VERDICT_EXACT;
    for (int i = 0; i < 20000; i++) {
        snprintf(name, sizeof name, "tensor %d", i);
        q3_report_put_finding(&lines, &f);
    }
    check_time(&lines, "many tensors", 3, 0); /* 0.5 or less; with the square 8 */
    release(&lines);
}


int main(void)
{
    test_by_hand();
    test_outcomes();
    test_numbers();
    test_long();
    test_asking();
    test_coverage();
    test_round_trip();
    test_added_keys();
    test_page();
    test_dense_page();
    test_hostile();
    test_diff();
    test_malformed();
    test_later_keys();
    test_large();
    return t_done("test_report");
}
