/* main.c - the `qwen3moe` command: arguments, help, and the verbs that only print. */
#include "command/command.h"

#include "host/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

/* Called by Q3_CHECK in this build. */
void q3_abort(const char *file, int line, const char *text)
{
    fprintf(stderr, "qwen3moe: %s:%d: broken precondition: %s\n", file, line, text);
    abort();
}

/* ==== Options ================================================================================= */

enum {
    INFO = 1, GENERATE = 2, TOKENIZE = 4, DUMP = 8, SCORE = 16, SELFTEST = 32, CHECK = 64,
    DIFF = 128,
    REPORT = 256, REPORTS = CHECK | DIFF | REPORT, ALL = 511
};

typedef struct option_row {
    const char *name;
    const char *value; /* what help calls the value; NULL: takes none */
    unsigned verbs;
    const char *help;
} option_row;

static const option_row options[OPTION_COUNT] = {
    [OPTION_ACCUMULATE] = {"--accumulate", "bf16|f16|tf32", CHECK,
                           "the other implementation's sums read and give numbers of this "
                           "precision"},
    [OPTION_ALL] = {"--all", NULL, REPORTS, "a line for every tensor"},
    [OPTION_CHAT] = {"--chat", "FILE", TOKENIZE | GENERATE,
                     "a JSON list of {\"role\",\"content\"} through the model's chat template"},
    [OPTION_CHUNK] = {"--chunk", "N", DUMP,
                      "tokens of the prompt computed together (32); no bit depends on it"},
    [OPTION_DECODE] = {"--decode", NULL, TOKENIZE, "ids on standard input to text: the raw bytes"},
    [OPTION_DTYPE] = {"--dtype", "float32|bfloat16|float16", GENERATE | DUMP | SCORE | CHECK,
                      "of the run (check: what the file says; the config's dtype, else the "
                      "weights')"},
    [OPTION_FREE] = {"--free", NULL, CHECK,
                     "go on from our own values, not from the other implementation's"},
    [OPTION_FROM] = {"--from", "FILE", DUMP,
                     "a dump that holds the output of layer A-1, for --layers A:B"},
    [OPTION_HTML] = {"--html", "FILE", REPORTS, "write the report as one page of HTML too"},
    [OPTION_IDS] = {"--ids", NULL, GENERATE, "print the new ids on one line instead of text"},
    [OPTION_JSON] = {"--json", NULL, INFO, "print one JSON object"},
    [OPTION_JSON_FILE] = {"--json", "FILE", REPORTS,
                          "write the report as lines of JSON too, for report"},
    [OPTION_JSONL] = {"--jsonl", NULL, TOKENIZE | SCORE,
                      "tokenize: each input line is a JSON string; score: one object a token"},
    [OPTION_KV] = {"--kv", "float16|bfloat16", CHECK,
                   "the other implementation rounds keys and values to this before attention"},
    [OPTION_LAYERS] = {"--layers", "A:B", DUMP | CHECK, "run layers A to B-1 only"},
    [OPTION_N] = {"-n", "N", GENERATE, "new tokens at most (64)"},
    [OPTION_NO_GENERATION_PROMPT] = {"--no-generation-prompt", NULL, TOKENIZE | GENERATE,
                                     "do not open the assistant's answer behind the messages"},
    [OPTION_NO_THINKING] = {"--no-thinking", NULL, TOKENIZE | GENERATE, "enable_thinking false"},
    [OPTION_OUTPUT] = {"-o", "FILE", DUMP, "the safetensors file to write"},
    [OPTION_PROMPT] = {"--prompt", "TEXT", DUMP | CHECK, "the text to run"},
    [OPTION_SEED] = {"--seed", "N", GENERATE, "of the generator (0); turns sampling on"},
    [OPTION_START] = {"--start", "P", DUMP, "position of the first token (0)"},
    [OPTION_STRICT] = {"--strict", NULL, CHECK,
                       "a rounding point that lies elsewhere counts as a difference"},
    [OPTION_TAPS] = {"--taps", "GLOB", DUMP, "save only the taps that fit; may be repeated"},
    [OPTION_TEMPERATURE] = {"--temperature", "X", GENERATE,
                            "divide the logits by X (1); turns sampling on"},
    [OPTION_TEXT] = {"--text", NULL, TOKENIZE, "with --chat: print the rendered text itself"},
    [OPTION_TOKENS] = {"--tokens", "1,2,3", GENERATE | DUMP | CHECK, "token ids instead of text"},
    [OPTION_TOP_K] = {"--top-k", "N", GENERATE,
                      "keep the N likeliest tokens (0: all); turns sampling on"},
    [OPTION_TOP_P] = {"--top-p", "X", GENERATE,
                      "keep the likeliest tokens of mass X (1); turns sampling on"},
    [OPTION_USER] = {"--user", NULL, GENERATE, "wrap PROMPT as one user turn of the chat template"},
    [OPTION_HELP] = {"--help", NULL, ALL, "print this"},
};

