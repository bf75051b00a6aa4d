"""What a reader would want measured, each against its best peer in one run; `./run_benchmarks.sh [NAME...]`.

One file a topic, run as `python -m benchmarks.NAME`; it prints one JSON object a line (`report.line`).
"""
