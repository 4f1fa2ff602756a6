"""Throughput benchmarks: covidjax beside its peers, in one run, on the same data. ``python -m bench.all`` runs everything.

They look into the library from outside: nothing in ``covidjax`` knows of them.
"""
