/* fuzz.c - what comes from outside, as bytes: any bytes give a result or one line of text, never a
 * crash, a leak or a hang.
 *
 * libFuzzer: clang -DTARGET=json -fsanitize=fuzzer,address,undefined ... (scripts/ci/fuzz.sh)
 * replay:    test_fuzz FILE...   each file goes to the target that its folder is called
 *
 * GOLDEN is the path of golden/. SPDX-License-Identifier: MIT */
#include "host/files.h"
#include "host/listing.h"
#include "judge/backend.h"
#include "judge/judge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

/* Called by Q3_CHECK: bad input must never come so far. */
void q3_abort(const char *file, int line, const char *text);
void q3_abort(const char *file, int line, const char *text)
{
    fprintf(stderr, "%s:%d: broken precondition: %s\n", file, line, text);
    abort();
}

/* A failure says why, in one line. */
static void require_line(q3_status status, const q3_error *error)
{
    if (status == Q3_OK) return;
    REQUIRE(error->text[0] != 0 && strlen(error->text) < sizeof error->text);
    for (const char *p = error->text; *p != 0; p++) REQUIRE((unsigned char)*p >= 0x20);
}

/* Every string and number of a text that is JSON can be read. */
static void fuzz_json(const uint8_t *data, size_t size)
{
    q3_json j;
    q3_error error = {""};
    q3_status status = q3_json_parse(&j, "text", data, size, &error);
    require_line(status, &error);
    if (status != Q3_OK) return;
    uint8_t *out = malloc(size + 1);
    for (uint32_t i = 0; out != NULL && i < j.nodes[0].next; i++) {
        double real;
        char repr[32];
        if (q3_json_type_of(&j, i) == Q3_JSON_STRING) REQUIRE(q3_json_string(&j, i, out) <= size);
        if (q3_json_double(&j, i, &real)) REQUIRE(q3_json_repr(real, repr) < sizeof repr);
    }
    free(out);
    q3_json_free(&j);
}

/* A config that is accepted has a line of JSON that is accepted again and is the same. */
static void fuzz_config(const uint8_t *data, size_t size)
{
    q3_json j, again;
    q3_config_file file, second;
    q3_error error = {""};
    q3_status status = q3_json_parse(&j, "config.json", data, size, &error);
    require_line(status, &error);
    if (status != Q3_OK) return;
    status = q3_config_read(&file, &j, &error);
    require_line(status, &error);
    if (status == Q3_OK) {
        q3_counts counts;
        (void)q3_count(&counts, &file.config);
        (void)q3_fp8_keeps(&file.fp8, "model.layers.0.mlp.experts", true);
        (void)q3_fp8_keeps(&file.fp8, "model.layers.0.mlp.experts.0.up_proj", false);
        REQUIRE(q3_json_parse(&again, "line", (const uint8_t *)file.json, strlen(file.json),
                              &error) == Q3_OK);
        REQUIRE(q3_config_read(&second, &again, &error) == Q3_OK &&
                strcmp(file.json, second.json) == 0);
        q3_config_free(&second);
        q3_json_free(&again);
        q3_config_free(&file);
    }
    q3_json_free(&j);
}

/* A file that is accepted: every element of every tensor can be read. */
static void fuzz_safetensors(const uint8_t *data, size_t size)
{
    static const char path[] = "fuzz.safetensors";
    q3_tensors *tensors;
    q3_error error = {""};
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
    q3_status status = q3_tensors_open(&tensors, path, &error);
    require_line(status, &error);
    for (size_t i = 0; status == Q3_OK && i < q3_tensors_count(tensors); i++) {
        const q3_entry *e = q3_tensors_at(tensors, i);
        uint64_t count = 1;
        REQUIRE(q3_tensors_find(tensors, e->name) == e);
        for (size_t k = 0; k < e->rank; k++) count *= e->shape[k];
        for (uint64_t k = 0; k < count; k++) {
            float value;
            int64_t integer;
            if (e->dtype == Q3_I32 || e->dtype == Q3_I64) q3_entry_integers(&integer, e, k, 1);
            else q3_entry_floats(&value, e, k, 1);
        }
    }
    if (status == Q3_OK) q3_tensors_close(tensors);
    remove(path);
}

