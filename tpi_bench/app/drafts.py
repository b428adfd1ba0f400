"""`workload.draft_model`: from a name to the source of the model that drafts."""

from __future__ import annotations

from typing import Any

from tpi_bench.app.choices import choices_of
from tpi_bench.app.typed import load_class, make_dataclass
from tpi_bench.contract.model import ModelSource

_BASES = ("shape", "hf")  # choices of the group that are no model of their own
SAME = "same"


def draft_source(values: dict[str, Any]) -> ModelSource | None:
    """Of a point's plain values; None where no model drafts. Raises ValueError."""
    workload, target = values["workload"], values["model"]
    named = workload.get("draft_model")
    if named is None or workload.get("speculation") != "draft":
        return None
    known = {name: own for name, own in choices_of("model").items() if name not in _BASES}
    if named == SAME:
        chosen = dict(target)
    elif named in known:
        chosen = dict(known[named])
    else:
        chosen = choices_of("model")["hf"] | {"path": named}
    chosen |= {"weights": workload["draft_weights"], "dtype": target["dtype"]}
    group = "workload.draft_model"
    cls = load_class(chosen.pop("_target_"), group)
    source: ModelSource = make_dataclass(cls, chosen, group)
    return source
