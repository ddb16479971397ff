/* command.c - what the verbs share: numbers, tokens, a loaded model, progress. */
#define _POSIX_C_SOURCE 200809L /* isatty, fileno */
#include "command/command.h"

#include "host/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#define isatty _isatty
#define fileno _fileno
#else
#include <unistd.h>
#endif

static const char *const option_names[OPTION_COUNT] = {
    [OPTION_CHUNK] = "--chunk", [OPTION_N] = "-n", [OPTION_SEED] = "--seed",
    [OPTION_START] = "--start",
    [OPTION_TEMPERATURE] = "--temperature", [OPTION_TOP_K] = "--top-k", [OPTION_TOP_P] = "--top-p",
};

/* Digits of an unsigned integer up to `end`; false if there are none, or anything else, or too
 * many. */
static bool parse_integer(const char *text, const char *end, uint64_t *value)
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
                   option_names[option], text, (unsigned long long)least, (unsigned long long)most);
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
                   option_names[option], text);
}

static q3_status parse_token_list(const char *text, token_list *tokens, q3_error *error)
{
    size_t count = 1;
    for (const char *p = text; *p != 0; p++) count += *p == ',';
    int32_t *ids = malloc(count * sizeof *ids);
    if (ids == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu tokens", count);
    const char *p = text;
    for (size_t i = 0; i < count; i++) {
        uint64_t id;
        const char *end = p + strcspn(p, ",");
        if (!parse_integer(p, end, &id) || id > INT32_MAX) {
            free(ids);
            return q3_fail(error, Q3_ERROR_INPUT,
                           "--tokens: found \"%.*s\" at place %zu, expected ids such as 1,2,3",
                           (int)(end - p < 40 ? end - p : 40), p, i + 1);
        }
        ids[i] = (int32_t)id;
        p = end + 1;
    }
    tokens->ids = ids;
    tokens->count = count;
    return Q3_OK;
}

q3_status read_whole(const char *path, uint8_t **bytes, size_t *length, q3_error *error)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    if (file == NULL)
        return q3_fail(error, Q3_ERROR_FILE, "%s: cannot open: %s", path, strerror(errno));
#ifdef _WIN32
    if (standard) _setmode(_fileno(stdin), _O_BINARY);
#endif
    uint8_t *all = NULL;
    size_t used = 0, room = 0;
    q3_status status = Q3_OK;
    for (;;) {
        if (used + 1 >= room) {
            size_t larger = room == 0 ? 65536 : room * 2;
            uint8_t *grown = larger > room ? realloc(all, larger) : NULL;
            if (grown == NULL) {
                status = q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory after %zu bytes", path,
                                 used);
                break;
            }
            all = grown;
            room = larger;
        }
        size_t n = fread(all + used, 1, room - used - 1, file);
        used += n;
        if (n == 0) break;
    }
    if (status == Q3_OK && ferror(file))
        status = q3_fail(error, Q3_ERROR_FILE, "%s: cannot read: %s", path, strerror(errno));
    if (!standard) fclose(file);
    if (status != Q3_OK) {
        free(all);
        return status;
    }
    all[used] = 0;
    *bytes = all;
    *length = used;
    return Q3_OK;
}

static char *model_path(const command_line *command, const char *name)
{
    size_t folder = strlen(command->model), size = folder + strlen(name) + 2;
    char *path = malloc(size);
    if (path != NULL) snprintf(path, size, "%s/%s", command->model, name);
    return path;
}

q3_status open_tokenizer(q3_tokenizer **tokenizer, const command_line *command, q3_error *error)
{
    char *path = model_path(command, "tokenizer.json");
    if (path == NULL) return q3_fail(error, Q3_ERROR_MEMORY, "no memory");
    q3_status status = q3_tokenizer_open(tokenizer, path, error);
    free(path);
    return status;
}

q3_status encode_text(const command_line *command, const char *name, const uint8_t *text,
                      size_t length, token_list *tokens, q3_error *error)
{
    q3_tokenizer *tokenizer;
    q3_status status = open_tokenizer(&tokenizer, command, error);
    if (status != Q3_OK) return status;
    q3_error inner;
    status = q3_tokenizer_encode(tokenizer, text, length, &tokens->ids, &tokens->count, &inner);
    if (status != Q3_OK) q3_fail(error, status, "%s: %.400s", name, inner.text);
    q3_tokenizer_free(tokenizer);
    return status;
}

