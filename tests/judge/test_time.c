/* SPDX-License-Identifier: MIT */
/* Time without end: input of n things and of 4 n. What is linear takes four times as long, what
 * grows with the square sixteen times, and that would be seconds here. Processor time, so that no
 * other program counts; the least of three runs.
 *
 *   test_time */
#include "folder.h"
#include "host/files.h"
#include "host/taps.h"
#include "judge/report.h"
#include "t.h"

#include <stdlib.h>
#include <time.h>

static q3_text made; /* what a case works on, of the size at hand */

typedef struct timed {
    const char *name;
    size_t n;
    void (*prepare)(size_t n);
    void (*work)(size_t n);
} timed;

/* ==== Names =================================================================================== */

/* Two files with the same names, the second in the other order. */
static void write_names(const char *file, size_t n, bool backwards)
{
    static const float value = 1;
    q3_entry *entries = calloc(n, sizeof *entries);
    char (*names)[48] = calloc(n, sizeof *names);
    q3_writer *writer = NULL;
    if (entries == NULL || names == NULL) exit(2);
    for (size_t i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%lu.mlp.output",
                 (unsigned long)(backwards ? n - 1 - i : i));
        entries[i] = (q3_entry){names[i], Q3_F32, 1, {1}, NULL};
    }
    CHECK(q3_writer_open(&writer, folder_path(file), entries, n, NULL, NULL) == Q3_OK);
    for (size_t i = 0; i < n; i++) CHECK(q3_writer_floats(writer, i, 0, &value, 1, NULL) == Q3_OK);
    CHECK(q3_writer_commit(writer, NULL) == Q3_OK);
    folder_expect(file);
    free(entries);
    free(names);
}

static void prepare_diff(size_t n)
{
    write_names("a", n, false);
    write_names("b", n, true);
}

static void work_diff(size_t n)
{
    q3_report *report = NULL;
    CHECK(q3_diff(&report, folder_path("a"), folder_path("b"), "", NULL, NULL, NULL) == Q3_OK);
    CHECK(report != NULL && q3_report_count(report) == n);
    q3_report_close(report);
}

/* ==== config.json ============================================================================= */

/* A dense layer of every two. */
static void prepare_layers(size_t n)
{
    size_t *layers = calloc(n, sizeof *layers);
    if (layers == NULL) exit(2);
    for (size_t i = 0; i < n / 2; i++) layers[i] = 2 * i;
    q3_text_bytes(&made, (const char *)layers, n / 2 * sizeof *layers);
    free(layers);
}

static q3_config with_layers(size_t n)
{
    return (q3_config){.num_hidden_layers = n, .num_experts = 2, .num_experts_per_tok = 1,
                       .decoder_sparse_step = 1, .num_attention_heads = 1, .norm_topk_prob = true,
                       .num_key_value_heads = 1, .mlp_only_count = n / 2,
                       .mlp_only_layers = (const size_t *)(const void *)made.data};
}

static void work_layers(size_t n)
{
    q3_config config = with_layers(n);
    size_t sparse = 0;
    for (size_t i = 0; i < n; i++) sparse += q3_layer_is_sparse(&config, i);
    CHECK(sparse == n / 2);
}

/* The names of a layer's taps in other systems, some of which count sparse layers. */
static void work_names(size_t n)
{
    q3_config config = with_layers(n);
    q3_other_name other;
    size_t count = 0;
    for (int id = 0; id < Q3_TAP_COUNT; id++)
        while (q3_other_name_at(&other, &config, (q3_tap_id)id, n - 1, count)) count++;
    CHECK(count > 0);
}

/* As many names in modules_to_not_convert as modules that are looked for, none of them there. */
static void prepare_kept(size_t n)
{
    q3_text_add(&made, "{\"model_type\":\"qwen3_moe\",\"num_experts_per_tok\":1,\"num_experts\":2,"
                       "\"quantization_config\":{\"quant_method\":\"fp8\","
                       "\"modules_to_not_convert\":[\"lm_head\"");
    for (size_t i = 0; i < n; i++) {
        q3_text_count(&made, ",\"model.layers.7.mlp.experts.", i);
        q3_text_add(&made, ".gate_projection\"");
    }
    q3_text_add(&made, "]}}");
}

static void work_kept(size_t n)
{
    q3_json json = {0};
    q3_config_file file = {0};
    q3_error error = {""};
    size_t found = 0;
    CHECK(q3_json_parse(&json, "config", (const uint8_t *)made.data, made.size, &error) == Q3_OK);
    CHECKF(q3_config_read(&file, &json, &error) == Q3_OK, "%s", error.text);
    for (size_t i = 0; i < n; i++) {
        char module[64];
        snprintf(module, sizeof module, "model.layers.7.mlp.experts.%lu.gate_proj",
                 (unsigned long)i);
        found += q3_fp8_keeps(&file.fp8, module, false) + q3_fp8_keeps(&file.fp8, module, true);
    }
    CHECK(found == 0);
    q3_config_free(&file);
    q3_json_free(&json);
}

/* ==== JSON, patterns ========================================================================== */

/* Keys of one beginning. */
static void prepare_keys(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        q3_text_count(&made, i == 0 ? "{\"key " : ",\"key ", i);
        q3_text_add(&made, "\":0");
    }
    q3_text_add(&made, "}");
}

