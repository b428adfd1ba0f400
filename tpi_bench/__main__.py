"""`python -m tpi_bench`."""

import gc
import sys
from collections.abc import Callable


def main() -> None:
    """Run the application. Its imports take a while, and Ctrl-C may come before they are done."""
    try:
        run_app = _application()
        run_app()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _application() -> Callable[[], None]:
    """Imports leave no garbage to speak of, and looking for it would be a sixth of their time."""
    gc.disable()
    try:
        from tpi_bench.app.main import main as run_app
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {error}; {sys.executable} lacks what tpi_bench needs: "
            "use .venv/bin/python, which make install makes, or pip install tpi_bench's folder"
        )
    gc.freeze()
    gc.enable()
    return run_app


if __name__ == "__main__":
    main()
