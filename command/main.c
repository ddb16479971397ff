/* SPDX-License-Identifier: MIT */
/* main.c - the `qwen3moe` command. */
#include "command/command.h"

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

/* Called by Q3_CHECK in this build. */
void q3_abort(const char *file, int line, const char *text)
{
    fprintf(stderr, "qwen3moe: %s:%d: broken precondition: %s\n", file, line, text);
    abort();
}

/* What was printed reached its place, or an error says so. */
static int finish(q3_status status, q3_error *error)
{
    if ((status == Q3_OK || status == VERB_DIFFERS) && (fflush(stdout) != 0 || ferror(stdout)))
        status = q3_fail(error, Q3_ERROR_FILE, "cannot write standard output");
    if (status == Q3_OK) return 0;
    if (status == VERB_DIFFERS) return 1;
    fflush(stdout);
    fprintf(stderr, "qwen3moe: %s\n", error->text);
    return 2;
}

int main(int argc, char **argv)
{
    q3_error error = {""};
#ifdef _WIN32
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("qwen3moe %s\n", q3_version());
        return finish(Q3_OK, &error);
    }
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        print_help(NULL);
        return finish(Q3_OK, &error);
    }
    const verb_row *verb = find_verb(argc > 1 ? argv[1] : NULL, &error);
    if (verb == NULL) return finish(Q3_ERROR_INPUT, &error);
    command_line command;
    q3_status status = read_command_line(&command, verb, argc, argv, &error);
    if (status == Q3_OK && command.value[OPTION_HELP] != NULL)
        print_help(verb);
    else if (status == Q3_OK)
        status = run_verb(verb, &command, &error);
    free_command_line(&command);
    return finish(status, &error);
}
