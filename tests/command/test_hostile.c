/* SPDX-License-Identifier: MIT */
/* `qwen3moe`: whatever a name, a value or a file holds, what is printed and what is written for
 * people has no character that a terminal acts on or that is not seen, and messages are one line.
 *
 *   test_hostile COMMAND GOLDEN */
#define FOLDER "hostile.tmp/"
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of command.h */
#endif
#include "command.h"

/* ==== What is hostile ========================================================================= */

/* Texts with all kinds; each begins and ends with a letter, and has no quote and no slash. */
static const char *const hostile[] = {
    "x\n\r\x1B[31m\x07\x7F\tz",
    "x\xC2\x9B" "2J\x9B" "1m\xFF\xE2\x82z",
    "x\xE2\x80\xAE\xE2\x81\xA6\xE2\x80\xA8\xEF\xBB\xBF\xE2\x80\x8B\xE2\x80\x8Fz",
};

/* A character of text[size]: its length; 0: no UTF-8. In *code what it is. */
static size_t decode(const char *text, size_t size, unsigned long *code)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t n = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
    if (n == 0 || n > size) return 0;
    *code = n == 1 ? p[0] : p[0] & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (p[i] >> 6 != 2) return 0;
        *code = *code << 6 | (p[i] & 0x3F);
    }
    return n;
}

