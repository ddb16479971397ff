/* SPDX-License-Identifier: MIT */
/* `qwen3moe check` and `report`: options, messages, exit status. What is judged: test_check.
 *
 *   test_judge_command COMMAND GOLDEN
 *
 * Here w/N are files with the name N that Hugging Face's tensors were copied to, faults
 * included. */
#define FOLDER "judge.tmp/"
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of command.h */
#endif
#include "command.h"

#define F32 "$G/hf/tiny/taps-float32.safetensors"
#define BF16 "$G/hf/tiny/taps-bfloat16.safetensors"
#define NORM "model.layers.2.input_layernorm.output"
#define QUERIES "model.layers.0.self_attn.q_proj.output"
#define VALUES "model.layers.1.self_attn.v_proj.output"

/* Copies Hugging Face's tensors: those whose names hold `only` (NULL: all), `target`, and the ids
 * unless without_ids. In `target` each `every`-th element (0: the first alone) is multiplied by
 * `factor`, or 2 - factor: up and down in turn. */
typedef struct copy {
    const char *from, *to, *only, *target;
    double factor;
    size_t every;
    bool without_ids;
} copy;

static void copy_elements(q3_writer *writer, size_t index, const q3_entry *e, const copy *c)
{
    q3_error error;
    size_t count = 1;
    bool changed = c->target != NULL && strcmp(e->name, c->target) == 0, good = true;
    for (size_t i = 0; i < e->rank; i++) count *= (size_t)e->shape[i];
    for (size_t i = 0; i < count && good; i++) {
        if (e->dtype == Q3_I32 || e->dtype == Q3_I64) {
            int64_t id;
            q3_entry_integers(&id, e, i, 1);
            good = q3_writer_integers(writer, index, i, &id, 1, &error) == Q3_OK;
            continue;
        }
        float value;
        q3_entry_floats(&value, e, i, 1);
        double factor = c->every > 0 && i / c->every % 2 == 1 ? 2 - c->factor : c->factor;
        if (changed && (c->every == 0 ? i == 0 : i % c->every == 0))
            value = q3_round((double)value * factor, e->dtype);
        good = q3_writer_floats(writer, index, i, &value, 1, &error) == Q3_OK;
    }
    CHECK(good);
}

static void make(const copy *c)
{
    static q3_entry entries[512];
    static size_t from[512];
    char path[256];
    size_t count = 0;
    q3_writer *writer;
    q3_error error;
    q3_tensors *golden = open_golden(c->from);
    const char *metadata[] = {"dtype", q3_tensors_metadata(golden, "dtype"), NULL};
    for (size_t i = 0; i < q3_tensors_count(golden); i++) {
        const q3_entry *e = q3_tensors_at(golden, i);
        bool ids = e->dtype == Q3_I64;
        bool wanted = c->only == NULL || strstr(e->name, c->only) != NULL ||
                      (c->target != NULL && strcmp(e->name, c->target) == 0);
        if (ids ? c->without_ids : !wanted) continue;
        from[count] = i;
        entries[count++] = *e;
    }
    snprintf(path, sizeof path, FOLDER "w/%s", c->to);
    CHECK(q3_writer_open(&writer, path, entries, count, metadata, &error) == Q3_OK);
    for (size_t i = 0; i < count; i++) copy_elements(writer, i, q3_tensors_at(golden, from[i]), c);
    CHECK(q3_writer_commit(writer, &error) == Q3_OK);
    q3_tensors_close(golden);
}

/* ==== Verdict and exit status ================================================================= */

/* The last run's status, nothing on standard error, and its last line. */
static void ends(int status, const char *line)
{
    size_t n = strlen(line), size = last.size;
    CHECKF(last.status == status && last.err_size == 0, "%s: status %d, standard error \"%s\"",
           last.line, last.status, last.err);
    CHECKF(size > n + 1 && last.out[size - 1] == '\n' && last.out[size - n - 2] == '\n' &&
               memcmp(last.out + size - n - 1, line, n) == 0,
           "%s: expected \"%s\" at the end of \"%s\"", last.line, line, last.out);
}

