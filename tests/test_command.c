/* The `qwen3moe` command: every verb's exit status, standard output, and the one line on standard error.
 *
 *   test_command COMMAND GOLDEN     COMMAND is the program, GOLDEN the folder golden/
 *
 * The command is run by the shell in the folder command.tmp, where `tiny` is a copy of golden/tiny.
 * Expected values: Hugging Face's ids and logits (golden/hf/tiny), the metadata that Python wrote, this
 * file's own sampler, layout and perplexity; and for the bytes of a dump, what the library's pass shows
 * its tap (test_model judges that against Hugging Face). */
#include "qwen3moe.h"
#include "t.h"

#include <math.h>
#include <stdarg.h>

#define FOLDER "command.tmp/"
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *command_path, *golden_path;

/* ==== Running the command ==================================================================== */

/* What the last run left. */
static struct {
    char line[2048]; /* the arguments, for messages */
    int status;
    char *out, *err; /* ended by a zero that size does not count */
    size_t size, err_size;
} last;

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    size_t used = 0, room = 1 << 16;
    char *bytes = malloc(room);
    if (file == NULL || bytes == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    for (size_t n = 1; n > 0; used += n) {
        if (room - used < 4096) bytes = realloc(bytes, room *= 2);
        if (bytes == NULL) exit(1);
        n = fread(bytes + used, 1, room - used - 1, file);
    }
    fclose(file);
    bytes[used] = 0;
    *size = used;
    return bytes;
}

static void write_file(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) {
        fprintf(stderr, "%s: cannot be written\n", path);
        exit(1);
    }
}

static void write_text(const char *path, const char *text)
{
    write_file(path, text, strlen(text));
}

/* Runs a line of the shell in FOLDER, where $Q is the command and $G golden/. */
static void shell(const char *line)
{
    char whole[4096];
    size_t size;
    snprintf(whole, sizeof whole, "cd " FOLDER " && Q='%s' G='%s' && { %s\n} >out 2>err </dev/null; echo $? >status",
             command_path, golden_path, line);
    if (system(whole) != 0) {
        fprintf(stderr, "the shell does not run: %s\n", whole);
        exit(1);
    }
    snprintf(last.line, sizeof last.line, "%.2000s", line);
    free(last.out);
    free(last.err);
    char *status = read_file(FOLDER "status", &size);
    last.status = atoi(status);
    free(status);
    last.out = read_file(FOLDER "out", &last.size);
    last.err = read_file(FOLDER "err", &last.err_size);
}

/* Runs the command with these arguments, words of the shell. */
static void run(const char *format, ...)
{
    char arguments[1900], line[2000];
    va_list values;
    va_start(values, format);
    vsnprintf(arguments, sizeof arguments, format, values);
    va_end(values);
    snprintf(line, sizeof line, "\"$Q\" %s", arguments);
    shell(line);
}

/* The last run succeeded, said nothing on standard error, and printed want (NULL: anything). */
static void succeeds(const char *want)
{
    CHECKF(last.status == 0 && last.err_size == 0, "%s: status %d, standard error \"%s\"", last.line,
           last.status, last.err);
    if (want != NULL)
        CHECKF(last.size == strlen(want) && memcmp(last.out, want, last.size) == 0,
               "%s: got \"%s\", want \"%s\"", last.line, last.out, want);
}

/* The last run failed with one line on standard error that holds `part`. */
static void fails_with(const char *part)
{
    const char *newline = strchr(last.err, '\n');
    bool one_line = newline != NULL && newline[1] == 0 && strlen(last.err) == last.err_size;
    CHECKF(last.status == 2, "%s: status %d", last.line, last.status);
    CHECKF(one_line && strncmp(last.err, "qwen3moe: ", 10) == 0, "%s: standard error \"%s\"", last.line, last.err);
    CHECKF(strstr(last.err, part) != NULL, "%s: got \"%s\", want \"%s\"", last.line, last.err, part);
}

/* The same with the whole line and nothing on standard output. */
static void fails(const char *message)
{
    char line[1024];
    snprintf(line, sizeof line, "qwen3moe: %s\n", message);
    fails_with(message);
    CHECKF(strcmp(last.err, line) == 0, "%s: got \"%s\", want \"%s\"", last.line, last.err, line);
    CHECKF(last.size == 0, "%s: printed \"%s\"", last.line, last.out);
}

typedef struct failure {
    const char *arguments, *message;
} failure;

static void all_fail(const failure *failures, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        run("%s", failures[i].arguments);
        fails(failures[i].message);
    }
}

