/* SPDX-License-Identifier: MIT */
/* `qwen3moe`: no output takes the place of an input, and no result is lost because another could
 * not be written.
 *
 *   test_outputs COMMAND GOLDEN
 *
 * Here M is a copy of golden/tiny, S a folder with an index and shards, H one of links as Hugging
 * Face's cache has them, g-0000N-of-00003.gguf a file in parts; a, b and from are dumps, one and
 * two are reports. That nothing is read before the outputs are looked at is shown by S and g, which
 * hold nothing that could be read. */
#define FOLDER "outputs.tmp/"
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of command.h */
#endif
#include "command.h"

#include "host/files.h"

/* ==== No output is an input =================================================================== */

/* A command that ends with the option that names its output. */
typedef struct use {
    const char *line, *option;
    const char *inputs; /* files that it must not replace */
} use;

#define MODEL_FILES "M/config.json M/generation_config.json M/model.safetensors M/tokenizer.json " \
                    "M/tokenizer_config.json M/chat_template.jinja M/notes.txt"
#define SHARDS "S/config.json S/model.safetensors.index.json S/model-00001-of-00002.safetensors " \
               "S/model-00002-of-00002.safetensors"
#define CACHE "H/config.json H/model.safetensors blobs/0123 blobs/4567"
#define PARTS "g-00001-of-00003.gguf g-00002-of-00003.gguf g-00003-of-00003.gguf"
#define REPORTS(line, inputs) \
    {line, "--json", inputs}, {line, "--html", inputs}, {line, "--junit", inputs}

static const use uses[] = {
    REPORTS("check M b", "b " MODEL_FILES),
    REPORTS("check M a b", "a b"),
    REPORTS("check S b", SHARDS),
    REPORTS("check H b", CACHE),
    REPORTS("check g-00002-of-00003.gguf b", PARTS),
    REPORTS("check M/ b", "b M/config.json"),
    REPORTS("diff a b", "a b"),
    REPORTS("report one two", "one two"),
    {"dump M --tokens 1,2", "-o", MODEL_FILES},
    {"dump S --tokens 1,2", "-o", SHARDS},
    {"dump H --tokens 1,2", "-o", CACHE},
    {"dump g-00001-of-00003.gguf --tokens 1,2", "-o", PARTS},
    {"dump M --layers 1:2 --from from", "-o", "from M/config.json"},
    {"dump M --layers 1:2 --from from --resume", "-o", "from M/model.safetensors"},
};

/* Each file under each of its names; prints what went otherwise than one line, exit status 2 and
 * everything as it was. */
static const char try_names[] =
    "line=$1 option=$2; shift 2\n"
    "for f in \"$@\"; do\n"
    "  rm -f hard soft chain; ln -L $f hard; ln -s $f soft; ln -s soft chain\n"
    "  ls -ARl . | sed 's/^total .*//; / try\\./d' >try.before\n"
    "  for p in $f ./$f way/../$f here/$f $PWD/$f hard soft chain; do\n"
    "    case $option$p in --*/*) join==;; *) join=' ';; esac\n"
    "    eval \"\\\"$Q\\\" $line $option$join$p\" >try.out 2>try.err\n"
    "    [ $? = 2 ] && [ ! -s try.out ] && [ $(wc -l <try.err) = 1 ] &&\n"
    "      grep -q \"^qwen3moe: $option: found $p, expected a\" try.err ||\n"
    "      echo \"$line $option$join$p: $(cat try.err)\"\n"
    "  done\n"
    "  ls -ARl . | sed 's/^total .*//; / try\\./d' | cmp - try.before\n"
    "  cmp $f kept/$f\n"
    "done\n"
    "rm -f hard soft chain\n";

