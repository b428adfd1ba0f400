"""`python -m tpi_bench`."""

import sys


def main() -> None:
    """Run the application. Its imports take a while, and Ctrl-C may come before they are done."""
    try:
        try:
            from tpi_bench.app.main import main as run_app
        except ModuleNotFoundError as error:
            sys.exit(
                f"error: {error}; {sys.executable} lacks what tpi_bench needs: "
                "use .venv/bin/python, which make install makes, or pip install tpi_bench's folder"
            )
        run_app()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
