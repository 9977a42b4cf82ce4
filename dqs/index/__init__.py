"""Near-duplicates: signatures of texts, and the index in Redis that remembers which were kept.

    signature.py     text -> MinHash signatures, one vectorised kernel; pure
    bands.py         bands and rows from a threshold, and their keys; pure
    redis_store.py   corpora of signatures in Redis, one atomic script call per group of documents
    check_and_insert.lua, grow.lua   the scripts, plain Lua for Redis 6.2 and later
    embedded.py      a private redis-server as a child of this process
"""
