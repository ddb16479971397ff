/* report_page.c - a report as one HTML page: no network, no other file. The top, the map and the table are plain HTML; a
 * small script draws the figures of one tensor from the JSON lines, which stand at the end of the page. */
#include "judge/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Style and script ========================================================================= */

/* Good is pale and blue, bad is red and strong: dark on light, bright on dark. Lightness alone tells them apart,
 * and so does the glyph. --wN: within its bound, in three shades. */
static const char style[] =
    ":root{color-scheme:light dark;--page:#fff;--text:#16202b;--soft:#52606d;--line:#c6cfd8;--box:#f4f6f8;"
    "--bar:#2f6fab;--peak:#c8320c;--exact:#dfecf8;--w0:#c3dcf2;--w1:#93bde3;--w2:#64a0d4;--good:#0c1c2c;"
    "--bad:#fff;--non-finite:#111;--unjudged:#d5d9dd}\n"
    "@media(prefers-color-scheme:dark){:root{--page:#10161d;--text:#e4e9ee;--soft:#9fadba;--line:#4a5866;"
    "--box:#19222c;--bar:#6aaae6;--peak:#ff7a4d;--exact:#1b3047;--w0:#24476b;--w1:#2f6296;--w2:#3a78b8;"
    "--good:#f2f7fc;--bad:#000;--non-finite:#fff;--unjudged:#8b949e}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--page);color:var(--text);font:16px/1.45 system-ui,sans-serif}\n"
    "main{max-width:100rem;margin:auto;padding:1rem}\n"
    "h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .5rem;padding-left:.6rem;overflow-wrap:anywhere;"
    "border-left:.4rem solid var(--peak)}\n"
    ".agrees h1{border-color:var(--bar)}\n"
    "h2{font-size:1.1rem;margin:1.4rem 0 .5rem}\n"
    ".sentence{font-size:1.1rem;margin:.4rem 0 1rem;overflow-wrap:anywhere}\n"
    ".hint{color:var(--soft);margin:0}\n"
    "dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem .9rem;margin:0}\n"
    "dt{color:var(--soft)}\n"
    "dd{margin:0;overflow-wrap:anywhere}\n"
    ".parts{display:grid;grid-template-columns:minmax(0,1fr);gap:0 1.5rem}\n"
    ".parts>*{min-width:0}\n"
    ".scroll{overflow-x:auto;max-width:100%}.tall{overflow:auto;max-height:85vh}\n"
    ".map{border-collapse:separate;border-spacing:2px}\n"
    ".map td,.map thead th{padding:0;vertical-align:bottom}.map .c{scroll-margin:14rem 0 0 3rem}\n"
    ".map thead th{position:sticky;top:0;z-index:1;background:var(--page);box-shadow:0 0 0 2px var(--page)}"
    ".map thead th:first-child{left:0;z-index:2}\n"
    ".map thead span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap;"
    "font:.8rem/1.5rem system-ui,sans-serif}\n"
    ".map tbody th{position:sticky;left:0;background:var(--page);padding:0 .5rem 0 0;text-align:right;"
    "font-weight:400;font-variant-numeric:tabular-nums}\n";

