"""Measurements against peers: each file's `main` prints one JSON object a line.

    ./run_benchmarks.sh [NAME…]

`{"benchmark", "ours", "peer", "peer_name", "ratio", "goal", "unit"}`: both sides measured in the
same run, ratio > 1 is better for us.
"""
