/* SPDX-License-Identifier: MIT */
/* `qwen3moe dump`: the file's bytes, the options, the errors.
 *
 *   test_dump COMMAND GOLDEN     COMMAND is the program, GOLDEN the folder golden/
 *
 * Expected: the layout,
     written here once more; the config line that Python wrote; Hugging Face's tensors;
 * and, bit for bit,
     what the library's pass shows its tap (test_model judges that against Hugging Face). */
#define FOLDER "dump.tmp/"
#include "command.h"
#include "host/files.h"

/* What the folder w holds now: names between blanks. */
static void holds(const char *names)
{
    char line[sizeof last.line];
    snprintf(line, sizeof line, "%s", last.line);
    shell("echo $(ls -A w)");
    CHECKF(last.size == strlen(names) + 1 && memcmp(last.out, names, strlen(names)) == 0,
           "after %s: the folder holds %s, expected %s", line, last.out, names);
}

/* ==== The bytes of the file =================================================================== */

/* The tensors in the order of computation: names and shapes. Letters are sizes of golden/tiny; the
 * last column says what an element is: D the run's dtype. */
typedef struct tensor_row {
    const char *name, *shape;
    char dtype; /* l: I64, i: I32, f: F32, D */
} tensor_row;

static const tensor_row front_rows[] = {
    {"input_ids", "T", 'l'}, {"position_ids", "T", 'l'}, {"model.embed_tokens.output", "TM", 'D'},
    {"model.rotary_emb.cos", "Td", 'D'}, {"model.rotary_emb.sin", "Td", 'D'},
};
static const tensor_row layer_rows[] = {
    {"input_layernorm.output", "TM", 'D'}, {"self_attn.q_proj.output", "TQ", 'D'},
    {"self_attn.k_proj.output", "TR", 'D'}, {"self_attn.v_proj.output", "TR", 'D'},
    {"self_attn.q_norm.output", "THd", 'D'}, {"self_attn.k_norm.output", "TKd", 'D'},
    {"self_attn.q_rope.output", "THd", 'D'}, {"self_attn.k_rope.output", "TKd", 'D'},
    {"self_attn.scores.output", "HTT", 'D'}, {"self_attn.probs.output", "HTT", 'D'},
    {"self_attn.o_proj.input", "TQ", 'D'}, {"self_attn.o_proj.output", "TM", 'D'},
    {"post_attention_layernorm.input", "TM", 'D'}, {"post_attention_layernorm.output", "TM", 'D'},
};
static const tensor_row sparse_rows[] = {
    {"mlp.gate.output", "TE", 'D'}, {"mlp.router_probs.output", "TE", 'f'},
    {"mlp.topk_indices.output", "TA", 'i'}, {"mlp.topk_weights.output", "TA", 'D'},
    {"mlp.experts.gate_proj.output", "TAF", 'D'}, {"mlp.experts.up_proj.output", "TAF", 'D'},
    {"mlp.experts.act_fn.output", "TAF", 'D'}, {"mlp.experts.down_proj.input", "TAF", 'D'},
    {"mlp.experts.down_proj.output", "TAM", 'D'}, {"mlp.output", "TM", 'D'}, {"output", "TM", 'D'},
};
static const tensor_row dense_rows[] = {
    {"mlp.gate_proj.output", "TI", 'D'}, {"mlp.up_proj.output", "TI", 'D'},
        {"mlp.act_fn.output", "TI", 'D'},
    {"mlp.down_proj.input", "TI", 'D'}, {"mlp.output", "TM", 'D'}, {"output", "TM", 'D'},
};
static const tensor_row head_rows[] = {{"model.norm.output", "TM", 'D'},
                                       {"lm_head.output", "TV", 'D'}};

static unsigned long size_of(char letter, unsigned long T)
{
    static const char letters[] = "MHKdQREAFIV";
    static const unsigned long sizes[] = {120, 6, 2, 24, 144, 48, 14, 4, 56, 200, 2040};
    return letter == 'T' ? T : sizes[strchr(letters, letter) - letters];
}

/* A header as it is made: once for the sizes of the three groups, then for the text. */
typedef struct header {
    char text[65536];
    size_t length, count;
    unsigned long T, at[3], sums[3]; /* elements of 8, 4 and 2 bytes */
    const char *dtype;               /* what D is called in the file */
} header;

static void header_rows(header *h, const char *prefix, const tensor_row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *dtype = rows[i].dtype == 'l' ? "I64" : rows[i].dtype == 'i' ? "I32"
                          : rows[i].dtype == 'f' ? "F32" : h->dtype;
        unsigned long size = strstr(dtype, "64") ? 8 : strstr(dtype, "32") ? 4 : 2, bytes = size;
        size_t group = size == 8 ? 0 : size == 4 ? 1 : 2;
        h->length += (size_t)snprintf(h->text + h->length, sizeof h->text - h->length,
                                      ",\"%s%s\":{\"dtype\":\"%s\",\"shape\":[", prefix,
                                          rows[i].name, dtype);
        for (const char *letter = rows[i].shape; *letter != 0; letter++) {
            bytes *= size_of(*letter, h->T);
            h->length += (size_t)snprintf(h->text + h->length, sizeof h->text - h->length, "%s%lu",
                                          letter > rows[i].shape ? "," : "",
                                              size_of(*letter, h->T));
        }
        h->length += (size_t)snprintf(h->text + h->length, sizeof h->text - h->length,
                                      "],\"data_offsets\":[%lu,%lu]}", h->at[group],
                                          h->at[group] + bytes);
        h->at[group] += bytes;
        h->sums[group] += bytes;
        h->count++;
    }
}

