/* SPDX-License-Identifier: MIT */
/* command.h - what the files of the `qwen3moe` command share. Private: one file a verb,
 * options.c and session.c for all. */
#ifndef Q3_COMMAND_H
#define Q3_COMMAND_H

#include "host/files.h"
#include "host/text.h"
#include "qwen3moe.h"

#include <stdio.h>
#include <time.h>

typedef enum option_id {
    OPTION_ACCUMULATE, OPTION_ALL, OPTION_CHAT, OPTION_CHUNK, OPTION_DECODE, OPTION_DTYPE,
    OPTION_FREE, OPTION_FROM, OPTION_HTML, OPTION_IDS, OPTION_JSON, OPTION_JSON_FILE,
    OPTION_JSONL, OPTION_JUNIT, OPTION_KV, OPTION_LAYER, OPTION_LAYERS, OPTION_N,
    OPTION_NO_GENERATION_PROMPT, OPTION_NO_THINKING, OPTION_OUTPUT, OPTION_PROMPT,
    OPTION_REQUIRE, OPTION_RESUME, OPTION_ROUTER, OPTION_SEED, OPTION_START, OPTION_STRICT,
    OPTION_TAPS, OPTION_TEMPERATURE, OPTION_TEXT, OPTION_TOKENS, OPTION_TOP_K, OPTION_TOP_P,
    OPTION_USER, OPTION_HELP,
    OPTION_COUNT
} option_id;

/* A command line, taken apart. Texts belong to argv. */
typedef struct command_line {
    const char *model;                /* first operand */
    const char *operand;              /* second operand, or NULL */
    const char **operands;            /* all of them, in order */
    size_t operand_count;
    const char *value[OPTION_COUNT];  /* NULL: not given; "" for an option without a value */
    const char **taps;                /* every --taps, in order */
    size_t tap_count;
    const char **require;             /* every --require, in order */
    size_t require_count;
    char *text;                       /* all of it, as a shell would read it; owned */
} command_line;

/* The verbs. Each prints its result on standard output; on an error nothing is left behind. */
q3_status verb_info(const command_line *command, q3_error *error);
q3_status verb_taps(const command_line *command, q3_error *error);
q3_status verb_tokenize(const command_line *command, q3_error *error);
q3_status verb_generate(const command_line *command, q3_error *error);
q3_status verb_score(const command_line *command, q3_error *error);
q3_status verb_dump(const command_line *command, q3_error *error);
q3_status verb_check(const command_line *command, q3_error *error);
q3_status verb_diff(const command_line *command, q3_error *error);
q3_status verb_report(const command_line *command, q3_error *error);
q3_status verb_selftest(const command_line *command, q3_error *error);

/* ==== The command line (options.c) ============================================================ */

typedef struct verb_row verb_row;

/* The verb of this name (NULL: none is given); NULL and a message: there is none. */
const verb_row *find_verb(const char *name, q3_error *error);
/* verb NULL: of the whole command. */
void print_help(const verb_row *verb);
/* argv[2..] of a verb. Options may stand anywhere before "--"; "-" is an operand. Whatever comes
 * of it: free_command_line. */
q3_status read_command_line(command_line *command, const verb_row *verb, int argc, char **argv,
                            q3_error *error);
void free_command_line(command_line *command);
q3_status run_verb(const verb_row *verb, const command_line *command, q3_error *error);
/* "--tokens" */
const char *option_name(option_id option);
/* An unsigned integer in decimal at [text, end); false for anything else. */
bool parse_integer(const char *text, const char *end, uint64_t *value);

/* What a verb returns for exit status 1: it worked, and what it compared differs. */
#define VERB_DIFFERS ((q3_status)1)

/* The value of an integer option in [least, most]; `absent` if it was not given. */
q3_status integer_option(const command_line *command, option_id option, uint64_t least,
                         uint64_t most, uint64_t absent, uint64_t *value, q3_error *error);
/* The value of a decimal option; `absent` if it was not given. */
q3_status number_option(const command_line *command, option_id option, double absent, double *value,
                        q3_error *error);

/* ==== Tokens, model, progress (session.c) ===================================================== */

/* Tokens of a run, owned (free). */
typedef struct token_list {
    int32_t *ids;
    size_t count;
} token_list;

/* The tokens of --tokens, or of `text`, or of standard input if text is NULL or "-". */
q3_status read_tokens(const command_line *command, const char *text, token_list *tokens,
                      q3_error *error);
/* The model's tokenizer.json. */
q3_status open_tokenizer(q3_tokenizer **tokenizer, const command_line *command, q3_error *error);
/* The tokens of text[0..length); `name` for messages. tokenizer.json of the model is read. */
q3_status encode_text(const command_line *command, const char *name, const uint8_t *text,
                      size_t length, token_list *tokens, q3_error *error);
/* The options of a chat stand beside one. */
q3_status check_chat_options(const command_line *command, q3_error *error);
/* What the model's chat template makes of the messages in --chat's file, or of one user turn if
 * user is not NULL; owned. */
