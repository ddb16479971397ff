/* SPDX-License-Identifier: MIT */
/* The `qwen3moe` command but for dump: statuses, standard output, the line on standard error.
 *
 *   test_command COMMAND GOLDEN     COMMAND is the program, GOLDEN the folder golden/
 *
 * Expected values: Hugging Face's ids and logits (golden/hf/tiny), the metadata that Python wrote,
 * and this file's own sampler and perplexity. */
#define FOLDER "command.tmp/"
#include "command.h"

static size_t prompt_count(const q3_tensors *golden)
{
    const char *digits = q3_tensors_metadata(golden, "prompts");
    size_t count = digits != NULL ? (size_t)strtoul(digits, NULL, 10) : 0;
    CHECK(count >= 8);
    return count;
}

/* How many of the ids a generation prints that stops at these. */
static size_t until(const int32_t *ids, size_t count, int32_t eos, int32_t other)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == eos || ids[i] == other) return i + 1;
    return count;
}

/* ==== Usage =================================================================================== */

#define VERBS \
    "there are info, taps, generate, tokenize, dump, check, diff, report, score and selftest " \
    "(--help)"
#define AN_OPTION "' (--help lists them)"

static const failure bad_usage[] = {
    {"", "no verb is given; " VERBS},
    {"frob tiny", "unknown verb 'frob'; " VERBS},
    {"'a\nb'", "unknown verb 'a?b'; " VERBS},
    {"checks tiny", "unknown verb 'checks'; " VERBS},
    {"--version now", "unknown verb '--version'; " VERBS},
    {"info", "info: MODEL is missing"},
    {"tokenize --decode", "tokenize: MODEL is missing"},
    {"info tiny more", "info: unexpected argument 'more'"},
    {"dump tiny more", "dump: unexpected argument 'more'"},
    {"generate tiny a b", "generate: unexpected argument 'b'"},
    {"tokenize tiny a b", "tokenize: unexpected argument 'b'"},
    {"score tiny a b", "score: unexpected argument 'b'"},
    {"check tiny",
     "check: the file of the other implementation's tensors is missing"},
    {"check tiny a b c", "check: unexpected argument 'c'"},
    {"diff", "diff: A.safetensors is missing"},
    {"diff a", "diff: the second file is missing"},
    {"diff a b c", "diff: unexpected argument 'c'"},
    {"report", "report: FILE.jsonl is missing"},
    {"selftest a", "selftest: unexpected argument 'a'"},
    {"info tiny --frob", "info: unknown option '--frob" AN_OPTION},
    {"info tiny -x", "info: unknown option '-x" AN_OPTION},
    {"info tiny --js", "info: unknown option '--js" AN_OPTION},
    {"info tiny '--fr\tob'", "info: unknown option '--fr?ob" AN_OPTION},
    {"info tiny --chunk 3", "info: unknown option '--chunk" AN_OPTION},
    {"info tiny --chunk=3", "info: unknown option '--chunk=3" AN_OPTION},
    {"generate tiny a -n=3", "generate: unknown option '-n=3" AN_OPTION},
    {"tokenize tiny --ids a", "tokenize: unknown option '--ids" AN_OPTION},
    {"score tiny a --tokens 1", "score: unknown option '--tokens" AN_OPTION},
    {"diff a b --strict", "diff: unknown option '--strict" AN_OPTION},
    {"dump tiny --html a", "dump: unknown option '--html" AN_OPTION},
    {"check tiny a --json", "--json needs a value: FILE"},
    {"check tiny a --free=1", "--free takes no value"},
    {"check tiny a --json b --json c", "--json is given twice"},
    {"info tiny --json=1", "--json takes no value"},
    {"info tiny --json=", "--json takes no value"},
    {"info --help=1", "--help takes no value"},
    {"generate tiny a -n", "-n needs a value: N"},
    {"dump tiny --taps", "--taps needs a value: GLOB"},
    {"generate tiny a -n 1 -n 1", "-n is given twice"},
    {"info tiny --json --json", "--json is given twice"},
    {"generate tiny --dtype=float32 --dtype float32 a",
     "--dtype is given twice"},
};

static void test_usage(void)
{
    all_fail(bad_usage, COUNT(bad_usage));
    run("info nowhere");
    fails_with("nowhere: ");
    run("info -- --json");
    fails_with("--json: ");
    run("info tiny/tokenizer.json");
    fails_with("tiny/tokenizer.json: ");
}

