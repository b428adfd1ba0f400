"""The vocabulary of a GGUF file: a Hugging Face tokenizer in llama.cpp's terms, or a placeholder.

Byte-level BPE becomes llama.cpp's `gpt2` tokenizer, sentencepiece-like BPE with byte fallback its
`llama` tokenizer. llama.cpp's server streams a token only when the text so far ends in a whole
character, and loses the ids of those it holds back; so tokens that are only part of a character
are marked unused, which tokenises the same and prints nothing. Called by `writer.py`.

The tokenizer's own files go into the file as they are, too: `tokenizer.huggingface.json` is GGUF's
name of the one, the others are beside it. A file of ours that is read again (`reader.py`) so has
the same tokenizer, whatever llama.cpp's terms cannot say.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.contract.model import ModelConfig

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

# Where a file of ours keeps the files of its tokenizer, and their names.
_KEPT = "tpi_bench.tokenizer_files"
_KEYS = {
    "tokenizer.json": "tokenizer.huggingface.json",
    "tokenizer_config.json": "tpi_bench.tokenizer_config",
    "special_tokens_map.json": "tpi_bench.special_tokens_map",
    "chat_template.jinja": "tpi_bench.chat_template",
}
# Token types, as `gguf.TokenType` numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NO_SCORE = -1e6  # below every merge

# Of the patterns that split text before the merges, and llama.cpp's names of those.
_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_START = r"[^\r\n\p{L}\p{N}]?"
_WORDS = rf"{_START}\p{{L}}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [f"{_START}{_UPPER}*{_LOWER}+", f"{_START}{_UPPER}+{_LOWER}*"]
_CASED_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_PATTERNS = {
    f"{_ENGLISH}|{_WORDS}|\\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}": "llama-bpe",
    f"{_ENGLISH}|{_WORDS}|\\p{{N}}|{_OTHERS}|{_SPACES}": "qwen2",
    "|".join([*_CASED, r"\p{N}", _CASED_OTHERS, _SPACES]): "tekken",
    "|".join([*(f"{c}{_ENGLISH}?" for c in _CASED), r"\p{N}{1,3}", _CASED_OTHERS, _SPACES]): (
        "gpt-4o"
    ),
}


@dataclass
class _Tokens:
    """One entry a token id. `scores` are for the `llama` tokenizer alone."""

    texts: list[bytes]
    types: list[int]
    scores: list[float] = field(default_factory=list)


def add_vocabulary(writer: GGUFWriter, config: ModelConfig, folder: Path | None) -> None:
    """Add to `writer` the tokenizer of `folder`, or a placeholder where there is none."""
    logging.getLogger("gguf").setLevel(logging.ERROR)
    if folder is not None:
        _add_files(writer, folder)
    tokenizer = None if folder is None else folder / "tokenizer.json"
    if tokenizer is not None and tokenizer.is_file():
        raw = json.loads(tokenizer.read_text(encoding="utf-8"))
        if raw["model"].get("type") == "BPE":
            assert folder is not None
            if raw["model"].get("byte_fallback"):
                _add_sentencepiece_like(writer, config, folder, raw)
            else:
                _add_byte_level(writer, config, folder, raw)
            return
    if folder is not None and (folder / "tokenizer.model").is_file():
        from gguf import vocab

        if vocab.SentencePieceProcessor is not None:
            _add_sentencepiece(writer, config, folder)
            return
    _add_placeholder(writer, config)


def restore_tokenizer(reader: GGUFReader, folder: Path) -> bool:
    """Write the tokenizer's files that a file of ours has kept into `folder`.

    Whether there is nothing else to do: also of a file of ours that never had a tokenizer.
    """
    kept = reader.fields.get(_KEPT)
    for name in [] if kept is None else kept.contents():
        (folder / name).write_text(reader.fields[_KEYS[name]].contents(), encoding="utf-8")
    return kept is not None or _is_placeholder(reader)


def _add_files(writer: GGUFWriter, folder: Path) -> None:
    """Nothing without a `tokenizer.json`: the older `tokenizer.model` is no text."""
    names = [name for name in _KEYS if (folder / name).is_file()]
    if "tokenizer.json" in names:
        writer.add_array(_KEPT, names)
        for name in names:
            writer.add_string(_KEYS[name], (folder / name).read_text(encoding="utf-8"))


def _is_placeholder(reader: GGUFReader) -> bool:
    """What `_add_placeholder` writes."""
    kind, tokens = (reader.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "tokens"))
    if kind is None or tokens is None or kind.contents() != "bert":
        return False
    return tokens.contents(0) == _filler(0).decode()


def pre_tokenizer_name(pre_tokenizer: dict[str, Any] | None) -> str:
    """llama.cpp's name of how a byte-level tokenizer splits text; `default` if it has none."""
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "gpt-2" if steps[0].get("use_regex", True) else "default"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm" if steps[1].get("use_regex", True) else "default"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return _PATTERNS.get(steps[0]["pattern"].get("Regex", ""), "default")
    return "default"


