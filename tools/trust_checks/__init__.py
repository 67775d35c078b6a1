"""What `tools/trust.py` tries, see docs/trust.md."""