static void test_help(void)
{
    static const char *const verbs[][6] = {
        {"info", "MODEL [options]", "--json"},
        {"generate", "MODEL [PROMPT] [options]", "-n N", "--temperature X", "--tokens 1,2,3",
         "--ids"},
        {"tokenize", "MODEL [TEXT] [options]", "--decode", "--jsonl"},
        {"dump", "MODEL [options]", "-o FILE", "--taps GLOB", "--layers A:B", "--from FILE"},
        {"score", "MODEL FILE [options]", "--jsonl", "--dtype float32|bfloat16|float16"},
        {"check", "MODEL BACKEND.safetensors [B.safetensors] [options]",
         "--accumulate bf16|f16|tf32|bf16-sums|f16-sums|fp8|q8",
         "--router float16|bfloat16", "--require GLOB", "--junit FILE"},
        {"diff", "A.safetensors B.safetensors [options]", "--json FILE", "--html FILE", "--all"},
        {"report", "FILE.jsonl ... [options]", "--html FILE", "--all"},
        {"taps", "MODEL [options]", "--layer N", "--json"},
    };
    char usage[128];
    run("--version");
    succeeds("qwen3moe " Q3_VERSION "\n");
    run("--help");
    succeeds(NULL);
    CHECK(strncmp(last.out, "usage: qwen3moe VERB MODEL ", 27) == 0);
    for (size_t v = 0; v < COUNT(verbs); v++) CHECK(strstr(last.out, verbs[v][0]) != NULL);
    for (size_t v = 0; v < COUNT(verbs); v++) {
        snprintf(usage, sizeof usage, "usage: qwen3moe %s %s\n", verbs[v][0], verbs[v][1]);
        run(v % 2 == 0 ? "%s --help" : "%s nowhere --help", verbs[v][0]);
        succeeds(NULL);
        CHECKF(strncmp(last.out, usage, strlen(usage)) == 0, "%s", last.out);
        for (size_t i = 2; i < 6 && verbs[v][i] != NULL; i++)
            CHECKF(strstr(last.out, verbs[v][i]) != NULL, "%s: no %s", verbs[v][0], verbs[v][i]);
        CHECK(v == 3 || v == 5 || strstr(last.out, "--layers") == NULL);
    }
}

/* What is printed must arrive: on a device that is always full, each verb fails. */
static void test_full_output(void)
{
    static const char *const lines[] = {
        "--version", "--help", "info --help", "info tiny", "tokenize tiny 'In the beginning'",
        "generate tiny --tokens 1,2 -n 2 --ids --dtype float32", "score tiny text",
        "dump tiny --tokens 1 -o w/full.safetensors",
    };
    FILE *full = fopen("/dev/full", "wb");
    if (full == NULL) {
        printf("no /dev/full here: a full standard output was not tested\n");
        return;
    }
    fclose(full);
    write_text(FOLDER "text", "In the beginning God created the heaven and the earth.");
    for (size_t i = 0; i < COUNT(lines); i++) {
        run("%s >/dev/full", lines[i]);
        CHECKF(last.status == 2 && strstr(last.err,
                                          "qwen3moe: cannot write standard output\n") != NULL,
               "%s: status %d, %s", lines[i], last.status, last.err);
    }
    shell("rm -f w/full.safetensors");
}

/* ==== Info ==================================================================================== */

static void test_info(const q3_model *model)
{
    const q3_config *c = q3_model_config(model);
    q3_tensors *golden = open_golden("taps-float32");
    static char want[65536];
    char *tree = q3_module_tree(c);
    /* golden/tiny: 4 sparse layers, 1 dense, nothing tied, no biases. */
    unsigned long M = 120, V = 2040, q = 6 * 24, k = 2 * 24, E = 14, A = 4, F = 56, I = 200, L = 5;
    unsigned long rest =
        2 * V * M + M + L * (2 * M + 2 * q * M + 2 * k * M + 2 * 24) + 3 * I * M + 4 * E * M;
    unsigned long all = rest + 4 * E * 3 * F * M, active = rest + 4 * A * 3 * F * M;
    if (tree == NULL) exit(1);
    snprintf(want, sizeof want,
             "%s\nparameters %lu\nactive per token %lu\nweights bfloat16 %lu\n"
             "key/value per token %lu\n", tree, all, active, 2 * all, 2 * L * k * 2);
    run("info tiny");
    succeeds(want);
    run("info tiny/config.json");
    succeeds(want);
    snprintf(want, sizeof want,
             "{\"config\":%s,\"parameters\":%lu,\"active_per_token\":%lu,"
             "\"weights_dtype\":\"bfloat16\",\"weights_bytes\":%lu,"
             "\"key_value_bytes_per_token\":%lu}\n",
             q3_tensors_metadata(golden, "config"), all, active, 2 * all, 2 * L * k * 2);
    run("info --json tiny");
    succeeds(want);
    run("info \"$G/fp8\"");
    CHECK(last.status == 0 && strstr(last.out, "\nweights bfloat16 430592\n") != NULL &&
          strstr(last.out, "\nquantised fp8: the linear maps take a byte for each weight\n"));
    run("info --json \"$G/fp8\"");
    CHECK(last.status == 0 && strstr(last.out, ",\"quantised\":\"fp8\"}\n") != NULL);
    shell("mkdir bare && sed '/torch_dtype/d' tiny/config.json >bare/config.json && "
          "\"$Q\" info bare | tail -n 2");
    snprintf(want, sizeof want, "weights float32 %lu\nkey/value per token %lu\n", 4 * all,
             2 * L * k * 4);
    succeeds(want);
    free(tree);
    q3_tensors_close(golden);
}

