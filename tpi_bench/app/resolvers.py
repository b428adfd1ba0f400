"""What the configuration asks the program: `${tpi_arguments:}` and `${tpi_results_folder:...}`."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from tpi_bench.app.place import ResultsPlace, without_resume


def register(place: ResultsPlace, arguments: Sequence[str]) -> None:
    """Make both known; each is asked once a configuration."""
    kept = without_resume(arguments)
    OmegaConf.register_new_resolver("tpi_arguments", lambda: kept, use_cache=True, replace=True)
    OmegaConf.register_new_resolver(
        "tpi_results_folder", place.folder_of, use_cache=True, replace=True
    )
