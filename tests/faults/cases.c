/* SPDX-License-Identifier: MIT */
/* cases.c - see cases.h. */
#define _POSIX_C_SOURCE 200809L
#include "faults/cases.h"
#include "faults/inject.h"
#include "qwen3moe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ==== Inputs ================================================================================== */

const char *const shell_lines[] = {
    "cp -R \"$G/tiny\" tiny && chmod -R u+w tiny && mkdir small sharded fp8",
    "cp \"$G/tokenizer/small.json\" small/tokenizer.json && cp tiny/config.json small",
    "cp tiny/*.json tiny/*.jinja sharded",
    "cp \"$G\"/fp8/config.json \"$G\"/fp8/model.safetensors fp8",
    "cp \"$G\"/fp8/taps-float32.safetensors \"$G\"/fp8/wrong-scale.safetensors .",
    "cp \"$G\"/gguf/q8_0.gguf \"$G\"/gguf/q8_0.safetensors .",
    "cp \"$G\"/../tests/fuzz/corpus/gguf/tokenizer words.gguf",
    "printf 'In the beginning was the' >text",
    "printf '40 77 258' >ids",
    "printf '\"In the\"\\n\"be\\\\u0301\"\\n' >lines.jsonl",
    "printf '[{\"role\":\"user\",\"content\":\"In the beginning\"}]' >chat.json",
    "printf 'what was there' >old",
};
const size_t shell_line_count = COUNT(shell_lines);

const made_input made[] = {
    {"dump $I/tiny --tokens 40,77,258 --dtype float32 -o full.safetensors", 0, 0},
    {"dump $I/tiny --tokens 40,77,258 --layers 0:1 -o front.safetensors", 0, 0},
    {"dump $I/tiny --tokens 40,77,259 --layers 0:1 -o other.safetensors", 0, 0},
    {"check $I/tiny $I/full.safetensors --layers 0:2 --json 0.jsonl", 0, 0},
    {"check $I/tiny $I/full.safetensors --layers 2:5 --json 1.jsonl", 0, 0},
    /* Two files for --resume: the second layer was not saved. */
    {"dump $I/tiny --tokens 40,77 --layers 0:3 -o unfinished --resume", 0, 3},
};
const size_t made_count = COUNT(made);

static void write_shard(const q3_tensors *all, const char *folder, size_t part)
{
    char path[1200];
    q3_entry entries[2000];
    float *values = NULL;
    size_t count = 0, of[2000];
    q3_writer *writer;
    for (size_t i = part; i < q3_tensors_count(all); i += 2) {
        of[count] = i;
        entries[count++] = *q3_tensors_at(all, i);
    }
    snprintf(path, sizeof path, "%s/part-%zu.safetensors", folder, part);
    if (q3_writer_open(&writer, path, entries, count, (const char *[]){NULL}, NULL) != Q3_OK)
        abort();
    for (size_t i = 0; i < count; i++) {
        uint64_t size = 1;
        for (size_t r = 0; r < entries[i].rank; r++) size *= entries[i].shape[r];
        values = realloc(values, (size_t)size * sizeof *values);
        if (values == NULL) abort();
        q3_entry_floats(values, q3_tensors_at(all, of[i]), 0, (size_t)size);
        if (q3_writer_floats(writer, i, 0, values, (size_t)size, NULL) != Q3_OK) abort();
    }
    if (q3_writer_commit(writer, NULL) != Q3_OK) abort();
    free(values);
}

void shard(const char *file, const char *folder)
{
    char path[1200];
    q3_tensors *all;
    if (q3_tensors_open(&all, file, NULL) != Q3_OK) abort();
    for (size_t part = 0; part < 2; part++) write_shard(all, folder, part);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    FILE *index = fopen(path, "w");
    if (index == NULL) abort();
    fprintf(index, "{\"metadata\":{},\"weight_map\":{");
    for (size_t i = 0; i < q3_tensors_count(all); i++)
        fprintf(index, "%s\"%s\":\"part-%zu.safetensors\"", i > 0 ? "," : "",
                q3_tensors_at(all, i)->name, i % 2);
    fprintf(index, "}}");
    fclose(index);
    q3_tensors_close(all);
}

int command_again(int argc, char **argv)
{
    int status = command_main(argc, argv);
    if (status != 2) return status;
    inject_heal();
    if (ftruncate(2, 0) != 0) return 3; /* what is said of the fault */
    return command_main(argc, argv);
}

/* ==== Cases =================================================================================== */

#define VERB(name, arguments, status, ...) {name, command_main, arguments, status, __VA_ARGS__}
#define EVERY .extent = INJECT_EVERY, .small = true
#define SOME .extent = INJECT_SOME
#define FEW .extent = INJECT_FEW