/* ==== Tokenize ================================================================================ */

static void test_tokenize_good(const q3_tensors *golden)
{
    char name[64], want[8192];
    size_t count;
    for (size_t p = 0; p < prompt_count(golden); p++) {
        snprintf(name, sizeof name, "prompt%lu", (unsigned long)p);
        const char *text = q3_tensors_metadata(golden, name);
        snprintf(name, sizeof name, "prompt%lu.prompt", (unsigned long)p);
        int32_t *ids = ids_of(golden, name, &count);
        snprintf(want, sizeof want, "%s\n", spell(ids, count, " "));
        write_text(FOLDER "text", text);
        run("tokenize tiny \"$(cat text)\"");
        succeeds(want);
        run("tokenize tiny <text");
        succeeds(want);
        run("tokenize tiny - <text");
        succeeds(want);
        write_text(FOLDER "ids", spell(ids, count, "\r\n \t\v\f"));
        run("tokenize tiny --decode <ids");
        succeeds(text);
        run("tokenize --decode -- tiny \"%s\"", spell(ids, count, " "));
        succeeds(text);
        free(ids);
    }
    run("tokenize tiny ''");
    succeeds("\n");
    run("tokenize tiny </dev/null");
    succeeds("\n");
    run("tokenize tiny --jsonl </dev/null");
    succeeds("");
    run("tokenize tiny --decode </dev/null");
    succeeds("");
    run("tokenize tiny '<|im_end|><|endoftext|>'");
    succeeds("2002 2000\n");
    run("tokenize tiny -- --decode");
    succeeds(NULL);
    CHECK(last.size > 2 && last.out[last.size - 1] == '\n');
    /* A zero byte goes through: only a file or --jsonl can hold one. */
    write_file(FOLDER "text", "a\0b", 3);
    run("tokenize tiny <text");
    succeeds(NULL);
    write_file(FOLDER "ids", last.out, last.size);
    run("tokenize tiny --decode <ids");
    CHECK(last.status == 0 && last.size == 3 && memcmp(last.out, "a\0b", 3) == 0);
    /* Nothing but tokenizer.json is needed. */
    run("tokenize words 'In the beginning'");
    succeeds(NULL);
}

static void test_tokenize_lines(void)
{
    static const char lines[] =
        "\"In the beginning\"\r\n \t\"\" \r\n\"\\u0049n the\\u0020beginning\"\n"
        "\"a\\u0000\\ud83d\\ude00\"";
    char want[2048], start[1024];
    char *ids, *tail;
    run("tokenize tiny 'In the beginning'");
    succeeds(NULL);
    ids = last.out;
    last.out = NULL;
    write_file(FOLDER "text", "a\0\360\237\230\200", 6);
    run("tokenize tiny <text");
    tail = last.out;
    last.out = NULL;
    snprintf(want, sizeof want, "%s\n%s%s", ids, ids, tail);
    snprintf(start, sizeof start, "%s\n%s", ids, ids);
    write_text(FOLDER "lines", lines);
    run("tokenize tiny --jsonl <lines");
    succeeds(want);
    run("tokenize tiny --jsonl -- \"$(cat lines)\"");
    succeeds(want);
    /* A bad line is named; the lines before it were printed. */
    static const char *const bad[] = {
        "\n\"a\"\n", "\r\n", "a\n", "17\n", "null\n", "[\"a\"]\n", "\"a\" \"b\"\n", "\"a\n\"\n",
        "\"\\ud83d\"\n", "\"\377\"\n", "'a'", "{\"text\":\"a\"}", " ",
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        char text[256];
        snprintf(text, sizeof text, "\"In the beginning\"\n\"\"\n\"In the beginning\"\n%s", bad[i]);
        write_text(FOLDER "lines", text);
        run("tokenize tiny --jsonl <lines");
        fails_with("qwen3moe: standard input: line 4: ");
        CHECKF(last.size == strlen(start) && memcmp(last.out, start, last.size) == 0,
               "line %lu: printed \"%s\"",
               (unsigned long)i, last.out);
    }
    run("tokenize tiny --jsonl 5");
    fails("text: line 1: expected a JSON string");
    free(ids);
    free(tail);
}

