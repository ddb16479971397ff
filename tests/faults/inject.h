/* SPDX-License-Identifier: MIT */
/* inject.h - libc's calls that can fail, counted, and made to fail one after the other.
 *
 * The linker puts the functions of inject.c in front of libc's (--wrap, for the names in
 * wrapped.txt). A run is done twice. First its calls are counted, by site: the call and the
 * functions that led to it. Then it runs again and forks at each call that was chosen: the child
 * sees that call fail and runs to its end, while the run itself goes on as if nothing had been. So
 * a fault costs what the program does behind it alone. */
#ifndef Q3_TESTS_FAULTS_INJECT_H
#define Q3_TESTS_FAULTS_INJECT_H

#include <stdbool.h>
#include <stddef.h>

typedef enum inject_kind {
    INJECT_ALLOCATE, INJECT_OPEN, INJECT_STATUS, INJECT_LOCK, INJECT_READ, INJECT_MAP,
    INJECT_WRITE, INJECT_FLUSH, INJECT_SYNC, INJECT_SEEK, INJECT_RENAME, INJECT_CLOSE,
    INJECT_REMOVE, INJECT_HINT,
    INJECT_KINDS
} inject_kind;

typedef enum inject_mode {
    INJECT_ONCE,    /* this call fails */
    INJECT_FROM_ON, /* and every later one: those of memory, or those of files */
    INJECT_PART,    /* it reads or writes a half, and fails then */
    INJECT_MODES
} inject_mode;

/* Which calls of a site fail. */
typedef enum inject_extent {
    INJECT_FEW,  /* the first one, once */
    INJECT_SOME, /* the first, the second and the last, in each mode */
    INJECT_EVERY /* all, in each mode */
} inject_extent;

/* A fault, and what the run that saw it has left when it ended. */
typedef struct inject_fault {
    inject_kind kind;
    inject_mode mode;
    size_t call;         /* of its site, from 1 on */
    bool first;          /* of the site's faults */
    int error;           /* errno */
    bool on_output;      /* it may be a write to standard output */
    bool on_messages;    /* or to standard error */
} inject_fault;

typedef struct inject_left {
    bool returned;       /* from its main function */
    long blocks, files, mappings; /* that were not given back */
    char outside[200];   /* a path outside its folder that was written; "" */
} inject_left;

/* What a fault does to the program that runs them: `enter` in the child, before the call fails, and
 * `ended` in the parent, with the child's status as of waitpid. */
typedef struct inject_hooks {
    void (*enter)(void);
    void (*ended)(const inject_fault *fault, int status);
} inject_hooks;

extern const char *const inject_kind_names[INJECT_KINDS];

/* No site is known. In the process that the two runs are children of. */
void inject_forget(void);
/* From here on calls are counted. */
void inject_count(void);
/* From here on they fail. */
void inject_start(inject_extent extent, const inject_hooks *hooks);
/* No call counts or fails; goes on with what was begun. */
void inject_stop(void);
void inject_go_on(void);
/* What failed from some call on works again. */
void inject_heal(void);
/* Of the last inject_count: how many places called, and how often. */
void inject_totals(size_t *sites, size_t *calls);
/* What the run that called inject_count or inject_start, or a child of it, has not given back. */
void inject_report(inject_left *left);
/* From here on nothing fails or counts, but the process ends, as if the power were gone, at a call
 * of fsync. */
void inject_end_at_sync(size_t call);
/* Opens every file of the run again by its path, in the folder where the process is now. */
void inject_reopen(void);
/* Where the run is, on standard error; with a sanitizer. */
void inject_trace(void);

#endif