static void header_all(header *h)
{
    h->count = 0;
    memset(h->sums, 0, sizeof h->sums);
    header_rows(h, "", front_rows, COUNT(front_rows));
    for (int i = 0; i < 5; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "model.layers.%d.", i);
        header_rows(h, prefix, layer_rows, COUNT(layer_rows));
        if (i == 1)
            header_rows(h, prefix, dense_rows, COUNT(dense_rows));
        else
            header_rows(h, prefix, sparse_rows, COUNT(sparse_rows));
    }
    header_rows(h, "", head_rows, COUNT(head_rows));
}

/* The first 8 + n bytes of a dump of golden/tiny: metadata first, names in the order of
 * computation, blanks to a multiple of 8. Data has no holes and every tensor starts at a
 * multiple of its element size, since tensors of 8-byte elements come before those of 4 and of
 * 2. */
static void check_layout(const char *file, size_t file_size, const char *config, q3_dtype dtype,
                         size_t T)
{
    static const char *const names[3] = {"float32", "bfloat16", "float16"},
        *const types[3] = {"F32", "BF16", "F16"};
    static header h;
    h.dtype = types[dtype];
    h.T = (unsigned long)T;
    h.length = 0;
    header_all(&h);
    h.at[0] = 0;
    h.at[1] = h.sums[0];
    h.at[2] = h.sums[0] + h.sums[1];
    h.length = (size_t)snprintf(h.text, sizeof h.text,
                                "{\"__metadata__\":{\"format\":\"qwen3moe-taps-1\","
                                "\"producer\":\"qwen3moe\",\"dtype\":\"%s\",\"start\":\"0\","
                                "\"config\":\"", names[dtype]);
    for (; *config != 0; config++) {
        if (*config == '"') h.text[h.length++] = '\\';
        h.text[h.length++] = *config;
    }
    h.length += (size_t)snprintf(h.text + h.length, sizeof h.text - h.length, "\"}");
    header_all(&h);
    h.text[h.length++] = '}';
    while (h.length % 8 != 0) h.text[h.length++] = ' ';
    size_t bytes = h.sums[0] + h.sums[1] + h.sums[2], length = 0;
    for (size_t i = 8; i-- > 0;) length = length << 8 | (uint8_t)file[i];
    CHECKF(length == h.length, "the header has %lu bytes, expected %lu", (unsigned long)length,
           (unsigned long)h.length);
    CHECK(file_size == 8 + h.length + bytes);
    if (file_size < 8 + h.length) return;
    for (size_t i = 0; i < h.length; i++) {
        if (file[8 + i] == h.text[i]) continue;
        CHECKF(false, "header, byte %lu: got %.60s, want %.60s", (unsigned long)i, file + 8 + i,
               h.text + i);
        return;
    }
}

/* ==== The values ============================================================================== */

/* A pass of the library beside a file: whatever the pass shows must be in the file. */
typedef struct comparison {
    const q3_tensors *file;
    size_t T;
    size_t pieces; /* tensors, a row of scores or of probs counting for one */
} comparison;

static void compare_rows(const q3_tap *tap, const q3_entry *entry, uint64_t at, const float *values,
                         size_t count)
{
    float found[4096];
    bool same = true;
    for (size_t i = 0; i < count; i += COUNT(found)) {
        size_t n = count - i < COUNT(found) ? count - i : COUNT(found);
        q3_entry_floats(found, entry, at + i, n);
        same = same && memcmp(found, values + i, n * sizeof *found) == 0;
    }
    CHECKF(same, "%s: token %lu: other values in the file", entry->name, (unsigned long)tap->first);
}

static void compare_tap(void *user, const q3_tap *tap)
{
    static const float zeros[4096];
    comparison *c = user;
    char name[Q3_TAP_NAME_SIZE];
    size_t count = 1;
    q3_tap_name(name, tap->id, tap->layer);
    const q3_entry *entry = find(c->file, name);
    for (size_t i = 0; i < tap->rank; i++) count *= tap->shape[i];
    c->pieces++;
    if (tap->dtype == Q3_I32) {
        for (size_t i = 0; i < count; i++) {
            int64_t id;
            q3_entry_integers(&id, entry, i, 1);
            CHECKF(id == ((const int32_t *)tap->data)[i], "%s[%lu]", name, (unsigned long)i);
        }
    } else if (tap->token_axis == 0) {
        compare_rows(tap, entry, tap->first * (count / tap->shape[0]), tap->data, count);
    } else {
        for (size_t h = 0; h < tap->shape[0]; h++) {
            uint64_t at = (uint64_t)(h * c->T + tap->first) * c->T;
            compare_rows(tap, entry, at, (const float *)tap->data + h * tap->shape[2],
                         tap->shape[2]);
            compare_rows(tap, entry, at + tap->shape[2], zeros, c->T - tap->shape[2]);
        }
    }
}