static void prints(const char *part)
{
    CHECKF(strstr(last.out, part) != NULL, "%s: \"%s\" is not in \"%s\"", last.line, part,
           last.out);
}

static void prints_not(const char *part)
{
    CHECKF(strstr(last.out, part) == NULL, "%s: \"%s\" is in \"%s\"", last.line, part, last.out);
}

static void test_verdicts(void)
{
    /* A sixth of layer 1's values doubled, or made 0. */
    make(&(copy){"taps-bfloat16", "fault", NULL, VALUES, 2, 6, false});
    /* A third of the norm an ulp (2^-8 to 2^-7 of it) off: more than accumulation explains, none
     * beyond 3 ulp. */
    make(&(copy){"taps-bfloat16", "rounded", "layers.1.output", NORM, 1 + 0x1p-8, 3, false});
    run("check tiny " F32);
    ends(0, "agrees");
    prints("run      float32, 24 tokens from position 0, teacher-forced\n");
    run("check tiny " BF16 " --strict");
    ends(0, "agrees");
    prints("run      bfloat16, 24 tokens from position 0, teacher-forced, strict\n");
    run("check tiny w/fault --layers 0:1");
    ends(0, "agrees");
    /* What attention makes of these values is not what the file holds: that is computed from the
     * old ones. */
    run("check tiny w/fault");
    ends(1, "differs: " VALUES);
    prints("\n2 independent mistakes, the gravest first:\n");
    prints("\n  " VALUES " is wrong: ");
    prints(" 2 differs\n");
    /* Our own values go on, and those are the old ones. */
    run("check tiny w/fault --free");
    ends(1, "differs: " VALUES);
    prints("free-running\n");
    prints(" 1 differs");
    run("check tiny w/rounded --layers 2:3");
    ends(0, "agrees");
    prints("1 rounding");
    run("check tiny w/rounded --layers 2:3 --strict");
    ends(1, "differs: " NORM);
    prints("\n" NORM " is rounded elsewhere: ");
}

/* Declared: --kv rounds what attention reads, so that the scores of a run in float32 that rounds
 * nothing differ by 2^-9 of their terms, many thousand times their bound; bfloat16 numbers of
 * this size are float16 numbers. */
static void test_declared(void)
{
    run("check tiny " F32 " --kv bfloat16");
    ends(1, "differs: model.layers.0.self_attn.scores.output");
    prints(", --kv bfloat16\n");
    prints("differs     model.layers.0.self_attn.o_proj.input"); /* values, not keys alone */
    run("check tiny " BF16 " --kv float16");
    ends(0, "agrees");
    /* One query by a thousandth: far above float32's bound, below that of bfloat16 operands, 3 *
     * 2^-9 of it at least. All by a half of them: 170 times above the part of that bound which
     * the value itself gives. */
    make(&(copy){"taps-float32", "coarse", "layers.0.input_layernorm", QUERIES, 1.001, 0, false});
    run("check tiny w/coarse --layers 0:1");
    ends(1, "differs: " QUERIES);
    run("check tiny w/coarse --layers 0:1 --accumulate bf16");
    ends(0, "agrees");
    prints(", --accumulate bf16\n");
    make(&(copy){"taps-float32", "coarse", "layers.0.input_layernorm", QUERIES, 1.5, 1, false});
    run("check tiny w/coarse --layers 0:1 --accumulate bf16");
    ends(1, "differs: " QUERIES);
    /* An H100's TF32, honest once it is declared: an element near 0 is the sum of products that are
     * not. */
    run("check tiny $G/h100/tiny-f32-tf32.safetensors");
    ends(1, "differs: model.layers.0.self_attn.q_proj.output");
    run("check tiny $G/h100/tiny-f32-tf32.safetensors --accumulate tf32");
    ends(0, "agrees");
    /* The run's dtype is the file's unless it is said. */
    run("check tiny " BF16 " --dtype float32 --layers 0:1");
    ends(1, "differs: model.rotary_emb.cos");
}

/* ==== Where a run starts ====================================================================== */