static void is_clean(const char *what, const char *text, size_t size)
{
    unsigned long code = 0;
    for (size_t at = 0, n; at < size; at += n) {
        n = decode(text + at, size - at, &code);
        bool control = (code < 0x20 && code != '\n') || (code >= 0x7F && code < 0xA0);
        bool unseen = (code >= 0x200B && code <= 0x200F) || (code >= 0x2028 && code <= 0x202E) ||
                      (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
        CHECKF(n > 0 && !control && !unseen, "%s: %s: byte %lu is 0x%02x, U+%04lX, in \"%s\"",
               last.line, what, (unsigned long)at, (unsigned char)text[at], code, text);
        if (n == 0 || control || unseen) return;
    }
}

/* Of the last run: both outputs, and where it failed one line. */
static void nothing_live(void)
{
    const char *newline = strchr(last.err, '\n');
    is_clean("standard output", last.out, last.size);
    is_clean("standard error", last.err, last.err_size);
    CHECKF(last.status >= 0 && last.status <= 2, "%s: status %d", last.line, last.status);
    if (last.status < 2) return;
    CHECKF(newline != NULL && newline + 1 == last.err + last.err_size &&
           strncmp(last.err, "qwen3moe: ", 10) == 0, "%s: \"%s\"", last.line, last.err);
}

/* The format with the text in the place of every '@'. */
static const char *with(char *out, size_t room, const char *format, const char *text)
{
    size_t used = 0;
    for (; *format != 0 && used + 1 < room; format++) {
        size_t n = *format == '@' ? strlen(text) : 1;
        if (used + n + 1 > room) exit(1);
        memcpy(out + used, *format == '@' ? text : format, n);
        used += n;
    }
    out[used] = 0;
    return out;
}

/* The same text as JSON has it between quotes; bytes that are not UTF-8 become U+FFFD. */
static const char *as_json(char *out, size_t room, const char *text)
{
    size_t used = 0;
    unsigned long code;
    for (size_t at = 0, n; text[at] != 0; at += n) {
        n = decode(text + at, strlen(text + at), &code);
        if (n == 0)
            used += (size_t)snprintf(out + used, room - used, "\xEF\xBF\xBD");
        else if (code < 0x20)
            used += (size_t)snprintf(out + used, room - used, "\\u%04lx", code);
        else
            used += (size_t)snprintf(out + used, room - used, "%.*s", (int)n, text + at);
        if (n == 0) n = 1;
    }
    return out;
}

/* ==== In the command line ===================================================================== */

/* '@' is the text, in single quotes. */
static const char *const lines[] = {
    "'@'", "--'@'", "info '@'", "info tiny --'@'", "info tiny '@'", "info tiny --json='@'",
    "taps '@'", "taps tiny --layer '@'",
    "tokenize '@' x", "tokenize tiny '@'", "tokenize tiny --chat 'w/@'", "tokenize tiny x '@'",
    "generate '@' x", "generate tiny --tokens '1,@'", "generate tiny --temperature '@' x",
    "generate tiny --top-p '@' x", "generate tiny --top-k '@' x", "generate tiny --seed '@' x",
    "generate tiny -n '@' x", "generate tiny --dtype '@' x", "generate tiny --chat '@'",
    "dump '@' -o w/o --tokens 1", "dump tiny -o 'w/@/o' --tokens 1",
    "dump tiny -o w/o --tokens '@'",
    "dump tiny -o w/o --tokens 1 --taps '@'", "dump tiny -o w/o --tokens 1 --layers '@'",
    "dump tiny -o w/o --tokens 1 --start '@'", "dump tiny -o w/o --tokens 1 --chunk '@'",
    "dump tiny -o w/o --layers 1:2 --from '@' --tokens 1", "dump tiny -o 'w/@' --tokens 1",
    "dump tiny -o 'w/@' --tokens 1,2 --resume",
    "score '@' beginning", "score tiny '@'", "score tiny beginning --dtype '@'",
    "check '@' w/t", "check tiny '@'", "check tiny w/t --dtype '@'", "check tiny w/t --layers '@'",
    "check tiny w/t --accumulate '@'", "check tiny w/t --kv '@'", "check tiny w/t --router '@'",
    "check tiny w/t --require '@'", "check tiny w/t --json '@/x'", "check tiny w/t --html '@/x'",
    "check tiny w/t --junit '@/x'", "check tiny w/t '@'", "check tiny w/t --tokens '@'",
    "diff '@' w/t", "diff w/t '@'", "diff w/t w/t --json '@/x'", "report '@'", "report w/t '@'",
    "selftest '@'",
};

static void test_arguments(void)
{
    char line[512];
    for (size_t i = 0; i < COUNT(lines); i++)
        for (size_t k = 0; k < COUNT(hostile); k++) {
            run("%s", with(line, sizeof line, lines[i], hostile[k]));
            nothing_live();
        }
}

/* ==== In files ================================================================================ */

/* The file named, of this content with '@' as JSON has it, makes the line say what it says. */
typedef struct place {
    const char *file, *content, *line;
} place;

#define INFO "info m"
static const place places[] = {
    {"m/config.json", "@", INFO}, {"m/config.json", "\"@\"", INFO},
    {"m/config.json", "{\"@\":1,\"@\":2}", INFO}, {"m/config.json", "{\"model_type\":\"@\"}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"hidden_size\":\"@\"}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"hidden_act\":\"@\"}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"dtype\":\"@\"}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"rope_scaling\":{\"type\":\"@\"}}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"rope_scaling\":\"@\"}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"mlp_only_layers\":[\"@\"]}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"quantization_config\":{\"@\":1}}", INFO},
    {"m/config.json",
     "{\"model_type\":\"qwen3_moe\",\"quantization_config\":{\"quant_method\":\"@\"}}", INFO},
    {"m/config.json", "{\"model_type\":\"qwen3_moe\",\"eos_token_id\":\"@\"}",
     "generate m --tokens 1 --ids"},
    {"n/generation_config.json", "{\"eos_token_id\":\"@\"}", "generate n --tokens 1 --ids"},
    {"n/generation_config.json", "@", "generate n --tokens 1 --ids"},
    {"n/tokenizer.json", "{\"@\":1}", "tokenize n x"}, {"n/tokenizer.json", "@", "tokenize n x"},
    {"n/tokenizer.json", "{\"added_tokens\":\"@\",\"model\":\"@\"}", "tokenize n x"},
    {"n/tokenizer.json", "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,"
     "\"added_tokens\":[],\"normalizer\":{\"type\":\"@\"}}", "tokenize n x"},
    {"n/tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"@\":{}}}", "tokenize n x"},
    {"w/chat", "[{\"role\":\"@\",\"content\":\"@\"}]", "tokenize tiny --chat w/chat"},
    {"w/chat", "[{\"role\":\"user\",\"content\":\"x\",\"@\":1}]", "tokenize tiny --chat w/chat"},
    {"w/chat", "[{\"role\":\"user\",\"content\":[\"@\"]}]", "tokenize tiny --chat w/chat"},
    {"w/chat", "\"@\"", "tokenize tiny --chat w/chat"},
    {"n/chat_template.jinja", "@", "tokenize n --chat w/good"},
    {"n/chat_template.jinja", "{{ @ }}{% @ %}", "tokenize n --chat w/good"},
    {"w/lines", "\"x\"\n@\n", "tokenize tiny --jsonl - <w/lines"},
    {"w/lines", "1 @", "tokenize tiny --decode - <w/lines"},
    {"n/model.safetensors.index.json", "{\"weight_map\":{\"@\":\"@\"}}", "score n beginning"},
    {"n/model.safetensors.index.json", "{\"weight_map\":{\"@\":1}}", "score n beginning"},
    {"n/model.safetensors.index.json", "{\"weight_map\":{\"model.norm.weight\":\"@\"}}",
     "score n beginning"},
    {"w/report", "@", "report w/report"}, {"w/report", "{\"@\":1}", "report w/report"},
    {"w/report", "{\"run\":{\"format\":\"@\"}}", "report w/report"},
    {"w/report", "{\"tap\":\"@\",\"verdict\":\"@\"}", "report w/report"},
};

static void test_files(void)
{
    char content[1024], json[256];
    for (size_t i = 0; i < COUNT(places); i++)
        for (size_t k = 0; k < COUNT(hostile); k++) {
            char path[256];
            as_json(json, sizeof json, hostile[k]);
            shell("rm -rf m n; mkdir m; cp -R tiny n; cp tiny/tokenizer.json m");
            if (strstr(places[i].file, "index") != NULL) shell("rm n/model.safetensors");
            snprintf(path, sizeof path, FOLDER "%s", places[i].file);
            /* Once as JSON can hold it, once as it is: no JSON then. */
            for (int raw = 0; raw < 2; raw++) {
                write_text(path, with(content, sizeof content, places[i].content,
                                      raw ? hostile[k] : json));
                run("%s", places[i].line);
                nothing_live();
            }
        }
}

/* ==== In files of tensors ===================================================================== */

/* A file of tensors with this header. */
static void write_tensors(const char *path, const char *header, size_t data)
{
    char bytes[4096] = {0};
    size_t n = strlen(header);
    for (size_t i = 0; i < 8; i++) bytes[i] = (char)(i < 2 ? n >> (8 * i) & 0xFF : 0);
    memcpy(bytes + 8, header, n);
    write_file(path, bytes, 8 + n + data);
}

/* '@' in a header; 16 bytes of data lie behind it. */
static const char *const headers[] = {
    "{\"@\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}",
    "{\"@\":{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[0,16]}}",
    "{\"@\":{\"dtype\":\"@\",\"shape\":[4],\"data_offsets\":[0,16]}}",
    "{\"@\":{\"dtype\":\"F32\",\"shape\":\"@\",\"data_offsets\":[0,16]}}",
    "{\"@\":{\"@\":1}}", "{\"@\":\"@\"}", "{\"__metadata__\":{\"@\":1}}",
    "{\"__metadata__\":\"@\"}",
    "{\"__metadata__\":{\"dtype\":\"@\"},\"model.norm.output\":{\"dtype\":\"F32\",\"shape\":[4],"
    "\"data_offsets\":[0,16]}}",
    "{\"__metadata__\":{\"start\":\"@\"},\"input_ids\":{\"dtype\":\"I64\",\"shape\":[2],"
    "\"data_offsets\":[0,16]}}",
    "{\"__metadata__\":{\"config\":\"@\"},\"input_ids\":{\"dtype\":\"I64\",\"shape\":[2],"
    "\"data_offsets\":[0,16]}}",
    "{\"__metadata__\":{\"config\":\"{\\\"@\\\":1}\"},\"input_ids\":{\"dtype\":\"I64\","
    "\"shape\":[2],\"data_offsets\":[0,16]}}",
    "{\"model.layers.0.self_atn@.output\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
    "\"input_ids\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
};

#define OUTPUTS "--all --json w/json --html w/html --junit w/xml"
static const char *const readers[] = {
    "check tiny w/t " OUTPUTS, "check tiny w/t w/t " OUTPUTS, "diff w/t w/other " OUTPUTS,
    "diff w/other w/t " OUTPUTS, "dump tiny --layers 1:2 --from w/t -o w/o",
};

static void test_tensors(void)
{
    static const char *const outputs[] = {"w/json", "w/html", "w/xml"};
    char header[2048], json[256];
    write_tensors(FOLDER "w/other", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4],"
                                    "\"data_offsets\":[0,16]}}", 16);
    for (size_t i = 0; i < COUNT(headers); i++)
        for (size_t k = 0; k < COUNT(hostile); k++) {
            as_json(json, sizeof json, hostile[k]);
            write_tensors(FOLDER "w/t", with(header, sizeof header, headers[i], json), 16);
            for (size_t r = 0; r < COUNT(readers); r++) {
                shell("rm -f w/json w/html w/xml");
                run("%s", readers[r]);
                nothing_live();
                for (size_t o = 0; o < COUNT(outputs) && last.status < 2; o++) {
                    char path[64];
                    size_t size;
                    snprintf(path, sizeof path, FOLDER "%s", outputs[o]);
                    char *text = read_file(path, &size);
                    is_clean(outputs[o], text, size);
                    free(text);
                }
                if (last.status == 2 || r == 4) continue;
                run("report w/json --html w/html --junit w/xml --all");
                nothing_live();
            }
        }
}

