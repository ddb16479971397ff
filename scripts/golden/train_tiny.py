# SPDX-License-Identifier: MIT
"""Makes golden/tiny: a small Qwen3-MoE checkpoint, trained on the King James Bible.

Needs  torch 2.13.0 (2.11 or newer trains), transformers 5.17.0, tokenizers 0.23, safetensors, numpy
       (pip), and for `data` alone the Debian packages bible-kjv and bible-kjv-text.

  python3 scripts/golden/train_tiny.py data --work W            text, split, tokenizer, token ids -> W
  python3 scripts/golden/train_tiny.py train --work W --run R   trains; the float32 weights -> R
  python3 scripts/golden/train_tiny.py export --work W --run R --out golden/tiny
                                                         bf16 weights and every other file
  python3 scripts/golden/train_tiny.py report --work W --model golden/tiny
                                                         held-out losses, n-grams, greedy text

`data` gives the same files every time. `train` is seeded, but float sums on a GPU have
no fixed order, so another run gives another, equally good, checkpoint: the weights are data.
"""

import argparse
import collections
import json
import math
import os
import re
import subprocess
import time

import numpy as np

# ---- The text -----------------------------------------------------------------------------------

VERSE = re.compile(r"([1-3]?[A-Za-z]+)(\d+):(\d+) (.+)")
BOOKS, CHAPTERS, VERSES = 66, 1189, 31102
PERIOD, VALIDATION, TEST = 40, 9, 29  # of every 40 chapters the 10th and the 30th are held out


def read_bible():
    """The whole text as a list of (book, chapter, prose): verses joined by one space, no numbers,
    words and punctuation as they are."""
    text = subprocess.run(["bible", "-f", "Ge1:1-Rev22:21"], stdout=subprocess.PIPE, check=True,
                          encoding="ascii").stdout
    chapters, verses = {}, 0
    for line in text.splitlines():
        match = VERSE.fullmatch(line.strip())
        if match is None:
            raise SystemExit(f"bible: line {line!r}: expected BOOKchapter:verse text")
        book, chapter, _, verse = match.groups()
        chapters.setdefault((book, int(chapter)), []).append(" ".join(verse.split()))
        verses += 1
    found = (len({book for book, _ in chapters}), len(chapters), verses)
    if found != (BOOKS, CHAPTERS, VERSES):
        raise SystemExit(f"bible: found {found} books, chapters, verses; "
                         f"expected {(BOOKS, CHAPTERS, VERSES)}")
    return [(book, number, " ".join(lines)) for (book, number), lines in chapters.items()]


def split_chapters(chapters):
    """(training, validation, test) by a chapter's number in the whole sequence. Validation chooses
    between runs; test is for the figures alone."""
    training = [c for i, c in enumerate(chapters) if i % PERIOD not in (VALIDATION, TEST)]
    return training, chapters[VALIDATION::PERIOD], chapters[TEST::PERIOD]


# ---- The tokenizer ------------------------------------------------------------------------------

BPE_SIZE = 2000
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>",
           "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
           "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
           "<|video_pad|>"]
CONTROL = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
           "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
           "<think>", "</think>"]
END_OF_TEXT = BPE_SIZE  # id of <|endoftext|>: the first added token follows the vocabulary


