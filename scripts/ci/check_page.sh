#!/usr/bin/env bash
# The files of the report's page, as linters read them: scripts/ci/check_page.sh COMMAND
#
# judge/page_assets.c is what judge/page.css and judge/page.js make; the script parses, has no name
# that is not defined and none that is not used; the style has known properties with valid values;
# the pages of an agreeing and a differing report are valid HTML. How the page behaves in a browser:
# check_html.sh. Needs cmake, node and npm, which installs eslint, csstree-validator and
# html-validate into a temporary folder.
# Exit status: 0 all is well, 1 something is not.
# SPDX-License-Identifier: MIT
set -euo pipefail
[ $# = 1 ] || { echo 'check_page.sh: expected COMMAND' >&2; exit 2; }
command=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

expect() { # name, command...
    if "${@:2}" >"$work/log" 2>&1; then
        echo "ok      $1"
    else
        cat "$work/log"
        echo "FAILED  $1"
        failed=1
    fi
}
not() { ! "$@"; }

npm install --silent --no-audit --no-fund --prefix "$work" eslint@10.15.0 csstree-validator@4.0.1 \
    html-validate@10.17.0
tools=$work/node_modules/.bin

# What a reader would call a mistake, not a style.
cat >"$work/eslint.config.mjs" <<'END_OF_CONFIG'
const browser = Object.fromEntries(['document', 'matchMedia'].map(name => [name, 'readonly']));
const rules = ['no-undef', 'no-unused-vars', 'no-redeclare', 'no-shadow', 'no-const-assign',
    'no-var', 'prefer-const', 'eqeqeq', 'no-dupe-keys', 'no-dupe-args', 'no-unreachable',
    'no-fallthrough', 'no-self-assign', 'no-self-compare', 'no-unsafe-negation',
    'no-implicit-globals', 'no-eval', 'use-isnan', 'valid-typeof', 'no-cond-assign',
    'no-constant-condition', 'no-empty', 'no-extra-boolean-cast', 'array-callback-return'];
export default [{
    files: ['**/*.js'],
    languageOptions: {sourceType: 'script', ecmaVersion: 2022, globals: browser},
    rules: Object.fromEntries(rules.map(rule => [rule, 'error'])),
}];
END_OF_CONFIG
echo '{"extends": ["html-validate:standard"], "root": true}' >"$work/htmlvalidate.json"

lint() { (cd "$work" && "$tools/eslint" --max-warnings 0 "$1"); }
validate() { "$tools/html-validate" -c "$work/htmlvalidate.json" "$1"; }

cp "$root/judge/page.js" "$root/judge/page.css" "$work"
expect "page_assets.c is up to date" cmake -DCHECK=ON -P "$root/judge/page_assets.cmake"
expect "page.js parses" node --check "$work/page.js"
expect "page.js: no unknown, no unused name" lint page.js
expect "page.css is valid" "$tools/csstree-validator" "$work/page.css"

taps=$root/golden/hf/tiny/taps-bfloat16.safetensors
"$command" check "$root/golden/tiny" "$taps" --html "$work/agrees.html" >/dev/null
# Another dtype is another run: much differs.
"$command" diff "$taps" "$root/golden/hf/tiny/taps-float32.safetensors" \
    --html "$work/differs.html" >/dev/null || true
for page in agrees differs; do
    expect "$page.html is valid" validate "$work/$page.html"
done

# The tools see what they are for.
echo "'use strict'; const never = other;" >"$work/bad.js"
echo 'p { margn: 0; margin: autox }' >"$work/bad.css"
sed 's/<h1>/<h1 class=a class=b><b>/' "$work/agrees.html" >"$work/bad.html"
expect "a wrong script is refused" not lint bad.js
expect "a wrong style is refused" not "$tools/csstree-validator" "$work/bad.css"
expect "a wrong page is refused" not validate "$work/bad.html"
exit $failed
