/* html.c - a report as one self-contained HTML page. */
#include "report.h"

q3_status report_html(q3_text *html, const char *name, const char *lines, size_t length, q3_error *error)
{
    report r;
    q3_status status = report_read(&r, name, lines, length, error);
    if (status != Q3_OK) return status;
    q3_text_add(html, "<!doctype html><meta charset=\"utf-8\"><title>qwen3moe report</title><p>");
    report_sentence(html, &r);
    q3_text_add(html, "\n");
    report_close(&r);
    return Q3_OK;
}
