#!/usr/bin/env bash
# The HTML page of `qwen3moe check`, in a browser: scripts/ci/check_html.sh COMMAND [FOLDER]
#
# Makes pages of golden/tiny against Hugging Face's tensors (agrees), against a copy with planted faults and a
# hostile name (differs), of two layer ranges merged, and of lines with hostile texts; opens them in headless
# Chromium and says what is wrong: errors of the script, anything loaded, a click or a key that shows nothing, a
# page wider than a phone, the same look in light and dark. FOLDER keeps the pages, with pictures of them.
# Needs chromium, python3.
# Exit status: 0 all is well, 1 something is not, 2 it could not be seen.
# SPDX-License-Identifier: MIT
set -euo pipefail

stop() {
    echo "check_html.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] || stop "found no argument, expected COMMAND [FOLDER]"
command=$(command -v "$1") || stop "$1: found no such command"
command=$(realpath "$command")
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
    stop "found no chromium, expected it installed"
golden=$(realpath "$(dirname "$0")/../../golden")
if [ $# -ge 2 ]; then
    mkdir -p "$2" && work=$(realpath "$2")
else
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
fi
cd "$work"
failed=0

expect() { # name, command...
    if "${@:2}"; then echo "ok      $1"; else echo "FAILED  $1" && failed=1; fi
}
not() { ! "$@"; }

# ---- The pages ----
check() { # page, status, argument...
    local status=0
    "$command" check "$golden/tiny" "${@:3}" --html "$1.html" --json "$1.jsonl" >"$1.txt" 2>&1 || status=$?
    [ $status = "$2" ] || stop "$1: found exit status $status, expected $2: $(tail -n 1 "$1.txt")"
}

python3 - "$golden/hf/tiny/taps-bfloat16.safetensors" faults.safetensors <<'END'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header, body = json.loads(data[8:8 + size]), bytearray(data[8 + size:])
layer = "model.layers.%d."
def element(name, index, text):
    start = header[name]["data_offsets"][0]
    body[start + len(text) * index:start + len(text) * (index + 1)] = text
element(layer % 2 + "self_attn.k_norm.output", 77, b"\x80\x42")            # 64
element(layer % 3 + "self_attn.o_proj.output", 500, b"\x80\x7f")           # infinity
element(layer % 4 + "mlp.topk_indices.output", 21, struct.pack("<i", 13))
header[layer % 3 + "mlp.gate.output"]["shape"] = [14, 24, 1, 1, 1]         # another shape
hostile = "</script><img src=x onerror=document.title='hostile'>&amp;\"'"
header[hostile] = header.pop("model.rotary_emb.cos")
header["nobody's"] = header.pop(layer % 4 + "self_attn.q_proj.output")        # missing
text = json.dumps(header).encode()
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + body)
END
check agrees 0 "$golden/hf/tiny/taps-bfloat16.safetensors"
check differs 1 faults.safetensors
check low 1 faults.safetensors --layers 0:3
check high 1 faults.safetensors --layers 3:5
"$command" report high.jsonl low.jsonl --html merged.html >merged.txt 2>&1 || true
# Texts that no program of ours writes, in lines that a report may hold: of a diff, say.
python3 - differs.jsonl hostile.jsonl <<'END'
import re, sys
lines = open(sys.argv[1]).read().replace('"looks_like":"', '"looks_like":"<i>')
for key in "num_hidden_layers", "end_layer":
    lines = lines.replace('"%s":5' % key, '"%s":0' % key)
lines = re.sub(r'"weights":\[[^]]*\]', '"weights":[]', lines)
name = "</script><img src=x onerror=document.title='hostile'>\\\"><b>&lt;"
lines += lines.splitlines()[-1].replace('"tap":"lm_head.output"', '"tap":"%s"' % name) + "\n"
open(sys.argv[2], "w").write(lines)
END
"$command" report hostile.jsonl --html hostile.html >hostile.txt 2>&1 || true
for page in merged hostile; do
    [ -s $page.html ] || stop "$page: found no page: $(tail -n 1 $page.txt)"
done
# Who was asked, and how, is another command.
unsigned() { grep -v '^<dt>command<dd>' "$1"; }
expect "merged parts are the page of one run" cmp -s <(unsigned merged.html) <(unsigned differs.html)
expect "which says how it was asked" [ "$(grep -c '^<dt>command<dd>.*--html' differs.html)" = 1 ]
# Two backends, and a mistake in every layer.
python3 - "$golden/hf/tiny/taps-bfloat16.safetensors" layers.safetensors <<'END'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header, body = json.loads(data[8:8 + size]), bytearray(data[8 + size:])
for name in header: # v_proj doubled: the exponent one higher
    if name.endswith("v_proj.output"):
        begin, end = header[name]["data_offsets"]
        for i in range(begin, end, 2):
            bits = struct.unpack_from("<H", body, i)[0]
            if bits & 0x7f80:
                struct.pack_into("<H", body, i, bits + 0x80)
open(sys.argv[2], "wb").write(data[:8 + size] + body)
END
check two 1 "$golden/hf/tiny/taps-bfloat16.safetensors" layers.safetensors

# ---- In the browser ----
# The page with a script behind it that does what a reader does and writes what came of it; and a frame of 320 px
# around the page, since a window is never that narrow; and one in which scripts are off.
cat >reader.js <<'END'
addEventListener('load', () => {
    const seen = {}, panel = document.getElementById('detail'), first = document.querySelector('[data-first]');
    const cells = [...document.querySelectorAll('.map button')];
    const cell = first ?? cells[30];
    cell.click();
    seen.title = document.title;
    const name = panel.querySelector('h2')?.textContent;
    seen.shown = !panel.hidden && cell.getAttribute('aria-label').startsWith(name + ': ');
    seen.pressed = document.querySelectorAll('[aria-pressed=true]').length;
    seen.bars = panel.querySelectorAll('rect').length;
    seen.figures = panel.textContent;
    let empty = 0;
    for (const each of cells) {
        each.click();
        empty += panel.querySelectorAll('dd').length < 2 || /undefined|NaN|\[object/.test(panel.textContent);
    }
    seen.empty = empty;
    const choice = cells.find(c => c.getAttribute('aria-label').includes('layers.0.mlp.topk_indices'));
    choice.click();
    seen.margins = panel.textContent.includes('Margin') && panel.querySelectorAll('rect').length > 0;
    cells[1].focus();
    cells[1].dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
    const strips = [...document.querySelectorAll('.strips svg')];
    seen.strips = strips.filter(s => s.querySelectorAll('rect').length > 0).length;
    seen.arrow = document.activeElement === cells[2] && cells[2].tabIndex === 0 && cells[1].tabIndex === -1;
    cells[2].dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
    seen.closed = panel.hidden;
    let placed = 0, misplaced = 0;
    for (const line of document.querySelectorAll('.table tbody tr')) {
        const place = line.cells[3].textContent.trim().split(' ulp at ')[1];
        if (!place) continue;
        line.querySelector('button').click();
        placed++;
        misplaced += !panel.textContent.includes(' ulp at ' + place + ': ours ');
    }
    seen.places = misplaced + ' of ' + placed;
    const row = [...document.querySelectorAll('.table button')].at(-1);
    row?.scrollIntoView();
    row?.click();
    seen.row = !row || panel.querySelector('h2').textContent === row.textContent;
    const box = panel.getBoundingClientRect();
    seen.inside = !row || (box.top > -1 && box.top < innerHeight - 100);
    seen.loaded = performance.getEntriesByType('resource').length;
    seen.injected = document.images.length;
    seen.ground = getComputedStyle(document.body).backgroundColor;
    seen.cell = getComputedStyle(cells[0]).backgroundColor;
    const out = document.createElement('pre');
    out.id = 'seen';
    for (const key in seen) out.textContent += '\n' + key + '=' + String(seen[key]).replace(/\s+/g, ' ') + '\n';
    document.body.append(out);
});
END
cat >frame.html <<'END'
<!doctype html><iframe width=320 height=700 style="border:0"></iframe>
<iframe sandbox="allow-same-origin" width=800 height=700></iframe><script>
const [frame, still] = document.querySelectorAll('iframe'), out = document.createElement('pre');
document.body.append(out);
frame.onload = () => {
    const page = frame.contentDocument;
    const wide = () => page.documentElement.scrollWidth;
    const closed = wide();
    const map = page.querySelector('.scroll');
    (page.querySelector('[data-first]') ?? map.querySelector('button')).click();
    const cell = page.querySelector('[aria-pressed=true]').getBoundingClientRect();
    const panel = page.getElementById('detail').getBoundingClientRect();
    out.textContent += '\nsight=' + (cell.left >= 0 && cell.right <= 320 && cell.top >= 0 && cell.bottom <= panel.top);
    out.textContent += '\ninner=' + frame.contentWindow.innerWidth + '\nclosed=' + (closed <= 320) +
        '\nopen=' + (wide() <= 320) + '\nmap=' + (map.scrollWidth > map.clientWidth) + '\n';
};
still.onload = () => {
    const page = still.contentDocument, seen = [...page.querySelectorAll('h1, .sentence, .map, .legend, .table')];
    out.textContent += '\nstill=' + page.querySelector('noscript').innerText +
        '\ncells=' + page.querySelectorAll('.c[data-i]').length +
        '\nhidden=' + seen.filter(e => e.offsetHeight === 0).length + '\n';
};
frame.src = still.src = location.hash.slice(1);
</script>
END

open=("$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars "--user-data-dir=$work/profile"
    --allow-file-access-from-files --virtual-time-budget=4000)
dark=--blink-settings=preferredColorScheme=0
run() { # out, option..., page: its document after the scripts ran
    local out=$1
    shift
    timeout 60 "${open[@]}" --enable-logging=stderr --dump-dom "$@" >"$out" 2>"$out.log" || true
    [ -s "$out" ] || stop "$out: found no document, expected one of chromium: $(tail -n 1 "$out.log")"
}
value() { sed -n "s/^$2=//p" "$1"; }
says() { # file, key, pattern
    [[ $(value "$1" "$2") =~ $3 ]]
}

for page in agrees differs hostile two; do
    { sed '$d' "$page.html"; echo '</script><script>'; cat reader.js; tail -n 1 "$page.html"; } \
        >"$page.driven.html"
    run "$page.light" --window-size=1200,900 "file://$work/$page.driven.html"
    run "$page.dark" --window-size=1200,900 $dark "file://$work/$page.driven.html"
    run "$page.phone" "file://$work/frame.html#$page.html"
    expect "$page: no address in the page" not grep -q 'https\?://' "$page.html"
    expect "$page: no error, nothing refused" \
        not grep -q -E 'Uncaught|Refused|CONSOLE.*rror' "$page".*.log
    expect "$page: nothing is loaded" says "$page.light" loaded '^0$'
    expect "$page: names are text" says "$page.light" injected '^0$'
    expect "$page: title" says "$page.light" title '^qwen3moe: (A |)(agrees|differs: model)'
    expect "$page: a click shows the tensor" says "$page.light" shown '^true$'
    expect "$page: the cell is marked" says "$page.light" pressed '^1$'
    expect "$page: every cell shows figures" says "$page.light" empty '^0$'
    expect "$page: margins of the router" says "$page.light" margins '^true$'
    expect "$page: table and figures call a place alike" says "$page.light" places '^0 of '
    expect "$page: a strip for each tensor of the layer" says "$page.light" strips '^2[0-9]$'
    expect "$page: arrows go through the map" says "$page.light" arrow '^true$'
    expect "$page: Escape closes" says "$page.light" closed '^true$'
    expect "$page: a row of the table shows its tensor" says "$page.light" row '^true$'
    expect "$page: where it can be seen" says "$page.light" inside '^true$'
    expect "$page: 320 px wide" says "$page.phone" inner '^320$'
    expect "$page: no wider than a phone" says "$page.phone" closed '^true$'
    expect "$page: nor with figures shown" says "$page.phone" open '^true$'
    expect "$page: the chosen cell in sight, above its figures" says "$page.phone" sight '^true$'
    expect "$page: the map scrolls by itself" says "$page.phone" map '^true$'
    expect "$page: without scripts it says so" says "$page.phone" still 'needs JavaScript'
    expect "$page: without scripts a cell a line" \
        says "$page.phone" cells "^$(grep -c '^{"tap"' "$page.jsonl")$"
    expect "$page: without scripts all but figures is seen" says "$page.phone" hidden '^0$'
    expect "$page: a dark ground" [ "$(value "$page.light" ground)" != "$(value "$page.dark" ground)" ]
    expect "$page: dark cells" [ "$(value "$page.light" cell)" != "$(value "$page.dark" cell)" ]
done
expect "differs: the profile is drawn" says differs.light bars '^[1-9]'
expect "differs: token, head and channel of the first fault" \
    says differs.light figures 'first outside.*token 1 "t", head 1, channel 5.*theirs 64'
expect "two: each has its verdict" grep -q '<h1>A agrees, B differs: model.layers.0.self_attn.v_proj.output</h1>' two.html
expect "two: a mistake in every layer is one row" \
    [ "$(grep -c 'v_proj.output</button>.*in 5 layers: 0, 1, 2, 3, 4' two.html)" = 1 ]
expect "hostile: texts stay text" grep -q '<br>looks like &lt;i&gt;' hostile.light
expect "differs: the hostile name is shown" grep -q 'ignored.*&lt;/script&gt;&lt;img' differs.light
expect "agrees: says so" grep -q '<h1>agrees</h1>' agrees.light
expect "the verdict is that of the text" grep -q "<h1>$(tail -n 1 differs.txt)</h1>" differs.html

if [ $# -ge 2 ]; then
    sed -i 's/width=320 height=700/width=390 height=844/; s/width=800/hidden &/' frame.html
    picture() { # page, name, size, option...
        "${open[@]}" --window-size="$3" --screenshot="$2.png" "${@:4}" "file://$work/$1" 2>/dev/null
    }
    for page in agrees differs; do
        picture "$page.html" "$page-light" 1200,1500
        picture "$page.html" "$page-dark" 1200,1500 $dark
        picture "frame.html#$page.html" "$page-phone" 500,860 $dark
    done
fi
exit $failed