static void test_tokenize_bad(void)
{
    static const failure failures[] = {
        {"tokenize tiny --decode --jsonl",
         "--chat, --decode and --jsonl exclude each other"},
        {"tokenize tiny --decode '1 x 2'",
         "text: byte 2: expected token ids, separated by white space"},
        {"tokenize tiny --decode '1,2'",
         "text: byte 0: expected token ids, separated by white space"},
        {"tokenize tiny --decode ' -1'",
         "text: byte 1: expected token ids, separated by white space"},
        {"tokenize tiny --decode '1.0'",
         "text: byte 0: expected token ids, separated by white space"},
        {"tokenize tiny --decode 2147483648",
         "text: byte 0: expected token ids, separated by white space"},
        {"tokenize tiny --decode '7 99999999999999999999'",
         "text: byte 2: expected token ids, separated by white space"},
    };
    all_fail(failures, COUNT(failures));
    run("tokenize tiny --decode '1 2 2039'"); /* in the model's vocabulary, but no token */
    fails_with("text: ");
    CHECK(last.size == 0 && strstr(last.err, "2039") != NULL);
    run("tokenize tiny --decode 2147483647");
    fails_with("text: ");
    write_file(FOLDER "ids", "1\0002", 3);
    run("tokenize tiny --decode <ids");
    fails("standard input: byte 0: expected token ids, separated by white space");
    write_text(FOLDER "text", "ab\303\251c\377d");
    run("tokenize tiny <text");
    fails_with("standard input: ");
    CHECKF(strstr(last.err, "byte 5") != NULL && last.size == 0, "%s", last.err);
    run("tokenize tiny \"$(cat text)\"");
    fails_with("text: ");
    run("generate tiny <text");
    fails_with("standard input: ");
    run("score tiny text");
    fails_with("qwen3moe: text: ");
    run("dump tiny -o w/bad --prompt \"$(cat text)\"");
    fails_with("text: ");
    run("tokenize bare a");
    fails_with("bare/tokenizer.json: ");
}

/* ==== Generate ================================================================================ */

/* Greedy ids of every prompt as Hugging Face has them, up to and with the first end. */
static void test_greedy(const q3_tensors *golden)
{
    char name[64], want[4096];
    size_t count, n;
    for (size_t p = 0; p < prompt_count(golden); p++) {
        snprintf(name, sizeof name, "prompt%lu", (unsigned long)p);
        const char *text = q3_tensors_metadata(golden, name);
        snprintf(name, sizeof name, "prompt%lu.prompt", (unsigned long)p);
        int32_t *prompt = ids_of(golden, name, &count);
        snprintf(name, sizeof name, "prompt%lu.float32.ids", (unsigned long)p);
        int32_t *ids = ids_of(golden, name, &n);
        snprintf(want, sizeof want, "%s\n", spell(ids, until(ids, n < 64 ? n : 64, 2000, 2002),
                                                  " "));
        write_text(FOLDER "text", text);
        run("generate tiny --dtype float32 --ids <text 2>err2");
        succeeds(want);
        run("generate --ids --tokens=%s tiny --dtype=float32 2>err2", spell(prompt, count, ","));
        succeeds(want);
        snprintf(want, sizeof want, "%s\n", spell(ids, until(ids, 5, 2000, 2002), " "));
        run("generate tiny \"$(cat text)\" -n 5 --ids --dtype float32 2>err2");
        succeeds(want);
        free(prompt);
        free(ids);
    }
}

/* Copies of golden/tiny that differ in what ends a generation. */
static void write_eos(const char *folder, const char *generation, const char *config)
{
    char line[1024];
    snprintf(line, sizeof line,
             "rm -rf %s && mkdir %s && "
             "ln -s ../tiny/model.safetensors ../tiny/tokenizer.json %s && "
             "sed 's/\"eos_token_id\": 2000/\"eos_token_id\": %s/' tiny/config.json "
             ">%s/config.json",
             folder, folder, folder, config, folder);
    shell(line);
    succeeds("");
    snprintf(line, sizeof line, FOLDER "%s/generation_config.json", folder);
    if (generation != NULL) write_text(line, generation);
}

/* Stops at the id that comes first, and says it with --ids only. */
static void stops(const int32_t *prompt, size_t T, const int32_t *ids, size_t n, int32_t a,
                  int32_t b)
{
    char want[4096];
    size_t kept = until(ids, n, a, b), shown = kept;
    snprintf(want, sizeof want, "%s\n", spell(ids, kept, " "));
    run("generate eos --ids -n %lu --dtype float32 --tokens %s 2>err2", (unsigned long)n,
        spell(prompt, T, ","));
    succeeds(want);
    if (kept > 0 && (ids[kept - 1] == a || ids[kept - 1] == b)) shown--;
    run("tokenize tiny --decode '%s'", spell(ids, shown, " "));
    snprintf(want, sizeof want, "%.4000s\n", last.out);
    run("generate eos -n %lu --dtype float32 --tokens %s 2>err2", (unsigned long)n,
        spell(prompt, T, ","));
    succeeds(want);
}

