/* SPDX-License-Identifier: MIT */
/* library.c - programs that use the libraries: where a call fails, it says why, leaves what it was
 * to give as documented, and works when it is made again. Each prints what it got. */
#include "faults/cases.h"
#include "faults/inject.h"
#include "judge/judge.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Failing calls =========================================================================== */

/* A program that was told something wrong ends with a status of its own. */
static void wrong(const char *call, const char *what)
{
    fprintf(stderr, "qwen3moe: %s: %s\n", call, what);
    exit(3);
}

/* An error has a line of text, and is one of memory or of a file. */
static void check_error(const char *call, q3_status status, const q3_error *error)
{
    /* A file of which the system fails to say whether it is there counts as one that is. */
    bool both = status == Q3_ERROR_INPUT && strstr(error->text, "found both files") != NULL;
    if (status != Q3_ERROR_MEMORY && status != Q3_ERROR_FILE && !both)
        wrong(call, "another status");
    if (error->text[0] == 0) wrong(call, "no text");
    for (const char *p = error->text; *p != 0; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F) wrong(call, "a control character");
}

/* Once more after an error, when `holds` is what is documented of it. */
#define TRY(call, holds) \
    do { \
        q3_error error = {""}; \
        q3_status status = (call); \
        if (status == Q3_OK) { \
            if (error.text[0] != 0) wrong(#call, "a text without an error"); \
            break; \
        } \
        check_error(#call, status, &error); \
        if (!(holds)) wrong(#call, "what it gives is not as documented"); \
        inject_heal(); \
        if ((call) != Q3_OK) wrong(#call, "it fails again"); \
    } while (0)

/* Where a pointer points that was given nothing. */
static char nowhere;
#define NOWHERE ((void *)&nowhere)

static void print_hash(const char *name, const void *bytes, size_t size)
{
    uint64_t hash = UINT64_C(0xCBF29CE484222325);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * UINT64_C(0x100000001B3);
    printf("%s %zu %016llx\n", name, size, (unsigned long long)hash);
}

/* What was printed has arrived, or the program says so. */
static int end(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    fprintf(stderr, "qwen3moe: standard output\n");
    return 2;
}

/* Memory of this program itself, which may have to be asked for again. */
static void *block(size_t size)
{
    void *bytes = malloc(size);
    if (bytes != NULL) return bytes;
    inject_heal();
    return malloc(size);
}

static const char *path_of(const char *folder, const char *name)
{
    static char paths[2][1200];
    static size_t turn;
    turn = (turn + 1) % 2;
    snprintf(paths[turn], sizeof paths[turn], "%s/%s", folder, name);
    return paths[turn];
}

/* ==== The library ============================================================================= */

static void use_tokenizer(const char *folder)
{
    q3_tokenizer *tokenizer = NOWHERE;
    int32_t *ids = NOWHERE;
    uint8_t *text = NOWHERE, *chat = NOWHERE;
    size_t count = 0, length = 0, chat_length = 0;
    static const char said[] = "hello the\xCC\x81re hello", messages[] =
        "[{\"role\":\"user\",\"content\":\"a\"}]";
    TRY(q3_tokenizer_open(&tokenizer, path_of(folder, "small/tokenizer.json"), &error),
        tokenizer == NOWHERE);
    TRY(q3_tokenizer_encode(tokenizer, said, sizeof said - 1, &ids, &count, &error),
        ids == NOWHERE);
    print_hash("ids", ids, count * sizeof *ids);
    TRY(q3_tokenizer_decode(tokenizer, ids, count, &text, &length, &error), text == NOWHERE);
    print_hash("text", text, length);
    free(text);
    text = NOWHERE;
    TRY(q3_chat_template(path_of(folder, "tiny"), &text, &length, &error), text == NOWHERE);
    TRY(q3_chat_render(text, length, "chat", messages, sizeof messages - 1, 0, &chat, &chat_length,
                       &error), chat == NOWHERE);
    print_hash("chat", chat, chat_length);
    free(text);
    free(chat);
    free(ids);
    q3_tokenizer_free(tokenizer);
}

/* A file is written, read, and written again in its place. */
static void use_files(void)
{
    const float values[6] = {1, 2, 3, 4, 5, 6};
    const int64_t ids[2] = {7, 8};
    float got[6];
    int64_t got_ids[2];
    const q3_entry entries[2] = {{.name = "a", .dtype = Q3_BF16, .rank = 2, .shape = {2, 3}},
                                 {.name = "b", .dtype = Q3_I64, .rank = 1, .shape = {2}}};
    const char *const metadata[] = {"key", "value", NULL};
    for (size_t turn = 0; turn < 2; turn++) {
        q3_error why;
        q3_status done = Q3_ERROR_FILE;
        for (size_t attempt = 0; attempt < 3 && done != Q3_OK; attempt++) {
            q3_writer *writer = NOWHERE;
            TRY(q3_writer_open(&writer, "x", entries, 2, metadata, &error), writer == NOWHERE);
            done = q3_writer_floats(writer, 0, 0, values, 6, &why);
            if (done == Q3_OK) done = q3_writer_integers(writer, 1, 0, ids, 2, &why);
            if (done == Q3_OK) done = q3_writer_commit(writer, &why);
            else q3_writer_abandon(writer);
            if (done == Q3_OK) break;
            check_error("writer", done, &why);
            inject_heal();
        }
        if (done != Q3_OK) wrong("writer", "it fails again");
        q3_tensors *tensors = NOWHERE;
        TRY(q3_tensors_open(&tensors, "x", &error), tensors == NOWHERE);
        q3_entry_floats(got, q3_tensors_find(tensors, "a"), 0, 6);
        q3_entry_integers(got_ids, q3_tensors_find(tensors, "b"), 0, 2);
        print_hash("a", got, sizeof got);
        print_hash("b", got_ids, sizeof got_ids);
        printf("%s\n", q3_tensors_metadata(tensors, "key"));
        q3_tensors_close(tensors);
    }
}

static void use_model(const char *path)
{
    q3_model *model = NOWHERE;
    q3_dtype dtype = Q3_AUTO;
    const int32_t *eos = NOWHERE, tokens[2] = {4, 7};
    size_t eos_count = 0;
    TRY(q3_model_open(&model, path, &error), model == NOWHERE);
    const q3_config *config = q3_model_config(model);
    q3_run run = {.first_layer = 0, .end_layer = config->num_hidden_layers, .rows = 2, .chunk = 2};
    q3_error why = {""};
    q3_status loaded = q3_model_load(model, &dtype, 0, run.end_layer, &why);
    if (loaded != Q3_OK) { /* it is called once */
        check_error("q3_model_load", loaded, &why);
        if (dtype != Q3_AUTO) wrong("q3_model_load", "another dtype");
        inject_heal();
        q3_model_close(model);
        use_model(path);
        return;
    }
    TRY(q3_model_eos(model, &eos, &eos_count, &error), eos == NOWHERE && eos_count == 0);
    print_hash("eos", eos, eos_count * sizeof *eos);
    char *tree = q3_module_tree(config);
    if (tree == NULL) {
        inject_heal();
        tree = q3_module_tree(config);
    }
    print_hash("tree", tree, strlen(tree));
    free(tree);
    run.dtype = dtype;
    size_t size = q3_state_size(config, &run);
    void *memory = block(size);
    q3_state *state = q3_state_init(memory, size, config, q3_model_weights(model), &run);
    const q3_input input = {.tokens = tokens, .count = 2, .logit_rows = 2};
    TRY(q3_forward(state, &input, NULL, NULL, &error), true);
    print_hash("logits", q3_logits(state), 2 * config->vocab_size * sizeof(float));
    free(memory);
    q3_model_close(model);
}

int library_main(int argc, char **argv)
{
    const char *folder = argv[argc - 1];
    char gguf[1200];
    use_tokenizer(folder);
    use_files();
    snprintf(gguf, sizeof gguf, "%s/q8_0.gguf", folder);
    use_model(gguf);
    snprintf(gguf, sizeof gguf, "%s/fp8", folder);
    use_model(gguf);
    return end();
}

/* ==== The judge =============================================================================== */

static void print_report(const q3_report *report)
{
    static q3_status (*const writers[])(const q3_report *, char **, size_t *, q3_error *) = {
        q3_report_lines, q3_report_junit, q3_report_html,
    };
    char *text = NOWHERE;
    size_t length = 0;
    q3_error line = {""};
    TRY(q3_report_text(report, Q3_REPORT_ALL, &text, &length, &error), text == NULL);
    print_hash("text", text, length);
    free(text);
    for (size_t i = 0; i < sizeof writers / sizeof *writers; i++) {
        text = NOWHERE;
        TRY(writers[i](report, &text, &length, &error), text == NULL);
        print_hash("report", text, length);
        free(text);
    }
    q3_report_sentence(report, &line);
    if (strcmp(line.text, "not enough memory") == 0) {
        inject_heal();
        q3_report_sentence(report, &line);
    }
    printf("%s\n", line.text);
}

/* What the judge says of a file's tensors, given from memory, and read again from its lines. */
static void use_judge(const q3_model *model, const q3_tensors *given)
{
    q3_judge *judge = NOWHERE;
    q3_report *report = NOWHERE, *again = NOWHERE;
    q3_dtype dtype = Q3_AUTO;
    static const char *const require[] = {"*layers.0.self_attn*"};
    const q3_judge_options options = {.require = require, .require_count = 1, .end_layer = 1};
    int32_t ids[16];
    char *lines = NOWHERE;
    size_t length = 0, T = 0;
    TRY(q3_judge_open(&judge, q3_model_config(model), &options, &error), judge == NOWHERE);
    for (size_t i = 0; i < q3_tensors_count(given); i++) {
        const q3_entry *entry = q3_tensors_at(given, i);
        int64_t id;
        if (strcmp(entry->name, "input_ids") != 0) {
            TRY(q3_judge_tensor(judge, entry, &error), true);
            continue;
        }
        for (T = 0; T < entry->shape[0]; T++) {
            q3_entry_integers(&id, entry, T, 1);
            ids[T] = (int32_t)id;
        }
    }
    TRY(q3_judge_tokens(judge, ids, T, &error), true);
    TRY(q3_judge_prepare(judge, &dtype, &error), dtype == Q3_AUTO);
    if (dtype == Q3_AUTO) dtype = Q3_BF16;
    TRY(q3_judge_run(judge, q3_model_weights(model), dtype, &report, &error), report == NULL);
    print_report(report);
    TRY(q3_report_lines(report, &lines, &length, &error), lines == NULL);
    const q3_report_part part = {"lines", lines, length};
    TRY(q3_report_read(&again, &part, 1, false, &error), again == NULL);
    printf("%zu findings\n", q3_report_count(again));
    q3_report_close(again);
    free(lines);
    q3_report_close(report);
    q3_judge_close(judge);
}

int judge_main(int argc, char **argv)
{
    const char *folder = argv[argc - 1];
    q3_model *model = NOWHERE;
    q3_tensors *given = NULL;
    q3_report *report = NOWHERE;
    q3_dtype dtype = Q3_BF16;
    char path[1200];
    snprintf(path, sizeof path, "%s/tiny", folder);
    inject_stop(); /* library_main has these */
    if (q3_model_open(&model, path, NULL) != Q3_OK ||
        q3_model_load(model, &dtype, 0, 1, NULL) != Q3_OK ||
        q3_tensors_open(&given, path_of(folder, "front.safetensors"), NULL) != Q3_OK)
        return 3;
    inject_go_on();
    use_judge(model, given);
    TRY(q3_diff(&report, path_of(folder, "other.safetensors"),
                path_of(folder, "front.safetensors"), NULL, NULL, NULL, &error),
        report == NULL);
    print_report(report);
    q3_report_close(report);
    inject_stop();
    q3_tensors_close(given);
    q3_model_close(model);
    inject_go_on();
    return end();
}