/* What the folder w holds now: names between blanks. */
static void holds(const char *names)
{
    char line[sizeof last.line];
    snprintf(line, sizeof line, "%s", last.line);
    shell("echo $(ls -A w)");
    CHECKF(last.size == strlen(names) + 1 && memcmp(last.out, names, strlen(names)) == 0,
           "after %s: the folder holds %s, expected %s", line, last.out, names);
}

/* ==== golden/hf/tiny ========================================================================= */

static q3_tensors *open_tensors(const char *path)
{
    q3_tensors *tensors;
    q3_error error;
    if (q3_tensors_open(&tensors, path, &error) == Q3_OK) return tensors;
    fprintf(stderr, "%s\n", error.text);
    exit(1);
}

static q3_tensors *open_golden(const char *file)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/hf/tiny/%s.safetensors", golden_path, file);
    return open_tensors(path);
}

static const q3_entry *find(const q3_tensors *tensors, const char *name)
{
    const q3_entry *entry = q3_tensors_find(tensors, name);
    if (entry != NULL) return entry;
    fprintf(stderr, "no tensor %s\n", name);
    exit(1);
}

static int32_t *ids_of(const q3_tensors *tensors, const char *name, size_t *count)
{
    const q3_entry *entry = find(tensors, name);
    *count = (size_t)entry->shape[0];
    int32_t *ids = malloc((*count + 1) * sizeof *ids);
    if (ids == NULL) exit(1);
    for (size_t i = 0; i < *count; i++) {
        int64_t id;
        q3_entry_integers(&id, entry, i, 1);
        ids[i] = (int32_t)id;
    }
    return ids;
}

static float *floats_of(const q3_tensors *tensors, const char *name, size_t *count)
{
    const q3_entry *entry = find(tensors, name);
    *count = 1;
    for (size_t i = 0; i < entry->rank; i++) *count *= (size_t)entry->shape[i];
    float *values = malloc((*count + 1) * sizeof *values);
    if (values == NULL) exit(1);
    q3_entry_floats(values, entry, 0, *count);
    return values;
}

/* ids as text with this between them. Valid until the next call. */
static const char *spell(const int32_t *ids, size_t count, const char *between)
{
    static char text[8192];
    size_t at = 0;
    text[0] = 0;
    for (size_t i = 0; i < count; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%ld", i > 0 ? between : "", (long)ids[i]);
    return text;
}

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

/* ==== Usage ================================================================================== */

#define VERBS "expected info, generate, tokenize, dump or score (--help)"
#define AN_OPTION ", expected an option of it (--help lists them)"

static void test_usage(void)
{
    static const failure failures[] = {
        {"", "found no verb, " VERBS},
        {"frob tiny", "found frob, " VERBS},
        {"'a\nb'", "found a?b, " VERBS},
        {"check tiny", "found check, " VERBS},
        {"--version now", "found --version, " VERBS},
        {"info", "info: found no MODEL, expected a model folder"},
        {"tokenize --decode", "tokenize: found no MODEL, expected a model folder"},
        {"info tiny more", "info: found more too, expected MODEL alone"},
        {"dump tiny more", "dump: found more too, expected MODEL alone"},
        {"generate tiny a b", "generate: found b too, expected MODEL [PROMPT]"},
        {"tokenize tiny a b", "tokenize: found b too, expected MODEL [TEXT]"},
        {"score tiny a b", "score: found b too, expected MODEL FILE"},
        {"info tiny --frob", "info: found --frob" AN_OPTION},
        {"info tiny -x", "info: found -x" AN_OPTION},
        {"info tiny --js", "info: found --js" AN_OPTION},
        {"info tiny '--fr\tob'", "info: found --fr?ob" AN_OPTION},
        {"info tiny --chunk 3", "info: found --chunk" AN_OPTION},
        {"info tiny --chunk=3", "info: found --chunk=3" AN_OPTION},
        {"generate tiny a -n=3", "generate: found -n=3" AN_OPTION},
        {"tokenize tiny --ids a", "tokenize: found --ids" AN_OPTION},
        {"score tiny a --tokens 1", "score: found --tokens" AN_OPTION},
        {"info tiny --json=1", "--json: found a value, expected none"},
        {"info tiny --json=", "--json: found a value, expected none"},
        {"info --help=1", "--help: found a value, expected none"},
        {"generate tiny a -n", "-n: found nothing behind it, expected N"},
        {"dump tiny --taps", "--taps: found nothing behind it, expected GLOB"},
        {"generate tiny a -n 1 -n 1", "-n: found it twice, expected it once"},
        {"info tiny --json --json", "--json: found it twice, expected it once"},
        {"generate tiny --dtype=float32 --dtype float32 a", "--dtype: found it twice, expected it once"},
    };
    all_fail(failures, COUNT(failures));
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
        {"generate", "MODEL [PROMPT] [options]", "-n N", "--temperature X", "--tokens 1,2,3", "--ids"},
        {"tokenize", "MODEL [TEXT] [options]", "--decode", "--jsonl"},
        {"dump", "MODEL [options]", "-o FILE", "--taps GLOB", "--layers A:B", "--from FILE"},
        {"score", "MODEL FILE [options]", "--jsonl", "--dtype float32|bfloat16|float16"},
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
        CHECK(v == 3 || strstr(last.out, "--layers") == NULL);
    }
}