static void make_folders(void)
{
    shell("exec 2>err; mv tiny M; chmod -R u+w M; rm -rf w; for f in generation_config.json "
          "tokenizer_config.json chat_template.jinja notes.txt; do [ -e M/$f ] || echo {} >M/$f; "
          "done; mkdir S H blobs way; ln -s . here; echo x >S/config.json; "
          "echo y >S/model.safetensors.index.json; echo 1 >S/model-00001-of-00002.safetensors; "
          "echo 2 >S/model-00002-of-00002.safetensors; cp M/config.json blobs/0123; "
          "cp M/model.safetensors blobs/4567; ln -s ../blobs/0123 H/config.json; "
          "ln -s ../blobs/4567 H/model.safetensors; for i in 1 2 3; do "
          "echo GGUF$i >g-0000$i-of-00003.gguf; done; "
          "for f in 'a --tokens 1,2' 'b --tokens 1,2' 'from --tokens 1,2 --layers 0:1'; do "
          "\"$Q\" dump M -o $f >try.out || exit; done; "
          "\"$Q\" check M a --json one --layers 0:2 >try.out && "
          "\"$Q\" check M a --json two --layers 2:5 >try.out && "
          "mkdir kept && cp -RL M S H blobs a b from one two g-* kept");
    succeeds("");
    write_text(FOLDER "try.sh", try_names);
}

static void test_inputs(void)
{
    char line[1024];
    for (size_t i = 0; i < COUNT(uses); i++) {
        snprintf(line, sizeof line, "Q=$Q sh try.sh '%s' %s %s", uses[i].line, uses[i].option,
                 uses[i].inputs);
        shell(line);
        CHECKF(last.status == 0 && last.size == 0 && last.err_size == 0, "%s%s", last.out,
               last.err);
    }
}

/* An option that names a file and is not known here fails: is what it names safe? */
static void test_every_option(void)
{
    static const char *const rows[][2] = {
        {"info", ""}, {"taps", ""}, {"generate", "--chat "}, {"tokenize", "--chat "},
        {"dump", "--from -o "}, {"check", "--html --json --junit "},
        {"diff", "--html --json --junit "}, {"report", "--html --json --junit "}, {"score", ""},
        {"selftest", ""},
    };
    char line[256];
    for (size_t i = 0; i < COUNT(rows); i++) {
        snprintf(line, sizeof line,
                 "\"$Q\" %s --help | sed -n 's/^  \\(-.*\\) FILE$/\\1/p' | tr '\\n' ' '",
                 rows[i][0]);
        shell(line);
        CHECK_TEXT(last.out, rows[i][1]);
    }
    shell("\"$Q\" --help | sed -n 's/^  \\([a-z]*\\) .*/\\1/p' | wc -l");
    CHECKF(atoi(last.out) == (int)COUNT(rows), "%s verbs", last.out);
}

/* ==== What --resume writes beside it ========================================================== */

#define RESUMED "dump M --layers 1:2 --from from -o x --resume"

static void test_resume(void)
{
    static const char *const suffixes[] = {".part", ".part.state", ".part.state.part"};
    char line[400], message[200];
    for (size_t i = 0; i < COUNT(suffixes); i++)
        for (int soft = 0; soft < 2; soft++) {
            snprintf(line, sizeof line, "ln %s from x%s", soft ? "-s" : "", suffixes[i]);
            shell(line);
            run(RESUMED);
            snprintf(message, sizeof message, "-o: found x%s, expected a file that is not read",
                     suffixes[i]);
            fails(message);
            shell("cmp from kept/from && rm x.*; ls x*");
            CHECK(last.size == 0);
        }
    /* What is no unfinished run is somebody's file. */
    for (size_t i = 0; i < COUNT(suffixes); i++) {
        snprintf(line, sizeof line, "cp M/config.json x%s", suffixes[i]);
        shell(line);
        run(RESUMED);
        snprintf(message, sizeof message, "-o: found x%s, expected a new file, or one that an "
                 "earlier run wrote", suffixes[i]);
        fails(message);
        shell("cmp x.* M/config.json; rm x.*; ls x*");
        CHECK(last.size == 0);
    }
    shell("cp from x.part");
    run("dump M --layers 1:2 --from x.part -o x --resume");
    fails("-o: found x.part, expected a file that is not read");
    shell("cmp x.part from && rm x.part");
    succeeds("");
}

