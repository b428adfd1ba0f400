"""Whether this interpreter can hold an installation; else one line says what to do.

`make` asks it before it makes anything. Written so that an old Python can read it, too.
"""

import sys

FIRST, LAST = (3, 11), (3, 14)  # as requires-python in pyproject.toml
_ANOTHER = "give another one: make PYTHON=python3.{}".format(LAST[1])


def trouble(version, num_bits, has_venv):
    """Why it cannot, and what to do; None where it can."""
    words = "Python {}.{}".format(*version)
    if version < FIRST:
        return "{} is older than {}.{}; {}".format(words, FIRST[0], FIRST[1], _ANOTHER)
    if version > LAST:
        reason = "is newer than {}.{}, and Hydra, torch or numba may not work on it".format(*LAST)
        return "{} {}; {}".format(words, reason, _ANOTHER)
    if num_bits < 64:
        return "this {} has {} bits, and torch needs 64; {}".format(words, num_bits, _ANOTHER)
    if not has_venv:
        package = "apt install python{}.{}-venv".format(*version)
        return "{} is without venv; install it ({}), or {}".format(words, package, _ANOTHER)
    return None


def has_venv():
    """Debian has it in a package of its own."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    found = trouble(sys.version_info[:2], 64 if sys.maxsize > 2**32 else 32, has_venv())
    if found:
        sys.exit("error: {}: {}".format(sys.executable, found))