/* The same for logits of the last `rows` tokens only, which are shown as the run's last rows. */
static void compare_last_rows(q3_state *state, comparison *c, const int32_t *ids, size_t start,
                              size_t rows)
{
    q3_input input = {ids, NULL, c->T, start + c->T, rows};
    size_t before = c->pieces;
    q3_error error;
    q3_state_reset(state);
    CHECK(q3_forward(state, &input, compare_tap, c, &error) == Q3_OK);
    CHECK(c->pieces == 2 * before);
}

static void compare_values(q3_model *model, const q3_tensors *file, const int32_t *ids, size_t T,
                           size_t start, q3_dtype dtype)
{
    const q3_config *config = q3_model_config(model);
    q3_run run_of = {dtype, 0, config->num_hidden_layers, start, T, T, 0};
    q3_input input = {ids, NULL, T, start + T, T};
    comparison c = {file, T, 0};
    q3_error error;
    size_t size = q3_state_size(config, &run_of);
    void *memory = malloc(size);
    if (memory == NULL) exit(1);
    q3_state *state = q3_state_init(memory, size, config, q3_model_weights(model), &run_of);
    CHECK(q3_forward(state, &input, compare_tap, &c, &error) == Q3_OK);
    size_t attention = 2 * config->num_hidden_layers;
    CHECK(c.pieces - attention * T + attention + 2 == q3_tensors_count(file));
    compare_last_rows(state, &c, ids, start, 2);
    for (size_t t = 0; t < T; t++) {
        int64_t id, position;
        q3_entry_integers(&id, find(file, "input_ids"), t, 1);
        q3_entry_integers(&position, find(file, "position_ids"), t, 1);
        CHECK(id == ids[t] && position == (int64_t)(start + t));
    }
    free(memory);
}

/* The last run printed its totals. */
static void says_totals(const char *path, size_t tensors, size_t T, const char *dtype,
                        unsigned long bytes)
{
    char want[256];
    snprintf(want, sizeof want, "%s: %lu tensors of %lu tokens, %s, %lu bytes of data\n", path,
             (unsigned long)tensors, (unsigned long)T, dtype, bytes);
    succeeds(want);
}

static void same_file(const char *a, const char *b)
{
    size_t m, n;
    char *x = read_file(a, &m), *y = read_file(b, &n);
    CHECKF(m == n && memcmp(x, y, m) == 0, "%s: %s is not %s", last.line, a, b);
    free(x);
    free(y);
}

static void test_whole(q3_model *model)
{
    static const char *const dtypes[3] = {"float32", "bfloat16", "float16"},
        *const chunks[] = {"1", "2", "7", "1048576"};
    q3_tensors *golden = open_golden("taps-float32");
    size_t T, size;
    int32_t *ids = ids_of(golden, "input_ids", &T);
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) {
        run("dump tiny -o w/a --dtype %s --tokens %s", dtypes[d], spell(ids, T, ","));
        q3_tensors *file = open_tensors(FOLDER "w/a");
        char *bytes = read_file(FOLDER "w/a", &size);
        size_t data = 8;
        for (size_t i = 8; i-- > 0;) data += (size_t)(uint8_t)bytes[i] << (8 * i);
        says_totals("w/a", q3_tensors_count(file), T, dtypes[d], (unsigned long)(size - data));
        check_layout(bytes, size, q3_tensors_metadata(golden, "config"), d, T);
        compare_values(model, file, ids, T, 0, d);
        q3_tensors_close(file);
        free(bytes);
        for (size_t i = 0; i < COUNT(chunks); i++) {
            if (d != Q3_F32 && i > 1) continue;
            run("dump --chunk=%s tiny --dtype=%s --tokens=%s -o w/b", chunks[i], dtypes[d],
                spell(ids, T, ","));
            succeeds(NULL);
            same_file(FOLDER "w/b", FOLDER "w/a");
        }
    }
    /* No --dtype: the config's. What stood there is replaced. */
    run("dump tiny -o w/a --tokens 5,6");
    run("dump tiny -o w/b --tokens 5,6 --dtype bfloat16");
    same_file(FOLDER "w/a", FOLDER "w/b");
    holds("a b");
    free(ids);
    q3_tensors_close(golden);
}

/* Against Hugging Face itself, free-running in float32: honest runs lie within 1e-5 of each other
 * (relative L2; measured between releases 1e-6), a tensor in the wrong place about 1 away. */
