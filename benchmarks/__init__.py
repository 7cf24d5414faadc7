"""The benchmark suite, installed as ``pyrecon.benchmarks``; ``pyrecon bench`` runs it."""