typedef struct verb_row {
    const char *name;
    unsigned bit;
    const char *first, *operand; /* what help calls the operands; NULL: takes none */
    const char *help;
    q3_status (*run)(const command_line *command, q3_error *error);
} verb_row;

static const verb_row verbs[] = {
    {"info", INFO, "MODEL", NULL, "print the module tree and the counts; needs config.json alone",
     verb_info},
    {"generate", GENERATE, "MODEL", "[PROMPT]", "continue a prompt (standard input if not given)",
     verb_generate},
    {"tokenize", TOKENIZE, "MODEL", "[TEXT]",
     "text to token ids, or back (standard input if not given)", verb_tokenize},
    {"dump", DUMP, "MODEL", NULL, "run tokens and save every intermediate tensor", verb_dump},
    {"check", CHECK, "MODEL", "BACKEND.safetensors", "judge another implementation's tensors",
     verb_check},
    {"diff", DIFF, "A.safetensors", "B.safetensors", "compare two files of tensors; needs no model",
     verb_diff},
    {"report", REPORT, "FILE.jsonl", "...", "merge reports that check wrote with --json",
     verb_report},
    {"score", SCORE, "MODEL", "FILE", "perplexity of a text", verb_score},
    {"selftest", SELFTEST, NULL, NULL,
     "check this compiler's and processor's arithmetic; takes no MODEL", verb_selftest},
};

#define VERB_COUNT (sizeof verbs / sizeof verbs[0])

static void print_help(const verb_row *verb)
{
    if (verb == NULL) {
        puts("usage: qwen3moe VERB MODEL ... [options]\n\n"
             "MODEL is a Hugging Face model folder of a Qwen3-MoE.\n");
        for (size_t i = 0; i < VERB_COUNT; i++)
            printf("  %-10s %s\n", verbs[i].name, verbs[i].help);
        puts("\nqwen3moe VERB --help prints a verb's options, qwen3moe --version the version.\n"
             "Exit status: 0 done or agrees, 1 differs, 2 bad usage, bad input or nothing to "
             "judge.");
        return;
    }
    printf("usage: qwen3moe %s%s%s%s%s [options]\n\n%s\n\n", verb->name,
           verb->first != NULL ? " " : "", verb->first != NULL ? verb->first : "",
           verb->operand != NULL ? " " : "", verb->operand != NULL ? verb->operand : "",
           verb->help);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if ((options[i].verbs & verb->bit) == 0) continue;
        printf("  %s%s%s\n      %s\n", options[i].name, options[i].value != NULL ? " " : "",
               options[i].value != NULL ? options[i].value : "", options[i].help);
    }
}

/* The verb's option that the argument names; *value is what stands behind = in it, or NULL. */
static size_t find_option(const verb_row *verb, const char *argument, const char **value)
{
    size_t length = strcspn(argument, "=");
    bool joined = strncmp(argument, "--", 2) == 0 && argument[length] == '=';
    *value = joined ? argument + length + 1 : NULL;
    if (*value == NULL) length = strlen(argument);
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if ((options[i].verbs & verb->bit) != 0 && strlen(options[i].name) == length &&
            memcmp(options[i].name, argument, length) == 0)
            return i;
    return OPTION_COUNT;
}

