"""Sections of `keepaug benchmark`: each a function of keyword arguments that returns a table and its
figures.
"""
