"""The systems TPI-LLM is compared with, one file each. README.md has the recipe for another."""