def train_tokenizer(texts):
    """A byte-level BPE with exactly Qwen3's pipeline and control tokens, and its own merges."""
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                            pre_tokenizers, processors, trainers)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(**byte_level)])
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=BPE_SIZE, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    for names, special in ((SPECIAL, True), (CONTROL, False)):
        tokenizer.add_tokens([AddedToken(name, single_word=False, lstrip=False, rstrip=False,
                                         normalized=False, special=special) for name in names])
    # The official file has empty strings where the trainer leaves null (they mean the same), and
    # flags in its decoder (they have no effect there) that the constructor does not take.
    tree = json.loads(tokenizer.to_str())
    tree["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    tree["decoder"].update(byte_level)
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    check_tokenizer(tokenizer, texts)
    return tokenizer


def check_tokenizer(tokenizer, texts):
    tree = json.loads(tokenizer.to_str())
    vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
    added = [(t["id"], t["content"], t["special"]) for t in tree["added_tokens"]]
    assert sorted(vocab.values()) == list(range(BPE_SIZE))
    assert all(vocab["".join(pair)] == 256 + rank for rank, pair in enumerate(merges))
    assert added == [(BPE_SIZE + i, name, i < len(SPECIAL)) for i, name in
                     enumerate(SPECIAL + CONTROL)]
    for text in texts[::50]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


# ---- The data: token ids ------------------------------------------------------------------------


def command_data(args):
    """W/tokenizer.json; W/train.npy (one stream); W/valid.npy, W/test.npy (padded with -1)."""
    os.makedirs(args.work, exist_ok=True)
    training, validation, test = split_chapters(read_bible())
    tokenizer = train_tokenizer([text for _, _, text in training])
    tokenizer.save(os.path.join(args.work, "tokenizer.json"), pretty=True)

    # Chapters of a book are separated by a newline, books by <|endoftext|>.
    stream, last_book = [], None
    for i, (book, _, text) in enumerate(training):
        if book != last_book:
            stream.append(END_OF_TEXT)
        ends_book = i + 1 == len(training) or training[i + 1][0] != book
        stream += tokenizer.encode(text if ends_book else text + "\n").ids
        last_book = book
    stream.append(END_OF_TEXT)
    np.save(os.path.join(args.work, "train.npy"), np.array(stream, np.int16))
    for name, part in (("valid", validation), ("test", test)):
        rows = [[END_OF_TEXT] + tokenizer.encode(text).ids for _, _, text in part]
        table = np.full((len(rows), max(map(len, rows))), -1, np.int16)
        for row, ids in zip(table, rows):
            row[:len(ids)] = ids
        np.save(os.path.join(args.work, name + ".npy"), table)
        print(f"{name}: {len(rows)} chapters, {sum(map(len, rows)) - len(rows)} tokens, "
              f"{sum(len(text) for _, _, text in part)} characters")
    print(f"train: {len(training)} chapters, {len(stream)} tokens, "
          f"{sum(len(text) for _, _, text in training)} characters")


def load_chapters(work, name):
    table = np.load(os.path.join(work, name + ".npy")).astype(np.int64)
    return [row[row >= 0] for row in table]


# ---- The model ----------------------------------------------------------------------------------

# All sizes differ and no matrix is square, so that a transposed, swapped or wrongly repeated tensor
# cannot pass: H*head_dim = 144, K*head_dim = 48, 2F = 112, M = 120; H/K = 3, K = 2, A = 4.
# vocab_size is above the number of tokens, as in the official models: the last rows have no token.
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": END_OF_TEXT,
    "decoder_sparse_step": 1,
    "eos_token_id": END_OF_TEXT,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 120,
    "initializer_range": 0.02,
    "intermediate_size": 200,
    "max_position_embeddings": 512,
    "max_window_layers": 5,
    "mlp_only_layers": [1],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 56,
    "norm_topk_prob": True,
    "num_attention_heads": 6,
    "num_experts": 14,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 2040,
}
CONTEXT = CONFIG["max_position_embeddings"]


def new_model(seed):
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    torch.manual_seed(seed)
    config = Qwen3MoeConfig.from_dict({**CONFIG, "torch_dtype": "float32"})
    config._experts_implementation = "eager"
    return Qwen3MoeForCausalLM(config)


def dense_experts(self, hidden, top_k_index, top_k_weights):
    """What Qwen3MoeExperts.forward computes, as three products over all experts at once.

    E/A = 3.5 times the arithmetic, but far fewer GPU calls at these sizes; training only."""
    import torch
    weights = torch.zeros(hidden.shape[0], self.num_experts, dtype=top_k_weights.dtype,
                          device=hidden.device).scatter(1, top_k_index, top_k_weights)
    gate, up = torch.einsum("tm,efm->tef", hidden, self.gate_up_proj).chunk(2, dim=-1)
    inner = self.act_fn(gate) * up * weights.unsqueeze(-1)
    return torch.einsum("tef,emf->tm", inner, self.down_proj)


def use_dense_experts(model):
    import torch
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
    ids = torch.arange(64).reshape(1, 64) * 31
    with torch.no_grad():
        before = model(ids).logits
        for module in model.modules():
            if isinstance(module, Qwen3MoeExperts):
                module.forward = dense_experts.__get__(module)
        error = (model(ids).logits - before).abs().max().item()
    assert error < 1e-5, f"dense_experts differs from the model's own experts by {error}"


