"""tpi_bench: run and compare large language models on several small devices, measured honestly."""

__version__ = "0.1.0"
