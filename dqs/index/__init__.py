"""Near-duplicates: signatures of texts, and the index in Redis that remembers which were kept.

`signature` makes MinHash signatures of texts and `bands` cuts them into bands; both are pure.
`redis_store` keeps corpora of signatures in Redis, one atomic script call per group of
documents (`check_and_insert.lua`, `grow.lua`). `embedded` runs a private redis-server.
"""
