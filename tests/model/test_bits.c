/* SPDX-License-Identifier: MIT */
/* The same bits everywhere: every result compared with the hashes in golden/bits.
 *
 * test_bits GOLDEN                    compares; GOLDEN is the folder golden/
 * test_bits --kernels GOLDEN          compares once with each table of kernels that this processor
 *                                     runs
 * test_bits --write GOLDEN            writes golden/bits instead
 * test_bits --folders GOLDEN WHERE    for tests/platforms/dump.cmake: WHERE/CASE/config.json and
 *                                     model.safetensors, weights by the rule; WHERE/CASE exists
 *
 *   core.txt    operators, elementary functions, a small model: tests/platforms/core.h
 *   tiny.txt    every tap of golden/tiny for 24 tokens
 *   CASE.txt    every tap of golden/hf/CASE with weights by the rule, for 11 tokens
 *
 * These are our own bits, not the truth: that they are right is shown by the other tests. They
 * are written with the whole prompt in one call, and compared with calls of a few tokens. A bit
 * that changes is a change of the contract: CHANGELOG.md has a line for it, with the reason. The
 * last line printed is the hash of all lines, to compare platforms by. */
#include "model.h"
#include "platforms/core.h"

#include <stdio.h>

static const char *const cases[] = {"base", "bias", "long-rows", "odd-sizes", "rope-llama3",
                                    "rope-yarn", "sparse-step", "window"};
enum { CASES = sizeof cases / sizeof *cases, TINY_TOKENS = 24, CASE_TOKENS = 11 };
#define MEMORY ((size_t)48 << 20)

/* One file of golden/bits. */
typedef struct sheet {
    const char *golden, *name;
    bool writing;
    FILE *file;
    size_t lines;
} sheet;

static void sheet_open(sheet *s, const char *golden, const char *name, bool writing)
{
    char path[512];
    snprintf(path, sizeof path, "%s/bits/%s.txt", golden, name);
    s->golden = golden;
    s->name = name;
    s->writing = writing;
    s->lines = 0;
    s->file = fopen(path, writing ? "wb" : "rb");
    CHECKF(s->file != NULL, "%s cannot be opened", path);
    if (s->file == NULL) exit(1);
}

/* The next line of the file is this one. */
static void sheet_line(void *user, const char *line)
{
    sheet *s = user;
    char want[256] = "";
    const char *got_hash = strrchr(line, ' ') + 1; /* every line has two blanks */
    s->lines++;
    if (s->writing) {
        CHECK(fputs(line, s->file) >= 0);
        return;
    }
    if (fgets(want, sizeof want, s->file) == NULL) want[0] = '\0';
    if (strcmp(line, want) == 0) {
        t_count.run++;
        return;
    }
    const char *want_hash = strrchr(want, ' ');
    bool same_name = want_hash != NULL && want_hash + 1 - want == got_hash - line &&
                     memcmp(line, want, (size_t)(got_hash - line)) == 0;
    const char *expected = same_name ? want_hash + 1 : want;
    CHECKF(false, "golden/bits/%s.txt, line %lu: %.*s: found %.64s, expected %.*s. A changed bit "
           "needs a line in CHANGELOG.md that says why", s->name, (unsigned long)s->lines,
           (int)(got_hash - line - 1), line, got_hash, (int)strcspn(expected, "\n"), expected);
}

static void sheet_close(sheet *s)
{
    char rest[256];
    if (!s->writing && fgets(rest, sizeof rest, s->file) != NULL)
        CHECKF(false, "golden/bits/%s.txt: found no result, expected %s", s->name, rest);
    CHECK(s->lines > 0);
    CHECK(fclose(s->file) == 0);
}

static void complain(void *user, const char *name, const char *what, uint32_t found)
{
    const sheet *s = user;
    CHECKF(false, "%s: %s: %s: %08lx", s->name, name, what, (unsigned long)found);
}

/* ==== Models ================================================================================= */

static void write_core(core *c, size_t chunk)
{
    static core_model model;
    uint8_t *blob = calloc(1, CORE_BLOB_SIZE);
    if (blob == NULL) exit(1);
    core_model_make(&model, blob, blob);
    CHECKF(model.used == CORE_BLOB_SIZE, "%lu bytes of weights", (unsigned long)model.used);
    core_all(c, &model, chunk);
    free(blob);
}

