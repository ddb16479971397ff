/* SPDX-License-Identifier: MIT */
/* What start.c offers to a program without an operating system. */
#ifndef Q3_BAREMETAL_START_H
#define Q3_BAREMETAL_START_H

/* To the host's console. */
void host_write(const char *text);
/* Ends the program; the emulator takes the status as its own. */
void host_exit(int status);

#endif