static void test_golden(void)
{
    q3_tensors *golden = open_golden("taps-float32"), *file;
    size_t T, n, m;
    int32_t *ids = ids_of(golden, "input_ids", &T);
    run("dump tiny -o w/a --dtype float32 --tokens %s", spell(ids, T, ","));
    file = open_tensors(FOLDER "w/a");
    CHECK(q3_tensors_count(file) == q3_tensors_count(golden));
    for (size_t i = 0; i < q3_tensors_count(golden); i++) {
        const q3_entry *theirs = q3_tensors_at(golden, i), *ours = find(file, theirs->name);
        double error = 0.0, total = 0.0;
        CHECK(ours->rank == theirs->rank && memcmp(ours->shape, theirs->shape,
                                                   ours->rank * sizeof *ours->shape) == 0);
        if (theirs->dtype == Q3_I64 || theirs->dtype == Q3_I32) {
            int32_t *a = ids_of(file, theirs->name, &n), *b = ids_of(golden, theirs->name, &m);
            CHECKF(n == m && memcmp(a, b, n * sizeof *a) == 0, "%s", theirs->name);
            free(a);
            free(b);
            continue;
        }
        float *a = floats_of(file, theirs->name, &n), *b = floats_of(golden, theirs->name, &m);
        for (size_t k = 0; k < n && n == m; k++) {
            error += ((double)a[k] - (double)b[k]) * ((double)a[k] - (double)b[k]);
            total += (double)b[k] * (double)b[k];
        }
        CHECKF(n == m && sqrt(error) <= 1e-5 * sqrt(total), "%s: relative error %g", theirs->name,
               sqrt(error / total));
        free(a);
        free(b);
    }
    q3_tensors_close(file);
    q3_tensors_close(golden);
    free(ids);
}

static void test_start(q3_model *model)
{
    static const int32_t ids[] = {7, 2039, 0, 7, 31};
    run("dump tiny -o w/a --tokens 7,2039,0,7,31 --dtype float32 --start 1048571");
    succeeds(NULL);
    q3_tensors *file = open_tensors(FOLDER "w/a");
    CHECK_TEXT(q3_tensors_metadata(file, "start"), "1048571");
    compare_values(model, file, ids, 5, 1048571, Q3_F32);
    q3_tensors_close(file);
    run("dump tiny -o w/a --dtype float32 --start=0 --prompt 'In the beginning'");
    succeeds(NULL);
    run("dump tiny -o w/b --dtype float32 --prompt - --chunk 2 <beginning");
    same_file(FOLDER "w/a", FOLDER "w/b");
    shell("rm w/a w/b");
}

/* ==== --taps, --layers ======================================================================== */

/* The names that a pattern saves from a run of one token, in order. */
static void saves(const char *options, const char *names)
{
    static char found[8192];
    size_t at = 0;
    run("dump tiny -o w/a --tokens 3 --dtype float32 %s", options);
    succeeds(NULL);
    if (last.status != 0) return;
    q3_tensors *file = open_tensors(FOLDER "w/a");
    for (size_t i = 0; i < q3_tensors_count(file); i++)
        at += (size_t)snprintf(found + at, sizeof found - at, "%s%s", i > 0 ? " " : "",
                               q3_tensors_at(file, i)->name);
    CHECKF(strcmp(found, names) == 0, "%s: got %s, want %s", options, found, names);
    q3_tensors_close(file);
}

static void test_taps(void)
{
    saves("--taps lm_head.output", "lm_head.output");
    saves("--taps 'lm_head*' --taps '*embed*'", "model.embed_tokens.output lm_head.output");
    saves("--taps '*_ids'", "input_ids position_ids");
    saves("--taps 'model.layers.?.output'",
          "model.layers.0.output model.layers.1.output model.layers.2.output model.layers.3.output "
          "model.layers.4.output");
    saves("--taps 'model.layers.1*.mlp.*'",
          "model.layers.1.mlp.gate_proj.output model.layers.1.mlp.up_proj.output "
          "model.layers.1.mlp.act_fn.output model.layers.1.mlp.down_proj.input "
          "model.layers.1.mlp.output");
    saves("--taps='*topk*' --taps '*0.mlp.*topk*' --layers 0:2",
          "model.layers.0.mlp.topk_indices.output model.layers.0.mlp.topk_weights.output");
    saves("--taps '**model.norm**.output**'", "model.norm.output");
    saves("--layers 0:1 --taps 'model.*' --taps '*' --taps '*e*b*e*d*'",
          "input_ids position_ids model.embed_tokens.output "
          "model.rotary_emb.cos model.rotary_emb.sin "
          "model.layers.0.input_layernorm.output model.layers.0.self_attn.q_proj.output "
          "model.layers.0.self_attn.k_proj.output model.layers.0.self_attn.v_proj.output "
          "model.layers.0.self_attn.q_norm.output model.layers.0.self_attn.k_norm.output "
          "model.layers.0.self_attn.q_rope.output model.layers.0.self_attn.k_rope.output "
          "model.layers.0.self_attn.scores.output model.layers.0.self_attn.probs.output "
          "model.layers.0.self_attn.o_proj.input model.layers.0.self_attn.o_proj.output "
          "model.layers.0.post_attention_layernorm.input "
          "model.layers.0.post_attention_layernorm.output "
          "model.layers.0.mlp.gate.output model.layers.0.mlp.router_probs.output "
          "model.layers.0.mlp.topk_indices.output model.layers.0.mlp.topk_weights.output "
          "model.layers.0.mlp.experts.gate_proj.output model.layers.0.mlp.experts.up_proj.output "
          "model.layers.0.mlp.experts.act_fn.output model.layers.0.mlp.experts.down_proj.input "
          "model.layers.0.mlp.experts.down_proj.output model.layers.0.mlp.output "
          "model.layers.0.output");
}