static void test_eos(const q3_tensors *golden)
{
    size_t T, n;
    char text[256], other[64];
    int32_t *prompt = ids_of(golden, "prompt0.prompt", &T),
        *ids = ids_of(golden, "prompt0.float32.ids", &n);
    n = n < 20 ? n : 20;
    write_eos("eos", NULL, "null");
    stops(prompt, T, ids, n, -1, -1);
    snprintf(other, sizeof other, "%ld", (long)ids[4]);
    write_eos("eos", NULL, other);
    stops(prompt, T, ids, n, ids[4], -1);
    snprintf(other, sizeof other, "[7777, %ld, %ld]", (long)ids[9], (long)ids[6]);
    write_eos("eos", NULL, other);
    stops(prompt, T, ids, n, ids[6], ids[9]);
    /* generation_config.json goes before config.json. */
    snprintf(text, sizeof text, "{\"eos_token_id\": [%ld]}", (long)ids[7]);
    snprintf(other, sizeof other, "%ld", (long)ids[2]);
    write_eos("eos", text, other);
    stops(prompt, T, ids, n, ids[7], -1);
    write_eos("eos", "{\"eos_token_id\": \"x\"}", "2000");
    run("generate eos --ids -n 1 --tokens 1");
    fails_with("eos_token_id");
    free(prompt);
    free(ids);
}

static void test_generate_rest(const q3_tensors *golden)
{
    size_t T, n;
    int32_t *prompt = ids_of(golden, "prompt0.prompt", &T);
    int32_t *half = ids_of(golden, "prompt0.bfloat16.ids", &n);
    char list[2048];
    snprintf(list, sizeof list, "%s", spell(prompt, T, ","));
    run("generate tiny --tokens %s -n 0 2>err2", list);
    succeeds("\n");
    run("generate tiny --tokens %s -n 0 --ids 2>err2", list);
    succeeds("\n");
    /* One line of timing. */
    run("generate tiny --tokens %s -n 3 --ids", list);
    CHECKF(last.status == 0 && strncmp(last.err, "prompt: ", 8) == 0 &&
           strchr(last.err, '\n') + 1 == last.err + last.err_size,
           "%s", last.err);
    /* The config says bfloat16. */
    char *by_config = last.out;
    last.out = NULL;
    run("generate tiny --tokens %s -n 3 --ids --dtype bfloat16 2>err2", list);
    succeeds(by_config);
    run("generate tiny --tokens %s -n 1 --ids --dtype float16 2>err2", list);
    succeeds(NULL);
    /* Text from an argument, from standard input, and behind --. */
    run("generate tiny 'And God' -n 4 2>err2");
    succeeds(NULL);
    free(by_config);
    by_config = last.out;
    last.out = NULL;
    write_text(FOLDER "text", "And God");
    run("generate -n 4 tiny <text 2>err2");
    succeeds(by_config);
    run("generate -n 4 tiny - <text 2>err2");
    succeeds(by_config);
    run("generate -n 4 -- tiny 'And God' 2>err2");
    succeeds(by_config);
    run("generate tiny -n 2 -- -n 2>err2");
    succeeds(NULL);
    free(by_config);
    free(prompt);
    free(half);
}

#define NUMBER ", expected a decimal number such as 0.7"
#define FROM_0_TO(most) ", expected an integer from 0 to " most

