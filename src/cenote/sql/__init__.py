"""PostgreSQL, and nothing else: the pool, transactions, the schema, and what the engine asks of it."""
