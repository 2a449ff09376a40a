"""Tiny models for evaluations: a start, and a policy that was planted to say "happy" more often."""

import json
from pathlib import Path

import torch
import yaml
from tiny import WORDS, make_model, make_tokenizer

POSITIONS = 256


def save(folder, model, tokenizer):
    """Save a model with its tokenizer; returns the path as text."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_happier(model, tokenizer, strength):
    """Raise the logit of "happy" by about `strength` in every state; returns the model."""
    with torch.no_grad():
        ids = torch.arange(7, len(tokenizer)).unsqueeze(0)
        states = model.model(ids).last_hidden_state[0].mean(0)
        happy = tokenizer.convert_tokens_to_ids("happy")
        model.lm_head.weight[happy] += strength * states / (states @ states)
    return model


def held_out_rows(count):
    """Prompts that differ from those of `prompt_rows`."""
    words = [f"{WORDS[i % 20]} {WORDS[(i * 7 + 3) % 20]} ?" for i in range(count)]
    return [
        {"prompt": [{"role": "user", "content": f"{text} {WORDS[i % 11]}"}], "number": i}
        for i, text in enumerate(words)
    ]


def write_jsonl(file, rows):
    """Write rows as JSON lines; returns the path as text."""
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def make_models(folder, **record):
    """Make `start`, `policy` (with a record that names the start, and `record`), and held-out prompts in `folder`."""
    tokenizer = make_tokenizer()
    start = save(folder / "start", make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer)
    policy = make_happier(make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer, 8.0)
    save(folder / "policy", policy, tokenizer)
    settings = {"model_name_or_path": start, "temperature": 0.9, "max_completion_length": 10, **record}
    (folder / "policy" / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_jsonl(folder / "held_out.jsonl", held_out_rows(40))
