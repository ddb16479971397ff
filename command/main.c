/* SPDX-License-Identifier: MIT */
/* main.c - the `qwen3moe` command. */
#include "command/command.h"

#include <stdlib.h>
#include <string.h>

/* Called by Q3_CHECK in this build. */
void q3_abort(const char *file, int line, const char *text)
{
    say(stderr, "qwen3moe: %s:%d: broken precondition: %s\n", file, line, text);
    remove_temporaries();
    abort();
}

/* What was printed reached its place, or an error says so. */
static int finish(q3_status status, q3_error *error)
{
    if (status == Q3_OK || status == VERB_DIFFERS) {
        q3_status printed = check_printed(error);
        if (printed != Q3_OK) status = printed;
    }
    if (status == Q3_OK) return 0;
    if (status == VERB_DIFFERS) return 1;
    fflush(stdout);
    say(stderr, "qwen3moe: %s\n", error->text);
    return 2;
}

int main(int argc, char **argv)
{
    q3_error error = {""};
    q3_status status = system_begin(&argc, &argv, &error);
    if (status != Q3_OK) return finish(status, &error);
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        say(stdout, "qwen3moe %s\n", q3_version());
        return finish(Q3_OK, &error);
    }
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        print_help(NULL);
        return finish(Q3_OK, &error);
    }
    const verb_row *verb = find_verb(argc > 1 ? argv[1] : NULL, &error);
    if (verb == NULL) return finish(Q3_ERROR_INPUT, &error);
    command_line command;
    status = read_command_line(&command, verb, argc, argv, &error);
    if (status == Q3_OK && command.value[OPTION_HELP] != NULL)
        print_help(verb);
    else if (status == Q3_OK)
        status = run_verb(verb, &command, &error);
    free_command_line(&command);
    return finish(status, &error);
}
