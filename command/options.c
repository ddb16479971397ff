/* SPDX-License-Identifier: MIT */
/* options.c - the command line: the table of options, the table of verbs, help, taking it apart. */
#include "command/command.h"

#include "host/json.h"

#include <stdlib.h>
#include <string.h>

/* ==== The tables ============================================================================== */

/* Bits of the verbs. */
enum {
    INFO = 1, GENERATE = 2, TOKENIZE = 4, DUMP = 8, SCORE = 16, SELFTEST = 32, CHECK = 64,
    DIFF = 128,
    REPORT = 256, REPORTS = CHECK | DIFF | REPORT, TAPS = 512, ALL = 1023
};

typedef struct option_row {
    const char *name;
    const char *value; /* what help calls the value; NULL: takes none */
    unsigned verbs;
    const char *help;
} option_row;

static const option_row options[OPTION_COUNT] = {
    [OPTION_ACCUMULATE] = {"--accumulate", "bf16|f16|tf32|bf16-sums|f16-sums|fp8|q8", CHECK,
                           "the other implementation's sums read and give numbers of this "
                           "precision (fp8, q8: quantised activations)"},
    [OPTION_ALL] = {"--all", NULL, REPORTS, "a line for every tensor"},
    [OPTION_CHAT] = {"--chat", "FILE", TOKENIZE | GENERATE,
                     "a JSON list of {\"role\",\"content\"} through the model's chat template"},
    [OPTION_CHUNK] = {"--chunk", "N", DUMP,
                      "tokens of the prompt computed together (512); no bit depends on it"},
    [OPTION_DECODE] = {"--decode", NULL, TOKENIZE, "ids on standard input to text: the raw bytes"},
    [OPTION_DTYPE] = {"--dtype", "float32|bfloat16|float16", GENERATE | DUMP | SCORE | CHECK,
                      "of the run (check: what the file says or shows; the config's dtype, else "
                      "the weights')"},
    [OPTION_FREE] = {"--free", NULL, CHECK,
                     "go on from our own values, not from the other implementation's"},
    [OPTION_FROM] = {"--from", "FILE", DUMP,
                     "a dump that holds the output of layer A-1, for --layers A:B"},
    [OPTION_HTML] = {"--html", "FILE", REPORTS, "write the report as one page of HTML too"},
    [OPTION_IDS] = {"--ids", NULL, GENERATE, "print the new ids on one line instead of text"},
    [OPTION_JSON] = {"--json", NULL, INFO | TAPS, "print one JSON object"},
    [OPTION_JSON_FILE] = {"--json", "FILE", REPORTS,
                          "write the report as lines of JSON too, for report"},
    [OPTION_JSONL] = {"--jsonl", NULL, TOKENIZE | SCORE,
                      "tokenize: each input line is a JSON string; score: one object a token"},
    [OPTION_JUNIT] = {"--junit", "FILE", REPORTS,
                      "write the report as JUnit's XML too, a test case for each tap"},
    [OPTION_KV] = {"--kv", "float16|bfloat16", CHECK,
                   "the other implementation rounds keys and values to this before attention"},
    [OPTION_LAYER] = {"--layer", "N", TAPS, "the taps of layer N alone, under its number"},
    [OPTION_LAYERS] = {"--layers", "A:B", DUMP | CHECK, "run layers A to B-1 only"},
    [OPTION_N] = {"-n", "N", GENERATE, "new tokens at most (64)"},
    [OPTION_NO_GENERATION_PROMPT] = {"--no-generation-prompt", NULL, TOKENIZE | GENERATE,
                                     "do not open the assistant's answer behind the messages"},
    [OPTION_NO_THINKING] = {"--no-thinking", NULL, TOKENIZE | GENERATE, "enable_thinking false"},
    [OPTION_OUTPUT] = {"-o", "FILE", DUMP, "the safetensors file to write"},
    [OPTION_PROMPT] = {"--prompt", "TEXT", DUMP | CHECK, "the text to run"},
    [OPTION_REQUIRE] = {"--require", "GLOB", CHECK,
                        "where a tap that fits is not judged, nothing agrees; may be repeated"},
    [OPTION_RESUME] = {"--resume", NULL, DUMP,
                       "keep what is done in FILE.part, layer by layer, and go on with what is "
                       "there"},
    [OPTION_ROUTER] = {"--router", "float16|bfloat16", CHECK,
                       "the other implementation rounds the router's probabilities to this before "
                       "it chooses"},
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

struct verb_row {
    const char *name;
    unsigned bit;
    const char *first, *operand; /* what help calls the operands; NULL: takes none */
    const char *help;
    q3_status (*run)(const command_line *command, q3_error *error);
};

static const verb_row verbs[] = {
    {"info", INFO, "MODEL", NULL, "print the module tree and the counts; needs config.json alone",
     verb_info},
    {"taps", TAPS, "MODEL", NULL,
     "print every tensor that can be judged, and what other systems call it; needs config.json "
     "alone", verb_taps},
    {"generate", GENERATE, "MODEL", "[PROMPT]", "continue a prompt (standard input if not given)",
     verb_generate},
    {"tokenize", TOKENIZE, "MODEL", "[TEXT]",
     "text to token ids, or back (standard input if not given)", verb_tokenize},
    {"dump", DUMP, "MODEL", NULL, "run tokens and save every intermediate tensor", verb_dump},
    {"check", CHECK, "MODEL", "BACKEND.safetensors [B.safetensors]",
     "judge another implementation's tensors, or two side by side", verb_check},
    {"diff", DIFF, "A.safetensors", "B.safetensors", "compare two files of tensors; needs no model",
     verb_diff},
    {"report", REPORT, "FILE.jsonl", "...", "merge reports that check wrote with --json",
     verb_report},
    {"score", SCORE, "MODEL", "FILE", "perplexity of a text", verb_score},
    {"selftest", SELFTEST, NULL, NULL,
     "check this compiler's and processor's arithmetic; takes no MODEL", verb_selftest},
};

#define VERB_COUNT (sizeof verbs / sizeof verbs[0])

/* ==== Help ==================================================================================== */

void print_help(const verb_row *verb)
{
    if (verb == NULL) {
        puts("usage: qwen3moe VERB MODEL ... [options]\n\n"
             "MODEL is a Hugging Face model folder of a Qwen3-MoE, or llama.cpp's GGUF file.\n");
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

const char *option_name(option_id option)
{
    return options[option].name;
}

/* ==== Taking it apart ========================================================================= */

const verb_row *find_verb(const char *name, q3_error *error)
{
    q3_text known = {0};
    for (size_t i = 0; i < VERB_COUNT && name != NULL; i++)
        if (strcmp(name, verbs[i].name) == 0) return &verbs[i];
    for (size_t i = 0; i < VERB_COUNT; i++) {
        q3_text_add(&known, i == 0 ? "" : i + 1 < VERB_COUNT ? ", " : " and ");
        q3_text_add(&known, verbs[i].name);
    }
    q3_fail(error, Q3_ERROR_INPUT, "%s%.60s%s; there are %s (--help)",
            name != NULL ? "unknown verb '" : "no verb is given", name != NULL ? name : "",
            name != NULL ? "'" : "", known.data != NULL ? known.data : "others");
    free(known.data);
    return NULL;
}

q3_status run_verb(const verb_row *verb, const command_line *command, q3_error *error)
{
    return verb->run(command, error);
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

/* argv[*at] is an option; *at becomes the place of its value where that stands apart. */
static q3_status take_option(command_line *command, const verb_row *verb, int argc, char **argv,
                             int *at, q3_error *error)
{
    const char *argument = argv[*at], *value;
    size_t i = find_option(verb, argument, &value);
    if (i == OPTION_COUNT)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: unknown option '%.60s' (--help lists them)",
                       verb->name, argument);
    if (options[i].value == NULL && value != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "%s takes no value", options[i].name);
    if (options[i].value != NULL && value == NULL) {
        if (*at + 1 >= argc)
            return q3_fail(error, Q3_ERROR_INPUT, "%s needs a value: %s", options[i].name,
                           options[i].value);
        value = argv[++*at];
    }
    if (i == OPTION_TAPS)
        command->taps[command->tap_count++] = value;
    else if (i == OPTION_REQUIRE)
        command->require[command->require_count++] = value;
    else if (command->value[i] != NULL && i != OPTION_HELP)
        return q3_fail(error, Q3_ERROR_INPUT, "%s is given twice", options[i].name);
    command->value[i] = value != NULL ? value : "";
    return Q3_OK;
}

/* The model or file, then what stands behind it; report takes any number. */
static q3_status take_operand(command_line *command, const verb_row *verb, const char *text,
                              q3_error *error)
{
    size_t most = verb->first == NULL ? 0 : verb->operand == NULL ? 1 : 2;
    if (verb->bit == CHECK) most = 3;
    if (verb->bit == REPORT) most = SIZE_MAX;
    if (command->operand_count == most)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: unexpected argument '%.60s'", verb->name, text);
    if (command->operand_count == 0) command->model = text;
    if (command->operand_count == 1) command->operand = text;
    command->operands[command->operand_count++] = text;
    return Q3_OK;
}

/* The command line in one text: an argument that is more than letters, digits and a few signs
 * stands in single quotes. NULL: no memory. */
static char *join_arguments(int argc, char **argv)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                "_-+=./,:@%";
    q3_text text = {0};
    for (int i = 0; i < argc; i++) {
        bool quoted = argv[i][0] == 0 || argv[i][strspn(argv[i], plain)] != 0;
        q3_text_add(&text, i > 0 ? " " : "");
        q3_text_add(&text, quoted ? "'" : "");
        for (const char *p = argv[i]; *p != 0; p++) {
            const char one[2] = {*p, 0};
            q3_text_add(&text, *p == '\'' ? "'\\''" : one);
        }
        q3_text_add(&text, quoted ? "'" : "");
    }
    return text.data;
}

q3_status read_command_line(command_line *command, const verb_row *verb, int argc, char **argv,
                            q3_error *error)
{
    bool options_end = false;
    memset(command, 0, sizeof *command);
    command->taps = calloc((size_t)argc, sizeof *command->taps);
    command->require = calloc((size_t)argc, sizeof *command->require);
    command->operands = calloc((size_t)argc, sizeof *command->operands);
    command->text = join_arguments(argc, argv);
    if (command->taps == NULL || command->require == NULL || command->operands == NULL ||
        command->text == NULL)
        return q3_no_memory(error, "command line");
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
        return q3_fail(error, Q3_ERROR_INPUT, "%s: %s is missing", verb->name, verb->first);
    return Q3_OK;
}

void free_command_line(command_line *command)
{
    free(command->taps);
    free(command->require);
    free(command->text);
    free(command->operands);
}

/* ==== Numbers ================================================================================= */

bool parse_integer(const char *text, const char *end, uint64_t *value)
{
    uint64_t n = 0;
    if (text == end) return false;
    for (; text != end; text++) {
        if (*text < '0' || *text > '9') return false;
        uint64_t digit = (uint64_t)(*text - '0');
        if (n > (UINT64_MAX - digit) / 10) return false;
        n = n * 10 + digit;
    }
    *value = n;
    return true;
}

q3_status integer_option(const command_line *command, option_id option, uint64_t least,
                         uint64_t most, uint64_t absent, uint64_t *value, q3_error *error)
{
    const char *text = command->value[option];
    *value = absent;
    if (text == NULL) return Q3_OK;
    if (parse_integer(text, text + strlen(text), value) && *value >= least && *value <= most)
        return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.40s, expected an integer from %llu to %llu",
                   option_name(option), text, (unsigned long long)least, (unsigned long long)most);
}

q3_status number_option(const command_line *command, option_id option, double absent, double *value,
                        q3_error *error)
{
    const char *text = command->value[option];
    *value = absent;
    if (text == NULL) return Q3_OK;
    size_t length = strlen(text), at = 0;
    bool digits = false;
    for (; at < length; at++) {
        digits = digits || (text[at] >= '0' && text[at] <= '9');
        if ((text[at] < '0' || text[at] > '9') && (text[at] != '.' || at == 0 || at + 1 == length ||
                                                   strchr(text, '.') != text + at))
            break;
    }
    const uint8_t *bytes = (const uint8_t *)text;
    if (digits && at == length && q3_decimal_to_double(bytes, bytes + length, value)) return Q3_OK;
    return q3_fail(error, Q3_ERROR_INPUT, "%s: found %.40s, expected a decimal number such as 0.7",
                   option_name(option), text);
}
