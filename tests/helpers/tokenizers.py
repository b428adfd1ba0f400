"""Small tokenizers of every kind that models of the Llama family have, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "What is the capital of France?",
    "  two spaces, 12345 digits\n\nand\tlines; it's déjà vu in 東京 🙂!",
    "x",
]


def byte_level(pre_tokenizer: Any = None) -> Tokenizer:
    """A small byte-level BPE, with an unused id and a special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=298, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """BPE over characters with byte fallback, as of Llama 2; the space comes as a character."""
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False, limit_alphabet=25)
    small = Tokenizer(models.BPE())
    small.normalizer = normalizers.Replace(" ", "▁")
    small.train_from_iterator(["▁" + text for text in TEXTS[:1]] * 3, trainer)
    trained = json.loads(small.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>"]
    texts = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [text for text, _ in sorted(trained["vocab"].items(), key=lambda item: item[1])]
    merges = [tuple(rule) for rule in trained["merges"]]
    vocab = {text: i for i, text in enumerate(texts[:300])}
    merges = [rule for rule in merges if {*rule, "".join(rule)} <= vocab.keys()]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


TOKENIZERS = {
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "sentencepiece": sentencepiece_like,
}


def unigram() -> Tokenizer:
    """Of whole words with scores, which llama.cpp's terms cannot say."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """As Hugging Face folders have it."""
    end = "</s>" if tokenizer.token_to_id("</s>") is not None else "<|end|>"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    fast.save_pretrained(folder)
