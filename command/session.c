/* SPDX-License-Identifier: MIT */
/* session.c - what the verbs share: tokens and chats in, a loaded model, progress. */
#define _POSIX_C_SOURCE 200809L /* isatty, fileno */
#include "command/command.h"

#include "host/gguf.h"

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <io.h>
#define isatty _isatty
#define fileno _fileno
#else
#include <unistd.h>
#endif

/* ==== Tokens ================================================================================== */

/* --tokens: ids between commas. */
static q3_status parse_token_list(const char *text, token_list *tokens, q3_error *error)
{
    size_t count = 1;
    for (const char *p = text; *p != 0; p++) count += *p == ',';
    int32_t *ids = malloc(count * sizeof *ids);
    if (ids == NULL) return q3_no_memory(error, "--tokens");
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

q3_status open_tokenizer(q3_tokenizer **tokenizer, const command_line *command, q3_error *error)
{
    if (q3_names_gguf(command->model)) return q3_tokenizer_open(tokenizer, command->model, error);
    char *path = q3_join(command->model, "/", "tokenizer.json");
    if (path == NULL) return q3_no_memory(error, command->model);
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
    static const option_id options[] = {OPTION_NO_GENERATION_PROMPT, OPTION_NO_THINKING,
                                        OPTION_TEXT};
    bool chat = command->value[OPTION_CHAT] != NULL || command->value[OPTION_USER] != NULL;
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        if (command->value[options[i]] != NULL && !chat)
            return q3_fail(error, Q3_ERROR_INPUT, "%s is given without --chat",
                           option_name(options[i]));
    return Q3_OK;
}

/* A JSON list of one message: a user's, whose content is text[length]. */
static q3_status user_message(q3_text *json, const uint8_t *text, size_t length, q3_error *error)
{
    q3_text_add(json, "[{\"role\":\"user\",\"content\":");
    bool good = q3_text_string(json, (const char *)text, length);
    q3_text_add(json, "}]");
    if (json->failed) return q3_no_memory(error, "--user");
    return good ? Q3_OK : q3_fail(error, Q3_ERROR_INPUT, "--user: the text is not UTF-8");
}

q3_status render_chat(const command_line *command, const uint8_t *user, size_t user_length,
                      uint8_t **text, size_t *length, q3_error *error)
{
    const char *path = command->value[OPTION_CHAT], *name = path != NULL ? path : "--user";
    unsigned flags = 0;
    if (command->value[OPTION_NO_GENERATION_PROMPT] != NULL) flags |= Q3_CHAT_NO_PROMPT;
    if (command->value[OPTION_NO_THINKING] != NULL) flags |= Q3_CHAT_NO_THINKING;
    uint8_t *template = NULL, *file = NULL;
    size_t template_length = 0, length_of_file = 0;
    q3_text turn = {0};
    q3_status status = q3_chat_template(command->model, &template, &template_length, error);
    if (status == Q3_OK && user == NULL)
        status = q3_read_whole(&file, &length_of_file, path, error);
    else if (status == Q3_OK)
        status = user_message(&turn, user, user_length, error);
    const void *messages = user == NULL ? (const void *)file : turn.data;
    size_t message_length = user == NULL ? length_of_file : turn.size;
    if (status == Q3_OK)
        status = q3_chat_render(template, template_length, name, messages, message_length, flags,
                                text, length, error);
    free(turn.data);
    free(file);
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
        return q3_fail(error, Q3_ERROR_INPUT, "--tokens, --chat and a text exclude each other");
    if (list != NULL) return parse_token_list(list, tokens, error);
    uint8_t *bytes = NULL, *rendered = NULL;
    size_t length = given ? strlen(text) : 0;
    if (chat == NULL && !given) status = q3_read_whole(&bytes, &length, "-", error);
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

/* ==== The model =============================================================================== */

#define MOST_LOGIT_BYTES ((size_t)16 << 20)

/* --layers A:B. */
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

q3_status session_load_weights(q3_session *session, q3_error *error)
{
    q3_run *run = &session->run;
    progress shown = {.what = "load:"};
    show_progress(&shown, 0, 1);
    q3_status status = q3_model_load(session->model, &run->dtype, run->first_layer, run->end_layer,
                                     error);
    show_progress(&shown, 1, 1);
    return status;
}

/* As many rows of logits as take 16 MB, the chunk's or the half of it, its half, ...; at least
 * one. */
void session_limit_logits(q3_session *session)
{
    size_t rows = session->run.chunk, row = session->config->vocab_size * sizeof(float);
    while (rows > 1 && rows > MOST_LOGIT_BYTES / row) rows = (rows + 1) / 2;
    if (session->run.logit_rows == 0) session->run.logit_rows = rows;
}

q3_status session_take_memory(q3_session *session, const q3_run *run, const char *model,
                              q3_error *error)
{
    size_t size = session->memory_size = q3_state_size(session->config, run);
    session->memory = size == 0 ? NULL : malloc(size);
    if (session->memory != NULL) return Q3_OK;
    return q3_fail(error, Q3_ERROR_MEMORY, "%s: not enough memory for a state of %zu bytes", model,
                   size);
}

q3_status session_load(q3_session *session, const command_line *command, q3_error *error)
{
    q3_run *run = &session->run;
    q3_status status = session_load_weights(session, error);
    if (status != Q3_OK) return status;
    session_limit_logits(session);
    status = session_take_memory(session, run, command->model, error);
    if (status != Q3_OK) return status;
    session->state = q3_state_init(session->memory, session->memory_size, session->config,
                                   q3_model_weights(session->model), run);
    if (session->state == NULL)
        return q3_fail(error, Q3_ERROR_ARITHMETIC, "arithmetic: %s", q3_selftest());
    return Q3_OK;
}

void session_close(q3_session *session)
{
    free(session->memory);
    free(session->hidden);
    q3_model_close(session->model);
    memset(session, 0, sizeof *session);
}

/* ==== Progress ================================================================================ */

bool is_terminal(FILE *file)
{
    return isatty(fileno(file)) != 0;
}

void show_progress(progress *shown, size_t done, size_t all)
{
    char left[40] = "";
    if (!is_terminal(stderr)) return;
    time_t now = time(NULL);
    if (!shown->begun) {
        shown->begun = true;
        shown->begin = now;
        shown->before = done;
    }
    if (done > shown->before && done < all) {
        double each = difftime(now, shown->begin) / (double)(done - shown->before);
        double seconds = each * (double)(all - done);
        snprintf(left, sizeof left, seconds < 100 ? ", %.0f s left" : ", %.0f min left",
                 seconds < 100 ? seconds : seconds / 60);
    }
    fprintf(stderr, "\r%s %zu of %zu%-18s%s", shown->what, done, all, left,
            done == all ? "\n" : "");
    fflush(stderr);
}
