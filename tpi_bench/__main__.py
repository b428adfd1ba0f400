"""`python -m tpi_bench`."""

import gc
import sys
from collections.abc import Callable

from tpi_bench.app.early import STOPPED, end_at_once, say_stopped, stopped_at_once
from tpi_bench.app.streams import open_closed


def main() -> None:
    """Run the application. Its imports take a while, and a stop may come before they are done."""
    open_closed()
    try:
        with stopped_at_once():
            run_app = _application()
        run_app()
    except KeyboardInterrupt:
        say_stopped(sys.argv[1:])
        sys.exit(STOPPED)
    finally:
        end_at_once()


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
    except ValueError as error:  # of what somebody adds to the program, such as a collective
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    gc.freeze()
    gc.enable()
    return run_app


if __name__ == "__main__":
    main()