def _add_byte_level(
    writer: GGUFWriter, config: ModelConfig, folder: Path, raw: dict[str, Any]
) -> None:
    tokens = _tokens_of(raw, config.vocab)
    byte_of = _byte_of_character()
    for i, text in enumerate(tokens.texts):
        if tokens.types[i] == _NORMAL and not _is_whole(
            bytes(byte_of.get(c, 0) for c in text.decode())
        ):
            tokens.types[i] = _UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(raw.get("pre_tokenizer")))
    writer.add_token_list(tokens.texts)
    writer.add_token_types(tokens.types)
    _add_special(writer, config, folder, load_merges=True)


def _add_sentencepiece_like(
    writer: GGUFWriter, config: ModelConfig, folder: Path, raw: dict[str, Any]
) -> None:
    """llama.cpp merges the pair of the highest score: that of the earliest merge rule."""
    tokens = _tokens_of(raw, config.vocab)
    ids = raw["model"]["vocab"]
    tokens.scores = [_NO_SCORE] * config.vocab
    for rank, rule in enumerate(raw["model"]["merges"]):
        merged = ids["".join(rule.split(" ") if isinstance(rule, str) else rule)]
        if merged < config.vocab:
            tokens.scores[merged] = max(tokens.scores[merged], -float(rank))
    for i, text in enumerate(tokens.texts):
        byte = _BYTE_TOKEN.fullmatch(text.decode())
        if byte and tokens.types[i] == _NORMAL:
            tokens.types[i] = _BYTE if int(byte[1], 16) < 0x80 else _UNUSED
    unknown = ids.get(raw["model"].get("unk_token"), config.vocab)
    if unknown < config.vocab:
        tokens.types[unknown] = _UNKNOWN
    _add_llama(writer, config, folder, tokens)
    # Either a normalizer or the pre-tokenizer puts a space before the text.
    rules = json.dumps([raw.get("normalizer"), raw.get("pre_tokenizer")])
    has_prefix = '"Prepend"' in rules or bool(
        re.search(r'"prepend_scheme": "(first|always)"', rules)
    )
    writer.add_add_space_prefix(has_prefix)


def _add_sentencepiece(writer: GGUFWriter, config: ModelConfig, folder: Path) -> None:
    from gguf.vocab import SentencePieceVocab

    found = list(SentencePieceVocab(folder).all_tokens())[: config.vocab]
    tokens = _Tokens(
        texts=[text for text, _, _ in found],
        types=[int(kind) for _, _, kind in found],
        scores=[score for _, score, _ in found],
    )
    for i, text in enumerate(tokens.texts):
        if tokens.types[i] == _BYTE and text >= b"<0x80>":
            tokens.types[i] = _UNUSED
    for i in range(len(found), config.vocab):
        tokens.texts.append(_filler(i))
        tokens.types.append(_UNUSED)
        tokens.scores.append(_NO_SCORE)
    _add_llama(writer, config, folder, tokens)


def _add_llama(writer: GGUFWriter, config: ModelConfig, folder: Path, tokens: _Tokens) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens.texts)
    writer.add_token_scores(tokens.scores)
    writer.add_token_types(tokens.types)
    _add_special(writer, config, folder, load_merges=False)


def _add_special(
    writer: GGUFWriter, config: ModelConfig, folder: Path, *, load_merges: bool
) -> None:
    """Merges, special ids, whether the text begins with one, and the chat template."""
    from gguf.vocab import SpecialVocab

    special = SpecialVocab(folder, load_merges=load_merges, n_vocab=config.vocab)
    if (folder / "tokenizer.json").is_file():
        special.add_special_token.setdefault("bos", False)
    stops = [i for i in config.eos_ids if i < config.vocab]
    for kind, token in zip(("eos", "eot", "eom"), stops, strict=False):
        special.special_token_ids[kind] = token
    special.add_to_gguf(writer, quiet=True)


def _add_placeholder(writer: GGUFWriter, config: ModelConfig) -> None:
    """Token ids in and out need no text. The `bert` tokenizer has no end of sequence by default."""
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_filler(i) for i in range(config.vocab)])
    writer.add_token_types([_UNUSED] * config.vocab)
    if config.eos_ids:
        writer.add_eos_token_id(config.eos_ids[0])


def _tokens_of(raw: dict[str, Any], num_tokens: int) -> _Tokens:
    """Every id below `num_tokens`; ids that the tokenizer does not use become fillers."""
    tokens = _Tokens([_filler(i) for i in range(num_tokens)], [_UNUSED] * num_tokens)
    for text, i in raw["model"]["vocab"].items():
        if i < num_tokens:
            tokens.texts[i], tokens.types[i] = text.encode(), _NORMAL
    for added in raw.get("added_tokens") or []:
        if added["id"] < num_tokens:
            tokens.texts[added["id"]] = added["content"].encode()
            tokens.types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    return tokens


def _filler(i: int) -> bytes:
    """A text that no tokenizer has; llama.cpp wants every token to have one of its own."""
    return f"[unused token {i}]".encode()


def _is_whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
