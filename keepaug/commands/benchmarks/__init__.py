"""Sections of `keepaug benchmark`: functions of keyword arguments that return a table and figures."""