/* ==== What is allowed ========================================================================= */

static void test_allowed(void)
{
    char line[256];
    for (int again = 0; again < 2; again++) { /* what is there then is what was written before */
        run("check M a --json M/j --html M/h --junit M/u");
        succeeds(NULL);
        run("dump M --tokens 1,2 -o M/d");
        succeeds(NULL);
        run("dump M --tokens 1,2 -o M/r --resume");
        succeeds(NULL);
        run("diff a b --html M/h --json M/j --junit M/u");
        succeeds(NULL);
    }
    shell("cp M/d M/r.part");
    run("dump M --tokens 1,2 -o M/r --resume");
    succeeds(NULL);
    shell("cmp M/r a && cmp M/d a && ls M | grep -c 'part'");
    CHECK_TEXT(last.out, "0\n");
    static const char *const others[] = {"h", "u", "d"}; /* of another kind */
    for (size_t i = 0; i < COUNT(others); i++) {
        run("check M a --json M/%s", others[i]);
        snprintf(line, sizeof line,
                 "--json: found M/%s, expected a new file, or one that an earlier run wrote",
                 others[i]);
        fails(line);
    }
    shell("rm M/j M/h M/u M/d M/r; : >M/j; ln -s nowhere M/l; echo old >old");
    run("check M a --json M/j --html old"); /* an empty file, a file of no model */
    succeeds(NULL);
    shell("head -c 7 M/j; head -c 9 old; rm M/j M/l old");
    CHECK_TEXT(last.out, "{\"run\":<!doctype");
}

/* ==== Standard input and output =============================================================== */

static void test_streams(void)
{
    static const failure reads[] = {
        {"check M b", "b"}, {"diff a b", "b"}, {"diff b a", "b"}, {"report two", "two"},
        {"report one two", "two"}, {"score M notes", "notes"},
        {"dump M --layers 1:2 --from from -o x", "from"}, {"generate M --chat chat", "chat"},
        {"tokenize M --chat chat", "chat"}, {"info M/config.json", "M/config.json"},
    };
    char line[300];
    shell("echo text >notes; echo '[]' >chat; cp notes chat kept");
    for (size_t i = 0; i < COUNT(reads); i++) {
        snprintf(line, sizeof line, "\"$Q\" %s >>%s", reads[i].arguments, reads[i].message);
        shell(line);
        snprintf(line, sizeof line, "standard output: found %s, expected a file that is not read",
                 reads[i].message);
        fails(line);
        snprintf(line, sizeof line, "cmp %s kept/%s", reads[i].message, reads[i].message);
        shell(line);
        CHECKF(last.status == 0, "%s is changed", reads[i].message);
    }
    /* The prompt is no file. */
    shell("\"$Q\" tokenize M notes >notes && \"$Q\" generate M notes --ids -n 1 >notes 2>try.err");
    succeeds("");
    static const char *const outputs[] = {"--json", "--html", "--junit"};
    for (size_t i = 0; i < COUNT(outputs); i++) {
        snprintf(line, sizeof line, "\"$Q\" report - %s two <two", outputs[i]);
        shell(line);
        snprintf(line, sizeof line, "%s: found two, expected a file that is not read", outputs[i]);
        fails(line);
        snprintf(line, sizeof line, "\"$Q\" diff a b %s here/x >>x; cat x", outputs[i]);
        shell(line);
        CHECKF(last.size == 0 && strstr(last.err, ": found here/x, expected another file than "
                                                  "standard output\n") != NULL, "%s", last.err);
        snprintf(line, sizeof line, "\"$Q\" diff a b %s /dev/stdout >x; \"$Q\" diff a b %s - >y; "
                 "sed -i 's|/dev/stdout|-|' x; cmp x y; rm x y", outputs[i],
                 outputs[i]);
        shell(line);
        succeeds("");
    }
    shell("\"$Q\" dump M --tokens 1,2 -o /dev/stdout 2>try.err >x && cmp x a && rm x && "
          "cmp two kept/two");
    succeeds("");
    shell("\"$Q\" diff a b --html /dev/stderr 2>x; grep -c 'expected another file than standard "
          "error$' x; rm x; ls -A /dev | grep '^std.*tmp'");
    CHECK_TEXT(last.out, "1\n");
    shell("\"$Q\" dump M --tokens 1,2 -o /dev/stdout | cmp - a");
    CHECKF(last.size == 0 && strncmp(last.err, "standard output: ", 17) == 0, "%s%s", last.out,
           last.err);
}