static const char style_cells[] =
    ".c{display:inline-block;width:1.5rem;height:1.5rem;padding:0;border:1px solid transparent;border-radius:3px;"
    "font:600 .9rem/1.4rem ui-monospace,monospace;text-align:center;vertical-align:middle;color:#0c1c2c;"
    "flex:none}\n"
    "button{cursor:pointer}\n"
    "button:focus-visible{outline:3px solid var(--text);outline-offset:1px}\n"
    ".c[aria-pressed=true]{border-color:var(--page);box-shadow:0 0 0 2px var(--text)}\n"
    ".exact,.w0,.w1,.w2{background:var(--exact);color:var(--good)}\n"
    ".w0{background:var(--w0)}.w1{background:var(--w1)}.w2{background:var(--w2)}\n"
    ".rounding{background:#f2d955}.near-tie{background:#cdb7ec}.shape{background:#f09a2b}\n"
    ".c.differs{background:var(--peak);color:var(--bad)}\n"
    ".non-finite{background:var(--non-finite);color:var(--bad)}\n"
    ".c.unjudged{background:var(--unjudged)}\n"
    ".missing{background:none;border:1px dashed var(--soft);color:var(--soft)}\n"
    ".ends,.legend{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin:.5rem 0;padding:0;list-style:none}\n"
    ".legend{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));font-size:.9rem}\n"
    ".ends>*,.legend>*{display:flex;gap:.4rem;align-items:center}\n"
    ".many{gap:2px}\n"
    ".table{border-collapse:collapse;font-size:.9rem}\n"
    ".table th,.table td{text-align:left;vertical-align:top;padding:.3rem .9rem .3rem 0;overflow-wrap:anywhere}\n"
    ".table td{border-top:1px solid var(--line);min-width:9rem}\n"
    ".table th{color:var(--soft);font-weight:400}\n"
    ".table td:nth-child(2),.table td:nth-child(3){min-width:min(21rem,60vw)}\n"
    ".name,.close{font:inherit;color:inherit;background:none;border:0;padding:0;text-align:left;"
    "text-decoration:underline}\n"
    ".close{float:right;margin-left:1rem}\n"
    "#detail{background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;"
    "font-size:.95rem;align-self:start;position:sticky;bottom:0;max-height:60vh;overflow-y:auto;"
    "box-shadow:0 -4px 16px #0004}\n"
    "#detail[hidden]{display:none}\n"
    "#detail h2{font-size:1rem;margin:0 0 .5rem;overflow-wrap:anywhere}\n"
    "@media(min-width:70rem){.parts{grid-template-columns:minmax(0,max-content) minmax(20rem,1fr)}"
    "#detail{top:1rem;max-height:calc(100vh - 2rem);box-shadow:none;margin-top:1.4rem}}\n"
    "figure{margin:.8rem 0 0}\n"
    "figcaption,.range{color:var(--soft)}\n"
    "svg{display:block;width:100%;height:4.5rem;background:var(--page);border-bottom:1px solid var(--soft)}\n"
    "rect{fill:var(--bar)}\n"
    "rect.peak{fill:var(--peak)}\n"
    ".range{display:flex;justify-content:space-between;font-size:.85rem}\n";

/* Text from files is set as text, never as HTML; what becomes HTML are numbers. */
static const char script[] =
    "'use strict';(() => {\n"
    "const data = JSON.parse(document.getElementById('data').textContent);\n"
    "const panel = document.getElementById('detail'), map = document.querySelector('.map');\n"
    "const cells = document.querySelectorAll('.c[data-i]');\n"
    "const make = (tag, text) => Object.assign(document.createElement(tag), {textContent: text});\n"
    "const short = (v, digits) =>\n"
    "  typeof v !== 'number' ? v : v >= 2 ** 100 ? 'inf' : String(+v.toPrecision(digits));\n"
    "const show = v => short(v, 4);\n"
    "const share = (part, all) => all > 0 ? show(100 * part / all) + ' %' : '0 %';\n"
    "function axes(f) {\n"
    "  const slot = /\\.(topk_|experts\\.)/.test(f.tap);\n"
    "  const last = /self_attn\\.(scores|probs)\\./.test(f.tap) ? 'key' : 'channel';\n"
    "  return f.shape.length < 3 ? ['token', slot ? 'slot' : last] : ['token', slot ? 'slot' : 'head', last];\n"
    "}\n"
    "const place = (f, at) => at.map((n, i) => axes(f)[i] + ' ' + n).join(', ');\n"
    "const both = (ours, theirs) => ': ours ' + show(ours) + ', theirs ' + show(theirs);\n"
    "function differences(f, add) {\n"
    "  const expected = f.judged ? ', at most ' + share(f.expected, f.judged) + ' expected' : '';\n"
    "  add('differ', f.differ + ' of ' + f.elements + ' (' + share(f.differ, f.elements) + ')' + expected);\n"
    "  if (!f.differ) return;\n"
    "  add('above 1 ulp', String(f.over_1_ulp));\n"
    "  if (f.judged) add('outside', String(f.outside));\n"
    "  add('largest', show(f.max_ulp) + ' ulp at ' + place(f, f.max_at) + both(f.max_ours, f.max_theirs));\n"
    "  if (f.judged) add('bound', 'up to ' + show(f.max_bound_ratio) + ' times as much');\n"
    "  add('relative L2', show(f.relative_l2));\n"
    "  add('gain, offset', short(f.gain, 6) + ', ' + show(f.offset));\n"
    "  add('worst', 'token ' + f.worst_token + ', channel ' + f.worst_channel);\n"
    "}\n"
    "function figures(f) {\n"
    "  const rows = [], add = (label, value) => value && rows.push([label, value]);\n"
    "  const ids = /\\.topk_indices\\./.test(f.tap), bad = f.bad;\n"
    "  add('verdict', f.verdict);\n"
    "  add('why', f.reason);\n"
    "  add('looks like', f.looks_like);\n"
    "  add('given as', f.given_as !== f.tap && f.given_as);\n"
    "  add('read as', f.note);\n"
    "  add('shape', f.shape.length ? '[' + f.shape.join(', ') + ']' : '');\n"
    "  const finite = bad && !ids && Number.isFinite(bad.ours) && Number.isFinite(bad.theirs);\n"
    "  if (bad) add(f.judged || ids ? 'first outside' : 'first', place(f, bad.at) + both(bad.ours, bad.theirs) +\n"
    "    (finite ? '; ' + show(bad.ulp) + ' ulp' + (f.judged ? ', bound ' + show(bad.bound_ulp) : '') : ''));\n"
    "  if (f.elements && ids) add('tokens', f.near_ties + ' near-ties, ' + f.wrong_sets + ' wrong sets, ' +\n"
    "    f.other_order + ' in another order');\n"
    "  if (f.elements && !ids) differences(f, add);\n"
    "  add(f.verdict === 'unjudged' ? 'record too' : 'judged with', f.operators.join(', '));\n"
    "  return rows;\n"
    "}\n";