/* Every tensor of a part has the bytes that it has in the whole run; returns how many there are. */
static size_t part_of(const char *part, const char *whole)
{
    q3_tensors *a = open_tensors(part), *b = open_tensors(whole);
    size_t count = q3_tensors_count(a);
    CHECK_TEXT(q3_tensors_metadata(a, "start"), q3_tensors_metadata(b, "start"));
    for (size_t i = 0; i < count; i++) {
        const q3_entry *x = q3_tensors_at(a, i), *y = find(b, x->name);
        size_t bytes = x->dtype == Q3_I64 ? 8 : x->dtype == Q3_BF16 ? 2 : 4;
        for (size_t k = 0; k < x->rank; k++) bytes *= (size_t)x->shape[k];
        CHECK(x->rank == y->rank && memcmp(x->shape, y->shape, x->rank * sizeof *x->shape) == 0);
        CHECKF(x->dtype == y->dtype && memcmp(x->data, y->data, bytes) == 0, "%s: %s differs", part,
               x->name);
    }
    q3_tensors_close(a);
    q3_tensors_close(b);
    return count;
}

static void test_layers(void)
{
    static const char *const dtypes[] = {"float32", "bfloat16"};
    for (size_t d = 0; d < 2; d++) {
        run("dump tiny -o w/whole --tokens 9,8,7,6,5,4 --start 300 --dtype %s", dtypes[d]);
        succeeds(NULL);
        run("dump tiny -o w/a --tokens 9,8,7,6,5,4 --start 300 --dtype %s --layers 0:2", dtypes[d]);
        succeeds(NULL);
        CHECK(part_of(FOLDER "w/a", FOLDER "w/whole") == 5 + 14 + 11 + 14 + 6);
        /* Start, ids and dtype come from the file; a part of the run may be given again. */
        run("dump tiny -o w/b --layers 2:4 --from w/a --dtype %s --chunk 4", dtypes[d]);
        succeeds(NULL);
        CHECK(part_of(FOLDER "w/b", FOLDER "w/whole") == 4 + 2 * 25);
        run("dump tiny -o w/c --layers=4:5 --from=w/b --start 300 --tokens 9,8,7,6,5,4 --dtype %s",
            dtypes[d]);
        succeeds(NULL);
        CHECK(part_of(FOLDER "w/c", FOLDER "w/whole") == 4 + 25 + 2);
    }
    /* A file of another system may hold the hidden states alone. */
    run("dump tiny -o w/a --tokens 9,8,7 --dtype float32 --layers 0:4 "
        "--taps model.layers.3.output");
    succeeds(NULL);
    run("dump tiny -o w/whole --tokens 9,8,7 --dtype float32");
    run("dump tiny -o w/b --layers 4:5 --from w/a --dtype float32");
    succeeds(NULL);
    CHECK(part_of(FOLDER "w/b", FOLDER "w/whole") == 3 + 25 + 2);
    shell("rm w/*");
}

/* ==== Errors ================================================================================== */

#define LAYERS ", expected A:B with 0 <= A < B <= 5"
#define BELOW ", expected all below 1048576"

static const failure bad_dumps[] = {
    {"dump tiny --tokens 1", "-o is missing: the file to write"},
    {"dump tiny -o w/x", "no tokens: give --tokens 1,2,3 or --prompt TEXT"},
    {"dump tiny -o w/x --prompt ''", "tokens: found none, expected at least one"},
    {"dump tiny -o w/x --prompt a --tokens 1",
     "--tokens, --chat and a text exclude each other"},
    {"dump tiny -o w/x --tokens 1,2040", "token 1: found id 2040, expected 0 to 2039"},
    {"dump tiny -o w/x --tokens 1 --taps 'nothing*'",
     "--taps: no tap fits 'nothing*'"},
    {"dump tiny -o w/x --tokens 1 --taps '*' --taps ''",
     "--taps: no tap fits ''"},
    {"dump tiny -o w/x --tokens 1 --taps lm_head",
     "--taps: no tap fits 'lm_head'"},
    {"dump tiny -o w/x --tokens 1 --taps 'lm_head.output?'",
     "--taps: no tap fits 'lm_head.output?'"},
    {"dump tiny -o w/x --tokens 1 --layers 0:4 --taps lm_head.output",
     "--taps: no tap fits 'lm_head.output'"},
    {"dump tiny -o w/x --tokens 1 --start 1048576",
     "--start: found 1048576, expected an integer from 0 to 1048575"},
    {"dump tiny -o w/x --tokens 1,2 --start 1048575",
     "positions: found 2 tokens from 1048575 on" BELOW},
    {"dump tiny -o w/x --tokens 1 --chunk 0",
     "--chunk: found 0, expected an integer from 1 to 1048576"},
    {"dump tiny -o w/x --tokens 1 --layers 5", "--layers: found 5" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers 0:6", "--layers: found 0:6" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers 2:2", "--layers: found 2:2" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers 3:2", "--layers: found 3:2" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers :2", "--layers: found :2" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers 0:2:3", "--layers: found 0:2:3" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers=-1:2", "--layers: found -1:2" LAYERS},
    {"dump tiny -o w/x --tokens 1 --layers 1:2",
     "--from is missing: a file with the output of layer 0, to start from"},
    {"dump tiny -o w/x --tokens 1 --from w/from --layers 0:2",
     "--from is given, but the run starts at layer 0"},
    {"dump tiny -o w/x --from w/from --layers 2:3 --dtype float32",
     "w/from: model.layers.1.output: missing"},
    {"dump tiny -o w/x --from w/from --layers 1:3 --dtype bfloat16",
     "w/from: metadata dtype: found float32, expected bfloat16"},
    {"dump tiny -o w/x --from w/from --layers 1:3",
     "w/from: metadata dtype: found float32, expected bfloat16"},
    {"dump tiny -o w/x --from w/from --layers 1:3 --dtype float32 --tokens 1,2",
     "w/from: model.layers.0.output: found 3 rows, expected 2, one a token"},
    {"dump tiny -o w/x --from w/from --layers 1:3 --dtype float32 --start 7",
     "--start: found 7, expected 0 as in the metadata of w/from"},
    {"dump tiny -o w/x --from w/from --layers 1:3 --dtype float32 --tokens 1,4,3",
     "w/from: input_ids: found 2 for token 1, expected 4 as given"},
};