static void rule_ids(int32_t *ids, size_t count, const char *name, size_t vocabulary)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = (int32_t)(rule_bits(rule_key(name, "ids"), i) % vocabulary);
}

/* Positions into the thousands for half of the cases. */
static size_t start_of(const char *name)
{
    return strlen(name) % 2 == 0 ? 4000 : 0;
}

static void write_taps(core *c, const fixture *f, const char *name, size_t T, bool whole)
{
    static const size_t chunks[3] = {1, 3, 4};
    int32_t ids[TINY_TOKENS];
    rule_ids(ids, T, name, f->config->vocab_size);
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++)
        core_run(c, f->config, f->weights, ids, T, start_of(name), whole ? T : chunks[d], d);
}

/* Every sheet; the hash of all their lines. */
static void run_sheets(core *c, const char *golden, bool writing)
{
    char path[512], hash[65];
    sheet s;
    c->user = &s;
    sha256_init(&c->lines);
    sheet_open(&s, golden, "core", writing);
    write_core(c, writing ? 0 : 2);
    sheet_close(&s);
    sha256 so_far = c->lines;
    sha256_text(&so_far, hash);
    printf("core %s\n", hash);
    for (size_t i = 0; i <= CASES; i++) {
        const char *name = i == CASES ? "tiny" : cases[i];
        fixture *f = malloc(sizeof *f);
        if (f == NULL) exit(1);
        snprintf(path, sizeof path, "%s/%s%s", golden, i == CASES ? "" : "hf/", name);
        if (i == CASES)
            fixture_from_folder(f, path);
        else
            fixture_by_rule(f, path);
        sheet_open(&s, golden, name, writing);
        write_taps(c, f, name, i == CASES ? TINY_TOKENS : CASE_TOKENS, writing);
        sheet_close(&s);
        fixture_close(f);
        free(f);
    }
}

/* ==== Model folders ========================================================================== */

typedef struct folder_writer {
    const fixture *f;
    q3_entry entries[512];
    char names[512][160];
    size_t count;
} folder_writer;

static void add_entry(folder_writer *w, const char *prefix, const char *name, size_t rows,
                      size_t cols)
{
    if (w->count == 512) exit(1);
    q3_entry *e = &w->entries[w->count];
    memset(e, 0, sizeof *e);
    snprintf(w->names[w->count], sizeof w->names[0], "%s%s", prefix, name);
    e->name = w->names[w->count++];
    e->dtype = Q3_BF16;
    e->rank = cols == 1 ? 1 : 2;
    e->shape[0] = rows;
    e->shape[1] = cols;
}

static void add_mlp(folder_writer *w, const char *prefix, size_t width)
{
    size_t M = w->f->config->hidden_size;
    add_entry(w, prefix, "gate_proj.weight", width, M);
    add_entry(w, prefix, "up_proj.weight", width, M);
    add_entry(w, prefix, "down_proj.weight", M, width);
}

static void add_layer(folder_writer *w, size_t i)
{
    const q3_config *c = w->f->config;
    size_t M = c->hidden_size, q = c->num_attention_heads * c->head_dim;
    size_t k = c->num_key_value_heads * c->head_dim;
    char p[40], mlp[96];
    snprintf(p, sizeof p, "model.layers.%lu.", (unsigned long)i);
    add_entry(w, p, "input_layernorm.weight", M, 1);
    add_entry(w, p, "self_attn.q_proj.weight", q, M);
    add_entry(w, p, "self_attn.k_proj.weight", k, M);
    add_entry(w, p, "self_attn.v_proj.weight", k, M);
    add_entry(w, p, "self_attn.o_proj.weight", M, q);
    if (c->attention_bias) {
        add_entry(w, p, "self_attn.q_proj.bias", q, 1);
        add_entry(w, p, "self_attn.k_proj.bias", k, 1);
        add_entry(w, p, "self_attn.v_proj.bias", k, 1);
        add_entry(w, p, "self_attn.o_proj.bias", M, 1);
    }
    add_entry(w, p, "self_attn.q_norm.weight", c->head_dim, 1);
    add_entry(w, p, "self_attn.k_norm.weight", c->head_dim, 1);
    add_entry(w, p, "post_attention_layernorm.weight", M, 1);
    if (q3_layer_is_sparse(c, i)) add_entry(w, p, "mlp.gate.weight", c->num_experts, M);
    for (size_t e = 0; q3_layer_is_sparse(c, i) && e < c->num_experts; e++) {
        snprintf(mlp, sizeof mlp, "%smlp.experts.%lu.", p, (unsigned long)e);
        add_mlp(w, mlp, c->moe_intermediate_size);
    }
    snprintf(mlp, sizeof mlp, "%smlp.", p);
    if (!q3_layer_is_sparse(c, i)) add_mlp(w, mlp, c->intermediate_size);
}