/* Writes a file whole. */
static void put_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

/* An index of files, one of which is there; a folder's path need be no more than the beginning of
 * its files' paths. Every tensor that is listed is found, and every file opened or refused. */
static void fuzz_index(const uint8_t *data, size_t size)
{
    static const char shard[] = "8\0\0\0\0\0\0\0"
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}  \0\0\0";
    q3_listing list = {0};
    q3_error error = {""};
    put_file("fuzz-model.safetensors.index.json", data, size);
    put_file("fuzz-a", shard, sizeof shard);
    q3_status status = q3_list_tensors(&list, "fuzz-", &error);
    require_line(status, &error);
    for (size_t i = 0; status == Q3_OK && i < list.count; i++) {
        q3_found found;
        const q3_item *item = q3_find_item(&list, list.items[i].name);
        REQUIRE(item != NULL);
        require_line(q3_find_entry(&found, &list, item, &error), &error);
    }
    q3_listing_free(&list);
    remove("fuzz-model.safetensors.index.json");
    remove("fuzz-a");
}

/* A GGUF file that is accepted: its config, its weights, its tokenizer and its template. */
static void fuzz_gguf(const uint8_t *data, size_t size)
{
    static const char path[] = "fuzz.gguf";
    q3_model *model = NULL;
    q3_tokenizer *tokenizer;
    q3_error error = {""};
    uint8_t *text;
    size_t length;
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
    q3_status status = q3_model_open(&model, path, &error);
    require_line(status, &error);
    q3_dtype dtype = Q3_F16; /* every weight is looked at */
    if (status == Q3_OK) {
        const q3_config *c = q3_model_config(model);
        status = q3_model_load(model, &dtype, 0, c->num_hidden_layers, &error);
        require_line(status, &error);
        float value;
        if (status == Q3_OK) q3_widen(&value, q3_model_weights(model)->norm, 0, 1, Q3_F16);
    }
    q3_model_close(model);
    status = q3_tokenizer_open(&tokenizer, path, &error);
    require_line(status, &error);
    if (status == Q3_OK) q3_tokenizer_free(tokenizer);
    status = q3_chat_template(path, &text, &length, &error);
    require_line(status, &error);
    if (status == Q3_OK) free(text);
    remove(path);
}

/* A tokenizer that is accepted: what it encodes decodes to the same bytes, if it has all
 * letters. */
static void fuzz_tokenizer(const uint8_t *data, size_t size)
{
    static const char text[] = "In the beginning 123 \xC3\xA9\n";
    q3_tokenizer *t;
    q3_error error = {""};
    q3_status status = q3_tokenizer_parse(&t, "tokenizer.json", data, size, &error);
    require_line(status, &error);
    if (status != Q3_OK) return;
    int32_t *ids = NULL;
    uint8_t *bytes = NULL;
    size_t count = 0, length = 0;
    status = q3_tokenizer_encode(t, text, sizeof text - 1, &ids, &count, &error);
    require_line(status, &error);
    if (status == Q3_OK)
        require_line(q3_tokenizer_decode(t, ids, count, &bytes, &length, &error), &error);
    free(bytes);
    free(ids);
    q3_tokenizer_free(t);
}

/* Lines that are a report: all three ways of writing it, and the lines are the same report. */
static void fuzz_report(const uint8_t *data, size_t size)
{
    q3_report *report, *again;
    q3_error error = {""};
    char *out[3] = {NULL, NULL, NULL};
    size_t length[3] = {0, 0, 0};
    if (size > 0 && memchr(data, 0, size) != NULL) return; /* the command refuses a zero byte */
    q3_report_part part = {"lines", (const char *)data, size};
    q3_status status = q3_report_read(&report, &part, 1, false, &error);
    require_line(status, &error);
    if (status != Q3_OK) return;
    REQUIRE(q3_report_text(report, Q3_REPORT_ALL | Q3_REPORT_COLOUR, &out[0], &length[0], &error) ==
            Q3_OK);
    REQUIRE(q3_report_html(report, &out[1], &length[1], &error) == Q3_OK);
    REQUIRE(q3_report_lines(report, &out[2], &length[2], &error) == Q3_OK);
    q3_report_part lines = {"again", out[2], length[2]};
    REQUIRE(q3_report_read(&again, &lines, 1, false, &error) == Q3_OK);
    REQUIRE(q3_report_outcome(again) == q3_report_outcome(report));
    q3_report_close(again);
    q3_report_close(report);
    for (size_t i = 0; i < 3; i++) free(out[i]);
}

