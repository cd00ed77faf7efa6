"""A completion server: HTTP in front of one generator."""
