"""The proof by simulation: four weeks of traffic in virtual time, with the real planner, routing and admission.

`python -m tests.benchmarks.simulation [--quick] [--plot PATH]` prints the table. Seeds are fixed.
"""
