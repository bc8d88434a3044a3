"""What is durable: one protocol, in one colour, with SQLite behind it."""