const fault_case cases[] = {
    VERB("version", "--version", 0, EVERY),
    VERB("help", "dump --help", 0, EVERY),
    VERB("bad-verb", "verbs", 2, EVERY),
    VERB("selftest", "selftest", 0, EVERY),
    VERB("info", "info $I/tiny", 0, EVERY),
    VERB("info-json", "info $I/fp8 --json", 0, EVERY),
    VERB("info-gguf", "info $I/q8_0.gguf", 0, SOME),
    VERB("taps", "taps $I/tiny --layer 1", 0, SOME),
    VERB("taps-json", "taps $I/tiny --layer 1 --json", 0, SOME),
    VERB("tokenize", "tokenize $I/small hello", 0, EVERY),
    VERB("tokenize-tiny", "tokenize $I/tiny - ", 0, SOME, .input = "text"),
    VERB("tokenize-gguf", "tokenize $I/words.gguf lower", 0, SOME),
    VERB("tokenize-lines", "tokenize $I/small --jsonl", 0, EVERY, .input = "lines.jsonl"),
    VERB("tokenize-back", "tokenize $I/tiny --decode", 0, SOME, .input = "ids"),
    VERB("tokenize-chat", "tokenize $I/tiny --chat $I/chat.json --text", 0, EVERY),
    VERB("generate", "generate $I/tiny --tokens 40,77 -n 3 --ids", 0, SOME),
    VERB("generate-text", "generate $I/tiny -n 3 --top-k 4 --seed 1", 0, SOME, .input = "text"),
    VERB("generate-chat", "generate $I/tiny --chat $I/chat.json -n 2", 0, SOME),
    VERB("generate-user", "generate $I/tiny be --user -n 2", 0, SOME),
    VERB("generate-sharded", "generate $I/sharded --tokens 40,77 -n 2 --ids", 0, SOME),
    VERB("generate-gguf", "generate $I/q8_0.gguf --tokens 4,7 -n 2 --ids", 0, SOME),
    VERB("score", "score $I/tiny $I/text", 0, SOME),
    VERB("score-lines", "score $I/tiny - --jsonl", 0, SOME, .input = "text"),
    VERB("dump", "dump $I/tiny --tokens 40,77,258 --layers 0:2 -o x", 0, SOME),
    VERB("dump-over", "dump $I/tiny --prompt be --layers 0:1 -o x", 0, SOME,
         .before = {{"old", "x"}}),
    VERB("dump-standard", "dump $I/tiny --tokens 40,77 --layers 0:1 -o -", 0, SOME),
    VERB("dump-from", "dump $I/tiny --from $I/front.safetensors --layers 1:2 -o x", 0, SOME),
    VERB("dump-fp8", "dump $I/fp8 --tokens 4,7 -o x --taps *layers.0.*", 0, SOME),
    VERB("dump-gguf", "dump $I/q8_0.gguf --tokens 4,7 --layers 0:1 -o x", 0, SOME),
    VERB("dump-sharded", "dump $I/sharded --tokens 40 --layers 0:1 -o x", 0, SOME),
    VERB("dump-resume", "dump $I/tiny --tokens 40,77 --layers 0:3 -o x --resume", 0, SOME,
         .unfinished = "x.part"),
    VERB("dump-go-on", "dump $I/tiny --tokens 40,77 --layers 0:3 -o x --resume", 0, SOME,
         .unfinished = "x.part",
         .before = {{"unfinished.part", "x.part"}, {"unfinished.part.state", "x.part.state"}}),
    {"dump-again", command_again, "dump $I/tiny --tokens 40,77 --layers 0:3 -o x --resume", 0, FEW,
     .unfinished = "x.part"},
    VERB("dump-onto-input", "dump $I/tiny --from x --layers 1:2 -o ./x", 2, EVERY,
         .before = {{"front.safetensors", "x"}}),
    VERB("dump-onto-model", "dump $I/tiny --tokens 40 -o $I/tiny/config.json", 2, EVERY),
    VERB("check", "check $I/tiny $I/full.safetensors --layers 0:2", 0, SOME),
    VERB("check-reports", "check $I/fp8 $I/taps-float32.safetensors --layers 0:1 --json a --html b "
         "--junit c", 0, SOME, .before = {{"old", "b"}}),
    VERB("check-differs", "check $I/fp8 $I/wrong-scale.safetensors --layers 0:1 --html b --json -",
         1, FEW),
    VERB("check-two", "check $I/fp8 $I/taps-float32.safetensors $I/wrong-scale.safetensors --junit "
         "c --layers 0:1", 1, FEW),
    VERB("check-gguf", "check $I/q8_0.gguf $I/q8_0.safetensors --accumulate q8", 0, FEW),
    VERB("check-other-tokens", "check $I/tiny $I/front.safetensors --tokens 40,77,259", 2, SOME),
    VERB("check-onto-input", "check $I/tiny x --json ./x", 2, EVERY,
         .before = {{"front.safetensors", "x"}}),
    VERB("diff", "diff $I/front.safetensors $I/front.safetensors --all", 0, SOME),
    VERB("diff-differs", "diff $I/front.safetensors $I/other.safetensors --html b --json c", 1,
         SOME),
    VERB("report", "report $I/0.jsonl $I/1.jsonl --html b --json c --junit d", 0, SOME),
    {"library", library_main, "$I", 0, SOME},
    {"judge", judge_main, "$I", 0, FEW},
};
const size_t case_count = COUNT(cases);