/* What is printed must arrive: where the system has a device that is always full, each verb says no. */
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
        CHECKF(last.status == 2 && strstr(last.err, "qwen3moe: standard output: cannot write\n") != NULL,
               "%s: status %d, %s", lines[i], last.status, last.err);
    }
    shell("rm -f w/full.safetensors");
}

/* ==== info =================================================================================== */

static void test_info(const q3_model *model)
{
    const q3_config *c = q3_model_config(model);
    q3_tensors *golden = open_golden("taps-float32");
    static char want[65536];
    char *tree = q3_module_tree(c);
    /* golden/tiny: 4 sparse layers, 1 dense, nothing tied, no biases. */
    unsigned long M = 120, V = 2040, q = 6 * 24, k = 2 * 24, E = 14, A = 4, F = 56, I = 200, L = 5;
    unsigned long rest = 2 * V * M + M + L * (2 * M + 2 * q * M + 2 * k * M + 2 * 24) + 3 * I * M + 4 * E * M;
    unsigned long all = rest + 4 * E * 3 * F * M, active = rest + 4 * A * 3 * F * M;
    if (tree == NULL) exit(1);
    snprintf(want, sizeof want,
             "%s\nparameters %lu\nactive per token %lu\nweights bfloat16 %lu\nkey/value per token %lu\n", tree,
             all, active, 2 * all, 2 * L * k * 2);
    run("info tiny");
    succeeds(want);
    run("info tiny/config.json");
    succeeds(want);
    snprintf(want, sizeof want,
             "{\"config\":%s,\"parameters\":%lu,\"active_per_token\":%lu,\"weights_dtype\":\"bfloat16\","
             "\"weights_bytes\":%lu,\"key_value_bytes_per_token\":%lu}\n",
             q3_tensors_metadata(golden, "config"), all, active, 2 * all, 2 * L * k * 2);
    run("info --json tiny");
    succeeds(want);
    shell("mkdir bare && sed '/torch_dtype/d' tiny/config.json >bare/config.json && \"$Q\" info bare | tail -n 2");
    snprintf(want, sizeof want, "weights float32 %lu\nkey/value per token %lu\n", 4 * all, 2 * L * k * 4);
    succeeds(want);
    free(tree);
    q3_tensors_close(golden);
}

/* ==== tokenize =============================================================================== */

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

static void test_tokenize_lines(const q3_tensors *golden)
{
    static const char lines[] = "\"In the beginning\"\r\n \t\"\" \r\n\"\\u0049n the\\u0020beginning\"\n\"a\\u0000\\ud83d\\ude00\"";
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
    static const char *const bad[] = {"\n\"a\"\n", "\r\n", "a\n", "17\n", "null\n", "[\"a\"]\n", "\"a\" \"b\"\n",
                                      "\"a\n\"\n", "\"\\ud83d\"\n", "\"\377\"\n", "'a'", "{\"text\":\"a\"}", " "};
    for (size_t i = 0; i < COUNT(bad); i++) {
        char text[256];
        snprintf(text, sizeof text, "\"In the beginning\"\n\"\"\n\"In the beginning\"\n%s", bad[i]);
        write_text(FOLDER "lines", text);
        run("tokenize tiny --jsonl <lines");
        fails_with("qwen3moe: standard input: line 4: ");
        CHECKF(last.size == strlen(start) && memcmp(last.out, start, last.size) == 0, "line %lu: printed \"%s\"",
               (unsigned long)i, last.out);
    }
    run("tokenize tiny --jsonl 5");
    fails("text: line 1: found another JSON value, expected a string");
    free(ids);
    free(tail);
    (void)golden;
}