static void test_bad(void)
{
    run("dump tiny -o w/from --tokens 1,2,3 --dtype float32 --layers 0:1");
    succeeds(NULL);
    all_fail(bad_dumps, COUNT(bad_dumps));
    run("dump tiny -o w/x --from w/nowhere --layers 1:3");
    fails_with("w/nowhere: ");
    run("dump tiny -o w/x --from tiny/config.json --layers 1:3");
    fails_with("tiny/config.json: ");
    shell("mkdir other && ln -s ../tiny/model.safetensors other && "
          "sed 's/\"rms_norm_eps\": 1e-06/\"rms_norm_eps\": 1e-05/' tiny/config.json "
          ">other/config.json");
    run("dump other -o w/x --from w/from --layers 1:3 --dtype float32");
    fails_with("qwen3moe: w/from: metadata config: found {");
    holds("from");
}

/* "-" is standard output: the file's bytes alone, the totals on standard error. */
static void test_standard_output(void)
{
    size_t size;
    run("dump tiny -o w/file --tokens 1,2,3,4,5 --chunk 2");
    succeeds(NULL);
    shell("\"$Q\" dump tiny -o - --tokens 1,2,3,4,5 --chunk 2 >w/piped");
    CHECK(last.status == 0 && last.size == 0);
    CHECK(strncmp(last.err, "standard output: 127 tensors of 5 tokens, bfloat16, ", 52) == 0);
    char *file = read_file(FOLDER "w/file", &size), *piped;
    size_t piped_size;
    piped = read_file(FOLDER "w/piped", &piped_size);
    CHECK(size > 100000 && size == piped_size && memcmp(file, piped, size) == 0);
    free(file);
    free(piped);
    run("dump tiny -o - --tokens 1,2040");
    fails_with("token 1: ");
    if (fopen("/dev/full", "wb") != NULL) {
        shell("\"$Q\" dump tiny -o - --tokens 1 >/dev/full");
        fails_with("standard output: ");
    }
    shell("rm w/file w/piped");
}

/* Nothing is left where nothing could be written, and what was there stays. */
static void test_unwritable(void)
{
    write_text(FOLDER "w/old", "what was there");
    run("dump tiny -o nowhere/x --tokens 1,2");
    fails_with("nowhere/x: ");
    run("dump tiny -o w --tokens 1,2");
    fails_with("w: ");
    run("dump tiny -o w/old/x --tokens 1,2");
    fails_with("w/old/x: ");
    run("dump tiny -o w/old --tokens 1,2040");
    fails_with("token 1: ");
    run("dump tiny -o w/old --tokens 1 --taps none");
    fails_with("--taps: ");
    if (fopen("/dev/full", "wb") != NULL) {
        run("dump tiny -o /dev/full --tokens 1");
        fails_with("/dev/full: ");
    }
    /* A disk that fills up: files may not grow beyond 32 blocks of 512 bytes. */
    shell("(trap '' XFSZ; ulimit -f 32; exec \"$Q\" dump tiny -o w/old --tokens 1,2,3,4)");
    fails_with("w/old: ");
    shell("(trap '' XFSZ; ulimit -f 32; exec \"$Q\" dump tiny -o w/new --tokens 1,2,3,4)");
    fails_with("w/new: ");
    holds("from old");
    size_t size;
    char *old = read_file(FOLDER "w/old", &size);
    CHECK_TEXT(old, "what was there");
    free(old);
}

/* ==== Memory ==================================================================================
 * A model of few weights and a large vocabulary, run where the system gives little more than was
 * promised: the state, with at most 16 MB of logits. */