static void write_weights(folder_writer *w, const char *path)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    q3_writer *writer = NULL;
    q3_error error;
    if (q3_writer_open(&writer, path, w->entries, w->count, metadata, &error) != Q3_OK) {
        CHECKF(false, "%s", error.text);
        return;
    }
    for (size_t i = 0; i < w->count; i++) {
        const q3_entry *e = &w->entries[i];
        size_t cols = e->rank == 1 ? 1 : (size_t)e->shape[1], n = (size_t)e->shape[0] * cols;
        float *values = malloc(n * sizeof *values);
        if (values == NULL) exit(1);
        rule_fill(values, w->f->seed, e->name, e->shape[0], cols);
        CHECK(q3_writer_floats(writer, i, 0, values, n, &error) == Q3_OK);
        free(values);
    }
    CHECK(q3_writer_commit(writer, &error) == Q3_OK);
}

/* where/name/config.json and model.safetensors. */
static void write_folder(const char *golden, const char *name, const char *where)
{
    char path[512];
    const q3_config *c;
    folder_writer *w = calloc(1, sizeof *w);
    fixture *f = malloc(sizeof *f);
    if (w == NULL || f == NULL) exit(1);
    snprintf(path, sizeof path, "%s/hf/%s", golden, name);
    fixture_by_rule(f, path);
    w->f = f;
    c = f->config;
    add_entry(w, "", "model.embed_tokens.weight", c->vocab_size, c->hidden_size);
    for (size_t i = 0; i < c->num_hidden_layers; i++) add_layer(w, i);
    add_entry(w, "", "model.norm.weight", c->hidden_size, 1);
    if (!c->tie_word_embeddings) add_entry(w, "", "lm_head.weight", c->vocab_size, c->hidden_size);
    snprintf(path, sizeof path, "%s/%s/model.safetensors", where, name);
    write_weights(w, path);
    snprintf(path, sizeof path, "%s/hf/%s/config.json", golden, name);
    FILE *from = fopen(path, "rb");
    snprintf(path, sizeof path, "%s/%s/config.json", where, name);
    FILE *to = fopen(path, "wb");
    CHECKF(from != NULL && to != NULL, "%s", path);
    for (int byte; from != NULL && to != NULL && (byte = fgetc(from)) != EOF;) fputc(byte, to);
    CHECK(from != NULL && fclose(from) == 0);
    CHECK(to != NULL && fclose(to) == 0);
    fixture_close(f);
    free(f);
    free(w);
}

/* ==== main =================================================================================== */

static void run_all(char hash[65], const char *golden, bool writing)
{
    core c = {sheet_line, NULL, complain, calloc(1, MEMORY), MEMORY, 0, {{0}, 0, {0}}};
    if (c.memory == NULL) exit(1);
    run_sheets(&c, golden, writing);
    sha256_text(&c.lines, hash);
    free(c.memory);
}

int main(int argc, char **argv)
{
    char hash[65] = "";
    bool kernels = argc == 3 && strcmp(argv[1], "--kernels") == 0;
    bool folders = argc == 4 && strcmp(argv[1], "--folders") == 0;
    bool writing = argc == 3 && strcmp(argv[1], "--write") == 0;
    if (argc != 2 && !folders && !writing && !kernels) {
        fprintf(stderr, "test_bits [--write | --kernels] GOLDEN, or test_bits --folders GOLDEN "
                        "WHERE\n");
        return 2;
    }
    if (folders) {
        write_folder(argv[2], "bias", argv[3]);
        write_folder(argv[2], "sparse-step", argv[3]);
    } else if (kernels) {
        const q3_kernels *k;
        for (size_t i = 0; (k = q3_kernels_available(i)) != NULL; i++) {
            q3_use_kernels(k);
            run_all(hash, argv[2], false);
            printf("%s %s\n", k->name, hash);
        }
    } else {
        run_all(hash, argv[argc - 1], writing);
    }
    int status = t_done("bits");
    if (!folders) printf("bits %s\n", hash);
    return status;
}