q3_status check_chat_options(const command_line *command, q3_error *error)
{
    static const struct { option_id id; const char *name; } options[] = {
        {OPTION_NO_GENERATION_PROMPT, "--no-generation-prompt"},
        {OPTION_NO_THINKING, "--no-thinking"},
        {OPTION_TEXT, "--text"},
    };
    bool chat = command->value[OPTION_CHAT] != NULL || command->value[OPTION_USER] != NULL;
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        if (command->value[options[i].id] != NULL && !chat)
            return q3_fail(error, Q3_ERROR_INPUT, "%s: found it alone, expected --chat with it",
                           options[i].name);
    return Q3_OK;
}

/* A JSON list of one message: a user's, whose content is text[0..n). */
static char *user_message(const uint8_t *text, size_t n, size_t *length)
{
    static const char before[] = "[{\"role\":\"user\",\"content\":\"", after[] = "\"}]";
    char *json = n < SIZE_MAX / 8 ? malloc(6 * n + sizeof before + sizeof after) : NULL, *p = json;
    if (json == NULL) return NULL;
    memcpy(p, before, sizeof before - 1);
    p += sizeof before - 1;
    for (size_t i = 0; i < n; i++) {
        if (text[i] >= 0x20 && text[i] != '"' && text[i] != '\\')
            *p++ = (char)text[i];
        else
            p += snprintf(p, 7, "\\u%04x", (unsigned)text[i]);
    }
    memcpy(p, after, sizeof after);
    *length = (size_t)(p - json) + sizeof after - 1;
    return json;
}

q3_status render_chat(const command_line *command, const uint8_t *user, size_t user_length,
                      uint8_t **text, size_t *length, q3_error *error)
{
    const char *path = command->value[OPTION_CHAT], *name = path != NULL ? path : "--user";
    unsigned flags = 0;
    if (command->value[OPTION_NO_GENERATION_PROMPT] != NULL) flags |= Q3_CHAT_NO_PROMPT;
    if (command->value[OPTION_NO_THINKING] != NULL) flags |= Q3_CHAT_NO_THINKING;
    uint8_t *template = NULL, *messages = NULL;
    size_t template_length = 0, message_length = 0;
    q3_status status = q3_chat_template(command->model, &template, &template_length, error);
    if (status == Q3_OK && user == NULL) {
        status = read_whole(path, &messages, &message_length, error);
    } else if (status == Q3_OK) {
        messages = (uint8_t *)user_message(user, user_length, &message_length);
        if (messages == NULL)
            status = q3_fail(error, Q3_ERROR_MEMORY, "no memory for %zu bytes", user_length);
    }
    if (status == Q3_OK)
        status = q3_chat_render(template, template_length, name, messages, message_length, flags,
                                text, length, error);
    free(messages);
    free(template);
    return status;
}

q3_status read_tokens(const command_line *command, const char *text, token_list *tokens,
                      q3_error *error)
{
    const char *list = command->value[OPTION_TOKENS], *chat = command->value[OPTION_CHAT];
    bool user = command->value[OPTION_USER] != NULL, given = text != NULL && strcmp(text, "-") != 0;
    q3_status status = check_chat_options(command, error);
    if (status != Q3_OK) return status;
    if ((list != NULL) + (chat != NULL) + (text != NULL || user) > 1)
        return q3_fail(error, Q3_ERROR_INPUT, "%s: found a text too, expected one of the two",
                       list != NULL ? "--tokens" : "--chat");
    if (list != NULL) return parse_token_list(list, tokens, error);
    uint8_t *bytes = NULL, *rendered = NULL;
    size_t length = given ? strlen(text) : 0;
    if (chat == NULL && !given) status = read_whole("-", &bytes, &length, error);
    const uint8_t *plain = given ? (const uint8_t *)text : bytes;
    const char *name = chat != NULL ? chat : given ? "text" : "standard input";
    if (status == Q3_OK && (chat != NULL || user)) {
        status = render_chat(command, plain, length, &rendered, &length, error);
        plain = rendered;
    }
    if (status == Q3_OK) status = encode_text(command, name, plain, length, tokens, error);
    free(rendered);
    free(bytes);
    return status;
}

