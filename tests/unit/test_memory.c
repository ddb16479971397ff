/* SPDX-License-Identifier: MIT */
/* Each allocation of the readers, of the tokenizer and of the kernels failing in turn: an error
 * that says so, nothing kept, and kernels that need none. The test puts its own malloc in front of
 * the C library's, which glibc allows; elsewhere, and under a sanitizer, nothing fails here.
 *
 *   test_memory GOLDEN */
#include "folder.h"
#include "host/json.h"
#include "qwen3moe.h"
#include "t.h"

static size_t left = SIZE_MAX; /* allocations that succeed before one fails; SIZE_MAX: all */
static bool failed;
static long blocks;

static inline bool fails(void)
{
    if (left == SIZE_MAX || left-- > 0) return false;
    left = SIZE_MAX;
    return failed = true;
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || \
    __has_feature(thread_sanitizer)
#define OTHER_MALLOC 1
#endif
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !defined(OTHER_MALLOC)
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void __libc_free(void *block);

void *malloc(size_t size)
{
    void *block = fails() ? NULL : __libc_malloc(size);
    blocks += block != NULL;
    return block;
}

void *calloc(size_t count, size_t size)
{
    void *block = fails() ? NULL : __libc_calloc(count, size);
    blocks += block != NULL;
    return block;
}

void *realloc(void *old, size_t size)
{
    void *block = fails() ? NULL : __libc_realloc(old, size);
    blocks += block != NULL && old == NULL;
    return block;
}

void free(void *block)
{
    blocks -= block != NULL;
    __libc_free(block);
}
#endif

/* ==== What is called ========================================================================== */

static char tiny[512], tokenizer_path[600], small_path[600], gguf_path[600];
static const char keys[] =
    "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"i\":9}";

static q3_status read_json(q3_error *error)
{
    q3_json j;
    q3_status status = q3_json_parse(&j, "x", (const uint8_t *)keys, sizeof keys - 1, error);
    if (status == Q3_OK) q3_json_free(&j);
    return status;
}

static q3_status read_config(q3_error *error)
{
    q3_model *model = NULL;
    q3_status status = q3_model_open(&model, folder_path("config.json"), error);
    q3_model_close(model);
    return status;
}

static q3_status load_model(q3_error *error)
{
    q3_model *model = NULL;
    q3_dtype dtype = Q3_F32;
    const int32_t *ids;
    size_t count;
    q3_status status = q3_model_open(&model, tiny, error);
    if (status == Q3_OK) status = q3_model_load(model, &dtype, 0, 2, error);
    if (status == Q3_OK) status = q3_model_eos(model, &ids, &count, error);
    q3_model_close(model);
    return status;
}

static q3_status encode_with(const char *path, q3_error *error)
{
    static char text[6000];
    q3_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    uint8_t *bytes = NULL;
    size_t count, length;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "the \xC3\xA9" "e\xCC\x81\xCC\xA3<end>123"[i % 20];
    for (size_t i = 3000; i < 3100; i++) text[i] = 'a'; /* a long piece */
    memcpy(text + 3000, "e\xCC\x81", 3);
    text[sizeof text - 1] = text[2999] = text[3100] = text[3101] = ' ';
    q3_status status = q3_tokenizer_open(&tokenizer, path, error);
    if (status == Q3_OK)
        status = q3_tokenizer_encode(tokenizer, text, 2980, &ids, &count, error);
    if (status == Q3_OK)
        status = q3_tokenizer_decode(tokenizer, ids, count, &bytes, &length, error);
    free(ids);
    ids = NULL;
    if (status == Q3_OK)
        status = q3_tokenizer_encode(tokenizer, text + 3000, 100, &ids, &count, error);
    free(ids);
    free(bytes);
    q3_tokenizer_free(tokenizer);
    return status;
}

/* More ids than a text of this length mostly has, of added tokens and of whole pieces; no ids. */
static q3_status encode_short(q3_error *error)
{
    static const char *const texts[] = {"<a<a<a<a<a<a<a<a<a<a<a<a", "0123456789012345"};
    q3_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    uint8_t *bytes = NULL;
    size_t count, length;
    q3_status status = q3_tokenizer_open(&tokenizer, small_path, error);
    for (size_t i = 0; i < 2 && status == Q3_OK; i++, ids = NULL) {
        status = q3_tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), &ids, &count, error);
        free(ids);
    }
    if (status == Q3_OK)
        status = q3_tokenizer_decode(tokenizer, NULL, 0, &bytes, &length, error);
    free(bytes);
    q3_tokenizer_free(tokenizer);
    return status;
}

static q3_status encode_tiny(q3_error *error)
{
    return encode_with(tokenizer_path, error);
}

static q3_status encode_small(q3_error *error)
{
    return encode_with(small_path, error);
}

static q3_status render(q3_error *error)
{
    static const char chat[] = "[{\"role\":\"user\",\"content\":\"a\"}]";
    uint8_t *template = NULL, *text = NULL;
    size_t length, size;
    q3_status status = q3_chat_template(tiny, &template, &length, error);
    if (status == Q3_OK)
        status = q3_chat_render(template, length, "chat", chat, sizeof chat - 1, 0, &text, &size,
                                error);
    free(template);
    free(text);
    return status;
}