def add_dropout(model, p):
    """Dropout on the embeddings and on what each attention and MLP block adds (training only)."""
    import torch

    def drop(module, _, output):
        return torch.nn.functional.dropout(output, p, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def balance_loss(router_logits, top_k):
    """Per layer: experts * sum of (share of selections * mean probability); 1 when balanced."""
    import torch
    total = 0.0
    for logits in router_logits:
        probs = logits.float().softmax(-1)
        chosen = probs.topk(top_k, dim=-1).indices
        share = torch.zeros_like(probs).scatter(1, chosen, 1.0 / top_k).mean(0)
        total = total + probs.shape[-1] * (share * probs.mean(0)).sum()
    return total / len(router_logits)


def chapter_losses(model, ids, device):
    """-log p of tokens 1.. of one chapter. Windows overlap by half, so that a token sees all of the
    chapter before it or at least half a context."""
    import torch
    losses, start = [], 0
    while True:
        window = torch.tensor(ids[start:start + CONTEXT], device=device)[None]
        with torch.no_grad():
            logits = model(window).logits[0, :-1].double()
        nll = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").cpu()
        losses.append(nll[len(losses) and CONTEXT // 2 - 1:])
        if start + CONTEXT >= len(ids):
            break
        start += CONTEXT // 2
    losses = torch.cat(losses)
    assert len(losses) == len(ids) - 1
    return losses


def mean_loss(model, chapters, device):
    import torch
    return torch.cat([chapter_losses(model, ids, device) for ids in chapters]).mean().item()


def greedy(model, ids, count, device):
    """(ids of the continuation, gap between the two best logits at each step); no key/value cache;
    stops after <|endoftext|>."""
    import torch
    ids, gaps = list(ids), []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=device)).logits[0, -1].double()
        best = logits.topk(2)
        gaps.append((best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
        if ids[-1] == END_OF_TEXT:
            break
    return ids[-len(gaps):], gaps


# ---- Training -----------------------------------------------------------------------------------


def text_starts(stream):
    """(positions where a chapter starts, where a sentence starts) in the stream, as tensors."""
    import torch
    after = stream[:-CONTEXT - 1]
    ends = [ord(mark) - ord("!") for mark in ".?!"]  # ids of the byte letters
    newline = 198  # the byte letter of "\n"
    chapter = (after == END_OF_TEXT) | (after == newline)
    sentence = torch.isin(after, torch.tensor(ends, device=stream.device)) | chapter
    return chapter.nonzero()[:, 0] + 1, sentence.nonzero()[:, 0] + 1


def draw_windows(stream, starts, count, generator):
    """[count, CONTEXT + 1] ids: half from anywhere, a quarter from a sentence's start, a quarter
    from a chapter's, because a prompt is read from position 0 and starts like a text."""
    import torch
    chapters, sentences = starts
    quarter = count // 4

    def draw(n, size):
        return torch.randint(n, (size,), generator=generator).to(stream.device)

    first = torch.cat([chapters[draw(len(chapters), quarter)],
                       sentences[draw(len(sentences), quarter)],
                       draw(len(stream) - CONTEXT, count - 2 * quarter)])
    return stream[first[:, None] + torch.arange(CONTEXT + 1, device=stream.device)]


def repeat_loss(logits, ids):
    """Unlikelihood of false repeats: wherever the last two tokens stood earlier in the window, and
    what followed them there is not what follows here, -log(1 - p) of the former. It makes
    loops in greedy text rarer."""
    import torch
    before, target = ids[:, :-1], ids[:, 1:]
    pair = before[:, 1:] * 65536 + before[:, :-1]
    same = (pair[:, :, None] == pair[:, None, :]) & (target[:, 1:, None] != target[:, None, 1:])
    row, here, there = same.tril(-1).nonzero(as_tuple=True)
    log_p = logits.log_softmax(-1)[row, here + 1, target[row, there + 1]]
    return -torch.log1p(-log_p.exp().clamp(max=1 - 1e-6)).sum() / target.numel()


def make_optimizer(model, rate, decay):
    import torch
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": decay},
                              {"params": vectors, "weight_decay": 0.0}],
                             lr=rate, betas=(0.9, 0.98), eps=1e-9)


def learning_rate(step, args):
    """A linear start, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / args.warmup)
    done = min(1.0, step / args.steps)
    return args.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def command_train(args):
    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    model = new_model(args.seed)
    use_dense_experts(model)
    add_dropout(model, args.dropout)
    model.to(device)
    stream = torch.from_numpy(np.load(os.path.join(args.work, "train.npy")).astype(np.int64))
    stream = stream.to(device)
    validation = load_chapters(args.work, "valid")
    optimizer = make_optimizer(model, args.rate, args.decay)
    generator = torch.Generator().manual_seed(args.seed)
    starts = text_starts(stream)
    os.makedirs(args.run, exist_ok=True)
    log = open(os.path.join(args.run, "log.jsonl"), "w")
    print(json.dumps({**vars(args), "device": device, "torch": torch.__version__}), file=log)

    begin, recent = time.time(), []
    for step in range(args.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        window = draw_windows(stream, starts, args.batch, generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            out = model(window[:, :-1], output_router_logits=True, use_cache=False)
        logits = out.logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        repeats = repeat_loss(logits, window)
        balance = balance_loss(out.router_logits, CONFIG["num_experts_per_tok"])
        optimizer.zero_grad(set_to_none=True)
        (loss + args.balance * balance + args.repeats * repeats).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            model.eval()
            line = {"step": step + 1, "train": torch.stack(recent).mean().item(),
                    "valid": mean_loss(model, validation, device), "balance": balance.item(),
                    "repeats": repeats.item(), "seconds": round(time.time() - begin, 1)}
            recent = []
            print(json.dumps(line), file=log, flush=True)
            print(args.run, json.dumps(line), flush=True)
    model.eval().save_pretrained(args.run)


# ---- Export and report --------------------------------------------------------------------------


def write_json(path, tree):
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(work, out):
    from tokenizers import Tokenizer
    os.makedirs(out, exist_ok=True)
    Tokenizer.from_file(os.path.join(work, "tokenizer.json")).save(
        os.path.join(out, "tokenizer.json"), pretty=True)
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {
            str(BPE_SIZE + i): {"content": name, **flags, "special": i < len(SPECIAL)}
            for i, name in enumerate(SPECIAL + CONTROL)},
        "additional_special_tokens": SPECIAL[1:], "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>", "errors": "replace",
        "model_max_length": CONTEXT, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})


def command_export(args):
    """The files of a published model. config.json is written here, in the 4.x spelling of the
    official checkpoints: transformers 5 would write its own."""
    import torch
    from transformers import Qwen3MoeForCausalLM
    write_tokenizer(args.work, args.out)
    model = Qwen3MoeForCausalLM.from_pretrained(args.run, dtype=torch.bfloat16)
    model.save_pretrained(args.out)  # splits 5.x's packed experts into the official tensors
    os.chmod(os.path.join(args.out, "model.safetensors"), 0o644)
    write_json(os.path.join(args.out, "config.json"), CONFIG)
    write_json(os.path.join(args.out, "generation_config.json"), {
        "bos_token_id": END_OF_TEXT, "do_sample": False,
        "eos_token_id": [BPE_SIZE + SPECIAL.index("<|im_end|>"), END_OF_TEXT],
        "pad_token_id": END_OF_TEXT, "transformers_version": "4.51.0"})


def ngram_counts(stream, order):
    """Kneser-Ney statistics: tables[k] is (discount, {context: (total, kinds, {next: n})}) for the
    contexts of k tokens. The longest context counts occurrences, shorter ones count distinct tokens
    to the left."""
    tables = []
    grams = collections.Counter(zip(*(stream[i:] for i in range(order))))
    for k in range(order - 1, -1, -1):
        table = collections.defaultdict(dict)
        for gram, n in grams.items():
            table[gram[:-1]][gram[-1]] = n
        once = sum(1 for n in grams.values() if n == 1)
        twice = sum(1 for n in grams.values() if n == 2)
        tables.insert(0, (once / (once + 2 * twice),
                          {c: (sum(t.values()), len(t), t) for c, t in table.items()}))
        grams = collections.Counter(gram[1:] for gram in grams)
    return tables


def ngram_probability(tables, before, token):
    """Interpolated Kneser-Ney: from a uniform distribution up to the longest context seen."""
    p = 1.0 / (BPE_SIZE + len(SPECIAL + CONTROL))
    for k in range(min(len(tables), len(before) + 1)):
        discount, table = tables[k]
        entry = table.get(tuple(before[len(before) - k:]))
        if entry is None:
            break
        count, kinds, followers = entry
        p = (max(followers.get(token, 0) - discount, 0.0) + discount * kinds * p) / count
    return p


def ngram_loss(tables, chapters):
    """Mean -log p of tokens 1.. of every chapter: the tokens that mean_loss takes."""
    order, losses = len(tables), []
    for ids in chapters:
        ids = [int(i) for i in ids]
        total = sum(ngram_probability(tables, ids[:order], t)
                    for t in range(BPE_SIZE + len(SPECIAL + CONTROL)))
        assert abs(total - 1) < 1e-9, f"n-gram probabilities sum to {total}"
        losses += [-math.log(ngram_probability(tables, ids[max(0, at - order + 1):at], ids[at]))
                   for at in range(1, len(ids))]
    return sum(losses) / len(losses)


PROMPTS = ["In the beginning", "And God said,", "The LORD is my", "And it came to pass",
           "Now these are the generations of", "Blessed are they that", "Then said Jesus unto",
           "Thou shalt not", "And the king said unto",
           "The grace of our Lord Jesus Christ be with"]


def report_greedy(model, tokenizer):
    for prompt in PROMPTS:
        ids, gaps = greedy(model, tokenizer.encode(prompt).ids, 64, "cpu")
        print(f"greedy, smallest gap of the two best logits {min(gaps):.4f}: {prompt!r} -> "
              f"{tokenizer.decode(ids, skip_special_tokens=False)!r}")


def report_experts(model, chapters):
    """Share of selections of each expert over the test text, per MoE layer."""
    import torch
    sparse = [i for i in range(CONFIG["num_hidden_layers"]) if i not in CONFIG["mlp_only_layers"]]
    counts = [torch.zeros(CONFIG["num_experts"]) for _ in sparse]
    for ids in chapters:
        with torch.no_grad():
            out = model(torch.tensor(ids[:CONTEXT])[None], output_router_logits=True)
        for count, logits in zip(counts, out.router_logits):
            chosen = logits.topk(CONFIG["num_experts_per_tok"], dim=-1).indices
            count += chosen.flatten().bincount(minlength=len(count))
    for layer, count in zip(sparse, counts):
        share = 100 * count / count.sum()
        print(f"layer {layer}: share of selections per expert, in percent: "
              f"{' '.join(f'{value:.1f}' for value in share.tolist())}")


def command_report(args):
    """Everything TRAINING.md states, from the exported files: float32 arithmetic, bf16 weights."""
    import platform
    import tokenizers
    import torch
    import transformers
    torch.set_num_threads(args.threads)
    print(f"python {platform.python_version()}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}, tokenizers {tokenizers.__version__}")
    model = transformers.Qwen3MoeForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager").eval()
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    print(f"parameters {sum(p.numel() for p in model.parameters())}, bytes of the folder's files "
          f"{sum(e.stat().st_size for e in os.scandir(args.model))}")
    report_greedy(model, tokenizer)
    stream = np.load(os.path.join(args.work, "train.npy")).tolist()
    test = load_chapters(args.work, "test")
    report_experts(model, test)
    characters = sum(len(tokenizer.decode(ids[1:].tolist())) for ids in test)
    parts = {"validation": load_chapters(args.work, "valid"), "test": test}
    for name, chapters in parts.items():
        count = sum(len(ids) - 1 for ids in chapters)
        print(f"{name}: {len(chapters)} chapters, {count} tokens; nats per token:")
        for order in (1, 2, 3, 4):
            print(f"  {order}-gram {ngram_loss(ngram_counts(stream, order), chapters):.4f}")
        loss = mean_loss(model, chapters, "cpu")
        print(f"  model  {loss:.4f}")
    print(f"test: model {loss * count / characters / math.log(2):.4f} bits per character")
    seen = [np.array(stream[i:i + CONTEXT])
            for i in range(0, len(stream) - CONTEXT, len(stream) // 50)]
    print(f"training text, {len(seen)} pieces of {CONTEXT} tokens: model "
          f"{mean_loss(model, seen, 'cpu'):.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, run in (("data", command_data), ("train", command_train),
                      ("export", command_export), ("report", command_report)):
        verb = verbs.add_parser(name)
        verb.set_defaults(call=run)
        verb.add_argument("--work", required=True)
        if name == "train":
            verb.add_argument("--run", required=True)
            for option, kind, default in (
                    ("seed", int, 13), ("steps", int, 4500), ("batch", int, 32),
                    ("rate", float, 4e-3), ("warmup", int, 200), ("decay", float, 0.1),
                    ("dropout", float, 0.2), ("balance", float, 0.01), ("repeats", float, 0.5),
                    ("every", int, 1500),
                    ("threads", int, 2)):
                verb.add_argument("--" + option, type=kind, default=default)
        if name == "export":
            verb.add_argument("--run", required=True)
            verb.add_argument("--out", required=True)
        if name == "report":
            verb.add_argument("--model", required=True)
            verb.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    call = args.call
    del args.call, args.verb
    call(args)


if __name__ == "__main__":
    main()
