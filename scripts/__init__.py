"""Checks by hand, which `run_tool.sh` runs, and the scripts' shared setup."""