static void test_tokenize_bad(void)
{
    static const failure failures[] = {
        {"tokenize tiny --decode --jsonl", "tokenize: found --decode and --jsonl, expected one of them"},
        {"tokenize tiny --decode '1 x 2'", "text: byte 2: found no token id, expected ids between white space"},
        {"tokenize tiny --decode '1,2'", "text: byte 0: found no token id, expected ids between white space"},
        {"tokenize tiny --decode ' -1'", "text: byte 1: found no token id, expected ids between white space"},
        {"tokenize tiny --decode '1.0'", "text: byte 0: found no token id, expected ids between white space"},
        {"tokenize tiny --decode 2147483648",
         "text: byte 0: found no token id, expected ids between white space"},
        {"tokenize tiny --decode '7 99999999999999999999'",
         "text: byte 2: found no token id, expected ids between white space"},
    };
    all_fail(failures, COUNT(failures));
    run("tokenize tiny --decode '1 2 2039'"); /* in the model's vocabulary, but no token */
    fails_with("text: ");
    CHECK(last.size == 0 && strstr(last.err, "2039") != NULL);
    run("tokenize tiny --decode 2147483647");
    fails_with("text: ");
    write_file(FOLDER "ids", "1\0002", 3);
    run("tokenize tiny --decode <ids");
    fails("standard input: byte 0: found no token id, expected ids between white space");
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

/* ==== generate =============================================================================== */

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
        snprintf(want, sizeof want, "%s\n", spell(ids, until(ids, n < 64 ? n : 64, 2000, 2002), " "));
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
             "rm -rf %s && mkdir %s && ln -s ../tiny/model.safetensors ../tiny/tokenizer.json %s && "
             "sed 's/\"eos_token_id\": 2000/\"eos_token_id\": %s/' tiny/config.json >%s/config.json",
             folder, folder, folder, config, folder);
    shell(line);
    succeeds("");
    snprintf(line, sizeof line, FOLDER "%s/generation_config.json", folder);
    if (generation != NULL) write_text(line, generation);
}

/* Stops at the id that comes first, and says it with --ids only. */
static void stops(const int32_t *prompt, size_t T, const int32_t *ids, size_t n, int32_t a, int32_t b)
{
    char want[4096];
    size_t kept = until(ids, n, a, b), shown = kept;
    snprintf(want, sizeof want, "%s\n", spell(ids, kept, " "));
    run("generate eos --ids -n %lu --dtype float32 --tokens %s 2>err2", (unsigned long)n, spell(prompt, T, ","));
    succeeds(want);
    if (kept > 0 && (ids[kept - 1] == a || ids[kept - 1] == b)) shown--;
    run("tokenize tiny --decode '%s'", spell(ids, shown, " "));
    snprintf(want, sizeof want, "%.4000s\n", last.out);
    run("generate eos -n %lu --dtype float32 --tokens %s 2>err2", (unsigned long)n, spell(prompt, T, ","));
    succeeds(want);
}

