/* SPDX-License-Identifier: MIT */
/* tokenize.c - `qwen3moe tokenize`: text to ids and back, lines of JSON strings, chats. */
#include "command/command.h"

#include "host/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The ids of a text on one line; line: its number in the file, 0: it is the whole file. */
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
            status = q3_fail(error, Q3_ERROR_INPUT, "%s: line %zu: expected a JSON string", name,
                             line);
            q3_json_free(&json);
        } else {
            uint8_t *bytes = malloc(n + 1);
            if (bytes == NULL)
                status = q3_no_memory(error, name);
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
    if (ids == NULL) return q3_no_memory(error, name);
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
                           "%s: byte %zu: expected token ids, separated by white space", name,
                           begin);
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
    if (text == NULL || strcmp(text, "-") == 0) return q3_read_whole(bytes, length, "-", error);
    *name = "text";
    *length = strlen(text);
    *bytes = malloc(*length + 1);
    if (*bytes == NULL) return q3_no_memory(error, *name);
    memcpy(*bytes, text, *length + 1);
    return Q3_OK;
}

/* Options that exclude each other. */
static q3_status check_tokenize(const command_line *command, q3_error *error)
{
    bool chat = command->value[OPTION_CHAT] != NULL;
    bool decode = command->value[OPTION_DECODE] != NULL;
    bool lines = command->value[OPTION_JSONL] != NULL;
    if (chat + decode + lines > 1)
        return q3_fail(error, Q3_ERROR_INPUT, "--chat, --decode and --jsonl exclude each other");
    if (chat && command->operand != NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "--chat and a text exclude each other");
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