static q3_status write_tensors(q3_error *error)
{
    static const float values[4] = {1, 2, 3, 4};
    const q3_entry entry = {.name = "a", .dtype = Q3_F32, .rank = 1, .shape = {4}};
    static const char *const metadata[] = {"k", "v", NULL};
    q3_writer *writer = NULL;
    q3_tensors *tensors = NULL;
    folder_expect("memory.safetensors");
    q3_status status = q3_writer_open(&writer, folder_path("memory.safetensors"), &entry, 1,
                                      metadata, error);
    if (status == Q3_OK) {
        status = q3_writer_floats(writer, 0, 0, values, 4, error);
        if (status == Q3_OK)
            status = q3_writer_commit(writer, error);
        else
            q3_writer_abandon(writer);
    }
    if (status == Q3_OK)
        status = q3_tensors_open(&tensors, folder_path("memory.safetensors"), error);
    q3_tensors_close(tensors);
    return status;
}

/* What goes to standard output is kept in memory until it is committed. */
static q3_status keep_tensors(q3_error *error)
{
    static const int64_t values[4] = {1, 2, 3, 4};
    const q3_entry entry = {.name = "a", .dtype = Q3_I64, .rank = 1, .shape = {4}};
    q3_writer *writer = NULL;
    q3_status status = q3_writer_open(&writer, "-", &entry, 1, NULL, error);
    if (status == Q3_OK) status = q3_writer_integers(writer, 0, 0, values, 4, error);
    q3_writer_abandon(writer);
    return status;
}

static void test_readers(void)
{
    static const struct { const char *name; q3_status (*call)(q3_error *); } cases[] = {
        {"json", read_json}, {"config", read_config}, {"model", load_model},
        {"tokenizer", encode_tiny}, {"another tokenizer", encode_small},
        {"short tokens", encode_short}, {"chat", render},
        {"tensors", write_tensors}, {"tensors for a stream", keep_tensors}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_error error = {""};
        CHECKF(cases[i].call(&error) == Q3_OK, "%s: %s", cases[i].name, error.text);
        for (size_t n = 0; n == 0 || failed; n++) {
            long before = blocks;
            error.text[0] = 0;
            failed = false;
            left = n;
            q3_status status = cases[i].call(&error);
            left = SIZE_MAX;
            CHECKF(status == Q3_OK || (failed && error.text[0] != 0 &&
                                       (status == Q3_ERROR_MEMORY || status == Q3_ERROR_FILE)),
                   "%s, allocation %lu: %d, %s", cases[i].name, (unsigned long)n, (int)status,
                   error.text);
            CHECKF(blocks == before, "%s, allocation %lu: %ld blocks stay", cases[i].name,
                   (unsigned long)n, blocks - before);
        }
    }
}

/* A GGUF file without a tokenizer is an error with memory, and without. */
static void test_gguf(void)
{
    bool memory = false;
    for (size_t n = 0; n < 8; n++) {
        q3_tokenizer *tokenizer = NULL;
        q3_error error = {""};
        long before = blocks;
        left = n;
        q3_status status = q3_tokenizer_open(&tokenizer, gguf_path, &error);
        left = SIZE_MAX;
        CHECK(status == Q3_ERROR_MEMORY || status == Q3_ERROR_INPUT);
        CHECK(tokenizer == NULL && error.text[0] != 0 && blocks == before);
        memory |= status == Q3_ERROR_MEMORY;
    }
    CHECK(memory == failed);
}

/* ==== Kernels ================================================================================= */

/* Products and attention are the same without memory for a faster way. */
static void test_kernels(void)
{
    enum { C = 96, N = 64, MOST = 40 };
    static float x[MOST * C], w[N * C], y[MOST * N], want[MOST * N];
    static const size_t tokens[] = {1, 3, MOST};
    for (size_t i = 0; i < MOST * C; i++) x[i] = (float)(i * 37 % 101) - 50;
    for (size_t i = 0; i < N * C; i++) w[i] = (float)(i * 53 % 97) - 48;
    for (size_t i = 0; i < 3; i++) {
        const q3_tensor weight = {w, Q3_F32}, none = {NULL, Q3_F32};
        q3_linear(want, x, weight, none, tokens[i], N, C, Q3_F32);
        memset(y, 0, sizeof y);
        left = 0;
        q3_linear(y, x, weight, none, tokens[i], N, C, Q3_F32);
        left = SIZE_MAX;
        CHECK(memcmp(y, want, tokens[i] * N * sizeof *y) == 0);
    }
    q3_attention attention = {.y = y, .q = x, .k = x, .v = w, .T = 8, .H = 4, .K = 2, .hd = 16,
                              .dtype = Q3_F32};
    if (q3_best_kernels()->attend == NULL) return;
    CHECK(q3_best_kernels()->attend(&attention));
    failed = false;
    left = 0;
    bool done = q3_best_kernels()->attend(&attention);
    left = SIZE_MAX;
    CHECK(done != failed);
}

int main(int argc, char **argv)
{
    static const char config[] =
        "{\"model_type\":\"qwen3_moe\",\"mlp_only_layers\":[1,2],\"quantization_config\":"
        "{\"quant_method\":\"fp8\",\"modules_to_not_convert\":[\"lm_head\"]}}";
    if (argc != 2) return 2;
    snprintf(tiny, sizeof tiny, "%.500s/tiny", argv[1]);
    snprintf(tokenizer_path, sizeof tokenizer_path, "%s/tokenizer.json", tiny);
    snprintf(small_path, sizeof small_path, "%.500s/tokenizer/small.json", argv[1]);
    snprintf(gguf_path, sizeof gguf_path, "%.500s/gguf/q4_k_m.gguf", argv[1]);
    folder_make("memory.tmp");
    folder_write("config.json", config, sizeof config - 1);
    test_readers();
    failed = false;
    test_gguf();
    test_kernels();
    folder_remove();
    return t_done("memory");
}
