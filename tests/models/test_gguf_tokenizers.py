"""A GGUF file that we wrote is read again with the tokenizer that it was written with."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import transformers

from tests.helpers.models_zoo import WIDE, Variant, make_checkpoint
from tests.helpers.running import model_of
from tests.helpers.tokenizers import TEXTS, TOKENIZERS, byte_level, save_tokenizer, unigram
from tpi_bench.host import cache
from tpi_bench.models.gguf.reader import describe_gguf
from tpi_bench.models.gguf.writer import write_gguf
from tpi_bench.models.sources import DemoModel, HuggingFaceModel
from tpi_bench.models.tokenizer import encode_prompt


def exported(folder: Path) -> Path:
    """The file that llama.cpp is given of a model."""
    path = folder / "exported.gguf"
    write_gguf(path, model_of(folder).checkpoint, folder, "F32")
    return path


def imported(folder: Path) -> Path:
    """What `model.path=FILE.gguf` makes of it."""
    back = folder / "back"
    back.mkdir()
    describe_gguf(exported(folder), back)
    return back


def assert_same_tokens(folder: Path, again: Path) -> None:
    """There, back to text, and in a chat."""
    one, two = (transformers.AutoTokenizer.from_pretrained(each) for each in (folder, again))
    for text in TEXTS:
        ids = one.encode(text)
        assert two.encode(text) == ids
        assert two.decode(ids) == one.decode(ids)
    assert two.chat_template == one.chat_template
    assert (two.bos_token_id, two.eos_token_id) == (one.bos_token_id, one.eos_token_id)


@pytest.mark.parametrize("name", [*TOKENIZERS, "unigram"])
def test_every_kind_of_tokenizer_comes_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(tmp_path, Variant(changes=WIDE))
    save_tokenizer((TOKENIZERS | {"unigram": unigram})[name](), tmp_path)
    again = imported(tmp_path)
    assert "cannot be read" not in capsys.readouterr().err
    assert_same_tokens(tmp_path, again)


@pytest.mark.product  # gguf reads each of its 98 000 words by itself
def test_the_demo_models_tokenizer_comes_back(tmp_path: Path) -> None:
    """With its chat template; the weights are small random ones."""
    demo = DemoModel().load(cache.cache_folder(None)).folder
    assert demo is not None
    make_checkpoint(tmp_path, Variant(changes=WIDE | {"vocab_size": 49152}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(demo / name, tmp_path / name)
    again = imported(tmp_path)
    assert_same_tokens(tmp_path, again)
    assert (again / "chat_template.jinja").read_text()


def test_without_a_tokenizer_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its placeholder for llama.cpp is no tokenizer of kind bert."""
    make_checkpoint(tmp_path, Variant(changes=WIDE))
    again = imported(tmp_path)
    assert "cannot be read" not in capsys.readouterr().err
    assert not list(again.glob("token*.json*"))
    reader = gguf.GGUFReader(tmp_path / "exported.gguf")
    assert reader.fields["tokenizer.ggml.model"].contents() == "bert"


def test_as_it_is_typed(tmp_path: Path) -> None:
    """`model.path=exported.gguf prompt=...`: the same ids as `model.path=FOLDER prompt=...`."""
    make_checkpoint(tmp_path, Variant(changes=WIDE))
    save_tokenizer(byte_level(), tmp_path)
    path = exported(tmp_path)
    folders = []
    for given in (tmp_path, path):
        model = HuggingFaceModel(path=str(given)).load(tmp_path / "cache")
        assert model.folder is not None
        folders.append(model.folder)
    asked = [encode_prompt(folder, TEXTS[1], True) for folder in folders]
    assert folders[0] != folders[1]
    assert asked[0] == asked[1]