static q3_status take_option(command_line *command, const verb_row *verb, int argc, char **argv,
                             int *at, q3_error *error)
{
    const char *argument = argv[*at], *value;
    size_t i = find_option(verb, argument, &value);
    if (i == OPTION_COUNT)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: found %.60s, expected an option of it (--help lists them)", verb->name,
                       argument);
    if (options[i].value == NULL && value != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found a value, expected none", options[i].name);
    if (options[i].value != NULL && value == NULL) {
        if (*at + 1 >= argc)
            return q3_fail(error, Q3_ERROR_INPUT, "%s: found nothing behind it, expected %s",
                           options[i].name, options[i].value);
        value = argv[++*at];
    }
    if (i == OPTION_TAPS)
        command->taps[command->tap_count++] = value;
    else if (command->value[i] != NULL && i != OPTION_HELP)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found it twice, expected it once",
                       options[i].name);
    command->value[i] = value != NULL ? value : "";
    return Q3_OK;
}

static q3_status take_operand(command_line *command, const verb_row *verb, const char *text,
                              q3_error *error)
{
    size_t most = verb->bit == REPORT ? SIZE_MAX : verb->operand != NULL ? 2 : 1;
    if (verb->first == NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.60s, expected no operand", verb->name,
                       text);
    if (command->operand_count == most)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.60s too, expected %s%s%s", verb->name,
                       text, verb->first, verb->operand != NULL ? " " : " alone",
                       verb->operand != NULL ? verb->operand : "");
    if (command->operand_count == 0) command->model = text;
    if (command->operand_count == 1) command->operand = text;
    command->operands[command->operand_count++] = text;
    return Q3_OK;
}

/* argv[2..] of a verb. Options may stand anywhere before "--"; "-" is an operand. */
static q3_status take_apart(command_line *command, const verb_row *verb, int argc, char **argv,
                            q3_error *error)
{
    bool options_end = false;
    for (int i = 2; i < argc; i++) {
        q3_status status = Q3_OK;
        if (!options_end && strcmp(argv[i], "--") == 0)
            options_end = true;
        else if (!options_end && argv[i][0] == '-' && argv[i][1] != 0)
            status = take_option(command, verb, argc, argv, &i, error);
        else
            status = take_operand(command, verb, argv[i], error);
        if (status != Q3_OK) return status;
    }
    if (command->model == NULL && command->value[OPTION_HELP] == NULL && verb->first != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found no %s, expected a %s", verb->name,
                       verb->first, strcmp(verb->first, "MODEL") == 0 ? "model folder" : "file");
    return Q3_OK;
}

/* ==== Info ==================================================================================== */

q3_status verb_info(const command_line *command, q3_error *error)
{
    q3_model *model;
    q3_counts counts;
    q3_status status = q3_model_open(&model, command->model, error);
    if (status != Q3_OK) return status;
    const q3_config *config = q3_model_config(model);
    q3_dtype dtype = q3_model_dtype(model);
    if (dtype == Q3_AUTO) dtype = Q3_F32; /* what transformers 4.x takes */
    unsigned long long size = dtype == Q3_F32 ? 4 : 2;
    char *tree = q3_module_tree(config);
    if (tree == NULL)
        status = q3_fail(error, Q3_ERROR_MEMORY, "no memory");
    else if (!q3_count(&counts, config))
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "%s: found sizes whose product is above 2^61, expected less",
                         command->model);
    if (status == Q3_OK) {
        unsigned long long parameters = counts.parameters, active = counts.active_per_token;
        unsigned long long cache = counts.key_value_elements_per_token * size;
        if (command->value[OPTION_JSON] == NULL)
            printf("%s\nparameters %llu\nactive per token %llu\nweights %s %llu\n"
                   "key/value per token %llu\n",
                   tree, parameters, active, q3_dtype_name(dtype), parameters * size, cache);
        else
            printf("{\"config\":%s,\"parameters\":%llu,\"active_per_token\":%llu,"
                   "\"weights_dtype\":\"%s\",\"weights_bytes\":%llu,"
                   "\"key_value_bytes_per_token\":%llu}\n",
                   q3_model_config_json(model), parameters, active, q3_dtype_name(dtype),
                   parameters * size,
                   cache);
    }
    free(tree);
    q3_model_close(model);
    return status;
}

