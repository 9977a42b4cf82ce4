"""The wire contract in Python, generated from `proto/dqs/v1` by `make proto`; never edited."""