static q3_status read_layers(const char *text, size_t layers, q3_run *run, q3_error *error)
{
    uint64_t first, end;
    const char *colon = strchr(text, ':');
    if (colon == NULL || !parse_integer(text, colon, &first) ||
        !parse_integer(colon + 1, text + strlen(text), &end) || first >= end || end > layers)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--layers: found %.40s, expected A:B with 0 <= A < B <= %zu", text, layers);
    run->first_layer = (size_t)first;
    run->end_layer = (size_t)end;
    return Q3_OK;
}

q3_status session_open(q3_session *session, const command_line *command, q3_error *error)
{
    const char *dtype = command->value[OPTION_DTYPE], *layers = command->value[OPTION_LAYERS];
    memset(session, 0, sizeof *session);
    session->run.dtype = Q3_AUTO;
    for (q3_dtype d = Q3_F32; dtype != NULL && d <= Q3_F16; d++)
        if (strcmp(dtype, q3_dtype_name(d)) == 0) session->run.dtype = d;
    if (dtype != NULL && session->run.dtype == Q3_AUTO)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "--dtype: found %.40s, expected float32, bfloat16 or float16", dtype);
    q3_status status = q3_model_open(&session->model, command->model, error);
    if (status != Q3_OK) return status;
    session->config = q3_model_config(session->model);
    session->run.end_layer = session->config->num_hidden_layers;
    if (layers == NULL) return Q3_OK;
    status = read_layers(layers, session->config->num_hidden_layers, &session->run, error);
    if (status != Q3_OK) session_close(session);
    return status;
}

q3_status session_check_tokens(const q3_session *session, const token_list *tokens, size_t more,
                               q3_error *error)
{
    size_t V = session->config->vocab_size, room = Q3_MAX_POSITIONS - session->run.start;
    if (tokens->count == 0)
        return q3_fail(error, Q3_ERROR_INPUT, "tokens: found none, expected at least one");
    if (tokens->count > room || more > room - tokens->count)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "positions: found %zu tokens from %zu on, expected all below %zu",
                       tokens->count + more, session->run.start, Q3_MAX_POSITIONS);
    for (size_t i = 0; i < tokens->count; i++)
        if (tokens->ids[i] < 0 || (size_t)tokens->ids[i] >= V)
            return q3_fail(error, Q3_ERROR_INPUT, "token %zu: found id %ld, expected 0 to %zu", i,
                           (long)tokens->ids[i], V - 1);
    return Q3_OK;
}

q3_status session_load(q3_session *session, const command_line *command, q3_error *error)
{
    q3_run *run = &session->run;
    show_progress("load", 0, 1);
    q3_status status = q3_model_load(session->model, &run->dtype, run->first_layer, run->end_layer,
                                     error);
    show_progress("load", 1, 1);
    if (status != Q3_OK) return status;
    size_t size = q3_state_size(session->config, run);
    session->memory = size == 0 ? NULL : malloc(size);
    if (session->memory == NULL)
        return q3_fail(error, Q3_ERROR_MEMORY, "%s: no memory for a state of %zu bytes",
                       command->model, size);
    session->state = q3_state_init(session->memory, size, session->config,
                                   q3_model_weights(session->model), run);
    if (session->state == NULL)
        return q3_fail(error, Q3_ERROR_ARITHMETIC, "arithmetic: %s", q3_selftest());
    return Q3_OK;
}

void session_close(q3_session *session)
{
    free(session->memory);
    q3_model_close(session->model);
    memset(session, 0, sizeof *session);
}

bool is_terminal(FILE *file)
{
    return isatty(fileno(file)) != 0;
}

void show_progress(const char *what, size_t done, size_t all)
{
    if (!is_terminal(stderr)) return;
    fprintf(stderr, "\r%s: %zu of %zu%s", what, done, all, done == all ? "\n" : "");
    fflush(stderr);
}
