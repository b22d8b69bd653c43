"""Runs a worker: python -m darkroom_worker."""

import sys

from darkroom_worker.app import main

sys.exit(main())