static void test_eos(const q3_tensors *golden)
{
    size_t T, n;
    char text[256], other[64];
    int32_t *prompt = ids_of(golden, "prompt0.prompt", &T), *ids = ids_of(golden, "prompt0.float32.ids", &n);
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
    CHECKF(last.status == 0 && strncmp(last.err, "prompt: ", 8) == 0 && strchr(last.err, '\n') + 1 == last.err + last.err_size,
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

static void test_generate_bad(void)
{
    static const failure failures[] = {
        {"generate tiny a -n -1", "-n: found -1" FROM_0_TO("1048576")},
        {"generate tiny a -n x", "-n: found x" FROM_0_TO("1048576")},
        {"generate tiny a -n ''", "-n: found " FROM_0_TO("1048576")},
        {"generate tiny a -n 1.0", "-n: found 1.0" FROM_0_TO("1048576")},
        {"generate tiny a -n ' 1'", "-n: found  1" FROM_0_TO("1048576")},
        {"generate tiny a -n 1048577", "-n: found 1048577" FROM_0_TO("1048576")},
        {"generate tiny a -n 99999999999999999999", "-n: found 99999999999999999999" FROM_0_TO("1048576")},
        {"generate tiny a --top-k=-1", "--top-k: found -1" FROM_0_TO("2147483647")},
        {"generate tiny a --top-k 2147483648", "--top-k: found 2147483648" FROM_0_TO("2147483647")},
        {"generate tiny a --seed 18446744073709551616",
         "--seed: found 18446744073709551616" FROM_0_TO("18446744073709551615")},
        {"generate tiny a --seed abc", "--seed: found abc" FROM_0_TO("18446744073709551615")},
        {"generate tiny a --temperature 0", "--temperature: found 0, expected a number above 0"},
        {"generate tiny a --temperature 0.0", "--temperature: found 0.0, expected a number above 0"},
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
        {"generate tiny a --dtype float64", "--dtype: found float64, expected float32, bfloat16 or float16"},
        {"generate tiny a --dtype ''", "--dtype: found , expected float32, bfloat16 or float16"},
        {"generate tiny --tokens ''", "--tokens: found \"\" at place 1, expected ids such as 1,2,3"},
        {"generate tiny --tokens 1,,2", "--tokens: found \"\" at place 2, expected ids such as 1,2,3"},
        {"generate tiny --tokens 1,2,", "--tokens: found \"\" at place 3, expected ids such as 1,2,3"},
        {"generate tiny --tokens '1 2'", "--tokens: found \"1 2\" at place 1, expected ids such as 1,2,3"},
        {"generate tiny --tokens=-1", "--tokens: found \"-1\" at place 1, expected ids such as 1,2,3"},
        {"generate tiny --tokens 1,2147483648",
         "--tokens: found \"2147483648\" at place 2, expected ids such as 1,2,3"},
        {"generate tiny --tokens 1,2040", "token 1: found id 2040, expected 0 to 2039"},
        {"generate tiny --tokens 1 text", "--tokens: found a text too, expected one of the two"},
        {"generate tiny --tokens 1 -", "--tokens: found a text too, expected one of the two"},
        {"generate tiny ''", "tokens: found none, expected at least one"},
        {"generate tiny </dev/null", "tokens: found none, expected at least one"},
        {"generate tiny --tokens 1 -n 1048576",
         "positions: found 1048577 tokens from 0 on, expected all below 1048576"},
    };
    all_fail(failures, COUNT(failures));
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

/* ==== Sampling =============================================================================== */

/* splitmix64, as published by Vigna: a counter and a finaliser. */
static double first_uniform(uint64_t seed)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
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

/* Hugging Face's filters by their definitions, then the first of the falling cumulative probabilities
 * above u. -1 where u lies so close to a boundary that logits of another float32 run may decide otherwise. */
static int32_t sample(const float *logits, size_t V, double temperature, size_t k, double top_p, double u)
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
    /* Top-p keeps what has more than 1 - p of the probability at or below it, and the first always. */
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
    static const struct { const char *options; double temperature; size_t k; double p; } settings[] = {
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
            run("generate tiny --dtype float32 --ids -n 1 %s --seed %llu --tokens %s 2>err2", settings[s].options,
                (unsigned long long)number, spell(prompt, T, ","));
            CHECKF(last.status == 0 && atoi(last.out) == want, "%s: got %s, want %ld", last.line, last.out,
                   (long)want);
        }
    CHECKF(compared * 10 >= tried * 9, "only %lu of %lu draws were clear", (unsigned long)compared,
           (unsigned long)tried);
    free(prompt);
    free(logits);
}

static void test_sampling(const q3_tensors *golden)
{
    static const char *const greedy[] = {"--top-k 1", "--top-k 1 --seed 7", "--top-p 0.0000001",
                                         "--temperature 0.000001 --seed 3", "--top-k 1 --temperature 50"};
    size_t T, n;
    int32_t *prompt = ids_of(golden, "prompt1.prompt", &T), *ids = ids_of(golden, "prompt1.float32.ids", &n);
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

/* ==== dump: the bytes of the file ============================================================ */

/* The tensors in the order of computation: INTERFACE's names and shapes. Letters are sizes of golden/tiny;
 * the last column says what an element is: D the run's dtype. */
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
    {"mlp.gate_proj.output", "TI", 'D'}, {"mlp.up_proj.output", "TI", 'D'}, {"mlp.act_fn.output", "TI", 'D'},
    {"mlp.down_proj.input", "TI", 'D'}, {"mlp.output", "TM", 'D'}, {"output", "TM", 'D'},
};
static const tensor_row head_rows[] = {{"model.norm.output", "TM", 'D'}, {"lm_head.output", "TV", 'D'}};

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
                                      ",\"%s%s\":{\"dtype\":\"%s\",\"shape\":[", prefix, rows[i].name, dtype);
        for (const char *letter = rows[i].shape; *letter != 0; letter++) {
            bytes *= size_of(*letter, h->T);
            h->length += (size_t)snprintf(h->text + h->length, sizeof h->text - h->length, "%s%lu",
                                          letter > rows[i].shape ? "," : "", size_of(*letter, h->T));
        }
        h->length += (size_t)snprintf(h->text + h->length, sizeof h->text - h->length,
                                      "],\"data_offsets\":[%lu,%lu]}", h->at[group], h->at[group] + bytes);
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

/* The first 8 + n bytes of a dump of golden/tiny: metadata first, names in the order of computation, blanks
 * to a multiple of 8. Data has no holes and every tensor starts at a multiple of its element size, since
 * tensors of 8-byte elements come before those of 4 and of 2. */
static void check_layout(const char *file, size_t file_size, const char *config, q3_dtype dtype, size_t T)
{
    static const char *const names[3] = {"float32", "bfloat16", "float16"}, *const types[3] = {"F32", "BF16", "F16"};
    static header h;
    h.dtype = types[dtype];
    h.T = (unsigned long)T;
    h.length = 0;
    header_all(&h);
    h.at[0] = 0;
    h.at[1] = h.sums[0];
    h.at[2] = h.sums[0] + h.sums[1];
    h.length = (size_t)snprintf(h.text, sizeof h.text, "{\"__metadata__\":{\"format\":\"qwen3moe-taps-1\","
                                "\"producer\":\"qwen3moe\",\"dtype\":\"%s\",\"start\":\"0\",\"config\":\"", names[dtype]);
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
    CHECKF(length == h.length, "the header has %lu bytes, expected %lu", (unsigned long)length, (unsigned long)h.length);
    CHECK(file_size == 8 + h.length + bytes);
    if (file_size < 8 + h.length) return;
    for (size_t i = 0; i < h.length; i++) {
        if (file[8 + i] == h.text[i]) continue;
        CHECKF(false, "header, byte %lu: got %.60s, want %.60s", (unsigned long)i, file + 8 + i, h.text + i);
        return;
    }
}

/* ==== dump: the values ======================================================================= */

/* A pass of the library beside a file: whatever the pass shows must be in the file. */
typedef struct comparison {
    const q3_tensors *file;
    size_t T;
    size_t pieces; /* tensors, a row of scores or of probs counting for one */
} comparison;

static void compare_rows(const q3_tap *tap, const q3_entry *entry, uint64_t at, const float *values, size_t count)
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
        compare_rows(tap, entry, 0, tap->data, count);
    } else {
        for (size_t h = 0; h < tap->shape[0]; h++) {
            uint64_t at = (uint64_t)(h * c->T + tap->first) * c->T;
            compare_rows(tap, entry, at, (const float *)tap->data + h * tap->shape[2], tap->shape[2]);
            compare_rows(tap, entry, at + tap->shape[2], zeros, c->T - tap->shape[2]);
        }
    }
}