/* A bar for each bin; bin i of n holds the places ceil(i * count / n) to ceil((i + 1) * count / n) - 1. Heights
 * are logarithms, so that one ulp is seen beside a thousand. */
static const char script_bars[] =
    "function bars(title, axis, values, count, height) {\n"
    "  const figure = make('figure'), range = make('div'), n = values.length, heights = values.map(height);\n"
    "  const most = Math.max(...heights), peak = heights.indexOf(most), from = i => Math.ceil(i * count / n);\n"
    "  const name = i => from(i) + 1 < from(i + 1) ? axis + 's ' + from(i) + ' to ' + (from(i + 1) - 1)\n"
    "    : axis + ' ' + from(i);\n"
    "  const bar = (h, i) => '<rect x=' + (10 * i + 1) + ' width=8 y=' + (100 - h) + ' height=' + h +\n"
    "    (i === peak ? ' class=peak' : '') + '><title></title></rect>';\n"
    "  figure.append(make('figcaption', title + '; ' + name(peak) + ': ' + show(values[peak])));\n"
    "  figure.insertAdjacentHTML('beforeend', '<svg role=img preserveAspectRatio=none viewBox=\"0 0 ' + 10 * n +\n"
    "    ' 100\">' + heights.map(h => most > 0 ? 96 * h / most : 0).map(bar).join('') + '</svg>');\n"
    "  figure.querySelectorAll('title').forEach((t, i) => t.append(name(i) + ': ' + show(values[i])));\n"
    "  figure.querySelector('svg').setAttribute('aria-label', figure.firstChild.textContent);\n"
    "  range.className = 'range';\n"
    "  range.append(make('span', axis + ' 0'), make('span', axis + ' ' + (count - 1)));\n"
    "  figure.append(range);\n"
    "  panel.append(figure);\n"
    "}\n"
    "const real = v => typeof v === 'number' ? Math.min(v, 2 ** 100) : 2 ** 100;\n"
    "const steps = v => Math.log2(1 + real(v));\n"
    "const closeness = v => Math.min(Math.max(-Math.log2(Math.max(real(v), 0)), 0), 40);\n"
    "function open(i) {\n"
    "  const f = data[i], last = axes(f).at(-1), list = make('dl'), close = make('button', 'close');\n"
    "  close.className = 'close';\n"
    "  close.onclick = () => { panel.hidden = true; };\n"
    "  for (const [label, value] of figures(f)) list.append(make('dt', label), make('dd', value));\n"
    "  panel.replaceChildren(close, make('h2', f.tap), list);\n"
    "  if (f.differ && f.token_profile.length)\n"
    "    bars('Largest difference by token, in ulp (log scale)', 'token', f.token_profile, f.shape[0], steps);\n"
    "  if (f.differ && f.channel_profile.some(v => v !== 0))\n"
    "    bars('The same by ' + last, last, f.channel_profile, f.shape.at(-1), steps);\n"
    "  if (f.margins.length)\n"
    "    bars('Margin of the router, p_k - p_(k+1); tall: close to a tie (log scale)', 'token', f.margins,\n"
    "      f.shape[0], closeness);\n"
    "  panel.hidden = false;\n"
    "  panel.scrollTop = 0;\n"
    "  for (const c of cells) c.setAttribute('aria-pressed', c.dataset.i === String(i));\n"
    "}\n";

