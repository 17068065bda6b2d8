"""The benchmarks behind tools/benchmark.py, a file each."""
