"""Keeps the progress bars and the advice of diffusers and transformers off the terminal while a block runs."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Let through errors only, and put everything back as it was. Holds for the whole process while it lasts."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity, had_progress_bar in before:
            library.set_verbosity(verbosity)
            if had_progress_bar:
                library.enable_progress_bar()
