"""What is durable: requests, batches and results, in a SQLite file or a Postgres database."""
