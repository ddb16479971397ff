/* SPDX-License-Identifier: MIT */
/* `qwen3moe diff`: verdicts, figures and exit status for two files.
 *
 *   test_diff COMMAND GOLDEN */
#define FOLDER "diff.tmp/"
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of command.h */
#endif
#include "command.h"

#include "tensors.h"

/* A tensor: its values are 1 but for one of them. name NULL: none. */
typedef struct tensor_case {
    const char *name, *dtype, *shape;
    size_t count, odd;
    double value;
} tensor_case;

typedef struct diff_case {
    const char *metadata[2];
    tensor_case a[2], b[2];
    int status;
    const char *tap;  /* of the finding to look at */
    const char *holds[4]; /* in its line */
    const char *last; /* line of the report */
} diff_case;

#define MLP "model.layers.0.mlp.output"
#define PROBS "model.layers.0.self_attn.probs.output"
#define IDS "model.layers.0.mlp.topk_indices.output"
#define ROUTER "model.layers.0.mlp.router_probs.output"
#define AGREES "agrees"
#define UNJUDGED "could not judge"
#define BF16_RUN "\"dtype\":\"bfloat16\""

static const diff_case cases[] = {
    /* equal: names, axes of 1, dtypes, NaN */
    {{"", ""}, {{MLP, "F32", "3,5", 15, 0, 2}}, {{MLP, "F32", "3,5", 15, 0, 2}}, 0, MLP,
     {"\"verdict\":\"exact\"", "\"differ\":0", "\"elements\":15"}, AGREES},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 0, 2}}, {{"ffn_moe_out-0", "F32", "1,3,5", 15, 0, 2}}, 0,
     MLP, {"\"verdict\":\"exact\"", "\"given_as\":\"ffn_moe_out-0\""}, AGREES},
    {{"", ""}, {{"zebra", "F64", "2,3,5,7", 210, 9, 2}}, {{"zebra", "BF16", "2,3,5,7", 210, 9, 2}},
     0, "zebra", {"\"verdict\":\"exact\"", "\"elements\":210"}, AGREES},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, NAN}}, {{MLP, "F64", "3,5", 15, 4, -NAN}}, 0, MLP,
     {"\"verdict\":\"exact\""}, AGREES},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, 0.0}}, {{MLP, "F32", "3,5", 15, 4, -0.0}}, 0, MLP,
     {"\"verdict\":\"exact\"", "1 zeros of the other sign"}, AGREES},
    {{"", ""}, {{NULL, NULL, NULL, 0, 0, 0}}, {{NULL, NULL, NULL, 0, 0, 0}}, 2, NULL, {NULL},
     UNJUDGED},
    {{"", ""}, {{"zebra", "F32", "0,3,4611686018427387904", 0, 9, 2}},
     {{"zebra", "F32", "0,3,4611686018427387904", 0, 9, 2}}, 0, "zebra", {"\"verdict\":\"exact\""},
     AGREES},
    /* one element: how many ulp, of the tensor's dtype or its run's; where */
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}}, {{MLP, "F32", "3,5", 15, 7, 1 + 0x1p-22}}, 1, MLP,
     {"\"differ\":1,", "\"max_ulp\":2.0,", "\"at\":[1,2]}", "\"ulp\":2.0,"}, "differs: " MLP},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, 2}}, {{MLP, "F32", "3,5", 15, 9, 3}}, 1, MLP,
     {"\"differ\":2,", "\"max_at\":[1,4],", "\"at\":[0,4]}"}, "differs: " MLP},
    {{BF16_RUN, ""}, {{ROUTER, "F32", "3,5", 15, 99, 0}},
     {{ROUTER, "F32", "3,5", 15, 7, 1 + 0x1p-22}}, 1, ROUTER,
     {"\"max_ulp\":2.0,"}, "differs: " ROUTER}, /* float32 in every run */
    {{BF16_RUN, ""}, {{MLP, "F32", "3,5", 15, 99, 0}}, {{MLP, "F32", "3,5", 15, 7, 1 + 0x1p-6}}, 1,
     MLP, {"\"verdict\":\"differs\"", "\"max_ulp\":2.0,"}, "differs: " MLP},
    {{BF16_RUN, ""}, {{MLP, "F16", "3,5", 15, 99, 0}}, {{MLP, "F32", "3,5", 15, 7, 1 + 0x1p-9}}, 1,
     MLP, {"\"verdict\":\"differs\"", "\"max_ulp\":2.0,"}, "differs: " MLP},
    {{"", ""}, {{MLP, "F64", "3,5", 15, 99, 0}}, {{MLP, "F64", "3,5", 15, 7, 1 + 0x1p-40}}, 1, MLP,
     {"\"verdict\":\"differs\"", "\"differ\":1,"}, "differs: " MLP}, /* equal as float32 */
    {{"", ""}, {{"ids", "I64", "3", 3, 1, 9007199254740992.0}},
     {{"ids", "I64", "3", 3, 1, 9007199254740994.0}}, 1, "ids",
     {"\"verdict\":\"differs\"", "\"differ\":1,", "\"at\":[1]}"}, "differs: ids"},
    /* [H,T,S] = [2,3,3]: element 16 is head 1, query 2, key 1 */
    {{"", ""}, {{PROBS, "F32", "2,3,3", 18, 99, 0}}, {{PROBS, "F32", "2,3,3", 18, 16, 3}}, 1, PROBS,
     {"\"verdict\":\"differs\"", "\"max_at\":[2,1,1]", "\"at\":[2,1,1]}"}, "differs: " PROBS},
    /* infinities, names, shapes */
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, 1}}, {{MLP, "F32", "3,5", 15, 4, INFINITY}}, 1, MLP,
     {"\"verdict\":\"non-finite\""}, "differs: " MLP},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, NAN}}, {{MLP, "F32", "3,5", 15, 4, 1}}, 1, MLP,
     {"\"verdict\":\"differs\""}, "differs: " MLP},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, NAN}}, {{MLP, "F32", "3,5", 15, 4, INFINITY}}, 1, MLP,
     {"\"verdict\":\"differs\""}, "differs: " MLP},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}, {"zebra", "F32", "2", 2, 99, 0}},
     {{MLP, "F32", "3,5", 15, 99, 0}}, 1, "zebra",
     {"\"verdict\":\"missing\"", "\"given_as\":null", "only in the first file"}, "differs: zebra"},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}},
     {{MLP, "F32", "3,5", 15, 99, 0}, {"zebra", "F32", "2", 2, 99, 0}}, 1, "zebra",
     {"\"verdict\":\"missing\"", "only in the second file"}, "differs: zebra"},
    /* the report is in the order of computation */
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}, {"zebra", "F32", "2", 2, 99, 0}},
     {{ROUTER, "F32", "3,5", 15, 99, 0}, {"zebra", "F32", "2", 2, 99, 0}}, 1, MLP,
     {"\"verdict\":\"missing\"", "only in the first file"}, "differs: " ROUTER},
    /* nothing in common says nothing */
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}}, {{ROUTER, "F32", "3,5", 15, 99, 0}}, 2, MLP,
     {"\"verdict\":\"missing\"", "only in the first file"}, UNJUDGED},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}}, {{MLP, "F32", "5,3", 15, 99, 0}}, 1, MLP,
     {"\"verdict\":\"shape\"", "found [5,3], expected [3,5]"}, "differs: " MLP},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 99, 0}}, {{MLP, "F32", "3,5,2", 30, 99, 0}}, 1, MLP,
     {"\"verdict\":\"shape\""}, "differs: " MLP},
    /* experts are sets: other ones, or the same in another order */
    {{"", ""}, {{IDS, "I32", "2,3", 6, 3, 2}}, {{IDS, "I32", "2,3", 6, 4, 2}}, 1, IDS,
     {"\"wrong_sets\":0,\"other_order\":1,"}, "differs: " IDS},
    {{"", ""}, {{IDS, "I32", "2,3", 6, 3, 2}}, {{IDS, "I32", "2,3", 6, 3, 4}}, 1, IDS,
     {"\"wrong_sets\":1,\"other_order\":0,"}, "differs: " IDS},
    {{"", ""}, {{MLP, "F32", "3,5", 15, 4, 2}}, {{MLP, "F32", "3,5", 15, 9, 9}}, 1, MLP,
     {"\"worst\":[{\"ours\":1.0,\"theirs\":9.0,\"ulp\":8388608.0,\"bound_ulp\":0.0,\"at\":[1,4]},"
      "{\"ours\":2.0,\"theirs\":1.0,\"ulp\":4194304.0,\"bound_ulp\":0.0,\"at\":[0,4]}]"},
     "differs: " MLP},
    /* both have the tap under two names */
    {{"", ""}, {{MLP, "F32", "3", 3, 99, 0}, {"ffn_moe_out-0", "F32", "3", 3, 0, 5}},
     {{"ffn_moe_out-0", "F32", "3", 3, 0, 5}, {MLP, "F32", "3", 3, 99, 0}}, 0, "ffn_moe_out-0",
     {"\"verdict\":\"exact\""}, AGREES},
    {{"", ""}, {{MLP, "F32", "3", 3, 99, 0}, {"ffn_moe_out-0", "F32", "3", 3, 0, 5}},
     {{"ffn_moe_out-0", "F32", "3", 3, 0, 5}}, 1, MLP, {"\"verdict\":\"missing\""},
     "differs: " MLP},
    {{"", ""}, {{"ffn_moe_out-0", "F32", "3", 3, 99, 0},
                {"blocks.0.hook_mlp_out", "F32", "3", 3, 0, 5}},
     {{"ffn_moe_out-0", "F32", "3", 3, 99, 0}, {"blocks.0.hook_mlp_out", "F32", "3", 3, 0, 5}}, 0,
     "blocks.0.hook_mlp_out", {"\"verdict\":\"exact\""}, AGREES},
};