/* In the map one cell at a time is a tab stop; arrows go on from there. */
static const char script_keys[] =
    "function stop(cell) {\n"
    "  map.querySelectorAll('button').forEach(b => { b.tabIndex = b === cell ? 0 : -1; });\n"
    "}\n"
    "document.addEventListener('click', e => {\n"
    "  const cell = e.target.closest('button[data-i]');\n"
    "  if (!cell) return;\n"
    "  open(+cell.dataset.i);\n"
    "  if (map && map.contains(cell)) stop(cell);\n"
    "  if (cell.className === 'name') panel.scrollIntoView({block: 'nearest'});\n"
    "});\n"
    "document.addEventListener('keydown', e => {\n"
    "  if (e.key === 'Escape') panel.hidden = true;\n"
    "  const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[e.key];\n"
    "  const cell = e.target.closest('.map td');\n"
    "  if (!step || !cell) return;\n"
    "  let row = cell.parentNode.rowIndex, column = cell.cellIndex, next;\n"
    "  do {\n"
    "    row += step[0];\n"
    "    column += step[1];\n"
    "    next = map.rows[row]?.cells[column];\n"
    "  } while (next && next.matches('td') && !next.querySelector('button'));\n"
    "  const button = next?.querySelector('button');\n"
    "  if (!button) return;\n"
    "  e.preventDefault();\n"
    "  stop(button);\n"
    "  button.focus();\n"
    "});\n"
    "if (map) stop(map.querySelector('button'));\n"
    "for (const c of cells) c.title = c.getAttribute('aria-label');\n"
    "const first = document.querySelector('[data-first]');\n"
    "const box = first?.closest('.tall'), [at, from] = [first, box].map(e => e?.getBoundingClientRect());\n"
    "box?.scrollBy(at.left - from.left - box.clientWidth / 2, at.top - from.top - box.clientHeight / 2);\n"
    "if (first && matchMedia('(min-width: 70rem)').matches) open(+first.dataset.i);\n"
    "})();\n";

/* ==== Pieces =================================================================================== */

static void add_char(q3_text *out, char c)
{
    const char piece[2] = {c, 0};
    q3_text_add(out, piece);
}

/* Text from a file, in an element or between double quotes. */
static void add_escaped(q3_text *out, const char *text)
{
    for (; *text != 0; text++) {
        if (*text == '&')
            q3_text_add(out, "&amp;");
        else if (*text == '<')
            q3_text_add(out, "&lt;");
        else if (*text == '>')
            q3_text_add(out, "&gt;");
        else if (*text == '"')
            q3_text_add(out, "&quot;");
        else
            add_char(out, *text);
    }
}

/* What report.c writes as plain text. */
static void add_plain(q3_text *out, q3_text *plain)
{
    if (plain->failed) out->failed = true;
    if (plain->data != NULL) add_escaped(out, plain->data);
    free(plain->data);
}

static void add_count(q3_text *out, const char *before, uint64_t value, const char *after)
{
    q3_text_add(out, before);
    q3_text_uint(out, value);
    q3_text_add(out, after);
}

/* A tap's name without its layer, ".output", "self_attn." and "mlp.". */
static void short_name(char name[Q3_TAP_NAME_SIZE], q3_tap_id id)
{
    static const char *const fronts[] = {"model.layers.0.", "model.", "self_attn.", "mlp."};
    char full[Q3_TAP_NAME_SIZE];
    q3_tap_name(full, id, 0);
    char *start = full;
    for (size_t i = 0; i < sizeof fronts / sizeof fronts[0]; i++) {
        if (strncmp(start, fronts[i], strlen(fronts[i])) == 0) start += strlen(fronts[i]);
        char *end = strstr(start, ".output");
        if (end != NULL) *end = 0;
    }
    snprintf(name, Q3_TAP_NAME_SIZE, "%s", start);
}

