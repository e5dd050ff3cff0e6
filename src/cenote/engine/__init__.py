"""The machines that move a value: put → ack → flush → evict → hydrate → get.

The KV stream is authoritative for every entry it holds; PostgreSQL is authoritative for what KV no longer holds.
"""
