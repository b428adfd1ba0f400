"""The systems TPI-LLM is compared with, one file each."""