/* The class of a cell's colour; within its bound in three shades. */
static const char *cell_class(const q3_finding *f)
{
    if (f->verdict != Q3_VERDICT_WITHIN) return q3_verdict_names[f->verdict];
    return f->max_bound_ratio < 0.25 ? "w0" : f->max_bound_ratio < 0.5 ? "w1" : "w2";
}

static void add_cell(q3_text *out, const q3_report *r, const report_entry *e)
{
    add_count(out, "<button type=button data-i=", (uint64_t)(e - r->entries), " class=\"c ");
    q3_text_add(out, cell_class(&e->f));
    q3_text_add(out, "\" aria-label=\"");
    add_escaped(out, e->f.name);
    q3_text_add(out, ": ");
    q3_text_add(out, q3_verdict_names[e->f.verdict]);
    q3_text_add(out, e == q3_report_first_bad(r) ? "\" data-first>" : "\">");
    add_char(out, q3_report_glyphs[e->f.verdict]);
    q3_text_add(out, "</button>");
}

/* ==== The top ================================================================================== */

static void add_term(q3_text *out, const char *term)
{
    q3_text_add(out, "\n<dt>");
    q3_text_add(out, term);
    q3_text_add(out, "<dd>");
}

static void add_run(q3_text *out, const q3_report *r)
{
    const q3_judged_run *run = &r->run;
    bool all = true;
    q3_text_add(out, "<dl>");
    add_term(out, run->layers > 0 ? "model" : "ours");
    add_escaped(out, run->model);
    add_term(out, run->layers > 0 ? "file" : "theirs");
    add_escaped(out, run->file);
    if (run->layers > 0) {
        add_term(out, "run");
        q3_text_add(out, q3_dtype_name(run->dtype));
        add_count(out, ", ", run->T, " tokens");
        add_count(out, " from position ", run->start, run->free_running ? ", free-running" : ", teacher-forced");
        q3_text_add(out, run->strict ? ", strict" : "");
        if (run->accumulate[0] != 0) q3_text_add(out, ", --accumulate "), add_escaped(out, run->accumulate);
        if (run->kv[0] != 0) q3_text_add(out, ", --kv "), add_escaped(out, run->kv);
    }
    for (size_t i = 0; i < run->layers; i++) {
        if (r->covered[i]) continue;
        if (all) add_term(out, "not judged");
        add_count(out, all ? "layers " : " ", i, "");
        all = false;
    }
    if (run->unknown > 0) {
        add_term(out, "ignored");
        add_count(out, "", run->unknown,
                  run->unknown == 1 ? " tensor that is no tap: " : " tensors that are no taps, the first: ");
        add_escaped(out, run->unknown_name != NULL ? run->unknown_name : "");
    }
    q3_text_add(out, "\n</dl>\n");
}

static void add_verdict(q3_text *out, const q3_report *r)
{
    static const char *const texts[] = {
        [Q3_OUTCOME_AGREES] = "agrees", [Q3_OUTCOME_DIFFERS] = "differs: ", [Q3_OUTCOME_UNJUDGED] = "could not judge",
    };
    q3_outcome result = q3_report_outcome(r);
    q3_text_add(out, texts[result]);
    if (result == Q3_OUTCOME_DIFFERS) add_escaped(out, q3_report_first_bad(r)->f.name);
}

static void add_top(q3_text *out, const q3_report *r)
{
    static const char *const classes[] = {
        [Q3_OUTCOME_AGREES] = "agrees", [Q3_OUTCOME_DIFFERS] = "differs", [Q3_OUTCOME_UNJUDGED] = "unjudged",
    };
    q3_text sentence = {0};
    q3_text_add(out, "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n"
                     "<meta name=viewport content=\"width=device-width,initial-scale=1\">\n"
                     "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';"
                     "style-src 'unsafe-inline';script-src 'unsafe-inline'\">\n<title>qwen3moe: ");
    add_verdict(out, r);
    q3_text_add(out, "</title>\n<style>\n");
    q3_text_add(out, style);
    q3_text_add(out, style_cells);
    q3_text_add(out, "</style></head>\n<body><main class=");
    q3_text_add(out, classes[q3_report_outcome(r)]);
    q3_text_add(out, ">\n<h1>");
    add_verdict(out, r);
    q3_text_add(out, "</h1>\n<p class=sentence>");
    q3_report_sentence(&sentence, r);
    add_plain(out, &sentence);
    q3_text_add(out, "</p>\n");
    add_run(out, r);
}