static const failure generate_failures[] = {
    {"generate tiny a -n -1", "-n: found -1" FROM_0_TO("1048576")},
    {"generate tiny a -n x", "-n: found x" FROM_0_TO("1048576")},
    {"generate tiny a -n ''", "-n: found " FROM_0_TO("1048576")},
    {"generate tiny a -n 1.0", "-n: found 1.0" FROM_0_TO("1048576")},
    {"generate tiny a -n ' 1'", "-n: found  1" FROM_0_TO("1048576")},
    {"generate tiny a -n 1048577", "-n: found 1048577" FROM_0_TO("1048576")},
    {"generate tiny a -n 99999999999999999999",
     "-n: found 99999999999999999999" FROM_0_TO("1048576")},
    {"generate tiny a --top-k=-1", "--top-k: found -1" FROM_0_TO("2147483647")},
    {"generate tiny a --top-k 2147483648", "--top-k: found 2147483648" FROM_0_TO("2147483647")},
    {"generate tiny a --seed 18446744073709551616",
     "--seed: found 18446744073709551616" FROM_0_TO("18446744073709551615")},
    {"generate tiny a --seed abc", "--seed: found abc" FROM_0_TO("18446744073709551615")},
    {"generate tiny a --temperature 0", "--temperature: found 0, expected a number above 0"},
    {"generate tiny a --temperature 0.0",
     "--temperature: found 0.0, expected a number above 0"},
    {"generate tiny a --temperature=-1", "--temperature: found -1" NUMBER},
    {"generate tiny a --temperature 1e3", "--temperature: found 1e3" NUMBER},
    {"generate tiny a --temperature nan", "--temperature: found nan" NUMBER},
    {"generate tiny a --temperature inf", "--temperature: found inf" NUMBER},
    {"generate tiny a --temperature 0x1", "--temperature: found 0x1" NUMBER},
    {"generate tiny a --temperature 1,5", "--temperature: found 1,5" NUMBER},
    {"generate tiny a --temperature 1.2.3", "--temperature: found 1.2.3" NUMBER},
    {"generate tiny a --temperature .5", "--temperature: found .5" NUMBER},
    {"generate tiny a --temperature 5.", "--temperature: found 5." NUMBER},
    {"generate tiny a --temperature ''", "--temperature: found " NUMBER},
    {"generate tiny a --top-p 0", "--top-p: found 0, expected a number above 0, at most 1"},
    {"generate tiny a --top-p 1.5", "--top-p: found 1.5, expected a number above 0, at most 1"},
    {"generate tiny a --dtype float64",
     "--dtype: found float64, expected float32, bfloat16 or float16"},
    {"generate tiny a --dtype ''", "--dtype: found , expected float32, bfloat16 or float16"},
    {"generate tiny --tokens ''",
     "--tokens: found \"\" at place 1, expected ids such as 1,2,3"},
    {"generate tiny --tokens 1,,2",
     "--tokens: found \"\" at place 2, expected ids such as 1,2,3"},
    {"generate tiny --tokens 1,2,",
     "--tokens: found \"\" at place 3, expected ids such as 1,2,3"},
    {"generate tiny --tokens '1 2'",
     "--tokens: found \"1 2\" at place 1, expected ids such as 1,2,3"},
    {"generate tiny --tokens=-1",
     "--tokens: found \"-1\" at place 1, expected ids such as 1,2,3"},
    {"generate tiny --tokens 1,2147483648",
     "--tokens: found \"2147483648\" at place 2, expected ids such as 1,2,3"},
    {"generate tiny --tokens 1,2040", "token 1: found id 2040, expected 0 to 2039"},
    /* Said before any weight is looked for. */
    {"generate \"$G/hf/base\" --tokens 1,50", "token 1: found id 50, expected 0 to 49"},
    {"generate tiny --tokens 1 text", "--tokens, --chat and a text exclude each other"},
    {"generate tiny --tokens 1 -", "--tokens, --chat and a text exclude each other"},
    {"generate tiny ''", "tokens: found none, expected at least one"},
    {"generate tiny </dev/null", "tokens: found none, expected at least one"},
    {"generate tiny --tokens 1 -n 1048576",
     "positions: found 1048577 tokens from 0 on, expected all below 1048576"},
};

static void test_generate_bad(void)
{
    all_fail(generate_failures, COUNT(generate_failures));
    /* --ids with --tokens needs no tokenizer.json; text does, and says so before it runs. */
    shell("mkdir dumb && ln -s ../tiny/model.safetensors ../tiny/config.json dumb");
    run("generate dumb --tokens 1,2 -n 2 --ids 2>err2");
    succeeds(NULL);
    run("generate dumb --tokens 1,2 -n 2");
    fails_with("dumb/tokenizer.json: ");
    run("generate dumb 'In the' -n 2 --ids");
    fails_with("dumb/tokenizer.json: ");
    run("generate words --tokens 1 --ids");
    fails_with("words");
    run("generate bare --tokens 1 --ids");
    fails_with("bare");
}

/* ==== Sampling ================================================================================ */

/* splitmix64, as published by Vigna: a counter and a finaliser. */
static double first_uniform(uint64_t seed)
{
    uint64_t z = seed + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return ldexp((double)(z >> 11), -53);
}

typedef struct choice {
    double p;
    int32_t id;
} choice;