/* ==== Tokenize ================================================================================ */

static q3_status print_ids(const q3_tokenizer *tokenizer, const char *name, size_t line,
                           const uint8_t *text, size_t length, q3_error *error)
{
    int32_t *ids;
    size_t count;
    q3_error inner;
    q3_status status = q3_tokenizer_encode(tokenizer, text, length, &ids, &count, &inner);
    if (status != Q3_OK && line > 0)
        return q3_fail(error, status, "%s: line %zu: %.400s", name, line, inner.text);
    if (status != Q3_OK) return q3_fail(error, status, "%s: %.400s", name, inner.text);
    for (size_t i = 0; i < count; i++) printf("%s%ld", i > 0 ? " " : "", (long)ids[i]);
    putchar('\n');
    free(ids);
    return Q3_OK;
}

/* Each line a JSON string, LF or CRLF at its end; a last line without one counts too. */
static q3_status tokenize_lines(const q3_tokenizer *tokenizer, const char *name, uint8_t *text,
                                size_t length, q3_error *error)
{
    q3_status status = Q3_OK;
    for (size_t at = 0, line = 1; at < length && status == Q3_OK; line++) {
        const uint8_t *end = memchr(text + at, '\n', length - at);
        size_t n = end != NULL ? (size_t)(end - (text + at)) : length - at;
        q3_json json;
        q3_error inner;
        status = q3_json_parse(&json, "line", text + at, n, &inner);
        if (status != Q3_OK) {
            q3_fail(error, status, "%s: line %zu: %.400s", name, line, inner.text);
        } else if (q3_json_type_of(&json, 0) != Q3_JSON_STRING) {
            status = q3_fail(error, Q3_ERROR_INPUT,
                             "%s: line %zu: found another JSON value, expected a string", name,
                             line);
            q3_json_free(&json);
        } else {
            uint8_t *bytes = malloc(n + 1);
            if (bytes == NULL)
                status = q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu bytes", n);
            else
                status = print_ids(tokenizer, name, line, bytes, q3_json_string(&json, 0, bytes),
                                   error);
            free(bytes);
            q3_json_free(&json);
        }
        at += n + 1;
    }
    return status;
}

/* Ids between white space, to bytes. */
static q3_status decode_ids(const q3_tokenizer *tokenizer, const char *name, const uint8_t *text,
                            size_t length, q3_error *error)
{
    int32_t *ids = malloc((length / 2 + 1) * sizeof *ids);
    size_t count = 0, size;
    uint8_t *bytes;
    if (ids == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for the ids");
    for (size_t at = 0; at < length;) {
        if (strchr(" \t\r\n\v\f", text[at]) != NULL && text[at] != 0) {
            at++;
            continue;
        }
        int64_t id = 0;
        size_t begin = at;
        for (; at < length && text[at] >= '0' && text[at] <= '9' && id <= INT32_MAX; at++)
            id = id * 10 + (text[at] - '0');
        if (at == begin || id > INT32_MAX ||
            (at < length && (text[at] == 0 || strchr(" \t\r\n\v\f", text[at]) == NULL))) {
            free(ids);
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: byte %zu: found no token id, expected ids between white space",
                           name, begin);
        }
        ids[count++] = (int32_t)id;
    }
    q3_error inner;
    q3_status status = q3_tokenizer_decode(tokenizer, ids, count, &bytes, &size, &inner);
    free(ids);
    if (status != Q3_OK) return q3_fail(error, status, "%s: %.400s", name, inner.text);
    fwrite(bytes, 1, size, stdout);
    free(bytes);
    return Q3_OK;
}