static void prepare_number(size_t n)
{
    for (size_t i = 0; i < n; i++) q3_text_add(&made, i == 0 ? "0." : "1");
}

static void prepare_lists(size_t n)
{
    for (size_t i = 0; i < n; i++) q3_text_add(&made, i == 0 ? "[[{}]" : ",[[{\"a\":[]}]]");
    q3_text_add(&made, "]");
}

static void work_json(size_t n)
{
    q3_json json = {0};
    (void)n;
    CHECK(q3_json_parse(&json, "text", (const uint8_t *)made.data, made.size, NULL) == Q3_OK);
    q3_json_free(&json);
}

/* Patterns of many stars that fit everywhere but at the end, on names as long as they are. */
static void prepare_stars(size_t n)
{
    for (size_t i = 0; i < n; i++) q3_text_add(&made, "*a");
    q3_text_add(&made, "*b");
}

static void work_stars(size_t n)
{
    char name[Q3_TAP_NAME_SIZE];
    memset(name, 'a', sizeof name);
    name[sizeof name - 1] = 0;
    for (size_t i = 0; i < 2000; i++) CHECK(!q3_tap_fits(made.data, name));
    (void)n;
}

/* ==== Reports ================================================================================= */

/* Runs with a command line each. */
static void prepare_runs(size_t n)
{
    const q3_finding f = {.name = "x", .verdict = Q3_VERDICT_EXACT, .given_as = "x"};
    for (size_t i = 0; i < n; i++) {
        char command[32];
        snprintf(command, sizeof command, "diff %08lu", (unsigned long)i);
        const q3_judged_run run = {.model = "a", .file = "b", .dtype = Q3_F32, .command = command};
        q3_report_put_run(&made, &run);
    }
    q3_report_put_finding(&made, &f);
}

static void prepare_findings(size_t n)
{
    const q3_judged_run run = {.model = "a", .file = "b", .dtype = Q3_F32};
    q3_report_put_run(&made, &run);
    for (size_t i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "tensor %lu", (unsigned long)(i * 7919 % n));
        const q3_finding f = {.name = name, .verdict = Q3_VERDICT_DIFFERS, .given_as = name};
        q3_report_put_finding(&made, &f);
    }
}

static void work_report(size_t n)
{
    const q3_report_part part = {"lines", made.data, made.size};
    q3_report *report = NULL;
    q3_error error = {""};
    (void)n;
    CHECKF(q3_report_read(&report, &part, 1, false, &error) == Q3_OK, "%s", error.text);
    q3_report_close(report);
}

/* Sorting takes no command line away, and leaves none twice. */
static void test_commands(void)
{
    static const char *const commands[] = {"diff 2", "diff 1", "diff 2"};
    const q3_finding f = {.name = "x", .verdict = Q3_VERDICT_EXACT, .given_as = "x"};
    q3_report *report = NULL;
    char *text = NULL;
    size_t length;
    made = (q3_text){0};
    for (size_t i = 0; i < 3; i++) {
        const q3_judged_run run = {
            .model = "a", .file = "b", .dtype = Q3_F32, .command = commands[i]};
        q3_report_put_run(&made, &run);
    }
    q3_report_put_finding(&made, &f);
    const q3_report_part part = {"lines", made.data, made.size};
    CHECK(q3_report_read(&report, &part, 1, false, NULL) == Q3_OK);
    CHECK(q3_report_text(report, Q3_REPORT_ALL, &text, &length, NULL) == Q3_OK);
    CHECK(text != NULL && strstr(text, "diff 1 (and 1 more)") != NULL);
    free(text);
    q3_report_close(report);
    free(made.data);
}

/* ==== The clock =============================================================================== */

static double least_time(const timed *t, size_t n)
{
    double least = 0;
    made = (q3_text){0};
    t->prepare(n);
    for (int turn = 0; turn < 3 && (turn == 0 || least < CLOCKS_PER_SEC / 2.0); turn++) {
        clock_t begin = clock();
        t->work(n);
        double ticks = (double)(clock() - begin);
        if (turn == 0 || ticks < least) least = ticks;
    }
    CHECK(!made.failed);
    free(made.data);
    return least;
}

int main(void)
{
    static const timed cases[] = {
        {"names of two files", 6000, prepare_diff, work_diff},
        {"mlp_only_layers", 16000, prepare_layers, work_layers},
        {"names among sparse layers", 16000, prepare_layers, work_names},
        {"modules_to_not_convert", 3000, prepare_kept, work_kept},
        {"keys", 20000, prepare_keys, work_json},
        {"digits", 100000, prepare_number, work_json},
        {"lists", 20000, prepare_lists, work_json},
        {"stars", 15, prepare_stars, work_stars},
        {"commands of a report", 4000, prepare_runs, work_report},
        {"lines of a report", 500, prepare_findings, work_report},
    };
    folder_make("time.tmp");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double one = least_time(&cases[i], cases[i].n);
        double four = least_time(&cases[i], 4 * cases[i].n);
        CHECKF(four <= 9 * one + CLOCKS_PER_SEC / 50.0,
               "%s: %.0f ticks, %.0f for four times as many", cases[i].name, one, four);
    }
    test_commands();
    folder_remove();
    return t_done("time");
}
