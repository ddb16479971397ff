/* SPDX-License-Identifier: MIT */
/* A GGUF file's tokenizer is that of the tokenizer.json it was made from, its chat template the
 * text that stands in it.
 *
 *   test_gguf_text [GOLDEN FOLDER]     default: golden */
#define _POSIX_C_SOURCE 200809L
#include "folder.h"
#include "gguf.h"
#include "host/files.h"
#include "qwen3moe.h"
#include "t.h"

#include <stdbool.h>

static const char *golden = "golden";

/* golden/tiny's tokenizer.json as a GGUF file has it; drop: this key is left out; type: of the
 * first token. */
static void put_tokenizer(gguf_file *f, const q3_json *j, const char *drop, int type)
{
    uint32_t model = q3_json_find(j, 0, "model"), vocab = q3_json_find(j, model, "vocab");
    uint32_t merges = q3_json_find(j, model, "merges"), added = q3_json_find(j, 0, "added_tokens");
    size_t tokens = j->nodes[vocab].count + j->nodes[added].count;
    uint32_t *of = calloc(tokens + 2, sizeof *of); /* the node of each token */
    uint8_t text[256];
    uint64_t id = 0;
    size_t n;
    if (of == NULL) exit(1);
    uint32_t k = vocab + 1;
    for (uint32_t i = 0; i < j->nodes[vocab].count; i++, k = j->nodes[k + 1].next)
        if (q3_json_uint(j, k + 1, &id) && id < tokens) of[id] = k;
    k = added + 1;
    for (uint32_t i = 0; i < j->nodes[added].count; i++, k = j->nodes[k].next)
        if (q3_json_uint(j, q3_json_find(j, k, "id"), &id) && id < tokens)
            of[id] = q3_json_find(j, k, "content");
    gguf_header(f, 0, drop != NULL ? 5 : 6);
    gguf_string(f, "general.architecture", "qwen3moe");
    gguf_string(f, "tokenizer.ggml.model", "gpt2");
    if (drop == NULL || strcmp(drop, "pre") != 0)
        gguf_string(f, "tokenizer.ggml.pre", "qwen2");
    if (drop == NULL || strcmp(drop, "tokens") != 0) {
        gguf_array(f, "tokenizer.ggml.tokens", 8, tokens + 1);
        for (size_t i = 0; i < tokens; i++) {
            n = q3_json_string(j, of[i], text);
            gguf_bytes(f, text, n);
        }
        gguf_text(f, "[PAD]");
    }
    if (drop == NULL || strcmp(drop, "token_type") != 0) {
        gguf_array(f, "tokenizer.ggml.token_type", 5, tokens + 1);
        for (size_t i = 0; i <= tokens; i++)
            gguf_number(f, i == tokens ? 5 : i >= j->nodes[vocab].count ? 3 + i % 2
                           : i == 0 ? (uint64_t)type : 1, 4);
    }
    if (drop == NULL || strcmp(drop, "merges") != 0) {
        gguf_array(f, "tokenizer.ggml.merges", 8, j->nodes[merges].count);
        k = merges + 1;
        for (uint32_t i = 0; i < j->nodes[merges].count; i++, k = j->nodes[k].next) {
            n = q3_json_string(j, k + 1, text);
            text[n++] = ' ';
            n += q3_json_string(j, k + 2, text + n);
            gguf_bytes(f, text, n);
        }
    }
    free(of);
}

static void check_same_ids(const q3_tokenizer *a, const q3_tokenizer *b, const char *text)
{
    int32_t *x = NULL, *y = NULL;
    size_t m = 0, n = 0;
    CHECK(q3_tokenizer_encode(a, text, strlen(text), &x, &m, NULL) == Q3_OK);
    CHECK(q3_tokenizer_encode(b, text, strlen(text), &y, &n, NULL) == Q3_OK);
    CHECKF(m == n && memcmp(x, y, m * sizeof *x) == 0, "%s", text);
    free(x);
    free(y);
}

