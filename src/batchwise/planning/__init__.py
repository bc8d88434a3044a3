"""All decisions, as pure functions: no clock, no I/O, no SDK, no database."""