/* What tokenize works on: the operand, standard input, or the rendered --chat. */
static q3_status read_input(const command_line *command, const char **name, uint8_t **bytes,
                            size_t *length, q3_error *error)
{
    const char *text = command->operand;
    *name = "standard input";
    if (command->value[OPTION_CHAT] != NULL) {
        *name = command->value[OPTION_CHAT];
        return render_chat(command, NULL, 0, bytes, length, error);
    }
    if (text == NULL || strcmp(text, "-") == 0) return read_whole("-", bytes, length, error);
    *name = "text";
    *length = strlen(text);
    *bytes = malloc(*length + 1);
    if (*bytes == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu bytes", *length);
    memcpy(*bytes, text, *length + 1);
    return Q3_OK;
}

static q3_status check_tokenize(const command_line *command, q3_error *error)
{
    bool chat = command->value[OPTION_CHAT] != NULL;
    int ways =
        chat + (command->value[OPTION_DECODE] != NULL) + (command->value[OPTION_JSONL] != NULL);
    if (ways > 1)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "tokenize: found %d of --chat, --decode and --jsonl, expected one", ways);
    if (chat && command->operand != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "--chat: found a text too, expected one of the two");
    return check_chat_options(command, error);
}

q3_status verb_tokenize(const command_line *command, q3_error *error)
{
    q3_tokenizer *tokenizer = NULL;
    uint8_t *bytes = NULL;
    const char *name;
    size_t length = 0;
    bool rendered = command->value[OPTION_TEXT] != NULL;
    q3_status status = check_tokenize(command, error);
    if (status == Q3_OK && !rendered) status = open_tokenizer(&tokenizer, command, error);
    if (status == Q3_OK) status = read_input(command, &name, &bytes, &length, error);
    if (status == Q3_OK) {
        if (rendered)
            fwrite(bytes, 1, length, stdout);
        else if (command->value[OPTION_DECODE] != NULL)
            status = decode_ids(tokenizer, name, bytes, length, error);
        else if (command->value[OPTION_JSONL] != NULL)
            status = tokenize_lines(tokenizer, name, bytes, length, error);
        else
            status = print_ids(tokenizer, name, 0, bytes, length, error);
    }
    free(bytes);
    q3_tokenizer_free(tokenizer);
    return status;
}

/* ==== Main ==================================================================================== */

/* What was printed reached its place, or an error says so. */
static int finish(q3_status status, q3_error *error)
{
    if ((status == Q3_OK || status == VERB_DIFFERS) && (fflush(stdout) != 0 || ferror(stdout)))
        status = q3_fail(error, Q3_ERROR_FILE, "standard output: cannot write");
    if (status == Q3_OK) return 0;
    if (status == VERB_DIFFERS) return 1;
    fflush(stdout);
    fprintf(stderr, "qwen3moe: %s\n", error->text);
    return 2;
}

int main(int argc, char **argv)
{
    q3_error error = {""};
    const verb_row *verb = NULL;
#ifdef _WIN32
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("qwen3moe %s\n", q3_version());
        return finish(Q3_OK, &error);
    }
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        print_help(NULL);
        return finish(Q3_OK, &error);
    }
    for (size_t i = 0; argc > 1 && i < VERB_COUNT; i++)
        if (strcmp(argv[1], verbs[i].name) == 0) verb = &verbs[i];
    if (verb == NULL)
        return finish(q3_fail(&error, Q3_ERROR_INPUT,
                              "found %.60s, expected info, generate, tokenize, dump, check, diff, "
                              "report, score or selftest (--help)",
                              argc > 1 ? argv[1] : "no verb"), &error);
    command_line command = {0};
    command.taps = calloc((size_t)argc, sizeof *command.taps);
    command.operands = calloc((size_t)argc, sizeof *command.operands);
    if (command.taps == NULL || command.operands == NULL)
        return finish(q3_fail(&error, Q3_ERROR_MEMORY, "no memory"), &error);
    q3_status status = take_apart(&command, verb, argc, argv, &error);
    if (status == Q3_OK && command.value[OPTION_HELP] != NULL)
        print_help(verb);
    else if (status == Q3_OK)
        status = verb->run(&command, &error);
    free(command.taps);
    free(command.operands);
    return finish(status, &error);
}