/* ==== In GGUF files =========================================================================== */

static size_t put_number(char *out, unsigned long value, size_t size)
{
    for (size_t i = 0; i < size; i++) out[i] = (char)(i < 4 ? value >> (8 * i) & 0xFF : 0);
    return size;
}

static size_t put_string(char *out, const char *text)
{
    size_t n = put_number(out, (unsigned long)strlen(text), 8);
    memcpy(out + n, text, strlen(text));
    return n + strlen(text);
}

/* Files with one key or one tensor of such a name, or one text of it. */
static void test_gguf(void)
{
    enum { KEY, KEY_OF_NO_TYPE, ARCHITECTURE, TENSOR, KINDS };
    for (size_t k = 0; k < COUNT(hostile); k++)
        for (int kind = 0; kind < KINDS; kind++) {
            char bytes[512] = "GGUF";
            size_t n = 4;
            n += put_number(bytes + n, 3, 4);
            n += put_number(bytes + n, kind == TENSOR, 8);
            n += put_number(bytes + n, kind != TENSOR, 8);
            n += put_string(bytes + n, kind == ARCHITECTURE ? "general.architecture" : hostile[k]);
            n += put_number(bytes + n, kind == KEY_OF_NO_TYPE ? 99 : kind == TENSOR ? 9 : 8, 4);
            if (kind == KEY || kind == ARCHITECTURE) n += put_string(bytes + n, hostile[k]);
            write_file(FOLDER "w/x.gguf", bytes, n);
            run("info w/x.gguf");
            nothing_live();
            CHECKF(last.status == 2, "%s: kind %d", last.line, kind);
        }
}

