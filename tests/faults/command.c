/* SPDX-License-Identifier: MIT */
/* command.c - the command's main function, to be called. */
int command_main(int argc, char **argv);
#define main command_main
#include "command/main.c"
