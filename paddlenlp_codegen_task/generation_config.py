"""The options of one generation, validated once."""