static void write_side(const char *path, const char *metadata, const tensor_case tensors[2])
{
    file_begin(metadata);
    for (size_t i = 0; i < 2 && tensors[i].name != NULL; i++) {
        const tensor_case *t = &tensors[i];
        tensor_begin(t->name, t->dtype, t->shape, t->count * bytes_of(t->dtype));
        for (size_t e = 0; e < t->count; e++) put_value(t->dtype, e == t->odd ? t->value : 1);
    }
    file_end(path, 0);
}

static void check_case(const diff_case *c)
{
    char start[200];
    size_t size;
    write_side(FOLDER "a", c->metadata[0], c->a);
    write_side(FOLDER "b", c->metadata[1], c->b);
    run("diff a b --json lines --all");
    CHECKF(last.status == c->status, "%s: status %d, %s", c->tap, last.status, last.err);
    size_t n = strlen(c->last);
    CHECKF(last.size > n && last.out[last.size - 1] == '\n' &&
               memcmp(last.out + last.size - 1 - n, c->last, n) == 0 &&
               (last.size == n + 1 || last.out[last.size - 2 - n] == '\n'),
           "the report ends with %s, expected %s", last.out + (last.size > 60 ? last.size - 60 : 0),
           c->last);
    if (c->tap == NULL) return;
    char *lines = read_file(FOLDER "lines", &size);
    snprintf(start, sizeof start, "{\"tap\":\"%s\",", c->tap);
    char *line = strstr(lines, start);
    CHECKF(line != NULL, "no line of %s", c->tap);
    if (line != NULL) {
        line[strcspn(line, "\n")] = 0;
        for (size_t i = 0; i < 4 && c->holds[i] != NULL; i++)
            CHECKF(strstr(line, c->holds[i]) != NULL, "%s is not in %s", c->holds[i], line);
    }
    free(lines);
}

