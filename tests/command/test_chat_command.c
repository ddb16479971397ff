/* SPDX-License-Identifier: MIT */
/* `qwen3moe` on chats (tokenize --chat and --text, generate --user and --chat), and selftest.
 * Rendered texts and ids are those of transformers 5.17.0's apply_chat_template on golden/tiny.
 *
 *   test_chat_command COMMAND GOLDEN */
#define FOLDER "chat_command.tmp/"
#include "command.h"

#define USER "<|im_start|>user\nIn the beginning<|im_end|>\n"
#define LONG "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n" \
    "<|im_start|>assistant\nAdam.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
#define PROMPT "<|im_start|>assistant\n"
#define USER_IDS "2001 399 266 198 40 77 258 1794 1248 2002 198"
#define PROMPT_IDS " 2001 524 596 473 198"
#define LONG_IDS "2001 82 88 313 480 198 33 68 270 358 750 13 2002 198 2001 399 266 198 54 430 " \
    "30 2002 198 2001 524 596 473 198 32 67 346 13 2002 198 2001 399 266 198 1059 30 2002 198"

static void write_chats(void)
{
    write_text(FOLDER "w/user", "[{\"role\":\"user\",\"content\":\"In the beginning\"}]");
    write_text(FOLDER "w/long",
               "[{\"role\":\"system\",\"content\":\"Be brief.\"},"
               "{\"role\":\"user\",\"content\":\"Who?\"},"
               "{\"role\":\"assistant\",\"content\":\"Adam.\"},"
               "{\"role\":\"user\",\"content\":\"And?\"}]");
    write_text(FOLDER "w/none", "[]");
    write_text(FOLDER "w/bad", "[{\"role\":\"user\"");
}

static void test_tokenize(void)
{
    static const struct { const char *arguments, *out; } cases[] = {
        {"--chat w/user", USER_IDS PROMPT_IDS "\n"},
        {"--chat w/user --no-generation-prompt", USER_IDS "\n"},
        {"--chat w/user --no-thinking", USER_IDS PROMPT_IDS "\n"}, /* this template knows none */
        {"--chat w/long", LONG_IDS PROMPT_IDS "\n"},
        {"--chat w/long --no-generation-prompt", LONG_IDS "\n"},
        {"--chat w/user --text", USER PROMPT}, {"--chat w/long --text", LONG PROMPT},
        {"--chat w/long --text --no-generation-prompt", LONG}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        run("tokenize tiny %s", cases[i].arguments);
        succeeds(cases[i].out);
    }
    shell("\"$Q\" tokenize tiny --chat - --text <w/user");
    succeeds(USER PROMPT);
}

/* --user, --chat and the ids of what they render are one prompt. */
static void test_generate(void)
{
    static const int32_t ids[] = {2001, 399, 266, 198, 40, 77, 258, 1794, 1248, 2002, 198, 2001,
                                  524, 596, 473, 198};
    char want[256], tokens[256];
    const char *const prompts[] = {"--chat w/user", tokens,
                                   "--user --no-thinking 'In the beginning'"};
    snprintf(tokens, sizeof tokens, "--tokens %.200s", spell(ids, COUNT(ids), ","));
    run("generate tiny --user 'In the beginning' -n 6 --ids");
    CHECKF(last.status == 0 && last.size > 8, "%s", last.err);
    snprintf(want, sizeof want, "%.250s", last.out);
    for (size_t i = 0; i < COUNT(prompts); i++) {
        run("generate tiny %s -n 6 --ids", prompts[i]);
        CHECKF(last.status == 0, "%s", last.err);
        CHECK_TEXT(last.out, want);
    }
}

/* The template of tokenizer_config.json where there is no chat_template.jinja: the same one. */
static void test_config(void)
{
    static const struct { const char *text, *message; } broken[] = {
        {"{}", "t/tokenizer_config.json: chat_template: found nothing, expected a string"},
        {"{\"chat_template\":[]}",
         "t/tokenizer_config.json: chat_template: found an array, expected a string"},
        {"{\"chat_template\":", "t/tokenizer_config.json: byte 17: found the end of the text, "
                               "expected a value"}};
    shell("mkdir t && cp tiny/tokenizer.json t");
    succeeds("");
    run("tokenize t --chat w/user --text");
    fails("cannot read t/tokenizer_config.json: no such file");
    for (size_t i = 0; i < COUNT(broken); i++) {
        write_text(FOLDER "t/tokenizer_config.json", broken[i].text);
        run("tokenize t --chat w/user --text");
        fails(broken[i].message);
    }
    write_text(FOLDER "t/tokenizer_config.json",
               "{\"chat_template\": \"{%- for message in messages %}\\n    {{- '<|im_start|"
               ">' + message.role + '\\\\n' + message.content + '<|im_end|>\\\\n' }}\\n{%- "
               "endfor %}\\n{%- if add_generation_prompt %}\\n    {{- '<|im_start|>assistan"
               "t\\\\n' }}\\n{%- endif %}\\n\"}");
    run("tokenize t --chat w/user --text");
    succeeds(USER PROMPT);
    run("tokenize t --chat w/none");
    fails_with("w/none: ");
    run("tokenize t --chat w/bad");
    fails_with("w/bad: byte ");
}

/* Six checks and the hash of all operators, which golden/bits' platforms have in common. */
static void test_selftest(void)
{
    size_t holds = 0;
    run("selftest");
    succeeds(NULL);
    for (const char *p = last.out; (p = strstr(p, ": holds\n")) != NULL; p++) holds++;
    CHECKF(holds == 7, "%s", last.out);
    CHECK(strstr(last.out, "\noperators e44155dc59f230f8: holds\n") != NULL);
    CHECK(strstr(last.out, "\nproducts fused into sums ") != NULL);
    CHECK(strstr(last.out, "\nbyte order ") != NULL && strncmp(last.out, "compiler ", 9) == 0);
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    write_chats();
    test_tokenize();
    test_generate();
    test_config();
    test_selftest();
    return t_done("chat_command");
}