/* A tokenizer that is refused; the message, behind the path, starts with `want`. */
static void check_no_tokenizer(const gguf_file *f, const char *want)
{
    q3_tokenizer *t = NULL;
    q3_error error = {""};
    char whole[300];
    folder_write("bad.gguf", f->bytes, f->size);
    CHECK(q3_tokenizer_open(&t, folder_path("bad.gguf"), &error) == Q3_ERROR_INPUT);
    snprintf(whole, sizeof whole, "%s: %s", folder_path("bad.gguf"), want);
    CHECKF(strncmp(error.text, whole, strlen(whole)) == 0, "got \"%s\", want \"%s\"", error.text,
           whole);
}

static void test_tokenizer(void)
{
    static const char *const texts[] = {
        "In the beginning\n\n  was 1234 'll <|im_start|>user\nx<|im_end|>",
        "na\xC3\xAFve e\xCC\x81",
        "<think>\n\n</think>[PAD]", "", "\xE4\xB8\xAD\xE6\x96\x87 \t\r\n"};
    char path[512];
    q3_mapping file = {0};
    q3_json j;
    q3_tokenizer *want = NULL, *got = NULL;
    q3_error error = {""};
    gguf_file f = {0};
    snprintf(path, sizeof path, "%s/tiny/tokenizer.json", golden);
    CHECK(q3_map(&file, path, NULL) == Q3_OK &&
          q3_json_parse(&j, path, file.data, file.size, NULL) == Q3_OK);
    put_tokenizer(&f, &j, NULL, 1);
    folder_write("tokenizer.gguf", f.bytes, f.size);
    CHECK(q3_tokenizer_open(&want, path, NULL) == Q3_OK);
    CHECKF(q3_tokenizer_open(&got, folder_path("tokenizer.gguf"), &error) == Q3_OK, "%s",
           error.text);
    for (size_t i = 0; got != NULL && i < sizeof texts / sizeof *texts; i++)
        check_same_ids(got, want, texts[i]);
    q3_tokenizer_free(got);
    q3_tokenizer_free(want);
    put_tokenizer(&f, &j, "pre", 1);
    check_no_tokenizer(&f, "tokenizer.ggml.pre: found nothing, expected \"qwen2\", the only one "
                           "that is built in");
    put_tokenizer(&f, &j, "tokens", 1);
    check_no_tokenizer(&f, "tokenizer.ggml.tokens: found nothing, expected an array of strings");
    put_tokenizer(&f, &j, "token_type", 1);
    check_no_tokenizer(&f, "tokenizer.ggml.token_type: found nothing, expected an array of int32");
    put_tokenizer(&f, &j, "merges", 1);
    check_no_tokenizer(&f, "tokenizer.ggml.merges: found nothing, expected an array of strings");
    put_tokenizer(&f, &j, NULL, 6);
    check_no_tokenizer(&f, "tokenizer.ggml.token_type: element 0: found 6, expected 1, 3, 4 or 5");
    put_tokenizer(&f, &j, NULL, 5); /* a token that merges need is none */
    check_no_tokenizer(&f, "tokenizer: ");
    gguf_header(&f, 0, 1);
    gguf_string(&f, "tokenizer.ggml.model", "llama");
    check_no_tokenizer(&f, "tokenizer.ggml.model: found \"llama\", expected \"gpt2\"");
    q3_json_free(&j);
    q3_unmap(&file);
    free(f.bytes);
}

static void test_chat(void)
{
    uint8_t *text = NULL;
    size_t length = 0;
    q3_error error = {""};
    gguf_file f = {0};
    gguf_header(&f, 0, 1);
    gguf_string(&f, "tokenizer.chat_template", "{{ x }}\n");
    folder_write("chat", f.bytes, f.size);
    CHECK(q3_chat_template(folder_path("chat"), &text, &length, &error) == Q3_OK && length == 8 &&
          memcmp(text, "{{ x }}\n", 8) == 0);
    free(text);
    gguf_header(&f, 0, 0);
    folder_write("chat", f.bytes, f.size);
    CHECK(q3_chat_template(folder_path("chat"), &text, &length, &error) == Q3_ERROR_INPUT);
    CHECKF(strstr(error.text, "tokenizer.chat_template: found nothing, expected a string") != NULL,
           "%s", error.text);
    free(f.bytes);
}

int main(int count, char **arguments)
{
    if (count > 1) golden = arguments[1];
    folder_make("test_gguf_text.tmp");
    test_tokenizer();
    test_chat();
    folder_remove();
    return t_done("gguf_text");
}
