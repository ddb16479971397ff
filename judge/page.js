// SPDX-License-Identifier: MIT
// The script of the report's page (report_page.c): shows the figures of one tensor from the JSON
// lines, which stand at the end of the page (MODEL.md 13), and lets arrows go through the map. Text
// from files is set as text, never as HTML; what becomes HTML are numbers.
'use strict';(() => {
const [run, data] = ['run', 'data'].map(id => JSON.parse(document.getElementById(id).textContent));
const [panel, heat] = ['detail', 'heat'].map(id => document.getElementById(id));
const maps = document.querySelectorAll('.map'), wide = matchMedia('(min-width: 70rem)');
const cells = document.querySelectorAll('.c[data-i]');
const make = (tag, text) => Object.assign(document.createElement(tag), {textContent: text});
const short = (v, digits) =>
  typeof v !== 'number' ? v : v >= 2 ** 100 ? 'inf' : String(+v.toPrecision(digits));
const show = v => short(v, 4);
const share = (part, all) => all > 0 ? show(100 * part / all) + ' %' : '0 %';

// What the entries of a place count, as q3_tap_axis says it.
function axes(f) {
  const slot = /\.(topk_|experts\.)/.test(f.tap);
  const last = /self_attn\.(scores|probs)\./.test(f.tap) ? 'key' : 'channel';
  return f.shape.length < 3 ? ['token', slot ? 'slot' : last] : ['token', slot ? 'slot' : 'head', last];
}
// A token's text, where the model's tokenizer was there to say it.
const text = t => run.token_text[t] ?? '';
const place = (f, at) => at.map((n, i) => axes(f)[i] + ' ' + n + (i ? '' : text(n))).join(', ');
const both = (ours, theirs) => ': ours ' + show(ours) + ', theirs ' + show(theirs);

// Rows of the panel for a tensor of numbers.
function differences(f, add) {
  const expected = f.judged ? ', at most ' + share(f.expected, f.judged) + ' expected' : '';
  add('differ', f.differ + ' of ' + f.elements + ' (' + share(f.differ, f.elements) + ')' + expected);
  if (!f.differ) return;
  add('above 1 ulp', String(f.over_1_ulp));
  if (f.judged) add('outside', String(f.outside));
  add('largest', show(f.max_ulp) + ' ulp at ' + place(f, f.max_at) + both(f.max_ours, f.max_theirs));
  if (f.judged) add('over its bound', show(f.max_bound_ratio) + (f.max_bound_ratio > 1
    ? ' times as large as rounding can make it' : ' of what rounding can make'));
  add('relative L2', show(f.relative_l2) + ': size of the difference over size of ours');
  add('as a whole', 'theirs is ' + short(f.gain, 6) + ' times ours (least squares); mean difference ' +
    show(f.offset));
  add('most of it in', 'token ' + f.worst_token + text(f.worst_token) + ', channel ' + f.worst_channel);
}

// All rows of the panel, [label, text] each.
function figures(f) {
  const rows = [], add = (label, value) => value && rows.push([label, value]);
  const ids = /\.topk_indices\./.test(f.tap), bad = f.bad;
  add('verdict', f.verdict);
  add('why', f.reason);
  add('looks like', f.looks_like);
  add('given as', f.given_as !== f.tap && f.given_as);
  add('read as', f.note);
  add('shape', f.shape.length ? '[' + f.shape.join(', ') + ']' : '');
  const finite = bad && !ids && Number.isFinite(bad.ours) && Number.isFinite(bad.theirs);
  if (bad) add(f.judged || ids ? 'first outside' : 'first', place(f, bad.at) + both(bad.ours, bad.theirs) +
    (finite ? '; ' + show(bad.ulp) + ' ulp' + (f.judged ? ', bound ' + show(bad.bound_ulp) : '') : ''));
  if (f.elements && ids) add('tokens', f.near_ties + ' near-ties, ' + f.wrong_sets + ' wrong sets, ' +
    f.other_order + ' in another order');
  if (f.elements && !ids) differences(f, add);
  add(f.verdict === 'unjudged' ? 'record too' : 'judged with', f.operators.join(', '));
  return rows;
}

// A bar for each bin; bin i of n holds the places ceil(i * count / n) to
// ceil((i + 1) * count / n) - 1. Heights are logarithms, so that one ulp is seen beside a thousand.
function bars(title, axis, values, count, height, into = panel) {
  const figure = make('figure'), range = make('div'), n = values.length, heights = values.map(height);
  const most = Math.max(...heights), peak = heights.indexOf(most), from = i => Math.ceil(i * count / n);
  const name = i => from(i) + 1 < from(i + 1) ? axis + 's ' + from(i) + ' to ' + (from(i + 1) - 1)
    : axis + ' ' + from(i);
  const bar = (h, i) => '<rect x=' + (10 * i + 1) + ' width=8 y=' + (100 - h) + ' height=' + h +
    (i === peak ? ' class=peak' : '') + '><title></title></rect>';
  figure.append(make('figcaption', title + '; ' + name(peak) + ': ' + show(values[peak])));
  figure.insertAdjacentHTML('beforeend', '<svg role=img preserveAspectRatio=none viewBox="0 0 ' + 10 * n +
    ' 100">' + heights.map(h => most > 0 ? 96 * h / most : 0).map(bar).join('') + '</svg>');
  figure.querySelectorAll('title').forEach((t, i) => t.append(name(i) + ': ' + show(values[i])));
  figure.querySelector('svg').setAttribute('aria-label', figure.firstChild.textContent);
  range.className = 'range';
  range.append(make('span', axis + ' 0'), make('span', axis + ' ' + (count - 1)));
  figure.append(range);
  into.append(figure);
}

// Where a line's tensor stands: its side, and its layer or -1 for what is in none.
const layer = f => /\.layers\.\d+\./.test(f.tap) ? f.layer : -1;
const together = (i, k) => i < run.second === k < run.second && layer(data[i]) === layer(data[k]);

// Tensor by token: a strip for each tensor of line k's layer, in one scale, so that a fault is seen
// where it begins and where it goes.
function strips(k) {
  const rows = [...data.entries()].filter(([i, f]) => together(i, k) && f.token_profile.length);
  const most = Math.max(1e-9, ...rows.flatMap(([, f]) => f.token_profile.map(steps)));
  const list = make('div');
  list.className = 'strips';
  for (const [i, f] of rows.slice(0, 60)) {
    const label = make('button', f.tap.replace(/^.*layers\.\d+\.|\.output$/g, ''));
    const n = f.token_profile.length, from = b => Math.ceil(b * f.shape[0] / n);
    const tokens = b => 'token ' + from(b) + text(from(b)) +
      (from(b) + 1 < from(b + 1) ? ' to ' + (from(b + 1) - 1) : '');
    const rect = (v, b) => '<rect x=' + b + ' width=1 height=1 fill-opacity=' +
      (v ? .08 + .92 * steps(v) / most : 0) + (f.outside ? ' class=peak' : '') + '><title></title></rect>';
    label.className = 'name';
    label.dataset.i = i;
    list.append(label);
    list.insertAdjacentHTML('beforeend', '<svg role=img preserveAspectRatio=none viewBox="0 0 ' + n +
      ' 1">' + f.token_profile.map(rect).join('') + '</svg>');
    list.lastChild.querySelectorAll('title').forEach((t, b) =>
      t.append(tokens(b) + ': ' + show(f.token_profile[b]) + ' ulp'));
    list.lastChild.setAttribute('aria-label', f.tap + ': largest difference ' + show(f.max_ulp) +
      ' ulp, token ' + f.max_at[0]);
  }
  const hint = 'Largest difference of each token (from left to right), in ulp; strong: large (log scale).';
  heat.replaceChildren(
    make('h2', (layer(data[k]) < 0 ? 'Outside the layers' : 'Layer ' + data[k].layer) + ', tensor by token'),
    make('p', hint), list);
  heat.hidden = rows.length === 0;
}

// How far a run that was left to itself (--free) is from ours, layer by layer.
function drift() {
  const ends = data.slice(0, run.second).filter(f => /\.layers\.\d+\.output$/.test(f.tap) && f.elements);
  const at = document.getElementById('drift');
  if (!run.free || !ends.length) return;
  at.hidden = false;
  bars('Drift: relative L2 of the layers\' outputs (log scale)', 'layer', ends.map(f => f.relative_l2),
    ends.length, v => Math.log2(1 + real(v) * 2 ** 24), at);
}

// Heights, of a profile and of margins; what is not finite is as high as can be.
const real = v => typeof v === 'number' ? Math.min(v, 2 ** 100) : 2 ** 100;
const steps = v => Math.log2(1 + real(v));
const closeness = v => Math.min(Math.max(-Math.log2(Math.max(real(v), 0)), 0), 40);

// The elements that are farthest outside their bound, or nearest to it.
function worst(f) {
  const table = make('table'), head = ['largest differences', 'ours', 'theirs', 'ulp'];
  if (f.judged) head.push('bound');
  const row = (tag, texts) => {
    const line = make('tr');
    line.append(...texts.map(cell => make(tag, cell)));
    return line;
  };
  table.className = 'worst';
  table.append(row('th', head), ...f.worst.map(e => row('td', [place(f, e.at),
    show(e.ours), show(e.theirs), show(e.ulp), show(e.bound_ulp)].slice(0, head.length))));
  panel.append(table);
}

// Shows line i of the data.
function open(i) {
  const f = data[i], last = axes(f).at(-1), list = make('dl'), close = make('button', 'close');
  close.className = 'close';
  close.onclick = () => { panel.hidden = true; };
  for (const [label, value] of figures(f)) list.append(make('dt', label), make('dd', value));
  panel.replaceChildren(close, make('h2', f.tap), list);
  if (f.worst.length) worst(f);
  if (f.differ && f.token_profile.length)
    bars('Largest difference by token, in ulp (log scale)', 'token', f.token_profile, f.shape[0], steps);
  if (f.differ && f.channel_profile.some(v => v !== 0))
    bars('The same by ' + last, last, f.channel_profile, f.shape.at(-1), steps);
  if (f.margins.length)
    bars('Margin of the router, p_k - p_(k+1); tall: close to a tie (log scale)', 'token', f.margins,
      f.shape[0], closeness);
  panel.hidden = false;
  panel.scrollTop = 0;
  for (const c of cells) c.setAttribute('aria-pressed', c.dataset.i === String(i));
  strips(i);
  // In a narrow window the panel covers its lower half: the cell goes above it.
  document.querySelector('[aria-pressed=true]')?.scrollIntoView(
    {block: wide.matches ? 'nearest' : 'start', inline: wide.matches ? 'nearest' : 'center'});
}

// In the map one cell at a time is a tab stop; arrows go on from there.
function stop(cell) {
  cell.closest('.map').querySelectorAll('button').forEach(b => { b.tabIndex = b === cell ? 0 : -1; });
}
document.addEventListener('click', e => {
  const cell = e.target.closest('button[data-i]');
  if (!cell) return;
  open(+cell.dataset.i);
  if (cell.closest('.map')) stop(cell);
  if (cell.className === 'name') panel.scrollIntoView({block: 'nearest'});
});
document.addEventListener('keydown', e => {
  if (e.key === 'Escape') panel.hidden = true;
  const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[e.key];
  const cell = e.target.closest('.map td');
  if (!step || !cell) return;
  let row = cell.parentNode.rowIndex, column = cell.cellIndex, next;
  do {
    row += step[0];
    column += step[1];
    next = cell.closest('.map').rows[row]?.cells[column];
  } while (next && next.matches('td') && !next.querySelector('button'));
  const button = next?.querySelector('button');
  if (!button) return;
  e.preventDefault();
  stop(button);
  button.focus();
});

drift();
for (const map of maps) stop(map.querySelector('button'));
for (const c of cells) c.title = c.getAttribute('aria-label');
const first = document.querySelector('[data-first]');
const box = first?.closest('.tall'), [at, from] = [first, box].map(e => e?.getBoundingClientRect());
box?.scrollBy(at.left - from.left - box.clientWidth / 2, at.top - from.top - box.clientHeight / 2);
if (first && wide.matches) open(+first.dataset.i);
})();