static void compare_values(q3_model *model, const q3_tensors *file, const int32_t *ids, size_t T, size_t start,
                           q3_dtype dtype)
{
    const q3_config *config = q3_model_config(model);
    q3_run run_of = {dtype, 0, config->num_hidden_layers, start, T, T};
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
    for (size_t t = 0; t < T; t++) {
        int64_t id, position;
        q3_entry_integers(&id, find(file, "input_ids"), t, 1);
        q3_entry_integers(&position, find(file, "position_ids"), t, 1);
        CHECK(id == ids[t] && position == (int64_t)(start + t));
    }
    free(memory);
}

/* The last run printed its totals. */
static void says_totals(const char *path, size_t tensors, size_t T, const char *dtype, unsigned long bytes)
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

static void test_dump_whole(q3_model *model)
{
    static const char *const dtypes[3] = {"float32", "bfloat16", "float16"}, *const chunks[] = {"1", "2", "7", "1048576"};
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
            run("dump --chunk=%s tiny --dtype=%s --tokens=%s -o w/b", chunks[i], dtypes[d], spell(ids, T, ","));
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

/* Against Hugging Face itself, free-running in float32: honest runs lie within 1e-5 of each other (relative
 * L2; measured between releases 1e-6), a tensor in the wrong place about 1 away. */
static void test_dump_golden(void)
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
        CHECK(ours->rank == theirs->rank && memcmp(ours->shape, theirs->shape, ours->rank * sizeof *ours->shape) == 0);
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

static void test_dump_start(q3_model *model)
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

/* ==== dump: --taps, --layers ================================================================= */

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
          "model.layers.1.mlp.act_fn.output model.layers.1.mlp.down_proj.input model.layers.1.mlp.output");
    saves("--taps='*topk*' --taps '*0.mlp.*topk*' --layers 0:2",
          "model.layers.0.mlp.topk_indices.output model.layers.0.mlp.topk_weights.output");
    saves("--taps '**model.norm**.output**'", "model.norm.output");
    saves("--layers 0:1 --taps 'model.*' --taps '*' --taps '*e*b*e*d*'",
          "input_ids position_ids model.embed_tokens.output model.rotary_emb.cos model.rotary_emb.sin "
          "model.layers.0.input_layernorm.output model.layers.0.self_attn.q_proj.output "
          "model.layers.0.self_attn.k_proj.output model.layers.0.self_attn.v_proj.output "
          "model.layers.0.self_attn.q_norm.output model.layers.0.self_attn.k_norm.output "
          "model.layers.0.self_attn.q_rope.output model.layers.0.self_attn.k_rope.output "
          "model.layers.0.self_attn.scores.output model.layers.0.self_attn.probs.output "
          "model.layers.0.self_attn.o_proj.input model.layers.0.self_attn.o_proj.output "
          "model.layers.0.post_attention_layernorm.input model.layers.0.post_attention_layernorm.output "
          "model.layers.0.mlp.gate.output model.layers.0.mlp.router_probs.output "
          "model.layers.0.mlp.topk_indices.output model.layers.0.mlp.topk_weights.output "
          "model.layers.0.mlp.experts.gate_proj.output model.layers.0.mlp.experts.up_proj.output "
          "model.layers.0.mlp.experts.act_fn.output model.layers.0.mlp.experts.down_proj.input "
          "model.layers.0.mlp.experts.down_proj.output model.layers.0.mlp.output model.layers.0.output");
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
        CHECKF(x->dtype == y->dtype && memcmp(x->data, y->data, bytes) == 0, "%s: %s differs", part, x->name);
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
        run("dump tiny -o w/c --layers=4:5 --from=w/b --start 300 --tokens 9,8,7,6,5,4 --dtype %s", dtypes[d]);
        succeeds(NULL);
        CHECK(part_of(FOLDER "w/c", FOLDER "w/whole") == 4 + 25 + 2);
    }
    /* A file of another system may hold the hidden states alone. */
    run("dump tiny -o w/a --tokens 9,8,7 --dtype float32 --layers 0:4 --taps model.layers.3.output");
    succeeds(NULL);
    run("dump tiny -o w/whole --tokens 9,8,7 --dtype float32");
    run("dump tiny -o w/b --layers 4:5 --from w/a --dtype float32");
    succeeds(NULL);
    CHECK(part_of(FOLDER "w/b", FOLDER "w/whole") == 3 + 25 + 2);
    shell("rm w/*");
}