static int by_probability(const void *a, const void *b)
{
    const choice *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Hugging Face's filters by their definitions, then the first of the falling cumulative
 * probabilities above u. -1 where u lies so close to a boundary that the logits of another float32
 * run may decide otherwise. */
static int32_t sample(const float *logits, size_t V, double temperature, size_t k, double top_p,
                      double u)
{
    static choice all[8192];
    double max = (double)logits[0], total = 0.0, tail = 0.0, below = 0.0;
    size_t kept = k > 0 && k < V ? k : V, last_kept = 0;
    if (V > COUNT(all)) exit(1);
    for (size_t i = 1; i < V; i++) max = fmax(max, (double)logits[i]);
    for (size_t i = 0; i < V; i++) {
        all[i].p = exp(((double)logits[i] - max) / temperature);
        all[i].id = (int32_t)i;
    }
    qsort(all, V, sizeof *all, by_probability);
    for (size_t i = 0; i < kept; i++) total += all[i].p;
    /* Top-p keeps what has more than 1 - p of the probability at or below it, and the first. */
    for (size_t i = kept; i-- > 0;) {
        tail += all[i].p / total;
        if (fabs(tail - (1.0 - top_p)) < 1e-6 && top_p < 1.0) return -1;
        if (last_kept == 0 && tail > 1.0 - top_p) last_kept = i;
    }
    kept = last_kept + 1;
    total = 0.0;
    for (size_t i = 0; i < kept; i++) total += all[i].p;
    for (size_t i = 0; i < kept; i++) {
        double above = below + all[i].p / total;
        if (i + 1 < kept && fabs(above - u) < 1e-5) return -1;
        if (above > u || i + 1 == kept) return all[i].id;
        below = above;
    }
    return -1;
}

static void test_draws(const q3_tensors *golden)
{
    static const struct {
        const char *options;
        double temperature;
        size_t k;
        double p;
    } settings[] = {
        {"", 1.0, 0, 1.0}, {"--temperature 0.7", 0.7, 0, 1.0}, {"--top-k 5", 1.0, 5, 1.0},
        {"--top-p 0.6", 1.0, 0, 0.6}, {"--top-p=0.25 --top-k=0", 1.0, 0, 0.25},
        {"--temperature 1.75 --top-k 40 --top-p 0.9", 1.75, 40, 0.9},
    };
    size_t T, V, compared = 0, tried = 0;
    int32_t *prompt = ids_of(golden, "prompt1.prompt", &T);
    float *logits = floats_of(golden, "prompt1.float32.logits", &V);
    for (size_t s = 0; s < COUNT(settings); s++)
        for (uint64_t seed = 0; seed < 6; seed++) {
            uint64_t number = seed == 5 ? UINT64_MAX : seed;
            int32_t want = sample(logits, V, settings[s].temperature, settings[s].k, settings[s].p,
                                  first_uniform(number));
            tried++;
            if (want < 0) continue;
            compared++;
            run("generate tiny --dtype float32 --ids -n 1 %s --seed %llu --tokens %s 2>err2",
                settings[s].options,
                (unsigned long long)number, spell(prompt, T, ","));
            CHECKF(last.status == 0 && atoi(last.out) == want, "%s: got %s, want %ld", last.line,
                   last.out,
                   (long)want);
        }
    CHECKF(compared * 10 >= tried * 9, "only %lu of %lu draws were clear", (unsigned long)compared,
           (unsigned long)tried);
    free(prompt);
    free(logits);
}

static void test_sampling(const q3_tensors *golden)
{
    static const char *const greedy[] = {
        "--top-k 1", "--top-k 1 --seed 7", "--top-p 0.0000001", "--temperature 0.000001 --seed 3",
        "--top-k 1 --temperature 50",
    };
    size_t T, n;
    int32_t *prompt = ids_of(golden, "prompt1.prompt", &T),
        *ids = ids_of(golden, "prompt1.float32.ids", &n);
    char want[2048], list[2048];
    snprintf(list, sizeof list, "%s", spell(prompt, T, ","));
    snprintf(want, sizeof want, "%s\n", spell(ids, until(ids, 12, 2000, 2002), " "));
    for (size_t i = 0; i < COUNT(greedy); i++) {
        run("generate tiny --dtype float32 --ids -n 12 %s --tokens %s 2>err2", greedy[i], list);
        succeeds(want);
    }
    /* Seed 0 where none is given; the same seed gives the same ids, others other ids. */
    run("generate tiny --ids -n 30 --temperature 2 --tokens %s 2>err2", list);
    succeeds(NULL);
    char *first = last.out;
    last.out = NULL;
    run("generate tiny --ids -n 30 --temperature 2.0 --seed 0 --tokens %s 2>err2", list);
    succeeds(first);
    size_t others = 0;
    for (int seed = 1; seed < 4; seed++) {
        run("generate tiny --ids -n 30 --temperature 2 --seed %d --tokens %s 2>err2", seed, list);
        succeeds(NULL);
        others += strcmp(last.out, first) != 0;
    }
    CHECK(others == 3);
    free(first);
    free(prompt);
    free(ids);
}

/* ==== Score =================================================================================== */

/* -log softmax of Hugging Face's logits at the next token. */
static double nll_of(const float *logits, size_t V, int32_t id)
{
    double max = (double)logits[0], sum = 0.0;
    for (size_t i = 1; i < V; i++) max = fmax(max, (double)logits[i]);
    for (size_t i = 0; i < V; i++) sum += exp((double)logits[i] - max);
    return log(sum) + max - (double)logits[id];
}

/* Writes FOLDER text so that it has the first tokens of ids; returns how many: the cut may fall
 * inside a word that is split in another way when it stands alone. */
static size_t write_scored_text(const int32_t *ids, size_t T)
{
    char want[4096];
    for (; T > 0; T--) {
        run("tokenize tiny --decode '%s'", spell(ids, T, " "));
        write_file(FOLDER "text", last.out, last.size);
        snprintf(want, sizeof want, "%s\n", spell(ids, T, " "));
        run("tokenize tiny <text");
        if (strcmp(last.out, want) == 0) break;
    }
    CHECK(T >= 20);
    return T;
}

static void test_score(void)
{
    q3_tensors *golden = open_golden("taps-float32");
    size_t T, count, lines = 0;
    int32_t *ids = ids_of(golden, "input_ids", &T);
    float *logits = floats_of(golden, "lm_head.output", &count);
    size_t V = count / T;
    double sum = 0.0, theirs = 0.0, mean, perplexity;
    unsigned long tokens;
    T = write_scored_text(ids, T);
    run("score tiny text --dtype float32 --jsonl");
    succeeds(NULL);
    for (char *line = last.out, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        unsigned long position;
        long id;
        double nll, want;
        int used = 0;
        CHECK(sscanf(line, "{\"position\":%lu,\"id\":%ld,\"nll\":%lf}%n", &position, &id, &nll,
                     &used) == 3);
        if (lines + 1 >= T || line + used != end) break;
        CHECK(position == lines + 1 && id == ids[lines + 1]);
        /* Two logits' errors; float32 runs lie within 1e-5 of each other, logits below 50. */
        want = nll_of(logits + lines * V, V, ids[lines + 1]);
        CHECKF(fabs(nll - want) <= 1e-3, "token %lu: %.17g, Hugging Face %.17g", position, nll,
               want);
        sum += nll;
        theirs += want;
    }
    CHECKF(lines + 1 == T, "%lu lines", (unsigned long)lines);
    run("score tiny - --dtype=float32 <text");
    succeeds(NULL);
    CHECK(sscanf(last.out, "tokens %lu\nmean %lf\nperplexity %lf\n", &tokens, &mean,
                 &perplexity) == 3);
    CHECK(tokens + 1 == T && last.out[last.size - 1] == '\n');
    CHECKF(fabs(mean * (double)tokens - sum) <= 1e-12 * sum, "mean %.17g of %lu, sum %.17g", mean,
           tokens, sum);
    CHECKF(fabs(sum - theirs) <= 1e-4 * theirs, "sum %.17g, Hugging Face %.17g", sum, theirs);
    CHECKF(fabs(perplexity - exp(mean)) <= 1e-12 * perplexity, "perplexity %.17g", perplexity);
    run("score tiny text");
    succeeds(NULL);
    free(logits);
    free(ids);
    q3_tensors_close(golden);
}

static void test_score_bad(void)
{
    static const failure failures[] = {
        {"score tiny", "score: FILE is missing, a text file, or - for standard input"},
        {"score tiny empty", "tokens: found none, expected at least one"},
        {"score tiny one", "one: found 1 token, expected at least 2"},
        {"score tiny - <empty", "tokens: found none, expected at least one"},
        {"score tiny text --dtype int8",
         "--dtype: found int8, expected float32, bfloat16 or float16"},
    };
    write_text(FOLDER "empty", "");
    write_text(FOLDER "one", "a");
    all_fail(failures, COUNT(failures));
    run("score tiny nowhere");
    fails_with("nowhere: ");
    run("score dumb text");
    fails_with("dumb/tokenizer.json: ");
    run("score bare text");
    fails_with("bare");
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    shell("mkdir words && cp tiny/tokenizer.json words");
    succeeds("");
    q3_model *model = load_tiny();
    q3_tensors *golden = open_golden("generate");
    test_usage();
    test_help();
    test_info(model);
    test_tokenize_good(golden);
    test_tokenize_lines();
    test_tokenize_bad();
    test_greedy(golden);
    test_eos(golden);
    test_generate_rest(golden);
    test_generate_bad();
    test_draws(golden);
    test_sampling(golden);
    test_score();
    test_score_bad();
    test_full_output();
    q3_tensors_close(golden);
    q3_model_close(model);
    free(last.out);
    free(last.err);
    return t_done("test_command");
}
