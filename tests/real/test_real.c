/* SPDX-License-Identifier: MIT */
/* `qwen3moe check` on checkpoints of the published sizes: golden/real has what Hugging Face
 * computed in one layer, with weights by the rule. Makes the checkpoint that the rule stands for,
 * as one sparse file of up to 960 GB in which there are only the weights that this run reads: the
 * layer's, without the experts that no token chose, the tokens' rows of the embedding, the head.
 * The rest are holes, which take no room.
 *
 *   test_real COMMAND FOLDER LAYER    FOLDER of golden/real: its layer-LAYER-DTYPE.safetensors
 *   test_real COMMAND FOLDER LAYER FILE [STATUS OPTION WORDS]...    these taps instead: check's
 *                                     exit status with an option, and what it must say */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include "folder.h"
#include "qwen3moe.h"
#include "rule.h"
#include "t.h"

#include <sys/stat.h>
#include <unistd.h>

static const char *command_path, *golden_folder;
static size_t layer; /* under test */

static void stop(const char *what, const char *thing)
{
    fprintf(stderr, "test_real: %s: %s\n", what, thing);
    folder_remove();
    exit(1);
}

/* ==== The tensors of the checkpoint =========================================================== */

enum { NAME = 96 }; /* bytes of a tensor's name at most */

typedef struct tensor {
    char name[NAME];
    uint64_t rows, columns; /* 0 columns: a vector */
    uint64_t offset;        /* in the file */
} tensor;

static struct {
    tensor *tensors;
    size_t count, room;
    uint64_t size; /* of the file */
    FILE *file;
} checkpoint;

