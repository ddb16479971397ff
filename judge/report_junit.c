/* SPDX-License-Identifier: MIT */
/* report_junit.c - a report as JUnit's XML, for systems that show tests: a test case for each
 * tap. */
#include "judge/report.h"

#include <stdlib.h>
#include <string.h>

/* A text as XML 1.0 may hold it between quotes: what it has no characters for is "?". */
static void add_escaped(q3_text *out, const char *text)
{
    static const struct { char sign; const char *name; } signs[] = {
        {'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&quot;"}};
    char shown[5];
    while (*text != 0) {
        const char *piece = shown;
        text += q3_clean(shown, text);
        for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
            if (shown[0] == signs[i].sign) piece = signs[i].name;
        if (memcmp(shown, "\xef\xbf\xbe", 4) == 0 || memcmp(shown, "\xef\xbf\xbf", 4) == 0)
            piece = "?"; /* U+FFFE, U+FFFF */
        q3_text_add(out, piece);
    }
}

static void add_attribute(q3_text *out, const char *name, const char *value)
{
    q3_text_add(out, " ");
    q3_text_add(out, name);
    q3_text_add(out, "=\"");
    add_escaped(out, value);
    q3_text_add(out, "\"");
}

/* A text that the summary made. Frees it. */
static void add_message(q3_text *out, q3_text *plain)
{
    if (plain->failed) out->failed = true;
    add_attribute(out, "message", plain->data != NULL ? plain->data : "");
    free(plain->data);
}

/* A failure for what makes the exit status; skipped: what nothing was said of. */
typedef enum result { PASSED, FAILED, SKIPPED } result;

static result result_of(const q3_report *r, const q3_finding *f)
{
    if (r->first_bad != NULL && q3_report_is_bad(r, f)) return FAILED;
    if (q3_report_is_judged(f)) return PASSED;
    return q3_report_is_required(r, f) ? FAILED : SKIPPED;
}

static void add_case(q3_text *out, const q3_report *r, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text group = {0}, message = {0};
    result is = result_of(r, f);
    q3_text_add(&group, r->run.side[0] != 0 ? r->run.side : "qwen3moe");
    if (q3_tap_in_layer(e->id)) q3_text_count(&group, ".layers.", f->layer);
    q3_text_add(out, "<testcase");
    add_attribute(out, "classname", group.data != NULL ? group.data : "");
    add_attribute(out, "name", f->name);
    free(group.data);
    if (is == PASSED) {
        q3_text_add(out, "/>\n");
        return;
    }
    q3_text_add(out, is == FAILED ? "><failure" : "><skipped");
    if (is == FAILED) add_attribute(out, "type", q3_verdict_name(f->verdict));
    q3_report_add_blame(&message, r, f);
    add_message(out, &message);
    q3_text_add(out, "/></testcase>\n");
}

/* What could not be judged must not look as if it had passed. */
static void add_coverage(q3_text *out, const q3_report *r)
{
    q3_text message = {0};
    q3_text_add(out, "<testcase");
    add_attribute(out, "classname", r->run.side[0] != 0 ? r->run.side : "qwen3moe");
    q3_text_add(out, " name=\"coverage\"><failure type=\"could not judge\"");
    q3_report_add_silence(&message, r);
    add_message(out, &message);
    q3_text_add(out, "/></testcase>\n");
}

static void add_suite(q3_text *out, const q3_report *r)
{
    size_t counts[3] = {0};
    bool silent = q3_report_own_outcome(r) == Q3_OUTCOME_UNJUDGED;
    for (size_t i = 0; i < r->count; i++) counts[result_of(r, &r->entries[i].f)]++;
    q3_text_add(out, "<testsuite");
    add_attribute(out, "name", r->run.file);
    q3_report_add_count(out, " tests=\"", r->count + silent, "\"");
    q3_report_add_count(out, " failures=\"", counts[FAILED] + silent, "\" errors=\"0\"");
    q3_report_add_count(out, " skipped=\"", counts[SKIPPED], "\">\n<properties>\n");
    q3_text_add(out, "<property name=\"version\"");
    add_attribute(out, "value", r->run.version);
    q3_text_add(out, "/>\n<property name=\"command\"");
    add_attribute(out, "value", r->run.command);
    q3_text_add(out, "/>\n<property name=\"weights\"");
    add_attribute(out, "value", r->fingerprint);
    q3_text_add(out, "/>\n</properties>\n");
    for (size_t i = 0; i < r->count; i++) add_case(out, r, &r->entries[i]);
    if (silent) add_coverage(out, r);
    q3_text_add(out, "</testsuite>\n");
}

q3_status q3_report_junit(const q3_report *r, char **xml, size_t *length, q3_error *error)
{
    q3_text out = {0};
    q3_text_add(&out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    add_suite(&out, r);
    if (r->second != NULL) add_suite(&out, r->second);
    q3_text_add(&out, "</testsuites>\n");
    return q3_report_give(&out, xml, length, r, error);
}