q3_status render_chat(const command_line *command, const uint8_t *user, size_t user_length,
                      uint8_t **text, size_t *length, q3_error *error);
/* A model with its weights and an empty state. */
typedef struct q3_session {
    q3_model *model;
    const q3_config *config;
    q3_run run;
    void *memory;
    size_t memory_size;
    q3_state *state;
    float *hidden; /* [rows,M], of a run layer by layer */
} q3_session;

/* Opens the config (session->config) and reads --dtype and --layers into session->run. */
q3_status session_open(q3_session *session, const command_line *command, q3_error *error);
/* Loads the weights that session->run needs; its dtype Q3_AUTO becomes what they are. */
q3_status session_load_weights(q3_session *session, q3_error *error);
/* Loads the weights and makes a state for run.start, run.rows, run.chunk and run.logit_rows, 0 of
 * which are so many that logits take at most 16 MB: the tap then sees them in pieces. */
q3_status session_load(q3_session *session, const command_line *command, q3_error *error);
/* Its two parts: run.logit_rows that were 0, and memory for a state of this run. */
void session_limit_logits(q3_session *session);
q3_status session_take_memory(q3_session *session, const q3_run *run, const char *model,
                              q3_error *error);
void session_close(q3_session *session);
/* Every id is in the vocabulary, there is at least one, and start + count positions exist. */
q3_status session_check_tokens(const q3_session *session, const token_list *tokens, size_t more,
                               q3_error *error);

bool is_terminal(FILE *file);

/* Work of which something is shown; what is set, the rest zeros. */
typedef struct progress {
    const char *what;
    time_t begin; /* of the first call, which had done so much */
    size_t before;
    bool begun;
} progress;

/* "what 3 of 94, 5 min left" on standard error, if that is a terminal; done == all ends the line.
 * The time that is left is what the rest takes if it goes on as it went since the first call. */
void show_progress(progress *shown, size_t done, size_t all);

/* ==== Layer by layer (stream.c) =============================================================== */

/* How many tokens go through a layer together, where the user does not say: the state of so many
 * takes some 200 MB with the largest published models. */
#define TOKENS_AT_ONCE 512

/* A run of session->run, layer by layer. */
typedef struct layer_pass {
    const char *what;      /* for show_progress */
    const int32_t *tokens; /* [rows], where it starts at layer 0; else session->hidden is filled */
    size_t begin;          /* 0, or: all tokens are through the layers below this one */
    bool logits;           /* of every token, where the last layer is the model's */
    bool head_only;        /* the tap sees the last layer and what follows alone */
    q3_tap_fn *tap;        /* sees what it would see in one call of q3_forward, but by layers */
    /* All tokens are through the layers below `next`, and session->hidden is what that one starts
     * from. NULL: nobody wants to know. */
    q3_status (*done)(void *user, size_t next, q3_error *error);
    void *user;
} layer_pass;

/* As session_load, but with memory for one layer at a time. */
q3_status session_load_layers(q3_session *session, const command_line *command, q3_error *error);
q3_status session_run_layers(const q3_session *session, const layer_pass *pass, q3_error *error);

/* ==== Runs that may be interrupted (resume.c) ================================================= */

/* What a run is, and the file FILE.part.state, which says so beside the unfinished FILE.part: the
 * layers that are through, and the hidden states that the next one starts from. */
typedef struct resumable {
    const q3_session *session;
    char *part, *path;        /* owned */
    const char *metadata[24]; /* what the run is: key, value, ..., NULL */
    size_t pairs;
} resumable;

/* For a run that writes FILE; what is added must outlive it. */
q3_status resumable_open(resumable *run, const q3_session *session, const char *file,
                         q3_error *error);
void resumable_add(resumable *run, const char *key, const char *value);
/* *next is the layer to go on with, and session->hidden what it starts from; 0: one of the files is
 * missing, so nothing was done. An error if they are of another run. */
q3_status resumable_read(const resumable *run, size_t *next, q3_error *error);
/* All layers below next are through. */
q3_status resumable_save(const resumable *run, size_t next, q3_error *error);
/* The run is complete. */
void resumable_remove(const resumable *run);
void resumable_close(resumable *run);

/* ==== Reports (report.c) ====================================================================== */

typedef struct q3_report q3_report;

/* The files of --json, --html and --junit, opened before the work: none is an input or another
 * output, and each can be created. */
#define REPORT_OUTPUTS 3
typedef struct report_outputs {
    q3_output *file[REPORT_OUTPUTS]; /* NULL: not asked for, or written */
    bool standard;                   /* one of them is standard output, and has it alone */
} report_outputs;

q3_status open_outputs(report_outputs *outputs, const command_line *command, q3_error *error);
/* The text to standard output, then the files; what the verb returns. name: of what was judged. */
q3_status write_report(const command_line *command, const char *name, const q3_report *report,
                       report_outputs *outputs, q3_error *error);
/* Where it came to no report; what was written stays. */
void abandon_outputs(report_outputs *outputs);
/* show_progress, for the judge; user: a progress. */
void report_progress(void *user, const char *what, size_t done, size_t all);

#endif
