"""`python -m tpi_bench`."""

import sys


def main() -> None:
    """Run the application. Its imports take a while, and Ctrl-C may come before they are done."""
    try:
        from tpi_bench.app.main import main as run_app

        run_app()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
