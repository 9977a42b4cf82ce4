"""The gRPC service around a pipeline; nothing here scores or decides.

`server` binds and drains, `servicer` handles calls, `admission` bounds what they
hold, `batcher` merges their documents into batches, `codec` translates messages
and `status` translates errors.
"""