/* Folders and files that have such names, and are as they should be. */
static void test_folders(void)
{
    static const char *const uses[] = {
        "info '@'", "info '@' --json", "taps '@'", "tokenize '@' x",
        "generate '@' --tokens 1 -n 1 --ids",
        "dump '@' --tokens 1,2 --taps model.norm.output -o '@/o'", "score '@' beginning",
        "check '@' '@/o' --json '@/json' --html '@/html' --junit '@/xml'", "diff '@/o' '@/o'",
        "report '@/json'", "check '@' '@/o' --json -",
        "check '@' '@/o' --junit -", "report '@/json' --html -",
        "rm", "info '@'", "score '@' beginning", "tokenize '@' x",
    };
    char line[512];
    for (size_t k = 0; k < COUNT(hostile); k++) {
        shell(with(line, sizeof line, "cp -R tiny '@'", hostile[k]));
        succeeds("");
        for (size_t i = 0; i < COUNT(uses); i++) {
            if (strcmp(uses[i], "rm") == 0)
                shell(with(line, sizeof line, "rm '@'/*.json", hostile[k]));
            else
                run("%s", with(line, sizeof line, uses[i], hostile[k]));
            nothing_live();
        }
        shell(with(line, sizeof line, "rm -rf '@'", hostile[k]));
    }
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    shell("\"$Q\" dump tiny --tokens 1,2 --taps model.norm.output --taps input_ids -o w/t >w/said; "
          "printf '[{\"role\":\"user\",\"content\":\"x\"}]' >w/good");
    succeeds("");
    test_arguments();
    test_files();
    test_tensors();
    test_gguf();
    test_folders();
    free(last.out);
    free(last.err);
    return t_done("test_hostile");
}
