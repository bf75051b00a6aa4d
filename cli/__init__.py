"""The parts that every command shares: flags, configs, work directories, exit codes.

This is the bottom room of the house. It imports nothing of the project. Every other package may
import it.
"""

import os

from cli import stack

# Before TensorFlow is first imported: its start-up chatter (missing CUDA and the like) would bury
# the only line that matters to the user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stack.choose()
