/* SPDX-License-Identifier: MIT */
/* The module tree and the counts against golden/trees: NAME.json is a config.json, NAME.txt what
 * PyTorch prints for it. Argument: the golden folder. */
#include "qwen3moe.h"
#include "t.h"

#include <inttypes.h>

/* parameters: PyTorch's sum over parameters() for the small cases, the published figures for the
 * large ones. active: PyTorch's sum for a model of num_experts_per_tok experts, and the rest of the
 * router's rows; for the large ones the parameters less layers * (E - A) * 3 * F * M.
 * key_value: 2 * layers * key/value heads * head_dim. */
static const struct { const char *name; uint64_t parameters, active, key_value; } cases[] = {
    {"Qwen3-30B-A3B", 30532122624, 3353032704, 2 * 48 * 4 * 128},
    {"Qwen3-235B-A22B", 235093634560, 22190763520, 2 * 94 * 4 * 128},
    {"Qwen3-Coder-480B-A35B-Instruct", 480154875392, 35474765312, 2 * 62 * 8 * 128},
    {"mixed-sparse-step", 229136, 188816, 448},
    {"Qwen3-8B", 8190735360, 8190735360, 73728},
    {"alternating", 109360, 97840, 320},
    {"biases", 60432, 48912, 128},
    {"dense-ends", 163472, 140432, 448},
    {"eps-1e-4", 87072, 69792, 192},
    {"eps-1e-5", 87072, 69792, 192},
    {"eps-long", 87072, 69792, 192},
    {"eps-zero", 87072, 69792, 192},
    {"no-experts", 55248, 55248, 192},
    {"no-layers", 5904, 5904, 0},
    {"one-expert", 51936, 51936, 192},
    {"one-layer", 32960, 27200, 64},
    {"padding", 87072, 69792, 192},
    {"padding-from-end", 87072, 69792, 192},
    {"padding-zero", 87072, 69792, 192},
    {"tied", 84144, 66864, 192},
};

/* A text file; NULL if there is none. */
static char *read_text(const char *path)
{
    static char text[65536];
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    return n < sizeof text - 1 ? text : NULL;
}

static void check_case(const char *golden, size_t i)
{
    char path[512];
    q3_model *model = NULL;
    q3_error error = {""};
    q3_counts counts = {0};
    snprintf(path, sizeof path, "%s/trees/%s.json", golden, cases[i].name);
    q3_status status = q3_model_open(&model, path, &error);
    CHECKF(status == Q3_OK, "%s: %s", cases[i].name, error.text);
    if (status != Q3_OK) return;
    snprintf(path, sizeof path, "%s/trees/%s.txt", golden, cases[i].name);
    const char *expected = read_text(path);
    char *tree = q3_module_tree(q3_model_config(model));
    CHECKF(expected != NULL, "%s", path);
    CHECKF(tree != NULL && expected != NULL && strcmp(tree, expected) == 0, "%s: got\n%s",
           cases[i].name, tree != NULL ? tree : "(no memory)");
    free(tree);
    CHECK(q3_count(&counts, q3_model_config(model)));
    CHECKF(counts.parameters == cases[i].parameters, "%s: got %" PRIu64, cases[i].name,
           counts.parameters);
    CHECKF(counts.active_per_token == cases[i].active, "%s: got %" PRIu64, cases[i].name,
           counts.active_per_token);
    CHECKF(counts.key_value_elements_per_token == cases[i].key_value, "%s: got %" PRIu64,
           cases[i].name, counts.key_value_elements_per_token);
    q3_model_close(model);
}

/* A count that does not fit is said, and nothing is written. */
static void check_overflow(void)
{
    q3_counts counts = {1, 2, 3};
    q3_config config = {.vocab_size = 1, .hidden_size = INT32_MAX, .intermediate_size = INT32_MAX,
                        .num_hidden_layers = 2, .num_attention_heads = 2, .num_key_value_heads = 1,
                        .head_dim = 2, .num_experts_per_tok = 1, .decoder_sparse_step = 1};
    CHECK(!q3_count(&counts, &config)); /* 2 * 3 * 2^62 */
    CHECK(counts.parameters == 1 && counts.active_per_token == 2 &&
          counts.key_value_elements_per_token == 3);
    config.num_hidden_layers = 1; /* 3 * 2^62 and less */
    CHECK(q3_count(&counts, &config));
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_info GOLDEN\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case(argv[1], i);
    check_overflow();
    return t_done("info");
}