/* A name: which tap it is, under a model with sparse and dense layers. */
static void fuzz_names(const uint8_t *data, size_t size)
{
    static const size_t dense[] = {1};
    static const q3_config config = {
        .vocab_size = 9,
        .hidden_size = 4,
        .intermediate_size = 6,
        .num_hidden_layers = 3,
        .num_attention_heads = 2,
        .num_key_value_heads = 1,
        .head_dim = 2,
        .num_experts = 3,
        .num_experts_per_tok = 2,
        .moe_intermediate_size = 5,
        .decoder_sparse_step = 1,
        .mlp_only_layers = dense,
        .mlp_only_count = 1,
    };
    char name[256], own[Q3_TAP_NAME_SIZE];
    q3_alias alias;
    if (size >= sizeof name) return;
    memcpy(name, data, size);
    name[size] = 0;
    if (!q3_tap_alias(&alias, &config, name)) return;
    REQUIRE(alias.id < Q3_TAP_COUNT && alias.count >= 1 &&
            (size_t)alias.id + alias.count <= Q3_TAP_COUNT);
    q3_tap_name(own, alias.id, alias.layer);
    REQUIRE(q3_tap_find(own, &alias.id, &alias.layer));
}

/* Messages through golden/tiny's chat template. */
static void fuzz_chat(const uint8_t *data, size_t size)
{
    uint8_t *template = NULL, *text = NULL;
    size_t template_length = 0, length = 0;
    q3_error error = {""};
    q3_status status = q3_chat_template(GOLDEN "/tiny", &template, &template_length, &error);
    REQUIRE(status == Q3_OK);
    status = q3_chat_render(template, template_length, "messages", data, size, 0, &text, &length,
                            &error);
    require_line(status, &error);
    free(text);
    free(template);
}

typedef void target(const uint8_t *data, size_t size);

#ifdef TARGET
#define PASTE(a, b) a##b
#define NAMED(name) PASTE(fuzz_, name)
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static target *const all[] = {fuzz_json,   fuzz_config, fuzz_safetensors, fuzz_tokenizer,
                                  fuzz_report, fuzz_names,  fuzz_chat,   fuzz_gguf,
                                  fuzz_index};
    (void)all;
    NAMED(TARGET)(data, size);
    return 0;
}
#else
static const struct { const char *name; target *run;
} targets[] = {
    {"json", fuzz_json},           {"config", fuzz_config}, {"safetensors", fuzz_safetensors},
    {"tokenizer", fuzz_tokenizer}, {"report", fuzz_report}, {"names", fuzz_names},
    {"chat", fuzz_chat},           {"gguf", fuzz_gguf},     {"index", fuzz_index},
};

static bool replay(const char *path)
{
    size_t length = 0;
    uint8_t *bytes = NULL;
    q3_error error;
    if (q3_read_whole(&bytes, &length, path, &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        return false;
    }
    bool found = false;
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        char folder[64];
        snprintf(folder, sizeof folder, "/%s/", targets[i].name);
        if (strstr(path, folder) == NULL) continue;
        targets[i].run(bytes, length);
        found = true;
    }
    free(bytes);
    if (!found) fprintf(stderr, "%s: found no target for its folder\n", path);
    return found;
}

int main(int argc, char **argv)
{
    bool good = argc > 1;
    for (int i = 1; i < argc; i++) good = replay(argv[i]) && good;
    printf("test_fuzz: %d files\n", argc - 1);
    return good ? 0 : 1;
}
#endif
