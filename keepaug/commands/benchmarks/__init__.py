"""Sections of `tools/benchmark.py`: each a function of keyword arguments that returns a table and its
figures.
"""