/* ==== Two outputs ============================================================================= */

static void test_apart(void)
{
    static const struct { const char *first, *second; } pairs[] = {
        {"x", "x"}, {"x", "./x"}, {"x", "way/../x"}, {"old", "hard"}, {"old", "soft"},
        {"-", "-"}, {"x.tmp0", "x"}, {"x", "x.tmp0"}, {"./x.tmp0", "here/x"},
    };
    static const char *const options[] = {"--json", "--html", "--junit"};
    char message[200];
    shell("echo old >old; ln old hard; ln -s old soft; ls -A >try.before");
    for (size_t p = 0; p < COUNT(pairs); p++)
        for (size_t i = 0; i < 3; i++)
            for (size_t k = 0; k < 3; k++) {
                if (i == k) continue;
                run("diff a b %s %s %s %s", options[i], pairs[p].first, options[k],
                    pairs[p].second);
                snprintf(message, sizeof message, ": found %s, expected another file than %s's",
                         k > i ? pairs[p].second : pairs[p].first, options[k > i ? i : k]);
                fails_with(message);
                CHECK(last.size == 0);
                shell("ls -A | cmp - try.before && grep -q old old");
                CHECKF(last.status == 0, "changed by two outputs %s and %s", pairs[p].first,
                       pairs[p].second);
            }
    shell("rm old hard soft");
}

/* ==== What was found out is told ============================================================== */

/* Each output that cannot be opened, behind and before one that can: said before anything is read
 * (there is no file nowhere), and nothing is left. */
static void test_unopened(void)
{
    static const char *const lines[] = {"check M nowhere", "check M nowhere b", "diff nowhere b",
                                        "report nowhere"};
    static const char *const options[] = {"--json", "--html", "--junit"};
    shell("ls -A >try.before");
    for (size_t v = 0; v < COUNT(lines); v++)
        for (size_t i = 0; i < 3; i++)
            for (size_t k = 0; k < 3; k++) {
                if (i == k) continue;
                run("%s %s no/where %s x", lines[v], options[i], options[k]);
                fails_with("cannot create no/where: no such folder");
                run("%s %s way %s x", lines[v], options[i], options[k]);
                fails_with("cannot write way: it is a folder");
            }
    run("dump M --tokens 1,2 -o no/where");
    fails("cannot create no/where: no such folder");
    run("dump M --tokens 1,2 -o no/where --resume");
    fails("cannot create no/where.part: no such folder");
    shell("ls -A | cmp - try.before");
    CHECKF(last.status == 0, "left behind: %s", last.out);
}