static void test_layers(void)
{
    run("check tiny " BF16 " --layers 2:4");
    ends(0, "agrees");
    prints("layers   not judged: 0 1 4\n");
    prints("\n    2  ");
    prints("\n    3  ");
    prints_not("\n    1  ");
    prints_not("\n    4  ");
    prints_not("lm_head");
    /* No ids: the rows of what the layers start from say how many tokens there are. */
    make(&(copy){"taps-bfloat16", "no_ids", "layers.", NULL, 1, 0, true});
    run("check tiny w/no_ids --layers 2:4");
    ends(0, "agrees");
    prints("bfloat16, 24 tokens from position 0");
    make(&(copy){"taps-bfloat16", "no_start", "layers.2.", NULL, 1, 0, false});
    run("check tiny w/no_start --layers 2:3");
    fails("w/no_start: model.layers.1.output: found none, expected it for --layers 2:3");
}

/* The position of the first token is the file's. */
static void test_start(void)
{
    run("dump tiny -o w/late --tokens 9,8,7,6 --start 300");
    succeeds(NULL);
    run("check tiny w/late");
    ends(0, "agrees");
    prints("4 tokens from position 300");
}

/* One file in two halves, merged in any order, is one report. */
static void test_report(void)
{
    run("check tiny " BF16 " --all");
    ends(0, "agrees");
    write_file(FOLDER "whole", last.out, last.size);
    run("check tiny " BF16 " --json w/a --html w/page --layers 0:2");
    ends(0, "agrees");
    prints("layers   not judged: 2 3 4\n");
    shell("head -c 15 w/page && tail -c 8 w/page");
    CHECK(last.status == 0 && strncmp(last.out, "<!doctype html>", 15) == 0);
    run("check tiny " BF16 " --json w/b --layers 2:5");
    ends(0, "agrees");
    run("report w/b w/a --all");
    ends(0, "agrees");
    /* But for the command line: that of one part, and how many more there are. */
    shell("\"$Q\" report w/a w/b w/a --all >merged && \"$Q\" report w/b w/a --all >other && "
          "cmp merged other && grep '^command  .* tiny .* --layers 0:2 (and 1 more)$' merged && "
          "for f in merged whole; do grep -c '^command  ' $f; sed -i '/^command  /d' $f; done && "
          "cmp merged whole");
    CHECKF(last.status == 0, "the merged report is another: %s", last.out);
    run("check tiny w/fault --json w/c");
    ends(1, "differs: " VALUES);
    write_file(FOLDER "whole", last.out, last.size);
    shell("\"$Q\" report w/c >merged; echo $?; cmp merged whole");
    CHECKF(last.status == 0 && strcmp(last.out, "1\n") == 0, "check said otherwise than report: %s",
           last.out);
    run("report w/a w/c");
    fails("w/c: line 1: found another run (model, file, dtype or options), expected parts of one");
    run("report w/a");
    fails("w/a: layer 2: found no report of it, expected one");
    shell("head -n 4 w/a >w/cut; printf '{\"tap\":5}\\n' >>w/cut");
    run("report w/cut");
    fails("w/cut: line 5: found no tap of the right type, expected a line of a report");
    /* A line with another verdict for the same tensor. */
    shell("grep -v '\"run\"' w/a | head -n 1 | sed 's/exact/within/' >w/other");
    run("report w/a w/other");
    fails_with(": found two findings that differ, expected one");
    /* Lines that are lost: of a dense layer, of one with experts, of both MLPs. */
    shell("grep -v 'layers.1.mlp.up_proj' w/a >w/lost");
    run("report w/lost w/b");
    fails("reports: model.layers.1.mlp.up_proj.output: found no line, expected one"
          ": part of a report is lost");
    shell("grep -v 'layers.2.mlp.experts.up_proj' w/b >w/lost");
    run("report w/a w/lost");
    fails("reports: model.layers.2.mlp.experts.up_proj.output: found no line, expected one"
          ": part of a report is lost");
    shell("grep -v 'layers.1.mlp.[a-z_]*_' w/a >w/lost");
    run("report w/lost w/b");
    fails("reports: model.layers.1.mlp.gate.output: found no line, expected one"
          ": part of a report is lost");
    shell("sed 's/\"verdict\":\"[a-z-]*\"/\"verdict\":\"unjudged\"/' w/a w/b >w/none");
    run("report w/none");
    CHECK(last.status == 2 && strstr(last.err, "w/none: no tensor could be judged\n") != NULL);
    CHECK(strstr(last.out, "\ncould not judge\n") != NULL);
}