/* ==== dump: errors =========================================================================== */

#define LAYERS ", expected A:B with 0 <= A < B <= 5"
#define BELOW ", expected all below 1048576"

static void test_dump_bad(void)
{
    static const failure failures[] = {
        {"dump tiny --tokens 1", "-o: found none, expected the file to write"},
        {"dump tiny -o - --tokens 1", "-o: found -, expected a file (it is not written in order)"},
        {"dump tiny -o w/x", "tokens: found none, expected --tokens 1,2,3 or --prompt TEXT"},
        {"dump tiny -o w/x --prompt ''", "tokens: found none, expected at least one"},
        {"dump tiny -o w/x --prompt a --tokens 1", "--tokens: found a text too, expected one of the two"},
        {"dump tiny -o w/x --tokens 1,2040", "token 1: found id 2040, expected 0 to 2039"},
        {"dump tiny -o w/x --tokens 1 --taps 'nothing*'",
         "--taps: found nothing*, expected a pattern that fits a tap"},
        {"dump tiny -o w/x --tokens 1 --taps '*' --taps ''",
         "--taps: found , expected a pattern that fits a tap"},
        {"dump tiny -o w/x --tokens 1 --taps lm_head", "--taps: found lm_head, expected a pattern that fits a tap"},
        {"dump tiny -o w/x --tokens 1 --taps 'lm_head.output?'",
         "--taps: found lm_head.output?, expected a pattern that fits a tap"},
        {"dump tiny -o w/x --tokens 1 --layers 0:4 --taps lm_head.output",
         "--taps: found lm_head.output, expected a pattern that fits a tap"},
        {"dump tiny -o w/x --tokens 1 --start 1048576",
         "--start: found 1048576, expected an integer from 0 to 1048575"},
        {"dump tiny -o w/x --tokens 1,2 --start 1048575",
         "positions: found 2 tokens from 1048575 on" BELOW},
        {"dump tiny -o w/x --tokens 1 --chunk 0", "--chunk: found 0, expected an integer from 1 to 1048576"},
        {"dump tiny -o w/x --tokens 1 --layers 5", "--layers: found 5" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers 0:6", "--layers: found 0:6" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers 2:2", "--layers: found 2:2" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers 3:2", "--layers: found 3:2" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers :2", "--layers: found :2" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers 0:2:3", "--layers: found 0:2:3" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers=-1:2", "--layers: found -1:2" LAYERS},
        {"dump tiny -o w/x --tokens 1 --layers 1:2",
         "--from: found none, expected a file with the output of layer 0"},
        {"dump tiny -o w/x --tokens 1 --from w/from --layers 0:2",
         "--from: found it, expected none unless --layers starts above 0"},
        {"dump tiny -o w/x --from w/from --layers 2:3 --dtype float32",
         "w/from: model.layers.1.output: found none, expected it"},
        {"dump tiny -o w/x --from w/from --layers 1:3 --dtype bfloat16",
         "w/from: metadata dtype: found float32, expected bfloat16"},
        {"dump tiny -o w/x --from w/from --layers 1:3", "w/from: metadata dtype: found float32, expected bfloat16"},
        {"dump tiny -o w/x --from w/from --layers 1:3 --dtype float32 --tokens 1,2",
         "w/from: model.layers.0.output: found 3 rows, expected 2, one a token"},
        {"dump tiny -o w/x --from w/from --layers 1:3 --dtype float32 --start 1048574",
         "positions: found 3 tokens from 1048574 on" BELOW},
    };
    run("dump tiny -o w/from --tokens 1,2,3 --dtype float32 --layers 0:1");
    succeeds(NULL);
    all_fail(failures, COUNT(failures));
    run("dump eos -o w/x --from w/nowhere --layers 1:3");
    fails_with("w/nowhere: ");
    run("dump tiny -o w/x --from tiny/config.json --layers 1:3");
    fails_with("tiny/config.json: ");
    shell("mkdir other && ln -s ../tiny/model.safetensors other && "
          "sed 's/\"rms_norm_eps\": 1e-06/\"rms_norm_eps\": 1e-05/' tiny/config.json >other/config.json");
    run("dump other -o w/x --from w/from --layers 1:3 --dtype float32");
    fails_with("qwen3moe: w/from: metadata config: found {");
    holds("from");
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

/* ==== score ================================================================================== */

/* -log softmax of Hugging Face's logits at the next token. */
static double nll_of(const float *logits, size_t V, int32_t id)
{
    double max = (double)logits[0], sum = 0.0;
    for (size_t i = 1; i < V; i++) max = fmax(max, (double)logits[i]);
    for (size_t i = 0; i < V; i++) sum += exp((double)logits[i] - max);
    return log(sum) + max - (double)logits[id];
}

/* Writes FOLDER text so that it has the first tokens of ids; returns how many: the cut may fall inside a
 * word that is split in another way when it stands alone. */
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
        CHECK(sscanf(line, "{\"position\":%lu,\"id\":%ld,\"nll\":%lf}%n", &position, &id, &nll, &used) == 3);
        if (lines + 1 >= T || line + used != end) break;
        CHECK(position == lines + 1 && id == ids[lines + 1]);
        /* Two logits' errors; float32 runs lie within 1e-5 of each other, logits reach a few tens. */
        want = nll_of(logits + lines * V, V, ids[lines + 1]);
        CHECKF(fabs(nll - want) <= 1e-3, "token %lu: %.17g, Hugging Face %.17g", position, nll, want);
        sum += nll;
        theirs += want;
    }
    CHECKF(lines + 1 == T, "%lu lines", (unsigned long)lines);
    run("score tiny - --dtype=float32 <text");
    succeeds(NULL);
    CHECK(sscanf(last.out, "tokens %lu\nmean %lf\nperplexity %lf\n", &tokens, &mean, &perplexity) == 3);
    CHECK(tokens + 1 == T && last.out[last.size - 1] == '\n');
    CHECKF(fabs(mean * (double)tokens - sum) <= 1e-12 * sum, "mean %.17g of %lu, sum %.17g", mean, tokens, sum);
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
        {"score tiny", "score: found no FILE, expected a text file, or - for standard input"},
        {"score tiny empty", "tokens: found none, expected at least one"},
        {"score tiny one", "one: found 1 token, expected at least 2"},
        {"score tiny - <empty", "tokens: found none, expected at least one"},
        {"score tiny text --dtype int8", "--dtype: found int8, expected float32, bfloat16 or float16"},
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
    q3_model *model;
    q3_error error;
    q3_dtype dtype = Q3_F32;
    char path[1024];
    CHECK(argc == 3 && strchr(argv[1], '\'') == NULL && strchr(argv[2], '\'') == NULL);
    if (argc != 3) return t_done("test_command");
    command_path = argv[1];
    golden_path = argv[2];
    if (system("rm -rf command.tmp && mkdir command.tmp command.tmp/w command.tmp/words") != 0) exit(1);
    shell("cp -R \"$G/tiny\" tiny && cp tiny/tokenizer.json words && printf 'In the beginning' >beginning");
    succeeds("");
    snprintf(path, sizeof path, "%s/tiny", golden_path);
    if (q3_model_open(&model, path, &error) != Q3_OK ||
        q3_model_load(model, &dtype, 0, q3_model_config(model)->num_hidden_layers, &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    q3_tensors *golden = open_golden("generate");
    test_usage();
    test_help();
    test_info(model);
    test_tokenize_good(golden);
    test_tokenize_lines(golden);
    test_tokenize_bad();
    test_greedy(golden);
    test_eos(golden);
    test_generate_rest(golden);
    test_generate_bad();
    test_draws(golden);
    test_sampling(golden);
    test_dump_whole(model);
    test_dump_golden();
    test_dump_start(model);
    test_taps();
    test_layers();
    test_dump_bad();
    test_unwritable();
    test_score();
    test_score_bad();
    test_full_output();
    q3_tensors_close(golden);
    q3_model_close(model);
    free(last.out);
    free(last.err);
    return t_done("test_command");
}
