/* SPDX-License-Identifier: MIT */
/* chat.c against what Hugging Face transformers renders (golden/tokenizer/chat.cases.json, made
 * by scripts/ci/check_chat.py). The templates' texts are not in this project: their styles are
 * tested from inside, by the SHA-256 that names them; golden/tiny's own template through the
 * public functions. test_chat GOLDEN */
#include "host/chat.c"
#include "t.h"

/* The sum of bytes[count], given in pieces. */
static void sum_up(const char *bytes, size_t count, size_t piece, char out[65])
{
    sha256 sum;
    sha256_init(&sum);
    for (size_t at = 0; at < count; at += piece)
        sha256_add(&sum, bytes + at, count - at < piece ? count - at : piece);
    sha256_text(&sum, out);
}

/* Known answers of FIPS 180-4's examples, and lengths around the end of a block: "a" repeated. */
static void test_sha256(void)
{
    static const struct { size_t n; const char *digest; } cases[] = {
        {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {1, "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"},
        {54, "a3f01b6939256127582ac8ae9fb47a382a244680806a3f613a118851c1ca1d47"},
        {55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"},
        {56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"},
        {57, "f13b2d724659eb3bf47f2dd6af1accc87b81f09f59f2b75e5c0bed6589dfe8c6"},
        {63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34"},
        {64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"},
        {65, "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0"},
        {119, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb"},
        {120, "2f3d335432c70b580af0e8e1b3674a7c020d683aa5f73aaaedfdc55af904c21c"},
        {128, "6836cf13bac400e9105071cd6af47084dfacad4e5e302c94bfed24e013afb73e"},
        {200, "c2a908d98f5df987ade41b5fce213067efbcc21ef2240212a41e54b5e7c28ae5"},
    };
    char out[65], text[200];
    memset(text, 'a', sizeof text);
    sum_up("abc", 3, 3, out);
    CHECK_TEXT(out, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t piece = 1; piece <= 201; piece += 50) {
            sum_up(text, cases[i].n, piece, out);
            CHECK_TEXT(out, cases[i].digest);
        }
    }
}

static unsigned read_flags(const q3_json *j, uint32_t list)
{
    unsigned flags = 0;
    uint32_t node = list + 1;
    for (size_t i = 0; i < j->nodes[list].count; i++, node++)
        flags |= q3_json_equal(j, node, "--no-thinking") ? (unsigned)Q3_CHAT_NO_THINKING
                                                         : (unsigned)Q3_CHAT_NO_PROMPT;
    return flags;
}

static void check_case(const q3_json *j, uint32_t node, size_t index, size_t used[])
{
    uint32_t flag_node = node + 2, list = j->nodes[flag_node].next, text = j->nodes[list].next;
    const style *s = NULL;
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++)
        if (q3_json_equal(j, node + 1, styles[i].sha256)) {
            s = &styles[i];
            used[i]++;
        }
    CHECKF(s != NULL, "case %lu: unknown template", (unsigned long)index);
    if (s == NULL) return;
    /* The messages are a document of their own. */
    const q3_json_node *span_of = &j->nodes[list];
    size_t length = span_of->end - span_of->start, n = q3_json_string(j, text, NULL);
    q3_error error = {""};
    q3_json own;
    CHECK(q3_json_parse(&own, "messages", j->text + span_of->start, length, &error) == Q3_OK);
    message *messages = malloc((own.nodes[0].count + 1) * sizeof *messages);
    char *memory = malloc(length + 1), *want = malloc(n + 1);
    q3_buffer out = {0};
    if (messages == NULL || memory == NULL || want == NULL) exit(2);
    q3_json_string(j, text, (uint8_t *)want);
    CHECKF(read_messages(&own, s, messages, memory, &error) == Q3_OK, "%s", error.text);
    CHECK(render(&out, s, messages, own.nodes[0].count, read_flags(j, flag_node)));
    CHECKF(out.count == n && (n == 0 || memcmp(out.data, want, n) == 0),
           "case %lu: got %.*s, want %.*s", (unsigned long)index, (int)out.count, (char *)out.data,
           (int)n, want);
    free(messages);
    free(memory);
    free(want);
    free(out.data);
    q3_json_free(&own);
}

static void test_cases(const char *golden)
{
    char path[1024];
    size_t used[sizeof styles / sizeof *styles] = {0};
    q3_mapping file = {0};
    q3_error error = {""};
    q3_json j;
    snprintf(path, sizeof path, "%s/tokenizer/chat.cases.json", golden);
    CHECKF(q3_map(&file, path, &error) == Q3_OK, "%s", error.text);
    CHECKF(q3_json_parse(&j, path, file.data, file.size, &error) == Q3_OK, "%s", error.text);
    uint32_t node = 1;
    for (size_t i = 0; i < j.nodes[0].count; i++, node = j.nodes[node].next)
        check_case(&j, node, i, used);
    for (size_t i = 0; i < sizeof used / sizeof *used; i++)
        CHECKF(used[i] >= 40, "template %s: %lu cases", styles[i].sha256, (unsigned long)used[i]);
    printf("%lu renderings\n", (unsigned long)j.nodes[0].count);
    q3_json_free(&j);
    q3_unmap(&file);
}

/* Which keys beside role and content each template reads (check_chat.py watches jinja2 do it): a
 * message is refused exactly where one is written. */
static void test_more_keys(void)
{
    enum { TINY = 1, INSTRUCT = 2, THINKING = 4 }; /* THINKING: those that write reasoning */
    static const struct { const char *role, *more; unsigned refused; } cases[] = {
        {"user", "\"name\":\"Ann\"", 0},
        {"user", "\"tool_call_id\":\"1\",\"id\":[{\"role\":1}]", 0},
        {"user", "\"tool_calls\":[{}]", 0},
        {"system", "\"reasoning_content\":\"A\"", 0},
        {"assistant", "\"name\":\"Ann\",\"refusal\":null", 0},
        {"assistant", "\"tool_calls\":null", 0},
        {"assistant", "\"tool_calls\":[]", 0},
        {"assistant", "\"tool_calls\":{}", 0},
        {"assistant", "\"tool_calls\":\"\"", 0},
        {"assistant", "\"tool_calls\":false", 0},
        {"assistant", "\"tool_calls\":true", INSTRUCT | THINKING},
        {"assistant", "\"tool_calls\":\"x\"", INSTRUCT | THINKING},
        {"assistant", "\"tool_calls\":[{\"name\":\"f\"}]", INSTRUCT | THINKING},
        {"assistant", "\"reasoning_content\":null", 0},
        {"assistant", "\"reasoning_content\":\"\"", THINKING},
        {"assistant", "\"reasoning_content\":\"A\"", THINKING},
        {"assistant ", "\"reasoning_content\":\"A\"", 0},
    };
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++)
        for (size_t k = 0; k < sizeof styles / sizeof *styles; k++) {
            const char *role = cases[i / 2].role, *more = cases[i / 2].more;
            unsigned kind = styles[k].any_role ? TINY : styles[k].reasoning ? THINKING : INSTRUCT;
            bool refused = (cases[i / 2].refused & kind) != 0;
            char text[300], memory[300];
            q3_error error = {""};
            message messages[2];
            q3_json j;
            /* before the others, and behind them */
            snprintf(text, sizeof text, "[{%s%s\"role\":\"%s\",\"content\":\"x\"%s%s}]",
                     i % 2 ? more : "", i % 2 ? "," : "", role, i % 2 ? "" : ",",
                     i % 2 ? "" : more);
            CHECK(q3_json_parse(&j, "m", (const uint8_t *)text, strlen(text), &error) == Q3_OK);
            q3_status status = read_messages(&j, &styles[k], messages, memory, &error);
            CHECKF((status == Q3_ERROR_INPUT) == refused, "style %lu: %s", (unsigned long)k, text);
            CHECK(!refused || strstr(error.text, "expected no key that the chat template writes "
                                                 "(render the text elsewhere and pass --tokens)"));
            q3_json_free(&j);
        }
}

static void test_public(const char *golden)
{
    static const char *const refused[][2] = {
        {"[]", "m: messages: found an empty list, expected a list of them"},
        {"{}", "m: messages: found no list, expected a list of them"},
        {"[1]", "m: messages[0]: found 1, expected an object"},
        {"[{\"role\":\"user\"}]", "m: messages[0].content: found nothing, expected a string"},
        {"[{\"content\":\"x\"}]", "m: messages[0].role: found nothing, expected a string"},
        {"[{\"role\":\"user\",\"content\":null}]",
         "m: messages[0].content: found null, expected a string"},
        {"[{\"role\":\"user\",\"content\":[]}]",
         "m: messages[0].content: found an array, expected a string"},
        {"[{\"role\":\"user\",\"content\":\"\"},{\"role\":\"tool\",\"content\":\"x\"}]",
         "m: messages[1].role: found \"tool\", expected no tool messages (render the text "
         "elsewhere and pass --tokens)"},
        {"[", "m: byte 1: found the end of the text, expected a value"},
    };
    static const char two[] = "[{\"role\":\"user\",\"content\":\"Hi\\u0000\"},"
                              "{\"content\":\"Ho\",\"role\":\"any\"}]";
    static const char want[] = "<|im_start|>user\nHi\0<|im_end|>\n<|im_start|>any\nHo<|im_end|>\n"
                               "<|im_start|>assistant\n";
    char folder[1024];
    uint8_t *chat_template = NULL, *text = NULL;
    size_t n = 0, length = 0;
    q3_error error = {""};
    snprintf(folder, sizeof folder, "%s/tiny", golden);
    CHECKF(q3_chat_template(folder, &chat_template, &n, &error) == Q3_OK, "%s", error.text);
    if (chat_template == NULL) return;
    CHECK(q3_chat_render(chat_template, n, "m", two, strlen(two), 0, &text, &length, &error) ==
          Q3_OK);
    CHECK(text != NULL && length == sizeof want - 1 && memcmp(text, want, sizeof want) == 0);
    free(text);
    text = NULL;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        CHECK(q3_chat_render(chat_template, n, "m", refused[i][0], strlen(refused[i][0]), 0, &text,
                             &length, &error) == Q3_ERROR_INPUT);
        CHECK_TEXT(error.text, refused[i][1]);
    }
    chat_template[0] = ' ';
    CHECK(q3_chat_render(chat_template, n, "m", two, strlen(two), 0, &text, &length, &error) ==
          Q3_ERROR_INPUT);
    CHECK(strstr(error.text, "chat template: found a text with SHA-256 ") == error.text);
    CHECK(text == NULL);
    free(chat_template);
    chat_template = NULL;
    CHECK(q3_chat_template(golden, &chat_template, &n, &error) != Q3_OK && chat_template == NULL);
    CHECK(strstr(error.text, "tokenizer_config.json") != NULL);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_chat GOLDEN\n");
        return 2;
    }
    test_sha256();
    test_cases(argv[1]);
    test_more_keys();
    test_public(argv[1]);
    return t_done("chat");
}