/* How much is judged: a file that has next to nothing agrees with nothing, and what is asked for
 * must be there. */
static void test_coverage(void)
{
    make(&(copy){"taps-bfloat16", "few", "embed_tokens", NULL, 1, 0, false});
    run("check tiny w/few");
    fails_with("w/few: nothing inside the layers and no lm_head could be judged");
    prints("\n1 exact, 124 missing\ncoverage    0 of 120 taps of the layers judged, 0 of 5 layers "
           "reached, lm_head not judged\n");
    CHECK(strstr(last.out, "\ncould not judge\n") != NULL);
    run("check tiny " BF16 " --require '*.mlp.gate.output' --require=lm_head.output");
    ends(0, "agrees");
    run("check tiny w/rounded --require 'model.layers.2.*norm.output' --require '*.embed*'");
    fails_with("w/rounded: 4 required taps are not judged (--require), the first: "
               "model.embed_tokens.output is missing");
    CHECK(strstr(last.out, "\ncould not judge\n") != NULL);
    run("check tiny w/fault --require 'model.layers.?.output'");
    ends(1, "differs: " VALUES);
    /* another part has them */
    run("check tiny " BF16 " --layers 0:1 --require 'model.layers.4.*'");
    ends(0, "agrees");
    run("check tiny w/rounded --require 'model.layers.1.mlp.gate.output'"); /* a dense layer */
    fails("require: found model.layers.1.mlp.gate.output, expected a pattern that a tap of the "
          "model fits");
}

/* Two files: each as if it were alone, and the worse one decides. */
static void test_two(void)
{
    run("check tiny w/fault w/rounded --json w/pair --junit w/xml");
    ends(1, "B agrees");
    prints("\nA        w/fault\nB        w/rounded\n");
    prints("\n\nA differs: " VALUES "\nB agrees\n");
    prints("first: token 0 \"I\", channel 0: ours "); /* the tokenizer's text */
    write_file(FOLDER "whole", last.out, last.size);
    shell("\"$Q\" report w/pair >merged; echo $?; cmp merged whole && grep -c '<testcase' w/xml");
    CHECKF(last.status == 0 && strcmp(last.out, "1\n250\n") == 0, "%s", last.out);
    shell("\"$Q\" check tiny w/fault w/rounded --json w/p1 --layers 0:2 >w/t; "
          "\"$Q\" check tiny w/fault w/rounded --json w/p2 --layers 2:5 >w/t; "
          "\"$Q\" report w/p2 w/p1 | sed '/^command /d' >merged; sed -i '/^command /d' whole; "
          "cmp merged whole");
    CHECKF(last.status == 0, "the merged report of two is another: %s", last.out);
    run("check tiny " BF16 " w/few");
    fails_with(": nothing inside the layers and no lm_head could be judged");
    CHECK(strstr(last.out, "\n\nA agrees\nB could not judge\n") != NULL);
    run("check tiny w/few w/fault");
    ends(1, "B differs: " VALUES);
    run("check tiny w/fault w/nowhere");
    fails_with("w/nowhere: ");
    CHECK(last.size == 0);
}

/* A place that cannot be written is said before the work, before any file is read; what comes of
 * the work is printed even if a file then has no room. */
static void test_outputs(void)
{
    run("check tiny w/nowhere --html nowhere/x");
    fails_with("nowhere/x");
    run("report w/nowhere --junit nowhere/x");
    fails_with("nowhere/x");
    run("diff w/nowhere w/nowhere --json nowhere/x");
    fails_with("nowhere/x");
    run("check tiny w/nowhere --json w/left --junit w/left.xml");
    fails_with("w/nowhere");
    shell("ls w | grep left");
    CHECKF(last.size == 0, "left behind: %s", last.out);
    run("check tiny w/fault --json w/z --junit w/../w/z");
    fails("--junit: found w/../w/z, expected another file than --json's");
    shell("(trap '' XFSZ; ulimit -f 16; \"$Q\" check tiny w/fault --html w/big) >w/text; echo $?; "
          "tail -n 1 w/text; ls w | grep big");
    CHECKF(strcmp(last.out, "2\ndiffers: " VALUES "\n") == 0, "%s", last.out);
    CHECKF(strstr(last.err, "w/big") != NULL, "%s", last.err);
}

