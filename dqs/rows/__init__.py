"""Files of rows: reading JSONL and Parquet, writing scored rows, parts with a manifest.

Knows how rows are stored; nothing of how they are scored.
"""