/* V * 4 bytes of logits a token: 1 MB. All weights are zeros, which a writer leaves where nothing
 * is put. */
enum { V = 1 << 18, M = 8, TOKENS = 64 };

static const char config_text[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":262144,\"hidden_size\":8,"
    "\"intermediate_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":1,"
    "\"num_key_value_heads\":1,\"head_dim\":8,\"num_experts\":0,\"tie_word_embeddings\":true,"
    "\"torch_dtype\":\"bfloat16\"}";

/* The same with a RoPE that looks at the length of the whole run. */
static const char dynamic_text[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":262144,\"hidden_size\":8,"
    "\"intermediate_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":1,"
    "\"num_key_value_heads\":1,\"head_dim\":8,\"num_experts\":0,\"tie_word_embeddings\":true,"
    "\"max_position_embeddings\":4,\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0},"
    "\"torch_dtype\":\"bfloat16\"}";

static void write_model(const char *config)
{
#define LAYER "model.layers.0."
    static const q3_entry entries[] = {
        {"model.embed_tokens.weight", Q3_BF16, 2, {V, M}, NULL},
        {"model.norm.weight", Q3_BF16, 1, {M}, NULL},
        {LAYER "input_layernorm.weight", Q3_BF16, 1, {M}, NULL},
        {LAYER "post_attention_layernorm.weight", Q3_BF16, 1, {M}, NULL},
        {LAYER "self_attn.q_norm.weight", Q3_BF16, 1, {M}, NULL},
        {LAYER "self_attn.k_norm.weight", Q3_BF16, 1, {M}, NULL},
        {LAYER "self_attn.q_proj.weight", Q3_BF16, 2, {M, M}, NULL},
        {LAYER "self_attn.k_proj.weight", Q3_BF16, 2, {M, M}, NULL},
        {LAYER "self_attn.v_proj.weight", Q3_BF16, 2, {M, M}, NULL},
        {LAYER "self_attn.o_proj.weight", Q3_BF16, 2, {M, M}, NULL},
        {LAYER "mlp.gate_proj.weight", Q3_BF16, 2, {M, M}, NULL},
        {LAYER "mlp.up_proj.weight", Q3_BF16, 2, {M, M}, NULL},
        {LAYER "mlp.down_proj.weight", Q3_BF16, 2, {M, M}, NULL}};
    q3_writer *writer = NULL;
    shell("rm -rf wide && mkdir wide");
    write_text(FOLDER "wide/config.json", config);
    CHECK(q3_writer_open(&writer, FOLDER "wide/model.safetensors", entries, COUNT(entries), NULL,
                         NULL) == Q3_OK);
    CHECK(q3_writer_commit(writer, NULL) == Q3_OK);
}

/* Runs the command with at most so many kilobytes of address space: its code, the C library, the
 * mapped weights (4 MB) and what it asks for. */
static void run_within(unsigned kilobytes, const char *arguments)
{
    char line[2000];
    snprintf(line, sizeof line, "(ulimit -v %u && exec \"$Q\" %s)", kilobytes, arguments);
    shell(line);
}

/* ==== Interrupted runs ======================================================================== */

#define FIVE "dump tiny --tokens 1,2,3,4,5"

/* Stopped where its file would exceed so many blocks of 512 bytes. */
static void stop_at(unsigned blocks, const char *options)
{
    char line[300];
    snprintf(line, sizeof line, "(ulimit -f %u && exec \"$Q\" " FIVE " -o w/r --resume %s)", blocks,
             options);
    shell(line);
}

/* The byte of a file at which a tensor begins. */
static size_t place_of(const char *name, const char *path)
{
    q3_tensors *file = NULL;
    size_t place = 0;
    if (q3_tensors_open(&file, path, NULL) == Q3_OK)
        place = (size_t)((const uint8_t *)q3_tensors_find(file, name)->data -
                         q3_tensors_mapping(file)->data);
    q3_tensors_close(file);
    return place;
}

static void change_byte(size_t place)
{
    char line[200];
    snprintf(line, sizeof line, "printf x | dd of=w/r.part bs=1 seek=%lu conv=notrunc 2>err.dd; "
             "rm err.dd", (unsigned long)place);
    shell(line);
}

static void refused(const char *options, const char *words)
{
    run("%s -o w/r --resume %s", FIVE, options);
    CHECKF(last.status == 2 && strncmp(last.err, "qwen3moe: w/r.part.state: ", 26) == 0 &&
           strstr(last.err, words) != NULL && strstr(last.err, "; remove the file to") != NULL,
           "%s: status %d, %s", last.line, last.status, last.err);
    holds("r.part r.part.state whole");
}

/* Each start goes a part of the way; the file in the end is that of one run. */
static void test_resume(void)
{
    const unsigned most = 300; /* of 323 blocks */
    shell("rm -f w/*");
    run(FIVE " -o w/whole");
    size_t stopped = 0;
    for (unsigned blocks = 60; blocks < most; blocks += 40) {
        stop_at(blocks, blocks % 80 == 0 ? "--chunk 2" : "");
        stopped += last.status != 0;
    }
    CHECK(stopped == 6);
    holds("r.part r.part.state whole");
    refused("--dtype float32", "dtype: found bfloat16, expected float32");
    refused("--start 7", "start: found 0, expected 7");
    refused("--taps '*mlp*'", "taps: found *, expected *mlp*");
    refused("--layers 0:4", "layers: found 0:5, expected 0:4");
    run("dump tiny --tokens 1,2,3,4,6 -o w/r --resume");
    CHECKF(last.status == 2 && strstr(last.err, ".state: tokens: found ") != NULL, "%s", last.err);
    shell("cp -R tiny changed && chmod +w changed/* && "
          "dd if=/dev/zero of=changed/model.safetensors bs=1000 seek=100 count=3000 conv=notrunc "
          "2>err.dd; rm err.dd");
    run("dump changed --tokens 1,2,3,4,5 -o w/r --resume");
    CHECKF(last.status == 2 && strstr(last.err, ".state: weights: found ") != NULL, "%s", last.err);
    shell("sed 's/1e-06/1e-05/' tiny/config.json >changed/config.json");
    run("dump changed --tokens 1,2,3,4,5 -o w/r --resume");
    CHECKF(last.status == 2 && strstr(last.err, ".state: config: found ") != NULL, "%s", last.err);
    run(FIVE " -o w/r --resume --chunk 3");
    CHECKF(last.status == 0, "%s", last.err);
    holds("r whole");
    same_file(FOLDER "w/r", FOLDER "w/whole");
    shell("rm -rf changed w/*");
    /* The state without the file, and the file without the state: from the beginning. */
    run(FIVE " -o w/whole");
    stop_at(220, "");
    shell("rm w/r.part");
    run(FIVE " -o w/r --resume");
    same_file(FOLDER "w/r", FOLDER "w/whole");
    holds("r whole");
    shell("rm w/r && echo nothing >w/r.part");
    run(FIVE " -o w/r --resume");
    same_file(FOLDER "w/r", FOLDER "w/whole");
    /* What is through is not run again: a byte of it that is changed stays changed. */
    stop_at(220, "");
    change_byte(place_of("model.layers.0.output", FOLDER "w/whole"));
    run(FIVE " -o w/r --resume");
    shell("cmp -l w/r w/whole | wc -l");
    CHECKF(atoi(last.out) == 1, "%s bytes differ", last.out);
    /* A state that is none. */
    stop_at(220, "");
    shell("echo nothing >w/r.part.state");
    run(FIVE " -o w/r --resume");
    CHECKF(last.status == 2, "%s", last.err);
    run(FIVE " -o - --resume");
    CHECKF(last.status == 2 && strstr(last.err, "--resume: found -o -") != NULL, "%s", last.err);
    shell("rm -f w/*");
}

/* Dynamic RoPE takes the length of the run, whatever the chunk. */
static void test_dynamic(void)
{
    write_model(dynamic_text);
    run("dump wide -o w/whole --tokens 1,2,3,4,5,6,7 --taps '*rotary*'");
    CHECK(last.status == 0);
    run("dump wide -o w/chunks --tokens 1,2,3,4,5,6,7 --taps '*rotary*' --chunk 3");
    CHECK(last.status == 0);
    same_file(FOLDER "w/whole", FOLDER "w/chunks");
    shell("rm -rf wide w/whole w/chunks");
}

/* Where not even `info` has enough (sanitizers, valgrind), nothing can be said. */
static void test_memory(void)
{
    char tokens[2 * TOKENS] = "1", arguments[600];
    for (size_t i = 1; i < TOKENS; i++) memcpy(tokens + 2 * i - 1, ",1", 3);
    write_model(config_text);
    run_within(8 << 10, "info wide");
    if (last.status != 0) return;
    /* Logits of the last token alone: 1 MB, where those of a chunk of 32 are 32 MB. */
    snprintf(arguments, sizeof arguments, "generate wide --tokens %s -n 2 --ids", tokens);
    run_within(14 << 10, arguments);
    CHECKF(last.status == 0 && strcmp(last.out, "0 0\n") == 0, "%s", last.err);
    /* At most 16 MB of them for a chunk of 64, whose logits are 64 MB. */
    snprintf(arguments, sizeof arguments, "dump wide -o w/wide --tokens %s --chunk 64", tokens);
    run_within(34 << 10, arguments);
    CHECKF(last.status == 0, "%s", last.err);
    /* None, where the file that is judged has none. */
    snprintf(arguments, sizeof arguments,
             "dump wide -o w/wide --tokens %s --taps input_ids --taps '*norm*'", tokens);
    run("%s", arguments);
    run_within(60 << 10, "check wide w/wide"); /* with the bounds of a row of logits */
    CHECKF(last.status == 0 && strstr(last.out, "\nagrees\n") != NULL, "%s", last.err);
    shell("rm -rf wide w/wide");
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    q3_model *model = load_tiny();
    test_whole(model);
    test_golden();
    test_start(model);
    test_taps();
    test_layers();
    test_bad();
    test_standard_output();
    test_unwritable();
    test_resume();
    test_dynamic();
    test_memory();
    q3_model_close(model);
    free(last.out);
    free(last.err);
    return t_done("test_dump");
}