/* A report that takes standard output has it alone. */
static void test_standard_output(void)
{
    shell("\"$Q\" check tiny " BF16 " --json - --layers 0:1 >w/json && \"$Q\" check tiny " BF16
          " --json w/file --layers 0:1 >w/text && sed -i 's|w/file|-|' w/file && "
          "cmp w/json w/file");
    CHECKF(last.status == 0, "--json -: %s", last.out);
    shell("\"$Q\" check tiny " BF16 " --html - --layers 0:1 | tail -c 8");
    CHECK(last.status == 0 && strcmp(last.out, "</html>\n") == 0);
}

/* ==== Errors ================================================================================== */

static const failure bad_checks[] = {
    {"check tiny w/fault --kv bf16", "--kv: found bf16, expected float16 or bfloat16"},
    {"check tiny w/fault --kv float32", "--kv: found float32, expected float16 or bfloat16"},
    {"check tiny w/fault --accumulate bfloat16",
     "--accumulate: found bfloat16, expected bf16, f16, tf32, bf16-sums, f16-sums, fp8 or q8"},
    {"check tiny w/fault --layers 2:6", "--layers: found 2:6, expected A:B with 0 <= A < B <= 5"},
    {"check tiny w/fault --tokens 1,2", "w/fault: found 24 tokens, expected 2 as given"},
    {"check tiny w/no_ids",
     "w/no_ids: input_ids: found none, expected them, or --tokens or --prompt"},
    {"check tiny w/fault --json w/../w/fault",
     "--json: found w/../w/fault, expected a file that is not read"},
    {"check tiny w/fault --html w/fault",
     "--html: found w/fault, expected a file that is not read"},
    {"diff w/fault w/late --json w/late", "--json: found w/late, expected a file that is not read"},
    {"report w/a --html w/a", "--html: found w/a, expected a file that is not read"},
    {"check tiny w/fault --json w/x --html w/x",
     "--html: found w/x, expected another file than --json's"},
    {"check tiny w/fault --json w/y --html w/../w/y --layers 0:1",
     "--html: found w/../w/y, expected another file than --json's"},
    {"check tiny /dev/zero", "cannot read /dev/zero: it is a device"},
    {"check tiny w/fault --json nowhere/x --layers 0:1", NULL},
};

static void test_bad(void)
{
    char line[256], ids[200] = "";
    all_fail(bad_checks, COUNT(bad_checks) - 1);
    run("%s", bad_checks[COUNT(bad_checks) - 1].arguments);
    fails_with("nowhere/x: ");
    CHECK(last.size == 0);
    size_t count;
    q3_tensors *golden = open_golden("taps-bfloat16");
    int32_t *given = ids_of(golden, "input_ids", &count);
    snprintf(ids, sizeof ids, "%s", spell(given, count, ","));
    run("check tiny " BF16 " --layers 0:1 --tokens %s", ids);
    ends(0, "agrees");
    run("check tiny w/no_ids --layers 0:1 --tokens %s", ids);
    ends(0, "agrees");
    int32_t found = given[3];
    given[3] = found == 7 ? 8 : 7;
    snprintf(ids, sizeof ids, "%s", spell(given, count, ","));
    run("check tiny w/fault --tokens %s", ids);
    snprintf(line, sizeof line, "w/fault: input_ids: found %ld for token 3, expected %ld as given",
             (long)found, (long)given[3]);
    fails(line);
    free(given);
    q3_tensors_close(golden);
    run("check tiny w/nowhere");
    fails_with("w/nowhere: ");
    run("report w/nowhere");
    fails_with("w/nowhere: ");
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    test_verdicts();
    test_declared();
    test_layers();
    test_start();
    test_report();
    test_coverage();
    test_two();
    test_outputs();
    test_standard_output();
    test_bad();
    free(last.out);
    free(last.err);
    return t_done("test_judge_command");
}