/* ==== The map ================================================================================== */

/* Taps of a layer in the order of computation; dense and sparse layers share a column. */
static size_t column_of(q3_tap_id id)
{
    bool dense = id >= Q3_TAP_DENSE_GATE_PROJ && id <= Q3_TAP_DENSE_DOWN_PROJ_INPUT;
    return (size_t)id - (dense ? (size_t)Q3_TAP_DENSE_GATE_PROJ - (size_t)Q3_TAP_EXPERTS_GATE_PROJ : 0);
}

static bool in_layer(const report_entry *e)
{
    return e->known && e->rank != 0 && e->rank != SIZE_MAX - 1;
}

static void add_columns(q3_text *out, const bool used[Q3_TAP_COUNT])
{
    char name[Q3_TAP_NAME_SIZE];
    q3_text_add(out, "<thead><tr><th><span>layer</span>");
    for (int c = 0; c < Q3_TAP_COUNT; c++) {
        if (!used[c]) continue;
        short_name(name, (q3_tap_id)c);
        q3_text_add(out, "<th scope=col><span>");
        q3_text_add(out, name);
        q3_text_add(out, "</span>");
    }
    q3_text_add(out, "</thead>\n<tbody>\n");
}

static void add_layers(q3_text *out, const q3_report *r)
{
    bool used[Q3_TAP_COUNT] = {false}, any = false;
    for (size_t i = 0; i < r->count; i++)
        if (in_layer(&r->entries[i])) any = used[column_of(r->entries[i].id)] = true;
    if (!any) return;
    q3_text_add(out, "<div class=\"scroll tall\"><table class=map>");
    add_columns(out, used);
    for (size_t i = 0; i < r->count;) {
        const report_entry *cells[Q3_TAP_COUNT] = {NULL}, *first = &r->entries[i];
        if (!in_layer(first)) {
            i++;
            continue;
        }
        for (; i < r->count && r->entries[i].rank == first->rank; i++)
            cells[column_of(r->entries[i].id)] = &r->entries[i];
        add_count(out, "<tr><th scope=row>", first->rank - 1, "");
        for (size_t c = 0; c < Q3_TAP_COUNT; c++) {
            if (!used[c]) continue;
            q3_text_add(out, "<td>");
            if (cells[c] != NULL) add_cell(out, r, cells[c]);
        }
        q3_text_add(out, "\n");
    }
    q3_text_add(out, "</tbody></table></div>\n");
}

/* What stands before the layers (rank 0), behind them, or is no tap. */
static void add_ends(q3_text *out, const q3_report *r, size_t rank)
{
    char name[Q3_TAP_NAME_SIZE];
    bool any = false;
    for (size_t i = 0; i < r->count; i++) {
        const report_entry *e = &r->entries[i];
        if (e->rank != rank) continue;
        if (!any)
            q3_text_add(out, e->known ? "<div class=ends>" : "<h2>Other tensors</h2>\n<div class=\"ends many\">");
        any = true;
        q3_text_add(out, "<span>");
        add_cell(out, r, e);
        if (e->known) {
            short_name(name, e->id);
            q3_text_add(out, " ");
            q3_text_add(out, name);
        }
        q3_text_add(out, "</span>\n");
    }
    if (any) q3_text_add(out, "</div>\n");
}

static void add_legend(q3_text *out, const q3_report *r)
{
    static const char *const meaning[Q3_VERDICT_COUNT] = {
        [Q3_VERDICT_EXACT] = "the same bits", [Q3_VERDICT_WITHIN] = "inside its bound; strong colour: near it",
        [Q3_VERDICT_ROUNDING] = "rounded at another place, inside the bound",
        [Q3_VERDICT_NEAR_TIE] = "other experts, as good as equal", [Q3_VERDICT_DIFFERS] = "outside what is allowed",
        [Q3_VERDICT_NON_FINITE] = "not finite where ours is", [Q3_VERDICT_MISSING] = "not in the file",
        [Q3_VERDICT_SHAPE] = "another shape", [Q3_VERDICT_UNJUDGED] = "bounds too wide to say",
    };
    size_t counts[Q3_VERDICT_COUNT] = {0};
    for (size_t i = 0; i < r->count; i++) counts[r->entries[i].f.verdict]++;
    q3_text_add(out, "<ul class=legend>\n");
    for (size_t v = 0; v < Q3_VERDICT_COUNT; v++) {
        const q3_finding sample = {.verdict = (q3_verdict)v, .max_bound_ratio = 0.3};
        q3_text_add(out, "<li><span class=\"c ");
        q3_text_add(out, cell_class(&sample));
        q3_text_add(out, "\">");
        add_char(out, q3_report_glyphs[v]);
        add_count(out, "</span><span>", counts[v], " ");
        q3_text_add(out, q3_verdict_names[v]);
        q3_text_add(out, ": ");
        q3_text_add(out, meaning[v]);
        q3_text_add(out, "</span>\n");
    }
    q3_text_add(out, "</ul>\n");
}

