"""Running classifier networks: sessions, tokens, batches. Knows nothing of signals and of what is decided."""
