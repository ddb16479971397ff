/* SPDX-License-Identifier: MIT */
/* What qwen3moe.h promises of the library as a whole: the version; the last layer's output; and
 * that every function that can fail says so without a q3_error too.
 *
 *   test_library GOLDEN */
#if !defined(_WIN32)
#define _XOPEN_SOURCE 700
#include <signal.h>
#include <sys/resource.h>
#endif
#include "folder.h"
#include "qwen3moe.h"
#include "t.h"

/* The call, which fails and is given the pointer `e`, has the same status with a message and
 * without one. */
#define FAILS(status, call) \
    do { \
        q3_error error_ = {{0}}; \
        q3_error *e = &error_; \
        CHECK((call) == (status)); \
        CHECKF(error_.text[0] != 0, "no message"); \
        e = NULL; \
        CHECK((call) == (status)); \
    } while (0)

static q3_model *open_model(const char *golden)
{
    char path[512];
    q3_model *model = NULL;
    q3_error error = {{0}};
    q3_dtype dtype = Q3_BF16;
    snprintf(path, sizeof path, "%s/tiny", golden);
    q3_status status = q3_model_open(&model, path, &error);
    if (status == Q3_OK) {
        size_t layers = q3_model_config(model)->num_hidden_layers;
        status = q3_model_load(model, &dtype, 0, layers, &error);
    }
    if (status != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    return model;
}

/* Of the layers below end_layer, for six tokens, four at a time. */
static q3_state *make_state(const q3_model *model, size_t end_layer, void **memory)
{
    const q3_config *config = q3_model_config(model);
    q3_run run = {Q3_BF16, 0, end_layer, 0, 6, 4, 0};
    size_t size = q3_state_size(config, &run);
    *memory = malloc(size);
    if (*memory == NULL) exit(1);
    return q3_state_init(*memory, size, config, q3_model_weights(model), &run);
}

typedef struct outputs {
    size_t layer; /* whose output is wanted */
    size_t pieces, bytes;
    uint8_t output[1 << 16], normed[1 << 16];
} outputs;

static void keep(void *user, const q3_tap *tap)
{
    outputs *o = user;
    bool wanted = tap->id == Q3_TAP_LAYER && tap->layer == o->layer;
    if (!wanted && tap->id != Q3_TAP_NORM) return;
    size_t bytes = tap->shape[0] * tap->shape[1] * sizeof(float);
    CHECK(bytes <= sizeof o->output);
    memcpy(wanted ? o->output : o->normed, tap->data, bytes);
    if (wanted) {
        o->pieces++;
        o->bytes = bytes;
    }
}

/* q3_hidden is the output of the last layer that runs, of the last call's tokens, not
 * normalised. */
static void test_hidden(const char *golden)
{
    static const int32_t ids[] = {40, 77, 258, 1794, 1248, 2};
    static outputs o;
    q3_model *model = open_model(golden);
    size_t end = q3_model_config(model)->num_hidden_layers;
    for (size_t i = 0; i < 2; i++) {
        void *memory;
        size_t layers = i == 0 ? end : 2;
        q3_state *state = make_state(model, layers, &memory);
        o.layer = layers - 1;
        for (size_t at = 0; at < 6; at += 4) {
            q3_error error;
            q3_input input = {.tokens = ids + at, .count = at == 0 ? 4 : 2, .logit_rows = 0};
            o.pieces = 0;
            CHECK(q3_forward(state, &input, keep, &o, &error) == Q3_OK);
            CHECK(o.pieces == 1);
            CHECK(o.bytes == input.count * q3_model_config(model)->hidden_size * sizeof(float));
            CHECK(memcmp(q3_hidden(state), o.output, o.bytes) == 0);
            if (i == 0) CHECK(memcmp(q3_hidden(state), o.normed, o.bytes) != 0);
        }
        free(memory);
    }
    q3_model_close(model);
}

/* Keys and values of a run, layer by layer. */
typedef struct cached {
    float keys[8][4096], values[8][4096];
    size_t row;
} cached;

static void keep_cache(void *user, const q3_tap *tap)
{
    cached *c = user;
    bool keys = tap->id == Q3_TAP_K_ROPE;
    if (!keys && tap->id != Q3_TAP_V_PROJ) return;
    size_t count = tap->shape[0] * c->row;
    CHECK(tap->layer < 8 && count <= 4096);
    memcpy(keys ? c->keys[tap->layer] : c->values[tap->layer], tap->data, count * sizeof(float));
}

/* A cache filled with what another state computed goes on with the same bits. */
static void test_fill(const char *golden)
{
    static const int32_t ids[] = {40, 77, 258, 1794, 1248, 2};
    static cached c;
    void *memory[2];
    q3_error error;
    q3_model *model = open_model(golden);
    const q3_config *config = q3_model_config(model);
    size_t end = config->num_hidden_layers, V = config->vocab_size;
    q3_state *whole = make_state(model, end, &memory[0]);
    q3_state *rest = make_state(model, end, &memory[1]);
    c.row = config->num_key_value_heads * config->head_dim;
    q3_input input = {.tokens = ids, .count = 4, .logit_rows = 1};
    CHECK(q3_forward(whole, &input, keep_cache, &c, &error) == Q3_OK);
    for (size_t i = 0; i < end; i++) q3_state_fill(rest, i, c.keys[i], c.values[i], 4);
    CHECK(q3_cached(rest) == 4);
    input = (q3_input){.tokens = ids + 4, .count = 2, .logit_rows = 2};
    CHECK(q3_forward(whole, &input, NULL, NULL, &error) == Q3_OK);
    CHECK(q3_forward(rest, &input, NULL, NULL, &error) == Q3_OK);
    CHECK(q3_cached(rest) == 6);
    CHECK(memcmp(q3_logits(whole), q3_logits(rest), 2 * V * sizeof(float)) == 0);
    free(memory[0]);
    free(memory[1]);
    q3_model_close(model);
}

/* Logits of a run, as the tap and q3_logits show them. */
typedef struct logits {
    float tapped[6][2040];
    size_t rows, most; /* rows seen so far, and in one piece */
} logits;

static void keep_logits(void *user, const q3_tap *tap)
{
    logits *l = user;
    if (tap->id != Q3_TAP_LM_HEAD) return;
    CHECK(tap->rank == 2 && tap->shape[1] == 2040 && tap->first == l->rows);
    CHECK(tap->first + tap->shape[0] <= 6);
    memcpy(l->tapped[l->rows], tap->data, tap->shape[0] * sizeof l->tapped[0]);
    l->rows += tap->shape[0];
    if (tap->shape[0] > l->most) l->most = tap->shape[0];
}

/* Memory in steps of a cache line, as the state hands it out. */
static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* A state with room for fewer rows of logits than a call asks for: the pieces are the same bits,
 * the last rows stay, and the memory is less by the other rows. */
static void test_logit_rows(const char *golden)
{
    static const int32_t ids[] = {40, 77, 258, 1794, 1248, 2};
    static logits whole, pieces;
    q3_model *model = open_model(golden);
    const q3_config *config = q3_model_config(model);
    size_t V = config->vocab_size, row = V * sizeof(float), size = 0;
    CHECK(V == 2040);
    for (size_t room = 0; room <= 6; room++) {
        logits *l = room == 0 ? &whole : &pieces;
        q3_run run = {.dtype = Q3_BF16, .end_layer = config->num_hidden_layers, .rows = 6,
                      .chunk = 6, .logit_rows = room};
        size_t kept = room == 0 ? 6 : room, own = q3_state_size(config, &run);
        if (room == 0) size = own;
        CHECK(size - own == lines(6 * row) - lines(kept * row));
        void *memory = malloc(own);
        if (memory == NULL) exit(1);
        q3_state *state = q3_state_init(memory, own, config, q3_model_weights(model), &run);
        q3_input input = {.tokens = ids, .count = 6, .logit_rows = 6};
        l->rows = l->most = 0;
        CHECK(q3_forward(state, &input, keep_logits, l, NULL) == Q3_OK);
        CHECK(l->rows == 6 && l->most == kept);
        CHECK(memcmp(l->tapped, whole.tapped, sizeof whole.tapped) == 0);
        CHECK(memcmp(q3_logits(state), whole.tapped[6 - kept], kept * row) == 0);
        free(memory);
    }
    q3_model_close(model);
}

static void forward_fails(const char *golden)
{
    static const int32_t good[] = {1, 2, 3, 4}, low[] = {-7}, high[] = {1 << 30};
    void *memory;
    q3_model *model = open_model(golden);
    q3_state *state = make_state(model, q3_model_config(model)->num_hidden_layers, &memory);
    q3_input input = {.tokens = low, .count = 1};
    FAILS(Q3_ERROR_INPUT, q3_forward(state, &input, NULL, NULL, e));
    input.tokens = high;
    FAILS(Q3_ERROR_INPUT, q3_forward(state, &input, NULL, NULL, e));
    input = (q3_input){.tokens = good, .count = 4};
    CHECK(q3_forward(state, &input, NULL, NULL, NULL) == Q3_OK);
    FAILS(Q3_ERROR_INPUT, q3_forward(state, &input, NULL, NULL, e)); /* two rows are left */
    CHECK(q3_cached(state) == 4);
    free(memory);
    q3_model_close(model);
}

static void model_fails(const char *golden)
{
    char path[512];
    q3_model *model = NULL;
    q3_dtype dtype = Q3_F32;
    const int32_t *ids;
    size_t count;
    FAILS(Q3_ERROR_FILE, q3_model_open(&model, folder_path("missing"), e));
    folder_write("config.json", "{", 1);
    FAILS(Q3_ERROR_INPUT, q3_model_open(&model, folder_path("config.json"), e));
    folder_write("config.json", "{\"model_type\": \"qwen3_moe\", \"head_dim\": 3}", 42);
    FAILS(Q3_ERROR_INPUT, q3_model_open(&model, folder_path("config.json"), e));
    CHECK(model == NULL);
    snprintf(path, sizeof path, "%s/tiny/config.json", golden);
    CHECK(q3_model_open(&model, path, NULL) == Q3_OK);
    FAILS(Q3_ERROR_INPUT, q3_model_load(model, &dtype, 0, 1, e)); /* a config.json alone */
    q3_model_close(model);

    /* A folder without weights, and with an eos_token_id that is none. */
    FILE *f = fopen(path, "rb");
    char text[8192];
    size_t length = f == NULL ? 0 : fread(text, 1, sizeof text, f);
    if (f != NULL) fclose(f);
    CHECK(length > 0 && length < sizeof text);
    folder_write("config.json", text, length);
    folder_write("generation_config.json", "{\"eos_token_id\": \"x\"}", 21);
    CHECK(q3_model_open(&model, folder.path, NULL) == Q3_OK);
    FAILS(Q3_ERROR_INPUT, q3_model_load(model, &dtype, 0, 1, e));
    FAILS(Q3_ERROR_INPUT, q3_model_eos(model, &ids, &count, e));
    q3_model_close(model);
}

/* No file may grow beyond so many bytes; 0: as before. False where that cannot be asked for. */
static bool limit_files(unsigned long bytes)
{
#if defined(_WIN32)
    (void)bytes;
    return false;
#else
    static struct rlimit before;
    if (bytes == 0) return setrlimit(RLIMIT_FSIZE, &before) == 0;
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    if (getrlimit(RLIMIT_FSIZE, &before) != 0) return false;
    limit = before;
    limit.rlim_cur = bytes;
    return setrlimit(RLIMIT_FSIZE, &limit) == 0;
#endif
}

static void files_fail(void)
{
    static const float floats[1 << 16];
    static const int64_t integers[1 << 16];
    q3_entry entries[] = {{"a", Q3_F32, 1, {1 << 16}, NULL}, {"b", Q3_I64, 1, {1 << 16}, NULL}};
    q3_tensors *tensors = NULL;
    q3_writer *writer = NULL;
    FAILS(Q3_ERROR_FILE, q3_tensors_open(&tensors, folder_path("missing"), e));
    folder_write("bad.safetensors", "12345678", 8);
    FAILS(Q3_ERROR_INPUT, q3_tensors_open(&tensors, folder_path("bad.safetensors"), e));
    FAILS(Q3_ERROR_FILE, q3_writer_open(&writer, folder_path("missing/x"), entries, 2, NULL, e));
    CHECK(tensors == NULL && writer == NULL);

    folder_expect("out.safetensors");
    CHECK(q3_writer_open(&writer, folder_path("out.safetensors"), entries, 2, NULL, NULL) == Q3_OK);
    if (limit_files(1 << 16)) {
        FAILS(Q3_ERROR_FILE, q3_writer_floats(writer, 0, 0, floats, 1 << 16, e));
        FAILS(Q3_ERROR_FILE, q3_writer_integers(writer, 1, 0, integers, 1 << 16, e));
        CHECK(limit_files(0));
    }
    q3_writer_abandon(writer);

    /* A folder has come to stand where the file is to go. */
    for (int with = 0; with < 2; with++) {
        q3_error error = {{0}};
        CHECK(q3_writer_open(&writer, folder_path("taken"), entries, 2, NULL, NULL) == Q3_OK);
        CHECK(folder_mkdir(folder_path("taken")) == 0);
        CHECK(q3_writer_commit(writer, with ? &error : NULL) == Q3_ERROR_FILE);
        CHECK((error.text[0] != 0) == (with == 1));
        CHECK(folder_rmdir(folder_path("taken")) == 0);
    }
}

static void texts_fail(const char *golden)
{
    static const int32_t beyond[] = {1, 1 << 30};
    char path[512];
    q3_tokenizer *tokenizer = NULL;
    int32_t *ids = NULL;
    uint8_t *text = NULL;
    size_t count;
    FAILS(Q3_ERROR_FILE, q3_tokenizer_open(&tokenizer, folder_path("missing"), e));
    FAILS(Q3_ERROR_INPUT, q3_tokenizer_parse(&tokenizer, "name", "{}", 2, e));
    FAILS(Q3_ERROR_INPUT, q3_tokenizer_parse(&tokenizer, "name", "{\"model\": ", 10, e));
    CHECK(tokenizer == NULL);
    snprintf(path, sizeof path, "%s/tiny/tokenizer.json", golden);
    CHECK(q3_tokenizer_open(&tokenizer, path, NULL) == Q3_OK);
    FAILS(Q3_ERROR_INPUT, q3_tokenizer_encode(tokenizer, "a\xFF", 2, &ids, &count, e));
    FAILS(Q3_ERROR_INPUT, q3_tokenizer_decode(tokenizer, beyond, 2, &text, &count, e));
    q3_tokenizer_free(tokenizer);
    FAILS(Q3_ERROR_FILE, q3_chat_template(folder_path("missing"), &text, &count, e));
    FAILS(Q3_ERROR_INPUT, q3_chat_render("unknown", 7, "name", "[]", 2, 0, &text, &count, e));
    snprintf(path, sizeof path, "%s/tiny", golden);
    uint8_t *known;
    size_t length;
    CHECK(q3_chat_template(path, &known, &length, NULL) == Q3_OK);
    FAILS(Q3_ERROR_INPUT, q3_chat_render(known, length, "name", "[", 1, 0, &text, &count, e));
    FAILS(Q3_ERROR_INPUT, q3_chat_render(known, length, "name", "[]", 2, 0, &text, &count, e));
    free(known);
    CHECK(ids == NULL && text == NULL);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    CHECK_TEXT(q3_version(), Q3_VERSION);
    folder_make("library.tmp");
    test_hidden(argv[1]);
    test_fill(argv[1]);
    test_logit_rows(argv[1]);
    forward_fails(argv[1]);
    model_fails(argv[1]);
    files_fail();
    texts_fail(argv[1]);
    folder_remove();
    return t_done("library");
}