/* One fault in many tensors: the map, the first of them in full, how many more. */
static void test_many(void)
{
#define TAPS "$G/hf/tiny/taps-float32.safetensors $G/hf/tiny/taps-bfloat16.safetensors"
    shell("\"$Q\" diff " TAPS " >few; wc -l <few && grep -c '^differs  ' few && "
          "grep '^ *first: ' few && grep more few && grep -c ' in the first file, ' few");
    CHECKF(last.status == 0 && atoi(last.out) < 40, "%s", last.out);
    CHECK(strstr(last.out, "\n1\n            first: token ") != NULL);
    CHECK(strstr(last.out, " in the second, ") != NULL && strstr(last.out, "ours") == NULL);
    CHECK(strstr(last.out, "\nand 120 more tensors (--all shows them)\n6\n") != NULL);
    shell("\"$Q\" diff " TAPS " --all >all; grep -c '^differs  ' all && "
          "grep -A9 '^differs     model.layers.4.mlp.topk_ind' all");
    CHECKF(strncmp(last.out, "121\n", 4) == 0, "%s", last.out);
    CHECK(strstr(last.out, " with other experts, ") != NULL && strstr(last.out, "near") == NULL);
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    for (size_t i = 0; i < COUNT(cases); i++) check_case(&cases[i]);
    run("diff $G/hf/tiny/taps-float32.safetensors $G/hf/tiny/taps-float32.safetensors");
    CHECK(last.status == 0);
    run("diff $G/hf/tiny/taps-float32.safetensors $G/hf/tiny/taps-bfloat16.safetensors");
    CHECK(last.status == 1);
    test_many();
    run("diff a nowhere --json kept");
    fails_with("nowhere: ");
    run("diff err a");
    fails_with("err: ");
    shell("ls kept");
    CHECK(last.status != 0);
    free(last.out);
    free(last.err);
    return t_done("test_diff");
}