/* A disk that is full at the end: the text and the other reports are there, and the line. */
static void test_unwritten(void)
{
    static const char *const lines[] = {"check M a", "check M a b", "diff a b", "report one two"};
    char line[600];
    for (size_t v = 0; v < COUNT(lines); v++) {
        snprintf(line, sizeof line, "mkdir made && \"$Q\" %s --json j --html h --junit u >t && "
                 "ls -l h | awk '{print int($5/512)}' && mv j h u made", lines[v]);
        shell(line);
        unsigned blocks = (unsigned)atoi(last.out); /* one too few for the page */
        CHECKF(last.status == 0 && blocks > 8, "%s: %s", last.line, last.err);
        snprintf(line, sizeof line, "(ulimit -f %u; exec \"$Q\" %s --json j --html h "
                 "--junit u >t2); cmp t t2; rm -f h* j* u*", blocks, lines[v]);
        shell(line); /* ended by a signal, maybe, but the text is there */
        CHECKF(last.size == 0, "%s: %s", lines[v], last.out);
        snprintf(line, sizeof line, "(trap '' XFSZ; ulimit -f %u; exec \"$Q\" %s --json j --html h "
                 "--junit u >t2); s=$?; ls -d [hju] [hju].* 2>try.err; cmp t t2; cmp j made/j; "
                 "cmp u made/u; rm -rf made j u t t2; (exit $s)", blocks, lines[v]);
        shell(line);
        fails_with("cannot write h: ");
        CHECK_TEXT(last.out, "j\nu\n");
    }
    /* The first of them, and the text itself. */
    FILE *full = fopen("/dev/full", "wb");
    if (full == NULL) return;
    fclose(full);
    shell("\"$Q\" diff a b --json - --html h --junit u >/dev/full; s=$?; ls [hju] && rm h u; "
          "(exit $s)");
    fails_with("cannot write standard output: ");
    CHECK_TEXT(last.out, "h\nu\n");
    shell("\"$Q\" check M a --json j --html h --junit u >/dev/full; s=$?; ls [hju] && rm h j u; "
          "(exit $s)");
    fails_with("cannot write standard output");
    CHECK_TEXT(last.out, "h\nj\nu\n");
}

/* A stream that is closed is no number for a file to take: the report would be printed into it, or
 * the message. Nothing is left where nothing could be said. */
static void test_closed_stream(void)
{
    static const char *const reports[] = {"--json", "--html", "--junit"};
    char line[300];
    for (size_t i = 0; i < COUNT(reports); i++) {
        snprintf(line, sizeof line, "\"$Q\" diff a b %s x >t && mv x good && "
                 "\"$Q\" diff a b %s x >&-; s=$?; cmp x good; rm x t good; (exit $s)", reports[i],
                 reports[i]);
        shell(line);
        fails("cannot write standard output");
        snprintf(line, sizeof line, "\"$Q\" diff a b %s x >t && mv x good && \"$Q\" diff a b %s x "
                 ">t <&- 2>&- && cmp x good; rm x t good", reports[i], reports[i]);
        shell(line);
        succeeds("");
    }
    shell("\"$Q\" dump M --tokens 1,2 -o x >&- <&-; s=$?; cmp x a; rm x; (exit $s)");
    fails("cannot write standard output");
    shell("\"$Q\" dump M --tokens 1,9999 -o x >&- <&- 2>&-; s=$?; ls x*; (exit $s)");
    CHECK(last.status == 2 && last.size == 0);
    shell("\"$Q\" tokenize M <&-");
    fails_with("cannot read standard input: ");
}

/* A pipe that nobody reads any more: the reports are written all the same. */
static void test_closed_pipe(void)
{
    static const char *const lines[] = {
        "check M a --all --json j", "diff a b --all --json j", "report one two --all --json j",
        "dump M --tokens 1,2 -o j",
    };
    char line[256];
    for (size_t i = 0; i < COUNT(lines); i++) {
        snprintf(line, sizeof line, "{ sleep 0.2; \"$Q\" %s; echo $? >s; } | :; "
                 "s=$(cat s); ls j j.* 2>try.err; rm j s; (exit $s)", lines[i]);
        shell(line);
        fails_with("cannot write standard output");
        CHECK_TEXT(last.out, "j\n");
    }
}

/* A generation ends where what it makes can go nowhere: it would take minutes, and may take
 * seconds. */
