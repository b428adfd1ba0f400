"""`python -m tpi_bench`."""

from tpi_bench.app import main

if __name__ == "__main__":
    main()
