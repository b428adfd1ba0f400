"""A model by its id on the Hugging Face hub: in the hub's own cache, or one line of why not.

Called by `sources.py` for a `model.path` that is no file or folder here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpi_bench.host import cache

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def hub_folder(repository: str) -> Path:
    """The repository's files, fetched if they are not there. Raises ValueError."""
    import huggingface_hub
    from huggingface_hub.utils import logging, tqdm

    class Bar(tqdm):
        """On a terminal only, and gone when it is done."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(
                *args, **({"disable": cache.bars_hidden()} | kwargs | {"leave": False})
            )

    logging.set_verbosity_error()
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=_HUB_FILES, tqdm_class=Bar)
        )
    except Exception as error:  # the library raises anything: of HTTP, of JSON, AttributeError
        reason, advice = _hub_trouble(error)
        raise ValueError(
            f"model.path={repository} is no folder on this machine and could not be fetched from "
            f"the Hugging Face hub ({reason}); {advice}, or give a local folder"
        ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model.path={repository}: the repository on the hub holds no model files that can be "
            "used (config.json and *.safetensors); give another one, a local folder or a .gguf file"
        )
    return folder


def _hub_trouble(error: Exception) -> tuple[str, str]:
    """Why the hub gave nothing, in a few words, and what can be done."""
    from huggingface_hub.errors import HFValidationError

    reason = str(error).strip().split("\n")[0] or type(error).__name__
    responses = [getattr(e, "response", None) for e in (error, error.__cause__)]
    if any(getattr(response, "status_code", None) in (401, 403) for response in responses):
        return reason, "the name may be wrong or the model need a login (hf auth login): check both"
    is_nonsense = isinstance(
        error, (ValueError, LookupError, TypeError, AttributeError, AssertionError)
    )
    if is_nonsense and not isinstance(error, (OSError, HFValidationError)):
        return (
            f"its answer is not that of a hub: {reason}",
            "check HF_ENDPOINT and whether a proxy or a login page answers in the hub's place",
        )
    return reason, "check the name and the connection"