/* ==== The table ================================================================================ */

static void add_row(q3_text *out, const q3_report *r, const report_entry *e)
{
    const q3_finding *f = &e->f;
    q3_text plain = {0};
    q3_text_add(out, "<tr><td><span class=\"c ");
    q3_text_add(out, cell_class(f));
    q3_text_add(out, "\">");
    add_char(out, q3_report_glyphs[f->verdict]);
    q3_text_add(out, "</span> ");
    q3_text_add(out, q3_verdict_names[f->verdict]);
    add_count(out, "<td><button type=button class=name data-i=", (uint64_t)(e - r->entries), ">");
    add_escaped(out, f->name);
    q3_text_add(out, "</button><td>");
    add_escaped(out, f->reason);
    if (f->looks_like[0] != 0) q3_text_add(out, "<br>looks like "), add_escaped(out, f->looks_like);
    q3_text_add(out, "<td>");
    if (f->differ > 0 && f->max_ulp > 0) {
        q3_text_digits(&plain, f->max_ulp, 3);
        q3_text_add(&plain, " ulp at ");
        q3_report_place(&plain, e, f->max_at);
    }
    add_plain(out, &plain);
    q3_text_add(out, "\n");
}

/* What is neither exact nor within; what was not recorded stands in the map. */
static void add_table(q3_text *out, const q3_report *r)
{
    size_t rows = 0;
    for (size_t i = 0; i < r->count; i++) {
        q3_verdict v = r->entries[i].f.verdict;
        if (v == Q3_VERDICT_EXACT || v == Q3_VERDICT_WITHIN || (v == Q3_VERDICT_MISSING && r->run.layers > 0)) continue;
        if (rows++ == 0)
            q3_text_add(out, "<h2>Neither exact nor within</h2>\n<div class=scroll><table class=table><thead><tr>"
                             "<th>verdict<th>tensor<th>why<th>largest difference</thead>\n<tbody>\n");
        add_row(out, r, &r->entries[i]);
    }
    q3_text_add(out, rows > 0 ? "</tbody></table></div>\n" : "");
}

/* ==== The page ================================================================================= */

/* The lines in the order of computation. No "</script>" in them: report_string escapes '<'. */
static void add_data(q3_text *out, const q3_report *r)
{
    q3_text_add(out, "<script type=application/json id=data>[\n");
    for (size_t i = 0; i < r->count; i++) {
        if (i > 0) q3_text_add(out, ",");
        q3_report_put_finding(out, &r->entries[i].f);
    }
    q3_text_add(out, "]</script>\n");
}

q3_status q3_report_html(const q3_report *r, char **html, size_t *length, q3_error *error)
{
    q3_text out = {0};
    add_top(&out, r);
    q3_text_add(&out, "<div class=parts>\n<div>\n<h2>Layers and operators</h2>\n"
                      "<p class=hint>Choose a cell to see its figures"
                      "<noscript> (needs JavaScript)</noscript>.</p>\n");
    add_ends(&out, r, 0);
    add_layers(&out, r);
    add_ends(&out, r, SIZE_MAX - 1);
    add_ends(&out, r, SIZE_MAX);
    add_legend(&out, r);
    q3_text_add(&out, "</div>\n<section id=detail aria-live=polite hidden></section>\n</div>\n");
    add_table(&out, r);
    q3_text_add(&out, "</main>\n");
    add_data(&out, r);
    q3_text_add(&out, "<script>\n");
    q3_text_add(&out, script);
    q3_text_add(&out, script_bars);
    q3_text_add(&out, script_keys);
    q3_text_add(&out, "</script></body></html>\n");
    return q3_report_give(&out, html, length, r, error);
}