static void add(const char *name, uint64_t rows, uint64_t columns)
{
    if (checkpoint.count == checkpoint.room) {
        checkpoint.room = 2 * checkpoint.room + 1024;
        checkpoint.tensors = realloc(checkpoint.tensors, checkpoint.room * sizeof(tensor));
        if (checkpoint.tensors == NULL) stop("no memory", name);
    }
    tensor *t = &checkpoint.tensors[checkpoint.count++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->rows = rows;
    t->columns = columns;
    t->offset = checkpoint.size;
    checkpoint.size += rows * (columns > 0 ? columns : 1) * 2;
}

static void add_layer(const q3_config *c, size_t i)
{
    size_t M = c->hidden_size, hd = c->head_dim, F = c->moe_intermediate_size;
    size_t q = c->num_attention_heads * hd, kv = c->num_key_value_heads * hd;
    const struct { const char *name; size_t rows, columns; } own[] = {
        {"self_attn.q_proj", q, M}, {"self_attn.k_proj", kv, M}, {"self_attn.v_proj", kv, M},
        {"self_attn.o_proj", M, q}, {"self_attn.q_norm", hd, 0}, {"self_attn.k_norm", hd, 0},
        {"input_layernorm", M, 0}, {"post_attention_layernorm", M, 0},
        {"mlp.gate", c->num_experts, M},
    }, of_expert[] = {{"gate_proj", F, M}, {"up_proj", F, M}, {"down_proj", M, F}};
    char name[NAME];
    for (size_t k = 0; k < sizeof own / sizeof *own; k++) {
        snprintf(name, sizeof name, "model.layers.%zu.%s.weight", i, own[k].name);
        add(name, own[k].rows, own[k].columns);
    }
    for (size_t k = 0; k < 3 * c->num_experts; k++) {
        snprintf(name, sizeof name, "model.layers.%zu.mlp.experts.%zu.%s.weight", i, k / 3,
                 of_expert[k % 3].name);
        add(name, of_expert[k % 3].rows, of_expert[k % 3].columns);
    }
}

/* The file's length, header and holes. */
static void make_holes(const q3_config *c)
{
    add("model.embed_tokens.weight", c->vocab_size, c->hidden_size);
    for (size_t i = 0; i < c->num_hidden_layers; i++) add_layer(c, i);
    add("model.norm.weight", c->hidden_size, 0);
    add("lm_head.weight", c->vocab_size, c->hidden_size);
    char *header = malloc(checkpoint.count * 256 + 8);
    size_t length = 0;
    if (header == NULL) stop("no memory", "header");
    for (size_t i = 0; i < checkpoint.count; i++) {
        const tensor *t = &checkpoint.tensors[i];
        uint64_t end = i + 1 < checkpoint.count ? t[1].offset : checkpoint.size;
        char columns[24] = "";
        if (t->columns > 0)
            snprintf(columns, sizeof columns, ",%llu", (unsigned long long)t->columns);
        length += (size_t)sprintf(header + length,
                                  "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%llu%s],"
                                  "\"data_offsets\":[%llu,%llu]}",
                                  i == 0 ? '{' : ',', t->name, (unsigned long long)t->rows, columns,
                                  (unsigned long long)t->offset, (unsigned long long)end);
    }
    header[length++] = '}';
    while (length % 8 != 0) header[length++] = ' ';
    uint8_t before[8];
    for (size_t i = 0; i < 8; i++) before[i] = (uint8_t)(length >> 8 * i & 0xFF);
    for (size_t i = 0; i < checkpoint.count; i++) checkpoint.tensors[i].offset += 8 + length;
    checkpoint.size += 8 + length;
    folder_expect("model.safetensors");
    checkpoint.file = fopen(folder_path("model.safetensors"), "wb+");
    if (checkpoint.file == NULL || fwrite(before, 1, 8, checkpoint.file) != 8 ||
        fwrite(header, 1, length, checkpoint.file) != length || fflush(checkpoint.file) != 0)
        stop("cannot write", "model.safetensors");
    free(header);
}

/* False: this file system has no holes, or no files of this size. */
static bool stretch_file(void)
{
    struct stat about;
    return ftruncate(fileno(checkpoint.file), (off_t)checkpoint.size) == 0 &&
           fstat(fileno(checkpoint.file), &about) == 0 &&
           (uint64_t)about.st_blocks * 512 < UINT64_C(1) << 30;
}

/* ==== Their values ============================================================================ */

enum { PIECE = 1 << 18 }; /* elements that are made at a time */

static const tensor *find(const char *name)
{
    for (size_t i = 0; i < checkpoint.count; i++)
        if (strcmp(checkpoint.tensors[i].name, name) == 0) return &checkpoint.tensors[i];
    stop("no tensor", name);
    return NULL;
}

/* Rows [first, first + count) by the rule, all times sign. */
static void write_rows(const tensor *t, uint64_t first, uint64_t count, float sign)
{
    static float values[PIECE];
    static uint8_t bytes[2 * PIECE];
    uint64_t columns = t->columns > 0 ? t->columns : 1, step = PIECE / columns;
    if (fseeko(checkpoint.file, (off_t)(t->offset + first * columns * 2), SEEK_SET) != 0)
        stop("cannot seek", t->name);
    for (uint64_t row = first, end = first + count; row < end; row += step) {
        uint64_t rows = end - row < step ? end - row : step;
        size_t n = (size_t)(rows * columns);
        rule_fill_rows(values, "real", t->name, row, rows, columns);
        for (size_t i = 0; i < n; i++) {
            float value = values[i] * sign;
            uint32_t bits;
            memcpy(&bits, &value, 4);
            bytes[2 * i] = (uint8_t)(bits >> 16 & 0xFF);
            bytes[2 * i + 1] = (uint8_t)(bits >> 24);
        }
        if (fwrite(bytes, 2, n, checkpoint.file) != n) stop("no room for", t->name);
    }
}

static void write_tensor(const char *name)
{
    const tensor *t = find(name);
    write_rows(t, 0, t->rows, 1);
}

/* All of the layer, but of its experts those that were chosen. */
static void write_layer(const bool *chosen)
{
    char prefix[NAME];
    size_t length = (size_t)snprintf(prefix, sizeof prefix, "model.layers.%zu.", layer);
    for (size_t i = 0; i < checkpoint.count; i++) {
        const char *name = checkpoint.tensors[i].name;
        if (strncmp(name, prefix, length) != 0) continue;
        if (strncmp(name + length, "mlp.experts.", 12) == 0 && !chosen[atoi(name + length + 12)])
            continue;
        write_rows(&checkpoint.tensors[i], 0, checkpoint.tensors[i].rows, 1);
    }
}

/* ==== Files of taps =========================================================================== */

static q3_tensors *open_taps(const char *path)
{
    q3_tensors *taps;
    q3_error error;
    if (q3_tensors_open(&taps, path, &error) != Q3_OK) stop("cannot read", error.text);
    return taps;
}

/* The integers of a tensor, or none. */
static size_t read_ids(int64_t *ids, size_t most, const q3_tensors *taps, const char *name)
{
    const q3_entry *entry = q3_tensors_find(taps, name);
    size_t count = entry == NULL ? 0 : 1;
    for (size_t i = 0; entry != NULL && i < entry->rank; i++) count *= (size_t)entry->shape[i];
    if (count > most) stop("too many integers", name);
    if (count > 0) q3_entry_integers(ids, entry, 0, count);
    return count;
}

/* What this run reads. Where there is no tap behind the router nothing is judged there, and the
 * experts stay holes. */
static void write_needed(const q3_config *c, const q3_tensors *taps)
{
    bool chosen[256] = {false};
    int64_t ids[256];
    char name[NAME];
    size_t count;
    snprintf(name, sizeof name, "model.layers.%zu.output", layer);
    if (q3_tensors_find(taps, name) != NULL) {
        snprintf(name, sizeof name, "model.layers.%zu.mlp.topk_indices.output", layer);
        count = read_ids(ids, 256, taps, name);
        for (size_t i = 0; i < count; i++) chosen[ids[i] & 255] = true;
    }
    write_layer(chosen);
    count = read_ids(ids, 256, taps, "input_ids");
    for (size_t i = 0; i < count; i++)
        write_rows(find("model.embed_tokens.weight"), (uint64_t)ids[i], 1, 1);
    if (layer + 1 == c->num_hidden_layers) {
        write_tensor("model.norm.weight");
        write_tensor("lm_head.weight");
    }
    if (fflush(checkpoint.file) != 0) stop("no room for", "model.safetensors");
}

/* ==== The command ============================================================================= */

static bool said(const char *words)
{
    static char text[1 << 16];
    FILE *file = fopen(folder_path("said"), "rb");
    size_t size = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0;
    text[size] = 0;
    if (file == NULL || fclose(file) != 0) stop("cannot read", "said");
    return strstr(text, words) != NULL;
}

/* Exit status of `check`, and words in its output, which is printed where either is missing. */
static void check(const char *taps, int want, const char *option, const char *words)
{
    char line[2048];
    if (snprintf(line, sizeof line, "'%s' check %s '%s' --layers %zu:%zu %s >%s 2>&1", command_path,
                 folder.path, taps, layer, layer + 1, option, folder_path("said")) >=
        (int)sizeof line)
        stop("too long a line", taps);
    folder_expect("said");
    int status = system(line);
    status = status != -1 && (status & 0x7F) == 0 ? status >> 8 & 0xFF : -1;
    CHECKF(status == want, "%s: exit status %d, expected %d", line, status, want);
    CHECKF(said(words), "%s: expected to say %s", line, words);
    if (status == want && said(words)) return;
    snprintf(line, sizeof line, "cat %s >&2", folder_path("said"));
    if (system(line) != 0) stop("cannot read", "said");
}

static void copy_config(void)
{
    static char text[8192];
    char path[1024];
    snprintf(path, sizeof path, "%s/config.json", golden_folder);
    FILE *file = fopen(path, "rb");
    size_t size = file != NULL ? fread(text, 1, sizeof text, file) : 0;
    if (size == 0 || size == sizeof text || fclose(file) != 0) stop("cannot read", path);
    folder_write("config.json", text, size);
}

/* Hugging Face's own files, and one wrong weight, which is noticed. */
static void check_layer(char path[2][1024])
{
    char name[NAME];
    for (size_t d = 0; d < 2; d++) check(path[d], 0, "", "agrees");
    snprintf(name, sizeof name, "model.layers.%zu.self_attn.k_norm.weight", layer);
    write_rows(find(name), 0, 1, -1);
    if (fflush(checkpoint.file) != 0) stop("no room for", "model.safetensors");
    check(path[0], 1, "", "k_norm");
}

int main(int argc, char **argv)
{
    static const char *const dtypes[] = {"bfloat16", "float32"};
    char path[2][1024], own[60];
    q3_model *model;
    q3_error error;
    if (argc < 4 || (argc > 4 && argc % 3 != 2))
        return fprintf(stderr, "usage: see the head of test_real.c\n"), 1;
    command_path = argv[1];
    golden_folder = argv[2];
    layer = (size_t)atoi(argv[3]);
    const char *slash = strrchr(golden_folder, '/');
    snprintf(own, sizeof own, "%.20s-%zu-%.20s.tmp", slash != NULL ? slash + 1 : golden_folder,
             layer, argc > 4 ? strrchr(argv[4], '/') + 1 : "");
    folder_make(own);
    copy_config();
    if (q3_model_open(&model, folder.path, &error) != Q3_OK) stop("no config", error.text);
    const q3_config *c = q3_model_config(model);
    make_holes(c);
    if (!stretch_file()) {
        printf("skipped: no sparse file of %llu bytes can be made here\n",
               (unsigned long long)checkpoint.size);
        folder_remove();
        return 77;
    }
    for (size_t d = 0; d < 2; d++)
        snprintf(path[d], sizeof path[d], "%s/layer-%zu-%s.safetensors", golden_folder, layer,
                 dtypes[d]);
    q3_tensors *taps = open_taps(argc > 4 ? argv[4] : path[0]);
    write_needed(c, taps);
    q3_tensors_close(taps);
    if (argc == 4) check_layer(path);
    for (int i = 5; i < argc; i += 3) check(argv[4], atoi(argv[i]), argv[i + 1], argv[i + 2]);
    fclose(checkpoint.file);
    q3_model_close(model);
    free(checkpoint.tensors);
    folder_remove();
    return t_done("real");
}