static void test_generate(void)
{
    static const char *const kinds[] = {"", "--ids", "--ids --seed 1"};
    char line[300];
    FILE *full = fopen("/dev/full", "wb");
    for (size_t i = 0; i < COUNT(kinds); i++) {
        snprintf(line, sizeof line, "{ sleep 0.2; (ulimit -t 5; exec \"$Q\" generate M "
                 "--tokens 1,2 -n 30000 %s); echo $? >s; } | :; s=$(cat s); rm s; (exit $s)",
                 kinds[i]);
        shell(line);
        fails("cannot write standard output");
        if (full == NULL) continue;
        snprintf(line, sizeof line, "(ulimit -t 5; exec \"$Q\" generate M --tokens 1,2 -n 30000 %s "
                 ">/dev/full)", kinds[i]);
        shell(line);
        fails("cannot write standard output");
        snprintf(line, sizeof line, "\"$Q\" generate M --tokens 1,2 -n 0 %s >/dev/full", kinds[i]);
        shell(line);
        fails("cannot write standard output");
    }
    if (full != NULL) fclose(full);
}

/* ==== Logits that are no numbers ============================================================== */

/* Copies M to N, where the count bfloat16 values from `at` on of a weight are NaN or infinite. */
static void spoil(const char *weight, size_t at, size_t count, unsigned bits)
{
    const unsigned char bytes[2] = {(unsigned char)(bits & 255), (unsigned char)(bits >> 8)};
    shell("rm -rf N; cp -R M N");
    q3_tensors *file = open_tensors(FOLDER "N/model.safetensors");
    const q3_entry *entry = find(file, weight);
    size_t place = (size_t)((const uint8_t *)entry->data - q3_tensors_mapping(file)->data);
    CHECK(entry->dtype == Q3_BF16);
    q3_tensors_close(file);
    FILE *f = fopen(FOLDER "N/model.safetensors", "r+b");
    CHECK(f != NULL && fseek(f, (long)(place + 2 * at), SEEK_SET) == 0);
    for (size_t i = 0; f != NULL && i < count; i++) CHECK(fwrite(bytes, 1, 2, f) == 2);
    if (f != NULL) CHECK(fclose(f) == 0);
}

static void test_no_numbers(void)
{
    static const char *const kinds[] = {"", "--ids", "--ids --top-k 4 --seed 9"};
    char line[200];
    for (size_t i = 0; i < COUNT(kinds); i++) {
        spoil("model.norm.weight", 5, 1, 0x7FC0);
        run("generate N --tokens 1,2 -n 5 %s", kinds[i]);
        snprintf(line, sizeof line, "logits: found NaN%s for id 0, expected numbers",
                 i == 2 ? " or infinity" : "");
        fails(line);
        spoil("lm_head.weight", 7 * 120, 120, 0xFFC0); /* of one id alone */
        run("generate N --tokens 1,2 -n 5 %s", kinds[i]);
        snprintf(line, sizeof line, "logits: found NaN%s for id 7, expected numbers",
                 i == 2 ? " or infinity" : "");
        fails(line);
    }
    shell("printf 'In the beginning God' >text");
    run("score N text");
    fails("text: token 1: found logits that are NaN or infinite, expected numbers");
    run("score N text --jsonl");
    fails("text: token 1: found logits that are NaN or infinite, expected numbers");
    /* An id that stands in the text, whose logit is infinite when it comes. */
    spoil("lm_head.weight", 7 * 120, 1, 0x7F80);
    run("score N text");
    fails_with(": found logits that are NaN or infinite, expected numbers");
    CHECK(last.size == 0);
    shell("rm -rf N");
}

int main(int argc, char **argv)
{
    set_up(argc, argv);
    make_folders();
    test_every_option();
    test_inputs();
    test_resume();
    test_allowed();
    test_streams();
    test_apart();
    test_unopened();
    test_unwritten();
    test_closed_stream();
    test_closed_pipe();
    test_generate();
    test_no_numbers();
    free(last.out);
    free(last.err);
    return t_done("test_outputs");
}
