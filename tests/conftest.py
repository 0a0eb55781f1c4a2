"""Makes tests/harness importable from every suite, and lets a run that is told to end clean up behind it."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# As an interrupt: servers, mounts and loop devices are taken away again.
signal.signal(signal.SIGTERM, signal.default_int_handler)
